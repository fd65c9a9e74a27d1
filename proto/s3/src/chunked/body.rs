//! The coding of a request's body as a whole: none, one layer of chunks, or aws-chunked inside
//! HTTP's chunked, which SDKs send when they do not know the length of a stream.

use super::{BodyLimits, Decoder, Framing, Step, Trailers, broken};
use crate::error::{Result, S3Error};
use crate::head::RequestHead;
use crate::metadata::amz_field;
use crate::sigv4::PayloadMode;

/// The decoder of a body with one or two layers of chunks.
#[derive(Debug)]
pub struct CodedBody {
    inner: Decoder,
    outer: Option<Decoder>,
    /// Bytes at the front of the next input that the outer layer has passed and the inner has not.
    pending: usize,
}

impl CodedBody {
    /// The decoder that a request's body needs; `None` for a plain body of Content-Length bytes,
    /// whose length the caller counts itself.
    ///
    /// # Errors
    /// MissingContentLength for aws-chunked without x-amz-decoded-content-length, InvalidArgument
    /// for one that is not a number, EntityTooLarge past `body_bytes_max`.
    pub fn of_request(
        head: &RequestHead,
        payload: &PayloadMode,
        body_bytes_max: u64,
    ) -> Result<Option<Self>> {
        let framing = match payload {
            PayloadMode::SignedChunks(seed) => Framing::Signed(seed.clone()),
            PayloadMode::SignedChunksTrailer(seed) => Framing::SignedTrailer(seed.clone()),
            PayloadMode::UnsignedTrailer => Framing::Unsigned,
            PayloadMode::Unsigned | PayloadMode::Sha256(_) if head.chunked() => Framing::Http,
            PayloadMode::Unsigned | PayloadMode::Sha256(_) => return Ok(None),
        };
        let two_layers = head.chunked() && !matches!(framing, Framing::Http);
        let decoded_bytes = if matches!(framing, Framing::Http) {
            None
        } else {
            decoded_length(head)?
        };
        let inner = Decoder::new(
            framing,
            BodyLimits {
                decoded_bytes,
                body_bytes_max,
            },
        )?;
        // The outer layer carries the inner one's chunk lines as well: at most eight times the data
        // of honest chunks, and the inner layer bounds the rest.
        let outer_limits = BodyLimits {
            decoded_bytes: None,
            body_bytes_max: body_bytes_max.saturating_mul(8),
        };
        let outer = two_layers
            .then(|| Decoder::new(Framing::Http, outer_limits))
            .transpose()?;
        Ok(Some(Self {
            inner,
            outer,
            pending: 0,
        }))
    }

    /// As [`Decoder::push`].
    pub fn push(&mut self, input: &[u8]) -> Result<Step> {
        let Some(outer) = &mut self.outer else {
            return self.inner.push(input);
        };
        let mut start = 0;
        if self.pending == 0 {
            let step = outer.push(input)?;
            if step.data.is_empty() {
                return Ok(step);
            }
            start = step.data.start;
            self.pending = step.data.len();
        }
        if self.inner.is_done() {
            return Err(broken("Bytes follow the last chunk of the body."));
        }
        let layer = &input[start..input.len().min(start + self.pending)];
        let step = self.inner.push(layer)?;
        self.pending -= step.consumed;
        let data = start + step.data.start..start + step.data.end;
        Ok(Step {
            consumed: start + step.consumed,
            data,
        })
    }

    /// Whether the last byte of the body has been consumed.
    pub fn is_done(&self) -> bool {
        self.pending == 0 && self.outer.as_ref().unwrap_or(&self.inner).is_done()
    }

    /// The bytes of data so far.
    pub fn decoded_bytes(&self) -> u64 {
        self.inner.decoded_bytes()
    }

    /// As [`Decoder::finish`]; the trailers are those of the inner layer.
    pub fn finish(self) -> Result<Trailers> {
        if let Some(outer) = self.outer {
            outer.finish()?;
        }
        self.inner.finish()
    }
}

