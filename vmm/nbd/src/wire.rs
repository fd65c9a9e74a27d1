//! A connection's bytes, in the clear or by TLS: one side reads, all others take turns to send.
//!
//! A send that the other side does not take within the stall limit breaks the wire: everyone who sends after
//! that is told, and the reader ends.

use std::cell::{Cell, RefCell};
use std::io::{self, Read, Write};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use engine::net::TcpStream;
use engine::sync::{Notify, Semaphore, SemaphorePermit};
use engine::{DmaBuf, GuestPart};
use futures_util::future::{Either, select};
use rustls::Connection;

use crate::memory::Lease;

/// What is received at once in front of data.
const BUFFER_BYTES: usize = 16 << 10;
/// What is encrypted, or copied out of TLS, before others get a turn.
const TLS_BYTES: u32 = 64 << 10;
/// What is received at once of long data that is looked at.
const DIRECT_BYTES: usize = 256 << 10;
/// How long a connection waits for its buffer.
const BUFFER_WAIT: Duration = Duration::from_secs(5);

pub(crate) struct Wire {
    stream: TcpStream,
    tls: RefCell<Option<Connection>>,
    turns: Semaphore,
    stall_max: Duration,
    broken: Cell<bool>,
    breaks: Notify,
}

/// The other side does not take what it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the other side does not take what it is sent")]
pub(crate) struct Broken;

impl Wire {
    /// `senders` may wait for their turn.
    pub(crate) fn new(stream: TcpStream, stall_max: Duration, senders: usize) -> Rc<Wire> {
        Rc::new(Wire {
            stream,
            tls: RefCell::default(),
            turns: Semaphore::new(1, senders),
            stall_max,
            broken: Cell::new(false),
            breaks: Notify::default(),
        })
    }

    pub(crate) fn stall_max(&self) -> Duration {
        self.stall_max
    }

    /// Ends when the wire is broken.
    pub(crate) async fn broken(&self) {
        while !self.broken.get() {
            self.breaks.notified().await;
        }
    }

    /// Nothing is sent any more.
    pub(crate) fn end(&self) {
        self.broken.set(true);
        self.breaks.notify_all();
    }

    fn is_tls(&self) -> bool {
        self.tls.borrow().is_some()
    }

    /// The turn to send.
    ///
    /// # Errors
    /// [`Broken`].
    pub(crate) async fn turn(&self) -> Result<Turn<'_>, Broken> {
        let permit = self.turns.acquire(1).await;
        if self.broken.get() {
            return Err(Broken);
        }
        permit
            .map(|permit| Turn {
                wire: self,
                _permit: permit,
            })
            .map_err(|_| Broken)
    }

    /// Sends bytes alone.
    ///
    /// # Errors
    /// [`Broken`].
    pub(crate) async fn send(&self, bytes: Vec<u8>) -> Result<(), Broken> {
        self.turn().await?.send(bytes, None).await
    }

    /// Sends what TLS itself has to say.
    async fn flush_tls(&self) -> Result<(), Broken> {
        let wants = |tls: &RefCell<Option<Connection>>| {
            tls.borrow().as_ref().is_some_and(|tls| tls.wants_write())
        };
        if !wants(&self.tls) {
            return Ok(());
        }
        self.turn().await?.send(Vec::new(), None).await
    }

    fn tls<R>(&self, work: impl FnOnce(&mut Connection) -> R) -> R {
        let mut tls = self.tls.borrow_mut();
        work(tls.as_mut().expect("TLS has begun"))
    }
}

/// See [`Wire::turn`].
pub(crate) struct Turn<'a> {
    wire: &'a Wire,
    _permit: SemaphorePermit,
}

