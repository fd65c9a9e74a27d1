//! AWS's published examples, and what a forger would try.

use super::*;
use crate::head::{HeadLimits, Parsed, parse_head};

pub(crate) const KEY: &str = "AKIAIOSFODNN7EXAMPLE";
pub(crate) const SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
const NOW: i64 = 1_369_353_600;
const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
const HOST: (&str, &str) = ("host", "examplebucket.s3.amazonaws.com");

struct OneKey {
    secret: &'static str,
    token: Option<&'static str>,
}

impl CredentialSource for OneKey {
    fn lookup(&self, access_key: &str) -> Option<Credential<'_>> {
        let credential = Credential {
            secret: self.secret,
            user: UserId(7),
            session_token: self.token,
        };
        (access_key == KEY).then_some(credential)
    }
}

const USERS: OneKey = OneKey {
    secret: SECRET,
    token: None,
};

fn signer() -> Signer<'static> {
    Signer {
        access_key: KEY,
        secret: SECRET,
        session_token: None,
        region: "us-east-1",
        unix_s: NOW,
    }
}

fn verifier() -> Verifier {
    Verifier::new(RegionPolicy::Exactly("us-east-1".into()))
}

fn head(method: &str, target: &str, headers: &[(&str, &str)]) -> RequestHead {
    let mut text = format!("{method} {target} HTTP/1.1\r\n");
    for &(name, value) in headers {
        text.extend([name, ": ", value, "\r\n"]);
    }
    text.push_str("\r\n");
    match parse_head(text.as_bytes(), &HeadLimits::default()) {
        Ok(Parsed::Complete { head, .. }) => head,
        other => panic!("{text}: {other:?}"),
    }
}

/// A signed head, as a client would send it.
fn signed(
    method: &str,
    target: &str,
    extra: &[(&str, &str)],
    payload: &str,
) -> (RequestHead, SignedRequest) {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let request = RequestToSign {
        method,
        path,
        query,
        headers: extra,
    };
    let signature = sign_request(&signer(), &request, payload).unwrap();
    let mut headers = extra.to_vec();
    headers.push(("X-Amz-Date", &signature.amz_date));
    headers.push(("x-amz-content-sha256", payload));
    headers.push(("Authorization", &signature.authorization));
    (head(method, target, &headers), signature)
}

fn code(result: Result<Authenticated>) -> S3ErrorCode {
    result.unwrap_err().code
}

#[test]
fn the_published_header_examples_verify() {
    let put_hash = "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072";
    let date = ("date", "Fri, 24 May 2013 00:00:00 GMT");
    let class = ("x-amz-storage-class", "REDUCED_REDUNDANCY");
    for (method, target, headers, payload, signature) in [
        (
            "GET",
            "/test.txt",
            vec![HOST, ("range", "bytes=0-9")],
            EMPTY,
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
        ),
        (
            "PUT",
            "/test$file.text",
            vec![HOST, date, class],
            put_hash,
            "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
        ),
        (
            "GET",
            "/?lifecycle",
            vec![HOST],
            EMPTY,
            "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
        ),
        (
            "GET",
            "/?max-keys=2&prefix=J",
            vec![HOST],
            EMPTY,
            "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
        ),
    ] {
        let (head, made) = signed(method, target, &headers, payload);
        assert!(
            made.authorization.ends_with(signature),
            "{target}: {}",
            made.authorization
        );
        let got = verifier().verify(&head, NOW, &USERS).unwrap();
        assert_eq!((&*got.access_key, got.user), (KEY, UserId(7)));
        assert!(matches!(got.payload, PayloadMode::Sha256(_)));
    }
}

#[test]
fn the_published_presigned_example_verifies_until_it_expires() {
    let request = RequestToSign {
        method: "GET",
        path: "/test.txt",
        query: "",
        headers: &[HOST],
    };
    let query = presign(&signer(), &request, 86_400).unwrap();
    assert!(query.ends_with("aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"));
    let get = |target: &str, now| verifier().verify(&head("GET", target, &[HOST]), now, &USERS);
    let target = format!("/test.txt?{query}");
    for now in [NOW - 900, NOW, NOW + 86_400] {
        let got = get(&target, now).unwrap();
        assert!(matches!(got.payload, PayloadMode::Unsigned));
    }
    for now in [NOW - 901, NOW + 86_401] {
        assert_eq!(code(get(&target, now)), S3ErrorCode::AccessDenied);
    }
    assert_eq!(
        code(get(&target.replace("test", "tesu"), NOW)),
        S3ErrorCode::SignatureDoesNotMatch
    );
    assert_eq!(
        code(get(&format!("{target}&acl"), NOW)),
        S3ErrorCode::SignatureDoesNotMatch
    );
    for (from, to) in [
        ("86400", "0"),
        ("86400", "604801"),
        ("86400", "%2B5"),
        ("&X-Amz-Date", "&Y"),
        ("us-east-1", "eu"),
        ("X-Amz-Expires", "X-Amz-Date"),
    ] {
        let changed = target.replace(from, to);
        assert_eq!(
            code(get(&changed, NOW)),
            S3ErrorCode::AuthorizationQueryParametersError,
            "{changed}"
        );
    }
}

