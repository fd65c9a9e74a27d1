//! The S3 front of one shard: its listener, its connections, and the way from a request to the
//! partition that owns its object.
//!
//! Every shard listens on the same address and the kernel spreads the connections. A shard verifies
//! and decodes what arrives at it, whoever owns the object; only the store's part of a request runs
//! on the owner. Connections, buffers and turns are bounded, and what is full says SlowDown.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use engine::net::Listener;
use engine::sync::Notify;
use engine::{DmaBuf, SchedGroup, Task};
use s3_wire::request::ObjectPath;
use s3_wire::sigv4::Verifier;
use s3_wire::timestamp::{DateCache, HttpDateText};
use s3_wire::{S3Error, S3ErrorCode};
use shards::{Admission, AdmissionConfig, PartitionId, Router, TenantId, Turn, resource_hash};

use super::budget::{Budget, Memory};
use super::config::HttpConfig;
use super::hashing::Hashing;
use super::metrics::{Counters, HttpMetrics};
use super::{conn, errors};
use crate::buckets::Buckets;
use crate::store::{Groups, Partition, StoreError, StoreShard};

/// Wait after an accept that failed.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);
/// Connections beyond the limit that are being told so, at most.
const TURNED_AWAY_MAX: usize = 64;
/// Connections that may wait to be accepted by one shard.
pub(crate) const BACKLOG: u32 = 1024;

/// The S3 front of one shard.
pub(crate) struct Server {
    config: HttpConfig,
    pub(crate) store: Rc<StoreShard>,
    pub(crate) router: Router<StoreShard>,
    pub(crate) groups: Groups,
    pub(crate) buckets: Buckets,
    hashing: Rc<Hashing>,
    pub(crate) verifier: Verifier,
    admission: Admission,
    budget: Budget,
    dates: RefCell<DateCache>,
    pub(crate) metrics: Counters,
    turning_away: Cell<usize>,
    draining: Cell<bool>,
    drain: Notify,
    ended: Notify,
    accepting: RefCell<Option<Task<()>>>,
}

impl Server {
    pub(crate) fn new(
        config: HttpConfig,
        store: Rc<StoreShard>,
        router: Router<StoreShard>,
        groups: Groups,
    ) -> Rc<Server> {
        let limits = config.limits;
        let admission = AdmissionConfig {
            concurrent_max: limits.concurrent_max,
            queue_per_tenant_max: limits.queue_per_tenant_max,
            ..AdmissionConfig::default()
        };
        Rc::new(Server {
            verifier: Verifier::new(config.region_policy.clone())
                .with_version_2_urls(config.hosts.clone()),
            admission: Admission::new(admission),
            budget: Budget::new(limits.buffer_bytes_max, limits.connections_max),
            config,
            store,
            buckets: Buckets::new(router.clone(), groups),
            router,
            groups,
            hashing: Hashing::new(),
            dates: RefCell::default(),
            metrics: Counters::default(),
            turning_away: Cell::new(0),
            draining: Cell::new(false),
            drain: Notify::default(),
            ended: Notify::default(),
            accepting: RefCell::new(None),
        })
    }

    /// The hashing of this shard.
    pub(crate) fn hashing(&self) -> Rc<Hashing> {
        Rc::clone(&self.hashing)
    }

    pub(crate) fn config(&self) -> &HttpConfig {
        &self.config
    }

    /// Accepts from a listener until [`Server::drain`].
    pub(crate) fn accept_from(self: &Rc<Self>, listener: Listener) {
        let server = Rc::clone(self);
        let task = engine::spawn_local(SchedGroup::FOREGROUND, server.accept_all(listener));
        *self.accepting.borrow_mut() = Some(task);
    }

    async fn accept_all(self: Rc<Self>, mut listener: Listener) {
        let mut failures = 0_u64;
        loop {
            let stream = match listener.accept().await {
                Ok(stream) => stream,
                Err(error) => {
                    failures += 1;
                    if u64::is_power_of_two(failures) {
                        tracing::warn!(%error, failures, "a connection was not accepted");
                    }
                    engine::sleep(ACCEPT_RETRY).await;
                    continue;
                }
            };
            let counters = &self.metrics;
            counters.accepted.set(counters.accepted.get() + 1);
            if counters.connections.get() < self.config.limits.connections_max {
                let open = Open::new(&self);
                let task = async move { conn::serve(&open.server, stream).await };
                // A shard with its most tasks drops the connection, and with it the count.
                let _ = engine::try_spawn_local(SchedGroup::FOREGROUND, task).map(Task::detach);
                continue;
            }
            counters.turned_away.set(counters.turned_away.get() + 1);
            if self.turning_away.get() < TURNED_AWAY_MAX {
                self.turning_away.set(self.turning_away.get() + 1);
                let server = Rc::clone(&self);
                let task = async move {
                    conn::turn_away(&server, stream).await;
                    server.turning_away.set(server.turning_away.get() - 1);
                };
                if engine::try_spawn_local(SchedGroup::FOREGROUND, task)
                    .map(Task::detach)
                    .is_err()
                {
                    self.turning_away.set(self.turning_away.get() - 1);
                }
            }
        }
    }

