//! The files under the disk shapes: what their blocks say, and the proof that they say it.
//!
//! Every block names itself at its head and its tail, so that a block from elsewhere, a stale one
//! and a torn one are all seen. Files are written through the device before a window opens:
//! nothing measured ever extends or allocates. Never measures.
#![forbid(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// Bytes of a block, the unit of alignment, of a read and of a record.
pub const BLOCK_BYTES: usize = 4096;
/// Records in one commit.
pub const RECORDS: usize = 16;
/// Bytes of one commit.
pub const BATCH_BYTES: usize = RECORDS * BLOCK_BYTES;

/// Bytes of a stamp, at a block's head and again at its tail.
const STAMP_BYTES: usize = 24;
/// Stamp of the read file's blocks in place of a nonce.
const READ_FILE: u64 = 0x7265_6164_5f66_696c;
/// Bytes of one write while a file is made.
const CHUNK_BYTES: usize = 1 << 20;

/// Memory of one block, aligned for `O_DIRECT`.
#[repr(C, align(4096))]
pub struct Block(pub [u8; BLOCK_BYTES]);

/// Memory of one commit, aligned for `O_DIRECT`.
#[repr(C, align(4096))]
pub struct Batch(pub [u8; BATCH_BYTES]);

const _: () = assert!(size_of::<Block>() == BLOCK_BYTES);
const _: () = assert!(size_of::<Batch>() == BATCH_BYTES);
const _: () = assert!(2 * STAMP_BYTES <= BLOCK_BYTES);
const _: () = assert!(CHUNK_BYTES.is_multiple_of(BATCH_BYTES));

impl Block {
    /// A block of zeroes.
    pub fn zeroed() -> Box<Self> {
        Box::new(Self([0; BLOCK_BYTES]))
    }
}

impl Batch {
    /// A batch of zeroes.
    #[expect(
        clippy::large_stack_arrays,
        reason = "64 KiB, once a window, before the meter opens"
    )]
    pub fn zeroed() -> Box<Self> {
        Box::new(Self([0; BATCH_BYTES]))
    }
}

/// Which block this is: a file or window, a number in it, a record in that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    nonce: u64,
    number: u64,
    record: u64,
}

impl Stamp {
    fn to_bytes(self) -> [u8; STAMP_BYTES] {
        let mut bytes = [0; STAMP_BYTES];
        bytes[..8].copy_from_slice(&self.nonce.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.number.to_le_bytes());
        bytes[16..].copy_from_slice(&self.record.to_le_bytes());
        bytes
    }

    fn put(self, block: &mut [u8]) {
        let bytes = self.to_bytes();
        block[..STAMP_BYTES].copy_from_slice(&bytes);
        block[BLOCK_BYTES - STAMP_BYTES..].copy_from_slice(&bytes);
    }

    fn is_on(self, block: &[u8]) -> bool {
        let bytes = self.to_bytes();
        block[..STAMP_BYTES] == bytes && block[BLOCK_BYTES - STAMP_BYTES..] == bytes
    }
}

/// Opens a file past the page cache.
pub fn open_direct(path: &Path, writable: bool) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(writable)
        .custom_flags(libc::O_DIRECT)
        .open(path)
        .with_context(|| format!("open {} with O_DIRECT", path.display()))
}

/// Makes the file of the random-read shape and brings it to the device.
pub fn make_read_file(path: &Path, blocks: u64) -> Result<()> {
    let stamp = |block: u64, out: &mut [u8]| {
        Stamp {
            nonce: READ_FILE,
            number: block,
            record: 0,
        }
        .put(out);
    };
    make(path, blocks, stamp)
}

/// Makes the file of the group-commit shape, its batches those of no window, and brings it to the
/// device.
pub fn make_commit_file(path: &Path, slots: u64) -> Result<()> {
    make(path, slots * RECORDS as u64, |_, _| ())
}

fn make(path: &Path, blocks: u64, fill: impl Fn(u64, &mut [u8])) -> Result<()> {
    ensure!(blocks > 0, "{} would hold no block", path.display());
    let file = File::create_new(path).with_context(|| format!("make {}", path.display()))?;
    let per_chunk = (CHUNK_BYTES / BLOCK_BYTES) as u64;
    let mut chunk = vec![0; CHUNK_BYTES];
    for first in (0..blocks).step_by(per_chunk as usize) {
        let count = per_chunk.min(blocks - first);
        for (block, out) in (first..first + count).zip(chunk.chunks_exact_mut(BLOCK_BYTES)) {
            fill(block, out);
        }
        let bytes = &chunk[..count as usize * BLOCK_BYTES];
        file.write_all_at(bytes, first * BLOCK_BYTES as u64)
            .with_context(|| format!("write {} at block {first}", path.display()))?;
    }
    file.sync_all()
        .with_context(|| format!("sync {}", path.display()))
}

