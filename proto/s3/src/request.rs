//! From a request head to the operation that it asks for.
//!
//! Classification is closed: a query parameter or header that selects a part of S3 which is not
//! implemented becomes [`S3Op::NotImplemented`], never the plain operation on the same path. A PUT
//! of `?acl` must not overwrite the object, and a PUT that asks for encryption must not store plain
//! bytes. Parameters that are not S3's are ignored, as S3 does.

mod attributes;
mod params;
#[cfg(test)]
mod tests;
mod unsupported;

use std::borrow::Cow;
use std::ops::Range;

use crate::error::{Result, S3Error, S3ErrorCode};
use crate::etag::PARTS_MAX;
use crate::head::{Method, RequestHead};
use crate::list::{FoldParams, KEYS_PER_PAGE_MAX, Start};
use crate::metadata::{amz_field, header_value};
use crate::names::{BucketName, ObjectKey};
use crate::range::{ByteRange, parse_copy_range};
use crate::uri::decode_path;
pub use attributes::AttributesParams;
use params::{Name, Query};

/// How hosts name buckets.
#[derive(Debug, Clone, Default)]
pub struct HostConfig {
    /// The domain whose subdomains are buckets, in lower case and without port; none turns
    /// virtual-host style off.
    pub base_domain: Option<Box<str>>,
}

/// What the client wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum S3Op {
    /// GET /
    ListBuckets,
    /// PUT bucket
    CreateBucket(BucketName),
    /// HEAD bucket
    HeadBucket(BucketName),
    /// DELETE bucket
    DeleteBucket(BucketName),
    /// GET bucket?location
    GetBucketLocation(BucketName),
    /// GET bucket?versioning
    GetBucketVersioning(BucketName),
    /// GET bucket, with `marker`
    ListObjectsV1(BucketName, ListParams),
    /// GET bucket?list-type=2
    ListObjectsV2(BucketName, ListParams),
    /// GET bucket?uploads
    ListMultipartUploads(BucketName, ListUploadsParams),
    /// POST bucket?delete
    DeleteObjects(BucketName),
    /// PUT object
    PutObject(ObjectPath),
    /// GET object
    GetObject(ObjectPath, ReadParams),
    /// HEAD object
    HeadObject(ObjectPath, ReadParams),
    /// GET object?attributes
    GetObjectAttributes(ObjectPath, AttributesParams),
    /// DELETE object
    DeleteObject(ObjectPath),
    /// PUT object with x-amz-copy-source
    CopyObject(ObjectPath, CopyParams),
    /// POST object?uploads
    CreateMultipartUpload(ObjectPath),
    /// PUT object?partNumber&uploadId
    UploadPart(ObjectPath, PartRef),
    /// PUT object?partNumber&uploadId with x-amz-copy-source
    UploadPartCopy(ObjectPath, PartRef, PartSource),
    /// POST object?uploadId
    CompleteMultipartUpload(ObjectPath, UploadId),
    /// DELETE object?uploadId
    AbortMultipartUpload(ObjectPath, UploadId),
    /// GET object?uploadId
    ListParts(ObjectPath, ListPartsParams),
    /// A part of S3 that does not exist here; the text names it.
    NotImplemented(&'static str),
}

/// A bucket and a key in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectPath {
    /// The bucket.
    pub bucket: BucketName,
    /// The key.
    pub key: ObjectKey,
}

/// The opaque name of a multipart upload, as the client sent it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadId(pub Box<str>);

/// One part of an upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartRef {
    /// 1 to [`PARTS_MAX`].
    pub number: u16,
    /// The upload.
    pub upload_id: UploadId,
}

/// What a listing asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListParams {
    /// Only keys that start so.
    pub prefix: Box<str>,
    /// Rolls keys up; empty is none.
    pub delimiter: Box<str>,
    /// At most [`KEYS_PER_PAGE_MAX`].
    pub max_keys: u16,
    /// `marker` (V1) or `start-after` (V2): list after this key.
    pub start_after: Option<Box<str>>,
    /// `continuation-token` (V2).
    pub continuation_token: Option<Box<str>>,
    /// Whether keys in the answer are percent-coded.
    pub encoding_url: bool,
    /// Whether V2 shows owners.
    pub fetch_owner: bool,
}

