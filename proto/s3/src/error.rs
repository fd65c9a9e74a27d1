//! S3's error vocabulary: one code per way a request can fail, its HTTP status and a default text.
//!
//! An [`S3Error`] is what every parser of this crate returns and what the server turns into an
//! answer. The message is meant for the person who made the request; it never quotes secrets,
//! signatures or unbounded input.

use std::borrow::Cow;
use std::fmt;

/// Declares the code enum together with its flat table, so that neither can miss an entry.
macro_rules! codes {
    ($($variant:ident $text:literal $status:literal $message:literal;)*) => {
        /// Why a request failed; the variants are S3's own code strings.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum S3ErrorCode {
            $(#[doc = $message] $variant,)*
        }

        impl S3ErrorCode {
            /// Every code, for tables and tests.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The `<Code>` text of the error document.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            /// The HTTP status that goes with the code.
            pub const fn status(self) -> u16 {
                match self { $(Self::$variant => $status,)* }
            }

            /// What a user reads when nobody had anything more exact to say.
            pub const fn default_message(self) -> &'static str {
                match self { $(Self::$variant => $message,)* }
            }
        }
    };
}

codes! {
    AccessDenied "AccessDenied" 403 "Access denied.";
    AuthorizationHeaderMalformed "AuthorizationHeaderMalformed" 400 "The Authorization header is malformed.";
    AuthorizationQueryParametersError "AuthorizationQueryParametersError" 400 "The authorization query parameters are malformed.";
    BadDigest "BadDigest" 400 "The checksum or Content-MD5 you sent does not match the body that arrived.";
    BucketAlreadyExists "BucketAlreadyExists" 409 "The bucket name is taken; choose another one.";
    BucketAlreadyOwnedByYou "BucketAlreadyOwnedByYou" 409 "You already own a bucket of this name.";
    BucketNotEmpty "BucketNotEmpty" 409 "The bucket still holds objects; delete them first.";
    ConditionalRequestConflict "ConditionalRequestConflict" 409 "Another write to the same key was in flight; retry.";
    EntityTooLarge "EntityTooLarge" 400 "The body is larger than the largest allowed object or part.";
    EntityTooSmall "EntityTooSmall" 400 "A part other than the last one is smaller than 5 MiB.";
    ExpiredToken "ExpiredToken" 400 "The security token has expired.";
    IllegalLocationConstraint "IllegalLocationConstraintException" 400 "The location constraint is not the region of this endpoint.";
    IncompleteBody "IncompleteBody" 400 "The body does not have the length that the request announced.";
    InsufficientStorage "InsufficientStorage" 507 "There is no space left for this write.";
    InternalError "InternalError" 500 "The server met an internal error; retry.";
    InvalidAccessKeyId "InvalidAccessKeyId" 403 "The access key does not exist.";
    InvalidArgument "InvalidArgument" 400 "An argument is not valid.";
    InvalidBucketName "InvalidBucketName" 400 "The bucket name breaks the naming rules: 3 to 63 lower-case letters, digits, dots and hyphens.";
    InvalidDigest "InvalidDigest" 400 "The Content-MD5 header is not the base64 form of 16 bytes.";
    InvalidPart "InvalidPart" 400 "A listed part was not uploaded, or its ETag does not match.";
    InvalidPartNumber "InvalidPartNumber" 416 "The object has no part of this number.";
    InvalidPartOrder "InvalidPartOrder" 400 "The parts are not listed in ascending order.";
    InvalidRange "InvalidRange" 416 "The range lies outside the object.";
    InvalidRequest "InvalidRequest" 400 "The request is not valid.";
    InvalidStorageClass "InvalidStorageClass" 400 "The storage class does not exist here.";
    InvalidToken "InvalidToken" 400 "The security token is not valid.";
    InvalidTokenId "InvalidTokenId" 403 "The security token does not belong to this access key.";
    InvalidUri "InvalidURI" 400 "The URI cannot be decoded.";
    KeyTooLong "KeyTooLongError" 400 "The key is longer than 1024 bytes.";
    MalformedXml "MalformedXML" 400 "The XML body is not well-formed or does not follow the schema.";
    MaxMessageLengthExceeded "MaxMessageLengthExceeded" 400 "The XML body is larger than 1 MiB.";
    MetadataTooLarge "MetadataTooLarge" 400 "The user metadata is larger than 2 KiB.";
    MethodNotAllowed "MethodNotAllowed" 405 "The method is not allowed on this resource.";
    MissingContentLength "MissingContentLength" 411 "The request needs a Content-Length header.";
    MissingSecurityHeader "MissingSecurityHeader" 400 "A header that the signature needs is missing.";
    NoSuchBucket "NoSuchBucket" 404 "The bucket does not exist.";
    NoSuchKey "NoSuchKey" 404 "The key does not exist.";
    NoSuchUpload "NoSuchUpload" 404 "The upload does not exist; it may have been completed or aborted.";
    NotImplemented "NotImplemented" 501 "This part of the S3 API is not implemented.";
    NotModified "NotModified" 304 "Not modified.";
    PreconditionFailed "PreconditionFailed" 412 "A condition of the request does not hold.";
    RequestHeaderSectionTooLarge "RequestHeaderSectionTooLarge" 400 "The request head is larger than the limit.";
    RequestTimeTooSkewed "RequestTimeTooSkewed" 403 "The request's time differs from the server's by more than 15 minutes.";
    RequestTimeout "RequestTimeout" 400 "The request was not received within the deadline.";
    ServiceUnavailable "ServiceUnavailable" 503 "The server cannot answer now; retry.";
    SignatureDoesNotMatch "SignatureDoesNotMatch" 403 "The signature does not match; check the secret key and the signing method.";
    SlowDown "SlowDown" 503 "Too many requests are in flight; slow down and retry.";
    TooManyBuckets "TooManyBuckets" 400 "You own as many buckets as you may.";
    XAmzContentSha256Mismatch "XAmzContentSHA256Mismatch" 400 "The body's SHA-256 is not the one in x-amz-content-sha256.";
}

