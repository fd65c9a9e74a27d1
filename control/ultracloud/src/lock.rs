//! One process a data directory: the lock file, held for as long as the process lives.
//!
//! The kernel frees it when the process ends, however it ends: there is no stale lock to remove.

use std::fs::{File, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, Result, bail};

const NAME: &str = "lock";

/// The lock on a data directory.
#[derive(Debug)]
pub struct DataLock {
    _file: File,
}

impl DataLock {
    /// Takes the lock; makes the directory when it does not exist.
    ///
    /// # Errors
    /// When another process has it, naming the directory and that process.
    pub fn take(data_dir: &Path) -> Result<DataLock> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(data_dir)
            .with_context(|| format!("cannot make the data directory {}", data_dir.display()))?;
        let path = data_dir.join(NAME);
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path);
        let mut file = file.with_context(|| format!("cannot open {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // The holder's number is a comfort; without it the message still says enough.
                let _ = file.read_to_string(&mut holder);
                bail!(
                    "the data directory {} is in use by another ultracloud process{}; stop it, or \
                     choose another --data-dir",
                    data_dir.display(),
                    named(holder.trim())
                );
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", path.display()));
            }
        }
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())?;
        Ok(DataLock { _file: file })
    }
}

fn named(holder: &str) -> String {
    let plain =
        !holder.is_empty() && holder.len() <= 10 && holder.bytes().all(|b| b.is_ascii_digit());
    if plain {
        format!(" (pid {holder})")
    } else {
        String::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_lock_is_refused_by_the_name_of_the_directory_until_the_first_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let first = DataLock::take(&data).unwrap();
        let error = DataLock::take(&data).unwrap_err().to_string();
        assert!(error.contains(&data.display().to_string()), "{error}");
        assert!(
            error.contains(&format!("pid {}", std::process::id())),
            "{error}"
        );
        drop(first);
        assert!(DataLock::take(&data).is_ok());
    }
}
