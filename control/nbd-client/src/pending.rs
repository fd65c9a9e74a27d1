//! Requests that were sent, until their answers are complete. No I/O.

use std::collections::HashMap;

use nbd_wire::{
    Chunk, ChunkKind, Command, NbdError, Request, parse_block_status, parse_error_body,
};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::error::ClientError;

/// What an answer brings.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    /// Of a read, all that was asked for.
    pub(crate) data: Vec<u8>,
    /// Of a block status, by context.
    pub(crate) status: Vec<(u32, Vec<nbd_wire::Extent>)>,
}

pub(crate) type Outcome = Result<Answer, ClientError>;

/// Longest body of a chunk that is not data: the most extents that anybody sends, and then some.
const BODY_BYTES_MAX: u32 = 1 << 20;

/// A request on its way.
pub(crate) struct Sent {
    pub(crate) request: Request,
    pub(crate) done: oneshot::Sender<Outcome>,
    /// Given back when the request has ended.
    pub(crate) _permits: [OwnedSemaphorePermit; 2],
    answer: Answer,
    /// What came of a read: where each part begins and ends.
    parts: Vec<(u32, u32)>,
    error: Option<(NbdError, String)>,
}

/// How a request is called in errors.
pub(crate) fn name_of(command: Command) -> &'static str {
    match command {
        Command::Read => "a read",
        Command::Write => "a write",
        Command::Flush => "a flush",
        Command::Trim => "a trim",
        Command::WriteZeroes => "a write of zeros",
        Command::BlockStatus => "a block status",
        _ => "a request",
    }
}

impl Sent {
    pub(crate) fn new(
        request: Request,
        done: oneshot::Sender<Outcome>,
        permits: [OwnedSemaphorePermit; 2],
    ) -> Sent {
        let data = match request.command {
            Command::Read => vec![0; request.len as usize],
            _ => Vec::new(),
        };
        Sent {
            request,
            done,
            _permits: permits,
            answer: Answer {
                data,
                status: Vec::new(),
            },
            parts: Vec::new(),
            error: None,
        }
    }

    /// The answer is complete.
    fn end(mut self) -> Result<(), ClientError> {
        let Request {
            command,
            offset,
            len,
            ..
        } = self.request;
        let outcome = match self.error.take() {
            Some((error, message)) => Err(ClientError::Request {
                what: name_of(command),
                offset,
                len,
                error,
                message,
            }),
            None if command == Command::Read && !self.is_whole() => {
                return Err(ClientError::Protocol("a part of a read is missing"));
            }
            None => Ok(self.answer),
        };
        // Who asked may have gone.
        let _ = self.done.send(outcome);
        Ok(())
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
        at == self.request.len
    }

    /// A part of a read: where its bytes go to.
    fn part(&mut self, offset: u64, len: u32) -> Result<(usize, usize), ClientError> {
        let outside = ClientError::Protocol("a part of a read that was not asked for");
        if self.request.command != Command::Read || len == 0 {
            return Err(outside);
        }
        let at = offset.checked_sub(self.request.offset);
        let at = at.and_then(|at| u32::try_from(at).ok());
        let end = at.and_then(|at| at.checked_add(len));
        let (Some(at), Some(end)) = (at, end.filter(|end| *end <= self.request.len)) else {
            return Err(outside);
        };
        // Parts that overlap are more than there are bytes in the end, so that they are bounded.
        let sum: u64 = self
            .parts
            .iter()
            .map(|(from, to)| u64::from(to - from))
            .sum();
        if sum + u64::from(len) > u64::from(self.request.len) {
            return Err(outside);
        }
        self.parts.push((at, end));
        Ok((at as usize, end as usize))
    }
}

/// All requests on their way, by cookie.
#[derive(Default)]
pub(crate) struct Pending {
    sent: HashMap<u64, Sent>,
    next: u64,
    /// Why nothing is sent any more.
    broken: Option<ClientError>,
}

/// What follows a head, and whose it is.
pub(crate) enum Body {
    /// Nothing.
    None,
    /// Data of a read, into its buffer from here up to there; then [`Pending::give_back`].
    Data(Vec<u8>, usize, usize),
    /// Some bytes, for [`Pending::body`].
    Bytes(u32),
}

