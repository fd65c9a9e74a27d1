//! A segmented group-commit log: an append-only sequence of records, durable when acknowledged.
//!
//! Concurrent appends share a batch, and a batch costs one flush; several batches may be in flight,
//! acknowledged in order. Segments are pre-written files of fixed size, recycled when the caller
//! releases them. A [`Log`] belongs to the engine shard that opened it.
//!
//! Invariants:
//! - An acknowledged record is there after any crash, byte for byte, with all before it.
//! - A record that was not acknowledged is there whole, or not at all; if it is there, so is
//!   everything before it.
//! - What was durable and is damaged is an error that names segment and offset. Only what nothing
//!   shows to have been durable counts as a torn tail.
//! - A failed write or flush ends the log for good ([`LogError::Poisoned`]); reads go on. A full
//!   disk does not ([`LogError::Full`]).
//! - Batches left behind a torn tail, or in a recycled file, are never replayed.
//!
//! It never retries a failed write, never skips a damaged record, and knows nothing of what the
//! records mean. A segment file that someone else removed from the middle looks like a released
//! one: compare [`Log::segments`] with what you need.
//!
//! Beside the log stands what the stores on it share: [`bytes`] and [`frames`] for their formats,
//! [`durable`] for their data files, [`data_dir`] for the directory with their partitions.
#![forbid(unsafe_code)]

mod ack;
pub mod bytes;
mod commit;
mod config;
pub mod data_dir;
pub mod durable;
mod error;
mod files;
mod format;
pub mod frames;
mod log;
mod read;
mod recovery;
mod state;
mod types;
mod walk;

pub use config::{FlushMode, LogConfig, RECORD_BYTES_LIMIT};
pub use error::LogError;
#[cfg(fuzzing)]
pub use format::fuzzing;
pub use log::Log;
pub use types::{
    Appended, FLUSH_BUCKETS, LogMetrics, Lsn, Position, Record, RecordBuf, Recovered, SegmentInfo,
};
