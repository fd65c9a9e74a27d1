//! Every checksum that S3 has had since 2022, computed by the SDK and kept by the server.

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ChecksumAlgorithm, ChecksumMode, ChecksumType};

use super::{BUCKET, on_stage, refusal};
use crate::support::noise;

const ALGORITHMS: [ChecksumAlgorithm; 5] = [
    ChecksumAlgorithm::Crc32,
    ChecksumAlgorithm::Crc32C,
    ChecksumAlgorithm::Crc64Nvme,
    ChecksumAlgorithm::Sha1,
    ChecksumAlgorithm::Sha256,
];

/// The field of an answer that belongs to an algorithm.
macro_rules! checksum {
    ($answer:expr, $algorithm:expr) => {{
        let answer = &$answer;
        let sum = match $algorithm {
            ChecksumAlgorithm::Crc32 => answer.checksum_crc32(),
            ChecksumAlgorithm::Crc32C => answer.checksum_crc32_c(),
            ChecksumAlgorithm::Crc64Nvme => answer.checksum_crc64_nvme(),
            ChecksumAlgorithm::Sha1 => answer.checksum_sha1(),
            _ => answer.checksum_sha256(),
        };
        sum.map(str::to_owned)
    }};
}

#[test]
fn every_algorithm_is_checked_kept_and_shown() {
    on_stage(|s3| async move {
        for algorithm in ALGORITHMS {
            for size in [0, 1000, 300_000] {
                let body = noise(9, size);
                let put = s3.put_object().bucket(BUCKET).key("sum");
                let put = put.checksum_algorithm(algorithm.clone());
                let put = put
                    .body(ByteStream::from(body.clone()))
                    .send()
                    .await
                    .unwrap();
                let sum = checksum!(put, algorithm);
                assert!(sum.is_some(), "{algorithm:?}");
                assert_eq!(put.checksum_type(), Some(&ChecksumType::FullObject));
                let head = s3.head_object().bucket(BUCKET).key("sum");
                let head = head.checksum_mode(ChecksumMode::Enabled);
                assert_eq!(checksum!(head.send().await.unwrap(), algorithm), sum);
                let get = s3.get_object().bucket(BUCKET).key("sum");
                let got = get.send().await.unwrap();
                assert_eq!(checksum!(got, algorithm), sum);
                assert!(got.body.collect().await.unwrap().into_bytes() == body);
            }
        }
    });
}

#[test]
fn a_checksum_that_is_not_the_bodys_is_refused() {
    on_stage(|s3| async move {
        let put = || s3.put_object().bucket(BUCKET).key("wrong");
        let body = || ByteStream::from_static(b"body");
        let wrong = put().checksum_crc32("AAAAAA==").body(body()).send().await;
        assert_eq!(refusal(wrong), ("BadDigest".into(), 400));
        let wrong = put().content_md5("AAAAAAAAAAAAAAAAAAAAAA==").body(body());
        assert_eq!(refusal(wrong.send().await), ("BadDigest".into(), 400));
        let head = s3.head_object().bucket(BUCKET).key("wrong").send().await;
        assert!(head.unwrap_err().into_service_error().is_not_found());
    });
}

#[test]
fn a_copy_has_the_algorithm_that_was_asked_for() {
    on_stage(|s3| async move {
        let put = s3.put_object().bucket(BUCKET).key("from");
        put.body(noise(4, 100_000).into()).send().await.unwrap();
        for algorithm in ALGORITHMS {
            let copy = s3.copy_object().bucket(BUCKET).key("to");
            let copy = copy.copy_source("sdk/from");
            let copied = copy
                .checksum_algorithm(algorithm.clone())
                .send()
                .await
                .unwrap();
            let sum = checksum!(copied.copy_object_result().unwrap(), algorithm);
            assert!(sum.is_some(), "{algorithm:?}");
            let got = s3
                .get_object()
                .bucket(BUCKET)
                .key("to")
                .send()
                .await
                .unwrap();
            assert_eq!(checksum!(got, algorithm), sum);
            got.body.collect().await.unwrap();
        }
    });
}
