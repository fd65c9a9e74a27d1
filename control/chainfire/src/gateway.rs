//! The JSON front, as etcd's gateway has it: `POST /v3/kv/put` with a JSON body, and so on for every
//! request, on the port that serves gRPC.
//!
//! Streams answer with one JSON object a line, `{"result": ...}`, or `{"error": ...}` at their end. The
//! HTTP status is that of the first: a client that reads one answer need not look into it.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use control_kit::api_error::ApiError;
use etcd_wire::RpcError;
use etcd_wire::etcdserverpb as pb;
use futures_util::stream::{self, Stream, StreamExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tonic::Status;

use crate::api::{Api, CLUSTER_VERSION, Caller, ETCD_VERSION, REQUEST_BYTES_MAX};
use crate::grpc::streams;

/// Base64 makes four bytes of three.
const BODY_BYTES_MAX: usize = REQUEST_BYTES_MAX * 2;
/// Requests that the body of a stream may hold. They are all parsed before the first is served, and the
/// shortest, of two bytes, takes two hundred then.
const STREAM_REQUESTS_MAX: usize = 1024;

type Shared = State<Arc<Api>>;

/// An error as the gateway writes it.
struct Failed(Status);

impl Failed {
    fn json(&self) -> serde_json::Value {
        let (text, code) = (self.0.message(), self.0.code() as i32);
        json!({ "error": text, "code": code, "message": text })
    }
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        (ApiError::http_status(self.0.code()), Json(self.json())).into_response()
    }
}

impl From<Status> for Failed {
    fn from(status: Status) -> Failed {
        Failed(status)
    }
}

fn caller(api: &Api, headers: &HeaderMap) -> Result<Caller, Status> {
    let view = api.consensus.view();
    let auth = view.auth();
    let token = headers.get(header::AUTHORIZATION);
    let Some(token) = token.filter(|_| auth.is_enabled()) else {
        return Ok(Caller::default());
    };
    let token = token.to_str().map_err(|_| RpcError::InvalidAuthToken)?;
    Ok(Caller::of_token(auth, token)?)
}

/// The request in a body; an empty one is the request with nothing set.
fn parsed<T: DeserializeOwned>(body: &[u8]) -> Result<T, Status> {
    let text = if body.is_empty() { b"{}" } else { body };
    serde_json::from_slice(text).map_err(|error| Status::invalid_argument(error.to_string()))
}

async fn call<Q, A, F>(
    api: Arc<Api>,
    headers: HeaderMap,
    body: Bytes,
    method: impl FnOnce(Arc<Api>, Caller, Q) -> F,
) -> Result<Json<A>, Failed>
where
    Q: DeserializeOwned,
    A: Serialize,
    F: Future<Output = Result<A, Status>>,
{
    let caller = caller(&api, &headers)?;
    let request = parsed(&body)?;
    Ok(Json(method(api, caller, request).await?))
}

macro_rules! routes {
    ($($path:literal => $method:ident;)*) => {
        Router::new()$(
            .route($path, post(async |State(api): Shared, headers: HeaderMap, body: Bytes| {
                call(api, headers, body, async |api: Arc<Api>, caller: Caller, request| {
                    api.$method(&caller, request).await
                })
                .await
            }))
        )*
    };
}

/// All routes.
pub fn router(api: Arc<Api>) -> Router {
    kv_and_leases()
        .merge(cluster_and_auth())
        .route("/v3/watch", post(watch))
        .route("/v3/lease/keepalive", post(keep_alive))
        .route("/v3/maintenance/snapshot", post(snapshot))
        .route("/v3/election/observe", post(observe))
        .route("/version", get(version))
        .route("/health", get(health))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(api)
}

fn kv_and_leases() -> Router<Arc<Api>> {
    routes! {
        "/v3/kv/range" => range;
        "/v3/kv/put" => put;
        "/v3/kv/deleterange" => delete_range;
        "/v3/kv/txn" => txn;
        "/v3/kv/compaction" => compact;
        "/v3/lease/grant" => lease_grant;
        "/v3/lease/revoke" => lease_revoke;
        "/v3/kv/lease/revoke" => lease_revoke;
        "/v3/lease/timetolive" => lease_time_to_live;
        "/v3/kv/lease/timetolive" => lease_time_to_live;
        "/v3/lease/leases" => lease_leases;
        "/v3/kv/lease/leases" => lease_leases;
        "/v3/lock/lock" => lock;
        "/v3/lock/unlock" => unlock;
        "/v3/election/campaign" => campaign;
        "/v3/election/proclaim" => proclaim;
        "/v3/election/leader" => leader;
        "/v3/election/resign" => resign;
    }
}

