//! The bytes of a segment file. Pure: no I/O, no state.
//!
//! A segment is `header block | seal block | batches … | reserve`, all on 4 KiB boundaries and
//! little-endian. Every structure carries a CRC-32C, and the segment's random `salt`, so that bytes
//! left by an earlier life of the file, or written by a user into a record, are never taken for it.
//!
//! - The header is written before the file gets its name and never again.
//! - The seal is written when all batches of the segment are durable. It says where they end, so
//!   that a restart need not scan.
//! - Batches of all segments form one chain: sequences grow by 1, incarnations never shrink. A
//!   batch is valid only where the chain expects it.
//! - The last block is the reserve: only a clean-shutdown mark may use it.
//!
//! Decoding never panics, never allocates, and never looks past the slice it was given.

use std::mem::{offset_of, size_of};

use crate::types::{Lsn, Position, Record};

/// Alignment of batches, and of O_DIRECT.
pub(crate) const BLOCK: usize = engine::BLOCK;
/// Where batches start in a segment.
pub(crate) const DATA_START: u64 = 2 * BLOCK as u64;
/// Where the seal block starts.
pub(crate) const SEAL_START: u64 = BLOCK as u64;
/// Largest batch, padding included.
pub(crate) const BATCH_BYTES_LIMIT: usize = 1 << 20;
/// Bytes of a batch's header.
pub(crate) const BATCH_HEADER: usize = size_of::<BatchLayout>();
/// Bytes of a record's header.
pub(crate) const RECORD_HEADER: usize = size_of::<RecordLayout>();

const FORMAT_VERSION: u32 = 1;
const SEGMENT_MAGIC: u64 = u64::from_le_bytes(*b"UCSEGLOG");
const SEAL_MAGIC: u32 = u32::from_le_bytes(*b"UCSL");
const BATCH_MAGIC: u32 = u32::from_le_bytes(*b"UCBT");
const RECORD_MAGIC: u32 = u32::from_le_bytes(*b"UCRC");

/// ```text
///  0  8 magic "UCSEGLOG"        first, so that a hex dump tells what the file is
///  8  4 format version          before the CRC: a newer version may check otherwise
/// 12  4 CRC-32C of bytes 0..12 and 16..40
/// 16  8 salt, random
/// 24  8 length of the file in bytes
/// 32  4 segment number
/// 36  4 zero
/// ```
#[repr(C)]
struct SegmentLayout {
    magic: u64,
    version: u32,
    crc: u32,
    salt: u64,
    bytes: u64,
    number: u32,
    zero: u32,
}

/// ```text
///  0  4 magic "UCSL"
///  4  4 CRC-32C of bytes 8..56
///  8  8 salt of the segment
/// 16  4 segment number
/// 20  4 end: bytes from the start of the file to the end of the last batch
/// 24  8 first LSN in the segment
/// 32  8 last LSN; first - 1 when it holds no record
/// 40  8 sequence of the last batch
/// 48  4 incarnation of the last batch
/// 52  4 zero
/// ```
#[repr(C)]
struct SealLayout {
    magic: u32,
    crc: u32,
    salt: u64,
    number: u32,
    end: u32,
    first: u64,
    last: u64,
    sequence: u64,
    incarnation: u32,
    zero: u32,
}

/// ```text
///  0  4 magic "UCBT"
///  4  4 CRC-32C of bytes 8..bytes, padding included
///  8  8 salt of the segment
/// 16  4 segment number
/// 20  4 bytes of the batch, a multiple of 4,096
/// 24  8 sequence: 1 for the log's first batch, then one more each
/// 32  8 durable: every batch up to this sequence was durable when this one was written. A sequence
///       and not an LSN, because marks hold no record and must be provable too
/// 40  8 LSN of the first record, or of the next one to come
/// 48  4 incarnation: grows with each open
/// 52  4 number of records
/// 56  4 bytes in use, this header included; the rest is zero
/// 60  1 kind: 0 records, 1 open mark, 2 clean mark
/// 61  3 zero
/// ```
#[repr(C)]
struct BatchLayout {
    magic: u32,
    crc: u32,
    salt: u64,
    number: u32,
    bytes: u32,
    sequence: u64,
    durable: u64,
    first: u64,
    incarnation: u32,
    records: u32,
    used: u32,
    kind: u8,
    zero: [u8; 3],
}

