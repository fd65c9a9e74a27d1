//! Every operation, every sub-resource that must not pass for the plain one, and both host styles.

use super::*;
use crate::head::{HeadLimits, Parsed, parse_head};

fn head(method: &str, target: &str, fields: &str) -> RequestHead {
    let host = if fields.starts_with("Host") {
        ""
    } else {
        "Host: s3.test\r\n"
    };
    let text = format!("{method} {target} HTTP/1.1\r\n{host}{fields}\r\n");
    match parse_head(text.as_bytes(), &HeadLimits::default()) {
        Ok(Parsed::Complete { head, .. }) => head,
        other => panic!("{text}: {other:?}"),
    }
}

fn op(method: &str, target: &str, fields: &str) -> Result<S3Op> {
    let hosts = HostConfig {
        base_domain: Some("s3.test".into()),
    };
    S3Op::classify(&head(method, target, fields), &hosts)
}

fn bucket() -> BucketName {
    BucketName::new("bkt").unwrap()
}

fn object(key: &str) -> ObjectPath {
    ObjectPath {
        bucket: bucket(),
        key: ObjectKey::new(key).unwrap(),
    }
}

fn code(result: Result<S3Op>) -> S3ErrorCode {
    result.unwrap_err().code
}

#[test]
fn bucket_operations() {
    for (method, target, expected) in [
        ("GET", "/", S3Op::ListBuckets),
        ("GET", "/?x-id=ListBuckets", S3Op::ListBuckets),
        ("PUT", "/bkt", S3Op::CreateBucket(bucket())),
        ("PUT", "/bkt/", S3Op::CreateBucket(bucket())),
        ("HEAD", "/bkt", S3Op::HeadBucket(bucket())),
        ("DELETE", "/bkt", S3Op::DeleteBucket(bucket())),
        ("GET", "/bkt?location", S3Op::GetBucketLocation(bucket())),
        (
            "GET",
            "/bkt?versioning",
            S3Op::GetBucketVersioning(bucket()),
        ),
        ("POST", "/bkt?delete=", S3Op::DeleteObjects(bucket())),
    ] {
        assert_eq!(
            op(method, target, "").unwrap(),
            expected,
            "{method} {target}"
        );
    }
    assert!(matches!(
        op("POST", "/bkt", ""),
        Ok(S3Op::NotImplemented(_))
    ));
    assert_eq!(code(op("PATCH", "/bkt", "")), S3ErrorCode::MethodNotAllowed);
    assert_eq!(
        code(op("PUT", "/bkt?location", "")),
        S3ErrorCode::MethodNotAllowed
    );
    assert_eq!(code(op("POST", "/", "")), S3ErrorCode::MethodNotAllowed);
    assert_eq!(code(op("PUT", "/Bkt", "")), S3ErrorCode::InvalidBucketName);
}

#[test]
fn object_operations() {
    let id = || UploadId("u+1".into());
    let part = || PartRef {
        number: 7,
        upload_id: id(),
    };
    for (method, target, expected) in [
        ("PUT", "/bkt/k", S3Op::PutObject(object("k"))),
        (
            "GET",
            "/bkt/a%2Fb+c//",
            S3Op::GetObject(object("a/b+c//"), ReadParams::default()),
        ),
        (
            "GET",
            "/bkt//a",
            S3Op::GetObject(object("/a"), ReadParams::default()),
        ),
        (
            "GET",
            "/bkt/../x",
            S3Op::GetObject(object("../x"), ReadParams::default()),
        ),
        (
            "HEAD",
            "/bkt/k?foo=bar",
            S3Op::HeadObject(object("k"), ReadParams::default()),
        ),
        (
            "DELETE",
            "/bkt/k?versionId=null",
            S3Op::DeleteObject(object("k")),
        ),
        (
            "POST",
            "/bkt/k?uploads",
            S3Op::CreateMultipartUpload(object("k")),
        ),
        (
            "PUT",
            "/bkt/k?partNumber=7&uploadId=u%2B1",
            S3Op::UploadPart(object("k"), part()),
        ),
        (
            "POST",
            "/bkt/k?uploadId=u%2B1",
            S3Op::CompleteMultipartUpload(object("k"), id()),
        ),
        (
            "DELETE",
            "/bkt/k?uploadId=u%2B1",
            S3Op::AbortMultipartUpload(object("k"), id()),
        ),
    ] {
        let got = op(method, target, "").unwrap();
        assert_eq!(got, expected, "{method} {target}");
        assert_eq!(got.bucket(), Some(&bucket()));
        assert!(got.object().is_some());
    }
}

