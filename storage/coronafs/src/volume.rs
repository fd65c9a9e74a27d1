//! One volume on its owner shard: its map, and which of it is not durable yet.
//!
//! Invariants:
//! - The map in memory is ahead of the durable one by the slots in `dirty`; what it stopped to refer
//!   to stands in `ended` until the records that say so are durable.
//! - A slot has at most one piece that the volume's layer owns, and it is the first one. Writes go
//!   there; the others are never written again. A volume with checksums may own more of them, and
//!   writes what [`Volume::writable`] says.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;

use engine::sync::{Notify, Semaphore};
use shards::block::Extent;

use crate::error::VolumeError;
use crate::gate::{Gate, SlotLocks};
use crate::image::{Filling, VolumeImage};
use crate::map::{BLOCK, BLOCKS, CLUSTER, Piece, Tree, ZEROS, add_zeros, lay, slot_of};
use crate::partition::{Claim, For};
use crate::record::{self, MAP_BYTES};
use crate::shares::Share;
use crate::space::{Layer, Space};
use crate::state::{Frozen, Meta};
use crate::sums::BlockSums;
use crate::sums::places::{Places, Recorded};
use crate::throttle::Throttle;
use crate::types::{Limits, VolumeId};
use crate::unflushed::{LastSlot, Room};

/// Runs that an answer about extents looks at: some 100 us.
const EXTENT_STEPS: usize = 4096;
/// Flushes of a volume that may wait for their turn.
const COMMITS_MAX: usize = 4096;

/// Who has the volume attached.
pub(crate) struct Holder {
    pub(crate) generation: u64,
    pub(crate) shared: bool,
    pub(crate) read_only: bool,
    /// False once it is fenced.
    pub(crate) live: Rc<Cell<bool>>,
}

pub(crate) struct Volume {
    pub(crate) id: VolumeId,
    pub(crate) meta: RefCell<Meta>,
    pub(crate) tree: RefCell<Tree>,
    /// Valid blocks of all slots.
    pub(crate) mapped_blocks: Cell<u64>,
    pub(crate) layer: Cell<Layer>,
    /// Whether its blocks have checksums.
    pub(crate) summed: bool,
    /// Of a volume with checksums: where a restart may find what.
    places: RefCell<Places>,
    dirty: RefCell<BTreeSet<u64>>,
    ended: RefCell<Vec<u32>>,
    /// Writes, discards and zeroings that have completed, and how many of them are durable.
    done: Cell<u64>,
    durable: Cell<u64>,
    /// One at a time makes the volume's changes durable, so that records come in their order.
    pub(crate) commits: Semaphore,
    pub(crate) gate: Gate,
    pub(crate) locks: SlotLocks,
    pub(crate) holders: RefCell<Vec<Holder>>,
    pub(crate) throttle: RefCell<Throttle>,
    pub(crate) share: Share,
    /// Its size or its holders have changed.
    pub(crate) changed: Notify,
    /// While it needs its image.
    pub(crate) filling: RefCell<Option<Rc<Filling>>>,
}

/// What a commit makes durable.
#[derive(Default)]
struct Captured {
    records: Vec<Vec<u8>>,
    /// Whether no slot in them has data.
    empty: bool,
    dirty: BTreeSet<u64>,
    ended: Vec<u32>,
    done: u64,
    /// Of a volume with checksums: its slots as the records say, and the checkpoints of before.
    recorded: Vec<Recorded>,
    taken: u64,
}

/// Puts back what was captured, unless it became durable.
pub(crate) struct Capture<'a> {
    volume: &'a Volume,
    captured: Option<Captured>,
}

/// A range of a volume that lies in one piece in the data file, or has no data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// Byte offset in the data file; `None` reads as zeros.
    pub(crate) place: Option<u64>,
    pub(crate) bytes: u64,
}

