//! What a VIP's ring holds, for each algorithm.
//!
//! The program chooses a slot (see `fiberlb_abi::algorithm`); the ring says whose it is:
//! - hashes (5-tuple, 3-tuple, source) look into a Maglev ring;
//! - weighted round robin walks through a sequence in which each backend stands as often as its weight
//!   says, spread evenly, with a turn of its own on each CPU;
//! - random of two draws twice from the same sequence and takes the backend with fewer open flows for
//!   its weight;
//! - least flows looks at every backend, each in one slot.

use fiberlb_abi::{RING_LARGE, RING_LINE, RING_SMALL, RingLine, SCAN_MAX};

use crate::desired::{Algorithm, RingSize};
use crate::maglev::{Entry, Maglev};

/// Most slots of a sequence; weights that need more are made coarser.
const SEQUENCE_MAX: u32 = RING_SMALL;

/// A ring under construction.
#[derive(Debug)]
pub enum Ring {
    /// For hashes.
    Maglev(Maglev),
    /// Complete from the beginning, as it is short.
    Listed(Vec<u16>),
}

impl Ring {
    /// Begins the ring of an algorithm.
    pub fn new(algorithm: Algorithm, size: RingSize, entries: Vec<Entry>) -> Self {
        match algorithm {
            Algorithm::FiveTuple | Algorithm::ThreeTuple | Algorithm::Source => {
                let len = match size {
                    RingSize::Large => RING_LARGE,
                    RingSize::Small => RING_SMALL,
                };
                Self::Maglev(Maglev::new(entries, len))
            }
            Algorithm::RoundRobin | Algorithm::RandomOfTwo => Self::Listed(sequence(entries)),
            Algorithm::LeastFlows => {
                assert!(entries.len() <= SCAN_MAX as usize);
                Self::Listed(entries.iter().map(|entry| entry.id).collect())
            }
        }
    }

    /// Does a bounded part of the work; true when the ring is complete.
    pub fn advance(&mut self, probes: u32) -> bool {
        match self {
            Self::Maglev(ring) => ring.advance(probes),
            Self::Listed(_) => true,
        }
    }

    /// How many slots it has, complete or not; at least one.
    #[expect(clippy::len_without_is_empty, reason = "a ring always has slots")]
    pub fn len(&self) -> u32 {
        match self {
            Self::Maglev(ring) => ring.len(),
            Self::Listed(slots) => (slots.len() as u32).max(1),
        }
    }

    /// The slots: 0 stands for no backend.
    pub fn into_slots(self) -> Vec<u16> {
        match self {
            Self::Maglev(ring) => ring.into_slots(),
            Self::Listed(slots) if slots.is_empty() => vec![0],
            Self::Listed(slots) => slots,
        }
    }
}

/// Entries that a map with so many slots needs.
pub fn lines(slots: usize) -> u32 {
    (slots as u32).div_ceil(RING_LINE)
}

/// Slots as the map has them.
pub fn packed(slots: &[u16]) -> Vec<RingLine> {
    let chunks = slots.chunks(RING_LINE as usize);
    chunks
        .map(|chunk| {
            let mut line = RingLine::default();
            line.reals[..chunk.len()].copy_from_slice(chunk);
            line
        })
        .collect()
}

/// Each backend as often as its weight says. Turn `k` of a backend with weight `w` is due at
/// `(k + 1/2) / w` of the whole; turns are in the order in which they are due.
fn sequence(mut entries: Vec<Entry>) -> Vec<u16> {
    entries.sort_by_key(|entry| entry.name);
    let common = entries
        .iter()
        .fold(0, |common, entry| gcd(common, entry.weight));
    let mut weights: Vec<u64> = entries
        .iter()
        .map(|entry| u64::from(entry.weight / common.max(1)))
        .collect();
    let sum: u64 = weights.iter().sum();
    let most = u64::from(SEQUENCE_MAX).max(entries.len() as u64);
    if sum > most {
        for weight in &mut weights {
            *weight = (*weight * (most - entries.len() as u64) / sum) + 1;
        }
    }
    let mut due: Vec<(u64, u16)> = Vec::new();
    for (entry, weight) in entries.iter().zip(weights) {
        let turns = (0..weight).map(|turn| (((2 * turn + 1) << 32) / (2 * weight), entry.id));
        due.extend(turns);
    }
    due.sort_by_key(|(at, _)| *at);
    due.into_iter().map(|(_, id)| id).collect()
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(id: u16, weight: u32) -> Entry {
        Entry {
            id,
            name: u64::from(id),
            weight,
        }
    }

    fn slots(algorithm: Algorithm, entries: Vec<Entry>) -> Vec<u16> {
        let mut ring = Ring::new(algorithm, RingSize::Small, entries);
        while !ring.advance(1000) {}
        ring.into_slots()
    }

    #[test]
    fn round_robin_spreads_turns_as_weights_say() {
        for (weights, wanted) in [
            ([1, 1, 1], vec![1, 2, 3]),
            ([10, 10, 10], vec![1, 2, 3]),
            ([4, 2, 1], vec![1, 2, 1, 3, 1, 2, 1]),
        ] {
            let entries = (1..).zip(weights).map(|(id, weight)| entry(id, weight));
            let got = slots(Algorithm::RoundRobin, entries.collect());
            assert_eq!(got, wanted, "{weights:?}");
        }
    }

    #[test]
    fn no_backend_is_one_slot_without_one() {
        for algorithm in [
            Algorithm::RoundRobin,
            Algorithm::RandomOfTwo,
            Algorithm::LeastFlows,
        ] {
            assert_eq!(slots(algorithm, Vec::new()), [0]);
        }
        let hashed = slots(Algorithm::FiveTuple, Vec::new());
        assert_eq!(hashed.len(), RING_SMALL as usize);
    }

    #[test]
    fn least_flows_has_each_backend_once() {
        let entries = (1..=64).map(|id| entry(id, u32::from(id))).collect();
        let wanted: Vec<u16> = (1..=64).collect();
        assert_eq!(slots(Algorithm::LeastFlows, entries), wanted);
    }

    proptest! {
        #[test]
        fn a_sequence_is_short_fair_and_misses_nobody(
            weights in proptest::collection::vec(1_u32..1_000_000, 1..100),
        ) {
            let entries: Vec<_> = (1..).zip(&weights).map(|(id, weight)| entry(id, *weight)).collect();
            let got = slots(Algorithm::RoundRobin, entries);
            prop_assert!(got.len() <= SEQUENCE_MAX as usize);
            let sum: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
            for (id, weight) in (1..).zip(&weights) {
                let turns = got.iter().filter(|slot| **slot == id).count();
                let wanted = f64::from(*weight) / sum as f64;
                let share = turns as f64 / got.len() as f64;
                prop_assert!(turns > 0);
                prop_assert!((share - wanted).abs() < 0.03, "{share} for {wanted}");
            }
        }
    }
}
