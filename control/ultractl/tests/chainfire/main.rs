//! ChainFire as its clients meet it: real processes, real sockets, etcd's own clients. Contracts CF-1 to
//! CF-9, BY-5, BY-9.
//!
//! `support` starts members and runs etcdctl against them; `single` is one member, `cluster` is three and
//! more, `joint` replaces them at once; `tls` and `quota` are what their names say; `operator` is our own
//! command line. What faults do to a cluster is in the program `faults`, beside.
//! Nothing here sleeps: a member is awaited by the line that it prints, a state by asking for it.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

mod cluster;
mod gateway;
mod joint;
mod operator;
mod python_client;
mod quota;
mod rust_client;
mod single;
#[path = "../support/mod.rs"]
mod support;
mod tls;