impl Volume {
    pub(crate) fn new(id: VolumeId, meta: Meta, map: Frozen) -> Volume {
        let throttle = Throttle::new(meta.limits);
        let share = Share::new(meta.limits.shares);
        let filling = meta.image.as_ref().and_then(VolumeImage::filling);
        Volume {
            id,
            summed: meta.checksums,
            places: RefCell::default(),
            meta: RefCell::new(meta),
            tree: RefCell::new(map.tree),
            mapped_blocks: Cell::new(map.mapped_blocks),
            layer: Cell::default(),
            dirty: RefCell::default(),
            ended: RefCell::default(),
            done: Cell::new(0),
            durable: Cell::new(0),
            commits: Semaphore::new(1, COMMITS_MAX),
            gate: Gate::default(),
            locks: SlotLocks::default(),
            holders: RefCell::default(),
            throttle: RefCell::new(throttle),
            share,
            changed: Notify::default(),
            filling: RefCell::new(filling),
        }
    }

    /// Its owner and its name.
    pub(crate) fn full_name(&self) -> (String, String) {
        let meta = self.meta.borrow();
        (meta.owner.clone(), meta.name.clone())
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.meta.borrow().bytes
    }

    pub(crate) fn set_limits(&self, limits: Limits) {
        self.meta.borrow_mut().limits = limits;
        self.throttle.replace(Throttle::new(limits));
        self.share.set(limits.shares);
    }

    /// Ends the attachments that are chosen. What they have in flight ends on its own: see the gate.
    pub(crate) fn fence(&self, chosen: impl Fn(&Holder) -> bool) {
        self.holders.borrow_mut().retain(|holder| {
            let fenced = chosen(holder);
            if fenced {
                holder.live.set(false);
            }
            !fenced
        });
        self.changed.notify_all();
    }

    /// The map as it is, for someone who keeps it.
    pub(crate) fn frozen(&self) -> Frozen {
        Frozen {
            tree: self.tree.borrow().clone(),
            mapped_blocks: self.mapped_blocks.get(),
        }
    }

    /// Takes another map; what was not durable of the old one is forgotten. Returns the old one.
    pub(crate) fn replace_map(&self, map: &Frozen) -> Tree {
        self.mapped_blocks.set(map.mapped_blocks);
        self.dirty.borrow_mut().clear();
        self.places.borrow_mut().clear();
        self.durable.set(self.done.get());
        self.tree.replace(map.tree.clone())
    }

    /// References that no map has any more, durably.
    pub(crate) fn take_ended(&self) -> Vec<u32> {
        self.ended.take()
    }

    pub(crate) fn has_ended(&self) -> bool {
        !self.ended.borrow().is_empty()
    }

    /// What waits for a commit: slots that it would write, or references that it would end. A slot that
    /// is written and emptied in turns is one, and leaves a reference each time.
    pub(crate) fn uncommitted(&self) -> usize {
        self.dirty.borrow().len().max(self.ended.borrow().len())
    }

    /// Where a range begins to lie, and how far it goes on without a break: at most `bytes`.
    pub(crate) fn run_at(&self, offset: u64, bytes: u64) -> Run {
        let tree = self.tree.borrow();
        let first = run_in_cluster(&tree, offset);
        let mut run = Run {
            place: first.place,
            bytes: first.bytes.min(bytes),
        };
        while run.bytes < bytes {
            let next = run_in_cluster(&tree, offset + run.bytes);
            if next.place != run.place.map(|place| place + run.bytes) {
                break;
            }
            run.bytes += next.bytes.min(bytes - run.bytes);
        }
        run
    }

