//! Members as processes, alone and in clusters, and etcdctl.

#![allow(
    dead_code,
    unused_imports,
    reason = "three of the test programs share it, and each uses a part"
)]

pub mod cluster;
pub mod ctl;

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

pub use self::ctl::{Ctl, ultractl};

/// How long anything may take that a test waits for.
pub const DEADLINE: Duration = Duration::from_mins(1);

/// The server: named by the environment, or built beside the command line.
fn server() -> PathBuf {
    let named = std::env::var_os("ULTRACLOUD_BIN").map(PathBuf::from);
    let server = named.unwrap_or_else(|| {
        PathBuf::from(env!("CARGO_BIN_EXE_ultractl")).with_file_name("ultracloud")
    });
    assert!(
        server.is_file(),
        "build it first: cargo build -p ultracloud"
    );
    server
}

/// What a member is started with.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// Its name.
    pub name: String,
    /// Where it serves clients; the admin endpoint has another port of the same host.
    pub listen: String,
    /// Where it serves other members.
    pub peer_listen: String,
    /// Arguments besides these.
    pub args: Vec<String>,
    /// The program that starts the server, with its arguments; empty to start it as it is.
    pub enter: Vec<String>,
    /// The text of its config file.
    pub config: String,
    /// Where it keeps everything; its own directory when none is named.
    pub data: Option<PathBuf>,
}

/// A member: its directory and, while it runs, its process. Killed when dropped, and by the kernel when
/// the thread that started it ends.
pub struct Member {
    pub name: String,
    dir: TempDir,
    setup: Setup,
    child: Option<Child>,
    pub client: SocketAddr,
    pub peer: SocketAddr,
    pub admin: SocketAddr,
}

impl Member {
    /// Starts a member with these arguments besides its name, directory and ports.
    pub fn start(name: &str, listen: &str, peer_listen: &str, args: &[&str]) -> Member {
        Member::of(Setup {
            name: name.into(),
            listen: listen.into(),
            peer_listen: peer_listen.into(),
            args: args.iter().copied().map(str::to_owned).collect(),
            ..Setup::default()
        })
    }

    /// A member by itself, on ports that the kernel chose.
    pub fn alone() -> Member {
        Member::start("default", "127.0.0.1:0", "127.0.0.1:0", &[])
    }

    /// Starts a member.
    pub fn of(setup: Setup) -> Member {
        let mut member = Member::stopped(setup);
        member.restart();
        member
    }

    /// A member that was not started yet.
    pub fn stopped(setup: Setup) -> Member {
        let none = SocketAddr::from(([0, 0, 0, 0], 0));
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("node.toml"), &setup.config).unwrap();
        Member {
            name: setup.name.clone(),
            dir,
            setup,
            child: None,
            client: none,
            peer: none,
            admin: none,
        }
    }

    /// Starts the process; it has to have ended before.
    pub fn restart(&mut self) {
        self.restart_with(&[]);
    }

    /// Starts the process with some more arguments.
    pub fn restart_with(&mut self, more: &[&str]) {
        let mut child = self.spawn(more);
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while !line.starts_with("listening ") {
            line.clear();
            assert!(
                lines.read_line(&mut line).unwrap() > 0,
                "{}: {:?}\n{}",
                self.name,
                child.wait(),
                self.log()
            );
        }
        child.stdout = Some(lines.into_inner());
        let address = |field: &str| {
            let found = line
                .trim()
                .split(' ')
                .find_map(|part| part.strip_prefix(field));
            found.unwrap().parse().unwrap()
        };
        self.client = address("chainfire=");
        self.peer = address("chainfire_peer=");
        self.admin = address("admin=");
        self.child = Some(child);
    }

    /// Starts the process where it must end by itself; what it complained of.
    pub fn refuses_to_start(&self) -> String {
        let mut child = self.spawn(&[]);
        let status = eventually("the process ends", || child.try_wait().unwrap());
        assert!(!status.success(), "{}: {status}", self.name);
        self.log()
    }

    fn spawn(&self, more: &[&str]) -> Child {
        let setup = &self.setup;
        let (host, _) = setup.listen.rsplit_once(':').unwrap();
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path());
        let mut enter = setup.enter.iter().map(String::as_str);
        let mut command = Command::new(enter.next().unwrap_or("setpriv"));
        command.args(enter);
        if !setup.enter.is_empty() {
            command.arg("setpriv");
        }
        command
            .args(["--pdeathsig", "KILL", "--"])
            .arg(server())
            .args(["node", "--role", "chainfire", "--config"])
            .arg(self.dir.path().join("node.toml"))
            .args(["--admin-listen", &format!("{host}:0"), "--data-dir"])
            .arg(self.data())
            .args(["--chainfire-name", &setup.name])
            .args(["--chainfire-listen", &setup.listen])
            .args(["--chainfire-peer-listen", &setup.peer_listen])
            .args(&setup.args)
            .args(more)
            .env("RUST_LOG", "warn")
            .stdout(Stdio::piped())
            .stderr(log.unwrap())
            .spawn()
            .unwrap()
    }

    pub fn data(&self) -> PathBuf {
        let own = || self.dir.path().join("data");
        self.setup.data.clone().unwrap_or_else(own)
    }

    /// A directory of the member that its process does not know.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    /// What its processes have said so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// Whether its process was started and not ended by the test.
    pub fn runs(&self) -> bool {
        self.child.is_some()
    }

    /// Its process, as the kernel knows it.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    pub fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// SIGTERM, and a clean end.
    pub fn drain(&mut self) {
        self.signal("TERM");
        let status = self.child.take().unwrap().wait().unwrap();
        assert!(status.success(), "{status}\n{}", self.log());
    }

    /// Sends a signal to its process.
    pub fn signal(&self, name: &str) {
        signal(self.pid(), name);
    }

    /// One number of what it tells Prometheus; none while it does not answer.
    pub fn metric(&self, name: &str) -> Option<i64> {
        let (_, text) = ask(self.admin, "GET", "/metrics", "").ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().parse().ok()
    }

    pub fn ctl(&self) -> Ctl {
        Ctl::new(&[self.client])
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Fails when it has ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("{} said:\n{}", self.name, self.log());
        }
    }
}

/// Sends a signal to a process.
pub fn signal(pid: u32, name: &str) {
    let sent = Command::new("kill")
        .args([&format!("-{name}"), &pid.to_string()])
        .status();
    assert!(sent.unwrap().success(), "SIG{name} to {pid}");
}

/// A request of HTTP/1.1 at an address: status and body.
pub fn http(addr: SocketAddr, method: &str, path: &str, body: &str) -> (u16, String) {
    ask(addr, method, path, body).unwrap()
}

fn ask(addr: SocketAddr, method: &str, path: &str, body: &str) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&addr, DEADLINE)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .ok_or(io::ErrorKind::UnexpectedEof)?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status = status.ok_or(io::ErrorKind::InvalidData)?;
    Ok((status, body.to_owned()))
}

/// Asks until there is an answer.
#[track_caller]
pub fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(start.elapsed() < DEADLINE, "never: {what}");
        std::thread::yield_now();
    }
}
