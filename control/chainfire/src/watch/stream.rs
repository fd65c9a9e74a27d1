//! One client's watch stream: its requests in, its answers out.
//!
//! Answers wait in a short queue, filled only when it is empty: first with what the hub holds for the
//! stream, else with a step of history for a watcher that is behind, else with progress that was asked
//! for. A client that does not read holds up its own stream only, and its requests are read no further
//! once too many answers to them wait.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use chainfire_core::AsyncRuntime;
use control_kit::stop::Stop;
use etcd_wire::RpcError;
use etcd_wire::etcdserverpb::watch_create_request::FilterType;
use etcd_wire::etcdserverpb::watch_request::RequestUnion;
use etcd_wire::etcdserverpb::{ResponseHeader, WatchCreateRequest, WatchRequest, WatchResponse};
use etcd_wire::mvccpb::{Event, KeyValue};
use futures_util::Stream;
use futures_util::StreamExt as _;
use tokio::sync::mpsc;
use tonic::Status;

use super::hub::{Behind, Delivery, Spec, WatcherId, event_bytes};
use super::{KeyRange, StreamHandle};

/// An answer with more than this is sent in pieces to clients that take them: etcd's bound.
const FRAGMENT_BYTES: usize = 2 << 20;
/// What is taken from the hub at once.
const TAKE_BYTES: usize = 1 << 20;
/// Answers to requests that may wait before no more requests are read.
const ANSWERS_WAITING_MAX: usize = 1024;
/// Answers on their way to the connection.
pub const CHANNEL_LENGTH: usize = 16;
/// etcd's interval of progress notifications.
const PROGRESS_INTERVAL: Duration = Duration::from_mins(10);
/// How a watcher that never came to be is called.
const NO_WATCHER: i64 = -1;

/// What a stream needs of the node.
pub trait History: Send + Sync + 'static {
    /// An answer's head, with this revision.
    fn header(&self, revision: i64) -> ResponseHeader;

    /// Whether the client may read the range; the refusal if not.
    fn may_read(&self, range: &KeyRange) -> Result<(), Status>;

    /// Events from a revision on that the watcher wants, in whole revisions, a bounded number of them.
    ///
    /// # Errors
    /// That the revision was compacted, or that the store cannot be read.
    fn events(&self, spec: &Spec, from: i64) -> Result<Step, HistoryError>;

    /// What the event's key was before it; `None` when it was not there, or that was compacted.
    fn before(&self, event: &Event) -> Option<KeyValue>;
}

/// A step of history.
pub struct Step {
    /// What happened, in order.
    pub events: Vec<Event>,
    /// The first revision that was not looked at.
    pub next: i64,
}

/// Why history cannot be read.
pub enum HistoryError {
    /// What is needed was compacted, up to this revision.
    Compacted(i64),
    /// The store failed.
    Failed(Status),
}

/// A client's stream.
pub struct WatchStream<H> {
    handle: StreamHandle,
    history: Arc<H>,
    waiting: VecDeque<WatchResponse>,
    progress_asked: bool,
    /// A watcher is behind, and its next step of history was not read yet.
    history_waits: bool,
    /// Watchers that got something since the last progress tick.
    busy: HashSet<i64>,
}

impl<H: History> WatchStream<H> {
    /// A stream without watchers.
    pub fn new(handle: StreamHandle, history: Arc<H>) -> WatchStream<H> {
        WatchStream {
            handle,
            history,
            waiting: VecDeque::new(),
            progress_asked: false,
            history_waits: false,
            busy: HashSet::new(),
        }
    }

