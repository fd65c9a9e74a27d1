//! What every service of the control layer needs, once.
//!
//! - A port: TCP and TLS ([`server`], [`tls`]), verbs described once and served as gRPC and REST ([`api`]),
//!   who calls ([`auth`]), the one shape of errors ([`api_error`]), pages ([`page`]), health ([`health`]),
//!   metrics ([`metrics`]), the log ([`logging`]), an orderly end ([`stop`], [`service`]), config that says where it is wrong ([`config`]).
//! - Connections to others ([`client`]), and how long to wait before trying again ([`backoff`]).
//! - State: a transactional store ([`store`]), and on it objects ([`documents`]), leases, fences and
//!   elections ([`lease`]), operations that always end ([`saga`], served by [`operations`]), reconcilers
//!   ([`reconcile`]) and audit events ([`audit`]).
//!
//! It knows no service. Nothing here keeps state on a disk or starts a thread of its own.

#![forbid(unsafe_code)]

pub mod api;
pub mod api_error;
pub mod audit;
pub mod auth;
pub mod backoff;
pub mod client;
pub mod clock;
pub mod config;
mod corked;
pub mod documents;
mod error;
pub mod health;
pub mod lease;
pub mod link;
pub mod logging;
pub mod metrics;
pub mod operations;
pub mod page;
pub mod reconcile;
pub mod request_id;
pub mod retention;
pub mod saga;
pub mod server;
pub mod service;
pub mod stop;
pub mod store;
pub mod tls;

pub use error::{Error, ErrorKind};
