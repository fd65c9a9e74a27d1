//! Calls to other members, over gRPC: one channel for each URL, kept and reconnected. What is asked
//! all the time goes over streams that stay open ([`Calls`]).

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use chainfire_core::{Member, Method, NodeId, SnapshotChunks, Transport, TransportError};
use control_kit::client::{self, Options};
use control_kit::tls::ClientTls;
use etcd_wire::RpcError;
use etcd_wire::chainfire::raft_client::RaftClient;
use etcd_wire::chainfire::{
    JoinRequest, JoinResponse, LeaseRenewRequest, LeaseTime, PeerRequest, PeerResponse,
    SnapshotChunk, lease_renew_response,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Response, Status, Streaming};

use super::Peers;
use super::calls::{Calls, Requests};

/// A member that comes back, or that packets reach again, must not wait for a connection that has died:
/// it is given up soon, and the next one is made.
const BETWEEN_MEMBERS: Options = Options {
    connect_timeout: Duration::from_secs(1),
    ping_timeout: Duration::from_secs(3),
    ping_interval: Duration::from_secs(1),
};
/// How long the leader may take to tell a lease's time.
const LEASE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a member may take to tell of its cluster.
const JOIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Chunks of a snapshot that were read and not sent yet.
const CHUNKS_WAITING_MAX: usize = 4;

/// Connections to all other members; clones share them.
#[derive(Clone)]
pub struct PeerChannels(Arc<Shared>);

struct Shared {
    cluster_id: u64,
    from: NodeId,
    tls: Option<ClientTls>,
    peers: Mutex<HashMap<String, Peer>>,
}

/// What leads to one URL.
struct Peer {
    channel: Channel,
    streams: BTreeMap<Method, Arc<Calls>>,
}

type PeerClient = RaftClient<Channel>;

fn client(channel: Channel) -> PeerClient {
    RaftClient::new(channel)
        .max_decoding_message_size(usize::MAX)
        .max_encoding_message_size(usize::MAX)
}

impl PeerChannels {
    /// Connections of a member, made when they are first used.
    pub fn new(cluster_id: u64, from: NodeId, tls: Option<ClientTls>) -> PeerChannels {
        PeerChannels(Arc::new(Shared {
            cluster_id,
            from,
            tls,
            peers: Mutex::default(),
        }))
    }

    /// Does something with what leads to a member.
    fn with_peer<T>(
        &self,
        member: &Member,
        work: impl FnOnce(&mut Peer) -> T,
    ) -> Result<T, TransportError> {
        let unreachable = |what: String| TransportError::Unreachable(what);
        let Some(url) = member.peer_urls.first() else {
            return Err(unreachable(format!("{} has no peer URL", member.name)));
        };
        let peers = self.0.peers.lock();
        let mut peers = peers.unwrap_or_else(PoisonError::into_inner);
        if let Some(peer) = peers.get_mut(url) {
            return Ok(work(peer));
        }
        let channel = client::channel(url, self.0.tls.as_ref(), BETWEEN_MEMBERS);
        let channel = channel.map_err(|error| unreachable(error.to_string()))?;
        let peer = peers.entry(url.clone()).or_insert(Peer {
            channel,
            streams: BTreeMap::new(),
        });
        Ok(work(peer))
    }

    fn client(&self, member: &Member) -> Result<PeerClient, TransportError> {
        self.with_peer(member, |peer| client(peer.channel.clone()))
    }

    /// The stream of a method, opened where there is none that goes on.
    fn calls<F>(
        &self,
        member: &Member,
        method: Method,
        open: impl FnOnce(PeerClient, Requests) -> F,
    ) -> Result<Arc<Calls>, TransportError>
    where
        F: Future<Output = Result<Response<Streaming<PeerResponse>>, Status>> + Send + 'static,
    {
        self.with_peer(member, |peer| {
            let known = peer.streams.get(&method);
            if let Some(calls) = known.filter(|calls| !calls.has_ended()) {
                return Arc::clone(calls);
            }
            let client = client(peer.channel.clone());
            let calls = Arc::new(Calls::open(|requests| open(client, requests)));
            peer.streams.insert(method, Arc::clone(&calls));
            calls
        })
    }

    fn request(&self, body: Bytes) -> PeerRequest {
        PeerRequest {
            cluster_id: self.0.cluster_id,
            from: self.0.from,
            body,
            number: 0,
        }
    }
}

impl Peers for PeerChannels {
    async fn lease_time(
        &self,
        _leader: NodeId,
        member: &Member,
        id: i64,
        peek: bool,
    ) -> Result<Option<LeaseTime>, Status> {
        let mut client = self.client(member).map_err(|_| RpcError::NoLeader)?;
        let mut request = tonic::Request::new(LeaseRenewRequest {
            cluster_id: self.0.cluster_id,
            id,
            peek,
        });
        request.set_timeout(LEASE_TIMEOUT);
        let answer = client.lease_renew(request).await.map_err(unanswered)?;
        match answer.into_inner().result {
            Some(lease_renew_response::Result::Time(time)) => Ok(Some(time)),
            Some(lease_renew_response::Result::Gone(_)) => Ok(None),
            Some(lease_renew_response::Result::NotLeader(_)) | None => {
                Err(RpcError::LeaderChanged.into())
            }
        }
    }
}

