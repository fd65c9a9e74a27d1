//! Members with all that they are made of, in the simulated world of `chainfire-core`: the log and Raft
//! over the store on its own simulated disk, the watch hub and its streams, the lease keeper, and the
//! API over them. Only what carries requests (gRPC, JSON) is left out: clients call the API itself.
//!
//! Fault model: that of the core's simulation, for the store's disk as for the log's. A member that lost
//! power comes back with what was flushed of both.
//!
//! What must hold on every seed:
//! - Clients: each key's history is linearizable, and the whole store's: every answer tells what the
//!   model tells at the answer's revision, and revisions follow real time ([`check`]).
//! - Members: at each index all apply the same command, answer the same, and have the same hash
//!   ([`ledger`], over the model in [`model`]).
//! - Watchers: events come in the order of revisions, once, without a gap, whole revisions at a time, with
//!   the values before; across compactions, restarts, snapshots and changes of the member that is
//!   watched; who is cut off by a compaction is told its revision ([`watcher`]).
//! - Leases: none ends before its time has passed on the clock of the leader that ends it; all that nobody
//!   keeps alive end; their keys vanish at one revision ([`lease`]).
//!
//! That the checks find what breaks these promises is shown by breaking them ([`broken`]).

mod broken;
mod check;
mod client;
mod history;
mod lease;
mod ledger;
mod members;
mod model;
mod scenario;
mod tests;
mod watcher;
