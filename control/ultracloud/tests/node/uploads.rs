//! Multipart uploads.

use s3_wire::checksum::{Algorithm, Checksummer};

use crate::support::{Answer, Client, fresh, noise, request};

const PART: usize = 5 << 20;

fn begin(client: &mut Client, path: &str) -> String {
    client
        .send(&request("POST", path).query("uploads"))
        .expect(200)
        .one("UploadId")
}

fn part(client: &mut Client, path: &str, id: &str, number: u16, body: &[u8]) -> Answer {
    let query = format!("partNumber={number}&uploadId={id}");
    client.send(&request("PUT", path).query(&query).body(body))
}

fn etag(answer: Answer) -> String {
    answer.expect(200).header("etag").unwrap().to_owned()
}

fn complete(client: &mut Client, path: &str, id: &str, parts: &[(u16, String)]) -> Answer {
    let parts: Vec<String> = parts
        .iter()
        .map(|(n, tag)| format!("<Part><PartNumber>{n}</PartNumber><ETag>{tag}</ETag></Part>"))
        .collect();
    let body = format!(
        "<CompleteMultipartUpload>{}</CompleteMultipartUpload>",
        parts.concat()
    );
    let query = format!("uploadId={id}");
    client.send(&request("POST", path).query(&query).body(body.as_bytes()))
}

#[test]
fn parts_become_one_object_that_can_be_read_in_ranges() {
    let (_dir, node) = fresh();
    let mut client = node.client();
    client.put("/multi", b"").expect(200);
    let path = "/multi/large";
    let begun = request("POST", path)
        .query("uploads")
        .header("content-type", "video/x");
    let id = client
        .send(&begun.header("x-amz-meta-a", "1"))
        .expect(200)
        .one("UploadId");
    let bodies = [noise(1, PART), noise(2, PART + 777), noise(3, 1234)];
    let mut parts = Vec::new();
    for (number, body) in [(1, &bodies[0]), (3, &bodies[1]), (7, &bodies[2])] {
        parts.push((number, etag(part(&mut client, path, &id, number, body))));
    }
    client.get(path).refused(404, "NoSuchKey");
    let listed = client.send(&request("GET", path).query(&format!("uploadId={id}&max-parts=2")));
    let listed = listed.expect(200);
    assert_eq!(listed.all("PartNumber"), ["1", "3"]);
    assert_eq!(listed.one("NextPartNumberMarker"), "3");
    let uploads = client
        .send(&request("GET", "/multi").query("uploads"))
        .expect(200);
    assert_eq!(uploads.one("UploadId"), id);
    let done = complete(&mut client, path, &id, &parts).expect(200);
    assert!(done.one("ETag").contains("-3"));
    let whole = bodies.concat();
    let got = client.get(path).expect(200);
    assert!(got.body == whole);
    assert_eq!(got.header("content-type"), Some("video/x"));
    assert_eq!(got.header("x-amz-meta-a"), Some("1"));
    for (start, end) in [
        (PART - 5, PART + 5),
        (0, 10),
        (2 * PART + 770, whole.len()),
        (1, whole.len()),
    ] {
        let range = format!("bytes={start}-{}", end - 1);
        let got = client
            .send(&request("GET", path).header("range", &range))
            .expect(206);
        assert!(got.body == whole[start..end], "{range}");
    }
    let uploads = client
        .send(&request("GET", "/multi").query("uploads"))
        .expect(200);
    assert!(uploads.all("UploadId").is_empty());
    client.delete(path).expect(204);
}