/// The payload follows, then zeros up to a multiple of 8.
/// ```text
///  0  4 magic "UCRC"
///  4  4 CRC-32C of bytes 8..24 and the payload
///  8  8 LSN
/// 16  4 bytes of the payload
/// 20  1 the caller's kind
/// 21  3 zero
/// ```
#[repr(C)]
struct RecordLayout {
    magic: u32,
    crc: u32,
    lsn: u64,
    len: u32,
    kind: u8,
    zero: [u8; 3],
}

const _: () = assert!(size_of::<SegmentLayout>() == 40);
const _: () = assert!(offset_of!(SegmentLayout, crc) == 12);
const _: () = assert!(offset_of!(SegmentLayout, number) == 32);
const _: () = assert!(offset_of!(SegmentLayout, zero) == 36);
const _: () = assert!(size_of::<SealLayout>() == 56);
const _: () = assert!(offset_of!(SealLayout, sequence) == 40);
const _: () = assert!(offset_of!(SealLayout, zero) == 52);
const _: () = assert!(size_of::<BatchLayout>() == 64);
const _: () = assert!(offset_of!(BatchLayout, sequence) == 24);
const _: () = assert!(offset_of!(BatchLayout, used) == 56);
const _: () = assert!(offset_of!(BatchLayout, zero) == 61);
const _: () = assert!(size_of::<RecordLayout>() == 24);
const _: () = assert!(offset_of!(RecordLayout, len) == 16);
const _: () = assert!(offset_of!(RecordLayout, zero) == 21);
const _: () = assert!(BATCH_BYTES_LIMIT + BLOCK <= engine::MAX_BUF);

/// Bytes that a record with such a payload takes.
pub(crate) const fn record_span(payload: usize) -> usize {
    (RECORD_HEADER + payload).next_multiple_of(8)
}

/// Bytes that a batch with such records takes.
pub(crate) const fn batch_span(records: usize) -> usize {
    (BATCH_HEADER + records).next_multiple_of(BLOCK)
}

fn put<const N: usize>(to: &mut [u8], offset: usize, bytes: [u8; N]) {
    to[offset..offset + N].copy_from_slice(&bytes);
}

fn u32_at(from: &[u8], offset: usize) -> Option<u32> {
    from.get(offset..)?
        .first_chunk()
        .map(|bytes| u32::from_le_bytes(*bytes))
}

fn u64_at(from: &[u8], offset: usize) -> Option<u64> {
    from.get(offset..)?
        .first_chunk()
        .map(|bytes| u64::from_le_bytes(*bytes))
}

fn crc(parts: &[&[u8]]) -> u32 {
    if let [one] = parts {
        return crc_fast::crc32_iscsi(one);
    }
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    for part in parts {
        digest.update(part);
    }
    digest.finalize() as u32
}

/// A segment's identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) number: u32,
    pub(crate) salt: u64,
    pub(crate) bytes: u64,
}

impl SegmentHeader {
    /// Writes it over the start of a block.
    pub(crate) fn encode(&self, block: &mut [u8]) {
        put(
            block,
            offset_of!(SegmentLayout, magic),
            SEGMENT_MAGIC.to_le_bytes(),
        );
        put(
            block,
            offset_of!(SegmentLayout, version),
            FORMAT_VERSION.to_le_bytes(),
        );
        put(
            block,
            offset_of!(SegmentLayout, salt),
            self.salt.to_le_bytes(),
        );
        put(
            block,
            offset_of!(SegmentLayout, bytes),
            self.bytes.to_le_bytes(),
        );
        put(
            block,
            offset_of!(SegmentLayout, number),
            self.number.to_le_bytes(),
        );
        put(block, offset_of!(SegmentLayout, zero), [0; 4]);
        let crc = SegmentHeader::crc(block);
        put(block, offset_of!(SegmentLayout, crc), crc.to_le_bytes());
    }

