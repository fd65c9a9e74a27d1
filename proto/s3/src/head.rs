//! HTTP/1.1 heads: requests in, responses out.
//!
//! A [`RequestHead`] owns one copy of the bytes and ranges into it, so that it outlives the receive
//! buffer and costs two allocations. Header names are stored in lower case. The framing of the body
//! is decided here and nowhere else: a repeated or unreadable Content-Length, or one beside
//! Transfer-Encoding, is an error, because two readers that disagree on framing are a smuggled
//! request (RFC 9112 section 6.3). [`ResponseHead`] never emits a control character in a value.

use std::mem::MaybeUninit;
use std::ops::Range;

use crate::timestamp::HttpDateText;

/// Most headers that a head may have, whatever the limits say.
pub const HEADERS_MAX: usize = 96;

/// Bounds of a request head.
#[derive(Debug, Clone, Copy)]
pub struct HeadLimits {
    /// Largest head in bytes, from the method to the empty line.
    pub head_bytes_max: u16,
    /// Most headers; values past [`HEADERS_MAX`] count as [`HEADERS_MAX`].
    pub headers_max: u8,
}

impl Default for HeadLimits {
    fn default() -> Self {
        Self {
            head_bytes_max: 16 * 1024,
            headers_max: HEADERS_MAX as u8,
        }
    }
}

/// Why a head cannot be served. The connection is closed after the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeadError {
    /// Not HTTP, or a field holds bytes that it may not hold.
    #[error("the request head is not well-formed HTTP/1.1")]
    Malformed,
    /// A field is not UTF-8.
    #[error("the request head is not UTF-8")]
    NotUtf8,
    /// More bytes or more headers than allowed.
    #[error("the request head is larger than the limit")]
    TooLarge,
    /// Not HTTP/1.0 or HTTP/1.1.
    #[error("the HTTP version is not 1.0 or 1.1")]
    Version,
    /// No Host header, several, or one that differs from the target's authority.
    #[error("the request needs exactly one Host header, equal to the host of an absolute target")]
    Host,
    /// Content-Length is repeated, not a number, or stands beside Transfer-Encoding.
    #[error("the length of the body is ambiguous")]
    Framing,
    /// A transfer coding other than `chunked`.
    #[error("the transfer coding is not supported; use chunked")]
    TransferEncoding,
    /// An expectation other than `100-continue`.
    #[error("the expectation is not supported; use 100-continue")]
    Expectation,
}

impl HeadError {
    /// The HTTP status of the answer.
    pub const fn status(self) -> u16 {
        match self {
            Self::Malformed | Self::NotUtf8 | Self::Host | Self::Framing => 400,
            Self::TooLarge => 431,
            Self::Version => 505,
            Self::TransferEncoding => 501,
            Self::Expectation => 417,
        }
    }
}

/// The request's method.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Method {
    /// GET
    Get,
    /// HEAD
    Head,
    /// PUT
    Put,
    /// POST
    Post,
    /// DELETE
    Delete,
    /// OPTIONS
    Options,
    /// Any other token; [`RequestHead::method_text`] has it.
    Other,
}

impl Method {
    fn from_token(token: &str) -> Self {
        match token {
            "GET" => Self::Get,
            "HEAD" => Self::Head,
            "PUT" => Self::Put,
            "POST" => Self::Post,
            "DELETE" => Self::Delete,
            "OPTIONS" => Self::Options,
            _ => Self::Other,
        }
    }
}

/// A range of the head's text. Heads are at most 64 KiB.
#[derive(Debug, Clone, Copy)]
struct Span {
    start: u16,
    end: u16,
}

impl Span {
    /// Where `part` lies in `whole`, of which it is a slice.
    fn of(part: &[u8], whole: &[u8]) -> Self {
        if part.is_empty() {
            return Self { start: 0, end: 0 };
        }
        let start = part.as_ptr().addr() - whole.as_ptr().addr();
        Self {
            start: start as u16,
            end: (start + part.len()) as u16,
        }
    }

