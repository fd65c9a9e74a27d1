//! Segments for the fuzz target.

use super::record::{
    ALIGNMENT, BatchId, RECORD_HEADER, SEGMENT_HEADER, parse_record, put_checksum, segment_header,
};

/// The name of a segment's file.
pub(crate) fn name(segment: u64) -> String {
    super::segment_name(segment)
}

/// The run that all records are of, where they are put right.
const RUN: u32 = 7;

/// How much of a segment is put right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Right {
    /// Its header, and each record's checksum.
    Sums,
    /// Also which batch each record is of: the lowest bit of its run tells whether it begins one.
    Batches,
}

/// Gives a segment the header it needs and puts its records right, as far as they follow each other.
/// Where they end, and the last batch.
pub(crate) fn put_right(
    bytes: &mut [u8],
    segment: u64,
    previous_end: u64,
    right: Right,
    mut batch: BatchId,
) -> (u64, BatchId) {
    if bytes.len() < SEGMENT_HEADER {
        return (0, batch);
    }
    bytes[..SEGMENT_HEADER].copy_from_slice(&segment_header(segment, previous_end));
    let mut at = SEGMENT_HEADER;
    batch.start = at as u32;
    while at + RECORD_HEADER <= bytes.len() {
        let mut len = [0; 4];
        len.copy_from_slice(&bytes[at + 4..at + 8]);
        let end = at + RECORD_HEADER + u32::from_le_bytes(len) as usize;
        if end > bytes.len() {
            break;
        }
        let begins = at == SEGMENT_HEADER || bytes[at + 16] & 1 == 1;
        let mut of = BatchId { boot: RUN, ..batch };
        if begins {
            of.number += 1;
            of.start = at as u32;
        }
        if right == Right::Batches {
            bytes[at + 8..at + 16].copy_from_slice(&of.number.to_le_bytes());
            bytes[at + 16..at + 20].copy_from_slice(&of.boot.to_le_bytes());
            bytes[at + 20..at + 24].copy_from_slice(&of.start.to_le_bytes());
            bytes[at + 25..at + RECORD_HEADER].fill(0);
        }
        put_checksum(&mut bytes[at..end], segment);
        if parse_record(bytes, at, segment).is_none() {
            break;
        }
        batch = of;
        at = end.next_multiple_of(ALIGNMENT);
    }
    if right == Right::Batches {
        spoil(bytes, at, segment);
    }
    (at as u64, batch)
}

/// Lets no record stand behind the last one: no run leaves such ones there.
fn spoil(bytes: &mut [u8], from: usize, segment: u64) {
    for at in (from..bytes.len()).step_by(ALIGNMENT) {
        if parse_record(bytes, at, segment).is_some() {
            bytes[at] ^= 1;
        }
    }
}
