//! Watchers: each keeps some watches on one stream to any member, is cut off after a while, and goes on
//! elsewhere where it was. What arrives is compared with the model at once.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use chainfire_core::sim::disk::Random;
use chainfire_core::sim::runtime::{SimInstant, SimRuntime, on};
use chainfire_core::types::NodeId;
use chainfire_core::{AsyncRuntime as _, Instant as _};
use etcd_wire::etcdserverpb::watch_create_request::FilterType;
use etcd_wire::etcdserverpb::watch_request::RequestUnion;
use etcd_wire::etcdserverpb::{
    WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse,
};
use etcd_wire::mvccpb::Event;

use super::client::some_range;
use super::ledger;
use super::members::{Stream, World};
use super::model::Model;
use crate::watch::hub::Spec;

/// Watches of one stream.
const WATCHES: i64 = 3;
/// How long a healed cluster may take to tell all.
const PATIENCE: Duration = Duration::from_secs(2);
const TRIES: usize = 15;

/// What watchers saw.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Seen {
    pub events: usize,
    pub sessions: usize,
    pub compacted: usize,
    pub progress: usize,
}

struct Watch {
    number: i64,
    spec: Spec,
    /// The first revision that it has not been told of; none: it begins with what comes.
    next: Option<i64>,
    /// The member has said that it watches.
    created: bool,
}

/// A client that watches.
pub struct Watcher {
    world: Arc<World>,
    watches: Vec<Watch>,
    /// No disk fails any more.
    healed: bool,
    pub seen: Seen,
}

fn new_watch(number: i64, random: &mut Random) -> Watch {
    let filter = random.below(6);
    Watch {
        number,
        spec: Spec {
            range: some_range(random),
            no_put: filter == 0,
            no_delete: filter == 1,
            prev_kv: random.chance(50),
            fragment: false,
            progress_notify: false,
        },
        next: random.chance(30).then_some(1),
        created: false,
    }
}

impl Watcher {
    pub fn new(world: Arc<World>) -> Watcher {
        let watches = {
            let mut random = world.random.lock().unwrap_or_else(PoisonError::into_inner);
            (1..=WATCHES)
                .map(|number| new_watch(number, &mut random))
                .collect()
        };
        Watcher {
            world,
            watches,
            healed: false,
            seen: Seen::default(),
        }
    }

    fn with<T>(&self, draw: impl FnOnce(&mut Random) -> T) -> T {
        let random = self.world.random.lock();
        draw(&mut random.unwrap_or_else(PoisonError::into_inner))
    }

    /// Watches until `until`.
    pub async fn run(mut self, until: SimInstant) -> Watcher {
        while SimInstant::now() < until {
            let life = Duration::from_millis(50 + self.with(|random| random.below(1500)));
            self.session(life, None).await;
            if self.with(|random| random.chance(10)) {
                let number = 1 + self.with(|random| random.below(WATCHES as u64)) as i64;
                let fresh = self.with(|random| new_watch(number, random));
                self.watches[number as usize - 1] = fresh;
            }
        }
        self
    }

    /// Watches in a healed cluster until it has been told of everything up to a revision.
    pub async fn finish(mut self, revision: i64) -> Seen {
        self.healed = true;
        for _ in 0..TRIES {
            self.session(PATIENCE, Some(revision)).await;
            if self.knows(revision) {
                return self.seen;
            }
        }
        let next: Vec<_> = self.watches.iter().map(|watch| watch.next).collect();
        panic!("watchers are not told of all up to {revision}: {next:?}");
    }

    fn knows(&self, revision: i64) -> bool {
        let known = |watch: &Watch| watch.next.is_some_and(|next| next > revision);
        self.watches.iter().all(known)
    }

    /// Watches at one member for a while, or until all is known up to a revision.
    async fn session(&mut self, life: Duration, upto: Option<i64>) {
        let up = self.world.up();
        if up.is_empty() {
            return SimRuntime::sleep(Duration::from_millis(20)).await;
        }
        let id = self.with(|random| *random.pick(&up));
        let Some(stream) = on(id, async { self.world.members.watch(id) }).await else {
            return;
        };
        self.seen.sessions += 1;
        self.listen(stream, id, SimInstant::now() + life, upto)
            .await;
    }

    async fn listen(&mut self, mut stream: Stream, id: NodeId, end: SimInstant, upto: Option<i64>) {
        for watch in &mut self.watches {
            watch.created = false;
            ask(&stream, RequestUnion::CreateRequest(create(watch)));
        }
        while SimInstant::now() < end {
            if upto.is_some_and(|revision| self.knows(revision)) {
                return;
            }
            if upto.is_some() {
                SimRuntime::sleep(Duration::from_millis(5)).await;
            }
            if upto.is_some() || self.with(|random| random.chance(5)) {
                ask(
                    &stream,
                    RequestUnion::ProgressRequest(WatchProgressRequest {}),
                );
            }
            if upto.is_none() && self.with(|random| random.chance(5)) {
                // It does not read for a while, so that the member has to keep back.
                let pause = Duration::from_millis(self.with(|random| random.below(400)));
                SimRuntime::sleep(pause).await;
            }
            let wait = (end - SimInstant::now()).min(Duration::from_millis(100));
            match SimRuntime::timeout(wait, stream.answers.recv()).await {
                Ok(Some(Ok(answer))) => {
                    self.take(id, &answer);
                    if answer.canceled && upto.is_some() {
                        return;
                    }
                }
                // The member has ended.
                Ok(_) => return,
                Err(_) => {}
            }
        }
    }

