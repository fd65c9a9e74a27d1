//! Verbs as HTTP: what both fronts owe whatever the service does.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use std::future::pending;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::Request;
use control_api::FILE_DESCRIPTOR_SET;
use control_api::operations::v1::{
    GetOperationRequest, ListOperationsRequest, ListOperationsResponse, Operation,
};
use control_kit::api::{Api, Call, Front, Limits, Verb};
use control_kit::api_error::ApiError;
use control_kit::auth::{Principal, Tokens};
use control_kit::health::{Condition, Health};
use control_kit::metrics::Registry;
use serde_json::Value;
use tonic::Code;
use tower::ServiceExt as _;

struct Echo;

async fn get(_: Arc<Echo>, call: Call<GetOperationRequest>) -> Result<Operation, ApiError> {
    match call.message.id.as_str() {
        "never" => pending().await,
        "broken" => Err(ApiError::new(Code::Internal, "broken", "it broke").object("broken")),
        id => Ok(Operation {
            id: id.to_owned(),
            tenant: call.caller.principal.tenant.to_string(),
            request_id: call.caller.request_id.as_str().to_owned(),
            kind: call.caller.idempotency_key.unwrap_or_default().to_string(),
            ..Operation::default()
        }),
    }
}

async fn list(
    _: Arc<Echo>,
    call: Call<ListOperationsRequest>,
) -> Result<ListOperationsResponse, ApiError> {
    Ok(ListOperationsResponse {
        next: format!("{} after {}", call.message.limit, call.message.after),
        ..ListOperationsResponse::default()
    })
}

fn router(health: &Health, registry: &Registry) -> Router {
    let blue = Principal {
        name: "ann".into(),
        tenant: "blue".into(),
        is_operator: false,
    };
    let tokens = Arc::new(Tokens::default().token("t", blue));
    let front = Front::new(tokens, Limits::default(), registry);
    Api::new("test.v1.Echo", FILE_DESCRIPTOR_SET, Arc::new(Echo), &front)
        .verb(Verb::get("Get", "/v1/things/{id}", "A thing"), get)
        .verb(
            Verb::post("Make", "/v1/things/{id}/make", "Makes it").created(),
            get,
        )
        .verb(Verb::get("List", "/v1/things", "All things"), list)
        .router(health.clone(), registry.clone())
}

async fn ask(
    router: &Router,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> (u16, String, Value) {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Body::from(body.to_owned())).unwrap();
    let answer = router.clone().oneshot(request).await.unwrap();
    let status = answer.status().as_u16();
    let id = answer.headers().get("x-request-id");
    let id = id.map_or_else(String::new, |id| id.to_str().unwrap().to_owned());
    let body = to_bytes(answer.into_body(), usize::MAX).await.unwrap();
    (
        status,
        id,
        serde_json::from_slice(&body).unwrap_or_default(),
    )
}

const AUTH: (&str, &str) = ("authorization", "Bearer t");

#[tokio::test]
async fn a_call_has_its_caller_its_name_and_its_key() {
    let router = router(&Health::default(), &Registry::default());
    let headers = [AUTH, ("x-request-id", "r-7"), ("idempotency-key", "k")];
    let (status, id, body) = ask(&router, "GET", "/v1/things/a%2Fb", &headers, "").await;
    assert_eq!((status, id.as_str()), (200, "r-7"));
    assert_eq!(
        (&body["id"], &body["tenant"]),
        (&"a/b".into(), &"blue".into())
    );
    assert_eq!(
        (&body["request_id"], &body["kind"]),
        (&"r-7".into(), &"k".into())
    );

    let json = ("content-type", "application/json; charset=utf-8");
    let (status, id, body) = ask(&router, "POST", "/v1/things/x/make", &[AUTH, json], "{}").await;
    assert_eq!((status, &body["id"]), (201, &"x".into()));
    assert!(!id.is_empty(), "a name is made where none is given");

    let (_, _, body) = ask(
        &router,
        "GET",
        "/v1/things?limit=7&after=ab%20c",
        &[AUTH],
        "",
    )
    .await;
    assert_eq!(body["next"], "7 after ab c");
}

