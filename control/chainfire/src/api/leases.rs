//! Leases. Their clock runs on the leader: other members ask it.

use bytes::Bytes;
use chainfire_store::LEASE_TTL_S_MAX;
use etcd_wire::RpcError;
use etcd_wire::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse,
    LeaseLeasesRequest, LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse, LeaseStatus,
    LeaseTimeToLiveRequest, LeaseTimeToLiveResponse,
};
use tonic::Status;

use super::{Api, Caller, propose};

impl Api {
    /// A new lease.
    pub async fn lease_grant(
        &self,
        caller: &Caller,
        request: LeaseGrantRequest,
    ) -> Result<LeaseGrantResponse, Status> {
        if request.ttl > LEASE_TTL_S_MAX {
            return Err(RpcError::LeaseTtlTooLarge.into());
        }
        let id = match request.id {
            0 => self.next_id(),
            id => id,
        };
        let ttl = request.ttl;
        propose!(self, caller, LeaseGrant, LeaseGrantRequest { id, ttl })
    }

    /// Ends a lease, and deletes the keys on it.
    pub async fn lease_revoke(
        &self,
        caller: &Caller,
        request: LeaseRevokeRequest,
    ) -> Result<LeaseRevokeResponse, Status> {
        propose!(self, caller, LeaseRevoke, request)
    }

    /// Gives a lease its whole time again. One that is gone has none, which is no error.
    pub async fn lease_keep_alive(
        &self,
        request: LeaseKeepAliveRequest,
    ) -> Result<LeaseKeepAliveResponse, Status> {
        let time = self.consensus.lease_time(request.id, false).await?;
        Ok(LeaseKeepAliveResponse {
            header: Some(self.current_header()),
            id: request.id,
            ttl: time.map_or(0, |time| time.ttl),
        })
    }

    /// What a lease has left, and the keys on it.
    pub async fn lease_time_to_live(
        &self,
        caller: &Caller,
        request: LeaseTimeToLiveRequest,
    ) -> Result<LeaseTimeToLiveResponse, Status> {
        let time = self.consensus.lease_time(request.id, true).await?;
        let mut response = LeaseTimeToLiveResponse {
            header: Some(self.current_header()),
            id: request.id,
            ttl: -1,
            ..LeaseTimeToLiveResponse::default()
        };
        let Some(time) = time else {
            return Ok(response);
        };
        response.ttl = time.ttl;
        response.granted_ttl = time.granted_ttl;
        if request.keys {
            self.consensus.barrier().await?;
            let view = self.consensus.view();
            let keys: Vec<Bytes> = view
                .lease_keys(request.id)
                .map(Bytes::copy_from_slice)
                .collect();
            for key in &keys {
                let access = chainfire_store::Access::Read;
                view.auth().check(caller.identity(), access, key, &[])?;
            }
            response.keys = keys;
        }
        Ok(response)
    }

    /// All leases.
    pub async fn lease_leases(
        &self,
        _caller: &Caller,
        _request: LeaseLeasesRequest,
    ) -> Result<LeaseLeasesResponse, Status> {
        self.consensus.barrier().await?;
        let view = self.consensus.view();
        let leases = view.leases();
        Ok(LeaseLeasesResponse {
            header: Some(self.header(view.revision())),
            leases: leases.map(|lease| LeaseStatus { id: lease.id }).collect(),
        })
    }
}