    /// Serves until the client leaves, its requests end in an error, or the node stops.
    /// Time is the runtime's.
    pub async fn run<R: AsyncRuntime>(
        mut self,
        requests: impl Stream<Item = Result<WatchRequest, Status>> + Send,
        answers: mpsc::Sender<Result<WatchResponse, Status>>,
        stop: Stop,
    ) {
        let mut requests = std::pin::pin!(requests);
        let mut requests_ended = false;
        let mut progress = std::pin::pin!(R::sleep(PROGRESS_INTERVAL));
        loop {
            if self.waiting.is_empty() {
                self.fill();
            }
            let may_ask = !requests_ended && self.waiting.len() < ANSWERS_WAITING_MAX;
            tokio::select! {
                biased;
                () = stop.requested() => {
                    let _ = answers.try_send(Err(RpcError::Stopped.into()));
                    return;
                }
                request = requests.next(), if may_ask => match request {
                    Some(Ok(request)) => self.request(request),
                    Some(Err(_)) => return,
                    // A client that asks no more may still listen.
                    None => requests_ended = true,
                },
                permit = answers.reserve(), if !self.waiting.is_empty() => {
                    let Ok(permit) = permit else { return };
                    if let Some(answer) = self.waiting.pop_front() {
                        permit.send(Ok(answer));
                    }
                }
                () = answers.closed() => return,
                // Others have their turn between two steps of a long history.
                () = tokio::task::yield_now(), if self.waiting.is_empty() && self.history_waits => {}
                () = self.handle.rung(), if self.waiting.is_empty() => {}
                () = &mut progress => {
                    progress.set(R::sleep(PROGRESS_INTERVAL));
                    self.notify_progress();
                }
            }
        }
    }

    fn request(&mut self, request: WatchRequest) {
        match request.request_union {
            Some(RequestUnion::CreateRequest(create)) => self.create(&create),
            Some(RequestUnion::CancelRequest(cancel)) => {
                let id = self.id(cancel.watch_id);
                let cancelled = self.handle.hub().cancel(id);
                if cancelled {
                    self.cancelled(cancel.watch_id, String::new(), 0);
                }
            }
            Some(RequestUnion::ProgressRequest(_)) => self.progress_asked = true,
            // A client newer than this server.
            None => {}
        }
    }

    fn create(&mut self, request: &WatchCreateRequest) {
        let spec = spec(request);
        let wanted = request.watch_id;
        if let Err(refused) = self.history.may_read(&spec.range) {
            let why = format!(
                "rpc error: code = {:?} desc = {}",
                refused.code(),
                refused.message()
            );
            return self.refused(why);
        }
        if is_empty(&spec.range) {
            return self.refused("mvcc: watcher range is empty".into());
        }
        let number = (wanted != 0).then_some(wanted);
        let stream = self.handle.id();
        let start = request.start_revision;
        let (watch, revision) = {
            let mut hub = self.handle.hub();
            // Who is cut off now goes on after this revision: it is not a later one.
            (hub.watch(stream, number, spec, start), hub.revision())
        };
        let Some(watch_id) = watch else {
            let why = "mvcc: duplicate watch ID provided on the WatchStream";
            return self.refused(why.into());
        };
        self.waiting.push_back(WatchResponse {
            header: Some(self.history.header(revision)),
            watch_id,
            created: true,
            ..WatchResponse::default()
        });
    }

    fn refused(&mut self, cancel_reason: String) {
        let header = Some(self.header());
        self.waiting.push_back(WatchResponse {
            header,
            watch_id: NO_WATCHER,
            created: true,
            canceled: true,
            cancel_reason,
            ..WatchResponse::default()
        });
    }

    fn cancelled(&mut self, watch_id: i64, cancel_reason: String, compact_revision: i64) {
        let header = Some(self.header());
        self.waiting.push_back(WatchResponse {
            header,
            watch_id,
            canceled: true,
            cancel_reason,
            compact_revision,
            ..WatchResponse::default()
        });
    }

    /// Puts the next answers together, if there is anything to say.
    fn fill(&mut self) {
        let stream = self.handle.id();
        let deliveries = self.handle.hub().take(stream, TAKE_BYTES);
        if !deliveries.is_empty() {
            return self.deliver(deliveries);
        }
        let behind = self.handle.hub().behind(stream);
        self.history_waits = behind.is_some();
        if let Some(behind) = behind {
            self.catch_up(behind);
        } else if self.progress_asked {
            // What was delivered just now comes first: the bell has rung for it.
            let settled = self.handle.hub().settled(stream);
            let Some(revision) = settled else { return };
            self.progress_asked = false;
            self.waiting.push_back(WatchResponse {
                header: Some(self.history.header(revision)),
                watch_id: NO_WATCHER,
                ..WatchResponse::default()
            });
        }
    }

