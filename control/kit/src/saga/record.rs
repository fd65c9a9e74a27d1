//! An operation's record, and every change that it can go through. No I/O.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

/// An operation's name; those made later sort behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SagaId(Uuid);

impl SagaId {
    /// A new one, of this time.
    pub fn new() -> SagaId {
        SagaId(Uuid::now_v7())
    }

    /// One that a caller chose, so that beginning twice begins once.
    pub fn from_u128(id: u128) -> SagaId {
        SagaId(Uuid::from_u128(id))
    }

    /// As a number.
    pub fn as_u128(self) -> u128 {
        self.0.as_u128()
    }
}

impl Default for SagaId {
    fn default() -> SagaId {
        SagaId::new()
    }
}

impl fmt::Display for SagaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for SagaId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<SagaId, uuid::Error> {
        text.parse().map(SagaId)
    }
}

/// How an operation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Steps are being done.
    Running,
    /// A step could not be done: those before are being undone.
    Undoing,
    /// It can neither go on nor be undone; [`Record::failure`] says why. An operator retries or forces it.
    Failed,
    /// Every step was done.
    Done,
    /// A step could not be done, and everything was undone.
    Undone,
    /// An operator gave it up.
    ForceDeleted,
}

impl State {
    /// Whether it stays so for ever.
    pub fn is_ended(self) -> bool {
        matches!(self, State::Done | State::Undone | State::ForceDeleted)
    }

    /// Whether an executor has to work on it.
    pub fn is_open(self) -> bool {
        matches!(self, State::Running | State::Undoing)
    }

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            State::Running => "running",
            State::Undoing => "undoing",
            State::Failed => "failed",
            State::Done => "done",
            State::Undone => "undone",
            State::ForceDeleted => "force-deleted",
        }
    }
}

/// A step that has ended well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DoneStep {
    /// Its name.
    pub name: String,
    /// What it gave.
    pub output: Value,
}

/// The last thing that went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// In which step.
    pub step: String,
    /// What.
    pub message: String,
    /// When, in milliseconds since 1970.
    pub at_unix_ms: u64,
}

/// An operation as it stands in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its name.
    pub id: SagaId,
    /// Which definition it follows.
    pub kind: String,
    /// What it works on.
    pub object: String,
    /// For whom.
    pub tenant: String,
    /// Who asked.
    pub principal: String,
    /// By which request.
    pub request_id: String,
    /// What it was begun with.
    pub input: Value,
    /// How it stands.
    pub state: State,
    /// How it failed, as `undo-failed`; of a failed one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// Steps that ended well and are not undone, in order.
    pub done: Vec<DoneStep>,
    /// The step that failed is still to be undone, before those of `done`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub undo_current: bool,
    /// Tries of the step under way, or of its undoing, that did not end well.
    pub attempt: u32,
    /// What went wrong last; with `undone`, the cause.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<Trouble>,
    /// Not tried again before.
    #[serde(default)]
    pub retry_unix_ms: u64,
    /// Who runs it.
    pub executor: String,
    /// The epoch of that executor's lease.
    pub epoch: i64,
    /// Grows with every write.
    pub seq: u64,
    /// When it was begun.
    pub started_unix_ms: u64,
    /// When it was written last.
    pub updated_unix_ms: u64,
    /// When it should have ended.
    pub deadline_unix_ms: u64,
    /// What a newer version has written beside.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// The failed states.
pub const UNDO_FAILED: &str = "undo-failed";
/// The time was up, and nobody could end it.
pub const EXPIRED: &str = "expired";
/// It was begun by a version with other steps.
pub const STEPS_CHANGED: &str = "steps-changed";

