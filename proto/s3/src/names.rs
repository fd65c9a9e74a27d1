//! Bucket names and object keys that cannot be wrong.

use std::fmt;

use crate::error::{Result, S3Error, S3ErrorCode};

/// Longest key in bytes.
pub const KEY_BYTES_MAX: usize = 1024;

/// A bucket name that follows S3's rules for general purpose buckets.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BucketName(Box<str>);

impl BucketName {
    /// Checks the naming rules: 3 to 63 of `a-z0-9.-`, a letter or digit at both ends, no `..`, not
    /// an IPv4 address, none of the reserved prefixes and suffixes.
    pub fn new(name: &str) -> Result<Self> {
        if is_bucket_name(name) {
            Ok(Self(name.into()))
        } else {
            Err(S3Error::from(S3ErrorCode::InvalidBucketName))
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn is_bucket_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let inner = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-');
    let reserved = ["xn--", "sthree-", "amzn-s3-demo-"]
        .iter()
        .any(|p| name.starts_with(p))
        || ["-s3alias", "--ol-s3", ".mrap", "--x-s3", "--table-s3"]
            .iter()
            .any(|s| name.ends_with(s));
    (3..=63).contains(&bytes.len())
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(inner)
        && !name.contains("..")
        && !reserved
        && !looks_like_ipv4(name)
}

fn looks_like_ipv4(name: &str) -> bool {
    let number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    name.split('.').count() == 4 && name.split('.').all(number)
}

/// An object key: 1 to 1,024 bytes of UTF-8, otherwise free.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey(Box<str>);

impl ObjectKey {
    /// Checks the length.
    pub fn new(key: &str) -> Result<Self> {
        match key.len() {
            0 => Err(S3Error::argument("The key is empty.")),
            1..=KEY_BYTES_MAX => Ok(Self(key.into())),
            _ => Err(S3Error::from(S3ErrorCode::KeyTooLong)),
        }
    }

    /// The key.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BucketName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bucket_names_follow_the_rules() {
        for name in [
            "abc",
            "a.b",
            "my-bucket.2024",
            "1.2.3",
            "1.2.3.4.5",
            "1.2.3.a",
            &"a".repeat(63),
        ] {
            assert!(BucketName::new(name).is_ok(), "{name}");
        }
        for name in [
            "",
            "ab",
            &"a".repeat(64),
            "Abc",
            "a_b",
            "-ab",
            "ab-",
            ".ab",
            "ab.",
            "a..b",
            "192.168.5.4",
            "xn--abc",
            "sthree-x",
            "abc-s3alias",
            "abc--ol-s3",
            "a/b",
            "aéb",
            "a b",
        ] {
            assert_eq!(
                BucketName::new(name).unwrap_err().code,
                S3ErrorCode::InvalidBucketName,
                "{name}"
            );
        }
    }

    #[test]
    fn keys_have_1_to_1024_bytes() {
        assert!(ObjectKey::new("").is_err());
        assert_eq!(
            ObjectKey::new(&"é".repeat(512)).unwrap().as_str().len(),
            1024
        );
        assert_eq!(
            ObjectKey::new(&"a".repeat(1025)).unwrap_err().code,
            S3ErrorCode::KeyTooLong
        );
    }
}