/// What a listing of uploads asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListUploadsParams {
    /// Only keys that start so.
    pub prefix: Box<str>,
    /// Rolls keys up; empty is none.
    pub delimiter: Box<str>,
    /// At most [`KEYS_PER_PAGE_MAX`].
    pub max_uploads: u16,
    /// List after this key.
    pub key_marker: Option<Box<str>>,
    /// List after this upload of the marked key.
    pub upload_id_marker: Option<Box<str>>,
    /// Whether keys in the answer are percent-coded.
    pub encoding_url: bool,
}

/// What a listing of parts asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListPartsParams {
    /// The upload.
    pub upload_id: UploadId,
    /// At most [`KEYS_PER_PAGE_MAX`].
    pub max_parts: u16,
    /// List parts with larger numbers.
    pub part_number_marker: u16,
}

/// What a read asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReadParams {
    /// The range; a header that S3 ignores is none.
    pub range: Option<ByteRange>,
    /// Only this part of a multipart object.
    pub part_number: Option<u16>,
    /// (response header, value) pairs that replace the stored ones; free of control characters.
    pub overrides: Vec<(&'static str, Box<str>)>,
    /// Whether x-amz-checksum-mode asks for the checksum.
    pub checksum_mode: bool,
}

/// The source of a CopyObject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyParams {
    /// The object to copy.
    pub source: ObjectPath,
    /// Whether the request's headers replace the source's metadata.
    pub replace_metadata: bool,
}

/// The source of an UploadPartCopy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartSource {
    /// The object to copy from.
    pub source: ObjectPath,
    /// The bytes to copy; none is the whole object. Not yet measured against its size.
    pub range: Option<Range<u64>>,
}

impl ListParams {
    /// The page as the fold wants it; a continuation token beats `start-after`.
    pub fn fold_params(&self) -> FoldParams<'_> {
        let start = match (&self.continuation_token, &self.start_after) {
            (Some(token), _) => Start::Token(token),
            (None, Some(key)) => Start::After(key),
            (None, None) => Start::First,
        };
        let (prefix, delimiter) = (&*self.prefix, &*self.delimiter);
        FoldParams {
            prefix,
            delimiter,
            max_keys: self.max_keys,
            start,
        }
    }
}

impl S3Op {
    /// Classifies a request.
    ///
    /// # Errors
    /// Names, keys and parameters that break S3's rules; MethodNotAllowed where S3 has no such
    /// method on the resource.
    pub fn classify(head: &RequestHead, hosts: &HostConfig) -> Result<Self> {
        if head.method() == Method::Options {
            return Ok(Self::NotImplemented("CORS preflight"));
        }
        let query = Query::parse(head.raw_query())?;
        if let Some(what) = query
            .unsupported
            .or_else(|| unsupported::feature_in_headers(head))
        {
            return Ok(Self::NotImplemented(what));
        }
        if query.get(Name::VersionId).is_some_and(|id| id != "null") {
            return Ok(Self::NotImplemented("versionId"));
        }
        match resource(head, hosts)? {
            Resource::Service => match head.method() {
                Method::Get => Ok(Self::ListBuckets),
                _ => Err(S3ErrorCode::MethodNotAllowed.into()),
            },
            Resource::Bucket(bucket) => on_bucket(head.method(), bucket, &query),
            Resource::Object(path) => on_object(head, path, &query),
        }
    }

    /// The bucket that the operation is on.
    pub fn bucket(&self) -> Option<&BucketName> {
        match self {
            Self::ListBuckets | Self::NotImplemented(_) => None,
            Self::CreateBucket(bucket)
            | Self::HeadBucket(bucket)
            | Self::DeleteBucket(bucket)
            | Self::GetBucketLocation(bucket)
            | Self::GetBucketVersioning(bucket)
            | Self::ListObjectsV1(bucket, _)
            | Self::ListObjectsV2(bucket, _)
            | Self::ListMultipartUploads(bucket, _)
            | Self::DeleteObjects(bucket) => Some(bucket),
            _ => self.object().map(|path| &path.bucket),
        }
    }

