//! What a restart makes of the files: follows the chain of batches, replays it, and decides whether
//! what ends it is a torn tail or damage.
//!
//! The first batch that is not valid ends the tail only if nothing shows that it was durable. What
//! shows it: a valid later batch of the chain that says so, or the seal of its segment. Then the
//! answer is [`LogError::Corrupt`] and the log stays closed. Nothing is ever skipped.
//!
//! What the chain holds past the last proof may have reached the device's cache only, or the page
//! cache of a kernel whose flush failed. A restart would build on it, so it is written again,
//! byte for byte, and flushed, before the log opens.

use std::collections::VecDeque;
use std::path::Path;
use std::rc::Rc;

use engine::DmaBuf;
use engine::fs::{self, File};

use crate::error::LogError;
use crate::files::{self, Name};
use crate::format::{
    BATCH_BYTES_LIMIT, BLOCK, BatchHeader, BatchKind, DATA_START, SEAL_START, Seal, SegmentHeader,
    each_record,
};
use crate::types::{Lsn, Position, Record};

/// A segment that exists.
pub(crate) struct Found {
    pub(crate) header: SegmentHeader,
    pub(crate) seal: Option<Seal>,
    pub(crate) file: Rc<File>,
}

/// Where the chain stands: what its next batch must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) lsn: u64,
    pub(crate) sequence: u64,
    pub(crate) incarnation: u32,
    /// Batches were released before this point: the next one may be any later one.
    gap: bool,
}

impl Chain {
    const START: Chain = Chain {
        lsn: 1,
        sequence: 1,
        incarnation: 0,
        gap: false,
    };

    fn takes(&self, batch: &BatchHeader) -> bool {
        if self.gap {
            return batch.sequence >= self.sequence
                && batch.first >= self.lsn
                && batch.incarnation >= self.incarnation;
        }
        // Records never begin an incarnation: its mark does, and is durable before them.
        let begins = batch.incarnation > self.incarnation && batch.kind != BatchKind::Records;
        batch.sequence == self.sequence
            && batch.first == self.lsn
            && (batch.incarnation == self.incarnation || begins)
    }

    fn advance(&mut self, batch: &BatchHeader) {
        *self = Chain {
            lsn: batch.next(),
            sequence: batch.sequence.saturating_add(1),
            incarnation: batch.incarnation,
            gap: false,
        };
    }
}

/// A batch of the chain that nothing proves durable yet.
struct Unproven {
    index: usize,
    offset: u64,
    bytes: u32,
    sequence: u64,
}

/// What the caller wants replayed.
#[derive(Clone, Copy)]
pub(crate) struct Wanted {
    pub(crate) after: Lsn,
    pub(crate) first_segment: u32,
}

/// What the scan found out.
pub(crate) struct Scan {
    pub(crate) chain: Chain,
    /// The segment that takes the next batch, as an index into the found ones, and where.
    pub(crate) tail: usize,
    pub(crate) offset: u64,
    /// First LSN of each unsealed segment up to the tail, with its index.
    pub(crate) firsts: Vec<(usize, u64)>,
    /// Seals that the last life did not get to write.
    pub(crate) missing_seals: Vec<(usize, Seal)>,
    pub(crate) records: u64,
    pub(crate) torn_bytes: u64,
    pub(crate) clean: bool,
    unproven: VecDeque<Unproven>,
}

/// Lists the segments, in order, and removes what was on its way to become one. A name may be
/// visible and not durable, when the last life ended without a power loss: it is made so first.
pub(crate) async fn find(dir: &Path) -> Result<Vec<Found>, LogError> {
    files::sync_dir(dir).await?;
    let entries = fs::read_dir(dir)
        .await
        .map_err(|e| LogError::io("list", dir, e))?;
    let mut numbers = Vec::new();
    for entry in entries {
        match files::parse_name(&entry.name) {
            Name::Segment(number) => numbers.push(number),
            Name::Free => files::remove(&dir.join(&entry.name)).await?,
            Name::Other => {}
        }
    }
    numbers.sort_unstable();
    let mut found = Vec::with_capacity(numbers.len());
    for number in numbers {
        found.push(identify(dir, number).await?);
    }
    Ok(found)
}

