//! Starting nodes, and a signed HTTP client.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use s3_wire::chunked::{Encoder, Framing};
use s3_wire::sigv4::{RequestToSign, SignedRequest, Signer, presign, sign_request};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

pub const ACCESS_KEY: &str = "TESTACCESSKEY";
pub const SECRET_KEY: &str = "testsecretkey/with+signs";
const DEADLINE: Duration = Duration::from_mins(1);

/// A running node; killed when dropped.
pub struct Node {
    child: Child,
    pub s3: SocketAddr,
    pub admin: SocketAddr,
    /// What it printed before it was listening.
    pub printed: String,
}

/// How a test node is started.
pub fn command(data: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ultracloud"));
    command
        .args([
            "node",
            "--s3-listen",
            "127.0.0.1:0",
            "--admin-listen",
            "127.0.0.1:0",
            "--data-dir",
        ])
        .arg(data)
        .env("ULTRACLOUD_ACCESS_KEY", ACCESS_KEY)
        .env("ULTRACLOUD_SECRET_KEY", SECRET_KEY)
        .env("RUST_LOG", "warn");
    command
}

impl Node {
    pub fn start(data: &Path) -> Node {
        Node::from_command(&mut command(data))
    }

    pub fn from_command(command: &mut Command) -> Node {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut printed = String::new();
        let listening = loop {
            let from = printed.len();
            let count = lines.read_line(&mut printed).unwrap();
            assert!(
                count > 0,
                "the node ended before it listened: {:?}",
                child.wait()
            );
            if let Some(line) = printed[from..].strip_prefix("listening ") {
                break line.trim().to_owned();
            }
        };
        // Its stdout stays open, so that a later line does not break it.
        child.stdout = Some(lines.into_inner());
        let address = |name: &str| {
            let field = listening
                .split(' ')
                .find_map(|f| f.strip_prefix(name))
                .unwrap();
            field.parse().unwrap()
        };
        Node {
            s3: address("s3="),
            admin: address("admin="),
            child,
            printed,
        }
    }

    pub fn client(&self) -> Client {
        Client::new(self.s3, ACCESS_KEY, SECRET_KEY)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args([name, &self.pid().to_string()])
            .status()
            .unwrap();
        assert!(status.success());
    }

    /// Waits for its end by itself.
    pub fn wait(mut self) -> std::process::ExitStatus {
        self.child.wait().unwrap()
    }

    /// SIGTERM, and a clean end.
    pub fn drain(self) {
        self.signal("-TERM");
        let status = self.wait();
        assert!(status.success(), "{status}");
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Fails when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A node on a directory of its own.
pub fn fresh() -> (TempDir, Node) {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(&data_of(&dir));
    (dir, node)
}

pub fn data_of(dir: &TempDir) -> PathBuf {
    dir.path().join("data")
}

/// A GET of the admin endpoint: status and body.
pub fn admin(node: &Node, path: &str) -> (u16, String) {
    let mut stream = connect(node.admin);
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let answer = read_response(&mut stream, false).unwrap();
    (answer.status, answer.text())
}

pub fn connect(addr: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(n, _)| n == name);
        found.map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    /// The texts of an XML element, in order.
    pub fn all(&self, element: &str) -> Vec<String> {
        let text = self.text();
        let (open, close) = (format!("<{element}>"), format!("</{element}>"));
        text.split(&open)
            .skip(1)
            .map(|rest| rest.split(&close).next().unwrap().to_owned())
            .collect()
    }

    pub fn one(&self, element: &str) -> String {
        let mut all = self.all(element);
        assert_eq!(all.len(), 1, "{element} in {}", self.text());
        all.remove(0)
    }

    #[track_caller]
    pub fn expect(self, status: u16) -> Answer {
        assert_eq!(
            self.status,
            status,
            "{:?} {}",
            self.headers,
            String::from_utf8_lossy(&self.body)
        );
        self
    }

    /// An S3 error with its code.
    #[track_caller]
    pub fn refused(self, status: u16, code: &str) -> Answer {
        let answer = self.expect(status);
        assert_eq!(answer.one("Code"), code);
        assert_eq!(
            answer.header("x-amz-request-id"),
            Some(&*answer.one("RequestId"))
        );
        answer
    }
}

/// Reads one answer; `None` at a clean end of the connection.
pub fn read_response(stream: &mut TcpStream, is_head: bool) -> Option<Answer> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).unwrap() == 0 {
            assert!(
                head.is_empty(),
                "cut off: {}",
                String::from_utf8_lossy(&head)
            );
            return None;
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let mut lines = head.trim_end().split("\r\n");
    let status: u16 = lines
        .next()
        .unwrap()
        .split(' ')
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    let headers: Vec<(String, String)> = lines
        .map(|line| line.split_once(": ").unwrap())
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let length = headers.iter().find(|(name, _)| name == "content-length");
    let length = length.map_or(0, |(_, value)| value.parse().unwrap());
    let bodiless = is_head || status == 100 || status == 204 || status == 304;
    let mut body = vec![0; if bodiless { 0 } else { length }];
    stream.read_exact(&mut body).unwrap();
    Some(Answer {
        status,
        headers,
        body,
    })
}

