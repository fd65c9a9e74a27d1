//! A member of the cluster: the handle that services work with.

mod change;
mod propose;
mod read;
mod receive;
mod rounds;
mod status;

use std::collections::BTreeMap;
use std::io;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use openraft::async_runtime::AsyncRuntime;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::errors::{Fatal, InitializeError, RaftError};
use openraft::{Config, Raft, RaftMetrics, SnapshotPolicy, StepDownPolicy};
use tokio::sync::mpsc;

use crate::env::Environment;
use crate::error::{Error, ErrorKind, Result};
use crate::log_store::LogStore;
use crate::machine::{Durability, Machine, StateMachine, Waiting};
use crate::transport::{Directory, Network, Transport};
use crate::types::{LogId, Member, NodeId, TypeConfig};
use crate::wal::{self, Opened, Wal, WalOptions};

use crate::node::rounds::{Rounds, rounds};

pub use crate::node::propose::COMMAND_BYTES_MAX;
pub use crate::node::status::{MemberStatus, Role, Status};

/// Raft over an environment's runtime.
pub(crate) type ConfigOf<E> = TypeConfig<<E as Environment>::Runtime>;
type AppliedOf<E> = openraft::type_config::alias::WatchReceiverOf<ConfigOf<E>, Option<LogId>>;
type InstantOf<E> = <<E as Environment>::Runtime as AsyncRuntime>::Instant;

/// How a member behaves.
#[derive(Debug, Clone)]
pub struct Options {
    /// The member's identity.
    pub id: NodeId,
    /// The cluster's name, for logs.
    pub cluster: String,
    /// How often a leader tells that it leads.
    pub heartbeat: Duration,
    /// After how long without a leader an election begins: drawn between this and its double.
    pub election: Duration,
    /// How long a proposal, a read or a change may take.
    pub request_timeout: Duration,
    /// How long another member may take for a piece of a snapshot.
    pub snapshot_timeout: Duration,
    /// After how many entries a snapshot is taken and the log may be purged.
    pub snapshot_entries: u64,
    /// How many entries before the snapshot are kept for members that lag.
    pub kept_entries: u64,
    /// Entries of one message to another member.
    pub append_entries_max: u64,
    /// The log.
    pub wal: WalOptions,
    /// How often the state machine's state becomes durable.
    pub durability: Durability,
}

impl Options {
    /// The defaults for the member `id`.
    pub fn new(id: NodeId) -> Self {
        Self {
            id,
            cluster: "chainfire".to_owned(),
            heartbeat: Duration::from_millis(100),
            election: Duration::from_millis(500),
            request_timeout: Duration::from_secs(7),
            snapshot_timeout: Duration::from_secs(30),
            snapshot_entries: 50_000,
            kept_entries: 10_000,
            append_entries_max: 1024,
            wal: WalOptions::default(),
            durability: Durability::default(),
        }
    }

    fn config(&self) -> Result<Config> {
        let millis = |duration: Duration| duration.as_millis() as u64;
        let config = Config {
            cluster_name: self.cluster.clone(),
            heartbeat_interval: millis(self.heartbeat),
            election_timeout_min: millis(self.election),
            election_timeout_max: millis(self.election) * 2,
            install_snapshot_timeout: millis(self.snapshot_timeout),
            max_payload_entries: self.append_entries_max,
            replication_lag_threshold: self.snapshot_entries * 2,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(self.snapshot_entries),
            max_in_snapshot_log_to_keep: self.kept_entries,
            purge_batch_size: (self.kept_entries / 8).max(1),
            removed_leader_step_down: StepDownPolicy::After(millis(self.heartbeat)),
            enable_pre_vote: Some(true),
            // A restarted leader may have lost entries that it sent and had not made durable yet;
            // in the same term it could write others in their place.
            enable_leader_restore: Some(false),
            ..Config::default()
        };
        config
            .validate()
            .map_err(|error| Error::caused(ErrorKind::Invalid, "the member's options", error))
    }
}

