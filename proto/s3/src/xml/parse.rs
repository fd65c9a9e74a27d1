//! The request bodies that are XML: DeleteObjects, CompleteMultipartUpload,
//! CreateBucketConfiguration.
//!
//! Bounds: [`XML_BYTES_MAX`], [`DELETE_KEYS_MAX`], [`PARTS_MAX`], [`DEPTH_MAX`]. Elements are
//! matched by local name, so that a namespace prefix does no harm. An unknown element is an error
//! where ignoring it could change what is deleted or stored, and is skipped elsewhere.

use quick_xml::Reader;
use quick_xml::events::Event;

use crate::checksum::{Algorithm, Checksum};
use crate::error::{Result, S3Error, S3ErrorCode};
use crate::etag::{Etag, PARTS_MAX};
use crate::names::KEY_BYTES_MAX;

/// Largest XML body.
pub const XML_BYTES_MAX: usize = 1024 * 1024;
/// Most keys of one DeleteObjects.
pub const DELETE_KEYS_MAX: usize = 1000;
/// Deepest nesting; the schemas have three levels.
const DEPTH_MAX: usize = 8;

/// A DeleteObjects request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeleteRequest {
    /// The keys, in order; duplicates stay.
    pub targets: Vec<DeleteTarget>,
    /// Whether the answer shows only failures.
    pub quiet: bool,
}

/// One key to delete.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeleteTarget {
    /// The key, 1 to 1,024 bytes.
    pub key: Box<str>,
    /// A version other than `null`; deleting it must be refused, not turned into a plain delete.
    pub version_id: Option<Box<str>>,
    /// The entity tag that the object must have, as opaque text.
    pub etag: Option<Box<str>>,
}

/// One part of a CompleteMultipartUpload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompletedPart {
    /// 1 to [`PARTS_MAX`]; strictly ascending over the list.
    pub number: u16,
    /// The tag that UploadPart answered with.
    pub etag: Etag,
    /// The checksum that the client expects of the part.
    pub checksum: Option<Checksum>,
}

fn malformed() -> S3Error {
    S3ErrorCode::MalformedXml.into()
}

/// What a document consists of, text resolved and collected.
enum Item<'a> {
    Open(&'a str),
    /// The element's name and its text; the text is empty for elements with children.
    Close(&'a str, &'a str),
}

