//! Encode, cut anywhere, decode; and bodies that are just wrong.

use proptest::prelude::*;

use super::*;
use crate::sigv4::SigningKey;

fn seed() -> ChunkSeed {
    let key = SigningKey::derive("secret", "20130524", "us-east-1");
    ChunkSeed::new(
        &key,
        b"20130524T000000Z",
        "20130524/us-east-1/s3/aws4_request",
        [7; 32],
    )
}

fn framings() -> [Framing; 4] {
    [
        Framing::Http,
        Framing::Unsigned,
        Framing::Signed(seed()),
        Framing::SignedTrailer(seed()),
    ]
}

fn takes_trailers(framing: &Framing) -> bool {
    !matches!(framing, Framing::Signed(_))
}

fn encode(framing: Framing, chunks: &[&[u8]]) -> Vec<u8> {
    let trailers: &[_] = if takes_trailers(&framing) {
        &[("x-amz-checksum-crc32", "AAAAAA==")]
    } else {
        &[]
    };
    let (mut out, mut encoder) = (Vec::new(), Encoder::new(framing));
    for chunk in chunks {
        encoder.chunk(&mut out, chunk);
    }
    encoder.finish(&mut out, trailers);
    out
}

/// Pushes the pieces one after the other; returns the data, the trailers and what was left over.
fn decode(
    framing: Framing,
    expected: Option<u64>,
    pieces: &[&[u8]],
) -> Result<(Vec<u8>, Trailers, usize)> {
    let limits = BodyLimits {
        decoded_bytes: expected,
        body_bytes_max: 1 << 20,
    };
    let mut decoder = Decoder::new(framing, limits)?;
    let (mut data, mut left) = (Vec::new(), 0);
    for piece in pieces {
        let mut rest = *piece;
        while !rest.is_empty() && !decoder.is_done() {
            let step = decoder.push(rest)?;
            assert!(step.consumed > 0 && step.data.end <= step.consumed);
            data.extend_from_slice(&rest[step.data]);
            rest = &rest[step.consumed..];
        }
        left += rest.len();
    }
    assert_eq!(decoder.decoded_bytes(), data.len() as u64);
    Ok((data, decoder.finish()?, left))
}

#[test]
fn every_split_of_every_framing_gives_the_body_back() {
    for framing in framings() {
        let mut body = encode(framing.clone(), &[b"hello", b" ", b"world, this is a body"]);
        let len = body.len();
        body.extend_from_slice(b"GET /next");
        for cut in 0..=len {
            let (data, trailers, left) =
                decode(framing.clone(), Some(27), &[&body[..cut], &body[cut..]]).unwrap();
            assert_eq!(data, b"hello world, this is a body", "{framing:?} at {cut}");
            assert_eq!(trailers.len(), usize::from(takes_trailers(&framing)));
            assert_eq!(left, b"GET /next".len());
        }
        let bytes: Vec<&[u8]> = body[..len].chunks(1).collect();
        assert!(decode(framing.clone(), Some(27), &bytes).is_ok());
        for cut in 0..len {
            let error = decode(framing.clone(), Some(27), &[&body[..cut]]).unwrap_err();
            assert_eq!(error.code, S3ErrorCode::IncompleteBody, "cut at {cut}");
        }
    }
}

#[test]
fn the_published_example_body_decodes() {
    // From AWS's "Signature calculations for the Authorization header: multiple chunks".
    let key = SigningKey::derive(
        "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
        "20130524",
        "us-east-1",
    );
    let mut first = [0; 32];
    let text = "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9";
    hex::decode_to_slice(text, &mut first).unwrap();
    let chain = ChunkSeed::new(
        &key,
        b"20130524T000000Z",
        "20130524/us-east-1/s3/aws4_request",
        first,
    );
    let mut body = Vec::new();
    for (size, signature) in [
        (
            "10000",
            "ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648",
        ),
        (
            "400",
            "0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497",
        ),
        (
            "0",
            "b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9",
        ),
    ] {
        body.extend_from_slice(format!("{size};chunk-signature={signature}\r\n").as_bytes());
        body.resize(body.len() + usize::from_str_radix(size, 16).unwrap(), b'a');
        body.extend_from_slice(b"\r\n");
    }
    assert_eq!(body.len(), 66_824);
    let (data, _, _) = decode(Framing::Signed(chain), Some(66_560), &[&body]).unwrap();
    assert_eq!(data, vec![b'a'; 66_560]);
}

#[test]
fn a_changed_byte_of_signed_data_or_trailer_is_caught() {
    for framing in [Framing::Signed(seed()), Framing::SignedTrailer(seed())] {
        let body = encode(framing.clone(), &[b"hello", b"world"]);
        let is_data =
            |at: usize| body[at..].starts_with(b"hello") || body[at..].starts_with(b"world");
        for at in (0..body.len()).filter(|at| is_data(*at)) {
            let mut forged = body.clone();
            forged[at] ^= 1;
            let error = decode(framing.clone(), Some(10), &[&forged]).unwrap_err();
            assert_eq!(error.code, S3ErrorCode::SignatureDoesNotMatch);
        }
        let text = String::from_utf8(body).unwrap();
        let swapped = text
            .replace("hello", "x")
            .replace("world", "hello")
            .replace('x', "world");
        assert!(decode(framing.clone(), Some(10), &[swapped.as_bytes()]).is_err());
        if takes_trailers(&framing) {
            let forged = text.replace("AAAAAA==", "AAAAAB==");
            let error = decode(framing, Some(10), &[forged.as_bytes()]).unwrap_err();
            assert_eq!(error.code, S3ErrorCode::SignatureDoesNotMatch);
        }
    }
}

