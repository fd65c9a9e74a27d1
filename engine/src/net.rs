//! TCP, UDP and Unix sockets of one shard.
//!
//! Buffers go in by value and come back with the result. A stream may be split by sharing it in an
//! `Rc`: one receive and one send at a time each. Dropping a socket closes it.

use std::io;
use std::ops::{Deref, Range};
use std::os::fd::{IntoRawFd, OwnedFd};
use std::rc::Rc;

use crate::backend::{
    BindOptions, DatagramBuf, IoBackend, Op, RawHandle, SendHow, SockAddrBuf, SocketKind,
};
use crate::buf::{IoBuf, IoBufMut};
use crate::fs::BufResult;
use crate::op::{Leaves, MultiOp, OpFuture, check, source_span, target_span};
use crate::pages::Pages;
use crate::shard::{ShardCore, current};

pub use crate::backend::Addr;

/// Owns a socket's handle.
struct Socket {
    shard: Rc<ShardCore>,
    handle: RawHandle,
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.shard.close(self.handle);
    }
}

impl Socket {
    fn new(kind: SocketKind, addr: &Addr) -> io::Result<Socket> {
        let shard = current();
        let handle = shard.backend(|backend| backend.socket(kind, addr))?;
        Ok(Socket { shard, handle })
    }

    /// # Errors
    /// As the kernel says, with the address in the message.
    fn bound(kind: SocketKind, addr: &Addr, options: BindOptions) -> io::Result<Socket> {
        let shard = current();
        let bound = shard.backend(|backend| {
            let handle = backend.socket(kind, addr)?;
            backend.bind(handle, addr, options).map(|()| handle)
        });
        let handle = bound.map_err(|e| io::Error::new(e.kind(), format!("bind {addr}: {e}")))?;
        Ok(Socket { shard, handle })
    }

    fn local_addr(&self) -> io::Result<Addr> {
        self.shard
            .backend(|backend| backend.local_addr(self.handle))
    }
}

/// How a listener binds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenOptions {
    /// Every shard may bind the same address; the kernel spreads the connections.
    pub reuse_port: bool,
    /// Connections that may wait to be accepted.
    pub backlog: u32,
}

impl Default for ListenOptions {
    fn default() -> ListenOptions {
        ListenOptions {
            reuse_port: true,
            backlog: 1024,
        }
    }
}

/// Accepts stream connections, over TCP or Unix sockets.
pub struct Listener {
    socket: Socket,
    accepts: Option<MultiOp>,
}

/// A TCP listener.
pub type TcpListener = Listener;
/// A Unix listener.
pub type UnixListener = Listener;

impl Listener {
    /// Binds and listens.
    ///
    /// # Errors
    /// As the kernel says, with the address in the message.
    pub fn bind(addr: &Addr, options: ListenOptions) -> io::Result<Listener> {
        let bind = BindOptions {
            reuse_port: options.reuse_port,
            backlog: options.backlog.max(1),
        };
        Ok(Listener {
            socket: Socket::bound(SocketKind::Stream, addr, bind)?,
            accepts: None,
        })
    }

    /// Takes over a listening socket that somebody else bound (socket activation, a hand-over at
    /// an upgrade).
    pub fn from_fd(fd: OwnedFd) -> Listener {
        let socket = Socket {
            shard: current(),
            handle: RawHandle(fd.into_raw_fd()),
        };
        Listener {
            socket,
            accepts: None,
        }
    }

    /// The address it is bound to.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn local_addr(&self) -> io::Result<Addr> {
        self.socket.local_addr()
    }

    /// The next connection. Cancel-safe: one multishot accept stays armed between calls, and
    /// connections that arrived meanwhile wait in it.
    ///
    /// # Errors
    /// For a connection that failed while it was accepted, or when descriptors are used up: wait
    /// and call again.
    pub async fn accept(&mut self) -> io::Result<TcpStream> {
        loop {
            if self.accepts.is_none() {
                let op = Op::Accept {
                    listener: self.socket.handle,
                };
                let started = MultiOp::start(&self.socket.shard, Leaves::Handle, op);
                self.accepts = Some(started.ok_or_else(busy)?);
            }
            let accepts = self.accepts.as_mut().expect("armed above");
            match accepts.next().await {
                Some(item) => {
                    let handle = RawHandle(check(item.result)? as i32);
                    let shard = Rc::clone(&self.socket.shard);
                    return Ok(TcpStream {
                        socket: Socket { shard, handle },
                    });
                }
                None => self.accepts = None,
            }
        }
    }
}

