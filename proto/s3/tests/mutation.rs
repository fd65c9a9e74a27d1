//! Seeded mutation of valid inputs against every decoder of outside bytes.
//!
//! A mutated input may be refused or understood; it may not panic, loop, or hand out more than it
//! was given. The seed is printed; set `S3_WIRE_SEED` to replay one.

use s3_wire::checksum::BodyPromise;
use s3_wire::chunked::{BodyLimits, Decoder, Encoder, Framing};
use s3_wire::conditional::Conditions;
use s3_wire::head::{HeadLimits, Parsed, RequestHead, parse_head};
use s3_wire::list::Fold;
use s3_wire::metadata::ObjectHeaders;
use s3_wire::request::{HostConfig, S3Op};
use s3_wire::sigv4::{
    Credential, CredentialSource, PayloadMode, RegionPolicy, RequestToSign, Signer, UserId,
    Verifier, sign_request,
};
use s3_wire::xml;

const ROUNDS: usize = 20_000;
const NOW: i64 = 1_369_353_600;

/// SplitMix64: small, seeded, good enough to pick bytes.
struct Random(u64);

impl Random {
    fn seeded(test: &str) -> Self {
        let fixed = std::env::var("S3_WIRE_SEED")
            .ok()
            .and_then(|text| text.parse().ok());
        let seed = fixed.unwrap_or(0x5eed_2024);
        println!("{test}: S3_WIRE_SEED={seed}");
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

/// One to four edits: flips, overwrites with bytes that mean something, cuts, repeats.
fn mutate(random: &mut Random, input: &[u8]) -> Vec<u8> {
    const MEANINGFUL: &[u8] = b"\r\n\0:;,=&%+/?<>\"' 0f9-\xff\xc3";
    let mut out = input.to_vec();
    for _ in 0..=random.below(4) {
        let at = random.below(out.len());
        match random.below(5) {
            0 if !out.is_empty() => out[at] ^= 1 << random.below(8),
            1 if !out.is_empty() => out[at] = MEANINGFUL[random.below(MEANINGFUL.len())],
            2 => out.insert(
                at.min(out.len()),
                MEANINGFUL[random.below(MEANINGFUL.len())],
            ),
            3 => {
                let end = (at + random.below(16)).min(out.len());
                out.drain(at.min(end)..end);
            }
            _ => {
                let end = (at + random.below(32)).min(out.len());
                let piece = out[at.min(end)..end].to_vec();
                out.splice(at..at, piece);
            }
        }
    }
    out
}

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

fn signer() -> Signer<'static> {
    Signer {
        access_key: "AKIA",
        secret: "secret",
        session_token: None,
        region: "r",
        unix_s: NOW,
    }
}

fn signed_head(target: &str, extra: &str, payload: &str) -> Vec<u8> {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let request = RequestToSign {
        method: "PUT",
        path,
        query,
        headers: &[("host", "b.s3.test")],
    };
    let made = sign_request(&signer(), &request, payload).expect("the request is well-formed");
    format!(
        "PUT {target} HTTP/1.1\r\nHost: b.s3.test\r\nx-amz-date: {}\r\nx-amz-content-sha256: {payload}\r\n\
         Authorization: {}\r\n{extra}\r\n",
        made.amz_date, made.authorization
    )
    .into_bytes()
}

fn parse(bytes: &[u8]) -> Option<RequestHead> {
    match parse_head(bytes, &HeadLimits::default()) {
        Ok(Parsed::Complete { head, len }) => {
            assert!(len <= bytes.len());
            Some(head)
        }
        Ok(Parsed::Partial) | Err(_) => None,
    }
}

#[test]
fn mutated_heads_are_refused_or_understood() {
    let mut random = Random::seeded("heads");
    let plain = "Content-Length: 5\r\nRange: bytes=0-4\r\nContent-MD5: XUFAKrxLKna5cZ2REBfFkg==\r\n\
        If-Match: \"a\", W/\"b\"\r\nIf-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT\r\nContent-Encoding: aws-chunked,gzip\r\n";
    let signed = signed_head(
        "/b/k%20y?partNumber=1&uploadId=x",
        plain,
        "UNSIGNED-PAYLOAD",
    );
    let presigned = s3_wire::sigv4::presign(
        &signer(),
        &RequestToSign {
            method: "GET",
            path: "/b/k",
            query: "x-id=GetObject",
            headers: &[("host", "a")],
        },
        600,
    )
    .unwrap();
    let presigned = format!("GET /b/k?{presigned} HTTP/1.1\r\nHost: a\r\n\r\n").into_bytes();
    let version_2 = b"PUT /k?partNumber=1&uploadId=x&AWSAccessKeyId=AKIA&Signature=0g8joX%2B5Z78s6yEXUPEyO1zzhq8%3D\
        &content-type=text%2Fplain&x-amz-meta-a=b&Expires=1369354200 HTTP/1.1\r\nHost: box.s3.test\r\n\r\n";
    let list = b"GET /b?list-type=2&prefix=a%2F&delimiter=%2F&max-keys=10&continuation-token=a2E HTTP/1.1\r\nHost: a\r\n\r\n";
    let inputs: [&[u8]; 4] = [&signed, &presigned, version_2, list];
    let hosts = HostConfig {
        base_domain: Some("s3.test".into()),
    };
    let verifier = Verifier::new(RegionPolicy::Any).with_version_2_urls(hosts.clone());
    let whole = parse(version_2).unwrap();
    let version_2_op = S3Op::classify(&whole, &hosts).unwrap();
    assert!(verifier.verify(&whole, NOW, &Everybody).is_ok());
    let mut understood = 0;
    for round in 0..ROUNDS {
        let input = inputs[round % inputs.len()];
        let bytes = mutate(&mut random, input);
        let Some(head) = parse(&bytes) else { continue };
        understood += 1;
        let op = S3Op::classify(&head, &hosts);
        let accepted = verifier.verify(&head, NOW, &Everybody).is_ok();
        if accepted && input == version_2 {
            // Refused for a parameter that is not signed, or what was signed; never another one.
            assert!(
                op.as_ref().map_or(true, |op| *op == version_2_op),
                "{head:?}"
            );
        }
        let _ = BodyPromise::parse(&head);
        let _ = ObjectHeaders::parse(&head);
        let _ = (
            Conditions::of_request(&head),
            Conditions::of_copy_source(&head),
        );
        if let Ok(S3Op::ListObjectsV2(_, params)) = op {
            let _ = Fold::<()>::new(&params.fold_params());
        }
    }
    assert!(understood > ROUNDS / 10, "only {understood} heads parsed");
}

#[test]
fn a_mutated_signed_request_never_verifies_as_something_else() {
    let mut random = Random::seeded("signatures");
    let original = signed_head("/b/k?a=1&b=2", "", "UNSIGNED-PAYLOAD");
    let meaning = |head: &RequestHead| {
        let decode = |text: &str| s3_wire::uri::decode_path(text).map(std::borrow::Cow::into_owned);
        let mut query: Vec<_> = s3_wire::uri::params(head.raw_query())
            .map(|p| {
                (
                    s3_wire::uri::decode_query(p.name).unwrap(),
                    s3_wire::uri::decode_query(p.value).unwrap(),
                )
            })
            .map(|(name, value)| (name.into_owned(), value.into_owned()))
            .collect();
        query.sort();
        let mut amz: Vec<_> = head
            .headers()
            .filter(|(name, _)| name.starts_with("x-amz-"))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        amz.sort();
        (
            head.method_text().to_owned(),
            decode(head.raw_path()).unwrap(),
            query,
            head.host().to_owned(),
            amz,
        )
    };
    let expected = meaning(&parse(&original).unwrap());
    let verifier = Verifier::new(RegionPolicy::Any);
    for _ in 0..ROUNDS {
        let bytes = mutate(&mut random, &original);
        if let Some(head) = parse(&bytes)
            && verifier.verify(&head, NOW, &Everybody).is_ok()
        {
            assert_eq!(
                meaning(&head),
                expected,
                "{}",
                String::from_utf8_lossy(&bytes)
            );
        }
    }
}

#[test]
fn mutated_chunked_bodies_end_within_their_bounds() {
    let mut random = Random::seeded("chunked");
    let seed = |payload: &str| {
        let head = parse(&signed_head("/b/k", "", payload)).unwrap();
        let verified = Verifier::new(RegionPolicy::Any)
            .verify(&head, NOW, &Everybody)
            .unwrap();
        match verified.payload {
            PayloadMode::SignedChunks(seed) => Framing::Signed(seed),
            PayloadMode::SignedChunksTrailer(seed) => Framing::SignedTrailer(seed),
            other => panic!("{other:?}"),
        }
    };
    let framings = [
        Framing::Http,
        Framing::Unsigned,
        seed("STREAMING-AWS4-HMAC-SHA256-PAYLOAD"),
        seed("STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"),
    ];
    let plain = b"the quick brown fox jumps over the lazy dog";
    for (which, framing) in framings.iter().enumerate() {
        let (mut body, mut encoder) = (Vec::new(), Encoder::new(framing.clone()));
        plain
            .chunks(17)
            .for_each(|chunk| encoder.chunk(&mut body, chunk));
        let trailers: &[_] = if which == 2 {
            &[]
        } else {
            &[("x-amz-checksum-crc32", "AAAAAA==")]
        };
        encoder.finish(&mut body, trailers);
        for _ in 0..ROUNDS {
            let bytes = mutate(&mut random, &body);
            let limits = BodyLimits {
                decoded_bytes: Some(plain.len() as u64),
                body_bytes_max: 1 << 20,
            };
            let mut decoder = Decoder::new(framing.clone(), limits).unwrap();
            let (mut data, mut rest) = (Vec::new(), &bytes[..]);
            let piece = 1 + random.below(64);
            while !rest.is_empty() && !decoder.is_done() {
                let Ok(step) = decoder.push(&rest[..piece.min(rest.len())]) else {
                    break;
                };
                assert!(step.consumed > 0 && step.data.end <= step.consumed);
                data.extend_from_slice(&rest[step.data]);
                rest = &rest[step.consumed..];
            }
            assert!(data.len() <= plain.len());
            if decoder.finish().is_ok() {
                assert_eq!(data.len(), plain.len());
                assert!(which < 2 || data == plain, "a forged body passed");
            }
        }
    }
}

#[test]
fn mutated_xml_is_refused_or_understood() {
    let mut random = Random::seeded("xml");
    let delete: &[u8] = b"<?xml version=\"1.0\"?><Delete xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Quiet>true</Quiet>\
        <Object><Key>a&amp;&#x62;<![CDATA[c]]></Key><VersionId>null</VersionId></Object><!-- x --><Object><Key>d</Key></Object></Delete>";
    let complete: &[u8] = b"<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>&quot;d41d8cd98f00b204e9800998ecf8427e&quot;</ETag>\
        <ChecksumCRC32>AAAAAA==</ChecksumCRC32></Part><Part><PartNumber>2</PartNumber><ETag>d41d8cd98f00b204e9800998ecf8427e</ETag></Part></CompleteMultipartUpload>";
    let create: &[u8] =
        b"<CreateBucketConfiguration><LocationConstraint>eu-west-1</LocationConstraint></CreateBucketConfiguration>";
    for _ in 0..ROUNDS {
        if let Ok(request) = xml::parse_delete_objects(&mutate(&mut random, delete)) {
            assert!(
                request
                    .targets
                    .iter()
                    .all(|t| (1..=1024).contains(&t.key.len()))
            );
        }
        if let Ok(parts) = xml::parse_complete_multipart_upload(&mutate(&mut random, complete)) {
            assert!(parts.windows(2).all(|pair| pair[0].number < pair[1].number));
        }
        let _ = xml::parse_create_bucket(&mutate(&mut random, create));
    }
}
