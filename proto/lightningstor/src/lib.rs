//! LightningStor's administration: messages, gRPC clients, JSON and OpenAPI schemas; no behaviour.

#![forbid(unsafe_code)]

/// The first version.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod v1 {
    tonic::include_proto!("ultracloud.lightningstor.v1");
}

/// The encoded descriptors, for reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::v1::{Bucket, ListBucketsRequest};

    #[test]
    fn json_has_the_names_of_the_proto_and_refuses_unknown_ones() {
        let bucket = Bucket {
            name: "photos".into(),
            owner: "ann".into(),
            created_unix_ms: 1_700_000_000_123,
        };
        let json = r#"{"name":"photos","owner":"ann","created_unix_ms":1700000000123}"#;
        assert_eq!(serde_json::to_string(&bucket).unwrap(), json);
        assert_eq!(serde_json::from_str::<Bucket>(json).unwrap(), bucket);
        let some: ListBucketsRequest = serde_json::from_str(r#"{"limit":7}"#).unwrap();
        assert_eq!(some.limit, 7);
        let unknown = serde_json::from_str::<ListBucketsRequest>(r#"{"limits":7}"#);
        assert!(unknown.unwrap_err().to_string().contains("limits"));
    }

    #[test]
    fn field_numbers_stay_for_ever() {
        let bucket = Bucket {
            name: "b".into(),
            owner: "o".into(),
            created_unix_ms: 5,
        };
        assert_eq!(bucket.encode_to_vec(), b"\x0a\x01b\x12\x01o\x18\x05");
    }
}
