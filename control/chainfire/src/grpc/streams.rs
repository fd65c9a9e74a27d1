//! The services with streams: watching, keeping leases alive, and long ranges.

use std::future::ready;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use chainfire_core::TokioRuntime;
use chainfire_store::Access;
use etcd_wire::RpcError;
use etcd_wire::etcdserverpb::{self as pb, lease_server, watch_server};
use etcd_wire::mvccpb::{Event, KeyValue};
use futures_util::stream::{self, Stream, StreamExt as _};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{Grpc, needs_leader, unary};
use crate::api::{Api, Caller};
use crate::watch::KeyRange;
use crate::watch::hub::Spec;
use crate::watch::stream::{CHANNEL_LENGTH, History, HistoryError, Step, WatchStream};

/// Answers of a stream.
pub type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
/// A range in pieces.
pub type RangeStream = Answers<pb::RangeStreamResponse>;

/// Keys of one piece of a range.
const RANGE_PIECE_KEYS: i64 = 1000;
/// How often a stream that needs a leader looks for one.
const LEADER_LOOK: Duration = Duration::from_secs(1);
/// Bytes of one step of history, about.
const STEP_BYTES_MAX: usize = 1 << 20;

/// The history that a client may see.
pub(crate) struct ClientHistory {
    pub(crate) api: Arc<Api>,
    pub(crate) caller: Caller,
}

impl History for ClientHistory {
    fn header(&self, revision: i64) -> pb::ResponseHeader {
        self.api.header(revision)
    }

    fn may_read(&self, range: &KeyRange) -> Result<(), Status> {
        let (key, end) = range.bounds();
        let view = self.api.consensus.view();
        let checked = view
            .auth()
            .check(self.caller.identity(), Access::Read, key, end);
        checked.map_err(Into::into)
    }

    fn events(&self, spec: &Spec, from: i64) -> Result<Step, HistoryError> {
        let view = self.api.consensus.view();
        if from < view.compact_revision() {
            return Err(HistoryError::Compacted(view.compact_revision()));
        }
        let failed = |error| HistoryError::Failed(crate::api::read_error(error));
        let (key, end) = spec.range.bounds();
        let read = view
            .events_since(from, key, end, STEP_BYTES_MAX)
            .map_err(failed)?;
        let events = read.batches.into_iter().flat_map(|batch| batch.events);
        Ok(Step {
            events: events.filter(|event| spec.wants(event)).collect(),
            next: read.next_revision,
        })
    }

    fn before(&self, event: &Event) -> Option<KeyValue> {
        let kv = event.kv.as_ref()?;
        match self.api.consensus.view().before(&kv.key, kv.mod_revision) {
            Ok(before) => before,
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "a read failed");
                None
            }
        }
    }
}

/// A watch stream's answers to its requests.
pub(crate) fn watch(
    api: &Arc<Api>,
    caller: Caller,
    requests: impl Stream<Item = Result<pb::WatchRequest, Status>> + Send + 'static,
) -> Answers<pb::WatchResponse> {
    let (answers, receiver) = tokio::sync::mpsc::channel(CHANNEL_LENGTH);
    let history = ClientHistory {
        api: Arc::clone(api),
        caller,
    };
    let stream = WatchStream::new(api.hub.open(), Arc::new(history));
    tokio::spawn(stream.run::<TokioRuntime>(requests, answers, api.stop.clone()));
    Box::pin(ReceiverStream::new(receiver))
}