#[test]
fn malformed_object_operations_are_refused() {
    for target in [
        "/bkt/k?uploadId=x",
        "/bkt/k?partNumber=1",
        "/bkt/k?uploadId=x&partNumber=0",
        "/bkt/k?uploadId=x&partNumber=10001",
        "/bkt/k?uploadId=x&partNumber=+1",
        "/bkt/k?uploadId=x&partNumber=1&partNumber=2",
    ] {
        assert_eq!(
            code(op("PUT", target, "")),
            S3ErrorCode::InvalidArgument,
            "{target}"
        );
    }
    assert_eq!(
        code(op("POST", "/bkt/k", "")),
        S3ErrorCode::MethodNotAllowed
    );
    assert_eq!(
        code(op("POST", "/bkt/k?uploads&uploadId=x", "")),
        S3ErrorCode::MethodNotAllowed
    );
    assert_eq!(
        code(op("DELETE", "/bkt/k?uploadId=", "")),
        S3ErrorCode::NoSuchUpload
    );
    assert_eq!(
        code(op("PUT", &format!("/bkt/{}", "a".repeat(1025)), "")),
        S3ErrorCode::KeyTooLong
    );
    assert_eq!(code(op("PUT", "/bkt/%ff", "")), S3ErrorCode::InvalidUri);
}

#[test]
fn sub_resources_never_pass_for_the_plain_operation() {
    let plain = [
        "acl",
        "policy",
        "tagging",
        "versions",
        "lifecycle",
        "cors",
        "object-lock",
        "retention",
        "legal-hold",
        "encryption",
        "website",
        "notification",
        "replication",
        "select",
        "restore",
        "torrent",
        "logging",
        "accelerate",
        "requestPayment",
        "inventory",
        "analytics",
        "metrics",
        "publicAccessBlock",
        "ownershipControls",
        "policyStatus",
        "ACL",
        "%61cl",
    ];
    for sub in plain {
        for method in ["GET", "PUT", "HEAD", "DELETE", "POST"] {
            for target in [
                format!("/bkt?{sub}"),
                format!("/bkt/k?{sub}="),
                format!("/bkt/k?x=y&{sub}"),
            ] {
                let got = op(method, &target, "");
                assert!(
                    matches!(got, Ok(S3Op::NotImplemented(_))),
                    "{method} {target}: {got:?}"
                );
            }
        }
    }
    assert!(matches!(
        op("GET", "/bkt/k?versionId=3", ""),
        Ok(S3Op::NotImplemented(_))
    ));
    for target in ["/bkt/k?uploads", "/bkt/k?location", "/bkt/k?delete"] {
        assert_eq!(
            code(op("PUT", target, "")),
            S3ErrorCode::MethodNotAllowed,
            "{target}"
        );
    }
}

#[test]
fn what_is_implemented_by_get_alone_never_passes_for_the_plain_operation() {
    for method in ["PUT", "HEAD", "DELETE", "POST"] {
        for sub in ["versioning", "attributes"] {
            for target in [format!("/bkt?{sub}"), format!("/bkt/k?{sub}")] {
                let got = op(method, &target, "");
                assert!(
                    matches!(got, Ok(S3Op::NotImplemented(_))),
                    "{method} {target}: {got:?}"
                );
            }
        }
    }
    for target in ["/bkt/k?versioning", "/bkt?attributes"] {
        let got = op("GET", target, "");
        assert!(matches!(got, Ok(S3Op::NotImplemented(_))), "{target}");
    }
    for target in ["/bkt?versioning&acl", "/bkt/k?attributes&tagging"] {
        let got = op("GET", target, "x-amz-object-attributes: ETag\r\n");
        assert!(matches!(got, Ok(S3Op::NotImplemented(_))), "{target}");
    }
    let both = op("GET", "/bkt/k?attributes&uploadId=x", "");
    assert_eq!(code(both), S3ErrorCode::MethodNotAllowed);
}

