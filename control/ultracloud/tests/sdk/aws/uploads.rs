//! Multipart uploads: parts, copies of parts, checksums of both kinds, listings, refusals.

use aws_sdk_s3::Client;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{
    ChecksumAlgorithm, ChecksumMode, ChecksumType, CompletedMultipartUpload, CompletedPart,
};

use super::{BUCKET, on_stage, refusal};
use crate::support::noise;

const PART: usize = 5 << 20;

async fn create(s3: &Client, key: &str) -> String {
    let create = s3.create_multipart_upload().bucket(BUCKET).key(key);
    create.send().await.unwrap().upload_id.unwrap()
}

async fn part(s3: &Client, key: &str, id: &str, number: i32, body: Vec<u8>) -> CompletedPart {
    let part = s3.upload_part().bucket(BUCKET).key(key).upload_id(id);
    let part = part.part_number(number).body(ByteStream::from(body));
    let part = part.send().await.unwrap();
    CompletedPart::builder()
        .part_number(number)
        .set_e_tag(part.e_tag)
        .set_checksum_crc32(part.checksum_crc32)
        .set_checksum_sha256(part.checksum_sha256)
        .build()
}

fn list_of(parts: &[CompletedPart]) -> CompletedMultipartUpload {
    let parts = Some(parts.to_vec());
    CompletedMultipartUpload::builder().set_parts(parts).build()
}

#[test]
fn parts_and_copied_parts_become_one_object() {
    on_stage(|s3| async move {
        let source = noise(5, PART + 1000);
        let put = s3.put_object().bucket(BUCKET).key("source");
        put.body(source.clone().into()).send().await.unwrap();
        let id = create(&s3, "whole").await;
        let first = part(&s3, "whole", &id, 1, noise(1, PART)).await;
        let copy = s3.upload_part_copy().bucket(BUCKET).key("whole");
        let copy = copy.upload_id(&id).part_number(2).copy_source("sdk/source");
        let copied = copy
            .copy_source_range(format!("bytes=10-{}", PART + 9))
            .send()
            .await
            .unwrap();
        let etag = copied.copy_part_result.and_then(|result| result.e_tag);
        let second = CompletedPart::builder().part_number(2).set_e_tag(etag);
        let third = part(&s3, "whole", &id, 3, noise(3, 77)).await;
        let parts = [first, second.build(), third];
        let complete = s3.complete_multipart_upload().bucket(BUCKET).key("whole");
        let complete = complete.upload_id(&id).multipart_upload(list_of(&parts));
        let done = complete.send().await.unwrap();
        assert!(done.e_tag().unwrap().ends_with("-3\""));
        let got = s3
            .get_object()
            .bucket(BUCKET)
            .key("whole")
            .send()
            .await
            .unwrap();
        assert_eq!(got.e_tag(), done.e_tag());
        let got = got.body.collect().await.unwrap().into_bytes();
        assert!(got == [noise(1, PART), source[10..PART + 10].to_vec(), noise(3, 77)].concat());
    });
}

#[test]
fn an_upload_has_the_checksum_that_it_was_made_with() {
    on_stage(|s3| async move {
        for (algorithm, kind, ends) in [
            (ChecksumAlgorithm::Crc32, ChecksumType::FullObject, "=="),
            (ChecksumAlgorithm::Crc32, ChecksumType::Composite, "-2"),
            (ChecksumAlgorithm::Sha256, ChecksumType::Composite, "-2"),
        ] {
            let create = s3.create_multipart_upload().bucket(BUCKET).key("sum");
            let create = create.checksum_algorithm(algorithm.clone());
            let created = create.checksum_type(kind.clone()).send().await.unwrap();
            assert_eq!(created.checksum_type(), Some(&kind));
            let id = created.upload_id.unwrap();
            let mut parts = Vec::new();
            for (number, body) in [(1, noise(1, PART)), (2, noise(2, 99))] {
                let put = s3.upload_part().bucket(BUCKET).key("sum").upload_id(&id);
                let put = put
                    .checksum_algorithm(algorithm.clone())
                    .part_number(number);
                let put = put.body(body.into()).send().await.unwrap();
                let done = CompletedPart::builder().part_number(number);
                let done = done.set_checksum_crc32(put.checksum_crc32);
                let done = done.set_checksum_sha256(put.checksum_sha256);
                parts.push(done.set_e_tag(put.e_tag).build());
            }
            let complete = s3.complete_multipart_upload().bucket(BUCKET).key("sum");
            let complete = complete.checksum_type(kind.clone()).upload_id(&id);
            let done = complete
                .multipart_upload(list_of(&parts))
                .send()
                .await
                .unwrap();
            assert_eq!(done.checksum_type(), Some(&kind));
            let sum = done.checksum_crc32().or(done.checksum_sha256()).unwrap();
            assert!(sum.ends_with(ends), "{sum}");
            let head = s3.head_object().bucket(BUCKET).key("sum");
            let head = head
                .checksum_mode(ChecksumMode::Enabled)
                .send()
                .await
                .unwrap();
            assert_eq!(head.checksum_crc32().or(head.checksum_sha256()), Some(sum));
            assert_eq!(head.checksum_type(), Some(&kind));
            let got = s3
                .get_object()
                .bucket(BUCKET)
                .key("sum")
                .send()
                .await
                .unwrap();
            let got = got.body.collect().await.unwrap().into_bytes();
            assert!(got == [noise(1, PART), noise(2, 99)].concat());
        }
    });
}

