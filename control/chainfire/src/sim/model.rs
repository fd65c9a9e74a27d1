//! What the keys should be: a plain model of etcd's semantics, as far as the clients here use them. It
//! forgets nothing, so that it knows every revision's events also after a compaction.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use chainfire_store::{Command, Op, Outcome, Reply, RpcError};
use etcd_wire::etcdserverpb::compare::{CompareTarget, TargetUnion};
use etcd_wire::etcdserverpb::request_op::Request;
use etcd_wire::etcdserverpb::{Compare, DeleteRangeRequest, PutRequest, TxnRequest};
use etcd_wire::mvccpb::event::EventType;
use etcd_wire::mvccpb::{Event, KeyValue};

use crate::watch::KeyRange;

/// What an answer says that the model knows: the revision, and how many keys were deleted or whether a
/// transaction succeeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    pub revision: i64,
    pub detail: i64,
}

/// The whole history.
#[derive(Debug)]
pub struct Model {
    pub revision: i64,
    pub compacted: i64,
    leases: BTreeSet<i64>,
    /// Every version of every key; none where it was deleted.
    versions: BTreeMap<Bytes, BTreeMap<i64, Option<KeyValue>>>,
    /// The events of each revision, with what was before.
    events: BTreeMap<i64, Vec<Event>>,
    open: Vec<Event>,
}

impl Default for Model {
    fn default() -> Self {
        Self {
            revision: 1,
            compacted: -1,
            leases: BTreeSet::new(),
            versions: BTreeMap::new(),
            events: BTreeMap::new(),
            open: Vec::new(),
        }
    }
}

impl Model {
    /// A key as of a revision.
    pub fn at(&self, key: &[u8], revision: i64) -> Option<&KeyValue> {
        let versions = self.versions.get(key)?;
        let (_, version) = versions.range(..=revision).next_back()?;
        version.as_ref()
    }

    /// The keys of a range as of a revision, ascending.
    pub fn range(&self, range: &KeyRange, revision: i64) -> Vec<KeyValue> {
        let keys = self.versions.keys().filter(|key| range.contains(key));
        keys.filter_map(|key| self.at(key, revision).cloned())
            .collect()
    }

    /// The events from a revision up to another one, both included.
    pub fn events(&self, from: i64, to: i64) -> impl Iterator<Item = &Event> {
        self.events
            .range(from..)
            .take_while(move |(at, _)| **at <= to)
            .flat_map(|(_, all)| all)
    }

    /// The leases that there are.
    pub fn leases(&self) -> &BTreeSet<i64> {
        &self.leases
    }

    /// Applies a command of the log.
    pub fn apply(&mut self, command: &Command) -> Result<Answer, RpcError> {
        let detail = match command.op.as_ref().expect("a command has an operation") {
            Op::Put(put) => self.put(put).map(|()| 0),
            Op::DeleteRange(delete) => Ok(self.delete(delete)),
            Op::Txn(txn) => self.txn(txn).map(i64::from),
            Op::Compaction(compaction) => self.compact(compaction.revision),
            Op::LeaseGrant(grant) => self.grant(grant.id),
            Op::LeaseRevoke(revoke) => self.revoke(revoke.id),
            Op::LeaseCheckpoint(_) => Ok(0),
            other => panic!("no client here asks for {other:?}"),
        }?;
        if !self.open.is_empty() {
            self.revision += 1;
            let events = std::mem::take(&mut self.open);
            self.events.insert(self.revision, events);
        }
        let revision = self.revision;
        Ok(Answer { revision, detail })
    }

    fn newest(&self, key: &[u8]) -> Option<&KeyValue> {
        self.at(key, i64::MAX)
    }

    fn put(&mut self, put: &PutRequest) -> Result<(), RpcError> {
        if put.lease != 0 && !self.leases.contains(&put.lease) {
            return Err(RpcError::LeaseNotFound);
        }
        let before = self.newest(&put.key).cloned();
        let mod_revision = self.revision + 1;
        let kv = KeyValue {
            key: put.key.clone(),
            value: put.value.clone(),
            create_revision: before
                .as_ref()
                .map_or(mod_revision, |kv| kv.create_revision),
            mod_revision,
            version: before.as_ref().map_or(0, |kv| kv.version) + 1,
            lease: put.lease,
        };
        self.change(EventType::Put, kv, before);
        Ok(())
    }

