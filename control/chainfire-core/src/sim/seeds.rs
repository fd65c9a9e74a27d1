//! Plays seeds, and one alone to look at a failure.

use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::sim::check::panics;

/// The seed to replay, alone.
pub const SEED: &str = "CHAINFIRE_SIM_SEED";

/// Plays those of `seeds` that are asked for, in order: all, or the one that [`SEED`] names. Tells of
/// each what it did; `None` where one was played alone, or none of these was asked for.
///
/// # Panics
/// Where a seed fails; with its number and how to replay it.
pub fn play<D: Debug>(
    seeds: impl IntoIterator<Item = u64>,
    mut play: impl FnMut(u64) -> D,
) -> Option<Vec<D>> {
    let alone = std::env::var(SEED).ok();
    let alone: Option<u64> = alone.map(|seed| seed.parse().expect("a seed is a number"));
    let asked = seeds
        .into_iter()
        .filter(|seed| alone.is_none_or(|alone| alone == *seed));
    let mut all = Vec::new();
    for seed in asked {
        let done = catch_unwind(AssertUnwindSafe(|| play(seed)));
        let done =
            done.unwrap_or_else(|_| panic!("seed {seed} failed; replay it with {SEED}={seed}"));
        println!("seed {seed}: {done:?}");
        all.push(done);
    }
    alone.is_none().then_some(all)
}

/// Plays seeds of a world in which something is broken, up to the first in which a check finds it.
///
/// # Panics
/// Where no seed shows it, or no check says one of `expected` there.
pub fn find<D>(
    seeds: impl IntoIterator<Item = u64>,
    mut play: impl FnMut(u64) -> D,
    expected: &[&str],
) {
    for seed in seeds {
        if catch_unwind(AssertUnwindSafe(|| play(seed))).is_err() {
            let found = panics::caught();
            println!("found in seed {seed}");
            let says = |what: &String| expected.iter().any(|expected| what.contains(expected));
            assert!(found.iter().any(says), "found was {found:#?}");
            return;
        }
    }
    panic!("no check has found it");
}
