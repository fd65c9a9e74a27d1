//! The background work of a partition: compaction of mostly dead log segments, checkpoints that let
//! dead ones go, and space of the data file given back.
//!
//! Compaction runs in the background group and rests as long as a step took while others write;
//! discards run in the maintenance group. What a quiet partition takes beyond its live bytes is
//! bounded by a constant: the tail, the spares and the reserve of the log, `data_grow_bytes`, dead
//! segments of together less than a checkpoint's length, and the ballast.
//!
//! On a full disk (something was refused, and there is no room yet for a step of the log and of the
//! data file) the thresholds fall. Deletes and moves may use the log's reserve, and each compacted
//! segment is released before the next is begun, so the reserve fills again. The way out is always
//! open: a compaction is begun only when what is ready of the log holds all that it moves, and deletes
//! are held off while it does not hold both. So the reserve is whole, or holds nothing but deletes,
//! which are dead, or what a compaction moves that will release its segment. Checkpoints on the way
//! live on the ballast.
//!
//! It never holds up a write for more than its key's turn, and ends when the partition closes.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::{Rc, Weak};
use std::time::Duration;

use engine::sync::Notify;
use engine::{BLOCK, Nanos, SchedGroup, fs};

use super::checkpoint::file::{KEPT, path_of};
use super::error::StoreError;
use super::partition::Inner;
use super::types::INLINE_MAX;

/// While others write, dead segments wait until they are this often worth a checkpoint.
const DEAD_FACTOR_BUSY: u64 = 4;

/// Of `checkpoint_log_bytes`, what the ballast holds beside the newest checkpoint's length.
const BALLAST_LOG_SHARE: u64 = 8;

/// What a moved segment may take beside its live bytes: this part of them, for batches that are not
/// full, and this part of a segment, for manifests.
const MOVE_PADDING_SHARE: u64 = 8;
const MOVE_MARGIN_SHARE: u64 = 16;

/// What the background work remembers.
#[derive(Default)]
pub(super) struct Upkeep {
    /// Records that others than compaction have begun to write.
    pub(super) appends: Cell<u64>,
    seen: Cell<u64>,
    since: Cell<Nanos>,
    /// Of a quiet partition: segments below are compacted by the higher threshold, each once.
    quiet_below: Cell<Option<u32>>,
    /// Segments that damage keeps from being compacted.
    damaged: RefCell<BTreeSet<u32>>,
    /// Being compacted because the disk is full.
    moving: Cell<Option<u32>>,
    running: Cell<u32>,
    end: Notify,
}

impl Upkeep {
    /// Waits until no work is in progress.
    pub(super) async fn ended(&self) {
        while self.running.get() > 0 {
            self.end.notified().await;
        }
    }
}

struct Run<'a>(&'a Upkeep);

impl Drop for Run<'_> {
    fn drop(&mut self) {
        self.0.running.set(self.0.running.get() - 1);
        self.0.end.notify_all();
    }
}

/// A step's beginning, by which its rest is measured.
pub(super) struct Step {
    began: Nanos,
    appends: u64,
}

/// The partition, while it is open and takes writes.
pub(super) fn open_one(partition: &Weak<Inner>) -> Option<Rc<Inner>> {
    partition
        .upgrade()
        .filter(|inner| !inner.is_closing() && !inner.poison.is_set())
}

async fn compact_for_ever(partition: Weak<Inner>, interval: Duration) {
    loop {
        engine::sleep(interval).await;
        let Some(inner) = open_one(&partition) else {
            return;
        };
        let run = inner.upkeep.run();
        inner.report("compaction", inner.compact_due().await);
        drop(run);
    }
}

async fn discard_for_ever(partition: Weak<Inner>, interval: Duration) {
    loop {
        engine::sleep(interval).await;
        let Some(inner) = open_one(&partition) else {
            return;
        };
        let run = inner.upkeep.run();
        inner.report("giving space back", inner.discard_due().await);
        drop(run);
    }
}

impl Upkeep {
    fn run(&self) -> Run<'_> {
        self.running.set(self.running.get() + 1);
        Run(self)
    }

    /// Segments below which everything is compacted because nobody writes.
    fn look(&self, tail: u32, quiet_after: Duration) {
        let (appends, now) = (self.appends.get(), engine::now());
        if appends != self.seen.get() {
            self.seen.set(appends);
            self.since.set(now);
            self.quiet_below.set(None);
        } else if self.quiet_below.get().is_none() && now.since(self.since.get()) >= quiet_after {
            self.quiet_below.set(Some(tail));
        }
    }
}

