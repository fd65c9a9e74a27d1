//! A consistent state to read from: it never changes, and never waits for the writer.

use std::fmt;

use bytes::Bytes;
use etcd_wire::RpcError;
use etcd_wire::etcdserverpb::{RangeRequest, RangeResponse, TxnRequest, TxnResponse};
use etcd_wire::mvccpb::{Event, KeyValue, event};
use redb::{Database, ReadOnlyTable, ReadableDatabase};

use crate::auth::Auth;
use crate::batch::EventBatch;
use crate::error::{During, Error};
use crate::lease::{Lease, attached_to};
use crate::reads::{ReadError, Reads, Versions};
use crate::record;
use crate::revision::{Revision, RevisionBytes};
use crate::state::{Alarm, AppliedMeta, KeySpan, State};
use crate::store::VERSIONS;
use crate::txn;

/// The state after one batch.
pub struct View {
    state: State,
    versions: ReadOnlyTable<&'static RevisionBytes, &'static [u8]>,
}

/// Views are shared between threads.
const _: () = {
    const fn shared<T: Send + Sync>() {}
    shared::<View>();
};

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View")
            .field("revision", &self.state.revision)
            .field("applied_index", &self.state.applied_index)
            .finish_non_exhaustive()
    }
}

impl Versions for View {
    fn read(&self, at: Revision) -> Result<Bytes, Error> {
        let found = self.versions.get(&at.to_bytes()).during("read a version")?;
        match found {
            Some(bytes) => Ok(Bytes::copy_from_slice(bytes.value())),
            None => Err(Error::corrupt(format!(
                "read version {}.{}, which the index names and the table lacks",
                at.main, at.sub
            ))),
        }
    }
}

/// Events for a watch that is behind.
#[derive(Debug, Clone, PartialEq)]
pub struct CatchUp {
    /// Whole revisions, ascending, with only the events that were asked for; none is empty.
    pub batches: Vec<EventBatch>,
    /// The revision to ask for next; past the view's own, everything was delivered.
    pub next_revision: i64,
}

impl View {
    /// Sees `state`, which the newest committed transaction holds.
    pub(crate) fn new(db: &Database, state: State) -> Result<Self, Error> {
        let txn = db.begin_read().during("begin to read")?;
        let versions = txn.open_table(VERSIONS).during("open the versions")?;
        Ok(Self { state, versions })
    }

    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    /// Every version from `from` on, oldest first.
    pub(crate) fn versions_from(
        &self,
        from: Revision,
    ) -> Result<impl Iterator<Item = Result<(Revision, Bytes), Error>>, Error> {
        let start = from.to_bytes();
        let rows = self
            .versions
            .range::<&RevisionBytes>(&start..)
            .during("walk the versions")?;
        Ok(rows.map(|row| {
            let (at, bytes) = row.during("walk the versions")?;
            let at = Revision::from_bytes(*at.value());
            Ok((at, Bytes::copy_from_slice(bytes.value())))
        }))
    }