impl S3ErrorCode {
    /// Whether the answer carries an error document. A 304 never has a body.
    pub const fn has_body(self) -> bool {
        !matches!(self, Self::NotModified)
    }
}

impl fmt::Display for S3ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A failed request: the code, a sentence for its author and the object that it was about.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct S3Error {
    /// The kind, which decides code text and status.
    pub code: S3ErrorCode,
    /// What happened and what to do next.
    pub message: Cow<'static, str>,
    /// The path of the bucket or object, where known.
    pub resource: Option<Box<str>>,
}

/// The result of every parser in this crate.
pub type Result<T, E = S3Error> = std::result::Result<T, E>;

impl S3Error {
    /// An error with a message of its own.
    pub fn new(code: S3ErrorCode, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            code,
            message: message.into(),
            resource: None,
        }
    }

    /// The same error, about the named resource.
    pub fn on(mut self, resource: impl Into<Box<str>>) -> Self {
        self.resource = Some(resource.into());
        self
    }

    /// The HTTP status of the answer.
    pub const fn status(&self) -> u16 {
        self.code.status()
    }

    /// Shorthand for the most frequent code of the parsers.
    pub(crate) fn argument(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(S3ErrorCode::InvalidArgument, message)
    }
}

impl From<S3ErrorCode> for S3Error {
    fn from(code: S3ErrorCode) -> Self {
        Self {
            code,
            message: Cow::Borrowed(code.default_message()),
            resource: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_statuses_are_http() {
        let mut texts: Vec<_> = S3ErrorCode::ALL.iter().map(|c| c.as_str()).collect();
        texts.sort_unstable();
        texts.dedup();
        assert_eq!(texts.len(), S3ErrorCode::ALL.len());
        for code in S3ErrorCode::ALL {
            assert!((300..600).contains(&code.status()), "{code}");
            assert!(code.default_message().ends_with('.'), "{code}");
        }
    }

    #[test]
    fn a_304_has_no_body_and_every_other_error_has_one() {
        for code in S3ErrorCode::ALL {
            assert_eq!(code.has_body(), code.status() != 304, "{code}");
        }
    }
}
