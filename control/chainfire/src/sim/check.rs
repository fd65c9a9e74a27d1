//! What must hold of all that clients saw.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use porcupine_rs::{CheckResult, check_operations_timeout};

use super::client::{KEYS, key};
use super::history::{Expected, History, Operation, Step};
use super::model::Model;

/// What happened to one key, for the checker.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Touch {
    Put(Bytes, i64),
    Delete,
    /// With its outcome, if that is known.
    Swap(Expected, Bytes, Option<bool>),
    Revoke(i64),
    Read(Option<Bytes>),
}

/// One key: its value and lease, or nothing.
#[derive(Debug, Clone)]
struct Key;

impl porcupine_rs::Model for Key {
    type State = Option<(Bytes, i64)>;
    type Op = Touch;
    type Metadata = ();

    fn init() -> Self::State {
        None
    }

    fn step(state: &Self::State, touch: &Touch) -> (bool, Self::State) {
        let value = state.as_ref().map(|(value, _)| value);
        match touch {
            Touch::Put(value, lease) => (true, Some((value.clone(), *lease))),
            Touch::Delete => (true, None),
            Touch::Revoke(lease) => {
                let kept = state.clone().filter(|(_, attached)| attached != lease);
                (true, kept)
            }
            Touch::Read(read) => (read.as_ref() == value, state.clone()),
            Touch::Swap(expected, to, outcome) => {
                let same = expected.as_ref() == value;
                let next = if same {
                    Some((to.clone(), 0))
                } else {
                    state.clone()
                };
                (outcome.is_none_or(|outcome| outcome == same), next)
            }
        }
    }
}

/// What an operation did to a key, if it touched it.
fn touch(operation: &Operation, key: &Bytes) -> Option<Touch> {
    match &operation.step {
        Step::Put {
            key: of,
            value,
            lease,
        } => (of == key).then(|| Touch::Put(value.clone(), *lease)),
        Step::Delete(range) => range.contains(key).then_some(Touch::Delete),
        Step::Revoke(lease) => Some(Touch::Revoke(*lease)),
        Step::Swap {
            keys,
            expected,
            value,
        } => {
            let at = keys.iter().position(|one| one == key)?;
            let outcome = operation.answer.map(|answer| answer.detail == 1);
            match (at, outcome) {
                (0, _) => Some(Touch::Swap(expected.clone(), value.clone(), outcome)),
                // What may still take effect may do so after all else, unseen.
                (_, None | Some(true)) => Some(Touch::Put(value.clone(), 0)),
                (_, Some(false)) => None,
            }
        }
        Step::Read {
            range,
            serializable: false,
            revision: 0,
            kvs,
        } => range.contains(key).then(|| {
            let kv = kvs.iter().find(|kv| kv.key == *key);
            Touch::Read(kv.map(|kv| kv.value.clone()))
        }),
        Step::Other | Step::Read { .. } => None,
    }
}

/// All that happened to a key.
fn touches<'a>(history: &'a History, key: &Bytes) -> Vec<(&'a Operation, Touch)> {
    let all = history.operations.iter();
    all.filter_map(|operation| Some((operation, touch(operation, key)?)))
        .collect()
}

/// The same without what may have changed nothing that anybody saw: ends of leases that the key never
/// hung on, and writes of unknown outcome whose value, which no other write has, was never seen.
fn seen<'a>(all: &[(&'a Operation, Touch)]) -> Vec<(&'a Operation, Touch)> {
    let (mut leases, mut seen) = (BTreeSet::new(), BTreeSet::new());
    for (_, touch) in all {
        match touch {
            Touch::Put(_, lease) => _ = leases.insert(*lease),
            Touch::Read(value) | Touch::Swap(value, ..) => seen.extend(value.clone()),
            Touch::Delete | Touch::Revoke(_) => {}
        }
    }
    let matters = |operation: &Operation, touch: &Touch| match touch {
        Touch::Revoke(lease) => leases.contains(lease),
        // The end of its lease would be seen.
        Touch::Put(_, lease) if *lease != 0 => true,
        Touch::Put(value, _) | Touch::Swap(_, value, _) => {
            operation.answer.is_some() || seen.contains(value)
        }
        Touch::Delete | Touch::Read(_) => true,
    };
    let all = all.iter().cloned();
    all.filter(|(operation, touch)| matters(operation, touch))
        .collect()
}

