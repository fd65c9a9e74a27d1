//! Changes of keys. Every change of one transaction has the same revision, the next one; a
//! transaction without a change leaves the revision as it is.

use std::sync::Arc;

use bytes::Bytes;
use etcd_wire::RpcError;
use etcd_wire::etcdserverpb::{
    DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, ResponseOp, TxnRequest,
    TxnResponse, request_op, response_op,
};
use etcd_wire::mvccpb::{Event, KeyValue, event};

use super::{Batch, EventBatch};
use crate::index::{Change, Entry, Stamp};
use crate::lease::Attachment;
use crate::reads::ReadError;
use crate::record;
use crate::revision::Revision;
use crate::state::{KeySpan, header};
use crate::txn::{self, Path};

impl Batch<'_> {
    pub(super) fn put_alone(&mut self, request: &PutRequest) -> Result<PutResponse, ReadError> {
        if request.lease != 0 && self.state.lease(request.lease).is_none() {
            return Err(RpcError::LeaseNotFound.into());
        }
        let answer = self.put(request)?;
        self.end_txn();
        Ok(answer)
    }

    pub(super) fn delete_alone(
        &mut self,
        request: &DeleteRangeRequest,
    ) -> Result<DeleteRangeResponse, ReadError> {
        let answer = self.delete(request)?;
        self.end_txn();
        Ok(answer)
    }

    /// A transaction runs whole or not at all.
    pub(super) fn txn(&mut self, request: &TxnRequest) -> Result<TxnResponse, ReadError> {
        let path = self.with_reads(|reads| {
            let path = Path::choose(reads, request)?;
            path.check(reads, request)?;
            Ok::<_, ReadError>(path)
        })?;
        let before = self.state.clone();
        match self.branch(request, &path) {
            Ok(mut answer) => {
                self.end_txn();
                answer.header = Some(self.state.header());
                Ok(answer)
            }
            Err(error) => {
                // A later operation depended on what an earlier one has deleted.
                let first = Revision::new(before.revision + 1, 0);
                drop(self.changes.versions.split_off(&first));
                self.state = before;
                self.open.clear();
                Err(error)
            }
        }
    }

    fn branch(&mut self, request: &TxnRequest, path: &Path) -> Result<TxnResponse, ReadError> {
        let mut answer = txn::empty_answer(path);
        let mut nested = path.nested.iter();
        for op in txn::chosen(request, path) {
            use request_op::Request;
            use response_op::Response;
            let response = match &op.request {
                Some(Request::RequestRange(range)) => Some(Response::ResponseRange(
                    self.with_reads(|reads| reads.range(range))?,
                )),
                Some(Request::RequestPut(put)) => Some(Response::ResponsePut(self.put(put)?)),
                Some(Request::RequestDeleteRange(delete)) => {
                    Some(Response::ResponseDeleteRange(self.delete(delete)?))
                }
                Some(Request::RequestTxn(txn)) => {
                    let path = nested.next().expect("one path for each nested transaction");
                    Some(Response::ResponseTxn(self.branch(txn, path)?))
                }
                None => None,
            };
            answer.responses.push(ResponseOp { response });
        }
        Ok(answer)
    }

    fn put(&mut self, request: &PutRequest) -> Result<PutResponse, ReadError> {
        let before = if request.ignore_value || request.ignore_lease || request.prev_kv {
            self.with_reads(|reads| reads.current(&request.key))?
        } else {
            None
        };
        let (mut value, mut lease) = (request.value.clone(), request.lease);
        if request.ignore_value || request.ignore_lease {
            let before = before.as_ref().ok_or(RpcError::KeyNotFound)?;
            if request.ignore_value {
                value = before.value.clone();
            }
            if request.ignore_lease {
                lease = before.lease;
            }
        }
        self.write(&request.key, value, lease);
        Ok(PutResponse {
            header: Some(header(self.state.revision + 1)),
            prev_kv: before.filter(|_| request.prev_kv),
        })
    }

    fn delete(&mut self, request: &DeleteRangeRequest) -> Result<DeleteRangeResponse, ReadError> {
        let span = KeySpan::new(&request.key, &request.range_end);
        let doomed: Vec<_> = span
            .entries(&self.state.index)
            .filter(|entry| entry.is_alive())
            .cloned()
            .collect();
        let mut answer = DeleteRangeResponse {
            deleted: doomed.len() as i64,
            ..Default::default()
        };
        if request.prev_kv {
            answer.prev_kvs = self.with_reads(|reads| {
                let kvs = doomed.iter().map(|entry| reads.kv(entry.newest.revision));
                kvs.collect::<Result<_, _>>()
            })?;
        }
        for entry in &doomed {
            self.bury(entry);
        }
        let changed = i64::from(!self.open.is_empty());
        answer.header = Some(header(self.state.revision + changed));
        Ok(answer)
    }

    /// Deletes the keys of a lease that is revoked, as one transaction.
    pub(super) fn delete_attached(&mut self, keys: &[Vec<u8>]) {
        for key in keys {
            let entry = self.state.index.get(key).cloned();
            let entry = entry.expect("an attached key is in the index");
            self.bury(&entry);
        }
        self.end_txn();
    }

    /// The next change of the transaction under way.
    fn next_revision(&self) -> Revision {
        let sub = u32::try_from(self.open.len()).expect("a transaction's changes fit into memory");
        Revision::new(self.state.revision + 1, sub)
    }

    /// Writes one version of a key.
    fn write(&mut self, key: &Bytes, value: Bytes, lease: i64) {
        let at = self.next_revision();
        let mut change = Change {
            created: at.main,
            version: 1,
            lease,
            stamp: Stamp {
                revision: at,
                tombstone: false,
            },
        };
        let mut old_lease = 0;
        self.state.index.update(key, |before| {
            if let Some(alive) = before.filter(|entry| entry.is_alive()) {
                change.created = alive.created;
                change.version = alive.version + 1;
                old_lease = alive.lease;
            }
            Arc::new(match before {
                Some(entry) => entry.next(change),
                None => Entry::first(Arc::from(&key[..]), change),
            })
        });
        let kv = KeyValue {
            key: key.clone(),
            create_revision: change.created,
            mod_revision: at.main,
            version: change.version,
            value,
            lease,
        };
        self.record(at, record::put(&kv));
        self.move_lease(key, old_lease, lease);
        self.open.push(Event {
            r#type: event::EventType::Put.into(),
            kv: Some(kv),
            prev_kv: None,
        });
    }

    /// Writes a tombstone over a key that is alive.
    fn bury(&mut self, entry: &Entry) {
        let at = self.next_revision();
        let change = Change {
            created: 0,
            version: 0,
            lease: 0,
            stamp: Stamp {
                revision: at,
                tombstone: true,
            },
        };
        self.state.index.insert(Arc::new(entry.next(change)));
        let key = Bytes::copy_from_slice(&entry.key);
        self.record(at, record::tombstone(key.clone()));
        self.move_lease(&entry.key, entry.lease, 0);
        self.open.push(Event {
            r#type: event::EventType::Delete.into(),
            kv: Some(KeyValue {
                key,
                mod_revision: at.main,
                ..Default::default()
            }),
            prev_kv: None,
        });
    }

    fn record(&mut self, at: Revision, bytes: Bytes) {
        self.state.size += record::size(&bytes);
        self.changes.versions.insert(at, bytes);
    }

    fn move_lease(&mut self, key: &[u8], from: i64, to: i64) {
        if from == to {
            return;
        }
        if from != 0 {
            let old = Attachment::new(from, key);
            self.state.attached.remove(crate::tree::Element::key(&old));
        }
        if to != 0 {
            self.state
                .attached
                .insert(Arc::new(Attachment::new(to, key)));
        }
    }

    /// Ends the transaction under way: if it changed anything, it has a revision now.
    fn end_txn(&mut self) {
        if self.open.is_empty() {
            return;
        }
        self.state.revision += 1;
        self.events.push(EventBatch {
            revision: self.state.revision,
            events: std::mem::take(&mut self.open),
        });
    }
}
