//! CoronaFS as a service: the volumes of a node's shards, served as disks and administered over an API.
//!
//! Storage knows no guests and vhost-user knows no volumes; here they meet. [`VolumeNode`] runs volumes on
//! the shards of an engine; each shard keeps the [`coronafs::Attachment`]s of its volumes with what exports
//! them. [`VolumeService`] is the control layer's side: it finds volumes by name, calls the shards by way of
//! the bridge, and remembers what is attached, so that a restart serves it at the same sockets again.
//! [`verbs`] adds its verbs to an API.
//!
//! Invariants:
//! - An attachment that a user was told of is in `attachments.json`, durably, until it is detached.
//! - A detached volume's last write is durable.
//! - Only a volume's owner and root learn that it exists.
//! - NBD's clients find another verifier when something may be lost that they were told is written.

#![forbid(unsafe_code)]

mod api;
mod attachments;
mod error;
mod images;
mod metrics;
mod node;
mod remotes;
mod service;
mod shard;

pub use api::{HasVolumes, SERVICE, verbs};
pub use attachments::Attached;
pub use images::ImageCatalog;
pub use metrics::debug;
pub use node::{NodeConfig, NodeError, VolumeNode};
pub use service::VolumeService;
