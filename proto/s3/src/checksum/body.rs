//! What a request promises about its body, and the digests that check it in one pass.

use std::borrow::Cow;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use md5::Md5;
use sha2::{Digest as _, Sha256};

use super::{Algorithm, Checksum, Checksummer, unknown_algorithm};
use crate::error::{Result, S3Error, S3ErrorCode};
use crate::head::RequestHead;
use crate::metadata::header_value;
use crate::sigv2::content_field;
use crate::uri;

const CHECKSUM_PREFIX: &str = "x-amz-checksum-";

/// The checksums that a request promises for its body.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BodyPromise {
    /// Content-MD5.
    pub md5: Option<[u8; 16]>,
    /// The algorithm of the checksum to compute and store.
    pub algorithm: Option<Algorithm>,
    /// Its value, if a header gave it.
    pub value: Option<Checksum>,
    /// Whether the value comes as a trailer.
    pub in_trailer: bool,
}

impl BodyPromise {
    /// Reads Content-MD5, x-amz-checksum-*, x-amz-sdk-checksum-algorithm and x-amz-trailer from the
    /// headers, or from the query of a presigned request.
    ///
    /// # Errors
    /// InvalidDigest for a Content-MD5 that is none; InvalidRequest for an unknown algorithm, a
    /// malformed value, or more than one promise.
    pub fn parse(head: &RequestHead) -> Result<Self> {
        let mut promise = Self::default();
        let mut sdk_algorithm = None;
        for (name, value) in head.headers() {
            promise.read_field(name, value, &mut sdk_algorithm)?;
        }
        for param in uri::params(head.raw_query()) {
            let name: Cow<'_, str> = uri::decode_query(param.name)?;
            if name
                .get(..6)
                .is_some_and(|front| front.eq_ignore_ascii_case("x-amz-"))
            {
                let value = header_value(uri::decode_query(param.value)?)?;
                promise.read_field(&name.to_ascii_lowercase(), &value, &mut sdk_algorithm)?;
            }
        }
        if promise.md5.is_none()
            && let Some(value) = content_field(head, "content-md5")?
        {
            promise.read_field("content-md5", &value, &mut sdk_algorithm)?;
        }
        match (promise.algorithm, sdk_algorithm) {
            (Some(sent), Some(named)) if sent != named => Err(S3Error::new(
                S3ErrorCode::InvalidRequest,
                "x-amz-sdk-checksum-algorithm does not name the checksum that was sent.",
            )),
            (None, Some(named)) => {
                promise.algorithm = Some(named);
                Ok(promise)
            }
            _ => Ok(promise),
        }
    }

    fn read_field(&mut self, name: &str, value: &str, sdk: &mut Option<Algorithm>) -> Result<()> {
        match name {
            "content-md5" => {
                let mut digest = [0; 18];
                let len = BASE64_STANDARD.decode_slice(value, &mut digest).ok();
                let md5 = len
                    .filter(|len| *len == 16)
                    .and_then(|_| digest[..16].try_into().ok());
                self.md5 = Some(md5.ok_or_else(|| S3Error::from(S3ErrorCode::InvalidDigest))?);
            }
            "x-amz-sdk-checksum-algorithm" => {
                *sdk = Some(Algorithm::from_name(value).ok_or_else(unknown_algorithm)?);
            }
            "x-amz-trailer" => {
                for trailer in value.split(',').map(str::trim) {
                    if let Some(algorithm) = algorithm_of(&trailer.to_ascii_lowercase())? {
                        self.promise(algorithm)?;
                        self.in_trailer = true;
                    }
                }
            }
            _ => {
                if let Some(algorithm) = algorithm_of(name)? {
                    self.promise(algorithm)?;
                    self.value = Some(Checksum::from_base64(algorithm, value)?);
                }
            }
        }
        Ok(())
    }

    fn promise(&mut self, algorithm: Algorithm) -> Result<()> {
        match self.algorithm.replace(algorithm) {
            None => Ok(()),
            Some(_) => Err(S3Error::new(
                S3ErrorCode::InvalidRequest,
                "Expecting a single x-amz-checksum- header. Multiple checksum types are not allowed.",
            )),
        }
    }
}

