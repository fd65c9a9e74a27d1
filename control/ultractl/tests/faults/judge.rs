//! Whether what clients saw can be explained, and whether it is still there.
//!
//! A watch from the first revision gives every write that took effect, with its revision, from each
//! member's own state. From these it is known of every write without an answer whether it happened.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use control_kit::client::{Options, channel};
use etcd_wire::etcdserverpb::WatchCreateRequest;
use etcd_wire::etcdserverpb::WatchRequest;
use etcd_wire::etcdserverpb::watch_client::WatchClient;
use etcd_wire::etcdserverpb::watch_request::RequestUnion;
use porcupine_rs::{CheckResult, Model, Operation, check_operations_timeout};
use tokio_stream::StreamExt as _;

use crate::load::{END_KEY, FIRST_KEY, History, KEYS, Record, Seen, Version, number, register};
use crate::support::DEADLINE;

/// How long the search for an order may take.
const SEARCH: Duration = Duration::from_secs(30);

/// The writes that took effect: by value, the register and the revision.
type Effects = BTreeMap<u64, (u8, i64)>;

/// One register: the newest value and its revision.
#[derive(Clone, Debug)]
struct Register;

impl Model for Register {
    type State = Option<Version>;
    type Op = Seen;
    type Metadata = ();

    fn init() -> Self::State {
        None
    }

    fn step(state: &Self::State, op: &Seen) -> (bool, Self::State) {
        let value = state.map(|(value, _)| value);
        let newer = |at: i64| state.is_none_or(|(_, revision)| revision < at);
        match *op {
            Seen::Read(seen) => (seen == *state, *state),
            Seen::Kept { from } => (value != Some(from), *state),
            Seen::Put { to, at: Some(at) } => (newer(at), Some((to, at))),
            Seen::Swap {
                from,
                to,
                at: Some(at),
            } => (newer(at) && value == Some(from), Some((to, at))),
            Seen::Put { at: None, .. } | Seen::Swap { at: None, .. } => {
                unreachable!("what never happened is left out")
            }
        }
    }
}

/// Checks a history against what the members, which all run, hold now.
pub fn judge(urls: &[String], history: &History) {
    let newest = history
        .records
        .iter()
        .filter_map(|record| match record.seen {
            Seen::Read(Some((_, at))) => Some(at),
            _ => None,
        });
    let newest = newest.max().expect("something was read in the end");
    let effects = effects(&urls[0], newest);
    for url in &urls[1..] {
        assert_eq!(self::effects(url, newest), effects, "{url} and {}", urls[0]);
    }
    acknowledged(history, &effects);
    for key in 0..KEYS {
        let operations = operations(history, &effects, key);
        let found = check_operations_timeout::<Register>(&operations, SEARCH);
        assert!(
            found == CheckResult::Ok,
            "register {key}: {found:?}: {operations:#?}"
        );
    }
    let reads = history.records.iter();
    let reads = reads.filter(|record| matches!(record.seen, Seen::Read(_)));
    println!(
        "{} reads and {} writes at {} revisions are linearizable",
        reads.count(),
        effects.len(),
        newest
    );
}

/// Every write that was acknowledged took effect with the revision that it was acknowledged with, and
/// none that was refused; nothing else was written.
fn acknowledged(history: &History, effects: &Effects) {
    let mut asked: BTreeSet<u64> = BTreeSet::new();
    for record in &history.records {
        let (Seen::Put { to, at } | Seen::Swap { to, at, .. }) = record.seen else {
            continue;
        };
        asked.insert(to);
        if let Some(at) = at {
            let found = effects.get(&to);
            assert_eq!(found, Some(&(record.key, at)), "lost: {record:?}");
        }
    }
    for value in effects.keys() {
        assert!(asked.contains(value), "{value} was written by nobody");
        assert!(!history.refused.contains(value), "{value} was refused");
    }
}

/// What clients saw of a register, with the writes that are known by their effect alone.
fn operations(history: &History, effects: &Effects, key: u8) -> Vec<Operation<Register>> {
    let of_key = history.records.iter().filter(|record| record.key == key);
    let operation = |record: &Record| {
        let happened = |to: u64| effects.get(&to).map(|(_, at)| *at);
        let op = match record.seen {
            Seen::Put { to, .. } => Seen::Put {
                to,
                at: Some(happened(to)?),
            },
            Seen::Swap { from, to, .. } => Seen::Swap {
                from,
                to,
                at: Some(happened(to)?),
            },
            ref other => other.clone(),
        };
        Some(Operation {
            client_id: Some(record.client),
            call_time: record.call,
            return_time: record.returned,
            op,
            metadata: None,
        })
    };
    of_key.filter_map(operation).collect()
}

/// What a member has written up to a revision.
fn effects(url: &str, newest: i64) -> Effects {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let watched = async { tokio::time::timeout(DEADLINE, watched(url, newest)).await };
    let effects = runtime.block_on(watched);
    effects.unwrap_or_else(|_| panic!("{url} does not tell everything up to {newest}"))
}

async fn watched(url: &str, newest: i64) -> Effects {
    let channel = channel(url, None, Options::default()).unwrap();
    let create = WatchRequest {
        request_union: Some(RequestUnion::CreateRequest(WatchCreateRequest {
            key: FIRST_KEY.into(),
            range_end: END_KEY.into(),
            start_revision: 1,
            ..WatchCreateRequest::default()
        })),
    };
    // The watch lives as long as its requests do not end.
    let requests = tokio_stream::once(create).chain(tokio_stream::pending());
    let mut client = WatchClient::new(channel).max_decoding_message_size(usize::MAX);
    let mut answers = client.watch(requests).await.unwrap().into_inner();
    let mut effects = Effects::new();
    loop {
        let answer = answers.next().await.unwrap().unwrap();
        for event in answer.events {
            let kv = event.kv.unwrap();
            let (value, key) = (number(&kv.value), register(&kv.key));
            let before = effects.insert(value, (key, kv.mod_revision));
            assert_eq!(before, None, "{value} was written twice");
            if kv.mod_revision == newest {
                return effects;
            }
        }
    }
}
