//! The bytes of a segment: its header and its records.
//!
//! Segment header, 64 bytes at offset 0, little-endian:
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 8 | magic `CFWAL001` |
//! | 8 | 8 | sequence number of the segment |
//! | 16 | 8 | where the segment before it ends; 0 when there is none |
//! | 24 | 36 | zero |
//! | 60 | 4 | CRC32C of bytes 0..60 |
//!
//! Record header, 32 bytes, then the payload, then zeros to a multiple of 8:
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 4 | CRC32C of the segment's number (8 bytes) and of all that follows up to the payload's end |
//! | 4 | 4 | length of the payload |
//! | 8 | 8 | number of the batch it was written in |
//! | 16 | 4 | number of the run that wrote it |
//! | 20 | 4 | offset where its batch begins |
//! | 24 | 1 | kind |
//! | 25 | 7 | zero |
//!
//! The segment's number is part of every checksum, so a recycled file's old records are not records.
//! A batch is one write followed by one sync, and the next begins where it ended: so whatever lies
//! before the beginning of a batch that can be read was durable. That is how a torn tail is told
//! from damage.

use std::ops::Range;

use crc_fast::{CrcAlgorithm, Digest};

/// Bytes of a segment's header.
pub(crate) const SEGMENT_HEADER: usize = 64;
/// Bytes of a record's header.
pub(crate) const RECORD_HEADER: usize = 32;
/// Records begin at multiples of this.
pub(crate) const ALIGNMENT: usize = 8;
/// The longest payload.
pub(crate) const PAYLOAD_MAX: usize = 64 << 20;

const MAGIC: [u8; 8] = *b"CFWAL001";

/// What a record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Everything but the entries, as of here; opens each segment and each run.
    State = 1,
    /// A log entry.
    Entry = 2,
    /// The vote.
    Vote = 3,
    /// Up to where entries are known to be committed.
    Committed = 4,
    /// Entries after a position are void.
    Truncate = 5,
    /// Entries up to a position are not needed any more.
    Purge = 6,
}

impl Kind {
    fn parse(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::State,
            2 => Self::Entry,
            3 => Self::Vote,
            4 => Self::Committed,
            5 => Self::Truncate,
            6 => Self::Purge,
            _ => return None,
        })
    }
}

/// Which write a record belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct BatchId {
    /// The run of the process.
    pub(crate) boot: u32,
    /// The batch, counted over all runs.
    pub(crate) number: u64,
    /// Where in the segment it begins.
    pub(crate) start: u32,
}

impl BatchId {
    /// Whether it was written after `other`.
    pub(crate) fn after(&self, other: &Self) -> bool {
        (self.boot, self.number) > (other.boot, other.number)
    }
}

/// A record found in a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) kind: Kind,
    pub(crate) batch: BatchId,
    /// Where its payload lies in the segment.
    pub(crate) payload: Range<usize>,
    /// Where the next record would begin.
    pub(crate) end: usize,
}

fn crc(parts: [&[u8]; 2]) -> u32 {
    let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
    for part in parts {
        digest.update(part);
    }
    digest.finalize() as u32
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut field = [0; 4];
    field.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(field)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut field = [0; 8];
    field.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(field)
}

/// Bytes that a record with this payload takes.
pub(crate) fn record_len(payload: usize) -> usize {
    (RECORD_HEADER + payload).next_multiple_of(ALIGNMENT)
}

/// Appends a record to `batch`; `payload` writes the payload at the end of the buffer.
pub(crate) fn push_record(
    batch: &mut Vec<u8>,
    segment: u64,
    id: BatchId,
    kind: Kind,
    payload: impl FnOnce(&mut Vec<u8>),
) {
    let at = batch.len();
    assert!(
        at.is_multiple_of(ALIGNMENT),
        "a record begins at a multiple of 8"
    );
    batch.resize(at + RECORD_HEADER, 0);
    payload(batch);
    let len = batch.len() - at - RECORD_HEADER;
    assert!(len <= PAYLOAD_MAX, "a payload within its limit");
    batch[at + 4..at + 8].copy_from_slice(&(len as u32).to_le_bytes());
    batch[at + 8..at + 16].copy_from_slice(&id.number.to_le_bytes());
    batch[at + 16..at + 20].copy_from_slice(&id.boot.to_le_bytes());
    batch[at + 20..at + 24].copy_from_slice(&id.start.to_le_bytes());
    batch[at + 24] = kind as u8;
    put_checksum(&mut batch[at..], segment);
    batch.resize(at + record_len(len), 0);
}

