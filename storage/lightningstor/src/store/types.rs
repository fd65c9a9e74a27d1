//! The words of the store: what callers pass in and get back. All of it may cross shards.
//!
//! Invariant: values here are already checked (keys, bucket names, tags parse in `s3_wire`); what is
//! read back from the disk passes the same constructors.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;

use engine::{DmaBuf, Pages};
use s3_wire::checksum::{Algorithm, Checksum, ChecksumType};
use s3_wire::{BucketName, Etag, ObjectKey};

/// Bytes that one CRC-64/NVME of a body covers.
pub const CRC_BLOCK: usize = 64 << 10;
/// Longest body that lies in its record.
pub const INLINE_MAX: usize = 64 << 10;
/// In what steps bodies are read, and kept in memory.
pub const CHUNK: usize = 256 << 10;
/// Most bytes of a streamed body that are written at a time.
pub const WRITE_MAX: usize = 1 << 20;
/// Most bytes that one `read_chunk` may ask for.
pub const READ_MAX: usize = 256 << 10;
/// Most extents of one body; past it the data file is too fragmented for the body.
pub const EXTENTS_MAX: usize = 8192;

/// A bucket's number; given once, never reused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BucketId(pub u64);

/// A version of an object; 0 is the null version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub u64);

impl Version {
    /// The version of objects in buckets without versioning.
    pub const NULL: Version = Version(0);
}

/// Names a multipart upload; text form: 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UploadId(pub u128);

impl fmt::Display for UploadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// The text is not an upload id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an upload id: 32 hexadecimal digits are expected")]
pub struct BadUploadId;

impl FromStr for UploadId {
    type Err = BadUploadId;

    fn from_str(text: &str) -> Result<UploadId, BadUploadId> {
        let plain = text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
        if !plain {
            return Err(BadUploadId);
        }
        u128::from_str_radix(text, 16)
            .map(UploadId)
            .map_err(|_| BadUploadId)
    }
}

/// Content headers that are stored with an object and sent back with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContentHeaders {
    /// Content-Type.
    pub content_type: Option<String>,
    /// Content-Encoding.
    pub encoding: Option<String>,
    /// Content-Disposition.
    pub disposition: Option<String>,
    /// Content-Language.
    pub language: Option<String>,
    /// Cache-Control.
    pub cache_control: Option<String>,
    /// Expires, verbatim.
    pub expires: Option<String>,
}

/// A checksum that the client asked to keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObjectChecksum {
    /// Algorithm and bytes.
    pub value: Checksum,
    /// Over the object, or over its parts' checksums.
    pub kind: ChecksumType,
}

/// What an upload promises about the checksum of the object that it will become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UploadChecksum {
    /// The algorithm of every part.
    pub algorithm: Algorithm,
    /// How the parts' checksums become the object's.
    pub kind: ChecksumType,
}

/// Everything about an object but its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectMeta {
    /// Length of the body in bytes.
    pub size: u64,
    /// The entity tag.
    pub etag: Etag,
    /// When it was written, milliseconds since the Unix epoch.
    pub modified_ms: u64,
    /// Content headers.
    pub content: ContentHeaders,
    /// User metadata: (lower-case name without prefix, value).
    pub user: Vec<(String, String)>,
    /// The checksum kept with it.
    pub checksum: Option<ObjectChecksum>,
    /// Number of parts; 0 for an object that came in one piece.
    pub parts: u32,
    /// Tags: (name, value).
    pub tags: Vec<(String, String)>,
    /// Labels that the front gives meaning to (storage class); kept, never read here.
    pub flags: u32,
}

impl ObjectMeta {
    /// Metadata with nothing but the required fields.
    pub fn new(size: u64, etag: Etag, modified_ms: u64) -> ObjectMeta {
        ObjectMeta {
            size,
            etag,
            modified_ms,
            content: ContentHeaders::default(),
            user: Vec::new(),
            checksum: None,
            parts: 0,
            tags: Vec::new(),
            flags: 0,
        }
    }
}