/// Asks a member of a cluster who has one of these URLs, and what the cluster is.
///
/// # Errors
/// What the member answered, or that it did not.
pub async fn join(
    url: &str,
    tls: Option<&ClientTls>,
    peer_urls: Vec<String>,
) -> Result<JoinResponse, Status> {
    let channel = client::channel(url, tls, Options::default());
    let channel = channel.map_err(|error| Status::unavailable(error.to_string()))?;
    let asked = async { client(channel).join(JoinRequest { peer_urls }).await };
    match tokio::time::timeout(JOIN_TIMEOUT, asked).await {
        Ok(answer) => Ok(answer?.into_inner()),
        Err(_) => Err(Status::unavailable("no answer in time")),
    }
}

/// What a client is told of a call to the leader that failed: its own words, or that it gave none.
fn unanswered(status: Status) -> Status {
    let is_silent = matches!(status.code(), Code::Cancelled | Code::DeadlineExceeded);
    if is_silent || std::error::Error::source(&status).is_some() {
        return RpcError::TimeoutDueToLeaderFail.into();
    }
    status
}

/// What a failed call says of whether it reached the other member.
pub(super) fn failed(status: &Status) -> TransportError {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if error.is::<tonic::ConnectError>() {
            return TransportError::Unreachable(error.to_string());
        }
        source = error.source();
    }
    match status.code() {
        // What the other member refuses before it looks inside.
        Code::FailedPrecondition => TransportError::Unreachable(status.message().to_owned()),
        Code::DeadlineExceeded => TransportError::Timeout,
        _ => TransportError::Failed(status.to_string()),
    }
}

fn body(answered: Result<Response<PeerResponse>, Status>) -> Result<Bytes, TransportError> {
    match answered {
        Ok(answer) => Ok(answer.into_inner().body),
        Err(status) => Err(failed(&status)),
    }
}

impl Transport for PeerChannels {
    async fn call(
        &self,
        _to: NodeId,
        member: &Member,
        method: Method,
        request: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, TransportError> {
        let request = self.request(request);
        macro_rules! streamed {
            ($method:ident) => {{
                let calls = self.calls(member, method, |mut client, requests| async move {
                    client.$method(requests).await
                })?;
                calls.call(request, deadline).await
            }};
        }
        macro_rules! once {
            ($method:ident) => {{
                let mut client = self.client(member)?;
                match tokio::time::timeout(deadline, client.$method(request)).await {
                    Ok(answered) => body(answered),
                    Err(_) => Err(TransportError::Timeout),
                }
            }};
        }
        match method {
            Method::AppendEntries => streamed!(append_entries),
            Method::Propose => streamed!(propose),
            Method::ReadIndex => streamed!(read_index),
            Method::Vote => once!(vote),
            Method::PreVote => once!(pre_vote),
            Method::TimeoutNow => once!(timeout_now),
            Method::Change => once!(change),
        }
    }

    async fn send_snapshot(
        &self,
        _to: NodeId,
        member: &Member,
        head: Bytes,
        chunks: SnapshotChunks,
        deadline: Duration,
    ) -> Result<Bytes, TransportError> {
        let mut client = self.client(member)?;
        let (sender, receiver) = mpsc::channel(CHUNKS_WAITING_MAX);
        let head = SnapshotChunk {
            head: Some(self.request(head)),
            data: Bytes::new(),
        };
        let reading = tokio::task::spawn_blocking(move || {
            let send = |chunk| sender.blocking_send(chunk).is_ok();
            if !send(head) {
                return Ok(());
            }
            for data in chunks {
                let chunk = SnapshotChunk {
                    head: None,
                    data: data?,
                };
                // The other side, or the deadline, ended the call.
                if !send(chunk) {
                    break;
                }
            }
            Ok::<(), std::io::Error>(())
        });
        let (progress, mut moved) = mpsc::channel(1);
        let chunks = Counted {
            inner: ReceiverStream::new(receiver),
            progress,
        };
        let mut sending = std::pin::pin!(client.install_snapshot(chunks));
        let answered = loop {
            tokio::select! {
                answered = &mut sending => break answered,
                waited = tokio::time::timeout(deadline, moved.recv()) => match waited {
                    Err(_) => return Err(TransportError::Timeout),
                    // All was sent: what is left is the answer.
                    Ok(None) => {
                        let answered = tokio::time::timeout(deadline, &mut sending).await;
                        break answered.map_err(|_| TransportError::Timeout)?;
                    }
                    Ok(Some(())) => {}
                },
            }
        };
        let answer = body(answered)?;
        match reading.await {
            Ok(Ok(())) => Ok(answer),
            Ok(Err(error)) => Err(TransportError::Failed(format!(
                "reading the snapshot: {error}"
            ))),
            Err(_) => Err(TransportError::Failed("reading the snapshot ended".into())),
        }
    }
}

/// A stream that tells of each of its items.
struct Counted<S> {
    inner: S,
    progress: mpsc::Sender<()>,
}

impl<S: futures_util::Stream + Unpin> futures_util::Stream for Counted<S> {
    type Item = S::Item;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<S::Item>> {
        let polled = std::pin::Pin::new(&mut self.inner).poll_next(context);
        if polled.is_ready() {
            // A progress that was not looked at yet is enough.
            let _ = self.progress.try_send(());
        }
        polled
    }
}
