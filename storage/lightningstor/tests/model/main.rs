//! The whole node against a model, under the simulator: random histories of concurrent clients over
//! signed HTTP, crashes and faults in between, and every key's history checked for linearizability.
//! Contract BY-2.
//!
//! `UC_SEED=7` plays one seed; `UC_SEEDS=5000` plays the first so many instead of 200. A seed that
//! fails prints itself and the history of the offending key.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

mod client;
mod history;
mod http;
mod laws;
mod linear;
mod listing;
mod object;
mod reads;
mod uploads;
mod world;

use world::Seen;

const SEEDS: u64 = 200;
/// The seeds are dealt out to so many tests, which run side by side.
const HANDS: u64 = 8;

fn from_env(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(
        value
            .parse()
            .unwrap_or_else(|_| panic!("{name} is a number, not {value:?}")),
    )
}

/// Plays every `HANDS`-th seed from `hand` on; or only the seed that the environment names.
fn play(hand: u64) {
    if let Some(seed) = from_env("UC_SEED") {
        if seed % HANDS == hand {
            println!("seed {seed}: {:?}", world::run(seed));
        }
        return;
    }
    let seeds = (hand..from_env("UC_SEEDS").unwrap_or(SEEDS)).step_by(HANDS as usize);
    let mut sum = Seen::default();
    let mut played = 0;
    for seed in seeds {
        println!("seed {seed}");
        let seen = world::run(seed);
        sum.calls += seen.calls;
        sum.checkpoints += seen.checkpoints;
        sum.compacted += seen.compacted;
        played += 1;
    }
    println!("{played} seeds: {sum:?}");
    assert!(sum.calls > 200 * played, "few calls: {sum:?}");
    assert!(sum.checkpoints > 2 * played, "few checkpoints: {sum:?}");
    assert!(sum.compacted > played, "little compaction: {sum:?}");
}

macro_rules! hands {
    ($($name:ident: $hand:literal,)*) => {
        $(
            #[test]
            fn $name() {
                play($hand);
            }
        )*
    };
}

hands! {
    histories_are_linearizable_first_hand: 0,
    histories_are_linearizable_second_hand: 1,
    histories_are_linearizable_third_hand: 2,
    histories_are_linearizable_fourth_hand: 3,
    histories_are_linearizable_fifth_hand: 4,
    histories_are_linearizable_sixth_hand: 5,
    histories_are_linearizable_seventh_hand: 6,
    histories_are_linearizable_eighth_hand: 7,
}

#[test]
fn a_seed_plays_the_same_way_twice() {
    let (first, second) = (world::run(3), world::run(3));
    assert_eq!(first.trace, second.trace);
}

#[test]
fn an_object_made_of_an_empty_part_is_read_and_listed() {
    world::undisturbed(|mut client| async move {
        client.create_bucket().await;
        client.upload_nothing(0).await;
        client.get_at_last(0).await;
        client.list_at_last().await;
    });
}
