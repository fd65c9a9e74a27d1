//! Who may come in, and what belongs to whom.

use crate::world::{ANN, ANN_TOO, Ask, BOB, ROOT, World, ask, serving, world};

/// Everything that can be asked of a bucket and its objects.
fn everything(upload: &str) -> Vec<Ask> {
    let part = format!("/anns/a?partNumber=1&uploadId={upload}");
    let delete = "<Delete><Object><Key>a</Key></Object></Delete>";
    let complete = "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>\"x\"</ETag></Part></CompleteMultipartUpload>";
    vec![
        ask("HEAD", "/anns"),
        ask("GET", "/anns"),
        ask("GET", "/anns?list-type=2"),
        ask("GET", "/anns?location"),
        ask("GET", "/anns?versioning"),
        ask("GET", "/anns?uploads"),
        ask("POST", "/anns?delete").body(delete),
        ask("DELETE", "/anns"),
        ask("GET", "/anns/a"),
        ask("GET", "/anns/a?partNumber=1"),
        ask("HEAD", "/anns/a"),
        ask("GET", "/anns/a?attributes").header("x-amz-object-attributes", "ETag"),
        ask("GET", "/anns/none"),
        ask("PUT", "/anns/a").body("changed"),
        ask("PUT", "/anns/new").body("new"),
        ask("DELETE", "/anns/a"),
        ask("PUT", "/anns/copy").header("x-amz-copy-source", "/bobs/b"),
        ask("POST", "/anns/a?uploads"),
        ask("PUT", &part).body("part"),
        ask("PUT", &part).header("x-amz-copy-source", "/bobs/b"),
        ask("GET", &format!("/anns/a?uploadId={upload}")),
        ask("POST", &format!("/anns/a?uploadId={upload}")).body(complete),
        ask("DELETE", &format!("/anns/a?uploadId={upload}")),
    ]
}

fn with_buckets(world: &World) -> String {
    world.ask(ask("PUT", "/anns")).expect(200);
    world.ask(ask("PUT", "/anns/a").body("hers")).expect(200);
    world.ask(ask("PUT", "/bobs").by(BOB)).expect(200);
    let put = ask("PUT", "/bobs/b").by(BOB).body("his");
    world.ask(put).expect(200);
    let begun = world.ask(ask("POST", "/anns/a?uploads")).expect(200);
    begun.one("UploadId")
}

#[test]
fn what_belongs_to_another_is_denied_whatever_is_asked() {
    let world = serving(1);
    let upload = with_buckets(&world);
    for request in everything(&upload) {
        let what = format!("{} {}?{}", request.method, request.path, request.query);
        let answer = world.ask(request.clone().by(BOB));
        assert_eq!(answer.status, 403, "{what}: {}", answer.text());
        if request.method != "HEAD" {
            assert_eq!(answer.one("Code"), "AccessDenied", "{what}");
        }
    }
    for (path, range) in [("/bobs/c", None), ("/bobs/c", Some("bytes=0-1"))] {
        let mut copy = ask("PUT", path).header("x-amz-copy-source", "/anns/a");
        if let Some(range) = range {
            let begun = world.ask(ask("POST", "/bobs/c?uploads").by(BOB));
            copy.query = format!(
                "partNumber=1&uploadId={}",
                begun.expect(200).one("UploadId")
            );
            copy = copy.header("x-amz-copy-source-range", range);
        }
        world.ask(copy.by(BOB)).refused(403, "AccessDenied");
    }
    // Nothing has changed, and the parts of the upload are still taken.
    assert_eq!(world.ask(ask("GET", "/anns/a")).expect(200).body, b"hers");
    let keys = world.ask(ask("GET", "/anns")).expect(200).all("Key");
    assert_eq!(keys, ["a"]);
    let parts = world.ask(ask("GET", &format!("/anns/a?uploadId={upload}")));
    assert!(parts.expect(200).all("PartNumber").is_empty());
    world
        .ask(ask("GET", "/bobs/c").by(BOB))
        .refused(404, "NoSuchKey");
}

#[test]
fn buckets_are_listed_for_their_owner_and_names_are_taken_for_all() {
    let world = serving(2);
    with_buckets(&world);
    world.ask(ask("PUT", "/roots").by(ROOT)).expect(200);
    for (keys, id, name, buckets) in [
        (ANN, "ann-id", "Ann", ["anns"]),
        (ANN_TOO, "ann-id", "Ann", ["anns"]),
        (BOB, "bob", "bob", ["bobs"]),
        (ROOT, "root", "root", ["roots"]),
    ] {
        let listed = world.ask(ask("GET", "/").by(keys)).expect(200);
        assert_eq!(listed.all("Name"), buckets);
        assert_eq!(
            (listed.one("ID"), listed.one("DisplayName")),
            (id.into(), name.into())
        );
    }
    for (keys, code) in [
        (ANN, "BucketAlreadyOwnedByYou"),
        (ANN_TOO, "BucketAlreadyOwnedByYou"),
        (BOB, "BucketAlreadyExists"),
        (ROOT, "BucketAlreadyExists"),
    ] {
        world.ask(ask("PUT", "/anns").by(keys)).refused(409, code);
    }
}

