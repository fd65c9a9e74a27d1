//! The care of a member: its state, hashes, alarms, snapshots.

#![expect(
    clippy::unused_async,
    reason = "requests have one shape, whether they wait or not"
)]

use etcd_wire::RpcError;
use etcd_wire::etcdserverpb::alarm_request::AlarmAction;
use etcd_wire::etcdserverpb::{
    AlarmMember, AlarmRequest, AlarmResponse, AlarmType, DefragmentRequest, DefragmentResponse,
    DowngradeRequest, DowngradeResponse, HashKvRequest, HashKvResponse, HashRequest, HashResponse,
    MoveLeaderRequest, MoveLeaderResponse, StatusRequest, StatusResponse,
};
use tonic::Status;

use super::{Api, Caller, ETCD_VERSION, propose, read_error};

impl Api {
    /// Asks for alarms, or raises or ends one.
    pub async fn alarm(
        &self,
        caller: &Caller,
        request: AlarmRequest,
    ) -> Result<AlarmResponse, Status> {
        if request.action() == AlarmAction::Get {
            let view = self.consensus.view();
            let alarms = view.alarms().map(|alarm| AlarmMember {
                member_id: alarm.member,
                alarm: alarm.kind,
            });
            let asked = request.alarm;
            let alarms = alarms.filter(|alarm| asked == 0 || alarm.alarm == asked);
            return Ok(AlarmResponse {
                header: Some(self.header(view.revision())),
                alarms: alarms.collect(),
            });
        }
        self.require_admin(caller)?;
        propose!(self, caller, Alarm, request)
    }

    /// How this member is.
    pub async fn status(
        &self,
        _caller: &Caller,
        _request: StatusRequest,
    ) -> Result<StatusResponse, Status> {
        let standing = self.consensus.standing();
        let view = self.consensus.view();
        let mut errors: Vec<String> = Vec::new();
        if standing.leader_id == 0 {
            errors.push(RpcError::NoLeader.text().into());
        }
        for alarm in view.alarms() {
            let kind = AlarmType::try_from(alarm.kind).unwrap_or(AlarmType::None);
            let (member, kind) = (alarm.member, kind.as_str_name());
            errors.push(format!("memberID:{member} alarm:{kind} "));
        }
        let size = view.size_bytes() as i64;
        Ok(StatusResponse {
            header: Some(self.header(view.revision())),
            version: ETCD_VERSION.into(),
            db_size: size,
            db_size_in_use: size,
            db_size_quota: self.quota_bytes as i64,
            leader: standing.leader_id,
            raft_index: standing.committed_index,
            raft_term: standing.term,
            raft_applied_index: standing.applied_index,
            is_learner: standing.is_learner(),
            errors,
            ..StatusResponse::default()
        })
    }

    /// The store gives space back by itself; there is nothing to wait for.
    pub async fn defragment(
        &self,
        caller: &Caller,
        _request: DefragmentRequest,
    ) -> Result<DefragmentResponse, Status> {
        self.require_admin(caller)?;
        Ok(DefragmentResponse {
            header: Some(self.current_header()),
        })
    }

    /// A hash of everything.
    pub async fn hash(
        &self,
        caller: &Caller,
        _request: HashRequest,
    ) -> Result<HashResponse, Status> {
        self.require_admin(caller)?;
        let view = self.consensus.view();
        let hash = off_loop(move || view.hash())
            .await?
            .map_err(|error| read_error(error.into()))?;
        Ok(HashResponse {
            header: Some(self.current_header()),
            hash,
        })
    }

    /// A hash of the keys up to a revision.
    pub async fn hash_kv(
        &self,
        _caller: &Caller,
        request: HashKvRequest,
    ) -> Result<HashKvResponse, Status> {
        let view = self.consensus.view();
        let revision = view.revision();
        let hashed = off_loop(move || view.hash_kv(request.revision)).await?;
        let hashed = hashed.map_err(read_error)?;
        Ok(HashKvResponse {
            header: Some(self.header(revision)),
            hash: hashed.hash,
            compact_revision: hashed.compact_revision,
            hash_revision: hashed.hash_revision,
        })
    }

    /// Hands leadership on; only the leader does.
    pub async fn move_leader(
        &self,
        caller: &Caller,
        request: MoveLeaderRequest,
    ) -> Result<MoveLeaderResponse, Status> {
        self.require_admin(caller)?;
        let standing = self.consensus.standing();
        if !standing.leads() {
            return Err(RpcError::NotLeader.into());
        }
        let to = request.target_id;
        let known = standing.members.iter().find(|member| member.id == to);
        if known.is_none_or(|member| member.is_learner) {
            return Err(RpcError::BadLeaderTransferee.into());
        }
        self.consensus.transfer(to).await?;
        Ok(MoveLeaderResponse {
            header: Some(self.current_header()),
        })
    }

    /// There is one version: nothing to go back to.
    pub async fn downgrade(
        &self,
        _caller: &Caller,
        _request: DowngradeRequest,
    ) -> Result<DowngradeResponse, Status> {
        Err(RpcError::InvalidDowngradeTargetVersion.into())
    }
}

/// What reads the whole store does so on no thread that serves.
async fn off_loop<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Status> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| RpcError::Stopped.into())
}
