//! NBD, the network block device protocol, as bytes: fixed newstyle negotiation, simple and structured
//! replies, no I/O. Numbers are big-endian. Source: `doc/proto.md` of NetworkBlockDevice/nbd.
//!
//! A connection begins with the server's greeting (18 bytes), the client's flags (4 bytes), and options
//! until one of them begins the transmission of requests.
//!
//! | bytes of the greeting | what |
//! | --- | --- |
//! | 0..8 | `NBDMAGIC` |
//! | 8..16 | `IHAVEOPT` |
//! | 16..18 | [`handshake`] |
//!
//! What the other side sent is parsed here into types that cannot be wrong, and no length is trusted:
//! who receives says how many bytes there may be.
#![forbid(unsafe_code)]

mod answer;
mod cursor;
mod option;
mod reply;
mod request;
pub mod session;

pub use answer::{CHUNK_BYTES, DONE, block_status, chunk, error_body, parse_block_status};
pub use answer::{Chunk, ChunkKind, Extent, NbdError, ReplyHead, SIMPLE_BYTES};
pub use answer::{parse_error_body, simple};
pub use option::{ClientOption, OPTION_BYTES, OptionCode, OptionHead};
pub use reply::{BlockSizes, Info, OptionReply, REPLY_BYTES, ReplyHeadOfOption, ReplyType};
pub use request::{Command, REQUEST_BYTES, Request};

/// `NBDMAGIC`.
pub const MAGIC: u64 = 0x4E42_444D_4147_4943;
/// `IHAVEOPT`: the greeting's second word, and the first of every option.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454F_5054;
/// Bytes of the greeting.
pub const GREETING_BYTES: usize = 18;
/// Longest name or text that the protocol has.
pub const TEXT_BYTES_MAX: usize = 4096;
/// Largest transfer that a client may take for granted.
pub const PAYLOAD_BYTES_MAX: u32 = 32 << 20;

/// What both sides say in the greeting, and the client in its answer.
pub mod handshake {
    /// Options are answered, whatever they are.
    pub const FIXED_NEWSTYLE: u16 = 1;
    /// The 124 zeros after an export that was chosen by name are left out.
    pub const NO_ZEROES: u16 = 2;
}

/// What an export can do.
pub mod transmission {
    /// Always there.
    pub const HAS_FLAGS: u16 = 1;
    /// Nothing changes it.
    pub const READ_ONLY: u16 = 1 << 1;
    /// It has a flush.
    pub const FLUSH: u16 = 1 << 2;
    /// Writes may be asked to be durable.
    pub const FUA: u16 = 1 << 3;
    /// It has a trim.
    pub const TRIM: u16 = 1 << 5;
    /// It writes zeros without their bytes.
    pub const WRITE_ZEROES: u16 = 1 << 6;
    /// Reads may be asked to come whole.
    pub const DF: u16 = 1 << 7;
    /// A flush on one connection is for the writes of all.
    pub const MULTI_CONN: u16 = 1 << 8;
    /// Zeros may be asked for only when they are fast.
    pub const FAST_ZERO: u16 = 1 << 11;
}

/// Flags of a request.
pub mod command_flag {
    /// The change is to be durable.
    pub const FUA: u16 = 1;
    /// Zeros keep their space.
    pub const NO_HOLE: u16 = 1 << 1;
    /// The data comes in one chunk.
    pub const DF: u16 = 1 << 2;
    /// One extent is enough.
    pub const REQ_ONE: u16 = 1 << 3;
    /// Zeros only when that is faster than writing them.
    pub const FAST_ZERO: u16 = 1 << 4;
}

/// Flags of an extent in `base:allocation`.
pub mod allocation {
    /// Nothing is allocated for it.
    pub const HOLE: u32 = 1;
    /// It reads as zeros.
    pub const ZERO: u32 = 2;
}

/// The context of what is allocated.
pub const ALLOCATION_CONTEXT: &str = "base:allocation";

/// What was received is not NBD, or not to be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// A magic number is wrong.
    #[error("{what} begins with {found:#x}")]
    Magic {
        /// Of what.
        what: &'static str,
        /// What stood there.
        found: u64,
    },
    /// It ends too early, has something behind it, or says what cannot be.
    #[error("{what} of {len} bytes is malformed")]
    Malformed {
        /// What it should have been.
        what: &'static str,
        /// Its length.
        len: usize,
    },
}

/// The greeting of a server.
pub fn greeting(flags: u16) -> [u8; GREETING_BYTES] {
    let mut bytes = [0; GREETING_BYTES];
    bytes[..8].copy_from_slice(&MAGIC.to_be_bytes());
    bytes[8..16].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
    bytes[16..].copy_from_slice(&flags.to_be_bytes());
    bytes
}

/// The flags in a greeting.
///
/// # Errors
/// When it is not one of a newstyle server.
pub fn parse_greeting(bytes: &[u8; GREETING_BYTES]) -> Result<u16, WireError> {
    let mut cursor = cursor::Cursor::new(bytes);
    let magics = [(MAGIC, "the greeting"), (OPTION_MAGIC, "the negotiation")];
    for (wanted, what) in magics {
        let found = cursor.u64().unwrap_or_default();
        if found != wanted {
            return Err(WireError::Magic { what, found });
        }
    }
    Ok(cursor.u16().unwrap_or_default())
}

/// What follows an export that was chosen by [`ClientOption::ExportName`].
pub fn export_name_reply(bytes: u64, flags: u16, zeroes: bool) -> Vec<u8> {
    let mut out = bytes.to_be_bytes().to_vec();
    out.extend(flags.to_be_bytes());
    if zeroes {
        out.resize(out.len() + 124, 0);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greeting_is_read_back_and_any_other_is_refused() {
        let bytes = greeting(3);
        assert_eq!(&bytes[..16], b"NBDMAGICIHAVEOPT");
        assert_eq!(parse_greeting(&bytes), Ok(3));
        for at in 0..16 {
            let mut wrong = bytes;
            wrong[at] ^= 1;
            assert!(matches!(
                parse_greeting(&wrong),
                Err(WireError::Magic { .. })
            ));
        }
    }

    #[test]
    fn a_chosen_export_is_followed_by_zeros_unless_they_are_left_out() {
        assert_eq!(export_name_reply(5, 1, false).len(), 10);
        assert_eq!(export_name_reply(5, 1, true).len(), 134);
    }
}
