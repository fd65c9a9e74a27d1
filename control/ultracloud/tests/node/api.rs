//! The node's own API as a REST client speaks it, on a node with two users.

use std::io::Write as _;
use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;

use crate::support::{Answer, Node, command, connect, data_of, read_response};

pub const ANN: &str = "a-token-of-anns-own";
pub const BOB: &str = "a-token-of-bobs-own";
const CONFIG: &str = r#"
[[lightningstor.user]]
id = "ann-id"
name = "ann"
access_key = "ANNKEY"
secret_key = "ann's secret"
token = "a-token-of-anns-own"
[[lightningstor.user]]
name = "bob"
access_key = "BOBKEY"
secret_key = "bob's secret"
token = "a-token-of-bobs-own"
"#;

/// A node with two users, and what else its config says.
pub fn start(more: &str) -> (TempDir, Node) {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("node.toml");
    std::fs::write(&config, format!("{more}{CONFIG}")).unwrap();
    let node = Node::from_command(command(&data_of(&dir)).arg("--config").arg(&config));
    (dir, node)
}

pub fn root_token(data: &Path) -> String {
    let token = std::fs::read_to_string(data.join("root-token")).unwrap();
    token.trim().to_owned()
}

/// A request of the REST API; `body` is JSON, or nothing.
pub fn rest(node: &Node, token: &str, method: &str, path: &str, body: &str) -> Answer {
    let mut stream = connect(node.admin);
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX-Request-Id: call-7\r\n\
         Authorization: Bearer {token}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    read_response(&mut stream, false).unwrap()
}

pub fn body(answer: &Answer) -> Value {
    serde_json::from_slice(&answer.body).unwrap()
}

/// What an error says: its status, its code, its object.
pub fn error(answer: &Answer) -> (u16, String, String) {
    let error = &body(answer)["error"];
    assert_eq!(error["request_id"], "call-7", "{error}");
    assert!(error["next"].is_string() || answer.status == 401, "{error}");
    let text = |field: &str| error[field].as_str().unwrap_or_default().to_owned();
    (answer.status, text("code"), text("object"))
}
