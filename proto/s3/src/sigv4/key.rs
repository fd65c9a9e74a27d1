//! Signing keys, and the chain of signatures over the chunks of a streamed body.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

pub(super) type HmacSha256 = Hmac<Sha256>;

/// SHA-256 of nothing, in hexadecimal.
const EMPTY_SHA256: &[u8] = b"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn keyed(key: &[u8]) -> HmacSha256 {
    HmacSha256::new_from_slice(key).expect("HMAC takes keys of any length")
}

fn mac(key: &[u8], data: &str) -> [u8; 32] {
    let mut mac = keyed(key);
    mac.update(data.as_bytes());
    mac.finalize().into_bytes().into()
}

/// The key of one access key, day and region for S3, ready to sign.
#[derive(Clone)]
pub struct SigningKey(HmacSha256);

impl SigningKey {
    /// Derives the key from a secret, a `YYYYMMDD` date and a region.
    pub fn derive(secret: &str, date: &str, region: &str) -> Self {
        let date_key = mac(["AWS4", secret].concat().as_bytes(), date);
        let region_key = mac(&date_key, region);
        let service_key = mac(&region_key, "s3");
        Self(keyed(&mac(&service_key, "aws4_request")))
    }

    /// Signs a string.
    pub fn sign(&self, text: &[u8]) -> [u8; 32] {
        let mut mac = self.0.clone();
        mac.update(text);
        mac.finalize().into_bytes().into()
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey(..)")
    }
}

/// The state of a chunk signature chain: each signature covers the one before it, and the first
/// covers the request's.
#[derive(Debug, Clone)]
pub struct ChunkSeed {
    key: SigningKey,
    /// `stamp LF scope LF`.
    context: Box<[u8]>,
    previous: [u8; 32],
}

impl ChunkSeed {
    pub(crate) fn new(key: &SigningKey, stamp: &[u8; 16], scope: &str, seed: [u8; 32]) -> Self {
        let context = [stamp.as_slice(), b"\n", scope.as_bytes(), b"\n"]
            .concat()
            .into();
        Self {
            key: key.clone(),
            context,
            previous: seed,
        }
    }

    /// The signature of the next chunk, from the SHA-256 of its data. Advances the chain.
    pub fn next_chunk(&mut self, data_sha256: &[u8; 32]) -> [u8; 32] {
        self.advance(
            b"AWS4-HMAC-SHA256-PAYLOAD\n",
            Some(EMPTY_SHA256),
            data_sha256,
        )
    }

    /// The signature of the trailer, from its canonical bytes (`name:value LF` each). Advances the
    /// chain.
    pub fn trailer(&mut self, canonical: &[u8]) -> [u8; 32] {
        self.advance(
            b"AWS4-HMAC-SHA256-TRAILER\n",
            None,
            &Sha256::digest(canonical).into(),
        )
    }

    fn advance(&mut self, kind: &[u8], middle: Option<&[u8]>, digest: &[u8; 32]) -> [u8; 32] {
        let mut mac = self.key.0.clone();
        let mut digits = [0; 64];
        mac.update(kind);
        mac.update(&self.context);
        hex::encode_to_slice(self.previous, &mut digits).expect("64 digits hold 32 bytes");
        mac.update(&digits);
        mac.update(b"\n");
        if let Some(middle) = middle {
            mac.update(middle);
            mac.update(b"\n");
        }
        hex::encode_to_slice(digest, &mut digits).expect("64 digits hold 32 bytes");
        mac.update(&digits);
        self.previous = mac.finalize().into_bytes().into();
        self.previous
    }
}
