//! The runs of a partition's index: which there are, what they say of a key, and which are merged.
//!
//! Runs are ordered newest first: by level, then the higher number. What a newer one says of a key
//! hides the older ones. The list changes in one step, and `epoch` tells who waited for the disk
//! meanwhile that it did.
//!
//! A run's files go when no kept checkpoint names it and the list does not have it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use engine::fs;

use super::error::StoreError;
use super::index::{Rank, Slot};
use super::run::{self, Block, BlockCache, Run, RunRef, hash_of};

/// Bytes that a listing reads at a time.
const LISTED_BYTES: usize = 64 << 10;

/// The runs of one partition.
pub(super) struct Runs {
    dir: PathBuf,
    partition: u16,
    list: RefCell<Rc<[Rc<Run>]>>,
    epoch: Cell<u64>,
    next: Cell<u64>,
    /// Numbers of runs that are being written.
    building: RefCell<BTreeSet<u64>>,
    /// Runs that left the list, and whose files are still there: (number, bytes).
    retired: RefCell<Vec<(u64, u64)>>,
    pub(super) cache: BlockCache,
}

/// The number of a run that is being written; its files are let be meanwhile.
pub(super) struct Building<'a> {
    runs: &'a Runs,
    pub(super) of: RunRef,
}

impl Drop for Building<'_> {
    fn drop(&mut self) {
        self.runs.building.borrow_mut().remove(&self.of.number);
    }
}

impl Runs {
    /// Opens the runs that a checkpoint names.
    ///
    /// # Errors
    /// `Corrupt` when a run is damaged in both its files or missing, `Busy`, `Internal`.
    pub(super) async fn open(
        dir: &Path,
        partition: u16,
        named: &[RunRef],
    ) -> Result<Runs, StoreError> {
        let mut list = Vec::with_capacity(named.len());
        for of in named {
            list.push(Rc::new(Run::open(dir, *of, partition).await?));
        }
        sort(&mut list);
        let listed = fs::read_dir(dir).await;
        let listed = listed.map_err(|e| StoreError::internal("cannot list", &e))?;
        let newest = listed
            .iter()
            .filter_map(|entry| run::number_of(&entry.name))
            .max();
        Ok(Runs {
            dir: dir.to_owned(),
            partition,
            list: RefCell::new(list.into()),
            epoch: Cell::new(0),
            next: Cell::new(newest.unwrap_or(0) + 1),
            building: RefCell::default(),
            retired: RefCell::default(),
            cache: BlockCache::default(),
        })
    }

    /// The runs, newest first.
    pub(super) fn list(&self) -> Rc<[Rc<Run>]> {
        Rc::clone(&self.list.borrow())
    }

    /// Changes whenever the list does.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch.get()
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn partition(&self) -> u16 {
        self.partition
    }

    /// The runs as a checkpoint names them.
    pub(super) fn refs(&self) -> Vec<RunRef> {
        self.list.borrow().iter().map(|run| run.of()).collect()
    }

