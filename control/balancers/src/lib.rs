//! FiberLB as a service: load balancers as documents, and the tables that they come to.
//!
//! A document is checked whole ([`spec`]), kept in one file ([`store`]), and joined by [`model`] with what
//! is known at the moment: health, drains, slow starts, next hops. What comes out is one
//! [`fiberlb::desired::Desired`]. It goes to shard 0, whose task alone writes the tables ([`tables`]).
//! Checks ([`checks`]) and next hops ([`hops`]) are found out on the control layer's runtime; their
//! results meet the model in the order in which they come. [`BalancerService`] serves the verbs.
//!
//! Invariants:
//! - A document that a user was told is applied is in the file, durably, and in the tables.
//! - A document with a fault changes nothing: not the file, not the model, not the tables.
//! - The tables are the model's, or on their way there; each state has a larger generation than the last.
//! - A start needs nobody else: file and pinned tables are enough. What runs in the kernel goes on until
//!   the first checks and next hops are known.
//!
//! It never forwards a packet, and writes no table but through [`fiberlb::apply`].

#![forbid(unsafe_code)]

mod api;
mod attach;
mod checks;
mod diff;
mod driver;
mod error;
mod explain;
mod health;
mod hops;
mod metrics;
mod model;
mod node;
mod service;
mod spec;
mod status;
mod store;
mod tables;

pub use fiberlb::attach::AttachMode;

pub use api::{HasBalancers, SERVICE, verbs};
pub use metrics::debug;
pub use node::{BalancerNode, FLOWS_MAX, NodeConfig, NodeError, TunnelEnds, Tunnels};
pub use service::BalancerService;
