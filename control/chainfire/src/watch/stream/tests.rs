//! A stream between a client and the hub, over a history that is kept in memory.

use std::collections::BTreeMap;
use std::sync::Mutex;

use chainfire_core::TokioRuntime;
use control_kit::stop::{self, Stopper};
use etcd_wire::etcdserverpb::{WatchCancelRequest, WatchProgressRequest};
use etcd_wire::mvccpb::KeyValue;
use tokio_stream::wrappers::ReceiverStream;

use super::*;
use crate::watch::SharedHub;
use crate::watch::hub::Hub;

/// Every event by revision, and the compacted revision.
#[derive(Default)]
struct Kept {
    events: Mutex<BTreeMap<i64, Event>>,
    compacted: i64,
}

impl History for Kept {
    fn header(&self, revision: i64) -> ResponseHeader {
        ResponseHeader {
            revision,
            ..ResponseHeader::default()
        }
    }

    fn may_read(&self, range: &KeyRange) -> Result<(), Status> {
        if range.contains(b"secret") {
            return Err(RpcError::PermissionDenied.into());
        }
        Ok(())
    }

    fn events(&self, spec: &Spec, from: i64) -> Result<Step, HistoryError> {
        if from < self.compacted {
            return Err(HistoryError::Compacted(self.compacted));
        }
        let events = self.events.lock().unwrap();
        // Two revisions a step, so that catching up takes several.
        let step = events.range(from..).take(2);
        let next = step
            .clone()
            .last()
            .map_or(from, |(revision, _)| revision + 1);
        let newest = events.keys().next_back().copied().unwrap_or(1);
        let wanted = step.filter(|(_, event)| spec.wants(event));
        Ok(Step {
            events: wanted.map(|(_, event)| event.clone()).collect(),
            next: if next == from { newest + 1 } else { next },
        })
    }

    fn before(&self, event: &Event) -> Option<KeyValue> {
        let kv = event.kv.as_ref()?;
        let events = self.events.lock().unwrap();
        let mut earlier = events.range(..kv.mod_revision).rev();
        earlier.find_map(|(_, one)| one.kv.clone().filter(|one| one.key == kv.key))
    }
}

struct World {
    hub: Arc<SharedHub>,
    kept: Arc<Kept>,
    requests: mpsc::Sender<Result<WatchRequest, Status>>,
    answers: mpsc::Receiver<Result<WatchResponse, Status>>,
    stopper: Stopper,
}

impl World {
    /// A stream over a history of puts of "a" at revisions 2 to `newest`.
    fn new(newest: i64, compacted: i64) -> World {
        let kept = Kept {
            compacted,
            ..Kept::default()
        };
        let hub = SharedHub::new(Hub::new(1, 1 << 20));
        let (requests, incoming) = mpsc::channel(8);
        let (outgoing, answers) = mpsc::channel(CHANNEL_LENGTH);
        let (stopper, stop) = stop::pair();
        let kept = Arc::new(kept);
        let stream = WatchStream::new(hub.open(), Arc::clone(&kept));
        let serving = stream.run::<TokioRuntime>(ReceiverStream::new(incoming), outgoing, stop);
        tokio::spawn(serving);
        let world = World {
            hub,
            kept,
            requests,
            answers,
            stopper,
        };
        for revision in 2..=newest {
            world.put("a", revision, 10);
        }
        world
    }

    fn put(&self, key: &'static str, revision: i64, value_bytes: usize) {
        let kv = KeyValue {
            key: key.into(),
            value: vec![b'v'; value_bytes].into(),
            mod_revision: revision,
            ..KeyValue::default()
        };
        let event = Event {
            kv: Some(kv),
            ..Event::default()
        };
        self.kept
            .events
            .lock()
            .unwrap()
            .insert(revision, event.clone());
        self.hub.publish(revision, &[Arc::new(event)]);
    }

    async fn ask(&self, request: RequestUnion) {
        let request_union = Some(request);
        self.requests
            .send(Ok(WatchRequest { request_union }))
            .await
            .unwrap();
    }

    async fn create(&mut self, create: WatchCreateRequest) -> WatchResponse {
        self.ask(RequestUnion::CreateRequest(create)).await;
        let answer = self.answer().await;
        assert!(answer.created);
        answer
    }

