//! Clients that send what they should not, too much of it, or too slowly.

use std::time::Duration;

use md5::{Digest as _, Md5};
use s3_wire::checksum::{Algorithm, Checksummer};

use crate::world::{Answer, Ask, Connection, Payload, World, ask, noise, serving};

fn with_bucket(seed: u64) -> World {
    let world = serving(seed);
    world.ask(ask("PUT", "/anns")).expect(200);
    world
}

#[track_caller]
fn only(answers: Vec<Answer>) -> Answer {
    let [answer] = <[Answer; 1]>::try_from(answers).unwrap();
    answer
}

fn is_absent(world: &World, path: &str) {
    world.ask(ask("GET", path)).refused(404, "NoSuchKey");
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digit =
        |group: u32, place: u32| char::from(DIGITS[(group >> (18 - 6 * place)) as usize & 63]);
    let mut out = String::new();
    for piece in bytes.chunks(3) {
        let at = |i: usize| u32::from(piece.get(i).copied().unwrap_or(0));
        let group = at(0) << 16 | at(1) << 8 | at(2);
        for place in 0..4 {
            let is_there = place as usize <= piece.len();
            out.push(if is_there { digit(group, place) } else { '=' });
        }
    }
    out
}

#[test]
fn a_head_that_comes_byte_by_byte_has_one_deadline() {
    let world = with_bucket(1);
    let (addr, limits) = (world.addr(), world.limits);
    world.on_client(async move {
        let bytes = ask("GET", "/anns").encode(addr);
        let mut connection = Connection::open(addr).await;
        let begun = engine::now();
        let mut left = bytes.iter();
        let answer = loop {
            connection.send(vec![*left.next().unwrap()]).await;
            let step = Duration::from_secs(1);
            if let Some(answer) = engine::timeout(step, connection.answer(false)).await {
                break answer.unwrap();
            }
            let waited = engine::now().since(begun);
            assert!(waited < 2 * limits.head_deadline, "{waited:?}");
        };
        answer.refused(400, "RequestTimeout");
        assert!(connection.answer(false).await.is_none());
    });
}

#[test]
fn a_body_that_trickles_is_given_up_and_a_slow_one_is_not() {
    let world = with_bucket(2);
    let (addr, limits) = (world.addr(), world.limits);
    let body = noise(1, 70_000);
    world.on_client(async move {
        for payload in [Payload::Unsigned, Payload::SignedChunks] {
            let put = ask("PUT", "/anns/a").body(body.clone()).payload(payload);
            let bytes = put.encode(addr);
            // One byte in each deadline, as if it would never end.
            let (mut now, rest) = bytes.split_at(bytes.len() - 60_000);
            let mut connection = Connection::open(addr).await;
            connection.send(now.to_vec()).await;
            now = rest;
            let begun = engine::now();
            let mut left = now.iter();
            let answer = loop {
                let byte = left.next().unwrap();
                connection.send(vec![*byte]).await;
                let step = limits.progress_deadline * 9 / 10;
                if let Some(answer) = engine::timeout(step, connection.answer(false)).await {
                    break answer.unwrap();
                }
                let waited = engine::now().since(begun);
                assert!(waited < 4 * limits.progress_deadline, "{waited:?}");
            };
            answer.refused(400, "RequestTimeout");
            // Four kilobytes a second are slow and welcome.
            let mut connection = Connection::open(addr).await;
            for piece in bytes.chunks(4096) {
                connection.send(piece.to_vec()).await;
                engine::sleep(Duration::from_secs(1)).await;
            }
            connection.answer(false).await.unwrap().expect(200);
            ask("DELETE", "/anns/a")
                .send(addr)
                .await
                .unwrap()
                .expect(204);
        }
    });
    is_absent(&world, "/anns/a");
}