    fn take(&mut self, at: NodeId, answer: &WatchResponse) {
        let ledger = ledger::lock(&self.world.members.ledger);
        let revision = answer
            .header
            .as_ref()
            .expect("an answer has a head")
            .revision;
        if answer.watch_id == -1 {
            self.seen.progress += 1;
            let told = self.watches.iter_mut().filter(|watch| watch.created);
            told.for_each(|watch| watch.progress(&ledger.model, revision, at));
            return;
        }
        let watch = self
            .watches
            .iter_mut()
            .find(|watch| watch.number == answer.watch_id);
        let watch = watch.expect("the watch was asked for");
        if answer.created {
            assert!(!answer.canceled, "a watch was refused: {answer:?}");
            watch.created = true;
            watch.next.get_or_insert(revision + 1);
            return;
        }
        assert!(watch.created, "an answer before the watch: {answer:?}");
        if answer.canceled && answer.cancel_reason.ends_with("the storage failed") {
            // Its disk has failed; it ends, and another member goes on where it was.
            assert!(!self.healed, "a healed member ended a watcher: {answer:?}");
            watch.created = false;
            return;
        }
        if answer.canceled {
            self.seen.compacted += 1;
            return watch.compacted(&ledger.model, answer);
        }
        self.seen.events += answer.events.len();
        watch.events(&ledger.model, &answer.events, at);
    }
}

fn ask(stream: &Stream, request: RequestUnion) {
    let request_union = Some(request);
    // A member that is stopped, or has ended, does not take it.
    let _ = stream.requests.try_send(Ok(WatchRequest { request_union }));
}

fn create(watch: &Watch) -> WatchCreateRequest {
    let (key, end) = watch.spec.range.bounds();
    let mut filters = Vec::new();
    if watch.spec.no_put {
        filters.push(FilterType::Noput.into());
    }
    if watch.spec.no_delete {
        filters.push(FilterType::Nodelete.into());
    }
    WatchCreateRequest {
        key: Bytes::copy_from_slice(key),
        range_end: Bytes::copy_from_slice(end),
        start_revision: watch.next.unwrap_or(0),
        filters,
        prev_kv: watch.spec.prev_kv,
        watch_id: watch.number,
        ..WatchCreateRequest::default()
    }
}

impl Watch {
    /// What it should be told from where it is up to a revision.
    fn wanted<'a>(&'a self, model: &'a Model, upto: i64) -> impl Iterator<Item = &'a Event> {
        let next = self.next.expect("it has begun");
        model
            .events(next, upto)
            .filter(|event| self.spec.wants(event))
    }

    /// These are all events up to the last one's revision, whole, once and in order.
    fn events(&mut self, model: &Model, events: &[Event], at: NodeId) {
        let last = events.last().and_then(|event| event.kv.as_ref());
        let last = last.expect("an answer tells something").mod_revision;
        let wanted: Vec<&Event> = self.wanted(model, last).collect();
        let same = |(told, wanted): (&Event, &&Event)| {
            told.r#type == wanted.r#type
                && told.kv == wanted.kv
                && self.same_before(model, told, wanted)
        };
        let all = wanted.len() == events.len() && events.iter().zip(&wanted).all(same);
        assert!(
            all,
            "member {at} told a watcher from {:?} on of {events:#?} instead of {wanted:#?}",
            self.next
        );
        self.next = Some(last + 1);
    }

    fn same_before(&self, model: &Model, told: &Event, wanted: &Event) -> bool {
        if !self.spec.prev_kv {
            return told.prev_kv.is_none();
        }
        let revision = wanted.kv.as_ref().map_or(0, |kv| kv.mod_revision);
        let forgotten = revision - 1 < model.compacted;
        told.prev_kv == wanted.prev_kv || (told.prev_kv.is_none() && forgotten)
    }

    /// Nothing up to this revision is still to come.
    fn progress(&mut self, model: &Model, revision: i64, at: NodeId) {
        let missing: Vec<&Event> = self.wanted(model, revision).collect();
        assert!(
            missing.is_empty(),
            "member {at} told a watcher from {:?} on of {revision}, but not of {missing:#?}",
            self.next
        );
        self.next = self.next.max(Some(revision + 1));
    }

    /// It asked for what was compacted, and goes on with what is there.
    fn compacted(&mut self, model: &Model, answer: &WatchResponse) {
        let (next, compacted) = (self.next, answer.compact_revision);
        let allowed = next < Some(compacted) && compacted <= model.compacted;
        assert!(allowed, "a watcher from {next:?} on was ended: {answer:?}");
        self.created = false;
        self.next = Some(compacted);
    }
}
