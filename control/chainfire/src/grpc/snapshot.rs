//! The maintenance service, and its stream of a snapshot.

use etcd_wire::etcdserverpb::{self as pb, maintenance_server};
use tonic::{Request, Response, Status};

use super::streams::Answers;
use super::{Grpc, unary};

unary! {
    maintenance_server::Maintenance {
        alarm: AlarmRequest => AlarmResponse;
        status: StatusRequest => StatusResponse;
        defragment: DefragmentRequest => DefragmentResponse;
        hash: HashRequest => HashResponse;
        hash_kv: HashKvRequest => HashKvResponse;
        move_leader: MoveLeaderRequest => MoveLeaderResponse;
        downgrade: DowngradeRequest => DowngradeResponse;
    }
    type SnapshotStream = Answers<pb::SnapshotResponse>;

    async fn snapshot(
        &self,
        request: Request<pb::SnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        let caller = self.caller(&request).await?;
        self.0.require_admin(&caller)?;
        Ok(Response::new(self.0.snapshot()))
    }
}
