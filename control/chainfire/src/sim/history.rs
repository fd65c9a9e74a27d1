//! What clients did and saw.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use etcd_wire::RpcError;
use etcd_wire::mvccpb::KeyValue;
use tonic::Status;

use super::model::Answer;
use crate::watch::KeyRange;

/// The value that a key has to have for a swap; none: it must not be there.
pub type Expected = Option<Bytes>;

/// What a client asked for.
#[derive(Debug, Clone)]
pub enum Step {
    Put {
        key: Bytes,
        value: Bytes,
        lease: i64,
    },
    Delete(KeyRange),
    /// All keys get the value if the first one has the expected one.
    Swap {
        keys: Vec<Bytes>,
        expected: Expected,
        value: Bytes,
    },
    Revoke(i64),
    /// A grant or a compaction: they change no key.
    Other,
    Read {
        range: KeyRange,
        serializable: bool,
        /// 0: the newest.
        revision: i64,
        kvs: Vec<KeyValue>,
    },
}

/// A step and its answer.
#[derive(Debug, Clone)]
pub struct Operation {
    pub client: u32,
    /// Calls and returns have instants of their own, in the order they happened.
    pub call: i64,
    /// The end of time for what may still take effect.
    pub returned: i64,
    pub step: Step,
    /// None where it is not known.
    pub answer: Option<Answer>,
}

/// Everything.
#[derive(Debug, Default)]
pub struct History {
    pub operations: Vec<Operation>,
    clock: i64,
}

/// The history of a world.
pub type SharedHistory = Arc<Mutex<History>>;

/// The history, for one step.
pub fn lock(history: &SharedHistory) -> MutexGuard<'_, History> {
    history.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether an error says that nothing was done: consensus did not take it, or it was refused.
fn did_nothing(status: &Status) -> bool {
    let unknown = [
        RpcError::Stopped,
        RpcError::Timeout,
        RpcError::TimeoutDueToLeaderFail,
    ];
    RpcError::from_text(status.message()).is_some_and(|error| !unknown.contains(&error))
}

impl History {
    /// An instant after all before.
    pub fn tick(&mut self) -> i64 {
        self.clock += 1;
        self.clock
    }

    /// A write was answered, or not.
    pub fn wrote(&mut self, client: u32, call: i64, step: Step, answer: Result<Answer, &Status>) {
        let (answer, returned) = match answer {
            Ok(answer) => (Some(answer), self.tick()),
            Err(status) if did_nothing(status) => return,
            Err(_) => (None, i64::MAX),
        };
        self.operations.push(Operation {
            client,
            call,
            returned,
            step,
            answer,
        });
    }

    /// A write was asked for, by somebody who may not live to hear the answer.
    pub fn asks(&mut self, client: u32, step: Step) -> usize {
        let call = self.tick();
        self.operations.push(Operation {
            client,
            call,
            returned: i64::MAX,
            step,
            answer: None,
        });
        self.operations.len() - 1
    }

    /// What was asked for is answered.
    pub fn answered(&mut self, place: usize, answer: Result<Answer, &Status>) {
        let now = self.tick();
        let operation = &mut self.operations[place];
        match answer {
            Ok(answer) => (operation.returned, operation.answer) = (now, Some(answer)),
            Err(status) if did_nothing(status) => operation.step = Step::Other,
            Err(_) => {}
        }
    }

    /// A read was answered.
    pub fn read(&mut self, client: u32, call: i64, step: Step, revision: i64) {
        let returned = self.tick();
        self.operations.push(Operation {
            client,
            call,
            returned,
            step,
            answer: Some(Answer {
                revision,
                detail: 0,
            }),
        });
    }
}