    /// The object that the operation is on.
    pub fn object(&self) -> Option<&ObjectPath> {
        match self {
            Self::PutObject(path)
            | Self::GetObject(path, _)
            | Self::HeadObject(path, _)
            | Self::GetObjectAttributes(path, _)
            | Self::DeleteObject(path)
            | Self::CopyObject(path, _)
            | Self::CreateMultipartUpload(path)
            | Self::UploadPart(path, _)
            | Self::UploadPartCopy(path, _, _)
            | Self::CompleteMultipartUpload(path, _)
            | Self::AbortMultipartUpload(path, _)
            | Self::ListParts(path, _) => Some(path),
            _ => None,
        }
    }
}

enum Resource {
    Service,
    Bucket(BucketName),
    Object(ObjectPath),
}

fn resource(head: &RequestHead, hosts: &HostConfig) -> Result<Resource> {
    let path = decode_path(head.raw_path())?;
    let path = path.strip_prefix('/').unwrap_or(&path);
    let (bucket, key) = if let Some(bucket) = bucket_of_host(head.host(), hosts) {
        (bucket, path)
    } else {
        let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
        (Cow::Borrowed(bucket), key)
    };
    if bucket.is_empty() && key.is_empty() {
        return Ok(Resource::Service);
    }
    let bucket = BucketName::new(&bucket)?;
    if key.is_empty() {
        return Ok(Resource::Bucket(bucket));
    }
    Ok(Resource::Object(ObjectPath {
        bucket,
        key: ObjectKey::new(key)?,
    }))
}

/// The bucket of a virtual-host style request. Host names have no case.
pub(crate) fn bucket_of_host<'a>(host: &'a str, hosts: &HostConfig) -> Option<Cow<'a, str>> {
    let base = hosts.base_domain.as_deref()?;
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let at = name.len().checked_sub(base.len())?;
    let (front, back) = name.split_at_checked(at)?;
    let bucket = front.strip_suffix('.')?;
    if !back.eq_ignore_ascii_case(base) || bucket.is_empty() {
        return None;
    }
    Some(if bucket.bytes().any(|b| b.is_ascii_uppercase()) {
        Cow::Owned(bucket.to_ascii_lowercase())
    } else {
        Cow::Borrowed(bucket)
    })
}

fn on_bucket(method: Method, bucket: BucketName, query: &Query<'_>) -> Result<S3Op> {
    use params::Selectors as S;
    match (method, query.selectors()) {
        (Method::Get, S::NONE) => {
            let start_after = query.owned(Name::Marker);
            Ok(S3Op::ListObjectsV1(
                bucket,
                list_params(query, start_after)?,
            ))
        }
        (Method::Get, S::LIST_TYPE) if query.get(Name::ListType) == Some("2") => {
            let start_after = query.owned(Name::StartAfter);
            Ok(S3Op::ListObjectsV2(
                bucket,
                list_params(query, start_after)?,
            ))
        }
        (_, S::LIST_TYPE) => Err(S3Error::argument("list-type must be 2, and only for GET.")),
        (Method::Get, S::VERSIONING) => Ok(S3Op::GetBucketVersioning(bucket)),
        (_, S::VERSIONING) => Ok(S3Op::NotImplemented("versioning")),
        (_, S::ATTRIBUTES) => Ok(S3Op::NotImplemented("attributes of a bucket")),
        (Method::Get, S::LOCATION) => Ok(S3Op::GetBucketLocation(bucket)),
        (Method::Get, S::UPLOADS) => Ok(S3Op::ListMultipartUploads(
            bucket,
            list_uploads_params(query)?,
        )),
        (Method::Head, S::NONE) => Ok(S3Op::HeadBucket(bucket)),
        (Method::Put, S::NONE) => Ok(S3Op::CreateBucket(bucket)),
        (Method::Delete, S::NONE) => Ok(S3Op::DeleteBucket(bucket)),
        (Method::Post, S::DELETE) => Ok(S3Op::DeleteObjects(bucket)),
        (Method::Post, S::NONE) => Ok(S3Op::NotImplemented("POST form upload")),
        _ => Err(S3ErrorCode::MethodNotAllowed.into()),
    }
}

