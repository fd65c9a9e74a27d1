//! The hub against its promise: every watcher gets every event that it wants, once, in order, whole
//! revisions, however slow its stream is read. A history of the store is kept beside it.

use etcd_wire::mvccpb::KeyValue;
use proptest::prelude::*;

use super::*;

const STREAM: StreamId = StreamId(1);

fn event(key: &[u8], revision: i64, kind: EventType) -> Arc<Event> {
    let kv = KeyValue {
        key: key.to_vec().into(),
        mod_revision: revision,
        ..KeyValue::default()
    };
    Arc::new(Event {
        r#type: kind.into(),
        kv: Some(kv),
        prev_kv: None,
    })
}

fn put(key: &str, revision: i64) -> Arc<Event> {
    event(key.as_bytes(), revision, EventType::Put)
}

fn spec(key: &'static str, end: &'static str) -> Spec {
    Spec {
        range: KeyRange::new(key.into(), end.into()),
        no_put: false,
        no_delete: false,
        prev_kv: false,
        fragment: false,
        progress_notify: false,
    }
}

fn hub(queue_bytes_max: usize) -> Hub {
    let mut hub = Hub::new(1, queue_bytes_max);
    hub.open(STREAM);
    hub
}

fn revisions(deliveries: &[Delivery]) -> Vec<(i64, i64)> {
    let pair = |delivery: &Delivery| (delivery.watch, delivery.revision);
    deliveries.iter().map(pair).collect()
}

#[test]
fn numbers_are_given_once_and_the_clients_own_are_kept() {
    let mut hub = hub(1000);
    let mut watch = |number| hub.watch(STREAM, number, spec("a", ""), 0);
    assert_eq!(watch(None), Some(0));
    assert_eq!(watch(Some(1)), Some(1));
    assert_eq!(watch(Some(1)), None);
    assert_eq!(watch(None), Some(2));
    assert!(hub.cancel(WatcherId {
        stream: STREAM,
        watch: 2
    }));
    assert_eq!(hub.watch(STREAM, None, spec("a", ""), 0), Some(3));
}

#[test]
fn ranges_single_keys_and_filters_choose_the_events() {
    let mut hub = hub(100_000);
    hub.watch(STREAM, None, spec("b", ""), 0);
    hub.watch(STREAM, None, spec("b", "d"), 0);
    hub.watch(STREAM, None, spec("c", "\0"), 0);
    let no_put = Spec {
        no_put: true,
        ..spec("\0", "\0")
    };
    hub.watch(STREAM, None, no_put, 0);
    let woken = hub.publish(2, &[put("a", 2)]);
    assert!(woken.is_empty());
    hub.publish(3, &[put("b", 3), put("d", 3)]);
    hub.publish(4, &[event(b"c", 4, EventType::Delete)]);
    let taken = hub.take(STREAM, usize::MAX);
    assert_eq!(
        revisions(&taken),
        [(0, 3), (1, 3), (2, 3), (1, 4), (2, 4), (3, 4)]
    );
}

#[test]
fn a_watcher_from_a_later_revision_does_not_see_earlier_ones() {
    let mut hub = hub(1000);
    hub.watch(STREAM, None, spec("a", ""), 4);
    for revision in 2..=5 {
        hub.publish(revision, &[put("a", revision)]);
    }
    assert_eq!(revisions(&hub.take(STREAM, usize::MAX)), [(0, 4), (0, 5)]);
}

#[test]
fn an_unread_stream_stays_bounded_and_reads_history_later() {
    let mut hub = hub(200);
    hub.watch(STREAM, None, spec("a", ""), 0);
    for revision in 2..=100 {
        hub.publish(revision, &[put("a", revision)]);
    }
    assert_eq!(hub.settled(STREAM), None);
    assert!(hub.behind(STREAM).is_none(), "the queue is older");
    let taken = hub.take(STREAM, usize::MAX);
    assert!(taken.len() < 10, "{}", taken.len());
    let behind = hub.behind(STREAM).unwrap();
    assert_eq!(behind.next, taken.last().unwrap().revision + 1);
    let id = WatcherId {
        stream: STREAM,
        watch: behind.watch,
    };
    hub.caught_up(id, 101);
    assert_eq!(hub.settled(STREAM), Some(100));
    hub.publish(101, &[put("a", 101)]);
    assert_eq!(revisions(&hub.take(STREAM, usize::MAX)), [(0, 101)]);
}

