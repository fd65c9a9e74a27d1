//! Presigned URLs of Signature Version 2: `AWSAccessKeyId`, `Signature` and `Expires` in the query,
//! which boto3 and s3cmd still make unless they are told otherwise.
//!
//! Invariants: what selects the operation, the bucket, the key and every `x-amz-*` field is under
//! the signature, read as the rest of the crate reads it; nothing that could end a line of the string
//! to sign stands in one. The host is not signed in this version, so the bucket that it names is put
//! into the signed path, by the same rule as in [`crate::S3Op::classify`]. Never a signature in the
//! Authorization header: that form is refused by [`crate::sigv4`].
//!
//! Known limits of the version itself: listing parameters (`prefix`, `marker`, `list-type`) are not
//! signed, so a URL that lists a bucket lists any of its prefixes.
//!
//! Source: "Signing and authenticating REST requests", query string authentication, of the Amazon S3
//! developer guide.

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::BTreeMap;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;
use subtle::ConstantTimeEq as _;

use crate::error::{Result, S3Error, S3ErrorCode};
use crate::head::RequestHead;
use crate::metadata::header_value;
use crate::request::{HostConfig, bucket_of_host};
use crate::sigv4::{
    Authenticated, CredentialSource, PRESIGN_MAX_S, PayloadMode, check_token, whole_body,
};
use crate::uri;

/// The parameter that marks a URL of this version. A signer has no reason to percent-code its name;
/// one that does is refused as unsigned.
const MARK: &str = "AWSAccessKeyId=";

/// The query parameters that are part of the signed resource.
///
/// Compared without case, because classification does: what selects an operation in any spelling
/// must be signed in that spelling.
const SIGNED_PARAMS: &[&str] = &[
    "accelerate",
    "acl",
    "analytics",
    "attributes",
    "cors",
    "defaultObjectAcl",
    "delete",
    "inventory",
    "lifecycle",
    "location",
    "logging",
    "metrics",
    "notification",
    "object-lock",
    "partNumber",
    "policy",
    "replication",
    "requestPayment",
    "response-cache-control",
    "response-content-disposition",
    "response-content-encoding",
    "response-content-language",
    "response-content-type",
    "response-expires",
    "restore",
    "select",
    "select-type",
    "storageClass",
    "tagging",
    "torrent",
    "uploadId",
    "uploads",
    "versionId",
    "versioning",
    "versions",
    "website",
];

/// Whether a query parameter is under the signature.
pub(crate) fn signs_param(name: &str) -> bool {
    SIGNED_PARAMS
        .iter()
        .any(|signed| signed.eq_ignore_ascii_case(name))
}

/// The authentication parameters of a presigned URL; syntax only, nothing is believed.
#[derive(Debug)]
pub(crate) struct SignedUrl<'a> {
    access_key: Cow<'a, str>,
    signature: Cow<'a, str>,
    /// As it was signed, and as a number.
    expires: Cow<'a, str>,
    expires_s: i64,
}

impl<'a> SignedUrl<'a> {
    /// The parameters; `None` when the request does not authenticate this way.
    ///
    /// # Errors
    /// InvalidArgument when the request is signed in another way as well, AccessDenied when
    /// parameters are missing, repeated or malformed.
    pub(crate) fn read(head: &'a RequestHead) -> Result<Option<Self>> {
        if !head.raw_query().contains(MARK) {
            return Ok(None);
        }
        let (mut access_key, mut signature, mut expires) = (None, None, None);
        let mut signed_elsewhere = head.header("authorization").is_some();
        for param in uri::params(head.raw_query()) {
            let (slot, value) = match &*uri::decode_query(param.name)? {
                "AWSAccessKeyId" => (&mut access_key, uri::decode_query(param.value)?),
                // Base64 has no spaces: a plus sign that was not coded means itself.
                "Signature" => (&mut signature, uri::decode_path(param.value)?),
                "Expires" => (&mut expires, uri::decode_query(param.value)?),
                "X-Amz-Algorithm" | "X-Amz-Credential" | "X-Amz-Signature" => {
                    signed_elsewhere = true;
                    continue;
                }
                _ => continue,
            };
            if slot.replace(value).is_some() {
                return Err(denied("An authorization parameter is repeated."));
            }
        }
        if signed_elsewhere {
            // One parameter alone is nobody's signature, and not S3's: it is ignored.
            if access_key.is_none() || signature.is_none() {
                return Ok(None);
            }
            return Err(S3Error::argument(
                "Only one authentication mechanism is allowed: the Authorization header or the query.",
            ));
        }
        let (Some(access_key), Some(signature), Some(expires)) = (access_key, signature, expires)
        else {
            return Err(denied(
                "A presigned URL needs AWSAccessKeyId, Signature and Expires.",
            ));
        };
        let plain = expires.bytes().all(|b| b.is_ascii_digit());
        let expires_s = expires.parse().ok().filter(|_| plain);
        let expires_s = expires_s
            .ok_or_else(|| denied("Expires must be a time in seconds since 1 January 1970."))?;
        Ok(Some(Self {
            access_key,
            signature,
            expires,
            expires_s,
        }))
    }

