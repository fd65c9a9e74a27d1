//! Who calls, by the certificate of the connection: the same over gRPC and REST.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

mod certificates;

use std::sync::Arc;

use axum::body::{Body, to_bytes};
use axum::http::Request;
use control_api::FILE_DESCRIPTOR_SET;
use control_api::operations::v1::operations_client::OperationsClient;
use control_api::operations::v1::{GetOperationRequest, Operation};
use control_kit::api::{Api, Call, Front, Limits, Verb};
use control_kit::api_error::ApiError;
use control_kit::auth::{Principal, Tokens};
use control_kit::client::{Options, channel};
use control_kit::health::Health;
use control_kit::metrics::Registry;
use control_kit::server::{self, Port};
use control_kit::stop;
use control_kit::tls::{ClientTls, ServerTls, TlsFiles};
use serde_json::Value;
use tempfile::TempDir;
use tonic::Code;
use tonic::transport::Channel;
use tower::ServiceExt as _;

use crate::certificates::{Authority, files};

const SERVICE: &str = "ultracloud.operations.v1.Operations";

/// Tells who asks.
async fn who(_: Arc<()>, call: Call<GetOperationRequest>) -> Result<Operation, ApiError> {
    Ok(Operation {
        principal: call.caller.principal.name.to_string(),
        tenant: call.caller.principal.tenant.to_string(),
        ..Operation::default()
    })
}

fn principal(name: &str) -> Principal {
    Principal {
        name: name.into(),
        tenant: "blue".into(),
        is_operator: false,
    }
}

fn api() -> axum::Router {
    let known = Tokens::default()
        .common_name("node-7", principal("node-7"))
        .token("secret", principal("ann"));
    let registry = Registry::default();
    let front = Front::new(Arc::new(known), Limits::default(), &registry);
    Api::new(SERVICE, FILE_DESCRIPTOR_SET, Arc::new(()), &front)
        .verb(Verb::get("GetOperation", "/v1/who/{id}", "Who asks"), who)
        .router(Health::default(), registry)
}

/// A client's certificate of this name, in a directory of its own.
fn certificate(authority: &Authority, name: &str) -> (TempDir, TlsFiles) {
    let dir = tempfile::tempdir().unwrap();
    let files = files(dir.path());
    authority.issue(name, &files);
    (dir, files)
}

async fn by_rest(channel: Channel, url: &str, token: Option<&str>) -> (u16, Value) {
    let mut request = Request::get(format!("{url}/v1/who/x"));
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let request = request.body(tonic::body::Body::new(Body::empty())).unwrap();
    let answer = channel.oneshot(request).await.unwrap();
    let status = answer.status().as_u16();
    let body = to_bytes(Body::new(answer.into_body()), 1 << 20)
        .await
        .unwrap();
    (status, serde_json::from_slice(&body).unwrap())
}

#[tokio::test]
async fn a_certificate_names_its_caller_unless_a_token_names_another() {
    let authority = Authority::new();
    let (_dir, own) = certificate(&authority, "server");
    let tls = ServerTls::open(own).unwrap();
    let any = "127.0.0.1:0".parse().unwrap();
    let port = Port::bind(any, Some(tls), server::Limits::default())
        .await
        .unwrap();
    let url = format!("https://{}", port.addr());
    let (stopper, stop) = stop::pair();
    let serving = tokio::spawn(port.serve(api(), stop));

    let connect = |name: &str| {
        let (dir, files) = certificate(&authority, name);
        let tls = ClientTls::open(files).unwrap();
        (dir, channel(&url, Some(&tls), Options::default()).unwrap())
    };
    let (_node_dir, node) = connect("node-7");
    let answer = OperationsClient::new(node.clone())
        .get_operation(GetOperationRequest::default())
        .await
        .unwrap();
    assert_eq!(answer.into_inner().principal, "node-7");
    let (status, body) = by_rest(node.clone(), &url, None).await;
    assert_eq!((status, &body["principal"]), (200, &"node-7".into()));
    assert_eq!(body["tenant"], "blue");
    let (status, body) = by_rest(node.clone(), &url, Some("secret")).await;
    assert_eq!((status, &body["principal"]), (200, &"ann".into()));
    let (status, body) = by_rest(node, &url, Some("wrong")).await;
    assert_eq!(
        (status, &body["error"]["code"]),
        (401, &"not-authenticated".into())
    );

    let (_stranger_dir, stranger) = connect("node-8");
    let refused = OperationsClient::new(stranger.clone())
        .get_operation(GetOperationRequest::default())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert_eq!(by_rest(stranger, &url, None).await.0, 401);
    stopper.stop();
    serving.await.unwrap();
}
