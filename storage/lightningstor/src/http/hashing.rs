//! The MD5 of bodies on their way in, several at once.
//!
//! A body hands in its next bytes, receives what follows them, and only then hurries: until somebody
//! hurries or half the lanes have work, what waits goes on waiting, so that it is hashed together, a
//! SIMD lane each. Rounds are short: who comes while one runs joins the next. Nothing waits for a
//! clock. A body that is given up leaves nothing behind.

#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use engine::{CallError, DmaBuf, SchedGroup, Task};
use futures_channel::oneshot;

use crate::md5_lanes::{LANES_MAX, Lanes, Md5, Piece};

/// Bytes of each body in one round: 8 lanes take about 100 µs for them.
const ROUND_BYTES: usize = 64 << 10;
/// Lanes with work that are enough to begin.
const LANES_ENOUGH: usize = LANES_MAX / 2;
/// Turns of the scheduler that a round with empty lanes still waits when somebody hurries.
const GATHER_TURNS: usize = 4;
/// Bodies that wait at a time; further ones are hashed alone.
const JOBS_MAX: usize = 1024;

/// The hashing of one shard.
pub(crate) struct Hashing {
    lanes: Lanes,
    jobs: RefCell<VecDeque<Job>>,
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
}

impl Hashing {
    pub(crate) fn new() -> Rc<Hashing> {
        Rc::new(Hashing {
            lanes: Lanes::detect(),
            jobs: RefCell::default(),
            is_running: Cell::new(false),
            waiting: Cell::default(),
        })
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
            for _ in 0..GATHER_TURNS {
                engine::yield_now().await;
                if self.jobs.borrow().len() >= LANES_ENOUGH {
                    break;
                }
            }
            self.round();
            if self.jobs.borrow().is_empty() {
                self.is_running.set(false);
                return;
            }
        }
    }

    /// Ready when a round should begin.
    fn poll_due(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut jobs = self.jobs.borrow_mut();
        if jobs.len() >= LANES_ENOUGH {
            return Poll::Ready(());
        }
        self.waiting.set(Some(cx.waker().clone()));
        // An answer and a dropped sender both mean haste.
        let mut hurries = jobs.iter_mut().map(|job| Pin::new(&mut job.hurry).poll(cx));
        if hurries.any(|hurry| hurry.is_ready()) {
            return Poll::Ready(());
        }
        Poll::Pending
    }

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