fn busy() -> io::Error {
    io::Error::new(
        io::ErrorKind::ResourceBusy,
        "the shard's operation table is full",
    )
}

/// A connected byte stream, over TCP or a Unix socket.
pub struct TcpStream {
    socket: Socket,
}

/// A Unix stream.
pub type UnixStream = TcpStream;

impl TcpStream {
    /// Connects.
    ///
    /// # Errors
    /// As the kernel says, with the address in the message.
    pub async fn connect(addr: &Addr) -> io::Result<TcpStream> {
        let socket = Socket::new(SocketKind::Stream, addr)?;
        let name = Box::new(SockAddrBuf::new(addr)?);
        let op = OpFuture::start(&socket.shard, name, Leaves::Nothing, |name, _| {
            Op::Connect {
                socket: socket.handle,
                addr: &raw const **name,
            }
        });
        let (outcome, _name) = op.await;
        check(outcome.result)
            .map_err(|e| io::Error::new(e.kind(), format!("connect to {addr}: {e}")))?;
        Ok(TcpStream { socket })
    }

    /// The other end's address.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn peer_addr(&self) -> io::Result<Addr> {
        self.socket
            .shard
            .backend(|backend| backend.peer_addr(self.socket.handle))
    }

    /// This end's address.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn local_addr(&self) -> io::Result<Addr> {
        self.socket.local_addr()
    }

    /// Sends small writes at once (TCP_NODELAY).
    ///
    /// # Errors
    /// As the kernel says.
    pub fn set_nodelay(&self) -> io::Result<()> {
        self.socket
            .shard
            .backend(|backend| backend.set_nodelay(self.socket.handle))
    }

    /// Receives up to the buffer's capacity. 0 bytes: the other end is done sending.
    pub async fn recv<B: IoBufMut>(&self, buf: B) -> BufResult<usize, B> {
        let op = OpFuture::start(&self.socket.shard, buf, Leaves::Nothing, |buf, shard| {
            Op::Recv {
                socket: self.socket.handle,
                span: target_span(buf, shard),
            }
        });
        let (outcome, mut buf) = op.await;
        let got = check(outcome.result);
        if let Ok(got) = got {
            buf.set_filled(got);
        }
        (got, buf)
    }

    /// Receives into a buffer that the kernel picks once bytes are there, so that an idle
    /// connection holds no memory. `None`: the other end is done sending.
    ///
    /// # Errors
    /// ENOBUFS (by `raw_os_error`) when the shard's receive ring is empty or missing: use
    /// [`TcpStream::recv`] with a buffer of one's own.
    pub async fn recv_ring(&self) -> io::Result<Option<RecvBuf>> {
        let shard = &self.socket.shard;
        let op = OpFuture::start(shard, (), Leaves::RingBuffer, |(), _| Op::RecvRing {
            socket: self.socket.handle,
            multishot: false,
        });
        let (outcome, ()) = op.await;
        received(shard, outcome.result, outcome.buffer)
    }

    /// A receiver that stays armed between messages.
    pub fn recv_stream(&self) -> RecvStream<'_> {
        RecvStream {
            stream: self,
            op: None,
        }
    }

    /// Sends the whole buffer.
    pub async fn send<B: IoBuf>(&self, buf: B) -> BufResult<(), B> {
        self.send_with(buf, SendHow::Plain).await
    }

    /// As [`TcpStream::send`], for bytes that others follow at once: the kernel may wait for them to
    /// fill a packet.
    pub async fn send_more<B: IoBuf>(&self, buf: B) -> BufResult<(), B> {
        self.send_with(buf, SendHow::MoreFollows).await
    }

    /// Sends the whole buffer from where it lies (SEND_ZC); pays from about 16 KiB on real links.
    pub async fn send_zero_copy<B: IoBuf>(&self, buf: B) -> BufResult<(), B> {
        self.send_with(buf, SendHow::ZeroCopy).await
    }

    async fn send_with<B: IoBuf>(&self, buf: B, how: SendHow) -> BufResult<(), B> {
        let len = buf.len();
        let op = OpFuture::start(&self.socket.shard, buf, Leaves::Nothing, |buf, shard| {
            Op::Send {
                socket: self.socket.handle,
                span: source_span(buf, shard),
                how,
            }
        });
        let (outcome, buf) = op.await;
        (all_sent(outcome.result, len), buf)
    }

    /// Sends two buffers as one message: a head and its body.
    pub async fn send_pair<A: IoBuf, B: IoBuf>(&self, head: A, body: B) -> BufResult<(), (A, B)> {
        let len = head.len() + body.len();
        let pair = Pair::boxed(head, body);
        let op = OpFuture::start(&self.socket.shard, pair, Leaves::Nothing, |pair, _| {
            Op::SendVectored {
                socket: self.socket.handle,
                iov: pair.iov.as_ptr(),
                count: 2,
                msg: &raw const pair.header,
            }
        });
        let (outcome, pair) = op.await;
        (all_sent(outcome.result, len), (pair.head, pair.body))
    }

    /// Sends a part of sealed pages from where they lie, without a copy: as much as there is room
    /// for, at least a byte, waiting for that. How many bytes were sent. When the future is dropped
    /// before it is ready, nothing was.
    ///
    /// # Errors
    /// As the kernel says.
    ///
    /// # Panics
    /// When the range is empty or past the pages.
    pub async fn send_pages(&self, pages: &Pages, range: Range<usize>) -> io::Result<usize> {
        assert!(range.start < range.end, "range {range:?} holds bytes");
        assert!(
            range.end <= pages.len(),
            "range {range:?} is past the pages"
        );
        let Socket { shard, handle } = &self.socket;
        loop {
            let send =
                |backend: &mut dyn IoBackend| backend.send_pages(*handle, pages, range.clone());
            match shard.backend(send) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return done,
            }
            let room = OpFuture::start(shard, (), Leaves::Nothing, |(), _| Op::AwaitRoom {
                socket: *handle,
            });
            let (outcome, ()) = room.await;
            check(outcome.result)?;
        }
    }

    /// Tells the other end that no more bytes follow.
    ///
    /// # Errors
    /// As the kernel says.
    pub async fn shutdown_write(&self) -> io::Result<()> {
        let op = Op::Shutdown {
            socket: self.socket.handle,
            write_only: true,
        };
        let (outcome, ()) =
            OpFuture::start(&self.socket.shard, (), Leaves::Nothing, |(), _| op).await;
        check(outcome.result).map(drop)
    }
}

