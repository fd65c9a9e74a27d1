//! Requests of a connection: read in order, done together, answered as they are ready.
//!
//! A request holds one of the connection's slots until it is answered, and a part of its memory while data
//! is in it. Nobody waits for memory while it has the turn to send, so that those who hold memory can
//! always send it.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use engine::sync::{Semaphore, SemaphorePermit};
use engine::{SchedGroup, Task};
use futures_util::future::{Either, select};
use nbd_wire::session::NOTICE;
use nbd_wire::{
    Chunk, ChunkKind, Command, NbdError, PAYLOAD_BYTES_MAX, REQUEST_BYTES, Request, chunk,
    error_body, simple,
};
use shards::block::BlockDevice;

use crate::connection::Fault;
use crate::export::{Context, Entry, Open};
use crate::memory::{Memory, PIECE};
use crate::negotiation::Chosen;
use crate::stats::add;
use crate::wire::{Broken, Reader, Wire};

mod device;
mod reads;
mod status;

use device::Refusal;

/// Between two looks at requests that an export which ends waits for.
const LOOK: Duration = Duration::from_millis(50);
/// So many looks a client is given to take its answers.
const LOOKS_MAX: u32 = 40;

/// A connection that has begun.
pub(crate) struct Link<D: BlockDevice> {
    wire: Rc<Wire>,
    entry: Rc<Entry<D>>,
    open: Open<D>,
    structured: bool,
    contexts: Vec<(u32, Context)>,
    memory: Rc<Memory>,
    slots: Semaphore,
    slots_max: u64,
}

impl<D: BlockDevice> Link<D> {
    pub(crate) fn new(
        wire: Rc<Wire>,
        chosen: Chosen<D>,
        open: Open<D>,
        memory: Rc<Memory>,
        requests_max: usize,
    ) -> Link<D> {
        let slots_max = requests_max.max(1) as u64;
        Link {
            wire,
            entry: chosen.entry,
            open,
            structured: chosen.structured,
            contexts: chosen.contexts,
            memory,
            slots: Semaphore::new(slots_max, 2),
            slots_max,
        }
    }

    fn group(&self) -> SchedGroup {
        self.entry.export.group
    }

    /// Takes requests until the client disconnects, is broken, or the connection is to end.
    ///
    /// # Errors
    /// When the client is to blame, or the connection failed.
    pub(crate) async fn run(self: Rc<Self>, reader: &mut Reader) -> Result<(), Fault> {
        if self.open.is_ending() {
            return Ok(());
        }
        let ends = select(Box::pin(self.wire.broken()), Box::pin(self.open.ending()));
        let ends = select(ends, Box::pin(self.tell_sizes()));
        let requests = pin!(self.requests(reader));
        let ended = match select(requests, ends).await {
            Either::Left((Ok(()), _)) => return Ok(()),
            Either::Left((Err(fault), _)) => Err(fault),
            Either::Right((Either::Left((Either::Left(_), _)), _)) => Err(Broken.into()),
            Either::Right(_) => Ok(()),
        };
        // The reader may have been stopped in the middle of a receive.
        self.memory.close();
        ended
    }

    /// Tells a session when the device has another size, until the wire is broken.
    async fn tell_sizes(&self) {
        if !self.open.has_session() {
            return std::future::pending().await;
        }
        let mut told = self.device().geometry().bytes;
        loop {
            let changed = self.device().changed();
            let bytes = self.device().geometry().bytes;
            if bytes == told {
                changed.await;
                continue;
            }
            told = bytes;
            let notice = whole_chunk(ChunkKind::SIZE, NOTICE, true, &bytes.to_be_bytes());
            if self.wire.send(notice).await.is_err() {
                return;
            }
        }
    }

