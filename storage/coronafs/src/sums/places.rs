//! Which places of the data file a restart may find a changed slot of a volume in. Sans-IO.
//!
//! A volume with checksums is never written where a restart could look: a block goes to a place that
//! neither memory, nor the log, nor a checkpoint maps. So whatever a crash leaves of a write, what is
//! mapped is whole, and the checksum that stands beside the map is its own.
//!
//! Invariants:
//! - A slot that is not here is durable as memory has it.
//! - What is here holds what the slot was when it was durable last, what each record says that was begun
//!   since, and what a checkpoint has taken. It only shrinks when a record is durable that no checkpoint
//!   has passed.

use std::collections::BTreeMap;

use super::BlockSums;
use crate::map::Piece;

/// A slot that may not be durable as memory has it.
#[derive(Debug, Default)]
struct Changed {
    /// Clusters and the blocks of them that a restart may find.
    kept: Vec<Piece>,
    /// Checksums of the blocks that were written since the last record was begun.
    sums: BlockSums,
}

fn add(kept: &mut Vec<Piece>, pieces: &[Piece]) {
    for piece in pieces {
        match kept.iter_mut().find(|kept| kept.cluster == piece.cluster) {
            Some(kept) => kept.mask |= piece.mask,
            None => kept.push(*piece),
        }
    }
}

fn blocks_in(pieces: &[Piece], cluster: u32) -> u16 {
    let in_it = pieces.iter().filter(|piece| piece.cluster == cluster);
    in_it.fold(0, |all, piece| all | piece.mask)
}

/// The changed slots of a volume.
#[derive(Debug, Default)]
pub(crate) struct Places {
    slots: BTreeMap<u64, Changed>,
    /// Checkpoints that have taken the map.
    taken: u64,
}

/// A slot as a record says it.
#[derive(Debug)]
pub(crate) struct Recorded {
    index: u64,
    pieces: Vec<Piece>,
    sums: BlockSums,
}

impl Places {
    /// A slot changes, and was this before.
    pub(crate) fn change(&mut self, index: u64, old: &[Piece], sums: &BlockSums) {
        let changed = self.slots.entry(index).or_insert_with(|| Changed {
            kept: old.to_vec(),
            ..Changed::default()
        });
        changed.sums.renew(sums);
    }

    /// The blocks of a cluster that a slot, which is `pieces` in memory, may write.
    pub(crate) fn writable(&self, index: u64, pieces: &[Piece], cluster: u32) -> u16 {
        let changed = self.slots.get(&index);
        let kept = changed.map_or(0, |changed| blocks_in(&changed.kept, cluster));
        !(kept | blocks_in(pieces, cluster))
    }

    /// Whether a restart may find the changed slot in a cluster.
    pub(crate) fn keeps(&self, index: u64, cluster: u32) -> bool {
        let changed = self.slots.get(&index);
        changed.is_none_or(|changed| blocks_in(&changed.kept, cluster) != 0)
    }

    /// A record is begun that says that a slot is `pieces`: answers what it says of checksums.
    pub(crate) fn record(&mut self, index: u64, pieces: &[Piece]) -> Recorded {
        let changed = self.slots.entry(index).or_default();
        add(&mut changed.kept, pieces);
        let data = pieces.iter().filter(|piece| piece.has_data());
        let mapped = data.fold(0, |all, piece| all | piece.mask);
        Recorded {
            index,
            pieces: pieces.to_vec(),
            sums: std::mem::take(&mut changed.sums).only(mapped),
        }
    }

    /// How often a checkpoint has taken the map; see [`Places::recorded`].
    pub(crate) fn taken(&self) -> u64 {
        self.taken
    }

    /// The record is durable, which was begun when checkpoints had taken the map `taken` times.
    pub(crate) fn recorded(&mut self, record: &Recorded, taken: u64, changed_since: bool) {
        if !changed_since {
            self.slots.remove(&record.index);
        } else if let Some(changed) = self.slots.get_mut(&record.index)
            && self.taken == taken
        {
            changed.kept.clone_from(&record.pieces);
        }
    }

    /// It is not known to be durable: the next one says the same.
    pub(crate) fn not_recorded(&mut self, record: &Recorded) {
        if let Some(changed) = self.slots.get_mut(&record.index) {
            let mut sums = record.sums;
            sums.renew(&changed.sums);
            changed.sums = sums;
        }
    }

    /// A checkpoint takes the map, in which slots are what `pieces_of` says.
    pub(crate) fn take(&mut self, pieces_of: impl Fn(u64) -> Vec<Piece>) {
        self.taken += 1;
        for (index, changed) in &mut self.slots {
            add(&mut changed.kept, &pieces_of(*index));
        }
    }

    /// The volume has another map, which is durable.
    pub(crate) fn clear(&mut self) {
        self.slots.clear();
    }
}

impl Recorded {
    pub(crate) fn index(&self) -> u64 {
        self.index
    }

    pub(crate) fn sums(&self) -> &BlockSums {
        &self.sums
    }
}
