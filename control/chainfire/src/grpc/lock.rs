//! etcd's lock service: the owner of a name is the first in its queue.

use std::sync::Arc;

use bytes::Bytes;
use etcd_wire::v3lockpb::lock_server::Lock;
use etcd_wire::v3lockpb::{LockRequest, LockResponse, UnlockRequest, UnlockResponse};
use tonic::{Request, Response, Status};

use super::Grpc;
use crate::api::{Api, Caller};
use crate::session::Session;

impl Api {
    /// Returns once the name is the client's.
    pub async fn lock(
        self: &Arc<Api>,
        caller: &Caller,
        request: LockRequest,
    ) -> Result<LockResponse, Status> {
        let session = Session {
            api: Arc::clone(self),
            caller: caller.clone(),
        };
        let place = session
            .queue(&request.name, Bytes::new(), request.lease)
            .await?;
        let leaving = session.leaving(place.key.clone());
        session.wait_turn(&request.name, &place).await?;
        // The lease may have ended while others were waited for.
        let Some(_) = session.read(&place.key).await? else {
            leaving.keep();
            return Err(Status::unknown("mutex: session is expired"));
        };
        leaving.keep();
        Ok(LockResponse {
            header: Some(self.current_header()),
            key: place.key,
        })
    }

    /// Gives the name back.
    pub async fn unlock(
        self: &Arc<Api>,
        caller: &Caller,
        request: UnlockRequest,
    ) -> Result<UnlockResponse, Status> {
        let session = Session {
            api: Arc::clone(self),
            caller: caller.clone(),
        };
        let header = session.leave(request.key).await?;
        Ok(UnlockResponse { header })
    }
}

#[tonic::async_trait]
impl Lock for Grpc {
    async fn lock(&self, request: Request<LockRequest>) -> Result<Response<LockResponse>, Status> {
        let caller = self.caller(&request).await?;
        let answer = self.0.lock(&caller, request.into_inner()).await?;
        Ok(Response::new(answer))
    }

    async fn unlock(
        &self,
        request: Request<UnlockRequest>,
    ) -> Result<Response<UnlockResponse>, Status> {
        let caller = self.caller(&request).await?;
        let answer = self.0.unlock(&caller, request.into_inner()).await?;
        Ok(Response::new(answer))
    }
}
