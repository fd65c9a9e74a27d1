//! What callers of the log see: numbers, places, records.

use std::ops::Range;

use engine::DmaBuf;

/// A record's sequence number: from 1, dense, never reused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

/// Where a record starts. Segment numbers only grow: a recycled file gets a new number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The segment's number.
    pub segment: u32,
    /// Bytes from the start of the segment.
    pub offset: u32,
}

/// A durable record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Its sequence number.
    pub lsn: Lsn,
    /// Its place.
    pub position: Position,
    /// Bytes it takes, header and padding included; [`crate::Log::read`] wants them back.
    pub len: u32,
}

/// A record as replay shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Its sequence number.
    pub lsn: Lsn,
    /// Its place.
    pub position: Position,
    /// The caller's mark.
    pub kind: u8,
    /// The caller's bytes.
    pub payload: &'a [u8],
    /// Bytes it takes, header and padding included.
    pub len: u32,
}

/// A record that was read back and checked.
#[derive(Debug)]
pub struct RecordBuf {
    /// The blocks that hold the record, with at least the wanted headroom before the payload.
    pub buf: DmaBuf,
    /// The caller's mark.
    pub kind: u8,
    /// Its sequence number.
    pub lsn: Lsn,
    /// The caller's bytes in `buf`.
    pub payload: Range<usize>,
}

/// What [`crate::Log::open`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// The last record; 0 when there is none.
    pub last: Lsn,
    /// Records that were replayed.
    pub records: u64,
    /// Bytes of batches that were begun, never acknowledged, and dropped, as far as their headers
    /// are left to be seen.
    pub torn_bytes: u64,
    /// Whether the log was closed in order (or is new).
    pub clean: bool,
    /// The life that wrote the last batch; 0 when there is none.
    pub incarnation: u32,
}

/// A segment that holds, or will hold next, records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentInfo {
    /// Its number.
    pub number: u32,
    /// Its first record, or the next one to come when it has none.
    pub first: Lsn,
    /// Bytes in use from the start of the file.
    pub bytes: u64,
    /// Whether it is complete: only then can it be released.
    pub sealed: bool,
}

/// Counters since the log was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogMetrics {
    /// Records that became durable.
    pub appends: u64,
    /// Batches that became durable; each cost one flush.
    pub batches: u64,
    /// Bytes written in batches, padding included.
    pub bytes: u64,
    /// Batches written as a write linked to its fdatasync.
    pub linked: u64,
    /// Batches written with RWF_DSYNC.
    pub dsync: u64,
    /// Batches that were in flight together, at most.
    pub in_flight_peak: u64,
    /// Appends refused for want of space.
    pub full: u64,
    /// Appends refused because too many waited.
    pub busy: u64,
    /// Batches by flush latency: entry `i` counts those under `2^i` microseconds and not under
    /// `2^(i-1)`; the last counts all slower ones.
    pub flush_us: [u64; FLUSH_BUCKETS],
    /// Whether a failed write has ended the log.
    pub poisoned: bool,
}

/// Entries of [`LogMetrics::flush_us`].
pub const FLUSH_BUCKETS: usize = 24;

impl LogMetrics {
    pub(crate) fn note_flush(&mut self, micros: u64) {
        let bucket = (u64::BITS - micros.leading_zeros()) as usize;
        self.flush_us[bucket.min(FLUSH_BUCKETS - 1)] += 1;
    }
}
