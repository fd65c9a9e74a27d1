//! Percent-coding and query strings, as S3 and Signature Version 4 use them.
//!
//! `+` is literal in a path and a space in a query. Decoding is strict: a `%` without two
//! hexadecimal digits, or bytes that are not UTF-8, are errors and never passed on as they are.
//! Text without anything to decode is borrowed, not copied.

use std::borrow::Cow;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::error::{Result, S3Error, S3ErrorCode};

/// Everything but the unreserved characters of RFC 3986.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');
const RESERVED_BUT_SLASH: &AsciiSet = &RESERVED.remove(b'/');

/// [`is_unreserved`] by byte: signatures ask for every byte of a target.
const UNRESERVED: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        let ascii = byte as u8;
        table[byte] = ascii.is_ascii_alphanumeric() || matches!(ascii, b'-' | b'_' | b'.' | b'~');
        byte += 1;
    }
    table
};

pub(crate) const fn is_unreserved(byte: u8) -> bool {
    UNRESERVED[byte as usize]
}

/// Appends the canonical encoding of a query name or value.
pub fn encode_query(out: &mut Vec<u8>, text: &str) {
    if text.bytes().all(is_unreserved) {
        out.extend_from_slice(text.as_bytes());
    } else {
        utf8_percent_encode(text, RESERVED).for_each(|s| out.extend_from_slice(s.as_bytes()));
    }
}

/// Appends the canonical encoding of a path; slashes stay.
pub fn encode_path(out: &mut Vec<u8>, text: &str) {
    if text.bytes().all(|b| is_unreserved(b) || b == b'/') {
        out.extend_from_slice(text.as_bytes());
    } else {
        utf8_percent_encode(text, RESERVED_BUT_SLASH)
            .for_each(|s| out.extend_from_slice(s.as_bytes()));
    }
}

/// Decodes a path: `+` means itself.
pub fn decode_path(raw: &str) -> Result<Cow<'_, str>> {
    decode(raw, false)
}

/// Decodes a query name or value: `+` means a space.
pub fn decode_query(raw: &str) -> Result<Cow<'_, str>> {
    decode(raw, true)
}

fn decode(raw: &str, plus_is_space: bool) -> Result<Cow<'_, str>> {
    let bytes = raw.as_bytes();
    let first = if plus_is_space {
        memchr::memchr2(b'%', b'+', bytes)
    } else {
        memchr::memchr(b'%', bytes)
    };
    match first {
        None => Ok(Cow::Borrowed(raw)),
        Some(first) => decode_from(bytes, first, plus_is_space).map(Cow::Owned),
    }
}

/// Decodes text whose first coded byte is at `first`.
fn decode_from(bytes: &[u8], first: usize, plus_is_space: bool) -> Result<String> {
    let bad = || {
        S3Error::new(
            S3ErrorCode::InvalidUri,
            "The URI holds a malformed percent code.",
        )
    };
    let mut out = Vec::with_capacity(bytes.len());
    out.extend_from_slice(&bytes[..first]);
    let mut rest = &bytes[first..];
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        match byte {
            b'%' => {
                let (pair, tail) = rest.split_at_checked(2).ok_or_else(bad)?;
                let high = hex_digit(pair[0]).ok_or_else(bad)?;
                let low = hex_digit(pair[1]).ok_or_else(bad)?;
                out.push(high << 4 | low);
                rest = tail;
            }
            b'+' if plus_is_space => out.push(b' '),
            other => out.push(other),
        }
    }
    String::from_utf8(out)
        .map_err(|_| S3Error::new(S3ErrorCode::InvalidUri, "The URI is not UTF-8."))
}

const fn hex_digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}

/// One `name=value` of a query, as it was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawParam<'a> {
    /// The encoded name.
    pub name: &'a str,
    /// The encoded value; empty when there was no `=`.
    pub value: &'a str,
}

impl<'a> RawParam<'a> {
    fn of(piece: &'a str) -> Self {
        match memchr::memchr(b'=', piece.as_bytes()) {
            Some(at) => Self {
                name: &piece[..at],
                value: &piece[at + 1..],
            },
            None => Self {
                name: piece,
                value: "",
            },
        }
    }
}

/// The parameters of a raw query in their order; empty pieces between `&` are skipped.
pub fn params(query: &str) -> impl Iterator<Item = RawParam<'_>> {
    let mut rest = query;
    std::iter::from_fn(move || {
        while !rest.is_empty() {
            let end = memchr::memchr(b'&', rest.as_bytes());
            let piece = &rest[..end.unwrap_or(rest.len())];
            rest = end.map_or("", |end| &rest[end + 1..]);
            if !piece.is_empty() {
                return Some(RawParam::of(piece));
            }
        }
        None
    })
}

/// The decoded value of the first parameter of this name, compared without case.
pub fn find_param<'a>(query: &'a str, name: &str) -> Result<Option<Cow<'a, str>>> {
    for param in params(query) {
        if decode_query(param.name)?.eq_ignore_ascii_case(name) {
            return decode_query(param.value).map(Some);
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn plus_is_literal_in_a_path_and_a_space_in_a_query() {
        assert_eq!(decode_path("a+b%20c").unwrap(), "a+b c");
        assert_eq!(decode_query("a+b%2Bc").unwrap(), "a b+c");
        assert!(matches!(decode_path("a+b").unwrap(), Cow::Borrowed(_)));
    }

    #[test]
    fn malformed_codes_are_refused() {
        for raw in ["%", "%4", "a%zz", "%c3", "%ff%fe", "%+1", "%é"] {
            assert_eq!(
                decode_path(raw).unwrap_err().code,
                S3ErrorCode::InvalidUri,
                "{raw}"
            );
        }
    }

    #[test]
    fn params_keep_order_and_valueless_names() {
        let all: Vec<_> = params("acl&prefix=a=b&&x=")
            .map(|p| (p.name, p.value))
            .collect();
        assert_eq!(all, [("acl", ""), ("prefix", "a=b"), ("x", "")]);
        assert_eq!(find_param("A=1&x%2Did=2", "X-ID").unwrap().unwrap(), "2");
        assert_eq!(find_param("", "a").unwrap(), None);
    }

    proptest! {
        #[test]
        fn encoding_then_decoding_gives_the_text_back(text in ".*") {
            let (mut path, mut query) = (Vec::new(), Vec::new());
            encode_path(&mut path, &text);
            encode_query(&mut query, &text);
            prop_assert_eq!(decode_path(std::str::from_utf8(&path).unwrap()).unwrap(), &*text);
            prop_assert_eq!(decode_query(std::str::from_utf8(&query).unwrap()).unwrap(), &*text);
            prop_assert!(query.iter().all(|b| is_unreserved(*b) || *b == b'%'));
        }

        #[test]
        fn any_input_decodes_or_fails_cleanly(raw in "[%+a-f0-9é]{0,40}") {
            let _ = decode_path(&raw);
            let _ = decode_query(&raw);
        }
    }
}