    /// Stops accepting, lets idle connections go, and waits for the requests that run.
    pub(crate) async fn drain(&self) {
        self.stop_accepting();
        while self.metrics.connections.get() > 0 {
            self.ended.notified().await;
        }
    }

    /// Closes the listener and asks idle connections to end.
    pub(crate) fn stop_accepting(&self) {
        self.draining.set(true);
        self.accepting.borrow_mut().take();
        self.drain.notify_all();
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.get()
    }

    /// Ends when the server drains.
    pub(crate) async fn drain_asked(&self) {
        while !self.draining.get() {
            self.drain.notified().await;
        }
    }

    pub(crate) fn metrics(&self) -> HttpMetrics {
        self.metrics
            .copy(self.config.limits.buffer_bytes_max - self.budget.free())
    }

    pub(crate) fn http_date(&self) -> HttpDateText {
        *self.dates.borrow_mut().at(unix_s())
    }

    /// The partition that owns a key.
    pub(crate) fn partition_of(&self, path: &ObjectPath) -> PartitionId {
        let map = self
            .router
            .map()
            .expect("a map is installed before anything is served");
        let (bucket, key) = (path.bucket.as_str(), path.key.as_str());
        map.partition_of(resource_hash(&[bucket.as_bytes(), key.as_bytes()]))
    }

    /// Runs the store's part of a request on the owner of a partition.
    pub(crate) async fn on<R, F, Fut>(&self, partition: PartitionId, f: F) -> Result<R, StoreError>
    where
        R: Send + 'static,
        F: FnOnce(Rc<Partition>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<R, StoreError>> + 'static,
    {
        let call = self.router.call(
            partition,
            self.groups.objects,
            move |store, stamp| async move {
                let partition = store.partition(stamp.partition)?;
                f(partition).await
            },
        );
        call.await
            .unwrap_or_else(|error| Err(errors::of_route(error)))
    }

    /// A turn to work in the store.
    pub(crate) async fn turn(&self, tenant: TenantId, cost: u32) -> Result<Turn, S3Error> {
        self.admission.enter(tenant, cost).await.map_err(|_| {
            S3Error::new(
                S3ErrorCode::SlowDown,
                "Too many of your requests wait already; retry.",
            )
        })
    }

    /// A part of the memory for bodies, waiting for it among the tenant's requests.
    pub(crate) async fn budget(&self, tenant: TenantId, bytes: u64) -> Result<Memory, S3Error> {
        let wait = engine::timeout(
            self.config.limits.buffer_deadline,
            self.budget.acquire(tenant, bytes),
        );
        match wait.await {
            Some(Ok(memory)) => Ok(memory),
            Some(Err(_)) | None => Err(no_buffers()),
        }
    }

    /// A further share, when more than half of the memory is free without it.
    pub(crate) fn spare_budget(&self, tenant: TenantId, bytes: u64) -> Option<Memory> {
        let needed = self.config.limits.buffer_bytes_max / 2 + bytes;
        (self.budget.free() >= needed).then(|| self.budget.try_acquire(tenant, bytes))?
    }

    /// A buffer from this shard's pool, waiting for one for a while.
    pub(crate) async fn buffer(&self, len: usize) -> Result<DmaBuf, S3Error> {
        let deadline = engine::now() + self.config.limits.buffer_deadline;
        let taken = engine::take_buf_until(len, deadline).await;
        let mut buf = taken.map_err(|_| no_buffers())?;
        buf.set_len(0);
        Ok(buf)
    }
}

fn no_buffers() -> S3Error {
    S3Error::new(
        S3ErrorCode::SlowDown,
        "The server has no buffer left for the body; retry.",
    )
}

/// Seconds since 1970.
pub(crate) fn unix_s() -> i64 {
    (engine::wall_clock() / 1_000_000_000) as i64
}

/// Milliseconds since 1970.
pub(crate) fn unix_ms() -> u64 {
    engine::wall_clock() / 1_000_000
}

/// Counts a connection while it is open.
struct Open {
    server: Rc<Server>,
}

impl Open {
    fn new(server: &Rc<Server>) -> Open {
        let open = &server.metrics.connections;
        open.set(open.get() + 1);
        Open {
            server: Rc::clone(server),
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let open = &self.server.metrics.connections;
        open.set(open.get() - 1);
        self.server.ended.notify_all();
    }
}
