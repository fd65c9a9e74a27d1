//! Members, as etcd's clients see and change them.

use etcd_wire::RpcError;
use etcd_wire::etcdserverpb::{
    Member as EtcdMember, MemberAddRequest, MemberAddResponse, MemberListRequest,
    MemberListResponse, MemberPromoteRequest, MemberPromoteResponse, MemberRemoveRequest,
    MemberRemoveResponse, MemberUpdateRequest, MemberUpdateResponse,
};
use tonic::Status;

use super::{Api, Caller};
use crate::consensus::{Change, Member};

impl Api {
    /// One more member. It is in the answer with its id; a voter votes once it has caught up.
    pub async fn member_add(
        &self,
        caller: &Caller,
        request: MemberAddRequest,
    ) -> Result<MemberAddResponse, Status> {
        self.require_admin(caller)?;
        let added = Member {
            id: self.next_member_id(),
            peer_urls: checked_urls(request.peer_ur_ls)?,
            is_learner: request.is_learner,
            ..Member::default()
        };
        let members = self.consensus.change(Change::Add(added.clone())).await?;
        Ok(MemberAddResponse {
            header: Some(self.current_header()),
            member: Some(etcd_member(added)),
            members: etcd_members(members),
        })
    }

    /// One member less.
    pub async fn member_remove(
        &self,
        caller: &Caller,
        request: MemberRemoveRequest,
    ) -> Result<MemberRemoveResponse, Status> {
        self.require_admin(caller)?;
        let members = self.consensus.change(Change::Remove(request.id)).await?;
        Ok(MemberRemoveResponse {
            header: Some(self.current_header()),
            members: etcd_members(members),
        })
    }

    /// Other endpoints for a member.
    pub async fn member_update(
        &self,
        caller: &Caller,
        request: MemberUpdateRequest,
    ) -> Result<MemberUpdateResponse, Status> {
        self.require_admin(caller)?;
        let changed = Member {
            id: request.id,
            peer_urls: checked_urls(request.peer_ur_ls)?,
            ..Member::default()
        };
        let members = self.consensus.change(Change::Update(changed)).await?;
        Ok(MemberUpdateResponse {
            header: Some(self.current_header()),
            members: etcd_members(members),
        })
    }

    /// All members.
    pub async fn member_list(
        &self,
        _caller: &Caller,
        request: MemberListRequest,
    ) -> Result<MemberListResponse, Status> {
        if request.linearizable {
            self.consensus.barrier().await?;
        }
        Ok(MemberListResponse {
            header: Some(self.current_header()),
            members: etcd_members(self.consensus.standing().members),
        })
    }

    /// A learner that has caught up becomes a voter.
    pub async fn member_promote(
        &self,
        caller: &Caller,
        request: MemberPromoteRequest,
    ) -> Result<MemberPromoteResponse, Status> {
        self.require_admin(caller)?;
        let members = self.consensus.change(Change::Promote(request.id)).await?;
        Ok(MemberPromoteResponse {
            header: Some(self.current_header()),
            members: etcd_members(members),
        })
    }

    /// Refuses everybody but administrators, once authentication is on.
    pub(crate) fn require_admin(&self, caller: &Caller) -> Result<(), Status> {
        let view = self.consensus.view();
        view.auth().check_admin(caller.identity())?;
        Ok(())
    }

    /// An id for a member: not 0, new with a certainty that the members' own check completes.
    pub(crate) fn next_member_id(&self) -> u64 {
        (self.next_id() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1
    }
}

/// The URLs, if there are any and each is one of a port.
pub(crate) fn checked_urls(urls: Vec<String>) -> Result<Vec<String>, Status> {
    if urls.is_empty() || !urls.iter().all(|url| is_url(url)) {
        return Err(RpcError::MemberBadUrls.into());
    }
    Ok(urls)
}

fn is_url(url: &str) -> bool {
    let Ok(uri) = url.parse::<axum::http::Uri>() else {
        return false;
    };
    let scheme = matches!(uri.scheme_str(), Some("http" | "https"));
    let no_path = matches!(uri.path(), "" | "/");
    scheme && uri.host().is_some() && uri.port_u16().is_some() && no_path
}

fn etcd_member(member: Member) -> EtcdMember {
    EtcdMember {
        id: member.id,
        name: member.name,
        peer_ur_ls: member.peer_urls,
        client_ur_ls: member.client_urls,
        is_learner: member.is_learner,
    }
}

fn etcd_members(members: Vec<Member>) -> Vec<EtcdMember> {
    members.into_iter().map(etcd_member).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_members_url_has_a_scheme_a_host_and_a_port() {
        for (url, good) in [
            ("http://127.0.0.1:2380", true),
            ("https://n1.example:2380", true),
            ("http://[::1]:2380/", true),
            ("127.0.0.1:2380", false),
            ("http://127.0.0.1", false),
            ("unix://a:1", false),
            ("http://a:1/path", false),
        ] {
            assert_eq!(is_url(url), good, "{url}");
        }
    }
}
