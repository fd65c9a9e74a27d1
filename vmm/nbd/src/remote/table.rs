//! Requests until they are answered, in the order in which they were made. No I/O.
//!
//! A request is sent on each connection until one of them answers it; `unsent` begins again with the
//! oldest. One whose caller has gone is not sent again, and nothing of its answer is kept.

use std::collections::BTreeMap;
use std::sync::Arc;

use engine::sync::SemaphorePermit;
use engine::{GuestList, Nanos};
use futures_channel::oneshot;
use nbd_wire::{Chunk, ChunkKind, Command, Extent, NbdError, Request, command_flag};
use nbd_wire::{parse_block_status, parse_error_body};

/// Longest body of a chunk that is not data.
pub(super) const BODY_BYTES_MAX: u32 = 64 << 10;
/// Requests without data that are sent together.
const TOGETHER_MAX: usize = 32;

/// Why a request has no result.
#[derive(Clone, Debug)]
pub(super) enum Failure {
    /// The server said so.
    Refused(NbdError, String),
    /// There is no server, or none to go on with.
    Gone(Arc<str>),
    /// The guest's memory could not be written.
    Memory,
}

/// The extents of a block status; nothing of others.
pub(super) type Outcome = Result<Vec<Extent>, Failure>;

/// What came that nobody can go on behind.
pub(super) type Nonsense = &'static str;

/// A request that is to be sent.
pub(super) struct Asked {
    pub(super) request: Request,
    /// Of a write.
    pub(super) data: Arc<[u8]>,
    /// Where a read goes.
    pub(super) into: GuestList,
    pub(super) done: oneshot::Sender<Outcome>,
    pub(super) _permits: [SemaphorePermit; 2],
}

struct Entry {
    asked: Asked,
    sent: Option<Nanos>,
    /// What came of a read: where each part begins and ends.
    parts: Vec<(u32, u32)>,
    extents: Option<Vec<Extent>>,
    failure: Option<Failure>,
    /// Of a flush: how many changes had been acknowledged before it.
    covers: u64,
}

impl Entry {
    fn changes(&self) -> bool {
        let command = self.asked.request.command;
        !matches!(
            command,
            Command::Read | Command::BlockStatus | Command::Flush
        )
    }

    /// Whether the parts of a read are all of it, each byte once.
    fn is_whole(&mut self) -> bool {
        self.parts.sort_unstable();
        let mut at = 0;
        for (from, to) in &self.parts {
            if *from != at {
                return false;
            }
            at = *to;
        }
        at == self.asked.request.len
    }
}

/// What follows the head of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Body {
    /// Nothing.
    None,
    /// Bytes of a read, from this one of it on; then [`Table::data_ended`].
    Data(u32, u32),
}

/// See the module's head.
#[derive(Default)]
pub(super) struct Table {
    entries: BTreeMap<u64, Entry>,
    next: u64,
    /// Changes that were acknowledged and not durable at once.
    acknowledged: u64,
    /// How many of them a flush has covered.
    flushed: u64,
    /// Whether a request was told that the export has ended.
    pub(super) is_shut_down: bool,
}