impl Pending {
    /// Takes a request, and gives it its cookie.
    ///
    /// # Errors
    /// When the connection is broken.
    pub(crate) fn add(&mut self, mut sent: Sent) -> Result<Request, ClientError> {
        if let Some(error) = &self.broken {
            return Err(error.clone());
        }
        self.next += 1;
        sent.request.cookie = self.next;
        let request = sent.request;
        self.sent.insert(self.next, sent);
        Ok(request)
    }

    /// The connection has failed: so have all requests, and those that come.
    pub(crate) fn fail(&mut self, error: &ClientError) {
        let error = self.broken.get_or_insert_with(|| error.clone()).clone();
        for (_, sent) in self.sent.drain() {
            let _ = sent.done.send(Err(error.clone()));
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.sent.is_empty()
    }

    fn get(&mut self, cookie: u64) -> Result<&mut Sent, ClientError> {
        let unknown = ClientError::Protocol("an answer to what was not asked");
        self.sent.get_mut(&cookie).ok_or(unknown)
    }

    fn end(&mut self, cookie: u64) -> Result<(), ClientError> {
        self.get(cookie)?;
        self.sent.remove(&cookie).map_or(Ok(()), Sent::end)
    }

    /// A simple answer.
    pub(crate) fn simple(
        &mut self,
        cookie: u64,
        error: Option<NbdError>,
    ) -> Result<Body, ClientError> {
        let sent = self.get(cookie)?;
        if let Some(error) = error {
            sent.error = Some((error, String::new()));
        } else if sent.request.command == Command::BlockStatus {
            return Err(ClientError::Protocol("a block status without extents"));
        } else if sent.request.len > 0 && sent.request.command == Command::Read {
            let (from, to) = sent.part(sent.request.offset, sent.request.len)?;
            let data = std::mem::take(&mut sent.answer.data);
            return Ok(Body::Data(data, from, to));
        }
        self.end(cookie)?;
        Ok(Body::None)
    }

    /// The head of a chunk; of data, `offset` is what its body begins with.
    pub(crate) fn chunk(&mut self, head: &Chunk, offset: Option<u64>) -> Result<Body, ClientError> {
        let sent = self.get(head.cookie)?;
        if let Some(offset) = offset {
            let (from, to) = sent.part(offset, head.len - 8)?;
            let data = std::mem::take(&mut sent.answer.data);
            return Ok(Body::Data(data, from, to));
        }
        if head.len > BODY_BYTES_MAX {
            return Err(ClientError::Protocol("a chunk that is too long"));
        }
        Ok(Body::Bytes(head.len))
    }

    /// The data has arrived.
    pub(crate) fn give_back(
        &mut self,
        cookie: u64,
        data: Vec<u8>,
        done: bool,
    ) -> Result<(), ClientError> {
        self.get(cookie)?.answer.data = data;
        if done {
            self.end(cookie)?;
        }
        Ok(())
    }

    /// The body of a chunk that is not data.
    pub(crate) fn body(&mut self, head: &Chunk, body: &[u8]) -> Result<(), ClientError> {
        let sent = self.get(head.cookie)?;
        match head.kind {
            ChunkKind::NONE if body.is_empty() && head.done => {}
            ChunkKind::HOLE => {
                let hole = body.split_first_chunk::<8>();
                let hole = hole.and_then(|(at, len)| Some((at, len.try_into().ok()?)));
                let (at, len) = hole.ok_or(ClientError::Protocol("a hole without its place"))?;
                // It is zeros already.
                sent.part(u64::from_be_bytes(*at), u32::from_be_bytes(len))?;
            }
            ChunkKind::BLOCK_STATUS if sent.request.command == Command::BlockStatus => {
                let (context, extents) = parse_block_status(body)?;
                if sent
                    .answer
                    .status
                    .iter()
                    .any(|(known, _)| *known == context)
                {
                    return Err(ClientError::Protocol("the extents of a context, twice"));
                }
                sent.answer.status.push((context, extents));
            }
            kind if kind.is_error() => {
                let error = parse_error_body(body)?;
                sent.error.get_or_insert(error);
            }
            _ => return Err(ClientError::Protocol("a chunk that was not asked for")),
        }
        if head.done {
            self.end(head.cookie)?;
        }
        Ok(())
    }
}
