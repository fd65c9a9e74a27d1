//! etcd's election service: the leader of a name is the first in its queue, and its key's value is what
//! it proclaims.

use std::sync::Arc;

use bytes::Bytes;
use etcd_wire::etcdserverpb::range_request::{SortOrder, SortTarget};
use etcd_wire::etcdserverpb::{RangeRequest, TxnRequest};
use etcd_wire::v3electionpb::election_server::Election;
use etcd_wire::v3electionpb::*;
use futures_util::stream;
use tonic::{Request, Response, Status};

use super::Grpc;
use super::streams::Answers;
use crate::api::{Api, Caller};
use crate::session::{Session, created_at, delete, get, prefix, put, read_key};
use crate::watch::hub::Spec;

fn not_leader() -> Status {
    Status::failed_precondition("election: not leader")
}

fn leader_of(request: Option<LeaderKey>) -> Result<LeaderKey, Status> {
    request.ok_or_else(|| Status::unknown("\"leader\" field must be provided"))
}

impl Api {
    fn session(self: &Arc<Api>, caller: &Caller) -> Session {
        Session {
            api: Arc::clone(self),
            caller: caller.clone(),
        }
    }

    /// Returns once the client leads.
    pub async fn campaign(
        self: &Arc<Api>,
        caller: &Caller,
        request: CampaignRequest,
    ) -> Result<CampaignResponse, Status> {
        let session = self.session(caller);
        let value = request.value.clone();
        let place = session.queue(&request.name, value, request.lease).await?;
        let leaving = session.leaving(place.key.clone());
        let leader = LeaderKey {
            name: request.name.clone(),
            key: place.key.clone(),
            rev: place.revision,
            lease: place.lease,
        };
        // One that campaigns again says its new value.
        if place
            .found
            .as_ref()
            .is_some_and(|kv| kv.value != request.value)
        {
            self.say(caller, &leader, request.value).await?;
        }
        session.wait_turn(&request.name, &place).await?;
        leaving.keep();
        Ok(CampaignResponse {
            header: Some(self.current_header()),
            leader: Some(leader),
        })
    }

    /// The leader says something else.
    pub async fn proclaim(
        self: &Arc<Api>,
        caller: &Caller,
        request: ProclaimRequest,
    ) -> Result<ProclaimResponse, Status> {
        let leader = leader_of(request.leader)?;
        let header = self.say(caller, &leader, request.value).await?;
        Ok(ProclaimResponse { header })
    }

    async fn say(
        &self,
        caller: &Caller,
        leader: &LeaderKey,
        value: Bytes,
    ) -> Result<Option<etcd_wire::etcdserverpb::ResponseHeader>, Status> {
        let request = TxnRequest {
            compare: vec![created_at(&leader.key, leader.rev)],
            success: vec![put(&leader.key, &value, leader.lease)],
            failure: Vec::new(),
        };
        let response = self.txn(caller, request).await?;
        if !response.succeeded {
            return Err(not_leader());
        }
        Ok(response.header)
    }

    /// Who leads, and what it says.
    pub async fn leader(
        &self,
        caller: &Caller,
        request: LeaderRequest,
    ) -> Result<LeaderResponse, Status> {
        let range = prefix(&request.name);
        let (key, end) = range.bounds();
        let first = RangeRequest {
            key: Bytes::copy_from_slice(key),
            range_end: Bytes::copy_from_slice(end),
            sort_order: SortOrder::Ascend.into(),
            sort_target: SortTarget::Create.into(),
            limit: 1,
            ..RangeRequest::default()
        };
        let mut response = self.range(caller, first).await?;
        if response.kvs.is_empty() {
            return Err(Status::unknown("election: no leader"));
        }
        Ok(LeaderResponse {
            header: response.header,
            kv: response.kvs.pop(),
        })
    }

    /// Leads no more. One that does not lead changes nothing.
    pub async fn resign(
        &self,
        caller: &Caller,
        request: ResignRequest,
    ) -> Result<ResignResponse, Status> {
        let leader = leader_of(request.leader)?;
        let request = TxnRequest {
            compare: vec![created_at(&leader.key, leader.rev)],
            success: vec![delete(&leader.key)],
            failure: vec![get(&leader.key)],
        };
        let response = self.txn(caller, request).await?;
        if read_key(&response).is_some() {
            tracing::debug!("resigned by one whose key is another's now");
        }
        Ok(ResignResponse {
            header: response.header,
        })
    }

    /// Who leads and what it says, now and whenever that changes.
    pub(crate) fn observe(
        self: &Arc<Api>,
        caller: Caller,
        request: LeaderRequest,
    ) -> Answers<LeaderResponse> {
        let handle = self.hub.open();
        let spec = Spec {
            range: prefix(&request.name),
            no_put: false,
            no_delete: false,
            prev_kv: false,
            fragment: false,
            progress_notify: false,
        };
        handle.hub().watch(handle.id(), None, spec, 0);
        let state = (
            Arc::clone(self),
            caller,
            request,
            handle,
            None::<(Bytes, i64)>,
        );
        let changes = stream::try_unfold(state, async |mut state| {
            loop {
                let (api, caller, request, handle, last) = &mut state;
                // Rung for is what came before this look.
                handle.hub().take(handle.id(), usize::MAX);
                let read = api.leader(caller, request.clone()).await;
                let current = read.as_ref().ok().and_then(|answer| answer.kv.as_ref());
                let current = current.map(|kv| (kv.key.clone(), kv.mod_revision));
                match read {
                    Ok(answer) if current != *last => {
                        *last = current;
                        return Ok(Some((answer, state)));
                    }
                    Err(status) if status.code() != tonic::Code::Unknown => return Err(status),
                    Ok(_) | Err(_) => {}
                }
                tokio::select! {
                    () = handle.rung() => {}
                    () = api.stop.requested() => return Ok(None),
                }
            }
        });
        Box::pin(changes)
    }
}

#[tonic::async_trait]
impl Election for Grpc {
    type ObserveStream = Answers<LeaderResponse>;

    async fn campaign(
        &self,
        request: Request<CampaignRequest>,
    ) -> Result<Response<CampaignResponse>, Status> {
        let caller = self.caller(&request).await?;
        self.0
            .campaign(&caller, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn proclaim(
        &self,
        request: Request<ProclaimRequest>,
    ) -> Result<Response<ProclaimResponse>, Status> {
        let caller = self.caller(&request).await?;
        self.0
            .proclaim(&caller, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn leader(
        &self,
        request: Request<LeaderRequest>,
    ) -> Result<Response<LeaderResponse>, Status> {
        let caller = self.caller(&request).await?;
        self.0
            .leader(&caller, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn observe(
        &self,
        request: Request<LeaderRequest>,
    ) -> Result<Response<Self::ObserveStream>, Status> {
        let caller = self.caller(&request).await?;
        Ok(Response::new(self.0.observe(caller, request.into_inner())))
    }

    async fn resign(
        &self,
        request: Request<ResignRequest>,
    ) -> Result<Response<ResignResponse>, Status> {
        let caller = self.caller(&request).await?;
        self.0
            .resign(&caller, request.into_inner())
            .await
            .map(Response::new)
    }
}
