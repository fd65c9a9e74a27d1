//! An engine: shards on threads of their own, and the handle by which other threads call them.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_queue::ArrayQueue;
use futures_channel::oneshot;

use crate::affinity;
use crate::backend::uring::UringBackend;
use crate::buf::Pool;
use crate::config::{EngineConfig, SpinPolicy, ValidConfig};
use crate::endpoint::{self, Endpoint};
use crate::error::{CallError, Error, ErrorKind};
use crate::flows::Flow;
use crate::mailbox::SpscRing;
use crate::metrics::ShardMetrics;
use crate::sched::SchedGroup;
use crate::shard::{Shard, ShardCore, ShardId, ShardParts};
use crate::task::TaskInfo;
use crate::time::Nanos;

/// A future that stays on its shard.
pub type LocalFut<R> = Pin<Box<dyn Future<Output = R>>>;

/// A call on its way to a shard.
pub(crate) type Message = Box<dyn FnOnce(&std::rc::Rc<ShardCore>) + Send>;

/// Most messages taken from one sender before other work is looked at.
const MAIL_BATCH: usize = 128;

/// The mailboxes of an engine: one ring for each ordered pair of shards, one queue a shard for all
/// other threads.
pub(crate) struct Mesh {
    shards: usize,
    rings: Box<[SpscRing<Message>]>,
    foreign: Box<[ArrayQueue<Message>]>,
    endpoints: Box<[&'static Endpoint]>,
    /// Set once: no new call is taken, shards end when their work has drained.
    stopping: AtomicBool,
    /// Shards that take no more mail.
    ended: Box<[AtomicBool]>,
    /// Values placed on every shard so far.
    sharded: AtomicUsize,
}

impl Mesh {
    /// # Errors
    /// When the process holds its most shards.
    pub(crate) fn new(shards: usize, mailbox: usize) -> Result<Arc<Mesh>, Error> {
        let mut endpoints = Vec::with_capacity(shards);
        for _ in 0..shards {
            let Some(endpoint) = endpoint::acquire() else {
                endpoints.into_iter().for_each(endpoint::release);
                return Err(Error::new(
                    ErrorKind::Exhausted,
                    "the process holds its most shards, 4096",
                ));
            };
            endpoints.push(endpoint);
        }
        Ok(Arc::new(Mesh {
            shards,
            rings: (0..shards * shards)
                .map(|_| SpscRing::new(mailbox))
                .collect(),
            foreign: (0..shards).map(|_| ArrayQueue::new(mailbox)).collect(),
            endpoints: endpoints.into(),
            stopping: AtomicBool::new(false),
            ended: (0..shards).map(|_| AtomicBool::new(false)).collect(),
            sharded: AtomicUsize::new(0),
        }))
    }

    pub(crate) fn shards(&self) -> usize {
        self.shards
    }

    /// A place for one more value on every shard.
    pub(crate) fn reserve_sharded(&self) -> usize {
        self.sharded.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn endpoint(&self, shard: ShardId) -> &'static Endpoint {
        self.endpoints[shard.index()]
    }

    /// Sends from one shard to another. The caller is `from` itself.
    pub(crate) fn send(
        &self,
        from: &ShardCore,
        to: ShardId,
        message: Message,
    ) -> Result<(), CallError> {
        if to.index() >= self.shards || self.is_stopping() {
            return Err(CallError::Gone);
        }
        let ring = &self.rings[from.id().index() * self.shards + to.index()];
        // SAFETY: only shard `from` sends on this ring, and a ShardCore never leaves its thread.
        unsafe { ring.push(message) }.map_err(|_| CallError::Busy)?;
        self.endpoints[to.index()].notify();
        Ok(())
    }

    /// Sends from any thread.
    pub(crate) fn send_foreign(&self, to: ShardId, message: Message) -> Result<(), CallError> {
        if to.index() >= self.shards || self.is_stopping() {
            return Err(CallError::Gone);
        }
        self.foreign[to.index()]
            .push(message)
            .map_err(|_| CallError::Busy)?;
        self.endpoints[to.index()].notify();
        // The shard may have ended between the look above and the push: then nobody else takes the
        // message, and its caller must not wait for ever.
        if self.is_stopping() && self.ended[to.index()].load(Ordering::SeqCst) {
            self.discard_foreign(to);
        }
        Ok(())
    }

