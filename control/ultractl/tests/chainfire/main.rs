//! ChainFire as its clients meet it: real processes, real sockets, etcd's own clients. Contracts CF-1 to
//! CF-9, BY-5, BY-9.
//!
//! `support` starts members and runs etcdctl against them; `single` is one member, `cluster` is three;
//! `operator` is our own command line.
//! Nothing here sleeps: a member is awaited by the line that it prints, a state by asking for it.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

mod cluster;
mod gateway;
mod operator;
mod python_client;
mod rust_client;
mod single;
mod support;
