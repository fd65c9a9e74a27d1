//! Checks against real servers: with certificates that are right, of somebody else, and for somebody else. Contracts
//! LB-4 and BY-7.

use control_kit::health::{Condition, Health};
use control_kit::server::{Limits, Port};
use control_kit::stop::{self, Stopper};
use control_kit::tls::{ServerTls, TlsFiles};
use fiberlb_api::v1;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

use super::*;
use crate::spec;

/// One who signs certificates.
struct Signer {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Signer {
    fn new() -> Signer {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        Signer { pem, issuer }
    }

    /// A server's files, with a certificate for a name.
    fn server(&self, name: &str) -> (TempDir, ServerTls) {
        let dir = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let files = TlsFiles {
            cert: dir.path().join("cert.pem"),
            key: dir.path().join("key.pem"),
            ca: None,
        };
        std::fs::write(&files.cert, certificate.pem()).unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        let tls = ServerTls::open(files).unwrap();
        (dir, tls)
    }
}

/// A server: `/readyz` says how it is, and gRPC's health service that it serves.
async fn server(tls: Option<ServerTls>, health: Health) -> (SocketAddr, Stopper) {
    let any = "127.0.0.1:0".parse().unwrap();
    let port = Port::bind(any, tls, Limits::default()).await.unwrap();
    let addr = port.addr();
    let (_, grpc) = tonic_health::server::health_reporter();
    let router = health.router().merge(
        tonic::service::Routes::new(grpc)
            .into_axum_router()
            .reset_fallback(),
    );
    let (stopper, stop) = stop::pair();
    tokio::spawn(port.serve(router, stop));
    (addr, stopper)
}

/// What a check of a kind says of a server.
async fn asked(addr: SocketAddr, written: v1::HealthCheck) -> Result<(), String> {
    let balancer = v1::LoadBalancer {
        name: "web".into(),
        pools: vec![v1::Pool {
            name: "web".into(),
            backends: vec![v1::Backend {
                name: "b1".into(),
                address: addr.ip().to_string(),
                port: u32::from(addr.port()),
                ..Default::default()
            }],
            health_check: Some(written),
            ..Default::default()
        }],
        ..Default::default()
    };
    let parsed = spec::parse(
        ("root", "x"),
        &[balancer],
        &spec::Hosts::new(),
        std::iter::empty(),
    );
    let parsed = parsed.unwrap();
    let check = parsed[0].pools[0].check.clone().unwrap();
    Asker::new(addr.ip(), addr.port(), &check.kind).ask().await
}

fn https(change: impl FnOnce(&mut v1::HealthCheck)) -> v1::HealthCheck {
    let mut check = v1::HealthCheck {
        kind: "https".into(),
        path: "/readyz".into(),
        ..Default::default()
    };
    change(&mut check);
    check
}

#[tokio::test]
async fn a_certificate_has_to_be_signed_and_for_the_name() {
    let (signer, stranger) = (Signer::new(), Signer::new());
    let (_files, tls) = signer.server("b1.example");
    let (addr, _stopper) = server(Some(tls), Health::default()).await;
    let named = |check: &mut v1::HealthCheck| check.server_name = "b1.example".into();
    let right = https(|check| {
        check.ca_pem.clone_from(&signer.pem);
        named(check);
    });
    asked(addr, right.clone()).await.unwrap();
    let of_host = https(|check| {
        check.ca_pem.clone_from(&signer.pem);
        check.host = "b1.example:8443".into();
    });
    asked(addr, of_host).await.unwrap();
    let wrong_signer = https(|check| {
        check.ca_pem.clone_from(&stranger.pem);
        named(check);
    });
    let said = asked(addr, wrong_signer).await.unwrap_err();
    assert!(said.contains("invalid peer certificate"), "{said}");
    let wrong_name = v1::HealthCheck {
        server_name: "b2.example".into(),
        ..right.clone()
    };
    let said = asked(addr, wrong_name).await.unwrap_err();
    assert!(said.contains("not valid for"), "{said}");
    let by_address = v1::HealthCheck {
        server_name: String::new(),
        ..right
    };
    asked(addr, by_address).await.unwrap_err();
    asked(addr, https(|check| check.skip_verify = true))
        .await
        .unwrap();
}

#[tokio::test]
async fn statuses_decide_and_grpc_says_that_it_serves() {
    let health = Health::default();
    let (addr, stopper) = server(None, health.clone()).await;
    let http = |path: &str, statuses: &[&str]| v1::HealthCheck {
        kind: "http".into(),
        path: path.into(),
        statuses: statuses.iter().map(|text| (*text).to_owned()).collect(),
        ..Default::default()
    };
    asked(addr, http("/readyz", &[])).await.unwrap();
    health.set("disk", Condition::NotReady("it fills".into()));
    let said = asked(addr, http("/readyz", &[])).await.unwrap_err();
    assert_eq!(said, "status 503");
    asked(addr, http("/readyz", &["503"])).await.unwrap();
    let grpc = |service: &str| v1::HealthCheck {
        kind: "grpc".into(),
        service: service.into(),
        ..Default::default()
    };
    asked(addr, grpc("")).await.unwrap();
    let said = asked(addr, grpc("other")).await.unwrap_err();
    assert!(said.contains("NotFound"), "{said}");
    let tcp = v1::HealthCheck {
        kind: "tcp".into(),
        ..Default::default()
    };
    asked(addr, tcp.clone()).await.unwrap();
    drop(stopper);
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = nobody.local_addr().unwrap();
    drop(nobody);
    let said = asked(addr, tcp).await.unwrap_err();
    assert!(said.contains("cannot connect"), "{said}");
}
