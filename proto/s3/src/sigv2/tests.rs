//! URLs that botocore 1.44.5 presigned (default configuration, clock at [`NOW`]), and what a holder
//! of one would try.

use super::*;
use crate::checksum::BodyPromise;
use crate::head::{HeadLimits, Parsed, parse_head};
use crate::metadata::ObjectHeaders;
use crate::request::S3Op;
use crate::sigv4::{Credential, RegionPolicy, UserId, Verifier};

const KEY: &str = "AKIAIOSFODNN7EXAMPLE";
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
const NOW: i64 = 1_369_353_600;
const HOST: (&str, &str) = ("host", "s3.test:9000");
const BUCKET_HOST: (&str, &str) = ("host", "box.s3.test:9000");

/// Method, path style target, operation. In virtual-host style botocore made the same signatures.
const MADE_BY_BOTOCORE: &[(&str, &str, &str)] = &[
    (
        "GET",
        "/box/k?AWSAccessKeyId=AKIAIOSFODNN7EXAMPLE&Signature=I22IlcB39VhqkqI9N%2BuOi8SMDgo%3D&Expires=1369354200",
        "GetObject",
    ),
    (
        "GET",
        "/box/odd%20key/%2B%26%3D%3F%23~%C3%A9%27%281%29%2A%21%2525.txt?AWSAccessKeyId=AKIAIOSFODNN7EXAMPLE&Signature=PBqMyyAL6Bfhuz2CLDB%2BVqU5VaM%3D&Expires=1369354200",
        "GetObject",
    ),
    (
        "GET",
        "/box/odd%20key/%2B%26%3D%3F%23~%C3%A9%27%281%29%2A%21%2525.txt?response-content-type=text%2Fplain%3B%20charset%3Dutf-8&response-content-disposition=attachment%3B%20filename%3D%22a%20b%2Bc%26d.txt%22&AWSAccessKeyId=AKIAIOSFODNN7EXAMPLE&Signature=lF5dTegD9a%2FGk1t9mOVq6a52iJM%3D&Expires=1369354200",
        "GetObject",
    ),
    (
        "GET",
        "/box/k?response-cache-control=no-cache&response-content-language=de&response-content-encoding=gzip&AWSAccessKeyId=AKIAIOSFODNN7EXAMPLE&Signature=RrvjgiLvabVshturyjscTBcA8u8%3D&Expires=1369354200",
        "GetObject",
    ),
    (
        "GET",
        "/box/k?AWSAccessKeyId=AKIAIOSFODNN7EXAMPLE&Signature=3E7oSBcqIfbeBPD%2BLPhQ1Ik31iQ%3D&x-amz-checksum-mode=ENABLED&Expires=1369354200",
        "GetObject",
    ),
    (
        "GET",
        "/box/k?versionId=null&partNumber=3&AWSAccessKeyId=AKIAIOSFODNN7EXAMPLE&Signature=peDOcK28%2BAaHSq69yinllvUDxBw%3D&Expires=1369354200",
        "GetObject",
    ),
    (
        "HEAD",
        "/box/k?AWSAccessKeyId=AKIAIOSFODNN7EXAMPLE&Signature=mjz%2BQpyP76KTNBm%2FYoy9vFzojgI%3D&Expires=1369354200",
        "HeadObject",
    ),
    (
        "HEAD",
        "/box/odd%20key/%2B%26%3D%3F%23~%C3%A9%27%281%29%2A%21%2525.txt?AWSAccessKeyId=AKIAIOSFODNN7EXAMPLE&Signature=SVCcaabfg0Fj3BgpElEUOygy4tQ%3D&Expires=1369354200",
        "HeadObject",
    ),
    (
        "HEAD",
        "/box/odd%20key/%2B%26%3D%3F%23~%C3%A9%27%281%29%2A%21%2525.txt?response-content-type=text%2Fplain%3B%20charset%3Dutf-8&response-content-disposition=attachment%3B%20filename%3D%22a%20b%2Bc%26d.txt%22&AWSAccessKeyId=AKIAIOSFODNN7EXAMPLE&Signature=dcghcnWurpsaHgMGLCVJDyvINWI%3D&Expires=1369354200",
        "HeadObject",
    ),
    (
        "PUT",
        "/box/k?AWSAccessKeyId=AKIAIOSFODNN7EXAMPLE&Signature=dSkx%2BOKt8hv98L7DNRn%2BOxRiN7c%3D&Expires=1369354200",
        "PutObject",
    ),
    (
        "PUT",
        "/box/odd%20key/%2B%26%3D%3F%23~%C3%A9%27%281%29%2A%21%2525.txt?AWSAccessKeyId=AKIAIOSFODNN7EXAMPLE&Signature=FtONG1Bvh302Wl4m9DXe8z9la0M%3D&Expires=1369354200",
        "PutObject",
    ),
    (
        "PUT",
        "/box/k?AWSAccessKeyId=AKIAIOSFODNN7EXAMPLE&Signature=zBQv96gK6A9IrnK2ninRe2q8zLQ%3D&content-type=text%2Fplain&x-amz-meta-colour=dark%20red&x-amz-meta-a=x%2Cb%20%20c&Expires=1369354200",
        "PutObject",
    ),
    (
        "PUT",
        "/box/k?AWSAccessKeyId=AKIAIOSFODNN7EXAMPLE&Signature=oavhYZnM2HtRa8RYgDis6H5i%2B5o%3D&content-md5=XUFAKrxLKna5cZ2REBfFkg%3D%3D&Expires=1369354200",
        "PutObject",
    ),
    (
        "PUT",
        "/box/k?AWSAccessKeyId=AKIAIOSFODNN7EXAMPLE&Signature=d6FDz2cAUWvrxBoWcc1ivGTWayw%3D&x-amz-sdk-checksum-algorithm=CRC32&Expires=1369354200",
        "PutObject",
    ),
    (
        "PUT",
        "/box/k?AWSAccessKeyId=AKIAIOSFODNN7EXAMPLE&Signature=T0A1uHYWvEolPehz%2Fn4p6bA63cM%3D&x-amz-checksum-crc32=NhCmhg%3D%3D&Expires=1369354200",
        "PutObject",
    ),
    (
        "PUT",
        "/box/k?partNumber=2&uploadId=u%2B%2F%3D&AWSAccessKeyId=AKIAIOSFODNN7EXAMPLE&Signature=gfS2A0r5BheN2bvtlCdvwDlFZqw%3D&Expires=1369354200",
        "UploadPart",
    ),
    (
        "POST",
        "/box/k?uploads&AWSAccessKeyId=AKIAIOSFODNN7EXAMPLE&Signature=tpX1gQORP%2B2Vle7Hcy9FHH%2Fycrw%3D&Expires=1369354200",
        "CreateMultipartUpload",
    ),
    (
        "POST",
        "/box/k?uploadId=u&AWSAccessKeyId=AKIAIOSFODNN7EXAMPLE&Signature=MSHzczx0v3q0stvryzFAljqEBIo%3D&Expires=1369354200",
        "CompleteMultipartUpload",
    ),
    (
        "DELETE",
        "/box/k?uploadId=u&AWSAccessKeyId=AKIAIOSFODNN7EXAMPLE&Signature=N9P7sPKOWH8fFZAOdtuCMhlMFRA%3D&Expires=1369354200",
        "AbortMultipartUpload",
    ),
    (
        "DELETE",
        "/box/k?AWSAccessKeyId=AKIAIOSFODNN7EXAMPLE&Signature=OXdvNvkrCirz6EvcrlyBFrc6Uhs%3D&Expires=1369354200",
        "DeleteObject",
    ),
    (
        "PUT",
        "/box/k?AWSAccessKeyId=AKIAIOSFODNN7EXAMPLE&Signature=cIxD1YMpyNNHzwlWhB5QwA%2B%2FgjI%3D&x-amz-copy-source=other%2Fa%2520b&Expires=1369354200",
        "CopyObject",
    ),
    (
        "GET",
        "/box?list-type=2&prefix=a%20b&encoding-type=url&AWSAccessKeyId=AKIAIOSFODNN7EXAMPLE&Signature=H8uZWVgO2rbxYOXrDMywyjCAgu0%3D&Expires=1369354200",
        "ListObjectsV2",
    ),
    (
        "GET",
        "/box?encoding-type=url&AWSAccessKeyId=AKIAIOSFODNN7EXAMPLE&Signature=H8uZWVgO2rbxYOXrDMywyjCAgu0%3D&Expires=1369354200",
        "ListObjectsV1",
    ),
    (
        "HEAD",
        "/box?AWSAccessKeyId=AKIAIOSFODNN7EXAMPLE&Signature=4VKyu83lCLfLd8CN1yxn5yYIMFs%3D&Expires=1369354200",
        "HeadBucket",
    ),
    (
        "GET",
        "/box?location&AWSAccessKeyId=AKIAIOSFODNN7EXAMPLE&Signature=vS1FHW%2F5rll9xBsBBB1lkwLWrEo%3D&Expires=1369354200",
        "GetBucketLocation",
    ),
    (
        "GET",
        "/?AWSAccessKeyId=AKIAIOSFODNN7EXAMPLE&Signature=Ijr6U6v7vt4OsCyVRPXJaEWM1Q0%3D&Expires=1369354200",
        "ListBuckets",
    ),
];

