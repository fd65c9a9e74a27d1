//! etcd's API v3 and ChainFire's own, as Rust types: messages ([`prost`]), gRPC services
//! ([`tonic`]), the JSON of etcd's gateway ([`serde`]), and etcd's errors ([`RpcError`]).
//!
//! The `.proto` texts below `proto/` hold etcd's packages, names and field numbers, so that its
//! clients work unchanged. JSON follows etcd's gateway: names as in the `.proto`, 64-bit integers
//! as strings, bytes in base64, defaults left out; on input camelCase is taken too, and unknown
//! fields are ignored.
//!
//! This crate has no behaviour besides encoding: nothing here decides what a request does.

#![forbid(unsafe_code)]

mod error;

pub use error::{Code, RpcError};

/// Declares a module of generated messages, services and JSON.
macro_rules! generated {
    ($(#[$doc:meta])* $name:ident, $package:literal) => {
        $(#[$doc])*
        #[allow(missing_docs, clippy::all, clippy::pedantic, clippy::unwrap_used)]
        pub mod $name {
            tonic::include_proto!($package);
            include!(concat!(env!("OUT_DIR"), "/", $package, ".serde.rs"));
        }
    };
}

generated!(
    /// Keys, their versions and events.
    mvccpb, "mvccpb"
);
generated!(
    /// Users, roles and permissions.
    authpb, "authpb"
);
generated!(
    /// etcd's services and their messages.
    etcdserverpb, "etcdserverpb"
);
generated!(
    /// etcd's lock service.
    v3lockpb, "v3lockpb"
);
generated!(
    /// etcd's election service.
    v3electionpb, "v3electionpb"
);

/// ChainFire's own services and messages.
pub mod ultracloud {
    /// Consensus, membership and the replicated state machine's commands.
    pub mod chainfire {
        generated!(
            /// The first version.
            v1, "ultracloud.chainfire.v1"
        );
    }
}

pub use ultracloud::chainfire::v1 as chainfire;

/// The encoded descriptors of every `.proto` file, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