/// A range in pieces, all at one revision.
pub(crate) fn range(api: Arc<Api>, caller: Caller, request: pb::RangeRequest) -> RangeStream {
    struct State {
        api: Arc<Api>,
        caller: Caller,
        next: Option<pb::RangeRequest>,
        left: Option<i64>,
    }
    let left = (request.limit > 0).then_some(request.limit);
    let state = State {
        api,
        caller,
        next: Some(request),
        left,
    };
    let pieces = stream::try_unfold(state, async |mut state: State| {
        let Some(mut request) = state.next.take() else {
            return Ok(None);
        };
        request.limit = state
            .left
            .map_or(RANGE_PIECE_KEYS, |left| left.min(RANGE_PIECE_KEYS));
        let mut piece = state.api.range(&state.caller, request.clone()).await?;
        let got = piece.kvs.len() as i64;
        state.left = state.left.map(|left| left - got);
        if piece.more
            && state.left != Some(0)
            && let Some(last) = piece.kvs.last()
        {
            let mut key = last.key.to_vec();
            key.push(0);
            request.key = key.into();
            if request.revision == 0 {
                request.revision = piece.header.as_ref().map_or(0, |header| header.revision);
            }
            piece.more = false;
            state.next = Some(request);
        }
        let response = pb::RangeStreamResponse {
            range_response: Some(piece),
        };
        Ok::<_, Status>(Some((response, state)))
    });
    Box::pin(pieces)
}

/// Ends a stream when the node stops.
fn until_stopped<T: Send + 'static>(
    api: &Arc<Api>,
    answers: impl Stream<Item = Result<T, Status>> + Send + 'static,
) -> Answers<T> {
    let stop = api.stop.clone();
    let stopped = async move { stop.requested().await };
    let end = stream::iter([Err(RpcError::Stopped.into())]);
    Box::pin(answers.take_until(stopped).chain(end.filter({
        let stop = api.stop.clone();
        move |_| std::future::ready(stop.is_requested())
    })))
}

/// Ends a stream whose request asked for a leader, once no leader has answered for a while.
fn until_leaderless<T: Send + 'static>(
    api: &Arc<Api>,
    needs_leader: bool,
    answers: Answers<T>,
) -> Answers<T> {
    if !needs_leader {
        return answers;
    }
    let api = Arc::clone(api);
    let leaderless = async move {
        loop {
            tokio::time::sleep(LEADER_LOOK).await;
            if let Err(status) = api.require_leader().await {
                return Some(Err(status));
            }
        }
    };
    // Whichever ends first ends both: `None` stands for an end.
    let end = || stream::once(ready(None));
    let answers = answers.map(Some).chain(end());
    let leaderless = stream::once(leaderless).chain(end());
    let both = stream::select(answers, leaderless);
    Box::pin(
        both.take_while(|answer| ready(answer.is_some()))
            .filter_map(ready),
    )
}

#[tonic::async_trait]
impl watch_server::Watch for Grpc {
    type WatchStream = Answers<pb::WatchResponse>;

    async fn watch(
        &self,
        request: Request<Streaming<pb::WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let caller = self.caller(&request).await?;
        let needs_leader = needs_leader(request.metadata());
        let answers = watch(&self.0, caller, request.into_inner());
        Ok(Response::new(until_leaderless(
            &self.0,
            needs_leader,
            answers,
        )))
    }
}

unary! {
    lease_server::Lease {
        lease_grant: LeaseGrantRequest => LeaseGrantResponse;
        lease_revoke: LeaseRevokeRequest => LeaseRevokeResponse;
        lease_time_to_live: LeaseTimeToLiveRequest => LeaseTimeToLiveResponse;
        lease_leases: LeaseLeasesRequest => LeaseLeasesResponse;
    }
    type LeaseKeepAliveStream = Answers<pb::LeaseKeepAliveResponse>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<pb::LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let needs_leader = needs_leader(request.metadata());
        if needs_leader {
            self.0.require_leader().await?;
        }
        let api = Arc::clone(&self.0);
        let answers = request.into_inner().then(move |request| {
            let api = Arc::clone(&api);
            async move { api.lease_keep_alive(request?).await }
        });
        let answers = until_stopped(&self.0, answers);
        Ok(Response::new(until_leaderless(
            &self.0,
            needs_leader,
            answers,
        )))
    }
}
