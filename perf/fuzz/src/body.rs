//! Bodies in chunks.

use std::sync::LazyLock;

use s3_wire::chunked::{BodyLimits, Decoder, Encoder, Framing, Trailers};
use s3_wire::head::{HeadLimits, Parsed, parse_head};
use s3_wire::sigv4::{
    ChunkSeed, Credential, CredentialSource, PayloadMode, RegionPolicy, RequestToSign, Signer,
    UserId, Verifier, sign_request,
};

const NOW: i64 = 1_369_353_600;
const BODY_BYTES_MAX: u64 = 1 << 20;
/// Chunks of an encoded body: each of them is signed, which takes longer than all the rest.
const CHUNKS_MAX: usize = 16;

/// The same for every input.
static SEED: LazyLock<ChunkSeed> = LazyLock::new(seed);

struct Everybody;

impl CredentialSource for Everybody {
    fn lookup(&self, _: &str) -> Option<Credential<'_>> {
        Some(Credential {
            secret: "secret",
            user: UserId(1),
            session_token: None,
        })
    }
}

/// The seed that a server has after it verified the head of such a body.
fn seed() -> ChunkSeed {
    let payload = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD";
    let signer = Signer {
        access_key: "AKIA",
        secret: "secret",
        session_token: None,
        region: "r",
        unix_s: NOW,
    };
    let request = RequestToSign {
        method: "PUT",
        path: "/b/k",
        query: "",
        headers: &[("host", "a")],
    };
    let signed = sign_request(&signer, &request, payload).expect("the request is well-formed");
    let head = format!(
        "PUT /b/k HTTP/1.1\r\nHost: a\r\nx-amz-date: {}\r\nx-amz-content-sha256: {payload}\r\n\
         Authorization: {}\r\n\r\n",
        signed.amz_date, signed.authorization
    );
    let parsed = parse_head(head.as_bytes(), &HeadLimits::default());
    let Ok(Parsed::Complete { head, .. }) = parsed else {
        panic!("the head is well-formed");
    };
    let verified = Verifier::new(RegionPolicy::Any).verify(&head, NOW, &Everybody);
    match verified.expect("the signature holds").payload {
        PayloadMode::SignedChunks(seed) => seed,
        other => panic!("{other:?}"),
    }
}

/// The body and its trailers, taken in pieces of `piece` bytes; `None` when it is refused.
fn decode(
    framing: &Framing,
    decoded: u64,
    piece: usize,
    input: &[u8],
) -> Option<(Vec<u8>, Trailers)> {
    let limits = BodyLimits {
        decoded_bytes: Some(decoded),
        body_bytes_max: BODY_BYTES_MAX,
    };
    let mut decoder = Decoder::new(framing.clone(), limits).ok()?;
    let (mut data, mut rest) = (Vec::new(), input);
    while !rest.is_empty() && !decoder.is_done() {
        let step = decoder.push(&rest[..piece.min(rest.len())]).ok()?;
        assert!(
            step.consumed > 0 && step.data.end <= step.consumed,
            "every step moves on"
        );
        data.extend_from_slice(&rest[step.data]);
        rest = &rest[step.consumed..];
    }
    assert!(
        data.len() as u64 <= decoded,
        "no more comes out than was promised"
    );
    let trailers = decoder.finish().ok()?;
    assert_eq!(
        data.len() as u64,
        decoded,
        "a whole body has the promised length"
    );
    Some((data, trailers))
}

/// The first bytes choose framing, pieces and promised length; the rest is the body.
pub fn chunked(input: &[u8]) {
    let [which, piece, low, high, body @ ..] = input else {
        return;
    };
    let framing = match which % 4 {
        0 => Framing::Http,
        1 => Framing::Unsigned,
        2 => Framing::Signed(SEED.clone()),
        _ => Framing::SignedTrailer(SEED.clone()),
    };
    let decoded = u64::from(u16::from_le_bytes([*low, *high]));
    let piece = 1 + usize::from(*piece);
    let whole = decode(&framing, decoded, body.len().max(1), body);
    assert_eq!(
        whole,
        decode(&framing, decoded, piece, body),
        "pieces change nothing"
    );
    // What an encoder makes of the bytes is those bytes again.
    let (mut coded, mut encoder) = (Vec::new(), Encoder::new(framing.clone()));
    body.chunks(piece.max(body.len().div_ceil(CHUNKS_MAX)))
        .for_each(|chunk| encoder.chunk(&mut coded, chunk));
    let trailers: &[_] = match which % 4 {
        1 | 3 => &[("x-amz-checksum-crc32", "AAAAAA==")],
        _ => &[],
    };
    encoder.finish(&mut coded, trailers);
    let again = decode(&framing, body.len() as u64, piece, &coded);
    let (data, _) = again.expect("an encoded body decodes");
    assert!(data == body);
}
