//! Group commit: who writes when.
//!
//! A *flight* is a task that takes what has gathered, writes it, and looks again. An append starts
//! a flight when none is about to take its record and fewer than `batches_in_flight` run; beside one
//! that runs, only when `beside_bytes_min` have gathered: a flush costs the same for one record as for
//! twenty, and the flight that runs takes what has gathered when it ends. A flight starts behind the tasks that are ready now, so records of one turn share a batch, and no timer
//! is needed. At most one flight at a time is *placing*: taking a batch, or waiting for a segment
//! to take it to; that keeps batches in the order of their records.
//!
//! Bounds: flights by `batches_in_flight`, gathered bytes by `batch_bytes_max`, appenders that wait
//! for room by [`WAITERS_MAX`], files open for reading by [`READERS_MAX`].

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use engine::fs::File;
use engine::sync::{Notify, Semaphore};
use engine::{BLOCK, DmaBuf, SchedGroup};

use crate::ack::Ack;
use crate::config::{FlushMode, LogConfig};
use crate::error::LogError;
use crate::files::{self, Source};
use crate::format::{BATCH_HEADER, BatchKind, SegmentHeader, batch_span, record_span};
use crate::recovery;
use crate::state::{Batch, NeedsSegment, Phase, Staged, State};
use crate::types::{Appended, LogMetrics, Lsn, SegmentInfo};

/// Most appenders that wait for room in a batch.
pub(crate) const WAITERS_MAX: usize = 4096;
/// Most files kept open for reading.
pub(crate) const READERS_MAX: usize = 128;

/// How long a batch that has its place waits for an operation slot of the shard, and how often it
/// asks. Others may have been placed behind it, so it cannot be refused any more.
const SLOT_WAIT: Duration = Duration::from_secs(30);
const SLOT_POLL: Duration = Duration::from_millis(1);

/// How long the shard's pool may have no buffer: others use it up for a moment.
const BUF_WAIT: Duration = Duration::from_secs(30);

/// How full the tail is before a fresh spare is made for want of a released one.
const FRESH_FROM_PERCENT: u64 = 25;

/// Which segments a record may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// Those beyond the reserve.
    Ordinary,
    /// All.
    Reserved,
}

async fn take_buf(bytes: usize) -> Result<DmaBuf, LogError> {
    let taken = engine::take_buf_until(bytes, engine::now() + BUF_WAIT).await;
    taken.map_err(|_| LogError::Busy)
}

/// The running log.
pub(crate) struct Commit {
    pub(crate) dir: PathBuf,
    config: LogConfig,
    pub(crate) state: RefCell<State>,
    /// Bytes of records that may gather.
    room: Semaphore,
    /// One at a time waits for a buffer.
    buffers: Semaphore,
    /// One at a time makes, recycles or removes segment files.
    files: Semaphore,
    pub(crate) readers: RefCell<BTreeMap<u32, (Rc<File>, u64)>>,
    pub(crate) reads: Cell<u64>,
    flights: Cell<usize>,
    placing: Cell<bool>,
    writing: Cell<usize>,
    sealing: Cell<bool>,
    topping_up: Cell<bool>,
    closing: Cell<bool>,
    /// What closing came to.
    closed: RefCell<Option<Result<(), LogError>>>,
    /// A flight, a seal, the last gathered record or the closing is done.
    quiet: Notify,
    _lock: File,
}

impl Commit {
    pub(crate) fn new(dir: PathBuf, config: LogConfig, lock: File, state: State) -> Commit {
        let room = (config.batch_bytes_max - BATCH_HEADER) as u64;
        Commit {
            dir,
            state: RefCell::new(state),
            room: Semaphore::new(room, WAITERS_MAX),
            buffers: Semaphore::new(1, WAITERS_MAX),
            files: Semaphore::new(1, WAITERS_MAX),
            readers: RefCell::default(),
            reads: Cell::new(0),
            flights: Cell::new(0),
            placing: Cell::new(false),
            writing: Cell::new(0),
            sealing: Cell::new(false),
            topping_up: Cell::new(false),
            closing: Cell::new(false),
            closed: RefCell::default(),
            quiet: Notify::default(),
            config,
            _lock: lock,
        }
    }

