//! Worlds in which something is broken, to see that the checks find it.

use crate::sim::scenario;
use crate::sim::seeds;

/// So many seeds are played at most.
const SEEDS: u64 = 20;

/// What is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Breakage {
    /// Clients read without a barrier.
    Barrier,
    /// One member answers some commands without applying them.
    Command,
}

/// Whether some check says one of `expected`.
fn is_found(breakage: Breakage, expected: &[&str]) {
    let play = |seed| scenario::run_with(seed, Some(breakage));
    seeds::find(0..SEEDS, play, expected);
}

#[test]
fn a_read_without_its_barrier_is_found() {
    is_found(Breakage::Barrier, &["is not linearizable"]);
}

#[test]
fn a_command_that_one_member_does_not_apply_is_found() {
    is_found(Breakage::Command, &["is not linearizable", "the states of"]);
}
