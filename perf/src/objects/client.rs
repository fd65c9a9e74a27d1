//! A small HTTP/1.1 client to fill servers and to check what they answer; the load comes from wrk.
//!
//! One connection, every wait with a deadline, every answer bounded. Requests go one at a time, or as
//! a batch of which the answers come in order. It follows no redirect and never retries.
#![forbid(unsafe_code)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

const DEADLINE: Duration = Duration::from_mins(1);
const HEAD_BYTES_MAX: usize = 16 << 10;
const BODY_BYTES_MAX: usize = 64 << 20;
const READ_BYTES: usize = 64 << 10;

/// An answer with its whole body.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The body, unwrapped.
    pub body: Vec<u8>,
}

impl Answer {
    /// Refuses any status but 200, and carries what the server said.
    pub fn ok(self) -> Result<Vec<u8>> {
        self.has(200)
    }

    /// Refuses any other status, and carries what the server said.
    fn has(self, status: u16) -> Result<Vec<u8>> {
        if self.status != status {
            let said = String::from_utf8_lossy(&self.body);
            let said: String = said.chars().take(400).collect();
            bail!("the server answered {}: {said}", self.status);
        }
        Ok(self.body)
    }
}

/// How a body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    Length(usize),
    Chunked,
}

/// A kept-alive connection.
pub struct Client {
    stream: TcpStream,
    host: String,
    /// Received and not yet used.
    rest: Vec<u8>,
}

impl Client {
    /// Connects.
    pub fn connect(address: SocketAddr) -> Result<Self> {
        let dial = || -> std::io::Result<TcpStream> {
            let stream = TcpStream::connect_timeout(&address, DEADLINE)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(DEADLINE))?;
            stream.set_write_timeout(Some(DEADLINE))?;
            Ok(stream)
        };
        Ok(Self {
            stream: dial().with_context(|| format!("connect to {address}"))?,
            host: address.to_string(),
            rest: Vec::new(),
        })
    }

    /// Sends a request and reads the whole answer.
    pub fn request(&mut self, method: &str, target: &str, body: &[u8]) -> Result<Answer> {
        self.exchange(method, target, body).with_context(|| {
            let path = target.split('?').next().unwrap_or(target);
            format!("{method} {path} at {}", self.host)
        })
    }

    /// Sends a GET and hands the body of a 200 to `sink` as it comes; its length.
    pub fn download(
        &mut self,
        target: &str,
        sink: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<u64> {
        let head = format!("GET {target} HTTP/1.1\r\nHost: {}\r\n\r\n", self.host);
        self.stream.write_all(head.as_bytes()).context("send")?;
        let (status, framing) = self.head()?;
        ensure!(status == 200, "the server answered {status}");
        let Framing::Length(length) = framing else {
            bail!("an answer whose length is not told");
        };
        let mut left = length;
        while left > 0 {
            if self.rest.is_empty() {
                self.receive()?;
            }
            let count = left.min(self.rest.len());
            sink(&self.rest[..count])?;
            self.rest.drain(..count);
            left -= count;
        }
        Ok(length as u64)
    }

    fn exchange(&mut self, method: &str, target: &str, body: &[u8]) -> Result<Answer> {
        // One write for head and body: two would wait for each other's acknowledgement.
        let mut bytes = Vec::new();
        self.write_request(&mut bytes, method, target, body);
        self.stream.write_all(&bytes).context("send")?;
        self.answer()
    }

    /// Adds a request to a batch.
    pub fn write_request(&self, batch: &mut Vec<u8>, method: &str, target: &str, body: &[u8]) {
        let host = &self.host;
        let length = match method {
            "PUT" | "POST" => format!("Content-Length: {}\r\n", body.len()),
            _ => String::new(),
        };
        let head = format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\n{length}\r\n");
        batch.extend_from_slice(head.as_bytes());
        batch.extend_from_slice(body);
    }

    /// Sends a batch of `count` requests and reads their answers, each of which must have `status`.
    /// The answers must fit into the sockets' buffers: they are read only when all was sent.
    pub fn send_batch(&mut self, batch: &[u8], count: usize, status: u16) -> Result<()> {
        let host = self.host.clone();
        let mut send = || -> Result<()> {
            self.stream.write_all(batch).context("send")?;
            (0..count).try_for_each(|_| self.answer()?.has(status).map(drop))
        };
        send().with_context(|| format!("a batch of {count} requests at {host}"))
    }

    fn answer(&mut self) -> Result<Answer> {
        let (status, framing) = self.head()?;
        let body = match framing {
            Framing::Length(length) => self.take(length)?,
            Framing::Chunked => self.chunks()?,
        };
        Ok(Answer { status, body })
    }

    fn head(&mut self) -> Result<(u16, Framing)> {
        loop {
            if let Some((used, status, framing)) = parse_head(&self.rest)? {
                self.rest.drain(..used);
                return Ok((status, framing));
            }
            ensure!(
                self.rest.len() <= HEAD_BYTES_MAX,
                "an answer without end of head"
            );
            self.receive()?;
        }
    }

    fn take(&mut self, length: usize) -> Result<Vec<u8>> {
        ensure!(length <= BODY_BYTES_MAX, "a body of {length} bytes");
        while self.rest.len() < length {
            self.receive()?;
        }
        let rest = self.rest.split_off(length);
        Ok(std::mem::replace(&mut self.rest, rest))
    }

    fn chunks(&mut self) -> Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = self.line()?;
            let digits = line.split(';').next().unwrap_or_default().trim();
            let length = usize::from_str_radix(digits, 16)
                .with_context(|| format!("a chunk of length {line:?}"))?;
            if length == 0 {
                while !self.line()?.is_empty() {}
                return Ok(body);
            }
            ensure!(
                length + body.len() <= BODY_BYTES_MAX,
                "a body past its bound"
            );
            body.extend(self.take(length)?);
            ensure!(self.line()?.is_empty(), "a chunk past its length");
        }
    }

    fn line(&mut self) -> Result<String> {
        loop {
            if let Some(end) = self.rest.windows(2).position(|pair| pair == b"\r\n") {
                let line = String::from_utf8_lossy(&self.rest[..end]).into_owned();
                self.rest.drain(..end + 2);
                return Ok(line);
            }
            ensure!(self.rest.len() <= HEAD_BYTES_MAX, "a line without end");
            self.receive()?;
        }
    }

    fn receive(&mut self) -> Result<()> {
        let used = self.rest.len();
        self.rest.resize(used + READ_BYTES, 0);
        let count = self.stream.read(&mut self.rest[used..]);
        self.rest.truncate(used + *count.as_ref().unwrap_or(&0));
        ensure!(
            count.context("receive")? > 0,
            "the server closed the connection"
        );
        Ok(())
    }
}