    /// Makes this life's incarnation durable, when there is room for its mark. A full disk only
    /// delays that until there is space for the first record.
    pub(crate) async fn begin(self: &Rc<Self>) -> Result<(), LogError> {
        match self.mark_open().await {
            Err(LogError::Full { .. }) => {}
            other => other?,
        }
        // The rest is made when the tail fills: a log that rests keeps few segments.
        self.top_up(self.config.spare_segments.max(self.config.reserve_segments));
        Ok(())
    }

    /// Segments that are kept ready, the reserve among them.
    fn ready_max(&self) -> usize {
        self.config.spare_segments + self.config.reserve_segments
    }

    /// The log was dropped: background work ends at its next step.
    pub(crate) fn end(&self) {
        self.state.borrow_mut().phase = Phase::Closed;
    }

    pub(crate) fn last_durable(&self) -> Lsn {
        Lsn(self.state.borrow().durable_lsn)
    }

    pub(crate) fn segments(&self) -> Vec<SegmentInfo> {
        self.state.borrow().infos()
    }

    pub(crate) fn metrics(&self) -> LogMetrics {
        self.state.borrow().metrics
    }

    pub(crate) async fn append(
        self: &Rc<Self>,
        kind: u8,
        parts: &[&[u8]],
        claim: Claim,
    ) -> Result<Appended, LogError> {
        let len = parts
            .iter()
            .fold(0_usize, |sum, part| sum.saturating_add(part.len()));
        let max = self.config.record_bytes_max;
        if len > max {
            return Err(LogError::TooLarge { len, max });
        }
        self.state.borrow().check()?;
        let span = record_span(len);
        if claim == Claim::Ordinary && self.config.reserve_segments > 0 {
            self.keep_reserve(span).await?;
        }
        let gathered = match self.room.acquire(span as u64).await {
            Err(_) => Err(LogError::Busy),
            Ok(permit) => match self.buf_to_gather(span).await {
                Ok(buf) => self.launch(span).and_then(|()| {
                    let buf = || buf.ok_or(LogError::Busy);
                    self.state
                        .borrow_mut()
                        .gather(kind, parts, span, permit, buf)
                }),
                Err(error) => Err(error),
            },
        };
        match gathered {
            Ok(ticket) => ticket.wait().await,
            Err(error) => {
                let busy = u64::from(matches!(error, LogError::Busy));
                self.state.borrow_mut().metrics.busy += busy;
                Err(error)
            }
        }
    }

    /// The buffer of a new batch, unless one gathers. Others may use up the shard's pool for a moment;
    /// who comes later does not overtake one that waits for it.
    async fn buf_to_gather(&self, span: usize) -> Result<Option<DmaBuf>, LogError> {
        let _turn = self.buffers.acquire(1).await.map_err(|_| LogError::Busy)?;
        if self.state.borrow().gathering.is_some() {
            return Ok(None);
        }
        let wanted = self.config.batch_bytes_max.max(batch_span(span));
        take_buf(wanted).await.map(Some)
    }

    /// Makes segments until an ordinary record leaves the reserve whole. Records that gather at the
    /// same time may begin one segment of it together; the next finds it short, and is refused.
    async fn keep_reserve(&self, span: usize) -> Result<(), LogError> {
        let eats = || {
            let state = self.state.borrow();
            state
                .check()
                .map(|()| state.eats_reserve(span, self.config.reserve_segments))
        };
        while eats()? {
            let _turn = self.files.acquire(1).await.map_err(|_| LogError::Busy)?;
            if !eats()? {
                break;
            }
            match self.stage(Source::Fresh).await {
                Ok(()) => {}
                Err(error @ (LogError::Full { .. } | LogError::Busy)) => {
                    let metrics = &mut self.state.borrow_mut().metrics;
                    metrics.full += u64::from(matches!(error, LogError::Full { .. }));
                    metrics.busy += u64::from(matches!(error, LogError::Busy));
                    return Err(error);
                }
                Err(other) => self.poison(&other.in_full()),
            }
        }
        Ok(())
    }

