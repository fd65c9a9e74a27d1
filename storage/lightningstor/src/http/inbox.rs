//! The receiving side of a connection: bytes that have arrived and are not used yet.
//!
//! An idle connection holds no memory: the kernel picks a buffer of the shard's receive ring once
//! bytes are there. What is left over after a head stays here, so that pipelined requests and the
//! start of a body are never lost. It holds at most a head and one receive.

use std::io;
use std::rc::Rc;

use engine::DmaBuf;
use engine::net::TcpStream;

/// Receive size when the shard's receive ring is empty or missing.
const FALLBACK_BYTES: usize = 4096;
/// The kernel's number for "no buffer space available", which an empty receive ring answers.
const ENOBUFS: i32 = 105;

/// Bytes received and not consumed.
pub(crate) struct Inbox {
    stream: Rc<TcpStream>,
    bytes: Vec<u8>,
    at: usize,
}

impl Inbox {
    pub(crate) fn new(stream: Rc<TcpStream>) -> Inbox {
        Inbox {
            stream,
            bytes: Vec::new(),
            at: 0,
        }
    }

    /// What has arrived and is not consumed.
    pub(crate) fn unread(&self) -> &[u8] {
        &self.bytes[self.at..]
    }

    /// Marks bytes as used.
    pub(crate) fn consume(&mut self, count: usize) {
        self.at += count;
        assert!(
            self.at <= self.bytes.len(),
            "only bytes that arrived are consumed"
        );
        if self.at == self.bytes.len() {
            self.bytes.clear();
            self.at = 0;
        }
    }

    /// Gives the memory back when nothing waits in it.
    pub(crate) fn release(&mut self) {
        if self.bytes.is_empty() {
            self.bytes = Vec::new();
        }
    }

    /// Receives up to `count` bytes when nothing waits here; for bodies that have to be decoded.
    pub(crate) async fn fill_large(&mut self, count: usize) -> io::Result<usize> {
        assert!(self.bytes.is_empty(), "what waits is consumed first");
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.resize(count.max(1), 0);
        let (received, mut bytes) = self.stream.recv(bytes).await;
        bytes.truncate(*received.as_ref().unwrap_or(&0));
        self.bytes = bytes;
        received
    }

    /// Receives more; 0 when the other end is done sending. Cancel-safe before bytes arrive.
    pub(crate) async fn fill(&mut self) -> io::Result<usize> {
        match self.stream.recv_ring().await {
            Ok(Some(received)) => {
                self.bytes.extend_from_slice(&received);
                Ok(received.len())
            }
            Ok(None) => Ok(0),
            Err(error) if is_ring_empty(&error) => {
                let (received, bytes) = self.stream.recv(vec![0; FALLBACK_BYTES]).await;
                let count = received?;
                self.bytes.extend_from_slice(&bytes[..count]);
                Ok(count)
            }
            Err(error) => Err(error),
        }
    }

    /// Receives into `buf` from `filled` on, up to `end`: first what waits here, else straight from
    /// the socket. How many bytes came; 0 when the other end is done sending.
    pub(crate) async fn fill_buf(
        &mut self,
        mut buf: DmaBuf,
        filled: usize,
        end: usize,
    ) -> (io::Result<usize>, DmaBuf) {
        buf.set_len(filled);
        let waiting = self.unread();
        if !waiting.is_empty() {
            let count = waiting.len().min(end - filled);
            buf.extend_from_slice(&waiting[..count]);
            self.consume(count);
            return (Ok(count), buf);
        }
        let (received, slice) = self.stream.recv(buf.slice(filled..end)).await;
        (received, slice.into_inner())
    }
}

fn is_ring_empty(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::OutOfMemory || error.raw_os_error() == Some(ENOBUFS)
}
