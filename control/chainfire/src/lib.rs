//! ChainFire, UltraCloud's coordination store: etcd's API, version 3, over consensus of our own.
//!
//! A member serves etcd's gRPC services and JSON gateway, and ChainFire's management service, on its
//! client port; other members reach it on its peer port. [`api`] is what can be asked, whatever front it
//! comes through ([`grpc`], [`gateway`]); [`consensus`] is the seam to [`raft`], which drives the state
//! machine; [`watch`] and [`lease`] are what a member keeps beside it. [`node`] puts a member together.
//!
//! Invariants:
//! - What is answered was committed: writes through the log, reads behind a barrier unless the client
//!   says that they may be old.
//! - A watcher sees each revision once and in order, or is told why it cannot.
//! - A lease ends late rather than early.

#![forbid(unsafe_code)]

pub mod api;
pub mod consensus;
mod error;
pub mod gateway;
pub mod grpc;
pub mod lease;
mod metrics;
pub mod node;
pub mod raft;
mod session;
#[cfg(test)]
mod sim;
pub mod watch;

pub use error::{Error, ErrorKind};
