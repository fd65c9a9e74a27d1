//! A client's end of HTTP: signed requests over one kept connection, with patience.
//!
//! What matters is the line between a request that was surely never seen by the server (there was no
//! connection) and one that may have been.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use engine::net::{Addr, TcpStream};
use s3_wire::sigv4::{RequestToSign, Signer, sign_request};

use super::history::History;

pub const ACCESS_KEY: &str = "KEY";
pub const SECRET_KEY: &str = "secret";
const PAYLOAD: &str = "UNSIGNED-PAYLOAD";
/// How long a server may take to answer a connection request.
const CONNECT_PATIENCE: Duration = Duration::from_millis(3);
const RECEIVE_BYTES: usize = 64 << 10;

/// A request for the run's bucket.
#[derive(Clone, Default)]
pub struct Request {
    pub method: &'static str,
    pub path: String,
    pub query: String,
    pub headers: Vec<(&'static str, String)>,
    pub body: Rc<[u8]>,
}

#[derive(Debug)]
pub struct Response {
    pub status: u16,
    head: String,
    pub body: Vec<u8>,
}

/// What came of a request.
#[derive(Debug)]
pub enum Outcome {
    /// The server has never seen it.
    NotSent,
    /// It went to the server, and nothing is known.
    Silent,
    Answered(Response),
}

/// A request between two moments.
pub struct Exchange {
    /// The server's life that was asked, at the latest.
    pub life: usize,
    pub began: u64,
    pub ended: u64,
    pub outcome: Outcome,
}

impl Response {
    /// A header's value; names are compared without case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.split("\r\n").find_map(|line| {
            let (found, value) = line.split_once(": ")?;
            found.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("an answer in XML is text")
    }

    /// The code of an error's answer; empty when there is none.
    pub fn code(&self) -> &str {
        let text = std::str::from_utf8(&self.body).unwrap_or_default();
        element(text, "Code").unwrap_or_default()
    }
}

/// The text of the first element of this name.
pub fn element<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    elements(text, name).next()
}

/// The texts of all elements of this name, which do not lie in each other.
pub fn elements<'t>(text: &'t str, name: &str) -> impl Iterator<Item = &'t str> {
    let (start, end) = (format!("<{name}>"), format!("</{name}>"));
    let mut rest = text;
    std::iter::from_fn(move || {
        let (_, behind) = rest.split_once(&start)?;
        let (inside, behind) = behind.split_once(&end)?;
        rest = behind;
        Some(inside)
    })
}

/// A client's connection to the node.
pub struct Connection {
    server: SocketAddr,
    history: Rc<RefCell<History>>,
    stream: Option<TcpStream>,
}

impl Connection {
    pub fn new(server: SocketAddr, history: Rc<RefCell<History>>) -> Connection {
        Connection {
            server,
            history,
            stream: None,
        }
    }

    /// Sends a request and waits for its answer. A connection that did not answer in time is closed.
    pub async fn ask(&mut self, request: &Request, patience: Duration) -> Exchange {
        let stream = match self.stream.take() {
            Some(stream) => Some(stream),
            None => connect(self.server).await,
        };
        // The life first: a request may reach an older one than this, never a newer one.
        let (life, began) = {
            let mut history = self.history.borrow_mut();
            (history.life(), history.tick())
        };
        let outcome = match stream {
            None => Outcome::NotSent,
            Some(stream) => {
                let answer = exchange(&stream, encode(self.server, request), request.method);
                match engine::timeout(patience, answer).await.flatten() {
                    None => Outcome::Silent,
                    Some(response) => {
                        let closes = response.header("Connection") == Some("close");
                        self.stream = (!closes).then_some(stream);
                        Outcome::Answered(response)
                    }
                }
            }
        };
        let ended = self.history.borrow_mut().tick();
        Exchange {
            life,
            began,
            ended,
            outcome,
        }
    }
}

async fn connect(server: SocketAddr) -> Option<TcpStream> {
    let server = Addr::Inet(server);
    let connected = engine::timeout(CONNECT_PATIENCE, TcpStream::connect(&server)).await;
    connected?.ok()
}

fn encode(server: SocketAddr, request: &Request) -> Vec<u8> {
    let host = server.to_string();
    let Request {
        method,
        path,
        query,
        headers,
        body,
    } = request;
    let signer = Signer {
        access_key: ACCESS_KEY,
        secret: SECRET_KEY,
        session_token: None,
        region: "us-east-1",
        unix_s: (engine::wall_clock() / 1_000_000_000) as i64,
    };
    let mut signed: Vec<(&str, &str)> = vec![("host", &host)];
    signed.extend(headers.iter().map(|(name, value)| (*name, value.as_str())));
    let to_sign = RequestToSign {
        method,
        path,
        query,
        headers: &signed,
    };
    let done = sign_request(&signer, &to_sign, PAYLOAD).expect("the path can be decoded");
    let mark = if query.is_empty() { "" } else { "?" };
    let mut head = format!(
        "{method} {path}{mark}{query} HTTP/1.1\r\nx-amz-date: {}\r\n\
         x-amz-content-sha256: {PAYLOAD}\r\nAuthorization: {}\r\nContent-Length: {}\r\n",
        done.amz_date,
        done.authorization,
        body.len()
    );
    for (name, value) in signed {
        head.extend([name, ": ", value, "\r\n"]);
    }
    head.push_str("\r\n");
    let mut bytes = head.into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

/// Sends the bytes and reads one answer; `None` when the connection ends before it is whole.
async fn exchange(stream: &TcpStream, bytes: Vec<u8>, method: &str) -> Option<Response> {
    stream.send(bytes).await.0.ok()?;
    let mut got = Vec::new();
    let end = loop {
        if let Some(at) = got.windows(4).position(|w| w == b"\r\n\r\n") {
            break at;
        }
        receive(stream, &mut got).await?;
    };
    let mut response = Response {
        status: 0,
        head: String::from_utf8(got[..end].to_vec()).expect("a head is text"),
        body: got.split_off(end + 4),
    };
    response.status = response.head[9..12].parse().expect("a status has digits");
    let has_body = method != "HEAD" && !matches!(response.status, 204 | 304);
    let length = response.header("Content-Length").filter(|_| has_body);
    let length = length.map_or(0, |l| l.parse().expect("a length has digits"));
    while response.body.len() < length {
        receive(stream, &mut response.body).await?;
    }
    assert_eq!(
        response.body.len(),
        length,
        "more was answered than was asked for"
    );
    Some(response)
}

async fn receive(stream: &TcpStream, got: &mut Vec<u8>) -> Option<()> {
    let (count, bytes) = stream.recv(vec![0; RECEIVE_BYTES]).await;
    let count = count.ok().filter(|count| *count > 0)?;
    got.extend_from_slice(&bytes[..count]);
    Some(())
}
