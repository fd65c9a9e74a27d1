//! Reading, writing and freeing ranges of a volume.
//!
//! A read of what lies in one piece, and a write of what the volume's layer has there in one piece, is
//! one operation of the kernel. Of any other write, whole clusters go as [`crate::runs`] says; the rest goes
//! cluster by cluster, into the cluster that the layer owns there or a new one. All of it is mapped when it
//! has completed. A block that is not whole in the write, and not there yet, is filled up with what it held
//! before, through a buffer.

use engine::GuestList;
use futures_util::future::join_all;

use crate::attach::Attachment;
use crate::data::take_buf;
use crate::error::VolumeError;
use crate::joint::{Transfer, Way};
use crate::map::{BLOCK, BLOCKS, CLUSTER, Piece, runs};
use crate::partition::For;
use crate::space::Space;
use crate::unflushed::{ENTRIES_MAX, Room};
use crate::volume::Run;

/// Slots that are freed before others get a turn.
const UNMAP_SLOTS: usize = 128;
/// Bytes that are written with one pass of the gate.
const WRITE_BYTES_MAX: u64 = 4 << 20;
/// Changes of a slot that a write makes: it moves pieces together, and maps its own.
const SPAN_ENTRIES: usize = 2;
/// Tries to find space by making durable what frees it.
const RECLAIMS_MAX: usize = 3;

/// What is written: a part of a guest's list, or zeros.
pub(crate) enum Source<'a> {
    Guest(&'a GuestList, u64),
    Zeros,
}

impl Source<'_> {
    pub(crate) fn copy_out(&self, into: &mut [u8]) -> Result<(), VolumeError> {
        match self {
            Source::Zeros => into.fill(0),
            Source::Guest(list, at) => list.copy_out(*at, into).map_err(|e| {
                VolumeError::Internal(format!("the memory of a write is not usable: {e}"))
            })?,
        }
        Ok(())
    }
}

/// A range inside of one cluster.
#[derive(Clone, Copy)]
pub(crate) struct Span {
    pub(crate) index: u64,
    pub(crate) start: u64,
    pub(crate) end: u64,
}

impl Span {
    /// The blocks that it touches.
    pub(crate) fn blocks(self) -> u16 {
        mask(self.start / BLOCK, self.end.div_ceil(BLOCK))
    }

    pub(crate) fn parts(offset: u64, len: u64) -> impl Iterator<Item = Span> + Clone {
        let end = offset + len;
        let clusters = offset / CLUSTER..end.div_ceil(CLUSTER);
        clusters.map(move |index| Span {
            index,
            start: offset.max(index * CLUSTER) - index * CLUSTER,
            end: end.min((index + 1) * CLUSTER) - index * CLUSTER,
        })
    }
}

/// Blocks from `first` up to `end`.
fn mask(first: u64, end: u64) -> u16 {
    let up_to = |block: u64| (1_u32 << block) - 1;
    (up_to(end) & !up_to(first)) as u16
}

/// The first error, when all have ended: none may be dropped on its way.
pub(crate) fn first_error(outcomes: Vec<Result<(), VolumeError>>) -> Result<(), VolumeError> {
    outcomes.into_iter().collect()
}

impl Attachment {
    pub(crate) async fn read_range(&self, offset: u64, into: GuestList) -> Result<(), VolumeError> {
        if into.is_empty() {
            return Ok(());
        }
        if let Some(filling) = self.volume.filling() {
            return self.read_filling(&filling, offset, &into).await;
        }
        self.read_known(offset, into).await
    }

    /// Reads a range that needs no image, or no more.
    pub(crate) async fn read_known(&self, offset: u64, into: GuestList) -> Result<(), VolumeError> {
        let using = self.inner.data.using();
        let run = self.volume.run_at(offset, into.len());
        let outcome = if self.volume.summed {
            self.read_summed(offset, &into).await
        } else if run.bytes == into.len() {
            self.read_run(run, offset, into).await
        } else {
            self.read_runs(offset, &into).await
        };
        using.end();
        outcome
    }

