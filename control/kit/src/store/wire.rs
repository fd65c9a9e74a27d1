//! The store's requests and answers as etcd's messages.

use bytes::Bytes;
use etcd_wire::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use etcd_wire::etcdserverpb::request_op::Request as Operation;
use etcd_wire::etcdserverpb::response_op::Response as Answer;
use etcd_wire::etcdserverpb::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, RangeResponse, RequestOp,
    ResponseHeader, TxnRequest, TxnResponse, WatchCreateRequest, WatchResponse,
};
use etcd_wire::mvccpb::KeyValue;
use etcd_wire::mvccpb::event::EventType;

use super::{
    Changes, Condition, Entry, Event, LeaseId, Outcome, Page, Range, StoreError, StoreErrorKind,
    Txn, Write, after_prefix,
};

/// What was tried, for errors.
pub const READ: &str = "cannot read from the store";
/// What was tried, for errors.
pub const COMMIT: &str = "cannot write to the store";
/// What was tried, for errors.
pub const WATCH: &str = "cannot watch the store";
/// What was tried, for errors.
pub const LEASE: &str = "cannot work on a lease of the store";

/// The messages of keys below one prefix.
#[derive(Clone, Debug)]
pub struct Wire {
    namespace: String,
}

fn revision(header: Option<ResponseHeader>) -> i64 {
    header.map_or(0, |header| header.revision)
}

fn operation(request: Operation) -> RequestOp {
    RequestOp {
        request: Some(request),
    }
}

impl Wire {
    /// Every key lies below the prefix.
    pub fn new(namespace: impl Into<String>) -> Wire {
        Wire {
            namespace: namespace.into(),
        }
    }

    fn key(&self, key: &str) -> Bytes {
        format!("{}{key}", self.namespace).into()
    }

    fn name(&self, key: &[u8]) -> Result<String, StoreError> {
        let key = std::str::from_utf8(key).ok();
        let name = key.and_then(|key| key.strip_prefix(self.namespace.as_str()));
        let strange = || StoreError::new(StoreErrorKind::Refused, READ, "a key is of nobody here");
        Ok(name.ok_or_else(strange)?.to_owned())
    }

    fn entry(&self, kv: KeyValue) -> Result<Entry, StoreError> {
        Ok(Entry {
            key: self.name(&kv.key)?,
            value: kv.value,
            create_revision: kv.create_revision,
            mod_revision: kv.mod_revision,
            lease: (kv.lease != 0).then_some(LeaseId(kv.lease)),
        })
    }

    fn entries(&self, kvs: Vec<KeyValue>) -> Result<Vec<Entry>, StoreError> {
        kvs.into_iter().map(|kv| self.entry(kv)).collect()
    }

    /// A range.
    pub fn range_request(&self, range: &Range) -> RangeRequest {
        let to = range.to.as_deref();
        RangeRequest {
            key: self.key(&range.from),
            range_end: to.map_or_else(Bytes::new, |to| self.key(to)),
            limit: i64::try_from(range.limit).unwrap_or(i64::MAX),
            ..RangeRequest::default()
        }
    }

    /// What a range answered.
    ///
    /// # Errors
    /// When a key is not below the prefix, or no text.
    pub fn page(&self, answer: RangeResponse) -> Result<Page, StoreError> {
        Ok(Page {
            revision: revision(answer.header),
            more: answer.more,
            entries: self.entries(answer.kvs)?,
        })
    }

    fn compare(&self, condition: &Condition) -> Compare {
        let (target, union) = match condition {
            Condition::Absent(_) => (CompareTarget::Create, TargetUnion::CreateRevision(0)),
            Condition::Unchanged(_, at) => (CompareTarget::Mod, TargetUnion::ModRevision(*at)),
            Condition::Held(_, at) => (CompareTarget::Create, TargetUnion::CreateRevision(*at)),
        };
        Compare {
            result: CompareResult::Equal.into(),
            target: target.into(),
            key: self.key(condition.key()),
            target_union: Some(union),
            ..Compare::default()
        }
    }

    fn write(&self, write: &Write) -> RequestOp {
        operation(match write {
            Write::Put { key, value, lease } => Operation::RequestPut(PutRequest {
                key: self.key(key),
                value: value.clone(),
                lease: lease.map_or(0, |lease| lease.0),
                ..PutRequest::default()
            }),
            Write::Delete(key) => Operation::RequestDeleteRange(DeleteRangeRequest {
                key: self.key(key),
                ..DeleteRangeRequest::default()
            }),
        })
    }

    /// A transaction.
    pub fn txn_request(&self, txn: &Txn) -> TxnRequest {
        let read = |key: &String| {
            let range = self.range_request(&Range::key(key.as_str()));
            operation(Operation::RequestRange(range))
        };
        TxnRequest {
            compare: txn.conditions.iter().map(|one| self.compare(one)).collect(),
            success: txn.writes.iter().map(|one| self.write(one)).collect(),
            failure: txn.on_conflict.iter().map(read).collect(),
        }
    }

    /// What a transaction answered.
    ///
    /// # Errors
    /// As of [`Wire::page`].
    pub fn outcome(&self, answer: TxnResponse) -> Result<Outcome, StoreError> {
        let revision = revision(answer.header);
        if answer.succeeded {
            return Ok(Outcome::Committed { revision });
        }
        let mut entries = Vec::new();
        for read in answer.responses {
            if let Some(Answer::ResponseRange(found)) = read.response {
                entries.extend(self.entries(found.kvs)?);
            }
        }
        Ok(Outcome::Conflict { entries, revision })
    }

    /// A watch of a prefix since a revision.
    pub fn watch_request(&self, prefix: &str, since: i64) -> WatchCreateRequest {
        WatchCreateRequest {
            key: self.key(prefix),
            range_end: self.key(&after_prefix(prefix)),
            start_revision: since + 1,
            progress_notify: true,
            ..WatchCreateRequest::default()
        }
    }

    /// What a watch told.
    ///
    /// # Errors
    /// When it was cancelled, or as of [`Wire::page`].
    pub fn changes(&self, answer: WatchResponse) -> Result<Changes, StoreError> {
        if answer.canceled || answer.compact_revision != 0 {
            let kind = if answer.compact_revision == 0 {
                StoreErrorKind::Unavailable
            } else {
                StoreErrorKind::Gone
            };
            return Err(StoreError::new(kind, WATCH, answer.cancel_reason));
        }
        let mut changes = Changes {
            revision: revision(answer.header),
            events: Vec::with_capacity(answer.events.len()),
        };
        for event in answer.events {
            let deleted = event.r#type() == EventType::Delete;
            let kv = event.kv.unwrap_or_default();
            let key = self.name(&kv.key)?;
            let entry = if deleted { None } else { Some(self.entry(kv)?) };
            changes.events.push(Event { key, entry });
        }
        Ok(changes)
    }
}