/// Gives a record, up to its payload's end, the checksum it has in `segment`.
pub(crate) fn put_checksum(record: &mut [u8], segment: u64) {
    let sum = crc([&segment.to_le_bytes(), &record[4..]]);
    record[..4].copy_from_slice(&sum.to_le_bytes());
}

/// The record at `at`, if a whole and undamaged one is there.
pub(crate) fn parse_record(bytes: &[u8], at: usize, segment: u64) -> Option<Record> {
    let header = bytes.get(at..at + RECORD_HEADER)?;
    let kind = Kind::parse(header[24])?;
    if header[25..] != [0; 7] {
        return None;
    }
    let len = u32_at(header, 4) as usize;
    let payload = at + RECORD_HEADER..at + RECORD_HEADER + len;
    if len > PAYLOAD_MAX || payload.end > bytes.len() {
        return None;
    }
    let sum = crc([&segment.to_le_bytes(), &bytes[at + 4..payload.end]]);
    if sum != u32_at(header, 0) {
        return None;
    }
    let batch = BatchId {
        boot: u32_at(header, 16),
        number: u64_at(header, 8),
        start: u32_at(header, 20),
    };
    let end = payload.end.next_multiple_of(ALIGNMENT);
    Some(Record {
        kind,
        batch,
        payload,
        end,
    })
}

/// A segment's header.
pub(crate) fn segment_header(segment: u64, previous_end: u64) -> [u8; SEGMENT_HEADER] {
    let mut header = [0; SEGMENT_HEADER];
    header[..8].copy_from_slice(&MAGIC);
    header[8..16].copy_from_slice(&segment.to_le_bytes());
    header[16..24].copy_from_slice(&previous_end.to_le_bytes());
    let sum = crc([&header[..SEGMENT_HEADER - 4], &[]]);
    header[SEGMENT_HEADER - 4..].copy_from_slice(&sum.to_le_bytes());
    header
}

/// Where the segment before `segment` ends, if this is `segment`'s header.
pub(crate) fn parse_segment_header(bytes: &[u8], segment: u64) -> Option<u64> {
    let header = bytes.get(..SEGMENT_HEADER)?;
    let previous_end = u64_at(header, 16);
    (header == segment_header(segment, previous_end)).then_some(previous_end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(number: u64) -> BatchId {
        BatchId {
            boot: 1,
            number,
            start: 64,
        }
    }

    #[test]
    fn a_record_is_read_as_written_and_only_in_its_segment() {
        let mut bytes = vec![0; SEGMENT_HEADER];
        push_record(&mut bytes, 7, batch(3), Kind::Vote, |out| {
            out.extend_from_slice(b"payload");
        });
        let record = parse_record(&bytes, SEGMENT_HEADER, 7).unwrap();
        assert_eq!(record.kind, Kind::Vote);
        assert_eq!(record.batch, batch(3));
        assert_eq!(&bytes[record.payload.clone()], b"payload");
        assert_eq!(record.end, bytes.len());
        assert_eq!(parse_record(&bytes, SEGMENT_HEADER, 8), None);
    }

    #[test]
    fn any_changed_bit_of_a_record_is_seen() {
        let mut bytes = Vec::new();
        push_record(&mut bytes, 1, batch(1), Kind::Entry, |out| {
            out.extend_from_slice(b"12345678");
        });
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(parse_record(&damaged, 0, 1), None, "bit {bit}");
        }
    }

    #[test]
    fn a_header_belongs_to_its_segment() {
        let header = segment_header(5, 4096);
        assert_eq!(parse_segment_header(&header, 5), Some(4096));
        assert_eq!(parse_segment_header(&header, 6), None);
        assert_eq!(parse_segment_header(&header[..63], 5), None);
    }
}
