//! Checksums of bodies: what a request promises, computing it as the bytes stream, and putting the
//! parts of an upload together.
//!
//! A promise that cannot be kept is an error of the request, never dropped: an unknown algorithm,
//! two checksums, a value of the wrong length. CRCs of parts combine into the CRC of the whole
//! object without a second pass over the bytes; SHA parts form S3's composite checksum.

mod body;
#[cfg(test)]
mod tests;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use crc_fast::{CrcAlgorithm, checksum_combine};
use sha1::{Digest as _, Sha1};
use sha2::Sha256;

use crate::error::{Result, S3Error, S3ErrorCode};
use crate::head::RequestHead;
use crate::metadata::amz_field;
pub use body::{BodyDigests, BodyPromise, Digests};

/// The algorithms of x-amz-checksum-*.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// CRC-32 (ISO-HDLC).
    Crc32,
    /// CRC-32C (iSCSI).
    Crc32c,
    /// CRC-64/NVME.
    Crc64Nvme,
    /// SHA-1.
    Sha1,
    /// SHA-256.
    Sha256,
}

impl Algorithm {
    /// Every algorithm.
    pub const ALL: [Self; 5] = [
        Self::Crc32,
        Self::Crc32c,
        Self::Crc64Nvme,
        Self::Sha1,
        Self::Sha256,
    ];

    /// The header that carries the value, in lower case.
    pub const fn header(self) -> &'static str {
        match self {
            Self::Crc32 => "x-amz-checksum-crc32",
            Self::Crc32c => "x-amz-checksum-crc32c",
            Self::Crc64Nvme => "x-amz-checksum-crc64nvme",
            Self::Sha1 => "x-amz-checksum-sha1",
            Self::Sha256 => "x-amz-checksum-sha256",
        }
    }

    /// S3's name, as in x-amz-checksum-algorithm.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Crc32 => "CRC32",
            Self::Crc32c => "CRC32C",
            Self::Crc64Nvme => "CRC64NVME",
            Self::Sha1 => "SHA1",
            Self::Sha256 => "SHA256",
        }
    }

    /// The element that carries the value in XML.
    pub const fn element(self) -> &'static str {
        match self {
            Self::Crc32 => "ChecksumCRC32",
            Self::Crc32c => "ChecksumCRC32C",
            Self::Crc64Nvme => "ChecksumCRC64NVME",
            Self::Sha1 => "ChecksumSHA1",
            Self::Sha256 => "ChecksumSHA256",
        }
    }

    /// Length of the value in bytes.
    pub const fn value_bytes(self) -> usize {
        match self {
            Self::Crc32 | Self::Crc32c => 4,
            Self::Crc64Nvme => 8,
            Self::Sha1 => 20,
            Self::Sha256 => 32,
        }
    }

    /// Finds an algorithm by S3's name, in either case.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|a| a.as_str().eq_ignore_ascii_case(name))
    }

    /// Finds an algorithm by its lower-case header.
    pub fn from_header(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|a| a.header() == name)
    }

    const fn crc(self) -> Option<CrcAlgorithm> {
        match self {
            Self::Crc32 => Some(CrcAlgorithm::Crc32IsoHdlc),
            Self::Crc32c => Some(CrcAlgorithm::Crc32Iscsi),
            Self::Crc64Nvme => Some(CrcAlgorithm::Crc64Nvme),
            Self::Sha1 | Self::Sha256 => None,
        }
    }
}

/// A checksum: an algorithm and its bytes, big-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checksum {
    algorithm: Algorithm,
    bytes: [u8; 32],
}

impl Checksum {
    /// Rebuilds a checksum from stored bytes; `None` if the length is not the algorithm's.
    pub fn from_bytes(algorithm: Algorithm, value: &[u8]) -> Option<Self> {
        let mut bytes = [0; 32];
        (value.len() == algorithm.value_bytes()).then(|| {
            bytes[..value.len()].copy_from_slice(value);
            Self { algorithm, bytes }
        })
    }

    /// Reads the base64 form.
    ///
    /// # Errors
    /// InvalidRequest when it is not base64 of the algorithm's length.
    pub fn from_base64(algorithm: Algorithm, text: &str) -> Result<Self> {
        let mut value = [0; 36];
        let len = BASE64_STANDARD.decode_slice(text, &mut value).ok();
        len.and_then(|len| Self::from_bytes(algorithm, &value[..len]))
            .ok_or_else(|| {
                let name = algorithm.header();
                S3Error::new(
                    S3ErrorCode::InvalidRequest,
                    format!("Value for {name} header is invalid."),
                )
            })
    }

    /// The algorithm.
    pub const fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.algorithm.value_bytes()]
    }

    /// The form of headers and XML.
    pub fn to_base64(&self) -> String {
        BASE64_STANDARD.encode(self.bytes())
    }

    fn from_crc(algorithm: Algorithm, value: u64) -> Self {
        let mut bytes = [0; 32];
        let len = algorithm.value_bytes();
        bytes[..len].copy_from_slice(&value.to_be_bytes()[8 - len..]);
        Self { algorithm, bytes }
    }

    fn as_crc(&self) -> u64 {
        self.bytes()
            .iter()
            .fold(0, |sum, byte| sum << 8 | u64::from(*byte))
    }
}

