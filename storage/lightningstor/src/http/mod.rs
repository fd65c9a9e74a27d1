//! The S3 front: HTTP/1.1 connections, signatures, bodies, answers.
//!
//! `conn` owns a connection, `inbox` and `body` what arrives on it, `exchange` one request and its
//! answer; `ops` leads from a head to an operation, which `access` allows and which lives in `buckets`,
//! `objects` (with `select`), `attributes`, `listing`, `multipart` or `copy`; `receive` and `read` move
//! bodies between a client and the store, in memory that `budget` shares out.
//!
//! Invariants: nothing is done for a request whose signature does not hold; what is not whole and
//! checked is never visible; every connection, buffer and wait is bounded. The protocol itself is
//! `s3_wire`'s; nothing here knows how bytes lie on the disk.

mod attributes;
mod body;
mod buckets;
mod budget;
mod config;
mod conn;
mod copy;
mod errors;
mod exchange;
mod hashing;
mod inbox;
mod listing;
mod metrics;
mod multipart;
mod objects;
mod ops;
mod read;
mod receive;
mod select;
mod server;

pub use config::{BODY_BYTES_MAX, HttpConfig, Limits, User, UserConflict, Users};
pub use metrics::{HttpMetrics, OpKind, OpStats};

pub(crate) use metrics::prometheus;
pub(crate) use server::{BACKLOG, Server};
