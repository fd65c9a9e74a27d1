//! One request's body: framing, decoding, deadlines, `100 Continue`.
//!
//! Plain bodies go from the socket straight into the caller's buffer. Coded ones (aws-chunked, HTTP
//! chunks, or the first inside the second) are decoded from the inbox. Nothing is buffered beyond
//! the inbox. A body that ends early, stalls or breaks its framing is an [`S3Error`]; the connection
//! then cannot be reused, which [`Body::rest`] tells.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use engine::DmaBuf;
use engine::net::TcpStream;
use s3_wire::chunked::{BodyLimits, Decoder, Framing, Trailers};
use s3_wire::head::CONTINUE;
use s3_wire::metadata::amz_field;
use s3_wire::sigv4::PayloadMode;
use s3_wire::{RequestHead, Result, S3Error, S3ErrorCode};

use super::config::{BODY_BYTES_MAX, Limits};
use super::inbox::Inbox;

/// Most bytes received at a time for a body that has to be decoded.
const CODED_RECEIVE_BYTES: usize = 64 << 10;
/// Bytes looked at when only the end of the coding may follow.
const TAIL_BYTES: usize = 1024;

/// How the bytes on the wire end.
enum Outer {
    /// After this many more.
    Length(u64),
    /// With the last HTTP chunk.
    Chunks(Box<Decoder>),
}

/// The body of the request whose head was read last.
pub(crate) struct Body<'c> {
    inbox: &'c mut Inbox,
    stream: Rc<TcpStream>,
    outer: Outer,
    aws: Option<Decoder>,
    /// Bytes of data, when the request tells.
    len: Option<u64>,
    wants_continue: bool,
    patience: Patience,
    failed: bool,
}

/// How long the client may keep the server waiting for its body. One byte just within each
/// deadline would hold a connection and its buffers for ever; so every wait counts, and only bytes
/// earn more time.
struct Patience {
    progress_deadline: Duration,
    bytes_per_s_min: u64,
    waited: Duration,
    received: u64,
}

impl Patience {
    /// Longest that the next byte may take.
    fn left(&self) -> Duration {
        let earned = Duration::from_secs(self.received / self.bytes_per_s_min.max(1));
        let left = (self.progress_deadline + earned).saturating_sub(self.waited);
        left.min(self.progress_deadline)
    }

    /// Waits for something to arrive; `None` when it takes too long.
    async fn wait<R>(&mut self, receive: impl Future<Output = R>) -> Option<R> {
        let began = engine::now();
        let received = engine::timeout(self.left(), receive).await;
        self.waited += engine::now().since(began);
        received
    }
}

/// What is left of a body on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rest {
    /// Nothing: the next request may follow.
    Nothing,
    /// This many bytes, which the client sends whatever the answer.
    Bytes(u64),
    /// Unknown, or the client waits for `100 Continue`: the connection cannot be reused.
    Unknown,
}