    /// Takes up to a batch from each sender; how many were taken.
    pub(crate) fn receive(&self, shard: ShardId, mut each: impl FnMut(Message)) -> usize {
        let mut taken = 0;
        for from in 0..self.shards {
            let ring = &self.rings[from * self.shards + shard.index()];
            for _ in 0..MAIL_BATCH {
                // SAFETY: only shard `shard` receives from this ring; it calls this itself.
                let Some(message) = (unsafe { ring.pop() }) else {
                    break;
                };
                each(message);
                taken += 1;
            }
        }
        for _ in 0..MAIL_BATCH {
            let Some(message) = self.foreign[shard.index()].pop() else {
                break;
            };
            each(message);
            taken += 1;
        }
        taken
    }

    pub(crate) fn has_mail(&self, shard: ShardId) -> bool {
        !self.foreign[shard.index()].is_empty()
            || (0..self.shards)
                .any(|from| self.rings[from * self.shards + shard.index()].has_messages())
    }

    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        for endpoint in &self.endpoints {
            endpoint.notify();
        }
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// Drops all mail of a shard that has ended; its callers see the shard as gone.
    pub(crate) fn discard(&self, shard: ShardId) {
        self.ended[shard.index()].store(true, Ordering::SeqCst);
        while self.receive(shard, drop) > 0 {}
    }

    fn discard_foreign(&self, shard: ShardId) {
        while let Some(message) = self.foreign[shard.index()].pop() {
            drop(message);
        }
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        for endpoint in &self.endpoints {
            endpoint::release(endpoint);
        }
    }
}

/// What the kernel granted, shard by shard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Buffer pools are registered with the ring; false when RLIMIT_MEMLOCK is too low.
    pub registered_buffers: bool,
    /// Files are registered with the ring.
    pub registered_files: bool,
    /// Receive rings exist.
    pub buffer_ring: bool,
    /// Every shard is pinned to its CPU.
    pub pinned: bool,
    /// What was asked for and not granted, in words.
    pub missing: Vec<String>,
}

/// Shards on their own threads. Dropping it shuts down as [`Engine::shutdown`] does.
pub struct Engine {
    handle: EngineHandle,
    threads: Vec<JoinHandle<Result<(), Error>>>,
    capabilities: Capabilities,
}

impl Engine {
    /// Starts one thread a shard. On return all shards run.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for bad values, [`ErrorKind::NoUring`] naming the sysctl or the
    /// seccomp filter when the kernel refuses io_uring.
    pub fn start(config: EngineConfig) -> Result<Engine, Error> {
        let config = config.validate()?;
        let mesh = Mesh::new(config.shards(), config.raw().mailbox)?;
        let handle = EngineHandle {
            mesh: Arc::clone(&mesh),
        };
        let mut engine = Engine {
            handle,
            threads: Vec::new(),
            capabilities: Capabilities::default(),
        };
        let mut granted = Vec::new();
        for index in 0..config.shards() {
            let (ready, is_ready) = std::sync::mpsc::sync_channel(1);
            let (config, mesh) = (config.clone(), Arc::clone(&mesh));
            let id = ShardId(index as u16);
            let thread = std::thread::Builder::new()
                .name(format!("shard-{index}"))
                .spawn(move || shard_thread(id, &config, &mesh, &ready))
                .map_err(|e| Error::with(ErrorKind::Exhausted, "no thread for a shard", e))?;
            engine.threads.push(thread);
            match is_ready.recv() {
                Ok(capabilities) => granted.push(capabilities),
                // The thread ended before it was ready: its error says why.
                Err(_) => return Err(engine.join().err().unwrap_or_else(|| gone(id))),
            }
        }
        engine.capabilities = merge(granted);
        Ok(engine)
    }

    /// What the kernel granted.
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// The handle for other threads.
    pub fn handle(&self) -> EngineHandle {
        self.handle.clone()
    }