    fn deliver(&mut self, deliveries: Vec<Delivery>) {
        let mut by_watch: BTreeMap<i64, Vec<Event>> = BTreeMap::new();
        for delivery in deliveries {
            let events = by_watch.entry(delivery.watch).or_default();
            let events_of = delivery.events.into_iter();
            events.extend(events_of.map(Arc::unwrap_or_clone));
        }
        for (watch, events) in by_watch {
            let id = self.id(watch);
            let options = self.handle.hub().options(id);
            if let Some((prev_kv, fragment)) = options {
                self.events(watch, events, prev_kv, fragment);
            }
        }
    }

    fn catch_up(&mut self, behind: Behind) {
        let Behind { watch, spec, next } = behind;
        match self.history.events(&spec, next) {
            Ok(step) => {
                if !step.events.is_empty() {
                    self.events(watch, step.events, spec.prev_kv, spec.fragment);
                }
                let id = self.id(watch);
                self.handle.hub().caught_up(id, step.next);
            }
            Err(HistoryError::Compacted(revision)) => {
                tracing::info!(watch, ?spec, next, revision, "a watcher was too slow");
                let id = self.id(watch);
                self.handle.hub().cancel(id);
                let why = "etcdserver: mvcc: required revision has been compacted";
                self.cancelled(watch, why.into(), revision);
            }
            Err(HistoryError::Failed(status)) => {
                tracing::error!(watch, ?spec, next, %status, "history cannot be read");
                let id = self.id(watch);
                self.handle.hub().cancel(id);
                self.cancelled(watch, status.message().into(), 0);
            }
        }
    }

    /// Answers with these events; in pieces when they are many and the client takes pieces.
    fn events(&mut self, watch_id: i64, mut events: Vec<Event>, prev_kv: bool, fragment: bool) {
        if prev_kv {
            for event in &mut events {
                event.prev_kv = self.history.before(event);
            }
        }
        self.busy.insert(watch_id);
        let header = self.header();
        let mut pieces = if fragment {
            pieces(events)
        } else {
            vec![events]
        };
        let last = pieces.pop().unwrap_or_default();
        let answer = |events, fragment| WatchResponse {
            header: Some(header),
            watch_id,
            events,
            fragment,
            ..WatchResponse::default()
        };
        let first = pieces.into_iter().map(|piece| answer(piece, true));
        self.waiting.extend(first);
        self.waiting.push_back(answer(last, false));
    }

    fn notify_progress(&mut self) {
        let stream = self.handle.id();
        let busy = std::mem::take(&mut self.busy);
        let (settled, wanting) = {
            let hub = self.handle.hub();
            (hub.settled(stream), hub.wanting_progress(stream))
        };
        let Some(revision) = settled.filter(|_| self.waiting.is_empty()) else {
            return;
        };
        for watch_id in wanting {
            if busy.contains(&watch_id) {
                continue;
            }
            self.waiting.push_back(WatchResponse {
                header: Some(self.history.header(revision)),
                watch_id,
                ..WatchResponse::default()
            });
        }
    }

    fn id(&self, watch: i64) -> WatcherId {
        WatcherId {
            stream: self.handle.id(),
            watch,
        }
    }

    fn header(&self) -> ResponseHeader {
        let revision = self.handle.hub().revision();
        self.history.header(revision)
    }
}

fn spec(request: &WatchCreateRequest) -> Spec {
    let filtered = |filter: FilterType| request.filters.contains(&filter.into());
    let key = match request.key.as_ref() {
        [] => vec![0].into(),
        _ => request.key.clone(),
    };
    Spec {
        range: KeyRange::new(key, request.range_end.clone()),
        no_put: filtered(FilterType::Noput),
        no_delete: filtered(FilterType::Nodelete),
        prev_kv: request.prev_kv,
        fragment: request.fragment,
        progress_notify: request.progress_notify,
    }
}

fn is_empty(range: &KeyRange) -> bool {
    matches!(range, KeyRange::Between(start, end) if start >= end)
}

/// Cut so that each piece is small, but for single events that are not.
fn pieces(events: Vec<Event>) -> Vec<Vec<Event>> {
    let (mut pieces, mut bytes) = (vec![Vec::new()], 0);
    for event in events {
        let size = event_bytes(&event);
        if bytes > 0 && bytes + size > FRAGMENT_BYTES {
            pieces.push(Vec::new());
            bytes = 0;
        }
        bytes += size;
        pieces.last_mut().expect("there is a first one").push(event);
    }
    pieces
}

#[cfg(test)]
mod tests;
