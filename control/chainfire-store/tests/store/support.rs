//! Commands in short, and a store that takes them one by one.

use chainfire_store::{
    AppliedMeta, Command, Durable, EventBatch, InMemoryBackend, Op, Options, Outcome, Reply,
    RpcError, Store, View,
};
use etcd_wire::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, DeleteRangeResponse, LeaseGrantRequest,
    LeaseRevokeRequest, PutRequest, PutResponse, RangeRequest, RangeResponse, RequestOp,
    TxnRequest, TxnResponse, request_op,
};
use etcd_wire::mvccpb::KeyValue;

/// Small caches: many stores are open in a test.
pub fn options() -> Options {
    Options {
        cache_bytes: 1 << 20,
        ..Options::default()
    }
}

/// A command of nobody.
pub fn command(op: Op) -> Command {
    Command {
        op: Some(op),
        ..Command::default()
    }
}

/// Marks a batch with the entry that it ends with.
pub fn meta(index: u64) -> AppliedMeta {
    AppliedMeta {
        last_applied: index.to_be_bytes().to_vec().into(),
        membership: "members".into(),
    }
}

/// A store in memory.
pub struct Machine {
    pub store: Store,
    pub events: Vec<EventBatch>,
    index: u64,
}

impl Machine {
    pub fn new() -> Self {
        Self::with(options())
    }

    pub fn with(options: Options) -> Self {
        Self {
            store: Store::open(InMemoryBackend::new(), options).unwrap(),
            events: Vec::new(),
            index: 0,
        }
    }

    pub fn view(&self) -> std::sync::Arc<View> {
        self.store.view()
    }

    pub fn apply(&mut self, command: &Command) -> Outcome {
        self.index += 1;
        let mut batch = self.store.batch();
        let outcome = batch.apply(command, self.index).unwrap();
        let events = batch.commit(meta(self.index), Durable::No).unwrap();
        self.events.extend(events);
        outcome
    }

    pub fn op(&mut self, op: Op) -> Outcome {
        self.apply(&command(op))
    }

    pub fn put(&mut self, key: &str, value: &str) -> PutResponse {
        self.put_with(put(key, value)).unwrap()
    }

    pub fn put_with(&mut self, request: PutRequest) -> Result<PutResponse, RpcError> {
        match self.op(Op::Put(request))? {
            Reply::Put(answer) => Ok(answer),
            other => panic!("{other:?}"),
        }
    }

    pub fn delete(&mut self, request: DeleteRangeRequest) -> DeleteRangeResponse {
        match self.op(Op::DeleteRange(request)) {
            Ok(Reply::DeleteRange(answer)) => answer,
            other => panic!("{other:?}"),
        }
    }

    pub fn txn(&mut self, request: TxnRequest) -> Result<TxnResponse, RpcError> {
        match self.op(Op::Txn(request))? {
            Reply::Txn(answer) => Ok(answer),
            other => panic!("{other:?}"),
        }
    }

    pub fn compact(&mut self, revision: i64) -> Result<(), RpcError> {
        let request = CompactionRequest {
            revision,
            physical: false,
        };
        self.op(Op::Compaction(request)).map(drop)
    }

    pub fn grant(&mut self, id: i64, ttl: i64) -> Result<i64, RpcError> {
        match self.op(Op::LeaseGrant(LeaseGrantRequest { ttl, id }))? {
            Reply::LeaseGrant(answer) => Ok(answer.ttl),
            other => panic!("{other:?}"),
        }
    }

    pub fn revoke(&mut self, id: i64) -> Result<(), RpcError> {
        self.op(Op::LeaseRevoke(LeaseRevokeRequest { id }))
            .map(drop)
    }

    pub fn range(&self, request: &RangeRequest) -> RangeResponse {
        self.view().range(request).unwrap()
    }

    /// Every key and value now, as `key=value`.
    pub fn all(&self) -> Vec<String> {
        shown(&self.range(&range("\0", "\0")).kvs)
    }

    /// What a request at a revision is refused with.
    pub fn refusal(&self, request: &RangeRequest) -> String {
        self.view().range(request).unwrap_err().to_string()
    }
}

pub fn put(key: &str, value: &str) -> PutRequest {
    PutRequest {
        key: key.to_owned().into(),
        value: value.to_owned().into(),
        ..PutRequest::default()
    }
}

pub fn range(key: &str, range_end: &str) -> RangeRequest {
    RangeRequest {
        key: key.to_owned().into(),
        range_end: range_end.to_owned().into(),
        ..RangeRequest::default()
    }
}

pub fn delete(key: &str, range_end: &str) -> DeleteRangeRequest {
    DeleteRangeRequest {
        key: key.to_owned().into(),
        range_end: range_end.to_owned().into(),
        prev_kv: false,
    }
}

pub fn op_put(request: PutRequest) -> RequestOp {
    RequestOp {
        request: Some(request_op::Request::RequestPut(request)),
    }
}

pub fn op_range(request: RangeRequest) -> RequestOp {
    RequestOp {
        request: Some(request_op::Request::RequestRange(request)),
    }
}

pub fn op_delete(request: DeleteRangeRequest) -> RequestOp {
    RequestOp {
        request: Some(request_op::Request::RequestDeleteRange(request)),
    }
}

pub fn op_txn(request: TxnRequest) -> RequestOp {
    RequestOp {
        request: Some(request_op::Request::RequestTxn(request)),
    }
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub fn shown(kvs: &[KeyValue]) -> Vec<String> {
    kvs.iter()
        .map(|kv| format!("{}={}", text(&kv.key), text(&kv.value)))
        .collect()
}