impl Table {
    /// Takes a request, and gives it its cookie.
    pub(super) fn add(&mut self, mut asked: Asked) {
        let cookie = self.next;
        self.next += 1;
        asked.request.cookie = cookie;
        let entry = Entry {
            asked,
            sent: None,
            parts: Vec::new(),
            extents: None,
            failure: None,
            covers: self.acknowledged,
        };
        self.entries.insert(cookie, entry);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// When the oldest of those was sent that wait for an answer.
    pub(super) fn oldest(&self) -> Option<Nanos> {
        self.entries.values().filter_map(|entry| entry.sent).min()
    }

    /// Whether all that was acknowledged is durable, and no change is on its way.
    pub(super) fn is_settled(&self) -> bool {
        let under_way = |entry: &Entry| entry.sent.is_some() && entry.changes();
        self.acknowledged == self.flushed && !self.entries.values().any(under_way)
    }

    /// The next requests to send on a connection, from a cookie on: heads, the last one's data, and the
    /// cookie to go on from. `None` when all are sent.
    pub(super) fn unsent(&mut self, from: u64, now: Nanos) -> Option<(Vec<u8>, Arc<[u8]>, u64)> {
        let mut heads = Vec::new();
        let mut next = from;
        let mut data: Arc<[u8]> = Arc::from([]);
        for (cookie, entry) in self.entries.range_mut(from..).take(TOGETHER_MAX) {
            entry.sent = Some(now);
            heads.extend(entry.asked.request.encode());
            next = cookie + 1;
            if !entry.asked.data.is_empty() {
                data = Arc::clone(&entry.asked.data);
                break;
            }
        }
        (!heads.is_empty()).then_some((heads, data, next))
    }

    /// The connection is broken: what was not answered is sent again. How many those are.
    pub(super) fn broken(&mut self) -> usize {
        self.entries
            .retain(|_, entry| !entry.asked.done.is_canceled());
        let mut again = 0;
        for entry in self.entries.values_mut() {
            again += usize::from(entry.sent.take().is_some());
            entry.parts.clear();
            entry.extents = None;
            entry.failure = None;
        }
        again
    }

    /// Ends all with this. How many those were.
    pub(super) fn fail(&mut self, failure: &Failure) -> usize {
        let entries = std::mem::take(&mut self.entries);
        let count = entries.len();
        for (_, entry) in entries {
            // Who asked may have gone.
            let _ = entry.asked.done.send(Err(failure.clone()));
        }
        count
    }

    fn get(&mut self, cookie: u64) -> Result<&mut Entry, Nonsense> {
        let entry = self.entries.get_mut(&cookie);
        let sent = entry.filter(|entry| entry.sent.is_some());
        sent.ok_or("an answer to what was not asked")
    }

    /// A part of a read.
    fn part(&mut self, cookie: u64, offset: u64, len: u32) -> Result<Body, Nonsense> {
        const OUTSIDE: Nonsense = "a part of a read that was not asked for";
        let entry = self.get(cookie)?;
        let request = &entry.asked.request;
        let at = offset.checked_sub(request.offset);
        let at = at.and_then(|at| u32::try_from(at).ok()).ok_or(OUTSIDE)?;
        let end = at.checked_add(len).ok_or(OUTSIDE)?;
        if request.command != Command::Read || len == 0 || end > request.len {
            return Err(OUTSIDE);
        }
        // Parts that overlap are more than there are bytes in the end, so that they are bounded.
        let known = entry.parts.iter().map(|(from, to)| u64::from(to - from));
        if known.sum::<u64>() + u64::from(len) > u64::from(request.len) {
            return Err(OUTSIDE);
        }
        entry.parts.push((at, end));
        Ok(Body::Data(at, len))
    }

    /// A simple answer.
    pub(super) fn simple(
        &mut self,
        cookie: u64,
        error: Option<NbdError>,
    ) -> Result<Body, Nonsense> {
        let request = self.get(cookie)?.asked.request;
        if let Some(error) = error {
            self.refused(cookie, error, String::new())?;
        } else if request.command == Command::Read {
            return self.part(cookie, request.offset, request.len);
        } else if request.command == Command::BlockStatus {
            return Err("a block status without extents");
        }
        self.ended(cookie)?;
        Ok(Body::None)
    }

    /// The head of a chunk of data.
    pub(super) fn data(&mut self, head: &Chunk, offset: u64) -> Result<Body, Nonsense> {
        self.part(head.cookie, offset, head.len - 8)
    }

    /// Puts bytes of a read where they go to.
    pub(super) fn put(&mut self, cookie: u64, at: u32, bytes: &[u8]) {
        let Some(entry) = self.entries.get_mut(&cookie) else {
            return;
        };
        if entry.asked.done.is_canceled() {
            return;
        }
        if entry.asked.into.copy_in(u64::from(at), bytes).is_err() {
            entry.failure.get_or_insert(Failure::Memory);
        }
    }

    /// The data of a chunk has arrived.
    pub(super) fn data_ended(&mut self, cookie: u64, done: bool) -> Result<(), Nonsense> {
        if done { self.ended(cookie) } else { Ok(()) }
    }

    fn hole(&mut self, cookie: u64, body: &[u8]) -> Result<(), Nonsense> {
        let hole = body.split_first_chunk::<8>();
        let hole = hole.and_then(|(at, len)| Some((at, len.try_into().ok()?)));
        let (offset, len) = hole.ok_or("a hole without its place")?;
        let (offset, len) = (u64::from_be_bytes(*offset), u32::from_be_bytes(len));
        let Body::Data(at, len) = self.part(cookie, offset, len)? else {
            return Ok(());
        };
        let entry = self.get(cookie)?;
        let range = u64::from(at)..u64::from(at) + u64::from(len);
        if !entry.asked.done.is_canceled() && entry.asked.into.fill_zero(range).is_err() {
            entry.failure.get_or_insert(Failure::Memory);
        }
        Ok(())
    }

    /// The body of a chunk that is not data; `allocation` is the number of the context of what is allocated.
    pub(super) fn chunk(
        &mut self,
        head: &Chunk,
        body: &[u8],
        allocation: Option<u32>,
    ) -> Result<(), Nonsense> {
        let command = self.get(head.cookie)?.asked.request.command;
        match head.kind {
            ChunkKind::NONE if body.is_empty() && head.done => {}
            ChunkKind::HOLE => self.hole(head.cookie, body)?,
            ChunkKind::BLOCK_STATUS if command == Command::BlockStatus => {
                let parsed = parse_block_status(body);
                let (context, extents) = parsed.map_err(|_| "a malformed block status")?;
                let entry = self.get(head.cookie)?;
                if Some(context) != allocation || entry.extents.is_some() {
                    return Err("extents that were not asked for");
                }
                entry.extents = Some(extents);
            }
            kind if kind.is_error() => {
                let parsed = parse_error_body(body);
                let (error, message) = parsed.map_err(|_| "a malformed error")?;
                self.refused(head.cookie, error, message)?;
            }
            _ => return Err("a chunk that was not asked for"),
        }
        self.data_ended(head.cookie, head.done)
    }

    fn refused(&mut self, cookie: u64, error: NbdError, text: String) -> Result<(), Nonsense> {
        let failure = Failure::Refused(error, text);
        self.get(cookie)?.failure.get_or_insert(failure);
        Ok(())
    }

    /// The answer is complete.
    fn ended(&mut self, cookie: u64) -> Result<(), Nonsense> {
        let entry = self.get(cookie)?;
        let (request, failed) = (entry.asked.request, entry.failure.is_some());
        // Looked at before it is taken out: what is not whole is asked for again.
        match request.command {
            Command::Read if !failed && !entry.is_whole() => {
                return Err("a part of a read is missing");
            }
            Command::BlockStatus if !failed && entry.extents.is_none() => {
                return Err("a block status without extents");
            }
            _ => {}
        }
        let Some(entry) = self.entries.remove(&cookie) else {
            return Ok(());
        };
        // A change that failed may have had its effect.
        let durable = request.flags & command_flag::FUA != 0 && !failed;
        if entry.changes() && !durable {
            self.acknowledged += 1;
        }
        if request.command == Command::Flush && !failed {
            self.flushed = self.flushed.max(entry.covers);
        }
        let outcome = match entry.failure {
            Some(failure) => {
                let shut_down = matches!(&failure, Failure::Refused(NbdError::SHUTDOWN, _));
                self.is_shut_down |= shut_down;
                Err(failure)
            }
            None => Ok(entry.extents.unwrap_or_default()),
        };
        // Who asked may have gone.
        let _ = entry.asked.done.send(outcome);
        Ok(())
    }
}
