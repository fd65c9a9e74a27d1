//! A store for simulations: ChainFire's own state machine in this process, behind a network that loses,
//! delays and lets requests arrive late. For tests; nothing that ships depends on it.
//!
//! It runs on tokio's paused clock in one thread, so that a seed gives the same history each time.
//! What may fail: a request that never arrives, an answer that never comes back, a write that arrives
//! long after its sender gave up, a client that is cut off for good, a lease that ends. What does not
//! fail: the state machine itself, which ChainFire's own simulations put to the test.

#![forbid(unsafe_code)]

mod network;
mod play;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use chainfire_store::{
    AppliedMeta, Command, Durable, InMemoryBackend, Op, Options, Outcome as Applied, Reply,
    Store as StateMachine, View, check_range, check_txn,
};
use control_kit::clock::Clock;
use control_kit::store::wire::{COMMIT, LEASE, READ, WATCH, Wire};
use control_kit::store::{
    Changes, LeaseId, Outcome, Page, Range, Store, StoreError, StoreErrorKind, TXN_OPS_MAX, Txn,
    Watch,
};
use etcd_wire::etcdserverpb::{
    LeaseGrantRequest, LeaseRevokeRequest, ResponseHeader, WatchResponse,
};
use futures_util::stream;
use tokio::sync::watch;
use tokio::time::Instant;

pub use network::{Faults, Network};
pub use play::{for_seeds, simulate};

/// Bytes of history that a watch reads at once.
const WATCH_BYTES: usize = 1 << 20;
/// When every simulation begins.
const START_UNIX_MS: u64 = 1_700_000_000_000;

/// The cluster that all clients share.
#[derive(Clone)]
pub struct World(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    /// The newest revision, for those who watch.
    revision: watch::Sender<i64>,
    network: Network,
    clock: Clock,
}

struct State {
    machine: StateMachine,
    index: u64,
    next_lease: i64,
    /// When each lease ends, and how long it lives.
    leases: Vec<(LeaseId, Instant, Duration)>,
    commits: u64,
}

impl World {
    /// An empty cluster behind a network of this seed.
    ///
    /// # Panics
    /// If the store in memory cannot be made.
    pub fn new(seed: u64, faults: Faults) -> World {
        let machine = StateMachine::open(InMemoryBackend::new(), Options::default());
        let machine = machine.expect("a store in memory opens");
        World(Arc::new(Inner {
            revision: watch::Sender::new(machine.view().revision()),
            state: Mutex::new(State {
                machine,
                index: 0,
                next_lease: 0,
                leases: Vec::new(),
                commits: 0,
            }),
            network: Network::new(seed, faults),
            clock: Clock::virtual_from(START_UNIX_MS),
        }))
    }

    /// A client of the cluster.
    pub fn client(&self) -> SimStore {
        SimStore {
            world: self.clone(),
            wire: Wire::new("sim/"),
            cut: watch::Sender::new(false),
        }
    }

    /// The network, to make it better or worse.
    pub fn network(&self) -> &Network {
        &self.0.network
    }

    /// The time of day in this world.
    pub fn clock(&self) -> Clock {
        self.0.clock
    }