#[test]
fn heads_that_are_too_large_or_ambiguous_are_refused_and_the_connection_ends() {
    let world = with_bucket(3);
    let many = "X: y\r\n".repeat(120);
    let long = format!("X: {}\r\n", "y".repeat(17 << 10));
    for (head, code) in [
        (format!("GET / HTTP/1.1\r\nHost: a\r\n{many}"), "RequestHeaderSectionTooLarge"),
        (format!("GET / HTTP/1.1\r\nHost: a\r\n{long}"), "RequestHeaderSectionTooLarge"),
        (format!("GET /{} HTTP/1.1\r\nHost: a\r\n", "y".repeat(17 << 10)), "RequestHeaderSectionTooLarge"),
        ("PUT /a HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n".into(), "InvalidRequest"),
        ("PUT /a HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n".into(), "InvalidRequest"),
        ("PUT /a HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n".into(), "InvalidRequest"),
        ("PUT /a HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n".into(), "InvalidRequest"),
        ("PUT /a HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n".into(), "InvalidRequest"),
        ("PUT /a HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n".into(), "InvalidRequest"),
        ("PUT /a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n".into(), "InvalidRequest"),
        ("PUT /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n".into(), "InvalidRequest"),
        ("PUT /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n".into(), "InvalidRequest"),
        ("PUT /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n".into(), "NotImplemented"),
        ("PUT /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n".into(), "InvalidRequest"),
        ("PUT /a HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n".into(), "InvalidRequest"),
        ("GET http://b/ HTTP/1.1\r\nHost: a\r\n".into(), "InvalidRequest"),
        ("GET / HTTP/2.0\r\nHost: a\r\n".into(), "InvalidRequest"),
        ("GET / HTTP/1.1\r\nHost: a\r\n folded\r\n".into(), "InvalidRequest"),
        ("GET / HTTP/1.1\r\nHost: a\r\nExpect: 200-ok\r\n".into(), "InvalidRequest"),
    ] {
        let shown = head[..head.len().min(90)].to_owned();
        // Whatever follows could be meant as a body or as a request: neither is done.
        let follows = move |addr| {
            let mut bytes = format!("{head}\r\n").into_bytes();
            bytes.extend(ask("DELETE", "/anns").encode(addr));
            bytes
        };
        let answers = world.answers_to(follows);
        assert_eq!(answers.len(), 1, "{shown}");
        let status = if code == "NotImplemented" { 501 } else { 400 };
        let answer = only(answers);
        assert_eq!(answer.status, status, "{shown}");
        assert_eq!(answer.one("Code"), code, "{shown}");
    }
    world.ask(ask("HEAD", "/anns")).expect(200);
}

#[test]
fn absolute_targets_and_old_clients_are_served() {
    let world = with_bucket(4);
    world.ask(ask("PUT", "/anns/a").body("body")).expect(200);
    for (from, to, count) in [
        ("GET /anns/a HTTP/1.1", "GET http://HOST/anns/a HTTP/1.1", 2),
        // Without a word about it the connection ends with the answer.
        ("GET /anns/a HTTP/1.1", "GET /anns/a HTTP/1.0", 1),
        (
            "GET /anns/a HTTP/1.1",
            "GET /anns/a HTTP/1.0\r\nConnection: keep-alive",
            2,
        ),
        (
            "GET /anns/a HTTP/1.1",
            "GET /anns/a HTTP/1.1\r\nConnection: close",
            1,
        ),
    ] {
        let answers = world.answers_to(move |addr| {
            let one = String::from_utf8(ask("GET", "/anns/a").encode(addr)).unwrap();
            let one = one.replace(from, &to.replace("HOST", &addr.to_string()));
            one.repeat(2).into_bytes()
        });
        assert_eq!(answers.len(), count, "{to}");
        for answer in answers {
            assert_eq!(answer.expect(200).body, b"body");
        }
    }
}

#[test]
fn a_content_length_that_lies_makes_no_object_and_no_second_request() {
    let world = with_bucket(5);
    for (said, code) in [(4, "InvalidRequest"), (400, "IncompleteBody")] {
        let answers = world.answers_to(move |addr| {
            let put = String::from_utf8(
                ask("PUT", "/anns/lie")
                    .body("0123456789\r\n\r\n")
                    .encode(addr),
            );
            let put = put.unwrap();
            put.replace(
                "Content-Length: 14\r\n",
                &format!("Content-Length: {said}\r\n"),
            )
            .into_bytes()
        });
        // A short one is a whole request to the server; what follows is none.
        let last = answers.last().unwrap();
        last.clone().refused(400, code);
        if said == 4 {
            assert_eq!(answers.len(), 2);
            assert_eq!(world.ask(ask("GET", "/anns/lie")).expect(200).body, b"0123");
            world.ask(ask("DELETE", "/anns/lie")).expect(204);
        } else {
            assert_eq!(answers.len(), 1);
        }
        is_absent(&world, "/anns/lie");
    }
    let huge = world.answers_to(|addr| {
        let put = String::from_utf8(ask("PUT", "/anns/lie").body("x").encode(addr)).unwrap();
        put.replace("Content-Length: 1\r\n", "Content-Length: 6000000000\r\n")
            .into_bytes()
    });
    only(huge).refused(400, "EntityTooLarge");
    // Under a signed digest a short length is caught as well.
    let digest = "ab".repeat(32);
    let wrong = ask("PUT", "/anns/lie")
        .body("x")
        .payload(Payload::Sha256(digest));
    world.ask(wrong).refused(400, "XAmzContentSHA256Mismatch");
    is_absent(&world, "/anns/lie");
}

