//! Byte ranges of reads and of part copies.
//!
//! As in S3, a range header that cannot be read, or that names several ranges, is ignored and the
//! whole object is sent (RFC 9110 section 14.2 allows both).

use std::ops::Range;

use crate::error::{Result, S3Error};

/// One range, before the object's size is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ByteRange {
    /// `first-last`, both inclusive.
    Closed {
        /// First byte.
        first: u64,
        /// Last byte.
        last: u64,
    },
    /// `first-`.
    From(u64),
    /// `-count`: the last `count` bytes.
    Suffix(u64),
}

/// A range measured against an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResolvedRange {
    /// Every byte, as a 200.
    Full,
    /// These bytes, as a 206; never empty and never past the end.
    Partial(Range<u64>),
    /// No byte of the object: a 416.
    Unsatisfiable,
}

impl ByteRange {
    /// Reads a Range header; `None` when it is to be ignored.
    pub fn parse(header: &str) -> Option<Self> {
        let (unit, set) = header.split_once('=')?;
        if !unit.trim().eq_ignore_ascii_case("bytes") {
            return None;
        }
        let (first, last) = set.trim().split_once('-')?;
        match (first.is_empty(), last.is_empty()) {
            (true, true) => None,
            (true, false) => Some(Self::Suffix(number(last)?)),
            (false, true) => Some(Self::From(number(first)?)),
            (false, false) => {
                let (first, last) = (number(first)?, number(last)?);
                (first <= last).then_some(Self::Closed { first, last })
            }
        }
    }

    /// Measures the range against an object of `size` bytes.
    pub fn resolve(self, size: u64) -> ResolvedRange {
        let (start, end) = match self {
            Self::Closed { first, last } => (first, last.saturating_add(1).min(size)),
            Self::From(first) => (first, size),
            Self::Suffix(count) => (size.saturating_sub(count), size),
        };
        if start < end {
            ResolvedRange::Partial(start..end)
        } else {
            ResolvedRange::Unsatisfiable
        }
    }
}

/// Resolves an optional range; none is the whole object.
pub fn resolve(range: Option<ByteRange>, size: u64) -> ResolvedRange {
    range.map_or(ResolvedRange::Full, |range| range.resolve(size))
}

/// Reads `x-amz-copy-source-range`, which must be `bytes=first-last` in full.
///
/// # Errors
/// InvalidArgument for every other form: a part must not be silently longer than asked.
pub fn parse_copy_range(header: &str) -> Result<Range<u64>> {
    match ByteRange::parse(header) {
        Some(ByteRange::Closed { first, last }) if last < u64::MAX => Ok(first..last + 1),
        _ => Err(S3Error::argument(
            "The x-amz-copy-source-range value must be of the form bytes=first-last.",
        )),
    }
}

fn number(text: &str) -> Option<u64> {
    text.bytes()
        .all(|b| b.is_ascii_digit())
        .then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_resolve_against_the_size() {
        use ResolvedRange::*;
        for (header, size, expected) in [
            ("bytes=0-9", 10, Partial(0..10)),
            ("bytes=0-99", 10, Partial(0..10)),
            ("bytes=9-9", 10, Partial(9..10)),
            ("bytes=10-10", 10, Unsatisfiable),
            ("bytes=5-", 10, Partial(5..10)),
            ("bytes=10-", 10, Unsatisfiable),
            ("bytes=-3", 10, Partial(7..10)),
            ("bytes=-30", 10, Partial(0..10)),
            ("bytes=-0", 10, Unsatisfiable),
            ("bytes=0-", 0, Unsatisfiable),
            ("bytes=-5", 0, Unsatisfiable),
            ("Bytes = 0-0", 10, Partial(0..1)),
            ("bytes=0-18446744073709551615", 10, Partial(0..10)),
            ("bytes=5-4", 10, Full),
            ("bytes=0-1,3-4", 10, Full),
            ("bytes=-", 10, Full),
            ("bytes=a-b", 10, Full),
            ("bytes=+1-2", 10, Full),
            ("bytes=18446744073709551616-", 10, Full),
            ("lines=0-1", 10, Full),
            ("", 10, Full),
        ] {
            assert_eq!(
                resolve(ByteRange::parse(header), size),
                expected,
                "{header} of {size}"
            );
        }
    }

    #[test]
    fn copy_ranges_need_both_ends() {
        assert_eq!(parse_copy_range("bytes=0-4").unwrap(), 0..5);
        for header in [
            "bytes=0-",
            "bytes=-5",
            "0-4",
            "bytes=4-0",
            "bytes=0-18446744073709551615",
        ] {
            assert!(parse_copy_range(header).is_err(), "{header}");
        }
    }
}
