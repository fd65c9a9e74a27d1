//! What a PUT says about its object besides the bytes: content headers, user metadata, storage
//! class.
//!
//! SDKs move `x-amz-*` headers of presigned requests into the query, so [`amz_field`] and the user
//! metadata look in both places; so does Content-Type in presigned URLs of version 2.
//! Content-Encoding is kept without the `aws-chunked` token, which describes the transfer and not
//! the object.

use std::borrow::Cow;

use crate::error::{Result, S3Error, S3ErrorCode};
use crate::head::RequestHead;
use crate::sigv2::content_field;
use crate::uri::{decode_query, find_param, params};

/// Most bytes of user metadata: names without prefix, and values.
pub const USER_METADATA_BYTES_MAX: usize = 2048;

const META_PREFIX: &str = "x-amz-meta-";

/// The classes that this store has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StorageClass {
    /// STANDARD.
    #[default]
    Standard,
    /// REDUCED_REDUNDANCY; kept as a label.
    ReducedRedundancy,
}

impl StorageClass {
    /// S3's name of the class.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Standard => "STANDARD",
            Self::ReducedRedundancy => "REDUCED_REDUNDANCY",
        }
    }

    fn parse(text: &str) -> Result<Self> {
        match text {
            "STANDARD" => Ok(Self::Standard),
            "REDUCED_REDUNDANCY" => Ok(Self::ReducedRedundancy),
            _ => Err(S3ErrorCode::InvalidStorageClass.into()),
        }
    }
}

/// The headers that are stored with an object and sent back with it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObjectHeaders {
    /// Content-Type.
    pub content_type: Option<Box<str>>,
    /// Content-Encoding, without `aws-chunked`.
    pub content_encoding: Option<Box<str>>,
    /// Content-Disposition.
    pub content_disposition: Option<Box<str>>,
    /// Content-Language.
    pub content_language: Option<Box<str>>,
    /// Cache-Control.
    pub cache_control: Option<Box<str>>,
    /// Expires, verbatim.
    pub expires: Option<Box<str>>,
    /// x-amz-storage-class.
    pub storage_class: StorageClass,
    /// User metadata: (lower-case name without prefix, value), in order of arrival.
    pub user: Vec<(Box<str>, Box<str>)>,
}

impl ObjectHeaders {
    /// Reads the fields of a PutObject, CopyObject or CreateMultipartUpload.
    ///
    /// # Errors
    /// MetadataTooLarge past [`USER_METADATA_BYTES_MAX`], InvalidStorageClass for a class that does
    /// not exist here.
    pub fn parse(head: &RequestHead) -> Result<Self> {
        let mut out = Self::default();
        for (name, value) in head.headers() {
            let slot = match name {
                "content-type" => &mut out.content_type,
                "content-encoding" => {
                    out.content_encoding = without_aws_chunked(value);
                    continue;
                }
                "content-disposition" => &mut out.content_disposition,
                "content-language" => &mut out.content_language,
                "cache-control" => &mut out.cache_control,
                "expires" => &mut out.expires,
                "x-amz-storage-class" => {
                    out.storage_class = StorageClass::parse(value)?;
                    continue;
                }
                _ => {
                    if let Some(name) = name.strip_prefix(META_PREFIX) {
                        out.add_user(name, value);
                    }
                    continue;
                }
            };
            *slot = Some(value.into());
        }
        if out.content_type.is_none() {
            out.content_type = content_field(head, "content-type")?.map(Into::into);
        }
        out.parse_query(head.raw_query())?;
        let bytes: usize = out.user.iter().map(|(n, v)| n.len() + v.len()).sum();
        if bytes > USER_METADATA_BYTES_MAX {
            return Err(S3ErrorCode::MetadataTooLarge.into());
        }
        Ok(out)
    }

    fn parse_query(&mut self, query: &str) -> Result<()> {
        for param in params(query) {
            let name = decode_query(param.name)?.to_ascii_lowercase();
            if name == "x-amz-storage-class" {
                self.storage_class = StorageClass::parse(&decode_query(param.value)?)?;
            } else if let Some(name) = name.strip_prefix(META_PREFIX) {
                self.add_user(name, &header_value(decode_query(param.value)?)?);
            }
        }
        Ok(())
    }

