//! What every control service answers beside its own verbs: how its long operations stand, and who did
//! what. Messages, clients, JSON and OpenAPI schemas; no behaviour.

#![forbid(unsafe_code)]

/// Operations and audit events.
pub mod operations {
    /// The first version.
    #[allow(missing_docs, clippy::all, clippy::pedantic)]
    pub mod v1 {
        tonic::include_proto!("ultracloud.operations.v1");
    }
}

/// The encoded descriptors, for reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
