//! Before a data file is used: that nobody else has it, and what its disk takes.

use std::io;
use std::path::Path;
use std::time::Duration;

use engine::fs::{File, OpenOptions};

use crate::error::VolumeError;

/// The smallest unit of what a guest reads and writes, in bytes: a sector of most disks.
const SECTOR: u32 = 512;
/// The unit where a disk's sectors are larger.
const LARGE_SECTOR: u32 = 4096;
/// What the file holds by which the disk is tried.
const PROBE: u8 = 0x5a;
/// How long a process that is ending may take.
const LOCK_WAIT: Duration = Duration::from_mins(1);
const LOCK_RETRY: Duration = Duration::from_millis(20);

/// Waits until nobody else has the file. A process that was killed has it until the kernel has ended the
/// last operation of its rings, whose tables of files refer to it: none of them, of the log neither, may
/// meet what is written from here on.
pub(super) async fn lock(file: &File) -> Result<(), VolumeError> {
    let deadline = engine::now() + LOCK_WAIT;
    loop {
        match file.lock().await {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && engine::now() < deadline => {
                engine::sleep(LOCK_RETRY).await;
            }
            Err(error) => {
                return Err(VolumeError::internal(
                    "the data file is in use by another process",
                    &error,
                ));
            }
            Ok(()) => return Ok(()),
        }
    }
}

/// Finds out what the disk takes, by a file beside the data file. It stays, as a full disk has no space
/// for another; what it holds says that it was written, and so lies on the disk: what a file system
/// only promised may be read in any unit.
pub(super) async fn probe(path: &Path) -> Result<u32, VolumeError> {
    let path = path.with_file_name("probe");
    let failed = |error: &io::Error| VolumeError::internal("cannot try the disk", error);
    let options = OpenOptions {
        write: true,
        create: true,
        direct: true,
        ..OpenOptions::default()
    };
    let file = File::open(&path, options).await.map_err(|e| failed(&e))?;
    let buf = engine::take_buf(LARGE_SECTOR as usize)?;
    let (read, slice) = file.read_at(buf.slice(0..LARGE_SECTOR as usize), 0).await;
    let read = read.map_err(|e| failed(&e))?;
    let mut buf = slice.into_inner();
    if read != buf.len() || buf.iter().any(|byte| *byte != PROBE) {
        buf.fill(PROBE);
        let (wrote, written) = file.write_at(buf, 0).await;
        wrote.map_err(|e| failed(&e))?;
        file.datasync().await.map_err(|e| failed(&e))?;
        buf = written;
    }
    let part = buf.slice(0..SECTOR as usize);
    match file.read_at(part, u64::from(SECTOR)).await.0 {
        Ok(_) => Ok(SECTOR),
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(LARGE_SECTOR),
        Err(error) => Err(failed(&error)),
    }
}
