//! FiberLB's load balancers: messages, gRPC clients, JSON and OpenAPI schemas; no behaviour.

#![forbid(unsafe_code)]

/// The first version.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod v1 {
    tonic::include_proto!("ultracloud.fiberlb.v1");
}

/// The encoded descriptors, for reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

#[cfg(test)]
mod tests {
    use super::v1::ApplyRequest;

    #[test]
    fn a_document_is_json_that_refuses_unknown_fields() {
        let short =
            r#"{"balancers":[{"name":"web","listeners":[{"name":"http","vip":"192.0.2.1"}]}]}"#;
        let document: ApplyRequest = serde_json::from_str(short).unwrap();
        assert_eq!(document.balancers[0].listeners[0].vip, "192.0.2.1");
        let unknown = serde_json::from_str::<ApplyRequest>(r#"{"balancer":[]}"#);
        assert!(unknown.unwrap_err().to_string().contains("balancer"));
    }
}