    /// Time goes by, for everybody.
    pub async fn pass(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    /// Transactions that changed something so far.
    pub fn commits(&self) -> u64 {
        self.state().commits
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Applies a command, after the leases whose time was up.
    fn apply(&self, op: Op) -> Applied {
        self.expire();
        self.apply_now(op)
    }

    fn apply_now(&self, op: Op) -> Applied {
        let mut state = self.state();
        state.index += 1;
        let index = state.index;
        let command = Command {
            op: Some(op),
            ..Command::default()
        };
        let mut batch = state.machine.batch();
        let applied = batch.apply(&command, index).expect("a command applies");
        let committed = batch.commit(AppliedMeta::default(), Durable::No);
        let events = committed.expect("a store in memory commits");
        state.commits += u64::from(!events.is_empty());
        let revision = state.machine.view().revision();
        drop(state);
        self.0.revision.send_replace(revision);
        applied
    }

    fn view(&self) -> Arc<View> {
        self.expire();
        self.state().machine.view()
    }

    fn expire(&self) {
        loop {
            let mut state = self.state();
            let now = Instant::now();
            let Some(at) = state.leases.iter().position(|(_, end, _)| *end <= now) else {
                return;
            };
            let (lease, ..) = state.leases.swap_remove(at);
            drop(state);
            // Refused if it was revoked meanwhile.
            let _ = self.apply_now(Op::LeaseRevoke(LeaseRevokeRequest { id: lease.0 }));
        }
    }

    /// Ends a lease at its time, also when nobody asks for anything then.
    fn attend(&self, lease: LeaseId) {
        let world = self.clone();
        tokio::spawn(async move {
            loop {
                let ends = {
                    let state = world.state();
                    let mut leases = state.leases.iter();
                    leases.find(|(id, ..)| *id == lease).map(|(_, end, _)| *end)
                };
                let Some(end) = ends else { return };
                tokio::time::sleep_until(end).await;
                world.expire();
            }
        });
    }
}

/// One client. Cloned handles are the same client, and are cut off together.
#[derive(Clone)]
pub struct SimStore {
    world: World,
    wire: Wire,
    cut: watch::Sender<bool>,
}

impl SimStore {
    /// Nothing that this client sends arrives any more, and no answer reaches it; what is under way may
    /// still arrive.
    pub fn cut_off(&self) {
        self.cut.send_replace(true);
    }

    /// Messages get through again.
    pub fn reconnect(&self) {
        self.cut.send_replace(false);
    }

    /// The way there. An error means that it was not sent, or may never arrive.
    async fn send(&self, what: &'static str) -> Result<(), StoreError> {
        if *self.cut.borrow() {
            let mut cut = self.cut.subscribe();
            // A client that is cut off hears nothing, not even a refusal.
            let _ = cut.wait_for(|cut| !*cut).await;
        }
        self.world.0.network.delay().await;
        if self.world.0.network.loses_request() {
            return Err(silence(what));
        }
        Ok(())
    }

    /// The way back.
    async fn answer<T>(&self, what: &'static str, answer: T) -> Result<T, StoreError> {
        self.world.0.network.delay().await;
        if *self.cut.borrow() || self.world.0.network.loses_answer() {
            return Err(silence(what));
        }
        Ok(answer)
    }
}

fn silence(what: &'static str) -> StoreError {
    let kind = if what == COMMIT {
        StoreErrorKind::Unknown
    } else {
        StoreErrorKind::Unavailable
    };
    StoreError::new(kind, what, "no answer")
}

fn refused(what: &'static str, why: &impl ToString) -> StoreError {
    StoreError::new(StoreErrorKind::Refused, what, why.to_string())
}

#[async_trait]
impl Store for SimStore {
    async fn range(&self, range: Range) -> Result<Page, StoreError> {
        self.send(READ).await?;
        let request = self.wire.range_request(&range);
        check_range(&request).map_err(|error| refused(READ, &error))?;
        let found = self.world.view().range(&request);
        let page = self
            .wire
            .page(found.map_err(|error| refused(READ, &error))?)?;
        self.answer(READ, page).await
    }

    async fn commit(&self, txn: Txn) -> Result<Outcome, StoreError> {
        let request = self.wire.txn_request(&txn);
        check_txn(&request, TXN_OPS_MAX).map_err(|error| refused(COMMIT, &error))?;
        self.send(COMMIT).await?;
        if let Some(late) = self.world.0.network.late() {
            let world = self.world.clone();
            tokio::spawn(async move {
                tokio::time::sleep(late).await;
                // Nobody waits for the answer any more.
                let _ = world.apply(Op::Txn(request));
            });
            return Err(silence(COMMIT));
        }
        let outcome = match self.world.apply(Op::Txn(request)) {
            Ok(Reply::Txn(answer)) => self.wire.outcome(answer)?,
            Ok(other) => return Err(refused(COMMIT, &format!("a strange answer: {other:?}"))),
            Err(error) => return Err(refused(COMMIT, &error)),
        };
        self.answer(COMMIT, outcome).await
    }

    async fn watch(&self, prefix: &str, since: i64) -> Result<Watch, StoreError> {
        self.send(WATCH).await?;
        let request = self.wire.watch_request(prefix, since);
        let start = Watching {
            client: self.clone(),
            key: request.key.to_vec(),
            range_end: request.range_end.to_vec(),
            next: request.start_revision,
            newest: self.world.0.revision.subscribe(),
        };
        Ok(Box::pin(stream::unfold(start, Watching::next)))
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.send(LEASE).await?;
        let lease = {
            let mut state = self.world.state();
            state.next_lease += 1;
            LeaseId(state.next_lease)
        };
        let ttl = i64::try_from(ttl.as_secs().max(1)).unwrap_or(i64::MAX);
        let request = LeaseGrantRequest { id: lease.0, ttl };
        let lives = match self.world.apply(Op::LeaseGrant(request)) {
            Ok(Reply::LeaseGrant(answer)) => Duration::from_secs(answer.ttl.unsigned_abs()),
            Ok(other) => return Err(refused(LEASE, &format!("a strange answer: {other:?}"))),
            Err(error) => return Err(refused(LEASE, &error)),
        };
        let ends = Instant::now() + lives;
        self.world.state().leases.push((lease, ends, lives));
        self.world.attend(lease);
        self.answer(LEASE, lease).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.send(LEASE).await?;
        self.world.expire();
        let found = {
            let mut state = self.world.state();
            let mut leases = state.leases.iter_mut();
            let found = leases.find(|(id, ..)| *id == lease);
            found.map(|(_, end, lives)| *end = Instant::now() + *lives)
        };
        match self.answer(LEASE, found).await? {
            Some(()) => Ok(()),
            None => Err(StoreError::new(StoreErrorKind::Gone, LEASE, "it has ended")),
        }
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.send(LEASE).await?;
        self.world.state().leases.retain(|(id, ..)| *id != lease);
        // One that has ended is no error.
        let _ = self
            .world
            .apply(Op::LeaseRevoke(LeaseRevokeRequest { id: lease.0 }));
        self.answer(LEASE, ()).await
    }
}

/// A watch under way.
struct Watching {
    client: SimStore,
    key: Vec<u8>,
    range_end: Vec<u8>,
    next: i64,
    newest: watch::Receiver<i64>,
}

impl Watching {
    async fn next(mut self) -> Option<(Result<Changes, StoreError>, Watching)> {
        loop {
            let next = self.next;
            // The world outlives its clients.
            self.newest.wait_for(|newest| *newest >= next).await.ok()?;
            let world = self.client.world.clone();
            world.0.network.delay().await;
            if *self.client.cut.borrow() || world.0.network.breaks_watch() {
                return Some((Err(silence(WATCH)), self));
            }
            let view = world.view();
            let found = view.events_since(self.next, &self.key, &self.range_end, WATCH_BYTES);
            let found = match found {
                Ok(found) => found,
                Err(error) => {
                    let gone = StoreError::new(StoreErrorKind::Gone, WATCH, error.to_string());
                    return Some((Err(gone), self));
                }
            };
            self.next = found.next_revision;
            if found.batches.is_empty() {
                continue;
            }
            let answer = WatchResponse {
                header: Some(ResponseHeader {
                    revision: self.next - 1,
                    ..ResponseHeader::default()
                }),
                events: found
                    .batches
                    .into_iter()
                    .flat_map(|batch| batch.events)
                    .collect(),
                ..WatchResponse::default()
            };
            return Some((self.client.wire.changes(answer), self));
        }
    }
}