async fn identify(dir: &Path, number: u32) -> Result<Found, LogError> {
    let path = files::segment_path(dir, number);
    let mut file = files::open_to_read(&path).await?;
    let head = engine::take_buf(DATA_START as usize).map_err(|_| LogError::Busy)?;
    let (read, head) = file.read_at(head, 0).await;
    let read = read.map_err(|e| LogError::io("read", &path, e))?;
    let bad = |expected: &str| LogError::corrupt(number, 0, expected);
    if read < DATA_START as usize {
        return Err(bad("a whole segment header"));
    }
    let header = SegmentHeader::decode(&head).map_err(bad)?;
    if header.number != number {
        return Err(bad(&format!(
            "the header of segment {number}, not of {}",
            header.number
        )));
    }
    if file.opened_len() != header.bytes {
        let expected = format!(
            "{} bytes in the file, not {}",
            header.bytes,
            file.opened_len()
        );
        return Err(bad(&expected));
    }
    let seal = Seal::decode(&header, &head[SEAL_START as usize..]);
    if seal.is_none() {
        file = files::open_locked(&path).await?;
    }
    Ok(Found { header, seal, file })
}

/// A stretch of one segment in memory.
pub(crate) struct Window<'a> {
    segment: &'a Found,
    buf: Option<DmaBuf>,
    start: u64,
}

impl<'a> Window<'a> {
    pub(crate) fn new(segment: &'a Found) -> Window<'a> {
        Window {
            segment,
            buf: None,
            start: 0,
        }
    }

    pub(crate) fn held(&self, offset: u64, len: usize) -> Option<&[u8]> {
        let from = usize::try_from(offset.checked_sub(self.start)?).ok()?;
        self.buf.as_ref()?.get(from..from.checked_add(len)?)
    }

    /// Bytes of the segment; they end where the segment ends.
    async fn bytes(&mut self, offset: u64, len: usize) -> Result<&[u8], LogError> {
        let left = self.segment.header.bytes.saturating_sub(offset);
        let len = len.min(usize::try_from(left).unwrap_or(usize::MAX));
        if self.held(offset, len).is_none() {
            let number = self.segment.header.number;
            let wanted = left.min(BATCH_BYTES_LIMIT as u64) as usize;
            let buf = match self.buf.take() {
                Some(buf) => buf,
                None => engine::take_buf(BATCH_BYTES_LIMIT).map_err(|_| LogError::Busy)?,
            };
            let (read, slice) = self
                .segment
                .file
                .read_at(buf.slice(0..wanted), offset)
                .await;
            let path = self.segment.file.path();
            let read = read.map_err(|e| LogError::io("read", path, e))?;
            if read < wanted {
                return Err(LogError::corrupt(
                    number,
                    offset + read as u64,
                    "more bytes",
                ));
            }
            let mut buf = slice.into_inner();
            buf.set_len(wanted);
            self.buf = Some(buf);
            self.start = offset;
            engine::yield_if_needed().await;
        }
        Ok(self.held(offset, len).unwrap_or_default())
    }

    /// The valid batch at an offset, not past `end`; whether it belongs there is for the caller.
    pub(crate) async fn batch(
        &mut self,
        offset: u64,
        end: u64,
    ) -> Result<Option<BatchHeader>, LogError> {
        let header = self.segment.header;
        if offset + BLOCK as u64 > end {
            return Ok(None);
        }
        let head = self.bytes(offset, BLOCK).await?;
        let Some(batch) = BatchHeader::peek(&header, head) else {
            return Ok(None);
        };
        if offset + u64::from(batch.bytes) > end {
            return Ok(None);
        }
        let whole = self.bytes(offset, batch.bytes as usize).await?;
        Ok(BatchHeader::verify(whole).then_some(batch))
    }
}

struct Scanner<'a, F> {
    found: &'a [Found],
    wanted: Wanted,
    replay: F,
    scan: Scan,
}

