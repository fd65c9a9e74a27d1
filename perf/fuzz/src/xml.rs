//! The documents that clients send.

use s3_wire::xml::{
    escape, parse_complete_multipart_upload, parse_create_bucket, parse_delete_objects,
};

fn field(out: &mut Vec<u8>, name: &str, text: &str) {
    out.extend_from_slice(format!("<{name}>").as_bytes());
    escape(out, text);
    out.extend_from_slice(format!("</{name}>").as_bytes());
}

/// DeleteObjects, and CreateBucket, whose body is as small.
pub fn delete(data: &[u8]) {
    let _ = parse_create_bucket(data);
    let Ok(request) = parse_delete_objects(data) else {
        return;
    };
    // A NUL is taken as it comes, but XML has no reference to it: it is not written a second time.
    let nul = |text: &str| text.contains('\0');
    if request.targets.iter().any(|target| {
        let mut texts = [&target.version_id, &target.etag].into_iter().flatten();
        nul(&target.key) || texts.any(|text| nul(text))
    }) {
        return;
    }
    let mut again = format!("<Delete><Quiet>{}</Quiet>", request.quiet).into_bytes();
    for target in &request.targets {
        again.extend_from_slice(b"<Object>");
        field(&mut again, "Key", &target.key);
        if let Some(version) = &target.version_id {
            field(&mut again, "VersionId", version);
        }
        if let Some(etag) = &target.etag {
            field(&mut again, "ETag", etag);
        }
        again.extend_from_slice(b"</Object>");
    }
    again.extend_from_slice(b"</Delete>");
    let decoded = parse_delete_objects(&again);
    let decoded = decoded.unwrap_or_else(|error| panic!("{error}: {}", again.escape_ascii()));
    assert_eq!(format!("{decoded:?}"), format!("{request:?}"));
}

/// CompleteMultipartUpload.
pub fn complete(data: &[u8]) {
    let Ok(parts) = parse_complete_multipart_upload(data) else {
        return;
    };
    assert!(
        parts.is_sorted_by(|a, b| a.number < b.number),
        "parts are in order"
    );
    let mut again = b"<CompleteMultipartUpload>".to_vec();
    for part in &parts {
        again.extend_from_slice(b"<Part>");
        field(&mut again, "PartNumber", &part.number.to_string());
        field(&mut again, "ETag", &part.etag.to_string());
        if let Some(checksum) = &part.checksum {
            let name = format!("Checksum{}", checksum.algorithm().as_str());
            field(&mut again, &name, &checksum.to_base64());
        }
        again.extend_from_slice(b"</Part>");
    }
    again.extend_from_slice(b"</CompleteMultipartUpload>");
    let decoded = parse_complete_multipart_upload(&again);
    let decoded = decoded.unwrap_or_else(|error| panic!("{error}: {}", again.escape_ascii()));
    assert_eq!(format!("{decoded:?}"), format!("{parts:?}"));
}
