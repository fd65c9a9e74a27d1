//! The state machine seen from outside: etcd's semantics case by case, a model of its history,
//! crashes, snapshots.
#![allow(clippy::unwrap_used)]

mod alarms;
mod auth;
mod compaction;
mod disk;
mod etcd;
mod etcd_file;
mod faults;
mod fixtures;
mod history;
mod keys;
mod leases;
mod model;
mod plan;
mod snapshots;
mod support;
mod txns;