/// The algorithm that an `x-amz-checksum-*` name stands for; other names are none.
fn algorithm_of(name: &str) -> Result<Option<Algorithm>> {
    match name.strip_prefix(CHECKSUM_PREFIX) {
        None | Some("mode" | "type" | "algorithm") => Ok(None),
        Some(_) => Algorithm::from_header(name)
            .map(Some)
            .ok_or_else(unknown_algorithm),
    }
}

/// What [`BodyDigests`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digests {
    /// The MD5, if it was asked for or promised.
    pub md5: Option<[u8; 16]>,
    /// The promised checksum.
    pub checksum: Option<Checksum>,
}

/// Every digest that a body needs, in one pass.
#[derive(Debug)]
pub struct BodyDigests {
    promise: BodyPromise,
    payload_sha256: Option<[u8; 32]>,
    md5: Option<Md5>,
    sha256: Option<Sha256>,
    checksum: Option<Checksummer>,
}

impl BodyDigests {
    /// Prepares for a body. `payload_sha256` is the digest under the request's signature, if the
    /// body is signed as a whole; `md5_for_etag` asks for the MD5 even without Content-MD5.
    pub fn new(promise: BodyPromise, payload_sha256: Option<[u8; 32]>, md5_for_etag: bool) -> Self {
        let want_md5 = md5_for_etag || promise.md5.is_some();
        Self {
            promise,
            payload_sha256,
            md5: want_md5.then(Md5::new),
            // A SHA-256 checksum and a signed payload are the same sum: compute it once.
            sha256: (payload_sha256.is_some() && promise.algorithm != Some(Algorithm::Sha256))
                .then(Sha256::new),
            checksum: promise.algorithm.map(Checksummer::new),
        }
    }

    /// Takes the next bytes.
    pub fn update(&mut self, data: &[u8]) {
        if let Some(md5) = &mut self.md5 {
            md5.update(data);
        }
        if let Some(sha256) = &mut self.sha256 {
            sha256.update(data);
        }
        if let Some(checksum) = &mut self.checksum {
            checksum.update(data);
        }
    }

    /// Checks every promise; `trailers` are those of the body.
    ///
    /// # Errors
    /// XAmzContentSHA256Mismatch, BadDigest, or InvalidRequest when a promised trailer is missing.
    pub fn finish(self, trailers: &[(Box<str>, Box<str>)]) -> Result<Digests> {
        let md5 = self.md5.map(|md5| <[u8; 16]>::from(md5.finalize()));
        let checksum = self.checksum.map(Checksummer::finish);
        let sha256 = self
            .sha256
            .map(|sha256| <[u8; 32]>::from(sha256.finalize()));
        if let Some(signed) = self.payload_sha256 {
            let found = sha256.as_ref().map(<[u8; 32]>::as_slice);
            let found = found.or_else(|| checksum.as_ref().map(Checksum::bytes));
            if found != Some(&signed) {
                return Err(S3ErrorCode::XAmzContentSha256Mismatch.into());
            }
        }
        if self.promise.md5.is_some() && self.promise.md5 != md5 {
            return Err(S3ErrorCode::BadDigest.into());
        }
        let expected = match (self.promise.in_trailer, self.promise.algorithm) {
            (true, Some(algorithm)) => {
                let sent = trailers
                    .iter()
                    .find(|(name, _)| **name == *algorithm.header());
                let (_, text) = sent.ok_or_else(|| {
                    S3Error::new(
                        S3ErrorCode::InvalidRequest,
                        "The promised checksum trailer is missing.",
                    )
                })?;
                Some(Checksum::from_base64(algorithm, text)?)
            }
            _ => self.promise.value,
        };
        if expected.is_some() && expected != checksum {
            let name = self.promise.algorithm.map_or("", Algorithm::as_str);
            return Err(S3Error::new(
                S3ErrorCode::BadDigest,
                format!("The {name} you specified did not match the calculated checksum."),
            ));
        }
        Ok(Digests { md5, checksum })
    }
}
