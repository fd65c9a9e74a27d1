//! Answers to requests: simple ones, and chunks of structured ones.
//!
//! | bytes of a simple answer | what |
//! | --- | --- |
//! | 0..4 | `0x6744_6698` |
//! | 4..8 | [`NbdError`], 0 for none; then the data of a read follows |
//! | 8..16 | the request's cookie |
//!
//! | bytes of a chunk | what |
//! | --- | --- |
//! | 0..4 | `0x668E_33EF` |
//! | 4..6 | 1: the last one of its request ([`DONE`]) |
//! | 6..8 | [`ChunkKind`] |
//! | 8..16 | the request's cookie |
//! | 16..20 | length of what follows |

use crate::WireError;
use crate::cursor::Cursor;

const SIMPLE_MAGIC: u32 = 0x6744_6698;
const CHUNK_MAGIC: u32 = 0x668E_33EF;
/// Bytes of a simple answer without the data of a read.
pub const SIMPLE_BYTES: usize = 16;
/// Bytes of a chunk's head.
pub const CHUNK_BYTES: usize = 20;
/// A chunk's flag: no other follows.
pub const DONE: u16 = 1;
/// Longest text of an error.
const MESSAGE_BYTES_MAX: usize = 1024;

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NbdError(pub u32);

impl NbdError {
    /// Not allowed.
    pub const PERMISSION: NbdError = NbdError(1);
    /// The device failed.
    pub const IO: NbdError = NbdError(5);
    /// There is no memory for it now.
    pub const NO_MEMORY: NbdError = NbdError(12);
    /// The request makes no sense.
    pub const INVALID: NbdError = NbdError(22);
    /// There is no space for it.
    pub const NO_SPACE: NbdError = NbdError(28);
    /// The answer would be too long.
    pub const OVERFLOW: NbdError = NbdError(75);
    /// The device cannot do it, or not fast.
    pub const UNSUPPORTED: NbdError = NbdError(95);
    /// The export ends.
    pub const SHUTDOWN: NbdError = NbdError(108);
}

impl std::fmt::Display for NbdError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = match *self {
            NbdError::PERMISSION => "EPERM",
            NbdError::IO => "EIO",
            NbdError::NO_MEMORY => "ENOMEM",
            NbdError::INVALID => "EINVAL",
            NbdError::NO_SPACE => "ENOSPC",
            NbdError::OVERFLOW => "EOVERFLOW",
            NbdError::UNSUPPORTED => "ENOTSUP",
            NbdError::SHUTDOWN => "ESHUTDOWN",
            NbdError(number) => return write!(f, "error {number}"),
        };
        f.write_str(name)
    }
}

/// What a chunk holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkKind(pub u16);

impl ChunkKind {
    /// Nothing.
    pub const NONE: ChunkKind = ChunkKind(0);
    /// Data behind its offset.
    pub const DATA: ChunkKind = ChunkKind(1);
    /// An offset and a number of zeros.
    pub const HOLE: ChunkKind = ChunkKind(2);
    /// Extents of one context.
    pub const BLOCK_STATUS: ChunkKind = ChunkKind(5);
    /// The export's size from now on, in 8 bytes; in a [session](crate::session) alone.
    pub const SIZE: ChunkKind = ChunkKind(0x5543);
    /// An error.
    pub const ERROR: ChunkKind = ChunkKind(1 << 15 | 1);
    /// An error at an offset.
    pub const ERROR_OFFSET: ChunkKind = ChunkKind(1 << 15 | 2);

    /// Whether the request has failed.
    pub fn is_error(self) -> bool {
        self.0 & 1 << 15 != 0
    }
}

/// The head of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Whether it is the last one of its request.
    pub done: bool,
    /// What it holds.
    pub kind: ChunkKind,
    /// The request's.
    pub cookie: u64,
    /// Bytes that follow.
    pub len: u32,
}

/// The head of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are the protocol's")]
pub enum ReplyHead {
    /// A simple answer.
    Simple {
        error: Option<NbdError>,
        cookie: u64,
    },
    /// A chunk.
    Chunk(Chunk),
}

impl ReplyHead {
    /// Whether the first four bytes begin a chunk: then the head has [`CHUNK_BYTES`], else
    /// [`SIMPLE_BYTES`].
    ///
    /// # Errors
    /// When they begin neither.
    pub fn begins_chunk(first: [u8; 4]) -> Result<bool, WireError> {
        match u32::from_be_bytes(first) {
            SIMPLE_MAGIC => Ok(false),
            CHUNK_MAGIC => Ok(true),
            found => Err(WireError::Magic {
                what: "an answer",
                found: u64::from(found),
            }),
        }
    }

    /// Reads a head.
    ///
    /// # Errors
    /// When it is none.
    pub fn parse(bytes: &[u8]) -> Result<ReplyHead, WireError> {
        let malformed = WireError::Malformed {
            what: "an answer",
            len: bytes.len(),
        };
        let (first, rest) = bytes.split_first_chunk().ok_or(malformed.clone())?;
        let mut cursor = Cursor::new(rest);
        let parsed = if ReplyHead::begins_chunk(*first)? {
            chunk_head(&mut cursor)
        } else {
            simple_head(&mut cursor)
        };
        parsed.filter(|_| cursor.is_empty()).ok_or(malformed)
    }
}

fn simple_head(cursor: &mut Cursor<'_>) -> Option<ReplyHead> {
    let error = cursor.u32()?;
    Some(ReplyHead::Simple {
        error: (error != 0).then_some(NbdError(error)),
        cookie: cursor.u64()?,
    })
}