#[test]
fn attributes_are_named_in_headers_together_or_apart() {
    let ask = |fields: &str| match op("GET", "/bkt/k?attributes", fields) {
        Ok(S3Op::GetObjectAttributes(path, params)) if path == object("k") => Ok(params),
        Err(error) => Err(error.code),
        other => panic!("{other:?}"),
    };
    let all = AttributesParams {
        etag: true,
        checksum: true,
        object_parts: true,
        storage_class: true,
        object_size: true,
        max_parts: 7,
        part_number_marker: 3,
    };
    let page = "x-amz-max-parts: 7\r\nx-amz-part-number-marker: 3\r\n";
    let together =
        "x-amz-object-attributes: ETag,Checksum, ObjectParts,StorageClass,ObjectSize\r\n";
    assert_eq!(ask(&format!("{together}{page}")), Ok(all.clone()));
    let apart = together.replace(',', "\r\nx-amz-object-attributes: ");
    assert_eq!(ask(&format!("{apart}{page}")), Ok(all));
    let size = ask("x-amz-object-attributes: ObjectSize\r\nx-amz-max-parts: 60000\r\n").unwrap();
    assert!(size.object_size && !size.etag && size.max_parts == 1000);
    for wrong in [
        "",
        "x-amz-object-attributes:\r\n",
        "x-amz-object-attributes: Color\r\n",
        "x-amz-object-attributes: ETag\r\nx-amz-max-parts: -1\r\n",
    ] {
        assert_eq!(ask(wrong), Err(S3ErrorCode::InvalidArgument), "{wrong}");
    }
}

#[test]
fn headers_whose_meaning_would_be_lost_are_refused() {
    for field in [
        "x-amz-server-side-encryption: AES256",
        "x-amz-server-side-encryption-customer-key: x",
        "x-amz-object-lock-mode: GOVERNANCE",
        "x-amz-tagging: a=b",
        "x-amz-acl: public-read",
        "x-amz-grant-read: id=1",
        "x-amz-write-offset-bytes: 5",
    ] {
        let got = op("PUT", "/bkt/k", &format!("{field}\r\n"));
        assert!(
            matches!(got, Ok(S3Op::NotImplemented(_))),
            "{field}: {got:?}"
        );
    }
    let hoisted = op("PUT", "/bkt/k?X-Amz-Server-Side-Encryption=AES256", "");
    assert!(matches!(hoisted, Ok(S3Op::NotImplemented(_))));
    for field in [
        "x-amz-acl: private",
        "x-amz-date: x",
        "x-amz-content-sha256: x",
        "x-amz-acl:",
    ] {
        let got = op("PUT", "/bkt/k", &format!("{field}\r\n"));
        assert_eq!(got.unwrap(), S3Op::PutObject(object("k")), "{field}");
    }
}

#[test]
fn listings_carry_their_parameters() {
    let target = "/bkt?list-type=2&prefix=a%2F+b&delimiter=%2F&max-keys=5&start-after=x&encoding-type=url&fetch-owner=true";
    let S3Op::ListObjectsV2(_, params) = op("GET", target, "").unwrap() else {
        panic!()
    };
    assert_eq!(
        (&*params.prefix, &*params.delimiter, params.max_keys),
        ("a/ b", "/", 5)
    );
    assert_eq!(params.start_after.as_deref(), Some("x"));
    assert!(params.encoding_url && params.fetch_owner && params.continuation_token.is_none());
    let S3Op::ListObjectsV1(_, params) =
        op("GET", "/bkt?marker=m&start-after=s&max-keys=2000000", "").unwrap()
    else {
        panic!()
    };
    assert_eq!(
        (params.start_after.as_deref(), params.max_keys),
        (Some("m"), 1000)
    );
    for bad in [
        "max-keys=-1",
        "max-keys=a",
        "max-keys=2147483648",
        "encoding-type=xml",
        "list-type=1",
        "list-type=2&continuation-token=",
    ] {
        assert_eq!(
            code(op("GET", &format!("/bkt?{bad}"), "")),
            S3ErrorCode::InvalidArgument,
            "{bad}"
        );
    }
    let S3Op::ListParts(_, params) = op(
        "GET",
        "/bkt/k?uploadId=x&max-parts=0&part-number-marker=9",
        "",
    )
    .unwrap() else {
        panic!()
    };
    assert_eq!((params.max_parts, params.part_number_marker), (0, 9));
    let S3Op::ListMultipartUploads(_, params) = op(
        "GET",
        "/bkt?uploads&key-marker=k&upload-id-marker=u&max-uploads=3",
        "",
    )
    .unwrap() else {
        panic!()
    };
    assert_eq!(
        (params.key_marker.as_deref(), params.max_uploads),
        (Some("k"), 3)
    );
}

