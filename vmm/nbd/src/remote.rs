//! A device of a shard that is an export of another host's: every request goes to its server.
//!
//! Nothing is kept here but requests that are not answered. Several devices over the same export therefore
//! see each other's writes as if they were one, which is what moves a guest between hosts.
//!
//! When the connection breaks, requests that were not answered are sent again on the next one, oldest first,
//! and callers wait as long as [`RemoteConfig::patience`]. That is safe because of two things that a server of
//! ours says (`nbd_wire::session`):
//! - Its *verifier*. Another one means that something that was acknowledged may be lost, as after the server's
//!   machine was restarted: a flush that succeeds then would be a lie. The device fails then, for ever.
//! - That an older connection of this device's has ended. A write of it that were still on its way could
//!   overtake one that was made later.
//!
//! A server that says neither is connected to again only while nothing is at stake: no change is on its way,
//! and all that was acknowledged is flushed.
//!
//! Invariants:
//! - A request has one outcome, within the patience and [`RemoteConfig::answer_max`] together.
//! - After a caller has gone, nothing is written to the memory that it gave, or sent from it.
//! - What a server sends is bounded by what it was asked for.

mod handshake;
mod known;
mod link;
mod table;

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use engine::net::Addr;
use engine::sync::SemaphorePermit;
use engine::{GuestIov, GuestList, GuestMem, SchedGroup, Task};
use futures_channel::oneshot;
use futures_util::future::join_all;
use nbd_wire::session::Token;
use nbd_wire::{Command, NbdError, Request, allocation, command_flag, transmission};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use shards::block::{BlockDevice, BlockError, EXTENTS_MAX, Extent, Geometry};

pub use known::Known;
use link::Shared;
use table::{Asked, Failure, Outcome};

/// Most bytes of a read or write that is sent as one.
const PIECE: u32 = 1 << 20;
/// Most bytes of a request without data: a multiple of all sizes of blocks.
const RANGE: u64 = 1 << 30;
/// Zeros for servers that have no request for them.
const ZEROS: u32 = 64 << 10;

/// How TLS is spoken.
#[derive(Clone, Debug)]
pub struct RemoteTls {
    /// Whom is trusted, and what is shown.
    pub config: Arc<ClientConfig>,
    /// What the server's certificate must be for.
    pub server_name: ServerName<'static>,
}

/// Which export, and how much is asked of it.
#[derive(Clone, Debug)]
pub struct RemoteConfig {
    /// Names the device in the log.
    pub name: String,
    /// Where its server listens.
    pub addr: Addr,
    /// The export's name.
    pub export: String,
    /// With TLS, nothing is said in the clear.
    pub tls: Option<RemoteTls>,
    /// The device's own, also over restarts of this process: a server of ours tells by it which connections
    /// are older ones of the same device.
    pub session: Token,
    /// Whether changes are refused here.
    pub read_only: bool,
    /// How long requests wait for a connection, and one that answers.
    pub patience: Duration,
    /// Longest to connect and choose the export.
    pub connect_max: Duration,
    /// Longest that an answer takes; then the connection is given up.
    pub answer_max: Duration,
    /// Requests in progress.
    pub requests_max: u64,
    /// Bytes of writes in progress, 1 MiB at least.
    pub bytes_max: u64,
    /// Requests that may wait for these.
    pub waiting_max: usize,
    /// In which group of the shard the connection is served.
    pub group: SchedGroup,
}

impl RemoteConfig {
    /// An export in the clear: 64 requests, 8 MiB, a minute of patience.
    pub fn new(addr: Addr, export: impl Into<String>, session: Token) -> RemoteConfig {
        RemoteConfig {
            name: addr.to_string(),
            addr,
            export: export.into(),
            tls: None,
            session,
            read_only: false,
            patience: Duration::from_mins(1),
            connect_max: Duration::from_secs(10),
            answer_max: Duration::from_secs(30),
            requests_max: 64,
            bytes_max: 8 << 20,
            waiting_max: 4096,
            group: SchedGroup::FOREGROUND,
        }
    }
}