fn all_sent(result: i32, len: usize) -> io::Result<()> {
    let sent = check(result)?;
    if sent == len {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::ConnectionReset,
        format!("sent {sent} of {len} bytes"),
    ))
}

fn received(
    shard: &Rc<ShardCore>,
    result: i32,
    buffer: Option<u16>,
) -> io::Result<Option<RecvBuf>> {
    match (check(result)?, buffer) {
        (len, Some(buffer)) => {
            let buf = RecvBuf {
                shard: Rc::clone(shard),
                buffer,
                len,
            };
            Ok((len > 0).then_some(buf))
        }
        (0, None) => Ok(None),
        (_, None) => Err(io::Error::from_raw_os_error(libc::ENOBUFS)),
    }
}

/// Two buffers behind one `msghdr`, boxed: the header points into the struct.
struct Pair<A, B> {
    head: A,
    body: B,
    iov: [libc::iovec; 2],
    header: libc::msghdr,
}

impl<A: IoBuf, B: IoBuf> Pair<A, B> {
    fn boxed(head: A, body: B) -> Box<Pair<A, B>> {
        let span = |ptr: *const u8, len| libc::iovec {
            iov_base: ptr.cast_mut().cast(),
            iov_len: len,
        };
        let mut pair = Box::new(Pair {
            iov: [
                span(head.as_ptr(), head.len()),
                span(body.as_ptr(), body.len()),
            ],
            head,
            body,
            // SAFETY: msghdr is plain data; all zeros is an empty header.
            header: unsafe { std::mem::zeroed() },
        });
        pair.header.msg_iov = pair.iov.as_mut_ptr();
        pair.header.msg_iovlen = pair.iov.len();
        pair
    }
}

