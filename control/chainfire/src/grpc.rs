//! etcd's gRPC services: each request is taken apart, named its caller, and handed to the [`Api`].

mod election;
mod lock;
mod management;
mod snapshot;
pub(crate) mod streams;

use std::future::Future;
use std::sync::Arc;

use control_kit::server::Peer;
use etcd_wire::RpcError;
use etcd_wire::etcdserverpb::{self as pb, auth_server, cluster_server, kv_server};
use etcd_wire::v3electionpb::election_server::ElectionServer;
use etcd_wire::v3lockpb::lock_server::LockServer;
use tonic::metadata::MetadataMap;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use crate::api::{Api, Caller};

/// Bytes of a request on the wire, at most: the largest request and what gRPC and protobuf add.
const MESSAGE_BYTES_MAX: usize = crate::api::REQUEST_BYTES_MAX + (512 << 10);

/// The services' shared front.
#[derive(Clone)]
pub struct Grpc(pub(crate) Arc<Api>);

impl Grpc {
    /// All services, to be served on one port.
    pub fn routes(api: &Arc<Api>) -> Routes {
        let grpc = || Grpc(Arc::clone(api));
        macro_rules! sized {
            ($server:expr) => {
                $server
                    .max_decoding_message_size(MESSAGE_BYTES_MAX)
                    .max_encoding_message_size(usize::MAX)
            };
        }
        // Whoever asks the port whether it serves is served.
        let (_, health) = tonic_health::server::health_reporter();
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(etcd_wire::FILE_DESCRIPTOR_SET)
            .build_v1()
            .expect("the build made the descriptors");
        Routes::new(sized!(kv_server::KvServer::new(grpc())))
            .add_service(sized!(pb::watch_server::WatchServer::new(grpc())))
            .add_service(sized!(pb::lease_server::LeaseServer::new(grpc())))
            .add_service(sized!(cluster_server::ClusterServer::new(grpc())))
            .add_service(sized!(pb::maintenance_server::MaintenanceServer::new(
                grpc()
            )))
            .add_service(sized!(auth_server::AuthServer::new(grpc())))
            .add_service(sized!(LockServer::new(grpc())))
            .add_service(sized!(ElectionServer::new(grpc())))
            .add_service(sized!(management::server(grpc())))
            .add_service(health)
            .add_service(reflection)
    }

    /// On whose behalf a request comes: a token's user, else whom a verified certificate names.
    pub(crate) fn caller<T>(
        &self,
        request: &Request<T>,
    ) -> impl Future<Output = Result<Caller, Status>> + Send + use<T> {
        let api = Arc::clone(&self.0);
        let needs_leader = needs_leader(request.metadata());
        let caller = caller(&api, request);
        async move {
            if needs_leader {
                api.require_leader().await?;
            }
            caller
        }
    }
}

/// Whether a request asks to be refused, and a stream to end, where no leader answers.
pub(crate) fn needs_leader(metadata: &MetadataMap) -> bool {
    let mut values = metadata.get_all("hasleader").iter();
    values.any(|value| value == "true")
}

fn caller<T>(api: &Api, request: &Request<T>) -> Result<Caller, Status> {
    let view = api.consensus.view();
    let auth = view.auth();
    if !auth.is_enabled() {
        return Ok(Caller::default());
    }
    let token = ["token", "authorization"]
        .iter()
        .find_map(|name| request.metadata().get(*name));
    if let Some(token) = token {
        let token = token.to_str().map_err(|_| RpcError::InvalidAuthToken)?;
        return Ok(Caller::of_token(auth, token)?);
    }
    let peer = request.extensions().get::<Peer>();
    let named = peer.and_then(|peer| peer.common_name.as_deref());
    Ok(named.map_or_else(Caller::default, |user| Caller {
        user: user.to_owned(),
        auth_revision: auth.revision(),
    }))
}

/// Implements a gRPC service whose methods are those of the [`Api`].
macro_rules! unary {
    ($trait:path { $($method:ident: $request:ident => $response:ident;)* } $($rest:tt)*) => {
        #[tonic::async_trait]
        impl $trait for Grpc {
            $(
                async fn $method(
                    &self,
                    request: Request<pb::$request>,
                ) -> Result<Response<pb::$response>, Status> {
                    let caller = self.caller(&request).await?;
                    let answer = self.0.$method(&caller, request.into_inner()).await?;
                    Ok(Response::new(answer))
                }
            )*
            $($rest)*
        }
    };
}
pub(crate) use unary;

unary! {
    kv_server::Kv {
        range: RangeRequest => RangeResponse;
        put: PutRequest => PutResponse;
        delete_range: DeleteRangeRequest => DeleteRangeResponse;
        txn: TxnRequest => TxnResponse;
        compact: CompactionRequest => CompactionResponse;
    }
    type RangeStreamStream = streams::RangeStream;

    async fn range_stream(
        &self,
        request: Request<pb::RangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        let caller = self.caller(&request).await?;
        Ok(Response::new(streams::range(Arc::clone(&self.0), caller, request.into_inner())))
    }
}

unary! {
    cluster_server::Cluster {
        member_add: MemberAddRequest => MemberAddResponse;
        member_remove: MemberRemoveRequest => MemberRemoveResponse;
        member_update: MemberUpdateRequest => MemberUpdateResponse;
        member_list: MemberListRequest => MemberListResponse;
        member_promote: MemberPromoteRequest => MemberPromoteResponse;
    }
}

unary! {
    auth_server::Auth {
        auth_enable: AuthEnableRequest => AuthEnableResponse;
        auth_disable: AuthDisableRequest => AuthDisableResponse;
        auth_status: AuthStatusRequest => AuthStatusResponse;
        authenticate: AuthenticateRequest => AuthenticateResponse;
        user_add: AuthUserAddRequest => AuthUserAddResponse;
        user_get: AuthUserGetRequest => AuthUserGetResponse;
        user_list: AuthUserListRequest => AuthUserListResponse;
        user_delete: AuthUserDeleteRequest => AuthUserDeleteResponse;
        user_change_password: AuthUserChangePasswordRequest => AuthUserChangePasswordResponse;
        user_grant_role: AuthUserGrantRoleRequest => AuthUserGrantRoleResponse;
        user_revoke_role: AuthUserRevokeRoleRequest => AuthUserRevokeRoleResponse;
        role_add: AuthRoleAddRequest => AuthRoleAddResponse;
        role_get: AuthRoleGetRequest => AuthRoleGetResponse;
        role_list: AuthRoleListRequest => AuthRoleListResponse;
        role_delete: AuthRoleDeleteRequest => AuthRoleDeleteResponse;
        role_grant_permission: AuthRoleGrantPermissionRequest => AuthRoleGrantPermissionResponse;
        role_revoke_permission:
            AuthRoleRevokePermissionRequest => AuthRoleRevokePermissionResponse;
    }
}
