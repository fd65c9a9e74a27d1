//! The device as strangers drive it: blkio, the `vhost` crate's front end, a driver that lies, and a
//! real guest. Contract VM-1, its attach part.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

mod cache;
mod data;
mod driver;
mod guest;
mod hostile;
mod killed;
mod messages;
mod packed;
mod patience;
mod support;
mod trial;
