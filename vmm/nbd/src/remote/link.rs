//! The connection of a remote device, and the next one when it breaks.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use engine::Nanos;
use engine::sync::{Notify, Semaphore};
use futures_util::future::{Either, select};
use nbd_wire::session::NOTICE;
use nbd_wire::{CHUNK_BYTES, Chunk, ChunkKind, ReplyHead, SIMPLE_BYTES};
use shards::block::Geometry;

use super::handshake::{NoLink, Ready, connect};
use super::known::Known;
use super::table::{BODY_BYTES_MAX, Body, Failure, Table};
use super::{LinkState, RemoteConfig};
use crate::stats::add;
use crate::wire::{Reader, Wire};

/// Between two tries to connect, at first and at most.
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Between two looks at requests that are under way.
const LOOK_MAX: Duration = Duration::from_millis(250);

/// What a device and its connections share.
pub(super) struct Shared {
    pub(super) config: RemoteConfig,
    pub(super) known: Cell<Known>,
    pub(super) geometry: Cell<Geometry>,
    pub(super) state: RefCell<LinkState>,
    /// Whether there is a context of what is allocated.
    pub(super) has_allocation: Cell<bool>,
    pub(super) table: RefCell<Table>,
    pub(super) requests: Semaphore,
    pub(super) bytes: Semaphore,
    /// There is something to send.
    pub(super) asked: Notify,
    /// The device has another size.
    pub(super) changed: Notify,
    /// The connection is to break, or nothing goes on.
    breaks: Notify,
    /// Since when nothing is answered.
    silent: Cell<Option<Nanos>>,
    /// Whether requests are refused until there is a connection again.
    gave_up: Cell<bool>,
    pub(super) connections: Cell<u64>,
    pub(super) sent_again: Cell<u64>,
}

/// Why a connection is no more.
enum End {
    /// Another one may do.
    Broken(String),
    /// None will.
    Over(String),
}

impl From<NoLink> for End {
    fn from(error: NoLink) -> End {
        End::Broken(error.to_string())
    }
}

impl Shared {
    pub(super) fn new(config: RemoteConfig, known: Known) -> Rc<Shared> {
        let waiting = config.waiting_max;
        Rc::new(Shared {
            geometry: Cell::new(known.geometry(config.read_only)),
            known: Cell::new(known),
            state: RefCell::new(LinkState::Connecting("it has begun".to_owned())),
            has_allocation: Cell::new(false),
            table: RefCell::default(),
            requests: Semaphore::new(config.requests_max.max(1), waiting),
            bytes: Semaphore::new(config.bytes_max.max(1), waiting),
            asked: Notify::default(),
            changed: Notify::default(),
            breaks: Notify::default(),
            silent: Cell::new(None),
            gave_up: Cell::new(false),
            connections: Cell::new(0),
            sent_again: Cell::new(0),
            config,
        })
    }

    /// Why nothing can be asked, when that is so.
    pub(super) fn refusal(&self) -> Option<Failure> {
        match &*self.state.borrow() {
            LinkState::Lost(why) => Some(Failure::Gone(why.as_str().into())),
            LinkState::Connecting(why) if self.gave_up.get() => Some(Failure::Gone(gave_up(why))),
            _ => None,
        }
    }

    /// Nothing goes on, for ever.
    pub(super) fn lose(&self, why: &str) {
        if let LinkState::Lost(_) = &*self.state.borrow() {
            return;
        }
        let (name, addr) = (&*self.config.name, &self.config.addr);
        tracing::error!(device = name, %addr, why, "a remote device serves no more");
        self.state.replace(LinkState::Lost(why.to_owned()));
        self.table.borrow_mut().fail(&Failure::Gone(why.into()));
        self.breaks.notify_all();
    }

    fn is_lost(&self) -> bool {
        matches!(&*self.state.borrow(), LinkState::Lost(_))
    }

    fn take_known(&self, known: Known) {
        self.known.set(known);
        let (before, now) = (self.geometry.get(), known.geometry(self.config.read_only));
        // What guests were told of the device stays, but for its size.
        self.geometry.set(Geometry {
            bytes: now.bytes,
            ..before
        });
        if before.bytes != now.bytes {
            self.changed.notify_all();
        }
    }

    /// A connection is there.
    fn adopt(&self, ready: &Ready) {
        add(&self.connections, 1);
        self.take_known(ready.known);
        self.has_allocation.set(ready.allocation.is_some());
        self.gave_up.set(false);
        if self.table.borrow().is_empty() {
            self.silent.set(None);
        }
        self.state.replace(LinkState::Connected);
        let (name, addr) = (&*self.config.name, &self.config.addr);
        tracing::info!(device = name, %addr, "a remote device is connected");
    }