impl Turn<'_> {
    /// Sends a head and the first bytes of a part of the memory.
    ///
    /// # Errors
    /// [`Broken`].
    pub(crate) async fn send(
        &self,
        head: Vec<u8>,
        body: Option<(&Lease, u32)>,
    ) -> Result<(), Broken> {
        self.within(async {
            if self.wire.is_tls() {
                self.send_tls(&head, body).await
            } else {
                self.send_clear(head, body).await
            }
        })
        .await
    }

    /// Sends heads and, behind the last of them, its body.
    ///
    /// # Errors
    /// [`Broken`].
    pub(crate) async fn send_bytes(&self, head: Vec<u8>, body: Arc<[u8]>) -> Result<(), Broken> {
        self.within(async {
            if self.wire.is_tls() {
                self.send_plain(&head).await?;
                return self.send_plain(&body).await;
            }
            if body.is_empty() {
                return self.wire.stream.send(head).await.0;
            }
            self.wire.stream.send_pair(head, body).await.0
        })
        .await
    }

    async fn within(&self, sent: impl Future<Output = io::Result<()>>) -> Result<(), Broken> {
        // Who ends the wire waits for nobody who does not take what is sent.
        let (sent, broken) = (pin!(sent), pin!(self.wire.broken()));
        let sent = select(sent, broken);
        let sent = engine::timeout(self.wire.stall_max, sent).await;
        if let Some(Either::Left((Ok(()), _))) = sent {
            return Ok(());
        }
        self.wire.end();
        Err(Broken)
    }

    async fn send_plain(&self, bytes: &[u8]) -> io::Result<()> {
        for part in bytes.chunks(TLS_BYTES as usize) {
            self.wire.tls(|tls| tls.writer().write_all(part))?;
            self.send_encrypted().await?;
            engine::yield_if_needed().await;
        }
        Ok(())
    }

    async fn send_clear(&self, head: Vec<u8>, body: Option<(&Lease, u32)>) -> io::Result<()> {
        let stream = &self.wire.stream;
        let mut parts = body.map_or_else(Vec::new, |(lease, len)| lease.parts(0, len));
        match parts.len() {
            0 => stream.send(head).await.0,
            1 => stream.send_pair(head, parts.remove(0)).await.0,
            _ => {
                stream.send_more(head).await.0?;
                for part in parts {
                    stream.send(part).await.0?;
                }
                Ok(())
            }
        }
    }

    async fn send_tls(&self, head: &[u8], body: Option<(&Lease, u32)>) -> io::Result<()> {
        self.wire.tls(|tls| tls.writer().write_all(head))?;
        self.send_encrypted().await?;
        let Some((lease, len)) = body else {
            return Ok(());
        };
        let list = lease.list(len);
        let mut plain = vec![0; len.min(TLS_BYTES) as usize];
        let mut at = 0;
        while at < len {
            let taken = (len - at).min(TLS_BYTES) as usize;
            list.copy_out(u64::from(at), &mut plain[..taken])?;
            self.wire
                .tls(|tls| tls.writer().write_all(&plain[..taken]))?;
            self.send_encrypted().await?;
            at += taken as u32;
        }
        Ok(())
    }

    async fn send_encrypted(&self) -> io::Result<()> {
        let mut encrypted = Vec::new();
        self.wire.tls(|tls| {
            while tls.wants_write() {
                tls.write_tls(&mut encrypted)?;
            }
            io::Result::Ok(())
        })?;
        if encrypted.is_empty() {
            return Ok(());
        }
        self.wire.stream.send(encrypted).await.0
    }
}

/// The reading side. A future of it that is dropped before it returns ends the connection.
pub(crate) struct Reader {
    wire: Rc<Wire>,
    /// Received and not looked at from `at` on; lent to the kernel when absent.
    received: Option<DmaBuf>,
    at: usize,
    /// What TLS made of it, and how much of that was used.
    plain: Vec<u8>,
    plain_at: usize,
}

impl Reader {
    /// # Errors
    /// When the shard's buffers are used up.
    pub(crate) async fn new(wire: Rc<Wire>) -> io::Result<Reader> {
        let until = engine::now() + BUFFER_WAIT;
        let taken = engine::take_buf_until(BUFFER_BYTES, until).await;
        let mut received = taken.map_err(io::Error::other)?;
        received.set_len(0);
        Ok(Reader {
            wire,
            received: Some(received),
            at: 0,
            plain: Vec::new(),
            plain_at: 0,
        })
    }

    fn ready(&self) -> &[u8] {
        if self.wire.is_tls() {
            return &self.plain[self.plain_at..];
        }
        self.unread()
    }

    fn unread(&self) -> &[u8] {
        self.received.as_ref().map_or(&[], |buf| &buf[self.at..])
    }

    fn used(&mut self, len: usize) {
        if self.wire.is_tls() {
            self.plain_at += len;
        } else {
            self.at += len;
        }
    }

    /// Receives into the buffer; false when the other side is done sending.
    async fn receive(&mut self) -> io::Result<bool> {
        let buf = self.received.take();
        let buf = buf.ok_or(io::Error::from(io::ErrorKind::ConnectionAborted))?;
        let (got, mut buf) = self.wire.stream.recv(buf).await;
        if got.is_err() {
            buf.set_len(0);
        }
        self.received = Some(buf);
        self.at = 0;
        Ok(got? > 0)
    }

