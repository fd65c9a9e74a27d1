//! The listing answers: buckets, objects (V1 and V2), parts, uploads.

use super::Writer;
use crate::checksum::{Algorithm, Checksum, ChecksumType};
use crate::etag::Etag;
use crate::metadata::StorageClass;

/// Who owns something.
#[derive(Debug, Clone, Copy)]
pub struct Owner<'a> {
    /// The canonical id.
    pub id: &'a str,
    /// The name shown to people.
    pub display_name: &'a str,
}

/// One bucket of a listing.
#[derive(Debug, Clone, Copy)]
pub struct BucketEntry<'a> {
    /// Its name.
    pub name: &'a str,
    /// When it was made, in seconds since 1970.
    pub created_s: i64,
}

/// One object of a listing.
#[derive(Debug, Clone, Copy)]
pub struct ObjectEntry<'a> {
    /// Its key.
    pub key: &'a str,
    /// Its last change, in seconds since 1970.
    pub modified_s: i64,
    /// Its entity tag.
    pub etag: Etag,
    /// Its length in bytes.
    pub size_bytes: u64,
    /// Its class.
    pub storage_class: StorageClass,
    /// The algorithm and type of its checksum, if it has one.
    pub checksum: Option<(Algorithm, ChecksumType)>,
}

/// What both object listings repeat from the request and say about the page.
#[derive(Debug, Clone, Copy)]
pub struct ListingFrame<'a> {
    /// The bucket.
    pub bucket: &'a str,
    /// The prefix asked for.
    pub prefix: &'a str,
    /// The delimiter asked for; empty is none.
    pub delimiter: &'a str,
    /// The page size.
    pub max_keys: u16,
    /// Whether keys are percent-coded.
    pub encoding_url: bool,
    /// Whether there is more.
    pub truncated: bool,
    /// The owner to show with each object, if any.
    pub owner: Option<Owner<'a>>,
    /// The prefixes that keys were rolled up to.
    pub common_prefixes: &'a [Box<str>],
}

/// What only V1 has.
#[derive(Debug, Clone, Copy, Default)]
pub struct ListV1<'a> {
    /// The marker asked for.
    pub marker: &'a str,
    /// Where the next page starts; S3 shows it only with a delimiter.
    pub next_marker: Option<&'a str>,
}

/// What only V2 has.
#[derive(Debug, Clone, Copy, Default)]
pub struct ListV2<'a> {
    /// The token asked for.
    pub continuation_token: Option<&'a str>,
    /// The token of the next page.
    pub next_token: Option<&'a str>,
    /// The start-after asked for.
    pub start_after: Option<&'a str>,
}

/// Writes ListAllMyBucketsResult.
pub fn write_buckets<'b>(
    out: &mut Vec<u8>,
    owner: &Owner<'_>,
    buckets: impl IntoIterator<Item = BucketEntry<'b>>,
) {
    let mut xml = Writer::document(out, "ListAllMyBucketsResult");
    write_owner(&mut xml, "Owner", owner);
    xml.open("Buckets");
    for bucket in buckets {
        xml.open("Bucket");
        xml.text("Name", bucket.name);
        xml.time("CreationDate", bucket.created_s);
        xml.close("Bucket");
    }
    xml.close("Buckets");
    xml.close("ListAllMyBucketsResult");
}

/// Writes the V1 answer.
pub fn write_list_v1<'e>(
    out: &mut Vec<u8>,
    frame: &ListingFrame<'_>,
    page: &ListV1<'_>,
    objects: impl IntoIterator<Item = ObjectEntry<'e>>,
) {
    let mut xml = Writer::document(out, "ListBucketResult");
    write_frame(&mut xml, frame);
    xml.key("Marker", page.marker, frame.encoding_url);
    if let Some(next) = page.next_marker.filter(|_| !frame.delimiter.is_empty()) {
        xml.key("NextMarker", next, frame.encoding_url);
    }
    write_objects(&mut xml, frame, objects);
    xml.close("ListBucketResult");
}

