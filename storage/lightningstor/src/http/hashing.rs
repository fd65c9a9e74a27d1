//! The MD5 of bodies on their way in, several at once.
//!
//! A body hands in its next bytes, receives what follows them, and only then hurries: until somebody
//! hurries or the lanes have enough work, what waits goes on waiting, so that it is hashed together, a
//! SIMD lane each. Haste itself waits a moment when other bodies that are being taken in have
//! nothing here yet: their bytes may be on their way, and a lane beside costs nothing. Rounds are short:
//! who comes while one runs joins the next. A body that is given up leaves nothing behind.

#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use engine::{CallError, DmaBuf, Flow, SchedGroup, Task};
use futures_channel::oneshot;

use crate::md5_lanes::{LANES_MAX, Lanes, Md5, Piece};

/// Bytes of each body in one round: 8 lanes take about 100 µs for them.
const ROUND_BYTES: usize = 64 << 10;
/// Lanes with work that are enough to begin.
const LANES_ENOUGH: usize = LANES_MAX / 2;
/// Turns of the scheduler that a round with empty lanes still waits when somebody hurries.
const GATHER_TURNS: usize = 4;
/// How long a body in haste waits for others that are being taken in, once for each of its pieces.
const GATHER_WAIT: Duration = Duration::from_micros(500);
/// Bodies that wait at a time; further ones are hashed alone.
const JOBS_MAX: usize = 1024;

/// The hashing of one shard.
pub(crate) struct Hashing {
    lanes: Lanes,
    jobs: RefCell<VecDeque<Job>>,
    /// Bodies that are being taken in piece by piece.
    open: Cell<usize>,
    is_running: Cell<bool>,
    /// The rounds, waiting for a reason to begin.
    waiting: Cell<Option<Waker>>,
}

/// A body's next bytes.
struct Job {
    md5: Md5,
    buf: DmaBuf,
    /// Bytes of the buffer that are hashed.
    done: usize,
    hurry: oneshot::Receiver<()>,
    answer: oneshot::Sender<(Md5, DmaBuf)>,
    flow: Flow,
}

impl Hashing {
    pub(crate) fn new() -> Rc<Hashing> {
        Rc::new(Hashing {
            lanes: Lanes::detect(),
            jobs: RefCell::default(),
            open: Cell::new(0),
            is_running: Cell::new(false),
            waiting: Cell::default(),
        })
    }

    /// Says that a body comes piece by piece, until it is dropped.
    pub(crate) fn open(self: &Rc<Self>) -> OpenBody {
        self.open.set(self.open.get() + 1);
        OpenBody(Rc::clone(self))
    }

    /// Takes the bytes of a buffer into a sum, in company until the other end of `hurry` speaks or
    /// is dropped. When the future is dropped, so is the work.
    ///
    /// # Errors
    /// `Gone` when the shard ends.
    pub(crate) async fn update(
        self: Rc<Self>,
        mut md5: Md5,
        buf: DmaBuf,
        hurry: oneshot::Receiver<()>,
    ) -> Result<(Md5, DmaBuf), CallError> {
        if self.jobs.borrow().len() >= JOBS_MAX || !self.is_started() {
            for bytes in buf.chunks(ROUND_BYTES) {
                let md5 = &mut md5;
                self.lanes.update(&mut [Piece { md5, bytes }]);
                engine::yield_if_needed().await;
            }
            return Ok((md5, buf));
        }
        let (answer, answered) = oneshot::channel();
        self.jobs.borrow_mut().push_back(Job {
            md5,
            buf,
            done: 0,
            hurry,
            answer,
            flow: engine::flow(),
        });
        if let Some(rounds) = self.waiting.take() {
            rounds.wake();
        }
        answered.await.map_err(|_| CallError::Gone)
    }

