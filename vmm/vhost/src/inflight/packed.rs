//! Marks of a packed ring. Its descriptors are overwritten by what is given back in another order, so they
//! are kept here.
//!
//! ```text
//! 12  2  first free state             32 + 32 n:  state of a descriptor
//! 14  2  the same, as it was           0  1  whether a request that begins here is in progress
//! 16  2  place up to where requests    2  2  next state, of the request or of those that are free
//!        were given back               4  2  last state, 6  2  number of states of the request
//! 18  2  the same, as it was           8  8  counter: the order in which requests were taken
//! 20  1  its wrap counter             16  2  id, 18  2  flags, 20  4  length, 24  8  address
//! 21  1  the same, as it was
//! 22  1  whether the ring is at work (ours: zero elsewhere)
//! ```
//!
//! Order of writes: a request's states are filled and marked, then taken off the free ones. A batch is put
//! back to the free ones and its place set before the driver is shown it; then its marks are cleared, then
//! "as it was" follows. Where the places differ, the ring tells whether the batch was shown: if so it is
//! finished here, if not it is taken back. A ring that has stopped begins where its front end says.

use std::sync::atomic::Ordering;

use engine::GuestWindow;

use crate::ring::Descriptor;

pub(super) const FEATURES: u64 = 1 << 34;
pub(super) const HEAD: usize = 32;
pub(super) const STATE: usize = 32;
const FREE_AT: usize = 12;
const OLD_FREE_AT: usize = 14;
const USED_AT: usize = 16;
const OLD_USED_AT: usize = 18;
const WRAP_AT: usize = 20;
const OLD_WRAP_AT: usize = 21;
const AT_WORK_AT: usize = 22;
const MARK: usize = 0;
const NEXT: usize = 2;
const LAST: usize = 4;
const NUMBER: usize = 6;
const COUNTER: usize = 8;
const KEPT: usize = 16;

const WRAP: u16 = 1 << 15;

/// See the module's head. Lists are kept here as well: what a front end does to them meanwhile is not seen.
pub(crate) struct PackedMarks {
    pub(super) region: GuestWindow,
    size: u16,
    counter: u64,
    next: Vec<u16>,
    last: Vec<u16>,
    free: u16,
    /// First states of what is being given back, until the driver was shown it.
    batch: Vec<u16>,
}

/// A request in progress.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Kept {
    /// Not empty; the first is its mark.
    pub(super) states: Vec<u16>,
    pub(super) descriptors: Vec<Descriptor>,
}

/// What there was.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Up to where requests were given back, when somebody died at work.
    pub(super) used: Option<u16>,
    pub(super) kept: Vec<Kept>,
}

impl PackedMarks {
    pub(super) fn new(region: GuestWindow, size: u16) -> PackedMarks {
        PackedMarks {
            region,
            size,
            counter: 0,
            next: vec![0; usize::from(size)],
            last: vec![0; usize::from(size)],
            free: 0,
            batch: Vec::new(),
        }
    }

    fn at(state: u16, field: usize) -> usize {
        HEAD + STATE * usize::from(state) + field
    }

    fn load(&self, at: usize) -> u16 {
        self.region.u16(at).load(Ordering::Acquire)
    }

    fn store(&self, at: usize, value: u16) {
        self.region.u16(at).store(value, Ordering::Release);
    }

    fn set_mark(&self, state: u16, marked: bool) {
        let mark = self.region.u8(Self::at(state, MARK));
        mark.store(u8::from(marked), Ordering::Release);
    }

    fn set_place(&self, used: u16, (used_at, wrap_at): (usize, usize)) {
        let wrap = u8::from(used & WRAP != 0);
        self.region.u8(wrap_at).store(wrap, Ordering::Release);
        self.store(used_at, used & !WRAP);
    }

    fn place(&self, (used_at, wrap_at): (usize, usize)) -> u16 {
        let wrap = self.region.u8(wrap_at).load(Ordering::Acquire) != 0;
        self.load(used_at) & !WRAP | if wrap { WRAP } else { 0 }
    }

    fn set_next(&mut self, state: u16, next: u16) {
        self.next[usize::from(state)] = next;
        self.store(Self::at(state, NEXT), next);
    }

    fn set_free(&mut self, free: u16) {
        self.free = free;
        self.store(FREE_AT, free);
    }

    /// `begin` is where the front end says that the ring begins, which holds unless somebody died at work.
    pub(super) fn recover(&mut self, begin: u16, was_shown: impl Fn(u16) -> bool) -> Found {
        let died = self.region.u8(AT_WORK_AT).load(Ordering::Acquire) == 1;
        let found = if died {
            self.finish_or_take_back(was_shown)
        } else {
            Found {
                used: None,
                kept: Vec::new(),
            }
        };
        self.rebuild(&found.kept);
        let used = found.used.unwrap_or(begin);
        self.set_place(used, (USED_AT, WRAP_AT));
        self.set_place(used, (OLD_USED_AT, OLD_WRAP_AT));
        self.region.u8(AT_WORK_AT).store(1, Ordering::Release);
        found
    }