fn cluster_and_auth() -> Router<Arc<Api>> {
    routes! {
        "/v3/cluster/member/add" => member_add;
        "/v3/cluster/member/remove" => member_remove;
        "/v3/cluster/member/update" => member_update;
        "/v3/cluster/member/list" => member_list;
        "/v3/cluster/member/promote" => member_promote;
        "/v3/maintenance/alarm" => alarm;
        "/v3/maintenance/status" => status;
        "/v3/maintenance/defragment" => defragment;
        "/v3/maintenance/hash" => hash;
        "/v3/maintenance/hashkv" => hash_kv;
        "/v3/maintenance/transfer-leadership" => move_leader;
        "/v3/maintenance/downgrade" => downgrade;
        "/v3/auth/enable" => auth_enable;
        "/v3/auth/disable" => auth_disable;
        "/v3/auth/status" => auth_status;
        "/v3/auth/authenticate" => authenticate;
        "/v3/auth/user/add" => user_add;
        "/v3/auth/user/get" => user_get;
        "/v3/auth/user/list" => user_list;
        "/v3/auth/user/delete" => user_delete;
        "/v3/auth/user/changepw" => user_change_password;
        "/v3/auth/user/grant" => user_grant_role;
        "/v3/auth/user/revoke" => user_revoke_role;
        "/v3/auth/role/add" => role_add;
        "/v3/auth/role/get" => role_get;
        "/v3/auth/role/list" => role_list;
        "/v3/auth/role/delete" => role_delete;
        "/v3/auth/role/grant" => role_grant_permission;
        "/v3/auth/role/revoke" => role_revoke_permission;
    }
}

/// An error as it ends a stream.
fn stream_error(status: &Status) -> serde_json::Value {
    let http = ApiError::http_status(status.code());
    json!({
        "grpc_code": status.code() as i32,
        "http_code": http.as_u16(),
        "message": status.message(),
        "http_status": http.canonical_reason().unwrap_or_default(),
    })
}

/// One line for each answer.
async fn lines<A: Serialize + Send + 'static>(
    answers: impl Stream<Item = Result<A, Status>> + Send + 'static,
) -> Response {
    let mut answers = Box::pin(answers);
    let first = answers.next().await;
    let status = match &first {
        Some(Err(status)) => ApiError::http_status(status.code()),
        _ => StatusCode::OK,
    };
    let line = |answer: Result<A, Status>| {
        let value = match answer {
            Ok(answer) => json!({ "result": answer }),
            Err(status) => json!({ "error": stream_error(&status) }),
        };
        Ok::<_, Infallible>(format!("{value}\n"))
    };
    let body = Body::from_stream(stream::iter(first).chain(answers).map(line));
    let head = [(header::CONTENT_TYPE, "application/json")];
    (status, head, body).into_response()
}

/// Requests one after another, as a stream's body holds them; an error stands for all after it.
fn requests<Q: DeserializeOwned>(body: &[u8]) -> Vec<Result<Q, Status>> {
    let parsed = serde_json::Deserializer::from_slice(body).into_iter::<Q>();
    let parsed = parsed.map(|one| one.map_err(|e| Status::invalid_argument(e.to_string())));
    let mut requests: Vec<_> = parsed.take(STREAM_REQUESTS_MAX + 1).collect();
    if requests.len() > STREAM_REQUESTS_MAX {
        let what = format!("a stream of more than {STREAM_REQUESTS_MAX} requests in one body");
        requests[STREAM_REQUESTS_MAX] = Err(Status::invalid_argument(what));
    }
    requests
}

async fn watch(State(api): Shared, headers: HeaderMap, body: Bytes) -> Result<Response, Failed> {
    let caller = caller(&api, &headers)?;
    let requests: Vec<Result<pb::WatchRequest, Status>> = requests(&body);
    for request in &requests {
        if let Err(status) = request {
            return Err(Failed(status.clone()));
        }
    }
    Ok(lines(streams::watch(&api, caller, stream::iter(requests))).await)
}

