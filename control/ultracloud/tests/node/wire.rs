//! The connection: signatures, pipelining, framing, expectations, and clients that misbehave.

use std::io::{Read, Write};

use crate::support::{Client, Node, Payload, connect, fresh, noise, read_response, request};

fn bucket(node: &Node) -> Client {
    let mut client = node.client();
    client.put("/wire", b"").expect(200);
    client
}

/// Sends bytes on a new connection and reads the one answer to them.
fn answer_to(node: &Node, bytes: &[u8]) -> crate::support::Answer {
    let mut stream = connect(node.s3);
    stream.write_all(bytes).unwrap();
    let answer = read_response(&mut stream, false).unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty(), "nothing follows a refusal");
    answer
}

#[test]
fn wrong_keys_and_signatures_are_refused_by_name() {
    let (_dir, node) = fresh();
    let mut client = bucket(&node);
    Client::new(node.s3, "NOBODY", "x")
        .get("/")
        .refused(403, "InvalidAccessKeyId");
    let mut wrong = Client::new(node.s3, crate::support::ACCESS_KEY, "wrong");
    wrong.get("/wire").refused(403, "SignatureDoesNotMatch");
    wrong
        .put("/wire/a", b"x")
        .refused(403, "SignatureDoesNotMatch");
    client.get("/wire/a").refused(404, "NoSuchKey");
    let unsigned = b"GET /wire HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    answer_to(&node, unsigned).refused(403, "AccessDenied");
}

#[test]
fn a_presigned_url_works_for_what_it_was_signed_for_only() {
    let (_dir, node) = fresh();
    let mut client = bucket(&node);
    client.put("/wire/a", b"presigned").expect(200);
    let url = client.presigned("GET", "/wire/a");
    let mut stream = connect(node.s3);
    write!(stream, "GET {url} HTTP/1.1\r\nHost: {}\r\n\r\n", node.s3).unwrap();
    assert_eq!(
        read_response(&mut stream, false).unwrap().expect(200).body,
        b"presigned"
    );
    write!(stream, "DELETE {url} HTTP/1.1\r\nHost: {}\r\n\r\n", node.s3).unwrap();
    read_response(&mut stream, false)
        .unwrap()
        .refused(403, "SignatureDoesNotMatch");
    client.get("/wire/a").expect(200);
}

#[test]
fn a_body_that_is_not_what_was_signed_is_never_visible() {
    let (_dir, node) = fresh();
    let mut client = bucket(&node);
    for size in [100, 300_000] {
        let body = noise(1, size);
        for (mode, code) in [
            (Payload::Sha256, "XAmzContentSHA256Mismatch"),
            (Payload::SignedChunks, "SignatureDoesNotMatch"),
        ] {
            let mut bytes = client.encode(&request("PUT", "/wire/a").body(&body).payload(mode));
            // Far enough from the end to lie in the body, whatever the framing around it.
            let at = bytes.len() - 99;
            bytes[at] ^= 1;
            let mut stream = connect(node.s3);
            stream.write_all(&bytes).unwrap();
            let answer = read_response(&mut stream, false).unwrap();
            assert_eq!(answer.one("Code"), code, "{size} {mode:?}");
            client.get("/wire/a").refused(404, "NoSuchKey");
        }
    }
}

#[test]
fn requests_in_a_row_on_one_connection_are_answered_in_order() {
    let (_dir, node) = fresh();
    let mut client = bucket(&node);
    client.put("/wire/one", b"1").expect(200);
    let large = noise(4, 400_000);
    let mut bytes = client.encode(&request("GET", "/wire/one"));
    bytes.extend(client.encode(&request("PUT", "/wire/two").body(&large)));
    bytes.extend(client.encode(&request("GET", "/wire/two")));
    bytes.extend(client.encode(&request("HEAD", "/wire/two")));
    bytes.extend(client.encode(&request("GET", "/wire/none")));
    bytes.extend(client.encode(&request("DELETE", "/wire/one")));
    let mut stream = connect(node.s3);
    stream.write_all(&bytes).unwrap();
    assert_eq!(
        read_response(&mut stream, false).unwrap().expect(200).body,
        b"1"
    );
    read_response(&mut stream, false).unwrap().expect(200);
    assert!(read_response(&mut stream, false).unwrap().expect(200).body == large);
    read_response(&mut stream, true).unwrap().expect(200);
    read_response(&mut stream, false)
        .unwrap()
        .refused(404, "NoSuchKey");
    read_response(&mut stream, false).unwrap().expect(204);
}

#[test]
fn a_request_that_arrives_byte_by_byte_is_served() {
    let (_dir, node) = fresh();
    let client = bucket(&node);
    let bytes = client.encode(
        &request("PUT", "/wire/slow")
            .body(b"slowly")
            .payload(Payload::SignedChunks),
    );
    let mut stream = connect(node.s3);
    for byte in bytes {
        stream.write_all(&[byte]).unwrap();
    }
    read_response(&mut stream, false).unwrap().expect(200);
}

