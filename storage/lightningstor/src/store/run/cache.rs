//! Blocks of runs that were read lately, in bounded memory.
//!
//! A run never changes and its number is never used again, so a block can be useless but never
//! stale. One that was asked for since it came to the front gets a second chance.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use super::block::Block;

/// Memory of a block beside its bytes, about.
const BLOCK_OVERHEAD: usize = 160;
/// Most second chances that one insertion gives; then what is in front goes.
const CHANCES_MAX: usize = 32;

/// A run's number, and a block's in it.
type BlockKey = (u64, u32);

struct Held {
    block: Rc<Block>,
    asked: bool,
}

#[derive(Default)]
struct State {
    blocks: BTreeMap<BlockKey, Held>,
    /// The keys of all blocks, the next to go in front.
    order: VecDeque<BlockKey>,
    bytes: usize,
}

/// Blocks of one partition's runs.
#[derive(Default)]
pub(in crate::store) struct BlockCache {
    state: RefCell<State>,
    capacity: Cell<usize>,
    hits: Cell<u64>,
    misses: Cell<u64>,
}

impl BlockCache {
    /// Sets the most bytes that are held; 0, as at the start, keeps nothing.
    pub(in crate::store) fn set_capacity(&self, bytes: usize) {
        self.capacity.set(bytes);
        self.state.borrow_mut().shrink(bytes);
    }

    /// How often a block was found, and how often not.
    pub(in crate::store) fn counts(&self) -> (u64, u64) {
        (self.hits.get(), self.misses.get())
    }

    /// Bytes that are held.
    pub(in crate::store) fn bytes(&self) -> usize {
        self.state.borrow().bytes
    }

    pub(in crate::store) fn get(&self, run: u64, block: usize) -> Option<Rc<Block>> {
        let mut state = self.state.borrow_mut();
        let Some(held) = state.blocks.get_mut(&(run, block as u32)) else {
            self.misses.set(self.misses.get() + 1);
            return None;
        };
        held.asked = true;
        self.hits.set(self.hits.get() + 1);
        Some(Rc::clone(&held.block))
    }

    /// Keeps a block that was read and checked.
    pub(in crate::store) fn keep(&self, run: u64, number: usize, block: &Rc<Block>) {
        let key = (run, number as u32);
        let cost = block.bytes() + BLOCK_OVERHEAD;
        let mut state = self.state.borrow_mut();
        if cost > self.capacity.get() || state.blocks.contains_key(&key) {
            return;
        }
        state.shrink(self.capacity.get() - cost);
        state.bytes += cost;
        let held = Held {
            block: Rc::clone(block),
            asked: false,
        };
        state.blocks.insert(key, held);
        state.order.push_back(key);
    }

    /// Lets the blocks of a run go.
    pub(in crate::store) fn forget(&self, run: u64) {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let gone = state
            .blocks
            .extract_if((run, 0)..=(run, u32::MAX), |_, _| true);
        let bytes: usize = gone
            .map(|(_, held)| held.block.bytes() + BLOCK_OVERHEAD)
            .sum();
        state.bytes -= bytes;
        state.order.retain(|(number, _)| *number != run);
    }
}

impl State {
    fn shrink(&mut self, bytes: usize) {
        let mut chances = CHANCES_MAX;
        while self.bytes > bytes {
            let key = self.order.pop_front();
            let key = key.expect("what is held stands in the order");
            let held = self.blocks.get_mut(&key);
            let held = held.expect("what stands in the order is held");
            if held.asked && chances > 0 {
                chances -= 1;
                held.asked = false;
                self.order.push_back(key);
            } else {
                self.bytes -= held.block.bytes() + BLOCK_OVERHEAD;
                self.blocks.remove(&key);
            }
        }
    }
}
