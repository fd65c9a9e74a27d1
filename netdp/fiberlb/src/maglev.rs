//! Maglev's ring (Eisenbud et al., NSDI 2016, section 3.4), with weights.
//!
//! Backends take turns; in a turn a backend claims the next free slot of its own permutation of all
//! slots. The permutation comes from the backend's name alone, so a ring that loses one backend keeps
//! nearly all slots of the others. A backend's weight is how often it gets a turn.
//!
//! A ring of 65,537 slots takes milliseconds, longer than a shard may be held: [`Maglev::advance`] does
//! a bounded part of it.

use fiberlb_abi::{RING_LARGE, RING_SMALL};

/// A backend of a ring.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// What its slots will hold; not 0.
    pub id: u16,
    /// What its permutation comes from: the same backend has the same name in every ring.
    pub name: u64,
    /// Its share of the turns; not 0.
    pub weight: u32,
}

/// A ring under construction.
#[derive(Debug)]
pub struct Maglev {
    turns: Vec<Turn>,
    weight_max: u32,
    /// Whose turn it is, and whether that turn was already granted.
    next: usize,
    granted: bool,
    slots: Vec<u16>,
    free: u32,
}

#[derive(Debug)]
struct Turn {
    id: u16,
    weight: u32,
    credit: u32,
    /// The next slot of the permutation, and the distance to the one after.
    at: u32,
    skip: u32,
}

impl Maglev {
    /// Begins a ring of `len` slots, which is a prime: [`RING_LARGE`] or [`RING_SMALL`].
    ///
    /// # Panics
    ///
    /// When `len` is another one, or an entry has the identifier or the weight 0.
    pub fn new(mut entries: Vec<Entry>, len: u32) -> Self {
        assert!(len == RING_LARGE || len == RING_SMALL);
        entries.sort_by_key(|entry| entry.name);
        let weight_max = entries.iter().map(|entry| entry.weight).max().unwrap_or(0);
        let turns: Vec<Turn> = entries
            .into_iter()
            .map(|entry| {
                assert!(entry.id != 0);
                assert!(entry.weight != 0);
                Turn {
                    id: entry.id,
                    weight: entry.weight,
                    credit: 0,
                    at: (scramble(entry.name) % u64::from(len)) as u32,
                    skip: (scramble(!entry.name) % u64::from(len - 1)) as u32 + 1,
                }
            })
            .collect();
        let free = if turns.is_empty() { 0 } else { len };
        Self {
            turns,
            weight_max,
            next: 0,
            granted: false,
            slots: vec![0; len as usize],
            free,
        }
    }

    /// Looks at up to `probes` slots; true when the ring is complete.
    pub fn advance(&mut self, probes: u32) -> bool {
        let len = self.slots.len() as u32;
        let mut left = probes;
        while self.free > 0 && left > 0 {
            left -= 1;
            let turn = &mut self.turns[self.next];
            if !self.granted {
                turn.credit += turn.weight;
                if turn.credit < self.weight_max {
                    self.next = (self.next + 1) % self.turns.len();
                    continue;
                }
                turn.credit -= self.weight_max;
                self.granted = true;
            }
            let at = turn.at as usize;
            turn.at += turn.skip;
            if turn.at >= len {
                turn.at -= len;
            }
            if self.slots[at] == 0 {
                self.slots[at] = turn.id;
                self.free -= 1;
                self.granted = false;
                self.next = (self.next + 1) % self.turns.len();
            }
        }
        self.free == 0
    }

    /// How many slots it has.
    #[expect(clippy::len_without_is_empty, reason = "a ring always has slots")]
    pub fn len(&self) -> u32 {
        self.slots.len() as u32
    }

    /// The slots: identifiers of backends, 0 in a ring without any.
    ///
    /// # Panics
    ///
    /// When the ring is not complete.
    pub fn into_slots(self) -> Vec<u16> {
        assert!(self.free == 0);
        self.slots
    }
}

/// A permutation of 64 bits that spreads each of them (the finalizer of splitmix64).
fn scramble(value: u64) -> u64 {
    let value = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ring(entries: &[Entry], len: u32) -> Vec<u16> {
        let mut ring = Maglev::new(entries.to_vec(), len);
        assert!(ring.advance(u32::MAX));
        ring.into_slots()
    }

    fn entries(names: impl IntoIterator<Item = u64>) -> Vec<Entry> {
        let names = names.into_iter().enumerate();
        names
            .map(|(at, name)| Entry {
                id: at as u16 + 1,
                name,
                weight: 1,
            })
            .collect()
    }

    fn share(slots: &[u16], id: u16) -> f64 {
        slots.iter().filter(|slot| **slot == id).count() as f64 / slots.len() as f64
    }

    /// Slots that were another backend's than the one that goes, and changed.
    fn moved(before: &[u16], after: &[u16]) -> f64 {
        let changed = before.iter().zip(after).filter(|(old, new)| old != new);
        changed.count() as f64 / before.len() as f64
    }

    #[test]
    fn a_ring_without_backends_is_complete_and_empty() {
        let slots = ring(&[], RING_SMALL);
        assert_eq!(slots.len(), RING_SMALL as usize);
        assert!(slots.iter().all(|slot| *slot == 0));
    }

    #[test]
    fn weights_are_shares() {
        let mut all = entries(0..4);
        for (entry, weight) in all.iter_mut().zip([1, 2, 3, 10]) {
            entry.weight = weight;
        }
        let slots = ring(&all, RING_LARGE);
        for entry in &all {
            let wanted = f64::from(entry.weight) / 16.0;
            let got = share(&slots, entry.id);
            assert!((got - wanted).abs() < 0.001, "{wanted} is {got}");
        }
    }

    #[test]
    fn a_backend_that_goes_moves_its_share_and_one_percent_at_most() {
        for count in [2, 3, 10, 50, 100] {
            let all = entries(0..count);
            let before = ring(&all, RING_LARGE);
            for gone in [0, all.len() / 2, all.len() - 1] {
                let mut rest = all.clone();
                rest.remove(gone);
                let moved = moved(&before, &ring(&rest, RING_LARGE));
                let bound = 1.0 / count as f64 + 0.01;
                assert!(moved <= bound, "{moved} of {count}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn shares_and_moves_are_bounded_for_any_names(
            names in proptest::collection::btree_set(any::<u64>(), 2..40),
            gone in any::<prop::sample::Index>(),
        ) {
            let all = entries(names);
            let before = ring(&all, RING_LARGE);
            let even = 1.0 / all.len() as f64;
            for entry in &all {
                prop_assert!((share(&before, entry.id) - even).abs() < 0.001);
            }
            let mut rest = all.clone();
            rest.remove(gone.index(all.len()));
            prop_assert!(moved(&before, &ring(&rest, RING_LARGE)) <= even + 0.01);
        }

        #[test]
        fn the_ring_is_the_same_in_any_order_and_in_any_slices(
            names in proptest::collection::btree_set(any::<u64>(), 1..20),
            slice in 1_u32..5000,
        ) {
            let all = entries(names);
            let mut shuffled = all.clone();
            shuffled.reverse();
            let mut sliced = Maglev::new(shuffled, RING_SMALL);
            while !sliced.advance(slice) {}
            prop_assert_eq!(sliced.into_slots(), ring(&all, RING_SMALL));
        }
    }
}
