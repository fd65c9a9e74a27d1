//! A whole state as a stream of chunks, and back.
//!
//! A chunk is self-contained and checked by itself; the last one checks the whole.
//!
//! | bytes | what |
//! | --- | --- |
//! | 0..4 | `CFS1` |
//! | 4..12 | number of the chunk from 0, little-endian |
//! | 12 | 0: rows follow, 1: the end |
//! | 13..n-4 | rows; or, at the end, the number of rows and the CRC32C of every chunk's CRC32C |
//! | n-4..n | CRC32C of all before, little-endian |
//!
//! A row is the table (a byte), the lengths of key and value (`u32` each, little-endian), key,
//! value. Keys and values are those of the tables; a lease's are 8 and 16 bytes, big-endian.

#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod restore;

use std::ops::Bound;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use crc_fast::{CrcAlgorithm, Digest};
use prost::Message;

pub use restore::Restore;

use crate::error::Error;
use crate::load::StateRow;
use crate::revision::Revision;
use crate::tree::Element;
use crate::view::View;

const MAGIC: &[u8; 4] = b"CFS1";
const HEAD: usize = 13;
const TAIL: usize = 4;
const KIND_ROWS: u8 = 0;
const KIND_END: u8 = 1;

/// The tables, in the order of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Table {
    State = 0,
    Leases = 1,
    Users = 2,
    Roles = 3,
    Versions = 4,
}

/// Streams a view. The view, and the disk space of what it sees, is kept until this is dropped;
/// writes go on meanwhile.
///
/// Iterating gives the chunks in order, each at most as large as asked for or as one row needs.
#[derive(Debug)]
pub struct Snapshot {
    view: Arc<View>,
    chunk_bytes: usize,
    number: u64,
    rows: u64,
    chain: Digest,
    cursor: Option<(Table, Bound<Bytes>)>,
    ended: bool,
}

impl Snapshot {
    /// A stream of `view` in chunks of about `chunk_bytes`.
    pub fn new(view: Arc<View>, chunk_bytes: usize) -> Self {
        Self {
            view,
            chunk_bytes,
            number: 0,
            rows: 0,
            chain: Digest::new(CrcAlgorithm::Crc32Iscsi),
            cursor: Some((Table::State, Bound::Unbounded)),
            ended: false,
        }
    }

    /// What is streamed.
    pub fn view(&self) -> &Arc<View> {
        &self.view
    }

    fn chunk(&mut self) -> Result<Bytes, Error> {
        let mut chunk = BytesMut::with_capacity(self.chunk_bytes + HEAD + TAIL);
        chunk.put_slice(MAGIC);
        chunk.put_u64_le(self.number);
        if self.cursor.is_some() {
            chunk.put_u8(KIND_ROWS);
            while let Some((table, from)) = self.cursor.take() {
                let resume = self.fill(&mut chunk, table, &from)?;
                let full = resume.is_some();
                self.cursor = resume
                    .map(|from| (table, from))
                    .or_else(|| Some((table.next()?, Bound::Unbounded)));
                if full {
                    break;
                }
            }
        } else {
            chunk.put_u8(KIND_END);
            chunk.put_u64_le(self.rows);
            chunk.put_u32_le(self.chain.clone().finalize() as u32);
            self.ended = true;
        }
        let crc = crc32c(&chunk);
        chunk.put_u32_le(crc);
        self.chain.update(&crc.to_le_bytes());
        self.number += 1;
        Ok(chunk.freeze())
    }

    /// Adds rows of a table until the chunk is full: then tells where to go on.
    fn fill(
        &mut self,
        chunk: &mut BytesMut,
        table: Table,
        from: &Bound<Bytes>,
    ) -> Result<Option<Bound<Bytes>>, Error> {
        let view = Arc::clone(&self.view);
        for row in rows(&view, table, from)? {
            let (key, value) = row?;
            let needed = 9 + key.len() + value.len();
            let used = chunk.len() - HEAD;
            if used > 0 && used + needed > self.chunk_bytes {
                return Ok(Some(Bound::Included(key)));
            }
            chunk.put_u8(table as u8);
            chunk.put_u32_le(length(&key)?);
            chunk.put_u32_le(length(&value)?);
            chunk.put_slice(&key);
            chunk.put_slice(&value);
            self.rows += 1;
        }
        Ok(None)
    }
}

impl Iterator for Snapshot {
    type Item = Result<Bytes, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let chunk = self.chunk();
        self.ended |= chunk.is_err();
        Some(chunk)
    }
}

impl Table {
    fn next(self) -> Option<Self> {
        Some(match self {
            Self::State => Self::Leases,
            Self::Leases => Self::Users,
            Self::Users => Self::Roles,
            Self::Roles => Self::Versions,
            Self::Versions => return None,
        })
    }

    fn from_byte(byte: u8) -> Option<Self> {
        [
            Self::State,
            Self::Leases,
            Self::Users,
            Self::Roles,
            Self::Versions,
        ]
        .into_iter()
        .find(|table| *table as u8 == byte)
    }
}

type Row = Result<(Bytes, Bytes), Error>;
type Rows<'a> = Box<dyn Iterator<Item = Row> + 'a>;

/// The rows of a table from a key on.
fn rows<'a>(view: &'a View, table: Table, from: &Bound<Bytes>) -> Result<Rows<'a>, Error> {
    let state = view.state();
    let start = match from {
        Bound::Included(key) => key.clone(),
        _ => Bytes::new(),
    };
    Ok(match table {
        Table::State => {
            let row = StateRow::of(state).encode_to_vec();
            let key = Bytes::from_static(crate::store::STATE_ROW.as_bytes());
            Box::new(std::iter::once(Ok((key, row.into()))))
        }
        Table::Leases => Box::new(state.leases.range(&start, Bound::Unbounded).map(|lease| {
            let key = Bytes::copy_from_slice(lease.key());
            let times = [lease.ttl_s.to_be_bytes(), lease.remaining_s.to_be_bytes()];
            Ok((key, times.concat().into()))
        })),
        Table::Users => names(&state.auth.users, start),
        Table::Roles => names(&state.auth.roles, start),
        Table::Versions => {
            let from = start.as_ref().try_into().map(Revision::from_bytes);
            let versions = view.versions_from(from.unwrap_or_default())?;
            Box::new(versions.map(|row| {
                let (at, bytes) = row?;
                Ok((Bytes::copy_from_slice(&at.to_bytes()), bytes))
            }))
        }
    })
}

fn names<T: Message>(names: &std::collections::BTreeMap<String, T>, start: Bytes) -> Rows<'_> {
    Box::new(
        names
            .iter()
            .skip_while(move |(name, _)| name.as_bytes() < &start[..])
            .map(|(name, value)| {
                let key = Bytes::copy_from_slice(name.as_bytes());
                Ok((key, value.encode_to_vec().into()))
            }),
    )
}

fn length(bytes: &[u8]) -> Result<u32, Error> {
    u32::try_from(bytes.len())
        .map_err(|_| Error::corrupt("snapshot: a row of less than 4 GiB is expected"))
}

fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32
}