#[test]
fn the_published_chunk_chain_follows_from_the_seed() {
    let extra = [
        ("host", "s3.amazonaws.com"),
        ("content-encoding", "aws-chunked"),
        ("content-length", "66824"),
        ("x-amz-decoded-content-length", "66560"),
        ("x-amz-storage-class", "REDUCED_REDUNDANCY"),
    ];
    let mode = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD";
    let (head, made) = signed("PUT", "/examplebucket/chunkObject.txt", &extra, mode);
    let seed = "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9";
    assert!(made.authorization.ends_with(seed), "{}", made.authorization);
    let got = verifier().verify(&head, NOW, &USERS).unwrap();
    let PayloadMode::SignedChunks(mut chain) = got.payload else {
        panic!()
    };
    for (size, signature) in [
        (
            65_536,
            "ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648",
        ),
        (
            1024,
            "0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497",
        ),
        (
            0,
            "b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9",
        ),
    ] {
        let digest = Sha256::digest(vec![b'a'; size]).into();
        assert_eq!(hex::encode(chain.next_chunk(&digest)), signature);
    }
}

#[test]
fn the_published_trailer_signature_follows_from_the_seed() {
    let key = SigningKey::derive(SECRET, "20130524", "us-east-1");
    let mut seed = [0; 32];
    let text = "106e2a8a18243abcf37539882f36619c00e2dfc72633413f02d3b74544bfeb8e";
    hex::decode_to_slice(text, &mut seed).unwrap();
    let mut chain = ChunkSeed::new(
        &key,
        b"20130524T000000Z",
        "20130524/us-east-1/s3/aws4_request",
        seed,
    );
    for (size, signature) in [
        (
            65_536,
            "b474d8862b1487a5145d686f57f013e54db672cee1c953b3010fb58501ef5aa2",
        ),
        (
            1024,
            "1c1344b170168f8e65b41376b44b20fe354e373826ccbbe2c1d40a8cae51e5c7",
        ),
        (
            0,
            "2ca2aba2005185cf7159c6277faf83795951dd77a3a99e6e65d5c9f85863f992",
        ),
    ] {
        let digest = Sha256::digest(vec![b'a'; size]).into();
        assert_eq!(hex::encode(chain.next_chunk(&digest)), signature);
    }
    assert_eq!(
        hex::encode(chain.trailer(b"x-amz-checksum-crc32c:sOO8/Q==\n")),
        "d81f82fc3505edab99d459891051a732e8730629a2e4a59689829ca17fe2e435"
    );
}

#[test]
fn anything_under_the_signature_that_changes_breaks_it() {
    let (_, made) = signed("PUT", "/b/k?x=1", &[HOST], EMPTY);
    let attempt = |method: &str, target: &str, host: &str, payload: &str| {
        let headers = [
            ("host", host),
            ("x-amz-date", &*made.amz_date),
            ("x-amz-content-sha256", payload),
            ("authorization", &*made.authorization),
        ];
        verifier().verify(&head(method, target, &headers), NOW, &USERS)
    };
    assert!(attempt("PUT", "/b/k?x=1", HOST.1, EMPTY).is_ok());
    for (method, target, host, payload) in [
        ("GET", "/b/k?x=1", HOST.1, EMPTY),
        ("PUT", "/b/l?x=1", HOST.1, EMPTY),
        ("PUT", "/b/k?x=2", HOST.1, EMPTY),
        ("PUT", "/b/k", HOST.1, EMPTY),
        ("PUT", "/b/k?x=1", "evil", EMPTY),
        ("PUT", "/b/k?x=1", HOST.1, "UNSIGNED-PAYLOAD"),
    ] {
        let got = code(attempt(method, target, host, payload));
        assert_eq!(got, S3ErrorCode::SignatureDoesNotMatch, "{method} {target}");
    }
}

