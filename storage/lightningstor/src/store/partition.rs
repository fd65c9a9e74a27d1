//! One partition: a log, a data file and an index, owned by one shard.
//!
//! Invariants:
//! - A write is acknowledged after its body and then its record are durable, and visible from then
//!   on. A crash in between leaves free extents, never a record without its body.
//! - Writes of one key follow one another: the next looks at the state that the one before left.
//! - The part of a write that must not be left half done runs in a task of its own, so that a caller
//!   that goes away cannot split log and index.
//! - After a failed write or flush nothing is acknowledged any more; reads go on.
//!
//! A log segment is released when no entry refers to it and every kept checkpoint lies behind it.
//! `upkeep` and `compact` see to it that mostly dead segments come to that.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use engine::sync::Notify;
use engine::{DmaBuf, SchedGroup};
use futures_channel::oneshot;
use segment_log::durable::Poison;
use segment_log::{Log, LogError, Lsn};
use shards::placement::PartitionId;

use super::body_cache::BodyCache;
use super::buckets::BucketTable;
use super::cache::RecordCache;
use super::checkpoint::file::Kept;
use super::config::StoreConfig;
use super::data::DataFile;
use super::error::StoreError;
use super::fetch::ReadState;
use super::index::{Index, ObjectEntry, Slot};
use super::locks::KeyLocks;
use super::metrics::Counters;
use super::record::{Kind, Place, Record};
use super::runs::Runs;
use super::types::{BucketId, BucketState, ReadId, WriteId};
use super::upkeep::Upkeep;
use super::write::WriteState;

/// A partition on its owner shard. Clones are the same partition.
#[derive(Clone)]
pub struct Partition {
    pub(super) inner: Rc<Inner>,
}

pub(super) struct Inner {
    pub(super) id: PartitionId,
    pub(super) dir: PathBuf,
    pub(super) config: StoreConfig,
    pub(super) log: Rc<Log>,
    pub(super) data: DataFile,
    pub(super) poison: Rc<Poison>,
    pub(super) index: RefCell<Index>,
    pub(super) runs: Runs,
    pub(super) cache: RecordCache,
    /// The shard's, once it has one.
    pub(super) bodies: OnceCell<Rc<BodyCache>>,
    pub(super) keys: KeyLocks,
    pub(super) buckets: Rc<BucketTable>,
    pub(super) writes: RefCell<BTreeMap<WriteId, Rc<WriteState>>>,
    pub(super) reads: RefCell<BTreeMap<ReadId, Rc<ReadState>>>,
    /// How many of `reads` are images.
    pub(super) images: Cell<usize>,
    pub(super) next_handle: Cell<u64>,
    pub(super) counters: Counters,
    pub(super) applied: Applied,
    pub(super) checkpoints: Checkpoints,
    pub(super) upkeep: Upkeep,
    commits: Commits,
    closing: Cell<bool>,
}

/// Checkpoints on disk, and when the next is due.
#[derive(Default)]
pub(super) struct Checkpoints {
    /// Those kept, oldest first.
    pub(super) kept: RefCell<Vec<Kept>>,
    pub(super) next: Cell<u64>,
    pub(super) running: Cell<bool>,
    pub(super) ended: Notify,
    /// Bytes of records since the newest began.
    pub(super) log_bytes: Cell<u64>,
    /// What the newest one of this life wrote, its run included.
    pub(super) file_bytes: Cell<u64>,
    /// Whether runs are being merged.
    pub(super) merging: Cell<bool>,
}

/// Which log segments a record may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claim {
    /// Those that the log does not keep in reserve.
    Ordinary,
    /// All: in the end the record gives space back.
    Reserved,
}

/// Which records the index shows.
#[derive(Default)]
pub(super) struct Applied {
    /// Every record up to this one is applied.
    through: Cell<u64>,
    newest: Cell<u64>,
    beyond: RefCell<BTreeSet<u64>>,
    in_flight: Cell<usize>,
}

impl Applied {
    pub(super) fn start_at(&self, last: Lsn) {
        self.through.set(last.0);
        self.newest.set(last.0);
    }

    /// Every record up to this one is applied.
    pub(super) fn through(&self) -> u64 {
        self.through.get()
    }

    fn begin(&self) {
        self.in_flight.set(self.in_flight.get() + 1);
    }

    fn end(&self, lsn: Option<Lsn>) {
        let mut beyond = self.beyond.borrow_mut();
        if let Some(Lsn(lsn)) = lsn {
            beyond.insert(lsn);
            self.newest.set(self.newest.get().max(lsn));
            while beyond.remove(&(self.through.get() + 1)) {
                self.through.set(self.through.get() + 1);
            }
        }
        self.in_flight.set(self.in_flight.get() - 1);
        if self.in_flight.get() == 0 {
            self.through.set(self.newest.get());
            beyond.clear();
        }
    }
}

#[derive(Default)]
struct Commits {
    running: Cell<usize>,
    by_bucket: RefCell<BTreeMap<BucketId, usize>>,
    ended: Notify,
}

