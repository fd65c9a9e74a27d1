//! Reading and writing a volume whose blocks have checksums.
//!
//! All goes through buffers of ours: what is verified is what the guest gets, and what is written is what
//! the checksum is of, whatever the guest does to its memory meanwhile. Whole blocks are read and written.
//!
//! Invariants:
//! - A write takes places that nothing refers to which a restart, or another read, could find
//!   ([`Volume::writable`]). So a crash leaves what is mapped as it was, with its checksum.
//! - A read that meets a block that is moved and written over meanwhile takes it for damaged; so what
//!   does not match is read again behind the slot's lock, where nobody writes, before anybody is told.
//! - A block that does not match is never moved nor given a new checksum; a write of the whole block
//!   puts another in its place.

use std::ops::Range;

use engine::{DmaBuf, GuestList};
use futures_util::future::{join, join_all};

use crate::attach::Attachment;
use crate::data::{BOUNCE, take_buf};
use crate::error::VolumeError;
use crate::map::{BLOCK, BLOCKS, CLUSTER, Piece, runs};
use crate::partition::Inner;
use crate::scrub::{DamagedBlock, Found};
use crate::sums::{BlockSums, sum_of};
use crate::transfer::{Source, Span, first_error};
use crate::unflushed::Room;
use crate::volume::{Run, Volume};

const BLOCK_BYTES: usize = BLOCK as usize;

/// Where blocks of a slot go.
pub(crate) struct Plan {
    /// Blocks of clusters that the layer owns.
    pub(crate) targets: Vec<Piece>,
    /// The one of them that was taken for it.
    pub(crate) taken: Option<u32>,
    /// What is moved there, too, as the slot lies in too many pieces.
    moves: Vec<Piece>,
}

impl Plan {
    /// All goes to one cluster, which was taken for it or not.
    pub(crate) fn of_one(target: Piece, taken: bool) -> Plan {
        Plan {
            targets: vec![target],
            taken: taken.then_some(target.cluster),
            moves: Vec::new(),
        }
    }

    /// Bytes of buffers that it takes beside what is written: what is moved, a block of what was there, and one
    /// of checksums.
    pub(crate) fn buffers(&self) -> u64 {
        let moved = if self.moves.is_empty() { 0 } else { CLUSTER };
        moved + 2 * BLOCK
    }
}

fn bytes_of(blocks: &Range<u32>) -> u64 {
    blocks.len() as u64 * BLOCK
}

fn place_of(cluster: u32, block: u32) -> u64 {
    u64::from(cluster) * CLUSTER + u64::from(block) * BLOCK
}

/// The first block that is not what was written, with both checksums.
fn first_damaged(bytes: &[u8], expected: &[Option<u32>]) -> Option<(usize, Option<u32>, u32)> {
    let blocks = bytes.chunks(BLOCK_BYTES).zip(expected).enumerate();
    let mut compared = blocks.map(|(at, (block, expected))| (at, *expected, sum_of(block)));
    compared.find(|(_, expected, found)| *expected != Some(*found))
}

impl Attachment {
    pub(crate) async fn read_summed(
        &self,
        offset: u64,
        into: &GuestList,
    ) -> Result<(), VolumeError> {
        let end = (offset + into.len()).next_multiple_of(BLOCK);
        let mut at = offset / BLOCK * BLOCK;
        // The map is looked at once, before the first wait.
        let mut reads = Vec::new();
        while at < end {
            let run = self.volume.run_at(at, (end - at).min(BOUNCE));
            reads.push(self.read_verified(run, at, offset, into));
            at += run.bytes;
        }
        first_error(join_all(reads).await)
    }

    /// Reads a run of whole blocks at `at`, and gives the part of it that is asked for.
    async fn read_verified(
        &self,
        run: Run,
        at: u64,
        offset: u64,
        into: &GuestList,
    ) -> Result<(), VolumeError> {
        let Some(place) = run.place else {
            let asked = asked(at, run.bytes, offset, into);
            let from = asked.start - offset;
            let filled = into.fill_zero(from..from + (asked.end - asked.start));
            return filled.map_err(|e| bad_memory(&e));
        };
        {
            let _right = self.inner.data.bouncing(run.bytes + BLOCK).await?;
            let buf = take_buf(run.bytes).await?;
            let data = self.inner.data.read_buf(buf, place);
            let (read, expected) = join(data, self.inner.sums.at(place, run.bytes)).await;
            let (mut buf, expected) = (read?, expected?);
            if first_damaged(&buf, &expected).is_none() {
                self.decrypt(at, &mut buf);
                return give(&buf, at, offset, into);
            }
        }
        let mut outcome = Ok(());
        for at in (at..at + run.bytes).step_by(BLOCK_BYTES) {
            // In the order of writes: first the lock, then the right to a buffer.
            let _lock = self.volume.locks.lock(at / CLUSTER).await;
            let _right = self.inner.data.bouncing(2 * BLOCK).await?;
            let given = match self.block_of(at).await {
                Ok(buf) => give(&buf, at, offset, into),
                Err(error) => Err(error),
            };
            outcome = outcome.and(given);
        }
        outcome
    }