    /// Checks time and signature; `hosts` must be what requests are classified with.
    ///
    /// # Errors
    /// AccessDenied outside the URL's life, InvalidAccessKeyId, InvalidToken and
    /// SignatureDoesNotMatch, and InvalidArgument for fields that cannot be signed.
    pub(crate) fn verify(
        self,
        head: &RequestHead,
        hosts: &HostConfig,
        now_s: i64,
        credentials: &dyn CredentialSource,
    ) -> Result<Authenticated> {
        self.check_time(now_s)?;
        let fields = amz_fields(head)?;
        let credential = credentials
            .lookup(&self.access_key)
            .ok_or_else(|| S3Error::from(S3ErrorCode::InvalidAccessKeyId))?;
        let token = fields.get("x-amz-security-token");
        check_token(token.map(AsRef::as_ref), &credential)?;
        let mut text = Vec::with_capacity(512);
        self.string_to_sign(&mut text, head, hosts, &fields)?;
        if !self.is_signature_of(&text, credential.secret) {
            return Err(S3ErrorCode::SignatureDoesNotMatch.into());
        }
        Ok(Authenticated {
            payload: payload_mode(fields.get("x-amz-content-sha256").map(AsRef::as_ref))?,
            user: credential.user,
            access_key: self.access_key.into(),
        })
    }

    fn check_time(&self, now_s: i64) -> Result<()> {
        let left_s = self.expires_s.saturating_sub(now_s);
        if left_s < 0 {
            Err(denied("Request has expired."))
        } else if left_s > PRESIGN_MAX_S {
            Err(denied("Expires lies more than seven days ahead."))
        } else {
            Ok(())
        }
    }

    fn is_signature_of(&self, text: &[u8], secret: &str) -> bool {
        let mut mac =
            Hmac::<Sha1>::new_from_slice(secret.as_bytes()).expect("HMAC takes keys of any length");
        mac.update(text);
        let expected: [u8; 20] = mac.finalize().into_bytes().into();
        // Base64 wants room for whole groups: seven of three bytes.
        let mut sent = [0; 21];
        match BASE64_STANDARD.decode_slice(&*self.signature, &mut sent) {
            Ok(len) => sent[..len].ct_eq(&expected).into(),
            Err(_) => false,
        }
    }

    fn string_to_sign(
        &self,
        out: &mut Vec<u8>,
        head: &RequestHead,
        hosts: &HostConfig,
        fields: &AmzFields<'_>,
    ) -> Result<()> {
        let md5 = content_field(head, "content-md5")?.unwrap_or_default();
        let kind = content_field(head, "content-type")?.unwrap_or_default();
        for line in [head.method_text(), &*md5, &*kind, &*self.expires] {
            out.extend_from_slice(line.as_bytes());
            out.push(b'\n');
        }
        for (name, value) in fields {
            out.extend_from_slice(name.as_bytes());
            out.push(b':');
            out.extend_from_slice(value.as_bytes());
            out.push(b'\n');
        }
        path(out, head, hosts);
        sub_resources(out, head.raw_query())
    }
}

fn denied(message: &'static str) -> S3Error {
    S3Error::new(S3ErrorCode::AccessDenied, message)
}

/// What the request says about its body: only whole bodies can be promised without a chunk chain.
fn payload_mode(content_sha256: Option<&str>) -> Result<PayloadMode> {
    match content_sha256 {
        None => Ok(PayloadMode::Unsigned),
        Some(text) if text.starts_with("STREAMING-") => Err(S3Error::new(
            S3ErrorCode::InvalidRequest,
            "Streaming signatures need AWS4-HMAC-SHA256, not a presigned URL of version 2.",
        )),
        Some(text) => whole_body(text),
    }
}

