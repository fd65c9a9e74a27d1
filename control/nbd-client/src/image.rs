//! Disk images: raw and qcow2, into an export and out of one.
//!
//! The file's side runs on a thread of its own, as reading an image may block and unpack; the export's
//! side has several requests in flight, and a short queue is between them. What is all zeros is neither
//! sent nor stored.
//!
//! Invariants:
//! - An image is read to its end and checked on the way, or the import is an error: what an image says
//!   is there and is not is never taken for zeros.
//! - An exported file has its name when it is whole and durable, and not before.
//! - An image's own words decide neither how much memory is used nor which other files are opened: a
//!   backing file is used only when the caller names it.

mod content;
mod export;
mod header;
mod import;
mod sink;
mod source;
mod tables;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use export::{Export, To, export};
pub use import::{From, Import, import};

use crate::error::ClientError;

/// What an image is written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The disk byte for byte.
    Raw,
    /// QEMU's, version 2 or 3.
    Qcow2,
}

/// An image, before it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageInfo {
    /// As told by its first bytes.
    pub format: Format,
    /// Size of the disk.
    pub bytes: u64,
    /// Whether it says that it needs a backing file.
    pub needs_backing: bool,
}

/// How far an import or export has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What is being done.
    pub phase: Phase,
    /// Bytes of the disk that are done, zeros included.
    pub done: u64,
    /// Of so many; unknown for a stream.
    pub total: Option<u64>,
}

/// See [`Progress`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Bytes are copied.
    Copy,
    /// What was copied is read back.
    Verify,
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Size of the disk.
    pub bytes: u64,
    /// Bytes that were not all zeros, in units of 64 KiB.
    pub data_bytes: u64,
    /// SHA-256 over the data and where it lies, the same for equal disks however they are stored; not
    /// that of a raw file.
    pub digest: String,
    /// Whether the copy was read back, and has this digest too.
    pub verified: bool,
}

/// Why an image was not imported or exported.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The file could not be read or written.
    #[error("{}: {what} at byte {offset} failed", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// Where: of the disk when it is read, of the file when its head is.
        offset: u64,
        /// Why it failed.
        #[source]
        source: Arc<io::Error>,
    },
    /// The image is not one that is taken.
    #[error("{}: {why}, at byte {offset}", path.display())]
    Image {
        /// Which file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// What is wrong.
        why: String,
    },
    /// The disk is larger than the export.
    #[error("the image has {image} bytes, and the volume {volume}: make the volume larger")]
    TooLarge {
        /// Bytes of the image; of a stream, at least.
        image: u64,
        /// Bytes of the export.
        volume: u64,
    },
    /// The other side failed.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// What was read back is something else.
    #[error("the copy is not the same: its digest is {found}, not {wanted}")]
    Differs {
        /// Of what was copied.
        wanted: String,
        /// Of what was read back.
        found: String,
    },
}

impl ImageError {
    fn file(path: &Path, what: &'static str, offset: u64, source: io::Error) -> ImageError {
        ImageError::File {
            path: path.to_owned(),
            what,
            offset,
            source: Arc::new(source),
        }
    }

    /// The thread that did the work has ended without an answer.
    fn thread(path: &Path, what: &'static str, error: tokio::task::JoinError) -> ImageError {
        ImageError::file(path, what, 0, io::Error::other(error))
    }

    fn image(path: &Path, offset: u64, why: impl Into<String>) -> ImageError {
        ImageError::Image {
            path: path.to_owned(),
            offset,
            why: why.into(),
        }
    }
}

/// What an image is, and how large its disk. It may block.
///
/// # Errors
/// [`ImageError::File`], and [`ImageError::Image`] when it begins as one that is not taken.
pub fn inspect(path: &Path) -> Result<ImageInfo, ImageError> {
    let (file, bytes) = source::open(path)?;
    Ok(match header::Qcow2Header::read(path, &file, bytes)? {
        Some(header) => ImageInfo {
            format: Format::Qcow2,
            bytes: header.bytes,
            needs_backing: header.has_backing,
        },
        None => ImageInfo {
            format: Format::Raw,
            bytes,
            needs_backing: false,
        },
    })
}