    fn decrypt(&self, at: u64, buf: &mut DmaBuf) {
        if let Some(coding) = self.coding(at) {
            coding.cipher.decrypt(at, buf);
        }
    }

    /// What a block holds. The caller has its slot's lock and the right to two blocks of buffers, so
    /// that nobody writes it: one that does not match is damaged.
    async fn block_of(&self, at: u64) -> Result<DmaBuf, VolumeError> {
        let mut buf = take_buf(BLOCK).await?;
        let Some(place) = self.volume.run_at(at, BLOCK).place else {
            buf.fill(0);
            return Ok(buf);
        };
        let data = self.inner.data.read_buf(buf, place);
        let (read, expected) = join(data, self.inner.sums.at(place, BLOCK)).await;
        let (mut buf, expected) = (read?, expected?);
        if let Some((_, expected, found)) = first_damaged(&buf, &expected) {
            let damaged = DamagedBlock {
                volume: self.volume.id,
                snapshot: None,
                offset: at,
                expected,
                found: Some(found),
            };
            self.inner.findings.note(Found::Read, &damaged);
            return Err(damaged.error());
        }
        self.decrypt(at, &mut buf);
        Ok(buf)
    }

    /// Writes a range inside of one cluster, and maps it.
    pub(crate) async fn write_summed(
        &self,
        room: &Room<'_>,
        span: Span,
        source: Source<'_>,
    ) -> Result<(), VolumeError> {
        let volume = &self.volume;
        let _lock = volume.locks.lock(span.index).await;
        let mut plan = self.inner.plan(volume, span.index, span.blocks()).await?;
        let wrote = self.write_span_planned(span, &mut plan, source).await;
        let mut space = self.inner.data.space.borrow_mut();
        match &wrote {
            Ok(sums) => volume.map_summed(&mut space, room, span.index, &plan.targets, sums),
            // Nobody has seen it.
            Err(_) => space.end(plan.taken),
        }
        wrote.map(|_| ())
    }

    async fn write_span_planned(
        &self,
        span: Span,
        plan: &mut Plan,
        source: Source<'_>,
    ) -> Result<BlockSums, VolumeError> {
        let start = span.start / BLOCK * BLOCK;
        let bytes = span.end.next_multiple_of(BLOCK) - start;
        let _right = self.inner.data.bouncing(bytes + plan.buffers()).await?;
        let buf = self.filled(span, start, bytes, source).await?;
        self.inner
            .write_planned(plan, (start / BLOCK) as u32, buf)
            .await
    }

    /// What whole blocks hold once a span of them is written, as on disk.
    async fn filled(
        &self,
        span: Span,
        start: u64,
        bytes: u64,
        source: Source<'_>,
    ) -> Result<DmaBuf, VolumeError> {
        let mut buf = take_buf(bytes).await?;
        let (from, to) = ((span.start - start) as usize, (span.end - start) as usize);
        let last = bytes as usize - BLOCK_BYTES;
        let first_kept = from > 0 || to < BLOCK_BYTES;
        let last_kept = to < bytes as usize && (last > 0 || !first_kept);
        for (at, _) in [(0, first_kept), (last, last_kept)]
            .iter()
            .filter(|(_, kept)| *kept)
        {
            let old = self
                .block_of(span.index * CLUSTER + start + *at as u64)
                .await?;
            buf[*at..at + BLOCK_BYTES].copy_from_slice(&old);
        }
        source.copy_out(&mut buf[from..to])?;
        if let Some(coding) = self.coding(span.index * CLUSTER + start) {
            coding.cipher.encrypt(coding.place, &mut buf);
        }
        Ok(buf)
    }
}

impl Inner {
    /// Chooses places for blocks of a slot: in one cluster that the layer has there, or in some, or else in a new
    /// one. The caller has the slot's lock.
    pub(crate) async fn plan(
        &self,
        volume: &Volume,
        index: u64,
        wanted: u16,
    ) -> Result<Plan, VolumeError> {
        let (data, layer) = (&self.data, volume.layer.get());
        let mut pieces = volume.tree.borrow().slot(index);
        pieces.retain(|piece| piece.has_data());
        let (mut targets, mut left) = (Vec::new(), wanted);
        {
            let space = data.space.borrow();
            let owned = pieces
                .iter()
                .filter(|piece| space.owns(layer, piece.cluster));
            let mut ready: Vec<Piece> = owned
                .map(|piece| Piece {
                    cluster: piece.cluster,
                    mask: wanted & volume.writable(index, &pieces, piece.cluster),
                })
                .collect();
            ready.sort_by_key(|place| std::cmp::Reverse(place.mask.count_ones()));
            for place in ready {
                let mask = place.mask & left;
                if mask != 0 {
                    targets.push(Piece { mask, ..place });
                    left &= !mask;
                }
            }
        }
        let mut plan = Plan {
            targets,
            taken: None,
            moves: Vec::new(),
        };
        if left == 0 {
            return Ok(plan);
        }
        let cluster = data.take(volume.place_before(index), layer).await?;
        plan.taken = Some(cluster);
        if pieces.len() < self.config.pieces_max {
            plan.targets.push(Piece {
                cluster,
                mask: left,
            });
            return Ok(plan);
        }
        plan.targets = vec![Piece {
            cluster,
            mask: wanted,
        }];
        plan.moves = pieces;
        for piece in &mut plan.moves {
            piece.mask &= !wanted;
        }
        Ok(plan)
    }