    fn range(self) -> Range<usize> {
        usize::from(self.start)..usize::from(self.end)
    }
}

/// A parsed request head.
#[derive(Debug, Clone)]
pub struct RequestHead {
    text: Box<str>,
    fields: Box<[(Span, Span)]>,
    method: Method,
    method_text: Span,
    path: Span,
    query: Span,
    host: Span,
    content_length: Option<u64>,
    chunked: bool,
    keep_alive: bool,
    expect_continue: bool,
}

/// What [`parse_head`] found.
#[derive(Debug)]
pub enum Parsed {
    /// The head has not arrived as a whole.
    Partial,
    /// The head, and how many bytes of the buffer it took.
    Complete {
        /// The head.
        head: RequestHead,
        /// Its length; the body starts there.
        len: usize,
    },
}

/// Reads a request head from the front of `buf`.
///
/// # Errors
/// A head that is not well-formed, too large, or whose body framing is ambiguous.
pub fn parse_head(buf: &[u8], limits: &HeadLimits) -> Result<Parsed, HeadError> {
    let bytes_max = usize::from(limits.head_bytes_max);
    let window = &buf[..buf.len().min(bytes_max)];
    let mut slots = [const { MaybeUninit::uninit() }; HEADERS_MAX];
    let slots = &mut slots[..HEADERS_MAX.min(limits.headers_max.into())];
    let mut request = httparse::Request::new(&mut []);
    let status = request
        .parse_with_uninit_headers(window, slots)
        .map_err(|error| match error {
            httparse::Error::TooManyHeaders => HeadError::TooLarge,
            httparse::Error::Version => HeadError::Version,
            _ => HeadError::Malformed,
        })?;
    match status {
        httparse::Status::Partial if buf.len() >= bytes_max => Err(HeadError::TooLarge),
        httparse::Status::Partial => Ok(Parsed::Partial),
        httparse::Status::Complete(len) => {
            let head = RequestHead::build(&window[..len], &request)?;
            Ok(Parsed::Complete { head, len })
        }
    }
}

impl RequestHead {
    fn build(bytes: &[u8], request: &httparse::Request<'_, '_>) -> Result<Self, HeadError> {
        let (Some(method), Some(target), Some(version)) =
            (request.method, request.path, request.version)
        else {
            return Err(HeadError::Malformed);
        };
        let mut text = str::from_utf8(bytes)
            .map_err(|_| HeadError::NotUtf8)?
            .to_owned();
        let fields: Box<[_]> = request
            .headers
            .iter()
            .map(|h| (Span::of(h.name.as_bytes(), bytes), Span::of(h.value, bytes)))
            .collect();
        for (name, _) in &fields {
            text[name.range()].make_ascii_lowercase();
        }
        let (authority, path, query) = split_target(target)?;
        let span = |part: &str| Span::of(part.as_bytes(), bytes);
        let mut head = Self {
            text: text.into_boxed_str(),
            fields,
            method: Method::from_token(method),
            method_text: span(method),
            path: span(path),
            query: span(query),
            host: Span { start: 0, end: 0 },
            content_length: None,
            chunked: false,
            keep_alive: version == 1,
            expect_continue: false,
        };
        head.interpret(version)?;
        if let Some(authority) = authority {
            // Signatures cover the Host field; an authority beside it must say the same.
            if !authority.eq_ignore_ascii_case(head.host()) {
                return Err(HeadError::Host);
            }
        }
        Ok(head)
    }

