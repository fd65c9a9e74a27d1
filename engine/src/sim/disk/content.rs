//! One file's bytes: a volatile layer of sector versions over a durable layer. The fault model is
//! in the parent's head. A sector that no map names reads as zeros. A version is never changed,
//! only superseded; the newest is what readers see.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::ranges::RangeSet;
use crate::rng::Rng;

/// What a device writes or loses as one.
pub(crate) const SECTOR: u64 = 512;

/// Space is given out in blocks.
const BLOCK: u64 = 4096;

/// Unflushed versions kept of one sector, and of the length, while no sync is in flight.
const VERSIONS_MAX: usize = 4;

/// A sector's bytes; `None` is zeros.
type Sector = Option<Rc<[u8; SECTOR as usize]>>;

#[derive(Debug)]
struct Version {
    seq: u64,
    data: Sector,
    /// A sync failed over it: readers still see it, no later sync writes it.
    doomed: bool,
}

/// A file's two layers and its length in both.
#[derive(Debug, Default)]
pub(super) struct Content {
    durable: BTreeMap<u64, Rc<[u8; SECTOR as usize]>>,
    pending: BTreeMap<u64, Vec<Version>>,
    durable_len: u64,
    lengths: Vec<(u64, u64)>,
    allocated: RangeSet,
    pub(super) syncs_in_flight: u32,
}

impl Content {
    pub(super) fn len(&self) -> u64 {
        self.lengths
            .last()
            .map_or(self.durable_len, |(_, len)| *len)
    }

    /// Bytes of space the file holds.
    pub(super) fn allocated(&self) -> u64 {
        self.allocated.total()
    }

    /// Bytes of space that a write or allocation of the range would take.
    pub(super) fn needs(&self, offset: u64, len: u64) -> u64 {
        let (start, end) = blocks_around(offset, len);
        self.allocated.missing(start, end)
    }

    /// Leading bytes of a write for which `free` bytes of space suffice.
    pub(super) fn fits(&self, offset: u64, len: u64, free: u64) -> u64 {
        if self.needs(offset, len) <= free {
            return len;
        }
        let (start, end) = blocks_around(offset, len);
        let blocks = (start..end).step_by(BLOCK as usize);
        let reached = blocks.take_while(|at| self.needs(start, at + BLOCK - start) <= free);
        reached.last().map_or(0, |at| at + BLOCK - offset)
    }

    fn visible(&self, sector: u64) -> Option<&[u8; SECTOR as usize]> {
        match self
            .pending
            .get(&sector)
            .and_then(|versions| versions.last())
        {
            Some(version) => version.data.as_deref(),
            None => self.durable.get(&sector).map(Rc::as_ref),
        }
    }

    /// The visible bytes from `offset`, at most `len`, up to the end of the file.
    pub(super) fn read(&self, offset: u64, len: u64) -> Vec<u8> {
        let end = offset.saturating_add(len).min(self.len());
        if offset >= end {
            return Vec::new();
        }
        let mut bytes = Vec::with_capacity((end - offset) as usize);
        let mut at = offset;
        while at < end {
            let (sector, within) = (at / SECTOR, (at % SECTOR) as usize);
            let take = ((SECTOR as usize) - within).min((end - at) as usize);
            match self.visible(sector) {
                Some(data) => bytes.extend_from_slice(&data[within..within + take]),
                None => bytes.resize(bytes.len() + take, 0),
            }
            at += take as u64;
        }
        bytes
    }

    fn push(&mut self, seq: u64, sector: u64, data: Sector) {
        let versions = self.pending.entry(sector).or_default();
        versions.push(Version {
            seq,
            data,
            doomed: false,
        });
        if versions.len() > VERSIONS_MAX && self.syncs_in_flight == 0 {
            versions.remove(1);
        }
    }

    fn push_len(&mut self, seq: u64, len: u64) {
        self.lengths.push((seq, len));
        if self.lengths.len() > VERSIONS_MAX && self.syncs_in_flight == 0 {
            self.lengths.remove(1);
        }
    }