/// Walks a document and calls `visit` with the path of open elements and each item.
fn walk(body: &[u8], mut visit: impl FnMut(&[String], Item<'_>) -> Result<()>) -> Result<()> {
    if body.len() > XML_BYTES_MAX {
        return Err(S3ErrorCode::MaxMessageLengthExceeded.into());
    }
    let text = std::str::from_utf8(body).map_err(|_| malformed())?;
    let mut reader = Reader::from_str(text.strip_prefix('\u{feff}').unwrap_or(text));
    let mut path: Vec<String> = Vec::with_capacity(DEPTH_MAX);
    let (mut chars, mut roots) = (String::new(), 0);
    loop {
        match reader.read_event().map_err(|_| malformed())? {
            Event::Start(tag) => {
                roots += usize::from(path.is_empty());
                if path.len() >= DEPTH_MAX || roots > 1 {
                    return Err(malformed());
                }
                chars.clear();
                let name = tag.local_name().into_inner().to_owned();
                visit(&path, Item::Open(&name))?;
                path.push(name);
            }
            Event::Empty(tag) => {
                roots += usize::from(path.is_empty());
                if roots > 1 {
                    return Err(malformed());
                }
                let name = tag.local_name().into_inner();
                visit(&path, Item::Open(name))?;
                visit(&path, Item::Close(name, ""))?;
                chars.clear();
            }
            Event::End(_) => {
                let name = path.pop().ok_or_else(malformed)?;
                visit(&path, Item::Close(&name, &chars))?;
                chars.clear();
            }
            Event::Text(part) => push_text(&mut chars, &part.xml10_content(), path.is_empty())?,
            Event::CData(part) => push_text(&mut chars, &part.xml10_content(), path.is_empty())?,
            Event::GeneralRef(reference) => {
                let resolved = match reference.resolve_char_ref().map_err(|_| malformed())? {
                    Some(char) => char,
                    None => predefined(&reference.into_inner()).ok_or_else(malformed)?,
                };
                push_text(
                    &mut chars,
                    resolved.encode_utf8(&mut [0; 4]),
                    path.is_empty(),
                )?;
            }
            Event::Comment(_) | Event::Decl(_) | Event::PI(_) => {}
            Event::Eof if path.is_empty() && roots == 1 => return Ok(()),
            Event::DocType(_) | Event::Eof => return Err(malformed()),
        }
    }
}

/// NUL is in no XML document, neither as itself nor as a reference.
fn push_text(chars: &mut String, part: &str, outside_root: bool) -> Result<()> {
    if part.contains('\0') {
        return Err(malformed());
    }
    if outside_root {
        return if part.trim().is_empty() {
            Ok(())
        } else {
            Err(malformed())
        };
    }
    chars.push_str(part);
    Ok(())
}

fn predefined(name: &str) -> Option<char> {
    match name {
        "amp" => Some('&'),
        "lt" => Some('<'),
        "gt" => Some('>'),
        "quot" => Some('"'),
        "apos" => Some('\''),
        _ => None,
    }
}

/// Reads the body of a DeleteObjects.
///
/// # Errors
/// MalformedXML for anything but 1 to 1,000 objects with keys of 1 to 1,024 bytes; NotImplemented
/// for conditions on time or size.
pub fn parse_delete_objects(body: &[u8]) -> Result<DeleteRequest> {
    let mut request = DeleteRequest::default();
    let mut target: Option<DeleteTarget> = None;
    walk(body, |path, item| {
        let in_object = path.len() == 2 && path[1] == "Object";
        match (path.len(), item) {
            (0, Item::Open("Delete") | Item::Close(_, _))
            | (1, Item::Open("Quiet"))
            | (2, Item::Open("Key" | "VersionId" | "ETag")) => {}
            (1, Item::Open("Object")) => target = Some(DeleteTarget::default()),
            (1, Item::Close("Object", _)) => {
                let done = target
                    .take()
                    .filter(|t| (1..=KEY_BYTES_MAX).contains(&t.key.len()));
                request.targets.push(done.ok_or_else(malformed)?);
                if request.targets.len() > DELETE_KEYS_MAX {
                    return Err(malformed());
                }
            }
            (1, Item::Close("Quiet", text)) => request.quiet = parse_bool(text)?,
            (2, Item::Open("LastModifiedTime" | "Size")) if in_object => {
                return Err(S3Error::new(
                    S3ErrorCode::NotImplemented,
                    "Conditional deletes take only an ETag here.",
                ));
            }
            (2, Item::Close(name, text)) if in_object => {
                set_field(target.as_mut().ok_or_else(malformed)?, name, text)?;
            }
            _ => return Err(malformed()),
        }
        Ok(())
    })?;
    if request.targets.is_empty() {
        Err(malformed())
    } else {
        Ok(request)
    }
}

fn set_field(target: &mut DeleteTarget, name: &str, text: &str) -> Result<()> {
    let repeated = match name {
        "Key" => !std::mem::replace(&mut target.key, text.into()).is_empty(),
        "VersionId" if matches!(text.trim(), "" | "null") => false,
        "VersionId" => target.version_id.replace(text.trim().into()).is_some(),
        _ => target
            .etag
            .replace(text.trim().trim_matches('"').into())
            .is_some(),
    };
    if repeated { Err(malformed()) } else { Ok(()) }
}

/// `true`, `false` and XML's numbers for them.
fn parse_bool(text: &str) -> Result<bool> {
    match text.trim() {
        "true" | "1" => Ok(true),
        "false" | "0" | "" => Ok(false),
        _ => Err(malformed()),
    }
}

/// Reads the body of a CompleteMultipartUpload.
///
/// # Errors
/// MalformedXML for no part, more than [`PARTS_MAX`], or a part without number or tag;
/// InvalidPartOrder when numbers do not ascend; InvalidPart for a tag that was never issued.
pub fn parse_complete_multipart_upload(body: &[u8]) -> Result<Vec<CompletedPart>> {
    let mut parts: Vec<CompletedPart> = Vec::new();
    let (mut number, mut etag, mut checksum) = (None, None, None);
    walk(body, |path, item| {
        match (path.len(), item) {
            (0, Item::Open(name)) if name != "CompleteMultipartUpload" => return Err(malformed()),
            (1, Item::Open("Part")) => (number, etag, checksum) = (None, None, None),
            (1, Item::Close("Part", _)) => {
                let (Some(number), Some(etag)) = (number, etag) else {
                    return Err(malformed());
                };
                if parts.last().is_some_and(|last| last.number >= number) {
                    return Err(S3ErrorCode::InvalidPartOrder.into());
                }
                parts.push(CompletedPart {
                    number,
                    etag,
                    checksum,
                });
            }
            (2, Item::Close(name, text)) if path[1] == "Part" => match name {
                "PartNumber" => number = Some(parse_number(text.trim())?),
                "ETag" => etag = Some(text.trim().parse::<Etag>()?),
                _ => {
                    let known = Algorithm::ALL.into_iter().find(|a| a.element() == name);
                    if let Some(algorithm) = known {
                        checksum = Some(Checksum::from_base64(algorithm, text.trim())?);
                    }
                }
            },
            _ => {}
        }
        Ok(())
    })?;
    if parts.is_empty() {
        Err(malformed())
    } else {
        Ok(parts)
    }
}

/// Strictly ascending numbers up to [`PARTS_MAX`] also bound the number of parts.
fn parse_number(text: &str) -> Result<u16> {
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let number = text
        .parse()
        .ok()
        .filter(|n| plain && (1..=PARTS_MAX).contains(n));
    number.ok_or_else(|| S3Error::argument("Part numbers are integers from 1 to 10000."))
}

/// Reads the body of a CreateBucket: the location constraint, if there is one.
///
/// # Errors
/// MalformedXML; NotImplemented for bucket kinds other than general purpose ones.
pub fn parse_create_bucket(body: &[u8]) -> Result<Option<Box<str>>> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(None);
    }
    let mut location = None;
    walk(body, |path, item| {
        match (path.len(), item) {
            (0, Item::Open(name)) if name != "CreateBucketConfiguration" => return Err(malformed()),
            (1, Item::Open("Bucket" | "Location" | "Tags")) => {
                return Err(S3Error::new(
                    S3ErrorCode::NotImplemented,
                    "Only general purpose buckets without tags are implemented.",
                ));
            }
            (1, Item::Close("LocationConstraint", text)) => {
                location = Some(text.trim())
                    .filter(|text| !text.is_empty())
                    .map(Into::into);
            }
            _ => {}
        }
        Ok(())
    })?;
    Ok(location)
}
