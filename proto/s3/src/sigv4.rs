//! AWS Signature Version 4 for S3: who sent this request, and how its body is signed.
//!
//! Invariants: nothing is accepted unless the host and every `x-amz-*` header that can change the
//! meaning of the request are under the signature; signatures are compared in constant time; a
//! cached signing key is used only while the secret it came from is still the access key's secret.
//! The clock is an argument. SigV4A is refused by name, and so is Signature Version 2, but for
//! presigned URLs where [`Verifier::with_version_2_urls`] allows them.

mod canonical;
mod claim;
mod key;
mod sign;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::error::{Result, S3Error, S3ErrorCode};
use crate::head::RequestHead;
use crate::request::HostConfig;
use crate::sigv2::SignedUrl;
use claim::{Claim, Mechanism};
pub use key::{ChunkSeed, SigningKey};
pub use sign::{RequestToSign, SignedRequest, Signer, presign, sign_request};

/// Furthest that a request's time may lie from the server's.
pub const SKEW_MAX_S: i64 = 15 * 60;
/// Longest life of a presigned URL: seven days.
pub const PRESIGN_MAX_S: i64 = 604_800;
/// Most cached signing keys; past it the cache starts again.
const CACHED_KEYS_MAX: usize = 4096;

/// An access key's secret, lent by whoever keeps them.
#[derive(Clone, Copy)]
pub struct Credential<'a> {
    /// The secret access key.
    pub secret: &'a str,
    /// Whose key it is.
    pub user: UserId,
    /// The session token that requests must carry; none for long-lived keys.
    pub session_token: Option<&'a str>,
}

/// The index of a user in the credential source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UserId(pub u32);

/// Where secrets come from.
pub trait CredentialSource {
    /// The credential of an access key, if it exists and is active.
    fn lookup(&self, access_key: &str) -> Option<Credential<'_>>;
}

/// Which regions a credential scope may name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RegionPolicy {
    /// Any region.
    Any,
    /// Only this one.
    Exactly(Box<str>),
}

/// How the body relates to the signature.
#[derive(Debug, Clone)]
pub enum PayloadMode {
    /// `UNSIGNED-PAYLOAD`.
    Unsigned,
    /// The SHA-256 that the body must have.
    Sha256([u8; 32]),
    /// `STREAMING-AWS4-HMAC-SHA256-PAYLOAD`: aws-chunked, each chunk signed.
    SignedChunks(ChunkSeed),
    /// `STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER`: the same, with a signed trailer.
    SignedChunksTrailer(ChunkSeed),
    /// `STREAMING-UNSIGNED-PAYLOAD-TRAILER`: aws-chunked with a trailer, unsigned.
    UnsignedTrailer,
}

/// A request whose signature holds.
#[derive(Debug)]
pub struct Authenticated {
    /// The access key that signed.
    pub access_key: Box<str>,
    /// Whose it is.
    pub user: UserId,
    /// What the body has to satisfy.
    pub payload: PayloadMode,
}

struct CachedKey {
    secret: Box<str>,
    date: Box<str>,
    region: Box<str>,
    key: SigningKey,
}

#[derive(Default)]
struct Scratch {
    keys: BTreeMap<Box<str>, CachedKey>,
    canonical: Vec<u8>,
}

/// Verifies signatures; one a shard.
pub struct Verifier {
    region: RegionPolicy,
    /// How hosts name buckets, if presigned URLs of version 2 are accepted.
    version_2_hosts: Option<HostConfig>,
    // Borrowed only inside `verify`, which cannot be suspended.
    scratch: RefCell<Scratch>,
}

impl Verifier {
    /// A verifier for requests to this region.
    pub fn new(region: RegionPolicy) -> Self {
        Self {
            region,
            version_2_hosts: None,
            scratch: RefCell::default(),
        }
    }

    /// The same verifier, which also accepts presigned URLs of Signature Version 2.
    ///
    /// These do not sign the host: `hosts` must be what [`crate::S3Op::classify`] is given, or a URL
    /// for one bucket would open another. They know no region, so the region policy does not bind
    /// them.
    #[must_use]
    pub fn with_version_2_urls(self, hosts: HostConfig) -> Self {
        Self {
            version_2_hosts: Some(hosts),
            ..self
        }
    }

    /// Checks the request's signature at the time `now_s`, in seconds since 1970.
    ///
    /// # Errors
    /// AccessDenied without a signature, or for an expired or early presigned URL; the specific
    /// codes of S3 for malformed, skewed and wrong ones.
    pub fn verify(
        &self,
        head: &RequestHead,
        now_s: i64,
        credentials: &dyn CredentialSource,
    ) -> Result<Authenticated> {
        if let Some(hosts) = &self.version_2_hosts
            && let Some(url) = SignedUrl::read(head)?
        {
            return url.verify(head, hosts, now_s, credentials);
        }
        let claim = Claim::read(head)?;
        claim.check_time(now_s)?;
        self.check_scope(&claim)?;
        check_signed_headers(head, &claim)?;
        let payload = payload_text(head, &claim)?;
        let credential = credentials
            .lookup(&claim.access_key)
            .ok_or_else(|| S3Error::from(S3ErrorCode::InvalidAccessKeyId))?;
        check_token(claim.token.as_deref(), &credential)?;
        let mut scratch = self.scratch.borrow_mut();
        let scratch = &mut *scratch;
        let key = cached_key(&mut scratch.keys, &claim, credential.secret);
        let canonical = &mut scratch.canonical;
        canonical.clear();
        canonical::of_request(canonical, head, &claim, &payload)?;
        let digest = Sha256::digest(&*canonical);
        canonical.clear();
        canonical::string_to_sign(canonical, &claim.stamp, claim.scope(), &digest.into());
        let expected = key.sign(canonical);
        if !bool::from(expected.ct_eq(&claim.signature)) {
            return Err(S3ErrorCode::SignatureDoesNotMatch.into());
        }
        let seed = || ChunkSeed::new(key, &claim.stamp, claim.scope(), expected);
        Ok(Authenticated {
            payload: payload_mode(&payload, seed)?,
            user: credential.user,
            access_key: claim.access_key.into(),
        })
    }