    /// What has data from `offset` on, up to `bytes` further or `extents` extents, and not much more of
    /// the map is looked at.
    pub(crate) fn extents_at(&self, offset: u64, bytes: u64, extents: usize) -> Vec<Extent> {
        if let Some(filling) = self.filling() {
            return filling.extents_at(self, offset, bytes, extents);
        }
        let tree = self.tree.borrow();
        let end = offset + bytes;
        let mut found: Vec<Extent> = Vec::new();
        let mut at = offset;
        for _ in 0..EXTENT_STEPS {
            if at >= end {
                break;
            }
            let run = run_in_cluster(&tree, at);
            let mut next = at + run.bytes;
            if run.place.is_none() && next.is_multiple_of(CLUSTER) {
                // What has no cluster at all is passed over in one step.
                let mapped = tree.next_mapped(next / CLUSTER);
                next = mapped.map_or(end, |index| index * CLUSTER);
            }
            let (bytes, hole) = (next.min(end) - at, run.place.is_none());
            let last = found.last_mut().filter(|last| last.hole == hole);
            if let Some(last) = last {
                last.bytes += bytes;
            } else if found.len() == extents {
                break;
            } else {
                found.push(Extent { bytes, hole });
            }
            at += bytes;
        }
        found
    }

    /// Where the whole range lies, when it is one run that may be written in place.
    pub(crate) fn place_to_overwrite(&self, space: &Space, offset: u64, bytes: u64) -> Option<u64> {
        let run = self.run_at(offset, bytes);
        let place = run.place.filter(|_| run.bytes == bytes)?;
        let clusters = place / CLUSTER..=(place + bytes - 1) / CLUSTER;
        let layer = self.layer.get();
        let owned = |cluster| space.owns(layer, cluster as u32);
        clusters.into_iter().all(owned).then_some(place)
    }

    /// The slot's first piece, when it may be written.
    pub(crate) fn own_piece(&self, space: &Space, index: u64) -> Option<Piece> {
        let tree = self.tree.borrow();
        let first = tree.leaf(index)?.first(slot_of(index));
        let owned = first.has_data() && space.owns(self.layer.get(), first.cluster);
        owned.then_some(first)
    }

    /// Whether a slot has a piece in a cluster.
    pub(crate) fn refers_to(&self, index: u64, cluster: u32) -> bool {
        let pieces = self.tree.borrow().slot(index);
        pieces.iter().any(|piece| piece.cluster == cluster)
    }

    /// Some cluster that lies before this one in the volume, near whose place the next may go.
    pub(crate) fn place_before(&self, index: u64) -> Option<u32> {
        let before = index.checked_sub(1)?;
        let tree = self.tree.borrow();
        let piece = tree.leaf(before)?.first(slot_of(before));
        piece.has_data().then_some(piece.cluster)
    }

    /// Blocks of a slot now lie in `cluster`, which the volume's layer owns. The caller holds the
    /// slot's lock.
    pub(crate) fn map_blocks(
        &self,
        space: &mut Space,
        room: &Room<'_>,
        index: u64,
        cluster: u32,
        blocks: u16,
    ) {
        let mask = blocks;
        self.change_slot(space, room, index, &BlockSums::NONE, |pieces| {
            lay(pieces, Piece { cluster, mask });
        });
    }

    /// The same of blocks in some clusters, with their checksums.
    pub(crate) fn map_summed(
        &self,
        space: &mut Space,
        room: &Room<'_>,
        index: u64,
        places: &[Piece],
        sums: &BlockSums,
    ) {
        self.fill_blocks(space, room, index, (places, sums), 0);
    }

    /// The blocks of a cluster of the volume's layer that a write to a slot may take.
    pub(crate) fn writable(&self, index: u64, pieces: &[Piece], cluster: u32) -> u16 {
        self.places.borrow().writable(index, pieces, cluster)
    }

    /// A checkpoint is about to take the map.
    pub(crate) fn keep_places(&self) {
        if self.summed {
            let tree = self.tree.borrow();
            self.places.borrow_mut().take(|index| tree.slot(index));
        }
    }

    /// Blocks of a slot now read as zeros. The caller holds the slot's lock.
    pub(crate) fn unmap_blocks(&self, space: &mut Space, room: &Room<'_>, index: u64, blocks: u16) {
        let filling = self.filling.borrow().clone();
        let of_image = filling.map_or(0, |filling| filling.mask(index));
        self.change_slot(space, room, index, &BlockSums::NONE, |pieces| {
            for piece in pieces.iter_mut() {
                piece.mask &= !blocks;
            }
            add_zeros(pieces, blocks & of_image);
        });
    }