impl Inner {
    /// Begins the background work, which ends with the partition.
    pub(super) fn start_upkeep(self: &Rc<Inner>) {
        self.upkeep.since.set(engine::now());
        self.start_scrub();
        let Some(interval) = self.config.upkeep.interval else {
            return;
        };
        let compaction = compact_for_ever(Rc::downgrade(self), interval);
        let discards = discard_for_ever(Rc::downgrade(self), interval);
        let tasks = [
            engine::try_spawn_local(SchedGroup::BACKGROUND, compaction),
            engine::try_spawn_local(SchedGroup::MAINTENANCE, discards),
        ];
        for task in tasks {
            match task {
                Ok(task) => task.detach(),
                Err(error) => tracing::error!(
                    partition = self.id.0, %error,
                    "background work does not run: too many tasks"
                ),
            }
        }
    }

    fn report(&self, what: &str, done: Result<(), StoreError>) {
        match done {
            // They pass, or whoever met them first has said so.
            Ok(())
            | Err(
                StoreError::Busy | StoreError::Full | StoreError::Gone | StoreError::Poisoned(_),
            ) => {}
            Err(error) => {
                tracing::warn!(partition = self.id.0, %error, "{what} was given up for now");
            }
        }
    }

    pub(super) fn begin_step(&self) -> Step {
        Step {
            began: engine::now(),
            appends: self.upkeep.appends.get(),
        }
    }

    /// Rests as long as the step took, if others wrote meanwhile.
    pub(super) async fn end_step(&self, step: Step) {
        if self.upkeep.appends.get() == step.appends {
            engine::yield_now().await;
        } else {
            engine::sleep(engine::now().since(step.began)).await;
        }
    }

    async fn compact_due(self: &Rc<Inner>) -> Result<(), StoreError> {
        let tail = self.log.segments().last().map_or(0, |last| last.number);
        self.upkeep.look(tail, self.config.upkeep.quiet_after);
        self.report("filling the ballast", self.fill_ballast().await);
        let pressed = self.data.pressed.get();
        self.release_segments().await?;
        self.release_dead(pressed).await?;
        self.merge_due().await;
        let mut tried = BTreeSet::new();
        while let Some(segment) = self.worst(pressed, &tried) {
            tried.insert(segment);
            self.upkeep.moving.set(pressed.then_some(segment));
            let compacted = self.compact(segment).await;
            self.upkeep.moving.set(None);
            match compacted {
                Err(damage @ StoreError::Corrupt { .. }) => {
                    tracing::error!(
                        partition = self.id.0, segment, %damage,
                        "the log segment is not compacted; what is live in it stays there"
                    );
                    self.corrupt();
                    self.upkeep.damaged.borrow_mut().insert(segment);
                }
                done => done?,
            }
            self.release_dead(pressed).await?;
        }
        if pressed {
            self.look_for_room().await?;
        }
        Ok(())
    }

    /// Ends the pressure when there is room for a step of the log and of the data file.
    async fn look_for_room(&self) -> Result<(), StoreError> {
        self.fill_ballast().await?;
        if self.data.ballast.is_spent() {
            return Ok(());
        }
        let space = fs::space(&self.dir).await;
        let space = space.map_err(|e| StoreError::internal("cannot tell the free space", &e))?;
        let step = self.config.data_grow_bytes + self.config.log.segment_bytes;
        if space.available >= step {
            self.data.pressed.set(false);
        }
        Ok(())
    }

    /// What the next checkpoint may take: the newest one's length, and what came since in a run.
    async fn ballast_share(&self) -> u64 {
        let mut newest = self.checkpoints.file_bytes.get();
        let kept = self
            .checkpoints
            .kept
            .borrow()
            .last()
            .map(|kept| kept.number);
        if let (0, Some(number)) = (newest, kept) {
            let found = fs::metadata(path_of(&self.dir, number)).await;
            newest = found.map_or(0, |found| found.len);
            self.checkpoints.file_bytes.set(newest);
        }
        // In coarse steps, so that the file seldom changes while a memtable grows.
        let run = self.index.borrow().memtables().0.run_bytes();
        let run = run.next_power_of_two() as u64;
        let share = newest.max(run) + self.config.checkpoint_log_bytes / BALLAST_LOG_SHARE;
        share.next_multiple_of(BLOCK as u64)
    }

    /// Makes the ballast hold the next checkpoint, and those that are missing of two.
    async fn fill_ballast(&self) -> Result<(), StoreError> {
        let missing = KEPT.saturating_sub(self.checkpoints.kept.borrow().len()) as u64;
        let wanted = self.ballast_share().await * (1 + missing);
        let filled = self.data.ballast.fill(wanted).await;
        filled.map_err(|e| StoreError::internal("cannot make the ballast", &e))
    }

