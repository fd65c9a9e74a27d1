//! Files and the name space.
//!
//! A [`File`] belongs to the shard that opened it. Operations take buffers by value and give them
//! back with the result. Dropping an operation early cancels it, and a cancelled write **may have
//! happened**. A short write is an error. The engine never retries a failed write or sync: the
//! caller must treat the file as poisoned. One error is none of the disk's: `ResourceBusy` says that
//! the shard had no slot for the operation, which was not started and may be tried again.

use std::cell::{Cell, RefCell};
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::backend::{FsOp, FsReply, Op, RawHandle};
use crate::buf::{IoBuf, IoBufMut};
use crate::guest::{GuestList, GuestMem, IovBatch};
use crate::op::{Leaves, OpFuture, check, source_span, target_span};
use crate::shard::{ShardCore, current};
use crate::surviving::SurvivingMem;

pub use crate::backend::{DirEntry, DiskSpace, Metadata, OpenOptions};

/// Most bytes that a shard copies itself, at once, from or to a file in memory: some 20 us.
pub const AT_ONCE_MAX: u64 = 128 << 10;

/// Result of an operation, and the buffer it was given.
pub type BufResult<T, B> = (io::Result<T>, B);

/// An open file of this shard.
pub struct File {
    shard: Rc<ShardCore>,
    handle: RawHandle,
    path: PathBuf,
    direct: bool,
    opened_len: u64,
    /// Whether short reads need no more than a copy.
    in_memory: Cell<bool>,
    /// What such reads copy from.
    mapped: RefCell<Option<GuestMem>>,
}

impl Drop for File {
    fn drop(&mut self) {
        self.shard.close(self.handle);
    }
}

impl std::fmt::Debug for File {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("File")
            .field("path", &self.path)
            .field("direct", &self.direct)
            .finish_non_exhaustive()
    }
}

impl File {
    /// Opens a file.
    ///
    /// # Errors
    /// As the kernel says; the path is in the message.
    pub async fn open(path: impl AsRef<Path>, options: OpenOptions) -> io::Result<File> {
        let path = path.as_ref().to_owned();
        let reply = request(FsOp::Open {
            path: path.clone(),
            options,
        })
        .await
        .map_err(|e| at(&path, &e))?;
        let FsReply::Opened {
            handle,
            len,
            direct,
        } = reply
        else {
            return Err(unexpected());
        };
        let shard = current();
        let in_memory = shard.backend(|backend| backend.adopt_file(handle));
        Ok(File {
            shard,
            handle,
            path,
            direct,
            opened_len: len,
            in_memory: Cell::new(in_memory),
            mapped: RefCell::new(None),
        })
    }

    /// Whether it lies in memory, and can be read at once.
    pub fn is_in_memory(&self) -> bool {
        self.in_memory.get()
    }

    /// The path it was opened under.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Length in bytes when it was opened.
    pub fn opened_len(&self) -> u64 {
        self.opened_len
    }

    /// Whether the page cache is bypassed; false where the file system cannot.
    pub fn is_direct(&self) -> bool {
        self.direct
    }

    /// Reads up to the buffer's capacity at `offset`. Fewer bytes mean the end of the file.
    pub async fn read_at<B: IoBufMut>(&self, buf: B, offset: u64) -> BufResult<usize, B> {
        let op = OpFuture::start(&self.shard, buf, Leaves::Nothing, |buf, shard| Op::Read {
            file: self.handle,
            span: target_span(buf, shard),
            offset,
        });
        let (outcome, mut buf) = op.await;
        let read = self.checked(outcome.result, "read", offset);
        if let Ok(read) = read {
            buf.set_filled(read);
        }
        (read, buf)
    }

    /// Writes the whole buffer at `offset`. Not durable before a sync.
    pub async fn write_at<B: IoBuf>(&self, buf: B, offset: u64) -> BufResult<(), B> {
        self.write(buf, offset, false).await
    }

    /// Writes the whole buffer at `offset`; durable when it returns (RWF_DSYNC). Good with several
    /// in flight; alone, [`File::write_then_datasync`] is faster.
    pub async fn write_durable<B: IoBuf>(&self, buf: B, offset: u64) -> BufResult<(), B> {
        self.write(buf, offset, true).await
    }

