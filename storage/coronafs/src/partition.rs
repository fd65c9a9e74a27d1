//! One partition: a log, a data file and the volumes in them, owned by one shard.
//!
//! Invariants:
//! - What changes volumes or snapshots as such goes one at a time, by one turn, is durable before it is
//!   seen, and runs in a task of its own, so that a caller that goes away cannot split log and state.
//! - A snapshot holds every write that had returned when it was asked for, and of those in flight each
//!   block whole or not at all: it is taken while no write is in flight, and waits for none behind it.
//! - After a failed write or flush nothing is acknowledged any more; reads go on.

use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use engine::SchedGroup;
use engine::sync::{Notify, Semaphore, SemaphorePermit};
use futures_channel::oneshot;
use segment_log::durable::Poison;
use segment_log::{Log, LogError};
use shards::placement::PartitionId;

use crate::checkpoint::file::Checkpoints;
use crate::config::VolumeConfig;
use crate::data::DataFile;
use crate::error::VolumeError;
use crate::image::Images;
use crate::keys::Keys;
use crate::map::{CLUSTER, Reaper, Tree};
use crate::record::Change;
use crate::scrub::Findings;
use crate::shares::Shares;
use crate::state::{Frozen, State};
use crate::sums::file::Sums;
use crate::types::{Survived, VolumeId};
use crate::unflushed::Unflushed;
use crate::volume::Volume;

/// Changes of volumes that may wait for their turn.
const TURNS_MAX: usize = 4096;
/// Nodes that are taken apart without a break.
const REAP_NODES: usize = 64;

/// A partition on its owner shard. Clones are the same partition.
#[derive(Clone)]
pub struct Partition {
    pub(crate) inner: Rc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) id: PartitionId,
    pub(crate) dir: PathBuf,
    pub(crate) config: VolumeConfig,
    pub(crate) log: Rc<Log>,
    pub(crate) data: DataFile,
    pub(crate) poison: Rc<Poison>,
    pub(crate) unflushed: Rc<Unflushed>,
    pub(crate) sums: Sums,
    pub(crate) findings: Findings,
    pub(crate) keys: Keys,
    pub(crate) images: Rc<Images>,
    pub(crate) shares: Shares,
    pub(crate) survived: Survived,
    pub(crate) state: RefCell<State>,
    turns: Semaphore,
    reaper: RefCell<Reaper>,
    reaping: Cell<bool>,
    reaped: Notify,
    trimming: Cell<bool>,
    /// Free clusters with space up to which giving back is not worth a look.
    solid: Cell<u64>,
    pub(crate) checkpoints: Checkpoints,
    closing: Cell<bool>,
}

/// What recovery found.
pub(crate) struct Parts {
    pub(crate) id: PartitionId,
    pub(crate) dir: PathBuf,
    pub(crate) log: Rc<Log>,
    pub(crate) data: DataFile,
    pub(crate) poison: Rc<Poison>,
    pub(crate) unflushed: Rc<Unflushed>,
    pub(crate) sums: Sums,
    pub(crate) keys: Keys,
    pub(crate) survived: Survived,
    pub(crate) state: State,
    pub(crate) checkpoints: Checkpoints,
}

/// Which log segments a record may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// Those that the log does not keep in reserve.
    Ordinary,
    /// All: the record gives space back.
    Reserved,
}

/// What changes are made durable for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum For {
    /// Somebody who wants them to be, or more of the same.
    Order,
    /// The space that ends with them.
    Space,
    /// An operation that gives space back and cannot go on without.
    Freeing,
}

impl std::fmt::Debug for Partition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Partition")
            .field("id", &self.inner.id)
            .finish_non_exhaustive()
    }
}

impl Partition {
    pub(crate) fn new(parts: Parts, config: &VolumeConfig) -> Partition {
        let inner = Inner {
            id: parts.id,
            dir: parts.dir,
            config: config.clone(),
            log: parts.log,
            data: parts.data,
            poison: parts.poison,
            unflushed: parts.unflushed,
            sums: parts.sums,
            findings: Findings::default(),
            keys: parts.keys,
            images: Images::new(config.image_bytes_per_s),
            shares: Shares::default(),
            survived: parts.survived,
            state: RefCell::new(parts.state),
            turns: Semaphore::new(1, TURNS_MAX),
            reaper: RefCell::default(),
            reaping: Cell::new(false),
            reaped: Notify::default(),
            trimming: Cell::new(false),
            solid: Cell::new(0),
            checkpoints: parts.checkpoints,
            closing: Cell::new(false),
        };
        let partition = Partition {
            inner: Rc::new(inner),
        };
        partition.begin_scrubs();
        partition
    }

