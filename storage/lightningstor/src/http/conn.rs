//! A connection from accept to close: heads, deadlines, keep-alive, pipelining, answers.
//!
//! Requests of a connection are served one after the other. An answer that leaves unread body bytes
//! behind either reads them away (few) or closes in two steps, so that the client sees the answer
//! and not a reset. Nothing here waits without a deadline.

use std::io;
use std::ops::Range;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use engine::net::TcpStream;
use engine::{DmaBuf, Flow};
use futures_util::future::{Either, select};
use s3_wire::{HeadError, HeadLimits, Parsed, RequestHead, S3Error, S3ErrorCode, parse_head};

use super::body::{Body, Rest};
use super::exchange::{DRAIN_BYTES_MAX, Exchange, Reply, RequestId, error_reply};
use super::inbox::Inbox;
use super::metrics::Timer;
use super::read::Reading;
use super::server::Server;
use crate::store::{PagesPart, Piece};

/// How long a connection that is being closed may still send.
const LINGER_DEADLINE: Duration = Duration::from_secs(2);
/// Most bytes that are read from a connection that is being closed.
const LINGER_BYTES_MAX: usize = 8 << 20;
const LINGER_RECEIVE_BYTES: usize = 64 << 10;

/// What came in place of the next request.
enum Next {
    Head(RequestHead),
    Refused(S3Error),
    Closed,
}

/// What becomes of the connection after an answer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum After {
    /// The next request.
    KeepAlive,
    /// Close at once: everything has been read, or the connection is broken.
    Close,
    /// Close in two steps: the client may still be sending.
    Linger,
}

/// Serves a connection until it ends.
pub(crate) async fn serve(server: &Rc<Server>, stream: TcpStream) {
    // Without it small answers wait for the client's delayed acknowledgement; a socket that refuses
    // is already broken, and the first receive says so.
    let _ = stream.set_nodelay();
    engine::set_flow(Flow::UNKNOWN);
    let stream = Rc::new(stream);
    let mut inbox = Inbox::new(Rc::clone(&stream));
    let after = loop {
        let after = match next_head(server, &mut inbox).await {
            Next::Closed => After::Close,
            Next::Refused(error) => refuse(server, &stream, &error).await,
            Next::Head(head) => exchange(server, &stream, &mut inbox, &head).await,
        };
        if after != After::KeepAlive {
            break after;
        }
    };
    if after == After::Linger {
        linger(&stream, &mut inbox).await;
    }
}

/// Tells a connection that there is no room for it.
pub(crate) async fn turn_away(server: &Rc<Server>, stream: TcpStream) {
    let stream = Rc::new(stream);
    let error = S3Error::new(
        S3ErrorCode::SlowDown,
        "The server has too many connections; retry.",
    );
    if refuse(server, &stream, &error).await == After::Linger {
        let mut inbox = Inbox::new(Rc::clone(&stream));
        linger(&stream, &mut inbox).await;
    }
}

async fn next_head(server: &Rc<Server>, inbox: &mut Inbox) -> Next {
    let limits = &server.config().limits;
    if inbox.unread().is_empty() {
        inbox.release();
        let drained = server.drain_asked();
        let fill = engine::timeout(limits.idle_deadline, inbox.fill());
        match select(pin!(fill), pin!(drained)).await {
            Either::Left((Some(Ok(count)), _)) if count > 0 => {}
            Either::Left(_) | Either::Right(_) => return Next::Closed,
        }
    }
    let deadline = engine::now() + limits.head_deadline;
    loop {
        match parse_head(inbox.unread(), &HeadLimits::default()) {
            Ok(Parsed::Complete { head, len }) => {
                inbox.consume(len);
                return Next::Head(head);
            }
            Ok(Parsed::Partial) => {}
            Err(error) => return Next::Refused(head_error(error)),
        }
        let left = deadline - engine::now();
        match engine::timeout(left, inbox.fill()).await {
            Some(Ok(count)) if count > 0 => {}
            Some(_) => return Next::Closed,
            None => {
                let what = "The request head did not arrive within the deadline.";
                return Next::Refused(S3Error::new(S3ErrorCode::RequestTimeout, what));
            }
        }
    }
}

