//! A batch: commands applied one after the other on a copy of the state, then committed at once.
//!
//! Until the commit nothing of it is on disk or visible; a batch that is dropped never was.

mod kv;
mod verbs;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use etcd_wire::RpcError;
use etcd_wire::chainfire::{Command, outcome};
use etcd_wire::mvccpb::Event;

use crate::error::{Error, ErrorKind};
use crate::lease::Lease;
use crate::reads::{ReadError, Reads, Versions};
use crate::revision::Revision;
use crate::state::{AppliedMeta, State};
use crate::store::Store;
use crate::view::View;

/// What applying a command answered.
pub type Reply = outcome::Result;

/// A reply, or the error with which etcd refuses the command. Both are the same on every replica.
pub type Outcome = Result<Reply, RpcError>;

/// The events of one revision, in order.
#[derive(Debug, Clone, PartialEq)]
pub struct EventBatch {
    /// The revision of the transaction.
    pub revision: i64,
    /// Its changes, without the values before.
    pub events: Vec<Event>,
}

/// Whether a commit reaches the disk before it returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durable {
    /// It may be lost by a crash, with those after it; the log replays them.
    No,
    /// A crash after this keeps it and all before.
    Yes,
}

/// What a batch changes on disk besides the state's row.
#[derive(Default)]
pub(crate) struct Changes {
    /// New versions, also for reads before the commit.
    pub(crate) versions: BTreeMap<Revision, Bytes>,
    /// Leases that were granted or checkpointed, or (`None`) revoked.
    pub(crate) leases: BTreeMap<i64, Option<Arc<Lease>>>,
}

/// Where a batch reads versions: its own first.
pub(crate) struct Layered<'a> {
    pub(crate) changes: &'a Changes,
    pub(crate) base: &'a View,
}

impl Versions for Layered<'_> {
    fn read(&self, at: Revision) -> Result<Bytes, Error> {
        match self.changes.versions.get(&at) {
            Some(bytes) => Ok(bytes.clone()),
            None => self.base.read(at),
        }
    }
}

/// Commands under way. See [`Store::batch`].
pub struct Batch<'s> {
    store: &'s mut Store,
    base: Arc<View>,
    state: State,
    changes: Changes,
    events: Vec<EventBatch>,
    /// The changes of the transaction under way.
    open: Vec<Event>,
}

impl<'s> Batch<'s> {
    pub(crate) fn new(store: &'s mut Store) -> Self {
        let base = store.view();
        Self {
            state: base.state().clone(),
            store,
            base,
            changes: Changes::default(),
            events: Vec::new(),
            open: Vec::new(),
        }
    }

    /// Applies one command of the log. The outcome is for who proposed it; a refused command
    /// changes nothing.
    ///
    /// # Errors
    /// Reading failed, an earlier batch has failed, or the command is of a kind that this version
    /// does not know. The store takes no more then: this replica must not go on.
    ///
    /// # Panics
    /// If the log goes backwards: `entry_index` must grow.
    pub fn apply(&mut self, command: &Command, entry_index: u64) -> Result<Outcome, Error> {
        self.store.check_alive()?;
        self.advance(entry_index);
        let Some(op) = &command.op else {
            self.store.poison();
            return Err(Error::new(
                ErrorKind::Format,
                format!("entry {entry_index} holds a command that a newer version wrote"),
            ));
        };
        let answered = self.dispatch(command, op);
        match answered {
            Ok(reply) => Ok(Ok(reply)),
            Err(ReadError::Refused(refusal)) => Ok(Err(refusal)),
            Err(ReadError::Store(error)) => {
                self.store.poison();
                Err(error)
            }
        }
    }

    /// Notes an entry without a command (a new leader's blank one, a membership).
    ///
    /// # Panics
    /// If the log goes backwards: `entry_index` must grow.
    pub fn advance(&mut self, entry_index: u64) {
        assert!(
            entry_index > self.state.applied_index,
            "entry {entry_index} comes after entry {}",
            self.state.applied_index
        );
        self.state.applied_index = entry_index;
    }

    /// Makes the batch's changes visible to new views, and with [`Durable::Yes`] (or when the
    /// bounds of [`crate::Options`] say so) durable. Gives the events, by revision.
    ///
    /// # Errors
    /// The storage failed. Nothing of the batch is visible then, and the store takes no more.
    pub fn commit(self, meta: AppliedMeta, durable: Durable) -> Result<Vec<EventBatch>, Error> {
        self.store.check_alive()?;
        assert!(self.open.is_empty(), "no transaction is left open");
        let mut state = self.state;
        state.meta = Arc::new(meta);
        self.store
            .commit(&self.base, state, &self.changes, durable)?;
        Ok(self.events)
    }

    /// Reads that see what this batch has applied, and the transaction under way.
    fn with_reads<T>(&self, read: impl FnOnce(Reads<'_>) -> T) -> T {
        let layered = Layered {
            changes: &self.changes,
            base: &self.base,
        };
        read(Reads {
            state: &self.state,
            versions: &layered,
            now: self.state.revision + i64::from(!self.open.is_empty()),
        })
    }
}