    fn crc(block: &[u8]) -> u32 {
        let at = offset_of!(SegmentLayout, crc);
        crc(&[&block[..at], &block[at + 4..size_of::<SegmentLayout>()]])
    }

    /// What a block says; `Err` tells what was expected.
    pub(crate) fn decode(block: &[u8]) -> Result<SegmentHeader, &'static str> {
        let block = block
            .get(..size_of::<SegmentLayout>())
            .ok_or("a whole segment header")?;
        if u64_at(block, offset_of!(SegmentLayout, magic)) != Some(SEGMENT_MAGIC) {
            return Err("a segment header's magic");
        }
        if u32_at(block, offset_of!(SegmentLayout, version)) != Some(FORMAT_VERSION) {
            return Err("format version 1");
        }
        if u32_at(block, offset_of!(SegmentLayout, crc)) != Some(SegmentHeader::crc(block)) {
            return Err("a segment header with a right checksum");
        }
        let header = || {
            Some(SegmentHeader {
                number: u32_at(block, offset_of!(SegmentLayout, number))?,
                salt: u64_at(block, offset_of!(SegmentLayout, salt))?,
                bytes: u64_at(block, offset_of!(SegmentLayout, bytes))?,
            })
        };
        header().ok_or("a whole segment header")
    }
}

/// What a complete segment holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seal {
    pub(crate) end: u32,
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) sequence: u64,
    pub(crate) incarnation: u32,
}

impl Seal {
    /// Writes it over the start of a block.
    pub(crate) fn encode(&self, segment: &SegmentHeader, block: &mut [u8]) {
        put(
            block,
            offset_of!(SealLayout, magic),
            SEAL_MAGIC.to_le_bytes(),
        );
        put(
            block,
            offset_of!(SealLayout, salt),
            segment.salt.to_le_bytes(),
        );
        put(
            block,
            offset_of!(SealLayout, number),
            segment.number.to_le_bytes(),
        );
        put(block, offset_of!(SealLayout, end), self.end.to_le_bytes());
        put(
            block,
            offset_of!(SealLayout, first),
            self.first.to_le_bytes(),
        );
        put(block, offset_of!(SealLayout, last), self.last.to_le_bytes());
        put(
            block,
            offset_of!(SealLayout, sequence),
            self.sequence.to_le_bytes(),
        );
        put(
            block,
            offset_of!(SealLayout, incarnation),
            self.incarnation.to_le_bytes(),
        );
        put(block, offset_of!(SealLayout, zero), [0; 4]);
        let crc = crc(&[&block[8..size_of::<SealLayout>()]]);
        put(block, offset_of!(SealLayout, crc), crc.to_le_bytes());
    }

    /// The segment's seal; `None` when the block holds none of it.
    pub(crate) fn decode(segment: &SegmentHeader, block: &[u8]) -> Option<Seal> {
        let block = block.get(..size_of::<SealLayout>())?;
        let own = u32_at(block, offset_of!(SealLayout, magic))? == SEAL_MAGIC
            && u32_at(block, offset_of!(SealLayout, crc))? == crc(&[&block[8..]])
            && u64_at(block, offset_of!(SealLayout, salt))? == segment.salt
            && u32_at(block, offset_of!(SealLayout, number))? == segment.number;
        let seal = Seal {
            end: u32_at(block, offset_of!(SealLayout, end))?,
            first: u64_at(block, offset_of!(SealLayout, first))?,
            last: u64_at(block, offset_of!(SealLayout, last))?,
            sequence: u64_at(block, offset_of!(SealLayout, sequence))?,
            incarnation: u32_at(block, offset_of!(SealLayout, incarnation))?,
        };
        let end = u64::from(seal.end);
        let sane = (DATA_START..=segment.bytes).contains(&end)
            && end.is_multiple_of(BLOCK as u64)
            && seal.first >= 1
            && seal.last >= seal.first - 1
            && seal.last < u64::MAX;
        (own && sane).then_some(seal)
    }
}