#[test]
fn reads_carry_range_part_and_overrides() {
    let target = "/bkt/k?response-content-type=text%2Fplain&response-expires=never";
    let S3Op::GetObject(_, read) = op("GET", target, "Range: bytes=1-2\r\n").unwrap() else {
        panic!()
    };
    assert_eq!(read.range, Some(ByteRange::Closed { first: 1, last: 2 }));
    assert_eq!(
        read.overrides,
        [
            ("Content-Type", "text/plain".into()),
            ("Expires", "never".into())
        ]
    );
    let split = op("GET", "/bkt/k?response-content-type=a%0d%0aEvil:+1", "");
    assert_eq!(code(split), S3ErrorCode::InvalidArgument);
    let both = op("GET", "/bkt/k?partNumber=1", "Range: bytes=1-2\r\n");
    assert_eq!(code(both), S3ErrorCode::InvalidRequest);
    let S3Op::HeadObject(_, read) = op("HEAD", "/bkt/k?partNumber=3", "").unwrap() else {
        panic!()
    };
    assert_eq!(read.part_number, Some(3));
}

#[test]
fn copies_name_their_source() {
    let got = op(
        "PUT",
        "/bkt/k",
        "x-amz-copy-source: /bkt/a%20b+c\r\nx-amz-metadata-directive: REPLACE\r\n",
    );
    let expected = CopyParams {
        source: object("a b+c"),
        replace_metadata: true,
    };
    assert_eq!(got.unwrap(), S3Op::CopyObject(object("k"), expected));
    let target = "/bkt/k?partNumber=1&uploadId=x";
    let got = op(
        "PUT",
        target,
        "x-amz-copy-source: bkt/a\r\nx-amz-copy-source-range: bytes=0-9\r\n",
    )
    .unwrap();
    let S3Op::UploadPartCopy(_, _, source) = got else {
        panic!()
    };
    assert_eq!(
        source,
        PartSource {
            source: object("a"),
            range: Some(0..10)
        }
    );
    for (field, expected) in [
        ("x-amz-copy-source: bkt", S3ErrorCode::InvalidArgument),
        ("x-amz-copy-source: bkt/", S3ErrorCode::InvalidArgument),
        ("x-amz-copy-source:", S3ErrorCode::InvalidArgument),
        (
            "x-amz-copy-source: bkt/k?versionId=3",
            S3ErrorCode::NotImplemented,
        ),
        (
            "x-amz-copy-source: bkt/k\r\nx-amz-metadata-directive: x",
            S3ErrorCode::InvalidArgument,
        ),
    ] {
        assert_eq!(
            code(op("PUT", "/bkt/k", &format!("{field}\r\n"))),
            expected,
            "{field}"
        );
    }
}

#[test]
fn hosts_name_buckets_only_under_the_base_domain() {
    for (host, target, expected) in [
        ("bkt.s3.test", "/k", S3Op::DeleteObject(object("k"))),
        (
            "BKT.S3.test:9000",
            "/bkt/k",
            S3Op::DeleteObject(object("bkt/k")),
        ),
        ("bkt.s3.test", "/", S3Op::DeleteBucket(bucket())),
        ("s3.test:80", "/bkt/k", S3Op::DeleteObject(object("k"))),
        ("other.test", "/bkt", S3Op::DeleteBucket(bucket())),
        ("xs3.test", "/bkt", S3Op::DeleteBucket(bucket())),
        ("[::1]:9000", "/bkt", S3Op::DeleteBucket(bucket())),
        ("é", "/bkt", S3Op::DeleteBucket(bucket())),
    ] {
        assert_eq!(
            op("DELETE", target, &format!("Host: {host}\r\n")).unwrap(),
            expected,
            "{host}"
        );
    }
    let plain = S3Op::classify(
        &head("DELETE", "/bkt", "Host: abc.s3.test\r\n"),
        &HostConfig::default(),
    );
    assert_eq!(plain.unwrap(), S3Op::DeleteBucket(bucket()));
}

#[test]
fn parameters_that_select_an_operation_are_signed_in_version_2() {
    for (name, _) in params::Selectors::OF_NAMES {
        // Both listings show the same keys of the same bucket.
        let signed = crate::sigv2::signs_param(name.text());
        assert_eq!(signed, name != Name::ListType, "{name:?}");
    }
    for (name, _) in Name::RESPONSE_OVERRIDES {
        assert!(crate::sigv2::signs_param(name.text()), "{name:?}");
    }
    assert!(crate::sigv2::signs_param("versionid"));
}

#[test]
fn parameters_that_authenticate_select_nothing() {
    for query in [
        "AWSAccessKeyId=A&Signature=b%3D&Expires=1",
        "X-Amz-Algorithm=A&X-Amz-Signature=b&X-Amz-Expires=1",
    ] {
        let got = op("GET", &format!("/bkt/k?{query}"), "").unwrap();
        assert_eq!(got, S3Op::GetObject(object("k"), ReadParams::default()));
        let got = op("PUT", &format!("/bkt/k?{query}"), "").unwrap();
        assert_eq!(got, S3Op::PutObject(object("k")));
    }
}
