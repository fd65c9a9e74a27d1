//! The one task of a process that writes to the ledger: calls that wait are done together, by one
//! transaction of the store, as a log gathers records for one flush.
//!
//! A batch is worked out on what is remembered and committed under the condition that the store still has
//! just that. Where it has not, another process was faster: the answer brings what is there now, and the
//! batch is worked out again. A refusal is answered only from what the store had during the call. Where the
//! store's answer was lost, everything is read again: what was done is found by its id, and an answer that
//! comes late finds its conditions gone.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use control_kit::backoff::Backoff;
use control_kit::clock::Clock;
use control_kit::store::TXN_OPS_MAX;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::book::Book;
use crate::entries;
use crate::error::{Error, ErrorKind};
use crate::metrics::Metrics;
use crate::records::{Committed, Records, not_written};
use crate::refusal::Refused;
use crate::scene::{Memory, Needs, Scene};
use crate::transfer::{Done, Operation};

/// The most calls of one batch; a batch also ends where its transaction is full.
const BATCH_CALLS_MAX: usize = 64;
/// How often reading may find that what was read needs more, before the batch starts anew.
const READS_MAX: usize = 4;
/// Pauses after the store did not answer.
const UNANSWERED: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// A chain that waits, and where its answer goes.
pub(crate) struct Call {
    pub chain: Vec<Operation>,
    pub answer: oneshot::Sender<Result<Vec<Done>, Error>>,
}

pub(crate) struct Worker {
    pub records: Records,
    pub clock: Clock,
    pub metrics: Metrics,
    /// How long a batch is tried.
    pub patience: Duration,
    pub queue: mpsc::Receiver<Call>,
    waiting: VecDeque<Call>,
    /// How many calls from here on are each a batch of their own.
    alone: usize,
    memory: Memory,
}

/// A batch that was worked out.
struct Played {
    book: Book,
    answers: Vec<Result<Vec<Done>, Refused>>,
}

/// How an attempt ended.
enum Attempt {
    /// Every call of the batch has its answer.
    Answered,
    /// Others were faster; this is what is there now.
    Overtaken(Scene),
    /// What an answer was lost of can do nothing any more; this is what is there now.
    Fenced(Scene),
}

impl Worker {
    pub fn new(
        records: Records,
        clock: Clock,
        metrics: Metrics,
        patience: Duration,
        queue: mpsc::Receiver<Call>,
    ) -> Worker {
        Worker {
            records,
            clock,
            metrics,
            patience,
            queue,
            waiting: VecDeque::new(),
            alone: 0,
            memory: Memory::default(),
        }
    }

    /// Works until nobody can call any more.
    pub async fn run(mut self) {
        while self.gather().await {
            self.batch().await;
        }
    }

    /// Waits for calls, and takes all that could be made at this moment.
    async fn gather(&mut self) -> bool {
        if self.waiting.is_empty() {
            match self.queue.recv().await {
                Some(call) => self.waiting.push_back(call),
                None => return false,
            }
        }
        others_first().await;
        while self.waiting.len() < BATCH_CALLS_MAX
            && let Ok(call) = self.queue.try_recv()
        {
            self.waiting.push_back(call);
        }
        true
    }

    /// The calls that wait longest, as many as one transaction can name.
    fn select(&mut self) -> (Vec<Call>, Needs) {
        let (mut calls, mut needs) = (Vec::new(), Needs::default());
        while let Some(call) = self.waiting.pop_front() {
            // Nobody waits for it any more, and it was not begun.
            if call.answer.is_closed() {
                continue;
            }
            let mut more = needs.clone();
            call.chain.iter().for_each(|operation| more.add(operation));
            if more.keys_max() > TXN_OPS_MAX && !calls.is_empty() {
                self.waiting.push_front(call);
                break;
            }
            needs = more;
            calls.push(call);
            if self.alone > 0 {
                self.alone -= 1;
                break;
            }
        }
        (calls, needs)
    }

    async fn batch(&mut self) {
        let (mut calls, mut needs) = self.select();
        if calls.is_empty() {
            return;
        }
        let started = Instant::now();
        let mut unanswered = Backoff::new(UNANSWERED.0, UNANSWERED.1);
        let mut scene = Some(self.memory.scene(&mut needs));
        let error = loop {
            let attempt = match scene.take() {
                Some(scene) => self.attempt(&mut calls, &mut needs, scene).await,
                None => self.fence(&mut needs).await,
            };
            let (error, pause) = match attempt {
                Ok(Attempt::Answered) => return,
                Ok(Attempt::Fenced(known)) => {
                    scene = Some(known);
                    continue;
                }
                Ok(Attempt::Overtaken(now)) => {
                    self.metrics.conflicts.increment();
                    scene = Some(now);
                    let what = "others changed the same accounts all the time";
                    // At once: what is there now is known, and whoever waits is late for the next batch
                    // of the store as well, for as long as the others are busy.
                    (Error::new(ErrorKind::Unavailable, what), Duration::ZERO)
                }
                Err(error) => {
                    self.memory.forget(&needs);
                    if error.kind() != ErrorKind::Unknown {
                        scene = Some(Scene::default());
                    }
                    (error, unanswered.pause())
                }
            };
            if error.lasts() && calls.len() > 1 {
                // Damage, or a store that is full, may be one call's; the others shall not suffer for it.
                self.alone = calls.len();
                calls
                    .drain(..)
                    .rev()
                    .for_each(|call| self.waiting.push_front(call));
                return;
            }
            if error.lasts() || started.elapsed() > self.patience {
                break error;
            }
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
        };
        for call in calls {
            // Nobody may wait for it any more.
            let _ = call.answer.send(Err(error.again()));
        }
    }

