//! What other members ask of this one, over gRPC.

use std::io;
use std::pin::Pin;
use std::sync::Arc;

use chainfire_core::{ErrorKind, Method};
use control_kit::stop::Stop;
use etcd_wire::chainfire::raft_server::{Raft, RaftServer};
use etcd_wire::chainfire::{
    JoinRequest, JoinResponse, LeaseGone, LeaseRenewRequest, LeaseRenewResponse, NotLeader,
    PeerRequest, PeerResponse, SnapshotChunk, lease_renew_response,
};
use futures_util::{Stream, StreamExt as _};
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

use super::{RaftConsensus, status};
use crate::consensus::Consensus as _;

/// Calls of one stream that are answered at a time.
const CALLS_MAX: usize = 1024;

/// A stream's answers.
type Answers = Pin<Box<dyn Stream<Item = Result<PeerResponse, Status>> + Send>>;

/// The members' service.
#[derive(Clone)]
pub struct PeerService(Arc<RaftConsensus>, Stop);

impl PeerService {
    /// The service, to be served on the peer port until `stop`.
    pub fn routes(consensus: Arc<RaftConsensus>, stop: Stop) -> Routes {
        let server = RaftServer::new(PeerService(consensus, stop))
            .max_decoding_message_size(usize::MAX)
            .max_encoding_message_size(usize::MAX);
        Routes::new(server)
    }

    /// Members of another cluster have nothing to say here.
    fn check(&self, cluster_id: u64) -> Result<(), Status> {
        let own = self.0.cluster_id();
        if cluster_id == own {
            return Ok(());
        }
        Err(Status::failed_precondition(format!(
            "this member belongs to cluster {own:x}, not to {cluster_id:x}"
        )))
    }

    async fn receive(
        &self,
        method: Method,
        request: Request<PeerRequest>,
    ) -> Result<Response<PeerResponse>, Status> {
        let request = request.into_inner();
        self.check(request.cluster_id)?;
        match self.0.node().receive(method, request.body).await {
            Ok(body) => Ok(Response::new(PeerResponse {
                body,
                ..PeerResponse::default()
            })),
            Err(error) if error.kind() == ErrorKind::Invalid => {
                Err(Status::invalid_argument(error.to_string()))
            }
            Err(error) => Err(Status::internal(error.to_string())),
        }
    }

    /// Answers one call of a stream. An error ends the stream.
    async fn answer(
        self,
        method: Method,
        request: Result<PeerRequest, Status>,
    ) -> Result<PeerResponse, Status> {
        let request = request?;
        self.check(request.cluster_id)?;
        let mut answer = PeerResponse {
            number: request.number,
            ..PeerResponse::default()
        };
        match self.0.node().receive(method, request.body).await {
            Ok(body) => answer.body = body,
            Err(error) => answer.failed = error.to_string(),
        }
        Ok(answer)
    }

    /// Answers a stream of calls until the caller or this member ends it.
    fn answers(
        &self,
        method: Method,
        requests: Request<Streaming<PeerRequest>>,
    ) -> Response<Answers> {
        let service = self.clone();
        let stop = self.1.clone();
        let stopped = async move { stop.requested().await };
        let answers = requests
            .into_inner()
            .map(move |request| service.clone().answer(method, request))
            .buffer_unordered(CALLS_MAX)
            .take_until(stopped);
        Response::new(Box::pin(answers))
    }
}

macro_rules! received {
    (
        once { $($method:ident => $kind:ident;)* }
        streamed { $($stream:ident: $answers:ident => $of:ident;)* }
        $($rest:tt)*
    ) => {
        #[tonic::async_trait]
        impl Raft for PeerService {
            $(
                async fn $method(
                    &self,
                    request: Request<PeerRequest>,
                ) -> Result<Response<PeerResponse>, Status> {
                    self.receive(Method::$kind, request).await
                }
            )*
            $(
                type $answers = Answers;

                async fn $stream(
                    &self,
                    requests: Request<Streaming<PeerRequest>>,
                ) -> Result<Response<Answers>, Status> {
                    Ok(self.answers(Method::$of, requests))
                }
            )*
            $($rest)*
        }
    };
}

received! {
    once {
        vote => Vote;
        pre_vote => PreVote;
        timeout_now => TimeoutNow;
        change => Change;
    }
    streamed {
        append_entries: AppendEntriesStream => AppendEntries;
        propose: ProposeStream => Propose;
        read_index: ReadIndexStream => ReadIndex;
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<SnapshotChunk>>,
    ) -> Result<Response<PeerResponse>, Status> {
        let mut chunks = request.into_inner();
        let first = chunks.message().await?.and_then(|chunk| chunk.head);
        let head = first.ok_or_else(|| Status::invalid_argument("a snapshot begins with a head"))?;
        self.check(head.cluster_id)?;
        let data = chunks.map(|chunk| chunk.map(|chunk| chunk.data).map_err(io::Error::other));
        let received = self.0.node().receive_snapshot(head.body, data).await;
        let body = received.map_err(|error| status(&error))?;
        Ok(Response::new(PeerResponse {
            body,
            ..PeerResponse::default()
        }))
    }

    async fn lease_renew(
        &self,
        request: Request<LeaseRenewRequest>,
    ) -> Result<Response<LeaseRenewResponse>, Status> {
        use lease_renew_response::Result as Answer;
        let request = request.into_inner();
        self.check(request.cluster_id)?;
        let leader_id = self.0.standing().leader_id;
        let result = if leader_id == self.0.member_id() {
            match self.0.own_lease_time(request.id, request.peek).await? {
                Some(time) => Answer::Time(time),
                None => Answer::Gone(LeaseGone {}),
            }
        } else {
            Answer::NotLeader(NotLeader { leader_id })
        };
        let result = Some(result);
        Ok(Response::new(LeaseRenewResponse { result }))
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        self.0.barrier().await?;
        let asked = request.into_inner().peer_urls;
        let members = self.0.standing().members;
        let member = members.iter().find(|member| {
            member.peer_urls.iter().any(|url| asked.contains(url))
        });
        let Some(member) = member else {
            return Err(Status::not_found(format!(
                "no member has one of the peer URLs {}; add it first",
                asked.join(", ")
            )));
        };
        Ok(Response::new(JoinResponse {
            cluster_id: self.0.cluster_id(),
            member_id: member.id,
        }))
    }
}
