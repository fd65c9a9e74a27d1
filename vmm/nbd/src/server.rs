//! A server on a shard: its socket, its exports, its connections.
//!
//! An export is served by the shard that owns its device, so each shard that exports something has a
//! server with a socket of its own.

use std::cell::Cell;
use std::error::Error;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use engine::net::{Addr, Listener, TcpStream};
use engine::sync::Notify;
use engine::{SchedGroup, Task};
use rustls::ServerConfig as TlsConfig;
use shards::block::BlockDevice;

use crate::connection::{Fault, Terms, serve};
use crate::export::{Entry, Export};
use crate::socket::{Listen, SocketFile};
use crate::stats::{Counters, Stats, add};

/// Wait after an accept that failed.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// Whether clients speak TLS (NBD's own STARTTLS; the configuration says who is let in).
#[derive(Clone, Debug)]
pub enum Tls {
    /// There is none.
    None,
    /// Clients may.
    Offered(Arc<TlsConfig>),
    /// Clients must, and are told nothing before.
    Required(Arc<TlsConfig>),
}

/// How much a server does at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Clients at once; others are disconnected.
    pub connections_max: usize,
    /// Memory of a connection for data, 2 MiB at least.
    pub memory_bytes: u64,
    /// Requests of a connection in progress.
    pub requests_max: usize,
    /// Longest from the connection to the choice of an export.
    pub handshake_max: Duration,
    /// Longest that a client may take to send or receive up to 1 MiB that it has begun.
    pub stall_max: Duration,
}

impl Default for Limits {
    /// 64 clients with 8 MiB and 128 requests each.
    fn default() -> Limits {
        Limits {
            connections_max: 64,
            memory_bytes: 8 << 20,
            requests_max: 128,
            handshake_max: Duration::from_secs(30),
            stall_max: Duration::from_mins(1),
        }
    }
}

/// How a server is run.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Where it listens.
    pub listen: Listen,
    /// Whether clients speak TLS.
    pub tls: Tls,
    /// How much it does at once.
    pub limits: Limits,
}

impl ServerConfig {
    /// In the clear, with the limits that are the default.
    pub fn new(listen: Listen) -> ServerConfig {
        ServerConfig {
            listen,
            tls: Tls::None,
            limits: Limits::default(),
        }
    }
}

/// An export of this name is there already, or its texts are too long.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no export can be called {0:?}: the name is taken, or the protocol cannot say it")]
pub struct NameTaken(pub String);

struct Shared<D: BlockDevice> {
    terms: Terms<D>,
    counters: Counters,
    open: Cell<usize>,
    closed: Notify,
}

impl<D: BlockDevice> Shared<D> {
    /// Asks all connections to end.
    fn end(&self, for_good: bool) {
        self.terms.stopped.set(true);
        self.terms.stop.notify_all();
        let exports = std::mem::take(&mut *self.terms.exports.borrow_mut());
        for entry in exports.values() {
            if for_good {
                entry.stop_for_good();
            } else {
                entry.stop();
            }
        }
    }
}

/// A server on this shard. Dropping it ends it without waiting for what is in progress;
/// [`Server::stop`] waits.
pub struct Server<D: BlockDevice> {
    shared: Rc<Shared<D>>,
    addr: Addr,
    /// Holds the listener.
    accepting: Cell<Option<Task<()>>>,
    file: Cell<Option<SocketFile>>,
}

impl<D: BlockDevice> Server<D> {
    /// Begins to listen, without an export. Called by a task of the shard that owns the devices.
    ///
    /// # Errors
    /// When the address cannot be bound; it is in the message.
    pub fn start(config: ServerConfig) -> io::Result<Server<D>> {
        let (listener, file) = config.listen.bind()?;
        let addr = listener.local_addr()?;
        let shared = Rc::new(Shared {
            terms: Terms {
                exports: Rc::default(),
                tls: config.tls,
                limits: config.limits,
                stopped: Cell::new(false),
                stop: Notify::default(),
            },
            counters: Counters::default(),
            open: Cell::new(0),
            closed: Notify::default(),
        });
        let accept = accept_all(Rc::clone(&shared), listener);
        let accepting = engine::try_spawn_own(SchedGroup::FOREGROUND, accept);
        let accepting = accepting.map_err(|error| io::Error::other(error.to_string()))?;
        Ok(Server {
            shared,
            addr,
            accepting: Cell::new(Some(accepting)),
            file: Cell::new(file),
        })
    }

    /// Where it listens; with the port that was free.
    pub fn addr(&self) -> &Addr {
        &self.addr
    }

