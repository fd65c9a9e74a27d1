//! Sagas: long operations that end, whatever dies meanwhile.
//!
//! An operation is a list of named steps, each with a way to undo it ([`Definition`]). Before the first
//! step it is a record in the store ([`Record`]); each step that has ended is one transaction, which also
//! holds what the step writes to the store itself. [`Sagas`] runs them: one executor a process, whose
//! lease is its right to write. Those of an executor that died are adopted by another.
//!
//! An operation ends as `done` (every step), `undone` (a step could not be done, and all before it were
//! undone), or `force-deleted`. One that can neither go on nor be undone is `failed`, under a name that
//! says how, and waits for an operator: [`Sagas::retry`] or [`Sagas::force_delete`].
//!
//! Invariants:
//! - An object has one operation at most that has not ended.
//! - A step may run again after a crash or a lost answer, so it must be idempotent;
//!   [`StepContext::key`] is the same each time. What it stages with [`StepContext::write`] happens once.
//! - A step runs only after those before it ended, and is undone only before those before it are. The
//!   step that failed is undone too: it may have happened in part.
//! - An executor whose lease has ended, or whose operation was adopted, writes nothing more, also when it
//!   wakes up late; what it does outside of the store carries [`StepContext::epoch`].
//! - One write begins an operation, one ends each step.

mod drive;
mod executor;
mod journal;
mod record;
mod verbs;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::clock::Clock;
use crate::store::{Condition, Txn, Write};

pub use executor::Sagas;
pub use record::{DoneStep, Record, SagaId, State, Trouble};
pub use verbs::{Begin, SagaError, SagaErrorKind};

/// Why a step did not end well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StepError {
    /// It may do better when it is tried again.
    Retry(String),
    /// It will not do better: what was done is undone.
    Fatal(String),
}

impl fmt::Display for StepError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (StepError::Retry(why) | StepError::Fatal(why)) = self;
        f.write_str(why)
    }
}

impl From<crate::store::StoreError> for StepError {
    fn from(error: crate::store::StoreError) -> StepError {
        StepError::Retry(error.to_string())
    }
}

/// What a step works on.
#[derive(Clone, Debug)]
pub struct StepContext {
    record: Arc<Record>,
    step: &'static str,
    staged: Arc<Mutex<Txn>>,
}

impl StepContext {
    fn new(record: Record, step: &'static str) -> StepContext {
        StepContext {
            record: Arc::new(record),
            step,
            staged: Arc::default(),
        }
    }

    /// The operation so far.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// What the operation was begun with.
    ///
    /// # Errors
    /// Fatal, when it is not of this type.
    pub fn input<T: DeserializeOwned>(&self) -> Result<T, StepError> {
        self.record.read_input()
    }

    /// What an earlier step gave.
    ///
    /// # Errors
    /// Fatal, when it has not ended, or gave something else.
    pub fn output<T: DeserializeOwned>(&self, step: &str) -> Result<T, StepError> {
        let done = self.record.done.iter().find(|done| done.name == step);
        let missing = || StepError::Fatal(format!("step {step} has not ended"));
        read(&done.ok_or_else(missing)?.output, step)
    }

    /// The same for each try of this step in this operation, and for no other.
    pub fn key(&self) -> String {
        format!("{}/{}", self.record.id, self.step)
    }

    /// Greater than that of every executor before, for what is outside of the store.
    pub fn epoch(&self) -> i64 {
        self.record.epoch
    }

    /// Writes to the store when the step ends well, in the same transaction, so that it happens once.
    pub fn write(&self, write: Write) {
        self.stage(|txn| txn.writes.push(write));
    }

    /// Lets the step end well only if this holds at that moment; else the step is tried again.
    pub fn require(&self, condition: Condition) {
        self.stage(|txn| txn.conditions.push(condition));
    }

    fn stage(&self, run: impl FnOnce(&mut Txn)) {
        run(&mut self.staged.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn staged(&self) -> Txn {
        let mut staged = self.staged.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *staged)
    }
}

impl Record {
    /// What the operation was begun with.
    ///
    /// # Errors
    /// Fatal, when it is not of this type.
    pub fn read_input<T: DeserializeOwned>(&self) -> Result<T, StepError> {
        read(&self.input, "the input")
    }
}

fn read<T: DeserializeOwned>(value: &Value, what: &str) -> Result<T, StepError> {
    T::deserialize(value).map_err(|error| StepError::Fatal(format!("cannot read {what}: {error}")))
}

/// A method of a service as what a step does: `bound(&service, Service::reserve)`.
pub fn bound<S, F, Fut>(service: &Arc<S>, run: F) -> impl Fn(StepContext) -> Fut + use<S, F, Fut>
where
    F: Fn(Arc<S>, StepContext) -> Fut,
{
    let service = Arc::clone(service);
    move |context| run(Arc::clone(&service), context)
}

type StepFuture = Pin<Box<dyn Future<Output = Result<Value, StepError>> + Send>>;
type StepFn = Arc<dyn Fn(StepContext) -> StepFuture + Send + Sync>;
type Writes = Arc<dyn Fn(&Record) -> Vec<Write> + Send + Sync>;

#[derive(Clone)]
struct Step {
    name: &'static str,
    run: StepFn,
    undo: StepFn,
}

/// The steps of one kind of operation.
#[derive(Clone)]
pub struct Definition {
    kind: &'static str,
    steps: Vec<Step>,
    deadline: Duration,
    done: Writes,
    undone: Writes,
    forced: Writes,
}

impl fmt::Debug for Definition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let steps: Vec<&str> = self.steps.iter().map(|step| step.name).collect();
        f.debug_struct("Definition")
            .field("kind", &self.kind)
            .field("steps", &steps)
            .finish_non_exhaustive()
    }
}

