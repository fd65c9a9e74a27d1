//! TLS, with certificates made here.

use std::path::Path;
use std::sync::Arc;

use nbd_export::{Limits, Tls};
use nbd_wire::{ClientOption, OptionReply, ReplyType};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

use crate::clients::{digest, image, run};
use crate::raw::Client;
use crate::support::{Backend, Setup};

pub type Authority = CertifiedIssuer<'static, KeyPair>;

pub fn authority() -> Authority {
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// The files that QEMU and libnbd want in a directory.
fn client_files(authority: &Authority, dir: &Path) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["client".to_owned()]).unwrap();
    let cert = params.signed_by(&key, authority).unwrap();
    for (name, text) in [
        ("ca-cert.pem", authority.pem()),
        ("client-cert.pem", cert.pem()),
        ("client-key.pem", key.serialize_pem()),
    ] {
        std::fs::write(dir.join(name), text).unwrap();
    }
}

/// Clients need a certificate of the authority.
pub fn server_config(authority: &Authority) -> Arc<ServerConfig> {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let cert = params.signed_by(&key, authority).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(authority.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    let config = ServerConfig::builder_with_provider(provider);
    let config = config.with_safe_default_protocol_versions().unwrap();
    let config = config.with_client_cert_verifier(verifier.build().unwrap());
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    Arc::new(
        config
            .with_single_cert(vec![cert.der().clone()], key)
            .unwrap(),
    )
}

fn secured(tls: Tls) -> Backend {
    Backend::start(Setup {
        tls,
        limits: Limits::default(),
        ..Setup::default()
    })
}

#[test]
fn clients_copy_over_tls_and_strangers_do_not() {
    let (ours, dir) = (authority(), tempfile::tempdir().unwrap());
    let backend = secured(Tls::Required(server_config(&ours)));
    client_files(&ours, dir.path());
    let (there, back) = (dir.path().join("there"), dir.path().join("back"));
    image(&there);
    let socket = backend.socket().display().to_string();
    let certificates = dir.path().display().to_string();
    let uri = format!("nbds+unix://localhost/disk?socket={socket}&tls-certificates={certificates}");
    let file = |path: &Path| path.display().to_string();
    run("nbdcopy", &["--connections=2", &file(&there), &uri]);
    run("nbdcopy", &["--connections=2", &uri, &file(&back)]);
    assert_eq!(digest(&back), digest(&there));
    let object = format!("tls-creds-x509,id=tls,endpoint=client,dir={certificates}");
    let options = format!(
        "driver=nbd,server.type=unix,server.path={socket},export=disk,tls-creds=tls,\
         tls-hostname=localhost"
    );
    let said = run(
        "qemu-img",
        &["info", "--object", &object, "--image-opts", &options],
    );
    assert!(said.contains("virtual size: 64 MiB"), "{said}");
    // Somebody else's certificate.
    let strange = tempfile::tempdir().unwrap();
    client_files(&authority(), strange.path());
    let ca = ours.pem();
    std::fs::write(strange.path().join("ca-cert.pem"), ca).unwrap();
    let uri = uri.replace(&certificates, &strange.path().display().to_string());
    let output = std::process::Command::new("nbdinfo").arg(&uri).output();
    assert!(!output.unwrap().status.success());
    backend.wait_for("a refusal", |stats| stats.refusals >= 1);
    backend.stop();
}

#[test]
fn nothing_is_said_before_tls_where_it_is_required() {
    let backend = secured(Tls::Required(server_config(&authority())));
    let mut client = Client::connect(backend.socket());
    let go = ClientOption::Go {
        export: "disk".into(),
        wanted: vec![],
    };
    for option in [ClientOption::List, ClientOption::StructuredReply, go] {
        let replies = client.ask(&option);
        let required = ReplyType::TLS_REQUIRED;
        let refused =
            matches!(&replies[..], [OptionReply::Error { kind, .. }] if *kind == required);
        assert!(refused, "{replies:?}");
    }
    client.send(&ClientOption::ExportName("disk".into()).encode());
    assert!(client.is_ended());
    backend.stop();
}

#[test]
fn who_does_not_wait_for_tls_is_disconnected() {
    let backend = secured(Tls::Offered(server_config(&authority())));
    let mut client = Client::connect(backend.socket());
    let early = [ClientOption::StartTls.encode(), ClientOption::List.encode()].concat();
    client.send(&early);
    assert!(client.is_ended());
    let mut client = Client::connect(backend.socket());
    assert_eq!(client.ask(&ClientOption::StartTls), [OptionReply::Ack]);
    client.send(&[0x16; 300]);
    assert!(client.is_ended());
    backend.wait_for("refusals", |stats| stats.refusals == 2);
    // In the clear, where that may be.
    let mut client = Client::simple(backend.socket(), "disk");
    assert_eq!(client.read(0, 512), [0; 512]);
    backend.stop();
}
