//! The replicated state machine: what it must do, and how Raft drives it.
//!
//! Entries are applied in batches, each one transaction of the machine. A transaction is durable
//! only now and then: after a crash the machine is at an older position and the log replays the
//! rest. So the log must never be purged past the machine's last durable position: a snapshot's
//! position, which is what Raft purges up to, is made durable before Raft hears of it.

use std::collections::BTreeMap;
use std::io;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::{Stream, TryStreamExt as _};
use openraft::async_runtime::watch::WatchSender as _;
use openraft::storage::{
    ApplyResponder, EntryResponder, RaftSnapshotBuilder, RaftStateMachine, Snapshot,
};
use openraft::type_config::TypeConfigExt as _;
use tokio::sync::oneshot;

use crate::codec::{decode_log_id, decode_membership, encode_log_id, encode_membership};
use crate::env::Environment;
use crate::transport::SnapshotChunks;
use crate::types::{Entry, LogId, Payload, RequestId, SnapshotMeta, StoredMembership, TypeConfig};
use crate::wal::lock;

/// Where a state machine stands, as it keeps it beside its own state, opaque to it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// The last applied position.
    pub applied: Vec<u8>,
    /// The membership there.
    pub membership: Vec<u8>,
}

/// A command to apply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// The index of its entry in the log.
    pub index: u64,
    /// The command, as it was proposed.
    pub bytes: Bytes,
}

/// A deterministic state machine: the same commands in the same order give the same state and the
/// same outcomes on every member, in whatever batches they come. It reads no clock and draws no
/// random numbers. An error of any method means that its storage failed; it is not used again.
pub trait StateMachine: Send + 'static {
    /// What applying a command answers; a refused command answers too.
    type Outcome: Send + 'static;
    /// Reads the state, at any time, without stopping the writer.
    type Reader: Clone + Send + Sync + 'static;

    /// The reading side.
    fn reader(&self) -> Self::Reader;

    /// Where it stands now.
    fn standing(&self) -> io::Result<Standing>;

    /// Applies `commands` and moves to `standing`, all or nothing; one outcome for each command.
    /// What was applied is visible to readers when this returns, and durable if `durable`.
    fn apply(
        &mut self,
        commands: &[Command],
        standing: &Standing,
        durable: bool,
    ) -> io::Result<Vec<Self::Outcome>>;

    /// A consistent copy of the state as of now, in chunks of at most 1 MiB, read while later
    /// commands are applied. It carries its own checksum. The state as of now is durable when
    /// this returns.
    fn snapshot(&mut self) -> io::Result<SnapshotChunks>;

    /// Replaces the whole state with a snapshot's, durably, all or nothing.
    fn restore(&mut self, chunks: SnapshotChunks, standing: &Standing) -> io::Result<()>;
}

/// Proposals of this member that wait for their outcomes.
#[derive(Debug)]
pub(crate) struct Waiting<O>(Arc<Mutex<BTreeMap<RequestId, oneshot::Sender<O>>>>);

impl<O> Clone for Waiting<O> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<O> Default for Waiting<O> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<O> Waiting<O> {
    /// Waits for the outcome of `request` until the guard is dropped.
    pub(crate) fn register(&self, request: RequestId) -> (Registered<O>, oneshot::Receiver<O>) {
        let (sender, receiver) = oneshot::channel();
        lock(&self.0).insert(request, sender);
        (
            Registered {
                waiting: self.clone(),
                request,
            },
            receiver,
        )
    }

    fn answer(&self, request: RequestId, outcome: O) {
        if let Some(sender) = lock(&self.0).remove(&request) {
            // Whoever proposed it may have given up.
            let _ = sender.send(outcome);
        }
    }

    pub(crate) fn len(&self) -> usize {
        lock(&self.0).len()
    }
}

/// Forgets a proposal when dropped.
pub(crate) struct Registered<O> {
    waiting: Waiting<O>,
    request: RequestId,
}

impl<O> Drop for Registered<O> {
    fn drop(&mut self) {
        lock(&self.waiting.0).remove(&self.request);
    }
}

/// What a snapshot is made of: the local state to send, or what another member sent.
pub struct SnapshotData(SnapshotChunks);

