//! Bodies that come in chunks: HTTP's own `chunked`, and S3's aws-chunked in its four forms.
//!
//! A push decoder: it is fed whatever arrived and answers with how much it consumed and which of
//! those bytes are data. It never buffers a body; it keeps one line of at most [`LINE_BYTES_MAX`]
//! bytes. The signature of a chunk is known only at the chunk's end, so data already handed out is
//! *not* authenticated: the caller may store it, but commits only after [`Decoder::finish`] says ok.
//! An error is final; every later call repeats it.
//!
//! ```text
//! size[;extension] CRLF data CRLF ... 0[;extension] CRLF (name:value CRLF)* CRLF
//! ```

mod body;

use std::ops::Range;

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::error::{Result, S3Error, S3ErrorCode};
use crate::sigv4::ChunkSeed;
pub use body::CodedBody;

/// Longest line: a chunk's size with its extension, or a trailer.
pub const LINE_BYTES_MAX: usize = 1024;
/// Largest signed chunk. Unsigned chunks are bounded by the body alone: some SDKs send the whole
/// body as one, and no chunk is ever buffered.
pub const SIGNED_CHUNK_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Most trailers.
pub const TRAILERS_MAX: usize = 16;

/// How the chunks are framed and signed.
#[derive(Debug, Clone)]
pub enum Framing {
    /// `Transfer-Encoding: chunked`.
    Http,
    /// `STREAMING-UNSIGNED-PAYLOAD-TRAILER`.
    Unsigned,
    /// `STREAMING-AWS4-HMAC-SHA256-PAYLOAD`.
    Signed(ChunkSeed),
    /// `STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER`.
    SignedTrailer(ChunkSeed),
}

/// The bounds of a body.
#[derive(Debug, Clone, Copy)]
pub struct BodyLimits {
    /// `x-amz-decoded-content-length`, which must be met exactly; none for HTTP chunks without it.
    pub decoded_bytes: Option<u64>,
    /// Largest body.
    pub body_bytes_max: u64,
}

/// What one push did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Bytes of the input that are done with. Zero only for an empty input or a finished body.
    pub consumed: usize,
    /// The data among them; may be empty.
    pub data: Range<usize>,
}

/// The trailers of a body: (lower-case name, value).
pub type Trailers = Vec<(Box<str>, Box<str>)>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    SizeLine,
    Data { left: u64 },
    DataCr,
    DataLf,
    TrailerLine,
    Done,
    Failed(S3ErrorCode),
}

/// The decoder of one body.
#[derive(Debug)]
pub struct Decoder {
    framing: Framing,
    limits: BodyLimits,
    state: State,
    line: Vec<u8>,
    decoded: u64,
    hash: Sha256,
    signature: [u8; 32],
    trailers: Trailers,
    trailer_signature: Option<[u8; 32]>,
    /// Whether an empty line stood between the trailers and their signature, as minio-go writes it.
    had_gap: bool,
}

impl Decoder {
    /// Starts a body.
    ///
    /// # Errors
    /// MissingContentLength for aws-chunked without a decoded length, EntityTooLarge for one past
    /// the limit.
    pub fn new(framing: Framing, limits: BodyLimits) -> Result<Self> {
        match limits.decoded_bytes {
            None if !matches!(framing, Framing::Http) => {
                return Err(S3Error::new(
                    S3ErrorCode::MissingContentLength,
                    "An aws-chunked body needs x-amz-decoded-content-length.",
                ));
            }
            Some(bytes) if bytes > limits.body_bytes_max => {
                return Err(S3ErrorCode::EntityTooLarge.into());
            }
            _ => {}
        }
        Ok(Self {
            framing,
            limits,
            state: State::SizeLine,
            line: Vec::new(),
            decoded: 0,
            hash: Sha256::new(),
            signature: [0; 32],
            trailers: Vec::new(),
            trailer_signature: None,
            had_gap: false,
        })
    }

    /// Takes bytes until the first run of data, or until the input ends. Call again with the rest.
    ///
    /// # Errors
    /// IncompleteBody for broken framing or a wrong length, SignatureDoesNotMatch for a chunk or
    /// trailer whose signature does not hold, EntityTooLarge past the limit.
    pub fn push(&mut self, input: &[u8]) -> Result<Step> {
        let result = self.advance(input);
        if let Err(error) = &result {
            self.state = State::Failed(error.code);
        }
        result
    }

    /// Whether the last byte of the body has been consumed.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// The bytes of data so far.
    pub fn decoded_bytes(&self) -> u64 {
        self.decoded
    }

    /// Ends the body. Only now is its data authentic and complete.
    ///
    /// # Errors
    /// IncompleteBody when bytes are missing; the first error if there was one.
    pub fn finish(self) -> Result<Trailers> {
        match self.state {
            State::Done => Ok(self.trailers),
            State::Failed(code) => Err(code.into()),
            _ => Err(broken("The body ended before its last chunk.")),
        }
    }