    /// Gives a number to a run that is about to be written.
    pub(super) fn build(&self, level: u8) -> Building<'_> {
        let number = self.next.get();
        self.next.set(number + 1);
        self.building.borrow_mut().insert(number);
        Building {
            runs: self,
            of: RunRef { number, level },
        }
    }

    /// Takes in a run, and lets those go that it was made from.
    pub(super) fn install(&self, new: Option<Rc<Run>>, merged: &[Rc<Run>]) {
        let old = self.list();
        let gone = |run: &Rc<Run>| merged.iter().any(|other| other.of() == run.of());
        let mut list: Vec<Rc<Run>> = old.iter().filter(|run| !gone(run)).cloned().collect();
        list.extend(new);
        sort(&mut list);
        *self.list.borrow_mut() = list.into();
        self.epoch.set(self.epoch.get() + 1);
        let mut retired = self.retired.borrow_mut();
        for run in merged {
            retired.push((run.of().number, run.disk_bytes()));
            self.cache.forget(run.of().number);
        }
    }

    /// Bytes of runs that only old checkpoints still name.
    pub(super) fn retired_bytes(&self) -> u64 {
        self.retired.borrow().iter().map(|(_, bytes)| bytes).sum()
    }

    /// Removes the files of runs that neither the list nor a kept checkpoint has.
    ///
    /// # Errors
    /// `Internal`; they are tried again.
    pub(super) async fn remove_unnamed(&self, kept: &BTreeSet<u64>) -> Result<(), StoreError> {
        let listed = fs::read_dir(&self.dir).await;
        let listed = listed.map_err(|e| StoreError::internal("cannot list", &e))?;
        let numbers: BTreeSet<u64> = listed
            .iter()
            .filter_map(|entry| run::number_of(&entry.name))
            .collect();
        for number in numbers {
            let named = kept.contains(&number)
                || self.building.borrow().contains(&number)
                || self.is_listed(number);
            if !named {
                run::remove(&self.dir, number).await?;
                self.retired
                    .borrow_mut()
                    .retain(|(other, _)| *other != number);
            }
        }
        Ok(())
    }

    /// What the runs say of a name; `None` when none of them knows it.
    ///
    /// # Errors
    /// `Corrupt`, `Busy`, `Internal`.
    pub(super) async fn find(&self, rank: Rank<'_>) -> Result<Option<Slot>, StoreError> {
        let list = self.list();
        if list.is_empty() {
            return Ok(None);
        }
        let hash = hash_of(rank);
        for run in list.iter() {
            let Some(number) = run.block_of(rank, hash) else {
                continue;
            };
            let block = self.block(run, number).await?;
            if let Some(slot) = block.find(rank) {
                let entry = block.entry(slot);
                return entry.map(|bytes| run.decode(bytes)).transpose().map(Some);
            }
        }
        Ok(None)
    }

    /// As [`Runs::block`], for who will want those behind it too: they are read with it.
    pub(super) async fn block_and_more(
        &self,
        run: &Run,
        number: usize,
    ) -> Result<Rc<Block>, StoreError> {
        let id = run.of().number;
        if let Some(block) = self.cache.get(id, number) {
            return Ok(block);
        }
        let blocks = run.read_ahead(number, LISTED_BYTES).await?;
        let blocks: Vec<Rc<Block>> = blocks.into_iter().map(Rc::new).collect();
        if self.is_listed(id) {
            for (number, block) in (number..).zip(&blocks) {
                self.cache.keep(id, number, block);
            }
        }
        Ok(Rc::clone(&blocks[0]))
    }

    fn is_listed(&self, number: u64) -> bool {
        let list = self.list.borrow();
        list.iter().any(|run| run.of().number == number)
    }

    /// A block, from memory when it was read lately.
    pub(super) async fn block(&self, run: &Run, number: usize) -> Result<Rc<Block>, StoreError> {
        let id = run.of().number;
        if let Some(block) = self.cache.get(id, number) {
            return Ok(block);
        }
        let block = Rc::new(run.read_block(number).await?);
        // A run that left the list meanwhile is not kept: nobody will ask again.
        if self.is_listed(id) {
            self.cache.keep(id, number, &block);
        }
        Ok(block)
    }

    /// Runs that should become one: those of the lowest level that has too many.
    pub(super) fn due(&self, runs_per_level: usize) -> Option<Vec<Rc<Run>>> {
        let list = self.list();
        let mut levels = list.chunk_by(|one, next| one.of().level == next.of().level);
        levels
            .find(|level| level.len() >= runs_per_level.max(2) && level[0].of().level < u8::MAX)
            .map(<[Rc<Run>]>::to_vec)
    }
}

fn sort(list: &mut [Rc<Run>]) {
    list.sort_by_key(|run| (run.of().level, std::cmp::Reverse(run.of().number)));
}
