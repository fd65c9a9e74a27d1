//! What keeps the tables as the model says: it takes results of checks, next hops and the clock, and sends each
//! new state to the tables' owner.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use control_kit::metrics::{Counter, Histogram, Registry};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep_until};

use crate::attach::Attachments;
use crate::checks::{Checks, Ended};
use crate::hops;
use crate::model::{Model, Ways};
use crate::tables::Tables;

/// After a start, how long tables that an earlier process has left stay as they are, while checks and next hops
/// are not known.
const HOLD: Duration = Duration::from_secs(3);
/// Between two looks at interfaces that are not attached.
const ATTACH_PAUSE: Duration = Duration::from_secs(2);
/// Between two tries to reach the tables' owner.
const BUSY_PAUSE: Duration = Duration::from_millis(50);
/// Results of checks that may wait.
const RESULTS_MAX: usize = 1024;

/// The model and what it needs; shared by the driver and the service.
pub struct Shared {
    model: Mutex<Model>,
    clock: Clock,
    /// The model has changed.
    pub changed: Notify,
    /// The tables' owner.
    pub tables: Tables,
    /// Interfaces.
    pub attachments: Arc<Attachments>,
}

/// Milliseconds since 1970 that never go back.
struct Clock {
    unix_ms: u64,
    since: Instant,
}

impl Shared {
    /// A node whose model is this one.
    pub fn new(model: Model, tables: Tables, attachments: Arc<Attachments>) -> Arc<Shared> {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH);
        let unix_ms = unix.unwrap_or_default().as_millis() as u64;
        Arc::new(Shared {
            model: Mutex::new(model),
            clock: Clock {
                unix_ms,
                since: Instant::now(),
            },
            changed: Notify::new(),
            tables,
            attachments,
        })
    }

    /// The model; held for moments, never across an await.
    pub fn model(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Now, in milliseconds since 1970.
    pub fn now_ms(&self) -> u64 {
        self.clock.unix_ms + self.clock.since.elapsed().as_millis() as u64
    }

    fn instant(&self, at_ms: u64) -> Instant {
        self.clock.since + Duration::from_millis(at_ms.saturating_sub(self.clock.unix_ms))
    }
}

/// What is counted of checks.
#[derive(Clone)]
pub struct Counts {
    checks: Counter,
    failures: Counter,
    changes: Counter,
    took: Histogram,
}

impl Counts {
    /// Counts in a registry, once.
    pub fn new(registry: &Registry) -> Counts {
        let counter = |name, help| registry.counter(name, help);
        Counts {
            checks: counter(
                "uc_fiberlb_health_checks_total",
                "Checks of backends that ended.",
            ),
            failures: counter(
                "uc_fiberlb_failed_checks_total",
                "Checks of backends that failed.",
            ),
            changes: counter(
                "uc_fiberlb_health_changes_total",
                "Times that a backend became healthy or unhealthy.",
            ),
            took: registry.histogram(
                "uc_fiberlb_health_check_seconds",
                "How long checks of backends took.",
            ),
        }
    }
}

/// Drives until it is dropped.
pub async fn run(shared: Arc<Shared>, counts: Counts) {
    let (tell, results) = mpsc::channel(RESULTS_MAX);
    let (tell_ways, ways) = mpsc::channel(1);
    let (addresses, wanted) = watch::channel(BTreeSet::new());
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(hops::follow(wanted, tell_ways));
    tasks.spawn(keep_attached(Arc::clone(&shared)));
    let driver = Driver {
        checks: Checks::new(tell),
        results,
        ways,
        addresses,
        edition: None,
        sent: 0,
        hold_until: Some(Instant::now() + HOLD),
        shared,
        counts,
    };
    driver.run().await;
}

async fn keep_attached(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(ATTACH_PAUSE).await;
        let attachments = Arc::clone(&shared.attachments);
        // It fails when the runtime ends.
        let _ = tokio::task::spawn_blocking(move || attachments.attach()).await;
    }
}

struct Driver {
    shared: Arc<Shared>,
    counts: Counts,
    checks: Checks,
    results: mpsc::Receiver<Ended>,
    ways: mpsc::Receiver<Ways>,
    addresses: watch::Sender<BTreeSet<IpAddr>>,
    /// The documents that checks and next hops are followed for.
    edition: Option<u64>,
    /// The generation that the tables' owner has got.
    sent: u32,
    hold_until: Option<Instant>,
}

impl Driver {
    async fn run(mut self) {
        let mut dirty = true;
        loop {
            self.follow_documents();
            let next = self.commit(&mut dirty);
            let sent = self.send().await;
            let next = if sent {
                next
            } else {
                Some(Instant::now() + BUSY_PAUSE)
            };
            let alarm = async {
                match next {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let shared = Arc::clone(&self.shared);
            tokio::select! {
                () = shared.changed.notified() => dirty = true,
                Some(ended) = self.results.recv() => dirty |= self.take(ended),
                Some(ways) = self.ways.recv() => {
                    shared.model().set_ways(ways);
                    dirty = true;
                }
                () = alarm => dirty = true,
            }
        }
    }

    /// Checks and resolves whom the documents name now.
    fn follow_documents(&mut self) {
        let model = self.shared.model();
        if self.edition == Some(model.edition()) {
            return;
        }
        self.edition = Some(model.edition());
        let (checks, addresses) = (model.checks(), model.addresses());
        drop(model);
        self.checks.follow(checks);
        self.addresses.send_replace(addresses);
    }

    /// Takes the result of a check; whether the model is to be committed.
    fn take(&mut self, ended: Ended) -> bool {
        self.counts.checks.increment();
        self.counts.took.record(ended.took);
        let why = ended.result.as_ref().err().cloned();
        if why.is_some() {
            self.counts.failures.increment();
        }
        let now = self.shared.now_ms();
        let mut model = self.shared.model();
        let changed = model.checked(&ended.key, ended.addr, ended.result, now);
        if changed {
            self.counts.changes.increment();
            if let Some(why) = why {
                tracing::warn!(backend = %ended.key, why, "unhealthy");
            } else {
                tracing::info!(backend = %ended.key, "healthy");
            }
        }
        changed || self.hold_until.is_some()
    }

    /// Brings the model up to now; when that is to be done next.
    fn commit(&mut self, dirty: &mut bool) -> Option<Instant> {
        let now = self.shared.now_ms();
        let mut model = self.shared.model();
        if let Some(until) = self.hold_until {
            let held = !model.is_committed() && !model.is_settled() && Instant::now() < until;
            if held {
                return Some(until);
            }
            self.hold_until = None;
        }
        if std::mem::take(dirty) {
            model.commit(now);
        }
        let next = model.next_change_ms(now);
        next.map(|at| self.shared.instant(at))
    }

    /// Sends the newest state, if it was not; false when that has to be tried again.
    async fn send(&mut self) -> bool {
        let desired = {
            let model = self.shared.model();
            if !model.is_committed() || model.desired().generation == self.sent {
                return true;
            }
            model.desired().clone()
        };
        let generation = desired.generation;
        match self.shared.tables.want(desired).await {
            Ok(()) => {
                self.sent = generation;
                true
            }
            Err(error) => {
                tracing::warn!(%error, "the tables' owner cannot be reached");
                false
            }
        }
    }
}