    /// Makes the part of `bytes` in sectors that `keep` accepts visible at `offset`.
    pub(super) fn write(
        &mut self,
        seq: u64,
        offset: u64,
        bytes: &[u8],
        mut keep: impl FnMut() -> bool,
    ) {
        let end = offset + bytes.len() as u64;
        let mut at = offset;
        let mut written_to = None;
        while at < end {
            let (sector, within) = (at / SECTOR, (at % SECTOR) as usize);
            let take = ((SECTOR as usize) - within).min((end - at) as usize);
            let from = (at - offset) as usize;
            if keep() {
                let mut data = self
                    .visible(sector)
                    .copied()
                    .unwrap_or([0; SECTOR as usize]);
                data[within..within + take].copy_from_slice(&bytes[from..from + take]);
                let zeros = data.iter().all(|byte| *byte == 0);
                self.push(seq, sector, (!zeros).then(|| Rc::new(data)));
                written_to = Some(at + take as u64);
            }
            at += take as u64;
        }
        if let Some(to) = written_to {
            let (start, block_end) = blocks_around(offset, to - offset);
            self.allocated.insert(start, block_end);
            if to > self.len() {
                self.push_len(seq, to);
            }
        }
    }

    /// Gives the range space and extends the file over it.
    pub(super) fn allocate(&mut self, seq: u64, offset: u64, len: u64) {
        let (start, end) = blocks_around(offset, len);
        self.allocated.insert(start, end);
        if offset + len > self.len() {
            self.push_len(seq, offset + len);
        }
    }

    /// Zeros the range; whole blocks in it give their space back.
    pub(super) fn punch(&mut self, seq: u64, offset: u64, len: u64) {
        let end = offset.saturating_add(len);
        self.zero(seq, offset, end);
        let (start, stop) = (offset.div_ceil(BLOCK) * BLOCK, end / BLOCK * BLOCK);
        if start < stop {
            self.allocated.remove(start, stop);
        }
    }

    fn zero(&mut self, seq: u64, offset: u64, end: u64) {
        let (first, last) = (offset / SECTOR, end.div_ceil(SECTOR));
        let mut sectors: Vec<u64> = self.durable.range(first..last).map(|(s, _)| *s).collect();
        sectors.extend(self.pending.range(first..last).map(|(s, _)| *s));
        sectors.sort_unstable();
        sectors.dedup();
        for sector in sectors {
            let start = sector * SECTOR;
            let from = offset.max(start) - start;
            let to = end.min(start + SECTOR) - start;
            let mut data = self
                .visible(sector)
                .copied()
                .unwrap_or([0; SECTOR as usize]);
            data[from as usize..to as usize].fill(0);
            let zeros = data.iter().all(|byte| *byte == 0);
            self.push(seq, sector, (!zeros).then(|| Rc::new(data)));
        }
    }

    pub(super) fn set_len(&mut self, seq: u64, len: u64) {
        if len < self.len() {
            self.zero(seq, len, u64::MAX / SECTOR * SECTOR);
            self.allocated.remove(len.div_ceil(BLOCK) * BLOCK, u64::MAX);
        }
        if len != self.len() {
            self.push_len(seq, len);
        }
    }

    /// Makes what was visible at `upto` durable.
    pub(super) fn sync(&mut self, upto: u64) {
        self.settle(upto, |_| true);
        if let Some(newest) = self.lengths.iter().rposition(|(seq, _)| *seq <= upto) {
            self.durable_len = self.lengths[newest].1;
            self.lengths.drain(..=newest);
        }
    }

    /// A sync that failed: of each sector and of the length, either durable or lost for good.
    pub(super) fn fail_sync(&mut self, upto: u64, rng: &mut Rng) {
        self.settle(upto, |_| rng.once_in(2));
        for versions in self.pending.values_mut() {
            for version in versions.iter_mut().filter(|v| v.seq <= upto) {
                version.doomed = true;
            }
        }
        if rng.once_in(2)
            && let Some(newest) = self.lengths.iter().rposition(|(seq, _)| *seq <= upto)
        {
            self.durable_len = self.lengths[newest].1;
            self.lengths.drain(..=newest);
        }
    }

