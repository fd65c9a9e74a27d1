//! The short answers: uploads, copies, deletions, locations and errors.

use super::{DECLARATION, Writer};
use crate::checksum::{Checksum, ChecksumType};
use crate::error::{S3Error, S3ErrorCode};
use crate::etag::Etag;

/// Writes LocationConstraint. S3 shows its first region, us-east-1, as an empty element.
pub fn write_location(out: &mut Vec<u8>, region: &str) {
    let mut xml = Writer::document(out, "LocationConstraint");
    if region != "us-east-1" {
        super::escape(xml.out, region);
    }
    xml.close("LocationConstraint");
}

/// Writes the VersioningConfiguration of a bucket that was never versioned: an empty one.
pub fn write_never_versioned(out: &mut Vec<u8>) {
    Writer::document(out, "VersioningConfiguration").close("VersioningConfiguration");
}

/// Writes InitiateMultipartUploadResult.
pub fn write_initiate_multipart_upload(
    out: &mut Vec<u8>,
    path: &crate::request::ObjectPath,
    upload_id: &str,
) {
    let mut xml = Writer::document(out, "InitiateMultipartUploadResult");
    xml.text("Bucket", path.bucket.as_str());
    xml.text("Key", path.key.as_str());
    xml.text("UploadId", upload_id);
    xml.close("InitiateMultipartUploadResult");
}

/// A multipart upload that became an object.
#[derive(Debug, Clone, Copy)]
pub struct CompletedUpload<'a> {
    /// The object's URL.
    pub location: &'a str,
    /// The bucket.
    pub bucket: &'a str,
    /// The key.
    pub key: &'a str,
    /// The entity tag.
    pub etag: Etag,
    /// The checksum and its type; a composite one also has its number of parts.
    pub checksum: Option<(Checksum, ChecksumType, usize)>,
}

/// Writes CompleteMultipartUploadResult.
pub fn write_complete_multipart_upload(out: &mut Vec<u8>, upload: &CompletedUpload<'_>) {
    let mut xml = Writer::document(out, "CompleteMultipartUploadResult");
    xml.text("Location", upload.location);
    xml.text("Bucket", upload.bucket);
    xml.text("Key", upload.key);
    xml.etag(&upload.etag);
    if let Some((checksum, kind, parts)) = upload.checksum {
        let mut text = checksum.to_base64();
        if kind == ChecksumType::Composite {
            text = format!("{text}-{parts}");
        }
        xml.text(checksum.algorithm().element(), &text);
        xml.text("ChecksumType", kind.as_str());
    }
    xml.close("CompleteMultipartUploadResult");
}

/// A copy.
#[derive(Debug, Clone, Copy)]
pub struct CopyResult {
    /// The entity tag of the new object or part.
    pub etag: Etag,
    /// When it was made, in seconds since 1970.
    pub modified_s: i64,
    /// Its checksum, if it has one.
    pub checksum: Option<Checksum>,
}

/// Writes CopyObjectResult.
pub fn write_copy_object(out: &mut Vec<u8>, copy: &CopyResult) {
    write_copy(out, "CopyObjectResult", copy);
}

/// Writes CopyPartResult.
pub fn write_copy_part(out: &mut Vec<u8>, copy: &CopyResult) {
    write_copy(out, "CopyPartResult", copy);
}

fn write_copy(out: &mut Vec<u8>, root: &str, copy: &CopyResult) {
    let mut xml = Writer::document(out, root);
    xml.time("LastModified", copy.modified_s);
    xml.etag(&copy.etag);
    if let Some(checksum) = copy.checksum {
        xml.text(checksum.algorithm().element(), &checksum.to_base64());
    }
    xml.close(root);
}

/// What became of one key of a DeleteObjects.
#[derive(Debug, Clone, Copy)]
pub enum DeleteOutcome<'a> {
    /// Deleted, or was not there.
    Deleted,
    /// Not deleted.
    Failed(&'a S3Error),
}

/// Writes DeleteResult key by key.
#[derive(Debug)]
pub struct DeleteResultWriter<'a> {
    xml: Writer<'a>,
    quiet: bool,
}

impl<'a> DeleteResultWriter<'a> {
    /// Starts the document; a quiet one shows only failures.
    pub fn new(out: &'a mut Vec<u8>, quiet: bool) -> Self {
        Self {
            xml: Writer::document(out, "DeleteResult"),
            quiet,
        }
    }

    /// Appends the outcome of a key.
    pub fn add(&mut self, key: &str, outcome: DeleteOutcome<'_>) {
        match outcome {
            DeleteOutcome::Deleted if self.quiet => {}
            DeleteOutcome::Deleted => {
                self.xml.open("Deleted");
                self.xml.text("Key", key);
                self.xml.close("Deleted");
            }
            DeleteOutcome::Failed(error) => {
                self.xml.open("Error");
                self.xml.text("Key", key);
                self.xml.text("Code", error.code.as_str());
                self.xml.text("Message", &error.message);
                self.xml.close("Error");
            }
        }
    }

    /// Ends the document.
    pub fn finish(mut self) {
        self.xml.close("DeleteResult");
    }
}

/// What an error document says besides the error.
#[derive(Debug, Clone, Copy)]
pub struct ErrorContext<'a> {
    /// The path of the request, used when the error names no resource.
    pub resource: &'a str,
    /// The request's id.
    pub request_id: &'a str,
}

/// Writes the Error document; nothing for a 304, which has no body.
pub fn error_document(out: &mut Vec<u8>, error: &S3Error, context: &ErrorContext<'_>) {
    if !error.code.has_body() {
        return;
    }
    let resource = error.resource.as_deref().unwrap_or(context.resource);
    out.extend_from_slice(DECLARATION);
    let mut xml = Writer { out };
    xml.open("Error");
    xml.text("Code", error.code.as_str());
    xml.text("Message", &error.message);
    match error.code {
        S3ErrorCode::NoSuchKey => xml.text("Key", key_of(resource)),
        S3ErrorCode::NoSuchBucket => xml.text("BucketName", bucket_of(resource)),
        _ => {}
    }
    xml.text("Resource", resource);
    xml.text("RequestId", context.request_id);
    xml.close("Error");
}

fn bucket_of(resource: &str) -> &str {
    let path = resource.strip_prefix('/').unwrap_or(resource);
    path.split_once('/').map_or(path, |(bucket, _)| bucket)
}

fn key_of(resource: &str) -> &str {
    let path = resource.strip_prefix('/').unwrap_or(resource);
    path.split_once('/').map_or("", |(_, key)| key)
}