/// Content-MD5 or Content-Type (lower-case name): from the headers or, in a presigned URL of this
/// version, from the query, where boto3 puts what its caller asked for.
///
/// # Errors
/// InvalidArgument for a repeated parameter, or a value that could not be a header's.
pub(crate) fn content_field<'a>(head: &'a RequestHead, name: &str) -> Result<Option<Cow<'a, str>>> {
    let mut found: Option<Cow<'a, str>> = None;
    for (_, value) in head.headers().filter(|(n, _)| *n == name) {
        found = Some(match found {
            None => Cow::Borrowed(value),
            Some(first) => Cow::Owned(format!("{first},{value}")),
        });
    }
    if found.is_some() || !head.raw_query().contains(MARK) {
        return Ok(found);
    }
    for param in uri::params(head.raw_query()) {
        if uri::decode_query(param.name)?.eq_ignore_ascii_case(name) {
            let value = header_value(uri::decode_query(param.value)?)?;
            if found.replace(value).is_some() {
                return Err(S3Error::argument(
                    "Content-Type or Content-MD5 is repeated in the query.",
                ));
            }
        }
    }
    Ok(found)
}

/// Lower-case names and values, in the order in which they are signed.
type AmzFields<'a> = BTreeMap<Cow<'a, str>, Cow<'a, str>>;

/// Every `x-amz-*` field of the headers and the query.
///
/// A field in both places is refused: readers elsewhere take one of the two, or join them, and the
/// string to sign could not say which. Values of the query are signed with their outer blanks: the
/// readers keep them, and one blank more names another source of a copy.
fn amz_fields(head: &RequestHead) -> Result<AmzFields<'_>> {
    let mut fields = AmzFields::new();
    for (name, value) in head.headers().filter(|(name, _)| is_amz(name)) {
        let joined = match fields.get(name) {
            None => Cow::Borrowed(value),
            Some(first) => Cow::Owned(format!("{first},{value}")),
        };
        fields.insert(Cow::Borrowed(name), joined);
    }
    for param in uri::params(head.raw_query()) {
        let name = uri::decode_query(param.name)?;
        if !is_amz(&name) {
            continue;
        }
        if !name.bytes().all(is_token_byte) {
            return Err(S3Error::argument(
                "An x-amz- parameter's name could not be a header's.",
            ));
        }
        let name = if name.bytes().any(|b| b.is_ascii_uppercase()) {
            Cow::Owned(name.to_ascii_lowercase())
        } else {
            name
        };
        let value = header_value(uri::decode_query(param.value)?)?;
        if fields.insert(name, value).is_some() {
            return Err(S3Error::argument(
                "An x-amz- field is repeated, or stands both in the headers and in the query; send it once.",
            ));
        }
    }
    Ok(fields)
}

fn is_amz(name: &str) -> bool {
    name.get(..6)
        .is_some_and(|front| front.eq_ignore_ascii_case("x-amz-"))
}

/// Bytes of header names that SDKs use; no separators, above all no colon.
const fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')
}

/// The path as it was sent, with the bucket in front when the host names it. A bucket alone ends
/// with a slash in both styles.
fn path(out: &mut Vec<u8>, head: &RequestHead, hosts: &HostConfig) {
    let raw = head.raw_path();
    let bucket = bucket_of_host(head.host(), hosts);
    if let Some(bucket) = &bucket {
        out.push(b'/');
        out.extend_from_slice(bucket.as_bytes());
    }
    out.extend_from_slice(raw.as_bytes());
    let first = raw.strip_prefix('/').unwrap_or(raw);
    // A percent code could be another slash.
    if bucket.is_none() && !first.is_empty() && !first.contains(['/', '%']) {
        out.push(b'/');
    }
}

/// The signed parameters, decoded and sorted by name.
fn sub_resources(out: &mut Vec<u8>, raw_query: &str) -> Result<()> {
    let mut signed = Vec::new();
    for piece in raw_query.split('&') {
        let (name, value) = match piece.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (piece, None),
        };
        let name = uri::decode_query(name)?;
        if signs_param(&name) {
            let value = value.map(uri::decode_query).transpose()?;
            signed.push((name, value.map(header_value).transpose()?));
        }
    }
    signed.sort_unstable();
    for (index, (name, value)) in signed.iter().enumerate() {
        out.push(if index == 0 { b'?' } else { b'&' });
        out.extend_from_slice(name.as_bytes());
        if let Some(value) = value {
            out.push(b'=');
            out.extend_from_slice(value.as_bytes());
        }
    }
    Ok(())
}