    /// Stops taking calls, cancels all tasks, waits for every operation in flight, and joins the
    /// threads.
    ///
    /// # Errors
    /// [`ErrorKind::ShardFailed`] when a shard ended by a panic or a broken ring.
    pub fn shutdown(mut self) -> Result<(), Error> {
        self.join()
    }

    fn join(&mut self) -> Result<(), Error> {
        self.handle.mesh.stop();
        let mut result = Ok(());
        for (index, thread) in self.threads.drain(..).enumerate() {
            let ended = thread.join().unwrap_or_else(|_| {
                Err(Error::new(
                    ErrorKind::ShardFailed,
                    format!("shard {index} panicked"),
                ))
            });
            if result.is_ok() {
                result = ended;
            }
        }
        result
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Err(error) = self.join() {
            tracing::error!(%error, "the engine ended with an error");
        }
    }
}

fn gone(id: ShardId) -> Error {
    Error::new(
        ErrorKind::ShardFailed,
        format!("shard {} ended while it started", id.0),
    )
}

fn merge(granted: Vec<Capabilities>) -> Capabilities {
    let mut all = Capabilities {
        registered_buffers: true,
        registered_files: true,
        buffer_ring: true,
        pinned: true,
        missing: Vec::new(),
    };
    for one in granted {
        all.registered_buffers &= one.registered_buffers;
        all.registered_files &= one.registered_files;
        all.buffer_ring &= one.buffer_ring;
        all.pinned &= one.pinned;
        for missing in one.missing {
            if !all.missing.contains(&missing) {
                all.missing.push(missing);
            }
        }
    }
    all
}

fn shard_thread(
    id: ShardId,
    config: &ValidConfig,
    mesh: &Arc<Mesh>,
    ready: &std::sync::mpsc::SyncSender<Capabilities>,
) -> Result<(), Error> {
    let raw = config.raw();
    let endpoint = mesh.endpoint(id);
    let mut capabilities = Capabilities::default();
    let affinity = match raw.cpus[id.index()].map(affinity::pin) {
        Some(Ok(set)) => Some(set),
        Some(Err(error)) => {
            capabilities
                .missing
                .push(format!("pinning of shard {}: {error}", id.0));
            None
        }
        None => None,
    };
    capabilities.pinned = affinity.is_some();
    let mut backend = UringBackend::new(raw, endpoint, affinity.as_ref(), &mut capabilities)?;
    let pool = Pool::new(raw.pool_bytes, u32::from(endpoint.number), |base, len| {
        backend.register_pool(base, len, &mut capabilities)
    })
    .map_err(|e| {
        Error::with(
            ErrorKind::Exhausted,
            "no memory for a shard's buffer pool",
            e,
        )
    })?;
    let seed = raw.seed.wrapping_add(u64::from(id.0));
    let core = ShardCore::new(ShardParts {
        id,
        config: config.clone(),
        endpoint,
        mesh: Arc::clone(mesh),
        backend: Box::new(backend),
        pool,
        seed,
    });
    // The receiver waits for this message or for the thread's end; it cannot be gone.
    let _ = ready.send(capabilities);
    let ended = match catch_unwind(AssertUnwindSafe(|| run(&core, mesh, raw.spin))) {
        Ok(ran) => ran.and_then(|()| drain(&core)).map_err(|source| {
            let context = format!("the ring of shard {} is broken", id.0);
            Error::with(ErrorKind::ShardFailed, context, source)
        }),
        Err(_panic) => Err(Error::new(
            ErrorKind::ShardFailed,
            format!("shard {} panicked", id.0),
        )),
    };
    if ended.is_err() {
        abandon(core, mesh);
    }
    mesh.discard(id);
    ended
}

/// A shard that cannot drain: the engine stops, callers see it gone, and whatever the kernel may
/// still write to is leaked.
fn abandon(core: std::rc::Rc<ShardCore>, mesh: &Mesh) {
    mesh.stop();
    // Tasks hold the answers that callers wait for. A second panic changes nothing for them.
    let _ = catch_unwind(AssertUnwindSafe(|| core.teardown()));
    std::mem::forget(core);
}

