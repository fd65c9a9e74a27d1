//! etcd's semantics in the plainest form: a whole map for each revision.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use bytes::Bytes;
use chainfire_store::{EventBatch, Op, Outcome, Reply, RpcError};
use etcd_wire::etcdserverpb::compare::{CompareResult, TargetUnion};
use etcd_wire::etcdserverpb::request_op::Request;
use etcd_wire::etcdserverpb::response_op::Response;
use etcd_wire::etcdserverpb::{
    CompactionResponse, Compare, DeleteRangeRequest, DeleteRangeResponse, LeaseGrantResponse,
    LeaseRevokeResponse, PutRequest, PutResponse, RangeRequest, RangeResponse, RequestOp,
    ResponseHeader, ResponseOp, TxnRequest, TxnResponse,
};
use etcd_wire::mvccpb::{Event, KeyValue, event};

pub type Map = BTreeMap<Bytes, KeyValue>;

#[derive(Debug, Clone)]
pub struct Model {
    /// By revision; the first is nobody's.
    maps: Vec<Rc<Map>>,
    pub compacted: i64,
    pub leases: BTreeMap<i64, i64>,
    pub events: Vec<EventBatch>,
}

fn header(revision: i64) -> ResponseHeader {
    ResponseHeader {
        revision,
        ..ResponseHeader::default()
    }
}

fn within(key: &Bytes, start: &Bytes, end: &Bytes) -> bool {
    match &end[..] {
        [] => key == start,
        [0] => key >= start,
        end => key >= start && key.as_ref() < end,
    }
}

pub fn select<'m>(map: &'m Map, start: &'m Bytes, end: &'m Bytes) -> Vec<&'m KeyValue> {
    map.values()
        .filter(|kv| within(&kv.key, start, end))
        .collect()
}

/// A transaction under way.
struct Work<'m> {
    model: &'m Model,
    map: Map,
    changes: Vec<Event>,
}

impl Model {
    pub fn new() -> Self {
        Self {
            maps: vec![Rc::default(), Rc::default()],
            compacted: -1,
            leases: BTreeMap::new(),
            events: Vec::new(),
        }
    }

    pub fn revision(&self) -> i64 {
        self.maps.len() as i64 - 1
    }

    pub fn at(&self, revision: i64) -> &Map {
        &self.maps[revision as usize]
    }

    /// The keys of which a finished compaction leaves a version: those that were there at its
    /// revision, and those that changed at it (put or deleted) or later.
    pub fn kept(&self) -> BTreeSet<Bytes> {
        let later = self
            .events
            .iter()
            .filter(|batch| batch.revision >= self.compacted);
        let changed = later.flat_map(|batch| &batch.events);
        let changed = changed.map(|event| event.kv.as_ref().unwrap().key.clone());
        let base = self.at(self.compacted.max(1)).keys().cloned();
        base.chain(changed).collect()
    }