/// Bytes received into the shard's receive ring; dropping it gives the buffer back.
pub struct RecvBuf {
    shard: Rc<ShardCore>,
    buffer: u16,
    len: usize,
}

impl Deref for RecvBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let ptr = self
            .shard
            .backend(|backend| backend.ring_buffer(self.buffer));
        // SAFETY: the kernel filled `len` bytes and does not touch the buffer until it is recycled,
        // which only our drop does.
        unsafe { std::slice::from_raw_parts(ptr, self.len) }
    }
}

impl Drop for RecvBuf {
    fn drop(&mut self) {
        self.shard
            .backend(|backend| backend.recycle_ring_buffer(self.buffer));
    }
}

/// See [`TcpStream::recv_stream`].
pub struct RecvStream<'a> {
    stream: &'a TcpStream,
    op: Option<MultiOp>,
}

impl RecvStream<'_> {
    /// The next bytes; `None` when the other end is done sending. Cancel-safe.
    ///
    /// # Errors
    /// ENOBUFS (by `raw_os_error`) when the ring is empty: drop received buffers and call again, or
    /// use [`TcpStream::recv`]; bytes are not lost.
    pub async fn next(&mut self) -> io::Result<Option<RecvBuf>> {
        let shard = &self.stream.socket.shard;
        loop {
            if self.op.is_none() {
                let op = Op::RecvRing {
                    socket: self.stream.socket.handle,
                    multishot: true,
                };
                self.op = Some(MultiOp::start(shard, Leaves::RingBuffer, op).ok_or_else(busy)?);
            }
            let op = self.op.as_mut().expect("armed above");
            match op.next().await {
                Some(item) => return received(shard, item.result, item.buffer),
                None => self.op = None,
            }
        }
    }
}

/// A datagram socket.
pub struct UdpSocket {
    socket: Socket,
}

impl UdpSocket {
    /// Binds.
    ///
    /// # Errors
    /// As the kernel says, with the address in the message.
    pub fn bind(addr: &Addr, reuse_port: bool) -> io::Result<UdpSocket> {
        let bind = BindOptions {
            reuse_port,
            backlog: 0,
        };
        Ok(UdpSocket {
            socket: Socket::bound(SocketKind::Datagram, addr, bind)?,
        })
    }

    /// The address it is bound to.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn local_addr(&self) -> io::Result<Addr> {
        self.socket.local_addr()
    }

    /// Receives one datagram and its sender.
    pub async fn recv_from<B: IoBufMut>(&self, mut buf: B) -> BufResult<(usize, Addr), B> {
        let datagram = DatagramBuf::boxed(buf.as_mut_ptr(), buf.capacity(), SockAddrBuf::empty());
        let op = OpFuture::start(
            &self.socket.shard,
            (datagram, buf),
            Leaves::Nothing,
            |(datagram, _), _| Op::RecvFrom {
                socket: self.socket.handle,
                datagram: &raw mut **datagram,
            },
        );
        let (outcome, (datagram, mut buf)) = op.await;
        let got = check(outcome.result).and_then(|len| Ok((len, datagram.addr.addr()?)));
        if let Ok((len, _)) = &got {
            buf.set_filled(*len);
        }
        (got, buf)
    }

    /// Sends one datagram.
    pub async fn send_to<B: IoBuf>(&self, buf: B, addr: &Addr) -> BufResult<usize, B> {
        let name = match SockAddrBuf::new(addr) {
            Ok(name) => name,
            Err(error) => return (Err(error), buf),
        };
        let datagram = DatagramBuf::boxed(buf.as_ptr().cast_mut(), buf.len(), name);
        let op = OpFuture::start(
            &self.socket.shard,
            (datagram, buf),
            Leaves::Nothing,
            |(datagram, _), _| Op::SendTo {
                socket: self.socket.handle,
                datagram: &raw const **datagram,
            },
        );
        let (outcome, (_, buf)) = op.await;
        (check(outcome.result), buf)
    }
}