    /// Reads the fields that decide framing and connection reuse.
    fn interpret(&mut self, version: u8) -> Result<(), HeadError> {
        let (mut hosts, mut lengths, mut codings) = (0, 0, 0);
        for &(name, value) in &self.fields {
            let text = &self.text[value.range()];
            match &self.text[name.range()] {
                "host" => {
                    hosts += 1;
                    self.host = value;
                }
                "content-length" => {
                    lengths += 1;
                    self.content_length = Some(parse_length(text).ok_or(HeadError::Framing)?);
                }
                "transfer-encoding" => {
                    codings += 1;
                    if !text.eq_ignore_ascii_case("chunked") {
                        return Err(HeadError::TransferEncoding);
                    }
                    self.chunked = true;
                }
                "connection" => {
                    for token in text.split(',').map(str::trim) {
                        if token.eq_ignore_ascii_case("close") {
                            self.keep_alive = false;
                        } else if version == 0 && token.eq_ignore_ascii_case("keep-alive") {
                            self.keep_alive = true;
                        }
                    }
                }
                "expect" if text.eq_ignore_ascii_case("100-continue") => {
                    self.expect_continue = version == 1;
                }
                "expect" => return Err(HeadError::Expectation),
                _ => {}
            }
        }
        if hosts > 1 || (hosts == 0 && version == 1) {
            return Err(HeadError::Host);
        }
        // HTTP/1.0 has no transfer codings: a peer in between may have framed the body otherwise.
        if lengths > 1 || codings > 1 || lengths + codings > 1 || (codings > 0 && version == 0) {
            return Err(HeadError::Framing);
        }
        Ok(())
    }

    /// The method.
    pub fn method(&self) -> Method {
        self.method
    }

    /// The method as it was sent.
    pub fn method_text(&self) -> &str {
        &self.text[self.method_text.range()]
    }

    /// The path, still percent-coded; starts with `/`, or is `*`.
    pub fn raw_path(&self) -> &str {
        &self.text[self.path.range()]
    }

    /// The query without its `?`, still percent-coded.
    pub fn raw_query(&self) -> &str {
        &self.text[self.query.range()]
    }

    /// Host and port that the request is for; empty only in HTTP/1.0.
    pub fn host(&self) -> &str {
        &self.text[self.host.range()]
    }

    /// The first field of this name, which must be given in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        debug_assert!(!name.bytes().any(|b| b.is_ascii_uppercase()));
        let (_, value) = self
            .fields
            .iter()
            .find(|(n, _)| &self.text[n.range()] == name)?;
        Some(&self.text[value.range()])
    }

    /// Every field as (lower-case name, trimmed value), in the order of arrival.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &str)> {
        self.fields
            .iter()
            .map(|(n, v)| (&self.text[n.range()], &self.text[v.range()]))
    }

    /// The announced length of the body, as framed.
    pub fn content_length(&self) -> Option<u64> {
        self.content_length
    }

    /// Whether the body comes in HTTP chunks.
    pub fn chunked(&self) -> bool {
        self.chunked
    }

    /// Whether the connection may serve another request.
    pub fn keep_alive(&self) -> bool {
        self.keep_alive
    }

    /// Whether the client waits for `100 Continue` before it sends the body.
    pub fn expect_continue(&self) -> bool {
        self.expect_continue
    }
}

/// Splits a request target into authority (absolute form only), path and query.
fn split_target(target: &str) -> Result<(Option<&str>, &str, &str), HeadError> {
    let scheme_len = ["http://", "https://"].iter().find_map(|scheme| {
        let front = target.get(..scheme.len())?;
        front.eq_ignore_ascii_case(scheme).then_some(scheme.len())
    });
    let (authority, rest) = match scheme_len {
        Some(len) => {
            let rest = &target[len..];
            let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
            (Some(&rest[..end]), &rest[end..])
        }
        None => (None, target),
    };
    if rest.contains('#') {
        return Err(HeadError::Malformed);
    }
    let (path, query) = match rest.find('?') {
        Some(at) => (&rest[..at], &rest[at + 1..]),
        None => (rest, &rest[rest.len()..]),
    };
    let rooted = path.starts_with('/') || path == "*" || (path.is_empty() && authority.is_some());
    if rooted {
        Ok((authority, path, query))
    } else {
        Err(HeadError::Malformed)
    }
}

fn parse_length(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().ok())?
}

/// The reason phrase of a status.
pub const fn reason(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        200 => "OK",
        204 => "No Content",
        206 => "Partial Content",
        304 => "Not Modified",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        409 => "Conflict",
        411 => "Length Required",
        412 => "Precondition Failed",
        416 => "Range Not Satisfiable",
        417 => "Expectation Failed",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        507 => "Insufficient Storage",
        _ => "Status",
    }
}

