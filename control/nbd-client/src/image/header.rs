//! The head of a qcow2 image: what must hold before anything is read by its words.
//!
//! | bytes (big-endian) | what |
//! | --- | --- |
//! | 0..4, 4..8 | `QFI\xfb`, version 2 or 3 |
//! | 8..16, 16..20 | where the backing file's name is, and its length |
//! | 20..24 | binary logarithm of a cluster's bytes |
//! | 24..32 | bytes of the disk |
//! | 32..36 | how it is encrypted, 0: not |
//! | 36..40, 40..48 | entries of the L1 table, and where it is |
//! | 48..56, 56..60 | where the refcount table is, and its clusters |
//! | 72..80 | of version 3: features that a reader must know |

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::ImageError;

const MAGIC: [u8; 4] = *b"QFI\xfb";
const HEAD_BYTES: usize = 80;
/// Clusters of 512 bytes to 2 MiB.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// Most bytes of the L1 table and of the refcount table, as QEMU has them.
const L1_BYTES_MAX: u64 = 32 << 20;
const REFCOUNTS_BYTES_MAX: u64 = 8 << 20;

/// Features of version 3: the lazy refcounts are stale, which no reader minds, and the image is damaged.
const DIRTY: u64 = 1;
const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA: u64 = 1 << 2;

/// What is known of an image whose head is sound.
#[derive(Clone, Debug)]
pub(super) struct Qcow2Header {
    /// Size of the disk.
    pub(super) bytes: u64,
    pub(super) has_backing: bool,
    pub(super) cluster_bits: u32,
    /// Where the L1 table is; empty for an empty disk.
    pub(super) l1: Range<u64>,
    /// Where the head and the tables are: no data lies there.
    pub(super) metadata: Vec<Range<u64>>,
}

impl Qcow2Header {
    /// Bytes of a cluster.
    pub(super) fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Reads the head of a file of so many bytes; `None` when it is no qcow2.
    ///
    /// # Errors
    /// When it is one, and not sound.
    pub(super) fn read(
        path: &Path,
        file: &File,
        file_bytes: u64,
    ) -> Result<Option<Qcow2Header>, ImageError> {
        let mut head = [0; HEAD_BYTES];
        let there = file_bytes.min(HEAD_BYTES as u64) as usize;
        let read = file.read_exact_at(&mut head[..there], 0);
        read.map_err(|e| ImageError::file(path, "reading", 0, e))?;
        if head[..4] != MAGIC {
            return Ok(None);
        }
        let checked = check(&head, file_bytes);
        let wrong = |(offset, why): (u64, &str)| ImageError::image(path, offset, why);
        checked.map(Some).map_err(wrong)
    }
}

fn u32_at(head: &[u8; HEAD_BYTES], at: usize) -> u32 {
    let bytes = [head[at], head[at + 1], head[at + 2], head[at + 3]];
    u32::from_be_bytes(bytes)
}

fn u64_at(head: &[u8; HEAD_BYTES], at: usize) -> u64 {
    u64::from(u32_at(head, at)) << 32 | u64::from(u32_at(head, at + 4))
}

