//! An NBD client on tokio, for tools that move whole volumes, and the disk images that they move.
//!
//! [`Client`] is one connection with many requests in flight. [`image`] brings a raw or qcow2 image into an
//! export, and an export into an image.
//!
//! Invariants:
//! - The server is not trusted: what it sends is bounded by what was asked for, and anything else ends the
//!   connection with an error that says what it was.
//! - A future of a request that is dropped may have had its effect, and harms no other request.
//! - What a client holds of data that is in flight is bounded ([`Options`]).
#![forbid(unsafe_code)]

mod client;
mod error;
mod handshake;
pub mod image;

mod pending;
mod target;

pub use client::{Client, Extent, Options};
pub use error::ClientError;
pub use target::{Address, ClientTls, Target};
