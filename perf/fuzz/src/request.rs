//! The HTTP head with everything that is read from it, and signatures of version 4.

use s3_wire::checksum::BodyPromise;
use s3_wire::conditional::Conditions;
use s3_wire::head::{HeadLimits, Parsed, RequestHead, parse_head};
use s3_wire::list::Fold;
use s3_wire::metadata::ObjectHeaders;
use s3_wire::request::{HostConfig, S3Op};
use s3_wire::sigv4::{
    Credential, CredentialSource, RegionPolicy, RequestToSign, Signer, UserId, Verifier, presign,
    sign_request,
};
use s3_wire::uri::{decode_query, params};

const NOW: i64 = 1_369_353_600;
const HOST: &str = "b.s3.test";

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

fn hosts() -> HostConfig {
    HostConfig {
        base_domain: Some("s3.test".into()),
    }
}

fn verifier() -> Verifier {
    Verifier::new(RegionPolicy::Any).with_version_2_urls(hosts())
}

fn parse(data: &[u8]) -> Option<RequestHead> {
    match parse_head(data, &HeadLimits::default()) {
        Ok(Parsed::Complete { head, len }) => {
            assert!(len <= data.len(), "a head lies in its input");
            Some(head)
        }
        Ok(Parsed::Partial) | Err(_) => None,
    }
}

/// A head, and every field that a server reads from one.
pub fn head(data: &[u8]) {
    let Ok(Parsed::Complete { head, len }) = parse_head(data, &HeadLimits::default()) else {
        return;
    };
    assert!(len <= data.len(), "a head lies in its input");
    // What follows a head changes nothing, and no shorter input is that head.
    let alone = parse(&data[..len]).expect("a head parses without what follows");
    assert_eq!(format!("{alone:?}"), format!("{head:?}"));
    assert!(
        parse(&data[..len - 1]).is_none(),
        "a head ends where it ends"
    );
    let _ = BodyPromise::parse(&head);
    let _ = ObjectHeaders::parse(&head);
    let _ = Conditions::of_request(&head);
    let _ = Conditions::of_copy_source(&head);
    match S3Op::classify(&head, &hosts()) {
        Ok(S3Op::ListObjectsV1(_, params) | S3Op::ListObjectsV2(_, params)) => {
            let _ = Fold::<()>::new(&params.fold_params());
        }
        Ok(_) | Err(_) => {}
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

/// Path, query and the value of a header, out of one input.
fn pieces(data: &[u8]) -> Option<(&str, &str, &str)> {
    let mut lines = std::str::from_utf8(data).ok()?.splitn(3, '\n');
    let (path, query) = (lines.next()?, lines.next()?);
    Some((path, query, lines.next().unwrap_or_default()))
}

/// A head is verified as it is; and what is signed here verifies, if it is a head at all.
pub fn signed_header(data: &[u8]) {
    if let Some(head) = parse(data) {
        let _ = verifier().verify(&head, NOW, &Everybody);
    }
    let Some((path, query, value)) = pieces(data) else {
        return;
    };
    let request = RequestToSign {
        method: "PUT",
        path,
        query,
        headers: &[("host", HOST), ("x-amz-meta-a", value)],
    };
    let payload = "UNSIGNED-PAYLOAD";
    let Ok(signed) = sign_request(&signer(), &request, payload) else {
        return;
    };
    let mark = if query.is_empty() { "" } else { "?" };
    let text = format!(
        "PUT {path}{mark}{query} HTTP/1.1\r\nHost: {HOST}\r\nx-amz-date: {}\r\n\
         x-amz-content-sha256: {payload}\r\nx-amz-meta-a: {value}\r\nAuthorization: {}\r\n\r\n",
        signed.amz_date, signed.authorization
    );
    verifies(&text, (path, query, value));
}

/// As [`signed_header`], for presigned URLs.
pub fn signed_query(data: &[u8]) {
    if let Some(head) = parse(data) {
        let _ = verifier().verify(&head, NOW, &Everybody);
    }
    let Some((path, query, _)) = pieces(data) else {
        return;
    };
    let request = RequestToSign {
        method: "GET",
        path,
        query,
        headers: &[("host", HOST)],
    };
    let Ok(signed) = presign(&signer(), &request, 600) else {
        return;
    };
    let text = format!("GET {path}?{signed} HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
    verifies(&text, (path, query, ""));
}

/// Whether an honest client's request passes; only of those that the head carries unchanged.
fn verifies(text: &str, (path, query, value): (&str, &str, &str)) {
    let Some(head) = parse(text.as_bytes()) else {
        return;
    };
    let carried = head.raw_path() == path
        && head.raw_query().starts_with(query)
        && head.headers().count() <= 6
        && head.header("x-amz-meta-a").unwrap_or_default() == value;
    // What is no text is refused, and a query that speaks of signatures itself says something else.
    let plain = params(query).all(|param| {
        let name = decode_query(param.name).map(|name| name.to_ascii_lowercase());
        name.is_ok_and(|name| {
            !name.starts_with("x-amz-") && name != "signature" && name != "awsaccesskeyid"
        }) && decode_query(param.value).is_ok()
    });
    if carried && plain && path.starts_with('/') {
        let verified = verifier().verify(&head, NOW, &Everybody);
        assert!(verified.is_ok(), "{verified:?} of {text:?}");
    }
}
