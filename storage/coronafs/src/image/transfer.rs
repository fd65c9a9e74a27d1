//! Reading and changing a volume that is being filled.

use std::rc::Rc;

use engine::{GuestList, SchedGroup};
use futures_util::future::join_all;
use shards::block::Extent;

use super::Filling;
use super::fill::Chunk;
use crate::attach::Attachment;
use crate::error::VolumeError;
use crate::map::{BLOCK, BLOCKS, CLUSTER, ZEROS, slot_of};
use crate::volume::Volume;

/// Chunks that a read has at once.
const CHUNKS_MAX: u64 = 4;
/// Clusters that an answer about extents looks at.
const EXTENT_CLUSTERS: usize = 1024;

/// Chunks with their numbers.
type Chunks = Vec<(u64, Chunk)>;

impl Attachment {
    /// Reads a range of which some may not be there yet.
    pub(crate) async fn read_filling(
        &self,
        filling: &Rc<Filling>,
        offset: u64,
        into: &GuestList,
    ) -> Result<(), VolumeError> {
        let end = offset + into.len();
        let step = filling.chunk_bytes * CHUNKS_MAX;
        let mut at = offset;
        while at < end {
            let part_end = end.min((at / step + 1) * step);
            let chunks = self.fetch_range(filling, at, part_end).await?;
            filling.check()?;
            let part = into.slice(at - offset..part_end - offset);
            match chunks.iter().find(|(_, chunk)| chunk.filled.is_err()) {
                None => self.read_known(at, part).await?,
                // What the volume cannot take now can be read all the same.
                Some(_) => self.read_beside(filling, &chunks, at, &part).await?,
            }
            at = part_end;
        }
        Ok(())
    }

    /// Fetches the chunks of a range that has blocks to be filled.
    async fn fetch_range(
        &self,
        filling: &Rc<Filling>,
        start: u64,
        end: u64,
    ) -> Result<Chunks, VolumeError> {
        filling.check()?;
        let end = end.min(filling.end());
        if start >= end {
            return Ok(Vec::new());
        }
        let mut flights = Vec::new();
        for chunk in start / filling.chunk_bytes..end.div_ceil(filling.chunk_bytes) {
            let base = chunk * filling.chunk_bytes;
            let (from, to) = (start.max(base), end.min(base + filling.chunk_bytes));
            if filling.has_absent(&self.volume, from, to) {
                let group = SchedGroup::FOREGROUND;
                let flight = filling.fetch(&self.inner, &self.volume, chunk, group)?;
                flights.push(async move { Ok((chunk, flight.wait().await?)) });
            }
        }
        join_all(flights).await.into_iter().collect()
    }

    /// Reads block by block what is there, and what is not from the chunks that were fetched.
    async fn read_beside(
        &self,
        filling: &Filling,
        chunks: &Chunks,
        offset: u64,
        into: &GuestList,
    ) -> Result<(), VolumeError> {
        let end = offset + into.len();
        let mut at = offset;
        while at < end {
            let next = end.min((at / BLOCK + 1) * BLOCK);
            let part = into.slice(at - offset..next - offset);
            if filling.has_absent(&self.volume, at, next) {
                let number = at / filling.chunk_bytes;
                let found = chunks.iter().find(|(chunk, _)| *chunk == number);
                let Some((_, chunk)) = found else {
                    unreachable!("a block without a piece had none before, and was fetched")
                };
                let within = (at % filling.chunk_bytes) as usize;
                let bytes = &chunk.bytes[within..within + (next - at) as usize];
                part.copy_in(0, bytes).map_err(|e| {
                    VolumeError::Internal(format!("the memory of a read is not usable: {e}"))
                })?;
            } else {
                self.read_known(at, part).await?;
            }
            at = next;
        }
        Ok(())
    }

    /// Before a range is changed: the blocks that it covers in part are there, so that what they hold can be
    /// kept, and the volume has not failed.
    pub(crate) async fn before_change(&self, offset: u64, len: u64) -> Result<(), VolumeError> {
        let Some(filling) = self.volume.filling() else {
            return Ok(());
        };
        filling.check()?;
        let end = offset + len;
        for cut in [offset, end] {
            let block = cut / BLOCK * BLOCK;
            if block != cut {
                for (_, chunk) in self.fetch_range(&filling, block, block + BLOCK).await? {
                    chunk.filled?;
                }
            }
        }
        filling.check()
    }
}

impl Volume {
    /// The next slot from this one on in which a discard has something to do: one that has data, or, as
    /// long as the image is needed, may come to have some.
    pub(crate) fn next_to_unmap(&self, from: u64) -> u64 {
        let of_image = self
            .filling
            .borrow()
            .as_ref()
            .map_or(0, |filling| filling.mask(from));
        if of_image != 0 {
            return from;
        }
        let mapped = self.tree.borrow().next_mapped(from);
        mapped.unwrap_or(u64::MAX / CLUSTER)
    }
}

impl Filling {
    /// Whether a range, inside of one chunk, has blocks to be filled.
    fn has_absent(&self, volume: &Volume, start: u64, end: u64) -> bool {
        let tree = volume.tree.borrow();
        (start / CLUSTER..end.div_ceil(CLUSTER)).any(|index| {
            let base = index * CLUSTER;
            let from = start.max(base) - base;
            let to = end.min(base + CLUSTER) - base;
            let asked =
                (from / BLOCK..to.div_ceil(BLOCK)).fold(0_u16, |all, block| all | 1 << block);
            self.absent(&tree, index) & asked != 0
        })
    }

    /// What has data of `bytes` from `offset` on: in the volume, or in the image.
    pub(crate) fn extents_at(
        &self,
        volume: &Volume,
        offset: u64,
        bytes: u64,
        extents: usize,
    ) -> Vec<Extent> {
        let tree = volume.tree.borrow();
        let end = offset + bytes;
        let mut found: Vec<Extent> = Vec::new();
        for index in (offset / CLUSTER..end.div_ceil(CLUSTER)).take(EXTENT_CLUSTERS) {
            let data = tree.leaf(index).map_or(0, |leaf| {
                let pieces = leaf.pieces(slot_of(index));
                let data = pieces.filter(|piece| piece.cluster != ZEROS);
                data.fold(0, |all, piece| all | piece.mask)
            });
            let data = data | self.absent(&tree, index);
            for block in 0..BLOCKS {
                let base = index * CLUSTER + u64::from(block) * BLOCK;
                let (from, to) = (base.max(offset), (base + BLOCK).min(end));
                if from >= to {
                    continue;
                }
                let hole = data >> block & 1 == 0;
                let bytes = to - from;
                let last = found.last_mut().filter(|last| last.hole == hole);
                if let Some(last) = last {
                    last.bytes += bytes;
                } else if found.len() == extents {
                    return found;
                } else {
                    found.push(Extent { bytes, hole });
                }
            }
        }
        found
    }
}
