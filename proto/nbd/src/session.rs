//! What a server and a client of ours tell each other beyond the protocol's own words, in contexts of the
//! namespace `ultracloud`. Others neither ask for them nor see them chosen.
//!
//! A client asks [`OptionCode::SET_META_CONTEXT`](crate::OptionCode::SET_META_CONTEXT) for
//! `ultracloud:session:TOKEN`, with a token that is its own over all of its connections. What it is answered:
//!
//! | context | what it says |
//! | --- | --- |
//! | `ultracloud:verifier:TOKEN` | the [verifier](VERIFIER) |
//! | `ultracloud:device:…` | the device's [`Shape`] |
//!
//! With that it has a session:
//! - Requests of its older connections to the export have ended before those of a newer one begin.
//! - What is no answer may come, with the cookie [`NOTICE`]: an error says that the export has ended and does
//!   not come again; a [`ChunkKind::SIZE`](crate::ChunkKind::SIZE) says its size from now on.

use std::fmt;
use std::fmt::Write as _;
use std::str::FromStr;

/// Begins the query for a session; the client's token follows.
pub const SESSION: &str = "ultracloud:session:";
/// Begins the context that names the verifier: another token each time that something that was acknowledged
/// may have been lost, and of each export that is another one.
pub const VERIFIER: &str = "ultracloud:verifier:";
/// Begins the context that says what the device is like.
pub const DEVICE: &str = "ultracloud:device:";
/// The cookie of what answers no request; no client of ours has a request of this one.
pub const NOTICE: u64 = u64::MAX;

/// A number that nobody guesses, as 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token(pub u128);

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// It is no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a token has 32 hexadecimal digits in lower case")]
pub struct NoToken;

impl FromStr for Token {
    type Err = NoToken;

    fn from_str(text: &str) -> Result<Token, NoToken> {
        let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.len() != 32 || !text.bytes().all(digit) {
            return Err(NoToken);
        }
        u128::from_str_radix(text, 16)
            .map(Token)
            .map_err(|_| NoToken)
    }
}

/// What a device is like beyond its size and its smallest block: what its guests see of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// The size of writes that move nothing else.
    pub physical_bytes: u32,
    /// The size of I/O that suits best, 0 when there is none.
    pub optimal_bytes: u32,
    /// The size of discards that free space, 0 when there are none.
    pub discard_granularity: u32,
    /// What it calls itself, padded with zeros.
    pub serial: [u8; 20],
}

impl Shape {
    /// The name of the context that says it.
    pub fn context(&self) -> String {
        let mut context = format!("{DEVICE}{self}:");
        for byte in self.serial {
            // Writing to a String cannot fail.
            let _ = write!(context, "{byte:02x}");
        }
        context
    }

    /// Reads the name of a context; `None` when it says something else.
    pub fn of_context(name: &str) -> Option<Shape> {
        let mut fields = name.strip_prefix(DEVICE)?.split(':');
        let mut size = || {
            let size: u32 = fields.next()?.parse().ok()?;
            (size == 0 || (size.is_power_of_two() && size >= 512)).then_some(size)
        };
        let (physical_bytes, optimal_bytes, discard_granularity) = (size()?, size()?, size()?);
        let digits = fields.next()?;
        let plain = digits.len() == 40 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !plain || physical_bytes == 0 || fields.next().is_some() {
            return None;
        }
        let mut serial = [0; 20];
        for (byte, at) in serial.iter_mut().zip((0..40).step_by(2)) {
            *byte = u8::from_str_radix(&digits[at..at + 2], 16).ok()?;
        }
        Some(Shape {
            physical_bytes,
            optimal_bytes,
            discard_granularity,
            serial,
        })
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (physical, optimal) = (self.physical_bytes, self.optimal_bytes);
        write!(f, "{physical}:{optimal}:{}", self.discard_granularity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_read_back_and_nothing_else_is() {
        for number in [0, 1, u128::MAX] {
            let token = Token(number);
            assert_eq!(token.to_string().parse(), Ok(token));
        }
        let plus = format!("+{}", "0".repeat(31));
        for text in ["", "1", &"A".repeat(32), &"0".repeat(33), &plus] {
            assert_eq!(text.parse::<Token>(), Err(NoToken), "{text}");
        }
    }

    #[test]
    fn shapes_are_read_back_and_nothing_else_is() {
        let shape = Shape {
            physical_bytes: 4096,
            optimal_bytes: 65_536,
            discard_granularity: 0,
            serial: *b"0123456789abcdef\0\0\0\0",
        };
        let name = shape.context();
        assert_eq!(Shape::of_context(&name), Some(shape));
        let serial = "00".repeat(20);
        for wrong in [
            "base:allocation".to_owned(),
            name[..name.len() - 1].to_owned(),
            format!("{name}:"),
            format!("{DEVICE}0:0:0:{serial}"),
            format!("{DEVICE}513:0:0:{serial}"),
            format!("{DEVICE}4096:0:1:{serial}"),
            format!("{DEVICE}4096:0:0:{}", "ö".repeat(20)),
        ] {
            assert_eq!(Shape::of_context(&wrong), None, "{wrong}");
        }
    }
}
