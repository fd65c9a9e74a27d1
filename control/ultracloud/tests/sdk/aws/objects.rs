//! Objects: what is put comes back, conditions hold, errors are the SDK's own types.

use std::collections::HashMap;
use std::io::Write;
use std::time::Duration;

use aws_sdk_s3::presigning::{PresignedRequest, PresigningConfig};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{Delete, MetadataDirective, ObjectIdentifier};

use super::{BUCKET, ODD_KEYS, on_stage, refusal, stage};
use crate::block_on;
use crate::support::{Answer, Node, connect, noise, read_response};

#[test]
fn what_is_put_comes_back_with_its_headers_and_metadata() {
    on_stage(|s3| async move {
        for size in [0, 1, 65_536, 3 << 20] {
            let body = noise(size, size as usize);
            let put = s3
                .put_object()
                .bucket(BUCKET)
                .key("object")
                .content_type("text/x")
                .cache_control("no-store")
                .metadata("Color", "dark blue")
                .metadata("note", "")
                .body(ByteStream::from(body.clone()))
                .send()
                .await
                .unwrap();
            assert!(put.checksum_crc32().is_some(), "the SDK's default checksum");
            let head = s3.head_object().bucket(BUCKET).key("object");
            let head = head.send().await.unwrap();
            assert_eq!(head.content_length(), Some(size as i64));
            assert_eq!(head.e_tag(), put.e_tag());
            let got = s3.get_object().bucket(BUCKET).key("object");
            let got = got.send().await.unwrap();
            assert_eq!(got.content_type(), Some("text/x"));
            assert_eq!(got.cache_control(), Some("no-store"));
            let metadata = HashMap::from([
                ("color".to_owned(), "dark blue".to_owned()),
                ("note".to_owned(), String::new()),
            ]);
            assert_eq!(got.metadata(), Some(&metadata));
            assert_eq!(got.checksum_crc32(), put.checksum_crc32());
            // Collecting verifies the checksum.
            assert!(got.body.collect().await.unwrap().into_bytes() == body);
        }
    });
}

#[test]
fn odd_keys_and_keys_of_1024_bytes_work_everywhere() {
    on_stage(|s3| async move {
        let longest = ["k".repeat(1024), "é".repeat(512)];
        let mut keys: Vec<String> = ODD_KEYS.map(String::from).into();
        keys.extend(longest);
        keys.sort();
        for key in &keys {
            let put = s3.put_object().bucket(BUCKET).key(key);
            let put = put.body(key.clone().into_bytes().into());
            put.send().await.unwrap();
            let got = s3.get_object().bucket(BUCKET).key(key);
            let got = got.send().await.unwrap().body.collect().await.unwrap();
            assert_eq!(got.into_bytes(), key.as_bytes());
            let copy = s3.copy_object().bucket(BUCKET).key("copied");
            let source = percent(&format!("{BUCKET}/{key}"));
            copy.copy_source(source).send().await.unwrap();
            let head = s3.head_object().bucket(BUCKET).key("copied");
            let length = head.send().await.unwrap().content_length();
            assert_eq!(length, Some(key.len() as i64));
        }
        let listed = s3.list_objects_v2().bucket(BUCKET).send().await.unwrap();
        let mut listed: Vec<&str> = listed.contents().iter().filter_map(|o| o.key()).collect();
        listed.retain(|key| *key != "copied");
        assert_eq!(listed, keys);
        for key in &keys {
            let delete = s3.delete_object().bucket(BUCKET).key(key);
            delete.send().await.unwrap();
            let got = s3.get_object().bucket(BUCKET).key(key).send().await;
            assert!(got.unwrap_err().into_service_error().is_no_such_key());
        }
        let long = s3.put_object().bucket(BUCKET).key("k".repeat(1025));
        let long = refusal(long.send().await);
        assert_eq!(long, ("KeyTooLongError".into(), 400));
    });
}

fn percent(path: &str) -> String {
    let mut out = Vec::new();
    s3_wire::uri::encode_path(&mut out, path);
    String::from_utf8(out).unwrap()
}

