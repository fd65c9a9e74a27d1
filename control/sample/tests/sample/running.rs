//! ChainFire and the service as processes, and curl.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// The tenant's token, and the operator's.
pub const BLUE: &str = "blue-token";
pub const OPERATOR: &str = "operator-token";

/// A process that is killed when it is dropped.
pub struct Process(Child);

impl Process {
    /// Ends it at once.
    pub fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// Asks it to end, and gives how it did.
    pub fn terminate(&mut self) -> bool {
        let pid = self.0.id().to_string();
        let asked = Command::new("kill").args(["-TERM", &pid]).status();
        assert!(asked.unwrap().success());
        self.0.wait().unwrap().success()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a program that says on stdout where it serves; gives the first line that begins so.
fn start(command: &mut Command, log: &Path, begins: &str) -> (Process, String) {
    let log_file = File::options().create(true).append(true).open(log).unwrap();
    let child = command.stdout(Stdio::piped()).stderr(log_file).spawn();
    let mut process = Process(child.unwrap());
    let mut lines = BufReader::new(process.0.stdout.take().unwrap());
    let mut line = String::new();
    while !line.starts_with(begins) {
        line.clear();
        let read = lines.read_line(&mut line).unwrap();
        let said = || std::fs::read_to_string(log).unwrap_or_default();
        assert!(read > 0, "{command:?} ended: {}", said());
    }
    process.0.stdout = Some(lines.into_inner());
    (process, line.trim_end().to_owned())
}

fn server() -> PathBuf {
    let named = std::env::var_os("ULTRACLOUD_BIN").map(PathBuf::from);
    let service = Path::new(env!("CARGO_BIN_EXE_sample-service"));
    let server = named.unwrap_or_else(|| service.with_file_name("ultracloud"));
    assert!(
        server.is_file(),
        "build it first: cargo build -p ultracloud"
    );
    server
}

/// A directory with a ChainFire in it, and the services' files.
pub struct Place {
    dir: TempDir,
    _store: Process,
    pub store_url: String,
}

impl Place {
    pub fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let mut node = Command::new(server());
        node.args(["node", "--role", "chainfire", "--data-dir"])
            .arg(dir.path().join("node"))
            .args(["--chainfire-listen", "127.0.0.1:0"])
            .args(["--chainfire-peer-listen", "127.0.0.1:0"])
            .args(["--admin-listen", "127.0.0.1:0"]);
        let (store, line) = start(&mut node, &dir.path().join("node.log"), "listening ");
        let fields = line
            .split(' ')
            .find_map(|part| part.strip_prefix("chainfire="));
        let store_url = format!("http://{}", fields.unwrap());
        std::fs::create_dir(dir.path().join("files")).unwrap();
        Place {
            dir,
            _store: store,
            store_url,
        }
    }

    /// Where widgets' files are.
    pub fn files(&self) -> PathBuf {
        self.dir.path().join("files")
    }

    /// Starts the service; it serves once its operations can begin.
    pub fn service(&self) -> Service {
        self.service_at("127.0.0.1:0")
    }

    /// Starts it at an address.
    pub fn service_at(&self, addr: &str) -> Service {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sample-service"));
        command
            .args(["serve", "--lease-s", "2", "--limit", "1000000"])
            .args(["--listen", addr, "--store", &self.store_url])
            .arg("--dir")
            .arg(self.files());
        let log = self.dir.path().join("service.log");
        let (process, line) = start(&mut command, &log, "serving on ");
        let addr = line.trim_start_matches("serving on ").to_owned();
        let service = Service { process, addr };
        eventually("the service is ready", || {
            let answer = service.curl(BLUE, &["/readyz"]);
            (answer.status == 200).then_some(())
        });
        service
    }
}

/// The service.
pub struct Service {
    pub process: Process,
    pub addr: String,
}

/// What curl was answered.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: Value,
    pub text: String,
}

impl Service {
    /// Runs curl on a path, with more arguments before it.
    pub fn curl(&self, token: &str, arguments: &[&str]) -> Answer {
        let (path, options) = arguments.split_last().unwrap();
        let output = Command::new("curl")
            .args(["-sS", "--max-time", "60", "-w", "\n%{http_code}"])
            .args(["-H", &format!("authorization: Bearer {token}")])
            .args(options)
            .arg(format!("http://{}{path}", self.addr))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (text, status) = text.rsplit_once('\n').unwrap_or(("", "0"));
        Answer {
            status: status.parse().unwrap_or(0),
            body: serde_json::from_str(text).unwrap_or_default(),
            text: text.to_owned(),
        }
    }

    /// Sends JSON.
    pub fn post(&self, token: &str, path: &str, body: &str, options: &[&str]) -> Answer {
        let mut arguments = vec!["-H", "content-type: application/json", "-d", body];
        arguments.extend(options);
        arguments.push(path);
        self.curl(token, &arguments)
    }

    /// Waits until an operation has ended or failed.
    pub fn settled(&self, operation: &str) -> Value {
        let path = format!("/v1/operations/{operation}/wait?until_settled=true");
        eventually("the operation has ended", || {
            let answer = self.curl(BLUE, &[&path]);
            let state = answer.body["state"].as_str().unwrap_or_default().to_owned();
            let open = ["", "running", "undoing"].contains(&state.as_str());
            (!open).then_some(answer.body)
        })
    }
}

/// Asks until there is an answer; each time asking waits for itself.
pub fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let started = std::time::Instant::now();
    while started.elapsed().as_secs() < 60 {
        if let Some(answer) = ask() {
            return answer;
        }
        std::thread::yield_now();
    }
    panic!("not within a minute: {what}");
}
