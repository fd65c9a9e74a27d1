//! The canonical request, byte for byte as S3 wants it: the path is coded once, the query is sorted
//! by coded name and value, header values are trimmed and their runs of spaces folded.
//!
//! Pieces that are canonical already, which is what SDKs send, are copied without decoding.

use std::borrow::Cow;

use super::claim::{Claim, Mechanism};
use crate::error::{Result, S3Error, S3ErrorCode};
use crate::head::RequestHead;
use crate::uri;

pub(super) const UNSIGNED_PAYLOAD: &str = "UNSIGNED-PAYLOAD";

pub(super) fn of_request(
    out: &mut Vec<u8>,
    head: &RequestHead,
    claim: &Claim<'_>,
    payload: &str,
) -> Result<()> {
    let skips_signature = claim.mechanism == Mechanism::Query;
    first_lines(
        out,
        head.method_text(),
        head.raw_path(),
        head.raw_query(),
        skips_signature,
    )?;
    for name in claim.signed_headers.split(';') {
        let mut values = head
            .headers()
            .filter(|(n, _)| *n == name)
            .map(|(_, value)| value);
        let Some(first) = values.next() else {
            return Err(S3Error::new(
                S3ErrorCode::AccessDenied,
                "A signed header is missing from the request.",
            ));
        };
        out.extend_from_slice(name.as_bytes());
        out.push(b':');
        fold_spaces(out, first);
        for value in values {
            out.push(b',');
            fold_spaces(out, value);
        }
        out.push(b'\n');
    }
    last_lines(out, &claim.signed_headers, payload);
    Ok(())
}

/// Method, path and query.
pub(super) fn first_lines(
    out: &mut Vec<u8>,
    method: &str,
    raw_path: &str,
    raw_query: &str,
    skips_signature: bool,
) -> Result<()> {
    out.extend_from_slice(method.as_bytes());
    out.push(b'\n');
    if raw_path.is_empty() {
        out.push(b'/');
    } else if is_canonical(raw_path, true) {
        out.extend_from_slice(raw_path.as_bytes());
    } else {
        uri::encode_path(out, &uri::decode_path(raw_path)?);
    }
    out.push(b'\n');
    query(out, raw_query, skips_signature)?;
    out.push(b'\n');
    Ok(())
}

/// The empty line after the headers, their names, and the payload line.
pub(super) fn last_lines(out: &mut Vec<u8>, signed_headers: &str, payload: &str) {
    out.push(b'\n');
    out.extend_from_slice(signed_headers.as_bytes());
    out.push(b'\n');
    out.extend_from_slice(payload.as_bytes());
}

pub(super) fn string_to_sign(out: &mut Vec<u8>, stamp: &[u8; 16], scope: &str, digest: &[u8; 32]) {
    let mut digits = [0; 64];
    hex::encode_to_slice(digest, &mut digits).expect("64 digits hold 32 bytes");
    for piece in [b"AWS4-HMAC-SHA256".as_slice(), stamp, scope.as_bytes()] {
        out.extend_from_slice(piece);
        out.push(b'\n');
    }
    out.extend_from_slice(&digits);
}

fn query(out: &mut Vec<u8>, raw: &str, skips_signature: bool) -> Result<()> {
    if raw.is_empty() {
        return Ok(());
    }
    let mut pairs = Vec::with_capacity(8);
    for param in uri::params(raw) {
        let name = canonical_piece(param.name)?;
        if !(skips_signature && name == "X-Amz-Signature") {
            pairs.push((name, canonical_piece(param.value)?));
        }
    }
    pairs.sort_unstable();
    for (index, (name, value)) in pairs.iter().enumerate() {
        if index > 0 {
            out.push(b'&');
        }
        out.extend_from_slice(name.as_bytes());
        out.push(b'=');
        out.extend_from_slice(value.as_bytes());
    }
    Ok(())
}

fn canonical_piece(raw: &str) -> Result<Cow<'_, str>> {
    if is_canonical(raw, false) {
        return Ok(Cow::Borrowed(raw));
    }
    let mut coded = Vec::with_capacity(raw.len() + 16);
    uri::encode_query(&mut coded, &uri::decode_query(raw)?);
    Ok(Cow::Owned(
        String::from_utf8(coded).expect("percent-coded text is ASCII"),
    ))
}

/// Whether decoding and coding again would give the same text.
fn is_canonical(raw: &str, keeps_slash: bool) -> bool {
    let mut bytes = raw.bytes();
    while let Some(byte) = bytes.next() {
        if uri::is_unreserved(byte) || (keeps_slash && byte == b'/') {
            continue;
        }
        let digit = |b: Option<u8>| match b? {
            b @ b'0'..=b'9' => Some(b - b'0'),
            b @ b'A'..=b'F' => Some(b - b'A' + 10),
            _ => None,
        };
        let (b'%', Some(high), Some(low)) = (byte, digit(bytes.next()), digit(bytes.next())) else {
            return false;
        };
        let coded = high << 4 | low;
        if uri::is_unreserved(coded) || (keeps_slash && coded == b'/') {
            return false;
        }
    }
    true
}

/// Appends a header value, trimmed and with runs of spaces as one.
pub(super) fn fold_spaces(out: &mut Vec<u8>, value: &str) {
    let value = value.trim_matches([' ', '\t']);
    if !value.contains("  ") {
        out.extend_from_slice(value.as_bytes());
        return;
    }
    let mut after_space = false;
    for byte in value.bytes() {
        if !(after_space && byte == b' ') {
            out.push(byte);
        }
        after_space = byte == b' ';
    }
}