/// A token of secret bytes.
///
/// # Errors
/// As the kernel says.
pub fn fresh_token() -> io::Result<Token> {
    let mut bytes = [0; 16];
    engine::fill_secret(&mut bytes)?;
    Ok(Token(u128::from_le_bytes(bytes)))
}

/// Why a device is not there.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody serves it now.
    #[error("{0}")]
    Absent(String),
    /// What is served is not what it was: a guest that was at work must not go on.
    #[error("{0}")]
    Lost(String),
}

/// How a device fares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// It is connected.
    Connected,
    /// It is not, and why not. Requests wait, or fail when that takes too long.
    Connecting(String),
    /// It serves no more, and why not.
    Lost(String),
}

/// What a device has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RemoteStats {
    /// Connections that were made.
    pub connections: u64,
    /// Requests that were sent again on another one.
    pub sent_again: u64,
}

/// See the module's head. Dropping it ends it; requests that are in progress fail.
pub struct RemoteDevice {
    shared: Rc<Shared>,
    _tasks: [Task<()>; 2],
}

impl RemoteDevice {
    /// Connects to an export: to any, or to the one that a device of a process that has ended was connected
    /// to, for a guest that is still at work.
    ///
    /// # Errors
    /// When it is not there, or not the one that is known.
    pub async fn connect(
        config: RemoteConfig,
        known: Option<&Known>,
    ) -> Result<RemoteDevice, ConnectError> {
        let lost = |why: &str| ConnectError::Lost(format!("NBD at {}: {why}", config.addr));
        let absent = |why: &dyn std::fmt::Display| {
            ConnectError::Absent(format!("NBD at {}: {why}", config.addr))
        };
        if known.is_some_and(|known| known.verifier.is_none()) {
            return Err(lost(
                "its server does not say whether it keeps what it has acknowledged",
            ));
        }
        let ready = handshake::connect(&config).await;
        let ready = ready.map_err(|error| absent(&error))?;
        if let Some(known) = known {
            known.is_still(&ready.known).map_err(lost)?;
        }
        let started = RemoteDevice::start(config.clone(), ready);
        started.map_err(|error| absent(&error))
    }

    fn start(config: RemoteConfig, ready: handshake::Ready) -> io::Result<RemoteDevice> {
        let group = config.group;
        let shared = Shared::new(config, ready.known);
        let busy = |error: engine::CallError| io::Error::other(error.to_string());
        let run = engine::try_spawn_local(group, Rc::clone(&shared).run(ready));
        let watch = engine::try_spawn_local(group, Rc::clone(&shared).watch());
        Ok(RemoteDevice {
            _tasks: [run.map_err(busy)?, watch.map_err(busy)?],
            shared,
        })
    }

    /// What is known of the export: what [`RemoteDevice::connect`] wants in a later process.
    pub fn known(&self) -> Known {
        self.shared.known.get()
    }

    /// How it fares.
    pub fn state(&self) -> LinkState {
        self.shared.state.borrow().clone()
    }

    /// What it has done.
    pub fn stats(&self) -> RemoteStats {
        RemoteStats {
            connections: self.shared.connections.get(),
            sent_again: self.shared.sent_again.get(),
        }
    }

    /// Ends it: requests in progress and later ones fail.
    pub fn give_up(&self, why: &str) {
        self.shared.lose(why);
    }

    fn has(&self, flag: u16) -> bool {
        self.shared.known.get().has(flag)
    }

    async fn permits(&self, bytes: u64) -> Result<[SemaphorePermit; 2], BlockError> {
        let slot = self.shared.requests.acquire(1).await;
        let bytes = self.shared.bytes.acquire(bytes).await;
        match (slot, bytes) {
            (Ok(slot), Ok(bytes)) => Ok([slot, bytes]),
            _ => Err(BlockError::Busy),
        }
    }