    async fn write<B: IoBuf>(&self, buf: B, offset: u64, dsync: bool) -> BufResult<(), B> {
        let op = OpFuture::start(&self.shard, buf, Leaves::Nothing, |buf, shard| Op::Write {
            file: self.handle,
            span: source_span(buf, shard),
            offset,
            dsync,
        });
        let (outcome, buf) = op.await;
        (self.whole(outcome.result, buf.len(), offset), buf)
    }

    /// Writes the whole buffer at `offset`, then fdatasync, as one linked chain: durable when it
    /// returns.
    pub async fn write_then_datasync<B: IoBuf>(&self, buf: B, offset: u64) -> BufResult<(), B> {
        let op = OpFuture::start(&self.shard, buf, Leaves::Nothing, |buf, shard| {
            Op::WriteThenSync {
                file: self.handle,
                span: source_span(buf, shard),
                offset,
            }
        });
        let (outcome, buf) = op.await;
        let done = self
            .whole(outcome.result, buf.len(), offset)
            .and_then(|()| self.checked(outcome.sync, "sync", offset).map(drop));
        (done, buf)
    }

    /// Makes all completed writes durable (fdatasync).
    ///
    /// # Errors
    /// After an error the written data may be lost; never call again and believe it.
    pub async fn datasync(&self) -> io::Result<()> {
        self.plain(Op::Sync { file: self.handle }, "sync", 0).await
    }