    /// Its number.
    pub fn id(&self) -> PartitionId {
        self.inner.id
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// What of the life before is there. Requests of a guest that were in progress may be done again
    /// only when nothing that was acknowledged is lost.
    pub fn survived(&self) -> Survived {
        self.inner.survived
    }

    /// Transfers that went through buffers of ours: of memory that is not aligned, or encrypted ones.
    pub fn bounces(&self) -> u64 {
        self.inner.data.bounces.get()
    }

    /// Those of them that went in one operation with others beside them.
    pub fn joined_bounces(&self) -> u64 {
        self.inner.data.joined.get()
    }

    /// Requests that had to wait, as the volumes of the partition wanted more than its disk gives at once.
    pub fn share_waits(&self) -> u64 {
        self.inner.shares.waits()
    }

    /// Pages of checksums that were in memory when they were wanted, and that were read from the disk.
    pub fn checksum_pages(&self) -> (u64, u64) {
        self.inner.sums.pages_used()
    }

    /// Why this partition takes no more writes.
    pub fn poisoned(&self) -> Option<String> {
        let log = || self.inner.log.poisoned();
        self.inner.poison.cause().or_else(log)
    }

    /// Runs a change to its end, also when the caller goes away.
    pub(crate) async fn in_task<R, F, Fut>(&self, change: F) -> Result<R, VolumeError>
    where
        R: 'static,
        F: FnOnce(Rc<Inner>) -> Fut,
        Fut: Future<Output = Result<R, VolumeError>> + 'static,
    {
        let work = change(Rc::clone(&self.inner));
        let (answer, answered) = oneshot::channel();
        let body = async move {
            // The caller may have gone; its change still ran.
            let _ = answer.send(work.await);
        };
        let task = engine::try_spawn_local(SchedGroup::FOREGROUND, body);
        task.map_err(|_| VolumeError::Busy)?.detach();
        answered.await.map_err(|_| VolumeError::Gone)?
    }

    /// Ends all attachments, makes what they wrote durable, writes a checkpoint and closes the log.
    ///
    /// # Errors
    /// `Poisoned`, `Busy`, `Full`: the log has no mark of a close then, and the next opening looks for
    /// a torn tail.
    pub async fn close(&self) -> Result<(), VolumeError> {
        let inner = &self.inner;
        inner.closing.set(true);
        let volumes: Vec<Rc<Volume>> = inner.state.borrow().volumes.values().cloned().collect();
        for volume in volumes {
            volume.fence(|_| true);
            drop(volume.gate.close().await);
            inner.commit(&volume).await?;
        }
        let turn = inner.turns.acquire(1).await?;
        drop(turn);
        inner.checkpoints.ended().await;
        inner.trimmed().await;
        inner.poison.check()?;
        inner.unflushed.void_all();
        inner.poison.check()?;
        if inner.checkpoints.log_bytes.get() > 0 {
            match inner.checkpoint().await {
                // The log holds everything; the next start replays more of it.
                Err(VolumeError::Full) => {
                    tracing::warn!(partition = inner.id.0, "no space for a last checkpoint");
                }
                done => done?,
            }
        }
        Ok(inner.log.close().await?)
    }
}

impl Inner {
    pub(crate) fn is_closing(&self) -> bool {
        self.closing.get()
    }

    /// The turn to change volumes or snapshots as such.
    ///
    /// # Errors
    /// `Gone`, `Poisoned`, `Busy`.
    pub(crate) async fn turn(&self) -> Result<SemaphorePermit, VolumeError> {
        let turn = self.turns.acquire(1).await?;
        if self.closing.get() {
            return Err(VolumeError::Gone);
        }
        self.poison.check()?;
        Ok(turn)
    }

    /// The turn, also while the partition closes.
    pub(crate) async fn quiet(&self) -> Result<SemaphorePermit, VolumeError> {
        Ok(self.turns.acquire(1).await?)
    }

    pub(crate) fn volume(&self, id: VolumeId) -> Result<Rc<Volume>, VolumeError> {
        let state = self.state.borrow();
        state
            .volumes
            .get(&id)
            .cloned()
            .ok_or(VolumeError::NoSuchVolume)
    }