fn explained(touches: &[(&Operation, Touch)]) -> CheckResult {
    let operations: Vec<_> = touches
        .iter()
        .map(|(operation, op)| porcupine_rs::Operation {
            client_id: Some(operation.client),
            call_time: operation.call,
            return_time: operation.returned,
            op: op.clone(),
            metadata: None,
        })
        .collect();
    check_operations_timeout::<Key>(&operations, Duration::from_secs(30))
}

/// For each key some order of the operations explains what every client saw.
pub fn linearizable(history: &History) {
    for number in 0..u64::from(KEYS) {
        let key = key(number);
        let all = touches(history, &key);
        // The search grows with every write whose outcome is not known: first without those that most
        // likely need none. A swap that failed may still tell of a value that no read has shown.
        if explained(&seen(&all)) == CheckResult::Ok {
            continue;
        }
        let found = explained(&all);
        let told: Vec<_> = all
            .iter()
            .map(|(operation, touch)| (operation.client, operation.call, operation.returned, touch))
            .collect();
        assert!(
            found == CheckResult::Ok,
            "the history of {key:?} is not linearizable: {found:?} of {told:#?}"
        );
    }
}

/// Whether the order of an operation among the revisions is the order in time.
fn is_ordered(operation: &Operation) -> bool {
    match operation.step {
        Step::Read {
            serializable,
            revision,
            ..
        } => !serializable && revision == 0,
        _ => operation.answer.is_some(),
    }
}

/// Whether an operation has a revision of its own.
fn has_changed(operation: &Operation) -> bool {
    let detail = operation.answer.map_or(0, |answer| answer.detail);
    match operation.step {
        Step::Put { .. } => true,
        Step::Delete(_) | Step::Swap { .. } => detail > 0,
        _ => false,
    }
}

/// Revisions follow real time: what was answered is seen by all that is asked later.
pub fn in_real_time(history: &History) {
    let ordered = history.operations.iter().filter(|one| is_ordered(one));
    let mut moments: Vec<(i64, bool, &Operation)> = ordered
        .flat_map(|one| [(one.call, false, one), (one.returned, true, one)])
        .collect();
    moments.sort_by_key(|(at, ..)| *at);
    let mut floors = BTreeMap::new();
    let mut newest = 1;
    for (_, returned, operation) in moments {
        let revision = operation.answer.map_or(0, |answer| answer.revision);
        if !returned {
            floors.insert(operation.call, newest);
            continue;
        }
        let floor = floors[&operation.call] + i64::from(has_changed(operation));
        assert!(
            revision >= floor,
            "an answer is older than {floor}, which was answered before: {operation:#?}"
        );
        newest = newest.max(revision);
    }
}

/// Each answer tells what the model tells at its revision.
pub fn as_modelled(history: &History, model: &Model) {
    for operation in &history.operations {
        let Some(answer) = operation.answer else {
            continue;
        };
        match &operation.step {
            Step::Read {
                range,
                revision,
                kvs,
                ..
            } => {
                let at = if *revision == 0 {
                    answer.revision
                } else {
                    *revision
                };
                assert_eq!(*kvs, model.range(range, at), "a read at {at}");
            }
            Step::Put { key, value, lease } => {
                let kv = model.at(key, answer.revision).expect("it was put");
                let same = kv.value == *value && kv.lease == *lease;
                assert!(same && kv.mod_revision == answer.revision, "{operation:#?}");
            }
            Step::Swap { keys, value, .. } if answer.detail == 1 => {
                for key in keys {
                    let kv = model.at(key, answer.revision).expect("it was put");
                    let same = kv.value == *value && kv.mod_revision == answer.revision;
                    assert!(same, "{operation:#?}");
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use tonic::Status;

    use super::super::model::Answer;
    use super::*;

    /// A swap that expects no value, and fails.
    fn swap_fails(history: &mut History) {
        let step = Step::Swap {
            keys: vec![key(0)],
            expected: None,
            value: "2".into(),
        };
        let answer = Answer {
            revision: 2,
            detail: 0,
        };
        let call = history.tick();
        history.wrote(2, call, step, Ok(answer));
    }

    #[test]
    fn a_swap_may_fail_by_a_write_that_was_not_answered() {
        let mut history = History::default();
        let step = Step::Put {
            key: key(0),
            value: "1".into(),
            lease: 0,
        };
        let call = history.tick();
        history.wrote(1, call, step, Err(&Status::unknown("the connection broke")));
        swap_fails(&mut history);
        linearizable(&history);
    }

    #[test]
    #[should_panic(expected = "is not linearizable")]
    fn a_swap_may_not_fail_by_nothing() {
        let mut history = History::default();
        swap_fails(&mut history);
        linearizable(&history);
    }
}