/// Checks that a block of the read file names itself.
pub fn check_block(block: u64, content: &Block) -> Result<()> {
    let stamp = Stamp {
        nonce: READ_FILE,
        number: block,
        record: 0,
    };
    ensure!(
        stamp.is_on(&content.0),
        "block {block} does not carry its number at head and tail"
    );
    Ok(())
}

/// Stamps every record of a commit.
pub fn stamp_batch(nonce: u64, number: u64, batch: &mut Batch) {
    for (record, block) in (0..).zip(batch.0.chunks_exact_mut(BLOCK_BYTES)) {
        Stamp {
            nonce,
            number,
            record,
        }
        .put(block);
    }
}

/// Checks, past the page cache, that every slot holds the last of `commits` written to it.
pub fn check_commits(path: &Path, slots: u64, nonce: u64, commits: u64) -> Result<()> {
    let file = open_direct(path, false)?;
    let mut batch = Batch::zeroed();
    for slot in 0..slots.min(commits) {
        let number = slot + (commits - 1 - slot) / slots * slots;
        let offset = slot * BATCH_BYTES as u64;
        file.read_exact_at(&mut batch.0, offset)
            .with_context(|| format!("read slot {slot} of {} back", path.display()))?;
        for (record, block) in (0..).zip(batch.0.chunks_exact(BLOCK_BYTES)) {
            ensure!(
                Stamp {
                    nonce,
                    number,
                    record
                }
                .is_on(block),
                "slot {slot} does not hold record {record} of commit {number}, of {commits} \
                 reported"
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn committed(slots: u64, commits: u64) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("commit");
        make_commit_file(&path, slots).unwrap();
        let file = open_direct(&path, true).unwrap();
        let mut batch = Batch::zeroed();
        for number in 0..commits {
            stamp_batch(9, number, &mut batch);
            file.write_all_at(&batch.0, number % slots * BATCH_BYTES as u64)
                .unwrap();
        }
        (dir, path)
    }

    #[test]
    fn every_block_of_the_read_file_names_itself() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("read");
        let blocks = (CHUNK_BYTES / BLOCK_BYTES) as u64 + 3;
        make_read_file(&path, blocks).unwrap();
        assert_eq!(path.metadata().unwrap().len(), blocks * BLOCK_BYTES as u64);
        let file = open_direct(&path, false).unwrap();
        let mut content = Block::zeroed();
        for block in 0..blocks {
            file.read_exact_at(&mut content.0, block * BLOCK_BYTES as u64)
                .unwrap();
            check_block(block, &content).unwrap();
            assert!(check_block(block + 1, &content).is_err());
        }
    }

    #[test]
    fn a_block_whose_tail_is_of_another_is_torn() {
        let mut content = Block::zeroed();
        Stamp {
            nonce: READ_FILE,
            number: 4,
            record: 0,
        }
        .put(&mut content.0);
        check_block(4, &content).unwrap();
        content.0[BLOCK_BYTES - 1] ^= 1;
        assert!(check_block(4, &content).is_err());
    }

    #[test]
    fn slots_hold_the_last_commit_of_each_turn() {
        for commits in [0, 1, 3, 4, 5, 11] {
            let (_dir, path) = committed(4, commits);
            check_commits(&path, 4, 9, commits).unwrap();
        }
    }

    #[test]
    fn a_commit_reported_but_not_written_is_seen() {
        let (_dir, path) = committed(4, 6);
        assert!(check_commits(&path, 4, 9, 7).is_err());
        assert!(check_commits(&path, 4, 8, 6).is_err());
    }

    #[test]
    fn one_stale_record_is_seen() {
        let (_dir, path) = committed(2, 2);
        let file = open_direct(&path, true).unwrap();
        file.write_all_at(&Block::zeroed().0, (BATCH_BYTES + 5 * BLOCK_BYTES) as u64)
            .unwrap();
        let error = check_commits(&path, 2, 9, 2).unwrap_err().to_string();
        assert!(
            error.contains("slot 1") && error.contains("record 5"),
            "{error}"
        );
    }
}
