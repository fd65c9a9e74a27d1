//! Requests of the transmission.
//!
//! | bytes | what |
//! | --- | --- |
//! | 0..4 | `0x2560_9513` |
//! | 4..6 | [`crate::command_flag`] |
//! | 6..8 | [`Command`] |
//! | 8..16 | cookie: what the answer has, too |
//! | 16..24 | first byte |
//! | 24..28 | bytes; those of a write follow |

use crate::WireError;
use crate::cursor::Cursor;

const MAGIC: u32 = 0x2560_9513;
/// Bytes of a request without the data of a write.
pub const REQUEST_BYTES: usize = 28;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Reads.
    Read,
    /// Writes the bytes that follow.
    Write,
    /// Ends the connection.
    Disconnect,
    /// Makes durable what was written.
    Flush,
    /// Says that a range is not needed.
    Trim,
    /// Reads ahead.
    Cache,
    /// Writes zeros.
    WriteZeroes,
    /// Asks for extents.
    BlockStatus,
    /// Another.
    Unknown(u16),
}

impl Command {
    fn number(self) -> u16 {
        match self {
            Command::Read => 0,
            Command::Write => 1,
            Command::Disconnect => 2,
            Command::Flush => 3,
            Command::Trim => 4,
            Command::Cache => 5,
            Command::WriteZeroes => 6,
            Command::BlockStatus => 7,
            Command::Unknown(number) => number,
        }
    }

    fn of(number: u16) -> Command {
        match number {
            0 => Command::Read,
            1 => Command::Write,
            2 => Command::Disconnect,
            3 => Command::Flush,
            4 => Command::Trim,
            5 => Command::Cache,
            6 => Command::WriteZeroes,
            7 => Command::BlockStatus,
            other => Command::Unknown(other),
        }
    }
}

/// A request without the data of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// See [`crate::command_flag`].
    pub flags: u16,
    /// What is asked for.
    pub command: Command,
    /// What the answer has, too.
    pub cookie: u64,
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub len: u32,
}

impl Request {
    /// Reads one.
    ///
    /// # Errors
    /// When the magic is wrong: nobody knows then where the next one begins.
    pub fn parse(bytes: &[u8; REQUEST_BYTES]) -> Result<Request, WireError> {
        let mut cursor = Cursor::new(bytes);
        let found = cursor.u32().unwrap_or_default();
        if found != MAGIC {
            return Err(WireError::Magic {
                what: "a request",
                found: u64::from(found),
            });
        }
        Ok(Request {
            flags: cursor.u16().unwrap_or_default(),
            command: Command::of(cursor.u16().unwrap_or_default()),
            cookie: cursor.u64().unwrap_or_default(),
            offset: cursor.u64().unwrap_or_default(),
            len: cursor.u32().unwrap_or_default(),
        })
    }

    /// Its bytes.
    pub fn encode(&self) -> [u8; REQUEST_BYTES] {
        let mut out = [0; REQUEST_BYTES];
        out[..4].copy_from_slice(&MAGIC.to_be_bytes());
        out[4..6].copy_from_slice(&self.flags.to_be_bytes());
        out[6..8].copy_from_slice(&self.command.number().to_be_bytes());
        out[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        out[16..24].copy_from_slice(&self.offset.to_be_bytes());
        out[24..].copy_from_slice(&self.len.to_be_bytes());
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_back() {
        for number in 0..10 {
            let request = Request {
                flags: 3,
                command: Command::of(number),
                cookie: 0x0102_0304_0506_0708,
                offset: 1 << 40,
                len: 4096,
            };
            assert_eq!(Request::parse(&request.encode()), Ok(request));
        }
        Request::parse(&[0; REQUEST_BYTES]).expect_err("no magic");
    }
}
