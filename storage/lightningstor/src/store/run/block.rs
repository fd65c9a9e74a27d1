//! A block of a run: slots in order, found by binary search.
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 4 | number of slots, at least 1 |
//! | 4 | 4 each | offset of each slot |
//! | | | slots: u16 key length, u64 bucket, u64 version, key, u8 kind, entry |
//!
//! Kind 0 is nothing, which hides older runs, and has no entry; 1 is an object. The offsets come
//! first and are checked once, so that a slot is reached without reading those before it.

use std::cmp::Reverse;
use std::ops::Range;
use std::rc::Rc;

use crate::store::bytes::{Decode, Malformed, Reader, Writer};
use crate::store::index::Rank;
use crate::store::types::BucketId;

const GONE: u8 = 0;
const OBJECT: u8 = 1;
/// Bytes of a slot before its key.
const SLOT_HEAD: usize = 18;

/// Gathers slots into a block.
#[derive(Debug, Default)]
pub(in crate::store) struct BlockBuilder {
    ends: Vec<u32>,
    slots: Vec<u8>,
}

impl BlockBuilder {
    /// Bytes of the block so far.
    pub(super) fn len(&self) -> usize {
        4 + 4 * self.ends.len() + self.slots.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Adds a slot, which lies behind all others; `None` is nothing.
    pub(in crate::store) fn push(&mut self, rank: Rank<'_>, entry: Option<&[u8]>) {
        let (bucket, key, Reverse(version)) = rank;
        let mut out = Writer {
            bytes: std::mem::take(&mut self.slots),
        };
        out.u16(key.len() as u16);
        out.u64(bucket.0);
        out.u64(version);
        out.raw(key);
        match entry {
            None => out.u8(GONE),
            Some(entry) => {
                out.u8(OBJECT);
                out.raw(entry);
            }
        }
        self.slots = out.bytes;
        self.ends.push(self.slots.len() as u32);
    }

    /// Appends the block and begins the next.
    pub(in crate::store) fn finish(&mut self, to: &mut Vec<u8>) {
        let mut out = Writer {
            bytes: std::mem::take(to),
        };
        out.u32(self.ends.len() as u32);
        let base = 4 + 4 * self.ends.len() as u32;
        let mut begin = 0;
        for end in self.ends.drain(..) {
            out.u32(base + begin);
            begin = end;
        }
        out.raw(&self.slots);
        self.slots.clear();
        *to = out.bytes;
    }
}

/// A slot of a block, its name at hand.
#[derive(Clone, Debug)]
pub(in crate::store) struct BlockSlot {
    block: Rc<Block>,
    number: usize,
    bucket: BucketId,
    key: Range<usize>,
    version: u64,
}

impl BlockSlot {
    pub(in crate::store) fn rank(&self) -> Rank<'_> {
        let key = &self.block.bytes[self.key.clone()];
        (self.bucket, key, Reverse(self.version))
    }

    pub(in crate::store) fn entry(&self) -> Option<&[u8]> {
        self.block.entry(self.number)
    }

    /// The one behind it; `None` when it is the block's last.
    pub(in crate::store) fn next(self) -> Option<BlockSlot> {
        let number = self.number + 1;
        if number >= self.block.count {
            return None;
        }
        let (bucket, key, version) = self.block.name(number);
        Some(BlockSlot {
            number,
            bucket,
            key,
            version,
            ..self
        })
    }
}

/// A block that was read.
#[derive(Debug)]
pub(in crate::store) struct Block {
    bytes: Box<[u8]>,
    count: usize,
}

impl Block {
    /// Takes a block's bytes; every slot of it can be reached afterwards. Their order is the
    /// writer's, which a CRC vouches for.
    pub(in crate::store) fn parse(bytes: Box<[u8]>) -> Decode<Block> {
        let mut from = Reader::new(&bytes);
        let none = from.bad("slots");
        let count = from.count(4 + SLOT_HEAD + 1, "slots")?;
        if count == 0 {
            return Err(none);
        }
        let block = Block { bytes, count };
        let mut least = 4 + 4 * count;
        for number in 0..count {
            let at = block.offset(number);
            let bad = Malformed {
                what: "slot",
                at: 4 + 4 * number,
            };
            // The next slot, or the end, bounds this one.
            let end = block.end(number);
            if at != least || end > block.bytes.len() || at + SLOT_HEAD >= end {
                return Err(bad);
            }
            let key_len = usize::from(u16::from_le_bytes([block.bytes[at], block.bytes[at + 1]]));
            let kind_at = at + SLOT_HEAD + key_len;
            let fits = kind_at < end;
            let whole = fits
                && match block.bytes[kind_at] {
                    GONE => kind_at + 1 == end,
                    OBJECT => true,
                    _ => false,
                };
            if !whole {
                return Err(bad);
            }
            least = end;
        }
        Ok(block)
    }

    /// Number of slots.
    pub(in crate::store) fn len(&self) -> usize {
        self.count
    }

    /// Memory that it takes, about.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    fn offset(&self, number: usize) -> usize {
        let at = 4 + 4 * number;
        let mut offset = [0; 4];
        offset.copy_from_slice(&self.bytes[at..at + 4]);
        u32::from_le_bytes(offset) as usize
    }

    fn end(&self, number: usize) -> usize {
        if number + 1 < self.count {
            self.offset(number + 1)
        } else {
            self.bytes.len()
        }
    }

    fn u64_at(&self, at: usize) -> u64 {
        let mut value = [0; 8];
        value.copy_from_slice(&self.bytes[at..at + 8]);
        u64::from_le_bytes(value)
    }

    /// Where a slot's key lies in the block, with the rest of its name.
    fn name(&self, number: usize) -> (BucketId, Range<usize>, u64) {
        let at = self.offset(number);
        let key_len = usize::from(u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]]));
        let key = at + SLOT_HEAD;
        (
            BucketId(self.u64_at(at + 2)),
            key..key + key_len,
            self.u64_at(at + 10),
        )
    }

    /// The name of a slot.
    pub(in crate::store) fn rank(&self, number: usize) -> Rank<'_> {
        let (bucket, key, version) = self.name(number);
        (bucket, &self.bytes[key], Reverse(version))
    }

    /// A slot that stands for itself.
    pub(in crate::store) fn slot(self: &Rc<Self>, number: usize) -> BlockSlot {
        let (bucket, key, version) = self.name(number);
        BlockSlot {
            block: Rc::clone(self),
            number,
            bucket,
            key,
            version,
        }
    }

    /// What a slot holds: an entry's bytes, or nothing.
    pub(in crate::store) fn entry(&self, number: usize) -> Option<&[u8]> {
        let at = self.offset(number);
        let key_len = usize::from(u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]]));
        let kind_at = at + SLOT_HEAD + key_len;
        let entry = &self.bytes[kind_at + 1..self.end(number)];
        (self.bytes[kind_at] == OBJECT).then_some(entry)
    }

    /// The first slot for which `is_past` is false; slots before it are all past.
    pub(in crate::store) fn first(&self, is_past: impl Fn(Rank<'_>) -> bool) -> usize {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low.midpoint(high);
            if is_past(self.rank(middle)) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// The slot of a name.
    pub(in crate::store) fn find(&self, rank: Rank<'_>) -> Option<usize> {
        let number = self.first(|other| other < rank);
        (number < self.count && self.rank(number) == rank).then_some(number)
    }
}