fn crc32(body: &[u8]) -> String {
    let mut sum = Checksummer::new(Algorithm::Crc32);
    sum.update(body);
    sum.finish().to_base64()
}

#[test]
fn digests_that_do_not_hold_leave_nothing_behind() {
    let world = with_bucket(6);
    for size in [10, 200_000] {
        let body = noise(1, size);
        let put = || ask("PUT", "/anns/d").body(body.clone());
        let other = noise(2, size);
        let md5 = |body: &[u8]| base64(&Md5::digest(body));
        for (wrong, code) in [
            (put().header("content-md5", &md5(&other)), "BadDigest"),
            (put().header("content-md5", "nonsense"), "InvalidDigest"),
            (put().header("content-md5", "AAAA"), "InvalidDigest"),
            (
                put().header("x-amz-checksum-crc32", &crc32(&other)),
                "BadDigest",
            ),
            (
                put().header("x-amz-checksum-crc32", "AAAA"),
                "InvalidRequest",
            ),
            (put().header("x-amz-checksum-sha256", "x"), "InvalidRequest"),
            (
                put().header("x-amz-checksum-crc99", "AAAAAA=="),
                "InvalidRequest",
            ),
            (
                put()
                    .payload(Payload::UnsignedTrailer)
                    .trailer("x-amz-checksum-crc32", &crc32(&other)),
                "BadDigest",
            ),
            (
                put()
                    .payload(Payload::SignedChunksTrailer)
                    .trailer("x-amz-checksum-crc32", &crc32(&other)),
                "BadDigest",
            ),
        ] {
            let answer = world.ask(wrong);
            assert_eq!(answer.status, 400, "{code}: {}", answer.text());
            assert_eq!(answer.one("Code"), code, "{size}");
            is_absent(&world, "/anns/d");
        }
        let right = put().header("content-md5", &md5(&body));
        world
            .ask(right.header("x-amz-checksum-crc32", &crc32(&body)))
            .expect(200);
        let trailer = put().payload(Payload::SignedChunksTrailer);
        world
            .ask(trailer.trailer("x-amz-checksum-crc32", &crc32(&body)))
            .expect(200);
        world.ask(ask("DELETE", "/anns/d")).expect(204);
    }
}

/// A PUT in chunks whose bytes on the wire are changed by `change`.
fn changed(
    payload: Payload,
    change: fn(&mut String),
) -> impl FnOnce(std::net::SocketAddr) -> Vec<u8> {
    move |addr| {
        let put = ask("PUT", "/anns/c").body("0123456789").payload(payload);
        let put = put.trailer("x-amz-checksum-crc32", &crc32(b"0123456789"));
        let text = String::from_utf8(put.encode(addr)).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let mut changed = body.to_owned();
        change(&mut changed);
        let (was, is) = (body.len(), changed.len());
        let head = head.replace(
            &format!("Content-Length: {was}"),
            &format!("Content-Length: {is}"),
        );
        format!("{head}\r\n\r\n{changed}").into_bytes()
    }
}

