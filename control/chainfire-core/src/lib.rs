//! ChainFire's consensus: a replicated log that is durable when acknowledged, over which the
//! members of a cluster apply the same commands in the same order.
//!
//! A [`Node`] is a member. It proposes commands ([`Node::propose`]), orders reads
//! ([`Node::read_barrier`]), and changes the membership ([`Node::change`]). It works over a
//! [`StateMachine`] that applies the commands, a [`Transport`] that reaches other members, and an
//! [`Environment`] with runtime and disk. Raft is openraft's; the write-ahead log, the rules of
//! membership and what is durable when are ours.
//!
//! Invariants:
//! - A command whose outcome was answered is applied on every member, once, after any crash.
//! - A read after [`Node::read_barrier`] sees all that was answered before the barrier.
//! - By the sequential verbs at most one voter changes at a time.
//!
//! It knows nothing of keys, clients or connections, and trusts no clock for correctness.
#![forbid(unsafe_code)]

mod codec;
pub mod disk;
mod env;
mod error;
mod forced;
#[cfg(fuzzing)]
pub mod fuzzing;
mod log_store;
mod machine;
mod membership;
mod node;
mod rpc;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
mod transport;
pub mod types;
mod wal;

pub use codec::DecodeError;
pub use env::{AsyncRuntime, Environment, Instant, TokioEnvironment, TokioRuntime};
pub use error::{Error, ErrorKind, Result};
pub use forced::force_new_cluster;
pub use machine::{Command, Durability, Standing, StateMachine};
pub use membership::{CAUGHT_UP_ENTRIES, Change};
pub use node::{COMMAND_BYTES_MAX, MemberStatus, Node, Options, Role, Status};
pub use rpc::Method;
pub use transport::{SnapshotChunks, Transport, TransportError};
pub use types::{Member, NodeId, Term};
pub use wal::{Jobs, WalOptions, Writer};