    /// Allocates space for a range, extending the file when it ends short of it.
    ///
    /// # Errors
    /// `StorageFull` when there is none.
    pub async fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.plain(
            Op::Allocate {
                file: self.handle,
                offset,
                len,
            },
            "allocate",
            offset,
        )
        .await
    }

    /// Frees a range's space; it reads as zeros from now on.
    ///
    /// # Errors
    /// `Unsupported` on file systems without holes.
    pub async fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.plain(
            Op::Discard {
                file: self.handle,
                offset,
                len,
            },
            "discard",
            offset,
        )
        .await
    }

    /// Sets the length.
    ///
    /// # Errors
    /// As the kernel says.
    pub async fn set_len(&self, len: u64) -> io::Result<()> {
        let done = request(FsOp::SetLen {
            file: self.handle,
            len,
        })
        .await;
        let mut mapped = self.mapped.borrow_mut();
        if mapped.as_ref().is_some_and(|mem| len < mem.len() as u64) {
            *mapped = None;
        }
        done.map(drop).map_err(|e| at(&self.path, &e))
    }

    /// Maps the first `len` bytes: memory that outlives the process. What the file is short of is given
    /// space first; what it has is not asked for again, as a full file system that copies on write would
    /// refuse it. The file must not be opened with `direct`.
    ///
    /// # Errors
    /// `StorageFull` when there is no space for it, else as the kernel says.
    pub async fn map_surviving(&self, len: usize) -> io::Result<SurvivingMem> {
        let (bytes, had) = (len as u64, self.opened_len);
        if had < bytes {
            match self.allocate(had, bytes - had).await {
                // Where the file system cannot promise space, a store that gets none is an error of it.
                Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                    self.set_len(bytes).await?;
                }
                allocated => allocated?,
            }
            self.datasync().await?;
        }
        let mapped = self
            .shard
            .backend(|backend| backend.map_file(self.handle, len));
        mapped
            .and_then(SurvivingMem::over)
            .map_err(|e| at(&self.path, &e))
    }

    /// Takes an exclusive lock, held until the file is dropped.
    ///
    /// # Errors
    /// `WouldBlock` when another process holds it.
    pub async fn lock(&self) -> io::Result<()> {
        let done = request(FsOp::Lock { file: self.handle }).await;
        done.map(drop).map_err(|e| at(&self.path, &e))
    }

    /// Reads straight into guest memory. Fewer bytes than the list has mean the end of the file.
    ///
    /// The result is `InvalidInput` for a list that is empty or past 2 GiB, else as the kernel says.
    pub async fn read_list_at(&self, into: GuestList, offset: u64) -> BufResult<usize, GuestList> {
        if let Err(error) = IovBatch::check(&into) {
            return (Err(error), into);
        }
        let batch = IovBatch::new(into);
        let file = self.handle;
        let op = OpFuture::start(
            &self.shard,
            batch,
            Leaves::Nothing,
            |batch, _| match batch.span() {
                Some(span) => Op::Read { file, span, offset },
                None => Op::ReadVectored {
                    file,
                    iov: batch.as_ptr(),
                    count: batch.count(),
                    bytes: batch.bytes(),
                    offset,
                },
            },
        );
        let (outcome, batch) = op.await;
        let read = self.checked(outcome.result, "read", offset);
        (read, batch.into_list())
    }

    /// Reads straight into guest memory, at once: from a file that lies in memory, as far as a copy of at
    /// most [`AT_ONCE_MAX`] bytes goes in the turn of the running task. None when it is more than that, or
    /// the file ends before: [`File::read_list_at`] does it.
    ///
    /// # Errors
    /// `UnexpectedEof` when the list's memory is broken.
    pub fn read_list_now(&self, into: &GuestList, offset: u64) -> Option<io::Result<()>> {
        if !self.in_memory.get() || into.len() > AT_ONCE_MAX || self.shard.need_yield() {
            return None;
        }
        let mut mapped = self.mapped.borrow_mut();
        let end = offset.checked_add(into.len())?;
        if mapped.as_ref().is_none_or(|mem| (mem.len() as u64) < end) {
            match self
                .shard
                .backend(|backend| backend.map_whole_file(self.handle, end))
            {
                Ok(Some(mem)) => *mapped = Some(mem),
                Ok(None) => return None,
                // One that is opened for reading only, say: the kernel copies then.
                Err(_) => {
                    self.in_memory.set(false);
                    return None;
                }
            }
        }
        let source = mapped.as_ref()?;
        if into.fill_from(source, offset).is_err() {
            // Somebody else has cut the file short.
            *mapped = None;
            return None;
        }
        Some(into.whole())
    }

    /// Writes straight from guest memory; all of it, or an error. Not durable before a sync.
    ///
    /// The result is `InvalidInput` for a list that is empty or past 2 GiB, `WriteZero` for a short
    /// write, else as the kernel says.
    pub async fn write_list_at(&self, from: GuestList, offset: u64) -> BufResult<(), GuestList> {
        self.write_list(from, offset, false).await
    }

    /// As [`File::write_list_at`], and durable when it returns (RWF_DSYNC).
    pub async fn write_list_durable(
        &self,
        from: GuestList,
        offset: u64,
    ) -> BufResult<(), GuestList> {
        self.write_list(from, offset, true).await
    }

    async fn write_list(
        &self,
        from: GuestList,
        offset: u64,
        dsync: bool,
    ) -> BufResult<(), GuestList> {
        if let Err(error) = IovBatch::check(&from) {
            return (Err(error), from);
        }
        let batch = IovBatch::new(from);
        let file = self.handle;
        let op = OpFuture::start(
            &self.shard,
            batch,
            Leaves::Nothing,
            |batch, _| match batch.span() {
                Some(span) => Op::Write {
                    file,
                    span,
                    offset,
                    dsync,
                },
                None => Op::WriteVectored {
                    file,
                    iov: batch.as_ptr(),
                    count: batch.count(),
                    bytes: batch.bytes(),
                    offset,
                    dsync,
                },
            },
        );
        let (outcome, batch) = op.await;
        let done = self.whole(outcome.result, batch.bytes() as usize, offset);
        (done, batch.into_list())
    }

    async fn plain(&self, op: Op, what: &str, offset: u64) -> io::Result<()> {
        let op = OpFuture::start(&self.shard, (), Leaves::Nothing, |(), _| op);
        let (outcome, ()) = op.await;
        self.checked(outcome.result, what, offset).map(drop)
    }

    fn checked(&self, result: i32, what: &str, offset: u64) -> io::Result<usize> {
        check(result).map_err(|error| {
            let context = format!(
                "{what} at offset {offset} of {}: {error}",
                self.path.display()
            );
            io::Error::new(kind_of(&error), context)
        })
    }

    fn whole(&self, result: i32, len: usize, offset: u64) -> io::Result<()> {
        let wrote = self.checked(result, "write", offset)?;
        if wrote == len {
            return Ok(());
        }
        let context = format!(
            "short write at offset {offset} of {}: {wrote} of {len} bytes",
            self.path.display()
        );
        Err(io::Error::new(io::ErrorKind::WriteZero, context))
    }
}