/// Writes the V2 answer.
pub fn write_list_v2<'e>(
    out: &mut Vec<u8>,
    frame: &ListingFrame<'_>,
    page: &ListV2<'_>,
    objects: impl IntoIterator<Item = ObjectEntry<'e>>,
) {
    let mut xml = Writer::document(out, "ListBucketResult");
    write_frame(&mut xml, frame);
    xml.text_if("ContinuationToken", page.continuation_token);
    xml.text_if("NextContinuationToken", page.next_token);
    if let Some(start_after) = page.start_after {
        xml.key("StartAfter", start_after, frame.encoding_url);
    }
    let count = write_objects(&mut xml, frame, objects);
    xml.number("KeyCount", count + frame.common_prefixes.len() as u64);
    xml.close("ListBucketResult");
}

fn write_frame(xml: &mut Writer<'_>, frame: &ListingFrame<'_>) {
    xml.text("Name", frame.bucket);
    xml.key("Prefix", frame.prefix, frame.encoding_url);
    if !frame.delimiter.is_empty() {
        xml.key("Delimiter", frame.delimiter, frame.encoding_url);
    }
    xml.number("MaxKeys", frame.max_keys.into());
    if frame.encoding_url {
        xml.text("EncodingType", "url");
    }
    xml.flag("IsTruncated", frame.truncated);
}

fn write_objects<'e>(
    xml: &mut Writer<'_>,
    frame: &ListingFrame<'_>,
    objects: impl IntoIterator<Item = ObjectEntry<'e>>,
) -> u64 {
    let mut count = 0;
    for object in objects {
        count += 1;
        xml.open("Contents");
        xml.key("Key", object.key, frame.encoding_url);
        xml.time("LastModified", object.modified_s);
        xml.etag(&object.etag);
        if let Some((algorithm, kind)) = object.checksum {
            xml.text("ChecksumAlgorithm", algorithm.as_str());
            xml.text("ChecksumType", kind.as_str());
        }
        xml.number("Size", object.size_bytes);
        if let Some(owner) = &frame.owner {
            write_owner(xml, "Owner", owner);
        }
        xml.text("StorageClass", object.storage_class.as_str());
        xml.close("Contents");
    }
    write_common_prefixes(xml, frame.common_prefixes, frame.encoding_url);
    count
}

fn write_common_prefixes(xml: &mut Writer<'_>, prefixes: &[Box<str>], encoding_url: bool) {
    for prefix in prefixes {
        xml.open("CommonPrefixes");
        xml.key("Prefix", prefix, encoding_url);
        xml.close("CommonPrefixes");
    }
}

fn write_owner(xml: &mut Writer<'_>, element: &str, owner: &Owner<'_>) {
    xml.open(element);
    xml.text("ID", owner.id);
    xml.text("DisplayName", owner.display_name);
    xml.close(element);
}

/// One part of a listing.
#[derive(Debug, Clone, Copy)]
pub struct ListedPart {
    /// Its number.
    pub number: u16,
    /// When it arrived, in seconds since 1970.
    pub modified_s: i64,
    /// Its entity tag.
    pub etag: Etag,
    /// Its length in bytes.
    pub size_bytes: u64,
    /// Its checksum, if it has one.
    pub checksum: Option<Checksum>,
}

/// What a listing of parts says besides the parts.
#[derive(Debug, Clone, Copy)]
pub struct PartsFrame<'a> {
    /// The bucket.
    pub bucket: &'a str,
    /// The key.
    pub key: &'a str,
    /// The upload.
    pub upload_id: &'a str,
    /// Who began it and will own the object.
    pub owner: Owner<'a>,
    /// The class of the object to be.
    pub storage_class: StorageClass,
    /// The marker asked for.
    pub part_number_marker: u16,
    /// The last part shown, when there is more.
    pub next_marker: Option<u16>,
    /// The page size.
    pub max_parts: u16,
    /// The algorithm and type of the upload's checksum, if it has one.
    pub checksum: Option<(Algorithm, ChecksumType)>,
}

