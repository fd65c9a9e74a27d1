//! What a request says about its own signature, from the Authorization header or the query.
//!
//! Nothing is believed here: the claim is syntax and time. Both places at once are refused.

use std::borrow::Cow;

use super::{PRESIGN_MAX_S, SKEW_MAX_S};
use crate::error::{Result, S3Error, S3ErrorCode};
use crate::head::RequestHead;
use crate::timestamp::{amz_date, parse_amz_date, parse_http_date};
use crate::uri;

const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// Where the signature stood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mechanism {
    Header,
    Query,
}

/// The parsed claim.
#[derive(Debug)]
pub(super) struct Claim<'a> {
    pub(super) mechanism: Mechanism,
    pub(super) access_key: Cow<'a, str>,
    /// `date/region/s3/aws4_request`, and where its region is.
    scope: Cow<'a, str>,
    pub(super) signed_headers: Cow<'a, str>,
    pub(super) signature: [u8; 32],
    /// The time in the form of x-amz-date.
    pub(super) stamp: [u8; 16],
    time_s: i64,
    expires_s: i64,
    pub(super) token: Option<Cow<'a, str>>,
    /// X-Amz-Content-Sha256 of the query.
    pub(super) payload: Option<Cow<'a, str>>,
}

impl<'a> Claim<'a> {
    pub(super) fn read(head: &'a RequestHead) -> Result<Self> {
        let in_query = QueryAuth::read(head.raw_query())?;
        match (head.header("authorization"), in_query) {
            (Some(_), Some(_)) => Err(S3Error::argument(
                "Only one authentication mechanism is allowed: the Authorization header or the query.",
            )),
            (Some(header), None) => Self::from_header(head, header),
            (None, Some(query)) => query.into_claim(),
            (None, None) => Err(S3Error::new(
                S3ErrorCode::AccessDenied,
                "The request is not signed; sign it with AWS Signature Version 4.",
            )),
        }
    }

    fn from_header(head: &'a RequestHead, header: &'a str) -> Result<Self> {
        let malformed =
            |what: &'static str| S3Error::new(S3ErrorCode::AuthorizationHeaderMalformed, what);
        let (algorithm, rest) = header.split_once(' ').unwrap_or((header, ""));
        check_algorithm(algorithm)?;
        let (mut credential, mut signed_headers, mut signature) = (None, None, None);
        for field in rest.split(',') {
            let Some((name, value)) = field.trim().split_once('=') else {
                return Err(malformed(
                    "The Authorization header holds a field without a value.",
                ));
            };
            let slot = match name {
                "Credential" => &mut credential,
                "SignedHeaders" => &mut signed_headers,
                "Signature" => &mut signature,
                _ => continue,
            };
            if slot.replace(value).is_some() {
                return Err(malformed("The Authorization header repeats a field."));
            }
        }
        let (Some(credential), Some(signed_headers), Some(signature)) =
            (credential, signed_headers, signature)
        else {
            return Err(malformed(
                "The Authorization header needs Credential, SignedHeaders and Signature.",
            ));
        };
        let time_s = match head.header("x-amz-date") {
            Some(text) => parse_amz_date(text),
            None => head
                .header("date")
                .and_then(|text| parse_amz_date(text).or_else(|| parse_http_date(text))),
        };
        let time_s = time_s.ok_or_else(|| {
            S3Error::new(
                S3ErrorCode::AccessDenied,
                "A signed request needs a valid x-amz-date or Date header.",
            )
        })?;
        let claim = Self {
            mechanism: Mechanism::Header,
            access_key: Cow::Borrowed(""),
            scope: Cow::Borrowed(credential),
            signed_headers: Cow::Borrowed(signed_headers),
            signature: [0; 32],
            stamp: amz_date(time_s),
            time_s,
            expires_s: 0,
            token: head.header("x-amz-security-token").map(Cow::Borrowed),
            payload: None,
        };
        claim.with_credential(signature)
    }

    /// Splits the credential, which stands in `scope`, and decodes the signature.
    fn with_credential(mut self, signature: &str) -> Result<Self> {
        let wrong = "The credential must be of the form KEY/YYYYMMDD/REGION/s3/aws4_request.";
        let mut slashes = self.scope.rmatch_indices('/').map(|(at, _)| at);
        let Some(at) = slashes.nth(3) else {
            return Err(self.malformed(wrong));
        };
        let (access_key, scope) = match self.scope {
            Cow::Borrowed(all) => (Cow::Borrowed(&all[..at]), Cow::Borrowed(&all[at + 1..])),
            Cow::Owned(ref all) => (all[..at].to_owned().into(), all[at + 1..].to_owned().into()),
        };
        self.access_key = access_key;
        self.scope = scope;
        let mut fields = self.scope.split('/');
        let date = fields.next().unwrap_or_default();
        let shape = !self.access_key.is_empty()
            && fields.next().is_some_and(|region| !region.is_empty())
            && fields.next() == Some("s3")
            && fields.next() == Some("aws4_request");
        if !shape {
            return Err(self.malformed(wrong));
        }
        if date.as_bytes() != &self.stamp[..8] {
            return Err(
                self.malformed("The date of the credential is not the date of the request.")
            );
        }
        if hex::decode_to_slice(signature, &mut self.signature).is_err() {
            return Err(self.malformed("The signature must be 64 hexadecimal digits."));
        }
        Ok(self)
    }

    pub(super) fn scope(&self) -> &str {
        &self.scope
    }

    pub(super) fn date(&self) -> &str {
        self.scope.split('/').next().unwrap_or_default()
    }

