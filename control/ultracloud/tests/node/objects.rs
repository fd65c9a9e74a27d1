//! Objects and buckets: put, get, head, delete, list, ranges, conditions, checksums.

use s3_wire::checksum::{Algorithm, Checksummer};

use crate::support::{Client, Payload, fresh, noise, request};

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;
/// Around every boundary that the server has.
const SIZES: [usize; 12] = [
    0,
    1,
    4 * KIB,
    64 * KIB - 1,
    64 * KIB,
    64 * KIB + 1,
    256 * KIB - 1,
    256 * KIB,
    256 * KIB + 1,
    512 * KIB + 7,
    3 * MIB,
    5 * MIB + 12_345,
];

fn with_bucket(client: &mut Client, name: &str) {
    client.put(&format!("/{name}"), b"").expect(200);
}

#[test]
fn what_is_put_is_what_is_read_at_every_size_and_signing() {
    let (_dir, node) = fresh();
    let mut client = node.client();
    with_bucket(&mut client, "sizes");
    let modes = [
        Payload::Unsigned,
        Payload::Sha256,
        Payload::SignedChunks,
        Payload::SignedChunksTrailer,
        Payload::UnsignedTrailer,
    ];
    for (at, size) in SIZES.into_iter().enumerate() {
        let mode = modes[at % modes.len()];
        for mode in [mode, Payload::Unsigned] {
            let body = noise(at as u64, size);
            let path = format!("/sizes/{size}-{mode:?}");
            let mut put = request("PUT", &path).body(&body).payload(mode);
            if matches!(
                mode,
                Payload::SignedChunksTrailer | Payload::UnsignedTrailer
            ) {
                let mut sum = Checksummer::new(Algorithm::Crc32);
                sum.update(&body);
                put = put.trailer("x-amz-checksum-crc32", &sum.finish().to_base64());
            }
            let etag = client
                .send(&put)
                .expect(200)
                .header("etag")
                .unwrap()
                .to_owned();
            let got = client.get(&path).expect(200);
            assert!(got.body == body, "{path}");
            assert_eq!(got.header("etag"), Some(&*etag));
            let head = client.head(&path).expect(200);
            assert_eq!(head.header("content-length"), Some(&*size.to_string()));
            assert_eq!(head.header("etag"), Some(&*etag));
        }
    }
}

#[test]
fn ranges_give_their_bytes_and_say_so() {
    let (_dir, node) = fresh();
    let mut client = node.client();
    with_bucket(&mut client, "ranges");
    for size in [10 * KIB, MIB + 5] {
        let body = noise(7, size);
        let path = format!("/ranges/{size}");
        client.put(&path, &body).expect(200);
        let last = size - 1;
        for (range, start, end) in [
            ("bytes=0-0".to_owned(), 0, 1),
            ("bytes=5-99".to_owned(), 5, 100),
            (format!("bytes={last}-"), last, size),
            ("bytes=-100".to_owned(), size - 100, size),
            (format!("bytes=9000-{}", size * 2), 9000, size),
            (format!("bytes=1-{last}"), 1, size),
        ] {
            let got = client
                .send(&request("GET", &path).header("range", &range))
                .expect(206);
            assert!(got.body == body[start..end], "{range} of {size}");
            let said = format!("bytes {start}-{}/{size}", end - 1);
            assert_eq!(got.header("content-range"), Some(&*said));
            assert_eq!(
                got.header("content-length"),
                Some(&*(end - start).to_string())
            );
        }
        let past = format!("bytes={size}-");
        client
            .send(&request("GET", &path).header("range", &past))
            .refused(416, "InvalidRange");
        let many = client
            .send(&request("GET", &path).header("range", "bytes=0-1,3-4"))
            .expect(200);
        assert_eq!(many.body.len(), size);
        let part = client
            .send(&request("GET", &path).query("partNumber=1"))
            .expect(206);
        assert_eq!(part.body.len(), size);
        let none = client.send(&request("GET", &path).query("partNumber=2"));
        none.refused(416, "InvalidPartNumber");
    }
}