impl SnapshotData {
    pub(crate) fn new(chunks: SnapshotChunks) -> Self {
        Self(chunks)
    }

    pub(crate) fn into_chunks(self) -> SnapshotChunks {
        self.0
    }
}

/// How often the machine's state becomes durable by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Durability {
    /// After this many bytes of commands.
    pub bytes_max: u64,
    /// After this many batches.
    pub batches_max: u64,
}

impl Default for Durability {
    fn default() -> Self {
        Self {
            bytes_max: 32 << 20,
            batches_max: 4096,
        }
    }
}

/// Commands of one transaction.
const BATCH_COMMANDS_MAX: usize = 1024;
const BATCH_BYTES_MAX: usize = 4 << 20;

type WatchSenderOf<E, T> =
    openraft::type_config::alias::WatchSenderOf<TypeConfig<<E as Environment>::Runtime>, T>;
type WatchReceiverOf<E, T> =
    openraft::type_config::alias::WatchReceiverOf<TypeConfig<<E as Environment>::Runtime>, T>;
type Responder<E> = ApplyResponder<TypeConfig<<E as Environment>::Runtime>>;

/// A [`StateMachine`] as Raft drives it.
pub(crate) struct Machine<E: Environment, S: StateMachine> {
    environment: E,
    state: Arc<Mutex<S>>,
    waiting: Waiting<S::Outcome>,
    /// Tells readers how far it has applied.
    applied: Mutex<WatchSenderOf<E, Option<LogId>>>,
    durability: Durability,
    membership: StoredMembership,
    unsynced_bytes: u64,
    unsynced_batches: u64,
}

/// Entries on their way through one transaction.
struct Batch<E: Environment> {
    commands: Vec<Command>,
    requests: Vec<RequestId>,
    responders: Vec<Responder<E>>,
    bytes: usize,
    last: Option<LogId>,
}

impl<E: Environment> Batch<E> {
    fn new() -> Self {
        Self {
            commands: Vec::new(),
            requests: Vec::new(),
            responders: Vec::new(),
            bytes: 0,
            last: None,
        }
    }

    fn is_full(&self) -> bool {
        self.commands.len() >= BATCH_COMMANDS_MAX || self.bytes >= BATCH_BYTES_MAX
    }
}

impl<E: Environment, S: StateMachine> Machine<E, S> {
    /// Drives `state`, and tells how far it has applied.
    ///
    /// # Errors
    /// A standing that cannot be read.
    pub(crate) fn new(
        environment: E,
        state: S,
        waiting: Waiting<S::Outcome>,
        durability: Durability,
    ) -> io::Result<(Self, WatchReceiverOf<E, Option<LogId>>)> {
        let (last, membership) = parse_standing(&state.standing()?)?;
        let (sender, applied) = TypeConfig::<E::Runtime>::watch_channel(last);
        let machine = Self {
            environment,
            state: Arc::new(Mutex::new(state)),
            waiting,
            applied: Mutex::new(sender),
            durability,
            membership,
            unsynced_bytes: 0,
            unsynced_batches: 0,
        };
        Ok((machine, applied))
    }

    fn add(&mut self, batch: &mut Batch<E>, entry: Entry, responder: Option<Responder<E>>) {
        batch.last = Some(entry.log_id);
        batch.responders.extend(responder);
        match entry.payload {
            Payload::Blank => {}
            Payload::Membership(membership) => {
                self.membership = StoredMembership::new(Some(entry.log_id), membership);
            }
            Payload::Normal(proposal) => {
                batch.bytes += proposal.command.len();
                batch.requests.push(proposal.request);
                let index = entry.log_id.index();
                batch.commands.push(Command {
                    index,
                    bytes: proposal.command,
                });
            }
        }
    }