    fn advance(&mut self, input: &[u8]) -> Result<Step> {
        let mut at = 0;
        while at < input.len() {
            match self.state {
                State::SizeLine => at += self.take_line(&input[at..], Self::on_size_line)?,
                State::TrailerLine => at += self.take_line(&input[at..], Self::on_trailer_line)?,
                State::Data { left } => {
                    let take = left.min((input.len() - at) as u64);
                    let data = at..at + take as usize;
                    self.on_data(&input[data.clone()], left - take);
                    return Ok(Step {
                        consumed: data.end,
                        data,
                    });
                }
                State::DataCr | State::DataLf => {
                    self.on_data_end(input[at])?;
                    at += 1;
                }
                State::Done => break,
                State::Failed(code) => return Err(code.into()),
            }
        }
        if let State::Failed(code) = self.state {
            return Err(code.into());
        }
        Ok(Step {
            consumed: at,
            data: at..at,
        })
    }

    /// Collects a line and, when it is whole, hands it on without its line end.
    fn take_line(
        &mut self,
        input: &[u8],
        on_line: fn(&mut Self, &str) -> Result<()>,
    ) -> Result<usize> {
        let end = memchr::memchr(b'\n', input);
        let part = &input[..end.unwrap_or(input.len())];
        if self.line.len() + part.len() > LINE_BYTES_MAX {
            return Err(broken("A chunk header or trailer is longer than 1 KiB."));
        }
        self.line.extend_from_slice(part);
        let Some(end) = end else {
            return Ok(input.len());
        };
        let mut line = std::mem::take(&mut self.line);
        let bare = match line.strip_suffix(b"\r") {
            Some(bare) => bare,
            // minio-go ends trailers with a bare LF; nothing else may.
            None if self.state == State::TrailerLine && self.is_signed() => &line,
            None => return Err(broken("A chunk line does not end with CRLF.")),
        };
        let text = std::str::from_utf8(bare).map_err(|_| broken("A chunk line is not UTF-8."))?;
        on_line(self, text)?;
        line.clear();
        self.line = line;
        Ok(end + 1)
    }

    fn is_signed(&self) -> bool {
        matches!(self.framing, Framing::Signed(_) | Framing::SignedTrailer(_))
    }

    fn on_size_line(&mut self, line: &str) -> Result<()> {
        let (size, extension) = line.split_once(';').unwrap_or((line, ""));
        let size = size.trim_end_matches([' ', '\t']);
        let plain = (1..=16).contains(&size.len()) && size.bytes().all(|b| b.is_ascii_hexdigit());
        let size = u64::from_str_radix(size, 16).ok().filter(|_| plain);
        let size = size.ok_or_else(|| broken("A chunk size is not a hexadecimal number."))?;
        if self.is_signed() {
            if size > SIGNED_CHUNK_BYTES_MAX {
                return Err(S3Error::new(
                    S3ErrorCode::InvalidRequest,
                    "A signed chunk is larger than 16 MiB.",
                ));
            }
            let digits = extension.trim().strip_prefix("chunk-signature=");
            self.signature = parse_signature(digits.unwrap_or_default())?;
        }
        self.check_size(size)?;
        if size > 0 {
            self.state = State::Data { left: size };
            return Ok(());
        }
        if self
            .limits
            .decoded_bytes
            .is_some_and(|expected| expected != self.decoded)
        {
            return Err(broken(
                "The body is shorter than x-amz-decoded-content-length.",
            ));
        }
        self.check_chunk()?;
        self.state = State::TrailerLine;
        Ok(())
    }

    fn check_size(&self, size: u64) -> Result<()> {
        let total = self.decoded.checked_add(size);
        let total = total.filter(|total| *total <= self.limits.body_bytes_max);
        let total = total.ok_or_else(|| S3Error::from(S3ErrorCode::EntityTooLarge))?;
        if self
            .limits
            .decoded_bytes
            .is_some_and(|expected| total > expected)
        {
            return Err(broken(
                "The body is longer than x-amz-decoded-content-length.",
            ));
        }
        Ok(())
    }

    fn on_data(&mut self, data: &[u8], left: u64) {
        if self.is_signed() {
            self.hash.update(data);
        }
        self.decoded += data.len() as u64;
        self.state = if left == 0 {
            State::DataCr
        } else {
            State::Data { left }
        };
    }

    fn on_data_end(&mut self, byte: u8) -> Result<()> {
        match (self.state, byte) {
            (State::DataCr, b'\r') => self.state = State::DataLf,
            (State::DataLf, b'\n') => {
                self.check_chunk()?;
                self.state = State::SizeLine;
            }
            _ => return Err(broken("A chunk is longer than its size.")),
        }
        Ok(())
    }

