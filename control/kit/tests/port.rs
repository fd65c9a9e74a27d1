//! A port as its clients meet it: plain and with certificates of both sides, which change while it runs.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

mod certificates;

use axum::body::Body;
use axum::http::Request;
use control_kit::client::{Options, channel};
use control_kit::health::{Condition, Health};
use control_kit::server::{Limits, Port};
use control_kit::stop;
use control_kit::tls::{ClientTls, ServerTls, TlsFiles};
use tempfile::TempDir;
use tonic::transport::Channel;
use tower::ServiceExt as _;

use crate::certificates::{Authority, files};

/// Writes a new CA, and a certificate that it signed, into the files.
fn issue(files: &TlsFiles) {
    Authority::new().issue("somebody", files);
}

fn issued() -> (TempDir, TlsFiles) {
    let dir = tempfile::tempdir().unwrap();
    let files = files(dir.path());
    issue(&files);
    (dir, files)
}

async fn status(channel: Channel, url: &str) -> Option<u16> {
    let request = Request::get(format!("{url}/healthz"));
    let request = request.body(tonic::body::Body::new(Body::empty())).unwrap();
    let answer = channel.oneshot(request).await.ok()?;
    Some(answer.status().as_u16())
}

#[tokio::test]
async fn a_plain_port_answers_and_ends_when_told() {
    let port = Port::bind("127.0.0.1:0".parse().unwrap(), None, Limits::default())
        .await
        .unwrap();
    let url = format!("http://{}", port.addr());
    let health = Health::default();
    let (stopper, stop) = stop::pair();
    let serving = tokio::spawn(port.serve(health.clone().router(), stop));
    let channel = channel(&url, None, Options::default()).unwrap();
    assert_eq!(status(channel.clone(), &url).await, Some(200));
    health.set("disk", Condition::Failed("replace it".into()));
    assert_eq!(status(channel.clone(), &url).await, Some(503));
    stopper.stop();
    serving.await.unwrap();
    assert_eq!(status(channel, &url).await, None);
}

#[tokio::test]
async fn new_certificates_hold_from_the_next_connection_on() {
    let (_server_dir, server) = issued();
    let tls = ServerTls::open(server.clone()).unwrap();
    let port = Port::bind("127.0.0.1:0".parse().unwrap(), Some(tls), Limits::default())
        .await
        .unwrap();
    let url = format!("https://{}", port.addr());
    let (stopper, stop) = stop::pair();
    let serving = tokio::spawn(port.serve(Health::default().router(), stop));

    let known = ClientTls::open(server.clone()).unwrap();
    let connect = |tls: &ClientTls| channel(&url, Some(tls), Options::default()).unwrap();
    assert_eq!(status(connect(&known), &url).await, Some(200));

    let (_stranger_dir, stranger) = issued();
    let stranger = TlsFiles {
        ca: server.ca.clone(),
        ..stranger
    };
    let stranger = ClientTls::open(stranger).unwrap();
    assert_eq!(status(connect(&stranger), &url).await, None, "another CA");

    issue(&server);
    assert_eq!(status(connect(&known), &url).await, Some(200));
    std::fs::write(&server.cert, "not a certificate").unwrap();
    assert_eq!(status(connect(&known), &url).await, Some(200));
    stopper.stop();
    serving.await.unwrap();
}
