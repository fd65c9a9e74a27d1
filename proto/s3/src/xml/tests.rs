//! Documents byte for byte, bodies that are right, wrong and hostile.

use proptest::prelude::*;

use super::*;
use crate::checksum::{Algorithm, ChecksumType, Checksummer};
use crate::error::{S3Error, S3ErrorCode};
use crate::etag::Etag;
use crate::metadata::StorageClass;

const TAG: &str = "d41d8cd98f00b204e9800998ecf8427e";
const AT: i64 = 1_255_369_830;

fn tag() -> Etag {
    TAG.parse().unwrap()
}

fn owner() -> Owner<'static> {
    Owner {
        id: "1",
        display_name: "a<b",
    }
}

/// Everything between the root's tags.
fn inner(out: &[u8], root: &str) -> String {
    let text = std::str::from_utf8(out).unwrap();
    let start = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<{root} xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">"
    );
    let rest = text
        .strip_prefix(&start)
        .unwrap_or_else(|| panic!("{text}"));
    rest.strip_suffix(&format!("</{root}>"))
        .unwrap_or_else(|| panic!("{text}"))
        .to_owned()
}

fn frame(common_prefixes: &[Box<str>], encoding_url: bool) -> ListingFrame<'_> {
    ListingFrame {
        bucket: "bkt",
        prefix: "p&",
        delimiter: "/",
        max_keys: 2,
        encoding_url,
        truncated: true,
        owner: None,
        common_prefixes,
    }
}

fn object(key: &str) -> ObjectEntry<'_> {
    ObjectEntry {
        key,
        modified_s: AT,
        etag: tag(),
        size_bytes: 5,
        storage_class: StorageClass::Standard,
        checksum: Some((Algorithm::Crc32, ChecksumType::FullObject)),
    }
}

#[test]
fn object_listings() {
    let prefixes = ["p&a/".into()];
    let mut out = Vec::new();
    let page = ListV2 {
        continuation_token: None,
        next_token: Some("tok"),
        start_after: Some("p a"),
    };
    write_list_v2(
        &mut out,
        &frame(&prefixes, true),
        &page,
        [object("p&\u{1}/é")],
    );
    let contents = |key: &str| {
        format!(
            "<Contents><Key>{key}</Key><LastModified>2009-10-12T17:50:30.000Z</LastModified><ETag>&quot;{TAG}&quot;</ETag>\
         <ChecksumAlgorithm>CRC32</ChecksumAlgorithm><ChecksumType>FULL_OBJECT</ChecksumType><Size>5</Size>\
         <StorageClass>STANDARD</StorageClass></Contents>"
        )
    };
    assert_eq!(
        inner(&out, "ListBucketResult"),
        format!(
            "<Name>bkt</Name><Prefix>p%26</Prefix><Delimiter>/</Delimiter><MaxKeys>2</MaxKeys><EncodingType>url</EncodingType>\
         <IsTruncated>true</IsTruncated><NextContinuationToken>tok</NextContinuationToken><StartAfter>p%20a</StartAfter>{}\
         <CommonPrefixes><Prefix>p%26a/</Prefix></CommonPrefixes><KeyCount>2</KeyCount>",
            contents("p%26%01/%C3%A9")
        )
    );
    out.clear();
    let page = ListV1 {
        marker: "m",
        next_marker: Some("n"),
    };
    write_list_v1(
        &mut out,
        &frame(&prefixes, false),
        &page,
        [object("p&\u{1}/é")],
    );
    assert_eq!(
        inner(&out, "ListBucketResult"),
        format!(
            "<Name>bkt</Name><Prefix>p&amp;</Prefix><Delimiter>/</Delimiter><MaxKeys>2</MaxKeys><IsTruncated>true</IsTruncated>\
         <Marker>m</Marker><NextMarker>n</NextMarker>{}<CommonPrefixes><Prefix>p&amp;a/</Prefix></CommonPrefixes>",
            contents("p&amp;&#x1;/é")
        )
    );
}