fn run(core: &std::rc::Rc<ShardCore>, mesh: &Mesh, spin: SpinPolicy) -> std::io::Result<()> {
    let mut spinning_since: Option<Nanos> = None;
    while !mesh.is_stopping() {
        if core.tick() {
            spinning_since = None;
        }
        if core.is_runnable() {
            core.enter(false)?;
            continue;
        }
        // Nothing can run: what the tick has queued is handed over by the call that also waits.
        let budget = match spin {
            SpinPolicy::Always(budget) => budget,
            SpinPolicy::Adaptive(budget) if core.expects_mail(budget) => budget,
            SpinPolicy::Park | SpinPolicy::Adaptive(_) => Duration::ZERO,
        };
        let now = core.now();
        let since = *spinning_since.get_or_insert(now);
        if now - since < budget && core.next_deadline().is_none_or(|at| now < at) {
            core.enter(false)?;
            std::hint::spin_loop();
        } else {
            spinning_since = None;
            core.enter(true)?;
        }
    }
    Ok(())
}

/// Drops all tasks and waits for the last completion of every operation.
fn drain(core: &std::rc::Rc<ShardCore>) -> std::io::Result<()> {
    core.teardown();
    while core.in_flight() > 0 {
        core.tick();
        core.teardown();
        if core.in_flight() > 0 {
            core.enter(true)?;
        }
    }
    Ok(())
}

/// Wakes a parked thread.
struct Unpark(std::thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Calls shards from any thread. Cheap to clone.
#[derive(Clone)]
pub struct EngineHandle {
    pub(crate) mesh: Arc<Mesh>,
}

impl EngineHandle {
    /// Number of shards.
    pub fn shards(&self) -> usize {
        self.mesh.shards()
    }

    /// All shards' numbers.
    pub fn shard_ids(&self) -> impl Iterator<Item = ShardId> + use<> {
        (0..self.shards() as u16).map(ShardId)
    }

    /// Runs `f` on a shard and awaits its answer. Dropping the future does not stop the call.
    ///
    /// # Errors
    /// [`CallError::Busy`] when the shard's mailbox is full or it holds its most tasks,
    /// [`CallError::Gone`] when it ended.
    pub async fn call<R, F>(&self, shard: ShardId, f: F) -> Result<R, CallError>
    where
        R: Send + 'static,
        F: FnOnce(&Shard) -> LocalFut<R> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let message: Message = Box::new(move |core| {
            let shard = Shard::new(core);
            let info = TaskInfo {
                group: SchedGroup::FOREGROUND,
                level: 0,
                flow: Flow::OWN,
            };
            if !core.has_room() {
                let _ = answer.send(Err(CallError::Busy));
                return;
            }
            let body = async move {
                // The caller may have gone; its call still ran.
                let _ = answer.send(Ok(f(&shard).await));
            };
            if let Ok(task) = core.try_spawn(info, body) {
                task.detach();
            }
        });
        self.mesh.send_foreign(shard, message)?;
        answered.await.map_err(|_| CallError::Gone)?
    }

    /// [`EngineHandle::call`] for threads without an executor: the thread sleeps until the answer.
    ///
    /// # Errors
    /// As [`EngineHandle::call`].
    pub fn call_blocking<R, F>(&self, shard: ShardId, f: F) -> Result<R, CallError>
    where
        R: Send + 'static,
        F: FnOnce(&Shard) -> LocalFut<R> + Send + 'static,
    {
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        let mut answer = pin!(self.call(shard, f));
        loop {
            match answer.as_mut().poll(&mut Context::from_waker(&waker)) {
                Poll::Ready(answer) => return answer,
                Poll::Pending => std::thread::park(),
            }
        }
    }

    /// Metrics of all shards; a shard that is gone or too busy to answer is missing.
    pub async fn metrics(&self) -> Vec<ShardMetrics> {
        let mut all = Vec::with_capacity(self.shards());
        for id in self.shard_ids() {
            let call = self.call(id, |shard| {
                let metrics = shard.metrics();
                Box::pin(async move { metrics })
            });
            all.extend(call.await);
        }
        all
    }

    /// Asks all shards to end. [`Engine::shutdown`] waits for it.
    pub fn stop(&self) {
        self.mesh.stop();
    }
}
