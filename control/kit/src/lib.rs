//! What every service of the control layer needs, once: a port that speaks gRPC and REST ([`server`]),
//! connections to others ([`client`]),
//! certificates that are read again when their files change ([`tls`]), an orderly end ([`stop`]), health
//! ([`health`]), metrics ([`metrics`]), the one shape of errors ([`api_error`]) and config that says
//! where it is wrong ([`config`]).
//!
//! It knows no service. Nothing here keeps state on a disk or starts a thread of its own.

#![forbid(unsafe_code)]

pub mod api_error;
pub mod client;
pub mod config;
mod corked;
mod error;
pub mod health;
pub mod metrics;
pub mod request_id;
pub mod server;
pub mod stop;
pub mod tls;

pub use error::{Error, ErrorKind};