async fn keep_alive(State(api): Shared, body: Bytes) -> Response {
    let requests: Vec<Result<pb::LeaseKeepAliveRequest, Status>> = requests(&body);
    let answers = stream::iter(requests).then(move |request| {
        let api = Arc::clone(&api);
        async move { api.lease_keep_alive(request?).await }
    });
    lines(answers).await
}

async fn snapshot(State(api): Shared, headers: HeaderMap) -> Result<Response, Failed> {
    let caller = caller(&api, &headers)?;
    api.require_admin(&caller)?;
    Ok(lines(api.snapshot()).await)
}

async fn observe(State(api): Shared, headers: HeaderMap, body: Bytes) -> Result<Response, Failed> {
    let caller = caller(&api, &headers)?;
    let request = parsed(&body)?;
    Ok(lines(api.observe(caller, request)).await)
}

async fn version() -> Json<serde_json::Value> {
    Json(json!({ "etcdserver": ETCD_VERSION, "etcdcluster": CLUSTER_VERSION }))
}

/// As etcd's: whether a linearizable read works, and no alarm says otherwise.
async fn health(State(api): Shared) -> (StatusCode, Json<serde_json::Value>) {
    let reason = match api.consensus.barrier().await {
        Err(status) => status.message().to_owned(),
        Ok(()) if api.consensus.view().alarms().next().is_none() => String::new(),
        Ok(()) => "ALARM".to_owned(),
    };
    let (status, text) = match reason.as_str() {
        "" => (StatusCode::OK, "true"),
        _ => (StatusCode::SERVICE_UNAVAILABLE, "false"),
    };
    (status, Json(json!({ "health": text, "reason": reason })))
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;

    use super::*;

    /// The status of a stream with these answers, and its lines.
    async fn answered(answers: Vec<Result<u32, Status>>) -> (StatusCode, Vec<serde_json::Value>) {
        let response = lines(stream::iter(answers)).await;
        let status = response.status();
        let body = to_bytes(response.into_body(), BODY_BYTES_MAX)
            .await
            .unwrap();
        let text = String::from_utf8(body.to_vec()).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
        (status, lines.collect())
    }

    #[tokio::test]
    async fn a_stream_whose_first_answer_is_an_error_has_its_status() {
        let (status, lines) = answered(vec![Err(RpcError::NoLeader.into())]).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        let error = json!({
            "grpc_code": 14,
            "http_code": 503,
            "message": "etcdserver: no leader",
            "http_status": "Service Unavailable",
        });
        assert_eq!(lines, [json!({ "error": error })]);
    }

    #[tokio::test]
    async fn an_error_later_in_a_stream_is_its_last_line() {
        let (status, lines) = answered(vec![Ok(1), Err(RpcError::NoLeader.into())]).await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(lines[0], json!({ "result": 1 }));
        assert_eq!(lines[1]["error"]["http_code"], 503);
        let (status, lines) = answered(Vec::new()).await;
        assert_eq!((status, lines.len()), (StatusCode::OK, 0));
    }

    #[test]
    fn the_body_of_a_stream_holds_a_bounded_number_of_requests() {
        let parsed = |count: usize| requests::<pb::WatchRequest>("{}".repeat(count).as_bytes());
        let most = parsed(STREAM_REQUESTS_MAX);
        assert_eq!(most.len(), STREAM_REQUESTS_MAX);
        assert!(most.iter().all(Result::is_ok));
        let more = parsed(BODY_BYTES_MAX / 2);
        assert_eq!(more.len(), STREAM_REQUESTS_MAX + 1);
        let refused = more.last().and_then(|last| last.as_ref().err());
        let refused = refused.map(Status::code);
        assert_eq!(refused, Some(tonic::Code::InvalidArgument));
    }

    #[test]
    fn what_follows_a_malformed_request_of_a_stream_is_not_taken() {
        let parsed = requests::<pb::WatchRequest>(b"{} nonsense {}");
        let taken: Vec<bool> = parsed.iter().map(Result::is_ok).collect();
        assert_eq!(taken, [true, false]);
    }
}