#[test]
fn all_keys_of_a_user_and_root_reach_its_buckets() {
    let world = serving(3);
    with_buckets(&world);
    for keys in [ANN_TOO, ROOT] {
        let got = world.ask(ask("GET", "/anns/a").by(keys)).expect(200);
        assert_eq!(got.body, b"hers");
        let put = ask("PUT", "/anns/more").by(keys).body("more");
        world.ask(put).expect(200);
        let listed = world.ask(ask("GET", "/anns").by(keys)).expect(200);
        // Whoever wrote them, objects belong to the owner of the bucket.
        assert_eq!(listed.all("ID"), ["ann-id", "ann-id"]);
        assert_eq!(listed.all("DisplayName"), ["Ann", "Ann"]);
        let copy = ask("PUT", "/anns/copy").header("x-amz-copy-source", "/bobs/b");
        let copied = world.ask(copy.by(keys));
        let expected = if keys == ROOT { 200 } else { 403 };
        assert_eq!(copied.status, expected);
        world.ask(ask("DELETE", "/anns/more").by(keys)).expect(204);
    }
}

#[test]
fn an_owner_is_known_by_its_id_also_after_a_restart_under_another_name() {
    let mut world = world(4);
    world.ann_name = "Before";
    world.start();
    with_buckets(&world);
    world.sim.crash(world.server);
    world.ann_name = "bob";
    world.start();
    let listed = world.ask(ask("GET", "/anns")).expect(200);
    assert_eq!(
        (listed.one("ID"), listed.one("DisplayName")),
        ("ann-id".into(), "bob".into())
    );
    world
        .ask(ask("GET", "/anns").by(BOB))
        .refused(403, "AccessDenied");
    let mine = world.ask(ask("GET", "/").by(BOB)).expect(200);
    assert_eq!(mine.all("Name"), ["bobs"]);
}

#[test]
fn a_clock_may_be_fifteen_minutes_off_and_not_more() {
    let world = serving(5);
    with_buckets(&world);
    for minutes in [-14, 0, 14] {
        let skew_s = minutes * 60;
        let get = ask("GET", "/anns/a");
        world.ask(Ask { skew_s, ..get }).expect(200);
    }
    for minutes in [-16, 16, 60 * 24 * 400] {
        let skew_s = minutes * 60;
        for request in [ask("GET", "/anns/a"), ask("PUT", "/anns/a").body("late")] {
            let answer = world.ask(Ask { skew_s, ..request });
            answer.refused(403, "RequestTimeTooSkewed");
        }
    }
    assert_eq!(world.ask(ask("GET", "/anns/a")).expect(200).body, b"hers");
}

#[test]
fn nothing_is_done_for_who_does_not_sign() {
    let world = serving(6);
    let upload = with_buckets(&world);
    let mut all = everything(&upload);
    all.extend([
        ask("GET", "/"),
        ask("PUT", "/anons"),
        ask("GET", "/anns?acl"),
    ]);
    for request in all {
        let is_head = request.method == "HEAD";
        let addr = world.addr();
        let answer = world.on_client(async move {
            let signed = String::from_utf8(request.encode(addr)).unwrap();
            let (head, body) = signed.split_once("\r\n\r\n").unwrap();
            let lines = head.split("\r\n");
            let kept: Vec<&str> = lines.filter(|l| !l.starts_with("Authorization")).collect();
            let mut connection = crate::world::Connection::open(addr).await;
            let unsigned = format!("{}\r\n\r\n{body}", kept.join("\r\n"));
            connection.send(unsigned.into_bytes()).await;
            connection.answer(is_head).await.unwrap()
        });
        assert_eq!(answer.status, 403, "{}", answer.text());
        if !is_head {
            assert_eq!(answer.one("Code"), "AccessDenied");
        }
    }
    assert_eq!(world.ask(ask("GET", "/anns/a")).expect(200).body, b"hers");
}

#[test]
fn a_signature_is_compared_to_its_last_digit() {
    let world = serving(7);
    with_buckets(&world);
    for digit in [0, 1, 31, 62, 63] {
        let addr = world.addr();
        let answers = world.answers_to(move |_| {
            let mut bytes = ask("GET", "/anns/a").encode(addr);
            let at = bytes.windows(10).position(|w| w == b"Signature=").unwrap();
            let digit = &mut bytes[at + 10 + digit];
            *digit = if *digit == b'0' { b'1' } else { b'0' };
            bytes
        });
        let [answer] = &answers[..] else {
            panic!("{answers:?}")
        };
        answer.clone().refused(403, "SignatureDoesNotMatch");
    }
    for (keys, code) in [
        (("ANNKEY", "bobsecret"), "SignatureDoesNotMatch"),
        (("ANNKEY", "annsecre"), "SignatureDoesNotMatch"),
        (("annkey", "annsecret"), "InvalidAccessKeyId"),
    ] {
        world.ask(ask("GET", "/anns/a").by(keys)).refused(403, code);
    }
}

#[test]
fn a_bucket_of_another_owner_than_expected_is_not_touched() {
    let world = serving(8);
    with_buckets(&world);
    let expects = |method, path, owner| {
        let asked = ask(method, path).body("new");
        asked.header("x-amz-expected-bucket-owner", owner)
    };
    world.ask(expects("PUT", "/anns/b", "ann-id")).expect(200);
    let wrong = expects("PUT", "/anns/a", "Ann");
    world.ask(wrong).refused(403, "AccessDenied");
    let wrong = expects("DELETE", "/anns/a", "bob").by(ROOT);
    world.ask(wrong).refused(403, "AccessDenied");
    for (owner, status) in [("ann-id", 200), ("bob", 403)] {
        let copy = ask("PUT", "/anns/c").header("x-amz-copy-source", "/anns/a");
        let copy = copy.header("x-amz-source-expected-bucket-owner", owner);
        assert_eq!(world.ask(copy).status, status);
    }
    assert_eq!(world.ask(ask("GET", "/anns/a")).expect(200).body, b"hers");
}
