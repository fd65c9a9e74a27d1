//! The seeds.

use chainfire_core::sim::seeds;

use super::scenario::{self, Done};

/// How many seeds are played; `UC_SEEDS` asks for more.
const SEEDS: u64 = 200;

/// Every fourth seed, from `first` on.
fn run_seeds(first: u64) {
    let count = std::env::var("UC_SEEDS").map_or(SEEDS, |count| {
        let count: u64 = count.parse().expect("a number of seeds");
        count.max(SEEDS)
    });
    let Some(all) = seeds::play((first..count).step_by(4), scenario::run) else {
        return;
    };
    let sum = |of: fn(&Done) -> usize| all.iter().map(of).sum::<usize>();
    let done = [
        sum(|done| done.answered),
        sum(|done| done.events),
        sum(|done| done.sessions),
        sum(|done| done.compacted),
        sum(|done| done.leases_ended),
        sum(|done| done.restored),
        sum(|done| done.hashes),
        sum(|done| done.crashes),
        sum(|done| done.changes),
    ];
    println!("answered, events, sessions, compacted, leases, restored, hashes, crashes, changes:");
    println!("{done:?}");
    let enough = [1000, 1000, 100, 5, 20, 5, 100, 30, 5];
    let enough = done.iter().zip(enough).all(|(done, least)| *done > least);
    assert!(enough, "the scenarios did too little: {done:?}");
}

#[test]
fn keys_watches_and_leases_keep_their_promises_on_seeds_0_4_and_on() {
    run_seeds(0);
}

#[test]
fn keys_watches_and_leases_keep_their_promises_on_seeds_1_5_and_on() {
    run_seeds(1);
}

#[test]
fn keys_watches_and_leases_keep_their_promises_on_seeds_2_6_and_on() {
    run_seeds(2);
}

#[test]
fn keys_watches_and_leases_keep_their_promises_on_seeds_3_7_and_on() {
    run_seeds(3);
}

#[test]
fn a_seed_replays_the_same() {
    assert_eq!(scenario::run(7), scenario::run(7));
}