    /// Reads what lies at `offset` of the volume.
    async fn read_run(&self, run: Run, offset: u64, into: GuestList) -> Result<(), VolumeError> {
        match run.place {
            Some(place) => {
                let read = Transfer {
                    way: Way::Read,
                    list: into,
                    place,
                    offset,
                };
                self.transfer(read).await
            }
            None => into.fill_zero(0..run.bytes).map_err(|e| {
                VolumeError::Internal(format!("the memory of a read is not usable: {e}"))
            }),
        }
    }

    /// The map is looked at once, before the first wait.
    async fn read_runs(&self, offset: u64, into: &GuestList) -> Result<(), VolumeError> {
        let mut reads = Vec::new();
        let mut at = 0;
        while at < into.len() {
            let run = self.volume.run_at(offset + at, into.len() - at);
            reads.push(self.read_run(run, offset + at, into.slice(at..at + run.bytes)));
            at += run.bytes;
        }
        first_error(join_all(reads).await)
    }

    pub(crate) async fn write_range(
        &self,
        offset: u64,
        from: GuestList,
    ) -> Result<(), VolumeError> {
        self.before_change(offset, from.len()).await?;
        let mut at = 0;
        while from.len() - at > WRITE_BYTES_MAX {
            // Ends of parts are ends of clusters.
            let len = WRITE_BYTES_MAX - (offset + at) % CLUSTER;
            self.write_part(offset + at, from.slice(at..at + len))
                .await?;
            at += len;
        }
        match at {
            _ if from.is_empty() => Ok(()),
            0 => self.write_part(offset, from).await,
            at => {
                self.write_part(offset + at, from.slice(at..from.len()))
                    .await
            }
        }
    }

    async fn write_part(&self, offset: u64, from: GuestList) -> Result<(), VolumeError> {
        let mut reclaims = 0;
        let mut room = None;
        loop {
            self.make_room(For::Space).await?;
            let pass = self.volume.gate.pass().await;
            self.check_range(offset, from.len())?;
            let using = self.inner.data.using();
            let place = if self.volume.summed {
                None
            } else {
                let space = self.inner.data.space.borrow();
                self.volume.place_to_overwrite(&space, offset, from.len())
            };
            if let Some(place) = place {
                let write = Transfer {
                    way: Way::Write,
                    list: from,
                    place,
                    offset,
                };
                let outcome = self.transfer(write).await;
                using.end();
                self.volume.note_done();
                return outcome;
            }
            let entries = Span::parts(offset, from.len()).count() * SPAN_ENTRIES;
            let Some(room_now) = room.take().or_else(|| self.inner.try_room(entries)) else {
                using.end();
                drop(pass);
                room = Some(self.inner.room(entries, For::Space).await?);
                continue;
            };
            let outcome = self.write_parts(&room_now, offset, &from).await;
            using.end();
            self.volume.note_done();
            drop((pass, room_now));
            if outcome != Err(VolumeError::Full) || reclaims == RECLAIMS_MAX {
                return outcome.and_then(|()| self.check_kept());
            }
            reclaims += 1;
            if !self.inner.reclaim().await? {
                return outcome;
            }
        }
    }

    /// What was changed is acknowledged when a kill cannot lose it.
    fn check_kept(&self) -> Result<(), VolumeError> {
        Ok(self.inner.poison.check()?)
    }

    /// Holds a volume's changes back while too many of them are not durable.
    async fn make_room(&self, what: For) -> Result<(), VolumeError> {
        if self.volume.uncommitted() >= self.inner.config.dirty_slots_max {
            self.inner.commit_for(&self.volume, what).await?;
        }
        Ok(())
    }

    /// What may have changed while a write waited to be let in.
    fn check_range(&self, offset: u64, len: u64) -> Result<(), VolumeError> {
        self.check_live()?;
        if offset + len <= self.volume.bytes() {
            return Ok(());
        }
        Err(VolumeError::Internal(
            "the volume was shrunk meanwhile".to_owned(),
        ))
    }

    /// Writes a range inside of one cluster, and maps it.
    pub(crate) async fn write_span(
        &self,
        room: &Room<'_>,
        span: Span,
        source: Source<'_>,
    ) -> Result<(), VolumeError> {
        if self.volume.summed {
            return self.write_summed(room, span, source).await;
        }
        let _lock = self.volume.locks.lock(span.index).await;
        self.write_locked(room, span, source).await
    }