#[test]
fn conditions_hold_for_reads_and_writes() {
    let (_dir, node) = fresh();
    let mut client = node.client();
    with_bucket(&mut client, "conditions");
    let path = "/conditions/a";
    let none = |body| request("PUT", path).header("if-none-match", "*").body(body);
    let first = client
        .send(&none(b"one"))
        .expect(200)
        .header("etag")
        .unwrap()
        .to_owned();
    client
        .send(&none(b"two"))
        .refused(412, "PreconditionFailed");
    client
        .send(
            &request("PUT", path)
                .header("if-match", "\"00000000000000000000000000000000\"")
                .body(b"x"),
        )
        .refused(412, "PreconditionFailed");
    let gone = request("PUT", "/conditions/none")
        .header("if-match", &first)
        .body(b"x");
    client.send(&gone).refused(404, "NoSuchKey");
    client
        .send(&request("PUT", path).header("if-match", &first).body(b"two"))
        .expect(200);
    let got = client.send(&request("GET", path)).expect(200);
    assert_eq!(got.body, b"two");
    let etag = got.header("etag").unwrap().to_owned();
    let modified = got.header("last-modified").unwrap().to_owned();
    for (name, value, status) in [
        ("if-match", &*etag, 200),
        ("if-match", &*first, 412),
        ("if-none-match", &*etag, 304),
        ("if-none-match", &*first, 200),
        ("if-modified-since", &*modified, 304),
        ("if-unmodified-since", &*modified, 200),
        ("if-unmodified-since", "Sun, 06 Nov 1994 08:49:37 GMT", 412),
    ] {
        for method in ["GET", "HEAD"] {
            let got = client
                .send(&request(method, path).header(name, value))
                .expect(status);
            assert!(got.body.is_empty() || method == "GET");
            assert!(status != 304 || got.header("etag") == Some(&*etag));
        }
    }
    client
        .send(&request("DELETE", path).header("if-match", &first))
        .refused(412, "PreconditionFailed");
    client
        .send(&request("DELETE", path).header("if-match", &etag))
        .expect(204);
    client.get(path).refused(404, "NoSuchKey");
}

#[test]
fn a_download_is_resumed_only_while_the_object_is_the_same() {
    let (_dir, node) = fresh();
    let mut client = node.client();
    with_bucket(&mut client, "resume");
    let path = "/resume/a";
    let put = client.put(path, b"first version").expect(200);
    let etag = put.header("etag").unwrap().to_owned();
    let resume = |validator: &str| {
        request("GET", path)
            .header("range", "bytes=6-")
            .header("if-range", validator)
    };
    let got = client.send(&resume(&etag)).expect(206);
    assert_eq!(got.body, b"version");
    let modified = got.header("last-modified").unwrap().to_owned();
    assert_eq!(client.send(&resume(&modified)).expect(206).body, b"version");
    client.put(path, b"another one").expect(200);
    let got = client.send(&resume(&etag)).expect(200);
    assert_eq!(got.body, b"another one");
}

#[test]
fn a_304_says_how_long_the_cached_object_is_good() {
    let (_dir, node) = fresh();
    let mut client = node.client();
    with_bucket(&mut client, "cached");
    let expires = "Thu, 01 Jan 2099 00:00:00 GMT";
    let put = request("PUT", "/cached/a")
        .body(b"x")
        .header("cache-control", "max-age=60")
        .header("expires", expires);
    let put = client.send(&put).expect(200);
    let etag = put.header("etag").unwrap();
    let same = request("GET", "/cached/a").header("if-none-match", etag);
    let same = client.send(&same).expect(304);
    assert_eq!(same.header("etag"), Some(etag));
    assert_eq!(same.header("cache-control"), Some("max-age=60"));
    assert_eq!(same.header("expires"), Some(expires));
}