    /// Whether rounds run; begins them when they do not and the shard has room for a task.
    fn is_started(self: &Rc<Self>) -> bool {
        if self.is_running.get() {
            return true;
        }
        let rounds = Rc::clone(self).rounds();
        let started = engine::try_spawn_local(SchedGroup::FOREGROUND, rounds).map(Task::detach);
        self.is_running.set(started.is_ok());
        started.is_ok()
    }

    /// Hashes until nobody waits.
    async fn rounds(self: Rc<Self>) {
        loop {
            poll_fn(|cx| self.poll_due(cx)).await;
            self.gather().await;
            self.round();
            if self.jobs.borrow().is_empty() {
                self.is_running.set(false);
                return;
            }
        }
    }

    /// Lanes that have work soon, as far as is known.
    fn lanes_expected(&self) -> usize {
        self.open.get().min(LANES_MAX)
    }

    /// Jobs that are enough to begin, in haste or not.
    fn jobs_enough(&self) -> usize {
        self.lanes_expected().max(LANES_ENOUGH)
    }

    /// Lets those come that are about to.
    async fn gather(&self) {
        for _ in 0..GATHER_TURNS {
            engine::yield_now().await;
            if self.jobs.borrow().len() >= self.jobs_enough() {
                return;
            }
        }
        let (is_fresh, bytes) = {
            let jobs = self.jobs.borrow();
            let bytes: usize = jobs.iter().map(|job| job.buf.len()).sum();
            (jobs.iter().all(|job| job.done == 0), bytes)
        };
        // A short one is done sooner alone than company comes.
        if is_fresh && bytes >= ROUND_BYTES {
            let company = poll_fn(|cx| self.poll_jobs(cx, self.lanes_expected()));
            let _ = engine::timeout(GATHER_WAIT, company).await;
        }
    }

    /// Ready when so many wait.
    fn poll_jobs(&self, cx: &Context<'_>, count: usize) -> Poll<()> {
        if self.jobs.borrow().len() >= count {
            return Poll::Ready(());
        }
        self.waiting.set(Some(cx.waker().clone()));
        Poll::Pending
    }

    /// Ready when a round should begin.
    fn poll_due(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.poll_jobs(cx, self.jobs_enough()).is_ready() {
            return Poll::Ready(());
        }
        let mut jobs = self.jobs.borrow_mut();
        // An answer and a dropped sender both mean haste.
        let mut hurries = jobs.iter_mut().map(|job| Pin::new(&mut job.hurry).poll(cx));
        if hurries.any(|hurry| hurry.is_ready()) {
            return Poll::Ready(());
        }
        Poll::Pending
    }

    /// Puts the next bytes of those that wait through the lanes.
    fn round(&self) {
        let mut jobs = self.jobs.borrow_mut();
        jobs.retain(|job| !job.answer.is_canceled());
        let count = jobs.len().min(LANES_MAX);
        let mut round: Vec<Job> = jobs.drain(..count).collect();
        let pieces = round.iter_mut().map(|job| {
            let end = job.buf.len().min(job.done + ROUND_BYTES);
            let bytes = &job.buf[job.done..end];
            job.done = end;
            Piece {
                md5: &mut job.md5,
                bytes,
            }
        });
        let mut pieces: Vec<Piece<'_>> = pieces.collect();
        self.lanes.update(&mut pieces);
        // A round is the work of whoever has waited for it longest.
        if let Some(first) = round.first() {
            engine::set_flow(first.flow);
        }
        for job in round.into_iter().rev() {
            if job.done < job.buf.len() {
                jobs.push_front(job);
            } else {
                // Who gave up does not need the answer.
                let _ = job.answer.send((job.md5, job.buf));
            }
        }
    }
}

/// See [`Hashing::open`].
pub(crate) struct OpenBody(Rc<Hashing>);

impl Drop for OpenBody {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
        // Nobody waits for this one any more.
        if let Some(rounds) = self.0.waiting.take() {
            rounds.wake();
        }
    }
}