    async fn commit(&mut self, batch: Batch<E>) -> io::Result<()> {
        let Some(last) = batch.last else {
            return Ok(());
        };
        let standing = self.standing_at(Some(last));
        self.unsynced_bytes += batch.bytes as u64;
        self.unsynced_batches += 1;
        let durable = self.unsynced_bytes >= self.durability.bytes_max
            || self.unsynced_batches >= self.durability.batches_max;
        let commands = batch.commands;
        let outcomes = if durable {
            self.unsynced_bytes = 0;
            self.unsynced_batches = 0;
            let state = self.state.clone();
            let apply = move || lock(&state).apply(&commands, &standing, true);
            self.environment.blocking(apply).await?
        } else {
            lock(&self.state).apply(&commands, &standing, false)?
        };
        assert_eq!(
            outcomes.len(),
            batch.requests.len(),
            "one outcome for each command"
        );
        for (request, outcome) in batch.requests.into_iter().zip(outcomes) {
            self.waiting.answer(request, outcome);
        }
        // Before Raft's own answers: who hears of an entry can read what it did.
        lock(&self.applied).send(Some(last)).ok();
        for responder in batch.responders {
            responder.send(());
        }
        Ok(())
    }

    fn standing_at(&self, applied: Option<LogId>) -> Standing {
        Standing {
            applied: encode_log_id(applied),
            membership: encode_membership(&self.membership),
        }
    }
}

/// What a machine's standing says.
pub(crate) fn parse_standing(standing: &Standing) -> io::Result<(Option<LogId>, StoredMembership)> {
    let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
    let applied = decode_log_id(&standing.applied).map_err(invalid)?;
    let membership = decode_membership(&standing.membership).map_err(invalid)?;
    Ok((applied, membership))
}

/// Makes the state as of now durable and opens it for reading.
fn take_snapshot<S: StateMachine>(state: &Mutex<S>) -> io::Result<(SnapshotMeta, SnapshotData)> {
    let mut state = lock(state);
    let (last_log_id, last_membership) = parse_standing(&state.standing()?)?;
    let chunks = state.snapshot()?;
    Ok((
        SnapshotMeta {
            last_log_id,
            last_membership,
        },
        SnapshotData::new(chunks),
    ))
}

/// Takes a snapshot beside the applying of entries.
pub(crate) struct Builder<E, S> {
    environment: E,
    state: Arc<Mutex<S>>,
    machine: PhantomData<fn() -> S>,
}

type SnapshotOf<E> =
    openraft::type_config::alias::SnapshotOf<TypeConfig<<E as Environment>::Runtime>, SnapshotData>;

impl<E: Environment, S: StateMachine> RaftSnapshotBuilder<TypeConfig<E::Runtime>>
    for Builder<E, S>
{
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> Result<SnapshotOf<E>, io::Error> {
        let state = self.state.clone();
        let (meta, snapshot) = self
            .environment
            .blocking(move || take_snapshot(&state))
            .await?;
        Ok(Snapshot { meta, snapshot })
    }
}

impl<E: Environment, S: StateMachine> RaftStateMachine<TypeConfig<E::Runtime>> for Machine<E, S> {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Builder<E, S>;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let standing = lock(&self.state).standing()?;
        parse_standing(&standing)
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm:
            Stream<Item = Result<EntryResponder<TypeConfig<E::Runtime>>, io::Error>> + Unpin + Send,
    {
        let mut batch = Batch::new();
        while let Some((entry, responder)) = entries.try_next().await? {
            self.add(&mut batch, entry, responder);
            if batch.is_full() {
                let full = std::mem::replace(&mut batch, Batch::new());
                self.commit(full).await?;
            }
        }
        self.commit(batch).await
    }

    async fn get_snapshot_builder(&mut self) -> Builder<E, S> {
        Builder {
            environment: self.environment.clone(),
            state: self.state.clone(),
            machine: PhantomData,
        }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotData,
    ) -> Result<(), io::Error> {
        self.membership = meta.last_membership.clone();
        let standing = self.standing_at(meta.last_log_id);
        let state = self.state.clone();
        let restore = move || lock(&state).restore(snapshot.into_chunks(), &standing);
        self.environment.blocking(restore).await?;
        self.unsynced_bytes = 0;
        self.unsynced_batches = 0;
        lock(&self.applied).send(meta.last_log_id).ok();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<SnapshotOf<E>>, io::Error> {
        let state = self.state.clone();
        let taken = self.environment.blocking(move || {
            let standing = lock(&state).standing()?;
            if parse_standing(&standing)?.0.is_none() {
                return Ok(None);
            }
            take_snapshot(&state).map(Some)
        });
        Ok(taken
            .await?
            .map(|(meta, snapshot)| Snapshot { meta, snapshot }))
    }
}