/// What must hold for a write to happen; evaluated on the owner, atomically with the commit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Condition {
    /// Nothing.
    #[default]
    None,
    /// The key has no object.
    IfNoneMatchAny,
    /// The key has an object, whatever its tag.
    IfMatchAny,
    /// The key has an object with this tag.
    IfMatch(Etag),
}

/// A small body and where it goes.
#[derive(Debug)]
pub struct PutSmall {
    /// The bucket.
    pub bucket: BucketId,
    /// The key.
    pub key: ObjectKey,
    /// Metadata; its size is the body's length.
    pub meta: ObjectMeta,
    /// At most [`INLINE_MAX`] bytes; `None` is the empty body.
    pub body: Option<DmaBuf>,
    /// What must hold.
    pub condition: Condition,
}

/// A write that is durable and visible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PutDone {
    /// The object's tag.
    pub etag: Etag,
    /// The version that was written.
    pub version: Version,
}

/// A streamed body that is being written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WriteId(pub u64);

/// An object that is being read; pinned until `read_end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReadId(pub u64);

/// An object found by `get`.
#[derive(Debug)]
pub struct Opened {
    /// Its metadata.
    pub meta: ObjectMeta,
    /// Its bytes.
    pub body: Body,
}

/// Where the bytes of an opened object are.
#[derive(Debug)]
pub enum Body {
    /// Read and verified already. At least the headroom that was asked for lies before the range.
    Inline {
        /// Holds the body.
        buf: DmaBuf,
        /// Where in the buffer.
        range: Range<usize>,
    },
    /// To be fetched by `read_chunk`.
    Stored(ReadId),
}

/// Where a listing goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListCursor<'a> {
    /// At the first key.
    Start,
    /// Behind this key.
    After(&'a str),
    /// At the first key that is not below these bytes.
    From(&'a [u8]),
}

/// One object of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListEntry {
    /// The key.
    pub key: Box<str>,
    /// Body length in bytes.
    pub size: u64,
    /// The tag.
    pub etag: Etag,
    /// Milliseconds since the Unix epoch.
    pub modified_ms: u64,
    /// Labels that the front gives meaning to (storage class).
    pub flags: u32,
    /// Algorithm and kind of the checksum kept with it.
    pub checksum: Option<UploadChecksum>,
}

/// A run of a partition's keys, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListChunk {
    /// The objects.
    pub entries: Vec<ListEntry>,
    /// Whether keys that match follow.
    pub more: bool,
}

/// Names an upload and the key it will become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadRef {
    /// The bucket.
    pub bucket: BucketId,
    /// The key.
    pub key: ObjectKey,
    /// The upload.
    pub upload: UploadId,
}

/// The bytes of a part.
#[derive(Debug)]
pub enum PartBody {
    /// At most [`INLINE_MAX`] bytes; `None` is the empty part.
    Small(Option<DmaBuf>),
    /// A streamed body.
    Write(WriteId),
}

/// A range of sealed pages.
#[derive(Clone, Debug)]
pub struct PagesPart {
    /// The pages.
    pub pages: Arc<Pages>,
    /// Where in them; never empty.
    pub range: Range<usize>,
}

/// Bytes of a body on their way to a socket or into another body; never empty.
#[derive(Debug)]
pub enum Piece {
    /// A buffer, and where in it.
    Buffer(DmaBuf, Range<usize>),
    /// What was in memory, in order.
    Pages(VecDeque<PagesPart>),
}

impl Piece {
    /// Number of bytes.
    #[expect(clippy::len_without_is_empty, reason = "a piece is never empty")]
    pub fn len(&self) -> usize {
        match self {
            Piece::Buffer(_, range) => range.len(),
            Piece::Pages(parts) => parts.iter().map(|part| part.range.len()).sum(),
        }
    }

