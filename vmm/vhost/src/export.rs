//! A device on a socket: who connects is served, one front end at a time.
//!
//! Between two front ends nothing is in progress. That is what makes a reconnect safe: what the new one
//! finds marked as in progress is not being done by anybody.

use std::fs::{File, TryLockError};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use engine::{SchedGroup, Task};
use futures_channel::mpsc::{UnboundedReceiver, unbounded};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use shards::block::BlockDevice;

use crate::cache::{Cache, Durability};
use crate::command::Refusal;
use crate::frontend::{Frontend, Terms};
use crate::queue::Polling;
use crate::session::{self, Event, Notice, Shard};
use crate::stats::{Counters, LatencyByKind, Stats};

/// Most rings of a device.
pub const QUEUES_MAX: u16 = 16;

/// Which side makes the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// We bind the socket, and front ends connect (QEMU's `chardev socket,path=P,reconnect=1`). A
    /// file beside the socket, with `.lock` at its end, keeps a second export away.
    Listen(PathBuf),
    /// The front end listens (`server=on`); we connect, again and again.
    Connect(PathBuf),
}

impl Endpoint {
    fn path(&self) -> &Path {
        match self {
            Endpoint::Listen(path) | Endpoint::Connect(path) => path,
        }
    }
}

/// How a device is exported.
#[derive(Clone, Debug)]
pub struct ExportConfig {
    /// Where.
    pub endpoint: Endpoint,
    /// Names the device in log lines.
    pub name: String,
    /// Rings offered, 1 to [`QUEUES_MAX`].
    pub queues: u16,
    /// In which group of the shard its requests run.
    pub group: SchedGroup,
    /// How rings are polled.
    pub polling: Polling,
    /// Most bytes of a guest's memory; a front end that shares more is refused. All of it is mapped, and
    /// the addresses are the process's, of which there are 128 TiB.
    pub guest_bytes_max: u64,
    /// What is known of the first front end's driver, as from [`Export::cache`] where it comes from. A
    /// new driver, and one whose marks of requests come with it, need no word.
    pub cache: Option<Cache>,
}

impl ExportConfig {
    /// One ring at a socket of our own, polled as by default, in the foreground; for guests of up to
    /// 4 TiB.
    pub fn listen(path: impl Into<PathBuf>, name: impl Into<String>) -> ExportConfig {
        ExportConfig {
            endpoint: Endpoint::Listen(path.into()),
            name: name.into(),
            queues: 1,
            group: SchedGroup::FOREGROUND,
            polling: Polling::default(),
            guest_bytes_max: 4 << 40,
            cache: None,
        }
    }
}

/// A device that is exported from this shard. Dropping it ends the export without waiting for what is
/// in progress; [`Export::stop`] waits.
pub struct Export {
    stop: Arc<Stop>,
    counters: Rc<Counters>,
    durability: Rc<Durability>,
    served: Option<Task<()>>,
}

impl Export {
    /// Exports a device. Called by a task of the shard that owns it.
    ///
    /// # Errors
    /// When the socket cannot be bound (`AddrInUse`: another export has it), the message thread not
    /// be started, or the number of rings is not allowed.
    pub fn start<D: BlockDevice>(device: Rc<D>, config: ExportConfig) -> io::Result<Export> {
        if !(1..=QUEUES_MAX).contains(&config.queues) {
            let what = format!("{} rings; 1 to {QUEUES_MAX} are allowed", config.queues);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        let source = Source::open(&config.endpoint)?;
        let stop = Arc::new(Stop::default());
        stop.watch(&source)?;
        let (events, inbox) = unbounded();
        let counters = Rc::new(Counters::default());
        let durability = Rc::new(Durability::new(config.cache));
        let terms = Terms {
            name: config.name.as_str().into(),
            queues: config.queues,
            group: config.group,
            polling: config.polling,
            guest_bytes_max: config.guest_bytes_max,
            counters: Rc::clone(&counters),
            durability: Rc::clone(&durability),
        };
        let notice = Notice::default();
        let thread = MessageThread {
            source,
            shard: Shard::new(events),
            queues: config.queues,
            stop: Arc::clone(&stop),
            notice: notice.clone(),
            name: config.name,
        };
        let group = config.group;
        let served = engine::try_spawn_local(group, serve(device, terms, inbox, notice));
        let served = served.map_err(|error| io::Error::other(error.to_string()))?;
        let started = std::thread::Builder::new().name("vhost-user".to_owned());
        started.spawn(move || thread.run())?;
        Ok(Export {
            stop,
            counters,
            durability,
            served: Some(served),
        })
    }

    /// What it has done so far.
    pub fn stats(&self) -> Stats {
        self.counters.read()
    }

    /// How long requests took.
    pub fn latencies(&self) -> LatencyByKind {
        self.counters.latencies.read()
    }

    /// Requests in progress, by ring.
    pub fn depths(&self) -> [u64; QUEUES_MAX as usize] {
        std::array::from_fn(|ring| self.counters.depths[ring].get())
    }

    /// What the driver that is served has chosen, as far as is known.
    pub fn cache(&self) -> Option<Cache> {
        self.durability.choice()
    }

    /// Ends the export: closes the connection and waits until nothing is in progress.
    pub async fn stop(mut self) {
        self.stop.stop();
        if let Some(served) = self.served.take() {
            served.await;
        }
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        self.stop.stop();
        if let Some(served) = self.served.take() {
            served.detach();
        }
    }
}

/// The shard's side: does what messages ask for, until the message thread has ended.
pub(crate) async fn serve<D: BlockDevice>(
    device: Rc<D>,
    terms: Terms,
    mut inbox: UnboundedReceiver<Event>,
    notice: Notice,
) {
    let watched = Rc::clone(&device);
    let group = terms.group;
    let _watch = engine::try_spawn_local(group, async move {
        loop {
            watched.changed().await;
            if let Err(error) = notice.changed() {
                tracing::warn!(%error, "a front end was not told of a change");
            }
        }
    });
    let mut frontend: Option<Frontend<D>> = None;
    while let Ok(event) = inbox.recv().await {
        match event {
            Event::Connected => frontend = Some(Frontend::new(Rc::clone(&device), &terms)),
            Event::Message(command, answer) => {
                let done = match &mut frontend {
                    Some(frontend) => frontend.handle(command).await,
                    None => Err(Refusal::Not("a front end that is gone")),
                };
                // The message thread waits for it, or is gone.
                let _ = answer.send(done);
            }
            Event::Gone(drained) => {
                if let Some(frontend) = frontend.take() {
                    frontend.leave().await;
                }
                let _ = drained.send(());
            }
        }
    }
    if let Some(frontend) = frontend.take() {
        frontend.leave().await;
    }
}

/// Connects without waiting: a front end that does not accept has a queue that is full some time.
fn connect(path: &Path) -> io::Result<UnixStream> {
    let addr = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &addr)?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Where connections come from.
enum Source {
    Listener {
        listener: UnixListener,
        path: PathBuf,
        /// Held as long as the socket is ours.
        _lock: File,
    },
    Connect(PathBuf),
}

impl Source {
    fn open(endpoint: &Endpoint) -> io::Result<Source> {
        let named = |error: io::Error| {
            let what = format!("{}: {error}", endpoint.path().display());
            io::Error::new(error.kind(), what)
        };
        match endpoint {
            Endpoint::Listen(path) => Source::listen(path).map_err(named),
            Endpoint::Connect(path) => Ok(Source::Connect(path.clone())),
        }
    }