fn head_error(error: HeadError) -> S3Error {
    let code = match error {
        HeadError::TooLarge => S3ErrorCode::RequestHeaderSectionTooLarge,
        HeadError::TransferEncoding => S3ErrorCode::NotImplemented,
        _ => S3ErrorCode::InvalidRequest,
    };
    S3Error::new(code, error.to_string())
}

async fn refuse(server: &Rc<Server>, stream: &Rc<TcpStream>, error: &S3Error) -> After {
    let id = RequestId::random();
    server.metrics.refused(error);
    let reply = error_reply(server, error, "/", &id, false);
    match send_reply(server, stream, reply, false).await {
        Ok(()) => After::Linger,
        Err(_) => After::Close,
    }
}

async fn exchange(
    server: &Rc<Server>,
    stream: &Rc<TcpStream>,
    inbox: &mut Inbox,
    head: &RequestHead,
) -> After {
    let mut body = Body::new(inbox, stream, head, &server.config().limits);
    let exchange = Exchange::new(server, head, &body);
    let timer = Timer::start();
    let done = super::ops::perform(&exchange, &mut body).await;
    let (reply, error) = match done.reply {
        Ok(reply) => (reply, None),
        Err(error) => {
            exchange.look_at_rest(&body);
            (exchange.error(&error), Some(error))
        }
    };
    let sent = send_reply(server, stream, reply, exchange.is_head()).await;
    server.metrics.end(&timer, done.op, error.as_ref());
    // 501 and 503 are answers to the client; what is wrong with the server is 500 and 507.
    if let Some(error) = error.filter(|error| matches!(error.status(), 500 | 507)) {
        tracing::warn!(request = exchange.id.as_str(), op = done.op.as_str(), %error, "request failed");
    }
    match sent {
        Err(error) => {
            tracing::debug!(request = exchange.id.as_str(), %error, "the answer was cut off");
            After::Close
        }
        Ok(()) if !exchange.keep_alive() && body.rest() == Rest::Nothing => After::Close,
        Ok(()) if !exchange.keep_alive() => After::Linger,
        Ok(()) => read_away(&mut body).await,
    }
}

/// Reads what is left of a small body, so that the next request starts where it should.
async fn read_away(body: &mut Body<'_>) -> After {
    if body.rest() == Rest::Nothing {
        return After::KeepAlive;
    }
    match body.discard(DRAIN_BYTES_MAX).await {
        Ok(()) => After::KeepAlive,
        Err(_) => After::Linger,
    }
}

/// Says that no more follows and reads on for a while: closing a socket with unread bytes resets
/// the connection, and the client would lose the answer.
async fn linger(stream: &Rc<TcpStream>, inbox: &mut Inbox) {
    if stream.shutdown_write().await.is_err() {
        return;
    }
    let deadline = engine::now() + LINGER_DEADLINE;
    let mut total = 0;
    while total < LINGER_BYTES_MAX {
        let waiting = inbox.unread().len();
        inbox.consume(waiting);
        let left = deadline - engine::now();
        match engine::timeout(left, inbox.fill_large(LINGER_RECEIVE_BYTES)).await {
            Some(Ok(count)) if count > 0 => total += count,
            _ => return,
        }
    }
}