#[tokio::test]
async fn what_is_wrong_with_a_request_is_said_before_the_verb_runs() {
    let router = router(&Health::default(), &Registry::default());
    let json = ("content-type", "application/json");
    for (method, path, headers, body, status, code) in [
        ("GET", "/v1/things/x", &[][..], "", 401, "not-authenticated"),
        (
            "GET",
            "/v1/things?limit=-1",
            &[AUTH],
            "",
            400,
            "invalid-request",
        ),
        (
            "GET",
            "/v1/things?colour=red",
            &[AUTH],
            "",
            400,
            "invalid-request",
        ),
        (
            "GET",
            "/v1/things/x?id=y",
            &[AUTH],
            "",
            400,
            "invalid-request",
        ),
        (
            "POST",
            "/v1/things/x/make",
            &[AUTH, json],
            r#"{"id":"y"}"#,
            400,
            "invalid-request",
        ),
        (
            "POST",
            "/v1/things/x/make?id=y",
            &[AUTH, json],
            "{}",
            400,
            "invalid-request",
        ),
        (
            "POST",
            "/v1/things/x/make",
            &[AUTH, json],
            "[]",
            400,
            "invalid-request",
        ),
        (
            "POST",
            "/v1/things/x/make",
            &[AUTH],
            "{}",
            415,
            "unsupported-media-type",
        ),
        (
            "GET",
            "/v1/things/x",
            &[AUTH, ("grpc-timeout", "soon")],
            "",
            400,
            "invalid-timeout",
        ),
        (
            "GET",
            "/v1/things/x",
            &[AUTH, ("idempotency-key", "")],
            "",
            400,
            "invalid-idempotency-key",
        ),
        ("GET", "/elsewhere", &[AUTH], "", 404, "no-such-path"),
        (
            "PATCH",
            "/v1/things/x",
            &[AUTH],
            "",
            405,
            "method-not-allowed",
        ),
    ] {
        let (got, id, answer) = ask(&router, method, path, headers, body).await;
        assert_eq!(got, status, "{method} {path}: {answer}");
        assert_eq!(answer["error"]["code"], code, "{method} {path}: {answer}");
        assert_eq!(
            answer["error"]["request_id"],
            id.as_str(),
            "{method} {path}: {answer}"
        );
    }
    let long = format!(r#"{{"id":"{}"}}"#, "a".repeat(2 << 20));
    let (status, ..) = ask(&router, "POST", "/v1/things/x/make", &[AUTH, json], &long).await;
    assert_eq!(status, 400);
}

#[tokio::test(start_paused = true)]
async fn a_call_ends_at_its_deadline_and_failures_are_counted() {
    let registry = Registry::default();
    let router = router(&Health::default(), &registry);
    let deadline = ("grpc-timeout", "50m");
    let (status, _, body) = ask(&router, "GET", "/v1/things/never", &[AUTH, deadline], "").await;
    assert_eq!(
        (status, &body["error"]["code"]),
        (504, &"deadline-exceeded".into())
    );
    // Without one, the service's own.
    let (status, ..) = ask(&router, "GET", "/v1/things/never", &[AUTH], "").await;
    assert_eq!(status, 504);
    let (status, _, body) = ask(&router, "GET", "/v1/things/broken", &[AUTH], "").await;
    assert_eq!((status, &body["error"]["object"]), (500, &"broken".into()));
    let text = registry.text();
    assert!(text.contains("uc_api_failed_calls_total 3"), "{text}");
}

#[tokio::test]
async fn readiness_is_the_parts() {
    let health = Health::default();
    let router = router(&health, &Registry::default());
    assert_eq!(ask(&router, "GET", "/readyz", &[], "").await.0, 200);
    health.set("store", Condition::NotReady("no leader".into()));
    assert_eq!(ask(&router, "GET", "/readyz", &[], "").await.0, 503);
    assert_eq!(ask(&router, "GET", "/healthz", &[], "").await.0, 200);
}