    /// Adds an export; clients may connect to it at once.
    ///
    /// # Errors
    /// When one of that name is there.
    pub fn add(&self, export: Export<D>) -> Result<(), NameTaken> {
        let name = export.name.clone();
        let mut exports = self.shared.terms.exports.borrow_mut();
        if exports.contains_key(&name) || !export.is_sayable() {
            return Err(NameTaken(name));
        }
        exports.insert(name, Entry::new(export));
        Ok(())
    }

    /// Removes an export: its connections end, and when this returns nothing of it is in progress and
    /// its device is not used any more. False when there was none. Cancel-safe: called again it goes on
    /// waiting, and until it has returned the name is taken, and no client gets the export.
    pub async fn remove(&self, name: &str) -> bool {
        let exports = &self.shared.terms.exports;
        let Some(entry) = exports.borrow().get(name).cloned() else {
            return false;
        };
        entry.stop_for_good();
        entry.closed().await;
        let ours = |there: &Rc<Entry<D>>| Rc::ptr_eq(there, &entry);
        let mut exports = exports.borrow_mut();
        if exports.get(name).is_some_and(ours) {
            exports.remove(name);
        }
        true
    }

    /// What an export has done.
    pub fn export_stats(&self, name: &str) -> Option<Stats> {
        let exports = self.shared.terms.exports.borrow();
        exports.get(name).map(|entry| entry.counters.read())
    }

    /// What the server has done: clients that connected, that were turned away, and that were
    /// disconnected before they chose an export. What came after that is in [`Server::export_stats`].
    pub fn stats(&self) -> Stats {
        self.shared.counters.read()
    }

    /// Ends the server: closes the listener and all connections, waits until nothing is in progress, and
    /// removes a socket of the file system. Cancel-safe: called again it goes on waiting.
    pub async fn stop(&self) {
        self.end(false).await;
    }

    /// As [`Server::stop`], for exports that do not come again: clients with a
    /// [session](nbd_wire::session) are told.
    pub async fn stop_for_good(&self) {
        self.end(true).await;
    }

    async fn end(&self, for_good: bool) {
        drop(self.accepting.take());
        self.shared.end(for_good);
        while self.shared.open.get() > 0 {
            self.shared.closed.notified().await;
        }
        drop(self.file.take());
    }
}

impl<D: BlockDevice> Drop for Server<D> {
    fn drop(&mut self) {
        self.shared.end(false);
    }
}

/// Counts a connection while it is open.
struct Open<D: BlockDevice>(Rc<Shared<D>>);

impl<D: BlockDevice> Drop for Open<D> {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
        self.0.closed.notify_all();
    }
}

async fn accept_all<D: BlockDevice>(shared: Rc<Shared<D>>, mut listener: Listener) {
    let mut failures = 0_u64;
    loop {
        let stream = match listener.accept().await {
            Ok(stream) => stream,
            Err(error) => {
                failures += 1;
                if failures.is_power_of_two() {
                    tracing::warn!(%error, failures, "an NBD client was not accepted");
                }
                engine::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let counters = &shared.counters;
        if shared.open.get() >= shared.terms.limits.connections_max {
            add(&counters.turned_away, 1);
            let count = counters.turned_away.get();
            if count.is_power_of_two() {
                tracing::warn!(count, "there are too many NBD clients");
            }
            continue;
        }
        add(&counters.connections, 1);
        shared.open.set(shared.open.get() + 1);
        let open = Open(Rc::clone(&shared));
        let task = async move { connection(&open.0, stream).await };
        // A shard with its most tasks drops the connection, and with it the count.
        let _ = engine::try_spawn_own(SchedGroup::FOREGROUND, task).map(Task::detach);
    }
}

async fn connection<D: BlockDevice>(shared: &Shared<D>, stream: TcpStream) {
    let Err((entry, fault)) = serve(&shared.terms, stream).await else {
        return;
    };
    let entry = entry.as_ref();
    let counters = entry.map_or(&shared.counters, |entry| &entry.counters);
    let export = entry.map_or("", |entry| entry.export.name.as_str());
    if let Fault::Io(error) = &fault
        && error.kind() == io::ErrorKind::ConnectionReset
    {
        tracing::debug!(export, "an NBD client went without a word");
        return;
    }
    add(&counters.refusals, 1);
    let source = fault.source().map(ToString::to_string);
    let source = source.as_deref().unwrap_or_default();
    tracing::warn!(export, error = %fault, source, "an NBD client was disconnected");
}
