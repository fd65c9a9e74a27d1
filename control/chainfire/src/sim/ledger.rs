//! What all members applied, compared entry by entry and with the model.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use chainfire_core::{Command as Entry, SnapshotChunks, Standing, StateMachine};
use chainfire_store::{Command, KvHash, Outcome, Reader, RpcError, View};
use prost::Message as _;

use super::model::{Answer, Model, told};
use crate::raft::StoreMachine;

/// At every so many indexes hashes are compared.
const HASHED: u64 = 3;

/// What an entry was, and what it answered.
struct Applied {
    command: Bytes,
    answer: Result<Answer, RpcError>,
    /// The newest revision after it.
    revision: i64,
}

/// What all members applied.
#[derive(Default)]
pub struct Ledger {
    entries: BTreeMap<u64, Applied>,
    pub model: Model,
    hashes: BTreeMap<u64, (KvHash, u32)>,
    /// States that came by snapshots.
    pub restored: usize,
    /// Hashes that two members had in common.
    pub hashes_compared: usize,
}

/// The ledger of a world.
pub type SharedLedger = Arc<Mutex<Ledger>>;

/// The ledger, for one step.
pub fn lock(ledger: &SharedLedger) -> MutexGuard<'_, Ledger> {
    ledger.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Ledger {
    fn applied(&mut self, index: u64, command: &Bytes, outcome: &Outcome) {
        let newest = self.entries.last_key_value().map_or(0, |(index, _)| *index);
        if index > newest {
            let decoded = Command::decode(command.clone()).expect("a command is decoded again");
            let answer = self.model.apply(&decoded);
            let revision = self.model.revision;
            let command = command.clone();
            let applied = Applied {
                command,
                answer,
                revision,
            };
            self.entries.insert(index, applied);
        }
        let first = self.entries.get(&index);
        let first = first.unwrap_or_else(|| panic!("entry {index} was passed over by another"));
        assert_eq!(
            first.command, *command,
            "two commands were applied at {index}"
        );
        assert_eq!(
            first.answer,
            told(outcome),
            "the model's answer and a member's at {index}"
        );
    }

    /// Compares a member's state after its last entry.
    pub fn stands(&mut self, view: &View) {
        let index = view.applied_index();
        let Some(applied) = self.entries.get(&index) else {
            return;
        };
        assert_eq!(applied.revision, view.revision(), "the revision at {index}");
        if !index.is_multiple_of(HASHED) {
            return;
        }
        let hash = view.hash_kv(0).expect("the versions can be read");
        let whole = view.hash().expect("the state can be read");
        if let Some(first) = self.hashes.insert(index, (hash, whole)) {
            self.hashes_compared += 1;
            assert_eq!(first, (hash, whole), "the hash of the state at {index}");
        }
    }
}

/// A member's state machine, whose every step goes into the ledger.
pub struct Observed {
    machine: StoreMachine,
    ledger: SharedLedger,
}

impl Observed {
    pub fn new(machine: StoreMachine, ledger: SharedLedger) -> Observed {
        Observed { machine, ledger }
    }
}

impl StateMachine for Observed {
    type Outcome = Outcome;
    type Reader = Reader;

    fn reader(&self) -> Reader {
        self.machine.reader()
    }

    fn standing(&self) -> io::Result<Standing> {
        self.machine.standing()
    }

    fn apply(
        &mut self,
        commands: &[Entry],
        standing: &Standing,
        durable: bool,
    ) -> io::Result<Vec<Outcome>> {
        let outcomes = self.machine.apply(commands, standing, durable)?;
        let mut ledger = lock(&self.ledger);
        for (command, outcome) in commands.iter().zip(&outcomes) {
            ledger.applied(command.index, &command.bytes, outcome);
        }
        ledger.stands(&self.machine.reader().view());
        Ok(outcomes)
    }

    fn snapshot(&mut self) -> io::Result<SnapshotChunks> {
        self.machine.snapshot()
    }

    fn restore(&mut self, chunks: SnapshotChunks, standing: &Standing) -> io::Result<()> {
        self.machine.restore(chunks, standing)?;
        let mut ledger = lock(&self.ledger);
        ledger.restored += 1;
        ledger.stands(&self.machine.reader().view());
        Ok(())
    }
}