pub(crate) struct Inner<E: Environment, T: Transport, S: StateMachine> {
    options: Options,
    environment: E,
    transport: T,
    raft: Raft<ConfigOf<E>, Machine<E, S>>,
    reader: S::Reader,
    wal: Wal<<E::Disk as crate::disk::Disk>::File>,
    waiting: Waiting<S::Outcome>,
    applied: AppliedOf<E>,
    /// Reads of this member.
    reads: Rounds<()>,
    /// Reads of all members, where this one leads.
    confirmations: Rounds<LogId>,
    proposals: mpsc::Sender<propose::Handed<E::Runtime>>,
    directory: Directory,
    /// One change of membership at a time on this member.
    changing: tokio::sync::Mutex<()>,
    next_request: AtomicU64,
    next_incoming: AtomicU64,
    stopping: AtomicBool,
}

/// A member; clones are the same member. It runs until [`Node::shutdown`].
pub struct Node<E: Environment, T: Transport, S: StateMachine> {
    inner: Arc<Inner<E, T, S>>,
}

impl<E: Environment, T: Transport, S: StateMachine> Clone for Node<E, T, S> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
        }
    }
}

impl<E: Environment, T: Transport, S: StateMachine> Node<E, T, S> {
    /// Opens the member's log, replays it into `machine` up to what is known to be committed, and
    /// joins in. A member of a new cluster then needs [`Node::initialize`] on the first members;
    /// one that was added to a cluster needs nothing.
    ///
    /// # Errors
    /// A damaged or failing disk; options that contradict each other.
    pub async fn start(environment: E, transport: T, machine: S, options: Options) -> Result<Self> {
        let config = Arc::new(options.config()?);
        receive::remove_leftovers(&environment.log_disk())?;
        let Opened { wal, writer, jobs } = wal::open(environment.log_disk(), options.wal)?;
        environment
            .start_writer(writer, jobs)
            .map_err(|error| Error::storage("starting the log's writer", error))?;
        let reader = machine.reader();
        let waiting = Waiting::default();
        let (machine, applied) = Machine::new(
            environment.clone(),
            machine,
            waiting.clone(),
            options.durability,
        )
        .map_err(storage("reading where the state machine stands"))?;
        let directory = Directory::default();
        let network = Network {
            from: options.id,
            transport: transport.clone(),
            directory: directory.clone(),
            runtime: PhantomData,
        };
        let log = LogStore::new(wal.clone());
        let raft = Raft::new(options.id, config, network, log, machine)
            .await
            .map_err(fatal)?;
        let (reads, readers) = rounds();
        let (confirmations, to_confirm) = rounds();
        let (proposals, proposal_queue) = mpsc::channel(propose::WAITING_MAX);
        let inner = Inner {
            options,
            environment,
            transport,
            raft,
            reader,
            wal,
            waiting,
            applied,
            reads,
            confirmations,
            proposals,
            directory,
            changing: tokio::sync::Mutex::new(()),
            next_request: AtomicU64::new(0),
            next_incoming: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
        };
        let node = Self {
            inner: Arc::new(inner),
        };
        let weak = Arc::downgrade(&node.inner);
        readers.serve(weak.clone(), Node::barrier_round);
        to_confirm.serve(weak.clone(), Node::confirm_lead);
        drop(E::Runtime::spawn(propose::serve(weak, proposal_queue)));
        drop(E::Runtime::spawn(change::tend(node.clone())));
        Ok(node)
    }