#[test]
fn bucket_and_part_listings() {
    let mut out = Vec::new();
    write_buckets(
        &mut out,
        &owner(),
        [BucketEntry {
            name: "bkt",
            created_s: AT,
        }],
    );
    assert_eq!(
        inner(&out, "ListAllMyBucketsResult"),
        "<Owner><ID>1</ID><DisplayName>a&lt;b</DisplayName></Owner><Buckets><Bucket><Name>bkt</Name>\
         <CreationDate>2009-10-12T17:50:30.000Z</CreationDate></Bucket></Buckets>"
    );
    out.clear();
    let frame = PartsFrame {
        bucket: "bkt",
        key: "k",
        upload_id: "u",
        owner: owner(),
        storage_class: StorageClass::Standard,
        part_number_marker: 0,
        next_marker: Some(1),
        max_parts: 1,
        checksum: None,
    };
    let part = ListedPart {
        number: 1,
        modified_s: AT,
        etag: tag(),
        size_bytes: 9,
        checksum: Some(Checksummer::new(Algorithm::Crc32).finish()),
    };
    write_parts(&mut out, &frame, [part]);
    let text = inner(&out, "ListPartsResult");
    assert!(text.contains("<PartNumberMarker>0</PartNumberMarker><NextPartNumberMarker>1</NextPartNumberMarker><MaxParts>1</MaxParts><IsTruncated>true</IsTruncated><Part><PartNumber>1</PartNumber>"), "{text}");
    assert!(
        text.ends_with("<Size>9</Size><ChecksumCRC32>AAAAAA==</ChecksumCRC32></Part>"),
        "{text}"
    );
}

#[test]
fn upload_listings() {
    let mut out = Vec::new();
    let frame = UploadsFrame {
        bucket: "bkt",
        prefix: "",
        delimiter: "",
        key_marker: "",
        upload_id_marker: "",
        next: Some(("k l", "u")),
        max_uploads: 1,
        encoding_url: true,
        owner: owner(),
        common_prefixes: &[],
    };
    let upload = ListedUpload {
        key: "k l",
        upload_id: "u",
        initiated_s: AT,
        storage_class: StorageClass::Standard,
    };
    write_uploads(&mut out, &frame, [upload]);
    let text = inner(&out, "ListMultipartUploadsResult");
    assert!(
        text.contains(
            "<NextKeyMarker>k%20l</NextKeyMarker><NextUploadIdMarker>u</NextUploadIdMarker>"
        ),
        "{text}"
    );
    assert!(
        text.contains("<Upload><Key>k%20l</Key><UploadId>u</UploadId>"),
        "{text}"
    );
}

#[test]
fn short_answers() {
    let mut out = Vec::new();
    for (region, expected) in [("us-east-1", ""), ("eu-west-1", "eu-west-1")] {
        out.clear();
        write_location(&mut out, region);
        assert_eq!(inner(&out, "LocationConstraint"), expected);
    }
    out.clear();
    let sum = Checksummer::new(Algorithm::Crc32).finish();
    let upload = CompletedUpload {
        location: "/bkt/k",
        bucket: "bkt",
        key: "k",
        etag: tag(),
        checksum: Some((sum, ChecksumType::Composite, 2)),
    };
    write_complete_multipart_upload(&mut out, &upload);
    assert_eq!(
        inner(&out, "CompleteMultipartUploadResult"),
        format!(
            "<Location>/bkt/k</Location><Bucket>bkt</Bucket><Key>k</Key><ETag>&quot;{TAG}&quot;</ETag>\
         <ChecksumCRC32>AAAAAA==-2</ChecksumCRC32><ChecksumType>COMPOSITE</ChecksumType>"
        )
    );
    for (root, write) in [
        (
            "CopyObjectResult",
            write_copy_object as fn(&mut Vec<u8>, &CopyResult),
        ),
        ("CopyPartResult", write_copy_part),
    ] {
        out.clear();
        write(
            &mut out,
            &CopyResult {
                etag: tag(),
                modified_s: AT,
                checksum: None,
            },
        );
        assert_eq!(
            inner(&out, root),
            format!(
                "<LastModified>2009-10-12T17:50:30.000Z</LastModified><ETag>&quot;{TAG}&quot;</ETag>"
            )
        );
    }
    for (quiet, deleted) in [(false, "<Deleted><Key>a&amp;</Key></Deleted>"), (true, "")] {
        out.clear();
        let error = S3Error::from(S3ErrorCode::AccessDenied);
        let mut result = DeleteResultWriter::new(&mut out, quiet);
        result.add("a&", DeleteOutcome::Deleted);
        result.add("b", DeleteOutcome::Failed(&error));
        result.finish();
        assert_eq!(
            inner(&out, "DeleteResult"),
            format!(
                "{deleted}<Error><Key>b</Key><Code>AccessDenied</Code><Message>Access denied.</Message></Error>"
            )
        );
    }
}

#[test]
fn error_documents_name_code_and_resource() {
    let mut out = Vec::new();
    let context = ErrorContext {
        resource: "/bkt/a/b",
        request_id: "01",
    };
    error_document(&mut out, &S3ErrorCode::NoSuchKey.into(), &context);
    assert_eq!(
        std::str::from_utf8(&out).unwrap(),
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>NoSuchKey</Code><Message>The key does not exist.</Message>\
         <Key>a/b</Key><Resource>/bkt/a/b</Resource><RequestId>01</RequestId></Error>"
    );
    out.clear();
    error_document(&mut out, &S3ErrorCode::NotModified.into(), &context);
    assert!(out.is_empty());
}