/// # Errors
/// Where in the head something is wrong, and what.
fn check(head: &[u8; HEAD_BYTES], file_bytes: u64) -> Result<Qcow2Header, (u64, &'static str)> {
    let version = u32_at(head, 4);
    if !(2..=3).contains(&version) {
        return Err((4, "it is a qcow2 of a version that is not known"));
    }
    let cluster_bits = u32_at(head, 20);
    if !CLUSTER_BITS.contains(&cluster_bits) {
        return Err((20, "its clusters have a size that is not allowed"));
    }
    if u32_at(head, 32) != 0 {
        return Err((32, "it is encrypted, which is not supported"));
    }
    if version == 3 {
        features(u64_at(head, 72))?;
    }
    let cluster = 1_u64 << cluster_bits;
    let bytes = u64_at(head, 24);
    if !bytes.is_multiple_of(512) {
        return Err((24, "its disk has no whole number of sectors"));
    }
    let table = |at: u64, len: u64, most: u64| {
        let end = at.checked_add(len)?;
        let sound = len <= most && at >= cluster && at.is_multiple_of(cluster);
        (sound && end <= file_bytes).then_some(at..end)
    };
    let l1_entries = u64::from(u32_at(head, 36));
    // An entry stands for a cluster of entries of eight bytes.
    let mapped_by_entry = u128::from(cluster) * u128::from(cluster / 8);
    if u128::from(bytes) > u128::from(l1_entries) * mapped_by_entry {
        return Err((36, "its L1 table is too short for its size"));
    }
    let mut metadata = Vec::from([Range {
        start: 0,
        end: cluster,
    }]);
    let mut l1 = 0..0;
    if l1_entries > 0 {
        let found = table(u64_at(head, 40), l1_entries * 8, L1_BYTES_MAX);
        l1 = found.ok_or((40, "its L1 table is not inside of the file, or too long"))?;
        metadata.push(l1.clone());
    }
    let refcounts = u64::from(u32_at(head, 56)).saturating_mul(cluster);
    let refcounts = table(u64_at(head, 48), refcounts, REFCOUNTS_BYTES_MAX);
    metadata.push(refcounts.ok_or((48, "its refcount table is not inside of the file"))?);
    Ok(Qcow2Header {
        bytes,
        has_backing: u64_at(head, 8) != 0,
        cluster_bits,
        l1,
        metadata,
    })
}

fn features(incompatible: u64) -> Result<(), (u64, &'static str)> {
    if incompatible & CORRUPT != 0 {
        return Err((72, "it is marked as damaged: repair it with qemu-img check"));
    }
    if incompatible & EXTERNAL_DATA != 0 {
        return Err((72, "its data is in another file, which is not supported"));
    }
    if incompatible & !DIRTY != 0 {
        return Err((72, "it has features that are not supported"));
    }
    if incompatible & DIRTY != 0 {
        return Err((
            72,
            "it was not closed: repair it with qemu-img check -r all",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A head as qemu-img makes it for a disk of 1 GiB.
    fn sound() -> [u8; HEAD_BYTES] {
        let mut head = [0; HEAD_BYTES];
        head[..4].copy_from_slice(&MAGIC);
        for (at, value) in [(4, 3), (20, 16), (36, 2), (56, 1)] {
            head[at..at + 4].copy_from_slice(&u32::to_be_bytes(value));
        }
        for (at, value) in [(24, 1 << 30), (40, 0x3_0000), (48, 0x1_0000)] {
            head[at..at + 8].copy_from_slice(&u64::to_be_bytes(value));
        }
        head
    }

    const FILE: u64 = 0x4_0000;

    #[test]
    fn a_sound_head_is_taken() {
        let header = check(&sound(), FILE).expect("sound");
        assert_eq!((header.bytes, header.has_backing), (1 << 30, false));
        let metadata = [0..0x1_0000, 0x3_0000..0x3_0010, 0x1_0000..0x2_0000];
        assert_eq!(header.metadata, metadata);
    }

    #[test]
    fn lies_are_found_where_they_stand() {
        let word = |at: usize, value: u32| (at, value.to_be_bytes().to_vec());
        let long = |at: usize, value: u64| (at, value.to_be_bytes().to_vec());
        for ((at, bytes), found) in [
            (word(4, 1), 4),
            (word(4, 4), 4),
            (word(20, 8), 20),
            (word(20, 63), 20),
            (long(24, u64::MAX - 511), 36),
            (long(24, (1 << 30) + 1), 24),
            (word(32, 1), 32),
            (word(36, 1), 36),
            (word(36, u32::MAX), 40),
            (long(40, 0), 40),
            (long(40, 0x3_0008), 40),
            (long(40, u64::MAX - 7), 40),
            (long(40, FILE), 40),
            (long(48, 0), 48),
            (word(56, u32::MAX), 48),
            (long(72, 1), 72),
            (long(72, 2), 72),
            (long(72, 4), 72),
            (long(72, 1 << 63), 72),
        ] {
            let mut head = sound();
            head[at..at + bytes.len()].copy_from_slice(&bytes);
            let (offset, _) = check(&head, FILE).expect_err("a lie");
            assert_eq!(offset, found, "{bytes:?} at {at}");
        }
    }
}
