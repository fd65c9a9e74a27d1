//! A checker of linearizability for the history of one object: whether all calls could have happened
//! one after the other, each at one moment between its beginning and its end.
//!
//! The search is Wing and Gong's in Lowe's "just in time" form: calls are walked in the order of
//! their beginnings and ends, and every way in which the calls so far may have happened is kept as a
//! pair of the model's state and the open calls that are done already. Equal pairs are kept once,
//! which is the memory of the search. A call that may never have happened (the client did not hear)
//! is never forced; a call that only looks is done as soon as it fits, since waiting gains nothing.

use std::collections::BTreeSet;
use std::fmt;

/// What one object does, as a sequential machine.
pub trait Model {
    /// What the object is.
    type State: Clone + Ord + fmt::Debug;
    /// A call together with its answer.
    type Op: fmt::Debug;

    /// The state behind the call, when the call can be answered so in this state.
    fn step(state: &Self::State, op: &Self::Op) -> Option<Self::State>;

    /// Whether the call never changes what the object is; it may still tell more about it.
    fn only_looks(op: &Self::Op) -> bool;
}

/// A call on the object, by a clock that grows with every beginning and every end.
#[derive(Clone, Debug)]
pub struct Call<O> {
    pub op: O,
    pub began: u64,
    /// When it was answered; of an uncertain one, until when it may happen.
    pub ended: u64,
    /// Whether it happened for certain.
    pub certain: bool,
}

/// No order of the calls explains the answers.
#[derive(Debug)]
pub struct Violation<S> {
    /// The first call, by its end, that does not fit.
    pub call: usize,
    /// What the object may have been right before that end, open calls left out.
    pub states: BTreeSet<S>,
}

/// Most calls that are open at the same time: the bits of a [`Done`].
const OPEN_MAX: usize = 128;

/// The open calls that have happened, by place.
type Done = u128;

type Ways<M> = BTreeSet<(<M as Model>::State, Done)>;

/// What the object may be at the end of a history that begins in `initial`.
///
/// # Errors
/// A [`Violation`] when the history is not linearizable.
pub fn check<M: Model>(
    initial: M::State,
    calls: &[Call<M::Op>],
) -> Result<BTreeSet<M::State>, Violation<M::State>> {
    // At one moment beginnings come first: two calls that touch are side by side.
    let mut events: Vec<(u64, bool, usize)> = Vec::with_capacity(2 * calls.len());
    for (at, call) in calls.iter().enumerate() {
        assert!(call.began <= call.ended, "a call ends after it began");
        events.push((call.began, false, at));
        events.push((call.ended, true, at));
    }
    events.sort_unstable();
    let mut open: Vec<Option<usize>> = vec![None; OPEN_MAX];
    let mut ways: Ways<M> = BTreeSet::from([(initial, 0)]);
    for (_, is_end, at) in events {
        if !is_end {
            let free = open.iter().position(Option::is_none);
            open[free.expect("few calls are open at the same time")] = Some(at);
            continue;
        }
        let place = open.iter().position(|o| *o == Some(at));
        let place = place.expect("a call that ends is open");
        let next = end_of::<M>(calls, &open, &ways, place);
        if next.is_empty() {
            let states = ways.into_iter().map(|(state, _)| state).collect();
            return Err(Violation { call: at, states });
        }
        open[place] = None;
        ways = next;
    }
    Ok(ways.into_iter().map(|(state, _)| state).collect())
}

/// The ways in which everything may have happened when the call at `place` ends, which leaves its
/// place.
fn end_of<M: Model>(
    calls: &[Call<M::Op>],
    open: &[Option<usize>],
    ways: &Ways<M>,
    place: usize,
) -> Ways<M> {
    let certain = calls[open[place].expect("it is open")].certain;
    let bit = |place: usize| 1 << place;
    let mut next = Ways::<M>::new();
    let mut seen = Ways::<M>::new();
    let mut left: Vec<_> = ways.iter().cloned().collect();
    while let Some(way) = left.pop() {
        let (state, done) = look::<M>(calls, open, way);
        if !seen.insert((state.clone(), done)) {
            continue;
        }
        if done & bit(place) != 0 {
            next.insert((state, done & !bit(place)));
            continue;
        }
        if !certain {
            next.insert((state.clone(), done));
        }
        for (other, at) in open.iter().enumerate() {
            let Some(at) = at.filter(|_| done & bit(other) == 0) else {
                continue;
            };
            if let Some(state) = M::step(&state, &calls[at].op) {
                left.push((state, done | bit(other)));
            }
        }
    }
    next
}

/// The way with every open call done that only looks and that sees this very state.
fn look<M: Model>(
    calls: &[Call<M::Op>],
    open: &[Option<usize>],
    (state, mut done): (M::State, Done),
) -> (M::State, Done) {
    for (place, at) in open.iter().enumerate() {
        let Some(op) = at.map(|at| &calls[at].op) else {
            continue;
        };
        if M::only_looks(op) && M::step(&state, op).as_ref() == Some(&state) {
            done |= 1 << place;
        }
    }
    (state, done)
}
