//! Walking a partition's objects in order: memtables and runs merged, the newest of each name shown.
//!
//! A walk alternates between two kinds of steps. It waits for blocks, and then merges without
//! waiting until some run needs its next block. What the memtables say is read in the second kind
//! only, so each name is shown as it is at that moment; a list of runs that changed while a walk
//! waited makes it begin anew behind what it has shown.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::rc::Rc;

use futures_util::future::join_all;

use super::error::StoreError;
use super::index::{Index, Memtable, NamePosition, ObjectEntry, Rank, Shown};
use super::partition::Inner;
use super::run::{Block, BlockSlot, Run};
use super::runs::Runs;

/// What a walk shows of a name.
#[derive(Clone, Copy)]
pub(super) enum Seen<'a> {
    /// Nothing, which hides older runs.
    Gone,
    /// An object that changed lately.
    Entry(&'a ObjectEntry),
    /// An object of a run, not decoded yet.
    Stored(&'a Run, &'a [u8]),
}

impl Seen<'_> {
    /// The whole entry; `None` for nothing.
    pub(super) fn entry(self) -> Result<Option<ObjectEntry>, StoreError> {
        match self {
            Seen::Gone => Ok(None),
            Seen::Entry(entry) => Ok(Some(entry.clone())),
            Seen::Stored(run, bytes) => run.decode(bytes).map(Some),
        }
    }

    /// What a listing shows; `None` for nothing.
    pub(super) fn shown(self) -> Result<Option<Shown>, StoreError> {
        match self {
            Seen::Gone => Ok(None),
            Seen::Entry(entry) => Ok(Some(entry.shown())),
            Seen::Stored(run, bytes) => {
                let shown = Shown::decode(bytes);
                shown
                    .map(Some)
                    .map_err(|malformed| run.malformed(malformed))
            }
        }
    }
}

/// How blocks are fetched.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Fetch {
    /// A few at a time, through the cache.
    Cached,
    /// Many at a time, past the cache: for walks over everything.
    Ahead,
}

/// A place in one run.
struct Cursor {
    run: Rc<Run>,
    /// The block that is needed next, or that the slot is in.
    number: usize,
    slot: Option<BlockSlot>,
    ahead: VecDeque<Rc<Block>>,
    /// Whether the place in the next block is still to be searched for.
    seeking: bool,
}

impl Cursor {
    fn new(run: &Rc<Run>, at: &NamePosition) -> Cursor {
        Cursor {
            run: Rc::clone(run),
            number: run.block_from(at),
            slot: None,
            ahead: VecDeque::new(),
            seeking: true,
        }
    }

    fn needs_block(&self) -> bool {
        self.slot.is_none() && self.number < self.run.blocks()
    }

    async fn load(
        &mut self,
        runs: &Runs,
        fetch: Fetch,
        at: &NamePosition,
    ) -> Result<(), StoreError> {
        while self.needs_block() {
            let block = match (self.ahead.pop_front(), fetch) {
                (Some(block), _) => block,
                (None, Fetch::Cached) => runs.block_and_more(&self.run, self.number).await?,
                (None, Fetch::Ahead) => {
                    let blocks = self.run.read_ahead(self.number, usize::MAX).await?;
                    self.ahead.extend(blocks.into_iter().map(Rc::new));
                    continue;
                }
            };
            let first = if self.seeking {
                block.first(|rank| at.is_past(rank))
            } else {
                0
            };
            if first < block.len() {
                self.seeking = false;
                self.slot = Some(block.slot(first));
            } else {
                self.number += 1;
            }
        }
        Ok(())
    }

    fn rank(&self) -> Option<Rank<'_>> {
        self.slot.as_ref().map(BlockSlot::rank)
    }

    fn step(&mut self) {
        self.slot = self.slot.take().and_then(BlockSlot::next);
        if self.slot.is_none() {
            self.number += 1;
        }
    }
}

/// Why a walk stopped merging.
enum Pause {
    NeedsBlock,
    Stopped,
    End,
}

/// A walk over runs, and over memtables that its user lends to it.
pub(super) struct Scan {
    at: NamePosition,
    fetch: Fetch,
    /// Newest run first.
    cursors: Vec<Cursor>,
    /// Numbers of the cursors that have a slot, the least name first, of equal names the newest run.
    order: Vec<usize>,
}

impl Scan {
    pub(super) fn new(list: &[Rc<Run>], at: NamePosition, fetch: Fetch) -> Scan {
        let cursors: Vec<Cursor> = list.iter().map(|run| Cursor::new(run, &at)).collect();
        Scan {
            at,
            fetch,
            order: Vec::with_capacity(cursors.len()),
            cursors,
        }
    }

    /// Fetches what cursors need, all at the same time.
    async fn load(&mut self, runs: &Runs) -> Result<(), StoreError> {
        let (fetch, at) = (self.fetch, &self.at);
        let needy = self
            .cursors
            .iter_mut()
            .filter(|cursor| cursor.needs_block());
        let loads: Vec<_> = needy.map(|cursor| cursor.load(runs, fetch, at)).collect();
        for loaded in join_all(loads).await {
            loaded?;
        }
        self.order.clear();
        for number in 0..self.cursors.len() {
            if self.cursors[number].slot.is_some() {
                self.insert(number);
            }
        }
        Ok(())
    }

