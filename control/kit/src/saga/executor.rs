//! One process' executor: its lease, what it runs, and what it takes over.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::drive::drive;
use super::journal::{EXECUTORS, Journal, OPEN, Tracked, Written, decode, executor_key};
use super::record::{EXPIRED, Record, SagaId};
use super::{Definition, SagaConfig};
use crate::backoff::Backoff;
use crate::clock::millis;
use crate::lease::{Claim, Fence, Held, claim};
use crate::metrics::{Counter, Gauge, Registry};
use crate::retention::Retention;
use crate::stop::Stop;
use crate::store::{self, Range, SharedStore, StoreError, Txn};

/// Records of one page of a scan.
const SCAN_PAGE: usize = 256;
/// How long steps under way may take to end when the process ends.
const DRAIN_LIMIT: Duration = Duration::from_secs(20);

/// Runs operations, and takes over those of executors that died. Clones are the same executor.
#[derive(Clone)]
pub struct Sagas(pub(super) Arc<Inner>);

/// What verbs and operations share.
pub struct Inner {
    pub(super) journal: Journal,
    pub(super) definitions: BTreeMap<&'static str, Definition>,
    pub(super) config: SagaConfig,
    pub(super) name: String,
    /// The right to write, while there is one.
    pub(super) fence: watch::Sender<Option<Fence>>,
    /// Operations with a task.
    running: Mutex<HashSet<SagaId>>,
    begun: mpsc::UnboundedSender<Tracked>,
    permits: Arc<Semaphore>,
    pub(super) metrics: SagaMetrics,
}

/// Counters of an executor.
#[derive(Clone, Debug)]
pub struct SagaMetrics {
    pub(super) steps: Counter,
    pub(super) write_failures: Counter,
    adopted: Counter,
    expired: Counter,
    running: Gauge,
    failed: Gauge,
    open: Gauge,
}

impl SagaMetrics {
    fn new(registry: &Registry) -> SagaMetrics {
        SagaMetrics {
            steps: registry.counter("uc_saga_steps_total", "Tries of steps, undoing included."),
            write_failures: registry.counter(
                "uc_saga_write_failures_total",
                "Steps whose end could not be written down at once.",
            ),
            adopted: registry.counter(
                "uc_saga_adopted_total",
                "Operations taken over from executors that are gone.",
            ),
            expired: registry.counter(
                "uc_saga_expired_total",
                "Operations that became failed because their time was up.",
            ),
            running: registry.gauge(
                "uc_saga_running_count",
                "Operations that this process runs.",
            ),
            failed: registry.gauge(
                "uc_saga_failed_count",
                "Operations that wait for an operator, at the last scan.",
            ),
            open: registry.gauge(
                "uc_saga_open_count",
                "Operations of all processes that have not ended, at the last scan.",
            ),
        }
    }
}

impl Sagas {
    /// Starts an executor. It ends in order with `stop`: steps under way end, the rest is left to others.
    pub fn start(
        store: &SharedStore,
        config: SagaConfig,
        definitions: Vec<Definition>,
        registry: &Registry,
        stop: Stop,
    ) -> (Sagas, tokio::task::JoinHandle<()>) {
        let (begun, work) = mpsc::unbounded_channel();
        let retention = Retention::new(Arc::clone(store), config.retention);
        let inner = Arc::new(Inner {
            journal: Journal {
                store: Arc::clone(store),
                retention,
            },
            definitions: definitions.into_iter().map(|one| (one.kind, one)).collect(),
            permits: Arc::new(Semaphore::new(config.running_max)),
            config,
            // A process that starts again is another executor: the lease of the last one may still live.
            name: Uuid::now_v7().to_string(),
            fence: watch::Sender::new(None),
            running: Mutex::default(),
            begun,
            metrics: SagaMetrics::new(registry),
        });
        let running = tokio::spawn(run(Arc::clone(&inner), work, stop));
        (Sagas(inner), running)
    }

    /// Returns once it may begin operations.
    pub async fn ready(&self) {
        let mut fence = self.0.fence.subscribe();
        // The sender lives as long as this handle.
        let _ = fence.wait_for(Option::is_some).await;
    }