    /// Compares the signature of the chunk that just ended.
    fn check_chunk(&mut self) -> Result<()> {
        let (Framing::Signed(chain) | Framing::SignedTrailer(chain)) = &mut self.framing else {
            return Ok(());
        };
        let digest = self.hash.finalize_reset().into();
        check_signature(&chain.next_chunk(&digest), &self.signature)
    }

    fn on_trailer_line(&mut self, line: &str) -> Result<()> {
        if line.is_empty() {
            return self.on_trailer_end();
        }
        if matches!(self.framing, Framing::Signed(_)) {
            return Err(broken("A body without trailers ends with a trailer."));
        }
        let (name, value) = line
            .split_once(':')
            .ok_or_else(|| broken("A trailer is not of the form name:value."))?;
        let name = name.trim().to_ascii_lowercase();
        if self.trailer_signature.is_some() || self.trailers.len() >= TRAILERS_MAX {
            return Err(broken("The body has too many trailers."));
        }
        if name == "x-amz-trailer-signature" && self.is_signed() {
            self.trailer_signature = Some(parse_signature(value.trim())?);
        } else if self.had_gap || self.trailers.iter().any(|(known, _)| **known == *name) {
            return Err(broken("A trailer is repeated or out of place."));
        } else {
            self.trailers.push((name.into(), value.trim().into()));
        }
        Ok(())
    }

    fn on_trailer_end(&mut self) -> Result<()> {
        if let Framing::SignedTrailer(chain) = &mut self.framing {
            let Some(signature) = self.trailer_signature else {
                if self.had_gap || self.trailers.is_empty() {
                    return Err(broken("The trailer is not signed."));
                }
                self.had_gap = true;
                return Ok(());
            };
            let mut canonical = Vec::new();
            for (name, value) in &self.trailers {
                canonical.extend_from_slice(name.as_bytes());
                canonical.push(b':');
                canonical.extend_from_slice(value.as_bytes());
                canonical.push(b'\n');
            }
            check_signature(&chain.trailer(&canonical), &signature)?;
        }
        self.state = State::Done;
        Ok(())
    }
}

fn broken(message: &'static str) -> S3Error {
    S3Error::new(S3ErrorCode::IncompleteBody, message)
}

fn parse_signature(digits: &str) -> Result<[u8; 32]> {
    let mut signature = [0; 32];
    hex::decode_to_slice(digits, &mut signature)
        .map_err(|_| broken("A chunk or trailer lacks its signature."))?;
    Ok(signature)
}

fn check_signature(expected: &[u8; 32], got: &[u8; 32]) -> Result<()> {
    if bool::from(expected.ct_eq(got)) {
        Ok(())
    } else {
        Err(S3Error::new(
            S3ErrorCode::SignatureDoesNotMatch,
            "The signature of a chunk or trailer does not match.",
        ))
    }
}

/// Encodes a body in chunks of one size; the client's side, for tests and benchmarks.
#[derive(Debug)]
pub struct Encoder {
    framing: Framing,
}

impl Encoder {
    /// Starts a body.
    pub fn new(framing: Framing) -> Self {
        Self { framing }
    }

    /// Appends one chunk; empty data would end the body and is left out.
    pub fn chunk(&mut self, out: &mut Vec<u8>, data: &[u8]) {
        if !data.is_empty() {
            self.write_chunk(out, data);
            out.extend_from_slice(b"\r\n");
        }
    }

    /// Appends the last chunk and the trailers.
    pub fn finish(mut self, out: &mut Vec<u8>, trailers: &[(&str, &str)]) {
        self.write_chunk(out, b"");
        let mut canonical = Vec::new();
        for (name, value) in trailers {
            out.extend_from_slice(format!("{name}:{value}\r\n").as_bytes());
            canonical.extend_from_slice(format!("{name}:{value}\n").as_bytes());
        }
        if let Framing::SignedTrailer(chain) = &mut self.framing {
            let signature = hex::encode(chain.trailer(&canonical));
            out.extend_from_slice(format!("x-amz-trailer-signature:{signature}\r\n").as_bytes());
        }
        out.extend_from_slice(b"\r\n");
    }

    fn write_chunk(&mut self, out: &mut Vec<u8>, data: &[u8]) {
        out.extend_from_slice(format!("{:x}", data.len()).as_bytes());
        if let Framing::Signed(chain) | Framing::SignedTrailer(chain) = &mut self.framing {
            let signature = hex::encode(chain.next_chunk(&Sha256::digest(data).into()));
            out.extend_from_slice(format!(";chunk-signature={signature}").as_bytes());
        }
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(data);
    }
}

#[cfg(test)]
mod tests;