#[test]
fn unsigned_amz_headers_are_refused_in_both_mechanisms() {
    let (_, made) = signed("PUT", "/b/k", &[HOST], EMPTY);
    let copy = ("x-amz-copy-source", "/other/secret");
    let by_header = head(
        "PUT",
        "/b/k",
        &[
            HOST,
            ("x-amz-date", &made.amz_date),
            ("x-amz-content-sha256", EMPTY),
            ("authorization", &made.authorization),
            copy,
        ],
    );
    assert_eq!(
        code(verifier().verify(&by_header, NOW, &USERS)),
        S3ErrorCode::AccessDenied
    );
    let request = RequestToSign {
        method: "PUT",
        path: "/b/k",
        query: "",
        headers: &[HOST],
    };
    let target = format!("/b/k?{}", presign(&signer(), &request, 60).unwrap());
    let by_query = |extra| verifier().verify(&head("PUT", &target, &[HOST, extra]), NOW, &USERS);
    assert_eq!(code(by_query(copy)), S3ErrorCode::AccessDenied);
    assert_eq!(
        code(by_query(("x-amz-content-sha256", EMPTY))),
        S3ErrorCode::AccessDenied
    );
    assert!(by_query(("x-amz-content-sha256", "UNSIGNED-PAYLOAD")).is_ok());
    assert!(by_query(("content-type", "text/plain")).is_ok());
    let no_host = RequestToSign {
        headers: &[("range", "x")],
        ..request
    };
    let target = format!("/b/k?{}", presign(&signer(), &no_host, 60).unwrap());
    let got = verifier().verify(&head("PUT", &target, &[HOST, ("range", "x")]), NOW, &USERS);
    assert_eq!(code(got), S3ErrorCode::AuthorizationQueryParametersError);
}

#[test]
fn paths_and_queries_are_made_canonical_before_they_are_compared() {
    for (sent, signed_as) in [
        ("/b/a%20b%2Fc", "/b/a%20b/c"),
        ("/b/a~b!(c)", "/b/a~b%21%28c%29"),
        ("/b/%7e%41", "/b/~A"),
        ("/b/caf\u{e9}?b=2&a=1", "/b/caf%C3%A9?a=1&b=2"),
        ("/b/k?p=a%2fb&q=x+y", "/b/k?p=a%2Fb&q=x%20y"),
        ("/b/k?acl", "/b/k?acl="),
    ] {
        let (_, made) = signed("GET", signed_as, &[HOST], EMPTY);
        let head = head(
            "GET",
            sent,
            &[
                ("host", HOST.1),
                ("x-amz-date", &made.amz_date),
                ("x-amz-content-sha256", EMPTY),
                ("authorization", &made.authorization),
            ],
        );
        assert!(verifier().verify(&head, NOW, &USERS).is_ok(), "{sent}");
    }
}

#[test]
fn header_values_are_trimmed_folded_and_joined() {
    let extra = [HOST, ("x-amz-meta-a", "a b,c")];
    let (_, made) = signed("PUT", "/b/k", &extra, EMPTY);
    let head = head(
        "PUT",
        "/b/k",
        &[
            HOST,
            ("x-amz-meta-a", "  a   b "),
            ("X-Amz-Meta-A", "c"),
            ("x-amz-date", &made.amz_date),
            ("x-amz-content-sha256", EMPTY),
            ("authorization", &made.authorization),
        ],
    );
    assert!(verifier().verify(&head, NOW, &USERS).is_ok());
}

#[test]
fn time_region_and_key_are_checked() {
    let (head, _) = signed("GET", "/b/k", &[HOST], EMPTY);
    let verify = |now| verifier().verify(&head, now, &USERS);
    assert!(verify(NOW + 900).is_ok() && verify(NOW - 900).is_ok());
    assert_eq!(code(verify(NOW + 901)), S3ErrorCode::RequestTimeTooSkewed);
    assert_eq!(code(verify(i64::MIN)), S3ErrorCode::RequestTimeTooSkewed);
    let elsewhere = Verifier::new(RegionPolicy::Exactly("eu-west-1".into()));
    let error = elsewhere.verify(&head, NOW, &USERS);
    assert_eq!(code(error), S3ErrorCode::AuthorizationHeaderMalformed);
    assert!(
        Verifier::new(RegionPolicy::Any)
            .verify(&head, NOW, &USERS)
            .is_ok()
    );
    struct Nobody;
    impl CredentialSource for Nobody {
        fn lookup(&self, _: &str) -> Option<Credential<'_>> {
            None
        }
    }
    assert_eq!(
        code(verifier().verify(&head, NOW, &Nobody)),
        S3ErrorCode::InvalidAccessKeyId
    );
}

#[test]
fn a_cached_key_does_not_outlive_its_secret() {
    let (head, _) = signed("GET", "/b/k", &[HOST], EMPTY);
    let verifier = verifier();
    assert!(verifier.verify(&head, NOW, &USERS).is_ok());
    assert!(verifier.verify(&head, NOW, &USERS).is_ok());
    let rotated = OneKey {
        secret: "another",
        token: None,
    };
    assert_eq!(
        code(verifier.verify(&head, NOW, &rotated)),
        S3ErrorCode::SignatureDoesNotMatch
    );
    assert!(verifier.verify(&head, NOW, &USERS).is_ok());
}