#[test]
fn ranges_give_their_bytes() {
    on_stage(|s3| async move {
        let body = noise(1, 1 << 20);
        let put = s3.put_object().bucket(BUCKET).key("r");
        put.body(body.clone().into()).send().await.unwrap();
        for (range, bytes) in [
            ("bytes=0-9", &body[..10]),
            ("bytes=70000-300000", &body[70_000..300_001]),
            ("bytes=1048570-", &body[1_048_570..]),
            ("bytes=-5", &body[body.len() - 5..]),
        ] {
            let got = s3.get_object().bucket(BUCKET).key("r").range(range);
            let got = got.send().await.unwrap();
            assert_eq!(got.content_length(), Some(bytes.len() as i64));
            assert!(got.content_range().unwrap().ends_with("/1048576"));
            assert!(got.body.collect().await.unwrap().into_bytes() == bytes);
        }
        let past = s3
            .get_object()
            .bucket(BUCKET)
            .key("r")
            .range("bytes=1048576-");
        let past = refusal(past.send().await);
        assert_eq!(past, ("InvalidRange".into(), 416));
    });
}

#[test]
fn conditions_of_reads_and_writes_hold() {
    on_stage(|s3| async move {
        let put = || s3.put_object().bucket(BUCKET).key("c");
        let body = |text: &'static str| ByteStream::from_static(text.as_bytes());
        let missing = put().if_match("\"00000000000000000000000000000000\"");
        let missing = refusal(missing.body(body("x")).send().await);
        assert_eq!(missing, ("NoSuchKey".into(), 404));
        let first = put().if_none_match("*").body(body("one")).send().await;
        let first = first.unwrap().e_tag.unwrap();
        let failed = ("PreconditionFailed".to_owned(), 412);
        let again = put().if_none_match("*").body(body("two")).send().await;
        assert_eq!(refusal(again), failed);
        let second = put().if_match(&first).body(body("two")).send().await;
        let second = second.unwrap().e_tag.unwrap();
        let stale = put().if_match(&first).body(body("three")).send().await;
        assert_eq!(refusal(stale), failed);
        let get = || s3.get_object().bucket(BUCKET).key("c");
        let got = get().if_match(&second).send().await.unwrap();
        assert_eq!(got.body.collect().await.unwrap().into_bytes(), "two");
        assert_eq!(refusal(get().if_match(&first).send().await), failed);
        let same = get().if_none_match(&second).send().await;
        assert_eq!(refusal(same).1, 304);
        let delete = || s3.delete_object().bucket(BUCKET).key("c");
        assert_eq!(refusal(delete().if_match(&first).send().await), failed);
        delete().if_match(&second).send().await.unwrap();
    });
}

#[test]
fn copies_keep_or_replace_metadata() {
    on_stage(|s3| async move {
        let put = s3.put_object().bucket(BUCKET).key("from");
        let put = put.metadata("a", "1").content_type("text/x");
        let body = noise(1, 300_000);
        put.body(body.clone().into()).send().await.unwrap();
        let copy = |to| {
            s3.copy_object()
                .bucket(BUCKET)
                .key(to)
                .copy_source("sdk/from")
        };
        let kept = copy("kept").send().await.unwrap();
        let result = kept.copy_object_result().unwrap();
        assert!(result.e_tag().is_some() && result.last_modified().is_some());
        assert!(result.checksum_crc32().is_some(), "the source has one");
        let replaced = copy("replaced").metadata_directive(MetadataDirective::Replace);
        replaced.metadata("b", "2").send().await.unwrap();
        for (key, name, kind) in [
            ("kept", "a", "text/x"),
            ("replaced", "b", "binary/octet-stream"),
        ] {
            let got = s3
                .get_object()
                .bucket(BUCKET)
                .key(key)
                .send()
                .await
                .unwrap();
            let metadata = got.metadata().unwrap();
            assert_eq!(metadata.keys().collect::<Vec<_>>(), [name]);
            assert_eq!(got.content_type(), Some(kind));
            assert!(got.body.collect().await.unwrap().into_bytes() == body);
        }
        let none = s3
            .copy_object()
            .bucket(BUCKET)
            .key("x")
            .copy_source("sdk/none");
        assert_eq!(refusal(none.send().await), ("NoSuchKey".into(), 404));
        let stale = copy("x").copy_source_if_match("\"0\"").send().await;
        assert_eq!(refusal(stale), ("PreconditionFailed".into(), 412));
    });
}

