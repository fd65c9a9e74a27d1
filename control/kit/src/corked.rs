//! A stream that holds small writes back for a moment, so that what belongs together leaves together.
//!
//! HTTP/2 writes a message in parts: an answer's head and body, then the trailers that gRPC ends with;
//! a request's head, its body, and the empty frame that ends it. There is a flush behind each part, so
//! each would cost a system call and wake the other side. Here the first flush behind a small write only
//! asks to be called again soon, once the other tasks that can run have run; what has come until then,
//! of this message or of others on the same connection, leaves in one call.
//!
//! HTTP/1.1 writes an answer in one piece, and would wait for nothing: a server holds nothing back
//! before it has read that its client speaks HTTP/2.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What is longer gains nothing by waiting.
const HELD_BYTES_MAX: usize = 4096;
/// How what a client of HTTP/2 sends begins, and no request of HTTP/1.1.
const PREFACE: &[u8] = b"PRI ";

/// See the module.
pub(crate) struct Corked<S> {
    stream: S,
    /// Whether there is something to gain; a server knows it by the first bytes that it reads.
    holds: Option<bool>,
    held: BytesMut,
    /// The next flush only asks for another.
    deferring: bool,
}

impl<S> Corked<S> {
    /// A client's side, which speaks HTTP/2.
    pub(crate) fn of_client(stream: S) -> Self {
        Self::with(stream, Some(true))
    }

    /// A server's side.
    pub(crate) fn of_server(stream: S) -> Self {
        Self::with(stream, None)
    }

    fn with(stream: S, holds: Option<bool>) -> Self {
        Self {
            stream,
            holds,
            held: BytesMut::new(),
            deferring: false,
        }
    }

    /// Takes all of `parts` if they are to be held.
    fn hold(&mut self, parts: &[IoSlice<'_>]) -> Option<usize> {
        if self.holds != Some(true) {
            return None;
        }
        let len = parts.iter().map(|part| part.len()).sum::<usize>();
        if self.held.len() + len > HELD_BYTES_MAX {
            return None;
        }
        self.deferring |= self.held.is_empty();
        for part in parts {
            self.held.extend_from_slice(part);
        }
        Some(len)
    }
}

impl<S: AsyncWrite + Unpin> Corked<S> {
    fn write_held(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.deferring = false;
        while !self.held.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.held))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.held.advance(written);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Corked<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let filled = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        let read = &buf.filled()[filled..];
        if self.holds.is_none() && !read.is_empty() {
            self.holds = Some(read.starts_with(PREFACE));
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Corked<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Some(len) = self.hold(parts) {
            return Poll::Ready(Ok(len));
        }
        ready!(self.write_held(cx))?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if std::mem::take(&mut self.deferring) {
            cx.waker().wake_by_ref();
            return Poll::Ready(Ok(()));
        }
        ready!(self.write_held(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.write_held(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Wake, Waker};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// What was written, call by call; of each call at most `call_max` bytes.
    struct Calls {
        calls: Vec<Vec<u8>>,
        call_max: usize,
    }

    impl AsyncWrite for Calls {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<io::Result<usize>> {
            let taken = buf.len().min(self.call_max);
            self.calls.push(buf[..taken].to_vec());
            Poll::Ready(Ok(taken))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    struct Driven {
        corked: Corked<Calls>,
        wakes: Arc<Wakes>,
    }

    impl Driven {
        fn new(call_max: usize) -> Self {
            let calls = Vec::new();
            Self {
                corked: Corked::of_client(Calls { calls, call_max }),
                wakes: Arc::default(),
            }
        }

        fn poll<T>(
            &mut self,
            act: impl FnOnce(Pin<&mut Corked<Calls>>, &mut Context<'_>) -> Poll<io::Result<T>>,
        ) -> T {
            let waker = Waker::from(Arc::clone(&self.wakes));
            let polled = act(Pin::new(&mut self.corked), &mut Context::from_waker(&waker));
            match polled {
                Poll::Ready(result) => result.unwrap(),
                Poll::Pending => panic!("nothing here waits"),
            }
        }

        fn write(&mut self, bytes: &[u8]) {
            let mut rest = bytes;
            while !rest.is_empty() {
                let written = self.poll(|corked, cx| corked.poll_write(cx, rest));
                rest = &rest[written..];
            }
        }

        fn flush(&mut self) {
            self.poll(AsyncWrite::poll_flush);
        }

        fn calls(&self) -> &[Vec<u8>] {
            &self.corked.stream.calls
        }
    }

    #[test]
    fn parts_that_are_a_flush_apart_leave_in_one_call() {
        let mut stream = Driven::new(usize::MAX);
        stream.write(b"head, body");
        stream.flush();
        assert!(stream.calls().is_empty());
        assert_eq!(stream.wakes.0.load(Ordering::Relaxed), 1);
        stream.write(b", trailers");
        stream.flush();
        assert_eq!(stream.calls(), [b"head, body, trailers"]);
    }

    #[test]
    fn what_nothing_follows_leaves_when_the_task_runs_again() {
        let mut stream = Driven::new(usize::MAX);
        stream.write(b"alone");
        stream.flush();
        assert_eq!(stream.wakes.0.load(Ordering::Relaxed), 1);
        stream.flush();
        assert_eq!(stream.calls(), [b"alone"]);
        // The next message is held again.
        stream.write(b"next");
        stream.flush();
        assert_eq!(stream.calls().len(), 1);
    }

    #[test]
    fn long_writes_pass_behind_what_was_held_and_nothing_is_lost_by_short_calls() {
        let mut stream = Driven::new(1000);
        let long = vec![b'x'; HELD_BYTES_MAX + 1];
        stream.write(b"before ");
        stream.write(&long);
        stream.write(b" after");
        stream.poll(AsyncWrite::poll_shutdown);
        let all = [b"before ".as_slice(), &long, b" after"].concat();
        assert_eq!(stream.calls().concat(), all);
    }

    #[tokio::test]
    async fn a_server_holds_back_what_http2_writes_and_nothing_else() {
        for (reads, holds) in [
            (&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], true),
            (b"PUT /a HTTP/1.1\r\n\r\n", false),
        ] {
            let (mut client, server) = tokio::io::duplex(64);
            client.write_all(reads).await.unwrap();
            let mut corked = Corked::of_server(server);
            let mut read = vec![0; reads.len()];
            corked.read_exact(&mut read).await.unwrap();
            assert_eq!(read, reads);
            let whole = corked.hold(&[IoSlice::new(b"answer")]);
            assert_eq!(whole.is_some(), holds);
        }
    }
}
