//! The bridge: the one place where the control layer, on tokio, calls services that run on shards.
//!
//! [`Bridge::call`] takes a closure to a shard's value and brings its answer back, under a
//! [`CallContext`]: whose call it is, which request it serves, and when its wait ends. [`Target`]
//! says which shard: a certain one, any, or whichever owns a partition at that moment.
//!
//! Invariants:
//! - Calls in flight are bounded, of the whole bridge and of each tenant ([`Limits`]). What is full
//!   refuses at once; nothing waits in a queue of the bridge. One tenant's flood is refused for that
//!   tenant: the more of the bridge it holds, the less is left for it, and never for one that holds
//!   nothing before all is taken.
//! - A call ends by its deadline on both sides: the caller gets its answer or an error by then, and
//!   what runs on the shard is dropped at its next await. So a closure has to be cancel-safe.
//! - A place in flight is held until the closure on the shard has ended, not only until its caller
//!   has. No caller can have more at work on the shards than the limits say, by giving up early.
//! - An error says whether the call may have happened ([`Error::may_have_happened`]).
//!
//! Dropping the future of a call: when the call has not begun on its shard, it never does. When it
//! has, it runs to its end, or until its deadline, and its answer is lost.
//!
//! It never repeats a call that has begun, never blocks a shard (shards take no lock of it), and
//! knows no service.

#![forbid(unsafe_code)]

mod bridge;
mod context;
mod deaths;
mod error;
mod in_flight;
mod metrics;
mod target;
#[cfg(test)]
mod tests;
mod ticket;

pub use bridge::Bridge;
pub use context::{CallContext, Tenant};
pub use deaths::ShardDeaths;
pub use error::{Error, ErrorKind, Failure};
pub use in_flight::Limits;
pub use target::Target;