    fn check_scope(&self, claim: &Claim<'_>) -> Result<()> {
        if let RegionPolicy::Exactly(region) = &self.region
            && **region != *claim.region()
        {
            return Err(claim.malformed(format!(
                "The credential scope names the wrong region; this endpoint is in {region}.",
            )));
        }
        Ok(())
    }
}

fn cached_key<'k>(
    keys: &'k mut BTreeMap<Box<str>, CachedKey>,
    claim: &Claim<'_>,
    secret: &str,
) -> &'k SigningKey {
    let fits = |cached: &CachedKey| {
        *cached.date == *claim.date()
            && *cached.region == *claim.region()
            && bool::from(cached.secret.as_bytes().ct_eq(secret.as_bytes()))
    };
    if !keys.get(&*claim.access_key).is_some_and(fits) {
        if keys.len() >= CACHED_KEYS_MAX {
            keys.clear();
        }
        let fresh = CachedKey {
            secret: secret.into(),
            date: claim.date().into(),
            region: claim.region().into(),
            key: SigningKey::derive(secret, claim.date(), claim.region()),
        };
        keys.insert(claim.access_key.as_ref().into(), fresh);
    }
    &keys
        .get(&*claim.access_key)
        .expect("the key was there or has been inserted")
        .key
}

/// Refuses requests that carry `x-amz-*` headers outside the signature: whoever holds a presigned
/// PUT could otherwise turn it into a copy of somebody's object.
fn check_signed_headers(head: &RequestHead, claim: &Claim<'_>) -> Result<()> {
    let signed = |name: &str| claim.signed_headers.split(';').any(|s| s == name);
    if !signed("host") {
        return Err(claim.malformed("The host header must be signed."));
    }
    for (name, value) in head.headers() {
        let harmless = claim.mechanism == Mechanism::Query
            && name == "x-amz-content-sha256"
            && value == canonical::UNSIGNED_PAYLOAD;
        if name.starts_with("x-amz-") && !harmless && !signed(name) {
            return Err(S3Error::new(
                S3ErrorCode::AccessDenied,
                "There were headers present in the request which were not signed.",
            ));
        }
    }
    Ok(())
}

/// Checks the session token that was sent against the credential's.
pub(crate) fn check_token(sent: Option<&str>, credential: &Credential<'_>) -> Result<()> {
    let same = match (sent, credential.session_token) {
        (None, None) => true,
        (Some(sent), Some(known)) => sent.as_bytes().ct_eq(known.as_bytes()).into(),
        _ => false,
    };
    if same {
        Ok(())
    } else {
        Err(S3ErrorCode::InvalidToken.into())
    }
}

/// The payload line of the canonical request.
fn payload_text<'a>(head: &'a RequestHead, claim: &Claim<'a>) -> Result<Cow<'a, str>> {
    if let Some(text) = &claim.payload {
        return Ok(text.clone());
    }
    match (head.header("x-amz-content-sha256"), claim.mechanism) {
        (Some(text), _) => Ok(Cow::Borrowed(text)),
        (None, Mechanism::Query) => Ok(Cow::Borrowed(canonical::UNSIGNED_PAYLOAD)),
        (None, Mechanism::Header) => Err(S3Error::new(
            S3ErrorCode::InvalidRequest,
            "Missing required header for this request: x-amz-content-sha256.",
        )),
    }
}

fn payload_mode(text: &str, seed: impl FnOnce() -> ChunkSeed) -> Result<PayloadMode> {
    match text {
        "STREAMING-AWS4-HMAC-SHA256-PAYLOAD" => Ok(PayloadMode::SignedChunks(seed())),
        "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER" => {
            Ok(PayloadMode::SignedChunksTrailer(seed()))
        }
        "STREAMING-UNSIGNED-PAYLOAD-TRAILER" => Ok(PayloadMode::UnsignedTrailer),
        _ if text.starts_with("STREAMING-") => Err(S3Error::new(
            S3ErrorCode::NotImplemented,
            "This streaming signature is not implemented; use AWS4-HMAC-SHA256.",
        )),
        _ => whole_body(text),
    }
}

/// The modes of a body that comes in one piece.
pub(crate) fn whole_body(text: &str) -> Result<PayloadMode> {
    if text == canonical::UNSIGNED_PAYLOAD {
        return Ok(PayloadMode::Unsigned);
    }
    let mut digest = [0; 32];
    hex::decode_to_slice(text, &mut digest).map_err(|_| {
        S3Error::argument(
            "x-amz-content-sha256 must be UNSIGNED-PAYLOAD or a SHA-256 in hexadecimal.",
        )
    })?;
    Ok(PayloadMode::Sha256(digest))
}
