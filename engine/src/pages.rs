//! Sealed pages: bytes in memory that nobody can change any more, and that a socket sends from where
//! they lie ([`crate::net::TcpStream::send_pages`]).
//!
//! Invariant: the bytes are those that [`Pages::seal`] was given, for as long as anybody, a packet
//! on its way included, refers to them. Under the kernel they lie in a memfd of their own that is
//! sealed against writes, holes and truncation before anybody sees it; its memory is free once the
//! last [`Pages`] and the last packet are gone. Nothing here reads a disk.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;

use crate::backend::pages;
use crate::shard::current;

/// Most bytes of one [`Pages`]: they are copied in one go on the shard's thread.
pub const PAGES_MAX: usize = 256 << 10;

/// Where a backend keeps sealed bytes.
pub(crate) enum PageStore {
    /// A sealed memfd.
    File(OwnedFd),
    /// The simulator's memory.
    Heap(Box<[u8]>),
}

/// Bytes that cannot change. Each holds one file descriptor. Share them, across shards too, in an
/// `Arc`.
pub struct Pages {
    store: PageStore,
    len: usize,
}

impl fmt::Debug for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pages")
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

impl Pages {
    /// Copies bytes into pages and seals them.
    ///
    /// # Errors
    /// When descriptors or memory are used up, or the kernel has no memfd.
    ///
    /// # Panics
    /// Without bytes, or past [`PAGES_MAX`].
    pub fn seal(bytes: &[u8]) -> io::Result<Pages> {
        assert!(
            (1..=PAGES_MAX).contains(&bytes.len()),
            "{} bytes are no content of pages",
            bytes.len()
        );
        let store = current().backend(|backend| backend.seal_pages(bytes))?;
        Ok(Pages {
            store,
            len: bytes.len(),
        })
    }

    /// Number of bytes, never 0.
    #[expect(clippy::len_without_is_empty, reason = "there are no empty pages")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Copies the bytes from `offset` on, until `into` is full.
    ///
    /// # Errors
    /// As the kernel says.
    ///
    /// # Panics
    /// When there are fewer bytes.
    pub fn copy_to(&self, offset: usize, into: &mut [u8]) -> io::Result<()> {
        let end = offset.saturating_add(into.len());
        assert!(end <= self.len, "bytes up to {end} of {}", self.len);
        match &self.store {
            PageStore::File(file) => pages::read(file, offset as u64, into),
            PageStore::Heap(bytes) => {
                into.copy_from_slice(&bytes[offset..end]);
                Ok(())
            }
        }
    }

    pub(crate) fn store(&self) -> &PageStore {
        &self.store
    }
}