    /// Sees to it that a flight will take a record of `span` bytes that is about to gather.
    fn launch(self: &Rc<Self>, span: usize) -> Result<(), LogError> {
        self.state.borrow().check()?;
        let flights = self.flights.get();
        if self.placing.get() || flights >= self.config.batches_in_flight {
            return Ok(());
        }
        let gathered = self.state.borrow().gathered_bytes() + span;
        if flights > 0 && gathered < self.config.beside_bytes_min {
            return Ok(());
        }
        let flight = Rc::clone(self).fly();
        let task = engine::try_spawn_own(SchedGroup::FOREGROUND, flight);
        task.map_err(|_| LogError::Busy)?.detach();
        self.placing.set(true);
        self.flights.set(self.flights.get() + 1);
        Ok(())
    }

    async fn fly(self: Rc<Self>) {
        loop {
            let batch = self.next_batch().await;
            self.placing.set(false);
            let Some(batch) = batch else { break };
            self.write(batch).await;
            if self.placing.get() || self.state.borrow().gathering.is_none() {
                break;
            }
            self.placing.set(true);
            // Those whom the write has just answered may have more to say.
            engine::yield_now().await;
        }
        self.flights.set(self.flights.get() - 1);
        self.quiet.notify_all();
    }

    /// Takes what has gathered to its place; `None` when there is nothing, or it was refused.
    async fn next_batch(self: &Rc<Self>) -> Option<Batch> {
        loop {
            let gathers = self.state.borrow().gathering.is_some();
            if !gathers {
                return None;
            }
            let ready = match self.mark_open().await {
                Ok(()) => {
                    let dispatched = self.state.borrow_mut().dispatch(engine::now())?;
                    match dispatched {
                        Ok(batch) => {
                            // A released segment costs less than a fresh one: give it time.
                            if self.state.borrow().tail_used_percent() >= FRESH_FROM_PERCENT {
                                self.top_up(self.ready_max());
                            }
                            return Some(batch);
                        }
                        Err(NeedsSegment) => self.stage_one().await,
                    }
                }
                Err(error) => Err(error),
            };
            if let Err(error) = ready {
                self.refuse(error);
                return None;
            }
        }
    }

    /// The first batch of this life: durable before any other is written.
    async fn mark_open(self: &Rc<Self>) -> Result<(), LogError> {
        if self.state.borrow().marked {
            return Ok(());
        }
        self.mark(BatchKind::Open).await?;
        self.state.borrow_mut().marked = true;
        Ok(())
    }

    async fn mark(self: &Rc<Self>, kind: BatchKind) -> Result<(), LogError> {
        let ack: Rc<Ack> = Rc::default();
        loop {
            let buf = take_buf(BLOCK).await?;
            let marked = self
                .state
                .borrow_mut()
                .mark(kind, buf, Rc::clone(&ack), engine::now());
            match marked {
                Ok(batch) => {
                    self.write(batch).await;
                    return ack.wait().await.map(drop);
                }
                Err(NeedsSegment) => self.stage_one().await?,
            }
        }
    }

