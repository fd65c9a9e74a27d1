//! The disk as the log and the state machine see it, and the production implementation over files.
//!
//! A [`Disk`] is one flat directory of named files. Its promises are those of a POSIX file system:
//! what was written is durable after [`DiskFile::sync`], a name after [`Disk::sync`]; before that a
//! crash may keep any part of it. After a failed write or sync the caller gives the file up.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// One directory of files.
pub trait Disk: Clone + Send + Sync + 'static {
    /// An open file.
    type File: DiskFile;

    /// The names of all files, sorted.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Opens a file for reading and writing.
    fn open(&self, name: &str) -> io::Result<Self::File>;

    /// Makes an empty file, or empties the one there.
    fn create(&self, name: &str) -> io::Result<Self::File>;

    /// Gives a file another name, replacing what had it.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes names durable: creations, renames and removals.
    fn sync(&self) -> io::Result<()>;
}

/// An open file. Clones are the same file; all methods may be called at the same time.
pub trait DiskFile: Clone + Send + Sync + 'static {
    /// Its length in bytes.
    fn size(&self) -> io::Result<u64>;

    /// Cuts or extends it with zeros.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Fills `buffer` from `offset`; a shorter file is an error.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Writes all of `bytes` at `offset`, extending the file where needed.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes all writes so far durable.
    fn sync(&self) -> io::Result<()>;
}

/// A directory of real files, locked against a second process.
#[derive(Debug, Clone)]
pub struct FileDisk {
    directory: Arc<Directory>,
}

#[derive(Debug)]
struct Directory {
    path: PathBuf,
    /// Holds the lock for as long as the directory is in use.
    _lock: File,
}

/// The file that a running process keeps locked.
const LOCK: &str = "LOCK";

impl FileDisk {
    /// Opens `path`, making it where it does not exist.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] while another process has it open.
    pub fn open(path: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(path)?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path.join(LOCK))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let what = format!("{} is in use by another process", path.display());
                return Err(io::Error::new(io::ErrorKind::WouldBlock, what));
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
        Ok(Self {
            directory: Arc::new(Directory {
                path: path.to_owned(),
                _lock: lock,
            }),
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path.join(name)
    }

    fn named(&self, name: &str, error: &io::Error) -> io::Error {
        io::Error::new(
            error.kind(),
            format!("{}: {error}", self.path(name).display()),
        )
    }
}

impl Disk for FileDisk {
    type File = RealFile;

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.directory.path)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            if entry.file_type()?.is_file() && name != LOCK {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn open(&self, name: &str) -> io::Result<RealFile> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(self.path(name));
        file.map(RealFile::new)
            .map_err(|error| self.named(name, &error))
    }

    fn create(&self, name: &str) -> io::Result<RealFile> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(self.path(name));
        file.map(RealFile::new)
            .map_err(|error| self.named(name, &error))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.path(from), self.path(to)).map_err(|error| self.named(from, &error))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.path(name)).map_err(|error| self.named(name, &error))
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.directory.path)?.sync_all()
    }
}

/// A real file.
#[derive(Debug, Clone)]
pub struct RealFile(Arc<File>);

impl RealFile {
    fn new(file: File) -> Self {
        Self(Arc::new(file))
    }
}

impl DiskFile for RealFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(buffer, offset)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}