    async fn answer(&mut self) -> WatchResponse {
        self.answers.recv().await.unwrap().unwrap()
    }
}

fn watch_a() -> WatchCreateRequest {
    WatchCreateRequest {
        key: "a".into(),
        ..WatchCreateRequest::default()
    }
}

fn revisions(answer: &WatchResponse) -> Vec<i64> {
    let kvs = answer.events.iter().filter_map(|event| event.kv.as_ref());
    kvs.map(|kv| kv.mod_revision).collect()
}

#[tokio::test]
async fn history_comes_first_and_then_what_happens() {
    let mut world = World::new(6, 0);
    let create = WatchCreateRequest {
        start_revision: 3,
        prev_kv: true,
        ..watch_a()
    };
    let created = world.create(create).await;
    assert_eq!((created.watch_id, created.header.unwrap().revision), (0, 6));
    let mut seen = Vec::new();
    while seen.len() < 4 {
        let answer = world.answer().await;
        assert!(answer.events.iter().all(|event| event.prev_kv.is_some()));
        seen.extend(revisions(&answer));
    }
    world.put("b", 7, 1);
    world.put("a", 8, 1);
    seen.extend(revisions(&world.answer().await));
    assert_eq!(seen, [3, 4, 5, 6, 8]);
}

#[tokio::test]
async fn what_cannot_be_watched_is_refused_by_name() {
    let mut world = World::new(2, 0);
    world.create(watch_a()).await;
    let secret = WatchCreateRequest {
        key: "secret".into(),
        ..watch_a()
    };
    let refused = world.create(secret).await;
    assert!(refused.canceled && refused.watch_id == -1);
    assert!(refused.cancel_reason.contains("permission denied"));
    let empty = WatchCreateRequest {
        range_end: "A".into(),
        ..watch_a()
    };
    assert!(
        world
            .create(empty)
            .await
            .cancel_reason
            .contains("range is empty")
    );
    let taken = WatchCreateRequest {
        watch_id: 7,
        ..watch_a()
    };
    assert_eq!(world.create(taken.clone()).await.watch_id, 7);
    assert!(
        world
            .create(taken)
            .await
            .cancel_reason
            .contains("duplicate watch ID")
    );
}

#[tokio::test]
async fn a_watcher_past_compaction_ends_with_its_reason_and_others_go_on() {
    let mut world = World::new(6, 4);
    world.create(watch_a()).await;
    let create = WatchCreateRequest {
        start_revision: 3,
        ..watch_a()
    };
    let late = world.create(create).await.watch_id;
    let ended = world.answer().await;
    assert_eq!(
        (ended.watch_id, ended.canceled, ended.compact_revision),
        (late, true, 4)
    );
    world.put("a", 7, 1);
    assert_eq!(world.answer().await.watch_id, 0);
}

#[tokio::test]
async fn long_answers_come_in_pieces_to_who_takes_them() {
    let mut world = World::new(1, 0);
    world.put("a", 2, FRAGMENT_BYTES / 2);
    world.put("a", 3, FRAGMENT_BYTES / 2);
    let create = WatchCreateRequest {
        start_revision: 2,
        fragment: true,
        ..watch_a()
    };
    world.create(create).await;
    let (first, second) = (world.answer().await, world.answer().await);
    assert!(first.fragment && !second.fragment);
    assert_eq!((revisions(&first), revisions(&second)), (vec![2], vec![3]));
}

#[tokio::test]
async fn cancelling_progress_and_the_end() {
    let mut world = World::new(4, 0);
    let id = world.create(watch_a()).await.watch_id;
    world
        .ask(RequestUnion::ProgressRequest(WatchProgressRequest {}))
        .await;
    let progress = world.answer().await;
    assert_eq!(
        (progress.watch_id, progress.header.unwrap().revision),
        (-1, 4)
    );
    let cancel = WatchCancelRequest { watch_id: id };
    world.ask(RequestUnion::CancelRequest(cancel)).await;
    let cancelled = world.answer().await;
    assert!(cancelled.canceled && cancelled.watch_id == id);
    world.stopper.stop();
    let end = world.answers.recv().await.unwrap().unwrap_err();
    assert_eq!(end.message(), RpcError::Stopped.text());
}
