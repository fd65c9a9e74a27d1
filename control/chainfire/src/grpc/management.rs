//! ChainFire's own management service, on the same members as etcd's.

use etcd_wire::chainfire as cf;
use etcd_wire::chainfire::management_server::{Management, ManagementServer};
use tonic::{Request, Response, Status};

use super::Grpc;
use crate::api::ETCD_VERSION;
use crate::api::cluster::checked_urls;
use crate::consensus::{Change, Member, Standing};

pub(super) fn server(grpc: Grpc) -> ManagementServer<Grpc> {
    ManagementServer::new(grpc)
}

fn outer(member: Member) -> cf::Member {
    cf::Member {
        id: member.id,
        name: member.name,
        peer_urls: member.peer_urls,
        client_urls: member.client_urls,
        is_learner: member.is_learner,
    }
}

fn all(members: Vec<Member>) -> Vec<cf::Member> {
    members.into_iter().map(outer).collect()
}

fn inner(member: cf::Member) -> Result<Member, Status> {
    if member.id == 0 {
        return Err(Status::invalid_argument(
            "a new member needs an id that is not 0",
        ));
    }
    Ok(Member {
        id: member.id,
        name: member.name,
        peer_urls: checked_urls(member.peer_urls)?,
        client_urls: member.client_urls,
        is_learner: member.is_learner,
    })
}

/// What is refused in this state, and the verb that repairs it.
fn refusals(standing: &Standing) -> Vec<cf::Refusal> {
    let refusal = |what: &str, why: String, repair: &str| cf::Refusal {
        what: what.into(),
        why,
        repair: repair.into(),
    };
    let mut refusals = Vec::new();
    if standing.leader_id == 0 {
        refusals.push(refusal(
            "writes, linearizable reads and changes of members",
            "no leader is known to this member".into(),
            "start members until a majority of the voters runs; if that is lost for good, start the \
             survivor with the longest log with --chainfire-force-new-cluster",
        ));
    }
    if let (Some(why), true) = (&standing.change_refused, standing.leader_id != 0) {
        refusals.push(refusal(
            "changes of members",
            why.clone(),
            "wait, then ask again",
        ));
    }
    if let Some(why) = &standing.failed {
        refusals.push(refusal(
            "everything on this member",
            why.clone(),
            "repair the cause and restart the member",
        ));
    }
    for progress in &standing.progress {
        if progress.reachable {
            continue;
        }
        let id = progress.id;
        refusals.push(refusal(
            &format!("promoting or transferring to member {id:x}"),
            format!("member {id:x} does not answer"),
            "start it, update its peer URL with `member update`, or remove it with `member remove`",
        ));
    }
    refusals
}

impl Grpc {
    async fn admin<T>(&self, request: Request<T>) -> Result<T, Status> {
        let caller = self.caller(&request).await?;
        self.0.require_admin(&caller)?;
        Ok(request.into_inner())
    }

    async fn changed(&self, change: Change) -> Result<Vec<cf::Member>, Status> {
        Ok(all(self.0.consensus.change(change).await?))
    }

    fn status_now(&self) -> cf::StatusResponse {
        let standing = self.0.consensus.standing();
        let view = self.0.consensus.view();
        let refusals = refusals(&standing);
        let progress = |id| standing.progress.iter().find(|progress| progress.id == id);
        let voters: Vec<u64> = standing.voters.iter().flatten().copied().collect();
        let own = standing
            .members
            .iter()
            .find(|member| member.id == standing.member_id);
        let member = |member: &Member| {
            let id = member.id;
            let known = progress(id).copied().unwrap_or_default();
            let own = id == standing.member_id;
            cf::MemberStatus {
                member: Some(outer(member.clone())),
                is_voter: voters.contains(&id),
                reachable: own || known.reachable,
                matched_index: if own {
                    standing.last_log_index
                } else {
                    known.matched_index
                },
                last_contact_ms: known.last_contact_ms.unwrap_or_default(),
            }
        };
        cf::StatusResponse {
            cluster_id: standing.cluster_id,
            member_id: standing.member_id,
            name: own.map(|member| member.name.clone()).unwrap_or_default(),
            version: ETCD_VERSION.into(),
            leader_id: standing.leader_id,
            term: standing.term,
            last_log_index: standing.last_log_index,
            committed_index: standing.committed_index,
            applied_index: standing.applied_index,
            durable_applied_index: standing.snapshot_index,
            snapshot_index: standing.snapshot_index,
            purged_index: standing.purged_index,
            revision: view.revision(),
            compact_revision: view.compact_revision(),
            db_size_bytes: view.size_bytes(),
            db_in_use_bytes: view.size_bytes(),
            db_quota_bytes: self.0.quota_bytes,
            members: standing.members.iter().map(member).collect(),
            refusals,
            is_learner: standing.is_learner(),
        }
    }
}