    /// Works a batch out and commits it. Calls for which the transaction has no room wait again.
    async fn attempt(
        &mut self,
        calls: &mut Vec<Call>,
        needs: &mut Needs,
        mut scene: Scene,
    ) -> Result<Attempt, Error> {
        if !scene.complete(needs) {
            scene = self.read(needs).await?;
        }
        let mut played = self.play(calls, needs, &scene);
        if played.book.mark() == 0 && !scene.consistent {
            scene = self.read(needs).await?;
            played = self.play(calls, needs, &scene);
        }
        if played.book.mark() == 0 {
            self.answer(calls, played.answers);
            return Ok(Attempt::Answered);
        }
        let keys = &self.records.keys;
        let conditions = scene.conditions(keys, needs);
        let writes = entries::writes(keys, &played.book, &played.book.changed());
        let committed = self
            .records
            .commit(conditions, writes, needs.keys(keys))
            .await;
        Ok(match committed {
            Ok(Committed::At(revision)) => {
                self.metrics.batches.increment();
                self.memory.keep(scene, &played.book, revision);
                self.answer(calls, played.answers);
                Attempt::Answered
            }
            Ok(Committed::Not(entries)) => {
                Attempt::Overtaken(Scene::of(&self.records, needs, &entries)?)
            }
            Err(error) => return Err(not_written(error)),
        })
    }

    /// Makes sure that a transaction of this batch whose answer was lost can do nothing any more: it may be
    /// on its way still, and it was made on revisions of accounts. Each gets a new one, with what it has.
    /// Only then can be told what was done, and what is refused.
    async fn fence(&self, needs: &mut Needs) -> Result<Attempt, Error> {
        // Not fenced yet, whatever goes wrong here.
        let unknown = |error: Error| error.with_kind(ErrorKind::Unknown);
        let mut scene = self.read(needs).await.map_err(unknown)?;
        let keys = &self.records.keys;
        let writes = scene.accounts_again(keys, needs);
        if writes.is_empty() {
            return Ok(Attempt::Fenced(scene));
        }
        let conditions = scene.conditions(keys, needs);
        let committed = self.records.commit(conditions, writes, Vec::new()).await;
        match committed.map_err(not_written).map_err(unknown)? {
            Committed::At(revision) => {
                scene.accounts_written(revision);
                Ok(Attempt::Fenced(scene))
            }
            Committed::Not(_) => {
                let what = "an answer was lost, and others changed the same accounts all the time";
                Err(Error::new(ErrorKind::Unknown, what))
            }
        }
    }

    /// Reads all that is needed, at one revision.
    async fn read(&self, needs: &mut Needs) -> Result<Scene, Error> {
        for _ in 0..READS_MAX {
            let entries = self.records.read(&needs.keys(&self.records.keys)).await?;
            let scene = Scene::of(&self.records, needs, &entries)?;
            if scene.complete(needs) {
                return Ok(scene);
            }
        }
        let what = "what was read changed while it was read";
        Err(Error::new(ErrorKind::Unavailable, what))
    }

    /// What the calls come to, in their order, as far as one transaction can hold it.
    fn play(&mut self, calls: &mut Vec<Call>, needs: &mut Needs, scene: &Scene) -> Played {
        let now_ms = self.clock.unix_ms();
        let mut book = scene.book();
        let mut answers = Vec::with_capacity(calls.len());
        for call in calls.iter() {
            let mark = book.mark();
            let answer = book.attempt(now_ms, &call.chain);
            if entries::count(&book, &book.changed()) > TXN_OPS_MAX {
                book.roll_back(mark);
                break;
            }
            answers.push(answer);
        }
        assert!(!answers.is_empty(), "one chain fits into a transaction");
        if answers.len() < calls.len() {
            for call in calls.drain(answers.len()..).rev() {
                self.waiting.push_front(call);
            }
            *needs = Needs::default();
            for call in calls.iter() {
                call.chain.iter().for_each(|operation| needs.add(operation));
            }
            // What is known of the others is known still, and asked for no more.
            scene.complete(needs);
        }
        Played { book, answers }
    }

    fn answer(&self, calls: &mut Vec<Call>, answers: Vec<Result<Vec<Done>, Refused>>) {
        for (call, answer) in calls.drain(..).zip(answers) {
            match &answer {
                Ok(done) => self.metrics.done(done),
                Err(_) => self.metrics.refusals.increment(),
            }
            // Nobody may wait for it any more.
            let _ = call.answer.send(answer.map_err(Error::from));
        }
    }
}

/// Lets all tasks run first that could run now, so that their calls meet in one batch.
async fn others_first() {
    let mut yielded = false;
    poll_fn(|context| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
