//! Watching: ranges of keys ([`range`]), who is told what ([`hub`]), and a client's stream of answers
//! ([`stream`]).

pub mod hub;
mod range;
mod shared;
pub mod stream;

pub use range::KeyRange;
pub use shared::{SharedHub, StreamHandle};