    /// Binds the socket. One that a dead process left is in the way; the lock tells that it is dead.
    fn listen(path: &Path) -> io::Result<Source> {
        let mut beside = path.as_os_str().to_owned();
        beside.push(".lock");
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(beside)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let what = "another export has the socket";
                return Err(io::Error::new(io::ErrorKind::AddrInUse, what));
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        Ok(Source::Listener {
            listener: UnixListener::bind(path)?,
            path: path.to_owned(),
            _lock: lock,
        })
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        if let Source::Listener { path, .. } = self {
            // Failing leaves a socket that nobody listens at.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Between two tries to connect, at first and at most.
const RETRY_MIN: Duration = Duration::from_millis(20);
const RETRY_MAX: Duration = Duration::from_secs(1);

/// How the shard ends the message thread, wherever that waits.
#[derive(Default)]
struct Stop {
    state: Mutex<StopState>,
    stopped: Condvar,
}

#[derive(Default)]
struct StopState {
    stopped: bool,
    /// Sockets that the thread may be waiting at.
    listener: Option<UnixStream>,
    stream: Option<UnixStream>,
}

impl Stop {
    fn state(&self) -> std::sync::MutexGuard<'_, StopState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watch(&self, source: &Source) -> io::Result<()> {
        if let Source::Listener { listener, .. } = source {
            let socket = OwnedFd::from(listener.try_clone()?);
            self.state().listener = Some(UnixStream::from(socket));
        }
        Ok(())
    }

    fn stop(&self) {
        let mut state = self.state();
        state.stopped = true;
        for socket in [&state.listener, &state.stream].into_iter().flatten() {
            // It fails when the other side is gone: then nobody waits.
            let _ = socket.shutdown(std::net::Shutdown::Both);
        }
        self.stopped.notify_all();
    }

    fn is_stopped(&self) -> bool {
        self.state().stopped
    }

    /// Remembers a connection; false when it is too late for one.
    fn holds(&self, stream: &UnixStream) -> io::Result<bool> {
        let stream = stream.try_clone()?;
        let mut state = self.state();
        state.stream = Some(stream);
        Ok(!state.stopped)
    }

    fn release(&self) {
        self.state().stream = None;
    }

    /// Waits for a while, or until stopped.
    fn pause(&self, wait: Duration) {
        let state = self.state();
        let waited = self
            .stopped
            .wait_timeout_while(state, wait, |state| !state.stopped);
        drop(waited);
    }
}

/// The thread of [`session`].
struct MessageThread {
    source: Source,
    shard: Shard,
    queues: u16,
    stop: Arc<Stop>,
    notice: Notice,
    name: String,
}

impl MessageThread {
    fn run(self) {
        let mut retry = RETRY_MIN;
        while !self.stop.is_stopped() {
            match self.connection() {
                Ok(stream) => {
                    retry = RETRY_MIN;
                    self.serve(stream);
                }
                Err(error) => {
                    if self.stop.is_stopped() {
                        break;
                    }
                    // The other side is not there yet, or descriptors are used up.
                    tracing::debug!(device = %self.name, %error, "no connection");
                    self.stop.pause(retry);
                    retry = (retry * 2).min(RETRY_MAX);
                }
            }
        }
    }

    fn connection(&self) -> io::Result<UnixStream> {
        match &self.source {
            Source::Listener { listener, .. } => listener.accept().map(|(stream, _)| stream),
            Source::Connect(path) => connect(path),
        }
    }

    fn serve(&self, stream: UnixStream) {
        match self.stop.holds(&stream) {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                tracing::warn!(device = %self.name, %error, "a front end was turned away");
                return;
            }
        }
        tracing::info!(device = %self.name, "a front end has connected");
        match session::serve(&self.shard, stream, self.queues, &self.notice) {
            Ok(()) => tracing::info!(device = %self.name, "the front end has gone"),
            Err(error) => {
                tracing::warn!(device = %self.name, %error, "the front end was disconnected");
            }
        }
        self.stop.release();
    }
}