#[test]
fn session_tokens_must_match() {
    let with_token = Signer {
        session_token: Some("t0k"),
        ..signer()
    };
    let request = RequestToSign {
        method: "GET",
        path: "/b/k",
        query: "",
        headers: &[HOST],
    };
    let target = format!("/b/k?{}", presign(&with_token, &request, 60).unwrap());
    let head = head("GET", &target, &[HOST]);
    for (token, ok) in [(Some("t0k"), true), (Some("other"), false), (None, false)] {
        let users = OneKey {
            secret: SECRET,
            token,
        };
        assert_eq!(
            verifier().verify(&head, NOW, &users).is_ok(),
            ok,
            "{token:?}"
        );
    }
}

#[test]
fn other_mechanisms_are_named_in_the_refusal() {
    let verify = |target: &str, auth: Option<&str>| {
        let mut headers = vec![
            HOST,
            ("x-amz-date", "20130524T000000Z"),
            ("x-amz-content-sha256", EMPTY),
        ];
        headers.extend(auth.map(|value| ("authorization", value)));
        code(verifier().verify(&head("GET", target, &headers), NOW, &USERS))
    };
    use S3ErrorCode::*;
    let fine = format!("Credential={KEY}/20130524/us-east-1/s3/aws4_request");
    let hex = "0".repeat(64);
    for (target, auth, expected) in [
        ("/b", None, AccessDenied),
        (
            "/b?AWSAccessKeyId=a&Signature=b&Expires=1",
            None,
            InvalidRequest,
        ),
        (
            "/b?X-Amz-Signature=b",
            None,
            AuthorizationQueryParametersError,
        ),
        ("/b", Some("AWS AKIA:sig".into()), InvalidRequest),
        ("/b", Some("Bearer x".into()), InvalidRequest),
        (
            "/b",
            Some("AWS4-ECDSA-P256-SHA256 x".into()),
            NotImplemented,
        ),
        (
            "/b",
            Some("AWS4-HMAC-SHA256".into()),
            AuthorizationHeaderMalformed,
        ),
        (
            "/b",
            Some(format!("AWS4-HMAC-SHA256 {fine}")),
            AuthorizationHeaderMalformed,
        ),
        (
            "/b",
            Some(format!(
                "AWS4-HMAC-SHA256 {fine}, SignedHeaders=host, Signature=00"
            )),
            AuthorizationHeaderMalformed,
        ),
        (
            "/b",
            Some(format!(
                "AWS4-HMAC-SHA256 {fine}, SignedHeaders=range, Signature={hex}"
            )),
            AuthorizationHeaderMalformed,
        ),
        (
            "/b",
            Some(format!(
                "AWS4-HMAC-SHA256 Credential=a/b, SignedHeaders=host, Signature={hex}"
            )),
            AuthorizationHeaderMalformed,
        ),
        (
            "/b",
            Some(format!(
                "AWS4-HMAC-SHA256 {}, SignedHeaders=host, Signature={hex}",
                fine.replace("/s3/", "/ec2/")
            )),
            AuthorizationHeaderMalformed,
        ),
        (
            "/b",
            Some(format!(
                "AWS4-HMAC-SHA256 {}, SignedHeaders=host, Signature={hex}",
                fine.replace("0524", "0525")
            )),
            AuthorizationHeaderMalformed,
        ),
        (
            "/b?X-Amz-Algorithm=AWS4-HMAC-SHA256",
            Some(format!("AWS4-HMAC-SHA256 {fine}")),
            InvalidArgument,
        ),
    ] {
        let auth: Option<String> = auth;
        assert_eq!(
            verify(target, auth.as_deref()),
            expected,
            "{target} {auth:?}"
        );
    }
}

#[test]
fn payload_modes_are_read_only_after_the_signature_holds() {
    let mode = |payload: &str| {
        let (head, _) = signed("PUT", "/b/k", &[HOST], payload);
        verifier().verify(&head, NOW, &USERS).map(|got| got.payload)
    };
    assert!(matches!(
        mode("UNSIGNED-PAYLOAD"),
        Ok(PayloadMode::Unsigned)
    ));
    assert!(matches!(
        mode("STREAMING-UNSIGNED-PAYLOAD-TRAILER"),
        Ok(PayloadMode::UnsignedTrailer)
    ));
    let signed_trailer = mode("STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER");
    assert!(matches!(
        signed_trailer,
        Ok(PayloadMode::SignedChunksTrailer(_))
    ));
    let sigv4a = mode("STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD");
    assert_eq!(sigv4a.unwrap_err().code, S3ErrorCode::NotImplemented);
    assert_eq!(mode("abc").unwrap_err().code, S3ErrorCode::InvalidArgument);
}
