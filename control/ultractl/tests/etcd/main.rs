//! ChainFire beside a real etcd, Debian's 3.4: the same commands and calls go to both, and every answer is
//! compared. Contracts CF-1 to CF-6, BY-9.
//!
//! `script` runs etcdctl with every command; `running` those that do not end by themselves; `generated`
//! makes calls over gRPC from seeds (`UC_SEED=n` replays one); `snapshots` moves whole states between the
//! two. A difference is a bug of ours, or it has a rule in `judged` and a row in
//! docs/etcd-compatibility.md.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

mod commands;
mod generated;
mod judged;
mod mask;
mod names;
mod peer;
mod random;
mod running;
mod script;
mod side;
mod snapshots;
#[path = "../support/mod.rs"]
mod support;
