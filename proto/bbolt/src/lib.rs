//! bbolt's database files (format 2), as etcd's tools read and write them: one writer that streams, one
//! reader, no I/O.
//!
//! A file is a sequence of pages, numbered from 0. Pages 0 and 1 are *meta* pages, of which the valid one
//! with the newest transaction counts; it names the root of a B+tree. That tree's leaves hold buckets: a
//! name and the root of another B+tree, whose leaves hold keys and values.
//!
//! | bytes of a page | what (little-endian, like everything) |
//! | --- | --- |
//! | 0..8 | its number |
//! | 8..10 | 1: branch, 2: leaf, 4: meta, 16: free list |
//! | 10..12 | how many elements |
//! | 12..16 | how many pages follow that belong to this one |
//!
//! | bytes of a meta page, after the head | what |
//! | --- | --- |
//! | 0..4, 4..8 | `0xED0CDAED`, version 2 |
//! | 8..12, 12..16 | bytes of a page, flags |
//! | 16..24, 24..32 | page of the root, its sequence |
//! | 32..40 | page of the free list |
//! | 40..48 | how many pages there are |
//! | 48..56 | transaction |
//! | 56..64 | FNV-1a of bytes 0..56 |
//!
//! | bytes of an element | of a branch | of a leaf |
//! | --- | --- | --- |
//! | 0..4 | where the key is, from here | 1: a bucket, 0: a value |
//! | 4..8 | length of the key | where the key is, from here; the value follows it |
//! | 8..12 | the child's page (8 bytes) | length of the key |
//! | 12..16 | | length of the value |
//!
//! [`Plan`] writes: it knows what bbolt would have to look up, the root's page, from a first walk over the
//! same entries, and so streams a file of any size in the memory of a few pages. [`Reader`] reads what
//! anybody wrote, and takes nothing on trust.

#![forbid(unsafe_code)]

mod error;
mod page;
mod read;
mod tree;
mod write;

pub use error::{Error, ErrorKind};
pub use read::{Cursor, Entry, Reader};
pub use write::{Contents, Plan};

/// Bytes of a page that [`Plan`] writes: what bbolt takes on most machines.
pub const PAGE_BYTES: usize = 4096;
/// Bytes of a key, at most: bbolt's bound.
pub const KEY_BYTES_MAX: usize = 32_768;
/// Bytes of a value, at most: bbolt's bound.
pub const VALUE_BYTES_MAX: usize = i32::MAX as usize - 1;
