//! The ledger in a store: BY-4 and CR-1.
//!
//! `calls` is what a service calls and what it is told, `archive` is export, import and audit, `lost` is
//! answers that get lost and requests that come late, `simulated`
//! random clients and crashes. Time is virtual there, and the store is ChainFire's own
//! state machine.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

mod archive;
mod calls;
mod lost;
mod simulated;
mod support;
