//! CoronaFS's volumes: messages, gRPC clients, JSON and OpenAPI schemas; no behaviour.

#![forbid(unsafe_code)]

/// The first version.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod v1 {
    tonic::include_proto!("ultracloud.coronafs.v1");
}

/// The encoded descriptors, for reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

#[cfg(test)]
mod tests {
    use super::v1::{CreateVolumeRequest, Limits};

    #[test]
    fn json_has_the_names_of_the_proto_and_refuses_unknown_ones() {
        let request = CreateVolumeRequest {
            name: "root-disk".into(),
            bytes: 1 << 30,
            limits: Some(Limits {
                ops_per_s: 500,
                ..Limits::default()
            }),
            ..CreateVolumeRequest::default()
        };
        let short = r#"{"name":"root-disk","bytes":1073741824,"limits":{"ops_per_s":500}}"#;
        assert_eq!(
            serde_json::from_str::<CreateVolumeRequest>(short).unwrap(),
            request
        );
        let unknown = serde_json::from_str::<CreateVolumeRequest>(r#"{"size":1}"#);
        assert!(unknown.unwrap_err().to_string().contains("size"));
    }
}