    fn change(&mut self, kind: EventType, kv: KeyValue, prev_kv: Option<KeyValue>) {
        let version = (kind == EventType::Put).then(|| kv.clone());
        let versions = self.versions.entry(kv.key.clone()).or_default();
        versions.insert(kv.mod_revision, version);
        self.open.push(Event {
            r#type: kind.into(),
            kv: Some(kv),
            prev_kv,
        });
    }

    fn bury(&mut self, keys: Vec<KeyValue>) -> i64 {
        let count = keys.len() as i64;
        for before in keys {
            let kv = KeyValue {
                key: before.key.clone(),
                mod_revision: self.revision + 1,
                ..KeyValue::default()
            };
            self.change(EventType::Delete, kv, Some(before));
        }
        count
    }

    fn delete(&mut self, delete: &DeleteRangeRequest) -> i64 {
        let range = KeyRange::new(delete.key.clone(), delete.range_end.clone());
        self.bury(self.range(&range, i64::MAX))
    }

    fn txn(&mut self, txn: &TxnRequest) -> Result<bool, RpcError> {
        let succeeded = txn.compare.iter().all(|compare| self.holds(compare));
        let ops = if succeeded {
            &txn.success
        } else {
            &txn.failure
        };
        for op in ops {
            match op.request.as_ref().expect("an operation is given") {
                Request::RequestRange(_) => {}
                Request::RequestPut(put) => self.put(put)?,
                Request::RequestDeleteRange(delete) => {
                    self.delete(delete);
                }
                Request::RequestTxn(_) => panic!("no client here nests transactions"),
            }
        }
        Ok(succeeded)
    }

    fn holds(&self, compare: &Compare) -> bool {
        let kv = self.newest(&compare.key);
        match (compare.target(), compare.target_union.as_ref()) {
            (CompareTarget::Value, Some(TargetUnion::Value(value))) => {
                kv.is_some_and(|kv| kv.value == value)
            }
            (CompareTarget::Mod, Some(TargetUnion::ModRevision(revision))) => {
                kv.map_or(0, |kv| kv.mod_revision) == *revision
            }
            other => panic!("no client here compares {other:?}"),
        }
    }

    fn compact(&mut self, revision: i64) -> Result<i64, RpcError> {
        if revision <= self.compacted {
            return Err(RpcError::Compacted);
        }
        if revision > self.revision {
            return Err(RpcError::FutureRev);
        }
        self.compacted = revision;
        Ok(0)
    }

    fn grant(&mut self, id: i64) -> Result<i64, RpcError> {
        if !self.leases.insert(id) {
            return Err(RpcError::LeaseExist);
        }
        Ok(0)
    }

    fn revoke(&mut self, id: i64) -> Result<i64, RpcError> {
        if !self.leases.remove(&id) {
            return Err(RpcError::LeaseNotFound);
        }
        let all = self.versions.keys().filter_map(|key| self.newest(key));
        let attached = all.filter(|kv| kv.lease == id).cloned().collect();
        self.bury(attached);
        Ok(0)
    }
}

/// What a store's outcome says that the model knows.
pub fn told(outcome: &Outcome) -> Result<Answer, RpcError> {
    let (header, detail) = match outcome.as_ref().map_err(|refused| *refused)? {
        Reply::Put(answer) => (&answer.header, 0),
        Reply::DeleteRange(answer) => (&answer.header, answer.deleted),
        Reply::Txn(answer) => (&answer.header, i64::from(answer.succeeded)),
        Reply::Compaction(answer) => (&answer.header, 0),
        Reply::LeaseGrant(answer) => (&answer.header, 0),
        Reply::LeaseRevoke(answer) => (&answer.header, 0),
        Reply::LeaseCheckpoint(answer) => (&answer.header, 0),
        other => panic!("no client here asks for {other:?}"),
    };
    let revision = header.as_ref().expect("an answer has a head").revision;
    Ok(Answer { revision, detail })
}
