//! A connection: one task sends, one receives, and any number wait for their answers.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use nbd_wire::{
    BlockSizes, CHUNK_BYTES, Chunk, ChunkKind, Command, ReplyHead, Request, SIMPLE_BYTES,
    allocation, transmission,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::error::ClientError;
use crate::handshake::{Agreed, BoxStream, connect};
use crate::pending::{Answer, Body, Pending, Sent, name_of};
use crate::target::Target;

/// How much is in flight, and how long anything is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Requests in flight.
    pub requests_max: usize,
    /// Bytes of reads and writes in flight; one request may be larger.
    pub bytes_max: u32,
    /// Longest to connect and choose an export.
    pub connect_max: Duration,
    /// Longest that an answer takes.
    pub answer_max: Duration,
}

impl Default for Options {
    /// 64 requests, 32 MiB, and patience for a busy disk.
    fn default() -> Options {
        Options {
            requests_max: 64,
            bytes_max: 32 << 20,
            connect_max: Duration::from_secs(30),
            answer_max: Duration::from_mins(2),
        }
    }
}

/// A part of an export that is alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Number of bytes.
    pub bytes: u64,
    /// Whether it is known to read as zeros.
    pub zero: bool,
}

/// A connection to an export. Its methods may be called many at a time. Dropping it ends the connection;
/// [`Client::close`] takes leave first.
#[derive(Debug)]
pub struct Client {
    shared: Arc<Shared>,
    outbox: mpsc::Sender<(Request, Bytes)>,
    tasks: [JoinHandle<()>; 2],
}

