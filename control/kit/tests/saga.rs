//! Operations in a simulated cloud: processes die at every message and at random, requests are lost or
//! arrive late, steps fail. Contract BY-3: whatever happens, each operation ends, or fails by name and ends
//! by its verbs; what was done outside is all there, or all gone; an executor that was taken over changes
//! nothing more.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

#[path = "saga/outside.rs"]
mod outside;
#[path = "saga/process.rs"]
mod process;

use std::time::Duration;

use control_kit::saga::{Begin, Record, SagaErrorKind, SagaId, State};
use control_kit::store::{Range, all};
use store_sim::{Faults, World, for_seeds, simulate};

use outside::Outside;
use process::{DEADLINE, Process, STEPS};

/// Seeds, unless `UC_SEEDS` says more; `UC_SEED` replays one.
const SEEDS: u64 = 200;
/// Longer than any operation may take here, retries and take-overs included.
const PATIENCE: Duration = Duration::from_hours(1);

fn begin(id: u64, object: &str) -> Begin {
    Begin {
        id: SagaId::from_u128(u128::from(id)),
        kind: "widget-create".into(),
        object: object.into(),
        tenant: "tenant".into(),
        principal: "ann".into(),
        request_id: "r-1".into(),
        input: serde_json::json!({ "size": 4 }),
        ..Begin::default()
    }
}

/// Begins until it is certain that it has begun: what a client with an idempotency key does.
async fn begun(world: &World, process: &Process, id: u64, object: &str) -> Record {
    loop {
        match process.sagas.begin(begin(id, object)).await {
            Ok(record) => return record,
            Err(error) => {
                let kind = error.kind();
                let passes = [SagaErrorKind::NotReady, SagaErrorKind::Store];
                assert!(passes.contains(&kind), "{error}");
                world.pass(Duration::from_millis(200)).await;
            }
        }
    }
}

/// Waits until an operation has ended, with an operator at hand for one that has failed.
async fn ended(world: &World, process: &Process, id: u64) -> Record {
    let id = SagaId::from_u128(u128::from(id));
    let waiting = async {
        loop {
            match process.sagas.wait(id, None, Duration::from_mins(1)).await {
                Ok(record) if record.state.is_ended() => return record,
                Ok(record) if record.state == State::Failed => {
                    assert!(record.failure.is_some(), "a failed state has a name");
                    // Somebody else may have been quicker, or the store slow: looked at again.
                    let _ = process.sagas.retry(id).await;
                }
                _ => world.pass(Duration::from_millis(100)).await,
            }
        }
    };
    let ended = tokio::time::timeout(PATIENCE, waiting).await;
    ended.unwrap_or_else(|_| panic!("operation {id} is stuck"))
}

/// Waits until an operation has ended; nobody helps.
async fn ended_by_itself(process: &Process, id: u64) -> Record {
    let id = SagaId::from_u128(u128::from(id));
    let record = process.sagas.wait(id, None, DEADLINE).await.unwrap();
    assert!(record.state.is_ended(), "{record:?}");
    record
}

/// What must be so when everything has ended.
async fn judge(world: &World, outside: &Outside, records: &[Record]) {
    world.network().set(Faults::default());
    // What was late arrives, and is refused.
    world.pass(Duration::from_mins(1)).await;
    let store = world.client();
    for prefix in ["saga/open/", "saga/object/"] {
        let left = all(&store, Range::prefix(prefix, 100)).await.unwrap();
        assert!(left.is_empty(), "left of operations: {left:?}");
    }
    let widgets = all(&store, Range::prefix("widget/", 100)).await.unwrap();
    let events = all(&store, Range::prefix("audit/", 100)).await.unwrap();
    for record in records {
        let key = format!("widget/{}", record.object);
        let is_there = widgets.iter().any(|entry| entry.key == key);
        let expected: &[&str] = match record.state {
            State::Done => &STEPS,
            _ => &[],
        };
        assert_eq!(is_there, record.state == State::Done, "{record:?}");
        assert_eq!(outside.of(&record.object), expected, "{record:?}");
        let told = |outcome: &str| {
            let of = |value: &[u8]| serde_json::from_slice::<serde_json::Value>(value).unwrap();
            let events = events.iter().map(|entry| of(&entry.value));
            let mine = events.filter(|event| event["object"] == record.object.as_str());
            mine.filter(|event| event["outcome"] == outcome).count()
        };
        assert_eq!(told("begun"), 1, "{record:?}");
        assert_eq!(told(record.state.name()), 1, "{record:?}");
    }
}

