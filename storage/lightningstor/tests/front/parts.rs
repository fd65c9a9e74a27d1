//! Objects that came in parts: reading them part by part, and what their attributes are.

use s3_wire::checksum::{Algorithm, Checksummer};

use crate::world::{Answer, World, ask, noise, serving};

/// A part that is not the last has more than a thousand bytes here. The third lies in its record.
const SIZES: [(u16, usize); 3] = [(1, 300_000), (2, 70_000), (3, 1_234)];

fn part_of(number: u16) -> Vec<u8> {
    let (_, size) = SIZES[usize::from(number) - 1];
    noise(number.into(), size)
}

fn sum(algorithm: Algorithm, body: &[u8]) -> String {
    let mut sum = Checksummer::new(algorithm);
    sum.update(body);
    sum.finish().to_base64()
}

/// Uploads the parts under a checksum, if one is asked for: (algorithm, type).
fn upload(world: &World, path: &str, checksum: Option<(Algorithm, &str)>) -> Answer {
    let mut begin = ask("POST", &format!("{path}?uploads"));
    if let Some((algorithm, kind)) = checksum {
        begin = begin
            .header("x-amz-checksum-algorithm", algorithm.as_str())
            .header("x-amz-checksum-type", kind);
    }
    let id = world.ask(begin).expect(200).one("UploadId");
    let mut listed = String::new();
    for (number, _) in SIZES {
        let body = part_of(number);
        let mut put = ask("PUT", &format!("{path}?partNumber={number}&uploadId={id}"));
        if let Some((algorithm, _)) = checksum {
            put = put.header(algorithm.header(), &sum(algorithm, &body));
        }
        let etag = world.ask(put.body(body)).expect(200);
        let etag = etag.header("etag").unwrap();
        let part = format!("<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>");
        listed.push_str(&part);
    }
    let list = format!("<CompleteMultipartUpload>{listed}</CompleteMultipartUpload>");
    let complete = ask("POST", &format!("{path}?uploadId={id}")).body(list);
    world.ask(complete).expect(200)
}

#[test]
fn a_part_is_read_by_its_number_with_its_range_count_and_checksum() {
    let world = serving(1);
    world.ask(ask("PUT", "/anns")).expect(200);
    let total: usize = SIZES.iter().map(|(_, size)| size).sum();
    for (path, checksum) in [
        ("/anns/plain", None),
        ("/anns/full", Some((Algorithm::Crc32, "FULL_OBJECT"))),
        ("/anns/composite", Some((Algorithm::Sha256, "COMPOSITE"))),
    ] {
        upload(&world, path, checksum);
        let mut begin = 0;
        for (number, size) in SIZES {
            let body = part_of(number);
            let query = format!("{path}?partNumber={number}");
            for method in ["GET", "HEAD"] {
                let read = ask(method, &query).header("x-amz-checksum-mode", "ENABLED");
                let got = world.ask(read).expect(206);
                if method == "GET" {
                    assert!(got.body == body, "{path} {number}");
                }
                let range = format!("bytes {begin}-{}/{total}", begin + size - 1);
                assert_eq!(got.header("content-range"), Some(&*range));
                assert_eq!(got.header("content-length"), Some(&*size.to_string()));
                assert_eq!(got.header("x-amz-mp-parts-count"), Some("3"));
                assert!(got.header("etag").unwrap().ends_with("-3\""));
                let header = checksum.map_or("x-amz-checksum-crc32", |(a, _)| a.header());
                let expected = checksum.map(|(algorithm, _)| sum(algorithm, &body));
                assert_eq!(got.header(header), expected.as_deref(), "{path} {number}");
                let kind = checksum.map(|(_, kind)| kind);
                assert_eq!(got.header("x-amz-checksum-type"), kind);
            }
            let silent = world.ask(ask("GET", &query)).expect(206);
            assert_eq!(silent.header("x-amz-checksum-type"), None);
            begin += size;
        }
        for number in [4, 10_000] {
            let query = format!("{path}?partNumber={number}");
            world
                .ask(ask("GET", &query))
                .refused(416, "InvalidPartNumber");
            world.ask(ask("HEAD", &query)).expect(416);
        }
        let zero = world.ask(ask("GET", &format!("{path}?partNumber=0")));
        zero.refused(400, "InvalidArgument");
        let both = ask("GET", &format!("{path}?partNumber=1")).header("range", "bytes=0-1");
        world.ask(both).refused(400, "InvalidRequest");
        // The whole object has no count of parts.
        let whole = world.ask(ask("GET", path)).expect(200);
        assert_eq!(whole.header("x-amz-mp-parts-count"), None);
    }
    world
        .ask(ask("PUT", "/anns/single").body("one piece"))
        .expect(200);
    let only = world
        .ask(ask("GET", "/anns/single?partNumber=1"))
        .expect(206);
    assert_eq!(only.body, b"one piece");
    assert_eq!(only.header("x-amz-mp-parts-count"), None);
    let second = world.ask(ask("GET", "/anns/single?partNumber=2"));
    second.refused(416, "InvalidPartNumber");
}