/// Computes one checksum over a stream.
#[derive(Debug, Clone)]
pub struct Checksummer {
    algorithm: Algorithm,
    state: HashState,
}

#[derive(Debug, Clone)]
enum HashState {
    Crc(crc_fast::Digest),
    Sha1(Sha1),
    Sha256(Sha256),
}

impl Checksummer {
    /// Starts with no bytes.
    pub fn new(algorithm: Algorithm) -> Self {
        let state = match algorithm.crc() {
            Some(crc) => HashState::Crc(crc_fast::Digest::new(crc)),
            None if algorithm == Algorithm::Sha1 => HashState::Sha1(Sha1::new()),
            None => HashState::Sha256(Sha256::new()),
        };
        Self { algorithm, state }
    }

    /// Takes the next bytes.
    pub fn update(&mut self, data: &[u8]) {
        match &mut self.state {
            HashState::Crc(digest) => digest.update(data),
            HashState::Sha1(digest) => digest.update(data),
            HashState::Sha256(digest) => digest.update(data),
        }
    }

    /// The checksum of all bytes.
    pub fn finish(self) -> Checksum {
        let (algorithm, mut bytes) = (self.algorithm, [0; 32]);
        match self.state {
            HashState::Crc(digest) => return Checksum::from_crc(algorithm, digest.finalize()),
            HashState::Sha1(digest) => bytes[..20].copy_from_slice(&digest.finalize()),
            HashState::Sha256(digest) => bytes.copy_from_slice(&digest.finalize()),
        }
        Checksum { algorithm, bytes }
    }
}

/// How the checksum of a multipart object is formed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChecksumType {
    /// Over the bytes of the whole object (CRCs only).
    FullObject,
    /// Over the parts' checksums (all but CRC64NVME).
    Composite,
}

impl ChecksumType {
    /// S3's name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::FullObject => "FULL_OBJECT",
            Self::Composite => "COMPOSITE",
        }
    }

    /// Reads x-amz-checksum-type for an algorithm; without it S3's default for that algorithm.
    ///
    /// # Errors
    /// InvalidRequest for a pair that S3 does not have.
    pub fn for_upload(algorithm: Algorithm, header: Option<&str>) -> Result<Self> {
        let kind = match header {
            None if algorithm == Algorithm::Crc64Nvme => Self::FullObject,
            None => Self::Composite,
            Some(text) if text.eq_ignore_ascii_case("FULL_OBJECT") => Self::FullObject,
            Some(text) if text.eq_ignore_ascii_case("COMPOSITE") => Self::Composite,
            Some(_) => {
                return Err(S3Error::argument(
                    "x-amz-checksum-type must be FULL_OBJECT or COMPOSITE.",
                ));
            }
        };
        match (kind, algorithm) {
            (Self::FullObject, Algorithm::Sha1 | Algorithm::Sha256)
            | (Self::Composite, Algorithm::Crc64Nvme) => Err(S3Error::new(
                S3ErrorCode::InvalidRequest,
                format!(
                    "The {} checksum type cannot be used with {}.",
                    kind.as_str(),
                    algorithm.as_str()
                ),
            )),
            _ => Ok(kind),
        }
    }
}

/// The CRC of the concatenation of parts, from their CRCs and lengths.
///
/// `None` for no parts, for SHA, or when the parts' algorithms differ.
pub fn full_object(parts: impl IntoIterator<Item = (Checksum, u64)>) -> Option<Checksum> {
    let mut parts = parts.into_iter();
    let (first, _) = parts.next()?;
    let algorithm = first.algorithm;
    let crc = algorithm.crc()?;
    let mut sum = first.as_crc();
    for (part, len) in parts {
        if part.algorithm != algorithm {
            return None;
        }
        if len > 0 {
            sum = checksum_combine(crc, sum, part.as_crc(), len);
        }
    }
    Some(Checksum::from_crc(algorithm, sum))
}

/// The checksum over the parts' checksums, and their number; S3 writes it as `base64-count`.
///
/// `None` for no parts, or when the parts' algorithms differ.
pub fn composite<'a>(parts: impl IntoIterator<Item = &'a Checksum>) -> Option<(Checksum, usize)> {
    let mut parts = parts.into_iter().peekable();
    let algorithm = parts.peek()?.algorithm;
    let (mut sum, mut count) = (Checksummer::new(algorithm), 0);
    for part in parts {
        if part.algorithm != algorithm {
            return None;
        }
        sum.update(part.bytes());
        count += 1;
    }
    Some((sum.finish(), count))
}

/// Reads x-amz-checksum-algorithm, with which CreateMultipartUpload and CopyObject choose one.
///
/// # Errors
/// InvalidRequest for an algorithm that does not exist here.
pub fn chosen_algorithm(head: &RequestHead) -> Result<Option<Algorithm>> {
    let text = amz_field(head, "x-amz-checksum-algorithm")?;
    text.map(|name| Algorithm::from_name(&name).ok_or_else(unknown_algorithm))
        .transpose()
}

fn unknown_algorithm() -> S3Error {
    S3Error::new(
        S3ErrorCode::InvalidRequest,
        "The checksum algorithm is not supported; use CRC32, CRC32C, CRC64NVME, SHA1 or SHA256.",
    )
}