    /// Blocks of a slot that had no pieces lie in these from now on, or are zeros. The caller holds the slot's lock.
    pub(crate) fn fill_blocks(
        &self,
        space: &mut Space,
        room: &Room<'_>,
        index: u64,
        (places, sums): (&[Piece], &BlockSums),
        zeros: u16,
    ) {
        self.change_slot(space, room, index, sums, |pieces| {
            for place in places {
                lay(pieces, *place);
            }
            add_zeros(pieces, zeros);
        });
    }

    fn change_slot(
        &self,
        space: &mut Space,
        room: &Room<'_>,
        index: u64,
        sums: &BlockSums,
        change: impl FnOnce(&mut Vec<Piece>),
    ) {
        let old = self.tree.borrow().slot(index);
        let mut new = old.clone();
        change(&mut new);
        let gone: Vec<Piece> = new.extract_if(.., |piece| piece.mask == 0).collect();
        if new != old {
            self.set_slot(space, index, &old, &new, sums);
            room.put(self.id, index, &new, sums);
        }
        // References end with the next commit; at once where nothing that a restart could find has them.
        for cluster in gone
            .iter()
            .map(|piece| piece.cluster)
            .filter(|c| *c != ZEROS)
        {
            if self.summed && !self.places.borrow().keeps(index, cluster) {
                space.end([cluster]);
            } else {
                self.ended.borrow_mut().push(cluster);
            }
        }
    }

    /// A slot is what it was in memory in a life before, which had not made it durable. What it refers
    /// to no more stays referred to until that is durable.
    ///
    /// # Errors
    /// `Corrupt` when the file has no such cluster.
    pub(crate) fn restore_slot(
        &self,
        space: &mut Space,
        index: u64,
        slot: &LastSlot,
    ) -> Result<(), VolumeError> {
        let new = &slot.pieces;
        let old = self.tree.borrow().slot(index);
        if *new == old {
            return Ok(());
        }
        // What has no data refers to nothing.
        let is_in = |piece: &Piece, pieces: &[Piece]| {
            !piece.has_data() || pieces.iter().any(|other| other.cluster == piece.cluster)
        };
        for piece in new.iter().filter(|piece| !is_in(piece, &old)) {
            space.claim(piece.cluster)?;
        }
        let gone = old.iter().filter(|piece| !is_in(piece, new));
        self.ended
            .borrow_mut()
            .extend(gone.map(|piece| piece.cluster));
        self.set_slot(space, index, &old, new, &slot.sums);
        self.note_done();
        Ok(())
    }

    fn set_slot(
        &self,
        space: &mut Space,
        index: u64,
        old: &[Piece],
        new: &[Piece],
        sums: &BlockSums,
    ) {
        if self.summed {
            self.places.borrow_mut().change(index, old, sums);
        }
        let mut tree = self.tree.borrow_mut();
        tree.set(index, new, |cluster| space.refer(cluster));
        let blocks = |pieces: &[Piece]| {
            let data = pieces.iter().filter(|piece| piece.has_data());
            data.map(|piece| u64::from(piece.mask.count_ones())).sum()
        };
        let (before, after): (u64, u64) = (blocks(old), blocks(new));
        self.mapped_blocks
            .set(self.mapped_blocks.get() + after - before);
        self.dirty.borrow_mut().insert(index);
        if let Some(filling) = &*self.filling.borrow() {
            filling.note(index, old, new);
        }
    }

    /// A write, discard or zeroing has completed.
    pub(crate) fn note_done(&self) {
        self.done.set(self.done.get() + 1);
    }

    /// What a flush that begins now must reach.
    pub(crate) fn done(&self) -> u64 {
        self.done.get()
    }

    pub(crate) fn durable(&self) -> u64 {
        self.durable.get()
    }