    /// Asks for one thing; `data` of a write, `into` of a read.
    async fn ask(
        &self,
        request: Request,
        from: Option<GuestList>,
        into: GuestList,
    ) -> Result<Vec<nbd_wire::Extent>, BlockError> {
        let shared = &self.shared;
        let bytes = from.as_ref().map_or(0, GuestList::len);
        let permits = self.permits(bytes.min(shared.config.bytes_max)).await?;
        let mut data = vec![0; bytes as usize];
        if let Some(from) = from {
            from.copy_out(0, &mut data)?;
        }
        if let Some(failure) = shared.refusal() {
            return Err(of_failure(failure));
        }
        let (done, outcome) = oneshot::channel::<Outcome>();
        shared.table.borrow_mut().add(Asked {
            request,
            data: data.into(),
            into,
            done,
            _permits: permits,
        });
        shared.asked.notify_all();
        match outcome.await {
            Ok(Ok(extents)) => Ok(extents),
            Ok(Err(failure)) => Err(of_failure(failure)),
            Err(_) => Err(of_failure(Failure::Gone("the device has ended".into()))),
        }
    }

    /// Reads or writes a range, in pieces that go together. All of them have ended when this returns.
    async fn transfer(
        &self,
        command: Command,
        offset: u64,
        list: &GuestList,
        flags: u16,
    ) -> Result<(), BlockError> {
        let most = u64::from(PIECE.min(self.shared.known.get().sizes.maximum));
        let piece = |at: u64| {
            let len = (list.len() - at).min(most);
            let request = Request {
                flags,
                command,
                cookie: 0,
                offset: offset + at,
                len: len as u32,
            };
            let part = list.slice(at..at + len);
            match command {
                Command::Read => self.ask(request, None, part),
                _ => self.ask(request, Some(part), GuestList::new()),
            }
        };
        if list.len() <= most {
            return piece(0).await.map(drop);
        }
        let pieces = (0..list.len()).step_by(most as usize).map(piece);
        let outcomes = join_all(pieces).await;
        outcomes
            .into_iter()
            .try_for_each(|outcome| outcome.map(drop))
    }

    /// Changes a range without data, part by part.
    async fn change(
        &self,
        command: Command,
        mut offset: u64,
        mut len: u64,
        flags: u16,
    ) -> Result<(), BlockError> {
        while len > 0 {
            let part = len.min(RANGE);
            let request = Request {
                flags,
                command,
                cookie: 0,
                offset,
                len: part as u32,
            };
            self.ask(request, None, GuestList::new()).await?;
            (offset, len) = (offset + part, len - part);
        }
        Ok(())
    }

    /// Zeros as data.
    async fn send_zeros(&self, mut offset: u64, mut len: u64) -> Result<(), BlockError> {
        let zeros = GuestMem::anonymous(ZEROS as usize)?;
        while len > 0 {
            let part = len.min(u64::from(ZEROS));
            let mut list = GuestList::new();
            let range = GuestIov {
                offset: 0,
                len: part as u32,
            };
            list.push(&zeros, range)?;
            self.transfer(Command::Write, offset, &list, 0).await?;
            (offset, len) = (offset + part, len - part);
        }
        Ok(())
    }

    /// The flag of changes that are to be durable; none when a flush has to follow.
    fn fua(&self, durable: bool) -> u16 {
        if durable && self.has(transmission::FUA) {
            return command_flag::FUA;
        }
        0
    }

    async fn flush_behind(&self, durable: bool) -> Result<(), BlockError> {
        if durable && !self.has(transmission::FUA) {
            return self.flush().await;
        }
        Ok(())
    }

    fn check(&self, offset: u64, len: u64, changes: bool) -> Result<(), BlockError> {
        self.geometry().check(offset, len, changes)
    }
}