    fn begin(&self) -> Work<'_> {
        Work {
            model: self,
            map: self.at(self.revision()).clone(),
            changes: Vec::new(),
        }
    }

    fn end(&mut self, map: Map, changes: Vec<Event>) {
        if !changes.is_empty() {
            self.maps.push(Rc::new(map));
            self.events.push(EventBatch {
                revision: self.revision(),
                events: changes,
            });
        }
    }

    pub fn apply(&mut self, op: &Op) -> Outcome {
        let mut work = self.begin();
        let reply = match op {
            Op::Put(request) => {
                work.check_lease(request)?;
                Reply::Put(work.put(request)?)
            }
            Op::DeleteRange(request) => Reply::DeleteRange(work.delete(request)),
            Op::Txn(request) => Reply::Txn(work.txn(request)?),
            Op::LeaseRevoke(request) => {
                if !self.leases.contains_key(&request.id) {
                    return Err(RpcError::LeaseNotFound);
                }
                let attached = work.map.values().filter(|kv| kv.lease == request.id);
                let keys: Vec<_> = attached.map(|kv| kv.key.clone()).collect();
                for key in &keys {
                    work.bury(key);
                }
                let header = Some(header(work.now()));
                Reply::LeaseRevoke(LeaseRevokeResponse { header })
            }
            _ => return self.apply_other(op),
        };
        let (map, changes) = (work.map, work.changes);
        self.end(map, changes);
        if let Op::LeaseRevoke(request) = op {
            self.leases.remove(&request.id);
        }
        Ok(reply)
    }

    fn apply_other(&mut self, op: &Op) -> Outcome {
        let header = Some(header(self.revision()));
        match op {
            Op::Compaction(request) => {
                if request.revision <= self.compacted {
                    return Err(RpcError::Compacted);
                }
                if request.revision > self.revision() {
                    return Err(RpcError::FutureRev);
                }
                self.compacted = request.revision;
                Ok(Reply::Compaction(CompactionResponse { header }))
            }
            Op::LeaseGrant(request) => {
                if self.leases.contains_key(&request.id) {
                    return Err(RpcError::LeaseExist);
                }
                let (id, ttl) = (request.id, request.ttl.max(2));
                self.leases.insert(id, ttl);
                Ok(Reply::LeaseGrant(LeaseGrantResponse {
                    header,
                    id,
                    ttl,
                    error: String::new(),
                }))
            }
            other => panic!("not in the plan: {other:?}"),
        }
    }
}

