//! Who refers to which cluster of the data file, and which are free. Sans-IO.
//!
//! Invariants:
//! - A cluster is given out only when nothing that a restart could read refers to it: references that
//!   end in memory are dropped here when the record that ends them is durable.
//! - Nor is it given out while an operation is in progress that began before its last reference
//!   ended: that one may still read or write it.
//! - No cluster is given out that may have no space on the disk, unless its taker is told.
//! - An owner writes in place; a cluster has one owner, or none once a snapshot holds it. Owners are
//!   layers, and a volume begins a new layer with each snapshot, so what lies below it is never
//!   written again.

use std::collections::VecDeque;
use std::ops::Range;

use crate::error::VolumeError;

/// A layer: what a volume wrote since its newest snapshot. Numbers are of this life only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Layer(pub(crate) u32);

/// Words of the free clusters' bits that a search for a run looks at: 2 GiB of the file.
const RUN_WORDS_MAX: usize = 512;

/// Nobody's.
const NO_LAYER: Layer = Layer(0);

#[derive(Clone, Copy, Debug, Default)]
struct Cluster {
    references: u32,
    owner: Layer,
}

/// A set of clusters.
#[derive(Debug, Default)]
struct Bits(Vec<u64>);

impl Bits {
    fn has(&self, cluster: u32) -> bool {
        let word = self.0.get(cluster as usize / 64);
        word.is_some_and(|word| word >> (cluster % 64) & 1 == 1)
    }

    fn set(&mut self, cluster: u32, to: bool) {
        let at = cluster as usize / 64;
        if at >= self.0.len() {
            self.0.resize(at + 1, 0);
        }
        let bit = 1 << (cluster % 64);
        if to {
            self.0[at] |= bit;
        } else {
            self.0[at] &= !bit;
        }
    }

    /// The first one from `from` on, or else from the start on.
    fn next(&self, from: u32) -> Option<u32> {
        let words = self.0.len();
        if words == 0 {
            return None;
        }
        let start = from as usize / 64;
        let ahead = !0 << (from % 64);
        // The first word is looked at twice: from the place on, and at last before it.
        (0..=words).find_map(|step| {
            let at = (start + step) % words;
            let first = step == 0 && start < words;
            let word = self.0[at] & if first { ahead } else { !0 };
            (word != 0).then(|| at as u32 * 64 + word.trailing_zeros())
        })
    }
}

/// A cluster that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) cluster: u32,
    /// Whether it has space on the disk for certain.
    pub(crate) backed: bool,
}

/// An operation in progress; see [`Space::enter`].
#[derive(Debug)]
pub(crate) struct Epoch(u64);

/// The clusters of a data file.
#[derive(Debug)]
pub(crate) struct Space {
    clusters: Vec<Cluster>,
    free: Bits,
    free_count: u64,
    /// Those that have space on the disk for certain.
    backed: Bits,
    /// Free ones that have none for certain.
    holes: Bits,
    hole_count: u64,
    /// Where the next search begins.
    cursor: u32,
    /// Operations in progress that began in each epoch, from `oldest` on.
    epochs: VecDeque<u32>,
    oldest: u64,
    /// Clusters without a reference, and the epoch in which the last one ended.
    limbo: VecDeque<(u64, Vec<u32>)>,
    limbo_count: u64,
    layers: u32,
}

impl Space {
    pub(crate) fn new() -> Space {
        Space {
            clusters: Vec::new(),
            free: Bits::default(),
            free_count: 0,
            backed: Bits::default(),
            holes: Bits::default(),
            hole_count: 0,
            cursor: 0,
            epochs: VecDeque::from([0]),
            oldest: 0,
            limbo: VecDeque::new(),
            limbo_count: 0,
            layers: 0,
        }
    }

    /// A layer that nothing belongs to yet.
    pub(crate) fn new_layer(&mut self) -> Layer {
        self.layers += 1;
        Layer(self.layers)
    }

    /// The file has `count` more clusters, all free, with space on the disk or perhaps not.
    pub(crate) fn grow(&mut self, count: u32, backed: bool) {
        let old = self.clusters.len() as u32;
        let new = old + count;
        self.clusters.resize(new as usize, Cluster::default());
        for cluster in old..new {
            self.free.set(cluster, true);
            self.backed.set(cluster, backed);
        }
        self.free_count += u64::from(count);
    }