    /// Waits until every request has ended. When the connection is to end, it hurries what the device holds
    /// back, and does not wait for a client that does not take its answers.
    pub(crate) async fn drain(&self) {
        // Nobody else takes slots any more.
        let mut idle = pin!(self.slots.acquire(self.slots_max));
        let mut looks = 0;
        while engine::timeout(LOOK, idle.as_mut()).await.is_none() {
            if !self.open.is_ending() {
                continue;
            }
            self.entry.export.device.hurry();
            looks += 1;
            if looks == LOOKS_MAX {
                self.wire.end();
            }
        }
        if self.entry.is_gone() && self.open.has_session() {
            let body = error_body(NbdError::SHUTDOWN, "the export has ended", None);
            let last = self
                .wire
                .send(whole_chunk(ChunkKind::ERROR, NOTICE, true, &body));
            // A client that does not hear it finds nobody where it connects again.
            let _ = engine::timeout(LOOK * LOOKS_MAX, last).await;
        }
        self.wire.end();
    }

    async fn requests(self: &Rc<Self>, reader: &mut Reader) -> Result<(), Fault> {
        let stall_max = self.wire.stall_max();
        while reader.wait().await? {
            let bytes = engine::timeout(stall_max, reader.array::<REQUEST_BYTES>()).await;
            let request = Request::parse(&bytes.ok_or(Fault::Slow("send a request"))??)?;
            if request.command == Command::Disconnect {
                break;
            }
            add(&self.entry.counters.requests, 1);
            let slot = self.slots.acquire(1).await;
            let slot = slot.map_err(|_| busy("slots"))?;
            if request.command == Command::Write {
                self.write(reader, request, slot).await?;
                continue;
            }
            let link = Rc::clone(self);
            let work = async move {
                let _slot = slot;
                // A wire that is broken ends the connection.
                let _ = link.work(request).await;
            };
            self.spawn(work)?;
            engine::yield_if_needed().await;
        }
        Ok(())
    }

    fn spawn(&self, work: impl Future<Output = ()> + 'static) -> Result<(), Fault> {
        let spawned = engine::try_spawn_local(self.group(), work).map(Task::detach);
        spawned.map_err(|_| busy("tasks"))
    }

    /// Does any request but a write, and answers it.
    async fn work(&self, request: Request) -> Result<(), Broken> {
        if let Err(refusal) = self.check(&request) {
            return self.refuse(request.cookie, refusal).await;
        }
        match request.command {
            Command::Read => self.read(request).await,
            Command::BlockStatus => self.block_status(request).await,
            _ => {
                let done = self.change(request).await;
                self.answer(request.cookie, done).await
            }
        }
    }

    /// Receives a write's data piece by piece, and writes each as soon as it is here.
    async fn write(
        self: &Rc<Self>,
        reader: &mut Reader,
        request: Request,
        slot: SemaphorePermit,
    ) -> Result<(), Fault> {
        if request.len > PAYLOAD_BYTES_MAX {
            return Err(Fault::Refused("a write of more than 32 MiB"));
        }
        let stall_max = self.wire.stall_max();
        let refusal = self.check(&request).err();
        if refusal.is_some() || request.len == 0 {
            let skipped = engine::timeout(stall_max, reader.skip(request.len)).await;
            skipped.ok_or(Fault::Slow("send the data of a write"))??;
            let link = Rc::clone(self);
            let outcome = refusal.map_or(Ok(()), Err);
            return self.spawn(async move {
                let _slot = slot;
                let _ = link.answer(request.cookie, outcome).await;
            });
        }
        let write = Rc::new(Write {
            request,
            left: Cell::new(request.len.div_ceil(PIECE)),
            refusal: RefCell::default(),
            _slot: slot,
        });
        let mut at = 0;
        while at < request.len {
            let len = (request.len - at).min(PIECE);
            let lease = self.memory.lease(len).await?;
            let filled = engine::timeout(stall_max, reader.fill_memory(&lease, len)).await;
            filled.ok_or(Fault::Slow("send the data of a write"))??;
            let (link, write) = (Rc::clone(self), Rc::clone(&write));
            let offset = request.offset + u64::from(at);
            self.spawn(async move {
                let done = link.write_piece(&write.request, offset, &lease, len).await;
                drop(lease);
                if let Err(refusal) = done {
                    write.refusal.borrow_mut().get_or_insert(refusal);
                }
                write.left.set(write.left.get() - 1);
                if write.left.get() == 0 {
                    let refusal = write.refusal.borrow_mut().take();
                    let outcome = refusal.map_or(Ok(()), Err);
                    let _ = link.answer(write.request.cookie, outcome).await;
                }
            })?;
            at += len;
        }
        engine::yield_if_needed().await;
        Ok(())
    }