    /// Makes a change durable, then shows it. The caller has the turn and runs in a task that is not
    /// dropped.
    ///
    /// # Errors
    /// `Poisoned`: it may be there after a restart. All others: nothing happened.
    pub(crate) async fn change(
        self: &Rc<Inner>,
        change: Change,
        frozen: Option<Frozen>,
    ) -> Result<(), VolumeError> {
        let claim = match change {
            Change::Delete { .. } | Change::DeleteSnapshot { .. } | Change::Rollback { .. } => {
                Claim::Reserved
            }
            _ => Claim::Ordinary,
        };
        let (kind, payload) = change.encode();
        if let Err(error) = self.append(kind, &payload, claim).await {
            self.reap(frozen.map(|frozen| frozen.tree));
            return Err(error);
        }
        let renewed = match &change {
            Change::Create { id, .. } | Change::Clone { id, .. } => Some(*id),
            Change::Rollback { volume, .. } => Some(*volume),
            _ => None,
        };
        let gone = match &change {
            Change::Delete { id } => self.volume(*id).ok(),
            _ => None,
        };
        let leftover = self.state.borrow_mut().apply(change, frozen);
        let leftover = leftover.map_err(|refusal| VolumeError::Internal(refusal.to_owned()))?;
        let renewed = renewed.and_then(|id| self.volume(id).ok());
        if let Some(volume) = renewed.as_ref().or(gone.as_ref()) {
            let mut space = self.data.space.borrow_mut();
            volume.layer.set(space.new_layer());
            space.end(volume.take_ended());
        }
        self.reap(leftover);
        Ok(())
    }

    /// Makes a record durable.
    ///
    /// # Errors
    /// As [`Inner::change`].
    pub(crate) async fn append(
        self: &Rc<Inner>,
        kind: u8,
        payload: &[u8],
        claim: Claim,
    ) -> Result<(), VolumeError> {
        self.unflushed.appending();
        self.poison.check()?;
        let appended = match claim {
            Claim::Ordinary => self.log.append(kind, &[payload]).await,
            Claim::Reserved => self.log.append_reserved(kind, &[payload]).await,
        };
        let appended = appended.map_err(|error| self.not_appended(error))?;
        self.unflushed.appended(appended.lsn);
        let since = &self.checkpoints.log_bytes;
        since.set(since.get() + u64::from(appended.len));
        self.checkpoint_if_due();
        Ok(())
    }

    fn not_appended(&self, error: LogError) -> VolumeError {
        if let LogError::TooLarge { .. } = error {
            return VolumeError::Internal(error.to_string());
        }
        match VolumeError::from(error) {
            VolumeError::Poisoned(cause) => self.poison.set(&cause).into(),
            refused @ (VolumeError::Full | VolumeError::Busy | VolumeError::Gone) => refused,
            // Whether the record is there is not known.
            unclear => self.poison.set(&unclear.to_string()).into(),
        }
    }

    /// Makes durable what had completed on a volume before the call. Cancel-safe.
    ///
    /// # Errors
    /// `Full`: nothing is lost, and another try may succeed. `Poisoned`, `Busy`.
    pub(crate) async fn commit(self: &Rc<Inner>, volume: &Volume) -> Result<(), VolumeError> {
        self.commit_for(volume, For::Order).await
    }

    /// The same, from the log's reserve when what it is for gives space back.
    ///
    /// # Errors
    /// As [`Inner::commit`].
    pub(crate) async fn commit_for(
        self: &Rc<Inner>,
        volume: &Volume,
        what: For,
    ) -> Result<(), VolumeError> {
        let wanted = volume.done();
        self.poison.check()?;
        if volume.durable() >= wanted {
            return Ok(());
        }
        let _turn = volume.commits.acquire(1).await?;
        self.poison.check()?;
        if volume.durable() >= wanted {
            return Ok(());
        }
        self.commit_captured(volume, what).await
    }

    /// Makes durable what has changed of a volume's map, also by operations in progress.
    ///
    /// # Errors
    /// As [`Inner::commit`].
    pub(crate) async fn commit_changes(
        self: &Rc<Inner>,
        volume: &Volume,
        what: For,
    ) -> Result<(), VolumeError> {
        let _turn = volume.commits.acquire(1).await?;
        if volume.uncommitted() == 0 {
            return Ok(());
        }
        self.commit_captured(volume, what).await
    }