    /// Whether it may begin operations now.
    pub fn is_ready(&self) -> bool {
        self.0.fence.borrow().is_some()
    }
}

impl Inner {
    /// Hands an operation to the executor.
    pub(super) fn hand_over(&self, tracked: Tracked) {
        // The receiver is gone when the process ends: whoever scans next finds the record.
        let _ = self.begun.send(tracked);
    }

    /// Operations that this process has open, those that wait for their turn among them.
    pub(super) fn open(&self) -> usize {
        self.running().len()
    }

    /// Whether it was not tracked before.
    fn track(&self, id: SagaId) -> bool {
        let mut running = self.running();
        let is_new = running.insert(id);
        self.metrics.running.set(running.len() as i64);
        is_new
    }

    fn untrack(&self, id: SagaId) {
        let mut running = self.running();
        running.remove(&id);
        self.metrics.running.set(running.len() as i64);
    }

    fn running(&self) -> std::sync::MutexGuard<'_, HashSet<SagaId>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes turns, each with a lease of its own, until the end is asked for.
async fn run(inner: Arc<Inner>, mut work: mpsc::UnboundedReceiver<Tracked>, stop: Stop) {
    let mut backoff = Backoff::new(Duration::from_millis(50), inner.config.lease / 2);
    while !stop.is_requested() {
        let taken = tokio::select! {
            biased;
            () = stop.requested() => return,
            taken = take_turn(&inner) => taken,
        };
        match taken {
            Ok((held, fence)) => {
                inner.fence.send_replace(Some(fence.clone()));
                let ended = Turn::new(&inner, &fence, &stop).run(&held, &mut work).await;
                inner.fence.send_replace(None);
                // Fails only when the store does: the lease then ends by itself.
                let _ = held.release(&inner.journal.store).await;
                if let Err(error) = ended {
                    tracing::warn!(%error, "the executor of operations takes another lease");
                }
            }
            Err(error) => {
                tracing::warn!(%error, "the executor of operations has no lease yet");
                tokio::time::sleep(backoff.pause()).await;
            }
        }
    }
}

async fn take_turn(inner: &Inner) -> Result<(Held, Fence), StoreError> {
    let store = &inner.journal.store;
    loop {
        let held = Held::grant(store, inner.config.lease).await?;
        let key = executor_key(&inner.name);
        match claim(store, &held, &key, inner.name.clone()).await? {
            Claim::Won(fence) => return Ok((held, fence)),
            // The lease before this one, which ends in its time.
            Claim::Taken(_) => {
                held.release(store).await?;
                tokio::time::sleep(inner.config.lease / 4).await;
            }
        }
    }
}

/// What an executor does under one lease.
struct Turn<'a> {
    inner: &'a Arc<Inner>,
    fence: &'a Fence,
    stop: &'a Stop,
    tasks: JoinSet<()>,
}

