//! Reading keys at a revision: ranges and the comparisons of transactions. Shared by views and by
//! a batch that reads what it has just written.

use std::cmp::Ordering;

use bytes::Bytes;
use etcd_wire::RpcError;
use etcd_wire::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use etcd_wire::etcdserverpb::range_request::{SortOrder, SortTarget};
use etcd_wire::etcdserverpb::{Compare, RangeRequest, RangeResponse};
use etcd_wire::mvccpb::KeyValue;

use crate::error::Error;
use crate::record;
use crate::revision::Revision;
use crate::state::{KeySpan, State, header};

/// Why a read has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The request is refused, with etcd's error.
    #[error(transparent)]
    Refused(#[from] RpcError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] Error),
}

/// Where versions are read from.
pub(crate) trait Versions {
    /// The bytes of a version that the index names.
    fn read(&self, at: Revision) -> Result<Bytes, Error>;
}

/// A consistent state to read from.
#[derive(Clone, Copy)]
pub(crate) struct Reads<'a> {
    pub(crate) state: &'a State,
    pub(crate) versions: &'a dyn Versions,
    /// The revision that counts as current: inside a transaction that has changed something, its
    /// own.
    pub(crate) now: i64,
}

impl Reads<'_> {
    /// The key-value of a put.
    pub(crate) fn kv(&self, at: Revision) -> Result<KeyValue, Error> {
        Ok(record::decode(at, &self.versions.read(at)?)?.kv)
    }

    /// A key's value now.
    pub(crate) fn current(&self, key: &[u8]) -> Result<Option<KeyValue>, Error> {
        let entry = self.state.index.get(key);
        let at = entry.and_then(|entry| entry.visible(self.now));
        at.map(|at| self.kv(at)).transpose()
    }

    /// The revision to read at.
    fn resolve(&self, revision: i64) -> Result<i64, RpcError> {
        if revision > self.now {
            return Err(RpcError::FutureRev);
        }
        let at = if revision <= 0 { self.now } else { revision };
        if at < self.state.compacted {
            return Err(RpcError::Compacted);
        }
        Ok(at)
    }

    /// The versions in a span that a reader at `main` sees, at most `limit`, and how many there
    /// are in all.
    fn visible(&self, span: KeySpan<'_>, main: i64, limit: usize) -> (Vec<Revision>, i64) {
        let mut found = Vec::new();
        let mut count = 0;
        let entries = span.entries(&self.state.index);
        for at in entries.filter_map(|entry| entry.visible(main)) {
            count += 1;
            if found.len() < limit {
                found.push(at);
            }
        }
        (found, count)
    }

    /// Answers a range request as etcd does, order of filters, sorting and limit included.
    pub(crate) fn range(&self, request: &RangeRequest) -> Result<RangeResponse, ReadError> {
        let at = self.resolve(request.revision)?;
        let span = KeySpan::new(&request.key, &request.range_end);
        let mut answer = RangeResponse {
            header: Some(header(self.now)),
            ..Default::default()
        };
        if request.count_only {
            answer.count = self.visible(span, at, 0).1;
            return Ok(answer);
        }
        let wanted = usize::try_from(request.limit).unwrap_or(0);
        let fetched = match wanted {
            0 => usize::MAX,
            _ if request.sort_order() != SortOrder::None || is_filtered(request) => usize::MAX,
            // One more tells whether there are more.
            limit => limit.saturating_add(1),
        };
        let (found, count) = self.visible(span, at, fetched);
        answer.count = count;
        for at in found {
            let kv = self.kv(at)?;
            if passes(request, &kv) {
                answer.kvs.push(kv);
            }
        }
        sort(request, &mut answer.kvs);
        if wanted > 0 && answer.kvs.len() > wanted {
            answer.kvs.truncate(wanted);
            answer.more = true;
        }
        if request.keys_only {
            for kv in &mut answer.kvs {
                kv.value = Bytes::new();
            }
        }
        Ok(answer)
    }

    /// Whether a comparison holds for every key that it names.
    pub(crate) fn holds(&self, compare: &Compare) -> Result<bool, Error> {
        let span = KeySpan::new(&compare.key, &compare.range_end);
        let (found, _) = self.visible(span, self.now, usize::MAX);
        if found.is_empty() {
            // A key that is not there has no value, not even an empty one.
            return Ok(compare.target() != CompareTarget::Value
                && one_holds(compare, &KeyValue::default()));
        }
        for at in found {
            if !one_holds(compare, &self.kv(at)?) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

fn one_holds(compare: &Compare, kv: &KeyValue) -> bool {
    let wanted = compare.target_union.as_ref();
    let order = match (compare.target(), wanted) {
        (CompareTarget::Value, Some(TargetUnion::Value(value))) => kv.value.cmp(value),
        (CompareTarget::Value, _) => kv.value.as_ref().cmp(&[]),
        (CompareTarget::Version, Some(TargetUnion::Version(n))) => kv.version.cmp(n),
        (CompareTarget::Version, _) => kv.version.cmp(&0),
        (CompareTarget::Create, Some(TargetUnion::CreateRevision(n))) => kv.create_revision.cmp(n),
        (CompareTarget::Create, _) => kv.create_revision.cmp(&0),
        (CompareTarget::Mod, Some(TargetUnion::ModRevision(n))) => kv.mod_revision.cmp(n),
        (CompareTarget::Mod, _) => kv.mod_revision.cmp(&0),
        (CompareTarget::Lease, Some(TargetUnion::Lease(n))) => kv.lease.cmp(n),
        (CompareTarget::Lease, _) => kv.lease.cmp(&0),
    };
    match compare.result() {
        CompareResult::Equal => order == Ordering::Equal,
        CompareResult::NotEqual => order != Ordering::Equal,
        CompareResult::Greater => order == Ordering::Greater,
        CompareResult::Less => order == Ordering::Less,
    }
}

fn is_filtered(request: &RangeRequest) -> bool {
    request.min_mod_revision != 0
        || request.max_mod_revision != 0
        || request.min_create_revision != 0
        || request.max_create_revision != 0
}

fn passes(request: &RangeRequest, kv: &KeyValue) -> bool {
    let within = |value: i64, min: i64, max: i64| value >= min && (max == 0 || value <= max);
    let (min, max) = (request.min_mod_revision, request.max_mod_revision);
    let (first, last) = (request.min_create_revision, request.max_create_revision);
    within(kv.mod_revision, min, max) && within(kv.create_revision, first, last)
}

/// Sorts what came in the order of keys. Without an order, other targets than the key ascend; then
/// a limit has cut before, as in etcd.
fn sort(request: &RangeRequest, kvs: &mut [KeyValue]) {
    let target = request.sort_target();
    let descending = match (request.sort_order(), target) {
        (SortOrder::None | SortOrder::Ascend, SortTarget::Key) => return,
        (SortOrder::None | SortOrder::Ascend, _) => false,
        (SortOrder::Descend, _) => true,
    };
    let ascending = |a: &KeyValue, b: &KeyValue| match target {
        SortTarget::Key => a.key.cmp(&b.key),
        SortTarget::Version => a.version.cmp(&b.version),
        SortTarget::Create => a.create_revision.cmp(&b.create_revision),
        SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
        SortTarget::Value => a.value.cmp(&b.value),
    };
    if descending {
        kvs.sort_by(|a, b| ascending(b, a));
    } else {
        kvs.sort_by(ascending);
    }
}