#[test]
fn closing_a_stream_leaves_nothing() {
    let mut hub = hub(1000);
    hub.watch(STREAM, None, spec("a", ""), 0);
    hub.watch(STREAM, None, spec("a", "b"), 1);
    hub.close(STREAM);
    assert_eq!(hub.watchers_count(), 0);
    assert!(hub.single.is_empty() && hub.ranges.is_empty() && hub.streams.is_empty());
    assert!(hub.publish(2, &[put("a", 2)]).is_empty());
}

/// What happens between a store and one stream.
#[derive(Clone, Debug)]
enum Step {
    /// A transaction puts these keys.
    Commit(Vec<u8>),
    /// A new watcher from some revision back.
    Watch {
        key: u8,
        width: u8,
        back: i64,
    },
    /// The client reads what waits.
    Read,
    /// The stream reads some revisions of history for who is behind.
    History(i64),
    Cancel(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => prop::collection::btree_set(0..6_u8, 1..4)
            .prop_map(|keys| Step::Commit(keys.into_iter().collect())),
        2 => (0..6_u8, 0..4_u8, 0..20_i64)
            .prop_map(|(key, width, back)| Step::Watch { key, width, back }),
        3 => Just(Step::Read),
        3 => (1..8_i64).prop_map(Step::History),
        1 => (0..8_u8).prop_map(Step::Cancel),
    ];
    prop::collection::vec(step, 1..120)
}

#[derive(Default)]
struct World {
    history: BTreeMap<i64, Vec<Arc<Event>>>,
    /// What each watcher wants, from when, and got.
    seen: BTreeMap<i64, (Spec, i64, Vec<Arc<Event>>)>,
}

impl World {
    fn wanted(&self, spec: &Spec, from: i64, below: i64) -> Vec<Arc<Event>> {
        let events = self.history.range(from..below.max(from));
        let events = events.flat_map(|(_, events)| events);
        events.filter(|event| spec.wants(event)).cloned().collect()
    }

    fn read(&mut self, hub: &mut Hub) {
        for delivery in hub.take(STREAM, 300) {
            let seen = &mut self.seen.get_mut(&delivery.watch).unwrap().2;
            seen.extend(delivery.events);
        }
    }

    fn read_history(&mut self, hub: &mut Hub, count: i64) {
        let Some(Behind { watch, spec, next }) = hub.behind(STREAM) else {
            return;
        };
        let below = (next + count).min(hub.revision() + 1);
        let events = self.wanted(&spec, next, below);
        self.seen.get_mut(&watch).unwrap().2.extend(events);
        let stream = STREAM;
        hub.caught_up(WatcherId { stream, watch }, below);
    }

    fn step(&mut self, hub: &mut Hub, step: Step) {
        match step {
            Step::Commit(keys) => {
                let revision = hub.revision() + 1;
                let events: Vec<_> = keys
                    .iter()
                    .map(|key| event(&[*key], revision, EventType::Put))
                    .collect();
                self.history.insert(revision, events.clone());
                hub.publish(revision, &events);
            }
            Step::Watch { key, width, back } => {
                let end = if width == 0 {
                    vec![]
                } else {
                    vec![key + width]
                };
                let spec = Spec {
                    range: KeyRange::new(vec![key].into(), end.into()),
                    ..spec("", "")
                };
                let start = (hub.revision() + 1 - back).max(2);
                let watch = hub.watch(STREAM, None, spec.clone(), start).unwrap();
                self.seen.insert(watch, (spec, start, Vec::new()));
            }
            Step::Read => self.read(hub),
            Step::History(count) => self.read_history(hub, count),
            Step::Cancel(nth) => {
                if let Some(watch) = self.seen.keys().nth(nth.into()).copied() {
                    let stream = STREAM;
                    assert!(hub.cancel(WatcherId { stream, watch }));
                    self.seen.remove(&watch);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn every_watcher_sees_its_part_of_the_history_once_and_in_order(steps in steps()) {
        let mut hub = hub(200);
        let mut world = World::default();
        for step in steps {
            world.step(&mut hub, step);
            prop_assert!(hub.streams[&STREAM].queue_bytes <= 200 + 3 * 65);
        }
        while hub.settled(STREAM).is_none() {
            world.read(&mut hub);
            world.read_history(&mut hub, 5);
        }
        for (spec, start, seen) in world.seen.values() {
            prop_assert_eq!(seen, &world.wanted(spec, *start, hub.revision() + 1));
        }
    }
}