    /// Makes a new cluster of `members`, all voters. Every one of them may be asked, with the same
    /// members.
    ///
    /// # Errors
    /// [`ErrorKind::Exists`] where this member has a log already.
    pub async fn initialize(&self, members: BTreeMap<NodeId, Member>) -> Result<()> {
        self.inner
            .raft
            .initialize(members)
            .await
            .map_err(|error| match error {
                RaftError::APIError(InitializeError::NotAllowed(_)) => Error::new(
                    ErrorKind::Exists,
                    "this member is part of a cluster already",
                ),
                RaftError::APIError(error) => {
                    Error::caused(ErrorKind::Invalid, "the first members", error)
                }
                RaftError::Fatal(error) => fatal(error),
            })
    }

    /// Whether this member has ever been part of a cluster.
    pub async fn is_initialized(&self) -> Result<bool> {
        self.inner.raft.is_initialized().await.map_err(fatal)
    }

    /// The member's identity.
    pub fn id(&self) -> NodeId {
        self.inner.options.id
    }

    /// The state machine, for reading. What it shows may be old: see [`Node::read_barrier`].
    pub fn reader(&self) -> &S::Reader {
        &self.inner.reader
    }

    /// Ends the member: answers what it can, and makes the log's tail durable. The log's directory
    /// is free once the last task has ended and the last handle is gone.
    ///
    /// # Errors
    /// A task of the member panicked, or the disk failed.
    pub async fn shutdown(&self) -> Result<()> {
        self.inner.stopping.store(true, Ordering::Relaxed);
        let ended = self.inner.raft.shutdown().await;
        let flushed = self.inner.wal.flush().await;
        ended.map_err(|error| {
            Error::new(
                ErrorKind::Stopped,
                format!("a task of this member failed: {error:?}"),
            )
        })?;
        flushed.map_err(|error| Error::storage("making the log's tail durable", error))
    }

    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn log(&self) -> &Wal<<E::Disk as crate::disk::Disk>::File> {
        &self.inner.wal
    }

    pub(crate) fn metrics(&self) -> RaftMetrics<ConfigOf<E>> {
        self.inner.raft.metrics().borrow_watched().clone()
    }

    fn leader(&self) -> Option<NodeId> {
        self.inner.raft.metrics().borrow_watched().current_leader
    }

    fn deadline(&self) -> InstantOf<E> {
        <InstantOf<E> as openraft::Instant>::now() + self.inner.options.request_timeout
    }

    /// Fails where the member has stopped, by itself or on demand.
    fn check_running(&self) -> Result<()> {
        if self.stopping() {
            return Err(Error::new(ErrorKind::Stopped, "the member has stopped"));
        }
        let metrics = self.inner.raft.metrics();
        let state = metrics.borrow_watched().running_state.clone();
        state.map_err(fatal)
    }

    fn stopping(&self) -> bool {
        self.inner.stopping.load(Ordering::Relaxed)
    }

    /// A member as the newest membership has it.
    fn member(&self, id: NodeId) -> Member {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics
            .membership_config
            .get_node(&id)
            .cloned()
            .unwrap_or_default()
    }
}

/// Takes what is in a queue, once something is. All tasks run first that could run now, so that what they
/// have to say meets in one batch; unlike the runtime's own yielding this looks for no new events before.
/// False where the queue has ended.
async fn gather<T>(queue: &mut mpsc::Receiver<T>, gathered: &mut Vec<T>) -> bool {
    let Some(first) = queue.recv().await else {
        return false;
    };
    gathered.push(first);
    let mut yielded = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
    while let Ok(next) = queue.try_recv() {
        gathered.push(next);
    }
    true
}

/// What ended Raft, as this crate's error.
pub(crate) fn fatal<R: AsyncRuntime + 'static>(error: Fatal<TypeConfig<R>>) -> Error {
    match error {
        Fatal::StorageError(error) => Error::storage("the member's storage failed", error),
        Fatal::Panicked => Error::new(ErrorKind::Stopped, "the member failed"),
        Fatal::Stopped => Error::new(ErrorKind::Stopped, "the member has stopped"),
    }
}

pub(crate) fn storage(what: &str) -> impl Fn(io::Error) -> Error + '_ {
    move |error| Error::storage(what, error)
}