    fn settle(&mut self, upto: u64, mut chosen: impl FnMut(u64) -> bool) {
        let durable = &mut self.durable;
        self.pending.retain(|sector, versions| {
            let newest = versions.iter().rposition(|v| v.seq <= upto && !v.doomed);
            if let Some(newest) = newest
                && chosen(*sector)
            {
                put(durable, *sector, versions[newest].data.clone());
                versions.drain(..=newest);
            }
            !versions.is_empty()
        });
    }

    /// Makes the range, as visible now, and the length durable.
    pub(super) fn sync_range(&mut self, offset: u64, len: u64) {
        let (first, last) = (offset / SECTOR, (offset + len).div_ceil(SECTOR));
        let sectors: Vec<u64> = self.pending.range(first..last).map(|(s, _)| *s).collect();
        for sector in sectors {
            if let Some(mut versions) = self.pending.remove(&sector)
                && let Some(newest) = versions.pop()
            {
                put(&mut self.durable, sector, newest.data);
            }
        }
        self.durable_len = self.len();
        self.lengths.clear();
    }

    /// A flush of the range that failed: each sector and the length is durable or lost for good.
    pub(super) fn fail_sync_range(&mut self, offset: u64, len: u64, rng: &mut Rng) {
        let (first, last) = (offset / SECTOR, (offset + len).div_ceil(SECTOR));
        let sectors: Vec<u64> = self.pending.range(first..last).map(|(s, _)| *s).collect();
        for sector in sectors {
            let versions = self.pending.get_mut(&sector).into_iter().flatten();
            if !rng.once_in(2) {
                versions.for_each(|version| version.doomed = true);
            } else if let Some(newest) = versions.last() {
                put(&mut self.durable, sector, newest.data.clone());
                self.pending.remove(&sector);
            }
        }
        if rng.once_in(2) {
            self.durable_len = self.len();
            self.lengths.clear();
        }
    }

    /// Power loss: each sector with unflushed versions, and the length, becomes its durable
    /// value or one of those versions.
    pub(super) fn crash(&mut self, rng: &mut Rng) {
        self.syncs_in_flight = 0;
        for (sector, versions) in std::mem::take(&mut self.pending) {
            let mut left: Vec<Version> = versions.into_iter().filter(|v| !v.doomed).collect();
            let choice = rng.below(left.len() as u64 + 1) as usize;
            if choice > 0 {
                put(&mut self.durable, sector, left.swap_remove(choice - 1).data);
            }
        }
        let lengths = std::mem::take(&mut self.lengths);
        let choice = rng.below(lengths.len() as u64 + 1) as usize;
        if choice > 0 {
            self.durable_len = lengths[choice - 1].1;
        }
        self.trim();
    }

    /// Drops durable bytes past the durable end, so that growing again reads zeros.
    fn trim(&mut self) {
        let len = self.durable_len;
        let within = (len % SECTOR) as usize;
        self.durable.split_off(&len.div_ceil(SECTOR));
        if within > 0
            && let Some(data) = self.durable.get_mut(&(len / SECTOR))
        {
            Rc::make_mut(data)[within..].fill(0);
        }
    }

    /// Flips a bit of the byte at `offset` in every layer, as a decaying medium would.
    pub(super) fn flip_bit(&mut self, offset: u64, bit: u8) {
        let (sector, within) = (offset / SECTOR, (offset % SECTOR) as usize);
        let data = self
            .durable
            .entry(sector)
            .or_insert_with(|| Rc::new([0; SECTOR as usize]));
        Rc::make_mut(data)[within] ^= 1 << bit;
        for version in self.pending.get_mut(&sector).into_iter().flatten() {
            let data = version
                .data
                .get_or_insert_with(|| Rc::new([0; SECTOR as usize]));
            Rc::make_mut(data)[within] ^= 1 << bit;
        }
    }
}

fn put(durable: &mut BTreeMap<u64, Rc<[u8; SECTOR as usize]>>, sector: u64, data: Sector) {
    match data {
        Some(data) => durable.insert(sector, data),
        None => durable.remove(&sector),
    };
}

fn blocks_around(offset: u64, len: u64) -> (u64, u64) {
    let end = offset.saturating_add(len);
    (
        offset / BLOCK * BLOCK,
        end.div_ceil(BLOCK).saturating_mul(BLOCK),
    )
}