/// Sends an answer; a HEAD's without its body.
async fn send_reply(
    server: &Rc<Server>,
    stream: &Rc<TcpStream>,
    reply: Reply,
    is_head: bool,
) -> io::Result<()> {
    let progress = server.config().limits.progress_deadline;
    match reply {
        Reply::Text { head, body } if is_head || body.is_empty() => sent(
            engine::timeout(progress, stream.send(head))
                .await
                .map(|(sent, _)| sent),
        ),
        Reply::Text { head, body } => {
            server.metrics.sent(body.len() as u64);
            sent(
                engine::timeout(progress, stream.send_pair(head, body))
                    .await
                    .map(|(sent, _)| sent),
            )
        }
        Reply::Inline { head, .. } | Reply::Stream { head, .. } if is_head => sent(
            engine::timeout(progress, stream.send(head))
                .await
                .map(|(sent, _)| sent),
        ),
        // An object made of empty parts has no piece that the head could go with.
        Reply::Stream { head, range, .. } if range.is_empty() => sent(
            engine::timeout(progress, stream.send(head))
                .await
                .map(|(sent, _)| sent),
        ),
        Reply::Inline { head, buf, range } => {
            server.metrics.sent(range.len() as u64);
            send_inline(stream, progress, head, buf, range).await
        }
        Reply::Stream {
            head,
            reading,
            range,
        } => send_stream(server, stream, head, reading, range).await,
    }
}

fn sent<T>(outcome: Option<io::Result<T>>) -> io::Result<T> {
    outcome.unwrap_or_else(|| {
        Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the client did not take the answer",
        ))
    })
}

/// Writes the head into the buffer right before the body: one send of one piece of memory.
async fn send_inline(
    stream: &Rc<TcpStream>,
    progress: Duration,
    head: Vec<u8>,
    mut buf: DmaBuf,
    range: Range<usize>,
) -> io::Result<()> {
    let Some(start) = range.start.checked_sub(head.len()) else {
        let send = stream.send_pair(head, buf.slice(range));
        return sent(engine::timeout(progress, send).await.map(|(sent, _)| sent));
    };
    if buf.len() < range.end {
        buf.set_len(range.end);
    }
    buf[start..range.start].copy_from_slice(&head);
    let send = stream.send(buf.slice(start..range.end));
    sent(engine::timeout(progress, send).await.map(|(sent, _)| sent))
}

/// Sends an object piece by piece; the next piece is read while one is sent. The first one was read
/// and checked before the head was written, so that damage there is an error the client can read;
/// later damage can only end the connection.
async fn send_stream(
    server: &Rc<Server>,
    stream: &Rc<TcpStream>,
    head: Vec<u8>,
    mut reading: Reading,
    range: Range<u64>,
) -> io::Result<()> {
    let progress = server.config().limits.progress_deadline;
    let mut head = Some(head);
    let mut left = range.end - range.start;
    while left > 0 {
        let piece = reading.next().await.map_err(io::Error::other)?;
        let count = piece.len() as u64;
        assert!(count <= left, "a reading gives what was asked for");
        match (piece, head.take()) {
            (Piece::Buffer(buf, part), Some(head)) => {
                let send = stream.send_pair(head, buf.slice(part));
                sent(engine::timeout(progress, send).await.map(|(sent, _)| sent))?;
            }
            (Piece::Buffer(buf, part), None) => {
                let send = stream.send(buf.slice(part));
                sent(engine::timeout(progress, send).await.map(|(sent, _)| sent))?;
            }
            (Piece::Pages(parts), head) => {
                if let Some(head) = head {
                    let send = stream.send_more(head);
                    sent(engine::timeout(progress, send).await.map(|(sent, _)| sent))?;
                }
                for part in parts {
                    send_pages(stream, progress, &part).await?;
                }
            }
        }
        server.metrics.sent(count);
        left -= count;
    }
    Ok(())
}

/// Sends pages as there is room for them; the deadline is that of each step.
async fn send_pages(
    stream: &TcpStream,
    progress: Duration,
    PagesPart { pages, range }: &PagesPart,
) -> io::Result<()> {
    let mut at = range.start;
    while at < range.end {
        let send = stream.send_pages(pages, at..range.end);
        at += sent(engine::timeout(progress, send).await)?;
        engine::yield_if_needed().await;
    }
    Ok(())
}