struct Shared {
    agreed: Agreed,
    options: Options,
    pending: Mutex<Pending>,
    requests: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("agreed", &self.agreed)
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Client {
    /// Connects to an export.
    ///
    /// # Errors
    /// When nobody answers, or the server refuses.
    pub async fn connect(target: &Target, options: Options) -> Result<Client, ClientError> {
        let connected = tokio::time::timeout(options.connect_max, connect(target)).await;
        let (stream, agreed) = connected.map_err(|_| ClientError::Slow("connect"))??;
        let shared = Arc::new(Shared {
            agreed,
            options,
            pending: Mutex::default(),
            requests: Arc::new(Semaphore::new(options.requests_max.max(1))),
            bytes: Arc::new(Semaphore::new(options.bytes_max.max(1) as usize)),
        });
        let (reader, writer) = tokio::io::split(stream);
        let (outbox, inbox) = mpsc::channel(1);
        let (sends, receives) = (Arc::clone(&shared), Arc::clone(&shared));
        let sending = tokio::spawn(async move {
            if let Err(error) = send_all(writer, inbox).await {
                sends.pending().fail(&error);
            }
        });
        let receiving = tokio::spawn(async move {
            let ended = receive_all(&receives, reader).await;
            let closed = ClientError::Protocol("it has ended the connection");
            receives.pending().fail(&ended.err().unwrap_or(closed));
        });
        Ok(Client {
            shared,
            outbox,
            tasks: [sending, receiving],
        })
    }

    /// The export's size.
    pub fn bytes(&self) -> u64 {
        self.shared.agreed.bytes
    }

    /// Sizes of requests: whole multiples of the least, and none larger than the most.
    pub fn block_sizes(&self) -> BlockSizes {
        self.shared.agreed.sizes
    }

    fn has(&self, flag: u16) -> bool {
        self.shared.agreed.flags & flag != 0
    }

    /// Whether it cannot be changed.
    pub fn is_read_only(&self) -> bool {
        self.has(transmission::READ_ONLY)
    }

    /// Whether [`Client::write_zeroes`] sends no zeros.
    pub fn has_write_zeroes(&self) -> bool {
        self.has(transmission::WRITE_ZEROES)
    }

    /// Reads. Cancel-safe.
    ///
    /// # Errors
    /// [`ClientError::Request`] when the server could not; others when the connection is of no use any
    /// more.
    pub async fn read(&self, offset: u64, len: u32) -> Result<Vec<u8>, ClientError> {
        if len == 0 {
            return Ok(Vec::new());
        }
        let request = self.checked(Command::Read, offset, len)?;
        Ok(self.call(request, Bytes::new()).await?.data)
    }

    /// Writes. What was written is durable after the next [`Client::flush`].
    ///
    /// # Errors
    /// As [`Client::read`].
    pub async fn write(&self, offset: u64, data: Bytes) -> Result<(), ClientError> {
        if data.is_empty() {
            return Ok(());
        }
        let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let request = self.checked(Command::Write, offset, len)?;
        self.call(request, data).await.map(drop)
    }

    /// Makes a range read as zeros, and frees it where the server can; sends the zeros to a server that
    /// has no such request.
    ///
    /// # Errors
    /// As [`Client::read`].
    pub async fn write_zeroes(&self, mut offset: u64, mut len: u64) -> Result<(), ClientError> {
        let sizes = self.block_sizes();
        let (command, most) = if self.has_write_zeroes() {
            // A multiple of any size of blocks.
            (Command::WriteZeroes, 1 << 30)
        } else {
            (Command::Write, sizes.maximum.min(1 << 20))
        };
        while len > 0 {
            let part = len.min(u64::from(most)) as u32;
            let request = self.checked(command, offset, part)?;
            let data = match command {
                Command::Write => Bytes::from(vec![0; part as usize]),
                _ => Bytes::new(),
            };
            self.call(request, data).await?;
            (offset, len) = (offset + u64::from(part), len - u64::from(part));
        }
        Ok(())
    }

    /// Says that a range is not needed any more; does nothing at a server that does not want to know.
    ///
    /// # Errors
    /// As [`Client::read`].
    pub async fn trim(&self, offset: u64, len: u32) -> Result<(), ClientError> {
        if len == 0 || !self.has(transmission::TRIM) {
            return Ok(());
        }
        let request = self.checked(Command::Trim, offset, len)?;
        self.call(request, Bytes::new()).await.map(drop)
    }

    /// Makes durable what was written.
    ///
    /// # Errors
    /// As [`Client::read`].
    pub async fn flush(&self) -> Result<(), ClientError> {
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
        self.call(request, Bytes::new()).await.map(drop)
    }

    /// What reads as zeros from `offset` on: extents without a gap, at least one, which end at
    /// `offset + len` or before. A server that does not know says that nothing does.
    ///
    /// # Errors
    /// As [`Client::read`].
    pub async fn block_status(&self, offset: u64, len: u32) -> Result<Vec<Extent>, ClientError> {
        let data = |bytes| Extent { bytes, zero: false };
        let Some(context) = self.shared.agreed.allocation else {
            return Ok(vec![data(u64::from(len))]);
        };
        let request = self.checked(Command::BlockStatus, offset, len)?;
        let answer = self.call(request, Bytes::new()).await?;
        let found = answer.status.into_iter().find(|(id, _)| *id == context);
        let (_, extents) = found.ok_or(ClientError::Protocol("extents of another context"))?;
        let mut left = u64::from(len);
        let mut out = Vec::with_capacity(extents.len());
        for extent in extents {
            // The last one may go on.
            let bytes = u64::from(extent.len).min(left);
            left -= bytes;
            if bytes > 0 {
                out.push(Extent {
                    bytes,
                    zero: extent.flags & allocation::ZERO != 0,
                });
            }
        }
        Ok(out)
    }

    /// Takes leave. What was not flushed may not be durable.
    pub async fn close(mut self) {
        let request = Request {
            flags: 0,
            command: Command::Disconnect,
            cookie: 0,
            offset: 0,
            len: 0,
        };
        // The server may have gone already.
        if self.outbox.send((request, Bytes::new())).await.is_ok() {
            let _ = tokio::time::timeout(Duration::from_secs(5), &mut self.tasks[1]).await;
        }
    }

    fn checked(&self, command: Command, offset: u64, len: u32) -> Result<Request, ClientError> {
        let sizes = self.block_sizes();
        let changes = !matches!(command, Command::Read | Command::BlockStatus);
        let moves = matches!(command, Command::Read | Command::Write);
        let unit = u64::from(sizes.minimum);
        let end = offset.checked_add(u64::from(len));
        let why = if end.is_none_or(|end| end > self.bytes()) {
            "it is past the export's end"
        } else if !offset.is_multiple_of(unit) || !u64::from(len).is_multiple_of(unit) {
            "it is no whole number of blocks"
        } else if moves && len > sizes.maximum {
            "it is larger than the server allows"
        } else if changes && self.is_read_only() {
            "the export is read-only"
        } else {
            return Ok(Request {
                flags: 0,
                command,
                cookie: 0,
                offset,
                len,
            });
        };
        Err(ClientError::Invalid {
            what: name_of(command),
            offset,
            len: u64::from(len),
            why,
        })
    }

    async fn call(&self, request: Request, data: Bytes) -> Result<Answer, ClientError> {
        let shared = &self.shared;
        let moves = matches!(request.command, Command::Read | Command::Write);
        let bytes = if moves { request.len } else { 0 };
        let bytes = bytes.min(shared.options.bytes_max.max(1));
        let closed = |_| ClientError::Protocol("it has ended the connection");
        let slot = Arc::clone(&shared.requests).acquire_owned().await;
        let room = Arc::clone(&shared.bytes).acquire_many_owned(bytes).await;
        let (done, outcome) = oneshot::channel();
        let permits = [slot.map_err(closed)?, room.map_err(closed)?];
        let turn = self.outbox.reserve().await;
        let request = shared.pending().add(Sent::new(request, done, permits))?;
        match turn {
            Ok(turn) => turn.send((request, data)),
            Err(_) => return Err(ClientError::Protocol("it has ended the connection")),
        }
        let waited = tokio::time::timeout(shared.options.answer_max, outcome).await;
        let Ok(outcome) = waited else {
            let slow = ClientError::Slow("answer");
            shared.pending().fail(&slow);
            return Err(slow);
        };
        outcome.map_err(|_| ClientError::Protocol("it has ended the connection"))?
    }
}

async fn send_all(
    mut writer: WriteHalf<BoxStream>,
    mut inbox: mpsc::Receiver<(Request, Bytes)>,
) -> Result<(), ClientError> {
    while let Some((request, data)) = inbox.recv().await {
        writer.write_all(&request.encode()).await?;
        writer.write_all(&data).await?;
        writer.flush().await?;
    }
    Ok(())
}

async fn receive_all(shared: &Shared, reader: ReadHalf<BoxStream>) -> Result<(), ClientError> {
    let mut reader = tokio::io::BufReader::with_capacity(16 << 10, reader);
    loop {
        let mut first = [0; 4];
        if let Err(error) = reader.read_exact(&mut first).await {
            let left = error.kind() == std::io::ErrorKind::UnexpectedEof;
            let idle = left && shared.pending().is_empty();
            return if idle { Ok(()) } else { Err(error.into()) };
        }
        let chunk = ReplyHead::begins_chunk(first)?;
        let mut head = [0; CHUNK_BYTES];
        let head = if chunk {
            &mut head[..]
        } else {
            &mut head[..SIMPLE_BYTES]
        };
        head[..4].copy_from_slice(&first);
        reader.read_exact(&mut head[4..]).await?;
        match ReplyHead::parse(head)? {
            ReplyHead::Simple { error, cookie } => {
                let body = shared.pending().simple(cookie, error)?;
                if let Body::Data(mut data, from, to) = body {
                    reader.read_exact(&mut data[from..to]).await?;
                    shared.pending().give_back(cookie, data, true)?;
                }
            }
            ReplyHead::Chunk(head) => receive_chunk(shared, &mut reader, head).await?,
        }
    }
}

async fn receive_chunk<R: AsyncReadExt + Unpin>(
    shared: &Shared,
    reader: &mut R,
    head: Chunk,
) -> Result<(), ClientError> {
    if !shared.agreed.structured {
        return Err(ClientError::Protocol("a chunk where none was agreed on"));
    }
    let offset = if head.kind == ChunkKind::DATA {
        if head.len <= 8 {
            return Err(ClientError::Protocol("data without bytes"));
        }
        Some(reader.read_u64().await?)
    } else {
        None
    };
    let body = shared.pending().chunk(&head, offset)?;
    match body {
        Body::None => {}
        Body::Data(mut data, from, to) => {
            reader.read_exact(&mut data[from..to]).await?;
            shared.pending().give_back(head.cookie, data, head.done)?;
        }
        Body::Bytes(len) => {
            let mut bytes = vec![0; len as usize];
            reader.read_exact(&mut bytes).await?;
            shared.pending().body(&head, &bytes)?;
        }
    }
    Ok(())
}