    /// The same, by whoever has the slot's lock.
    pub(crate) async fn write_locked(
        &self,
        room: &Room<'_>,
        span: Span,
        source: Source<'_>,
    ) -> Result<(), VolumeError> {
        let (data, volume) = (&self.inner.data, &self.volume);
        let own = volume.own_piece(&data.space.borrow(), span.index);
        let piece = match own {
            Some(piece) => piece,
            None => Piece {
                cluster: data
                    .take(volume.place_before(span.index), volume.layer.get())
                    .await?,
                mask: 0,
            },
        };
        let wrote = async {
            let piece = self.gather(room, span, piece).await?;
            self.write_piece(span, piece, source).await
        };
        let wrote = wrote.await;
        let mut space = data.space.borrow_mut();
        let blocks = (span.index, span.blocks());
        self.map_written(&mut space, room, blocks, piece.cluster, &wrote);
        wrote
    }

    /// Blocks of a slot were written into a cluster of the layer's, or not: they lie there from now on, or the
    /// cluster is free again if it was taken for them. The caller has the slot's lock.
    pub(crate) fn map_written(
        &self,
        space: &mut Space,
        room: &Room<'_>,
        (index, blocks): (u64, u16),
        cluster: u32,
        wrote: &Result<(), VolumeError>,
    ) {
        match wrote {
            Ok(()) => self.volume.map_blocks(space, room, index, cluster, blocks),
            Err(_) if self.volume.refers_to(index, cluster) => {}
            // Nobody has seen it.
            Err(_) => space.end([cluster]),
        }
    }

    /// When the slot lies in too many pieces, moves what the write does not cover into its own.
    async fn gather(&self, room: &Room<'_>, span: Span, own: Piece) -> Result<Piece, VolumeError> {
        let (data, volume) = (&self.inner.data, &self.volume);
        let pieces = volume.tree.borrow().slot(span.index);
        let others = pieces.iter().filter(|piece| piece.has_data());
        let others = others.filter(|piece| piece.cluster != own.cluster);
        if others.clone().count() < self.inner.config.pieces_max {
            return Ok(own);
        }
        let mut moved = 0;
        for piece in others {
            for blocks in runs(piece.mask) {
                let within = u64::from(blocks.start) * BLOCK;
                let bytes = blocks.len() as u64 * BLOCK;
                let _right = data.bouncing(bytes).await?;
                // At the same place of the volume it is the same on disk.
                let buf = take_buf(bytes).await?;
                let from = u64::from(piece.cluster) * CLUSTER + within;
                let buf = data.read_buf(buf, from).await?;
                let to = u64::from(own.cluster) * CLUSTER + within;
                data.write_buf(buf, to).await?;
                moved |= mask(u64::from(blocks.start), u64::from(blocks.end));
            }
        }
        let mut space = data.space.borrow_mut();
        volume.map_blocks(&mut space, room, span.index, own.cluster, moved);
        Ok(Piece {
            mask: own.mask | moved,
            ..own
        })
    }

    /// Writes into a cluster, of which the blocks of the piece are valid.
    async fn write_piece(
        &self,
        span: Span,
        piece: Piece,
        source: Source<'_>,
    ) -> Result<(), VolumeError> {
        let valid = |at: u64| piece.mask >> (at / BLOCK) & 1 == 1;
        let fill_first = !span.start.is_multiple_of(BLOCK) && !valid(span.start);
        let fill_last = !span.end.is_multiple_of(BLOCK) && !valid(span.end);
        let base = u64::from(piece.cluster) * CLUSTER;
        if let Source::Guest(list, at) = &source
            && !fill_first
            && !fill_last
        {
            let part = list.slice(*at..*at + span.end - span.start);
            let coding = self.coding(span.index * CLUSTER + span.start);
            return self.inner.data.write(part, base + span.start, coding).await;
        }
        let start = if fill_first {
            span.start / BLOCK * BLOCK
        } else {
            span.start
        };
        let end = if fill_last {
            span.end.next_multiple_of(BLOCK)
        } else {
            span.end
        };
        // One more block at a time for what was there.
        let _right = self.inner.data.bouncing(end - start + BLOCK).await?;
        let mut buf = take_buf(end - start).await?;
        buf.fill(0);
        if fill_first {
            let old = self.old_block(span.index, start).await?;
            buf[..BLOCK as usize].copy_from_slice(&old);
        }
        if fill_last {
            let old = self.old_block(span.index, end - BLOCK).await?;
            let at = (end - BLOCK - start) as usize;
            buf[at..].copy_from_slice(&old);
        }
        let (from, to) = ((span.start - start) as usize, (span.end - start) as usize);
        source.copy_out(&mut buf[from..to])?;
        if let Some(coding) = self.coding(span.index * CLUSTER + start) {
            coding.cipher.encrypt(coding.place, &mut buf);
        }
        self.inner.data.write_buf(buf, base + start).await
    }