fn delete(body: &str) -> crate::Result<DeleteRequest> {
    parse_delete_objects(body.as_bytes())
}

#[test]
fn delete_bodies() {
    let got = delete("<?xml version=\"1.0\"?>\n<Delete xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\n <Quiet>true</Quiet>\n \
        <Object><Key>a&amp;&#x62;<![CDATA[<c>]]> </Key><VersionId>null</VersionId></Object>\n\
        <Object><Key>d</Key><ETag>\"x\"</ETag><VersionId>7</VersionId></Object></Delete>\n").unwrap();
    assert!(got.quiet);
    assert_eq!(
        (&*got.targets[0].key, &got.targets[0].version_id),
        ("a&b<c> ", &None)
    );
    assert_eq!(
        (
            got.targets[1].etag.as_deref(),
            got.targets[1].version_id.as_deref()
        ),
        (Some("x"), Some("7"))
    );
    let object = |n: usize| {
        format!(
            "<Delete>{}</Delete>",
            "<Object><Key>k</Key></Object>".repeat(n)
        )
    };
    assert_eq!(delete(&object(1000)).unwrap().targets.len(), 1000);
    let long = format!(
        "<Delete><Object><Key>{}</Key></Object></Delete>",
        "a".repeat(1025)
    );
    for body in [
        "",
        "x",
        "<Delete/>",
        "<Delete></Delete>",
        "<Other><Object><Key>a</Key></Object></Other>",
        &object(1001),
        &long,
        "<Delete><Object></Object></Delete>",
        "<Delete><Object><Key></Key></Object></Delete>",
        "<Delete><Object><Key>a</Key><Key>b</Key></Object></Delete>",
        "<Delete><Object><Key>a</Key></Object>",
        "<Delete><Object><Key>a</Object></Key></Delete>",
        "<Delete><Object><Key>&evil;</Key></Object></Delete>",
        "<!DOCTYPE a [<!ENTITY e \"x\">]><Delete><Object><Key>&e;</Key></Object></Delete>",
        "<Delete><Object><Key>a</Key></Object></Delete><Delete><Object><Key>b</Key></Object></Delete>",
        "<Delete><Object><Key>a<b>c</b></Key></Object></Delete>",
        "<Delete><Quiet>maybe</Quiet><Object><Key>a</Key></Object></Delete>",
        "<Delete><Object><Key>a</Key></Object></Delete>x",
        "<Delete><Key>a</Key></Delete>",
        "<Delete><Object><Key>a & b</Key></Object></Delete>",
        "<Delete><Object><Key>a\0b</Key></Object></Delete>",
        "<Delete><Object><Key>a&#x0;b</Key></Object></Delete>",
        "<Delete><Object><Key><![CDATA[\0]]></Key></Object></Delete>",
    ] {
        assert_eq!(
            delete(body).unwrap_err().code,
            S3ErrorCode::MalformedXml,
            "{body}"
        );
    }
    let size = delete("<Delete><Object><Key>a</Key><Size>1</Size></Object></Delete>");
    assert_eq!(size.unwrap_err().code, S3ErrorCode::NotImplemented);
    let huge = vec![b' '; XML_BYTES_MAX + 1];
    assert_eq!(
        parse_delete_objects(&huge).unwrap_err().code,
        S3ErrorCode::MaxMessageLengthExceeded
    );
    assert_eq!(
        parse_delete_objects(b"<Delete>\xff").unwrap_err().code,
        S3ErrorCode::MalformedXml
    );
}

