//! `format.toml`: what a data directory is, written once when it is first used.
//!
//! ```text
//! version = 1
//! partitions = 4
//! ```
//!
//! A partition is where an object or a volume lives, by a hash of its name: their number never changes. The
//! file is complete or absent: it is written under another name, synced and renamed.

use std::io;
use std::path::{Path, PathBuf};

use engine::fs::{File, OpenOptions, create_dir_all, read_dir, rename, sync_dir};
use engine::{CallError, EngineHandle, ShardId};

const NAME: &str = "format.toml";
const TEMPORARY: &str = "format.toml.tmp";
const VERSION: i64 = 1;
/// Most partitions; each has a log, a data file and an index of its own.
const PARTITIONS_MAX: u16 = 1024;
/// Largest file that is read.
const BYTES_MAX: u64 = 4096;

/// The data directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// The file cannot be read or written.
    #[error("{}: {what}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was being done.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The file does not say what it should.
    #[error("{}: {what}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// Partitions lie in a directory without the file.
    #[error(
        "{} holds partitions but no {NAME}; restore that file, or start with an empty directory",
        path.display()
    )]
    Missing {
        /// The directory.
        path: PathBuf,
    },
}

/// The number of partitions of a data directory; `partitions` for one that is new. The directories of
/// partitions are called by `prefix` and a number.
///
/// # Errors
/// [`FormatError`]: the directory was not made by this program, or by a newer one, or the disk fails.
pub async fn open_or_create(
    root: &Path,
    prefix: char,
    partitions: u16,
) -> Result<u16, FormatError> {
    create_dir_all(root)
        .await
        .map_err(|e| failed(root, "create", e))?;
    let path = root.join(NAME);
    let entries = read_dir(root).await.map_err(|e| failed(root, "list", e))?;
    if entries.iter().any(|entry| entry.name == NAME) {
        let text = read(&path).await?;
        return parse(&text).map_err(|what| FormatError::Malformed { path, what });
    }
    if entries
        .iter()
        .any(|entry| is_partition(&entry.name, prefix))
    {
        return Err(FormatError::Missing {
            path: root.to_owned(),
        });
    }
    // First: where the file is, the names that lead to it are durable.
    sync_ancestors(root).await?;
    let partitions = partitions.clamp(1, PARTITIONS_MAX);
    write(
        root,
        &path,
        format!("version = {VERSION}\npartitions = {partitions}\n"),
    )
    .await?;
    Ok(partitions)
}

/// Makes the names that lead to a new data directory durable: without them a power cut loses it
/// with everything in it.
async fn sync_ancestors(root: &Path) -> Result<(), FormatError> {
    let all = root.ancestors().skip(1);
    for dir in all.map(|dir| {
        if dir.as_os_str().is_empty() {
            Path::new(".")
        } else {
            dir
        }
    }) {
        match sync_dir(dir).await {
            // What this process may not open it has not made.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            synced => synced.map_err(|e| failed(dir, "sync", e))?,
        }
    }
    Ok(())
}

/// As [`open_or_create`], from any thread, by a shard of the engine.
///
/// # Errors
/// [`FormatError`]; the shard does not answer.
pub async fn open_on_shard(
    engine: &EngineHandle,
    root: &Path,
    prefix: char,
    partitions: u16,
) -> Result<Result<u16, FormatError>, CallError> {
    let root = root.to_owned();
    let opened = engine.call(ShardId(0), move |_| {
        Box::pin(async move { open_or_create(&root, prefix, partitions).await })
    });
    opened.await
}

fn is_partition(name: &str, prefix: char) -> bool {
    let digits = name.strip_prefix(prefix);
    digits.is_some_and(|d| d.len() >= 3 && d.bytes().all(|b| b.is_ascii_digit()))
}

async fn read(path: &Path) -> Result<Vec<u8>, FormatError> {
    let file = File::open(path, OpenOptions::default()).await;
    let file = file.map_err(|e| failed(path, "open", e))?;
    let len = file.opened_len().min(BYTES_MAX) as usize;
    let (read, bytes) = file.read_at(vec![0; len.max(1)], 0).await;
    let count = read.map_err(|e| failed(path, "read", e))?;
    Ok(bytes[..count.min(len)].to_vec())
}

async fn write(root: &Path, path: &Path, text: String) -> Result<(), FormatError> {
    let temporary = root.join(TEMPORARY);
    let options = OpenOptions {
        write: true,
        create: true,
        ..OpenOptions::default()
    };
    let file = File::open(&temporary, options)
        .await
        .map_err(|e| failed(&temporary, "create", e))?;
    let len = text.len() as u64;
    let (written, _) = file.write_at(text.into_bytes(), 0).await;
    written.map_err(|e| failed(&temporary, "write", e))?;
    // A longer file may be left from a start that ended in the middle.
    file.set_len(len)
        .await
        .map_err(|e| failed(&temporary, "truncate", e))?;
    file.datasync()
        .await
        .map_err(|e| failed(&temporary, "sync", e))?;
    rename(&temporary, path)
        .await
        .map_err(|e| failed(path, "rename", e))?;
    sync_dir(root).await.map_err(|e| failed(root, "sync", e))
}

fn failed(path: &Path, what: &'static str, source: io::Error) -> FormatError {
    FormatError::Io {
        path: path.to_owned(),
        what,
        source,
    }
}

fn parse(bytes: &[u8]) -> Result<u16, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned())?;
    let table: toml::Table = text
        .parse()
        .map_err(|e: toml::de::Error| e.message().to_owned())?;
    let number = |key: &str| {
        let value = table.get(key).and_then(toml::Value::as_integer);
        value.ok_or_else(|| format!("{key} is missing, or not a number"))
    };
    let version = number("version")?;
    if version != VERSION {
        return Err(format!(
            "version {version} is not known; this program knows {VERSION}"
        ));
    }
    let partitions = number("partitions")?;
    u16::try_from(partitions)
        .ok()
        .filter(|count| (1..=PARTITIONS_MAX).contains(count))
        .ok_or_else(|| format!("partitions is {partitions}; allowed: 1 to {PARTITIONS_MAX}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_format_is_read_and_nonsense_is_named() {
        assert_eq!(parse(b"version = 1\npartitions = 4\n"), Ok(4));
        for (text, part) in [
            (&b""[..], "version is missing"),
            (b"version = 2\npartitions = 4", "version 2 is not known"),
            (b"version = 1", "partitions is missing"),
            (b"version = 1\npartitions = 0", "1 to 1024"),
            (b"version = 1\npartitions = 1025", "1 to 1024"),
            (b"\xff", "UTF-8"),
            (b"version = ", ""),
        ] {
            assert!(parse(text).unwrap_err().contains(part), "{text:?}");
        }
    }

    #[test]
    fn partitions_are_told_from_other_names() {
        for (name, expected) in [
            ("p000", true),
            ("p1023", true),
            ("p", false),
            ("photos", false),
        ] {
            assert_eq!(is_partition(name, 'p'), expected, "{name}");
        }
    }
}
