//! The verbs of load balancers, over gRPC and REST.

use std::sync::Arc;

use control_kit::api::{Api, ApiMessage, Call, Verb};
use control_kit::api_error::ApiError;
use fiberlb_api::v1;

use crate::service::BalancerService;

/// The service's full name.
pub const SERVICE: &str = "ultracloud.fiberlb.v1.LoadBalancers";

/// What has the service, once it serves.
pub trait HasBalancers: Send + Sync + 'static {
    /// The service.
    ///
    /// # Errors
    /// Why there is none now.
    fn balancers(&self) -> Result<&BalancerService, ApiError>;
}

/// Makes of a method of the service what runs a verb.
macro_rules! run {
    ($method:ident) => {
        |state: Arc<S>, call: Call<_>| async move {
            state.balancers()?.$method(&call.caller, call.message).await
        }
    };
}

/// The same of one that waits for nothing.
macro_rules! answer {
    ($method:ident) => {
        |state: Arc<S>, call: Call<_>| async move {
            state.balancers()?.$method(&call.caller, &call.message)
        }
    };
}

/// One verb; it spells out what a closure cannot.
fn verb<S, Req, Resp, F, Fut>(api: Api<S>, verb: Verb, run: F) -> Api<S>
where
    S: HasBalancers,
    Req: ApiMessage,
    Resp: ApiMessage,
    F: Fn(Arc<S>, Call<Req>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Resp, ApiError>> + Send,
{
    api.verb(verb, run)
}

/// Adds the verbs of load balancers to an API.
pub fn verbs<S: HasBalancers>(api: Api<S>) -> Api<S> {
    const ALL: &str = "/v1/load-balancers";
    const ONE: &str = "/v1/load-balancers/{name}";
    let what = "Makes the load balancers of a set be as a document says";
    let apply = Verb::put("Apply", ALL, what);
    let api = verb::<S, v1::ApplyRequest, _, _, _>(api, apply, run!(apply));
    let list = Verb::get(
        "ListLoadBalancers",
        ALL,
        "Load balancers, by owner and name",
    );
    let api = verb::<S, v1::ListLoadBalancersRequest, _, _, _>(api, list, answer!(list));
    let get = Verb::get("GetLoadBalancer", ONE, "One load balancer");
    let api = verb::<S, v1::GetLoadBalancerRequest, _, _, _>(api, get, answer!(get));
    let delete = Verb::delete("DeleteLoadBalancer", ONE, "Removes a load balancer");
    let api = verb::<S, v1::DeleteLoadBalancerRequest, _, _, _>(api, delete, run!(delete));
    let path = "/v1/load-balancers/{name}/drain";
    let drain = Verb::post("DrainBackend", path, "Sends no new flows to a backend");
    let api = verb::<S, v1::DrainBackendRequest, _, _, _>(api, drain, run!(drain));
    let path = "/v1/load-balancers/{name}/restore";
    let restore = Verb::post("RestoreBackend", path, "Takes a drain back");
    let api = verb::<S, v1::RestoreBackendRequest, _, _, _>(api, restore, run!(restore));
    let path = "/v1/load-balancer-status";
    let status = Verb::get("GetStatus", path, "Counters, health and open flows");
    let api = verb::<S, v1::GetStatusRequest, _, _, _>(api, status, run!(status));
    let path = "/v1/load-balancer-explanation";
    let explain = Verb::get("Explain", path, "Where a packet goes, and why");
    verb::<S, v1::ExplainRequest, _, _, _>(api, explain, run!(explain))
}
