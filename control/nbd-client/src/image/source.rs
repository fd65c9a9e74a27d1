//! Reading an image from its begin to its end, on a thread that may block.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::Bytes;
use imago::file::File as Storage;
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder, Mapping, StorageOpenOptions};
use rustix::fs::SeekFrom;

use super::content::{PIECE, Piece, split};
use super::header::Qcow2Header;
use super::{Format, ImageError, tables};

/// Where pieces go, in order. False when nobody wants more.
pub(super) trait Into: FnMut(Piece) -> bool {}
impl<T: FnMut(Piece) -> bool> Into for T {}

/// A regular file or a disk, and its size.
///
/// # Errors
/// When it cannot be opened, or is neither.
pub(super) fn open(path: &Path) -> Result<(File, u64), ImageError> {
    let failed = |e| ImageError::file(path, "opening", 0, e);
    let file = File::open(path).map_err(failed)?;
    let kind = file.metadata().map_err(failed)?.file_type();
    if !kind.is_file() && !std::os::unix::fs::FileTypeExt::is_block_device(&kind) {
        return Err(ImageError::image(
            path,
            0,
            "it is neither a file nor a disk",
        ));
    }
    let bytes = rustix::fs::seek(&file, SeekFrom::End(0)).map_err(|e| failed(e.into()))?;
    Ok((file, bytes))
}

/// An image that is open.
pub(super) enum Source {
    Raw {
        file: File,
        bytes: u64,
    },
    Qcow2(Box<Qcow2Source>),
    /// A raw image of unknown size.
    Stream(Box<dyn Read + Send>),
}

pub(super) struct Qcow2Source {
    access: FormatAccess<Storage>,
    header: Qcow2Header,
}

impl Source {
    /// Opens a file; its first bytes tell its format where the caller does not.
    ///
    /// # Errors
    /// When it is not an image that is taken.
    pub(super) fn file(
        path: &Path,
        format: Option<Format>,
        backing: Option<&Path>,
    ) -> Result<Source, ImageError> {
        let (file, bytes) = open(path)?;
        let header = match format {
            Some(Format::Raw) => None,
            _ => Qcow2Header::read(path, &file, bytes)?,
        };
        let Some(header) = header else {
            if format == Some(Format::Qcow2) {
                return Err(ImageError::image(path, 0, "it is no qcow2 image"));
            }
            if backing.is_some() {
                return Err(ImageError::image(
                    path,
                    0,
                    "a raw image has no backing file",
                ));
            }
            return Ok(Source::Raw { file, bytes });
        };
        if header.has_backing && backing.is_none() {
            let why = "it needs a backing file: name that, or convert it with qemu-img";
            return Err(ImageError::image(path, 8, why));
        }
        tables::check(path, &file, bytes, &header)?;
        let backing = backing.map(open_backing).transpose()?;
        let opened = storage(path, file).and_then(|storage| {
            let builder = Qcow2::<Storage>::builder(storage).backing(backing);
            builder.open(DenyImplicitOpenGate::default())
        });
        let opened = opened.map_err(|e| ImageError::file(path, "opening", 0, e))?;
        let access = FormatAccess::new(opened);
        Ok(Source::Qcow2(Box::new(Qcow2Source { access, header })))
    }

    /// Size of the disk, where that is known before it is read.
    pub(super) fn bytes(&self) -> Option<u64> {
        match self {
            Source::Raw { bytes, .. } => Some(*bytes),
            Source::Qcow2(image) => Some(image.header.bytes),
            Source::Stream(_) => None,
        }
    }

    /// Reads all of it.
    ///
    /// # Errors
    /// As the file says, and when the image is not sound.
    pub(super) fn read(self, path: &Path, into: &mut impl Into) -> Result<u64, ImageError> {
        match self {
            Source::Raw { file, bytes } => read_raw(path, &file, bytes, into),
            Source::Qcow2(image) => image.read(path, into),
            Source::Stream(stream) => read_stream(path, stream, into),
        }
    }
}

fn storage(path: &Path, file: File) -> io::Result<Storage> {
    Storage::from_open_file(file, StorageOpenOptions::new().filename(path))
}

/// What a backing file must be: one without a backing file of its own.
fn open_backing(path: &Path) -> Result<FormatAccess<Storage>, ImageError> {
    let failed = |e| ImageError::file(path, "opening", 0, e);
    let (file, bytes) = open(path)?;
    let header = Qcow2Header::read(path, &file, bytes)?;
    if let Some(header) = &header {
        tables::check(path, &file, bytes, header)?;
    }
    let storage = storage(path, file).map_err(failed)?;
    let gate = DenyImplicitOpenGate::default();
    match header {
        Some(header) if header.has_backing => {
            let why =
                "a backing file with one of its own is not supported: convert it with qemu-img";
            Err(ImageError::image(path, 8, why))
        }
        Some(_) => {
            let builder = Qcow2::<Storage>::builder(storage).backing(None);
            Ok(FormatAccess::new(builder.open(gate).map_err(failed)?))
        }
        None => {
            let opened = Raw::builder(storage).open(gate).map_err(failed)?;
            Ok(FormatAccess::new(opened))
        }
    }
}