    /// A connection is no more, or did not come about.
    fn broke(&self, why: &str) {
        if self.is_lost() {
            return;
        }
        if self.silent.get().is_none() {
            self.silent.set(Some(engine::now()));
        }
        let again = self.table.borrow_mut().broken();
        self.sent_again.set(self.sent_again.get() + again as u64);
        let was = self.state.replace(LinkState::Connecting(why.to_owned()));
        if was == LinkState::Connected {
            let (name, addr) = (&*self.config.name, &self.config.addr);
            tracing::warn!(device = name, %addr, why, again, "a remote device has lost its connection");
        }
    }

    /// Looks after requests: none waits for ever.
    pub(super) async fn watch(self: Rc<Self>) {
        let config = &self.config;
        let look = config.patience.min(config.answer_max) / 4;
        let look = look.clamp(Duration::from_millis(1), LOOK_MAX);
        while !self.is_lost() {
            let asked = self.asked.notified();
            if self.table.borrow().is_empty() {
                asked.await;
            }
            engine::sleep(look).await;
            let now = engine::now();
            let oldest = self.table.borrow().oldest();
            if oldest.is_some_and(|sent| now.since(sent) >= config.answer_max) {
                self.silent.set(self.silent.get().or(oldest));
                self.breaks.notify_all();
            }
            let silent = self.silent.get();
            let over = silent.is_some_and(|since| now.since(since) >= config.patience);
            if !over || self.table.borrow().is_empty() {
                continue;
            }
            self.gave_up.set(true);
            let why = match &*self.state.borrow() {
                LinkState::Connecting(why) => gave_up(why),
                _ => gave_up("requests are not answered"),
            };
            let failed = self.table.borrow_mut().fail(&Failure::Gone(why));
            let (name, addr) = (&*config.name, &config.addr);
            tracing::error!(device = name, %addr, failed, "requests of a remote device have failed");
            // What is under way must end before anything else begins.
            self.breaks.notify_all();
        }
    }

    /// Serves requests over one connection after the other.
    pub(super) async fn run(self: Rc<Self>, first: Ready) {
        let mut first = Some(first);
        let mut pause = PAUSE_MIN;
        while !self.is_lost() {
            let ready = match first.take() {
                Some(ready) => Ok(ready),
                None => self.next_connection().await,
            };
            if self.is_lost() {
                return;
            }
            let end = match ready {
                Ok(ready) => {
                    pause = PAUSE_MIN;
                    self.adopt(&ready);
                    self.transmit(ready).await
                }
                Err(end) => end,
            };
            self.took_end(end);
            if !self.is_lost() {
                engine::sleep(pause).await;
            }
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    fn took_end(&self, end: End) {
        let settled = self.table.borrow().is_settled();
        let safe = self.known.get().verifier.is_some() || settled;
        match end {
            End::Over(why) => self.lose(&why),
            End::Broken(why) if safe => self.broke(&why),
            End::Broken(why) => self.lose(&format!(
                "the connection broke over changes that are not flushed ({why}), and its server does not say \
                 whether it keeps them"
            )),
        }
    }

    async fn next_connection(&self) -> Result<Ready, End> {
        let ready = connect(&self.config).await?;
        match self.known.get().is_still(&ready.known) {
            Ok(()) => Ok(ready),
            Err(why) => Err(End::Over(why.to_owned())),
        }
    }

    async fn transmit(&self, ready: Ready) -> End {
        let breaks = self.breaks.notified();
        let Ready {
            wire,
            mut reader,
            allocation,
            structured,
            ..
        } = ready;
        let sending = Box::pin(self.send_all(&wire));
        let receive = Receive {
            shared: self,
            allocation,
            structured,
        };
        let receiving = Box::pin(receive.all(&mut reader));
        let moving = select(sending, receiving);
        let end = match select(moving, Box::pin(breaks)).await {
            Either::Left((Either::Left((end, _)) | Either::Right((end, _)), _)) => end,
            Either::Right(_) => End::Broken("requests are not answered".to_owned()),
        };
        // TLS may be about to answer something.
        wire.end();
        end
    }

    async fn send_all(&self, wire: &Wire) -> End {
        let mut cookie = 0;
        loop {
            let asked = self.asked.notified();
            let next = self.table.borrow_mut().unsent(cookie, engine::now());
            let Some((heads, data, from)) = next else {
                asked.await;
                continue;
            };
            cookie = from;
            let sent = match wire.turn().await {
                Ok(turn) => turn.send_bytes(heads, data).await,
                broken => broken.map(drop),
            };
            if let Err(broken) = sent {
                return End::Broken(broken.to_string());
            }
            engine::yield_if_needed().await;
        }
    }
}

fn gave_up(why: &str) -> Arc<str> {
    format!("there is no connection: {why}").into()
}

/// The receiving side of a connection.
struct Receive<'a> {
    shared: &'a Shared,
    allocation: Option<u32>,
    structured: bool,
}

impl Receive<'_> {
    async fn all(&self, reader: &mut Reader) -> End {
        loop {
            match self.next(reader).await {
                Ok(None) => {}
                Ok(Some(end)) => return end,
                Err(error) => return error.into(),
            }
        }
    }

