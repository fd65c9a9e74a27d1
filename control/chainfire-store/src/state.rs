//! The state machine's whole state in memory. A copy shares everything and costs a few pointers,
//! so that a batch works on its own copy and every view keeps one.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use etcd_wire::etcdserverpb::{AlarmType, ResponseHeader};

use crate::auth::Auth;
use crate::index::Entry;
use crate::lease::{Attachment, Lease};
use crate::revision::Revision;
use crate::tree::Tree;

/// Where the log stood when a batch was committed. The store keeps the bytes and never reads them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AppliedMeta {
    /// The last applied log id, encoded.
    pub last_applied: Bytes,
    /// The membership then in force, encoded.
    pub membership: Bytes,
}

/// An alarm of one member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Alarm {
    /// Which alarm, as in `etcdserverpb.AlarmType`.
    pub kind: i32,
    /// Whose.
    pub member: u64,
}

#[derive(Debug, Clone)]
pub(crate) struct State {
    pub(crate) index: Tree<Entry>,
    pub(crate) leases: Tree<Lease>,
    pub(crate) attached: Tree<Attachment>,
    pub(crate) auth: Arc<Auth>,
    pub(crate) alarms: Arc<BTreeSet<Alarm>>,
    pub(crate) cluster_version: Arc<str>,
    /// The newest revision; 1 in an empty store.
    pub(crate) revision: i64,
    /// The last compaction's revision; -1 before the first.
    pub(crate) compacted: i64,
    /// The first version whose predecessors the last compaction has not removed yet.
    pub(crate) purge_next: Revision,
    /// Bytes of the table of versions.
    pub(crate) size: u64,
    /// The last applied entry's index.
    pub(crate) applied_index: u64,
    pub(crate) meta: Arc<AppliedMeta>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            index: Tree::default(),
            leases: Tree::default(),
            attached: Tree::default(),
            auth: Arc::default(),
            alarms: Arc::default(),
            cluster_version: "".into(),
            revision: 1,
            compacted: -1,
            purge_next: Revision::default(),
            size: 0,
            applied_index: 0,
            meta: Arc::default(),
        }
    }
}

impl State {
    /// A header with the revision; the server fills in the rest.
    pub(crate) fn header(&self) -> ResponseHeader {
        header(self.revision)
    }

    /// Whether a member has raised an alarm.
    pub(crate) fn has_alarm(&self, kind: AlarmType) -> bool {
        let kind = kind as i32;
        self.alarms.iter().any(|alarm| alarm.kind == kind)
    }

    pub(crate) fn lease(&self, id: i64) -> Option<&Arc<Lease>> {
        self.leases.get(&id.to_be_bytes())
    }

    /// Whether versions remain that the last compaction made unreachable.
    pub(crate) fn is_purging(&self) -> bool {
        self.purge_next.main <= self.compacted
    }
}

pub(crate) fn header(revision: i64) -> ResponseHeader {
    ResponseHeader {
        revision,
        ..Default::default()
    }
}

/// Which keys a request names: one, all from a key on, or those between two.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KeySpan<'a> {
    start: &'a [u8],
    /// Without: `start` alone.
    end: Option<Bound<&'a [u8]>>,
}

impl<'a> KeySpan<'a> {
    /// As etcd reads `key` and `range_end`: no end is the key alone, an end of one zero byte is
    /// every key from `key` on.
    pub(crate) fn new(key: &'a [u8], range_end: &'a [u8]) -> Self {
        let end = match range_end {
            [] => None,
            [0] => Some(Bound::Unbounded),
            end => Some(Bound::Excluded(end)),
        };
        Self { start: key, end }
    }

    /// The entries of the index with such keys, ascending.
    pub(crate) fn entries(self, index: &'a Tree<Entry>) -> impl Iterator<Item = &'a Arc<Entry>> {
        let (one, many) = match self.end {
            None => (index.get(self.start), None),
            Some(end) => (None, Some(index.range(self.start, end))),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }

    /// Whether a key is one of these.
    pub(crate) fn contains(self, key: &[u8]) -> bool {
        match self.end {
            None => key == self.start,
            Some(Bound::Excluded(end)) => key >= self.start && key < end,
            Some(_) => key >= self.start,
        }
    }
}
