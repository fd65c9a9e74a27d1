//! Members as processes, and etcdctl.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

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

/// A member: its directory and, while it runs, its process. Killed when dropped.
pub struct Member {
    pub name: String,
    dir: TempDir,
    args: Vec<String>,
    child: Option<Child>,
    pub client: SocketAddr,
    pub peer: SocketAddr,
    pub admin: SocketAddr,
}

impl Member {
    /// Starts a member with these arguments besides its name, directory and ports.
    pub fn start(name: &str, listen: &str, peer_listen: &str, args: &[&str]) -> Member {
        let none = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut all = vec!["--chainfire-name", name, "--chainfire-listen", listen];
        all.extend(["--chainfire-peer-listen", peer_listen]);
        all.extend(args);
        let mut member = Member {
            name: name.into(),
            dir: tempfile::tempdir().unwrap(),
            args: all.into_iter().map(str::to_owned).collect(),
            child: None,
            client: none,
            peer: none,
            admin: none,
        };
        member.restart();
        member
    }

    /// A member by itself, on ports that the kernel chose.
    pub fn alone() -> Member {
        Member::start("default", "127.0.0.1:0", "127.0.0.1:0", &[])
    }

    /// Starts the process; it has to have ended before.
    pub fn restart(&mut self) {
        self.restart_with(&[]);
    }

    /// Starts the process with some more arguments.
    pub fn restart_with(&mut self, more: &[&str]) {
        let mut child = Command::new(server())
            .args([
                "node",
                "--role",
                "chainfire",
                "--admin-listen",
                "127.0.0.1:0",
            ])
            .arg("--data-dir")
            .arg(self.data())
            .args(&self.args)
            .args(more)
            .env("RUST_LOG", "warn")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while !line.starts_with("listening ") {
            line.clear();
            assert!(
                lines.read_line(&mut line).unwrap() > 0,
                "{}: {:?}",
                self.name,
                child.wait()
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

    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// SIGTERM, and a clean end.
    pub fn drain(&mut self) {
        let mut child = self.child.take().unwrap();
        let pid = child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-TERM", &pid])
                .status()
                .unwrap()
                .success()
        );
        let status = child.wait().unwrap();
        assert!(status.success(), "{status}");
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
    }
}

/// A request of HTTP/1.1 at an address: status and body.
pub fn http(addr: SocketAddr, method: &str, path: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
}

/// etcdctl with its endpoints and global options.
#[derive(Clone)]
pub struct Ctl {
    args: Vec<String>,
}

impl Ctl {
    pub fn new(endpoints: &[SocketAddr]) -> Ctl {
        let endpoints: Vec<String> = endpoints.iter().map(ToString::to_string).collect();
        let args = vec![format!("--endpoints={}", endpoints.join(","))];
        Ctl { args }
    }

    /// Over TLS; the certificates are options.
    pub fn secure(endpoints: &[SocketAddr]) -> Ctl {
        let urls: Vec<String> = endpoints.iter().map(|at| format!("https://{at}")).collect();
        let args = vec![format!("--endpoints={}", urls.join(","))];
        Ctl { args }
    }

    /// With one more global option.
    pub fn with(&self, option: &str) -> Ctl {
        let mut args = self.args.clone();
        args.push(option.to_owned());
        Ctl { args }
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("etcdctl");
        command
            .env("ETCDCTL_API", "3")
            .args(&self.args)
            .args(args)
            .stdin(Stdio::null());
        command
    }

    pub fn output(&self, args: &[&str]) -> Output {
        self.command(args)
            .output()
            .expect("etcdctl is there after `cargo xtask setup`")
    }

    /// Runs it; what it printed.
    #[track_caller]
    pub fn run(&self, args: &[&str]) -> String {
        let output = self.output(args);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "etcdctl {args:?}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs it where it must fail; what it complained of.
    #[track_caller]
    pub fn fails(&self, args: &[&str]) -> String {
        let output = self.output(args);
        assert!(!output.status.success(), "etcdctl {args:?} did not fail");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// Runs it with JSON as its output.
    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Value {
        let mut all = vec!["-w", "json"];
        all.extend(args);
        let said = self.run(&all);
        serde_json::from_str(&said).unwrap_or_else(|error| panic!("{args:?}: {error}: {said}"))
    }

    /// Runs it with a text as its input.
    #[track_caller]
    pub fn feed(&self, args: &[&str], input: &str) -> String {
        let mut command = self.command(args);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(input.as_bytes())
            .unwrap();
        let output = child.wait_with_output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "etcdctl {args:?}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Starts it and leaves it running, as a watch or a lock.
    pub fn running(&self, args: &[&str]) -> Running {
        self.running_with(args, "")
    }

    /// The same, with a text as its input, which does not end there.
    pub fn running_with(&self, args: &[&str], input: &str) -> Running {
        let mut command = self.command(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(input.as_bytes()).unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Running {
            child,
            lines,
            _stdin: stdin,
        }
    }
}

/// An etcdctl that runs. Killed when dropped.
pub struct Running {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
    _stdin: std::process::ChildStdin,
}

impl Running {
    /// The next line that it prints.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        let count = self.lines.read_line(&mut line).unwrap();
        assert!(count > 0, "it ended: {:?}", self.child.wait());
        line.trim_end().to_owned()
    }

    /// SIGINT, as from a keyboard, and its end.
    pub fn interrupt(mut self) {
        let pid = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-INT", &pid])
                .status()
                .unwrap()
                .success()
        );
        self.child.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
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