/// The interim answer to `Expect: 100-continue`.
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// What every response head starts with.
#[derive(Debug, Clone, Copy)]
pub struct ResponseStart<'a> {
    /// The status code.
    pub status: u16,
    /// The Date header; see [`crate::timestamp::DateCache`].
    pub date: &'a HttpDateText,
    /// The value of x-amz-request-id.
    pub request_id: &'a str,
    /// Whether the connection stays open; `false` writes `Connection: close`.
    pub keep_alive: bool,
}

/// Appends a response head to a buffer, field by field.
#[derive(Debug)]
#[must_use = "finish() writes the empty line that ends the head"]
pub struct ResponseHead<'a> {
    out: &'a mut Vec<u8>,
}

impl<'a> ResponseHead<'a> {
    /// Writes the status line and the fields that every response has.
    pub fn start(out: &'a mut Vec<u8>, start: &ResponseStart<'_>) -> Self {
        let mut digits = itoa::Buffer::new();
        out.extend_from_slice(b"HTTP/1.1 ");
        out.extend_from_slice(digits.format(start.status).as_bytes());
        out.push(b' ');
        out.extend_from_slice(reason(start.status).as_bytes());
        out.extend_from_slice(b"\r\nDate: ");
        out.extend_from_slice(start.date);
        out.extend_from_slice(b"\r\nServer: UltraCloud\r\n");
        if !start.keep_alive {
            out.extend_from_slice(b"Connection: close\r\n");
        }
        Self { out }.header("x-amz-request-id", start.request_id)
    }

    /// Appends a field. Control characters in the value become spaces, so that a value from outside
    /// cannot end the field.
    pub fn header(self, name: &str, value: &str) -> Self {
        debug_assert!(
            name.bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        );
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b": ");
        let from = self.out.len();
        self.out.extend_from_slice(value.as_bytes());
        for byte in &mut self.out[from..] {
            if byte.is_ascii_control() {
                *byte = b' ';
            }
        }
        self.out.extend_from_slice(b"\r\n");
        self
    }

    /// Appends a numeric field.
    pub fn number(self, name: &str, value: u64) -> Self {
        let mut digits = itoa::Buffer::new();
        self.header(name, digits.format(value))
    }

    /// Appends Content-Length.
    pub fn content_length(self, bytes: u64) -> Self {
        self.number("Content-Length", bytes)
    }

    /// Appends ETag, with its quotes.
    pub fn etag(self, etag: &crate::etag::Etag) -> Self {
        self.out.extend_from_slice(b"ETag: \"");
        self.out.extend_from_slice(etag.text().as_str().as_bytes());
        self.out.extend_from_slice(b"\"\r\n");
        self
    }

    /// Appends Last-Modified.
    pub fn last_modified(self, unix_s: i64) -> Self {
        self.out.extend_from_slice(b"Last-Modified: ");
        self.out
            .extend_from_slice(&crate::timestamp::http_date(unix_s));
        self.out.extend_from_slice(b"\r\n");
        self
    }

    /// Appends Content-Range for a part of a body of `size` bytes; the range must not be empty.
    pub fn content_range(self, range: &Range<u64>, size: u64) -> Self {
        let mut digits = itoa::Buffer::new();
        self.out.extend_from_slice(b"Content-Range: bytes ");
        self.out
            .extend_from_slice(digits.format(range.start).as_bytes());
        self.out.push(b'-');
        self.out
            .extend_from_slice(digits.format(range.end.saturating_sub(1)).as_bytes());
        self.out.push(b'/');
        self.out.extend_from_slice(digits.format(size).as_bytes());
        self.out.extend_from_slice(b"\r\n");
        self
    }

    /// Writes the empty line.
    pub fn finish(self) {
        self.out.extend_from_slice(b"\r\n");
    }
}

#[cfg(test)]
mod tests;
