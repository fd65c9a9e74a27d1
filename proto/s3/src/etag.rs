//! The MD5 entity tag: 16 bytes, and a part count when the object came from a multipart upload.
//!
//! Only tags that this server can have issued parse here; tags that clients send in conditions are
//! opaque text and live in [`crate::conditional`].

use std::fmt;
use std::str::FromStr;

use md5::{Digest, Md5};

use crate::error::{S3Error, S3ErrorCode};

/// Largest number of parts in a multipart upload.
pub const PARTS_MAX: u16 = 10_000;

/// An object's or part's entity tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Etag {
    md5: [u8; 16],
    /// 0 for an object that arrived in one piece.
    parts: u16,
}

impl Etag {
    /// Longest text form without quotes: 32 digits, a hyphen and five digits.
    pub const TEXT_MAX: usize = 38;

    /// The tag of a body with this MD5.
    pub const fn single(md5: [u8; 16]) -> Self {
        Self { md5, parts: 0 }
    }

    /// The tag of an object made of parts: MD5 over the parts' MD5s, and their count.
    ///
    /// Returns `None` for no parts or more than [`PARTS_MAX`].
    pub fn multipart<'a>(parts: impl IntoIterator<Item = &'a Etag>) -> Option<Self> {
        let mut hash = Md5::new();
        let mut count = 0_u16;
        for part in parts {
            count = count.checked_add(1).filter(|n| *n <= PARTS_MAX)?;
            hash.update(part.md5);
        }
        (count > 0).then(|| Self {
            md5: hash.finalize().into(),
            parts: count,
        })
    }

    /// Rebuilds a tag from its stored form; a count past [`PARTS_MAX`] gives `None`.
    pub const fn from_stored(md5: [u8; 16], parts: u16) -> Option<Self> {
        if parts > PARTS_MAX {
            None
        } else {
            Some(Self { md5, parts })
        }
    }

    /// The 16 bytes of the digest.
    pub const fn md5(&self) -> [u8; 16] {
        self.md5
    }

    /// How many parts the object was made of, if it came from a multipart upload.
    pub const fn parts(&self) -> Option<u16> {
        if self.parts == 0 {
            None
        } else {
            Some(self.parts)
        }
    }

    /// The text form without quotes, on the stack.
    pub fn text(&self) -> EtagText {
        let mut text = EtagText {
            bytes: [0; Self::TEXT_MAX],
            len: 32,
        };
        hex::encode_to_slice(self.md5, &mut text.bytes[..32])
            .expect("32 bytes hold 16 in hexadecimal");
        if self.parts > 0 {
            let mut digits = itoa::Buffer::new();
            let digits = digits.format(self.parts).as_bytes();
            text.bytes[32] = b'-';
            text.bytes[33..33 + digits.len()].copy_from_slice(digits);
            text.len = 33 + digits.len();
        }
        text
    }
}

/// The text form of an [`Etag`], without quotes.
#[derive(Debug, Clone, Copy)]
pub struct EtagText {
    bytes: [u8; Etag::TEXT_MAX],
    len: usize,
}

impl EtagText {
    /// The text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.len]).expect("hexadecimal digits are ASCII")
    }
}

impl fmt::Display for Etag {
    /// The header form, with quotes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.text().as_str())
    }
}

impl FromStr for Etag {
    type Err = S3Error;

    /// Accepts the quoted and the bare form, in either case.
    fn from_str(text: &str) -> Result<Self, S3Error> {
        let wrong = || S3Error::new(S3ErrorCode::InvalidPart, "The ETag of a part is malformed.");
        let bare = match text.strip_prefix('"') {
            Some(rest) => rest.strip_suffix('"').ok_or_else(wrong)?,
            None => text,
        };
        let (digest, parts) = match bare.split_once('-') {
            None => (bare, 0),
            Some((digest, count)) => {
                let plain = (1..=5).contains(&count.len())
                    && !count.starts_with('0')
                    && count.bytes().all(|b| b.is_ascii_digit());
                let count = count.parse().ok().filter(|n| plain && *n <= PARTS_MAX);
                (digest, count.ok_or_else(wrong)?)
            }
        };
        let mut md5 = [0; 16];
        hex::decode_to_slice(digest, &mut md5).map_err(|_| wrong())?;
        Ok(Self { md5, parts })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "d41d8cd98f00b204e9800998ecf8427e";

    #[test]
    fn parses_and_prints_both_forms() {
        for text in [
            EMPTY.to_owned(),
            format!("{EMPTY}-1"),
            format!("{EMPTY}-10000"),
        ] {
            let tag: Etag = text.parse().unwrap();
            assert_eq!(tag.text().as_str(), text);
            assert_eq!(tag.to_string(), format!("\"{text}\""));
            assert_eq!(tag.to_string().parse::<Etag>().unwrap(), tag);
            assert_eq!(
                Etag::from_stored(tag.md5(), tag.parts().unwrap_or(0)),
                Some(tag)
            );
        }
    }

    #[test]
    fn refuses_what_the_server_cannot_have_issued() {
        for text in [
            "",
            "\"",
            "*",
            "\"abc",
            &EMPTY[1..],
            &format!("{EMPTY}-"),
            &format!("{EMPTY}-0"),
        ] {
            assert!(text.parse::<Etag>().is_err(), "{text}");
        }
        for count in ["10001", "+5", "05", "99999", "123456"] {
            assert!(
                format!("{EMPTY}-{count}").parse::<Etag>().is_err(),
                "{count}"
            );
        }
        assert_eq!(Etag::from_stored([0; 16], 10_001), None);
    }

    #[test]
    fn multipart_tag_is_the_md5_of_the_part_md5s() {
        let part = Etag::single(Md5::digest(b"a").into());
        let mut joined = part.md5().to_vec();
        joined.extend(part.md5());
        let tag = Etag::multipart([&part, &part]).unwrap();
        assert_eq!(tag.md5(), <[u8; 16]>::from(Md5::digest(&joined)));
        assert_eq!(tag.parts(), Some(2));
        assert_eq!(Etag::multipart([]), None);
    }
}
