//! What a GET or HEAD answers of an object: whether it is new to the client, which of its bytes, and
//! the head that says so.

use std::ops::Range;

use s3_wire::checksum::ChecksumType;
use s3_wire::conditional::{Conditions, Current, Outcome};
use s3_wire::metadata::StorageClass;
use s3_wire::range::{self, ResolvedRange};
use s3_wire::request::ReadParams;
use s3_wire::{ResponseHead, S3Error, S3ErrorCode};

use super::exchange::Reply;
use super::ops::Call;
use crate::store::{ContentHeaders, ObjectChecksum, ObjectMeta, ObjectPart};

/// `flags` of an object that was put with REDUCED_REDUNDANCY, which is only a label here.
pub(crate) const FLAG_REDUCED: u32 = 1;

pub(crate) fn storage_class(flags: u32) -> StorageClass {
    if flags & FLAG_REDUCED != 0 {
        StorageClass::ReducedRedundancy
    } else {
        StorageClass::Standard
    }
}

/// What conditions look at.
pub(crate) fn current(meta: &ObjectMeta) -> Current {
    Current {
        etag: meta.etag,
        modified_s: (meta.modified_ms / 1000) as i64,
    }
}

/// The 304 of a read whose conditions say that the client has the object already.
///
/// # Errors
/// PreconditionFailed.
pub(crate) fn unchanged(call: &Call<'_>, meta: &ObjectMeta) -> Result<Option<Reply>, S3Error> {
    let conditions = Conditions::of_request(call.exchange.head);
    let outcome = conditions.evaluate_read(&current(meta));
    if outcome != Outcome::NotModified {
        return outcome.into_result().map(|()| None);
    }
    let mut head = Vec::with_capacity(320);
    let modified_s = (meta.modified_ms / 1000) as i64;
    let mut fields = call
        .exchange
        .start(&mut head, 304)
        .etag(&meta.etag)
        .last_modified(modified_s);
    // What a cache renews with the object (RFC 9110 section 15.4.5).
    for (name, value) in [
        ("Cache-Control", &meta.content.cache_control),
        ("Expires", &meta.content.expires),
    ] {
        if let Some(value) = value {
            fields = fields.header(name, value);
        }
    }
    fields.finish();
    Ok(Some(Reply::Text {
        head,
        body: Vec::new(),
    }))
}

/// Which bytes are answered, and as what.
pub(crate) enum Selected {
    Whole(u64),
    Range(Range<u64>),
    Part {
        range: Range<u64>,
        checksum: Option<ObjectChecksum>,
    },
}

impl Selected {
    /// What a read asks for. `part` is the part of that number, of an object that came in parts.
    ///
    /// # Errors
    /// InvalidRange, InvalidPartNumber.
    pub(crate) fn of(
        call: &Call<'_>,
        params: &ReadParams,
        meta: &ObjectMeta,
        part: Option<ObjectPart>,
    ) -> Result<Selected, S3Error> {
        match (params.part_number, part) {
            (None, _) => {
                let conditions = Conditions::of_request(call.exchange.head);
                let asked = params.range;
                let range = asked.filter(|_| conditions.range_applies(&current(meta)));
                match range::resolve(range, meta.size) {
                    ResolvedRange::Full => Ok(Selected::Whole(meta.size)),
                    ResolvedRange::Partial(range) => Ok(Selected::Range(range)),
                    ResolvedRange::Unsatisfiable => Err(S3ErrorCode::InvalidRange.into()),
                }
            }
            // An object that came in one piece is its own only part.
            (Some(1), None) if meta.parts == 0 => Ok(Selected::Part {
                range: 0..meta.size,
                checksum: meta.checksum,
            }),
            (Some(_), None) => Err(S3ErrorCode::InvalidPartNumber.into()),
            (Some(_), Some(part)) => Ok(Selected::Part {
                range: part.begin..part.begin + part.size,
                // S3 shows those of parts only for objects that have one.
                checksum: part.checksum.zip(meta.checksum).map(|(value, object)| {
                    let kind = object.kind;
                    ObjectChecksum { value, kind }
                }),
            }),
        }
    }

    pub(crate) fn range(&self) -> Range<u64> {
        match self {
            Selected::Whole(size) => 0..*size,
            Selected::Range(range) | Selected::Part { range, .. } => range.clone(),
        }
    }
}

/// The head of a GET's or HEAD's answer.
pub(crate) fn read_head(
    call: &Call<'_>,
    params: &ReadParams,
    meta: &ObjectMeta,
    selected: &Selected,
) -> Vec<u8> {
    let mut out = Vec::with_capacity(768);
    let range = selected.range();
    let is_partial = !matches!(selected, Selected::Whole(_)) && !range.is_empty();
    let mut fields = call
        .exchange
        .start(&mut out, if is_partial { 206 } else { 200 })
        .etag(&meta.etag)
        .last_modified((meta.modified_ms / 1000) as i64)
        .header("Accept-Ranges", "bytes");
    if is_partial {
        fields = fields.content_range(&range, meta.size);
    }
    if matches!(selected, Selected::Part { .. }) && meta.parts > 0 {
        fields = fields.header("x-amz-mp-parts-count", &meta.parts.to_string());
    }
    if meta.flags & FLAG_REDUCED != 0 {
        fields = fields.header("x-amz-storage-class", storage_class(meta.flags).as_str());
    }
    fields = content_fields(fields, params, &meta.content);
    for (name, value) in &meta.user {
        let is_name = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        // Names come from headers; one from a presigned query may hold what a header cannot.
        if name.bytes().all(is_name) {
            fields = fields.header(&format!("x-amz-meta-{name}"), value);
        }
    }
    fields = match selected {
        _ if !params.checksum_mode => fields,
        Selected::Whole(_) => checksum_fields(fields, meta.checksum, Some(meta.parts)),
        Selected::Part { checksum, .. } => checksum_fields(fields, *checksum, None),
        Selected::Range(_) => fields,
    };
    fields.content_length(range.end - range.start).finish();
    out
}

/// `parts` of the object, when the checksum may be one over those of its parts.
fn checksum_fields(
    fields: ResponseHead<'_>,
    checksum: Option<ObjectChecksum>,
    parts: Option<u32>,
) -> ResponseHead<'_> {
    let Some(checksum) = checksum else {
        return fields;
    };
    let mut value = checksum.value.to_base64();
    if let (ChecksumType::Composite, Some(parts)) = (checksum.kind, parts) {
        value = format!("{value}-{parts}");
    }
    fields
        .header(checksum.value.algorithm().header(), &value)
        .header("x-amz-checksum-type", checksum.kind.as_str())
}

fn content_fields<'o>(
    mut fields: ResponseHead<'o>,
    params: &ReadParams,
    content: &ContentHeaders,
) -> ResponseHead<'o> {
    let stored = [
        (
            "Content-Type",
            content
                .content_type
                .as_deref()
                .or(Some("binary/octet-stream")),
        ),
        ("Content-Encoding", content.encoding.as_deref()),
        ("Content-Disposition", content.disposition.as_deref()),
        ("Content-Language", content.language.as_deref()),
        ("Cache-Control", content.cache_control.as_deref()),
        ("Expires", content.expires.as_deref()),
    ];
    for (name, value) in stored {
        let asked = params.overrides.iter().find(|(header, _)| *header == name);
        if let Some(value) = asked.map(|(_, value)| &**value).or(value) {
            fields = fields.header(name, value);
        }
    }
    fields
}