    /// What the block at a place of a cluster holds.
    async fn old_block(&self, index: u64, at: u64) -> Result<engine::DmaBuf, VolumeError> {
        let mut buf = take_buf(BLOCK).await?;
        let offset = index * CLUSTER + at;
        let Some(place) = self.volume.run_at(offset, BLOCK).place else {
            buf.fill(0);
            return Ok(buf);
        };
        let mut buf = self.inner.data.read_buf(buf, place).await?;
        if let Some(coding) = self.coding(offset) {
            coding.cipher.decrypt(offset, &mut buf);
        }
        Ok(buf)
    }

    /// Frees the blocks that lie wholly in a range: they read as zeros.
    pub(crate) async fn unmap_range(&self, offset: u64, len: u64) -> Result<(), VolumeError> {
        let first = offset.next_multiple_of(BLOCK);
        let end = (offset + len) / BLOCK * BLOCK;
        let mut next = first / CLUSTER;
        self.before_change(first, 0).await?;
        while first < end && next * CLUSTER < end {
            self.make_room(For::Freeing).await?;
            let room = self.inner.room(UNMAP_SLOTS, For::Freeing).await?;
            let pass = self.volume.gate.pass().await;
            self.check_live()?;
            for _ in 0..UNMAP_SLOTS {
                next = self.volume.next_to_unmap(next);
                if next * CLUSTER >= end {
                    break;
                }
                let base = next * CLUSTER;
                let from = first.max(base) - base;
                let to = end.min(base + CLUSTER) - base;
                let _lock = self.volume.locks.lock(next).await;
                let mut space = self.inner.data.space.borrow_mut();
                let blocks = mask(from / BLOCK, to / BLOCK);
                self.volume.unmap_blocks(&mut space, &room, next, blocks);
                next += 1;
            }
            self.volume.note_done();
            drop((pass, room));
            engine::yield_if_needed().await;
        }
        self.check_kept()
    }

    /// Makes a range read as zeros.
    pub(crate) async fn zero_range(&self, offset: u64, len: u64) -> Result<(), VolumeError> {
        // All of it before anything is changed: it may fail.
        self.before_change(offset, len).await?;
        let end = offset + len;
        let (first, last) = (offset.next_multiple_of(BLOCK), end / BLOCK * BLOCK);
        if first > last {
            return self.zero_part(offset, end).await;
        }
        self.zero_part(offset, first).await?;
        self.zero_part(last, end).await?;
        self.unmap_range(first, last - first).await
    }

    /// Writes zeros to a part of a block, unless it has no data.
    async fn zero_part(&self, start: u64, end: u64) -> Result<(), VolumeError> {
        if start == end {
            return Ok(());
        }
        self.make_room(For::Freeing).await?;
        let room = self.inner.room(SPAN_ENTRIES, For::Freeing).await?;
        let _pass = self.volume.gate.pass().await;
        self.check_range(start, end - start)?;
        if self.volume.run_at(start, end - start).place.is_none() {
            return Ok(());
        }
        let index = start / CLUSTER;
        let span = Span {
            index,
            start: start - index * CLUSTER,
            end: end - index * CLUSTER,
        };
        let using = self.inner.data.using();
        let outcome = self.write_span(&room, span, Source::Zeros).await;
        using.end();
        self.volume.note_done();
        outcome.and_then(|()| self.check_kept())
    }
}

const _: () = assert!(BLOCKS == 16, "a mask has a bit for each block");
const _: () = assert!(UNMAP_SLOTS <= ENTRIES_MAX);
// A part that does not begin with a cluster touches one more.
const _: () = assert!((WRITE_BYTES_MAX / CLUSTER + 1) as usize * SPAN_ENTRIES <= ENTRIES_MAX);