#[test]
fn one_operation_costs_a_write_to_begin_and_one_for_each_step() {
    simulate(async {
        let world = World::new(1, Faults::default());
        let outside = Outside::default();
        let process = Process::start(&world, &outside);
        process.sagas.ready().await;
        let before = world.commits();
        begun(&world, &process, 1, "red").await;
        let record = ended(&world, &process, 1).await;
        assert_eq!(record.state, State::Done);
        // The transactions, and the lease for what is kept a while.
        let steps = STEPS.len() as u64;
        assert_eq!(world.commits() - before, 1 + steps);
        judge(&world, &outside, &[record]).await;
    });
}

#[test]
fn a_process_with_many_operations_open_begins_no_more_until_some_have_ended() {
    simulate(async {
        let world = World::new(1, Faults::default());
        let outside = Outside::default();
        let process = Process::bounded(&world, &outside, 2);
        process.sagas.ready().await;
        for id in 1..=2 {
            begun(&world, &process, id, &format!("w{id}")).await;
        }
        // They are known to be open once they have begun to work.
        world.pass(Duration::from_millis(100)).await;
        let refused = process.sagas.begin(begin(3, "w3")).await.unwrap_err();
        assert_eq!(refused.kind(), SagaErrorKind::TooMany);
        for id in 1..=2 {
            ended_by_itself(&process, id).await;
        }
        world.pass(Duration::from_millis(100)).await;
        begun(&world, &process, 3, "w3").await;
        let mut records = Vec::new();
        for id in 1..=3 {
            records.push(ended_by_itself(&process, id).await);
        }
        judge(&world, &outside, &records).await;
    });
}

/// When a process dies.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// While a message is under way, counted from the beginning.
    Message(u64),
    /// This long after the beginning, whatever it waits for.
    After(Duration),
}

#[test]
fn a_process_that_dies_at_any_message_leaves_nothing_half_done() {
    let deaths = died_at_each(Moment::Message);
    assert!(deaths > 3 * 12, "the process died {deaths} times only");
}

#[test]
fn a_process_that_dies_at_any_time_leaves_nothing_half_done() {
    // Steps take hundreds of milliseconds, messages a few.
    let deaths = died_at_each(|at| Moment::After(Duration::from_millis(7) * at as u32));
    assert!(deaths > 3 * 100, "the process died {deaths} times only");
}

/// One process after the other dies, each at a later moment, until one does not: an operation that works, and
/// those that fail early and late. Gives how many died.
fn died_at_each(moment: impl Fn(u64) -> Moment) -> u64 {
    let mut deaths = 0;
    for fails_at in [None, Some(STEPS[1]), Some(STEPS[2])] {
        let expected = if fails_at.is_some() {
            State::Undone
        } else {
            State::Done
        };
        for at in 1.. {
            let (died, state) = die_at(moment(at), fails_at);
            assert_eq!(state, expected, "{:?}", moment(at));
            if !died {
                break;
            }
            deaths += 1;
        }
    }
    deaths
}

/// One process dies, another ends what it began. Gives whether it died, and how the operation ended.
fn die_at(moment: Moment, fails_at: Option<&'static str>) -> (bool, State) {
    let mut result = None;
    simulate(async {
        let world = World::new(1, Faults::default());
        let outside = Outside::default();
        outside.fail_at(fails_at);
        let first = Process::start(&world, &outside);
        first.sagas.ready().await;
        let from = world.network().messages();
        let story = async {
            begun(&world, &first, 1, "red").await;
            ended(&world, &first, 1).await
        };
        let death = async {
            match moment {
                Moment::Message(message) => world.network().message(from + message).await,
                Moment::After(time) => world.pass(time).await,
            }
        };
        let died = tokio::select! {
            biased;
            () = death => true,
            _ = story => false,
        };
        first.die().await;
        let second = Process::start(&world, &outside);
        // The client asks again, under the same id.
        begun(&world, &second, 1, "red").await;
        let record = ended_by_itself(&second, 1).await;
        judge(&world, &outside, std::slice::from_ref(&record)).await;
        result = Some((died, record.state));
    });
    result.unwrap()
}

#[test]
fn whatever_fails_every_operation_ends_and_nothing_is_left_of_those_undone() {
    for_seeds(SEEDS, storm);
}