const GET: &str = "/box/k?AWSAccessKeyId=AKIAIOSFODNN7EXAMPLE&Signature=I22IlcB39VhqkqI9N%2BuOi8SMDgo%3D&Expires=1369354200";
const WITH_TOKEN: &str = "/box/k?AWSAccessKeyId=AKIAIOSFODNN7EXAMPLE&Signature=kpSw%2BFuKIV9WwuwARjH9LCuIP0A%3D&x-amz-security-token=t0k%2F%2B%3D&Expires=1369354200";

struct OneKey(Option<&'static str>);

impl CredentialSource for OneKey {
    fn lookup(&self, access_key: &str) -> Option<Credential<'_>> {
        let credential = Credential {
            secret: SECRET,
            user: UserId(7),
            session_token: self.0,
        };
        (access_key == KEY).then_some(credential)
    }
}

fn hosts() -> HostConfig {
    HostConfig {
        base_domain: Some("s3.test".into()),
    }
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

fn verify_at(now_s: i64, head: &RequestHead) -> Result<Authenticated> {
    Verifier::new(RegionPolicy::Exactly("eu-west-1".into()))
        .with_version_2_urls(hosts())
        .verify(head, now_s, &OneKey(None))
}

fn verify(method: &str, target: &str, headers: &[(&str, &str)]) -> Result<Authenticated> {
    verify_at(NOW, &head(method, target, headers))
}

fn code(result: Result<Authenticated>) -> S3ErrorCode {
    result.unwrap_err().code
}

/// The target with a signature over this text.
fn signed(target: &str, text: &str) -> String {
    let mut mac = Hmac::<Sha1>::new_from_slice(SECRET.as_bytes()).unwrap();
    mac.update(text.as_bytes());
    let signature = BASE64_STANDARD.encode(mac.finalize().into_bytes());
    let mut coded = Vec::new();
    uri::encode_query(&mut coded, &signature);
    let coded = String::from_utf8(coded).unwrap();
    let mark = if target.contains('?') { '&' } else { '?' };
    format!("{target}{mark}AWSAccessKeyId={KEY}&Signature={coded}&Expires=1369354200")
}

/// The same request with the bucket in the host.
fn in_host(target: &str) -> String {
    let rest = target.strip_prefix("/box").unwrap();
    let slash = if rest.starts_with('/') { "" } else { "/" };
    format!("{slash}{rest}")
}

#[test]
fn what_botocore_presigns_verifies_in_both_host_styles() {
    for &(method, target, operation) in MADE_BY_BOTOCORE {
        let mut styles = vec![head(method, target, &[HOST])];
        if operation != "ListBuckets" {
            styles.push(head(method, &in_host(target), &[BUCKET_HOST]));
        }
        for head in styles {
            let got = verify_at(NOW, &head).unwrap_or_else(|e| panic!("{target}: {e}"));
            assert_eq!((&*got.access_key, got.user), (KEY, UserId(7)));
            assert!(matches!(got.payload, PayloadMode::Unsigned));
            let op = format!("{:?}", S3Op::classify(&head, &hosts()).unwrap());
            let name = op.split('(').next().unwrap();
            assert_eq!(name, operation, "{target}");
        }
    }
}

#[test]
fn no_url_verifies_for_another_method_bucket_key_or_life() {
    for &(method, target, _) in MADE_BY_BOTOCORE {
        for other in ["GET", "HEAD", "PUT", "POST", "DELETE", "PATCH"] {
            if other != method {
                let got = code(verify(other, target, &[HOST]));
                assert_eq!(got, S3ErrorCode::SignatureDoesNotMatch, "{other} {target}");
            }
        }
        let mut forged = vec![
            target.replace("1369354200", "1369354201"),
            target.replacen('?', "x?", 1),
            target.replacen('?', "/?", 1),
            target.replacen("/box", "/fox", 1),
            target.replacen("/box/", "/box/%2F", 1),
            format!("{target}&x-amz-copy-source=%2Fother%2Fsecret"),
            format!("{target}&content-md5=XUFAKrxLKna5cZ2REBfFkg%3D%3D&content-type=text%2Fhtml"),
        ];
        // The slash after a bucket alone means nothing, and not every URL has every piece.
        forged.retain(|forged| forged != target && !forged.starts_with("/box/?"));
        for param in SIGNED_PARAMS {
            forged.push(format!("{target}&{param}"));
            forged.push(format!("{target}&{}=x", param.to_ascii_uppercase()));
        }
        for forged in forged {
            let got = verify(method, &forged, &[HOST]);
            assert!(
                got.is_err_and(|e| e.status() == 403 || e.status() == 400),
                "{forged}"
            );
        }
    }
    let other_bucket = [("host", "fox.s3.test:9000")];
    for target in [GET, "/k", &in_host(GET)] {
        assert!(verify("GET", target, &other_bucket).is_err(), "{target}");
    }
}

#[test]
fn overrides_and_fields_can_be_neither_changed_nor_dropped() {
    let pieces = [
        "text%2Fplain",
        "attachment",
        "no-cache",
        "=de",
        "dark%20red",
    ];
    let more = ["colour=", "CRC32", "uploadId=u", "other%2F", "ENABLED"];
    for piece in pieces.into_iter().chain(more) {
        let mut tried = 0;
        for &(method, target, _) in MADE_BY_BOTOCORE {
            if let Some(at) = target.find(piece) {
                let changed = [&target[..=at], "X", &target[at + 1..]].concat();
                let start = target[..at].rfind(['&', '?']).unwrap() + 1;
                let end = at + target[at..].find('&').unwrap() + 1;
                let dropped = [&target[..start], &target[end..]].concat();
                for forged in [changed, dropped] {
                    let got = code(verify(method, &forged, &[HOST]));
                    assert_eq!(got, S3ErrorCode::SignatureDoesNotMatch, "{forged}");
                    tried += 1;
                }
            }
        }
        assert!(tried > 0, "{piece}");
    }
}

#[test]
fn headers_that_version_2_signs_must_be_signed() {
    for extra in [
        ("x-amz-copy-source", "/other/secret"),
        ("x-amz-meta-a", "b"),
        ("content-type", "text/html"),
        ("content-md5", "XUFAKrxLKna5cZ2REBfFkg=="),
    ] {
        let got = code(verify("GET", GET, &[HOST, extra]));
        assert_eq!(got, S3ErrorCode::SignatureDoesNotMatch, "{extra:?}");
    }
    assert!(verify("GET", GET, &[HOST, ("range", "bytes=0-9")]).is_ok());
    let text = "PUT\n\ntext/plain\n1369354200\nx-amz-acl:private\nx-amz-meta-a:1,2\n/box/k";
    let target = signed("/box/k", text);
    let kind = ("content-type", "text/plain");
    let fields = [
        ("x-amz-meta-a", "1"),
        ("X-Amz-Acl", "private"),
        ("X-AMZ-META-A", "2"),
    ];
    let all = [HOST, kind, fields[0], fields[1], fields[2]];
    assert!(verify("PUT", &target, &all).is_ok());
    assert!(verify("PUT", &target, &all[..4]).is_err());
    let twice = [&all[..], &[("content-type", "text/html")]].concat();
    assert!(verify("PUT", &target, &twice).is_err());
}

#[test]
fn a_field_stands_in_one_place_and_could_be_a_header() {
    let text = "PUT\n\n\n1369354200\nx-amz-meta-a:b\n/box/k";
    let target = signed("/box/k?x-amz-meta-a=b", text);
    assert!(verify("PUT", &target, &[HOST]).is_ok());
    assert!(verify("PUT", &target.replace("-meta-a", "-Meta-A"), &[HOST]).is_ok());
    for (target, header) in [
        (target.clone(), Some(("x-amz-meta-a", "b"))),
        (format!("{target}&X-Amz-Meta-A=b"), None),
        (target.replace("a=b", "a%3Ab=c"), None),
        (target.replace("a=b", "a=b%0Ax-amz-copy-source:c"), None),
        (format!("{target}&content-type=a%0Ab"), None),
        (format!("{target}&content-type=&Content-Type="), None),
        (format!("{target}&response-expires=a%0D"), None),
    ] {
        let headers: Vec<_> = [HOST].into_iter().chain(header).collect();
        let got = code(verify("PUT", &target, &headers));
        assert_eq!(got, S3ErrorCode::InvalidArgument, "{target}");
    }
    let blank = target.replace("a=b", "a=b%20");
    let got = code(verify("PUT", &blank, &[HOST]));
    assert_eq!(got, S3ErrorCode::SignatureDoesNotMatch);
}

#[test]
fn a_url_lives_until_it_expires_and_for_seven_days_at_most() {
    let head = head("GET", GET, &[HOST]);
    let expires = NOW + 600;
    for now in [NOW, expires, expires - PRESIGN_MAX_S] {
        assert!(verify_at(now, &head).is_ok(), "{now}");
    }
    for now in [expires + 1, expires - PRESIGN_MAX_S - 1, i64::MIN, i64::MAX] {
        let error = verify_at(now, &head).unwrap_err();
        assert_eq!(error.code, S3ErrorCode::AccessDenied, "{now}");
        let expired = error.message.starts_with("Request has expired");
        assert_eq!(expired, now > expires);
    }
}

#[test]
fn incomplete_and_doubled_mechanisms_are_refused() {
    use S3ErrorCode::*;
    for (from, to, expected) in [
        ("&Expires=1369354200", "", AccessDenied),
        ("1369354200", "", AccessDenied),
        ("1369354200", "-1", AccessDenied),
        ("1369354200", "%2B1369354200", AccessDenied),
        ("1369354200", "99999999999999999999", AccessDenied),
        ("&Signature=", "&Sig=", AccessDenied),
        ("AWSAccessKeyId", "awsaccesskeyid", AccessDenied),
        ("&Expires", "&Expires=1&Expires", AccessDenied),
        ("AKIA", "AKIB", InvalidAccessKeyId),
        ("I22IlcB39", "I22IlcB3", SignatureDoesNotMatch),
        ("I22IlcB39", "", SignatureDoesNotMatch),
        ("I22IlcB39", "AAAAI22IlcB39", SignatureDoesNotMatch),
        ("I22", "J22", SignatureDoesNotMatch),
        ("%3D", "", SignatureDoesNotMatch),
        (
            "&Expires",
            "&X-Amz-Algorithm=AWS4-HMAC-SHA256&Expires",
            InvalidArgument,
        ),
        ("&Expires", "&X-Amz-Signature=00&Expires", InvalidArgument),
        ("&Expires", "%zz&Expires", InvalidUri),
    ] {
        let target = GET.replace(from, to);
        assert_ne!(target, GET);
        assert_eq!(code(verify("GET", &target, &[HOST])), expected, "{target}");
    }
    let both = [
        HOST,
        ("authorization", "AWS AKIAIOSFODNN7EXAMPLE:I22IlcB39"),
    ];
    assert_eq!(code(verify("GET", GET, &both)), InvalidArgument);
    // The header form of version 2, also beside one stray parameter.
    for target in ["/box/k", "/box/k?AWSAccessKeyId=a"] {
        assert_eq!(code(verify("GET", target, &both)), InvalidRequest);
    }
    let off =
        Verifier::new(RegionPolicy::Any).verify(&head("GET", GET, &[HOST]), NOW, &OneKey(None));
    assert_eq!(code(off), InvalidRequest);
}

#[test]
fn session_tokens_must_match() {
    let head = head("GET", WITH_TOKEN, &[HOST]);
    let verifier = Verifier::new(RegionPolicy::Any).with_version_2_urls(hosts());
    for (token, ok) in [
        (Some("t0k/+="), true),
        (Some("other"), false),
        (None, false),
    ] {
        let got = verifier.verify(&head, NOW, &OneKey(token));
        assert_eq!(got.is_ok(), ok, "{token:?}");
    }
}

#[test]
fn other_spellings_of_the_same_url_verify() {
    // The order and the coding of s3cmd, and a signature whose plus sign was not coded.
    let text = "GET\n\n\n1369354200\n/box/a%20b?response-content-disposition=inline; x=\"/+\"&response-content-type=text/plain";
    let target = signed(
        "/box/a%20b?response-content-type=text/plain&response-content-disposition=inline%3B+x%3D%22/%2B%22",
        text,
    );
    assert!(verify("GET", &target, &[HOST]).is_ok());
    let bare = GET.replace("%2B", "+").replace("%3D", "=");
    assert!(verify("GET", &bare, &[HOST]).is_ok());
    assert!(verify("GET", &in_host(GET), &[("host", "BOX.S3.test")]).is_ok());
    let list = signed("/box", "GET\n\n\n1369354200\n/box/");
    assert!(verify("GET", &list, &[HOST]).is_ok());
    assert!(verify("GET", &list.replacen("/box", "/box/", 1), &[HOST]).is_ok());
    let valueless = signed("/box/k?uploads=", "POST\n\n\n1369354200\n/box/k?uploads=");
    assert!(verify("POST", &valueless, &[HOST]).is_ok());
}

#[test]
fn content_fields_of_the_query_reach_the_object_and_the_body() {
    let put = |piece: &str| {
        let found = MADE_BY_BOTOCORE.iter().find(|(_, t, _)| t.contains(piece));
        found.unwrap().1
    };
    let typed = put("&content-type=text");
    let fields = ObjectHeaders::parse(&head("PUT", typed, &[HOST])).unwrap();
    assert_eq!(fields.content_type.as_deref(), Some("text/plain"));
    // The header may repeat what was signed.
    assert!(verify("PUT", typed, &[HOST, ("content-type", "text/plain")]).is_ok());
    assert!(verify("PUT", typed, &[HOST, ("content-type", "text/html")]).is_err());
    let promise = BodyPromise::parse(&head("PUT", put("content-md5"), &[HOST])).unwrap();
    assert_eq!(
        promise.md5.map(hex::encode).as_deref(),
        Some("5d41402abc4b2a76b9719d911017c592")
    );
    // Without the mark of this version the parameters mean nothing.
    let plain = head("PUT", "/box/k?content-type=a&content-md5=b", &[HOST]);
    assert_eq!(ObjectHeaders::parse(&plain).unwrap().content_type, None);
    assert_eq!(BodyPromise::parse(&plain).unwrap().md5, None);
}

#[test]
fn a_signed_payload_digest_binds_the_body() {
    let mode = |text: &str| {
        let target = format!("/box/k?x-amz-content-sha256={text}");
        let line = format!("PUT\n\n\n1369354200\nx-amz-content-sha256:{text}\n/box/k");
        verify("PUT", &signed(&target, &line), &[HOST]).map(|got| got.payload)
    };
    assert!(matches!(
        mode("UNSIGNED-PAYLOAD"),
        Ok(PayloadMode::Unsigned)
    ));
    assert!(matches!(mode(&"0a".repeat(32)), Ok(PayloadMode::Sha256(d)) if d == [10; 32]));
    for (text, expected) in [
        (
            "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
            S3ErrorCode::InvalidRequest,
        ),
        (
            "STREAMING-AWS4-HMAC-SHA256-PAYLOAD",
            S3ErrorCode::InvalidRequest,
        ),
        ("abc", S3ErrorCode::InvalidArgument),
    ] {
        assert_eq!(mode(text).unwrap_err().code, expected, "{text}");
    }
}
