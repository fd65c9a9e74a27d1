//! The files of a log's directory: their names, and how one comes to be, is locked, recycled and
//! removed.
//!
//! - `NNNNNNNN.seg` is a segment. From the moment the name exists its header is durable and right.
//! - `NNNNNNNN.free` is a file on its way to become a segment. Its content means nothing; a restart
//!   removes it.
//! - `lock` is held while the log is open.
//!
//! A fresh file is filled with zeros and synced before it gets its name, so that a later write
//! neither allocates nor changes metadata. A released segment first loses its name, durably, and
//! only then its content: at no point does a name stand over a foreign header.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use engine::fs::{self, File, OpenOptions};

use crate::durable::is_full;
use crate::error::LogError;
use crate::format::{BLOCK, DATA_START, SegmentHeader};

/// Bytes of zeros written at once.
const ZERO_CHUNK: usize = 256 << 10;
/// How long a lock may stay with a process that was just killed: the kernel releases it when the
/// last of its writes has landed, so the lock is also what keeps those writes out of our way.
const LOCK_WAIT: Duration = Duration::from_secs(2);
const LOCK_POLL: Duration = Duration::from_millis(5);

const WRITABLE: OpenOptions = OpenOptions {
    write: true,
    create: false,
    create_new: false,
    direct: true,
    mode: 0,
};
const CREATED: OpenOptions = OpenOptions {
    create: true,
    ..WRITABLE
};

/// Where a new segment's file comes from.
pub(crate) enum Source {
    /// Nowhere: it is made and zeroed.
    Fresh,
    /// The file of a released segment, already renamed by [`retire`].
    Retired(PathBuf),
}

pub(crate) fn segment_path(dir: &Path, number: u32) -> PathBuf {
    dir.join(format!("{number:08}.seg"))
}

fn free_path(dir: &Path, number: u32) -> PathBuf {
    dir.join(format!("{number:08}.free"))
}

/// What a directory entry's name means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Name {
    Segment(u32),
    Free,
    Other,
}

pub(crate) fn parse_name(name: &str) -> Name {
    let number = |stem: &str| {
        let digits = stem.len() >= 8 && stem.bytes().all(|b| b.is_ascii_digit());
        let number = stem
            .parse()
            .ok()
            .filter(|n| digits && format!("{n:08}") == stem);
        number.filter(|n| *n > 0)
    };
    match name.split_once('.') {
        Some((stem, "seg")) => number(stem).map_or(Name::Other, Name::Segment),
        Some((stem, "free")) if number(stem).is_some() => Name::Free,
        _ => Name::Other,
    }
}

/// Makes the directory, its name durable.
pub(crate) async fn make_dir(dir: &Path) -> Result<(), LogError> {
    fs::create_dir_all(dir)
        .await
        .map_err(|e| LogError::io("create", dir, e))?;
    match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => fs::sync_dir(parent)
            .await
            .map_err(|e| LogError::io("sync", parent, e)),
        _ => Ok(()),
    }
}

/// Takes the directory for this log, until the file is dropped.
pub(crate) async fn lock_dir(dir: &Path) -> Result<File, LogError> {
    let path = dir.join("lock");
    let options = OpenOptions {
        direct: false,
        ..CREATED
    };
    let file = File::open(&path, options)
        .await
        .map_err(|e| LogError::io("open", &path, e))?;
    lock(&file).await?;
    Ok(file)
}

async fn lock(file: &File) -> Result<(), LogError> {
    let deadline = engine::now() + LOCK_WAIT;
    loop {
        match file.lock().await {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() != ErrorKind::WouldBlock => {
                return Err(LogError::io("lock", file.path(), error));
            }
            Err(_) if engine::now() >= deadline => {
                return Err(LogError::Locked {
                    path: file.path().to_owned(),
                });
            }
            Err(_) => engine::sleep(LOCK_POLL).await,
        }
    }
}

/// Opens a segment to write it; nobody else writes it.
pub(crate) async fn open_locked(path: &Path) -> Result<Rc<File>, LogError> {
    let file = File::open(path, WRITABLE)
        .await
        .map_err(|e| LogError::io("open", path, e))?;
    lock(&file).await?;
    Ok(Rc::new(file))
}