fn on_object(head: &RequestHead, path: ObjectPath, query: &Query<'_>) -> Result<S3Op> {
    use params::Selectors as S;
    match (head.method(), query.selectors()) {
        (Method::Get, S::NONE | S::PART_NUMBER) => {
            Ok(S3Op::GetObject(path, read_params(head, query)?))
        }
        (Method::Head, S::NONE | S::PART_NUMBER) => {
            Ok(S3Op::HeadObject(path, read_params(head, query)?))
        }
        (Method::Get, S::ATTRIBUTES) => {
            let params = attributes::params(head)?;
            Ok(S3Op::GetObjectAttributes(path, params))
        }
        (_, S::ATTRIBUTES) => Ok(S3Op::NotImplemented("attributes but by GET")),
        (_, S::VERSIONING) => Ok(S3Op::NotImplemented("versioning")),
        (Method::Get, S::UPLOAD_ID) => Ok(S3Op::ListParts(path, list_parts_params(query)?)),
        (Method::Put, S::NONE) => match copy_source(head)? {
            None => Ok(S3Op::PutObject(path)),
            Some(source) => {
                let replace_metadata = replaces_metadata(head)?;
                Ok(S3Op::CopyObject(
                    path,
                    CopyParams {
                        source,
                        replace_metadata,
                    },
                ))
            }
        },
        (Method::Put, S::PART) => {
            let number = part_number(query.get(Name::PartNumber).unwrap_or_default())?;
            let part = PartRef {
                number,
                upload_id: upload_id(query)?,
            };
            match copy_source(head)? {
                None => Ok(S3Op::UploadPart(path, part)),
                Some(source) => {
                    let range = amz_field(head, "x-amz-copy-source-range")?;
                    let range = range.as_deref().map(parse_copy_range).transpose()?;
                    Ok(S3Op::UploadPartCopy(
                        path,
                        part,
                        PartSource { source, range },
                    ))
                }
            }
        }
        (Method::Put, S::UPLOAD_ID | S::PART_NUMBER) => Err(S3Error::argument(
            "A part upload needs both partNumber and uploadId.",
        )),
        (Method::Delete, S::NONE) => Ok(S3Op::DeleteObject(path)),
        (Method::Delete, S::UPLOAD_ID) => Ok(S3Op::AbortMultipartUpload(path, upload_id(query)?)),
        (Method::Post, S::UPLOADS) => Ok(S3Op::CreateMultipartUpload(path)),
        (Method::Post, S::UPLOAD_ID) => Ok(S3Op::CompleteMultipartUpload(path, upload_id(query)?)),
        _ => Err(S3ErrorCode::MethodNotAllowed.into()),
    }
}

fn upload_id(query: &Query<'_>) -> Result<UploadId> {
    match query.get(Name::UploadId) {
        Some(id) if !id.is_empty() => Ok(UploadId(id.into())),
        _ => Err(S3ErrorCode::NoSuchUpload.into()),
    }
}

fn part_number(text: &str) -> Result<u16> {
    let number = bounded(text, u32::from(PARTS_MAX)).filter(|n| *n >= 1);
    number.ok_or_else(|| S3Error::argument("Part numbers are integers from 1 to 10000."))
}

/// A plain decimal number up to `max`.
fn bounded(text: &str, max: u32) -> Option<u16> {
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let number: u32 = plain.then(|| text.parse().ok())??;
    if number > max {
        None
    } else {
        u16::try_from(number).ok()
    }
}

/// A page size: any number up to 2³¹-1 is legal and capped at 1,000.
fn page_size(query: &Query<'_>, name: Name) -> Result<u16> {
    let Some(text) = query.get(name).filter(|t| !t.is_empty()) else {
        return Ok(KEYS_PER_PAGE_MAX);
    };
    let plain = text.bytes().all(|b| b.is_ascii_digit());
    match text.parse::<i32>() {
        Ok(n) if plain => Ok(n.min(KEYS_PER_PAGE_MAX.into()) as u16),
        _ => Err(S3Error::argument(format!(
            "{} must be a number from 0 to 2147483647.",
            name.text()
        ))),
    }
}

fn encoding_url(query: &Query<'_>) -> Result<bool> {
    match query.get(Name::EncodingType) {
        None | Some("") => Ok(false),
        Some("url") => Ok(true),
        Some(_) => Err(S3Error::argument("encoding-type must be url.")),
    }
}

