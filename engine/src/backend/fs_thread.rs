//! Name-space requests (open, rename, list …) run on one helper thread a shard: they may block on
//! the disk for longer than a shard may be held, and are off every hot path.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::mpsc;

use futures_channel::oneshot;

use super::{DirEntry, DiskSpace, FsOp, FsReply, Metadata, OpenOptions, RawHandle};

type Request = (FsOp, oneshot::Sender<io::Result<FsReply>>);

/// Starts the thread; it ends when the sender is dropped.
pub(crate) fn start() -> io::Result<mpsc::Sender<Request>> {
    let (sender, requests) = mpsc::channel::<Request>();
    std::thread::Builder::new()
        .name("shard-fs".into())
        .spawn(move || {
            for (op, answer) in requests {
                let reply = run(op);
                // A caller that went away must not leak the file it asked for.
                if let Err(Ok(FsReply::Opened { handle, .. })) = answer.send(reply) {
                    // SAFETY: `open` below just made this descriptor and nobody else has it.
                    drop(unsafe { fs::File::from_raw_fd(handle.0) });
                }
            }
        })?;
    Ok(sender)
}

fn run(op: FsOp) -> io::Result<FsReply> {
    match op {
        FsOp::Open { path, options } => open(&path, options),
        FsOp::CreateDirAll { path } => fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map(|()| FsReply::Done),
        FsOp::RemoveFile { path } => fs::remove_file(path).map(|()| FsReply::Done),
        FsOp::Rename { from, to } => fs::rename(from, to).map(|()| FsReply::Done),
        FsOp::ReadDir { path } => read_dir(&path),
        FsOp::SyncDir { path } => fs::File::open(path)?.sync_all().map(|()| FsReply::Done),
        FsOp::Metadata { path } => {
            let meta = fs::metadata(path)?;
            Ok(FsReply::Metadata(Metadata {
                len: meta.len(),
                allocated: meta.blocks() * 512,
                is_dir: meta.is_dir(),
            }))
        }
        FsOp::SetLen { file, len } => {
            // SAFETY: ftruncate takes integers; the caller keeps the file open.
            done(unsafe { libc::ftruncate(file.0, len.cast_signed()) })
        }
        FsOp::Lock { file } => {
            // SAFETY: flock takes integers; the caller keeps the file open.
            done(unsafe { libc::flock(file.0, libc::LOCK_EX | libc::LOCK_NB) })
        }
        FsOp::BootId => boot_id(),
        FsOp::Space { path } => space(&path),
    }
}

fn done(result: libc::c_int) -> io::Result<FsReply> {
    if result == 0 {
        Ok(FsReply::Done)
    } else {
        Err(io::Error::last_os_error())
    }
}

fn open(path: &Path, options: OpenOptions) -> io::Result<FsReply> {
    let mut how = fs::OpenOptions::new();
    how.read(true)
        .write(options.write)
        .create(options.create || options.create_new)
        .create_new(options.create_new)
        .mode(if options.mode == 0 {
            0o600
        } else {
            options.mode
        });
    let mut direct = options.direct;
    if direct {
        how.custom_flags(libc::O_DIRECT);
    }
    let file = match how.open(path) {
        // Some file systems have no O_DIRECT: the page cache serves, and the caller is told.
        Err(error) if direct && error.raw_os_error() == Some(libc::EINVAL) => {
            direct = false;
            how.custom_flags(0).open(path)?
        }
        opened => opened?,
    };
    let len = file.metadata()?.len();
    debug_assert!(file.as_raw_fd() >= 0, "an open file has a descriptor");
    Ok(FsReply::Opened {
        handle: RawHandle(file.into_raw_fd()),
        len,
        direct,
    })
}

fn read_dir(path: &Path) -> io::Result<FsReply> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        let name = entry.file_name().into_string().map_err(|name| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "the name {} in {} is not UTF-8",
                    name.display(),
                    path.display()
                ),
            )
        })?;
        let len = if meta.is_dir() { 0 } else { meta.len() };
        entries.push(DirEntry {
            name,
            is_dir: meta.is_dir(),
            len,
        });
    }
    entries.sort();
    Ok(FsReply::Entries(entries))
}

fn boot_id() -> io::Result<FsReply> {
    const PATH: &str = "/proc/sys/kernel/random/boot_id";
    let text = fs::read_to_string(PATH)?;
    let digits: String = text.trim().chars().filter(|c| *c != '-').collect();
    let id = u128::from_str_radix(&digits, 16).map_err(|_| {
        let what = format!("{PATH} holds no id: {:?}", text.trim());
        io::Error::new(io::ErrorKind::InvalidData, what)
    })?;
    Ok(FsReply::BootId(id.to_be_bytes()))
}

fn space(path: &Path) -> io::Result<FsReply> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: statvfs is plain data; zeros are valid.
    let mut stat: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path is NUL-terminated and the kernel writes one statvfs.
    if unsafe { libc::statvfs(path.as_ptr(), &raw mut stat) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(FsReply::Space(DiskSpace {
        available: stat.f_bavail * stat.f_frsize,
        total: stat.f_blocks * stat.f_frsize,
    }))
}
