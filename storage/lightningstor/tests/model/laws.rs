//! The checker is checked: bad histories made by hand are refused, good ones are taken, and on
//! thousands of random small histories it agrees with a search through all orders.

use std::collections::BTreeSet;

use engine::Rng;

use super::linear::{Call, Model, check};
use super::object::{Guard, Key, Object, Op};

type History = Vec<Call<Op>>;

fn object(number: u32) -> Object {
    Object {
        body: Some(number),
        etag: Some(number),
        tag: Some(number.into()),
    }
}

fn put(number: u32) -> Op {
    Op::Write(Guard::None, object(number))
}

fn saw(number: u32) -> Op {
    Op::Saw(object(number))
}

fn did(op: Op, began: u64, ended: u64) -> Call<Op> {
    Call {
        op,
        began,
        ended,
        certain: true,
    }
}

/// A call whose client did not hear; it cannot happen any more after `ended`.
fn maybe(op: Op, began: u64, ended: u64) -> Call<Op> {
    Call {
        op,
        began,
        ended,
        certain: false,
    }
}

#[track_caller]
fn taken(history: &[Call<Op>]) {
    if let Err(violation) = check::<Key>(None, history) {
        panic!("refused: {violation:?}");
    }
}

#[track_caller]
fn refused(history: &[Call<Op>], at: usize) {
    let violation = check::<Key>(None, history).expect_err("no order explains it");
    assert_eq!(violation.call, at);
}

#[test]
fn a_stale_read_is_refused() {
    refused(
        &[
            did(put(1), 1, 2),
            did(put(2), 3, 4),
            did(saw(2), 5, 6),
            did(saw(1), 7, 8),
        ],
        3,
    );
    refused(&[did(put(1), 1, 2), did(Op::SawNone, 3, 4)], 1);
    // Beside a write either may be seen, but not the new one first and the old one later.
    taken(&[
        did(put(1), 1, 2),
        did(put(2), 3, 10),
        did(saw(1), 4, 5),
        did(saw(2), 6, 7),
    ]);
    refused(
        &[
            did(put(1), 1, 2),
            did(put(2), 3, 10),
            did(saw(2), 4, 5),
            did(saw(1), 6, 7),
        ],
        3,
    );
}

#[test]
fn a_lost_update_is_refused() {
    let replace = |new, old| Op::Write(Guard::Etag(old), object(new));
    refused(
        &[
            did(put(1), 1, 2),
            did(replace(2, 1), 3, 6),
            did(replace(3, 1), 4, 7),
        ],
        2,
    );
    taken(&[
        did(put(1), 1, 2),
        did(replace(2, 1), 3, 6),
        did(Op::SawOther(1), 4, 7),
    ]);
    // Acknowledged, and gone after a crash.
    refused(
        &[did(put(1), 1, 2), did(put(2), 3, 4), did(saw(1), 9, 10)],
        2,
    );
}

#[test]
fn a_delete_that_is_undone_is_refused() {
    refused(
        &[
            did(put(1), 1, 2),
            did(Op::Remove(Guard::None), 3, 4),
            did(saw(1), 5, 6),
        ],
        2,
    );
    refused(
        &[did(put(1), 1, 2), did(Op::Remove(Guard::Etag(2)), 3, 4)],
        1,
    );
    taken(&[
        did(put(1), 1, 2),
        did(Op::Remove(Guard::None), 3, 6),
        did(saw(1), 4, 5),
        did(Op::SawNone, 7, 8),
    ]);
}

#[test]
fn two_that_both_found_nothing_are_refused() {
    let first = |number| Op::Write(Guard::Absent, object(number));
    refused(&[did(first(1), 1, 4), did(first(2), 2, 5)], 1);
    taken(&[did(first(1), 1, 4), did(Op::Saw(Object::default()), 2, 5)]);
    taken(&[
        did(first(1), 1, 6),
        did(Op::Remove(Guard::None), 2, 5),
        did(first(2), 3, 4),
    ]);
}