/// How a body is signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload {
    Unsigned,
    Sha256,
    SignedChunks,
    SignedChunksTrailer,
    UnsignedTrailer,
}

/// A request in the making.
pub struct Request<'a> {
    pub method: &'a str,
    pub path: &'a str,
    pub query: &'a str,
    pub headers: Vec<(String, String)>,
    pub body: &'a [u8],
    pub payload: Payload,
    pub trailers: Vec<(String, String)>,
}

pub fn request<'a>(method: &'a str, path: &'a str) -> Request<'a> {
    Request {
        method,
        path,
        query: "",
        headers: Vec::new(),
        body: b"",
        payload: Payload::Unsigned,
        trailers: Vec::new(),
    }
}

impl<'a> Request<'a> {
    pub fn query(self, query: &'a str) -> Self {
        Request { query, ..self }
    }

    pub fn body(self, body: &'a [u8]) -> Self {
        Request { body, ..self }
    }

    pub fn payload(self, payload: Payload) -> Self {
        Request { payload, ..self }
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub fn trailer(mut self, name: &str, value: &str) -> Self {
        self.trailers.push((name.into(), value.into()));
        self.header("x-amz-trailer", name)
    }
}

/// Keeps one connection open and signs what it sends.
pub struct Client {
    addr: SocketAddr,
    access_key: String,
    secret: String,
    stream: Option<TcpStream>,
}

const CHUNK: usize = 64 << 10;

impl Client {
    pub fn new(addr: SocketAddr, access_key: &str, secret: &str) -> Client {
        Client {
            addr,
            access_key: access_key.into(),
            secret: secret.into(),
            stream: None,
        }
    }

    fn signer(&self) -> Signer<'_> {
        Signer {
            access_key: &self.access_key,
            secret: &self.secret,
            session_token: None,
            region: "us-east-1",
            unix_s: unix_s(),
        }
    }

    /// The request's bytes: head and body.
    pub fn encode(&self, request: &Request<'_>) -> Vec<u8> {
        let host = self.addr.to_string();
        let mut headers = request.headers.clone();
        headers.push(("host".into(), host));
        let decoded = request.body.len().to_string();
        if !matches!(request.payload, Payload::Unsigned | Payload::Sha256) {
            headers.push(("x-amz-decoded-content-length".into(), decoded));
            match headers.iter_mut().find(|(n, _)| n == "content-encoding") {
                Some((_, value)) => value.insert_str(0, "aws-chunked,"),
                None => headers.push(("content-encoding".into(), "aws-chunked".into())),
            }
        }
        let payload = match request.payload {
            Payload::Unsigned => "UNSIGNED-PAYLOAD".to_owned(),
            Payload::Sha256 => hex::encode(Sha256::digest(request.body)),
            Payload::SignedChunks => "STREAMING-AWS4-HMAC-SHA256-PAYLOAD".to_owned(),
            Payload::SignedChunksTrailer => "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER".to_owned(),
            Payload::UnsignedTrailer => "STREAMING-UNSIGNED-PAYLOAD-TRAILER".to_owned(),
        };
        let borrowed: Vec<(&str, &str)> = headers.iter().map(|(n, v)| (&**n, &**v)).collect();
        let to_sign = RequestToSign {
            method: request.method,
            path: request.path,
            query: request.query,
            headers: &borrowed,
        };
        let signed = sign_request(&self.signer(), &to_sign, &payload).unwrap();
        let body = encode_body(request, &signed);
        let mark = if request.query.is_empty() { "" } else { "?" };
        let mut out = Vec::new();
        write!(
            out,
            "{} {}{mark}{} HTTP/1.1\r\n",
            request.method, request.path, request.query
        )
        .unwrap();
        for (name, value) in &headers {
            write!(out, "{name}: {value}\r\n").unwrap();
        }
        let SignedRequest {
            authorization,
            amz_date,
            ..
        } = &signed;
        write!(
            out,
            "x-amz-date: {amz_date}\r\nx-amz-content-sha256: {payload}\r\n"
        )
        .unwrap();
        write!(out, "Authorization: {authorization}\r\n").unwrap();
        if !body.is_empty() || matches!(request.method, "PUT" | "POST") {
            write!(out, "Content-Length: {}\r\n", body.len()).unwrap();
        }
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(&body);
        out
    }

