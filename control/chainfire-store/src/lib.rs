//! ChainFire's replicated state machine: etcd's keys with their history, leases, users and alarms.
//!
//! Deterministic: no clock, no network, no randomness, no threads of its own. The same commands in
//! the same order give the same state, the same answers and the same hashes on every replica,
//! however they are batched and whatever was replayed after a crash.
//!
//! - [`Store`] owns the tables (redb, over any [`StorageBackend`]) and the state in memory.
//! - [`Batch`] applies [`Command`]s; its commit is one transaction of the tables.
//! - [`View`] is a consistent state to read from. Views never block the writer and never change;
//!   [`Reader`] gives the newest one to any thread.
//! - [`Snapshot`] streams a view in bounded chunks with checksums; [`Restore`] takes them.
//! - [`EtcdFile`] streams a view as a database file of etcd.
//!
//! Semantics are etcd's: one revision for each transaction that changes something, numbered
//! changes within it, versions per key, tombstones, compaction, its refusals with its texts.
//! Requests are checked before they are proposed by [`check_put`] and its like; what is proposed
//! is applied as it stands.

#![forbid(unsafe_code)]

mod auth;
mod batch;
mod check;
mod error;
mod etcd_file;
#[cfg(fuzzing)]
pub mod fuzzing;
mod hash;
mod index;
mod lease;
mod load;
mod purge;
mod reads;
mod record;
mod revision;
mod size;
mod snapshot;
mod state;
mod store;
mod tree;
mod txn;
mod view;

pub use etcd_wire::RpcError;
pub use etcd_wire::chainfire::Command;
pub use etcd_wire::chainfire::command::Op;
pub use redb::StorageBackend;
pub use redb::backends::{FileBackend, InMemoryBackend};

pub use auth::{Access, Auth, Identity};
pub use batch::{Batch, Durable, EventBatch, Outcome, Reply};
pub use check::{TXN_OPS_MAX, check_delete, check_put, check_range, check_txn};
pub use error::{Error, ErrorKind};
pub use etcd_file::{EtcdCluster, EtcdFile};
pub use hash::KvHash;
pub use lease::{LEASE_TTL_S_MAX, Lease};
pub use reads::ReadError;
pub use size::cost;
pub use snapshot::{Restore, Snapshot};
pub use state::{Alarm, AppliedMeta};
pub use store::{DurableMark, Options, Reader, Store};
pub use txn::{is_read_only, is_serializable};
pub use view::{CatchUp, View};
