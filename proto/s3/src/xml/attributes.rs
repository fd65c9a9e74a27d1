//! The answer of GetObjectAttributes.

use super::Writer;
use crate::checksum::{Checksum, ChecksumType};
use crate::etag::Etag;
use crate::metadata::StorageClass;

/// What is answered of an object; what was not asked for is none.
#[derive(Debug, Clone, Copy, Default)]
pub struct ObjectAttributes<'a> {
    /// ETag, which this answer alone shows without quotes.
    pub etag: Option<Etag>,
    /// Checksum; a composite one is shown without its number of parts.
    pub checksum: Option<(Checksum, ChecksumType)>,
    /// ObjectParts, of an object that came in parts.
    pub parts: Option<PartsPage<'a>>,
    /// StorageClass.
    pub storage_class: Option<StorageClass>,
    /// ObjectSize, in bytes.
    pub size_bytes: Option<u64>,
}

/// A page of the parts that an object came in.
#[derive(Debug, Clone, Copy)]
pub struct PartsPage<'a> {
    /// How many there are in all.
    pub count: u32,
    /// The marker asked for.
    pub part_number_marker: u16,
    /// The page size.
    pub max_parts: u16,
    /// Where the next page starts, if there is one.
    pub next_marker: Option<u16>,
    /// The parts; S3 shows them only for objects that have a checksum.
    pub parts: &'a [AttributePart],
}

/// One part of an object.
#[derive(Debug, Clone, Copy)]
pub struct AttributePart {
    /// Its number.
    pub number: u16,
    /// Its length in bytes.
    pub size_bytes: u64,
    /// Its checksum, if it has one.
    pub checksum: Option<Checksum>,
}

/// Writes GetObjectAttributesResponse.
pub fn write_object_attributes(out: &mut Vec<u8>, object: &ObjectAttributes<'_>) {
    const ROOT: &str = "GetObjectAttributesResponse";
    let mut xml = Writer::document(out, ROOT);
    if let Some(etag) = object.etag {
        xml.text("ETag", etag.text().as_str());
    }
    if let Some((checksum, kind)) = object.checksum {
        xml.open("Checksum");
        xml.text(checksum.algorithm().element(), &checksum.to_base64());
        xml.text("ChecksumType", kind.as_str());
        xml.close("Checksum");
    }
    if let Some(page) = &object.parts {
        write_page(&mut xml, page);
    }
    if let Some(class) = object.storage_class {
        xml.text("StorageClass", class.as_str());
    }
    if let Some(bytes) = object.size_bytes {
        xml.number("ObjectSize", bytes);
    }
    xml.close(ROOT);
}

fn write_page(xml: &mut Writer<'_>, page: &PartsPage<'_>) {
    xml.open("ObjectParts");
    xml.number("PartsCount", page.count.into());
    xml.number("PartNumberMarker", page.part_number_marker.into());
    if let Some(next) = page.next_marker {
        xml.number("NextPartNumberMarker", next.into());
    }
    xml.number("MaxParts", page.max_parts.into());
    xml.flag("IsTruncated", page.next_marker.is_some());
    for part in page.parts {
        xml.open("Part");
        xml.number("PartNumber", part.number.into());
        xml.number("Size", part.size_bytes);
        if let Some(checksum) = part.checksum {
            xml.text(checksum.algorithm().element(), &checksum.to_base64());
        }
        xml.close("Part");
    }
    xml.close("ObjectParts");
}