    async fn answer(&self, cookie: u64, outcome: Result<(), Refusal>) -> Result<(), Broken> {
        match outcome {
            Ok(()) => self.wire.send(simple(None, cookie).to_vec()).await,
            Err(refusal) => self.refuse(cookie, refusal).await,
        }
    }

    /// Answers with an error.
    async fn refuse(&self, cookie: u64, refusal: Refusal) -> Result<(), Broken> {
        add(&self.entry.counters.errors, 1);
        if refusal.is_the_devices() {
            let (export, error) = (self.entry.export.name.as_str(), &refusal.message);
            tracing::warn!(export, %error, "a request of an NBD client failed");
        }
        if !self.structured {
            let head = simple(Some(refusal.error), cookie);
            return self.wire.send(head.to_vec()).await;
        }
        let kind = match refusal.offset {
            Some(_) => ChunkKind::ERROR_OFFSET,
            None => ChunkKind::ERROR,
        };
        let body = error_body(refusal.error, &refusal.message, refusal.offset);
        self.wire.send(whole_chunk(kind, cookie, true, &body)).await
    }
}

/// A write whose pieces are on their way.
struct Write {
    request: Request,
    left: Cell<u32>,
    refusal: RefCell<Option<Refusal>>,
    _slot: SemaphorePermit,
}

fn busy(what: &str) -> Fault {
    let what = format!("the shard has no {what} left");
    Fault::Io(io::Error::new(io::ErrorKind::ResourceBusy, what))
}

/// A chunk with a short body.
fn whole_chunk(kind: ChunkKind, cookie: u64, done: bool, body: &[u8]) -> Vec<u8> {
    let head = Chunk {
        done,
        kind,
        cookie,
        len: body.len() as u32,
    };
    let mut out = chunk(&head).to_vec();
    out.extend(body);
    out
}

/// The errors of a request whose range or flags are wrong; by request, so that tests can try them all.
fn flags_of(command: Command) -> u16 {
    use nbd_wire::command_flag::{DF, FAST_ZERO, FUA, NO_HOLE, REQ_ONE};
    match command {
        // FUA is allowed everywhere, and means nothing where nothing changes.
        Command::Read => FUA | DF,
        Command::WriteZeroes => FUA | NO_HOLE | FAST_ZERO,
        Command::BlockStatus => FUA | REQ_ONE,
        _ => FUA,
    }
}

impl<D: BlockDevice> Link<D> {
    /// # Errors
    /// When the request cannot be done, and the device need not be asked.
    fn check(&self, request: &Request) -> Result<(), Refusal> {
        if request.flags & !flags_of(request.command) != 0 {
            return Err(Refusal::new(
                NbdError::INVALID,
                "a flag that it does not have",
            ));
        }
        let geometry = self.entry.export.device.geometry();
        let changes = match request.command {
            Command::Read | Command::BlockStatus => false,
            Command::Write | Command::WriteZeroes => true,
            Command::Trim if geometry.discard_granularity > 0 => true,
            Command::Flush if (request.offset, request.len) == (0, 0) => return Ok(()),
            Command::Flush => return Err(Refusal::new(NbdError::INVALID, "a flush of a range")),
            _ => return Err(Refusal::new(NbdError::INVALID, "there is no such command")),
        };
        if changes && self.entry.is_read_only() {
            return Err(Refusal::new(
                NbdError::PERMISSION,
                "the export is read-only",
            ));
        }
        if request.command == Command::Read && request.len > PAYLOAD_BYTES_MAX {
            return Err(Refusal::new(NbdError::INVALID, "more than 32 MiB at once"));
        }
        if request.command == Command::BlockStatus {
            let asked = self.structured && !self.contexts.is_empty() && request.len > 0;
            if !asked {
                return Err(Refusal::new(NbdError::INVALID, "no context was chosen"));
            }
        }
        let len = u64::from(request.len);
        let checked = geometry.check(request.offset, len, false);
        checked.map_err(|error| Refusal::of_range(request.command, &error))
    }
}