fn decoded_length(head: &RequestHead) -> Result<Option<u64>> {
    let Some(text) = amz_field(head, "x-amz-decoded-content-length")? else {
        return Ok(None);
    };
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let bytes = text.parse().ok().filter(|_| plain);
    bytes
        .map(Some)
        .ok_or_else(|| S3Error::argument("x-amz-decoded-content-length is not a number."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunked::Encoder;
    use crate::error::S3ErrorCode;
    use crate::head::{HeadLimits, Parsed, parse_head};

    fn head(fields: &str) -> RequestHead {
        let text = format!("PUT /b/k HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
        match parse_head(text.as_bytes(), &HeadLimits::default()) {
            Ok(Parsed::Complete { head, .. }) => head,
            other => panic!("{text}: {other:?}"),
        }
    }

    fn decode(mut body: CodedBody, input: &[u8], piece: usize) -> Result<Vec<u8>> {
        let (mut data, mut rest) = (Vec::new(), input);
        while !rest.is_empty() && !body.is_done() {
            let front = &rest[..piece.min(rest.len())];
            let step = body.push(front)?;
            assert!(step.consumed > 0);
            data.extend_from_slice(&front[step.data]);
            rest = &rest[step.consumed..];
        }
        assert_eq!(body.decoded_bytes(), data.len() as u64);
        body.finish()?;
        Ok(data)
    }

    #[test]
    fn two_layers_decode_in_pieces_of_any_size() {
        let (mut inner, mut outer) = (Vec::new(), Vec::new());
        let mut encoder = Encoder::new(Framing::Unsigned);
        encoder.chunk(&mut inner, b"hello ");
        encoder.chunk(&mut inner, b"world");
        encoder.finish(&mut inner, &[("x-amz-checksum-crc32", "AAAAAA==")]);
        let mut encoder = Encoder::new(Framing::Http);
        inner
            .chunks(7)
            .for_each(|chunk| encoder.chunk(&mut outer, chunk));
        encoder.finish(&mut outer, &[]);
        let nested = head("Transfer-Encoding: chunked\r\nx-amz-decoded-content-length: 11\r\n");
        let single = head("Content-Length: 9\r\nx-amz-decoded-content-length: 11\r\n");
        for piece in 1..40 {
            for (head, input) in [(&nested, &outer), (&single, &inner)] {
                let body = CodedBody::of_request(head, &PayloadMode::UnsignedTrailer, 100)
                    .unwrap()
                    .unwrap();
                assert_eq!(
                    decode(body, input, piece).unwrap(),
                    b"hello world",
                    "{piece}"
                );
            }
        }
        for cut in 0..outer.len() {
            let body = CodedBody::of_request(&nested, &PayloadMode::UnsignedTrailer, 100)
                .unwrap()
                .unwrap();
            assert_eq!(
                decode(body, &outer[..cut], 5).unwrap_err().code,
                S3ErrorCode::IncompleteBody
            );
        }
        let mut longer = Vec::new();
        let mut encoder = Encoder::new(Framing::Http);
        encoder.chunk(&mut longer, &[&*inner, b"x"].concat());
        encoder.finish(&mut longer, &[]);
        let body = CodedBody::of_request(&nested, &PayloadMode::UnsignedTrailer, 100)
            .unwrap()
            .unwrap();
        assert!(decode(body, &longer, 1000).is_err());
    }

    #[test]
    fn the_request_decides_the_layers() {
        let of = |fields: &str, payload: &PayloadMode| {
            CodedBody::of_request(&head(fields), payload, 100)
        };
        assert!(
            of("Content-Length: 5\r\n", &PayloadMode::Unsigned)
                .unwrap()
                .is_none()
        );
        let body = of("Transfer-Encoding: chunked\r\n", &PayloadMode::Unsigned)
            .unwrap()
            .unwrap();
        assert_eq!(decode(body, b"1\r\na\r\n0\r\n\r\n", 3).unwrap(), b"a");
        let code = |fields: &str| of(fields, &PayloadMode::UnsignedTrailer).unwrap_err().code;
        assert_eq!(
            code("Content-Length: 5\r\n"),
            S3ErrorCode::MissingContentLength
        );
        assert_eq!(
            code("x-amz-decoded-content-length: +5\r\n"),
            S3ErrorCode::InvalidArgument
        );
        assert_eq!(
            code("x-amz-decoded-content-length: 101\r\n"),
            S3ErrorCode::EntityTooLarge
        );
    }
}