    async fn write(self: &Rc<Self>, batch: Batch) {
        let Batch {
            buf,
            file,
            offset,
            sequence,
        } = batch;
        let linked = match self.config.flush {
            FlushMode::Adaptive => self.writing.get() == 0,
            FlushMode::Linked => true,
            FlushMode::Dsync => false,
        };
        {
            let metrics = &mut self.state.borrow_mut().metrics;
            *(if linked {
                &mut metrics.linked
            } else {
                &mut metrics.dsync
            }) += 1;
        }
        self.writing.set(self.writing.get() + 1);
        let (done, buf) = write_durably(&file, buf, offset, linked).await;
        self.writing.set(self.writing.get() - 1);
        drop(buf);
        match done {
            Ok(()) => {
                let due = self.state.borrow_mut().complete(sequence, engine::now());
                for (ack, start) in due {
                    ack.resolve(Ok(start));
                }
                self.seal();
            }
            Err(error) => self.poison(&error.to_string()),
        }
    }

    pub(crate) fn poison(&self, cause: &str) {
        let told = self.state.borrow_mut().poison(cause);
        if self.state.borrow().poisoned.as_deref() == Some(cause) {
            tracing::error!(dir = %self.dir.display(), cause, "the log is poisoned");
        }
        for ack in told {
            ack.resolve(Err(LogError::Poisoned {
                cause: cause.to_owned(),
            }));
        }
        self.quiet.notify_all();
    }

    /// Answers what has gathered with an error that leaves the log as it was, or poisons it.
    fn refuse(&self, error: LogError) {
        match error {
            LogError::Full { .. } | LogError::Busy => {
                let refused = self.state.borrow_mut().refuse();
                if let Some((ack, records)) = refused {
                    let full = matches!(error, LogError::Full { .. });
                    let metrics = &mut self.state.borrow_mut().metrics;
                    *(if full {
                        &mut metrics.full
                    } else {
                        &mut metrics.busy
                    }) += records;
                    ack.resolve(Err(error));
                }
                self.quiet.notify_all();
            }
            other => self.poison(&other.in_full()),
        }
    }

    /// Writes the seals that are due, one task at a time.
    fn seal(self: &Rc<Self>) {
        if self.sealing.get() || self.state.borrow().seal_due().is_none() {
            return;
        }
        let log = Rc::clone(self);
        let sealer = async move {
            log.seal_all().await;
            log.sealing.set(false);
            log.quiet.notify_all();
        };
        // Without a task it is tried again when the next batch is durable, and by close.
        if let Ok(task) = engine::try_spawn_own(SchedGroup::FOREGROUND, sealer) {
            self.sealing.set(true);
            task.detach();
        }
    }

    async fn seal_all(&self) {
        loop {
            let due = self.state.borrow().seal_due();
            let Some((segment, seal)) = due else { return };
            match recovery::write_seal(&segment.header, &segment.file, &seal).await {
                Ok(()) => self.state.borrow_mut().sealed(),
                Err(LogError::Busy) => return,
                Err(error) => self.poison(&error.in_full()),
            }
        }
    }

    /// Stages a segment, unless another task just did.
    async fn stage_one(&self) -> Result<(), LogError> {
        let _turn = self.files.acquire(1).await.map_err(|_| LogError::Busy)?;
        if self.state.borrow().staged.is_empty() {
            self.stage(Source::Fresh).await
        } else {
            Ok(())
        }
    }

    /// The caller holds the turn of `files`.
    async fn stage(&self, source: Source) -> Result<(), LogError> {
        let number = self.state.borrow().next_number;
        let bytes = self.config.segment_bytes;
        let header = SegmentHeader {
            number,
            salt: engine::random(),
            bytes,
        };
        let file = files::stage(&self.dir, header, source).await?;
        let mut state = self.state.borrow_mut();
        state.next_number += 1;
        state.staged.push_back(Staged { header, file });
        Ok(())
    }