#[test]
fn continue_is_sent_when_the_body_is_wanted_and_only_then() {
    let (_dir, node) = fresh();
    let client = bucket(&node);
    for size in [0, 10, 300_000] {
        let body = noise(2, size);
        let put = request("PUT", "/wire/a")
            .body(&body)
            .header("expect", "100-continue");
        let bytes = client.encode(&put);
        let (head, tail) = bytes.split_at(bytes.len() - size);
        let mut stream = connect(node.s3);
        stream.write_all(head).unwrap();
        read_response(&mut stream, false).unwrap().expect(100);
        stream.write_all(tail).unwrap();
        read_response(&mut stream, false).unwrap().expect(200);
    }
    let put = request("PUT", "/none/a")
        .body(b"never sent")
        .header("expect", "100-continue");
    let bytes = client.encode(&put);
    let head = &bytes[..bytes.len() - b"never sent".len()];
    answer_to(&node, head).refused(404, "NoSuchBucket");
}

#[test]
fn a_body_that_ends_early_is_incomplete_and_never_visible() {
    let (_dir, node) = fresh();
    let mut client = bucket(&node);
    for (size, mode) in [
        (1000, Payload::Unsigned),
        (1_000_000, Payload::Unsigned),
        (1000, Payload::SignedChunks),
        (1_000_000, Payload::SignedChunks),
    ] {
        let body = noise(9, size);
        let bytes = client.encode(&request("PUT", "/wire/a").body(&body).payload(mode));
        let mut stream = connect(node.s3);
        stream.write_all(&bytes[..bytes.len() - 10]).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        read_response(&mut stream, false)
            .unwrap()
            .refused(400, "IncompleteBody");
        client.get("/wire/a").refused(404, "NoSuchKey");
    }
}

#[test]
fn what_is_not_http_is_told_so_and_closed() {
    let (_dir, node) = fresh();
    for head in [
        "nonsense\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        "PUT /a/b HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        "PUT /a/b HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nExpect: gold\r\n\r\n",
    ] {
        answer_to(&node, head.as_bytes()).refused(400, "InvalidRequest");
    }
    let long = format!(
        "GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n",
        "x".repeat(17_000)
    );
    answer_to(&node, long.as_bytes()).refused(400, "RequestHeaderSectionTooLarge");
}

#[test]
fn a_large_refused_body_does_not_hide_the_answer() {
    let (_dir, node) = fresh();
    let client = bucket(&node);
    let body = noise(3, 2 << 20);
    let mut stream = connect(node.s3);
    stream
        .write_all(&client.encode(&request("PUT", "/none/a").body(&body)))
        .unwrap();
    read_response(&mut stream, false)
        .unwrap()
        .refused(404, "NoSuchBucket");
    // A small one is read away, and the connection goes on.
    let mut stream = connect(node.s3);
    for _ in 0..2 {
        stream
            .write_all(&client.encode(&request("PUT", "/none/a").body(&body[..5000])))
            .unwrap();
        read_response(&mut stream, false)
            .unwrap()
            .refused(404, "NoSuchBucket");
    }
}

#[test]
fn parts_of_s3_that_do_not_exist_here_are_501_and_change_nothing() {
    let (_dir, node) = fresh();
    let mut client = bucket(&node);
    client.put("/wire/a", b"x").expect(200);
    for (method, path, query) in [
        ("GET", "/wire", "acl"),
        ("PUT", "/wire", "versioning"),
        ("PUT", "/wire/a", "tagging"),
        ("DELETE", "/wire", "policy"),
        ("GET", "/wire", "versions"),
        ("PUT", "/wire/a", "retention"),
        ("POST", "/wire/a", "restore"),
    ] {
        client
            .send(&request(method, path).query(query))
            .refused(501, "NotImplemented");
    }
    assert_eq!(client.get("/wire/a").expect(200).body, b"x");
    let encrypt = request("PUT", "/wire/b")
        .body(b"x")
        .header("x-amz-server-side-encryption", "aws:kms");
    client.send(&encrypt).refused(501, "NotImplemented");
    client
        .send(&request("PATCH", "/wire/a"))
        .refused(405, "MethodNotAllowed");
}

#[test]
fn http_chunks_around_aws_chunks_are_decoded_and_a_body_without_length_is_refused() {
    let (_dir, node) = fresh();
    let mut client = bucket(&node);
    let body = noise(8, 200_000);
    let put = request("PUT", "/wire/nested")
        .body(&body)
        .payload(Payload::SignedChunks);
    let bytes = client.encode(&put);
    let at = bytes.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(bytes[..at].to_vec()).unwrap();
    let lines: Vec<&str> = head
        .split("\r\n")
        .filter(|l| !l.starts_with("Content-Length"))
        .collect();
    let mut nested = lines.join("\r\n").into_bytes();
    nested.extend_from_slice(b"\r\nTransfer-Encoding: chunked\r\n\r\n");
    for piece in bytes[at + 4..].chunks(10_007) {
        nested.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
        nested.extend_from_slice(piece);
        nested.extend_from_slice(b"\r\n");
    }
    nested.extend_from_slice(b"0\r\n\r\n");
    let mut stream = connect(node.s3);
    stream.write_all(&nested).unwrap();
    read_response(&mut stream, false).unwrap().expect(200);
    assert!(client.get("/wire/nested").expect(200).body == body);
    let bytes = client.encode(&request("PUT", "/wire/b").body(b""));
    let text = String::from_utf8(bytes)
        .unwrap()
        .replace("Content-Length: 0\r\n", "");
    let mut stream = connect(node.s3);
    stream.write_all(text.as_bytes()).unwrap();
    read_response(&mut stream, false)
        .unwrap()
        .refused(411, "MissingContentLength");
}
