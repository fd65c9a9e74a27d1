//! NBD: block devices of a shard for backup tools and hosts that are elsewhere.
//!
//! A [`Server`] listens on the shard that owns the devices, and serves each of its exports to any number of
//! connections. `docs/nbd.md` says what is served, and shows it with clients that are not ours.
//!
//! A [`RemoteDevice`] is the other side: a device of a shard that is an export of another host's.
//!
//! Invariants:
//! - A client is hostile. What it sends is bounded before it is received and checked before it is used: its
//!   connection ends for it, with a count and a line in the log, and nothing else does.
//! - A connection's memory is taken at its beginning and never grows; requests wait for a part of it.
//! - What a device was asked to do is awaited to its end, whatever becomes of the connection.
//! - A request is answered once, when it is done; answers come in the order in which they are ready.
//! - Data is received into, and sent from, the memory that the device reads and writes.
//!
//! Layers, from the bottom: `nbd_wire` (bytes) and `negotiation` (sans-IO), `memory`, `wire` (sockets and
//! TLS), `transmission` (requests), `connection`, `server`; `remote` beside them. It knows nothing of volumes:
//! a device is a [`shards::block::BlockDevice`].
#![forbid(unsafe_code)]

mod connection;
mod export;
#[cfg(fuzzing)]
pub mod fuzzing;
mod memory;
mod negotiation;
mod remote;
mod server;
mod socket;
mod stats;
mod transmission;
mod wire;

pub use export::{ChangedRanges, ChangedSince, Changes, Export};
pub use remote::{
    ConnectError, Known, LinkState, RemoteConfig, RemoteDevice, RemoteStats, RemoteTls, fresh_token,
};
pub use server::{Limits, NameTaken, Server, ServerConfig, Tls};
pub use socket::Listen;
pub use stats::Stats;