    /// Counts a reference that recovery has found.
    ///
    /// # Errors
    /// `Corrupt` when the file has no such cluster.
    pub(crate) fn claim(&mut self, cluster: u32) -> Result<(), VolumeError> {
        let Some(found) = self.clusters.get_mut(cluster as usize) else {
            return Err(VolumeError::Corrupt {
                what: "the map of a volume refers to a cluster past the data file's end".into(),
                offset: u64::from(cluster) * crate::map::CLUSTER,
            });
        };
        found.references += 1;
        if found.references == 1 {
            self.free.set(cluster, false);
            self.backed.set(cluster, true);
            self.free_count -= 1;
        }
        Ok(())
    }

    /// Clusters of the file.
    pub(crate) fn count(&self) -> u32 {
        self.clusters.len() as u32
    }

    /// Clusters that may be given out.
    pub(crate) fn free_count(&self) -> u64 {
        self.free_count
    }

    /// Clusters that wait for operations in progress.
    pub(crate) fn limbo_count(&self) -> u64 {
        self.limbo_count
    }

    /// Takes a free cluster for a layer, the one behind `near` if it can be had.
    pub(crate) fn take(&mut self, near: Option<u32>, layer: Layer) -> Option<Taken> {
        if self.free_count == 0 {
            return None;
        }
        let wanted = near
            .map(|near| near + 1)
            .filter(|next| self.free.has(*next));
        let cluster = wanted.or_else(|| self.free.next(self.cursor))?;
        self.give_out(cluster, layer);
        Some(Taken {
            cluster,
            backed: self.backed.has(cluster),
        })
    }

    /// Takes a free cluster that has space on the disk for certain.
    pub(crate) fn take_backed(&mut self, layer: Layer) -> Option<u32> {
        let words = self.free.0.iter().zip(&self.backed.0);
        let mut words = words.map(|(free, backed)| free & backed).enumerate();
        let (at, word) = words.find(|(_, word)| *word != 0)?;
        let cluster = at as u32 * 64 + word.trailing_zeros();
        self.give_out(cluster, layer);
        Some(cluster)
    }

    /// Takes free clusters side by side that have space on the disk for certain: at least two and at most
    /// `most` of them, behind `near` if they can be had. Not all of a large file is searched.
    pub(crate) fn take_run(
        &mut self,
        near: Option<u32>,
        most: u32,
        layer: Layer,
    ) -> Option<Range<u32>> {
        let most = most.min(64);
        let sizes = std::iter::successors(Some(most), |size| Some(size / 2));
        let mut sizes = sizes.take_while(|size| *size >= 2);
        let run = sizes.find_map(|size| {
            let behind = near.map(|near| near + 1..near + 1 + size);
            let behind = behind.filter(|run| run.clone().all(|one| self.is_ready(one)));
            behind.or_else(|| self.find_run(size))
        })?;
        for cluster in run.clone() {
            self.give_out(cluster, layer);
        }
        Some(run)
    }

    /// Whether a cluster is free and has space for certain.
    fn is_ready(&self, cluster: u32) -> bool {
        self.free.has(cluster) && self.backed.has(cluster)
    }

    /// The next `size` clusters side by side, inside of one word, that are free and have space.
    fn find_run(&self, size: u32) -> Option<Range<u32>> {
        let words = self.free.0.len().min(self.backed.0.len());
        let start = self.cursor as usize / 64;
        (0..words.min(RUN_WORDS_MAX)).find_map(|step| {
            let at = (start + step) % words;
            // A bit stays while as many as `have` from it on are set.
            let mut word = self.free.0[at] & self.backed.0[at];
            let mut have = 1;
            while have < size && word != 0 {
                let more = have.min(size - have);
                word &= word >> more;
                have += more;
            }
            let first = at as u32 * 64 + word.trailing_zeros();
            (word != 0).then_some(first..first + size)
        })
    }

    fn give_out(&mut self, cluster: u32, layer: Layer) {
        self.free.set(cluster, false);
        self.free_count -= 1;
        self.no_hole(cluster);
        self.clusters[cluster as usize] = Cluster {
            references: 1,
            owner: layer,
        };
        self.cursor = cluster + 1;
    }

    fn no_hole(&mut self, cluster: u32) {
        if self.holes.has(cluster) {
            self.holes.set(cluster, false);
            self.hole_count -= 1;
        }
    }

    /// How many clusters from this one on, which was taken, want to be given space together: free ones
    /// that may have none.
    pub(crate) fn unbacked_run(&self, cluster: u32, max: u32) -> u32 {
        let behind = cluster + 1..cluster.saturating_add(max).min(self.count());
        let unbacked = |cluster: &u32| self.free.has(*cluster) && !self.backed.has(*cluster);
        1 + behind.take_while(unbacked).count() as u32
    }