#[test]
fn chunks_whose_signature_or_size_lies_are_refused() {
    let world = with_bucket(7);
    type Change = fn(&mut String);
    let signed: [(Change, &str); 4] = [
        // The data, the chunk's signature, the last chunk's, and the trailer's.
        (
            |body| *body = body.replacen("0123", "0124", 1),
            "SignatureDoesNotMatch",
        ),
        (
            |body| flip_hex(body, "chunk-signature=", 0),
            "SignatureDoesNotMatch",
        ),
        (
            |body| flip_hex(body, "chunk-signature=", 1),
            "SignatureDoesNotMatch",
        ),
        (
            |body| flip_hex(body, "trailer-signature:", 0),
            "SignatureDoesNotMatch",
        ),
    ];
    for (change, code) in signed {
        let answers = world.answers_to(changed(Payload::SignedChunksTrailer, change));
        only(answers).refused(403, code);
        is_absent(&world, "/anns/c");
    }
    let sizes: [Change; 7] = [
        |body| *body = body.replacen("a\r\n", "9\r\n", 1),
        |body| *body = body.replacen("a\r\n", "b\r\n", 1),
        |body| *body = body.replacen("a\r\n", "ffffffffffffffff\r\n", 1),
        |body| *body = body.replacen("a\r\n", "fffffffffffffffffff\r\n", 1),
        |body| *body = body.replacen("a\r\n", "-a\r\n", 1),
        |body| *body = body.replacen("a\r\n", "\r\n", 1),
        |body| *body = body.replacen("0\r\n", "", 1),
    ];
    for (number, change) in sizes.into_iter().enumerate() {
        let answer = only(world.answers_to(changed(Payload::UnsignedTrailer, change)));
        assert_eq!(answer.status, 400, "{number}: {}", answer.text());
        is_absent(&world, "/anns/c");
    }
}

/// Changes the first digit behind the `nth` mark.
fn flip_hex(body: &mut String, mark: &str, nth: usize) {
    let (at, _) = body.match_indices(mark).nth(nth).unwrap();
    let at = at + mark.len();
    let digit = if &body[at..=at] == "0" { "1" } else { "0" };
    body.replace_range(at..=at, digit);
}

#[test]
fn xml_that_is_broken_bombs_or_huge_is_refused_and_changes_nothing() {
    let world = with_bucket(8);
    world.ask(ask("PUT", "/anns/kept").body("kept")).expect(200);
    let begun = world.ask(ask("POST", "/anns/up?uploads")).expect(200);
    let complete = format!("/anns/up?uploadId={}", begun.one("UploadId"));
    let bomb = "<!DOCTYPE l [<!ENTITY a \"aaaaaaaaaa\"><!ENTITY b \"&a;&a;&a;&a;\">]>\
                <Delete><Object><Key>&b;kept</Key></Object></Delete>";
    let outside = "<!DOCTYPE l [<!ENTITY f SYSTEM \"file:///etc/passwd\">]>\
                   <Delete><Object><Key>&f;</Key></Object></Delete>";
    let deep = format!(
        "{}{}",
        "<Delete>".repeat(50_000),
        "</Delete>".repeat(50_000)
    );
    for text in [
        "",
        "nonsense",
        "<Delete>",
        "<Delete><Object><Key>kept</Key></Object>",
        "<Delete><Object><Key>kept</Object></Key></Delete>",
        "<Delete><Object><Key>&b;</Key></Object></Delete>",
        "<Other><Object><Key>kept</Key></Object></Other>",
        bomb,
        outside,
        &deep,
    ] {
        for target in ["/anns?delete", &complete] {
            let answer = world.ask(ask("POST", target).body(text));
            let shown = &text[..text.len().min(60)];
            assert_eq!(answer.status, 400, "{shown}: {}", answer.text());
            assert_eq!(answer.one("Code"), "MalformedXML", "{target} {shown}");
        }
        // One that is too long for a configuration is not looked at.
        if !text.is_empty() && text.len() < 64 << 10 {
            let answer = world.ask(ask("PUT", "/newly").body(text));
            answer.refused(400, "MalformedXML");
        }
    }
    let huge = format!("<Delete>{}</Delete>", " ".repeat(2 << 20));
    for target in ["/anns?delete", &complete] {
        let answer = world.ask(ask("POST", target).body(huge.clone()));
        answer.refused(400, "MaxMessageLengthExceeded");
        // Also when its length is not told before.
        let chunked = ask("POST", target)
            .body(huge.clone())
            .payload(Payload::SignedChunks);
        world.ask(chunked).refused(400, "MaxMessageLengthExceeded");
    }
    assert_eq!(
        world.ask(ask("GET", "/anns/kept")).expect(200).body,
        b"kept"
    );
    assert_eq!(world.ask(ask("GET", "/")).expect(200).all("Name"), ["anns"]);
}