    /// Sets aside what has changed since the last commit. The caller has the turn.
    pub(crate) fn capture(&self) -> Capture<'_> {
        let dirty = self.dirty.take();
        let tree = self.tree.borrow();
        let mut records = Vec::new();
        let mut out = record::begin_map(self.id);
        let (mut count, mut empty) = (0, true);
        let mut recorded = Vec::new();
        for index in &dirty {
            let pieces = tree.slot(*index);
            empty &= !pieces.iter().any(|piece| piece.has_data());
            record::put_slot(&mut out, *index, &pieces);
            if self.summed {
                let slot = self.places.borrow_mut().record(*index, &pieces);
                slot.sums().put(&mut out);
                recorded.push(slot);
            }
            count += 1;
            if out.bytes.len() >= MAP_BYTES {
                let full = std::mem::replace(&mut out, record::begin_map(self.id));
                records.push(record::end_map(full, count));
                count = 0;
            }
        }
        if count > 0 {
            records.push(record::end_map(out, count));
        }
        drop(tree);
        let captured = Captured {
            records,
            empty,
            dirty,
            ended: self.ended.take(),
            done: self.done.get(),
            recorded,
            taken: self.places.borrow().taken(),
        };
        Capture {
            volume: self,
            captured: Some(captured),
        }
    }
}

impl Capture<'_> {
    pub(crate) fn records(&self) -> &[Vec<u8>] {
        self.captured
            .as_ref()
            .map_or(&[], |captured| &captured.records)
    }

    /// Their kind.
    pub(crate) fn kind(&self) -> u8 {
        if self.volume.summed {
            record::MAP_WITH_SUMS
        } else {
            record::MAP
        }
    }

    /// Which of the log's space its records may take. Those that end references, and map nothing, give
    /// space back; others do by what they are written for.
    pub(crate) fn claim(&self, what: For) -> Claim {
        let captured = self.captured.as_ref();
        let ends = captured.is_some_and(|captured| !captured.ended.is_empty());
        let empty = captured.is_some_and(|captured| captured.empty);
        let frees = match what {
            For::Order => ends && empty,
            For::Space => ends,
            For::Freeing => true,
        };
        if frees {
            Claim::Reserved
        } else {
            Claim::Ordinary
        }
    }

    /// All records are durable: the references end.
    pub(crate) fn end(mut self, space: &mut Space) {
        if let Some(captured) = self.captured.take() {
            self.volume.durable.set(captured.done);
            let mut places = self.volume.places.borrow_mut();
            for slot in &captured.recorded {
                let changed = self.volume.dirty.borrow().contains(&slot.index());
                places.recorded(slot, captured.taken, changed);
            }
            space.end(captured.ended);
        }
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        if let Some(captured) = self.captured.take() {
            let mut places = self.volume.places.borrow_mut();
            for slot in &captured.recorded {
                places.not_recorded(slot);
            }
            self.volume.dirty.borrow_mut().extend(captured.dirty);
            self.volume.ended.borrow_mut().extend(captured.ended);
        }
    }
}

/// The run at an offset, up to the end of its cluster at most.
fn run_in_cluster(tree: &Tree, offset: u64) -> Run {
    let (index, within) = (offset / CLUSTER, offset % CLUSTER);
    let block = (within / BLOCK) as u32;
    let slot = slot_of(index);
    let leaf = tree.leaf(index);
    let piece = leaf.and_then(|leaf| leaf.piece_of(slot, block));
    let (mask, place) = match (piece, leaf) {
        (Some(piece), _) if piece.cluster == ZEROS => (piece.mask, None),
        (Some(piece), _) => (
            piece.mask,
            Some(u64::from(piece.cluster) * CLUSTER + within),
        ),
        (None, Some(leaf)) => {
            let mapped = leaf.pieces(slot).fold(0, |all, piece| all | piece.mask);
            (!mapped, None)
        }
        (None, None) => (!0, None),
    };
    let blocks = (mask >> block).trailing_ones().min(BLOCKS - block);
    Run {
        place,
        bytes: u64::from(block + blocks) * BLOCK - within,
    }
}
