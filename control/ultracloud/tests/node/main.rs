//! The server as its users meet it: a real process, real sockets, a real disk. Contracts LS-1, CARD-3, CO-1.
//!
//! `support` starts nodes and speaks S3 to them with a small client of its own; `clients` uses
//! strangers' clients. Nothing here sleeps: a node is awaited by the line that it prints, its end by
//! its exit.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

mod api;
mod balancers;
mod buckets;
mod clients;
mod crash;
mod damage;
mod full_disk;
mod images;
mod objects;
mod process;
mod remote;
mod support;
mod uploads;
mod volumes;
mod wire;