    /// Stages spares in the background, until so many are ready.
    fn top_up(self: &Rc<Self>, wanted: usize) {
        let short = move |log: &Commit| {
            let state = log.state.borrow();
            state.check().is_ok() && state.staged.len() < wanted
        };
        if self.topping_up.get() || !short(self) {
            return;
        }
        let log = Rc::clone(self);
        let stager = async move {
            while short(&log) {
                let Ok(_turn) = log.files.acquire(1).await else {
                    break;
                };
                if !short(&log) {
                    break;
                }
                if let Err(error) = log.stage(Source::Fresh).await {
                    tracing::warn!(error = %error.in_full(), "no spare segment");
                    break;
                }
            }
            log.topping_up.set(false);
        };
        // Without a task the next batch tries again, and at worst makes the segment itself.
        if let Ok(task) = engine::try_spawn_own(SchedGroup::BACKGROUND, stager) {
            self.topping_up.set(true);
            task.detach();
        }
    }

    pub(crate) async fn release(&self, number: u32) -> Result<(), LogError> {
        self.state.borrow().check_release(number)?;
        let _turn = self.files.acquire(1).await.map_err(|_| LogError::Busy)?;
        let recycle = {
            let mut state = self.state.borrow_mut();
            state.check_release(number)?;
            let fits = state.segments.remove(&number).map(|s| s.bytes);
            fits == Some(self.config.segment_bytes)
                && state.staged.len() < self.ready_max()
                && state.phase == Phase::Open
        };
        self.readers.borrow_mut().remove(&number);
        if recycle {
            let path = files::retire(&self.dir, number).await?;
            self.stage(Source::Retired(path)).await
        } else {
            files::remove(&files::segment_path(&self.dir, number)).await?;
            files::sync_dir(&self.dir).await
        }
    }

    /// Closes in a task, so that a caller that goes away does not leave it half done, and waits for
    /// its end, whoever began it.
    pub(crate) async fn close(self: &Rc<Self>) -> Result<(), LogError> {
        if !self.closing.get() {
            self.state.borrow().check()?;
            let log = Rc::clone(self);
            let closer = async move {
                let outcome = log.close_now().await;
                *log.closed.borrow_mut() = Some(outcome);
                log.quiet.notify_all();
            };
            let task = engine::try_spawn_own(SchedGroup::FOREGROUND, closer);
            task.map_err(|_| LogError::Busy)?.detach();
            self.state.borrow_mut().phase = Phase::Closed;
            self.closing.set(true);
        }
        loop {
            let quiet = self.quiet.notified();
            if let Some(outcome) = &*self.closed.borrow() {
                return outcome.clone();
            }
            quiet.await;
        }
    }

    async fn close_now(self: &Rc<Self>) -> Result<(), LogError> {
        loop {
            let quiet = self.quiet.notified();
            let busy = self.flights.get() > 0 || self.sealing.get();
            if !busy && self.state.borrow().gathering.is_none() {
                break;
            }
            quiet.await;
        }
        // Whoever makes segments sees that the log is closed, and ends.
        let _turn = self.files.acquire(1).await.map_err(|_| LogError::Busy)?;
        self.seal_all().await;
        if let Some(cause) = &self.state.borrow().poisoned {
            return Err(LogError::Poisoned {
                cause: cause.clone(),
            });
        }
        if !self.state.borrow().marked {
            // This life wrote nothing, for want of space: the log is as its last one left it.
            return Ok(());
        }
        self.mark(BatchKind::Clean).await
    }
}

/// Writes a batch and flushes it. An operation that was not started is tried again for a while; one
/// that was, never.
async fn write_durably(
    file: &File,
    mut buf: DmaBuf,
    offset: u64,
    linked: bool,
) -> (io::Result<()>, DmaBuf) {
    let deadline = engine::now() + SLOT_WAIT;
    loop {
        let (done, back) = if linked {
            file.write_then_datasync(buf, offset).await
        } else {
            file.write_durable(buf, offset).await
        };
        let not_started = |e: &io::Error| e.kind() == io::ErrorKind::ResourceBusy;
        if !done.as_ref().is_err_and(not_started) || engine::now() >= deadline {
            return (done, back);
        }
        buf = back;
        engine::sleep(SLOT_POLL).await;
    }
}
