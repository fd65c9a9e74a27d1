//! The seeds, and scenarios written out.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::sim::scenario::{self, Done};

/// Runs one seed alone: the replay of a failure.
const SEED: &str = "CHAINFIRE_SIM_SEED";

fn run_seeds(seeds: std::ops::Range<u64>) {
    let alone = std::env::var(SEED).is_ok();
    let seeds = match std::env::var(SEED) {
        Ok(seed) => {
            let seed: u64 = seed.parse().expect("a seed is a number");
            if seeds.contains(&seed) {
                seed..seed + 1
            } else {
                return;
            }
        }
        Err(_) => seeds,
    };
    let mut total = Done::default();
    for seed in seeds {
        let done = catch_unwind(AssertUnwindSafe(|| scenario::run(seed)));
        let done =
            done.unwrap_or_else(|_| panic!("seed {seed} failed; replay it with {SEED}={seed}"));
        println!("seed {seed}: {done:?}");
        total.acknowledged += done.acknowledged;
        total.reads += done.reads;
        total.crashes += done.crashes;
        total.changes += done.changes;
        total.snapshots += done.snapshots;
    }
    println!("{total:?}");
    let enough = total.acknowledged > 500
        && total.reads > 500
        && total.crashes > 50
        && total.changes > 10
        && total.snapshots > 10;
    assert!(enough || alone, "the scenarios did too little: {total:?}");
}

#[test]
fn seeds_0_to_49_keep_the_invariants() {
    run_seeds(0..50);
}

#[test]
fn seeds_50_to_99_keep_the_invariants() {
    run_seeds(50..100);
}

#[test]
fn seeds_100_to_149_keep_the_invariants() {
    run_seeds(100..150);
}

#[test]
fn seeds_150_to_199_keep_the_invariants() {
    run_seeds(150..200);
}

#[test]
fn a_seed_replays_the_same() {
    assert_eq!(scenario::run(7), scenario::run(7));
}
