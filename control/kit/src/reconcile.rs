//! Reconcilers: what is wanted stands in the store, and something outside is brought to it, again and again.
//!
//! Level-triggered: a change only says which object to look at, and looking reads all anew. So no change can
//! be missed: what was not told, or not heard, is found when all objects are gone through, those that are
//! wanted and those that are there, at the start, when a watch breaks, and from time to time. An object is looked at by one worker at a time; one that changed
//! meanwhile is looked at once more. A failure is tried again, later each time, and delays no other object.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::backoff::Backoff;
use crate::metrics::{Counter, Gauge, Registry};
use crate::stop::Stop;
use crate::store::{self, Range, SharedStore, StoreError, StoreErrorKind};

/// Entries of one page when all objects are gone through.
const PAGE: usize = 1000;

/// What becomes of an object that was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It is as it is wanted, until it changes.
    Settled,
    /// It is looked at again after this time.
    After(Duration),
}

/// Brings one object to what is wanted.
#[async_trait]
pub trait Reconcile: Send + Sync + 'static {
    /// Looks at the object of this key, which may be gone, and does what is missing. It may be called again at
    /// any time, so it does no harm to what is right already.
    ///
    /// # Errors
    /// What kept it from that; it is called again later.
    async fn reconcile(&self, key: &str) -> Result<Next, String>;

    /// Keys of the objects that are there outside. Without them, what was deleted while nobody listened would
    /// stay for ever.
    ///
    /// # Errors
    /// What kept it from telling; all objects are gone through anew later.
    async fn inventory(&self) -> Result<Vec<String>, String>;
}

/// How a reconciler works.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Objects that are looked at at once.
    pub workers: usize,
    /// How often all objects are gone through.
    pub resync: Duration,
    /// The pause before an object that failed is tried again; it doubles.
    pub retry_first: Duration,
    /// The longest pause.
    pub retry_longest: Duration,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            workers: 16,
            resync: Duration::from_mins(5),
            retry_first: Duration::from_millis(100),
            retry_longest: Duration::from_mins(1),
        }
    }
}

/// Counters of a reconciler.
#[derive(Clone, Debug)]
pub struct Metrics {
    looked_at: Counter,
    failed: Counter,
    waiting: Gauge,
}

impl Metrics {
    /// Of one registry, once.
    pub fn new(registry: &Registry) -> Metrics {
        Metrics {
            looked_at: registry.counter("uc_reconcile_looks_total", "Objects looked at."),
            failed: registry.counter("uc_reconcile_failures_total", "Looks that failed."),
            waiting: registry.gauge(
                "uc_reconcile_waiting_count",
                "Objects that wait to be looked at, or looked at again.",
            ),
        }
    }
}

/// Objects that are to be looked at, each once, the earliest first.
#[derive(Default)]
struct Queue {
    due: BTreeSet<(Instant, String)>,
    when: HashMap<String, Instant>,
    /// Looked at now.
    busy: HashSet<String>,
    /// Changed while they were.
    again: HashSet<String>,
    failures: HashMap<String, u32>,
}

impl Queue {
    /// An object is to be looked at, at this time at the latest.
    fn add(&mut self, key: String, at: Instant) {
        if self.busy.contains(&key) {
            self.again.insert(key);
            return;
        }
        match self.when.get(&key) {
            Some(known) if *known <= at => return,
            Some(known) => {
                self.due.remove(&(*known, key.clone()));
            }
            None => {}
        }
        self.when.insert(key.clone(), at);
        self.due.insert((at, key));
    }

    /// The next object whose time has come.
    fn take(&mut self, now: Instant) -> Option<String> {
        if self.due.first()?.0 > now {
            return None;
        }
        let (_, key) = self.due.pop_first()?;
        self.when.remove(&key);
        self.busy.insert(key.clone());
        Some(key)
    }

    fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// An object was looked at.
    fn ended(&mut self, key: String, outcome: &Result<Next, String>, config: &Config) {
        self.busy.remove(&key);
        let now = Instant::now();
        let changed = self.again.remove(&key);
        let next = match outcome {
            Ok(Next::Settled) => None,
            Ok(Next::After(pause)) => Some(now + *pause),
            Err(_) => {
                let failures = self.failures.entry(key.clone()).or_default();
                *failures += 1;
                let backoff = Backoff::new(config.retry_first, config.retry_longest);
                Some(now + backoff.before(*failures))
            }
        };
        if outcome.is_ok() {
            self.failures.remove(&key);
        }
        // What has failed waits, also when it changed: a change must not undo the pause.
        let next = if changed && outcome.is_ok() {
            Some(now)
        } else {
            next
        };
        if let Some(at) = next {
            self.add(key, at);
        }
    }
}

