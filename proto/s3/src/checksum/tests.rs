//! Check values of the algorithms, combination, and promises kept and broken.

use proptest::prelude::*;
use sha2::Digest as _;

use super::*;
use crate::head::{HeadLimits, Parsed, parse_head};

fn promise(query: &str, fields: &str) -> Result<BodyPromise> {
    let text = format!("PUT /b/k?{query} HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
    match parse_head(text.as_bytes(), &HeadLimits::default()) {
        Ok(Parsed::Complete { head, .. }) => BodyPromise::parse(&head),
        other => panic!("{text}: {other:?}"),
    }
}

fn sum(algorithm: Algorithm, data: &[u8]) -> Checksum {
    let mut sum = Checksummer::new(algorithm);
    sum.update(data);
    sum.finish()
}

#[test]
fn the_check_values_of_the_algorithms() {
    for (algorithm, expected) in [
        (Algorithm::Crc32, "cbf43926"),
        (Algorithm::Crc32c, "e3069283"),
        (Algorithm::Crc64Nvme, "ae8b14860a799888"),
        (Algorithm::Sha1, "f7c3bc1d808e04732adf679965ccc34ca7ae3441"),
        (
            Algorithm::Sha256,
            "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225",
        ),
    ] {
        let got = sum(algorithm, b"123456789");
        assert_eq!(hex::encode(got.bytes()), expected);
        assert_eq!(
            Checksum::from_base64(algorithm, &got.to_base64()).unwrap(),
            got
        );
        assert_eq!(Checksum::from_bytes(algorithm, got.bytes()), Some(got));
        assert_eq!(Algorithm::from_name(algorithm.as_str()), Some(algorithm));
    }
}

#[test]
fn values_of_the_wrong_length_are_refused() {
    for text in [
        "",
        "AAA",
        "AAAA",
        "AAAAAAAA",
        "====",
        "AAAAAA",
        &"A".repeat(4000),
    ] {
        let error = Checksum::from_base64(Algorithm::Crc32, text).unwrap_err();
        assert_eq!(error.code, S3ErrorCode::InvalidRequest, "{text}");
    }
}

#[test]
fn promises_come_from_headers_trailers_and_presigned_queries() {
    let crc = sum(Algorithm::Crc32, b"123456789");
    let got = promise(
        "",
        "x-amz-checksum-crc32: y/Q5Jg==\r\nx-amz-sdk-checksum-algorithm: CRC32\r\n",
    )
    .unwrap();
    assert_eq!(
        (got.algorithm, got.value, got.in_trailer),
        (Some(Algorithm::Crc32), Some(crc), false)
    );
    let got = promise("", "x-amz-trailer: x-amz-checksum-crc64nvme\r\n").unwrap();
    assert_eq!(
        (got.algorithm, got.in_trailer),
        (Some(Algorithm::Crc64Nvme), true)
    );
    let got = promise("X-Amz-Checksum-Crc32=y%2FQ5Jg%3D%3D", "").unwrap();
    assert_eq!(got.value, Some(crc));
    let got = promise(
        "",
        "x-amz-sdk-checksum-algorithm: sha256\r\nx-amz-checksum-mode: ENABLED\r\n",
    )
    .unwrap();
    assert_eq!((got.algorithm, got.value), (Some(Algorithm::Sha256), None));
    for (fields, code) in [
        ("Content-MD5: x\r\n", S3ErrorCode::InvalidDigest),
        ("Content-MD5: AAAA\r\n", S3ErrorCode::InvalidDigest),
        ("x-amz-checksum-md5: AAAA\r\n", S3ErrorCode::InvalidRequest),
        (
            "x-amz-checksum-crc32: AAAA\r\n",
            S3ErrorCode::InvalidRequest,
        ),
        (
            "x-amz-checksum-crc32: y/Q5Jg==\r\nx-amz-checksum-crc32c: y/Q5Jg==\r\n",
            S3ErrorCode::InvalidRequest,
        ),
        (
            "x-amz-checksum-crc32: y/Q5Jg==\r\nx-amz-trailer: x-amz-checksum-crc32\r\n",
            S3ErrorCode::InvalidRequest,
        ),
        (
            "x-amz-checksum-crc32: y/Q5Jg==\r\nx-amz-sdk-checksum-algorithm: SHA1\r\n",
            S3ErrorCode::InvalidRequest,
        ),
        (
            "x-amz-trailer: x-amz-checksum-sha512\r\n",
            S3ErrorCode::InvalidRequest,
        ),
        (
            "x-amz-sdk-checksum-algorithm: MD4\r\n",
            S3ErrorCode::InvalidRequest,
        ),
    ] {
        assert_eq!(promise("", fields).unwrap_err().code, code, "{fields}");
    }
}

#[test]
fn kept_promises_give_digests_and_broken_ones_errors() {
    let check = |fields: &str, sha256: Option<[u8; 32]>, trailers: &[(Box<str>, Box<str>)]| {
        let mut digests = BodyDigests::new(promise("", fields).unwrap(), sha256, true);
        digests.update(b"1234");
        digests.update(b"56789");
        digests.finish(trailers).map_err(|error| error.code)
    };
    let sha256: [u8; 32] = sha2::Sha256::digest(b"123456789").into();
    let crc = "x-amz-checksum-crc32: y/Q5Jg==\r\n";
    let by_trailer = "x-amz-trailer: x-amz-checksum-crc32\r\n";
    let trailer = |text: &str| [("x-amz-checksum-crc32".into(), text.into())];
    let got = check(crc, Some(sha256), &[]).unwrap();
    assert_eq!(
        hex::encode(got.md5.unwrap()),
        "25f9e794323b453885f5181f1b624d0b"
    );
    assert_eq!(got.checksum.unwrap().to_base64(), "y/Q5Jg==");
    assert!(check("Content-MD5: JfnnlDI7RTiF9RgfG2JNCw==\r\n", None, &[]).is_ok());
    assert!(check(by_trailer, None, &trailer("y/Q5Jg==")).is_ok());
    assert!(
        check(
            "x-amz-sdk-checksum-algorithm: SHA256\r\n",
            Some(sha256),
            &[]
        )
        .is_ok()
    );
    use S3ErrorCode::*;
    assert_eq!(
        check(crc, Some([0; 32]), &[]),
        Err(XAmzContentSha256Mismatch)
    );
    let shared = check(
        "x-amz-sdk-checksum-algorithm: SHA256\r\n",
        Some([0; 32]),
        &[],
    );
    assert_eq!(shared, Err(XAmzContentSha256Mismatch));
    assert_eq!(
        check("x-amz-checksum-crc32: AAAAAA==\r\n", None, &[]),
        Err(BadDigest)
    );
    assert_eq!(
        check("Content-MD5: AAAAAAAAAAAAAAAAAAAAAA==\r\n", None, &[]),
        Err(BadDigest)
    );
    assert_eq!(
        check(by_trailer, None, &trailer("AAAAAA==")),
        Err(BadDigest)
    );
    assert_eq!(check(by_trailer, None, &trailer("x")), Err(InvalidRequest));
    assert_eq!(check(by_trailer, None, &[]), Err(InvalidRequest));
}

#[test]
fn checksum_types_follow_the_table_of_s3() {
    use ChecksumType::*;
    for (algorithm, header, expected) in [
        (Algorithm::Crc32, None, Some(Composite)),
        (Algorithm::Crc32, Some("FULL_OBJECT"), Some(FullObject)),
        (Algorithm::Crc64Nvme, None, Some(FullObject)),
        (Algorithm::Crc64Nvme, Some("COMPOSITE"), None),
        (Algorithm::Sha256, None, Some(Composite)),
        (Algorithm::Sha256, Some("FULL_OBJECT"), None),
        (Algorithm::Sha1, Some("x"), None),
    ] {
        assert_eq!(
            ChecksumType::for_upload(algorithm, header).ok(),
            expected,
            "{algorithm:?} {header:?}"
        );
    }
}

proptest! {
    #[test]
    fn part_crcs_combine_into_the_crc_of_the_whole(
        parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 1..6),
    ) {
        for algorithm in [Algorithm::Crc32, Algorithm::Crc32c, Algorithm::Crc64Nvme] {
            let sums = parts.iter().map(|part| (sum(algorithm, part), part.len() as u64));
            prop_assert_eq!(full_object(sums), Some(sum(algorithm, &parts.concat())));
        }
        let shas: Vec<_> = parts.iter().map(|part| sum(Algorithm::Sha256, part)).collect();
        let joined: Vec<u8> = shas.iter().flat_map(|s| s.bytes().to_vec()).collect();
        prop_assert_eq!(composite(&shas), Some((sum(Algorithm::Sha256, &joined), parts.len())));
        prop_assert_eq!(full_object(shas.iter().map(|s| (*s, 1))), None);
    }
}

#[test]
fn no_parts_and_mixed_parts_have_no_checksum() {
    let (crc, sha) = (sum(Algorithm::Crc32, b"a"), sum(Algorithm::Sha1, b"a"));
    assert_eq!(full_object([]), None);
    assert_eq!(
        full_object([(crc, 1), (sum(Algorithm::Crc32c, b"a"), 1)]),
        None
    );
    assert_eq!(composite([]), None);
    assert_eq!(composite([&crc, &sha]), None);
}