    /// The caller has the volume's turn.
    pub(crate) async fn commit_captured(
        self: &Rc<Inner>,
        volume: &Volume,
        what: For,
    ) -> Result<(), VolumeError> {
        let captured = volume.capture();
        let claim = captured.claim(what);
        self.write_captured(&captured, claim).await?;
        captured.end(&mut self.data.space.borrow_mut());
        self.give_space_back_if_due();
        Ok(())
    }

    /// Begins to give space back to the file system when much is free.
    pub(crate) fn give_space_back_if_due(self: &Rc<Inner>) {
        let slack = self.config.data_slack_bytes / CLUSTER;
        let surplus = self.data.space.borrow().surplus();
        if surplus <= slack || surplus <= self.solid.get() || self.trimming.replace(true) {
            return;
        }
        let inner = Rc::clone(self);
        let body = async move {
            let _ending = Trimming(&inner);
            if let Err(error) = inner.data.give_space_back(slack).await {
                tracing::warn!(%error, "space is not given back");
            }
            // What is left lies in short pieces: not before there is more is it looked at again.
            inner.solid.set(inner.data.space.borrow().surplus() + slack);
        };
        match engine::try_spawn_own(SchedGroup::MAINTENANCE, body) {
            Ok(task) => task.detach(),
            Err(_) => self.trimming.set(false),
        }
    }

    /// Waits until no space is being given back.
    pub(crate) async fn trimmed(&self) {
        while self.trimming.get() {
            self.reaped.notified().await;
        }
    }

    /// First the data, then the records that map it: what a record refers to is durable.
    pub(crate) async fn write_captured(
        self: &Rc<Inner>,
        captured: &crate::volume::Capture<'_>,
        claim: Claim,
    ) -> Result<(), VolumeError> {
        self.data.flush().await?;
        for record in captured.records() {
            self.append(captured.kind(), record, claim).await?;
        }
        Ok(())
    }

    /// Takes a map apart that nobody needs any more, in the background: it costs as much as it does not
    /// share.
    pub(crate) fn reap(self: &Rc<Inner>, tree: Option<Tree>) {
        let Some(tree) = tree else { return };
        self.reaper.borrow_mut().add(tree);
        if self.reaping.replace(true) {
            return;
        }
        let inner = Rc::clone(self);
        let body = async move {
            let _ending = Reaping(&inner);
            loop {
                let mut ended = Vec::new();
                let more = {
                    let mut reaper = inner.reaper.borrow_mut();
                    reaper.step(REAP_NODES, |cluster| ended.push(cluster))
                };
                inner.data.space.borrow_mut().end(ended);
                if !more {
                    inner.give_space_back_if_due();
                    break;
                }
                engine::yield_now().await;
            }
        };
        match engine::try_spawn_own(SchedGroup::BACKGROUND, body) {
            Ok(task) => task.detach(),
            // The next one takes it along.
            Err(_) => self.reaping.set(false),
        }
    }

    /// Makes clusters free that only wait to become so; true when there are some.
    ///
    /// # Errors
    /// Those of a commit.
    pub(crate) async fn reclaim(self: &Rc<Inner>) -> Result<bool, VolumeError> {
        let ended: Vec<Rc<Volume>> = {
            let state = self.state.borrow();
            let with = state.volumes.values().filter(|volume| volume.has_ended());
            with.cloned().collect()
        };
        for volume in ended {
            self.commit_for(&volume, For::Space).await?;
        }
        while self.reaping.get() {
            self.reaped.notified().await;
        }
        let waiting = || {
            let space = self.data.space.borrow();
            space.free_count() == 0 && space.limbo_count() > 0 && self.data.abandoned.get() == 0
        };
        while waiting() {
            self.data.freed.notified().await;
        }
        Ok(self.data.space.borrow().free_count() > 0)
    }
}

/// Ends giving space back, also when its task is dropped.
struct Trimming<'a>(&'a Inner);

impl Drop for Trimming<'_> {
    fn drop(&mut self) {
        self.0.trimming.set(false);
        self.0.reaped.notify_all();
    }
}

/// Ends a round of the reaper, also when its task is dropped.
struct Reaping<'a>(&'a Inner);

impl Drop for Reaping<'_> {
    fn drop(&mut self) {
        self.0.reaping.set(false);
        self.0.reaped.notify_all();
    }
}