#[test]
fn complete_bodies() {
    let part = |number: &str, etag: &str| {
        format!("<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>")
    };
    let parse = |parts: &str| {
        parse_complete_multipart_upload(
            format!("<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>").as_bytes(),
        )
    };
    let quoted = format!("&quot;{TAG}&quot;");
    let got = parse(&(part("1", &quoted) + &part("7", TAG))).unwrap();
    assert_eq!((got.len(), got[1].number, got[1].etag), (2, 7, tag()));
    let with_sum = format!(
        "<Part><ChecksumCRC32>AAAAAA==</ChecksumCRC32><ETag>{TAG}</ETag><PartNumber>1</PartNumber></Part>"
    );
    assert_eq!(
        parse(&with_sum).unwrap()[0].checksum,
        Some(Checksummer::new(Algorithm::Crc32).finish())
    );
    for (parts, code) in [
        (String::new(), S3ErrorCode::MalformedXml),
        (
            "<Part><PartNumber>1</PartNumber></Part>".into(),
            S3ErrorCode::MalformedXml,
        ),
        (
            part("2", TAG) + &part("1", TAG),
            S3ErrorCode::InvalidPartOrder,
        ),
        (
            part("1", TAG) + &part("1", TAG),
            S3ErrorCode::InvalidPartOrder,
        ),
        (part("0", TAG), S3ErrorCode::InvalidArgument),
        (part("10001", TAG), S3ErrorCode::InvalidArgument),
        (part("1", "x"), S3ErrorCode::InvalidPart),
    ] {
        assert_eq!(parse(&parts).unwrap_err().code, code, "{parts}");
    }
    let all: String = (1..=10_000_u32)
        .map(|n| part(&n.to_string(), TAG))
        .collect();
    assert_eq!(parse(&all).unwrap().len(), 10_000);
    let other = parse_complete_multipart_upload(b"<Other/>");
    assert_eq!(other.unwrap_err().code, S3ErrorCode::MalformedXml);
}

#[test]
fn create_bodies() {
    let body = "<CreateBucketConfiguration><LocationConstraint>eu</LocationConstraint></CreateBucketConfiguration>";
    assert_eq!(
        parse_create_bucket(body.as_bytes()).unwrap().as_deref(),
        Some("eu")
    );
    for body in ["", " \n", "<CreateBucketConfiguration/>"] {
        assert_eq!(
            parse_create_bucket(body.as_bytes()).unwrap(),
            None,
            "{body}"
        );
    }
    let directory = "<CreateBucketConfiguration><Bucket><Type>Directory</Type></Bucket></CreateBucketConfiguration>";
    assert_eq!(
        parse_create_bucket(directory.as_bytes()).unwrap_err().code,
        S3ErrorCode::NotImplemented
    );
    let deep = "<CreateBucketConfiguration>".to_owned() + &"<a>".repeat(10_000);
    assert_eq!(
        parse_create_bucket(deep.as_bytes()).unwrap_err().code,
        S3ErrorCode::MalformedXml
    );
}

proptest! {
    #[test]
    fn a_key_survives_writing_and_parsing(key in "[^\u{0}-\u{1f}\u{7f}\u{85}\u{2028}]{1,40}") {
        let mut body = b"<Delete><Object><Key>".to_vec();
        escape(&mut body, &key);
        body.extend_from_slice(b"</Key></Object></Delete>");
        prop_assert_eq!(&*parse_delete_objects(&body).unwrap().targets[0].key, &*key);
    }
}

#[test]
fn attributes_show_what_was_asked_for_and_nothing_else() {
    let etag: Etag = "\"9bb58f26192e4ba00f01e2e7b136bbd8-2\"".parse().unwrap();
    let algorithm = crate::checksum::Algorithm::Crc32;
    let checksum = crate::checksum::Checksum::from_base64(algorithm, "AAAAAQ==").unwrap();
    let part = AttributePart {
        number: 4,
        size_bytes: 5,
        checksum: Some(checksum),
    };
    let all = ObjectAttributes {
        etag: Some(etag),
        checksum: Some((checksum, ChecksumType::Composite)),
        parts: Some(PartsPage {
            count: 2,
            part_number_marker: 0,
            max_parts: 1,
            next_marker: Some(4),
            parts: &[part],
        }),
        storage_class: Some(crate::metadata::StorageClass::Standard),
        size_bytes: Some(9),
    };
    let mut out = Vec::new();
    write_object_attributes(&mut out, &all);
    let text = String::from_utf8(out).unwrap();
    assert!(
        text.ends_with(
            "<ETag>9bb58f26192e4ba00f01e2e7b136bbd8-2</ETag><Checksum><ChecksumCRC32>AAAAAQ==\
             </ChecksumCRC32><ChecksumType>COMPOSITE</ChecksumType></Checksum><ObjectParts>\
             <PartsCount>2</PartsCount><PartNumberMarker>0</PartNumberMarker>\
             <NextPartNumberMarker>4</NextPartNumberMarker><MaxParts>1</MaxParts>\
             <IsTruncated>true</IsTruncated><Part><PartNumber>4</PartNumber><Size>5</Size>\
             <ChecksumCRC32>AAAAAQ==</ChecksumCRC32></Part></ObjectParts>\
             <StorageClass>STANDARD</StorageClass><ObjectSize>9</ObjectSize>\
             </GetObjectAttributesResponse>"
        ),
        "{text}"
    );
    let mut out = Vec::new();
    write_object_attributes(&mut out, &ObjectAttributes::default());
    assert!(out.ends_with(b"2006-03-01/\"></GetObjectAttributesResponse>"));
}