    /// Takes an answer; says when it was the last.
    async fn next(&self, reader: &mut Reader) -> Result<Option<End>, NoLink> {
        if !reader.wait().await? {
            let what = "it has ended the connection".to_owned();
            return Ok(Some(End::Broken(what)));
        }
        let first = reader.array::<4>().await?;
        let mut head = [0; CHUNK_BYTES];
        head[..4].copy_from_slice(&first);
        let len = if ReplyHead::begins_chunk(first)? {
            CHUNK_BYTES
        } else {
            SIMPLE_BYTES
        };
        reader.fill(&mut head[4..len]).await?;
        match ReplyHead::parse(&head[..len])? {
            ReplyHead::Simple { error, cookie } => {
                let body = self.table(|table| table.simple(cookie, error))?;
                if let Body::Data(at, len) = body {
                    self.data(reader, cookie, (at, len)).await?;
                    self.table(|table| table.data_ended(cookie, true))?;
                }
            }
            ReplyHead::Chunk(_) if !self.structured => {
                return Err(NoLink::Nonsense("a chunk where none was agreed on"));
            }
            ReplyHead::Chunk(head) => {
                if head.kind == ChunkKind::DATA {
                    self.data_chunk(reader, &head).await?;
                } else if let Some(end) = self.chunk(reader, &head).await? {
                    return Ok(Some(end));
                }
            }
        }
        // It is at work.
        self.shared.silent.set(None);
        let shut_down = self.shared.table.borrow().is_shut_down;
        let ours = self.shared.known.get().verifier.is_some();
        Ok((shut_down && ours).then(ended))
    }

    fn table<R>(
        &self,
        work: impl FnOnce(&mut Table) -> Result<R, &'static str>,
    ) -> Result<R, NoLink> {
        work(&mut self.shared.table.borrow_mut()).map_err(NoLink::Nonsense)
    }

    async fn data(
        &self,
        reader: &mut Reader,
        cookie: u64,
        (mut at, len): (u32, u32),
    ) -> Result<(), NoLink> {
        let shown = reader.show(len, |bytes| {
            self.shared.table.borrow_mut().put(cookie, at, bytes);
            at += bytes.len() as u32;
        });
        Ok(shown.await?)
    }

    async fn data_chunk(&self, reader: &mut Reader, head: &Chunk) -> Result<(), NoLink> {
        if head.len <= 8 {
            return Err(NoLink::Nonsense("data without bytes"));
        }
        let offset = u64::from_be_bytes(reader.array().await?);
        let body = self.table(|table| table.data(head, offset))?;
        if let Body::Data(at, len) = body {
            self.data(reader, head.cookie, (at, len)).await?;
        }
        self.table(|table| table.data_ended(head.cookie, head.done))
    }

    async fn chunk(&self, reader: &mut Reader, head: &Chunk) -> Result<Option<End>, NoLink> {
        if head.len > BODY_BYTES_MAX {
            return Err(NoLink::Nonsense("a chunk that is too long"));
        }
        let mut body = vec![0; head.len as usize];
        reader.fill(&mut body).await?;
        let ours = self.shared.known.get().verifier.is_some();
        if head.cookie != NOTICE || !ours {
            self.table(|table| table.chunk(head, &body, self.allocation))?;
            return Ok(None);
        }
        if head.kind.is_error() {
            return Ok(Some(ended()));
        }
        let bytes = <[u8; 8]>::try_from(body).map(u64::from_be_bytes);
        let (ChunkKind::SIZE, Ok(bytes)) = (head.kind, bytes) else {
            return Err(NoLink::Nonsense("a notice that says nothing"));
        };
        let known = Known {
            bytes,
            ..self.shared.known.get()
        };
        let known = known.checked().map_err(NoLink::Nonsense)?;
        self.shared.take_known(known);
        Ok(None)
    }
}

fn ended() -> End {
    End::Over("the export has ended: it was detached, or taken over".to_owned())
}
