//! Who watches what, and what waits to be sent to whom.
//!
//! The hub is told of each committed revision once and finds the watchers that it concerns. A watcher
//! is **synced** when everything up to the newest revision is in its stream's queue or sent; then it is
//! in the index. Otherwise it is **behind**: it only knows the next revision that it needs, and its
//! stream reads the store's history for it, in steps, while the stream has room.
//!
//! Invariants:
//! - A watcher gets the events of each revision once, in order, and those of one revision together.
//! - A queue holds at most `queue_bytes_max` and one revision more. A watcher whose stream is full falls
//!   behind instead: slow readers cost the store's history, never memory. Only compaction past the
//!   revision that it needs ends it.
//! - No I/O, no clock, no lock: the owner brings its own.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use etcd_wire::mvccpb::Event;
use etcd_wire::mvccpb::event::EventType;

use super::range::KeyRange;

/// One client's stream of watch answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u64);

/// A watcher: its stream, and the number that the client knows it by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WatcherId {
    /// The stream that answers.
    pub stream: StreamId,
    /// Unique within the stream.
    pub watch: i64,
}

/// What a client wants to see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// The keys.
    pub range: KeyRange,
    /// Whether puts are left out.
    pub no_put: bool,
    /// Whether deletions are left out.
    pub no_delete: bool,
    /// Whether events say what was there before.
    pub prev_kv: bool,
    /// Whether long answers come in pieces.
    pub fragment: bool,
    /// Whether silence is broken from time to time by the newest revision.
    pub progress_notify: bool,
}

impl Spec {
    /// Whether it wants this event.
    pub fn wants(&self, event: &Event) -> bool {
        let filtered = match event.r#type() {
            EventType::Put => self.no_put,
            EventType::Delete => self.no_delete,
        };
        let key = event.kv.as_ref().map_or(&[][..], |kv| &kv.key);
        !filtered && self.range.contains(key)
    }
}

/// Events of one revision for one watcher.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The watcher's number within its stream.
    pub watch: i64,
    /// The revision.
    pub revision: i64,
    /// In the order of the transaction; never empty.
    pub events: Vec<Arc<Event>>,
}

/// A watcher that is behind, and what it needs next.
#[derive(Clone, Debug)]
pub struct Behind {
    /// The watcher's number within its stream.
    pub watch: i64,
    /// What it wants.
    pub spec: Spec,
    /// The first revision that it has not got.
    pub next: i64,
}

#[derive(Debug)]
struct Watcher {
    spec: Spec,
    /// The first revision that it has not got; for a synced one, the first that it wants.
    next: i64,
    synced: bool,
}

#[derive(Debug, Default)]
struct Stream {
    queue: VecDeque<Delivery>,
    queue_bytes: usize,
    watchers: BTreeSet<i64>,
    behind: VecDeque<i64>,
    /// The number that the next watcher without one gets, unless it is taken.
    next_number: i64,
}

impl Stream {
    fn fresh_number(&mut self) -> i64 {
        while self.watchers.contains(&self.next_number) {
            self.next_number += 1;
        }
        self.next_number += 1;
        self.next_number - 1
    }
}

/// All streams and watchers of a node.
#[derive(Debug)]
pub struct Hub {
    /// The newest revision that was published.
    revision: i64,
    queue_bytes_max: usize,
    streams: HashMap<StreamId, Stream>,
    watchers: HashMap<WatcherId, Watcher>,
    /// Synced watchers of single keys, by key.
    single: HashMap<Bytes, BTreeSet<WatcherId>>,
    /// Synced watchers of ranges, by range.
    ranges: BTreeMap<KeyRange, BTreeSet<WatcherId>>,
}

impl Hub {
    /// A hub without watchers. `revision` is the newest of the store.
    pub fn new(revision: i64, queue_bytes_max: usize) -> Hub {
        Hub {
            revision,
            queue_bytes_max,
            streams: HashMap::new(),
            watchers: HashMap::new(),
            single: HashMap::new(),
            ranges: BTreeMap::new(),
        }
    }

    /// The newest revision that was published.
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// How many watchers there are.
    pub fn watchers_count(&self) -> usize {
        self.watchers.len()
    }

    /// A new stream.
    pub fn open(&mut self, stream: StreamId) {
        self.streams.insert(stream, Stream::default());
    }