/// A commit in progress.
pub(super) struct Ticket {
    inner: Rc<Inner>,
    bucket: BucketId,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let commits = &self.inner.commits;
        commits.running.set(commits.running.get() - 1);
        let mut by_bucket = commits.by_bucket.borrow_mut();
        let count = by_bucket
            .get_mut(&self.bucket)
            .expect("a commit's bucket is counted");
        *count -= 1;
        if *count == 0 {
            by_bucket.remove(&self.bucket);
        }
        commits.ended.notify_all();
    }
}

/// What recovery found.
pub(super) struct Parts {
    pub(super) id: PartitionId,
    pub(super) dir: PathBuf,
    pub(super) log: Rc<Log>,
    pub(super) data: DataFile,
    pub(super) poison: Rc<Poison>,
    pub(super) index: Index,
    pub(super) runs: Runs,
    pub(super) last: Lsn,
    pub(super) kept: Vec<Kept>,
    pub(super) next_checkpoint: u64,
    pub(super) log_bytes: u64,
}

impl Partition {
    pub(super) fn new(parts: Parts, config: &StoreConfig, buckets: &Rc<BucketTable>) -> Partition {
        let inner = Inner {
            id: parts.id,
            dir: parts.dir,
            config: config.clone(),
            log: parts.log,
            data: parts.data,
            poison: parts.poison,
            index: RefCell::new(parts.index),
            runs: parts.runs,
            cache: RecordCache::default(),
            bodies: OnceCell::new(),
            keys: KeyLocks::new(config.keys_max, config.key_waiters_max),
            buckets: Rc::clone(buckets),
            writes: RefCell::default(),
            reads: RefCell::default(),
            images: Cell::new(0),
            // Where another owner of the partition began, its handles would mean something here.
            next_handle: Cell::new(engine::random() >> 1),
            counters: Counters::default(),
            applied: Applied::default(),
            checkpoints: Checkpoints::default(),
            upkeep: Upkeep::default(),
            commits: Commits::default(),
            closing: Cell::new(false),
        };
        inner.applied.start_at(parts.last);
        *inner.checkpoints.kept.borrow_mut() = parts.kept;
        inner.checkpoints.next.set(parts.next_checkpoint);
        inner.checkpoints.log_bytes.set(parts.log_bytes);
        let inner = Rc::new(inner);
        inner.start_upkeep();
        Partition { inner }
    }

    /// Its number.
    pub fn id(&self) -> PartitionId {
        self.inner.id
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// Runs a commit to its end, also when the caller goes away.
    pub(super) async fn in_task<R, F, Fut>(&self, commit: F) -> Result<R, StoreError>
    where
        R: 'static,
        F: FnOnce(Rc<Inner>) -> Fut,
        Fut: Future<Output = Result<R, StoreError>> + 'static,
    {
        let work = commit(Rc::clone(&self.inner));
        let (answer, answered) = oneshot::channel();
        let body = async move {
            // The caller may have gone; its commit still ran.
            let _ = answer.send(work.await);
        };
        let task = engine::try_spawn_local(SchedGroup::FOREGROUND, body);
        task.map_err(|_| StoreError::Busy)?.detach();
        answered.await.map_err(|_| StoreError::Gone)?
    }

    /// Refuses new commits, waits for those in progress, writes a checkpoint and closes the log.
    pub(super) async fn close(&self) -> Result<(), StoreError> {
        let inner = &self.inner;
        inner.closing.set(true);
        while inner.commits.running.get() > 0 {
            inner.commits.ended.notified().await;
        }
        inner.writes.borrow_mut().clear();
        inner.upkeep.ended().await;
        while inner.checkpoints.running.get() || inner.checkpoints.merging.get() {
            inner.checkpoints.ended.notified().await;
        }
        if inner.poison.is_set() {
            return Ok(inner.poison.check()?);
        }
        if inner.checkpoints.log_bytes.get() > 0 {
            match inner.checkpoint().await {
                // The log holds everything; the next start replays more of it.
                Err(StoreError::Full) => {
                    tracing::warn!(partition = inner.id.0, "no space for a last checkpoint");
                }
                done => done?,
            }
        }
        Ok(inner.log.close().await?)
    }
}

impl Inner {
    pub(super) fn is_closing(&self) -> bool {
        self.closing.get()
    }

    /// Memory that the index takes, about.
    pub(super) fn index_memory_bytes(&self) -> usize {
        let index = self.index.borrow();
        let (newer, older) = index.memtables();
        let tables = newer.bytes() + older.map_or(0, super::index::Memtable::bytes);
        let runs: usize = self.runs.list().iter().map(|run| run.memory_bytes()).sum();
        tables + runs + self.runs.cache.bytes()
    }

    pub(super) fn handle(&self) -> u64 {
        let next = self.next_handle.get();
        self.next_handle.set(next + 1);
        next
    }

