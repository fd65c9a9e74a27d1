//! The seeds, and scenarios written out.

use crate::sim::scenario::{self, Done};
use crate::sim::seeds;

fn run_seeds(seeds: std::ops::Range<u64>) {
    let Some(all) = seeds::play(seeds, scenario::run) else {
        return;
    };
    let sum = |of: fn(&Done) -> usize| all.iter().map(of).sum::<usize>();
    let done = [
        sum(|done| done.acknowledged),
        sum(|done| done.reads),
        sum(|done| done.crashes),
        sum(|done| done.changes),
        sum(|done| done.snapshots),
    ];
    println!("acknowledged, reads, crashes, changes, snapshots: {done:?}");
    let enough = [500, 500, 50, 10, 10];
    let enough = done.iter().zip(enough).all(|(done, least)| *done > least);
    assert!(enough, "the scenarios did too little: {done:?}");
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