/// How long an operation may take unless its definition says otherwise.
const DEADLINE: Duration = Duration::from_hours(1);

fn boxed<T, F, Fut>(run: F) -> StepFn
where
    T: Serialize,
    F: Fn(StepContext) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<T, StepError>> + Send + 'static,
{
    Arc::new(move |context| {
        let running = run(context);
        Box::pin(async move {
            let output = serde_json::to_value(running.await?);
            output.map_err(|error| StepError::Fatal(format!("cannot keep the output: {error}")))
        })
    })
}

impl Definition {
    /// A kind of operation, as `volume-create`. The name stands in the store for as long as operations do.
    pub fn new(kind: &'static str) -> Definition {
        Definition {
            kind,
            steps: Vec::new(),
            deadline: DEADLINE,
            done: Arc::new(|_| Vec::new()),
            undone: Arc::new(|_| Vec::new()),
            forced: Arc::new(|_| Vec::new()),
        }
    }

    /// A step that leaves nothing to undo.
    pub fn step<T, F, Fut>(self, name: &'static str, run: F) -> Definition
    where
        T: Serialize + 'static,
        F: Fn(StepContext) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<T, StepError>> + Send + 'static,
    {
        self.undoable(name, run, |_| async { Ok(()) })
    }

    /// A step, and how it is undone. Undoing must do no harm when the step never happened.
    ///
    /// # Panics
    /// If two steps have one name.
    pub fn undoable<T, F, Fut, G, Gut>(mut self, name: &'static str, run: F, undo: G) -> Definition
    where
        T: Serialize + 'static,
        F: Fn(StepContext) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<T, StepError>> + Send + 'static,
        G: Fn(StepContext) -> Gut + Send + Sync + 'static,
        Gut: Future<Output = Result<(), StepError>> + Send + 'static,
    {
        let taken = self.steps.iter().any(|step| step.name == name);
        assert!(!taken, "two steps of {} are called {name}", self.kind);
        let (run, undo) = (boxed(run), boxed(undo));
        self.steps.push(Step { name, run, undo });
        self
    }

    /// How long the operation may take; later it is undone, and failed if it cannot be.
    pub fn deadline(mut self, deadline: Duration) -> Definition {
        self.deadline = deadline;
        self
    }

    /// What is written to the store with the end of the last step.
    pub fn when_done(
        mut self,
        writes: impl Fn(&Record) -> Vec<Write> + Send + Sync + 'static,
    ) -> Definition {
        self.done = Arc::new(writes);
        self
    }

    /// What is written to the store once all is undone.
    pub fn when_undone(
        mut self,
        writes: impl Fn(&Record) -> Vec<Write> + Send + Sync + 'static,
    ) -> Definition {
        self.undone = Arc::new(writes);
        self
    }

    /// What is written to the store when an operator gives the object up.
    pub fn when_forced(
        mut self,
        writes: impl Fn(&Record) -> Vec<Write> + Send + Sync + 'static,
    ) -> Definition {
        self.forced = Arc::new(writes);
        self
    }

    /// Names of the steps, in order.
    pub fn steps(&self) -> impl Iterator<Item = &'static str> {
        self.steps.iter().map(|step| step.name)
    }

    /// What is written with the end of an operation.
    fn at_end(&self, record: &Record) -> Vec<Write> {
        match record.state {
            State::Done => (self.done)(record),
            State::Undone => (self.undone)(record),
            State::ForceDeleted => (self.forced)(record),
            State::Running | State::Undoing | State::Failed => Vec::new(),
        }
    }

    /// Whether the steps that a record has done are the first ones of this definition.
    fn fits(&self, record: &Record) -> bool {
        let done = record.done.iter().map(|done| done.name.as_str());
        done.len() <= self.steps.len() && done.eq(self.steps().take(record.done.len()))
    }
}

/// How operations run.
#[derive(Clone, Debug)]
pub struct SagaConfig {
    /// How long an executor may be silent before others take over what it runs.
    pub lease: Duration,
    /// How long one try of a step may take.
    pub step_limit: Duration,
    /// Tries of a step before it counts as failed; one for each process that died in it.
    pub attempts_max: u32,
    /// The pause before the second try; it doubles with each.
    pub retry_first: Duration,
    /// The longest pause.
    pub retry_longest: Duration,
    /// How often all open operations are looked through.
    pub scan: Duration,
    /// How long after its deadline an operation that is still open becomes `failed`.
    pub expiry: Duration,
    /// How long ended operations stay readable, at least.
    pub retention: Duration,
    /// Operations that run at once in this process; others wait.
    pub running_max: usize,
    /// Operations that this process has open, waiting ones among them, before it begins no more.
    pub open_max: usize,
    /// The time of day.
    pub clock: Clock,
}

impl Default for SagaConfig {
    fn default() -> SagaConfig {
        SagaConfig {
            lease: Duration::from_secs(10),
            step_limit: Duration::from_mins(1),
            attempts_max: 8,
            retry_first: Duration::from_millis(100),
            retry_longest: Duration::from_secs(30),
            scan: Duration::from_secs(10),
            expiry: Duration::from_mins(5),
            retention: Duration::from_hours(24),
            running_max: 256,
            open_max: 4096,
            clock: Clock::System,
        }
    }
}