    fn finish_or_take_back(&mut self, was_shown: impl Fn(u16) -> bool) -> Found {
        let new = (self.place((USED_AT, WRAP_AT)), self.load(FREE_AT));
        let old = (
            self.place((OLD_USED_AT, OLD_WRAP_AT)),
            self.load(OLD_FREE_AT),
        );
        let shown = new.0 != old.0 && was_shown(old.0);
        let (used, mut free) = if shown { new } else { old };
        let mut taken = vec![true; usize::from(self.size)];
        for _ in 0..self.size {
            let Some(place) = taken.get_mut(usize::from(free)) else {
                break;
            };
            *place = false;
            free = self.load(Self::at(free, NEXT));
        }
        let mut heads: Vec<(u64, u16)> = Vec::new();
        for state in (0..self.size).filter(|state| taken[usize::from(*state)]) {
            if self
                .region
                .u8(Self::at(state, MARK))
                .load(Ordering::Acquire)
                == 1
            {
                let counter = self.region.u64(Self::at(state, COUNTER));
                heads.push((counter.load(Ordering::Relaxed), state));
            }
        }
        heads.sort_unstable();
        let last = heads.last();
        self.counter = last.map_or(0, |(counter, _)| counter.wrapping_add(1));
        let kept = heads.into_iter();
        let kept = kept.filter_map(|(_, head)| self.kept(head, &mut taken));
        let kept = kept.collect();
        let used = Some(used);
        Found { used, kept }
    }

    /// A request by its first state. Each state belongs to one of them.
    fn kept(&self, head: u16, taken: &mut [bool]) -> Option<Kept> {
        let mut kept = Kept {
            states: Vec::new(),
            descriptors: Vec::new(),
        };
        let mut at = head;
        for _ in 0..self.load(Self::at(head, NUMBER)) {
            let place = taken.get_mut(usize::from(at))?;
            if !std::mem::replace(place, false) {
                return None;
            }
            let bytes = u128::from_le_bytes(self.region.read(Self::at(at, KEPT)));
            kept.states.push(at);
            kept.descriptors.push(Descriptor {
                link: bytes as u16,
                flags: (bytes >> 16) as u16,
                len: (bytes >> 32) as u32,
                addr: (bytes >> 64) as u64,
            });
            at = self.load(Self::at(at, NEXT));
        }
        (!kept.states.is_empty()).then_some(kept)
    }

    /// Lists anew: the states of what is kept as they are found, and all others free.
    fn rebuild(&mut self, kept: &[Kept]) {
        let mut busy = vec![false; usize::from(self.size)];
        for Kept { states, .. } in kept {
            for pair in states.windows(2) {
                self.set_next(pair[0], pair[1]);
            }
            for state in states {
                busy[usize::from(*state)] = true;
                self.last[usize::from(states[0])] = *state;
            }
        }
        let mut free = self.size;
        for state in (0..self.size)
            .rev()
            .filter(|state| !busy[usize::from(*state)])
        {
            self.set_mark(state, false);
            self.set_next(state, free);
            free = state;
        }
        self.set_free(free);
        self.store(OLD_FREE_AT, free);
    }

    /// A request begins; where it is marked.
    ///
    /// # Panics
    /// When it does not fit: a ring has no more places in progress than states.
    pub(super) fn taken(&mut self, descriptors: &[Descriptor]) -> u16 {
        let head = self.free;
        let (mut at, mut last) = (head, head);
        for descriptor in descriptors {
            assert!(
                at < self.size,
                "a ring of {} has more in progress",
                self.size
            );
            let bytes = u128::from(descriptor.link)
                | u128::from(descriptor.flags) << 16
                | u128::from(descriptor.len) << 32
                | u128::from(descriptor.addr) << 64;
            self.region.write(Self::at(at, KEPT), bytes.to_le_bytes());
            last = at;
            at = self.next[usize::from(at)];
        }
        self.last[usize::from(head)] = last;
        self.store(Self::at(head, LAST), last);
        self.store(Self::at(head, NUMBER), descriptors.len() as u16);
        let counter = self.region.u64(Self::at(head, COUNTER));
        counter.store(self.counter, Ordering::Relaxed);
        self.counter = self.counter.wrapping_add(1);
        self.set_mark(head, true);
        self.set_free(at);
        self.store(OLD_FREE_AT, at);
        head
    }

    /// A request is being given back.
    pub(super) fn giving(&mut self, mark: u16) {
        self.batch.push(mark);
    }

    /// The driver is about to be shown the batch, which ends at `used`.
    pub(super) fn showing(&mut self, used: u16) {
        for place in 0..self.batch.len() {
            let head = self.batch[place];
            let last = self.last[usize::from(head)];
            self.set_next(last, self.free);
            self.set_free(head);
        }
        self.set_place(used, (USED_AT, WRAP_AT));
    }