#[test]
fn headers_and_metadata_come_back_and_can_be_overridden() {
    let (_dir, node) = fresh();
    let mut client = node.client();
    with_bucket(&mut client, "headers");
    let put = request("PUT", "/headers/a")
        .body(b"text")
        .header("content-type", "text/plain; charset=utf-8")
        .header("cache-control", "no-store")
        .header("content-disposition", "attachment")
        .header("content-language", "de")
        .header("expires", "never")
        .header("x-amz-meta-color", "blue")
        .header("x-amz-meta-shape", "round");
    client.send(&put).expect(200);
    let head = client.head("/headers/a").expect(200);
    for (name, value) in put.headers.iter().filter(|(name, _)| name != "host") {
        assert_eq!(head.header(name), Some(&**value), "{name}");
    }
    assert_eq!(head.header("accept-ranges"), Some("bytes"));
    let query = "response-content-type=application%2Fx&response-cache-control=max-age%3D1";
    let got = client
        .send(&request("GET", "/headers/a").query(query))
        .expect(200);
    assert_eq!(got.header("content-type"), Some("application/x"));
    assert_eq!(got.header("cache-control"), Some("max-age=1"));
    client.put("/headers/plain", b"x").expect(200);
    let plain = client.get("/headers/plain").expect(200);
    assert_eq!(plain.header("content-type"), Some("binary/octet-stream"));
    let large = "v".repeat(2049);
    let put = request("PUT", "/headers/large")
        .body(b"x")
        .header("x-amz-meta-a", &large);
    client.send(&put).refused(400, "MetadataTooLarge");
}

#[test]
fn checksums_are_checked_kept_and_shown_on_request() {
    let (_dir, node) = fresh();
    let mut client = node.client();
    with_bucket(&mut client, "sums");
    for algorithm in Algorithm::ALL {
        for size in [1000, 300_000] {
            let body = noise(3, size);
            let mut sum = Checksummer::new(algorithm);
            sum.update(&body);
            let sum = sum.finish().to_base64();
            let path = format!("/sums/{}-{size}", algorithm.as_str());
            let put = request("PUT", &path)
                .body(&body)
                .header(algorithm.header(), &sum);
            assert_eq!(
                client.send(&put).expect(200).header(algorithm.header()),
                Some(&*sum)
            );
            let shown = request("GET", &path).header("x-amz-checksum-mode", "ENABLED");
            assert_eq!(
                client.send(&shown).expect(200).header(algorithm.header()),
                Some(&*sum)
            );
            assert_eq!(
                client.get(&path).expect(200).header(algorithm.header()),
                None
            );
            let wrong = request("PUT", &path)
                .body(&body[1..])
                .header(algorithm.header(), &sum);
            client.send(&wrong).refused(400, "BadDigest");
            assert!(
                client.get(&path).expect(200).body == body,
                "the object is as it was"
            );
        }
    }
    let md5 = request("PUT", "/sums/md5")
        .body(b"x")
        .header("content-md5", "AAAAAAAAAAAAAAAAAAAAAA==");
    client.send(&md5).refused(400, "BadDigest");
    let md5 = request("PUT", "/sums/md5")
        .body(b"x")
        .header("content-md5", "nonsense");
    client.send(&md5).refused(400, "InvalidDigest");
    client.get("/sums/md5").refused(404, "NoSuchKey");
}