fn chunk_head(cursor: &mut Cursor<'_>) -> Option<ReplyHead> {
    Some(ReplyHead::Chunk(Chunk {
        done: cursor.u16()? & DONE != 0,
        kind: ChunkKind(cursor.u16()?),
        cookie: cursor.u64()?,
        len: cursor.u32()?,
    }))
}

/// A simple answer; the data of a read that succeeded follows it.
pub fn simple(error: Option<NbdError>, cookie: u64) -> [u8; SIMPLE_BYTES] {
    let mut out = [0; SIMPLE_BYTES];
    out[..4].copy_from_slice(&SIMPLE_MAGIC.to_be_bytes());
    out[4..8].copy_from_slice(&error.map_or(0, |error| error.0).to_be_bytes());
    out[8..].copy_from_slice(&cookie.to_be_bytes());
    out
}

/// The head of a chunk.
pub fn chunk(head: &Chunk) -> [u8; CHUNK_BYTES] {
    let mut out = [0; CHUNK_BYTES];
    out[..4].copy_from_slice(&CHUNK_MAGIC.to_be_bytes());
    out[4..6].copy_from_slice(&(if head.done { DONE } else { 0 }).to_be_bytes());
    out[6..8].copy_from_slice(&head.kind.0.to_be_bytes());
    out[8..16].copy_from_slice(&head.cookie.to_be_bytes());
    out[16..].copy_from_slice(&head.len.to_be_bytes());
    out
}

/// What follows the head of an error: with `offset`, of [`ChunkKind::ERROR_OFFSET`].
pub fn error_body(error: NbdError, message: &str, offset: Option<u64>) -> Vec<u8> {
    let mut end = message.len().min(MESSAGE_BYTES_MAX);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    let mut out = error.0.to_be_bytes().to_vec();
    out.extend((end as u16).to_be_bytes());
    out.extend(&message.as_bytes()[..end]);
    if let Some(offset) = offset {
        out.extend(offset.to_be_bytes());
    }
    out
}

/// The error and its text in what follows the head of an error.
///
/// # Errors
/// When it is cut short.
pub fn parse_error_body(data: &[u8]) -> Result<(NbdError, String), WireError> {
    let mut cursor = Cursor::new(data);
    let mut parse = || {
        let error = NbdError(cursor.u32()?);
        let len = usize::from(cursor.u16()?);
        let message = String::from_utf8_lossy(cursor.take(len)?);
        Some((error, message.into_owned()))
    };
    parse().ok_or(WireError::Malformed {
        what: "an error",
        len: data.len(),
    })
}

/// A part of an export in a context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Number of bytes.
    pub len: u32,
    /// What the context says of them.
    pub flags: u32,
}

/// What follows the head of [`ChunkKind::BLOCK_STATUS`].
pub fn block_status(context: u32, extents: &[Extent]) -> Vec<u8> {
    let mut out = context.to_be_bytes().to_vec();
    for extent in extents {
        out.extend(extent.len.to_be_bytes());
        out.extend(extent.flags.to_be_bytes());
    }
    out
}

/// The context and its extents in what follows the head of [`ChunkKind::BLOCK_STATUS`].
///
/// # Errors
/// When there is no extent, or not a whole number of them, or an empty one.
pub fn parse_block_status(data: &[u8]) -> Result<(u32, Vec<Extent>), WireError> {
    let mut cursor = Cursor::new(data);
    let mut parse = || {
        let context = cursor.u32()?;
        let mut extents = Vec::new();
        while !cursor.is_empty() {
            let (len, flags) = (cursor.u32()?, cursor.u32()?);
            extents.push(Extent { len, flags });
        }
        let sound = !extents.is_empty() && extents.iter().all(|extent| extent.len > 0);
        sound.then_some((context, extents))
    };
    parse().ok_or(WireError::Malformed {
        what: "a block status",
        len: data.len(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_read_back() {
        for error in [None, Some(NbdError::NO_SPACE)] {
            let bytes = simple(error, 9);
            let head = ReplyHead::Simple { error, cookie: 9 };
            assert_eq!(ReplyHead::parse(&bytes), Ok(head));
        }
        for done in [false, true] {
            let head = Chunk {
                done,
                kind: ChunkKind::DATA,
                cookie: u64::MAX,
                len: 8,
            };
            assert_eq!(ReplyHead::parse(&chunk(&head)), Ok(ReplyHead::Chunk(head)));
        }
        ReplyHead::parse(&[0; 16]).expect_err("no magic");
        ReplyHead::parse(&simple(None, 1)[..15]).expect_err("cut short");
        ReplyHead::parse(b"x").expect_err("cut short");
    }

    #[test]
    fn bodies_are_read_back() {
        let bytes = error_body(NbdError::IO, "the disk failed", Some(512));
        let parsed = parse_error_body(&bytes).expect("an error");
        assert_eq!(parsed, (NbdError::IO, "the disk failed".to_owned()));
        let extents = [Extent { len: 512, flags: 0 }, Extent { len: 512, flags: 3 }];
        let bytes = block_status(1, &extents);
        assert_eq!(parse_block_status(&bytes), Ok((1, extents.to_vec())));
        parse_block_status(&bytes[..5]).expect_err("no whole number");
        parse_block_status(&bytes[..4]).expect_err("no extent");
        parse_block_status(&block_status(1, &[Extent { len: 0, flags: 0 }])).expect_err("empty");
    }

    #[test]
    fn long_messages_are_cut_between_letters() {
        let long = "ö".repeat(1000);
        let (_, message) = parse_error_body(&error_body(NbdError::IO, &long, None)).expect("fits");
        assert_eq!(message, "ö".repeat(512));
    }
}