/// Processes come and go, messages are lost and late, steps fail, until all operations have ended.
async fn storm(seed: u64) {
    let world = World::new(seed, Faults::rough());
    let outside = Outside::default();
    let chance = |of: u64| world.network().below(of);
    outside.roll(chance(1000), 150);
    let mut processes = vec![
        Process::start(&world, &outside),
        Process::start(&world, &outside),
    ];
    let count = 3 + chance(3);
    for id in 1..=count {
        let at = chance(processes.len() as u64) as usize;
        begun(&world, &processes[at], id, &format!("o{id}")).await;
        for _ in 0..chance(3) {
            world.pass(Duration::from_millis(chance(3000))).await;
            let at = chance(processes.len() as u64) as usize;
            let victim = processes.swap_remove(at);
            if chance(2) == 0 {
                victim.die().await;
            } else {
                // It does not know: it goes on, cut off, and wakes up later.
                victim.sleep_through(&world, Duration::from_millis(chance(60_000)));
            }
            processes.push(Process::start(&world, &outside));
        }
    }
    outside.roll(seed, 0);
    let mut records = Vec::new();
    for id in 1..=count {
        let record = ended(&world, &processes[0], id).await;
        assert!(
            matches!(record.state, State::Done | State::Undone),
            "seed {seed}: {record:?}"
        );
        records.push(record);
    }
    judge(&world, &outside, &records).await;
}

#[test]
fn what_cannot_be_undone_fails_by_name_and_ends_by_either_verb() {
    for retried in [true, false] {
        simulate(async move {
            let world = World::new(7, Faults::default());
            let outside = Outside::default();
            outside.fail_at(Some(STEPS[2]));
            outside.jam(true);
            let process = Process::start(&world, &outside);
            process.sagas.ready().await;
            begun(&world, &process, 1, "red").await;
            let id = SagaId::from_u128(1);
            let record = process.sagas.wait(id, None, PATIENCE).await.unwrap();
            assert_eq!(record.state, State::Failed);
            assert_eq!(record.failure.as_deref(), Some("undo-failed"));
            // Its object is not free for others meanwhile.
            let other = process.sagas.begin(begin(2, "red")).await;
            assert_eq!(other.unwrap_err().kind(), SagaErrorKind::Busy);
            outside.jam(false);
            if retried {
                process.sagas.retry(id).await.unwrap();
                let record = ended(&world, &process, 1).await;
                assert_eq!(record.state, State::Undone);
                judge(&world, &outside, &[record]).await;
            } else {
                let record = process.sagas.force_delete(id).await.unwrap();
                assert_eq!(record.state, State::ForceDeleted);
                // The record says what may be left.
                assert_eq!(outside.of("red"), &STEPS[..2]);
                assert_eq!(record.done.len(), 2);
                let again = process.sagas.retry(id).await.unwrap_err();
                assert_eq!(again.kind(), SagaErrorKind::WrongState);
            }
            outside.fail_at(None);
            begun(&world, &process, 2, "red").await;
            assert_eq!(ended(&world, &process, 2).await.state, State::Done);
        });
    }
}

#[test]
fn an_operation_that_nobody_can_run_expires_by_name() {
    simulate(async {
        let world = World::new(3, Faults::default());
        let outside = Outside::default();
        let process = Process::start(&world, &outside);
        process.sagas.ready().await;
        begun(&world, &process, 1, "red").await;
        process.die().await;
        // Another version, which does not know the kind, is all that is left.
        let other = Process::without_definitions(&world);
        let id = SagaId::from_u128(1);
        let limit = DEADLINE + PATIENCE;
        let record = other.sagas.wait(id, None, limit).await.unwrap();
        assert_eq!(record.state, State::Failed);
        assert_eq!(record.failure.as_deref(), Some("expired"));
        let last = Process::start(&world, &outside);
        last.sagas.ready().await;
        last.sagas.retry(id).await.unwrap();
        assert_eq!(ended(&world, &last, 1).await.state, State::Done);
    });
}

#[test]
fn an_id_begins_one_operation_and_no_other() {
    simulate(async {
        let world = World::new(5, Faults::default());
        let outside = Outside::default();
        let process = Process::start(&world, &outside);
        process.sagas.ready().await;
        let first = begun(&world, &process, 1, "red").await;
        let again = begun(&world, &process, 1, "red").await;
        assert_eq!(first.id, again.id);
        let other = process.sagas.begin(begin(1, "blue")).await;
        assert_eq!(other.unwrap_err().kind(), SagaErrorKind::Reused);
        ended(&world, &process, 1).await;
        // Also once it has ended.
        assert_eq!(begun(&world, &process, 1, "red").await.state, State::Done);
        let key = |text| SagaId::of_key("tenant", "widget-create", text);
        assert_eq!(key("k"), key("k"));
        assert_ne!(key("k"), key("l"));
    });
}