    /// A stream ended, and its watchers with it.
    pub fn close(&mut self, stream: StreamId) {
        let Some(state) = self.streams.get(&stream) else {
            return;
        };
        for watch in state.watchers.clone() {
            self.cancel(WatcherId { stream, watch });
        }
        self.streams.remove(&stream);
    }

    /// A new watcher from revision `start` on; from the next one on when it is 0. Without a number, it
    /// gets one that the stream has not given before. `None` when the number is taken.
    pub fn watch(
        &mut self,
        stream: StreamId,
        number: Option<i64>,
        spec: Spec,
        start: i64,
    ) -> Option<i64> {
        let state = self.streams.get_mut(&stream)?;
        let watch = number.unwrap_or_else(|| state.fresh_number());
        if !state.watchers.insert(watch) {
            return None;
        }
        let next = if start <= 0 { self.revision + 1 } else { start };
        let watcher = Watcher {
            spec,
            next,
            synced: false,
        };
        let id = WatcherId { stream, watch };
        self.watchers.insert(id, watcher);
        self.place(id);
        Some(watch)
    }

    /// Ends a watcher; what waits for it is dropped. Whether it was there.
    pub fn cancel(&mut self, id: WatcherId) -> bool {
        let Some(watcher) = self.watchers.remove(&id) else {
            return false;
        };
        if watcher.synced {
            self.leave_index(id, &watcher.spec.range);
        }
        if let Some(stream) = self.streams.get_mut(&id.stream) {
            stream.watchers.remove(&id.watch);
            stream.behind.retain(|watch| *watch != id.watch);
            stream.queue.retain(|delivery| delivery.watch != id.watch);
            stream.queue_bytes = stream.queue.iter().map(bytes_of).sum();
        }
        true
    }

    /// A revision was committed. The streams that have something to send now.
    pub fn publish(&mut self, revision: i64, events: &[Arc<Event>]) -> BTreeSet<StreamId> {
        self.revision = self.revision.max(revision);
        let mut concerned: BTreeMap<WatcherId, Vec<Arc<Event>>> = BTreeMap::new();
        for event in events {
            for id in self.watching(event) {
                concerned.entry(id).or_default().push(Arc::clone(event));
            }
        }
        let mut woken = BTreeSet::new();
        for (id, events) in concerned {
            self.deliver(id, revision, events);
            woken.insert(id.stream);
        }
        woken
    }

    /// The store was replaced by a later one without its history being told: every watcher reads
    /// what it missed. The streams that have to.
    pub fn jump(&mut self, revision: i64) -> BTreeSet<StreamId> {
        let missing = self.revision + 1;
        self.revision = self.revision.max(revision);
        self.single.clear();
        self.ranges.clear();
        let mut synced = Vec::new();
        for (id, watcher) in &mut self.watchers {
            if std::mem::take(&mut watcher.synced) {
                watcher.next = watcher.next.max(missing);
                synced.push(*id);
            }
        }
        synced.sort_unstable();
        for id in &synced {
            self.place(*id);
        }
        synced.into_iter().map(|id| id.stream).collect()
    }

    /// Takes what waits for a stream, oldest first, up to about `bytes_max`, at least one.
    pub fn take(&mut self, stream: StreamId, bytes_max: usize) -> Vec<Delivery> {
        let Some(state) = self.streams.get_mut(&stream) else {
            return Vec::new();
        };
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while let Some(delivery) = state.queue.front() {
            let size = bytes_of(delivery);
            if !taken.is_empty() && bytes + size > bytes_max {
                break;
            }
            bytes += size;
            state.queue_bytes -= size;
            taken.extend(state.queue.pop_front());
        }
        taken
    }

    /// The watcher of a stream whose turn it is to read history; only when its queue is empty, as what
    /// waits there is older.
    pub fn behind(&self, stream: StreamId) -> Option<Behind> {
        let state = self.streams.get(&stream)?;
        if !state.queue.is_empty() {
            return None;
        }
        let watch = *state.behind.front()?;
        let watcher = &self.watchers[&WatcherId { stream, watch }];
        Some(Behind {
            watch,
            spec: watcher.spec.clone(),
            next: watcher.next,
        })
    }

