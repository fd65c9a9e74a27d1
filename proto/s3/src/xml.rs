//! The XML of S3: answers written by hand into a buffer, request bodies parsed under bounds.
//!
//! The writers escape everything that comes from outside, control characters included, so that a
//! key cannot break the document. The parsers refuse document types and entities other
//! than the five of XML and character references.

mod answers;
mod attributes;
mod listings;
mod parse;
#[cfg(test)]
mod tests;

use crate::uri;

pub use answers::{
    CompletedUpload, CopyResult, DeleteOutcome, DeleteResultWriter, ErrorContext, error_document,
    write_complete_multipart_upload, write_copy_object, write_copy_part,
    write_initiate_multipart_upload, write_location, write_never_versioned,
};
pub use attributes::{AttributePart, ObjectAttributes, PartsPage, write_object_attributes};
pub use listings::{
    BucketEntry, ListV1, ListV2, ListedPart, ListedUpload, ListingFrame, ObjectEntry, Owner,
    PartsFrame, UploadsFrame, write_buckets, write_list_v1, write_list_v2, write_parts,
    write_uploads,
};
pub use parse::{
    CompletedPart, DELETE_KEYS_MAX, DeleteRequest, DeleteTarget, XML_BYTES_MAX,
    parse_complete_multipart_upload, parse_create_bucket, parse_delete_objects,
};

const DECLARATION: &[u8] = b"<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n";
const NAMESPACE: &[u8] = b" xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"";

/// Writes elements into a buffer. Names are ours and never escaped; values always are.
#[derive(Debug)]
pub(crate) struct Writer<'a> {
    out: &'a mut Vec<u8>,
}

impl<'a> Writer<'a> {
    /// Starts a document with S3's namespace on its root.
    fn document(out: &'a mut Vec<u8>, root: &str) -> Self {
        out.extend_from_slice(DECLARATION);
        out.push(b'<');
        out.extend_from_slice(root.as_bytes());
        out.extend_from_slice(NAMESPACE);
        out.push(b'>');
        Self { out }
    }

    fn open(&mut self, name: &str) {
        self.out.push(b'<');
        self.out.extend_from_slice(name.as_bytes());
        self.out.push(b'>');
    }

    fn close(&mut self, name: &str) {
        self.out.extend_from_slice(b"</");
        self.out.extend_from_slice(name.as_bytes());
        self.out.push(b'>');
    }

    /// Bytes that are XML already.
    fn raw(&mut self, xml: &[u8]) {
        self.out.extend_from_slice(xml);
    }

    fn text(&mut self, name: &str, value: &str) {
        self.open(name);
        escape(self.out, value);
        self.close(name);
    }

    fn text_if(&mut self, name: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.text(name, value);
        }
    }

    fn number(&mut self, name: &str, value: u64) {
        self.open(name);
        self.raw(itoa::Buffer::new().format(value).as_bytes());
        self.close(name);
    }

    fn flag(&mut self, name: &str, value: bool) {
        self.text(name, if value { "true" } else { "false" });
    }

    fn time(&mut self, name: &str, unix_s: i64) {
        self.open(name);
        self.raw(&crate::timestamp::iso8601(unix_s));
        self.close(name);
    }

    fn etag(&mut self, etag: &crate::etag::Etag) {
        self.raw(b"<ETag>&quot;");
        self.raw(etag.text().as_str().as_bytes());
        self.raw(b"&quot;</ETag>");
    }

    /// A key, prefix, marker or delimiter, percent-coded if the client asked for it.
    fn key(&mut self, name: &str, value: &str, encoding_url: bool) {
        self.open(name);
        if encoding_url {
            uri::encode_path(self.out, value);
        } else {
            escape(self.out, value);
        }
        self.close(name);
    }
}

/// Appends text as XML character data. Characters that XML 1.0 cannot carry at all are written as
/// character references, as S3 does; clients that list such keys ask for `encoding-type=url`.
pub fn escape(out: &mut Vec<u8>, text: &str) {
    let special = |b: &u8| matches!(b, b'&' | b'<' | b'>' | b'"' | b'\'') || b.is_ascii_control();
    let mut rest = text.as_bytes();
    while let Some(at) = rest.iter().position(special) {
        out.extend_from_slice(&rest[..at]);
        match rest[at] {
            b'&' => out.extend_from_slice(b"&amp;"),
            b'<' => out.extend_from_slice(b"&lt;"),
            b'>' => out.extend_from_slice(b"&gt;"),
            b'"' => out.extend_from_slice(b"&quot;"),
            b'\'' => out.extend_from_slice(b"&apos;"),
            control => {
                const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
                out.extend_from_slice(b"&#x");
                if control >= 0x10 {
                    out.push(DIGITS[usize::from(control >> 4)]);
                }
                out.push(DIGITS[usize::from(control & 15)]);
                out.push(b';');
            }
        }
        rest = &rest[at + 1..];
    }
    // The two non-characters that XML 1.0 leaves out are kept as they are: every parser in use
    // takes them, and a reference to them would be refused as well.
    out.extend_from_slice(rest);
}