/// `ResourceBusy` is kept for operations that were not started: the kernel's own EBUSY comes from one
/// that was. Memory that is not there is the caller's fault, and none of the disk's.
fn kind_of(error: &io::Error) -> io::ErrorKind {
    match error.raw_os_error() {
        Some(libc::EBUSY) => io::ErrorKind::Other,
        Some(libc::EFAULT) => io::ErrorKind::InvalidInput,
        _ => error.kind(),
    }
}

async fn request(op: FsOp) -> io::Result<FsReply> {
    let answer = current().backend(|backend| backend.fs(op));
    answer
        .await
        .unwrap_or_else(|_| Err(io::Error::other("the file system thread has ended")))
}

/// Names the path. Descriptors or memory that ran out are told apart from a broken disk: nothing
/// happened, and it may pass.
fn at(path: &Path, error: &io::Error) -> io::Error {
    let kind = match error.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM) => io::ErrorKind::ResourceBusy,
        _ => error.kind(),
    };
    io::Error::new(kind, format!("{}: {error}", path.display()))
}

fn unexpected() -> io::Error {
    io::Error::other("the backend answered another request")
}

/// Makes a directory and its parents.
///
/// # Errors
/// As the kernel says; the path is in the message.
pub async fn create_dir_all(path: impl AsRef<Path>) -> io::Result<()> {
    let path = path.as_ref().to_owned();
    request(FsOp::CreateDirAll { path: path.clone() })
        .await
        .map(drop)
        .map_err(|e| at(&path, &e))
}

/// Removes a file.
///
/// # Errors
/// As the kernel says; the path is in the message.
pub async fn remove_file(path: impl AsRef<Path>) -> io::Result<()> {
    let path = path.as_ref().to_owned();
    request(FsOp::RemoveFile { path: path.clone() })
        .await
        .map(drop)
        .map_err(|e| at(&path, &e))
}

/// Renames, replacing what is there. Durable after [`sync_dir`] of the directory.
///
/// # Errors
/// As the kernel says; the path is in the message.
pub async fn rename(from: impl AsRef<Path>, to: impl AsRef<Path>) -> io::Result<()> {
    let (from, to) = (from.as_ref().to_owned(), to.as_ref().to_owned());
    request(FsOp::Rename {
        from: from.clone(),
        to,
    })
    .await
    .map(drop)
    .map_err(|e| at(&from, &e))
}

/// Lists a directory in byte order of the names.
///
/// # Errors
/// As the kernel says; the path is in the message.
pub async fn read_dir(path: impl AsRef<Path>) -> io::Result<Vec<DirEntry>> {
    let path = path.as_ref().to_owned();
    match request(FsOp::ReadDir { path: path.clone() })
        .await
        .map_err(|e| at(&path, &e))?
    {
        FsReply::Entries(entries) => Ok(entries),
        _ => Err(unexpected()),
    }
}

/// Makes created, renamed and removed names of a directory durable.
///
/// # Errors
/// As the kernel says; the path is in the message.
pub async fn sync_dir(path: impl AsRef<Path>) -> io::Result<()> {
    let path = path.as_ref().to_owned();
    request(FsOp::SyncDir { path: path.clone() })
        .await
        .map(drop)
        .map_err(|e| at(&path, &e))
}

/// Tells a path's length, allocated bytes and kind.
///
/// # Errors
/// As the kernel says; the path is in the message.
pub async fn metadata(path: impl AsRef<Path>) -> io::Result<Metadata> {
    let path = path.as_ref().to_owned();
    match request(FsOp::Metadata { path: path.clone() })
        .await
        .map_err(|e| at(&path, &e))?
    {
        FsReply::Metadata(metadata) => Ok(metadata),
        _ => Err(unexpected()),
    }
}

/// What names the machine's life since it was started: another one after each start.
///
/// # Errors
/// As the kernel says.
pub async fn boot_id() -> io::Result<[u8; 16]> {
    match request(FsOp::BootId).await? {
        FsReply::BootId(id) => Ok(id),
        _ => Err(unexpected()),
    }
}

/// Free and total bytes of the file system that holds `path`.
///
/// # Errors
/// As the kernel says; the path is in the message.
pub async fn space(path: impl AsRef<Path>) -> io::Result<DiskSpace> {
    let path = path.as_ref().to_owned();
    match request(FsOp::Space { path: path.clone() })
        .await
        .map_err(|e| at(&path, &e))?
    {
        FsReply::Space(space) => Ok(space),
        _ => Err(unexpected()),
    }
}
