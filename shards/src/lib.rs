//! What runs on shards: who owns a resource ([`placement`]), how a request gets to its owner
//! ([`route`]), what a service owes the node ([`service`]), how tenants share a shard
//! ([`tenant`]), and what a block device is to its front ends ([`block`]).
//!
//! Invariants:
//! - A partition has at most one owner at any time; while it moves it has none.
//! - Every queue and table is bounded, and says Busy when it is full.
//! - One tenant's flood delays that tenant.
//!
//! It never touches the kernel, never keeps state that two shards share, and knows nothing of what
//! services store.

#![forbid(unsafe_code)]

pub mod block;
#[cfg(test)]
mod outside;
pub mod placement;
pub mod route;
pub mod service;
pub mod tenant;

pub use engine::ShardId;
pub use placement::{PartitionId, PlacementMap, resource_hash};
pub use route::{InstallError, RouteError, Router, Stamp};
pub use service::{Lifecycle, Phase, Service};
pub use tenant::{Admission, AdmissionConfig, Busy, TenantId, Turn};