    /// Puts a cursor into the order.
    fn insert(&mut self, number: usize) {
        let key = |number: usize| (self.cursors[number].rank(), number);
        let own = key(number);
        let place = self.order.iter().position(|other| own < key(*other));
        self.order.insert(place.unwrap_or(self.order.len()), number);
    }

    /// Moves the cursors that show a name behind it; false when one of them needs its next block.
    fn pass(&mut self, hits: usize) -> bool {
        let mut whole = true;
        for _ in 0..hits {
            let number = self.order.remove(0);
            self.cursors[number].step();
            if self.cursors[number].slot.is_some() {
                self.insert(number);
            } else {
                whole &= !self.cursors[number].needs_block();
            }
        }
        whole
    }

    /// Shows names in order until a run needs its next block, `show` stops it, or nothing is left.
    fn merge(
        &mut self,
        newer: &Memtable,
        older: &Memtable,
        show: &mut dyn FnMut(Rank<'_>, Seen<'_>) -> ControlFlow<()>,
    ) -> Pause {
        let begin = self.at.clone();
        let mut newer = newer.from(&begin).peekable();
        let mut older = older.from(&begin).peekable();
        loop {
            let mut least: Option<(Rank<'_>, Seen<'_>)> = None;
            for memory in [newer.peek(), older.peek()].into_iter().flatten() {
                let (rank, slot) = *memory;
                if least.is_none_or(|(other, _)| rank < other) {
                    least = Some((rank, slot.as_ref().map_or(Seen::Gone, Seen::Entry)));
                }
            }
            // In the order of names: the first is the least, and those of its name stand behind it.
            let front = self.order.first().map(|number| &self.cursors[*number]);
            if let Some((cursor, slot)) = front.and_then(|c| Some((c, c.slot.as_ref()?)))
                && least.is_none_or(|(other, _)| slot.rank() < other)
            {
                let stored = |bytes| Seen::Stored(&cursor.run, bytes);
                least = Some((slot.rank(), slot.entry().map_or(Seen::Gone, stored)));
            }
            let Some((rank, seen)) = least else {
                return Pause::End;
            };
            let same = self.order.iter();
            let hits = same
                .take_while(|number| self.cursors[**number].rank() == Some(rank))
                .count();
            let shown = show(rank, seen);
            newer.next_if(|(other, _)| *other == rank);
            older.next_if(|(other, _)| *other == rank);
            self.at.pass(rank);
            let whole = self.pass(hits);
            if shown.is_break() {
                return Pause::Stopped;
            }
            if !whole {
                return Pause::NeedsBlock;
            }
        }
    }

    /// Shows runs alone until `show` stops it; false when nothing is left.
    ///
    /// # Errors
    /// `Corrupt`, `Busy`, `Internal`.
    pub(super) async fn run_on(
        &mut self,
        runs: &Runs,
        mut show: impl FnMut(Rank<'_>, Seen<'_>) -> ControlFlow<()>,
    ) -> Result<bool, StoreError> {
        let none = Memtable::default();
        loop {
            self.load(runs).await?;
            match self.merge(&none, &none, &mut show) {
                Pause::NeedsBlock => engine::yield_if_needed().await,
                Pause::Stopped => return Ok(true),
                Pause::End => return Ok(false),
            }
        }
    }
}

/// An index as a walk needs it.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) index: &'a RefCell<Index>,
    pub(super) runs: &'a Runs,
}

impl View<'_> {
    /// Shows the objects from a position on, in order, until `show` stops it; what is gone is left
    /// out.
    ///
    /// # Errors
    /// `Corrupt`, `Busy`, `Internal`.
    pub(super) async fn walk(
        self,
        at: NamePosition,
        fetch: Fetch,
        mut show: impl FnMut(Rank<'_>, Seen<'_>) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let mut epoch = self.runs.epoch();
        let mut scan = Scan::new(&self.runs.list(), at, fetch);
        let none = Memtable::default();
        let mut show = |rank: Rank<'_>, seen: Seen<'_>| match seen {
            Seen::Gone => ControlFlow::Continue(()),
            seen => show(rank, seen),
        };
        loop {
            scan.load(self.runs).await?;
            if self.runs.epoch() != epoch {
                epoch = self.runs.epoch();
                scan = Scan::new(&self.runs.list(), scan.at, fetch);
                continue;
            }
            let pause = {
                let index = self.index.borrow();
                let (newer, older) = index.memtables();
                scan.merge(newer, older.unwrap_or(&none), &mut show)
            };
            match pause {
                Pause::NeedsBlock => engine::yield_if_needed().await,
                Pause::Stopped | Pause::End => return Ok(()),
            }
        }
    }
}

impl Inner {
    pub(super) fn view(&self) -> View<'_> {
        View {
            index: &self.index,
            runs: &self.runs,
        }
    }
}