    /// Sends and waits for the answer, on the open connection when there is one.
    pub fn send(&mut self, request: &Request<'_>) -> Answer {
        let bytes = self.encode(request);
        let mut stream = self.stream.take().unwrap_or_else(|| connect(self.addr));
        stream.write_all(&bytes).unwrap();
        let answer = read_response(&mut stream, request.method == "HEAD").unwrap();
        if answer.header("connection") != Some("close") {
            self.stream = Some(stream);
        }
        answer
    }

    /// As [`Client::send`], but a connection that breaks is `None`.
    pub fn try_put(&self, stream: &mut TcpStream, path: &str, body: &[u8]) -> Option<u16> {
        let bytes = self.encode(&request("PUT", path).body(body));
        stream.write_all(&bytes).ok()?;
        let mut answer = [0; 12];
        let mut filled = 0;
        while filled < answer.len() {
            match stream.read(&mut answer[filled..]) {
                Ok(count) if count > 0 => filled += count,
                _ => return None,
            }
        }
        let mut tail = answer.to_vec();
        let mut byte = [0];
        while !tail.ends_with(b"\r\n\r\n") {
            if stream.read(&mut byte).ok()? == 0 {
                return None;
            }
            tail.push(byte[0]);
        }
        std::str::from_utf8(&answer[9..]).ok()?.parse().ok()
    }

    /// A presigned path and query.
    pub fn presigned(&self, method: &str, path: &str) -> String {
        let host = self.addr.to_string();
        let to_sign = RequestToSign {
            method,
            path,
            query: "",
            headers: &[("host", &host)],
        };
        format!("{path}?{}", presign(&self.signer(), &to_sign, 60).unwrap())
    }

    pub fn get(&mut self, path: &str) -> Answer {
        self.send(&request("GET", path))
    }

    pub fn put(&mut self, path: &str, body: &[u8]) -> Answer {
        self.send(&request("PUT", path).body(body))
    }

    pub fn head(&mut self, path: &str) -> Answer {
        self.send(&request("HEAD", path))
    }

    pub fn delete(&mut self, path: &str) -> Answer {
        self.send(&request("DELETE", path))
    }
}

fn encode_body(request: &Request<'_>, signed: &SignedRequest) -> Vec<u8> {
    let framing = match request.payload {
        Payload::Unsigned | Payload::Sha256 => return request.body.to_vec(),
        Payload::SignedChunks => Framing::Signed(signed.seed.clone()),
        Payload::SignedChunksTrailer => Framing::SignedTrailer(signed.seed.clone()),
        Payload::UnsignedTrailer => Framing::Unsigned,
    };
    let (mut encoder, mut out) = (Encoder::new(framing), Vec::new());
    for chunk in request.body.chunks(CHUNK) {
        encoder.chunk(&mut out, chunk);
    }
    let trailers: Vec<(&str, &str)> = request.trailers.iter().map(|(n, v)| (&**n, &**v)).collect();
    encoder.finish(&mut out, &trailers);
    out
}

pub fn unix_s() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs() as i64
}

/// Bytes that differ in every block, from a seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut rng = engine::Rng::new(seed);
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        out.extend_from_slice(&rng.next_u64().to_le_bytes());
    }
    out.truncate(len);
    out
}