impl Record {
    /// The name of the step under way among these, or of the one being undone; `None` when there
    /// is none left.
    pub fn current<'a>(&self, mut steps: impl Iterator<Item = &'a str>) -> Option<&'a str> {
        let at = match self.state {
            ended if ended.is_ended() => return None,
            State::Undoing if !self.undo_current => self.done.len().checked_sub(1)?,
            _ => self.done.len(),
        };
        steps.nth(at)
    }

    fn touch(&mut self, now: u64) {
        self.seq += 1;
        self.updated_unix_ms = now;
    }

    fn fresh(&mut self) {
        self.attempt = 0;
        self.retry_unix_ms = 0;
    }

    /// The step under way ended well; `last` when none is left.
    pub(super) fn step_done(&mut self, step: &str, output: Value, last: bool, now: u64) {
        self.touch(now);
        self.fresh();
        self.done.push(DoneStep {
            name: step.to_owned(),
            output,
        });
        self.trouble = None;
        if last {
            self.state = State::Done;
        }
    }

    /// The step under way did not end well, and is tried again at a time.
    pub(super) fn try_again(&mut self, trouble: Trouble, retry_unix_ms: u64) {
        self.touch(trouble.at_unix_ms);
        self.attempt += 1;
        self.retry_unix_ms = retry_unix_ms;
        self.trouble = Some(trouble);
    }

    /// The step under way will not end well: it and those before are undone.
    pub(super) fn turn_back(&mut self, trouble: Trouble) {
        self.touch(trouble.at_unix_ms);
        self.fresh();
        self.state = State::Undoing;
        self.undo_current = true;
        self.trouble = Some(trouble);
    }

    /// The newest step that stood is undone.
    pub(super) fn step_undone(&mut self, now: u64) {
        self.touch(now);
        self.fresh();
        if self.undo_current {
            self.undo_current = false;
        } else {
            self.done.pop();
        }
        if self.done.is_empty() {
            self.state = State::Undone;
        }
    }

    /// It can neither go on nor be undone.
    pub(super) fn fail(&mut self, failure: &str, trouble: Option<Trouble>, now: u64) {
        self.touch(now);
        // Whether it was being undone shows in what is kept: see `retried`.
        self.other
            .insert(FAILED_WHILE.into(), self.state.name().into());
        self.state = State::Failed;
        self.failure = Some(failure.to_owned());
        if trouble.is_some() {
            self.trouble = trouble;
        }
    }

    /// An operator lets it go on where it failed.
    pub(super) fn retried(&mut self, executor: &str, epoch: i64, now: u64, deadline: u64) {
        self.touch(now);
        self.fresh();
        let undoing = State::Undoing.name();
        let was = self.other.remove(FAILED_WHILE);
        self.state = if was.is_some_and(|was| was == undoing) {
            State::Undoing
        } else {
            State::Running
        };
        self.failure = None;
        executor.clone_into(&mut self.executor);
        self.epoch = epoch;
        self.deadline_unix_ms = deadline;
    }

    /// An operator gives it up.
    pub(super) fn force_deleted(&mut self, now: u64) {
        self.touch(now);
        self.state = State::ForceDeleted;
    }

    /// Another executor goes on with it. Its process may have died of this very step: that is a try.
    pub(super) fn adopted(&mut self, executor: &str, epoch: i64, now: u64) {
        self.touch(now);
        self.attempt += 1;
        executor.clone_into(&mut self.executor);
        self.epoch = epoch;
    }
}

/// Kept beside a failed record's fields: the state that it failed in.
const FAILED_WHILE: &str = "failed_while";

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            id: SagaId::from_u128(7),
            kind: "k".into(),
            object: "o".into(),
            tenant: "t".into(),
            principal: "p".into(),
            request_id: "r".into(),
            input: Value::Null,
            state: State::Running,
            failure: None,
            done: Vec::new(),
            undo_current: false,
            attempt: 0,
            trouble: None,
            retry_unix_ms: 0,
            executor: "e".into(),
            epoch: 1,
            seq: 0,
            started_unix_ms: 1,
            updated_unix_ms: 1,
            deadline_unix_ms: 9,
            other: Map::new(),
        }
    }

    fn trouble(step: &str) -> Trouble {
        Trouble {
            step: step.into(),
            message: "no".into(),
            at_unix_ms: 3,
        }
    }

    const STEPS: [&str; 3] = ["a", "b", "c"];

    fn current(record: &Record) -> Option<&'static str> {
        record.current(STEPS.into_iter())
    }

    #[test]
    fn the_step_that_failed_is_undone_first_and_then_those_before() {
        let mut record = record();
        record.step_done("a", Value::Null, false, 2);
        assert_eq!(current(&record), Some("b"));
        record.turn_back(trouble("b"));
        assert_eq!(
            (record.state, current(&record)),
            (State::Undoing, Some("b"))
        );
        record.step_undone(4);
        assert_eq!(
            (record.state, current(&record)),
            (State::Undoing, Some("a"))
        );
        record.step_undone(5);
        assert_eq!((record.state, current(&record)), (State::Undone, None));
        assert_eq!(record.trouble, Some(trouble("b")));
    }

    #[test]
    fn the_first_step_leaves_nothing_else_to_undo() {
        let mut record = record();
        record.turn_back(trouble("a"));
        assert_eq!(current(&record), Some("a"));
        record.step_undone(4);
        assert_eq!(record.state, State::Undone);
    }

    #[test]
    fn a_failed_one_goes_on_where_it_failed() {
        let mut record = record();
        record.step_done("a", Value::Null, false, 2);
        record.turn_back(trouble("b"));
        record.fail(UNDO_FAILED, Some(trouble("b")), 4);
        assert_eq!(record.state, State::Failed);
        record.retried("f", 9, 5, 100);
        assert_eq!((record.state, record.epoch), (State::Undoing, 9));
        assert_eq!(current(&record), Some("b"));

        let mut record = self::record();
        record.fail(EXPIRED, None, 4);
        record.retried("f", 9, 5, 100);
        assert_eq!(
            (record.state, current(&record)),
            (State::Running, Some("a"))
        );
    }

    #[test]
    fn what_a_newer_version_wrote_is_kept() {
        let mut text = serde_json::to_value(record()).unwrap();
        text["shape"] = "round".into();
        let read: Record = serde_json::from_value(text.clone()).unwrap();
        assert_eq!(serde_json::to_value(read).unwrap(), text);
    }
}