/// Gives data on, without its zeros.
fn give(offset: u64, data: Vec<u8>, into: &mut impl Into) -> bool {
    split(offset, &Bytes::from(data)).into_iter().all(into)
}

fn read_raw(path: &Path, file: &File, bytes: u64, into: &mut impl Into) -> Result<u64, ImageError> {
    let mut at = 0;
    while at < bytes {
        let (data, end) = data_from(file, at, bytes);
        if data > at
            && !into(Piece::Zeros {
                offset: at,
                len: data - at,
            })
        {
            return Ok(bytes);
        }
        at = data;
        while at < end {
            let mut buffer = vec![0; PIECE.min(end - at) as usize];
            let read = file.read_exact_at(&mut buffer, at);
            read.map_err(|e| ImageError::file(path, "reading", at, e))?;
            let len = buffer.len() as u64;
            if !give(at, buffer, into) {
                return Ok(bytes);
            }
            at += len;
        }
    }
    Ok(bytes)
}

/// Where data begins from `at` on, and where it ends; a file system that does not know says that all is.
fn data_from(file: &File, at: u64, bytes: u64) -> (u64, u64) {
    let data = match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(data) => data.clamp(at, bytes),
        Err(rustix::io::Errno::NXIO) => return (bytes, bytes),
        Err(_) => return (at, bytes),
    };
    let hole = rustix::fs::seek(file, SeekFrom::Hole(data));
    (data, hole.unwrap_or(bytes).clamp(data, bytes))
}

fn read_stream(
    path: &Path,
    mut stream: Box<dyn Read + Send>,
    into: &mut impl Into,
) -> Result<u64, ImageError> {
    let mut at = 0;
    loop {
        let mut buffer = Vec::with_capacity(PIECE as usize);
        let read = stream.by_ref().take(PIECE).read_to_end(&mut buffer);
        read.map_err(|e| ImageError::file(path, "reading", at, e))?;
        if at == 0 && buffer.starts_with(b"QFI\xfb") {
            let why = "a qcow2 image cannot be read from a stream: import its file";
            return Err(ImageError::image(path, 0, why));
        }
        let len = buffer.len() as u64;
        if len == 0 || !give(at, buffer, into) {
            return Ok(at);
        }
        at += len;
    }
}

impl Qcow2Source {
    fn read(&self, path: &Path, into: &mut impl Into) -> Result<u64, ImageError> {
        let bytes = self.header.bytes;
        let mut at = 0;
        while at < bytes {
            let failed = |e| ImageError::file(path, "reading the disk", at, e);
            let (mapping, len) = self.access.get_mapping(at, bytes - at).map_err(failed)?;
            let len = len.min(bytes - at);
            if len == 0 {
                return Err(ImageError::image(path, at, "its disk ends before its size"));
            }
            if matches!(mapping, Mapping::Zero { .. }) {
                if !into(Piece::Zeros { offset: at, len }) {
                    return Ok(bytes);
                }
                at += len;
                continue;
            }
            let len = len.min(PIECE);
            let mut buffer = vec![0; len as usize];
            self.access.read(&mut buffer, at).map_err(failed)?;
            if !give(at, buffer, into) {
                return Ok(bytes);
            }
            at += len;
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(bytes: Vec<u8>) -> Source {
        Source::Stream(Box::new(io::Cursor::new(bytes)))
    }

    #[test]
    fn a_stream_is_read_to_its_end() {
        let mut bytes = vec![0; 3 << 20];
        bytes.extend([5; 1000]);
        let mut seen = Vec::new();
        let read = stream(bytes.clone()).read(Path::new("stream"), &mut |piece: Piece| {
            assert_eq!(piece.offset(), seen.len() as u64);
            match piece {
                Piece::Zeros { len, .. } => seen.resize(seen.len() + len as usize, 0),
                Piece::Data { data, .. } => seen.extend(data),
            }
            true
        });
        assert_eq!(read.expect("bytes"), bytes.len() as u64);
        assert!(seen == bytes);
    }

    #[test]
    fn a_qcow2_image_is_not_taken_for_a_raw_stream() {
        let refused = stream(b"QFI\xfb and more".to_vec());
        let refused = refused.read(Path::new("stream"), &mut |_| true);
        assert!(matches!(refused, Err(ImageError::Image { .. })));
    }
}
