//! Requests, many at a time, against both servers.

use std::sync::Arc;

use futures_util::future::try_join_all;
use nbd_client::{Client, ClientError, ClientTls, Extent, Options, Target};
use nbd_export::Tls;
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::support::{BYTES, MIB, QemuNbd, Volume, connect, pattern};

/// Everything that a client can do.
async fn works(target: &Target) {
    let client = connect(target).await;
    assert_eq!((client.bytes(), client.is_read_only()), (BYTES, false));
    let model = pattern(16 << 20, 3);
    let writes = model.chunks(40 << 10).enumerate().map(|(at, part)| {
        let offset = at as u64 * (40 << 10);
        client.write(offset, part.to_vec().into())
    });
    try_join_all(writes).await.unwrap();
    client.flush().await.unwrap();
    let mut model = model;
    client.write_zeroes(MIB, 2 * MIB).await.unwrap();
    model[1 << 20..3 << 20].fill(0);
    client.trim(32 * MIB, 1 << 20).await.unwrap();
    let reads = (0..16).map(|at| client.read(at * MIB, 1 << 20));
    let read = try_join_all(reads).await.unwrap().concat();
    assert!(read == model);
    assert!(client.read(8 * MIB, 8 << 20).await.unwrap() == model[8 << 20..]);
    let found = client.block_status(0, 32 << 20).await.unwrap();
    let extents = [
        (MIB, false),
        (2 * MIB, true),
        (13 * MIB, false),
        (16 * MIB, true),
    ];
    assert_eq!(found, extents.map(|(bytes, zero)| Extent { bytes, zero }));
    assert!(client.read(0, 0).await.unwrap().is_empty());
    let past = client.read(BYTES, 512).await;
    assert!(matches!(past, Err(ClientError::Invalid { .. })), "{past:?}");
    let big = client.read(0, u32::MAX - 511).await;
    assert!(matches!(big, Err(ClientError::Invalid { .. })), "{big:?}");
    // One that is given up does no harm.
    let given_up = tokio::time::timeout(std::time::Duration::ZERO, client.read(0, 1 << 20));
    drop(given_up.await);
    assert!(client.read(0, 4096).await.unwrap() == model[..4096]);
    Arc::into_inner(client).unwrap().close().await;
}

#[tokio::test]
async fn requests_are_done_many_at_a_time_on_a_volume() {
    let volume = Volume::start();
    works(&volume.target("disk")).await;
    let frozen = connect(&volume.target("frozen")).await;
    assert!(frozen.is_read_only());
    let refused = frozen.write(0, vec![1; 512].into()).await;
    assert!(
        matches!(refused, Err(ClientError::Invalid { .. })),
        "{refused:?}"
    );
}

#[tokio::test]
async fn requests_are_done_many_at_a_time_on_qemu_nbd() {
    let qemu = QemuNbd::start();
    works(&qemu.target()).await;
}

#[tokio::test]
async fn what_is_in_flight_is_bounded_and_all_of_it_is_done() {
    let volume = Volume::start();
    let options = Options {
        requests_max: 2,
        bytes_max: 1 << 20,
        ..Options::default()
    };
    let client = Client::connect(&volume.target("disk"), options)
        .await
        .unwrap();
    let data = pattern(4 << 20, 8);
    client.write(0, data.clone().into()).await.unwrap();
    let reads = try_join_all((0..64).map(|at| client.read(at * 65_536, 65_536)));
    assert!(reads.await.unwrap().concat() == data);
}

#[tokio::test]
async fn an_export_that_is_not_there_is_refused_by_name() {
    let volume = Volume::start();
    for (target, name) in [(volume.target("none"), "none")] {
        let refused = Client::connect(&target, Options::default())
            .await
            .unwrap_err();
        assert!(matches!(refused, ClientError::Refused { .. }), "{refused}");
        assert!(refused.to_string().contains(name), "{refused}");
    }
    let nowhere: Target = "nbd+unix:///x?socket=/nowhere/at/all".parse().unwrap();
    let refused = Client::connect(&nowhere, Options::default())
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("/nowhere/at/all"), "{refused}");
}

#[tokio::test]
async fn a_server_that_is_killed_fails_what_waits_and_what_comes() {
    let mut qemu = QemuNbd::start();
    let client = connect(&qemu.target()).await;
    client.write(0, vec![1; 4096].into()).await.unwrap();
    qemu.kill();
    for _ in 0..2 {
        let broken = client.read(0, 4096).await.unwrap_err();
        let known = matches!(broken, ClientError::Broken(_) | ClientError::Protocol(_));
        assert!(known, "{broken}");
    }
}

fn tls() -> (Tls, ClientTls) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["volumes.test".to_owned()]).unwrap();
    let cert: CertificateDer<'static> = params.self_signed(&key).unwrap().der().clone();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(Arc::clone(&provider));
    let config = config.with_safe_default_protocol_versions().unwrap();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = config.with_no_client_auth();
    let server = config.with_single_cert(vec![cert.clone()], key).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(cert).unwrap();
    let config = ClientConfig::builder_with_provider(provider);
    let config = config.with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots).with_no_client_auth();
    let client = ClientTls {
        config: Arc::new(config),
        server_name: "volumes.test".to_owned(),
    };
    (Tls::Required(Arc::new(server)), client)
}

#[tokio::test]
async fn requests_are_done_over_tls_and_to_the_right_server_only() {
    let (server, client) = tls();
    let volume = Volume::with_tls(server);
    let target = Target {
        tls: Some(client.clone()),
        ..volume.target("disk")
    };
    works(&target).await;
    let clear = Client::connect(&volume.target("disk"), Options::default()).await;
    let refused = clear.unwrap_err();
    assert!(matches!(refused, ClientError::Refused { .. }), "{refused}");
    let target = Target {
        tls: Some(ClientTls {
            server_name: "other.test".to_owned(),
            ..client
        }),
        ..volume.target("disk")
    };
    let refused = Client::connect(&target, Options::default())
        .await
        .unwrap_err();
    assert!(matches!(refused, ClientError::Broken(_)), "{refused}");
}
