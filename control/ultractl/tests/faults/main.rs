//! Three members under faults of their machines and networks, while clients work. Contracts CF-2, CF-5.
//!
//! What may fail: a process is killed or stopped, packets between two members are lost in one direction
//! or both, a disk is full, a flush fails. What must survive: every acknowledged write, at the revision
//! it was acknowledged with; no read that is linearizable shows an older state; members hold the same;
//! and a majority that can talk goes on by itself.
//!
//! A test runs in namespaces of its own ([`network`]), as root or where user namespaces are allowed. Its
//! members are real processes ([`cluster`]), its clients record what they see ([`load`]), and [`judge`]
//! finds an order that explains all of it, or none. Nothing here sleeps, and no time is judged: how long
//! it took until somebody led is printed.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

mod cluster;
mod crash;
mod disk;
mod judge;
mod load;
mod network;
mod partition;
mod pause;
#[path = "../support/mod.rs"]
mod support;
