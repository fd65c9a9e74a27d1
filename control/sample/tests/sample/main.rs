//! A service built with the control kit, as a real process on a real ChainFire, spoken to by strangers'
//! clients: curl, Python's gRPC by reflection, schemathesis. And killed at every boundary between steps.
//! Contracts BY-3, BY-4.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

mod clients;
mod fuzzed;
mod killed;
mod operated;
mod running;