    pub(super) fn region(&self) -> &str {
        self.scope.split('/').nth(1).unwrap_or_default()
    }

    /// An error about the syntax of the place where the signature stood.
    pub(super) fn malformed(&self, message: impl Into<Cow<'static, str>>) -> S3Error {
        let code = match self.mechanism {
            Mechanism::Header => S3ErrorCode::AuthorizationHeaderMalformed,
            Mechanism::Query => S3ErrorCode::AuthorizationQueryParametersError,
        };
        S3Error::new(code, message)
    }

    pub(super) fn check_time(&self, now_s: i64) -> Result<()> {
        let age_s = now_s.saturating_sub(self.time_s);
        match self.mechanism {
            Mechanism::Header if age_s.unsigned_abs() > SKEW_MAX_S.unsigned_abs() => {
                Err(S3ErrorCode::RequestTimeTooSkewed.into())
            }
            Mechanism::Query if age_s < -SKEW_MAX_S => Err(S3Error::new(
                S3ErrorCode::AccessDenied,
                "Request is not valid yet.",
            )),
            Mechanism::Query if age_s > self.expires_s => Err(S3Error::new(
                S3ErrorCode::AccessDenied,
                "Request has expired.",
            )),
            _ => Ok(()),
        }
    }
}

fn check_algorithm(algorithm: &str) -> Result<()> {
    match algorithm {
        ALGORITHM => Ok(()),
        "AWS4-ECDSA-P256-SHA256" => Err(S3Error::new(
            S3ErrorCode::NotImplemented,
            "SigV4A is not implemented. Please use AWS4-HMAC-SHA256.",
        )),
        _ => Err(unsupported_mechanism()),
    }
}

/// The answer to Signature Version 2 and everything else.
fn unsupported_mechanism() -> S3Error {
    S3Error::new(
        S3ErrorCode::InvalidRequest,
        "The authorization mechanism you have provided is not supported. Please use AWS4-HMAC-SHA256.",
    )
}

/// The authorization parameters of a query.
#[derive(Default)]
struct QueryAuth<'a> {
    algorithm: Option<Cow<'a, str>>,
    credential: Option<Cow<'a, str>>,
    date: Option<Cow<'a, str>>,
    expires: Option<Cow<'a, str>>,
    signed_headers: Option<Cow<'a, str>>,
    signature: Option<Cow<'a, str>>,
    token: Option<Cow<'a, str>>,
    payload: Option<Cow<'a, str>>,
}

impl<'a> QueryAuth<'a> {
    /// `None` when the query does not authenticate.
    fn read(raw: &'a str) -> Result<Option<Self>> {
        let mut auth = Self::default();
        let (mut old_key, mut old_signature) = (false, false);
        for param in uri::params(raw) {
            let slot = match &*uri::decode_query(param.name)? {
                "X-Amz-Algorithm" => &mut auth.algorithm,
                "X-Amz-Credential" => &mut auth.credential,
                "X-Amz-Date" => &mut auth.date,
                "X-Amz-Expires" => &mut auth.expires,
                "X-Amz-SignedHeaders" => &mut auth.signed_headers,
                "X-Amz-Signature" => &mut auth.signature,
                "X-Amz-Security-Token" => &mut auth.token,
                "X-Amz-Content-Sha256" | "x-amz-content-sha256" => &mut auth.payload,
                "AWSAccessKeyId" => {
                    old_key = true;
                    continue;
                }
                "Signature" => {
                    old_signature = true;
                    continue;
                }
                _ => continue,
            };
            if slot.replace(uri::decode_query(param.value)?).is_some() {
                return Err(query_error("An authorization parameter is repeated."));
            }
        }
        if old_key && old_signature {
            return Err(unsupported_mechanism());
        }
        let present =
            auth.algorithm.is_some() || auth.credential.is_some() || auth.signature.is_some();
        Ok(present.then_some(auth))
    }

    fn into_claim(self) -> Result<Claim<'a>> {
        let (
            Some(algorithm),
            Some(credential),
            Some(date),
            Some(expires),
            Some(signed),
            Some(signature),
        ) = (
            self.algorithm,
            self.credential,
            self.date,
            self.expires,
            self.signed_headers,
            self.signature,
        )
        else {
            return Err(query_error(
                "A presigned URL needs X-Amz-Algorithm, X-Amz-Credential, X-Amz-Date, X-Amz-Expires, \
                 X-Amz-SignedHeaders and X-Amz-Signature.",
            ));
        };
        check_algorithm(&algorithm)?;
        let time_s = parse_amz_date(&date)
            .ok_or_else(|| query_error("X-Amz-Date must be of the form YYYYMMDDTHHMMSSZ."))?;
        let plain = expires.bytes().all(|b| b.is_ascii_digit());
        let expires_s = expires
            .parse()
            .ok()
            .filter(|s| plain && (1..=PRESIGN_MAX_S).contains(s));
        let claim = Claim {
            mechanism: Mechanism::Query,
            access_key: Cow::Borrowed(""),
            scope: credential,
            signed_headers: signed,
            signature: [0; 32],
            stamp: amz_date(time_s),
            time_s,
            expires_s: expires_s
                .ok_or_else(|| query_error("X-Amz-Expires must be a number from 1 to 604800."))?,
            token: self.token,
            payload: self.payload,
        };
        claim.with_credential(&signature)
    }
}

fn query_error(message: &'static str) -> S3Error {
    S3Error::new(S3ErrorCode::AuthorizationQueryParametersError, message)
}