    /// Writes blocks as they are to be on disk to where they are planned, from a buffer that begins with block
    /// `first` of the slot, and has the checksums ready in memory. What was moved is in the plan's target then.
    /// The caller has the right to the buffer and to [`Plan::buffers`].
    ///
    /// # Errors
    /// As [`crate::data::DataFile::write`].
    pub(crate) async fn write_planned(
        &self,
        plan: &mut Plan,
        first: u32,
        buf: DmaBuf,
    ) -> Result<BlockSums, VolumeError> {
        let wanted = plan.targets.iter().fold(0, |all, target| all | target.mask);
        let mut sums = BlockSums::default();
        for (block, bytes) in (first..).zip(buf.chunks(BLOCK_BYTES)) {
            if wanted >> block & 1 == 1 {
                sums.set(block, sum_of(bytes));
            }
        }
        let pages = plan
            .targets
            .iter()
            .map(|target| self.sums.page_to_change(target.cluster));
        let (wrote, pages) = join(
            self.write_targets(buf, first, &plan.targets),
            join_all(pages),
        )
        .await;
        wrote?;
        let pages = pages.into_iter().collect::<Result<Vec<_>, _>>()?;
        if let [target] = &mut plan.targets[..] {
            for piece in &plan.moves {
                let moved = self.move_blocks(*piece, target.cluster).await?;
                target.mask |= moved.known();
                sums.renew(&moved);
            }
        }
        for (target, page) in plan.targets.iter().zip(pages) {
            self.sums
                .put(&page, target.cluster, &sums.only(target.mask));
        }
        Ok(sums)
    }

    /// Writes blocks, from a buffer that begins with block `first` of their slot, to where they are to lie.
    ///
    /// # Errors
    /// As [`crate::data::DataFile::write`].
    pub(crate) async fn write_targets(
        &self,
        mut buf: DmaBuf,
        first: u32,
        targets: &[Piece],
    ) -> Result<(), VolumeError> {
        for target in targets {
            for blocks in runs(target.mask) {
                let from = (blocks.start - first) as usize * BLOCK_BYTES;
                let part = from..from + bytes_of(&blocks) as usize;
                let place = place_of(target.cluster, blocks.start);
                buf = self.data.write_part(buf, part, place).await?;
            }
        }
        Ok(())
    }

    /// Copies the blocks of a piece to the same places of another cluster; those that are damaged stay
    /// where they are. Answers the checksums of those that it copied.
    async fn move_blocks(&self, piece: Piece, to: u32) -> Result<BlockSums, VolumeError> {
        let (data, mut moved) = (&self.data, BlockSums::default());
        for blocks in runs(piece.mask) {
            let place = place_of(piece.cluster, blocks.start);
            let buf = take_buf(bytes_of(&blocks)).await?;
            let mut buf = data.read_buf(buf, place).await?;
            let expected = self.sums.at(place, bytes_of(&blocks)).await?;
            let mut good = 0;
            for (at, block) in blocks.clone().enumerate() {
                let bytes = &buf[at * BLOCK_BYTES..(at + 1) * BLOCK_BYTES];
                let found = sum_of(bytes);
                if expected[at] == Some(found) {
                    moved.set(block, found);
                    good |= 1 << block;
                }
            }
            for good in runs(good) {
                let from = (good.start - blocks.start) as usize * BLOCK_BYTES;
                let part = from..from + bytes_of(&good) as usize;
                buf = data.write_part(buf, part, place_of(to, good.start)).await?;
            }
        }
        Ok(moved)
    }
}

/// The part of a range of the volume that a request asks for.
fn asked(at: u64, bytes: u64, offset: u64, into: &GuestList) -> Range<u64> {
    at.max(offset)..(at + bytes).min(offset + into.len())
}

/// Copies to the guest what it asked for of what lies at `at`.
fn give(bytes: &[u8], at: u64, offset: u64, into: &GuestList) -> Result<(), VolumeError> {
    let asked = asked(at, bytes.len() as u64, offset, into);
    let part = (asked.start - at) as usize..(asked.end - at) as usize;
    let given = into.copy_in(asked.start - offset, &bytes[part]);
    given.map_err(|e| bad_memory(&e))
}

fn bad_memory(error: &std::io::Error) -> VolumeError {
    VolumeError::Internal(format!("the memory of a transfer is not usable: {error}"))
}

const _: () = assert!(BLOCKS == 16, "a mask has a bit for each block");