/// Writes ListPartsResult.
pub fn write_parts(
    out: &mut Vec<u8>,
    frame: &PartsFrame<'_>,
    parts: impl IntoIterator<Item = ListedPart>,
) {
    let mut xml = Writer::document(out, "ListPartsResult");
    xml.text("Bucket", frame.bucket);
    xml.text("Key", frame.key);
    xml.text("UploadId", frame.upload_id);
    write_owner(&mut xml, "Initiator", &frame.owner);
    write_owner(&mut xml, "Owner", &frame.owner);
    xml.text("StorageClass", frame.storage_class.as_str());
    xml.number("PartNumberMarker", frame.part_number_marker.into());
    if let Some(next) = frame.next_marker {
        xml.number("NextPartNumberMarker", next.into());
    }
    xml.number("MaxParts", frame.max_parts.into());
    xml.flag("IsTruncated", frame.next_marker.is_some());
    if let Some((algorithm, kind)) = frame.checksum {
        xml.text("ChecksumAlgorithm", algorithm.as_str());
        xml.text("ChecksumType", kind.as_str());
    }
    for part in parts {
        xml.open("Part");
        xml.number("PartNumber", part.number.into());
        xml.time("LastModified", part.modified_s);
        xml.etag(&part.etag);
        xml.number("Size", part.size_bytes);
        if let Some(checksum) = part.checksum {
            xml.text(checksum.algorithm().element(), &checksum.to_base64());
        }
        xml.close("Part");
    }
    xml.close("ListPartsResult");
}

/// One upload of a listing.
#[derive(Debug, Clone, Copy)]
pub struct ListedUpload<'a> {
    /// The key.
    pub key: &'a str,
    /// The upload.
    pub upload_id: &'a str,
    /// When it began, in seconds since 1970.
    pub initiated_s: i64,
    /// The class of the object to be.
    pub storage_class: StorageClass,
}

/// What a listing of uploads says besides the uploads.
#[derive(Debug, Clone, Copy)]
pub struct UploadsFrame<'a> {
    /// The bucket.
    pub bucket: &'a str,
    /// The prefix asked for.
    pub prefix: &'a str,
    /// The delimiter asked for; empty is none.
    pub delimiter: &'a str,
    /// The key marker asked for.
    pub key_marker: &'a str,
    /// The upload marker asked for.
    pub upload_id_marker: &'a str,
    /// Key and upload of the last entry, when there is more.
    pub next: Option<(&'a str, &'a str)>,
    /// The page size.
    pub max_uploads: u16,
    /// Whether keys are percent-coded.
    pub encoding_url: bool,
    /// Who began the uploads.
    pub owner: Owner<'a>,
    /// The prefixes that keys were rolled up to.
    pub common_prefixes: &'a [Box<str>],
}

/// Writes ListMultipartUploadsResult.
pub fn write_uploads<'u>(
    out: &mut Vec<u8>,
    frame: &UploadsFrame<'_>,
    uploads: impl IntoIterator<Item = ListedUpload<'u>>,
) {
    let url = frame.encoding_url;
    let mut xml = Writer::document(out, "ListMultipartUploadsResult");
    xml.text("Bucket", frame.bucket);
    xml.key("KeyMarker", frame.key_marker, url);
    xml.text("UploadIdMarker", frame.upload_id_marker);
    if let Some((key, upload_id)) = frame.next {
        xml.key("NextKeyMarker", key, url);
        xml.text("NextUploadIdMarker", upload_id);
    }
    xml.key("Prefix", frame.prefix, url);
    if !frame.delimiter.is_empty() {
        xml.key("Delimiter", frame.delimiter, url);
    }
    if url {
        xml.text("EncodingType", "url");
    }
    xml.number("MaxUploads", frame.max_uploads.into());
    xml.flag("IsTruncated", frame.next.is_some());
    for upload in uploads {
        xml.open("Upload");
        xml.key("Key", upload.key, url);
        xml.text("UploadId", upload.upload_id);
        write_owner(&mut xml, "Initiator", &frame.owner);
        write_owner(&mut xml, "Owner", &frame.owner);
        xml.text("StorageClass", upload.storage_class.as_str());
        xml.time("Initiated", upload.initiated_s);
        xml.close("Upload");
    }
    write_common_prefixes(&mut xml, frame.common_prefixes, url);
    xml.close("ListMultipartUploadsResult");
}
