//! The API of what the node administers itself: LightningStor's buckets, CoronaFS's volumes and FiberLB's
//! load balancers, over gRPC and REST on the admin endpoint.

use std::sync::Arc;

use balancers::BalancerService;
use control_kit::api::{Api, Call, Front, Limits, Verb};
use control_kit::api_error::ApiError;
use control_kit::auth::Tokens;
use lightningstor_api::{FILE_DESCRIPTOR_SET, v1};
use tonic::Code;
use volumes::VolumeService;

use crate::buckets::BucketService;
use crate::state::NodeState;

/// The verbs, for who shows one of these tokens.
pub fn api(state: &Arc<NodeState>, tokens: Tokens) -> Api<NodeState> {
    let front = Front::new(Arc::new(tokens), Limits::default(), state.metrics());
    let buckets = buckets(state, &front);
    let all = buckets.and(
        volumes::SERVICE,
        coronafs_api::FILE_DESCRIPTOR_SET,
        Arc::clone(state),
    );
    let all = volumes::verbs(all).and(
        balancers::SERVICE,
        fiberlb_api::FILE_DESCRIPTOR_SET,
        Arc::clone(state),
    );
    balancers::verbs(all)
}

fn buckets(state: &Arc<NodeState>, front: &Front) -> Api<NodeState> {
    let api = Api::new(
        "ultracloud.lightningstor.v1.Buckets",
        FILE_DESCRIPTOR_SET,
        Arc::clone(state),
        front,
    );
    api.verb(
        Verb::post("CreateBucket", "/v1/buckets", "Makes an empty bucket").created(),
        create,
    )
    .verb(
        Verb::get("ListBuckets", "/v1/buckets", "Buckets, by name"),
        list,
    )
    .verb(
        Verb::get("GetBucket", "/v1/buckets/{name}", "One bucket"),
        get,
    )
    .verb(
        Verb::delete(
            "DeleteBucket",
            "/v1/buckets/{name}",
            "Removes a bucket that holds no objects",
        ),
        delete,
    )
}

async fn create(
    state: Arc<NodeState>,
    call: Call<v1::CreateBucketRequest>,
) -> Result<v1::Bucket, ApiError> {
    serving(&state)?.create(&call.caller, call.message).await
}

async fn list(
    state: Arc<NodeState>,
    call: Call<v1::ListBucketsRequest>,
) -> Result<v1::ListBucketsResponse, ApiError> {
    serving(&state)?.list(&call.caller, call.message).await
}

async fn get(
    state: Arc<NodeState>,
    call: Call<v1::GetBucketRequest>,
) -> Result<v1::Bucket, ApiError> {
    serving(&state)?.get(&call.caller, call.message).await
}

async fn delete(
    state: Arc<NodeState>,
    call: Call<v1::DeleteBucketRequest>,
) -> Result<v1::DeleteBucketResponse, ApiError> {
    serving(&state)?.delete(&call.caller, call.message).await
}

fn serving(state: &NodeState) -> Result<&BucketService, ApiError> {
    state
        .buckets()
        .ok_or_else(|| not_served(state, "lightningstor"))
}

impl volumes::HasVolumes for NodeState {
    fn volumes(&self) -> Result<&VolumeService, ApiError> {
        self.volumes().ok_or_else(|| not_served(self, "coronafs"))
    }
}

impl balancers::HasBalancers for NodeState {
    fn balancers(&self) -> Result<&BalancerService, ApiError> {
        self.balancers().ok_or_else(|| not_served(self, "fiberlb"))
    }
}

/// Why a role's verbs do nothing now.
fn not_served(state: &NodeState, role: &str) -> ApiError {
    if let Some(why) = state.phase().why_not() {
        return ApiError::new(Code::Unavailable, "not-ready", why)
            .object("this node")
            .next("retry when /readyz answers 200");
    }
    let what = format!("the node does not have the role {role}");
    ApiError::new(Code::FailedPrecondition, "no-such-role", what)
        .object("this node")
        .next("ask another node, or start this one with that role too")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Clients are made from the document: a change of it is seen in review, in the file.
    #[test]
    fn the_openapi_document_is_the_one_that_is_checked_in() {
        let api = api(&NodeState::new(), Tokens::default());
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json");
        if std::env::var_os("UC_WRITE_OPENAPI").is_some() {
            std::fs::write(path, api.openapi()).unwrap();
        }
        assert!(
            std::fs::read_to_string(path).unwrap_or_default() == api.openapi(),
            "run the test with UC_WRITE_OPENAPI=1, and look at the change of {path}"
        );
    }
}
