//! Writing an image, on a thread that may block. A file has its name when its writer says that it is good.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use imago::file::File as Storage;
use imago::qcow2::Qcow2;
use imago::{
    DenyImplicitOpenGate, FormatAccess, FormatCreateBuilder, FormatDriverBuilder,
    StorageOpenOptions,
};

use super::content::Piece;
use super::{Format, ImageError};

pub(super) enum Sink {
    Raw(Part, File),
    Qcow2(Part, Box<FormatAccess<Storage>>),
    Stream(Box<dyn Write + Send>),
}

/// A file that has not its name yet. Dropping it removes it.
pub(super) struct Part {
    path: PathBuf,
    unfinished: PathBuf,
    named: bool,
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.named {
            // Failing leaves a file that nobody takes for an image.
            let _ = std::fs::remove_file(&self.unfinished);
        }
    }
}

impl Part {
    fn create(path: &Path, overwrite: bool) -> Result<(Part, File), ImageError> {
        if !overwrite && path.symlink_metadata().is_ok() {
            let there = io::Error::from(io::ErrorKind::AlreadyExists);
            return Err(ImageError::file(path, "creating", 0, there));
        }
        let mut part = path.as_os_str().to_owned();
        part.push(".part");
        let part = PathBuf::from(part);
        let mut options = File::options();
        let opened = options.read(true).write(true).create_new(true).open(&part);
        let file = opened.map_err(|e| ImageError::file(&part, "creating", 0, e))?;
        let made = Part {
            path: path.to_owned(),
            unfinished: part,
            named: false,
        };
        Ok((made, file))
    }

    /// Where it is meanwhile.
    pub(super) fn unfinished(&self) -> &Path {
        &self.unfinished
    }

    /// Gives it its name, durably.
    ///
    /// # Errors
    /// As the file system says.
    pub(super) fn name(mut self) -> Result<(), ImageError> {
        let failed = |e| ImageError::file(&self.path, "finishing", 0, e);
        std::fs::rename(&self.unfinished, &self.path).map_err(failed)?;
        let dir = match self.path.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        };
        let synced = File::open(dir).and_then(|dir| dir.sync_all());
        synced.map_err(failed)?;
        self.named = true;
        Ok(())
    }
}

impl Sink {
    /// Begins a file for a disk of so many bytes.
    ///
    /// # Errors
    /// When the file is there, or cannot be made.
    pub(super) fn file(
        path: &Path,
        format: Format,
        bytes: u64,
        overwrite: bool,
    ) -> Result<Sink, ImageError> {
        let (part, file) = Part::create(path, overwrite)?;
        let failed = |e| ImageError::file(path, "creating", 0, e);
        match format {
            Format::Raw => {
                file.set_len(bytes).map_err(failed)?;
                Ok(Sink::Raw(part, file))
            }
            Format::Qcow2 => {
                let options = StorageOpenOptions::new()
                    .filename(&part.unfinished)
                    .write(true);
                let made = Storage::from_open_file(file, options).and_then(|storage| {
                    let builder = Qcow2::<Storage>::create_builder(storage).size(bytes);
                    builder.create_open(DenyImplicitOpenGate::default(), |storage| {
                        Ok(Qcow2::builder(storage).backing(None).write(true))
                    })
                });
                let access = FormatAccess::new(made.map_err(failed)?);
                Ok(Sink::Qcow2(part, Box::new(access)))
            }
        }
    }

    /// Writes the next piece.
    ///
    /// # Errors
    /// As the file says.
    pub(super) fn write(&mut self, path: &Path, piece: &Piece) -> Result<(), ImageError> {
        let (offset, wrote) = match (self, piece) {
            (Sink::Stream(stream), piece) => stream_piece(stream, piece),
            (_, Piece::Zeros { .. }) => return Ok(()),
            (Sink::Raw(_, file), Piece::Data { offset, data }) => {
                (*offset, file.write_all_at(data, *offset))
            }
            (Sink::Qcow2(_, access), Piece::Data { offset, data }) => {
                (*offset, access.write(&data[..], *offset))
            }
        };
        wrote.map_err(|e| ImageError::file(path, "writing the disk", offset, e))
    }

    /// All is written: makes it durable. A file is still to be given its name.
    ///
    /// # Errors
    /// As the file says.
    pub(super) fn end(self, path: &Path) -> Result<Option<Part>, ImageError> {
        let failed = |e| ImageError::file(path, "finishing", 0, e);
        let (part, file) = match self {
            Sink::Raw(part, file) => (part, file),
            Sink::Qcow2(part, access) => {
                access.flush().map_err(failed)?;
                drop(access);
                let file = File::open(&part.unfinished).map_err(failed)?;
                (part, file)
            }
            Sink::Stream(mut stream) => {
                stream.flush().map_err(failed)?;
                return Ok(None);
            }
        };
        file.sync_all().map_err(failed)?;
        Ok(Some(part))
    }
}

fn stream_piece(stream: &mut Box<dyn Write + Send>, piece: &Piece) -> (u64, io::Result<()>) {
    match piece {
        Piece::Data { offset, data } => (*offset, stream.write_all(data)),
        Piece::Zeros { offset, len } => {
            let zeros = [0; 4096];
            let mut left = *len;
            while left > 0 {
                let part = left.min(zeros.len() as u64);
                if let Err(error) = stream.write_all(&zeros[..part as usize]) {
                    return (*offset + len - left, Err(error));
                }
                left -= part;
            }
            (*offset, Ok(()))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Keeps what is written.
    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("nobody panics").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_stream_has_all_zeros_in_it() {
        let kept = Kept::default();
        let path = Path::new("stream");
        let mut sink = Sink::Stream(Box::new(kept.clone()));
        let data = vec![7; 100].into();
        for piece in [
            Piece::Zeros {
                offset: 0,
                len: 9000,
            },
            Piece::Data { offset: 9000, data },
            Piece::Zeros {
                offset: 9100,
                len: 1,
            },
        ] {
            sink.write(path, &piece).expect("it is kept");
        }
        assert!(sink.end(path).expect("it is kept").is_none());
        let expected = [vec![0; 9000], vec![7; 100], vec![0]].concat();
        assert_eq!(*kept.0.lock().expect("nobody panics"), expected);
    }

    #[test]
    fn a_file_that_is_not_finished_is_not_there() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("image");
        for format in [Format::Raw, Format::Qcow2] {
            let sink = Sink::file(&path, format, 1 << 20, false).expect("a file");
            drop(sink);
            let left = std::fs::read_dir(dir.path()).expect("it is there").count();
            assert_eq!(left, 0, "{format:?}");
        }
    }
}
