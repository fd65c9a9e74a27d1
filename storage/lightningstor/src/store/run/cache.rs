//! Blocks of runs that were read lately, in bounded memory.
//!
//! A run never changes and its number is never used again, so a block can be useless but never
//! stale.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::block::Block;
use crate::store::second_chance::{Cached, SecondChance};

/// Memory of a block beside its bytes, about.
const BLOCK_OVERHEAD: usize = 160;

/// A run's number, and a block's in it.
type BlockKey = (u64, u32);

impl Cached for Rc<Block> {
    fn cost(&self) -> u64 {
        (self.bytes() + BLOCK_OVERHEAD) as u64
    }
}

/// Blocks of one partition's runs.
#[derive(Default)]
pub(in crate::store) struct BlockCache {
    held: RefCell<SecondChance<BlockKey, Rc<Block>>>,
    capacity: Cell<usize>,
    hits: Cell<u64>,
    misses: Cell<u64>,
}

impl BlockCache {
    /// Sets the most bytes that are held; 0, as at the start, keeps nothing.
    pub(in crate::store) fn set_capacity(&self, bytes: usize) {
        self.capacity.set(bytes);
        self.held.borrow_mut().shrink(bytes as u64);
    }

    /// How often a block was found, and how often not.
    pub(in crate::store) fn counts(&self) -> (u64, u64) {
        (self.hits.get(), self.misses.get())
    }

    /// Bytes that are held.
    pub(in crate::store) fn bytes(&self) -> usize {
        self.held.borrow().cost() as usize
    }

    pub(in crate::store) fn get(&self, run: u64, block: usize) -> Option<Rc<Block>> {
        let mut held = self.held.borrow_mut();
        let Some(block) = held.get(&(run, block as u32)) else {
            self.misses.set(self.misses.get() + 1);
            return None;
        };
        self.hits.set(self.hits.get() + 1);
        Some(Rc::clone(block))
    }

    /// Keeps a block that was read and checked.
    pub(in crate::store) fn keep(&self, run: u64, number: usize, block: &Rc<Block>) {
        let key = (run, number as u32);
        let capacity = self.capacity.get() as u64;
        (self.held.borrow_mut()).insert(key, Rc::clone(block), capacity);
    }

    /// Lets the blocks of a run go.
    pub(in crate::store) fn forget(&self, run: u64) {
        (self.held.borrow_mut()).remove_range((run, 0)..=(run, u32::MAX));
    }
}
