//! A real etcd, Debian's, as a process on an address of its own.

use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};

use tempfile::TempDir;

use crate::support::{Ctl, eventually, http};

/// Members that this process has started.
static STARTED: AtomicU16 = AtomicU16::new(0);

/// An etcd with its directory. Killed when dropped.
pub struct Etcd {
    dir: TempDir,
    child: Child,
    pub client: SocketAddr,
    pub peer: SocketAddr,
}

/// Addresses that nothing else takes: etcd must be told its ports before it starts, so each process of
/// tests has a loopback address of its own, made of its number.
fn addresses() -> (SocketAddr, SocketAddr) {
    let ip = Etcd::host();
    let number = STARTED.fetch_add(1, Ordering::Relaxed);
    let at = |port: u16| SocketAddr::from((ip, port + 2 * number));
    (at(23_900), at(23_901))
}

impl Etcd {
    /// Where every etcd of this process listens.
    pub fn host() -> Ipv4Addr {
        let pid = std::process::id();
        let (a, b, c) = (1 + (pid >> 16) % 250, (pid >> 8) & 255, 1 + pid % 250);
        Ipv4Addr::new(127, a as u8, b as u8, c as u8)
    }

    /// Starts a member by itself, and waits until it serves.
    pub fn start() -> Etcd {
        let mut etcd = Etcd::spawn(tempfile::tempdir().unwrap(), &addresses(), "http", &[]);
        etcd.await_health();
        etcd
    }

    /// Starts three members of one cluster, named m1 to m3, and waits until they serve.
    pub fn three() -> Vec<Etcd> {
        let places = [1, 2, 3].map(|number| (format!("m{number}"), addresses()));
        let one =
            |(name, at): &(String, (SocketAddr, SocketAddr))| format!("{name}=http://{}", at.1);
        let all = places.each_ref().map(one).join(",");
        let mut etcds = Vec::new();
        for (name, at) in &places {
            let more = ["--name", name, "--initial-cluster", &all];
            let dir = tempfile::tempdir().unwrap();
            etcds.push(Etcd::spawn(dir, at, "http", &more));
        }
        for etcd in &mut etcds {
            etcd.await_health();
        }
        etcds
    }

    /// Starts a member that asks clients for certificates. Those of a directory are its own and its
    /// CA's; `as_client` is how it is asked whether it serves.
    pub fn start_tls(dir: &Path, name: &str, as_client: impl Fn(&Ctl) -> Ctl) -> Etcd {
        let file = |name: &str| dir.join(name).to_str().unwrap().to_owned();
        let (cert, key, ca) = (
            file(&format!("{name}.pem")),
            file(&format!("{name}.key")),
            file("ca.pem"),
        );
        let more = [
            "--cert-file",
            &cert,
            "--key-file",
            &key,
            "--trusted-ca-file",
            &ca,
            "--client-cert-auth",
        ];
        let mut etcd = Etcd::spawn(tempfile::tempdir().unwrap(), &addresses(), "https", &more);
        let ctl = as_client(&Ctl::secure(&[etcd.client]));
        eventually("etcd serves over TLS", || {
            etcd.check_runs();
            let healthy = ctl.output(&["endpoint", "health"]).status.success();
            healthy.then_some(())
        });
        etcd
    }

    /// Starts a member with a directory that `etcdctl snapshot restore` makes of a snapshot.
    pub fn restored(snapshot: &Path) -> Etcd {
        let dir = tempfile::tempdir().unwrap();
        let addresses = addresses();
        let peer = format!("http://{}", addresses.1);
        let output = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(["snapshot", "restore"])
            .arg(snapshot)
            .arg("--data-dir")
            .arg(dir.path().join("data"))
            .args(["--initial-cluster", &format!("default={peer}")])
            .args(["--initial-advertise-peer-urls", &peer])
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
        let mut etcd = Etcd::spawn(dir, &addresses, "http", &[]);
        etcd.await_health();
        etcd
    }

    fn spawn(
        dir: TempDir,
        (client, peer): &(SocketAddr, SocketAddr),
        scheme: &str,
        more: &[&str],
    ) -> Etcd {
        let (client_url, peer_url) = (format!("{scheme}://{client}"), format!("http://{peer}"));
        let child = Command::new("etcd")
            .arg("--data-dir")
            .arg(dir.path().join("data"))
            .args(["--listen-client-urls", &client_url])
            .args(["--advertise-client-urls", &client_url])
            .args(["--listen-peer-urls", &peer_url])
            .args(["--initial-advertise-peer-urls", &peer_url])
            .args(["--initial-cluster", &format!("default={peer_url}")])
            .args(["--logger", "zap", "--log-level", "error"])
            .args(more)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("etcd is there after `cargo xtask setup`");
        Etcd {
            dir,
            child,
            client: *client,
            peer: *peer,
        }
    }

    fn await_health(&mut self) {
        eventually("etcd serves", || {
            self.check_runs();
            std::net::TcpStream::connect(self.client).ok()?;
            let (status, said) = http(self.client, "GET", "/health", "");
            (status == 200 && said.contains("true")).then_some(())
        });
    }

    fn check_runs(&mut self) {
        if let Some(status) = self.child.try_wait().unwrap() {
            let mut said = String::new();
            let errors = self.child.stderr.as_mut().unwrap();
            errors.read_to_string(&mut said).unwrap();
            panic!("etcd ended: {status}: {said}");
        }
    }

    pub fn ctl(&self) -> Ctl {
        Ctl::new(&[self.client])
    }

    /// A place for files beside its data.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        // Fails when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