    fn reads(&self) -> Reads<'_> {
        Reads {
            state: &self.state,
            versions: self,
            now: self.state.revision,
        }
    }

    /// The newest revision; 1 in an empty store.
    pub fn revision(&self) -> i64 {
        self.state.revision
    }

    /// The last compaction's revision; -1 before the first.
    pub fn compact_revision(&self) -> i64 {
        self.state.compacted
    }

    /// Whether versions remain that the last compaction made unreachable; see
    /// [`crate::Store::purge`].
    pub fn is_purging(&self) -> bool {
        self.state.is_purging()
    }

    /// The last applied entry's index.
    pub fn applied_index(&self) -> u64 {
        self.state.applied_index
    }

    /// What was committed with the last batch.
    pub fn applied(&self) -> &AppliedMeta {
        &self.state.meta
    }

    /// What keys and values take, deleted and old ones included until a compaction: what a quota
    /// limits.
    pub fn size_bytes(&self) -> u64 {
        self.state.size
    }

    /// How many keys the index holds, those deleted but not yet compacted included.
    pub fn indexed_keys(&self) -> usize {
        self.state.index.len()
    }

    /// The version that every member speaks; empty until it was set.
    pub fn cluster_version(&self) -> &str {
        &self.state.cluster_version
    }

    /// The alarms that are on.
    pub fn alarms(&self) -> impl Iterator<Item = Alarm> + '_ {
        self.state.alarms.iter().copied()
    }

    /// Users, roles and permissions.
    pub fn auth(&self) -> &Auth {
        &self.state.auth
    }

    /// Answers a range request, whose `serializable` is the caller's business.
    ///
    /// # Errors
    /// `Compacted`, `FutureRev`, `Corrupt` under that alarm; or the storage failed.
    pub fn range(&self, request: &RangeRequest) -> Result<RangeResponse, ReadError> {
        self.check_sane()?;
        self.reads().range(request)
    }

    /// Answers a transaction that only reads ([`crate::is_read_only`]).
    ///
    /// # Errors
    /// As [`View::range`].
    ///
    /// # Panics
    /// If the transaction writes.
    pub fn txn(&self, request: &TxnRequest) -> Result<TxnResponse, ReadError> {
        assert!(txn::is_read_only(request), "a view cannot be written to");
        self.check_sane()?;
        txn::read(self.reads(), request)
    }

    fn check_sane(&self) -> Result<(), RpcError> {
        use etcd_wire::etcdserverpb::AlarmType;
        if self.state.has_alarm(AlarmType::Corrupt) {
            return Err(RpcError::Corrupt);
        }
        Ok(())
    }

    /// The events of keys in a span, from a revision on: whole revisions until `bytes_max` of
    /// their keys and values are exceeded.
    ///
    /// # Errors
    /// `Compacted` if `from` is before the compacted revision; or the storage failed.
    pub fn events_since(
        &self,
        from: i64,
        key: &[u8],
        range_end: &[u8],
        bytes_max: usize,
    ) -> Result<CatchUp, ReadError> {
        if from < self.state.compacted {
            return Err(RpcError::Compacted.into());
        }
        let span = KeySpan::new(key, range_end);
        let mut batches: Vec<EventBatch> = Vec::new();
        let mut bytes = 0;
        for row in self.versions_from(Revision::new(from.max(0), 0))? {
            let (at, encoded) = row?;
            let last = batches.last().map_or(0, |batch| batch.revision);
            if bytes > bytes_max && at.main > last {
                return Ok(CatchUp {
                    batches,
                    next_revision: at.main,
                });
            }
            let found = record::decode(at, &encoded)?;
            if !span.contains(&found.kv.key) {
                continue;
            }
            bytes += found.kv.key.len() + found.kv.value.len();
            if last != at.main {
                batches.push(EventBatch {
                    revision: at.main,
                    events: Vec::new(),
                });
            }
            let batch = batches.last_mut().expect("pushed if it was not there");
            batch.events.push(event(at, found));
        }
        Ok(CatchUp {
            batches,
            next_revision: from.max(self.state.revision + 1),
        })
    }

    /// What a key was before the transaction at `revision` changed it; nothing if that was
    /// compacted.
    ///
    /// # Errors
    /// The storage failed.
    pub fn before(&self, key: &[u8], revision: i64) -> Result<Option<KeyValue>, Error> {
        let at = revision - 1;
        if at < self.state.compacted || at > self.state.revision {
            return Ok(None);
        }
        let entry = self.state.index.get(key);
        let found = entry.and_then(|entry| entry.visible(at));
        found.map(|at| self.reads().kv(at)).transpose()
    }

    /// A lease.
    pub fn lease(&self, id: i64) -> Option<Lease> {
        self.state.lease(id).map(|lease| **lease)
    }

    /// Every lease, by id.
    pub fn leases(&self) -> impl Iterator<Item = Lease> + '_ {
        self.state.leases.iter().map(|lease| **lease)
    }

    /// The keys that hang on a lease, ascending.
    pub fn lease_keys(&self, id: i64) -> impl Iterator<Item = &[u8]> {
        attached_to(&self.state.attached, id)
    }
}

fn event(at: Revision, found: record::Record) -> Event {
    let mut kv = found.kv;
    let kind = if found.tombstone {
        kv.mod_revision = at.main;
        event::EventType::Delete
    } else {
        event::EventType::Put
    };
    Event {
        r#type: kind.into(),
        kv: Some(kv),
        prev_kv: None,
    }
}