#[test]
fn buckets_are_made_listed_found_and_removed() {
    let (_dir, node) = fresh();
    let mut client = node.client();
    for name in ["zebra", "apple"] {
        let made = client.put(&format!("/{name}"), b"").expect(200);
        assert_eq!(made.header("location"), Some(&*format!("/{name}")));
    }
    assert_eq!(client.get("/").expect(200).all("Name"), ["apple", "zebra"]);
    client
        .put("/apple", b"")
        .refused(409, "BucketAlreadyOwnedByYou");
    client
        .put("/No_Name", b"")
        .refused(400, "InvalidBucketName");
    client.head("/apple").expect(200);
    client.head("/other").expect(404);
    client
        .send(&request("GET", "/apple").query("location"))
        .expect(200);
    let elsewhere = b"<CreateBucketConfiguration><LocationConstraint>mars-1</LocationConstraint>\
        </CreateBucketConfiguration>";
    client
        .put("/mars", elsewhere)
        .refused(400, "IllegalLocationConstraintException");
    client.put("/apple/core", b"x").expect(200);
    client.delete("/apple").refused(409, "BucketNotEmpty");
    client.delete("/apple/core").expect(204);
    client.delete("/apple").expect(204);
    client.delete("/apple").refused(404, "NoSuchBucket");
    client.get("/apple").refused(404, "NoSuchBucket");
    client.get("/apple/core").refused(404, "NoSuchBucket");
    client.put("/apple/core", b"x").refused(404, "NoSuchBucket");
}

#[test]
fn a_listing_is_ordered_paged_and_rolled_up() {
    let (_dir, node) = fresh();
    let mut client = node.client();
    with_bucket(&mut client, "list");
    let mut keys: Vec<String> = (0..60).map(|i| format!("d{}/k{i:03}", i % 7)).collect();
    keys.extend((0..20).map(|i| format!("top{i:02}")));
    keys.push("ünïcode&<key>".into());
    keys.sort();
    for key in &keys {
        let mut path = b"/list/".to_vec();
        s3_wire::uri::encode_path(&mut path, key);
        let path = String::from_utf8(path).unwrap();
        client.put(&path, key.as_bytes()).expect(200);
    }
    let mut listed = Vec::new();
    let first = "list-type=2&max-keys=7&encoding-type=url";
    let mut query = first.to_owned();
    loop {
        let page = client
            .send(&request("GET", "/list").query(&query))
            .expect(200);
        let found = page.all("Key");
        assert!(found.len() <= 7);
        listed.extend(found);
        match page.all("NextContinuationToken").pop() {
            Some(token) => {
                query = format!("{first}&continuation-token={token}");
            }
            None => break,
        }
    }
    let listed: Vec<String> = listed
        .iter()
        .map(|key| s3_wire::uri::decode_path(key).unwrap().into_owned())
        .collect();
    assert_eq!(listed, keys);
    let rolled = client
        .send(&request("GET", "/list").query("list-type=2&delimiter=%2F"))
        .expect(200);
    let prefixes: Vec<String> = (0..7).map(|i| format!("<Prefix>d{i}/</Prefix>")).collect();
    for prefix in &prefixes {
        assert!(rolled.text().contains(prefix), "{prefix}");
    }
    assert_eq!(rolled.all("Key").len(), 21);
    assert_eq!(rolled.one("KeyCount"), "28");
    let page = request("GET", "/list").query("delimiter=%2F&max-keys=3");
    let page = client.send(&page).expect(200);
    assert_eq!(page.one("NextMarker"), "d2/");
    let next = request("GET", "/list").query("delimiter=%2F&max-keys=5&marker=d2%2F");
    assert_eq!(client.send(&next).expect(200).all("Key"), ["top00"]);
    let below = request("GET", "/list").query("list-type=2&prefix=d3%2F&delimiter=%2F");
    assert_eq!(client.send(&below).expect(200).all("Key").len(), 60 / 7 + 1);
    let none = client
        .send(&request("GET", "/list").query("list-type=2&max-keys=0"))
        .expect(200);
    assert!(none.all("Key").is_empty());
    let bad = request("GET", "/list").query("list-type=2&continuation-token=%21");
    client.send(&bad).refused(400, "InvalidArgument");
}