impl<'c> Body<'c> {
    /// Prepares to read; takes nothing from the wire.
    ///
    /// # Errors
    /// Of the announced lengths: missing, contradictory or too large.
    pub(crate) fn new(
        inbox: &'c mut Inbox,
        stream: &Rc<TcpStream>,
        head: &RequestHead,
        limits: &Limits,
    ) -> Body<'c> {
        let http = BodyLimits {
            decoded_bytes: None,
            body_bytes_max: u64::MAX,
        };
        let outer = if head.chunked() {
            let decoder = Decoder::new(Framing::Http, http);
            Outer::Chunks(Box::new(
                decoder.expect("HTTP chunks need no announced length"),
            ))
        } else {
            Outer::Length(head.content_length().unwrap_or(0))
        };
        let len = match outer {
            Outer::Length(bytes) => Some(bytes),
            Outer::Chunks(_) => None,
        };
        Body {
            inbox,
            stream: Rc::clone(stream),
            outer,
            aws: None,
            len,
            // Also for an empty body: botocore takes a final answer where it waits for the interim
            // one as the status of the connection's next answer, too.
            wants_continue: head.expect_continue(),
            patience: Patience {
                progress_deadline: limits.progress_deadline,
                bytes_per_s_min: limits.body_bytes_per_s_min,
                waited: Duration::ZERO,
                received: 0,
            },
            failed: false,
        }
    }

    /// Decodes the body as its signature says.
    ///
    /// # Errors
    /// MissingContentLength for a body of unknown length, EntityTooLarge past the largest.
    pub(crate) fn decode(&mut self, head: &RequestHead, payload: &PayloadMode) -> Result<()> {
        let framing = match payload {
            PayloadMode::Unsigned | PayloadMode::Sha256(_) => {
                if self.len.is_some_and(|len| len > BODY_BYTES_MAX) {
                    return Err(S3ErrorCode::EntityTooLarge.into());
                }
                return Ok(());
            }
            PayloadMode::SignedChunks(seed) => Framing::Signed(seed.clone()),
            PayloadMode::SignedChunksTrailer(seed) => Framing::SignedTrailer(seed.clone()),
            PayloadMode::UnsignedTrailer => Framing::Unsigned,
        };
        let announced = amz_field(head, "x-amz-decoded-content-length")?;
        let announced = announced
            .map(|text| text.parse::<u64>())
            .transpose()
            .map_err(|_| {
                let what = "x-amz-decoded-content-length is not a number.";
                S3Error::new(S3ErrorCode::InvalidArgument, what)
            })?;
        let limits = BodyLimits {
            decoded_bytes: announced,
            body_bytes_max: BODY_BYTES_MAX,
        };
        self.aws = Some(Decoder::new(framing, limits)?);
        self.len = announced;
        Ok(())
    }

    /// Bytes of data in the body, when the request tells.
    pub(crate) fn len(&self) -> Option<u64> {
        self.len
    }

    /// Fills `buf` from `filled` on, up to `end`: at least one byte, or none at the body's end.
    pub(crate) async fn fill(
        &mut self,
        mut buf: DmaBuf,
        filled: usize,
        end: usize,
    ) -> Result<(usize, DmaBuf)> {
        let Outer::Length(left) = self.outer else {
            return self.decode_into(buf, filled, end).await;
        };
        if self.aws.is_some() {
            return self.decode_into(buf, filled, end).await;
        }
        let end = end.min(filled.saturating_add(usize::try_from(left).unwrap_or(usize::MAX)));
        if end == filled {
            buf.set_len(filled);
            return Ok((0, buf));
        }
        self.send_continue().await?;
        let receive = self.inbox.fill_buf(buf, filled, end);
        let Some((received, buf)) = self.patience.wait(receive).await else {
            return Err(self.stalled());
        };
        let count = self.arrived(&received)?;
        self.outer = Outer::Length(left - count as u64);
        Ok((count, buf))
    }

    async fn decode_into(
        &mut self,
        mut buf: DmaBuf,
        filled: usize,
        end: usize,
    ) -> Result<(usize, DmaBuf)> {
        buf.set_len(filled);
        let count = self
            .pull(end - filled, &mut |data| buf.extend_from_slice(data))
            .await?;
        Ok((count, buf))
    }

    /// The whole body, at most `bytes_max`.
    ///
    /// # Errors
    /// `too_large` past the bound, else as [`Body::fill`].
    pub(crate) async fn read_all(
        &mut self,
        bytes_max: usize,
        too_large: S3ErrorCode,
    ) -> Result<Vec<u8>> {
        let mut all = Vec::new();
        if self.len.is_some_and(|len| len > bytes_max as u64) {
            return Err(too_large.into());
        }
        loop {
            let space = (bytes_max + 1 - all.len()).min(CODED_RECEIVE_BYTES);
            if self
                .pull(space, &mut |data| all.extend_from_slice(data))
                .await?
                == 0
            {
                return Ok(all);
            }
            if all.len() > bytes_max {
                return Err(too_large.into());
            }
        }
    }

    /// Hands decoded bytes to `sink`: at least one and at most `count_max`, or none at the end.
    async fn pull(&mut self, count_max: usize, sink: &mut dyn FnMut(&[u8])) -> Result<usize> {
        loop {
            if self.is_at_end() {
                return Ok(0);
            }
            if self.inbox.unread().is_empty() {
                self.send_continue().await?;
                let want = match &self.outer {
                    Outer::Length(left) => usize::try_from(*left).unwrap_or(usize::MAX),
                    Outer::Chunks(_) => CODED_RECEIVE_BYTES,
                };
                let receive = self.inbox.fill_large(want.min(CODED_RECEIVE_BYTES));
                let Some(received) = self.patience.wait(receive).await else {
                    return Err(self.stalled());
                };
                self.arrived(&received)?;
            }
            let decoded = self.decode_unread(count_max, sink);
            self.failed |= decoded.is_err();
            let count = decoded?;
            if count > 0 {
                return Ok(count);
            }
        }
    }

    /// Decodes from what waits in the inbox, at most `count_max` bytes of it.
    fn decode_unread(&mut self, count_max: usize, sink: &mut dyn FnMut(&[u8])) -> Result<usize> {
        let waiting = self.inbox.unread();
        let window = &waiting[..waiting.len().min(count_max)];
        let (consumed, data) = match &mut self.outer {
            Outer::Length(left) => {
                let take = window
                    .len()
                    .min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= take as u64;
                (take, 0..take)
            }
            Outer::Chunks(decoder) => {
                let step = decoder.push(window)?;
                (step.consumed, step.data)
            }
        };
        let mut count = 0;
        let mut data = &window[data];
        if let Some(aws) = &mut self.aws {
            while !data.is_empty() {
                let step = aws.push(data)?;
                if step.consumed == 0 {
                    return Err(incomplete("The body goes on after its last chunk."));
                }
                count += step.data.len();
                sink(&data[step.data]);
                data = &data[step.consumed..];
            }
        } else if !data.is_empty() {
            count = data.len();
            sink(data);
        }
        self.inbox.consume(consumed);
        Ok(count)
    }

    fn is_at_end(&self) -> bool {
        match &self.outer {
            Outer::Length(left) => *left == 0,
            Outer::Chunks(decoder) => decoder.is_done(),
        }
    }

    /// Ends the body: reads what follows the data; its trailers.
    ///
    /// # Errors
    /// IncompleteBody when there is more data, or the coding has not ended.
    pub(crate) async fn finish(&mut self) -> Result<Trailers> {
        self.send_continue().await?;
        while !self.is_at_end() {
            if self.pull(TAIL_BYTES, &mut |_| {}).await? > 0 {
                self.failed = true;
                return Err(incomplete("The body is longer than announced."));
            }
        }
        match self.aws.take() {
            Some(aws) => aws.finish(),
            None => Ok(Trailers::new()),
        }
    }

    /// Reads what is left and forgets it.
    ///
    /// # Errors
    /// When it is more than `bytes_max`, or as [`Body::fill`].
    pub(crate) async fn discard(&mut self, bytes_max: u64) -> Result<()> {
        self.aws = None;
        let mut total = 0;
        while !self.is_at_end() {
            total += self.pull(CODED_RECEIVE_BYTES, &mut |_| {}).await? as u64;
            if total > bytes_max {
                return Err(incomplete(
                    "The rest of the body is too long to be read away.",
                ));
            }
        }
        Ok(())
    }

    /// What the client may still send.
    pub(crate) fn rest(&self) -> Rest {
        match &self.outer {
            _ if self.failed || self.wants_continue => Rest::Unknown,
            _ if self.is_at_end() => Rest::Nothing,
            Outer::Length(left) => Rest::Bytes(*left),
            Outer::Chunks(_) => Rest::Unknown,
        }
    }

    async fn send_continue(&mut self) -> Result<()> {
        if !std::mem::take(&mut self.wants_continue) || !self.inbox.unread().is_empty() {
            return Ok(());
        }
        let deadline = self.patience.progress_deadline;
        let send = engine::timeout(deadline, self.stream.send(CONTINUE)).await;
        match send {
            Some((Ok(()), _)) => Ok(()),
            Some((Err(_), _)) | None => {
                self.failed = true;
                Err(incomplete(
                    "The connection ended before the body was asked for.",
                ))
            }
        }
    }

    fn arrived(&mut self, received: &io::Result<usize>) -> Result<usize> {
        match received {
            Ok(count) if *count > 0 => {
                self.patience.received += *count as u64;
                Ok(*count)
            }
            Ok(_) | Err(_) => {
                self.failed = true;
                Err(incomplete("The connection ended before the body did."))
            }
        }
    }

    fn stalled(&mut self) -> S3Error {
        self.failed = true;
        S3Error::new(
            S3ErrorCode::RequestTimeout,
            "The body arrived too slowly, or stopped arriving.",
        )
    }
}

fn incomplete(message: &'static str) -> S3Error {
    S3Error::new(S3ErrorCode::IncompleteBody, message)
}