/// Opens a segment to read it.
pub(crate) async fn open_to_read(path: &Path) -> Result<Rc<File>, LogError> {
    let options = OpenOptions {
        write: false,
        ..WRITABLE
    };
    let file = File::open(path, options)
        .await
        .map_err(|e| LogError::io("open", path, e))?;
    Ok(Rc::new(file))
}

pub(crate) async fn sync_dir(dir: &Path) -> Result<(), LogError> {
    fs::sync_dir(dir)
        .await
        .map_err(|e| LogError::io("sync", dir, e))
}

pub(crate) async fn remove(path: &Path) -> Result<(), LogError> {
    match fs::remove_file(path).await {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(LogError::io("remove", path, error))
        }
        _ => Ok(()),
    }
}

/// Takes a released segment its name, durably. Only then may its content change.
pub(crate) async fn retire(dir: &Path, number: u32) -> Result<PathBuf, LogError> {
    let (from, to) = (segment_path(dir, number), free_path(dir, number));
    fs::rename(&from, &to)
        .await
        .map_err(|e| LogError::io("rename", &from, e))?;
    sync_dir(dir).await?;
    Ok(to)
}

/// Makes a segment ready: content, header and name are durable when it returns.
///
/// # Errors
/// [`LogError::Full`] and [`LogError::Busy`] left nothing behind and may pass.
pub(crate) async fn stage(
    dir: &Path,
    header: SegmentHeader,
    source: Source,
) -> Result<Rc<File>, LogError> {
    let fresh = matches!(source, Source::Fresh);
    let path = match source {
        Source::Fresh => free_path(dir, header.number),
        Source::Retired(path) => path,
    };
    if let Err(error) = fill(dir, &path, header, fresh).await {
        // Best effort: a restart removes it as well.
        if let Err(left) = remove(&path).await {
            tracing::warn!(error = %left.in_full(), "an unfinished segment is left behind");
        }
        return Err(error);
    }
    let name = segment_path(dir, header.number);
    fs::rename(&path, &name)
        .await
        .map_err(|e| LogError::io("rename", &path, e))?;
    sync_dir(dir).await?;
    open_locked(&name).await
}

async fn fill(dir: &Path, path: &Path, header: SegmentHeader, fresh: bool) -> Result<(), LogError> {
    let refused = |what, error: io::Error| {
        // A short write of a new file has met the end of the space, too.
        if is_full(&error) || error.kind() == ErrorKind::WriteZero {
            return LogError::Full {
                dir: dir.to_owned(),
            };
        }
        LogError::io(what, path, error)
    };
    let file = File::open(path, CREATED)
        .await
        .map_err(|e| refused("create", e))?;
    if fresh {
        match file.allocate(0, header.bytes).await {
            Err(error) if error.kind() != ErrorKind::Unsupported => {
                return Err(refused("allocate", error));
            }
            _ => zero(&file, header.bytes)
                .await
                .map_err(|e| refused("zero", e))?,
        }
    }
    let mut head = engine::take_buf(DATA_START as usize).map_err(|_| LogError::Busy)?;
    head.fill(0);
    header.encode(&mut head);
    file.write_then_datasync(head, 0)
        .await
        .0
        .map_err(|e| refused("write", e))
}

async fn zero(file: &File, bytes: u64) -> io::Result<()> {
    let wanted = ZERO_CHUNK.min(bytes as usize);
    let mut zeros = engine::take_buf(wanted)
        .or_else(|_| engine::take_buf(BLOCK))
        .map_err(|e| io::Error::new(ErrorKind::OutOfMemory, e))?;
    zeros.fill(0);
    let mut at = 0;
    while at < bytes {
        zeros.set_len(zeros.len().min((bytes - at) as usize));
        let len = zeros.len() as u64;
        let (done, back) = file.write_at(zeros, at).await;
        done?;
        zeros = back;
        at += len;
    }
    file.datasync().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_the_log_would_write_are_its_own() {
        assert_eq!(parse_name("00000001.seg"), Name::Segment(1));
        assert_eq!(parse_name("4294967295.seg"), Name::Segment(u32::MAX));
        assert_eq!(parse_name("00000012.free"), Name::Free);
        for name in [
            "1.seg",
            "00000000.seg",
            "000000001.seg",
            "0000000x.seg",
            "00000001",
            "lock",
        ] {
            assert_eq!(parse_name(name), Name::Other, "{name}");
        }
        assert_eq!(parse_name("4294967296.seg"), Name::Other);
    }
}
