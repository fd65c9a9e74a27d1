//! A run: an immutable sorted piece of the index on disk. Sans-IO; `run::file` writes and reads it.
//!
//! A file is blocks, a Bloom filter, the table of blocks and a foot, each at a multiple of 4 KiB.
//! Every run is two files with the same bytes: what has rotted in one is read from the other.
//!
//! Table: u32 count; for each block u32 offset in units of 4 KiB, u32 length, u64 CRC-64/NVME of
//! its bytes, and the first name {u64 bucket, u64 version, key}.
//!
//! | offset | bytes | field of the foot, the file's last 4 KiB |
//! | --- | --- | --- |
//! | 0 | 4 | magic `UCrn` |
//! | 4 | 4 | format version, 1 |
//! | 8 | 8 | number of the run |
//! | 16 | 4 | partition |
//! | 20 | 4 | zero |
//! | 24 | 8 | slots |
//! | 32 | 20 | Bloom filter: u64 offset, u32 length, u64 CRC-64/NVME |
//! | 52 | 20 | table of blocks: the same |
//! | 72 | 8 | CRC-64/NVME over bytes 0 to 72 |

mod block;
mod bloom;
mod cache;
mod file;
#[cfg(fuzzing)]
pub mod fuzzing;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;

pub(in crate::store) use self::block::{Block, BlockBuilder, BlockSlot};
pub(in crate::store) use self::bloom::{Bloom, hash_of};
pub(in crate::store) use self::cache::BlockCache;
#[cfg(test)]
pub(in crate::store) use self::file::path_of;
pub(in crate::store) use self::file::{Run, RunWriter, number_of, remove};
use super::bytes::{Decode, Reader, Writer};
use super::index::Rank;
use super::types::{BucketId, Version};

const MAGIC: [u8; 4] = *b"UCrn";
const FORMAT: u32 = 1;
/// Everything in a file begins at a multiple of this.
const ALIGN: usize = 4096;
/// Bytes of the foot that mean something.
const FOOT_BYTES: usize = 80;
/// Bytes of slots after which a block ends.
const BLOCK_BYTES: usize = 16 << 10;
/// Blocks of an encoded piece of the table.
const PIECE_BLOCKS: usize = 256;

/// A run as a checkpoint names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) struct RunRef {
    /// Given once, never reused; of two runs of a level the higher is the newer.
    pub(in crate::store) number: u64,
    /// How often its slots were merged; a run of a lower level is newer.
    pub(in crate::store) level: u8,
}

/// Where a block lies, what it must look like, and its first name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BlockMeta {
    offset: u32,
    len: u32,
    crc: u64,
    bucket: BucketId,
    version: Version,
    key: Box<[u8]>,
}

impl BlockMeta {
    fn rank(&self) -> Rank<'_> {
        (self.bucket, &self.key, Reverse(self.version.0))
    }

    fn offset(&self) -> u64 {
        u64::from(self.offset) * ALIGN as u64
    }

    fn end(&self) -> u64 {
        self.offset() + u64::from(self.len)
    }
}

/// A checked range of the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Section {
    offset: u64,
    len: u32,
    crc: u64,
}

/// The foot of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Foot {
    number: u64,
    partition: u32,
    slots: u64,
    bloom: Section,
    table: Section,
}

impl Foot {
    fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.raw(&MAGIC);
        out.u32(FORMAT);
        out.u64(self.number);
        out.u32(self.partition);
        out.u32(0);
        out.u64(self.slots);
        for section in [&self.bloom, &self.table] {
            out.u64(section.offset);
            out.u32(section.len);
            out.u64(section.crc);
        }
        let crc = crc_fast::crc64_nvme(&out.bytes);
        out.u64(crc);
        out.bytes
    }

    fn decode(bytes: &[u8]) -> Decode<Foot> {
        let mut from = Reader::new(bytes);
        let whole = from.clone().raw(FOOT_BYTES, "foot")?;
        if from.raw(4, "foot magic")? != MAGIC {
            return Err(from.bad("foot magic"));
        }
        if from.u32("format version")? != FORMAT {
            return Err(from.bad("format version"));
        }
        let number = from.u64("run number")?;
        let partition = from.u32("partition")?;
        from.u32("zero")?;
        let slots = from.u64("slots")?;
        let mut section = |what| -> Decode<Section> {
            Ok(Section {
                offset: from.u64(what)?,
                len: from.u32(what)?,
                crc: from.u64(what)?,
            })
        };
        let (bloom, table) = (section("Bloom filter")?, section("table")?);
        let bad = from.bad("foot CRC");
        if from.u64("foot CRC")? != crc_fast::crc64_nvme(&whole[..FOOT_BYTES - 8]) {
            return Err(bad);
        }
        Ok(Foot {
            number,
            partition,
            slots,
            bloom,
            table,
        })
    }
}

/// The table's bytes, in pieces.
fn encode_table(blocks: &[BlockMeta]) -> impl Iterator<Item = Vec<u8>> + '_ {
    let count = (blocks.len() as u32).to_le_bytes().to_vec();
    let pieces = blocks.chunks(PIECE_BLOCKS).map(|piece| {
        let mut out = Writer::default();
        for block in piece {
            out.u32(block.offset);
            out.u32(block.len);
            out.u64(block.crc);
            out.u64(block.bucket.0);
            out.u64(block.version.0);
            out.u32(block.key.len() as u32);
            out.raw(&block.key);
        }
        out.bytes
    });
    std::iter::once(count).chain(pieces)
}

/// The blocks of a file, which lie one behind the other and end before `limit`.
fn decode_table(bytes: &[u8], limit: u64) -> Decode<Vec<BlockMeta>> {
    let mut from = Reader::new(bytes);
    let none = from.bad("blocks");
    let count = from.count(36, "blocks")?;
    if count == 0 {
        return Err(none);
    }
    let mut blocks: Vec<BlockMeta> = Vec::with_capacity(count);
    for _ in 0..count {
        let bad = from.bad("block order");
        let (offset, len) = (from.u32("block offset")?, from.u32("block length")?);
        let crc = from.u64("block CRC")?;
        let (bucket, version) = (from.u64("bucket")?, from.u64("version")?);
        let key_len = from.u32("key length")? as usize;
        let block = BlockMeta {
            offset,
            len,
            crc,
            bucket: BucketId(bucket),
            version: Version(version),
            key: from.raw(key_len, "key")?.into(),
        };
        let follows = blocks
            .last()
            .is_none_or(|last| last.rank() < block.rank() && last.end() <= block.offset());
        if !follows || len == 0 || block.end() > limit {
            return Err(bad);
        }
        blocks.push(block);
    }
    from.end("table")?;
    Ok(blocks)
}