    /// Clusters were given space on the disk.
    pub(crate) fn back(&mut self, clusters: Range<u32>) {
        for cluster in clusters {
            self.backed.set(cluster, true);
            self.no_hole(cluster);
        }
    }

    /// Free clusters that may have space on the disk.
    pub(crate) fn surplus(&self) -> u64 {
        self.free_count - self.hole_count
    }

    /// A run of at least `min` free clusters that may have space on the disk, from `from` on, at most
    /// `max` of them. They are taken until [`Space::end_hole`].
    pub(crate) fn begin_hole(&mut self, from: u32, min: u32, max: u32) -> Option<Range<u32>> {
        let solid = |cluster: u32| self.free.has(cluster) && !self.holes.has(cluster);
        let mut start = from;
        while start < self.count() {
            let end = (start..self.count())
                .take(max as usize)
                .take_while(|cluster| solid(*cluster))
                .last()
                .map_or(start, |last| last + 1);
            if end - start >= min {
                for cluster in start..end {
                    self.free.set(cluster, false);
                }
                self.free_count -= u64::from(end - start);
                return Some(start..end);
            }
            start = end + 1;
        }
        None
    }

    /// The run is free again, and holes when its space was given back. One that was not may still be.
    pub(crate) fn end_hole(&mut self, run: Range<u32>, done: bool) {
        self.free_count += run.len() as u64;
        self.hole_count += if done { run.len() as u64 } else { 0 };
        for cluster in run {
            self.free.set(cluster, true);
            self.backed.set(cluster, false);
            self.holes.set(cluster, done);
        }
    }

    /// Whether a layer may write a cluster in place.
    pub(crate) fn owns(&self, layer: Layer, cluster: u32) -> bool {
        layer != NO_LAYER && self.clusters[cluster as usize].owner == layer
    }

    pub(crate) fn references(&self, cluster: u32) -> u32 {
        self.clusters[cluster as usize].references
    }

    /// Gives a cluster to a layer: nothing else refers to it.
    pub(crate) fn adopt(&mut self, cluster: u32, layer: Layer) {
        let found = &mut self.clusters[cluster as usize];
        assert_eq!(
            found.references, 1,
            "a cluster of one reference has one owner"
        );
        found.owner = layer;
    }

    /// One more reference.
    pub(crate) fn refer(&mut self, cluster: u32) {
        let found = &mut self.clusters[cluster as usize];
        assert!(found.references > 0, "a free cluster is not referred to");
        found.references += 1;
    }

    /// References that ended, durably. What nobody refers to is free when the operations in progress
    /// have ended.
    pub(crate) fn end(&mut self, references: impl IntoIterator<Item = u32>) {
        let mut gone = Vec::new();
        for cluster in references {
            let found = &mut self.clusters[cluster as usize];
            assert!(found.references > 0, "a reference ends once");
            found.references -= 1;
            if found.references == 0 {
                found.owner = NO_LAYER;
                gone.push(cluster);
            }
        }
        if gone.is_empty() {
            return;
        }
        self.limbo_count += gone.len() as u64;
        let newest = self.oldest + self.epochs.len() as u64 - 1;
        self.limbo.push_back((newest, gone));
        self.epochs.push_back(0);
        self.settle();
    }

    /// An operation that uses clusters begins; it ends with [`Space::leave`].
    pub(crate) fn enter(&mut self) -> Epoch {
        let newest = self.epochs.len() - 1;
        self.epochs[newest] += 1;
        Epoch(self.oldest + newest as u64)
    }

    /// The operation has ended: the kernel has completed all that it started. True when that made
    /// clusters free.
    pub(crate) fn leave(&mut self, epoch: &Epoch) -> bool {
        let at = (epoch.0 - self.oldest) as usize;
        self.epochs[at] -= 1;
        let before = self.free_count;
        if at == 0 && self.epochs[0] == 0 {
            self.settle();
        }
        self.free_count > before
    }

    fn settle(&mut self) {
        while self.epochs.len() > 1 && self.epochs[0] == 0 {
            self.epochs.pop_front();
            self.oldest += 1;
        }
        while let Some((epoch, _)) = self.limbo.front()
            && *epoch < self.oldest
        {
            let (_, gone) = self.limbo.pop_front().unwrap_or_default();
            self.limbo_count -= gone.len() as u64;
            for cluster in gone {
                self.free.set(cluster, true);
                self.free_count += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests;