#[test]
fn the_decoded_length_must_be_met_exactly() {
    for framing in framings() {
        let body = encode(framing.clone(), &[b"hello"]);
        for wrong in [0, 4, 6] {
            let error = decode(framing.clone(), Some(wrong), &[&body]).unwrap_err();
            assert_eq!(error.code, S3ErrorCode::IncompleteBody, "{wrong}");
        }
        let limits = |decoded_bytes| BodyLimits {
            decoded_bytes,
            body_bytes_max: 10,
        };
        let error = Decoder::new(framing.clone(), limits(Some(11))).unwrap_err();
        assert_eq!(error.code, S3ErrorCode::EntityTooLarge);
        assert_eq!(
            Decoder::new(framing.clone(), limits(None)).is_ok(),
            matches!(framing, Framing::Http)
        );
    }
    let mut decoder = Decoder::new(
        Framing::Http,
        BodyLimits {
            decoded_bytes: None,
            body_bytes_max: 4,
        },
    )
    .unwrap();
    let error = decoder.push(b"5\r\n").unwrap_err();
    assert_eq!(error.code, S3ErrorCode::EntityTooLarge);
    assert_eq!(
        decoder.push(b"x").unwrap_err().code,
        S3ErrorCode::EntityTooLarge
    );
    assert_eq!(
        decoder.push(b"").unwrap_err().code,
        S3ErrorCode::EntityTooLarge
    );
    assert_eq!(
        decoder.finish().unwrap_err().code,
        S3ErrorCode::EntityTooLarge
    );
}

#[test]
fn broken_framing_is_refused() {
    for body in [
        "\r\n",
        "x\r\n",
        "-1\r\n",
        "+1\r\na\r\n0\r\n\r\n",
        " 1\r\na\r\n0\r\n\r\n",
        "0x1\r\na\r\n0\r\n\r\n",
        "1\na\r\n0\r\n\r\n",
        "1\r\nab\r\n0\r\n\r\n",
        "1\r\na\n0\r\n\r\n",
        "0\r\nname\r\n\r\n",
        "00000000000000001\r\na\r\n0\r\n\r\n",
        "0\r\na:b\r\na:c\r\n\r\n",
        "0\r\n\n",
        "é\r\n",
    ] {
        let error = decode(Framing::Http, None, &[body.as_bytes()]).unwrap_err();
        assert_eq!(error.code, S3ErrorCode::IncompleteBody, "{body:?}");
    }
    let huge = decode(Framing::Http, None, &[b"ffffffffffffffff\r\n"]).unwrap_err();
    assert_eq!(huge.code, S3ErrorCode::EntityTooLarge);
    let many = (0..17).fold(String::new(), |all, n| format!("{all}t{n}:v\r\n"));
    assert!(
        decode(
            Framing::Http,
            None,
            &[format!("0\r\n{many}\r\n").as_bytes()]
        )
        .is_err()
    );
    assert!(
        decode(
            Framing::Http,
            None,
            &[format!("0\r\na:{}\r\n\r\n", "b".repeat(1022)).as_bytes()]
        )
        .is_err()
    );
    assert!(
        decode(
            Framing::Http,
            None,
            &[format!("0\r\na:{}\r\n\r\n", "b".repeat(1021)).as_bytes()]
        )
        .is_ok()
    );
    assert!(decode(Framing::Http, None, &[b"1;a=b\r\nx\r\n0;c\r\n\r\n"]).is_ok());
    let unsigned = encode(Framing::Unsigned, &[b"hello"]);
    assert!(decode(Framing::Signed(seed()), Some(5), &[&unsigned]).is_err());
    let with_trailer = decode(
        Framing::Signed(seed()),
        Some(5),
        &[&encode(Framing::SignedTrailer(seed()), &[b"hello"])],
    );
    assert!(with_trailer.is_err());
}

#[test]
fn the_trailer_layout_of_minio_go_is_accepted() {
    let text = String::from_utf8(encode(Framing::SignedTrailer(seed()), &[b"hello"])).unwrap();
    let odd = text.replace("AAAAAA==\r\n", "AAAAAA==\n\r\n");
    let (_, trailers, _) =
        decode(Framing::SignedTrailer(seed()), Some(5), &[odd.as_bytes()]).unwrap();
    assert_eq!(
        trailers,
        [("x-amz-checksum-crc32".into(), "AAAAAA==".into())]
    );
    let unsigned = &odd[..odd.find("x-amz-trailer").unwrap()];
    assert!(
        decode(
            Framing::SignedTrailer(seed()),
            Some(5),
            &[unsigned.as_bytes(), b"\r\n\r\n"]
        )
        .is_err()
    );
}

proptest! {
    #[test]
    fn any_body_in_any_pieces_round_trips(
        chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..5),
        piece in 1_usize..64,
        which in 0_usize..4,
    ) {
        let framing = framings()[which].clone();
        let slices: Vec<&[u8]> = chunks.iter().map(|c| &**c).collect();
        let body = encode(framing.clone(), &slices);
        let pieces: Vec<&[u8]> = body.chunks(piece).collect();
        let plain = chunks.concat();
        let (data, _, left) = decode(framing, Some(plain.len() as u64), &pieces).unwrap();
        prop_assert_eq!((data, left), (plain, 0));
    }
}