#[tonic::async_trait]
impl Management for Grpc {
    async fn member_add(
        &self,
        request: Request<cf::MemberAddRequest>,
    ) -> Result<Response<cf::MemberAddResponse>, Status> {
        let request = self.admin(request).await?;
        let id = match request.id {
            0 => self.0.next_member_id(),
            id => id,
        };
        let member = Member {
            id,
            name: request.name,
            peer_urls: checked_urls(request.peer_urls)?,
            client_urls: request.client_urls,
            is_learner: request.is_learner,
        };
        let members = self.changed(Change::Add(member.clone())).await?;
        let member = Some(outer(member));
        Ok(Response::new(cf::MemberAddResponse { member, members }))
    }

    async fn member_remove(
        &self,
        request: Request<cf::MemberRemoveRequest>,
    ) -> Result<Response<cf::MemberRemoveResponse>, Status> {
        let id = self.admin(request).await?.id;
        let members = self.changed(Change::Remove(id)).await?;
        Ok(Response::new(cf::MemberRemoveResponse { members }))
    }

    async fn member_promote(
        &self,
        request: Request<cf::MemberPromoteRequest>,
    ) -> Result<Response<cf::MemberPromoteResponse>, Status> {
        let id = self.admin(request).await?.id;
        let members = self.changed(Change::Promote(id)).await?;
        Ok(Response::new(cf::MemberPromoteResponse { members }))
    }

    async fn member_update(
        &self,
        request: Request<cf::MemberUpdateRequest>,
    ) -> Result<Response<cf::MemberUpdateResponse>, Status> {
        let request = self.admin(request).await?;
        let peer_urls = match request.peer_urls {
            none if none.is_empty() => none,
            urls => checked_urls(urls)?,
        };
        let changed = Member {
            id: request.id,
            name: request.name,
            peer_urls,
            client_urls: request.client_urls,
            is_learner: false,
        };
        let members = self.changed(Change::Update(changed)).await?;
        Ok(Response::new(cf::MemberUpdateResponse { members }))
    }

    async fn member_list(
        &self,
        request: Request<cf::MemberListRequest>,
    ) -> Result<Response<cf::MemberListResponse>, Status> {
        if !request.into_inner().local {
            self.0.consensus.barrier().await?;
        }
        let standing = self.0.consensus.standing();
        let sets = standing.voters.into_iter();
        Ok(Response::new(cf::MemberListResponse {
            members: all(standing.members),
            voters: sets.map(|ids| cf::VoterSet { ids }).collect(),
        }))
    }

    async fn status(
        &self,
        _request: Request<cf::StatusRequest>,
    ) -> Result<Response<cf::StatusResponse>, Status> {
        Ok(Response::new(self.status_now()))
    }

    async fn leader_transfer(
        &self,
        request: Request<cf::LeaderTransferRequest>,
    ) -> Result<Response<cf::LeaderTransferResponse>, Status> {
        let to = self.admin(request).await?.target_id;
        let leader_id = self.0.consensus.transfer(to).await?;
        let term = self.0.consensus.standing().term;
        Ok(Response::new(cf::LeaderTransferResponse {
            leader_id,
            term,
        }))
    }

    async fn change_membership(
        &self,
        request: Request<cf::ChangeMembershipRequest>,
    ) -> Result<Response<cf::ChangeMembershipResponse>, Status> {
        let request = self.admin(request).await?;
        let added = request
            .members
            .into_iter()
            .map(inner)
            .collect::<Result<_, _>>()?;
        let change = Change::Replace {
            voters: request.voters,
            added,
            retain: request.retain_removed_as_learners,
        };
        let members = self.changed(change).await?;
        Ok(Response::new(cf::ChangeMembershipResponse { members }))
    }
}