/// Length of the head, status and framing; nothing while the head is not whole.
fn parse_head(bytes: &[u8]) -> Result<Option<(usize, u16, Framing)>> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut headers);
    let parsed = response.parse(bytes).context("not an HTTP answer")?;
    let httparse::Status::Complete(used) = parsed else {
        return Ok(None);
    };
    let status = response.code.context("an answer without status")?;
    let value = |name: &str| {
        let header = response
            .headers
            .iter()
            .find(|header| header.name.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(header.value).ok()
    };
    let chunked = value("transfer-encoding")
        .is_some_and(|coding| coding.trim().eq_ignore_ascii_case("chunked"));
    let framing = match (chunked, value("content-length")) {
        (true, _) => Framing::Chunked,
        (false, Some(length)) => {
            let length = length.trim().parse();
            Framing::Length(length.context("a content-length that is no number")?)
        }
        (false, None) if status == 204 => Framing::Length(0),
        (false, None) => bail!("an answer {status} whose length is not told"),
    };
    Ok(Some((used, status, framing)))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};
    use std::thread;

    use super::*;

    /// A server that answers its only connection with `answer` and hangs up.
    fn client(answer: &'static [u8]) -> Client {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = Vec::new();
            let mut byte = [0];
            while !asked.ends_with(b"\r\n\r\n") {
                stream.read_exact(&mut byte).unwrap();
                asked.extend(byte);
            }
            stream.write_all(answer).unwrap();
        });
        Client::connect(address).unwrap()
    }

    fn get(answer: &'static [u8]) -> Result<Answer> {
        client(answer).request("GET", "/x?secret", b"")
    }

    #[test]
    fn a_body_of_told_length_is_read_whole() {
        let answer = get(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello").unwrap();
        assert_eq!(answer.ok().unwrap(), b"hello");
    }

    #[test]
    fn chunks_are_joined() {
        let answer = get(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\n\r\n",
        );
        assert_eq!(answer.unwrap().ok().unwrap(), b"hello");
    }

    #[test]
    fn the_answers_of_a_batch_are_all_looked_at() {
        let send = |answer| {
            let mut client = client(answer);
            let mut batch = Vec::new();
            client.write_request(&mut batch, "DELETE", "/a", b"");
            client.write_request(&mut batch, "DELETE", "/b", b"");
            client.send_batch(&batch, 2, 204)
        };
        let gone = b"HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n";
        send(gone).unwrap();
        let refused =
            b"HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 403 No\r\nContent-Length: 3\r\n\r\nwhy";
        let text = format!("{:#}", send(refused).unwrap_err());
        assert!(
            text.contains("403") && text.contains("batch of 2"),
            "{text}"
        );
    }

    #[test]
    fn a_refusal_carries_the_servers_words_and_no_query() {
        let answer = get(b"HTTP/1.1 403 No\r\nContent-Length: 3\r\n\r\nwhy").unwrap();
        let text = answer.ok().unwrap_err().to_string();
        assert!(text.contains("403") && text.contains("why"), "{text}");
    }

    #[test]
    fn a_body_that_ends_early_is_an_error_that_names_the_request_without_its_signature() {
        let error = get(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel").unwrap_err();
        let text = format!("{error:#}");
        assert!(
            text.contains("GET /x at") && text.contains("closed"),
            "{text}"
        );
        assert!(!text.contains("secret"), "{text}");
    }

    #[test]
    fn answers_that_are_no_http_or_have_no_length_are_errors() {
        assert!(get(b"SSH-2.0-x\r\n\r\n").is_err());
        assert!(get(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
        assert!(get(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n").is_err());
        let huge = get(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n");
        assert!(huge.is_err());
    }
}