    /// The disk is full: throws off what one checkpoint needs; false when there is nothing.
    ///
    /// # Errors
    /// `Internal`.
    pub(super) async fn spend_ballast(&self) -> Result<bool, StoreError> {
        self.data.pressed.set(true);
        let spent = self.data.ballast.spend(self.ballast_share().await).await;
        spent.map_err(|e| StoreError::internal("cannot spend the ballast", &e))
    }

    /// What moving a segment's live records may take of the log.
    fn move_bytes(&self, segment: u32) -> u64 {
        let live = self.index.borrow().live_bytes(segment);
        let margin = self.config.log.segment_bytes / MOVE_MARGIN_SHARE;
        live + live / MOVE_PADDING_SHARE + margin
    }

    /// Holds off what gives space back while it could take the room of a compaction that does.
    ///
    /// # Errors
    /// `Busy`.
    pub(super) fn check_way_out(&self) -> Result<(), StoreError> {
        match self.upkeep.moving.get() {
            Some(segment) if self.log.room() <= self.move_bytes(segment) => Err(StoreError::Busy),
            _ => Ok(()),
        }
    }

    /// The sealed segment with the least live share, if that is below its threshold.
    fn worst(&self, pressed: bool, tried: &BTreeSet<u32>) -> Option<u32> {
        let limits = &self.config.upkeep;
        let damaged = self.upkeep.damaged.borrow();
        let index = self.index.borrow();
        let quiet_below = self.upkeep.quiet_below.get().unwrap_or(0);
        let segments = self.log.segments().into_iter();
        let due = segments.filter_map(|segment| {
            let number = segment.number;
            let threshold = if number < quiet_below {
                limits.live_percent_quiet
            } else if pressed {
                limits.live_percent_pressed
            } else {
                limits.live_percent
            };
            let live = index.live_bytes(number);
            let room = !pressed || self.move_bytes(number) < self.log.room();
            let due = segment.sealed
                && room
                && live > 0
                && live * 100 < segment.bytes * threshold
                && !tried.contains(&number)
                && !damaged.contains(&number);
            due.then_some((live * 1000 / segment.bytes, number))
        });
        due.min().map(|(_, number)| number)
    }

    /// Writes checkpoints when the segments that wait for them are worth it.
    async fn release_dead(self: &Rc<Inner>, pressed: bool) -> Result<(), StoreError> {
        let quiet = pressed || self.upkeep.quiet_below.get().is_some();
        let factor = if quiet { 1 } else { DEAD_FACTOR_BUSY };
        let segment_bytes = self.config.log.segment_bytes;
        for _ in 0..KEPT {
            let worth = segment_bytes.max(self.checkpoints.file_bytes.get()) * factor;
            let dead = self.dead_segments() * segment_bytes + self.runs.retired_bytes();
            let due = dead >= worth || (pressed && dead > 0);
            if !due || self.is_closing() || self.checkpoints.running.get() {
                return Ok(());
            }
            self.checkpoint().await?;
        }
        Ok(())
    }

    /// Sealed segments that nothing but a checkpoint holds.
    fn dead_segments(&self) -> u64 {
        let index = self.index.borrow();
        let space = self.data.space().borrow();
        let dead = |number| index.live_bytes(number) == 0 && !space.is_segment_pinned(number);
        let segments = self.log.segments().into_iter();
        segments
            .filter(|segment| segment.sealed && dead(segment.number))
            .count() as u64
    }

    async fn discard_due(&self) -> Result<(), StoreError> {
        let pressed = self.data.pressed.get();
        let mut bytes_min = self.config.upkeep.discard_bytes_min;
        if pressed || self.upkeep.quiet_below.get().is_some() {
            // No body in extents is shorter: nothing is left behind between two of them.
            bytes_min = bytes_min.min(INLINE_MAX as u64);
        }
        let slack = if pressed {
            0
        } else {
            self.config.data_grow_bytes
        };
        let blocks_min = bytes_min.div_ceil(BLOCK as u64);
        let blocks_min = u32::try_from(blocks_min).unwrap_or(u32::MAX).max(1);
        while !self.is_closing() {
            let bytes = self.data.discard_one(blocks_min, slack).await?;
            if bytes == 0 {
                break;
            }
            let discarded = &self.counters.discarded_bytes;
            discarded.set(discarded.get() + bytes);
            engine::yield_now().await;
        }
        Ok(())
    }
}