#[test]
fn many_keys_are_deleted_in_one_request() {
    let (_dir, node) = fresh();
    let mut client = node.client();
    with_bucket(&mut client, "many");
    for i in 0..40 {
        client.put(&format!("/many/k{i}"), b"x").expect(200);
    }
    let objects: Vec<String> = (0..41)
        .map(|i| format!("<Object><Key>k{i}</Key></Object>"))
        .collect();
    let objects = objects.concat();
    let body = format!(
        "<Delete>{objects}<Object><Key>k1</Key><VersionId>v9</VersionId></Object></Delete>"
    );
    let delete = request("POST", "/many")
        .query("delete")
        .body(body.as_bytes());
    let done = client.send(&delete.payload(Payload::Sha256)).expect(200);
    assert_eq!(done.all("Deleted").len(), 41);
    assert_eq!(done.one("Code"), "NotImplemented");
    assert!(client.get("/many").expect(200).all("Key").is_empty());
    let quiet = b"<Delete><Quiet>true</Quiet><Object><Key>a</Key></Object></Delete>";
    let done = client
        .send(&request("POST", "/many").query("delete").body(quiet))
        .expect(200);
    assert!(done.all("Deleted").is_empty());
    let bad = request("POST", "/many")
        .query("delete")
        .body(b"<Delete><Object>");
    client.send(&bad).refused(400, "MalformedXML");
}

#[test]
fn copies_are_equal_and_keep_or_replace_metadata() {
    let (_dir, node) = fresh();
    let mut client = node.client();
    with_bucket(&mut client, "copies");
    for size in [0, 1000, 700_000] {
        let body = noise(11, size);
        let from = format!("/copies/from-{size}");
        client
            .send(
                &request("PUT", &from)
                    .body(&body)
                    .header("x-amz-meta-a", "1"),
            )
            .expect(200);
        let to = format!("/copies/to-{size}");
        let copy = request("PUT", &to).header("x-amz-copy-source", &from);
        let etag = client.send(&copy).expect(200).one("ETag");
        let got = client.get(&to).expect(200);
        assert!(got.body == body);
        assert_eq!(etag.replace("&quot;", "\""), got.header("etag").unwrap());
        assert_eq!(got.header("x-amz-meta-a"), Some("1"));
        let replace = request("PUT", &from)
            .header("x-amz-copy-source", &from)
            .header("x-amz-metadata-directive", "REPLACE")
            .header("x-amz-meta-b", "2");
        client.send(&replace).expect(200);
        let got = client.get(&from).expect(200);
        assert!(got.body == body);
        assert_eq!(
            (got.header("x-amz-meta-a"), got.header("x-amz-meta-b")),
            (None, Some("2"))
        );
    }
    let same = request("PUT", "/copies/from-0").header("x-amz-copy-source", "/copies/from-0");
    client.send(&same).refused(400, "InvalidRequest");
    let none = request("PUT", "/copies/x").header("x-amz-copy-source", "/copies/none");
    client.send(&none).refused(404, "NoSuchKey");
}

#[test]
fn a_user_of_the_config_cannot_reach_buckets_of_another() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("node.toml");
    let text = "[[lightningstor.user]]\nname = \"guest\"\naccess_key = \"GUEST\"\nsecret_key = \"guestsecret\"\n";
    std::fs::write(&config, text).unwrap();
    let mut command = crate::support::command(&crate::support::data_of(&dir));
    let node = crate::support::Node::from_command(command.arg("--config").arg(&config));
    let mut root = node.client();
    let mut guest = Client::new(node.s3, "GUEST", "guestsecret");
    with_bucket(&mut root, "private");
    root.put("/private/a", b"x").expect(200);
    guest.get("/private/a").refused(403, "AccessDenied");
    guest.put("/private/b", b"x").refused(403, "AccessDenied");
    guest
        .put("/private", b"")
        .refused(409, "BucketAlreadyExists");
    with_bucket(&mut guest, "guests");
    assert_eq!(guest.get("/").expect(200).all("Name"), ["guests"]);
    let steal = request("PUT", "/guests/a").header("x-amz-copy-source", "/private/a");
    guest.send(&steal).refused(403, "AccessDenied");
    root.get("/guests").expect(200);
}