    /// The driver was shown the batch.
    pub(super) fn given(&mut self, used: u16) {
        for head in &self.batch {
            self.set_mark(*head, false);
        }
        self.batch.clear();
        self.store(OLD_FREE_AT, self.free);
        self.set_place(used, (OLD_USED_AT, OLD_WRAP_AT));
    }

    /// The ring has stopped, with nothing in progress.
    pub(super) fn rest(&self) {
        self.region.u8(AT_WORK_AT).store(0, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use engine::GuestMem;

    use super::super::Inflight;
    use super::super::tests::{base, memory, open};
    use super::*;

    /// Where a new ring begins.
    const BEGIN: u16 = WRAP;

    fn marks(memory: &GuestMem) -> PackedMarks {
        match open(memory, true).expect("marks") {
            Inflight::Packed(marks) => marks,
            Inflight::Split(_) => panic!("marks of a split ring"),
        }
    }

    /// A request of so many descriptors.
    fn chain(id: u16, count: u16) -> Vec<Descriptor> {
        let descriptor = |number| Descriptor {
            addr: u64::from(number) << 40 | 0xABCD,
            len: u32::MAX - u32::from(id),
            flags: 1,
            link: id,
        };
        (0..count).map(descriptor).collect()
    }

    fn again(memory: &GuestMem, shown: bool) -> (Option<u16>, Vec<Vec<Descriptor>>) {
        let found = marks(memory).recover(BEGIN, |_| shown);
        let kept = found.kept.into_iter().map(|kept| kept.descriptors);
        (found.used, kept.collect())
    }

    #[test]
    fn what_was_taken_and_not_given_is_done_again_in_its_order() {
        let memory = memory();
        let mut first = marks(&memory);
        assert_eq!(first.recover(BEGIN, |_| true).used, None);
        let one = first.taken(&chain(1, 3));
        first.taken(&chain(2, 1));
        let three = first.taken(&chain(3, 2));
        first.giving(one);
        first.showing(BEGIN | 3);
        first.given(BEGIN | 3);
        let expected = vec![chain(2, 1), chain(3, 2)];
        assert_eq!(again(&memory, false), (Some(BEGIN | 3), expected.clone()));
        // Who comes after works with what is there, and what was free is free.
        let mut second = marks(&memory);
        let kept = second.recover(BEGIN, |_| false).kept;
        assert_eq!(kept[1].states[0], three);
        second.taken(&chain(4, 5));
        second.giving(three);
        second.showing(BEGIN | 5);
        second.given(BEGIN | 5);
        assert_eq!(again(&memory, false).1, [chain(2, 1), chain(4, 5)]);
    }

    #[test]
    fn a_batch_is_done_again_when_it_was_not_shown_and_only_then() {
        for shown in [false, true] {
            let memory = memory();
            let mut first = marks(&memory);
            first.recover(BEGIN, |_| true);
            let heads = [1, 2, 3].map(|id| first.taken(&chain(id, 2)));
            first.giving(heads[2]);
            first.giving(heads[0]);
            // It dies between showing and clearing, or before showing.
            first.showing(BEGIN | 4);
            let (used, kept) = again(&memory, shown);
            if shown {
                assert_eq!((used, kept), (Some(BEGIN | 4), vec![chain(2, 2)]));
            } else {
                let all = [1, 2, 3].map(|id| chain(id, 2)).to_vec();
                assert_eq!((used, kept), (Some(BEGIN), all));
            }
        }
    }

    #[test]
    fn a_ring_that_has_stopped_begins_where_its_front_end_says() {
        let memory = memory();
        let mut first = marks(&memory);
        first.recover(BEGIN, |_| true);
        let head = first.taken(&chain(1, 8));
        first.giving(head);
        first.showing(0);
        first.given(0);
        first.rest();
        let mut second = marks(&memory);
        assert_eq!(second.recover(BEGIN | 5, |_| true).used, None);
        assert_eq!(again(&memory, true), (Some(BEGIN | 5), Vec::new()));
    }

    #[test]
    fn marks_of_a_front_end_that_lies_do_no_harm() {
        for lie in 0..64_u64 {
            let memory = memory();
            let mut first = marks(&memory);
            first.recover(BEGIN, |_| true);
            let heads = [1, 2].map(|id| first.taken(&chain(id, 3)));
            first.giving(heads[0]);
            first.showing(BEGIN | 3);
            // Every index and every count, one after the other.
            for at in (12..20).chain((0..8).flat_map(|state| 32 + 32 * state..40 + 32 * state)) {
                let byte = (lie * 37 + at * 11) as u8;
                memory.copy_in(base() + at, &[byte]).expect("inside");
            }
            let mut second = marks(&memory);
            let found = second.recover(BEGIN, |_| lie % 2 == 0);
            let busy: usize = found.kept.iter().map(|kept| kept.states.len()).sum();
            assert!(busy <= 8, "{found:?}");
            // All others can be taken.
            let marks: Vec<u16> = (busy..8).map(|_| second.taken(&chain(7, 1))).collect();
            assert!(marks.iter().all(|mark| *mark < 8));
        }
    }
}
