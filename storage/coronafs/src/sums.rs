//! Checksums of blocks: CRC32C of the 4 KiB as they lie on disk, so of what is encrypted. Sans-IO;
//! `sums::file` keeps them by the place of the block in the data file.
//!
//! The file `sums` has a sector of 512 bytes for each seven clusters of `data`, in order:
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 4 | CRC32C of the rest |
//! | 4 | 4 | magic `UCs1` |
//! | 8 | 4 | partition |
//! | 12 | 4 | number of the sector |
//! | 16 | 14 | of each cluster, u16: the blocks whose checksum is there |
//! | 30 | 2 | zero |
//! | 32 | 448 | of each cluster, 16 u32: checksums |
//! | 480 | 32 | zero |
//!
//! A sector of zeros holds none. It is whole or not changed after a power cut, as sectors are, and says
//! itself whether it is damaged; so a damaged sector is not taken for seven damaged clusters.

pub(crate) mod file;
pub(crate) mod places;
#[cfg(test)]
mod tests;

use segment_log::bytes::{Decode, Malformed, Reader, Writer};

use crate::map::{BLOCK, BLOCKS};

const MAGIC: [u8; 4] = *b"UCs1";
pub(crate) const SECTOR_BYTES: usize = 512;
/// Clusters of a sector.
pub(crate) const SECTOR_CLUSTERS: usize = 7;
/// Bytes of a sector that are zero at its end.
const SPARE_BYTES: usize = 32;

const _: () = assert!(
    32 + SECTOR_CLUSTERS * BLOCKS as usize * 4 + SPARE_BYTES == SECTOR_BYTES,
    "a sector is full"
);

/// Checksums of some blocks of a cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct BlockSums {
    known: u16,
    sums: [u32; BLOCKS as usize],
}

/// The checksum of a block.
pub(crate) fn sum_of(block: &[u8]) -> u32 {
    assert_eq!(block.len() as u64, BLOCK, "a checksum is of a whole block");
    crc_fast::crc32_iscsi(block)
}

impl BlockSums {
    /// Of no block.
    pub(crate) const NONE: BlockSums = BlockSums {
        known: 0,
        sums: [0; BLOCKS as usize],
    };

    /// The blocks that it has one of.
    pub(crate) fn known(&self) -> u16 {
        self.known
    }

    pub(crate) fn get(&self, block: u32) -> Option<u32> {
        (self.known >> block & 1 == 1).then(|| self.sums[block as usize])
    }

    pub(crate) fn set(&mut self, block: u32, sum: u32) {
        self.known |= 1 << block;
        self.sums[block as usize] = sum;
    }

    /// Those of the blocks of a mask.
    pub(crate) fn only(&self, blocks: u16) -> BlockSums {
        let mut only = BlockSums::default();
        let wanted = |block: &u32| blocks >> block & 1 == 1;
        for block in (0..BLOCKS).filter(wanted) {
            if let Some(sum) = self.get(block) {
                only.set(block, sum);
            }
        }
        only
    }

    /// Takes those of another over, which is newer.
    pub(crate) fn renew(&mut self, newer: &BlockSums) {
        for block in 0..BLOCKS {
            if let Some(sum) = newer.get(block) {
                self.set(block, sum);
            }
        }
    }

    /// Appends a u16 mask and a u32 for each block of it.
    pub(crate) fn put(&self, out: &mut Writer) {
        out.u16(self.known);
        for block in 0..BLOCKS {
            if let Some(sum) = self.get(block) {
                out.u32(sum);
            }
        }
    }

    pub(crate) fn take(from: &mut Reader<'_>) -> Decode<BlockSums> {
        let known = from.u16("blocks of checksums")?;
        let mut sums = BlockSums::default();
        for block in (0..BLOCKS).filter(|block| known >> block & 1 == 1) {
            sums.set(block, from.u32("checksum")?);
        }
        Ok(sums)
    }
}

/// A sector of the file `sums`.
pub(crate) type Sector = [BlockSums; SECTOR_CLUSTERS];

pub(crate) fn put_sector(out: &mut [u8], partition: u16, number: u32, clusters: &[BlockSums]) {
    let mut body = Writer::default();
    body.raw(&MAGIC);
    body.u32(u32::from(partition));
    body.u32(number);
    let cluster = |at: usize| clusters.get(at).copied().unwrap_or_default();
    for at in 0..SECTOR_CLUSTERS {
        body.u16(cluster(at).known);
    }
    body.u16(0);
    for at in 0..SECTOR_CLUSTERS {
        let cluster = cluster(at);
        for block in 0..BLOCKS {
            body.u32(cluster.get(block).unwrap_or(0));
        }
    }
    body.raw(&[0; SPARE_BYTES]);
    out[..4].copy_from_slice(&crc_fast::crc32_iscsi(&body.bytes).to_le_bytes());
    out[4..].copy_from_slice(&body.bytes);
}

/// # Errors
/// When it is damaged, or another one.
pub(crate) fn take_sector(bytes: &[u8], partition: u16, number: u32) -> Decode<Sector> {
    let mut sector = Sector::default();
    if bytes.iter().all(|byte| *byte == 0) {
        return Ok(sector);
    }
    let mut from = Reader::new(bytes);
    let damaged = |what| Malformed { what, at: 0 };
    let crc = from.u32("sector")?;
    if bytes.len() != SECTOR_BYTES || crc_fast::crc32_iscsi(&bytes[4..]) != crc {
        return Err(damaged("sector of checksums"));
    }
    let head = (
        from.raw(4, "magic")?,
        from.u32("partition")?,
        from.u32("number")?,
    );
    if head != (&MAGIC[..], u32::from(partition), number) {
        return Err(damaged("place of a sector of checksums"));
    }
    let mut known = [0; SECTOR_CLUSTERS];
    for known in &mut known {
        *known = from.u16("blocks of checksums")?;
    }
    from.u16("zero")?;
    for (cluster, known) in sector.iter_mut().zip(known) {
        for block in 0..BLOCKS {
            let sum = from.u32("checksum")?;
            if known >> block & 1 == 1 {
                cluster.set(block, sum);
            }
        }
    }
    Ok(sector)
}