/// What a batch is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BatchKind {
    Records,
    /// The first batch of an incarnation; durable before any other.
    Open,
    /// The last batch of a log that was closed in order.
    Clean,
}

/// A batch's place in the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchHeader {
    pub(crate) bytes: u32,
    pub(crate) sequence: u64,
    pub(crate) durable: u64,
    pub(crate) first: u64,
    pub(crate) incarnation: u32,
    pub(crate) records: u32,
    pub(crate) used: u32,
    pub(crate) kind: BatchKind,
}

impl BatchHeader {
    /// Writes it over the start of a whole batch, records and padding in place, and checksums all.
    ///
    /// # Panics
    /// When the slice is not the batch.
    pub(crate) fn encode(&self, segment: &SegmentHeader, batch: &mut [u8]) {
        assert_eq!(
            batch.len(),
            self.bytes as usize,
            "the slice is the whole batch"
        );
        let kind = match self.kind {
            BatchKind::Records => 0,
            BatchKind::Open => 1,
            BatchKind::Clean => 2,
        };
        put(
            batch,
            offset_of!(BatchLayout, magic),
            BATCH_MAGIC.to_le_bytes(),
        );
        put(
            batch,
            offset_of!(BatchLayout, salt),
            segment.salt.to_le_bytes(),
        );
        put(
            batch,
            offset_of!(BatchLayout, number),
            segment.number.to_le_bytes(),
        );
        put(
            batch,
            offset_of!(BatchLayout, bytes),
            self.bytes.to_le_bytes(),
        );
        put(
            batch,
            offset_of!(BatchLayout, sequence),
            self.sequence.to_le_bytes(),
        );
        put(
            batch,
            offset_of!(BatchLayout, durable),
            self.durable.to_le_bytes(),
        );
        put(
            batch,
            offset_of!(BatchLayout, first),
            self.first.to_le_bytes(),
        );
        put(
            batch,
            offset_of!(BatchLayout, incarnation),
            self.incarnation.to_le_bytes(),
        );
        put(
            batch,
            offset_of!(BatchLayout, records),
            self.records.to_le_bytes(),
        );
        put(
            batch,
            offset_of!(BatchLayout, used),
            self.used.to_le_bytes(),
        );
        put(batch, offset_of!(BatchLayout, kind), [kind, 0, 0, 0]);
        let crc = crc(&[&batch[8..]]);
        put(batch, offset_of!(BatchLayout, crc), crc.to_le_bytes());
    }

    /// What the first 64 bytes say, before the checksum is known to hold: enough to know how much
    /// to read. `None` when they are no batch of this segment.
    pub(crate) fn peek(segment: &SegmentHeader, bytes: &[u8]) -> Option<BatchHeader> {
        let head = bytes.get(..BATCH_HEADER)?;
        let own = u32_at(head, offset_of!(BatchLayout, magic))? == BATCH_MAGIC
            && u64_at(head, offset_of!(BatchLayout, salt))? == segment.salt
            && u32_at(head, offset_of!(BatchLayout, number))? == segment.number;
        let header = BatchHeader {
            bytes: u32_at(head, offset_of!(BatchLayout, bytes))?,
            sequence: u64_at(head, offset_of!(BatchLayout, sequence))?,
            durable: u64_at(head, offset_of!(BatchLayout, durable))?,
            first: u64_at(head, offset_of!(BatchLayout, first))?,
            incarnation: u32_at(head, offset_of!(BatchLayout, incarnation))?,
            records: u32_at(head, offset_of!(BatchLayout, records))?,
            used: u32_at(head, offset_of!(BatchLayout, used))?,
            kind: match head[offset_of!(BatchLayout, kind)] {
                0 => BatchKind::Records,
                1 => BatchKind::Open,
                2 => BatchKind::Clean,
                _ => return None,
            },
        };
        let (bytes, used) = (header.bytes as usize, header.used as usize);
        let sane = (BLOCK..=BATCH_BYTES_LIMIT).contains(&bytes)
            && bytes.is_multiple_of(BLOCK)
            && (BATCH_HEADER..=bytes).contains(&used)
            && header.first >= 1
            && header
                .first
                .checked_add(u64::from(header.records))
                .is_some()
            && header.durable < header.sequence;
        (own && sane).then_some(header)
    }