impl Work<'_> {
    fn now(&self) -> i64 {
        self.model.revision() + i64::from(!self.changes.is_empty())
    }

    fn check_lease(&self, request: &PutRequest) -> Result<(), RpcError> {
        if request.lease != 0 && !self.model.leases.contains_key(&request.lease) {
            return Err(RpcError::LeaseNotFound);
        }
        Ok(())
    }

    fn put(&mut self, request: &PutRequest) -> Result<PutResponse, RpcError> {
        let before = self.map.get(&request.key).cloned();
        let mut kv = KeyValue {
            key: request.key.clone(),
            create_revision: self.model.revision() + 1,
            mod_revision: self.model.revision() + 1,
            version: 1,
            value: request.value.clone(),
            lease: request.lease,
        };
        if let Some(before) = &before {
            kv.create_revision = before.create_revision;
            kv.version = before.version + 1;
            if request.ignore_value {
                kv.value = before.value.clone();
            }
            if request.ignore_lease {
                kv.lease = before.lease;
            }
        } else if request.ignore_value || request.ignore_lease {
            return Err(RpcError::KeyNotFound);
        }
        self.map.insert(kv.key.clone(), kv.clone());
        self.change(event::EventType::Put, kv);
        Ok(PutResponse {
            header: Some(header(self.now())),
            prev_kv: before.filter(|_| request.prev_kv),
        })
    }

    fn change(&mut self, kind: event::EventType, kv: KeyValue) {
        self.changes.push(Event {
            r#type: kind.into(),
            kv: Some(kv),
            prev_kv: None,
        });
    }

    fn bury(&mut self, key: &Bytes) {
        self.map.remove(key);
        let kv = KeyValue {
            key: key.clone(),
            mod_revision: self.model.revision() + 1,
            ..KeyValue::default()
        };
        self.change(event::EventType::Delete, kv);
    }

    fn delete(&mut self, request: &DeleteRangeRequest) -> DeleteRangeResponse {
        let doomed = select(&self.map, &request.key, &request.range_end);
        let doomed: Vec<_> = doomed.into_iter().cloned().collect();
        for kv in &doomed {
            self.bury(&kv.key);
        }
        DeleteRangeResponse {
            header: Some(header(self.now())),
            deleted: doomed.len() as i64,
            prev_kvs: if request.prev_kv { doomed } else { Vec::new() },
        }
    }

    fn range(&self, request: &RangeRequest) -> RangeResponse {
        let map = match request.revision {
            0 => &self.map,
            revision if revision > self.model.revision() => &self.map,
            revision => self.model.at(revision),
        };
        let kvs = select(map, &request.key, &request.range_end);
        RangeResponse {
            header: Some(header(self.now())),
            count: kvs.len() as i64,
            kvs: kvs.into_iter().cloned().collect(),
            more: false,
        }
    }

    fn holds(&self, compare: &Compare) -> bool {
        let absent = KeyValue::default();
        let mut kvs = select(&self.map, &compare.key, &compare.range_end);
        if kvs.is_empty() {
            if matches!(compare.target_union, Some(TargetUnion::Value(_))) {
                return false;
            }
            kvs.push(&absent);
        }
        kvs.into_iter().all(|kv| {
            let order = match compare.target_union.as_ref().unwrap() {
                TargetUnion::Version(n) => kv.version.cmp(n),
                TargetUnion::CreateRevision(n) => kv.create_revision.cmp(n),
                TargetUnion::ModRevision(n) => kv.mod_revision.cmp(n),
                TargetUnion::Lease(n) => kv.lease.cmp(n),
                TargetUnion::Value(value) => kv.value.cmp(value),
            };
            match compare.result() {
                CompareResult::Equal => order.is_eq(),
                CompareResult::NotEqual => order.is_ne(),
                CompareResult::Greater => order.is_gt(),
                CompareResult::Less => order.is_lt(),
            }
        })
    }

    /// The operations that will run, with those of nested transactions in their place.
    fn branch<'t>(&self, txn: &'t TxnRequest) -> (bool, &'t [RequestOp]) {
        let holds = txn.compare.iter().all(|compare| self.holds(compare));
        (holds, if holds { &txn.success } else { &txn.failure })
    }

    /// Every put of the chosen branches, then every range: the order in which etcd looks at them.
    fn check(&self, txn: &TxnRequest) -> Result<(), RpcError> {
        self.check_each(txn, &|op| match op {
            Request::RequestPut(put) => {
                let keeps = put.ignore_value || put.ignore_lease;
                if keeps && !self.map.contains_key(&put.key) {
                    return Err(RpcError::KeyNotFound);
                }
                self.check_lease(put)
            }
            _ => Ok(()),
        })?;
        self.check_each(txn, &|op| match op {
            Request::RequestRange(range) if range.revision > self.model.revision() => {
                Err(RpcError::FutureRev)
            }
            Request::RequestRange(range)
                if range.revision != 0 && range.revision < self.model.compacted =>
            {
                Err(RpcError::Compacted)
            }
            _ => Ok(()),
        })
    }

    fn check_each(
        &self,
        txn: &TxnRequest,
        check: &dyn Fn(&Request) -> Result<(), RpcError>,
    ) -> Result<(), RpcError> {
        for op in self.branch(txn).1 {
            match op.request.as_ref().unwrap() {
                Request::RequestTxn(txn) => self.check_each(txn, check)?,
                other => check(other)?,
            }
        }
        Ok(())
    }

    fn txn(&mut self, txn: &TxnRequest) -> Result<TxnResponse, RpcError> {
        self.check(txn)?;
        // Comparisons see the state before, also nested ones.
        let before = Work {
            model: self.model,
            map: self.map.clone(),
            changes: Vec::new(),
        };
        let mut answer = self.run(&before, txn)?;
        answer.header = Some(header(self.now()));
        Ok(answer)
    }

    fn run(&mut self, before: &Work<'_>, txn: &TxnRequest) -> Result<TxnResponse, RpcError> {
        let (succeeded, ops) = before.branch(txn);
        let mut responses = Vec::new();
        for op in ops {
            let response = match op.request.as_ref().unwrap() {
                Request::RequestRange(range) => Response::ResponseRange(self.range(range)),
                Request::RequestPut(put) => Response::ResponsePut(self.put(put)?),
                Request::RequestDeleteRange(delete) => {
                    Response::ResponseDeleteRange(self.delete(delete))
                }
                Request::RequestTxn(txn) => Response::ResponseTxn(self.run(before, txn)?),
            };
            responses.push(ResponseOp {
                response: Some(response),
            });
        }
        Ok(TxnResponse {
            header: Some(header(0)),
            succeeded,
            responses,
        })
    }
}
