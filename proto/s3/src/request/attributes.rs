//! What a GetObjectAttributes asks for: a list of attributes and a page of parts, all in headers.

use super::bounded;
use crate::error::{Result, S3Error};
use crate::head::RequestHead;
use crate::list::KEYS_PER_PAGE_MAX;
use crate::metadata::amz_field;

/// The attributes that a GetObjectAttributes asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AttributesParams {
    /// ETag
    pub etag: bool,
    /// Checksum
    pub checksum: bool,
    /// ObjectParts
    pub object_parts: bool,
    /// StorageClass
    pub storage_class: bool,
    /// ObjectSize
    pub object_size: bool,
    /// At most [`KEYS_PER_PAGE_MAX`] parts.
    pub max_parts: u16,
    /// Parts with larger numbers.
    pub part_number_marker: u16,
}

/// Reads the headers of a GetObjectAttributes.
pub(super) fn params(head: &RequestHead) -> Result<AttributesParams> {
    let number = |name: &str, max: u32| -> Result<Option<u16>> {
        let Some(text) = amz_field(head, name)?.filter(|text| !text.is_empty()) else {
            return Ok(None);
        };
        let wrong = || S3Error::argument(format!("{name} must be a number from 0 to {max}."));
        bounded(&text, max).map(Some).ok_or_else(wrong)
    };
    let mut params = AttributesParams {
        max_parts: number("x-amz-max-parts", u16::MAX.into())?
            .unwrap_or(KEYS_PER_PAGE_MAX)
            .min(KEYS_PER_PAGE_MAX),
        part_number_marker: number("x-amz-part-number-marker", u16::MAX.into())?.unwrap_or(0),
        ..AttributesParams::default()
    };
    let mut any = false;
    // SDKs send one header for each, or one with a list.
    let fields = head
        .headers()
        .filter(|(name, _)| *name == "x-amz-object-attributes");
    for name in fields
        .flat_map(|(_, value)| value.split(','))
        .map(str::trim)
    {
        let asked = match name {
            "ETag" => &mut params.etag,
            "Checksum" => &mut params.checksum,
            "ObjectParts" => &mut params.object_parts,
            "StorageClass" => &mut params.storage_class,
            "ObjectSize" => &mut params.object_size,
            "" => continue,
            _ => return Err(S3Error::argument("Invalid attribute name specified.")),
        };
        *asked = true;
        any = true;
    }
    if any {
        Ok(params)
    } else {
        Err(S3Error::argument(
            "x-amz-object-attributes must name at least one attribute.",
        ))
    }
}
