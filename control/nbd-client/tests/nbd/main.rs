//! The client and the converter beside a volume that is exported by us, and beside qemu-nbd.

#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]
#![forbid(unsafe_code)]

mod changes;
mod client;
mod hostile_images;
mod hostile_servers;
mod images;
mod support;