const ALL: &str = "ETag,Checksum,ObjectParts,StorageClass,ObjectSize";

fn attributes(world: &World, path: &str, what: &str, page: &[(&str, &str)]) -> Answer {
    let mut get = ask("GET", &format!("{path}?attributes")).header("x-amz-object-attributes", what);
    for (name, value) in page {
        get = get.header(name, value);
    }
    world.ask(get)
}

#[test]
fn attributes_tell_tag_checksum_parts_class_and_size() {
    let world = serving(2);
    world.ask(ask("PUT", "/anns")).expect(200);
    let done = upload(&world, "/anns/big", Some((Algorithm::Crc32, "COMPOSITE")));
    let got = attributes(&world, "/anns/big", ALL, &[]).expect(200);
    assert!(got.header("last-modified").is_some());
    let quoted = done.one("ETag");
    assert_eq!(
        got.one("ETag"),
        quoted.trim_matches('"').replace("&quot;", "")
    );
    assert_eq!(got.one("ObjectSize"), "371234");
    assert_eq!(got.one("StorageClass"), "STANDARD");
    assert_eq!(got.one("ChecksumType"), "COMPOSITE");
    assert_eq!(got.one("PartsCount"), "3");
    assert_eq!(got.all("PartNumber"), ["1", "2", "3"]);
    assert_eq!(got.all("Size"), ["300000", "70000", "1234"]);
    let sums: Vec<String> = (1..=3)
        .map(|n| sum(Algorithm::Crc32, &part_of(n)))
        .collect();
    let shown = got.all("ChecksumCRC32");
    assert_eq!(shown[1..], sums[..]);
    // The object's own is the completion's, without its number of parts.
    assert_eq!(done.one("ChecksumCRC32"), format!("{}-3", shown[0]));

    let mut after = "0".to_owned();
    for number in ["1", "2", "3"] {
        let page = [
            ("x-amz-max-parts", "1"),
            ("x-amz-part-number-marker", &after),
        ];
        let got = attributes(&world, "/anns/big", "ObjectParts", &page).expect(200);
        assert_eq!(got.all("PartNumber"), [number]);
        assert_eq!(got.one("PartNumberMarker"), after);
        assert_eq!(got.one("IsTruncated") == "true", number != "3");
        assert!(got.all("ETag").is_empty() && got.all("ObjectSize").is_empty());
        after = number.to_owned();
    }

    upload(&world, "/anns/unsummed", None);
    let got = attributes(&world, "/anns/unsummed", ALL, &[]).expect(200);
    assert_eq!(got.one("PartsCount"), "3");
    assert!(got.all("PartNumber").is_empty() && got.all("Checksum").is_empty());

    let put = ask("PUT", "/anns/small").body("small");
    let put = put.header("x-amz-storage-class", "REDUCED_REDUNDANCY");
    world.ask(put).expect(200);
    let got = attributes(&world, "/anns/small", ALL, &[]).expect(200);
    assert_eq!(
        (got.one("ObjectSize"), got.one("StorageClass")),
        ("5".into(), "REDUCED_REDUNDANCY".into())
    );
    assert!(got.all("ObjectParts").is_empty());
    attributes(&world, "/anns/none", ALL, &[]).refused(404, "NoSuchKey");
    attributes(&world, "/anns/small", "Color", &[]).refused(400, "InvalidArgument");
    attributes(&world, "/anns/small", "", &[]).refused(400, "InvalidArgument");
    let versions = world.ask(ask("GET", "/anns?versioning")).expect(200);
    assert!(
        versions
            .text()
            .ends_with("2006-03-01/\"></VersioningConfiguration>")
    );
}
