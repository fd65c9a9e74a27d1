//! Request heads that are whole, cut, wrong and just wrong; response heads byte for byte.

use super::*;
use crate::timestamp::http_date;

fn parse(text: &str) -> Result<RequestHead, HeadError> {
    match parse_head(text.as_bytes(), &HeadLimits::default())? {
        Parsed::Complete { head, len } => {
            assert_eq!(len, text.len());
            Ok(head)
        }
        Parsed::Partial => panic!("partial: {text:?}"),
    }
}

#[test]
fn reads_target_fields_and_framing() {
    let head = parse(
        "PUT /b/k%20y?partNumber=1&uploadId=x HTTP/1.1\r\nHost: s3.test:9000\r\nX-Amz-Date:  20130524T000000Z \r\n\
         Content-Length: 42\r\nExpect: 100-continue\r\n\r\n",
    )
    .unwrap();
    assert_eq!(head.method(), Method::Put);
    assert_eq!(head.raw_path(), "/b/k%20y");
    assert_eq!(head.raw_query(), "partNumber=1&uploadId=x");
    assert_eq!(head.host(), "s3.test:9000");
    assert_eq!(head.header("x-amz-date"), Some("20130524T000000Z"));
    assert_eq!(head.header("x-amz"), None);
    assert_eq!(head.content_length(), Some(42));
    assert!(head.keep_alive() && head.expect_continue() && !head.chunked());
    assert_eq!(head.headers().next(), Some(("host", "s3.test:9000")));
}

#[test]
fn every_prefix_of_a_head_is_partial() {
    let text = "GET /b/k HTTP/1.1\r\nHost: a\r\nRange: bytes=0-1\r\n\r\n";
    for cut in 0..text.len() {
        let parsed = parse_head(&text.as_bytes()[..cut], &HeadLimits::default()).unwrap();
        assert!(matches!(parsed, Parsed::Partial), "cut at {cut}");
    }
    let pipelined = format!("{text}GET / HTTP/1.1\r\n");
    let parsed = parse_head(pipelined.as_bytes(), &HeadLimits::default()).unwrap();
    assert!(matches!(parsed, Parsed::Complete { len, .. } if len == text.len()));
}

#[test]
fn connection_reuse_follows_version_and_tokens() {
    for (head, keep) in [
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", true),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: x, Close\r\n\r\n",
            false,
        ),
        ("GET / HTTP/1.0\r\n\r\n", false),
        ("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", true),
    ] {
        assert_eq!(parse(head).unwrap().keep_alive(), keep, "{head:?}");
    }
}

#[test]
fn ambiguous_framing_is_refused() {
    use HeadError::*;
    for (fields, error) in [
        ("Content-Length: 1\r\nContent-Length: 1\r\n", Framing),
        (
            "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
            Framing,
        ),
        (
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            Framing,
        ),
        ("Content-Length: +1\r\n", Framing),
        ("Content-Length: 1, 1\r\n", Framing),
        ("Content-Length: -1\r\n", Framing),
        ("Content-Length:\r\n", Framing),
        ("Content-Length: 18446744073709551616\r\n", Framing),
        ("Transfer-Encoding: gzip, chunked\r\n", TransferEncoding),
        ("Transfer-Encoding: xchunked\r\n", TransferEncoding),
        ("Expect: 200-ok\r\n", Expectation),
        ("Host: b\r\n", Host),
        ("Bad Name: x\r\n", Malformed),
        ("A: b\r\n folded\r\n", Malformed),
    ] {
        let text = format!("PUT / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
        assert_eq!(parse(&text).unwrap_err(), error, "{fields:?}");
        assert!(error.status() >= 400);
    }
    assert_eq!(parse("GET / HTTP/1.1\r\n\r\n").unwrap_err(), Host);
    assert_eq!(
        parse("PUT / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap_err(),
        Framing
    );
    assert_eq!(
        parse("GET b HTTP/1.1\r\nHost: a\r\n\r\n").unwrap_err(),
        Malformed
    );
    assert_eq!(
        parse("GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n").unwrap_err(),
        Malformed
    );
    assert_eq!(
        parse("GET / HTTP/2.0\r\nHost: a\r\n\r\n").unwrap_err(),
        Version
    );
    let not_utf8 = b"GET / HTTP/1.1\r\nHost: a\r\nX-A: \xff\r\n\r\n";
    assert_eq!(
        parse_head(not_utf8, &HeadLimits::default()).unwrap_err(),
        NotUtf8
    );
}

#[test]
fn a_head_at_the_limit_passes_and_one_byte_more_does_not() {
    let limits = HeadLimits {
        head_bytes_max: 64,
        headers_max: 2,
    };
    let head = |pad: usize| {
        format!(
            "GET / HTTP/1.1\r\nHost: a\r\nA: {}\r\n\r\n",
            "b".repeat(pad)
        )
    };
    let room = 64 - head(0).len();
    assert!(matches!(
        parse_head(head(room).as_bytes(), &limits),
        Ok(Parsed::Complete { .. })
    ));
    assert_eq!(
        parse_head(head(room + 1).as_bytes(), &limits).unwrap_err(),
        HeadError::TooLarge
    );
    let three = "GET / HTTP/1.1\r\nHost: a\r\nA: b\r\nB: c\r\n\r\n";
    assert_eq!(
        parse_head(three.as_bytes(), &limits).unwrap_err(),
        HeadError::TooLarge
    );
}

#[test]
fn absolute_form_must_name_the_host_of_the_field() {
    let head = parse("GET HTTP://x.test:80/a/b?c HTTP/1.1\r\nHost: X.test:80\r\n\r\n").unwrap();
    assert_eq!(
        (head.host(), head.raw_path(), head.raw_query()),
        ("X.test:80", "/a/b", "c")
    );
    let other = parse("GET http://x.test/ HTTP/1.1\r\nHost: y\r\n\r\n");
    assert_eq!(other.unwrap_err(), HeadError::Host);
    assert_eq!(
        parse("OPTIONS * HTTP/1.1\r\nHost: y\r\n\r\n")
            .unwrap()
            .raw_path(),
        "*"
    );
}

#[test]
fn response_heads_are_exact_and_cannot_be_split() {
    let mut out = Vec::new();
    let date = http_date(784_111_777);
    let start = ResponseStart {
        status: 206,
        date: &date,
        request_id: "0001",
        keep_alive: false,
    };
    ResponseHead::start(&mut out, &start)
        .content_length(5)
        .content_range(&(5..10), 20)
        .header("Content-Disposition", "a\r\nSet-Cookie: b")
        .last_modified(784_111_777)
        .finish();
    let expected = "HTTP/1.1 206 Partial Content\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\nServer: UltraCloud\r\n\
        Connection: close\r\nx-amz-request-id: 0001\r\nContent-Length: 5\r\nContent-Range: bytes 5-9/20\r\n\
        Content-Disposition: a  Set-Cookie: b\r\nLast-Modified: Sun, 06 Nov 1994 08:49:37 GMT\r\n\r\n";
    assert_eq!(String::from_utf8(out).unwrap(), expected);
}

#[test]
fn every_error_status_has_a_reason() {
    for code in crate::error::S3ErrorCode::ALL {
        assert_ne!(reason(code.status()), "Status", "{code}");
    }
}
