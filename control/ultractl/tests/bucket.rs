//! `ultractl bucket` before a real node, beside an S3 client that signs its requests.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use s3_wire::sigv4::{RequestToSign, Signer, sign_request};
use serde_json::Value;
use tempfile::TempDir;

const DEADLINE: Duration = Duration::from_mins(1);
const CONFIG: &str = r#"
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
struct Node {
    dir: TempDir,
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
    fn start() -> Node {
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

    /// Runs `ultractl bucket` as ann; what it printed, or complained of.
    fn ann(&self, args: &[&str]) -> Result<String, String> {
        self.run(&["--token", "a-token-of-anns-own"], args)
    }

    /// The same as root, whose token is in its file.
    fn root(&self, args: &[&str]) -> Result<String, String> {
        let file = self.dir.path().join("data/root-token");
        self.run(&["--token-file", file.to_str().unwrap()], args)
    }

    fn run(&self, token: &[&str], args: &[&str]) -> Result<String, String> {
        let output = Command::new(env!("CARGO_BIN_EXE_ultractl"))
            .args(["bucket", "--endpoint", &format!("http://{}", self.admin)])
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
    fn s3(&self, method: &str, path: &str) -> (String, String) {
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

#[test]
fn buckets_of_the_command_line_and_of_s3_are_the_same() {
    let node = Node::start();
    let made = node.ann(&["create", "photos"]).unwrap();
    assert!(
        made.starts_with("made bucket photos of ann-id, made 2"),
        "{made}"
    );
    assert_eq!(node.s3("PUT", "/films").0, "200");
    let (status, listed) = node.s3("GET", "/");
    assert_eq!(status, "200");
    assert!(listed.contains("<Name>photos</Name>"), "{listed}");

    let listed = node.ann(&["list"]).unwrap();
    let rows: Vec<&str> = listed.lines().collect();
    assert!(rows[0].starts_with("NAME    OWNER   CREATED"), "{listed}");
    assert!(rows[1].starts_with("films   ann-id  2"), "{listed}");
    assert!(rows[2].starts_with("photos  ann-id  2"), "{listed}");
    let json = |args: &[&str]| -> Value {
        let said = node.ann(&[args, &["-o", "json"]].concat()).unwrap();
        serde_json::from_str(&said).unwrap()
    };
    assert_eq!(json(&["list"])[0]["name"], "films");
    let found = json(&["get", "films"]);
    assert_eq!(
        (&found["name"], &found["owner"]),
        (&"films".into(), &"ann-id".into())
    );
    assert!(found["created_unix_ms"].is_i64());
    // Root owns none of them, and sees them when it asks for all.
    assert_eq!(node.root(&["list"]).unwrap(), "NAME  OWNER  CREATED\n");
    assert_eq!(node.root(&["list", "--all"]).unwrap(), listed);
    assert_eq!(node.root(&["list", "--owner", "ann-id"]).unwrap(), listed);

    assert_eq!(node.s3("PUT", "/films/one").0, "200");
    let refused = node.ann(&["delete", "films"]).unwrap_err();
    for part in [
        "holds objects",
        "bucket films",
        "help: delete its objects",
        "note: the request was ",
    ] {
        assert!(refused.contains(part), "{part} in {refused}");
    }
    assert_eq!(node.s3("DELETE", "/films/one").0, "204");
    assert_eq!(json(&["delete", "films"])["removed"], "films");
    assert_eq!(node.s3("HEAD", "/films").0, "404");
}

#[test]
fn what_is_wrong_is_said_with_what_to_do() {
    let node = Node::start();
    let wrong = node.ann(&["create", "My Photos"]).unwrap_err();
    for part in [
        "bucket \"My Photos\"",
        "3 to 63",
        "help: choose another name",
    ] {
        assert!(wrong.contains(part), "{part} in {wrong}");
    }
    let none = node.ann(&["get", "nothing"]).unwrap_err();
    assert!(none.contains("does not exist; bucket nothing"), "{none}");
    let stranger = node
        .run(&["--token", "a-token-of-nobody"], &["list"])
        .unwrap_err();
    for part in ["the token is not known", "help: send"] {
        assert!(stranger.contains(part), "{part} in {stranger}");
    }
    let without = node.run(&[], &["list"]).unwrap_err();
    assert!(without.contains("root-token"), "{without}");
    let nowhere = Command::new(env!("CARGO_BIN_EXE_ultractl"))
        .args([
            "bucket",
            "--endpoint",
            "http://127.0.0.1:1",
            "--token",
            "t",
            "list",
        ])
        .output()
        .unwrap();
    let said = String::from_utf8(nowhere.stderr).unwrap();
    assert!(
        said.contains("cannot connect to http://127.0.0.1:1"),
        "{said}"
    );
    let denied = node.ann(&["list", "--all"]).unwrap_err();
    for part in ["everybody's buckets", "help: list your own"] {
        assert!(denied.contains(part), "{part} in {denied}");
    }
}