#[test]
fn a_write_that_nobody_answered_happens_once_or_never_and_not_too_late() {
    taken(&[
        did(put(1), 1, 2),
        maybe(put(2), 3, u64::MAX),
        did(saw(1), 5, 6),
    ]);
    taken(&[
        did(put(1), 1, 2),
        maybe(put(2), 3, u64::MAX),
        did(saw(2), 5, 6),
    ]);
    taken(&[
        did(put(1), 1, 2),
        maybe(put(2), 3, u64::MAX),
        did(saw(1), 5, 6),
        did(saw(2), 7, 8),
    ]);
    // Once only.
    refused(
        &[
            maybe(put(2), 1, u64::MAX),
            did(saw(2), 2, 3),
            did(put(3), 4, 5),
            did(saw(2), 6, 7),
        ],
        3,
    );
    // The crash at 5 ended its chance: what recovery did not bring back stays away.
    refused(
        &[
            did(put(1), 1, 2),
            maybe(put(2), 3, 5),
            did(saw(1), 6, 7),
            did(saw(2), 8, 9),
        ],
        3,
    );
    taken(&[did(put(1), 1, 2), maybe(put(2), 3, 5), did(saw(2), 8, 9)]);
}

#[test]
fn what_is_unknown_of_an_object_is_known_once_it_was_seen() {
    let copied = Op::Write(
        Guard::None,
        Object {
            tag: Some(1),
            ..Object::default()
        },
    );
    let mut two = object(2);
    two.tag = Some(1);
    let mut three = object(3);
    three.tag = Some(1);
    taken(&[
        did(copied, 1, 2),
        did(Op::Saw(two), 3, 4),
        did(Op::Saw(two), 5, 6),
    ]);
    refused(
        &[
            did(copied, 1, 2),
            did(Op::Saw(two), 3, 4),
            did(Op::Saw(three), 5, 6),
        ],
        2,
    );
}

/// Whether some order explains the history, by trying all of them.
fn explained(state: Option<Object>, left: &[&Call<Op>]) -> bool {
    let first_end = left.iter().map(|call| call.ended).min();
    let Some(first_end) = first_end else {
        return true;
    };
    (0..left.len()).any(|at| {
        let rest = || -> Vec<&Call<Op>> {
            let others = left.iter().enumerate().filter(|(other, _)| *other != at);
            others.map(|(_, call)| *call).collect()
        };
        let call = left[at];
        if call.began > first_end {
            return false;
        }
        let done = Key::step(&state, &call.op).is_some_and(|next| explained(next, &rest()));
        // Only the one that ends first is given up here: giving up waits until it has to.
        let given_up = !call.certain && call.ended == first_end && explained(state, &rest());
        done || given_up
    })
}

fn random_op(rng: &mut Rng) -> Op {
    let number = rng.below(3) as u32;
    let guard = match rng.below(4) {
        0 => Guard::Absent,
        1 => Guard::Etag(number),
        2 => Guard::Present,
        _ => Guard::None,
    };
    match rng.below(8) {
        0 | 1 => Op::Write(guard, object(rng.below(3) as u32)),
        2 => Op::Write(guard, Object::default()),
        3 => Op::Remove(guard),
        4 => Op::SawNone,
        5 => Op::SawOther(number),
        _ => saw(number),
    }
}

/// Some calls at distinct times.
fn random_history(rng: &mut Rng) -> History {
    let count = 1 + rng.below(6) as usize;
    let mut times: Vec<u64> = (0..2 * count as u64).collect();
    for at in (1..times.len()).rev() {
        times.swap(at, rng.below(at as u64 + 1) as usize);
    }
    // Long calls hide everything: most are cut short.
    let call = |pair: &[u64], rng: &mut Rng| {
        let (began, ended) = (pair[0].min(pair[1]), pair[0].max(pair[1]));
        let ended = ended.min(began + rng.below(6));
        Call {
            op: random_op(rng),
            began,
            ended,
            certain: !rng.once_in(4),
        }
    };
    times.chunks(2).map(|pair| call(pair, rng)).collect()
}

#[test]
fn the_checker_agrees_with_a_search_through_all_orders() {
    let mut rng = Rng::new(1);
    let mut verdicts = [0; 2];
    for number in 0..20_000 {
        let history = random_history(&mut rng);
        let expected = explained(None, &history.iter().collect::<Vec<_>>());
        let found = check::<Key>(None, &history);
        assert_eq!(found.is_ok(), expected, "history {number}: {history:#?}");
        verdicts[usize::from(expected)] += 1;
    }
    assert!(verdicts.iter().all(|count| *count > 2_000), "{verdicts:?}");
}

#[test]
fn the_states_at_the_end_are_all_that_may_be() {
    let history = [did(put(1), 1, 2), maybe(put(2), 3, 9), did(put(3), 4, 8)];
    let states = check::<Key>(None, &history).unwrap();
    assert_eq!(states, BTreeSet::from([Some(object(2)), Some(object(3))]));
}
