//! One request and its answer: the request's id, who sent it, and how answers are written.
//!
//! Whether the connection stays open is decided before a head is written: it does only when what is
//! left of the request's body is nothing, or little enough to be read away.

use std::cell::Cell;
use std::ops::Range;
use std::rc::Rc;

use engine::DmaBuf;
use s3_wire::head::{Method, ResponseStart};
use s3_wire::xml::{ErrorContext, error_document};
use s3_wire::{RequestHead, ResponseHead, S3Error, S3ErrorCode};

use super::body::{Body, Rest};
use super::read::Reading;
use super::server::Server;

/// Largest rest of a body that is read away so that the connection can be reused.
pub(crate) const DRAIN_BYTES_MAX: u64 = 128 << 10;

/// What goes back to the client.
pub(crate) enum Reply {
    /// A head, and a body of text.
    Text { head: Vec<u8>, body: Vec<u8> },
    /// A head, and a body that lies in `range` of a buffer.
    Inline {
        head: Vec<u8>,
        buf: DmaBuf,
        range: Range<usize>,
    },
    /// A head, and a range of a stored object.
    Stream {
        head: Vec<u8>,
        reading: Reading,
        range: Range<u64>,
    },
}

/// The id of a request: 16 hexadecimal digits.
#[derive(Clone, Copy)]
pub(crate) struct RequestId([u8; 16]);

impl RequestId {
    pub(crate) fn random() -> RequestId {
        const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
        let mut text = [0; 16];
        let mut bits = engine::random();
        for digit in &mut text {
            *digit = DIGITS[(bits & 15) as usize];
            bits >>= 4;
        }
        RequestId(text)
    }

    pub(crate) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("hexadecimal digits are ASCII")
    }
}

/// A request on its way through the server.
pub(crate) struct Exchange<'a> {
    pub(crate) server: &'a Rc<Server>,
    pub(crate) head: &'a RequestHead,
    pub(crate) id: RequestId,
    keep_alive: Cell<bool>,
}

impl<'a> Exchange<'a> {
    pub(crate) fn new(
        server: &'a Rc<Server>,
        head: &'a RequestHead,
        body: &Body<'_>,
    ) -> Exchange<'a> {
        let exchange = Exchange {
            server,
            head,
            id: RequestId::random(),
            keep_alive: Cell::new(true),
        };
        exchange.look_at_rest(body);
        exchange
    }

    /// Decides anew whether the connection can be reused, from what is left of the body.
    pub(crate) fn look_at_rest(&self, body: &Body<'_>) {
        let readable = match body.rest() {
            Rest::Nothing => true,
            Rest::Bytes(left) => left <= DRAIN_BYTES_MAX,
            Rest::Unknown => false,
        };
        self.keep_alive
            .set(readable && self.head.keep_alive() && !self.server.is_draining());
    }

    pub(crate) fn keep_alive(&self) -> bool {
        self.keep_alive.get()
    }

    pub(crate) fn is_head(&self) -> bool {
        self.head.method() == Method::Head
    }

    /// Starts a response head.
    pub(crate) fn start<'o>(&self, out: &'o mut Vec<u8>, status: u16) -> ResponseHead<'o> {
        start(out, self.server, status, &self.id, self.keep_alive.get())
    }

    /// An answer without a body.
    pub(crate) fn empty(&self, status: u16) -> Reply {
        let mut head = Vec::with_capacity(256);
        let fields = self.start(&mut head, status);
        // A 204 never has a length (RFC 9110 section 8.6).
        if status == 204 {
            fields.finish();
        } else {
            fields.content_length(0).finish();
        }
        Reply::Text {
            head,
            body: Vec::new(),
        }
    }

    /// An answer with an XML body.
    pub(crate) fn xml(&self, status: u16, body: Vec<u8>) -> Reply {
        let mut head = Vec::with_capacity(256);
        self.start(&mut head, status)
            .header("Content-Type", "application/xml")
            .content_length(body.len() as u64)
            .finish();
        Reply::Text { head, body }
    }

    /// The answer to a failed request.
    pub(crate) fn error(&self, error: &S3Error) -> Reply {
        let resource = self.head.raw_path();
        error_reply(
            self.server,
            error,
            resource,
            &self.id,
            self.keep_alive.get(),
        )
    }
}

fn start<'o>(
    out: &'o mut Vec<u8>,
    server: &Server,
    status: u16,
    id: &RequestId,
    keep_alive: bool,
) -> ResponseHead<'o> {
    let date = server.http_date();
    let start = ResponseStart {
        status,
        date: &date,
        request_id: id.as_str(),
        keep_alive,
    };
    ResponseHead::start(out, &start)
}

/// An error answer, also to a request whose head could not be read.
pub(crate) fn error_reply(
    server: &Server,
    error: &S3Error,
    resource: &str,
    id: &RequestId,
    keep_alive: bool,
) -> Reply {
    let (mut head, mut body) = (Vec::with_capacity(256), Vec::new());
    error_document(
        &mut body,
        error,
        &ErrorContext {
            resource,
            request_id: id.as_str(),
        },
    );
    let mut fields = start(&mut head, server, error.status(), id, keep_alive);
    if error.code == S3ErrorCode::SlowDown {
        fields = fields.header("Retry-After", "1");
    }
    if error.code.has_body() {
        fields = fields
            .header("Content-Type", "application/xml")
            .content_length(body.len() as u64);
    }
    fields.finish();
    Reply::Text { head, body }
}