    /// Whether `batch`, all of its bytes, has the checksum that it carries.
    pub(crate) fn verify(batch: &[u8]) -> bool {
        let stored = u32_at(batch, offset_of!(BatchLayout, crc));
        batch
            .get(8..)
            .is_some_and(|covered| stored == Some(crc(&[covered])))
    }

    /// The LSN after the last record.
    pub(crate) fn next(&self) -> u64 {
        self.first + u64::from(self.records)
    }
}

/// Writes a record over the start of `to`, as many bytes as [`record_span`] says.
///
/// # Panics
/// When `to` is not that long.
pub(crate) fn encode_record(to: &mut [u8], lsn: u64, kind: u8, parts: &[&[u8]]) {
    let mut at = RECORD_HEADER;
    for part in parts {
        to[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
    to[at..].fill(0);
    let len = (at - RECORD_HEADER) as u32;
    put(
        to,
        offset_of!(RecordLayout, magic),
        RECORD_MAGIC.to_le_bytes(),
    );
    put(to, offset_of!(RecordLayout, lsn), lsn.to_le_bytes());
    put(to, offset_of!(RecordLayout, len), len.to_le_bytes());
    put(to, offset_of!(RecordLayout, kind), [kind, 0, 0, 0]);
    let crc = crc(&[&to[8..at]]);
    put(to, offset_of!(RecordLayout, crc), crc.to_le_bytes());
}

/// The record at the start of `bytes`; `Err` tells what was expected.
pub(crate) fn decode_record(bytes: &[u8], position: Position) -> Result<Record<'_>, &'static str> {
    let head = bytes.get(..RECORD_HEADER).ok_or("a whole record header")?;
    if u32_at(head, offset_of!(RecordLayout, magic)) != Some(RECORD_MAGIC) {
        return Err("a record's magic");
    }
    let len = u32_at(head, offset_of!(RecordLayout, len)).ok_or("a record's length")? as usize;
    let end = RECORD_HEADER
        .checked_add(len)
        .ok_or("a record's length in bounds")?;
    let covered = bytes.get(8..end).ok_or("a record's length in bounds")?;
    if u32_at(head, offset_of!(RecordLayout, crc)) != Some(crc(&[covered])) {
        return Err("a record with a right checksum");
    }
    let lsn = u64_at(head, offset_of!(RecordLayout, lsn)).ok_or("a record's number")?;
    Ok(Record {
        lsn: Lsn(lsn),
        position,
        kind: head[offset_of!(RecordLayout, kind)],
        payload: &bytes[RECORD_HEADER..end],
        len: record_span(len) as u32,
    })
}

/// Shows each record of a batch that [`BatchHeader::verify`] accepted, in order.
///
/// `Err` holds the offset in the batch and what was expected there: the writer was wrong.
pub(crate) fn each_record<'a, E>(
    header: &BatchHeader,
    batch: &'a [u8],
    start: Position,
    mut each: impl FnMut(Record<'a>) -> Result<(), E>,
) -> Result<Result<(), E>, (usize, &'static str)> {
    let used = header.used as usize;
    let mut at = BATCH_HEADER;
    for index in 0..u64::from(header.records) {
        let bytes = batch.get(at..used).ok_or((at, "a record"))?;
        let offset = start.offset.saturating_add(at as u32);
        let position = Position {
            segment: start.segment,
            offset,
        };
        let record = decode_record(bytes, position).map_err(|expected| (at, expected))?;
        if record.lsn.0 != header.first + index {
            return Err((at, "the next record's number"));
        }
        at += record.len as usize;
        if let Err(refused) = each(record) {
            return Ok(Err(refused));
        }
    }
    if at == used {
        Ok(Ok(()))
    } else {
        Err((at, "the end of the batch"))
    }
}

#[cfg(fuzzing)]
pub mod fuzzing;

#[cfg(test)]
#[path = "format/tests.rs"]
mod tests;