#[test]
fn parts_and_uploads_are_listed_in_pages() {
    on_stage(|s3| async move {
        let id = create(&s3, "p/one").await;
        for number in [1, 3, 8, 9, 10_000] {
            part(&s3, "p/one", &id, number, noise(number as u64, 10)).await;
        }
        let list = s3.list_parts().bucket(BUCKET).key("p/one").upload_id(&id);
        let mut parts = list.max_parts(2).into_paginator().items().send();
        let mut numbers = Vec::new();
        while let Some(part) = parts.try_next().await.unwrap() {
            assert_eq!(part.size(), Some(10));
            numbers.push(part.part_number().unwrap());
        }
        assert_eq!(numbers, [1, 3, 8, 9, 10_000]);
        let again = create(&s3, "p/one").await;
        let other = create(&s3, "top").await;
        let list = || s3.list_multipart_uploads().bucket(BUCKET);
        let (mut seen, mut key, mut upload) = (Vec::new(), None, None);
        loop {
            let page = list().max_uploads(1).set_key_marker(key);
            let page = page.set_upload_id_marker(upload).send().await.unwrap();
            seen.extend(page.uploads().iter().filter_map(|u| u.upload_id.clone()));
            (key, upload) = (page.next_key_marker, page.next_upload_id_marker);
            if page.is_truncated != Some(true) {
                break;
            }
        }
        assert_eq!(seen, [&*id, &*again, &*other], "by key, then by age");
        let rolled = list().delimiter("/").send().await.unwrap();
        assert_eq!(rolled.common_prefixes()[0].prefix(), Some("p/"));
        assert_eq!(rolled.uploads().len(), 1);
    });
}

#[test]
fn an_upload_is_refused_with_typed_errors() {
    on_stage(|s3| async move {
        let id = create(&s3, "a").await;
        let small = part(&s3, "a", &id, 1, vec![1; 10]).await;
        let last = part(&s3, "a", &id, 2, vec![2; 10]).await;
        let complete = |parts: &[CompletedPart]| {
            let complete = s3.complete_multipart_upload().bucket(BUCKET).key("a");
            complete
                .upload_id(&id)
                .multipart_upload(list_of(parts))
                .send()
        };
        let refused = refusal(complete(&[small.clone(), last.clone()]).await);
        assert_eq!(refused, ("EntityTooSmall".into(), 400));
        let refused = refusal(complete(&[last, small.clone()]).await);
        assert_eq!(refused, ("InvalidPartOrder".into(), 400));
        let put = s3.put_object().bucket(BUCKET).key("a");
        put.body(ByteStream::from_static(b"x"))
            .send()
            .await
            .unwrap();
        let taken = s3.complete_multipart_upload().bucket(BUCKET).key("a");
        let taken = taken.upload_id(&id).if_none_match("*");
        let taken = taken.multipart_upload(list_of(&[small])).send().await;
        assert_eq!(refusal(taken), ("PreconditionFailed".into(), 412));
        let abort = || {
            s3.abort_multipart_upload()
                .bucket(BUCKET)
                .key("a")
                .upload_id(&id)
        };
        abort().send().await.unwrap();
        let gone = abort().send().await.unwrap_err().into_service_error();
        assert!(gone.is_no_such_upload(), "{gone:?}");
    });
}
