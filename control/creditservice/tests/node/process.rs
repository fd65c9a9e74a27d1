//! A ChainFire node as a process.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use control_kit::store::Range;
use tempfile::TempDir;

/// How long anything may take that a test waits for.
pub const DEADLINE: Duration = Duration::from_mins(1);

/// The server: named by the environment, or built beside this program.
fn server() -> PathBuf {
    let named = std::env::var_os("ULTRACLOUD_BIN").map(PathBuf::from);
    let server = named.unwrap_or_else(|| {
        let own = std::env::current_exe().unwrap();
        own.parent().unwrap().with_file_name("ultracloud")
    });
    assert!(
        server.is_file(),
        "build it first: cargo build -p ultracloud"
    );
    server
}

/// A node. Killed when dropped, and by the kernel when the thread that started it ends.
pub struct Node {
    dir: TempDir,
    child: Child,
    client: SocketAddr,
}

impl Node {
    pub fn start() -> Node {
        let dir = tempfile::tempdir().unwrap();
        let (child, client) = spawn(&dir, "127.0.0.1:0");
        Node { dir, child, client }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.client)
    }

    /// SIGKILL, and a start where clients look for it.
    pub fn kill_and_restart(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let (child, client) = spawn(&self.dir, &self.client.to_string());
        assert_eq!(client, self.client);
        self.child = child;
    }

    /// How much has been written; nothing while it does not answer.
    pub fn revision(&self) -> Option<i64> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let page = runtime.block_on(async {
            let store = super::store(&self.url());
            store.range(Range::key("none")).await
        });
        page.ok().map(|page| page.revision)
    }

    /// Waits until so much has been written.
    pub fn await_revision(&self, revision: i64) {
        let written = || self.revision().filter(|now| *now >= revision);
        super::eventually("so many writes", written);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Fails when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.dir.path().join("log"));
            eprintln!("the node said:\n{}", log.unwrap_or_default());
        }
    }
}

fn spawn(dir: &TempDir, listen: &str) -> (Child, SocketAddr) {
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("node.toml"), "").unwrap();
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(path("log"));
    let mut child = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "--"])
        .arg(server())
        .args(["node", "--role", "chainfire", "--config"])
        .arg(path("node.toml"))
        .args(["--admin-listen", "127.0.0.1:0", "--data-dir"])
        .arg(path("data"))
        .args(["--chainfire-listen", listen])
        .args(["--chainfire-peer-listen", "127.0.0.1:0"])
        .env("RUST_LOG", "warn")
        .stdout(Stdio::piped())
        .stderr(log.unwrap())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.starts_with("listening ") {
        line.clear();
        let read = lines.read_line(&mut line).unwrap();
        let log = || std::fs::read_to_string(path("log")).unwrap_or_default();
        assert!(read > 0, "{:?}: {}", child.wait(), log());
    }
    child.stdout = Some(lines.into_inner());
    let mut parts = line.trim().split(' ');
    let client = parts.find_map(|part| part.strip_prefix("chainfire="));
    (child, client.unwrap().parse().unwrap())
}
