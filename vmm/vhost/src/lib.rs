//! vhost-user-blk: a block device of a shard as a disk of a virtual machine on the same host.
//!
//! The front end (QEMU, a test) shares the guest's memory and says by messages where in it the rings
//! are. A thread reads the messages ([`session`]), the shard holds what they set ([`frontend`]), and
//! for each ring a task of the shard takes requests and gives them back ([`queue`]). Data is never
//! copied: the device reads and writes the guest's memory in place.
//!
//! Invariants:
//! - The guest and its front end are hostile. What they write is copied, then checked, then used. A
//!   request, a ring or the connection fails for it, with a count and a line in the log; the process,
//!   other devices and the host's memory do not.
//! - A request that was taken is given back once, or is marked for who comes after us.
//! - Nothing of a ring is in progress when its base is answered, when the memory under it changes, or
//!   when the next front end is served.
//! - The shard waits for no front end: it reads no socket, writes to none that is full, and eventfds are
//!   touched through its ring.
//!
//! It knows nothing of volumes: a device is a [`shards::block::BlockDevice`].

mod blk;
mod cache;
mod command;
pub mod devices;
mod dirty;
mod export;
mod frontend;
#[cfg(fuzzing)]
pub mod fuzzing;
mod inflight;
mod memory;
mod queue;
mod ring;
mod session;
mod slab;
mod stats;

pub use cache::Cache;
pub use export::{Endpoint, Export, ExportConfig, QUEUES_MAX};
pub use queue::Polling;
pub use stats::{LATENCY_BUCKETS, Latency, LatencyByKind, Stats};
