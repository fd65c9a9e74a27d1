//! The tables of a qcow2 image, walked once before its disk is read: each of them and all data must lie in
//! the file. A reader takes what is behind a file's end for zeros, and an image that was cut short would
//! be imported as one with holes.
//!
//! Each L2 table is read once, and none is named twice, so that this reads no more than the file has.
//!
//! | bits of an L2 entry | what |
//! | --- | --- |
//! | 62 | the cluster is compressed |
//! | 0 | of others: it reads as zeros |
//! | 9..=55 | of others: where it is, 0 for nowhere |

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::ImageError;
use super::header::Qcow2Header;

const OFFSET: u64 = 0x00FF_FFFF_FFFF_FE00;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;
const SECTOR: u64 = 512;

/// # Errors
/// [`ImageError::Image`] for the first entry that lies, and [`ImageError::File`].
pub(super) fn check(
    path: &Path,
    file: &File,
    file_bytes: u64,
    header: &Qcow2Header,
) -> Result<(), ImageError> {
    let walk = Walk {
        path,
        file,
        file_bytes,
        header,
    };
    let l1 = walk.words(header.l1.clone())?;
    let mut tables = Vec::new();
    for (index, entry) in l1.iter().enumerate() {
        let at = header.l1.start + 8 * index as u64;
        let table = entry & OFFSET;
        if table != 0 {
            walk.cluster(at, table, header.cluster())?;
            tables.push((table, index as u64));
        }
    }
    tables.sort_unstable();
    if let Some(twice) = tables.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        let at = header.l1.start + 8 * twice[1].1;
        return Err(walk.lie(at, "two entries name the same L2 table"));
    }
    for (table, index) in tables {
        walk.table(table, index)?;
    }
    Ok(())
}

struct Walk<'a> {
    path: &'a Path,
    file: &'a File,
    file_bytes: u64,
    header: &'a Qcow2Header,
}

impl Walk<'_> {
    fn lie(&self, at: u64, why: &str) -> ImageError {
        ImageError::image(self.path, at, why)
    }

    fn words(&self, place: Range<u64>) -> Result<Vec<u64>, ImageError> {
        let mut bytes = vec![0; (place.end - place.start) as usize];
        let read = self.file.read_exact_at(&mut bytes, place.start);
        read.map_err(|e| ImageError::file(self.path, "reading a table", place.start, e))?;
        let (words, _) = bytes.as_chunks();
        Ok(words.iter().map(|word| u64::from_be_bytes(*word)).collect())
    }

    /// Checks where `len` bytes of a cluster lie, which an entry at `at` names.
    fn cluster(&self, at: u64, place: u64, len: u64) -> Result<(), ImageError> {
        if !place.is_multiple_of(self.header.cluster()) {
            return Err(self.lie(at, "it names what is not at a cluster"));
        }
        if place + len > self.file_bytes {
            return Err(self.lie(at, "it names what is behind the file's end"));
        }
        let overlaps = |own: &Range<u64>| place < own.end && own.start < place + len;
        if self.header.metadata.iter().any(overlaps) {
            return Err(self.lie(at, "it names the image's own tables"));
        }
        Ok(())
    }

    /// Checks the L2 table of an entry of the L1 table.
    fn table(&self, table: u64, index: u64) -> Result<(), ImageError> {
        let cluster = self.header.cluster();
        let disk = index * (cluster / 8) * cluster;
        let entries = self.words(table..table + cluster)?;
        for (slot, entry) in entries.into_iter().enumerate() {
            let at = table + 8 * slot as u64;
            let disk = disk + slot as u64 * cluster;
            if disk >= self.header.bytes {
                break;
            }
            let place = entry & OFFSET;
            if entry & COMPRESSED != 0 {
                self.compressed(at, entry)?;
            } else if place != 0 && entry & ZERO == 0 {
                // The last cluster of the file may end where the disk does.
                self.cluster(at, place, cluster.min(self.header.bytes - disk))?;
            }
        }
        Ok(())
    }

    /// Its length is told in sectors, the first of which it begins in: the last one begins in the file.
    fn compressed(&self, at: u64, entry: u64) -> Result<(), ImageError> {
        let place_bits = 62 - (self.header.cluster_bits - 8);
        let place = entry & ((1 << place_bits) - 1);
        let more_sectors = (entry & (COMPRESSED - 1)) >> place_bits;
        let last = place - place % SECTOR + more_sectors * SECTOR;
        if place == 0 || last >= self.file_bytes {
            return Err(self.lie(at, "it names compressed data behind the file's end"));
        }
        Ok(())
    }
}