    /// Appends bytes of it to a buffer, at most `count_max`, and forgets them: how many there were.
    /// 0 when nothing is left.
    ///
    /// # Errors
    /// As the kernel says.
    ///
    /// # Panics
    /// When they do not fit.
    pub fn move_to(&mut self, into: &mut DmaBuf, count_max: usize) -> io::Result<usize> {
        match self {
            Piece::Buffer(from, range) => {
                let count = range.len().min(count_max);
                into.extend_from_slice(&from[range.start..range.start + count]);
                range.start += count;
                Ok(count)
            }
            Piece::Pages(parts) => {
                let Some(PagesPart { pages, range }) = parts.front_mut() else {
                    return Ok(0);
                };
                let (count, filled) = (range.len().min(count_max), into.len());
                into.set_len(filled + count);
                pages.copy_to(range.start, &mut into[filled..])?;
                range.start += count;
                if range.start == range.end {
                    parts.pop_front();
                }
                Ok(count)
            }
        }
    }
}

/// A part to add to an upload.
#[derive(Debug)]
pub struct PartPut {
    /// 1 to 10,000.
    pub number: u16,
    /// Its bytes.
    pub body: PartBody,
    /// Its tag.
    pub etag: Etag,
    /// Its length in bytes.
    pub size: u64,
    /// Its checksum.
    pub checksum: Option<Checksum>,
    /// When it came, milliseconds since the Unix epoch.
    pub modified_ms: u64,
}

/// A part that is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartDone {
    /// Its tag.
    pub etag: Etag,
}

/// A part of an upload, as listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartInfo {
    /// Its number.
    pub number: u16,
    /// Its length in bytes.
    pub size: u64,
    /// Its tag.
    pub etag: Etag,
    /// Milliseconds since the Unix epoch.
    pub modified_ms: u64,
    /// Its checksum.
    pub checksum: Option<Checksum>,
}

/// A part of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectPart {
    /// The number that it was uploaded under.
    pub number: u16,
    /// Where in the object it begins.
    pub begin: u64,
    /// Its length in bytes.
    pub size: u64,
    /// Its checksum.
    pub checksum: Option<Checksum>,
}

/// Parts of an object, by number; none when it came in one piece.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObjectParts {
    /// The parts.
    pub parts: Vec<ObjectPart>,
    /// Whether parts follow.
    pub more: bool,
}

/// Parts of an upload, by number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PartsChunk {
    /// The parts.
    pub parts: Vec<PartInfo>,
    /// Whether parts follow.
    pub more: bool,
    /// What the upload promised about its checksum.
    pub checksum: Option<UploadChecksum>,
}

/// An upload in progress, as listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadInfo {
    /// The key.
    pub key: Box<str>,
    /// The upload.
    pub upload: UploadId,
    /// When it began, milliseconds since the Unix epoch.
    pub initiated_ms: u64,
    /// What it promised about its checksum.
    pub checksum: Option<UploadChecksum>,
}

/// Uploads of a partition, by key and id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UploadsChunk {
    /// The uploads.
    pub uploads: Vec<UploadInfo>,
    /// Whether uploads follow.
    pub more: bool,
}

/// Whether a bucket takes writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BucketState {
    /// Yes.
    Active,
    /// No: its removal is being decided. Never on disk.
    Deleting,
}

/// A bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Its number.
    pub id: BucketId,
    /// Its name.
    pub name: BucketName,
    /// The user that made it.
    pub owner: String,
    /// When it was made, milliseconds since the Unix epoch.
    pub created_ms: u64,
    /// Whether it takes writes.
    pub state: BucketState,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upload_ids_print_and_parse() {
        for id in [0, 1, u128::MAX, 0xDEAD_BEEF << 64] {
            assert_eq!(UploadId(id).to_string().parse(), Ok(UploadId(id)));
        }
        for text in ["", "+0000000000000000000000000000001", "g", &"0".repeat(33)] {
            assert_eq!(text.parse::<UploadId>(), Err(BadUploadId), "{text}");
        }
    }
}