    /// A repeated name joins its values with a comma, as HTTP does.
    fn add_user(&mut self, name: &str, value: &str) {
        match self.user.iter_mut().find(|(known, _)| &**known == name) {
            Some((_, values)) => *values = format!("{values},{value}").into(),
            None => self.user.push((name.into(), value.into())),
        }
    }
}

fn without_aws_chunked(value: &str) -> Option<Box<str>> {
    if !value.to_ascii_lowercase().contains("aws-chunked") {
        return Some(value.into());
    }
    let tokens = value.split(',').map(str::trim);
    let kept: Vec<_> = tokens
        .filter(|t| !t.eq_ignore_ascii_case("aws-chunked"))
        .collect();
    (!kept.is_empty()).then(|| kept.join(",").into())
}

/// Refuses decoded text that could not have come in a header.
pub(crate) fn header_value(value: Cow<'_, str>) -> Result<Cow<'_, str>> {
    if value.bytes().any(|b| b.is_ascii_control() && b != b'\t') {
        return Err(S3Error::argument(
            "A header value in the query holds a control character.",
        ));
    }
    Ok(value)
}

/// The value of an `x-amz-*` field (lower-case name) from the headers or, for presigned requests,
/// from the query.
pub fn amz_field<'a>(head: &'a RequestHead, name: &str) -> Result<Option<Cow<'a, str>>> {
    if let Some(value) = head.header(name) {
        return Ok(Some(Cow::Borrowed(value)));
    }
    if head.raw_query().is_empty() {
        return Ok(None);
    }
    find_param(head.raw_query(), name)?
        .map(header_value)
        .transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(query: &str, fields: &str) -> Result<ObjectHeaders> {
        let text = format!("PUT /b/k?{query} HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
        let parsed = crate::head::parse_head(text.as_bytes(), &crate::HeadLimits::default());
        let Ok(crate::Parsed::Complete { head, .. }) = parsed else {
            panic!("{text}")
        };
        ObjectHeaders::parse(&head)
    }

    #[test]
    fn collects_content_headers_and_user_metadata() {
        let got = parse(
            "X-Amz-Meta-Q=a%20b",
            "Content-Type: text/plain\r\nContent-Encoding: aws-chunked, gzip\r\nX-Amz-Meta-A: 1\r\nx-amz-meta-a: é\r\n\
             x-amz-storage-class: REDUCED_REDUNDANCY\r\nExpires: never\r\n",
        )
        .unwrap();
        assert_eq!(got.content_type.as_deref(), Some("text/plain"));
        assert_eq!(got.content_encoding.as_deref(), Some("gzip"));
        assert_eq!(got.expires.as_deref(), Some("never"));
        assert_eq!(got.storage_class, StorageClass::ReducedRedundancy);
        let user: Vec<_> = got.user.iter().map(|(n, v)| (&**n, &**v)).collect();
        assert_eq!(user, [("a", "1,é"), ("q", "a b")]);
        assert_eq!(
            parse("", "Content-Encoding: aws-chunked\r\n")
                .unwrap()
                .content_encoding,
            None
        );
    }

    #[test]
    fn metadata_may_have_2_kib_and_not_a_byte_more() {
        let field = |bytes: usize| format!("x-amz-meta-ab: {}\r\n", "v".repeat(bytes - 2));
        assert!(parse("", &field(2048)).is_ok());
        assert_eq!(
            parse("", &field(2049)).unwrap_err().code,
            S3ErrorCode::MetadataTooLarge
        );
    }

    #[test]
    fn unknown_classes_and_split_headers_are_refused() {
        let error = parse("", "x-amz-storage-class: GLACIER\r\n").unwrap_err();
        assert_eq!(error.code, S3ErrorCode::InvalidStorageClass);
        assert!(parse("x-amz-meta-a=b%0d%0aEvil:1", "").is_err());
    }
}