    /// Waits for bytes; false when the other side is done sending.
    ///
    /// # Errors
    /// As the kernel or TLS says.
    pub(crate) async fn wait(&mut self) -> io::Result<bool> {
        while self.ready().is_empty() {
            if self.wire.is_tls() && !self.unread().is_empty() {
                self.decrypt().await?;
            } else if !self.receive().await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Gives TLS some of what was received.
    async fn decrypt(&mut self) -> io::Result<()> {
        let mut unread = self
            .received
            .as_ref()
            .map_or(&[][..], |buf| &buf[self.at..]);
        let plain = &mut self.plain;
        let done = self.wire.tls(|tls| {
            let taken = tls.read_tls(&mut unread)?;
            let state = tls.process_new_packets().map_err(io::Error::other)?;
            plain.clear();
            plain.resize(state.plaintext_bytes_to_read(), 0);
            tls.reader().read_exact(plain)?;
            io::Result::Ok(taken)
        });
        self.plain_at = 0;
        // Also when it failed: TLS says why.
        let flushed = self.wire.flush_tls().await;
        self.at += done?;
        flushed.map_err(io::Error::other)
    }

    /// Begins TLS.
    ///
    /// # Errors
    /// When the other side sent something in the clear behind its agreement to it, or TLS fails.
    pub(crate) async fn start_tls(&mut self, mut tls: Connection) -> io::Result<()> {
        if !self.unread().is_empty() {
            return Err(io::Error::other("the other side did not wait for TLS"));
        }
        // What is written to it is sent before more is.
        tls.set_buffer_limit(None);
        self.wire.tls.replace(Some(tls));
        // A client speaks first.
        self.wire.flush_tls().await.map_err(io::Error::other)?;
        while self.wire.tls(|tls| tls.is_handshaking()) {
            if self.unread().is_empty() && !self.receive().await? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.decrypt().await?;
        }
        Ok(())
    }

    /// The next `N` bytes.
    ///
    /// # Errors
    /// As [`Reader::wait`], and when the other side stops before them.
    pub(crate) async fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut out = [0; N];
        self.fill(&mut out).await?;
        Ok(out)
    }

    /// Fills `out`.
    ///
    /// # Errors
    /// As [`Reader::array`].
    pub(crate) async fn fill(&mut self, out: &mut [u8]) -> io::Result<()> {
        let mut at = 0;
        while at < out.len() {
            self.some().await?;
            let taken = self.ready().len().min(out.len() - at);
            out[at..at + taken].copy_from_slice(&self.ready()[..taken]);
            self.used(taken);
            at += taken;
        }
        Ok(())
    }

    async fn some(&mut self) -> io::Result<()> {
        if self.wait().await? {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the other side stopped in the middle",
        ))
    }

    /// Passes over bytes.
    ///
    /// # Errors
    /// As [`Reader::array`].
    pub(crate) async fn skip(&mut self, mut len: u32) -> io::Result<()> {
        while len > 0 {
            self.some().await?;
            let taken = self.ready().len().min(len as usize);
            self.used(taken);
            len -= taken as u32;
        }
        Ok(())
    }

    /// Shows the next `len` bytes as they come.
    ///
    /// # Errors
    /// As [`Reader::array`].
    pub(crate) async fn show(&mut self, len: u32, mut show: impl FnMut(&[u8])) -> io::Result<()> {
        let mut left = len as usize;
        while left > 0 {
            let direct = self.ready().is_empty() && !self.wire.is_tls() && left >= BUFFER_BYTES;
            if direct {
                let bytes = vec![0; left.min(DIRECT_BYTES)];
                let (got, bytes) = self.wire.stream.recv(bytes).await;
                if got? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                show(&bytes);
                left -= bytes.len();
                continue;
            }
            self.some().await?;
            let taken = self.ready().len().min(left);
            show(&self.ready()[..taken]);
            self.used(taken);
            left -= taken;
            engine::yield_if_needed().await;
        }
        Ok(())
    }

    /// Fills the first `len` bytes of a part of the memory.
    ///
    /// # Errors
    /// As [`Reader::array`].
    pub(crate) async fn fill_memory(&mut self, lease: &Lease, len: u32) -> io::Result<()> {
        let list = lease.list(len);
        let mut at = 0;
        while at < len {
            if self.ready().is_empty() && !self.wire.is_tls() {
                return self.receive_into(lease.parts(at, len)).await;
            }
            self.some().await?;
            let taken = self.ready().len().min((len - at) as usize);
            list.copy_in(u64::from(at), &self.ready()[..taken])?;
            self.used(taken);
            at += taken as u32;
            engine::yield_if_needed().await;
        }
        Ok(())
    }

    async fn receive_into(&mut self, parts: Vec<GuestPart>) -> io::Result<()> {
        for mut part in parts {
            loop {
                let (got, back) = self.wire.stream.recv(part).await;
                let got = got?;
                if got == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                match back.rest() {
                    Some(rest) => part = rest,
                    None => break,
                }
            }
        }
        Ok(())
    }
}
