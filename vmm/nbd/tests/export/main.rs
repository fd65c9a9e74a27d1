//! Exports on a real shard and real sockets, used by a client of bytes and by those that others wrote.

#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]
#![forbid(unsafe_code)]

mod clients;
mod commands;
mod hostile;
mod options;
mod raw;
mod reads;
mod remote;
mod remote_strangers;
mod secure;
mod support;