    /// History up to below `next` was sent to a watcher that was behind.
    pub fn caught_up(&mut self, id: WatcherId, next: i64) {
        let Some(watcher) = self.watchers.get_mut(&id) else {
            return;
        };
        watcher.next = watcher.next.max(next);
        if let Some(stream) = self.streams.get_mut(&id.stream) {
            stream.behind.retain(|watch| *watch != id.watch);
        }
        self.place(id);
    }

    /// The newest revision, when all watchers of a stream have been given everything up to it; `None`
    /// while something waits.
    pub fn settled(&self, stream: StreamId) -> Option<i64> {
        let state = self.streams.get(&stream)?;
        (state.queue.is_empty() && state.behind.is_empty()).then_some(self.revision)
    }

    /// Whether a watcher wants `prev_kv`, and pieces; `None` for one that is gone.
    pub fn options(&self, id: WatcherId) -> Option<(bool, bool)> {
        let spec = &self.watchers.get(&id)?.spec;
        Some((spec.prev_kv, spec.fragment))
    }

    /// The watchers of a stream that want to be told of progress.
    pub fn wanting_progress(&self, stream: StreamId) -> Vec<i64> {
        let Some(state) = self.streams.get(&stream) else {
            return Vec::new();
        };
        let wants = |watch: &i64| {
            let id = WatcherId {
                stream,
                watch: *watch,
            };
            self.watchers[&id].spec.progress_notify
        };
        state.watchers.iter().copied().filter(wants).collect()
    }

    /// Into the index when nothing is missing, else among those behind.
    fn place(&mut self, id: WatcherId) {
        let watcher = self
            .watchers
            .get_mut(&id)
            .expect("the caller has just had it");
        watcher.synced = watcher.next > self.revision;
        if !watcher.synced {
            let stream = self.streams.get_mut(&id.stream);
            let stream = stream.expect("a watcher has a stream");
            stream.behind.push_back(id.watch);
            return;
        }
        let set = match &watcher.spec.range {
            KeyRange::One(key) => self.single.entry(key.clone()).or_default(),
            range => self.ranges.entry(range.clone()).or_default(),
        };
        set.insert(id);
    }

    fn leave_index(&mut self, id: WatcherId, range: &KeyRange) {
        if let KeyRange::One(key) = range {
            if let Some(set) = self.single.get_mut(key) {
                set.remove(&id);
                if set.is_empty() {
                    self.single.remove(key);
                }
            }
        } else if let Some(set) = self.ranges.get_mut(range) {
            set.remove(&id);
            if set.is_empty() {
                self.ranges.remove(range);
            }
        }
    }

    fn watching(&self, event: &Event) -> Vec<WatcherId> {
        let key = event.kv.as_ref().map_or(&[][..], |kv| &kv.key);
        let ranges = self.ranges.iter().filter(|(range, _)| range.contains(key));
        let ranges = ranges.flat_map(|(_, ids)| ids);
        let single = self.single.get(key).into_iter().flatten();
        let wants = |id: &&WatcherId| self.watchers[*id].spec.wants(event);
        single.chain(ranges).filter(wants).copied().collect()
    }

    fn deliver(&mut self, id: WatcherId, revision: i64, events: Vec<Arc<Event>>) {
        let watcher = self
            .watchers
            .get_mut(&id)
            .expect("the index holds live ones");
        if revision < watcher.next {
            return;
        }
        let stream = self.streams.get_mut(&id.stream);
        let stream = stream.expect("a watcher has a stream");
        if stream.queue_bytes >= self.queue_bytes_max {
            watcher.next = revision;
            watcher.synced = false;
            stream.behind.push_back(id.watch);
            let range = watcher.spec.range.clone();
            self.leave_index(id, &range);
            return;
        }
        watcher.next = revision + 1;
        let delivery = Delivery {
            watch: id.watch,
            revision,
            events,
        };
        stream.queue_bytes += bytes_of(&delivery);
        stream.queue.push_back(delivery);
    }
}

/// What an answer with these events weighs, about.
fn bytes_of(delivery: &Delivery) -> usize {
    delivery.events.iter().map(|event| event_bytes(event)).sum()
}

/// What an event weighs, about.
pub fn event_bytes(event: &Event) -> usize {
    const FIELDS: usize = 64;
    let kv = event.kv.iter().chain(&event.prev_kv);
    kv.map(|kv| FIELDS + kv.key.len() + kv.value.len()).sum()
}

#[cfg(test)]
mod tests;