#[test]
fn an_upload_is_refused_what_it_may_not_do() {
    let (_dir, node) = fresh();
    let mut client = node.client();
    client.put("/multi", b"").expect(200);
    let path = "/multi/a";
    let id = begin(&mut client, path);
    let small = etag(part(&mut client, path, &id, 1, b"small"));
    let last = etag(part(&mut client, path, &id, 2, b"last"));
    let two = [(1, small.clone()), (2, last.clone())];
    complete(&mut client, path, &id, &two).refused(400, "EntityTooSmall");
    let wrong = [(1, last.clone())];
    complete(&mut client, path, &id, &wrong).refused(400, "InvalidPart");
    complete(&mut client, path, &id, &[(9, last)]).refused(400, "InvalidPart");
    let reversed = [(2, small.clone()), (1, small.clone())];
    complete(&mut client, path, &id, &reversed).refused(400, "InvalidPartOrder");
    part(&mut client, path, &id, 10_001, b"x").refused(400, "InvalidArgument");
    let none = "0".repeat(32);
    part(&mut client, path, &none, 1, b"x").refused(404, "NoSuchUpload");
    part(&mut client, path, "nonsense", 1, b"x").refused(404, "NoSuchUpload");
    // Of the right id, but another key.
    part(&mut client, "/multi/b", &id, 1, b"x").refused(404, "NoSuchUpload");
    let abort = format!("uploadId={id}");
    client
        .send(&request("DELETE", path).query(&abort))
        .expect(204);
    client
        .send(&request("DELETE", path).query(&abort))
        .refused(404, "NoSuchUpload");
    part(&mut client, path, &id, 1, b"x").refused(404, "NoSuchUpload");
}

#[test]
fn a_part_can_be_replaced_and_copied() {
    let (_dir, node) = fresh();
    let mut client = node.client();
    client.put("/multi", b"").expect(200);
    let source = noise(5, 6 << 20);
    client.put("/multi/source", &source).expect(200);
    let path = "/multi/a";
    let id = begin(&mut client, path);
    part(&mut client, path, &id, 1, b"first try").expect(200);
    let query = format!("partNumber=1&uploadId={id}");
    let copy = request("PUT", path)
        .query(&query)
        .header("x-amz-copy-source", "/multi/source")
        .header("x-amz-copy-source-range", "bytes=100-5242979");
    let copied = client
        .send(&copy)
        .expect(200)
        .one("ETag")
        .replace("&quot;", "\"");
    let tail = etag(part(&mut client, path, &id, 2, b"tail"));
    complete(&mut client, path, &id, &[(1, copied), (2, tail)]).expect(200);
    let mut whole = source[100..5_242_980].to_vec();
    whole.extend_from_slice(b"tail");
    assert!(client.get(path).expect(200).body == whole);
}

#[test]
fn the_crc_of_a_whole_multipart_object_is_that_of_its_bytes() {
    let (_dir, node) = fresh();
    let mut client = node.client();
    client.put("/multi", b"").expect(200);
    let path = "/multi/sum";
    let create = request("POST", path)
        .query("uploads")
        .header("x-amz-checksum-algorithm", "CRC64NVME");
    let id = client.send(&create).expect(200).one("UploadId");
    let bodies = [noise(1, PART), noise(2, 1000)];
    let mut parts = Vec::new();
    let mut whole = Checksummer::new(Algorithm::Crc64Nvme);
    for (number, body) in [(1_u16, &bodies[0]), (2, &bodies[1])] {
        let mut sum = Checksummer::new(Algorithm::Crc64Nvme);
        sum.update(body);
        whole.update(body);
        let query = format!("partNumber={number}&uploadId={id}");
        let put = request("PUT", path).query(&query).body(body);
        let put = put.header("x-amz-checksum-crc64nvme", &sum.finish().to_base64());
        parts.push((number, etag(client.send(&put))));
    }
    let whole = whole.finish().to_base64();
    let done = complete(&mut client, path, &id, &parts).expect(200);
    assert_eq!(done.one("ChecksumCRC64NVME"), whole);
    let head = request("HEAD", path).header("x-amz-checksum-mode", "ENABLED");
    let head = client.send(&head).expect(200);
    assert_eq!(head.header("x-amz-checksum-crc64nvme"), Some(&*whole));
    assert_eq!(head.header("x-amz-checksum-type"), Some("FULL_OBJECT"));
}
