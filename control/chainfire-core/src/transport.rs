//! Between members: what a transport must do, and Raft's network over it.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use openraft::RPCTypes;
use openraft::async_runtime::AsyncRuntime;
use openraft::errors::{
    NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable,
};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};

use crate::codec::DecodeError;
use crate::machine::SnapshotData;
use crate::rpc::{self, Method};
use crate::types::{Member, NodeId, TypeConfig, Vote};
use crate::wal::lock;

/// Why a call between members failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransportError {
    /// The request certainly did not reach the other member.
    #[error("unreachable: {0}")]
    Unreachable(String),
    /// The request may have reached it; no answer came in time.
    #[error("no answer in time")]
    Timeout,
    /// The request may have reached it; the connection or the other member failed.
    #[error("failed: {0}")]
    Failed(String),
}

/// The pieces of a snapshot, read as they are sent.
pub type SnapshotChunks = Box<dyn Iterator<Item = io::Result<Bytes>> + Send>;

/// Carries calls to other members. Calls may overlap and overtake each other. A call of
/// [`Method::Propose`] or [`Method::Change`] is delivered at most once: an implementation does not
/// send it again by itself. An implementation keeps its connections and reconnects by itself.
pub trait Transport: Clone + Send + Sync + 'static {
    /// Asks `member` (whose identity is `to`) for `method`, waiting for at most `deadline`. The
    /// other side answers with [`crate::Node::receive`].
    fn call(
        &self,
        to: NodeId,
        member: &Member,
        method: Method,
        body: Bytes,
        deadline: Duration,
    ) -> impl Future<Output = Result<Bytes, TransportError>> + Send;

    /// Sends a snapshot: its head, then `chunks`, waiting for at most `deadline` at each chunk. The
    /// other side answers with [`crate::Node::receive_snapshot`].
    fn send_snapshot(
        &self,
        to: NodeId,
        member: &Member,
        head: Bytes,
        chunks: SnapshotChunks,
        deadline: Duration,
    ) -> impl Future<Output = Result<Bytes, TransportError>> + Send;
}

/// Where each member is now: the newest membership decides, not the one a connection began with.
#[derive(Debug, Clone, Default)]
pub(crate) struct Directory(Arc<Mutex<BTreeMap<NodeId, Member>>>);

impl Directory {
    pub(crate) fn set(&self, members: BTreeMap<NodeId, Member>) {
        *lock(&self.0) = members;
    }

    pub(crate) fn get(&self, id: NodeId) -> Option<Member> {
        lock(&self.0).get(&id).cloned()
    }
}

/// Makes Raft's connections to other members.
pub(crate) struct Network<R, T> {
    pub(crate) from: NodeId,
    pub(crate) transport: T,
    pub(crate) directory: Directory,
    pub(crate) runtime: PhantomData<fn() -> R>,
}

/// Raft's connection to one member.
pub(crate) struct Link<R, T> {
    from: NodeId,
    to: NodeId,
    member: Member,
    transport: T,
    directory: Directory,
    runtime: PhantomData<fn() -> R>,
}

impl<R, T> RaftNetworkFactory<TypeConfig<R>> for Network<R, T>
where
    R: AsyncRuntime + 'static,
    T: Transport,
{
    type Network = Link<R, T>;

    async fn new_client(&mut self, target: NodeId, node: &Member) -> Link<R, T> {
        Link {
            from: self.from,
            to: target,
            member: node.clone(),
            transport: self.transport.clone(),
            directory: self.directory.clone(),
            runtime: PhantomData,
        }
    }
}

impl<R, T> Link<R, T>
where
    R: AsyncRuntime + 'static,
    T: Transport,
{
    fn member(&self) -> Member {
        self.directory
            .get(self.to)
            .unwrap_or_else(|| self.member.clone())
    }

    async fn call(
        &self,
        method: Method,
        action: RPCTypes,
        body: Bytes,
        option: &RPCOption,
    ) -> Result<Bytes, RPCError<TypeConfig<R>>> {
        let deadline = option.hard_ttl();
        let called = self
            .transport
            .call(self.to, &self.member(), method, body, deadline)
            .await;
        called.map_err(|error| match error {
            TransportError::Unreachable(_) => RPCError::Unreachable(Unreachable::new(&error)),
            TransportError::Failed(_) => RPCError::Network(NetworkError::new(&error)),
            TransportError::Timeout => RPCError::Timeout(Timeout {
                action,
                id: self.from,
                target: self.to,
                timeout: deadline,
            }),
        })
    }

    /// Asks for a vote, or whether there would be one.
    async fn ask_for_vote(
        &self,
        method: Method,
        rpc: &VoteRequest<TypeConfig<R>>,
        option: &RPCOption,
    ) -> Result<VoteResponse<TypeConfig<R>>, RPCError<TypeConfig<R>>> {
        let body = rpc::encode_vote_request(rpc);
        let answer = self.call(method, RPCTypes::Vote, body, option).await?;
        rpc::decode_vote_response(answer).map_err(|error| undecodable(&error))
    }
}

fn undecodable<R: AsyncRuntime + 'static>(error: &DecodeError) -> RPCError<TypeConfig<R>> {
    RPCError::Network(NetworkError::new(error))
}

impl<R, T> RaftNetworkV2<TypeConfig<R>> for Link<R, T>
where
    R: AsyncRuntime + 'static,
    T: Transport,
{
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig<R>>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig<R>>, RPCError<TypeConfig<R>>> {
        let body = rpc::encode_append_request(&rpc);
        let method = Method::AppendEntries;
        let answer = self
            .call(method, RPCTypes::AppendEntries, body, &option)
            .await?;
        rpc::decode_append_response(answer).map_err(|error| undecodable(&error))
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig<R>>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig<R>>, RPCError<TypeConfig<R>>> {
        self.ask_for_vote(Method::Vote, &rpc, &option).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig<R>>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig<R>>, RPCError<TypeConfig<R>>> {
        self.ask_for_vote(Method::PreVote, &rpc, &option).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: openraft::type_config::alias::SnapshotOf<TypeConfig<R>, SnapshotData>,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig<R>>, StreamingError<TypeConfig<R>>> {
        let network = |error: &TransportError| StreamingError::Network(NetworkError::new(error));
        let head = rpc::encode_snapshot_head(vote, &snapshot.meta);
        let chunks = snapshot.snapshot.into_chunks();
        let member = self.member();
        let deadline = option.hard_ttl();
        let sending = std::pin::pin!(
            self.transport
                .send_snapshot(self.to, &member, head, chunks, deadline)
        );
        let cancel = std::pin::pin!(cancel);
        match futures_util::future::select(sending, cancel).await {
            futures_util::future::Either::Left((Ok(answer), _)) => {
                let vote = rpc::decode_vote(answer)
                    .map_err(|error| StreamingError::Network(NetworkError::new(&error)))?;
                Ok(SnapshotResponse::new(vote))
            }
            futures_util::future::Either::Left((Err(error), _)) => Err(match error {
                TransportError::Unreachable(_) => {
                    StreamingError::Unreachable(Unreachable::new(&error))
                }
                _ => network(&error),
            }),
            futures_util::future::Either::Right((closed, _)) => Err(closed.into()),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig<R>>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig<R>>, RPCError<TypeConfig<R>>> {
        let body = rpc::encode_transfer(&request);
        // Whether it took effect shows in the next vote; a refusal is another try of the leader.
        let method = Method::TimeoutNow;
        self.call(method, RPCTypes::TransferLeader, body, &option)
            .await?;
        Ok(Ok(()))
    }
}