fn of_failure(failure: Failure) -> BlockError {
    let failed = |what: String| BlockError::Io(io::Error::other(what));
    match failure {
        Failure::Refused(NbdError::NO_SPACE, _) => BlockError::Full,
        Failure::Refused(NbdError::PERMISSION, _) => BlockError::ReadOnly,
        Failure::Refused(NbdError::UNSUPPORTED, _) => BlockError::Unsupported,
        Failure::Refused(NbdError::NO_MEMORY, _) => BlockError::Busy,
        Failure::Refused(NbdError::SHUTDOWN, _) => BlockError::Fenced,
        Failure::Refused(error, message) if message.is_empty() => {
            failed(format!("the server says {error}"))
        }
        Failure::Refused(error, message) => failed(format!("the server says {error}: {message}")),
        Failure::Gone(why) => failed(why.to_string()),
        Failure::Memory => failed("the memory of a read is gone".to_owned()),
    }
}

impl BlockDevice for RemoteDevice {
    fn geometry(&self) -> Geometry {
        self.shared.geometry.get()
    }

    async fn read(&self, offset: u64, into: GuestList) -> Result<(), BlockError> {
        self.check(offset, into.len(), false)?;
        if into.is_empty() {
            return Ok(());
        }
        self.transfer(Command::Read, offset, &into, 0).await
    }

    async fn write(&self, offset: u64, from: GuestList, durable: bool) -> Result<(), BlockError> {
        self.check(offset, from.len(), true)?;
        if from.is_empty() {
            return Ok(());
        }
        let flags = self.fua(durable);
        self.transfer(Command::Write, offset, &from, flags).await?;
        self.flush_behind(durable).await
    }

    async fn flush(&self) -> Result<(), BlockError> {
        if let Some(failure) = self.shared.refusal() {
            return Err(of_failure(failure));
        }
        if !self.has(transmission::FLUSH) {
            return Ok(());
        }
        let request = Request {
            flags: 0,
            command: Command::Flush,
            cookie: 0,
            offset: 0,
            len: 0,
        };
        self.ask(request, None, GuestList::new()).await.map(drop)
    }

    async fn discard(&self, offset: u64, len: u64) -> Result<(), BlockError> {
        self.check(offset, len, true)?;
        if !self.has(transmission::TRIM) {
            return Err(BlockError::Unsupported);
        }
        self.change(Command::Trim, offset, len, 0).await
    }

    async fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        may_unmap: bool,
        durable: bool,
    ) -> Result<(), BlockError> {
        self.check(offset, len, true)?;
        if !self.has(transmission::WRITE_ZEROES) {
            self.send_zeros(offset, len).await?;
            return if durable { self.flush().await } else { Ok(()) };
        }
        let keeps = if may_unmap { 0 } else { command_flag::NO_HOLE };
        let flags = keeps | self.fua(durable);
        self.change(Command::WriteZeroes, offset, len, flags)
            .await?;
        self.flush_behind(durable).await
    }

    async fn extents(&self, offset: u64, len: u64) -> Result<Vec<Extent>, BlockError> {
        self.check(offset, len, false)?;
        if !self.shared.has_allocation.get() || len == 0 {
            let hole = false;
            return Ok(vec![Extent { bytes: len, hole }]);
        }
        let mut left = len.min(RANGE);
        let request = Request {
            flags: 0,
            command: Command::BlockStatus,
            cookie: 0,
            offset,
            len: left as u32,
        };
        let unit = u64::from(self.geometry().block_bytes);
        let found = self.ask(request, None, GuestList::new()).await?;
        let mut extents: Vec<Extent> = Vec::new();
        for extent in found.iter().take(EXTENTS_MAX) {
            // The last one may go on, and those of strangers may end inside of a block.
            let bytes = u64::from(extent.len).min(left);
            let bytes = bytes - bytes % unit;
            if bytes == 0 {
                break;
            }
            left -= bytes;
            let hole = extent.flags & allocation::ZERO != 0;
            extents.push(Extent { bytes, hole });
            if bytes != u64::from(extent.len) {
                break;
            }
        }
        if extents.is_empty() {
            let (bytes, hole) = (unit.min(len), false);
            extents.push(Extent { bytes, hole });
        }
        Ok(extents)
    }

    fn changed(&self) -> impl Future<Output = ()> {
        self.shared.changed.notified()
    }
}
