//! A node with a user, and the command line that asks it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use s3_wire::sigv4::{RequestToSign, Signer, sign_request};
use tempfile::TempDir;

const DEADLINE: Duration = Duration::from_mins(1);
const CONFIG: &str = r#"
roles = ["lightningstor", "coronafs"]
[[lightningstor.user]]
id = "ann-id"
name = "ann"
access_key = "ANNKEY"
secret_key = "ann's secret"
token = "a-token-of-anns-own"
"#;

/// The server: named by the environment, or built beside the command line.
fn server() -> PathBuf {
    let named = std::env::var_os("ULTRACLOUD_BIN").map(PathBuf::from);
    let beside = || PathBuf::from(env!("CARGO_BIN_EXE_ultractl")).with_file_name("ultracloud");
    let server = named.unwrap_or_else(beside);
    assert!(
        server.is_file(),
        "build it first: cargo build -p ultracloud"
    );
    server
}

/// A node with one user; killed when dropped.
pub struct Node {
    pub dir: TempDir,
    child: Child,
    s3: SocketAddr,
    admin: SocketAddr,
}

impl Drop for Node {
    fn drop(&mut self) {
        // Fails when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Node {
    pub fn start() -> Node {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("node.toml");
        std::fs::write(&config, CONFIG).unwrap();
        let mut child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(server())
            .args(["node", "--s3-listen", "127.0.0.1:0"])
            .args(["--admin-listen", "127.0.0.1:0", "--data-dir"])
            .arg(dir.path().join("data"))
            .arg("--config")
            .arg(config)
            .env("RUST_LOG", "warn")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while !line.starts_with("listening ") {
            line.clear();
            let count = lines.read_line(&mut line).unwrap();
            assert!(count > 0, "the node ended: {:?}", child.wait());
        }
        child.stdout = Some(lines.into_inner());
        let address = |field: &str| {
            let mut parts = line.trim().split(' ');
            let found = parts.find_map(|part| part.strip_prefix(field));
            found.unwrap().parse().unwrap()
        };
        Node {
            s3: address("s3="),
            admin: address("admin="),
            dir,
            child,
        }
    }

    /// Runs `ultractl SERVICE` as ann; what it printed, or complained of.
    pub fn ann(&self, service: &str, args: &[&str]) -> Result<String, String> {
        self.run(service, &["--token", "a-token-of-anns-own"], args)
    }

    /// The same as root, whose token is in its file.
    pub fn root(&self, service: &str, args: &[&str]) -> Result<String, String> {
        let file = self.dir.path().join("data/root-token");
        self.run(service, &["--token-file", file.to_str().unwrap()], args)
    }

    pub fn run(&self, service: &str, token: &[&str], args: &[&str]) -> Result<String, String> {
        let output = Command::new(env!("CARGO_BIN_EXE_ultractl"))
            .args([service, "--endpoint", &format!("http://{}", self.admin)])
            .args(token)
            .args(args)
            .output()
            .unwrap();
        if output.status.success() {
            return Ok(String::from_utf8(output.stdout).unwrap());
        }
        Err(String::from_utf8(output.stderr).unwrap())
    }

    /// Status and body of an S3 request of ann's.
    pub fn s3(&self, method: &str, path: &str) -> (String, String) {
        let host = self.s3.to_string();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let signer = Signer {
            access_key: "ANNKEY",
            secret: "ann's secret",
            session_token: None,
            region: "us-east-1",
            unix_s: now.as_secs() as i64,
        };
        let request = RequestToSign {
            method,
            path,
            query: "",
            headers: &[("host", &host)],
        };
        let signed = sign_request(&signer, &request, "UNSIGNED-PAYLOAD").unwrap();
        let mut stream = TcpStream::connect(self.s3).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nx-amz-date: {}\r\n\
             x-amz-content-sha256: UNSIGNED-PAYLOAD\r\nAuthorization: {}\r\nContent-Length: 0\r\n\r\n",
            signed.amz_date, signed.authorization
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap();
        (status.to_owned(), body.to_owned())
    }
}