#[test]
fn many_objects_are_deleted_in_one_request() {
    on_stage(|s3| async move {
        for key in ODD_KEYS {
            let put = s3.put_object().bucket(BUCKET).key(key);
            put.body(ByteStream::from_static(b"x"))
                .send()
                .await
                .unwrap();
        }
        let mut delete = Delete::builder();
        for key in ODD_KEYS {
            delete = delete.objects(ObjectIdentifier::builder().key(key).build().unwrap());
        }
        let delete = delete.build().unwrap();
        let done = s3.delete_objects().bucket(BUCKET).delete(delete);
        let done = done.send().await.unwrap();
        assert!(done.errors().is_empty());
        let deleted: Vec<&str> = done.deleted().iter().filter_map(|d| d.key()).collect();
        assert_eq!(deleted, ODD_KEYS);
        let left = s3.list_objects_v2().bucket(BUCKET).send().await.unwrap();
        assert_eq!(left.key_count(), Some(0));
    });
}

#[test]
fn buckets_are_made_found_and_removed_with_typed_errors() {
    on_stage(|s3| async move {
        s3.create_bucket().bucket("second").send().await.unwrap();
        let again = s3.create_bucket().bucket("second").send().await;
        let again = again.unwrap_err().into_service_error();
        assert!(again.is_bucket_already_owned_by_you(), "{again:?}");
        let listed = s3.list_buckets().send().await.unwrap();
        let names: Vec<&str> = listed.buckets().iter().filter_map(|b| b.name()).collect();
        assert_eq!(names, [BUCKET, "second"]);
        s3.head_bucket().bucket("second").send().await.unwrap();
        let put = s3.put_object().bucket("second").key("a");
        put.body(ByteStream::from_static(b"x"))
            .send()
            .await
            .unwrap();
        let full = s3.delete_bucket().bucket("second").send().await;
        assert_eq!(refusal(full), ("BucketNotEmpty".into(), 409));
        let delete = s3.delete_object().bucket("second").key("a");
        delete.send().await.unwrap();
        s3.delete_bucket().bucket("second").send().await.unwrap();
        let gone = s3.head_bucket().bucket("second").send().await;
        assert!(gone.unwrap_err().into_service_error().is_not_found());
        let gone = s3.head_object().bucket(BUCKET).key("none").send().await;
        assert!(gone.unwrap_err().into_service_error().is_not_found());
        let gone = s3.list_objects_v2().bucket("second").send().await;
        assert!(gone.unwrap_err().into_service_error().is_no_such_bucket());
    });
}

/// Sends a presigned request as anything but the SDK would.
fn send(node: &Node, request: &PresignedRequest, body: &[u8]) -> Answer {
    let target = request.uri().strip_prefix(&format!("http://{}", node.s3));
    let method = request.method();
    let mut stream = connect(node.s3);
    write!(stream, "{method} {} HTTP/1.1\r\n", target.unwrap()).unwrap();
    write!(stream, "host: {}\r\n", node.s3).unwrap();
    for (name, value) in request.headers() {
        write!(stream, "{name}: {value}\r\n").unwrap();
    }
    if request.headers().all(|(name, _)| name != "content-length") {
        write!(stream, "content-length: {}\r\n", body.len()).unwrap();
    }
    stream.write_all(b"\r\n").unwrap();
    stream.write_all(body).unwrap();
    read_response(&mut stream, false).unwrap()
}

#[test]
fn presigned_requests_work_without_the_sdk() {
    let stage = stage();
    let s3 = &stage.client;
    let lives = || PresigningConfig::expires_in(Duration::from_mins(1)).unwrap();
    for key in ["plain", "a b+c/ü%"] {
        let put = s3.put_object().bucket(BUCKET).key(key).metadata("a", "1");
        let put = block_on(put.presigned(lives())).unwrap();
        send(&stage.node, &put, b"presigned").expect(200);
        let get = s3.get_object().bucket(BUCKET).key(key);
        let get = get.response_content_type("text/asked");
        let get = block_on(get.presigned(lives())).unwrap();
        let got = send(&stage.node, &get, b"").expect(200);
        assert_eq!(got.body, b"presigned");
        assert_eq!(got.header("content-type"), Some("text/asked"));
        assert_eq!(got.header("x-amz-meta-a"), Some("1"));
    }
}