/// Reconciles all objects below a prefix until the end is asked for; what is being looked at then is finished.
pub async fn run<R: Reconcile>(
    store: SharedStore,
    prefix: &str,
    config: Config,
    metrics: Metrics,
    reconciler: Arc<R>,
    stop: Stop,
) {
    let mut runner = Runner {
        config,
        metrics,
        reconciler,
        queue: Queue::default(),
        tasks: JoinSet::new(),
    };
    let mut backoff = Backoff::new(config.retry_first, config.retry_longest);
    while !stop.is_requested() {
        match runner.follow(&store, prefix, &stop).await {
            Ok(()) => backoff = Backoff::new(config.retry_first, config.retry_longest),
            Err(error) => {
                tracing::warn!(prefix, %error, "a reconciler reads all objects anew");
                tokio::select! {
                    biased;
                    () = stop.requested() => {}
                    () = tokio::time::sleep(backoff.pause()) => {}
                }
            }
        }
    }
    while runner.tasks.join_next().await.is_some() {}
}

fn unknown_inventory(why: String) -> StoreError {
    StoreError::new(
        StoreErrorKind::Unavailable,
        "cannot tell what is there",
        why,
    )
}

struct Runner<R> {
    config: Config,
    metrics: Metrics,
    reconciler: Arc<R>,
    queue: Queue,
    tasks: JoinSet<(String, Result<Next, String>)>,
}

impl<R: Reconcile> Runner<R> {
    /// Goes through all objects, then follows changes until it is time to go through all again.
    async fn follow(
        &mut self,
        store: &SharedStore,
        prefix: &str,
        stop: &Stop,
    ) -> Result<(), StoreError> {
        // What changes while the pages are read is told by the watch, which begins before them.
        let since = store.range(Range::prefix(prefix, 1)).await?.revision;
        for entry in store::all(&**store, Range::prefix(prefix, PAGE)).await? {
            self.queue.add(entry.key, Instant::now());
        }
        for key in self
            .reconciler
            .inventory()
            .await
            .map_err(unknown_inventory)?
        {
            self.queue.add(key, Instant::now());
        }
        let mut changes = store.watch(prefix, since).await?;
        let resync = Instant::now() + self.config.resync;
        loop {
            self.start();
            let may_start = self.tasks.len() < self.config.workers;
            let next = self.queue.next_due().filter(|_| may_start);
            tokio::select! {
                biased;
                () = stop.requested() => return Ok(()),
                Some(looked) = self.tasks.join_next() => {
                    let (key, outcome) = looked.expect("a look does not panic, nor is it aborted");
                    self.ended(key, &outcome);
                }
                change = changes.next() => match change {
                    Some(change) => for event in change?.events {
                        self.queue.add(event.key, Instant::now());
                    },
                    None => return Ok(()),
                },
                () = sleep_until(next.unwrap_or(resync)) => {
                    if Instant::now() >= resync {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Looks at what is due, as many at once as there are workers.
    fn start(&mut self) {
        while self.tasks.len() < self.config.workers {
            let Some(key) = self.queue.take(Instant::now()) else {
                break;
            };
            let reconciler = Arc::clone(&self.reconciler);
            self.metrics.looked_at.increment();
            self.tasks.spawn(async move {
                let looking = AssertUnwindSafe(reconciler.reconcile(&key)).catch_unwind();
                let outcome = looking.await;
                let panicked = || Err("it panicked; see the log".to_owned());
                let outcome = outcome.unwrap_or_else(|_| panicked());
                (key, outcome)
            });
        }
        self.metrics.waiting.set(self.queue.due.len() as i64);
    }

    fn ended(&mut self, key: String, outcome: &Result<Next, String>) {
        if let Err(error) = outcome {
            self.metrics.failed.increment();
            tracing::warn!(
                key,
                error,
                "an object is not as it is wanted, and is tried again"
            );
        }
        self.queue.ended(key, outcome, &self.config);
    }
}
