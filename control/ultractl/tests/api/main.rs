//! `ultractl` before the API of a real node.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

mod bucket;
mod node;
mod volume;