/// Follows the chain through all segments, and replays.
pub(crate) async fn scan<F>(found: &[Found], wanted: Wanted, replay: F) -> Result<Scan, LogError>
where
    F: FnMut(Record<'_>) -> Result<(), LogError>,
{
    let scan = Scan {
        chain: Chain::START,
        tail: 0,
        offset: DATA_START,
        firsts: Vec::new(),
        missing_seals: Vec::new(),
        records: 0,
        torn_bytes: 0,
        clean: true,
        unproven: VecDeque::new(),
    };
    let mut scanner = Scanner {
        found,
        wanted,
        replay,
        scan,
    };
    scanner.run().await?;
    Ok(scanner.scan)
}

impl<F> Scanner<'_, F>
where
    F: FnMut(Record<'_>) -> Result<(), LogError>,
{
    async fn run(&mut self) -> Result<(), LogError> {
        let found = self.found;
        let open = found
            .iter()
            .position(|s| s.seal.is_none())
            .unwrap_or(found.len());
        if found.iter().skip(open).any(|s| s.seal.is_some()) {
            let number = found[open].header.number;
            return Err(LogError::corrupt(
                number,
                SEAL_START,
                "a seal, as a later segment has one",
            ));
        }
        let mut expected = 1;
        for (index, segment) in found.iter().enumerate() {
            let number = segment.header.number;
            if number != expected {
                if index > open {
                    return Err(LogError::corrupt(expected, 0, "the segment to exist"));
                }
                self.scan.chain.gap = true;
            }
            expected = number.saturating_add(1);
            if let Some(seal) = segment.seal {
                self.sealed(index, seal).await?;
            }
        }
        if open == found.len() {
            // A seal is written only when the next segment is in use.
            return Err(LogError::corrupt(expected, 0, "the segment to exist"));
        }
        self.follow(open).await?;
        if self.wanted.after.0 >= self.scan.chain.lsn {
            let expected = format!("record {}, which was durable", self.wanted.after.0);
            return Err(self.damage(expected));
        }
        Ok(())
    }

    fn damage(&self, expected: impl Into<String>) -> LogError {
        let number = self.found[self.scan.tail].header.number;
        LogError::corrupt(number, self.scan.offset, expected)
    }

    /// A complete segment: every byte up to its end must be right.
    async fn sealed(&mut self, index: usize, seal: Seal) -> Result<(), LogError> {
        let segment = &self.found[index];
        let number = segment.header.number;
        let chain = self.scan.chain;
        let joins = if chain.gap {
            seal.first >= chain.lsn
        } else {
            seal.first == chain.lsn
        };
        if !joins {
            let expected = format!("a seal that continues at record {}", chain.lsn);
            return Err(LogError::corrupt(number, SEAL_START, expected));
        }
        let after_seal = Chain {
            lsn: seal.last + 1,
            sequence: seal.sequence.saturating_add(1),
            incarnation: seal.incarnation,
            gap: false,
        };
        let skipped = number < self.wanted.first_segment || seal.last <= self.wanted.after.0;
        if !skipped {
            let end = u64::from(seal.end);
            let mut window = Window::new(segment);
            (self.scan.tail, self.scan.offset) = (index, DATA_START);
            while self.scan.offset < end {
                if !self.step(&mut window, index, end).await? {
                    let sequence = self.scan.chain.sequence;
                    return Err(self.damage(format!("batch {sequence} of a sealed segment")));
                }
            }
            if self.scan.chain.lsn != after_seal.lsn {
                return Err(self.damage(format!("records up to {}", seal.last)));
            }
            self.scan.unproven.clear();
        }
        self.scan.chain = after_seal;
        self.scan.clean = false;
        Ok(())
    }

    /// Takes the batch at the scan's place, when the chain wants it; false when it does not.
    async fn step(
        &mut self,
        window: &mut Window<'_>,
        index: usize,
        end: u64,
    ) -> Result<bool, LogError> {
        let offset = self.scan.offset;
        let Some(batch) = window.batch(offset, end).await? else {
            return Ok(false);
        };
        if !self.scan.chain.takes(&batch) {
            return Ok(false);
        }
        let number = window.segment.header.number;
        let whole = window.bytes(offset, batch.bytes as usize).await?;
        let (after, replay, records) =
            (self.wanted.after, &mut self.replay, &mut self.scan.records);
        let start = Position {
            segment: number,
            offset: offset as u32,
        };
        let shown = each_record(&batch, whole, start, |record| {
            if record.lsn <= after {
                return Ok(());
            }
            *records += 1;
            replay(record)
        });
        match shown {
            Ok(done) => done?,
            Err((at, expected)) => {
                return Err(LogError::corrupt(number, offset + at as u64, expected));
            }
        }
        let unproven = &mut self.scan.unproven;
        while unproven
            .front()
            .is_some_and(|first| first.sequence <= batch.durable)
        {
            unproven.pop_front();
        }
        unproven.push_back(Unproven {
            index,
            offset,
            bytes: batch.bytes,
            sequence: batch.sequence,
        });
        self.scan.chain.advance(&batch);
        self.scan.offset += u64::from(batch.bytes);
        self.scan.clean = batch.kind == BatchKind::Clean;
        Ok(true)
    }

    /// Follows the segments that are not sealed, to the end of the log.
    async fn follow(&mut self, open: usize) -> Result<(), LogError> {
        let was_gap = self.scan.chain.gap;
        (self.scan.tail, self.scan.offset) = (open, DATA_START);
        let mut any = false;
        for index in open..self.found.len() {
            let segment = &self.found[index];
            let end = segment.header.bytes;
            let mut window = Window::new(segment);
            let before = (self.scan.tail, self.scan.offset, self.scan.chain);
            (self.scan.tail, self.scan.offset) = (index, DATA_START);
            let mut first = None;
            loop {
                let lsn = self.scan.chain.lsn;
                let gap = self.scan.chain.gap;
                if !self.step(&mut window, index, end).await? {
                    break;
                }
                // Over a gap only the batch itself knows where the segment begins.
                first.get_or_insert(if gap {
                    self.first_after_gap(&mut window).await?
                } else {
                    lsn
                });
            }
            match first {
                Some(first) => {
                    if index > open {
                        self.leave(before, index);
                    }
                    self.scan.firsts.push((index, first));
                    any = true;
                }
                None if index == open => self.scan.firsts.push((index, self.scan.chain.lsn)),
                None => {
                    (self.scan.tail, self.scan.offset, self.scan.chain) = before;
                    break;
                }
            }
        }
        if was_gap && !any {
            // What came before was released, so this segment held durable batches.
            return Err(self.damage("the first batch after released segments"));
        }
        self.judge().await
    }

    async fn first_after_gap(&self, window: &mut Window<'_>) -> Result<u64, LogError> {
        let batch = window
            .batch(DATA_START, window.segment.header.bytes)
            .await?;
        Ok(batch.map_or(self.scan.chain.lsn, |batch| batch.first))
    }

    /// The chain went on in another segment: the one before is complete.
    fn leave(&mut self, before: (usize, u64, Chain), index: usize) {
        let (left, end, chain) = before;
        debug_assert_eq!(left + 1, index, "segments follow one another");
        let first = self
            .scan
            .firsts
            .last()
            .map_or(chain.lsn, |(_, first)| *first);
        let seal = Seal {
            end: end as u32,
            first,
            last: chain.lsn - 1,
            sequence: chain.sequence - 1,
            incarnation: chain.incarnation,
        };
        self.scan.missing_seals.push((left, seal));
    }

    /// Looks behind the end of the chain for a batch that proves that the end is damage. Also
    /// behind a clean mark: a later life may have gone on from there.
    async fn judge(&mut self) -> Result<(), LogError> {
        let chain = self.scan.chain;
        for index in self.scan.tail..self.found.len() {
            let segment = &self.found[index];
            let mut window = Window::new(segment);
            let start = if index == self.scan.tail {
                self.scan.offset
            } else {
                DATA_START
            };
            let mut at = start;
            while at < segment.header.bytes {
                let later = |batch: &BatchHeader| {
                    batch.sequence >= chain.sequence && batch.incarnation >= chain.incarnation
                };
                let head = BatchHeader::peek(&segment.header, window.bytes(at, BLOCK).await?);
                let Some(head) = head.filter(later) else {
                    at += BLOCK as u64;
                    continue;
                };
                let whole = window.batch(at, segment.header.bytes).await?.is_some();
                if whole && head.durable >= chain.sequence {
                    return Err(self.damage(format!("batch {}, which was durable", chain.sequence)));
                }
                self.scan.clean = false;
                if whole {
                    self.scan.torn_bytes += u64::from(head.bytes);
                    at += u64::from(head.bytes);
                } else {
                    self.scan.torn_bytes += BLOCK as u64;
                    at += BLOCK as u64;
                }
            }
        }
        Ok(())
    }
}

/// Makes sure of what nothing proves durable: the same bytes again, flushed.
///
/// Seals are written one after the other, each flushed before the next, so only the newest can be
/// in doubt.
pub(crate) async fn secure(found: &[Found], scan: &mut Scan) -> Result<(), LogError> {
    let newest = found
        .iter()
        .rev()
        .find_map(|segment| segment.seal.map(|seal| (segment, seal)));
    if let Some((segment, seal)) = newest {
        let path = segment.file.path();
        let writable = files::open_locked(path).await?;
        write_seal(&segment.header, &writable, &seal).await?;
    }
    while let Some(batch) = scan.unproven.pop_front() {
        let segment = &found[batch.index];
        let path = segment.file.path();
        let wanted = batch.bytes as usize;
        let buf = engine::take_buf(wanted).map_err(|_| LogError::Busy)?;
        let (read, slice) = segment
            .file
            .read_at(buf.slice(0..wanted), batch.offset)
            .await;
        let read = read.map_err(|e| LogError::io("read", path, e))?;
        let mut buf = slice.into_inner();
        buf.set_len(wanted);
        if read < wanted || !BatchHeader::verify(&buf) {
            let expected = format!("batch {} as it was just read", batch.sequence);
            return Err(LogError::corrupt(
                segment.header.number,
                batch.offset,
                expected,
            ));
        }
        let (done, _) = segment.file.write_then_datasync(buf, batch.offset).await;
        done.map_err(|e| LogError::io("write", path, e))?;
    }
    Ok(())
}

/// Writes a seal, durably.
pub(crate) async fn write_seal(
    header: &SegmentHeader,
    file: &File,
    seal: &Seal,
) -> Result<(), LogError> {
    let mut block = engine::take_buf(BLOCK).map_err(|_| LogError::Busy)?;
    block.fill(0);
    seal.encode(header, &mut block);
    let (done, _) = file.write_durable(block, SEAL_START).await;
    done.map_err(|e| LogError::io("write", file.path(), e))
}
