//! What clients may ask for, whatever front they come through: gRPC, JSON, or the services on top
//! (locks, elections). Each method is one request of etcd's API.

mod auth;
mod caller;
pub(crate) mod cluster;
mod kv;
mod leases;
mod maintenance;
mod snapshot;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use control_kit::stop::Stop;
use etcd_wire::RpcError;
use etcd_wire::chainfire::command::Op;
use etcd_wire::chainfire::{Command, outcome};
use etcd_wire::etcdserverpb::alarm_request::AlarmAction;
use etcd_wire::etcdserverpb::{AlarmRequest, AlarmType, ResponseHeader};
use tonic::Status;

pub use self::caller::Caller;
use crate::consensus::Consensus;
use crate::watch::SharedHub;

/// Bytes of a request, at most: etcd's bound.
pub const REQUEST_BYTES_MAX: usize = 3 << 19;
/// How long a leader may take to answer whoever asks whether there is one: etcd's three elections.
const LEADER_WAIT: Duration = Duration::from_secs(3);
/// The version of etcd whose API this is.
pub const ETCD_VERSION: &str = "3.5.21";
/// The version of etcd that every member speaks.
pub const CLUSTER_VERSION: &str = "3.5.0";

/// Everything that answers a request.
pub struct Api {
    pub(crate) consensus: Arc<dyn Consensus>,
    pub(crate) hub: Arc<SharedHub>,
    pub(crate) stop: Stop,
    pub(crate) quota_bytes: u64,
    ids: AtomicU64,
}

impl Api {
    /// An API over consensus.
    pub fn new(
        consensus: Arc<dyn Consensus>,
        hub: Arc<SharedHub>,
        stop: Stop,
        quota_bytes: u64,
    ) -> Arc<Api> {
        let member = consensus.member_id();
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let millis = since.map_or(0, |since| since.as_millis() as u64);
        // Member, time of the start and a count, as etcd makes its ids: no two members, and no two
        // runs of one, give the same.
        let first = (member << 48) | ((millis << 8) & 0x0000_ffff_ffff_ff00);
        Arc::new(Api {
            consensus,
            hub,
            stop,
            quota_bytes,
            ids: AtomicU64::new(first),
        })
    }

    /// An id for a lease: positive, and new.
    fn next_id(&self) -> i64 {
        let id = self.ids.fetch_add(1, Ordering::Relaxed) & (u64::MAX >> 1);
        (id as i64).max(1)
    }

    /// Replicates a client's command.
    async fn propose(&self, caller: &Caller, op: Op) -> Result<outcome::Result, Status> {
        let command = Command {
            user: caller.user.clone(),
            auth_revision: caller.auth_revision,
            op: Some(op),
        };
        self.check_quota(&command).await?;
        if prost::Message::encoded_len(&command) > REQUEST_BYTES_MAX {
            return Err(RpcError::RequestTooLarge.into());
        }
        self.consensus.propose(command).await
    }

    /// Refuses what the quota has no room for, and raises the alarm that keeps refusing.
    async fn check_quota(&self, command: &Command) -> Result<(), Status> {
        let cost = command.op.as_ref().map_or(0, chainfire_store::cost);
        if cost == 0 || self.consensus.view().size_bytes() + cost <= self.quota_bytes {
            return Ok(());
        }
        let alarm = AlarmRequest {
            action: AlarmAction::Activate.into(),
            member_id: self.consensus.member_id(),
            alarm: AlarmType::Nospace.into(),
        };
        let command = Command {
            op: Some(Op::Alarm(alarm)),
            ..Command::default()
        };
        self.consensus.propose(command).await?;
        tracing::warn!(
            quota_bytes = self.quota_bytes,
            "the quota is used up: writes are refused"
        );
        Err(RpcError::NoSpace.into())
    }

    /// Refuses where no leader answers in time.
    pub(crate) async fn require_leader(&self) -> Result<(), Status> {
        match tokio::time::timeout(LEADER_WAIT, self.consensus.barrier()).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(RpcError::NoLeader.into()),
        }
    }

    /// An answer's head with this revision.
    pub(crate) fn header(&self, revision: i64) -> ResponseHeader {
        ResponseHeader {
            cluster_id: self.consensus.cluster_id(),
            member_id: self.consensus.member_id(),
            revision,
            raft_term: self.consensus.term(),
        }
    }

    /// Fills in what the state machine does not know.
    pub(crate) fn fill(&self, header: &mut Option<ResponseHeader>) {
        let revision = header.as_ref().map_or(0, |header| header.revision);
        *header = Some(self.header(revision));
    }

    /// The head of an answer that reads nothing.
    pub(crate) fn current_header(&self) -> ResponseHeader {
        self.header(self.consensus.view().revision())
    }
}

/// Proposes a request and takes its own kind of answer, with the head filled in.
macro_rules! propose {
    ($api:expr, $caller:expr, $kind:ident, $request:expr) => {{
        use etcd_wire::chainfire::{command::Op, outcome};
        match $api.propose($caller, Op::$kind($request)).await? {
            outcome::Result::$kind(mut response) => {
                $api.fill(&mut response.header);
                Ok(response)
            }
            other => Err(crate::api::mismatched(&other)),
        }
    }};
}
use propose;

/// The state machine answered another question: a bug, but no reason to end the node.
fn mismatched(answer: &outcome::Result) -> Status {
    tracing::error!(?answer, "a command was answered by another kind of outcome");
    Status::internal("etcdserver: unexpected outcome")
}

/// Why a read has no answer, as clients are told.
pub(crate) fn read_error(error: chainfire_store::ReadError) -> Status {
    match error {
        chainfire_store::ReadError::Refused(refused) => refused.into(),
        chainfire_store::ReadError::Store(error) => {
            tracing::error!(error = &error as &dyn std::error::Error, "a read failed");
            Status::internal(format!("etcdserver: {error}"))
        }
    }
}
