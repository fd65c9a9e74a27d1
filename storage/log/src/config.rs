//! How a log is set up, checked once when it is opened.

use crate::error::LogError;
use crate::format::{BATCH_BYTES_LIMIT, BLOCK, DATA_START, batch_span, record_span};

/// How a batch is made durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlushMode {
    /// A linked write and fdatasync when nothing is in flight, DSYNC writes beside others.
    Adaptive,
    /// Always a write linked to its fdatasync.
    Linked,
    /// Always a DSYNC write.
    Dsync,
}

/// Sizes and bounds of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// Bytes of a segment file, a multiple of 4 KiB below 4 GiB. Segments that exist keep theirs.
    pub segment_bytes: u64,
    /// Segments kept ready ahead of the one in use, 0 to 64.
    pub spare_segments: usize,
    /// Segments kept ready beside the spares, 0 to 64, that only [`crate::Log::append_reserved`]
    /// begins: on a full disk what gives space back still finds room.
    pub reserve_segments: usize,
    /// Bytes that gather into one batch, 4 KiB to 1 MiB. One larger record is a batch of its own.
    pub batch_bytes_max: usize,
    /// Batches written at the same time, 1 to 64.
    pub batches_in_flight: usize,
    /// Bytes that gather before a batch is written beside others; 0 waits for nothing. Less than that
    /// waits until one of them has ended, and shares a flush with what comes meanwhile.
    pub beside_bytes_min: usize,
    /// Largest payload of a record in bytes.
    pub record_bytes_max: usize,
    /// How batches are made durable.
    pub flush: FlushMode,
}

/// Largest payload that fits, with its headers, into 1 MiB.
pub const RECORD_BYTES_LIMIT: usize =
    BATCH_BYTES_LIMIT - crate::format::BATCH_HEADER - crate::format::RECORD_HEADER;

impl Default for LogConfig {
    fn default() -> LogConfig {
        LogConfig {
            segment_bytes: 64 << 20,
            spare_segments: 1,
            reserve_segments: 0,
            batch_bytes_max: 256 << 10,
            batches_in_flight: 2,
            beside_bytes_min: 32 << 10,
            record_bytes_max: RECORD_BYTES_LIMIT,
            flush: FlushMode::Adaptive,
        }
    }
}

impl LogConfig {
    /// Bytes of the largest batch that this configuration can write.
    pub(crate) fn batch_span_max(&self) -> usize {
        let single = batch_span(record_span(self.record_bytes_max));
        single.max(self.batch_bytes_max.next_multiple_of(BLOCK))
    }

    /// Whether a segment of `bytes` has room for an open mark, the largest batch and a clean mark.
    pub(crate) fn fits(&self, bytes: u64) -> bool {
        bytes >= DATA_START + (self.batch_span_max() + 2 * BLOCK) as u64
    }

    /// # Errors
    /// [`LogError::Config`] naming the field, its value and what is allowed.
    pub(crate) fn validate(&self) -> Result<(), LogError> {
        let bad = |field, value: usize, allowed: String| {
            Err(LogError::Config {
                field,
                value: value as u64,
                allowed,
            })
        };
        if self.record_bytes_max > RECORD_BYTES_LIMIT {
            let allowed = format!("at most {RECORD_BYTES_LIMIT}");
            return bad("record_bytes_max", self.record_bytes_max, allowed);
        }
        if !(BLOCK..=BATCH_BYTES_LIMIT).contains(&self.batch_bytes_max) {
            let allowed = format!("{BLOCK} to {BATCH_BYTES_LIMIT}");
            return bad("batch_bytes_max", self.batch_bytes_max, allowed);
        }
        if !(1..=64).contains(&self.batches_in_flight) {
            return bad(
                "batches_in_flight",
                self.batches_in_flight,
                "1 to 64".into(),
            );
        }
        if self.spare_segments > 64 {
            return bad("spare_segments", self.spare_segments, "at most 64".into());
        }
        if self.reserve_segments > 64 {
            return bad(
                "reserve_segments",
                self.reserve_segments,
                "at most 64".into(),
            );
        }
        let aligned = self.segment_bytes.is_multiple_of(BLOCK as u64);
        if !aligned || self.segment_bytes > u64::from(u32::MAX) || !self.fits(self.segment_bytes) {
            let allowed = format!(
                "a multiple of {BLOCK} below 4 GiB with room for a batch of {} bytes",
                self.batch_span_max()
            );
            return bad("segment_bytes", self.segment_bytes as usize, allowed);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_and_a_segment_must_hold_the_largest_batch() {
        assert!(LogConfig::default().validate().is_ok());
        let small = LogConfig {
            segment_bytes: 1 << 20,
            ..LogConfig::default()
        };
        let error = small.validate().unwrap_err().to_string();
        assert!(error.contains("segment_bytes is 1048576"), "{error}");
        let odd = LogConfig {
            segment_bytes: (64 << 20) + 512,
            ..LogConfig::default()
        };
        assert!(odd.validate().is_err());
        let fits = (1 << 20) + 4 * BLOCK as u64;
        assert!(
            LogConfig {
                segment_bytes: fits,
                ..LogConfig::default()
            }
            .validate()
            .is_ok()
        );
        let below = LogConfig {
            segment_bytes: fits - BLOCK as u64,
            ..LogConfig::default()
        };
        assert!(below.validate().is_err());
    }
}