impl<'a> Turn<'a> {
    fn new(inner: &'a Arc<Inner>, fence: &'a Fence, stop: &'a Stop) -> Turn<'a> {
        Turn {
            inner,
            fence,
            stop,
            tasks: JoinSet::new(),
        }
    }

    /// Runs until the lease is lost, the store fails, or the end is asked for.
    async fn run(
        mut self,
        held: &Held,
        work: &mut mpsc::UnboundedReceiver<Tracked>,
    ) -> Result<(), StoreError> {
        let ended = self.attend(held, work).await;
        if self.stop.is_requested() {
            let drained = async { while self.tasks.join_next().await.is_some() {} };
            // What does not end in time is somebody else's once the lease is released.
            let _ = tokio::time::timeout(DRAIN_LIMIT, drained).await;
        }
        self.tasks.shutdown().await;
        self.inner.running().clear();
        self.inner.metrics.running.set(0);
        ended
    }

    async fn attend(
        &mut self,
        held: &Held,
        work: &mut mpsc::UnboundedReceiver<Tracked>,
    ) -> Result<(), StoreError> {
        loop {
            let since = self.scan().await?;
            let mut executors = self.inner.journal.store.watch(EXECUTORS, since).await?;
            let next_scan = tokio::time::sleep(self.inner.config.scan);
            tokio::pin!(next_scan);
            loop {
                tokio::select! {
                    biased;
                    () = self.stop.requested() => return Ok(()),
                    () = held.lost() => return Ok(()),
                    Some(tracked) = work.recv() => self.spawn(tracked, Known::Written),
                    Some(_) = self.tasks.join_next() => {}
                    change = executors.next() => {
                        let gone = change.is_none_or(|change| change.map_or(true, |change| {
                            change.events.iter().any(|event| event.entry.is_none())
                        }));
                        if gone { break }
                    }
                    () = &mut next_scan => break,
                }
            }
        }
    }

    /// Looks through everything that has not ended. Gives the revision at which executors were read.
    async fn scan(&mut self) -> Result<i64, StoreError> {
        let store = &self.inner.journal.store;
        let executors = store
            .range(Range::prefix(EXECUTORS, usize::MAX >> 1))
            .await?;
        let alive = |record: &Record| {
            let key = executor_key(&record.executor);
            let mut all = executors.entries.iter();
            all.any(|entry| entry.key == key && entry.create_revision == record.epoch)
        };
        let (mut failed, mut open) = (0, 0);
        for entry in store::all(&**store, Range::prefix(OPEN, SCAN_PAGE)).await? {
            let tracked = match decode(&entry) {
                Ok(tracked) => tracked,
                Err(error) => {
                    tracing::error!(%error, "an operation is left alone");
                    failed += 1;
                    continue;
                }
            };
            if !tracked.record.state.is_open() {
                failed += 1;
                continue;
            }
            open += 1;
            let runs_on = alive(&tracked.record);
            self.look_at(tracked, runs_on).await?;
        }
        self.inner.metrics.failed.set(failed);
        self.inner.metrics.open.set(open);
        Ok(executors.revision)
    }

    /// One open operation: nothing to do, take it over, or its time is up.
    async fn look_at(&mut self, tracked: Tracked, runs_on: bool) -> Result<(), StoreError> {
        let inner = self.inner;
        let now = inner.config.clock.unix_ms();
        let mut next = tracked.record.clone();
        let mine = next.executor == inner.name && next.epoch == self.fence.epoch();
        if now
            > next
                .deadline_unix_ms
                .saturating_add(millis(inner.config.expiry))
        {
            next.fail(EXPIRED, None, now);
            inner.metrics.expired.increment();
        } else if mine && inner.definitions.contains_key(next.kind.as_str()) {
            self.spawn(tracked, Known::AtScan);
            return Ok(());
        } else if !runs_on && inner.definitions.contains_key(next.kind.as_str()) {
            next.adopted(&inner.name, self.fence.epoch(), now);
            inner.metrics.adopted.increment();
        } else {
            return Ok(());
        }
        let before = tracked.mod_revision;
        let written = inner
            .journal
            .write(self.fence, before, &next, Txn::default())
            .await?;
        if let (Written::At(mod_revision), true) = (written, next.state.is_open()) {
            let tracked = Tracked {
                record: next,
                mod_revision,
            };
            self.spawn(tracked, Known::Written);
        }
        Ok(())
    }

    /// Works on an operation, unless that is under way.
    fn spawn(&mut self, tracked: Tracked, known: Known) {
        let id = tracked.record.id;
        if !self.inner.track(id) {
            return;
        }
        let (inner, fence, stop) = (
            Arc::clone(self.inner),
            self.fence.clone(),
            self.stop.clone(),
        );
        self.tasks.spawn(async move {
            // Never closed.
            let _permit = Arc::clone(&inner.permits).acquire_owned().await;
            let tracked = match known {
                Known::Written => Some(tracked),
                Known::AtScan => inner.journal.open(id).await.unwrap_or_default(),
            };
            if let Some(tracked) = tracked {
                drive(Arc::clone(&inner), fence, tracked, stop).await;
            }
            inner.untrack(id);
        });
    }
}

/// How a record is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    /// This executor has just written it.
    Written,
    /// It was read some time ago, and a task may have written it since: it is read again.
    AtScan,
}