    /// Admits a commit. From here on until the ticket is dropped the bucket's removal waits.
    pub(super) fn enter(self: &Rc<Inner>, bucket: BucketId) -> Result<Ticket, StoreError> {
        if self.buckets.state(bucket) != Some(BucketState::Active) {
            return Err(StoreError::NoSuchBucket);
        }
        self.enter_any(bucket)
    }

    /// As [`Inner::enter`], whatever the state of the bucket.
    pub(super) fn enter_any(self: &Rc<Inner>, bucket: BucketId) -> Result<Ticket, StoreError> {
        if self.closing.get() {
            return Err(StoreError::Gone);
        }
        self.poison.check()?;
        let commits = &self.commits;
        if commits.running.get() >= self.config.commits_max {
            return Err(StoreError::Busy);
        }
        commits.running.set(commits.running.get() + 1);
        *commits.by_bucket.borrow_mut().entry(bucket).or_default() += 1;
        Ok(Ticket {
            inner: Rc::clone(self),
            bucket,
        })
    }

    /// Waits until no commit is in progress in the bucket.
    pub(super) async fn quiet(&self, bucket: BucketId) {
        while self.commits.by_bucket.borrow().contains_key(&bucket) {
            self.commits.ended.notified().await;
        }
    }

    /// Makes a record durable and shows it over what its key had, if it is an object's. The caller
    /// holds the key and runs in a task that is not dropped.
    ///
    /// # Errors
    /// `Poisoned`: the record may be there after a restart. All others: nothing happened.
    pub(super) async fn append(
        self: &Rc<Inner>,
        record: Record,
        body: Option<&DmaBuf>,
        old: Slot,
    ) -> Result<Place, StoreError> {
        let head = record.encode_head();
        let kind = record.change.kind();
        let claim = if record.change.gives_back() {
            self.check_way_out()?;
            Claim::Reserved
        } else {
            self.data.check_ballast()?;
            Claim::Ordinary
        };
        self.upkeep.appends.set(self.upkeep.appends.get() + 1);
        let parts: [&[u8]; 2] = [&head, body.map_or(&[][..], |b| b)];
        self.append_parts(kind, &parts, claim, |inner, place| {
            inner.show(place, record, old.as_ref());
        })
        .await
    }

    /// Applies a durable record.
    pub(super) fn show(&self, place: Place, record: Record, old: Option<&ObjectEntry>) {
        let freed = self.index.borrow_mut().apply(place, record, old);
        self.data.space().borrow_mut().free(freed);
    }

    /// Makes a record durable, then calls `show` with its place, before any checkpoint may count it
    /// as applied. The caller runs in a task that is not dropped.
    ///
    /// # Errors
    /// As [`Inner::append`].
    pub(super) async fn append_parts(
        self: &Rc<Inner>,
        kind: Kind,
        parts: &[&[u8]],
        claim: Claim,
        show: impl FnOnce(&Inner, Place),
    ) -> Result<Place, StoreError> {
        self.poison.check()?;
        self.applied.begin();
        let appended = match claim {
            Claim::Ordinary => self.log.append(kind as u8, parts).await,
            Claim::Reserved => self.log.append_reserved(kind as u8, parts).await,
        };
        let appended = match appended {
            Ok(appended) => appended,
            Err(error) => {
                self.applied.end(None);
                return Err(self.not_appended(error));
            }
        };
        let position = appended.position;
        let place = Place {
            segment: position.segment,
            offset: position.offset,
            len: appended.len,
        };
        show(self, place);
        self.applied.end(Some(appended.lsn));
        let since = &self.checkpoints.log_bytes;
        since.set(since.get() + u64::from(appended.len));
        self.checkpoint_if_due();
        Ok(place)
    }

    fn not_appended(&self, error: LogError) -> StoreError {
        if let LogError::TooLarge { .. } = error {
            return StoreError::Internal(error.to_string());
        }
        match StoreError::from(error) {
            StoreError::Poisoned(cause) => self.poison.set(&cause).into(),
            StoreError::Full => {
                self.data.pressed.set(true);
                StoreError::Full
            }
            refused @ (StoreError::Busy | StoreError::Gone) => refused,
            // Whether the record is there is not known.
            unclear => self.poison.set(&unclear.to_string()).into(),
        }
    }

    fn checkpoint_if_due(self: &Rc<Inner>) {
        let checkpoints = &self.checkpoints;
        let due = checkpoints.log_bytes.get() >= self.config.checkpoint_log_bytes
            || self.index.borrow().memtable_bytes() >= self.config.memtable_bytes_max;
        if !due || checkpoints.running.get() || self.closing.get() {
            return;
        }
        let inner = Rc::clone(self);
        let body = async move {
            match inner.checkpoint().await {
                Ok(()) => inner.merge_due().await,
                Err(error) => {
                    let full = error == StoreError::Full;
                    inner.data.pressed.set(inner.data.pressed.get() || full);
                    tracing::warn!(partition = inner.id.0, %error, "the checkpoint was given up");
                }
            }
        };
        if let Ok(task) = engine::try_spawn_own(SchedGroup::BACKGROUND, body) {
            task.detach();
        }
    }
}
