//! A remote device over servers that others wrote, and over TLS.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::rc::Rc;
use std::time::Duration;

use engine::net::Addr;
use nbd_export::{LinkState, RemoteConfig, RemoteDevice, RemoteTls, Tls, fresh_token};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use shards::block::BlockDevice;

use crate::remote::{on_a_shard, read, until, write};
use crate::secure::{Authority, authority, server_config};
use crate::support::{Backend, MIB, Setup, pattern};

/// QEMU's server, over a raw file; killed when dropped.
struct QemuNbd(Child);

impl QemuNbd {
    fn start(file: &Path, socket: &Path) -> QemuNbd {
        let child = Command::new("qemu-nbd")
            .args([
                "--persistent",
                "--shared=4",
                "--format=raw",
                "--discard=unmap",
            ])
            .arg("--socket")
            .args([socket, file])
            .spawn();
        QemuNbd(child.unwrap_or_else(|e| panic!("qemu-nbd: {e}; `cargo xtask setup` installs it")))
    }
}

impl Drop for QemuNbd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn config(socket: &Path) -> RemoteConfig {
    let session = fresh_token().unwrap();
    RemoteConfig::new(Addr::Unix(socket.to_owned()), "", session)
}

/// A server that was started listens some time.
async fn connect(socket: &Path) -> Rc<RemoteDevice> {
    loop {
        if let Ok(device) = RemoteDevice::connect(config(socket), None).await {
            return Rc::new(device);
        }
        engine::yield_now().await;
    }
}

fn place(dir: &Path) -> (PathBuf, PathBuf) {
    let file = dir.join("raw");
    std::fs::File::create(&file)
        .unwrap()
        .set_len(64 * MIB)
        .unwrap();
    (file, dir.join("qemu"))
}

#[test]
fn qemus_server_is_used_with_all_that_it_has() {
    on_a_shard(async |dir| {
        let (file, socket) = place(dir);
        let _server = QemuNbd::start(&file, &socket);
        let device = connect(&socket).await;
        assert_eq!(device.geometry().bytes, 64 * MIB);
        let bytes = pattern(5 << 20, 1);
        write(&device, 3 * MIB, &bytes, true).await.unwrap();
        assert!(read(&device, 3 * MIB, bytes.len()).await.unwrap() == bytes);
        device
            .write_zeroes(4 * MIB, MIB, true, false)
            .await
            .unwrap();
        device.discard(6 * MIB, MIB).await.unwrap();
        device.flush().await.unwrap();
        let zeros = read(&device, 4 * MIB, 1 << 20).await.unwrap();
        assert!(zeros.iter().all(|byte| *byte == 0));
        let extents = device.extents(0, 64 * MIB).await.unwrap();
        assert!(
            extents[0].hole && extents[0].bytes == 3 * MIB,
            "{extents:?}"
        );
        let raw = std::fs::read(&file).unwrap();
        assert!(raw[3 << 20..4 << 20] == bytes[..1 << 20]);
    });
}

#[test]
fn a_strange_server_that_comes_back_is_gone_on_with_only_when_nothing_is_at_stake() {
    on_a_shard(async |dir| {
        let (file, socket) = place(dir);
        let server = QemuNbd::start(&file, &socket);
        let device = connect(&socket).await;
        let bytes = pattern(4096, 1);
        write(&device, 0, &bytes, false).await.unwrap();
        device.flush().await.unwrap();
        drop(server);
        let server = QemuNbd::start(&file, &socket);
        assert_eq!(read(&device, 0, 4096).await.unwrap(), bytes);
        write(&device, 0, &bytes, false).await.unwrap();
        drop(server);
        let _server = QemuNbd::start(&file, &socket);
        until("it is lost", || {
            matches!(device.state(), LinkState::Lost(_))
        })
        .await;
        device.flush().await.unwrap_err();
    });
}

fn client_config(authority: &Authority) -> ClientConfig {
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["client".to_owned()]).unwrap();
    let cert = params.signed_by(&key, authority).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(authority.der().clone()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider);
    let config = config.with_safe_default_protocol_versions().unwrap();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    config
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![cert.der().clone()], key)
        .unwrap()
}

#[test]
fn tls_is_spoken_and_only_with_the_right_one() {
    let ours = authority();
    let backend = Backend::start(Setup {
        tls: Tls::Required(server_config(&ours)),
        ..Setup::default()
    });
    let (socket, config_of) = (backend.socket().to_owned(), client_config(&ours));
    on_a_shard(async move |_| {
        let tls = |name: &str| RemoteTls {
            config: config_of.clone().into(),
            server_name: ServerName::try_from(name.to_owned()).unwrap(),
        };
        let with = |tls| RemoteConfig {
            tls,
            export: "disk".to_owned(),
            connect_max: Duration::from_mins(1),
            ..config(&socket)
        };
        let device = RemoteDevice::connect(with(Some(tls("localhost"))), None).await;
        let device = device.unwrap();
        let bytes = pattern(3 << 20, 1);
        write(&device, MIB, &bytes, true).await.unwrap();
        assert!(read(&device, MIB, bytes.len()).await.unwrap() == bytes);
        for wrong in [None, Some(tls("elsewhere"))] {
            let refused = RemoteDevice::connect(with(wrong), None).await;
            assert!(refused.is_err());
        }
    });
    backend.stop();
}