fn list_params(query: &Query<'_>, start_after: Option<Box<str>>) -> Result<ListParams> {
    // V1 has no tokens.
    let is_v2 = query.get(Name::ListType).is_some();
    let token = query.get(Name::ContinuationToken).filter(|_| is_v2);
    if token == Some("") {
        return Err(S3Error::argument("The continuation token is empty."));
    }
    Ok(ListParams {
        prefix: query.owned(Name::Prefix).unwrap_or_default(),
        delimiter: query.owned(Name::Delimiter).unwrap_or_default(),
        max_keys: page_size(query, Name::MaxKeys)?,
        start_after: start_after.filter(|s| !s.is_empty()),
        continuation_token: token.map(Into::into),
        encoding_url: encoding_url(query)?,
        fetch_owner: query.get(Name::FetchOwner) == Some("true"),
    })
}

fn list_uploads_params(query: &Query<'_>) -> Result<ListUploadsParams> {
    let marker = |name| query.owned(name).filter(|s| !s.is_empty());
    Ok(ListUploadsParams {
        prefix: query.owned(Name::Prefix).unwrap_or_default(),
        delimiter: query.owned(Name::Delimiter).unwrap_or_default(),
        max_uploads: page_size(query, Name::MaxUploads)?,
        key_marker: marker(Name::KeyMarker),
        upload_id_marker: marker(Name::UploadIdMarker),
        encoding_url: encoding_url(query)?,
    })
}

fn list_parts_params(query: &Query<'_>) -> Result<ListPartsParams> {
    let marker = match query.get(Name::PartNumberMarker).filter(|t| !t.is_empty()) {
        None => 0,
        Some(text) => bounded(text, u16::MAX.into()).ok_or_else(|| {
            S3Error::argument("part-number-marker must be a number from 0 to 65535.")
        })?,
    };
    Ok(ListPartsParams {
        upload_id: upload_id(query)?,
        max_parts: page_size(query, Name::MaxParts)?,
        part_number_marker: marker,
    })
}

fn read_params(head: &RequestHead, query: &Query<'_>) -> Result<ReadParams> {
    let range = head.header("range");
    let part_number = query.get(Name::PartNumber).map(part_number).transpose()?;
    if part_number.is_some() && range.is_some() {
        return Err(S3Error::new(
            S3ErrorCode::InvalidRequest,
            "Range and partNumber exclude each other.",
        ));
    }
    let mut overrides = Vec::new();
    for (name, header) in Name::RESPONSE_OVERRIDES {
        if let Some(value) = query.get(name) {
            overrides.push((header, header_value(value.into())?.into()));
        }
    }
    Ok(ReadParams {
        range: range.and_then(ByteRange::parse),
        part_number,
        overrides,
        checksum_mode: amz_field(head, "x-amz-checksum-mode")?
            .is_some_and(|mode| mode.eq_ignore_ascii_case("enabled")),
    })
}

fn copy_source(head: &RequestHead) -> Result<Option<ObjectPath>> {
    let Some(raw) = amz_field(head, "x-amz-copy-source")? else {
        return Ok(None);
    };
    let wrong = || S3Error::argument("x-amz-copy-source must name a bucket and a key.");
    let (raw, version) = raw.split_once("?versionId=").unwrap_or((&raw, "null"));
    if version != "null" {
        return Err(S3Error::new(
            S3ErrorCode::NotImplemented,
            "Copies of a named version are not implemented.",
        ));
    }
    let path = decode_path(raw)?;
    let (bucket, key) = path
        .strip_prefix('/')
        .unwrap_or(&path)
        .split_once('/')
        .ok_or_else(wrong)?;
    let bucket = BucketName::new(bucket).map_err(|_| wrong())?;
    Ok(Some(ObjectPath {
        bucket,
        key: ObjectKey::new(key)?,
    }))
}

fn replaces_metadata(head: &RequestHead) -> Result<bool> {
    match amz_field(head, "x-amz-metadata-directive")?.as_deref() {
        None | Some("COPY") => Ok(false),
        Some("REPLACE") => Ok(true),
        Some(_) => Err(S3Error::argument(
            "x-amz-metadata-directive must be COPY or REPLACE.",
        )),
    }
}