#[test]
fn requests_behind_an_error_are_served_when_its_body_has_an_end_and_never_else() {
    let world = with_bucket(9);
    world.ask(ask("PUT", "/anns/a").body("body")).expect(200);
    let codes = |refused: Ask| {
        let answers = world.answers_to(move |addr| {
            let mut bytes = refused.encode(addr);
            bytes.extend(ask("GET", "/anns/a").encode(addr));
            bytes
        });
        answers
            .iter()
            .map(|answer| answer.status)
            .collect::<Vec<_>>()
    };
    let body = noise(1, 2_000);
    assert_eq!(codes(ask("GET", "/anns/none")), [404, 200]);
    assert_eq!(codes(ask("PUT", "/none/a").body(body.clone())), [404, 200]);
    assert_eq!(
        codes(ask("PUT", "/anns/x?acl").body(body.clone())),
        [501, 200]
    );
    let md5 = "AAAAAAAAAAAAAAAAAAAAAA==";
    let wrong = ask("PUT", "/anns/x")
        .body(body.clone())
        .header("content-md5", md5);
    assert_eq!(codes(wrong), [400, 200]);
    // Too long to be read away.
    assert_eq!(codes(ask("PUT", "/none/a").body(noise(2, 400_000))), [404]);
    is_absent(&world, "/anns/x");
}

#[test]
fn what_is_asked_for_and_not_there_is_said_and_never_ignored() {
    let world = with_bucket(10);
    world.ask(ask("PUT", "/anns/a").body("plain")).expect(200);
    for sub in [
        "acl",
        "policy",
        "policyStatus",
        "tagging",
        "object-lock",
        "lifecycle",
        "encryption",
        "cors",
        "website",
        "versions",
        "logging",
        "notification",
        "replication",
        "publicAccessBlock",
        "ownershipControls",
        "requestPayment",
        "accelerate",
        "inventory",
        "analytics",
        "metrics",
        "intelligent-tiering",
    ] {
        for method in ["GET", "PUT", "DELETE"] {
            let answer = world.ask(ask(method, &format!("/anns?{sub}")));
            assert!(
                answer
                    .refused(501, "NotImplemented")
                    .one("Message")
                    .contains(sub)
            );
        }
    }
    for sub in [
        "acl",
        "tagging",
        "retention",
        "legal-hold",
        "torrent",
        "restore",
        "select",
    ] {
        for method in ["GET", "PUT", "POST", "DELETE"] {
            let answer = world.ask(ask(method, &format!("/anns/a?{sub}")));
            assert!(
                answer
                    .refused(501, "NotImplemented")
                    .one("Message")
                    .contains(sub)
            );
        }
    }
    world
        .ask(ask("PUT", "/anns?versioning"))
        .refused(501, "NotImplemented");
    for (name, value) in [
        ("x-amz-tagging", "a=b"),
        ("x-amz-acl", "public-read"),
        ("x-amz-acl", "authenticated-read"),
        ("x-amz-grant-read", "id=bob"),
        ("x-amz-server-side-encryption", "AES256"),
        ("x-amz-server-side-encryption", "aws:kms"),
        ("x-amz-server-side-encryption-aws-kms-key-id", "k"),
        ("x-amz-server-side-encryption-customer-algorithm", "AES256"),
        ("x-amz-object-lock-mode", "COMPLIANCE"),
        (
            "x-amz-object-lock-retain-until-date",
            "2030-01-01T00:00:00Z",
        ),
        ("x-amz-object-lock-legal-hold", "ON"),
        ("x-amz-website-redirect-location", "/b"),
    ] {
        for target in ["/anns/new", "/anns/new?uploads"] {
            let method = if target.ends_with("uploads") {
                "POST"
            } else {
                "PUT"
            };
            let answer = world.ask(ask(method, target).body("x").header(name, value));
            assert_eq!(answer.status, 501, "{name}: {value}");
        }
    }
    let locked = ask("PUT", "/locked").header("x-amz-bucket-object-lock-enabled", "true");
    world.ask(locked).refused(501, "NotImplemented");
    let version = world.ask(ask("GET", "/anns/a?versionId=abc"));
    version.refused(501, "NotImplemented");
    is_absent(&world, "/anns/new");
    let private = ask("PUT", "/anns/new")
        .body("x")
        .header("x-amz-acl", "private");
    world.ask(private).expect(200);
    assert_eq!(world.ask(ask("GET", "/anns/a")).expect(200).body, b"plain");
}
