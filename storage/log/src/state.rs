//! What a log knows, without I/O: the tail, the batch that gathers, the batches in flight and the
//! order in which they are acknowledged.
//!
//! Invariants:
//! - LSNs are given when a record is gathered, sequences and places when its batch is dispatched;
//!   both in the same order.
//! - A batch is acknowledged when it and every batch before it are durable.
//! - Once poisoned, nothing is acknowledged any more, not even what the device says it has: a
//!   failed flush may have taken earlier writes with it.
//! - No method waits, and none is called with the state borrowed across a wait.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use engine::fs::File;
use engine::sync::SemaphorePermit;
use engine::{DmaBuf, Nanos};

use crate::ack::Ack;
use crate::error::LogError;
use crate::format::{
    BATCH_HEADER, BLOCK, BatchHeader, BatchKind, DATA_START, Seal, SegmentHeader, batch_span,
    encode_record,
};
use crate::types::{Appended, LogMetrics, Lsn, Position, SegmentInfo};

/// A segment with a header, ready for use.
#[derive(Clone)]
pub(crate) struct Staged {
    pub(crate) header: SegmentHeader,
    pub(crate) file: Rc<File>,
}

/// The segment that takes the next batch.
pub(crate) struct Tail {
    pub(crate) segment: Staged,
    /// Where the next batch starts.
    pub(crate) offset: u64,
}

/// A segment that holds records, or is the tail.
pub(crate) struct Segment {
    pub(crate) first: u64,
    pub(crate) end: u64,
    pub(crate) sealed: bool,
    /// Length of its file.
    pub(crate) bytes: u64,
}

/// Records on their way into a batch.
pub(crate) struct Gathering {
    buf: DmaBuf,
    used: usize,
    first: u64,
    records: u32,
    ack: Rc<Ack>,
    permits: Vec<SemaphorePermit>,
}

/// What an appender waits for.
pub(crate) struct Ticket {
    ack: Rc<Ack>,
    lsn: Lsn,
    within: u32,
    len: u32,
}

impl Ticket {
    pub(crate) async fn wait(self) -> Result<Appended, LogError> {
        let start = self.ack.wait().await?;
        let position = Position {
            offset: start.offset + self.within,
            ..start
        };
        Ok(Appended {
            lsn: self.lsn,
            position,
            len: self.len,
        })
    }
}

/// A batch that has its place and its checksum.
pub(crate) struct Batch {
    pub(crate) buf: DmaBuf,
    pub(crate) file: Rc<File>,
    pub(crate) offset: u64,
    pub(crate) sequence: u64,
}

struct InFlight {
    sequence: u64,
    start: Position,
    bytes: u32,
    records: u32,
    next_lsn: u64,
    since: Nanos,
    done: bool,
    ack: Rc<Ack>,
}

/// A complete segment whose seal is not written yet.
pub(crate) struct PendingSeal {
    pub(crate) segment: Staged,
    pub(crate) seal: Seal,
}

/// Whether the log takes records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Open,
    Closed,
}

/// All of it.
pub(crate) struct State {
    pub(crate) segments: BTreeMap<u32, Segment>,
    pub(crate) staged: VecDeque<Staged>,
    pub(crate) next_number: u32,
    pub(crate) tail: Tail,
    /// The LSN of the next record to be gathered.
    pub(crate) next_lsn: u64,
    pub(crate) next_sequence: u64,
    pub(crate) durable_sequence: u64,
    pub(crate) durable_lsn: u64,
    /// The newest segment that holds a durable batch: it and later ones are not released.
    pub(crate) durable_segment: u32,
    /// This life's; the open mark makes it durable.
    pub(crate) incarnation: u32,
    /// That of the newest batch that has a place.
    pub(crate) placed_incarnation: u32,
    /// Whether the open mark is durable.
    pub(crate) marked: bool,
    pub(crate) gathering: Option<Gathering>,
    in_flight: VecDeque<InFlight>,
    pub(crate) seals: VecDeque<PendingSeal>,
    pub(crate) phase: Phase,
    pub(crate) poisoned: Option<String>,
    pub(crate) metrics: LogMetrics,
}

/// What [`State`] starts from.
pub(crate) struct Start {
    pub(crate) segments: BTreeMap<u32, Segment>,
    pub(crate) staged: VecDeque<Staged>,
    pub(crate) tail: Tail,
    pub(crate) next_lsn: u64,
    pub(crate) next_sequence: u64,
    /// Of the last batch that was found.
    pub(crate) incarnation: u32,
}

impl State {
    pub(crate) fn new(start: Start) -> State {
        let tail = start.tail.segment.header.number;
        let newest = start
            .staged
            .back()
            .map_or(tail, |staged| staged.header.number);
        let empty = start.tail.offset == DATA_START;
        State {
            segments: start.segments,
            staged: start.staged,
            next_number: newest + 1,
            durable_segment: if empty { tail.saturating_sub(1) } else { tail },
            tail: start.tail,
            next_lsn: start.next_lsn,
            next_sequence: start.next_sequence,
            durable_sequence: start.next_sequence - 1,
            durable_lsn: start.next_lsn - 1,
            incarnation: start.incarnation.saturating_add(1),
            placed_incarnation: start.incarnation,
            marked: false,
            gathering: None,
            in_flight: VecDeque::new(),
            seals: VecDeque::new(),
            phase: Phase::Open,
            poisoned: None,
            metrics: LogMetrics::default(),
        }
    }

    /// Whether records are taken.
    pub(crate) fn check(&self) -> Result<(), LogError> {
        match (&self.poisoned, self.phase) {
            (Some(cause), _) => Err(LogError::Poisoned {
                cause: cause.clone(),
            }),
            (None, Phase::Closed) => Err(LogError::Closed),
            (None, Phase::Open) => Ok(()),
        }
    }

    /// How much of the tail's segment is in use.
    pub(crate) fn tail_used_percent(&self) -> u64 {
        self.tail.offset * 100 / self.tail.segment.header.bytes
    }

    /// Bytes of batches that fit into the tail and what is staged.
    pub(crate) fn room(&self) -> u64 {
        let gathered = self.gathering.as_ref().map_or(0, |gathering| {
            batch_span(gathering.used - BATCH_HEADER) as u64
        });
        let end = self.tail.segment.header.bytes - BLOCK as u64;
        let tail = end.saturating_sub(self.tail.offset + gathered);
        let staged = self.staged.iter();
        let staged = staged.map(|staged| staged.header.bytes - BLOCK as u64 - DATA_START);
        tail + staged.sum::<u64>()
    }

    /// Bytes of the records that gather.
    pub(crate) fn gathered_bytes(&self) -> usize {
        let gathering = self.gathering.as_ref();
        gathering.map_or(0, |gathering| gathering.used - BATCH_HEADER)
    }

    /// Whether a record of `span` bytes, in what gathers now, would use a segment of the `reserve`.
    pub(crate) fn eats_reserve(&self, span: usize, reserve: usize) -> bool {
        let end = self.tail.offset + batch_span(self.gathered_bytes() + span) as u64;
        let fits = end <= self.tail.segment.header.bytes - BLOCK as u64;
        self.staged.len() < reserve + usize::from(!fits)
    }

    /// Writes a record into the batch that gathers. `spare` makes the buffer of a new one.
    pub(crate) fn gather(
        &mut self,
        kind: u8,
        parts: &[&[u8]],
        span: usize,
        permit: SemaphorePermit,
        spare: impl FnOnce() -> Result<DmaBuf, LogError>,
    ) -> Result<Ticket, LogError> {
        let next = self.next_lsn;
        let gathering = match &mut self.gathering {
            Some(gathering) => gathering,
            empty => {
                let mut buf = spare()?;
                buf.set_len(buf.capacity());
                empty.insert(Gathering {
                    buf,
                    used: BATCH_HEADER,
                    first: next,
                    records: 0,
                    ack: Rc::default(),
                    permits: Vec::new(),
                })
            }
        };
        let within = gathering.used;
        encode_record(&mut gathering.buf[within..within + span], next, kind, parts);
        gathering.used += span;
        gathering.records += 1;
        gathering.permits.push(permit);
        self.next_lsn += 1;
        let ack = Rc::clone(&gathering.ack);
        Ok(Ticket {
            ack,
            lsn: Lsn(next),
            within: within as u32,
            len: span as u32,
        })
    }

    /// Takes the gathered records as a batch. `Err` when the tail is full and nothing is staged.
    pub(crate) fn dispatch(&mut self, now: Nanos) -> Option<Result<Batch, NeedsSegment>> {
        let gathering = self.gathering.as_ref()?;
        let bytes = batch_span(gathering.used - BATCH_HEADER);
        let limit = self.tail.segment.header.bytes - BLOCK as u64;
        if !self.make_room(bytes as u64, limit, gathering.first) {
            return Some(Err(NeedsSegment));
        }
        let Gathering {
            mut buf,
            used,
            first,
            records,
            ack,
            permits,
        } = self.gathering.take()?;
        buf[used..bytes].fill(0);
        buf.set_len(bytes);
        let header = self.header(BatchKind::Records, bytes, first, records, used);
        let batch = self.place(buf, header, ack, now);
        // Others gather the next batch from here on.
        drop(permits);
        Some(Ok(batch))
    }

    /// A batch without records. `Err` when the tail is full and nothing is staged.
    pub(crate) fn mark(
        &mut self,
        kind: BatchKind,
        mut buf: DmaBuf,
        ack: Rc<Ack>,
        now: Nanos,
    ) -> Result<Batch, NeedsSegment> {
        // Marks come when nothing gathers, or before it: the next LSN is that of the first record
        // that gathers.
        let first = self
            .gathering
            .as_ref()
            .map_or(self.next_lsn, |gathering| gathering.first);
        let reserve = if kind == BatchKind::Clean {
            0
        } else {
            BLOCK as u64
        };
        let limit = self.tail.segment.header.bytes - reserve;
        if !self.make_room(BLOCK as u64, limit, first) {
            return Err(NeedsSegment);
        }
        buf.set_len(BLOCK);
        buf.fill(0);
        let header = self.header(kind, BLOCK, first, 0, BATCH_HEADER);
        Ok(self.place(buf, header, ack, now))
    }

    fn header(
        &self,
        kind: BatchKind,
        bytes: usize,
        first: u64,
        records: u32,
        used: usize,
    ) -> BatchHeader {
        BatchHeader {
            bytes: bytes as u32,
            sequence: self.next_sequence,
            durable: self.durable_sequence,
            first,
            incarnation: self.incarnation,
            records,
            used: used as u32,
            kind,
        }
    }

    /// Moves on to the next segment when a batch does not fit; false when there is none.
    fn make_room(&mut self, bytes: u64, limit: u64, first: u64) -> bool {
        if self.tail.offset + bytes <= limit {
            return true;
        }
        let Some(next) = self.staged.pop_front() else {
            return false;
        };
        let SegmentHeader { number, bytes, .. } = next.header;
        let old = std::mem::replace(
            &mut self.tail,
            Tail {
                segment: next,
                offset: DATA_START,
            },
        );
        let began = self
            .segments
            .get(&old.segment.header.number)
            .map_or(first, |s| s.first);
        let seal = Seal {
            end: old.offset as u32,
            first: began,
            last: first - 1,
            sequence: self.next_sequence - 1,
            incarnation: self.placed_incarnation,
        };
        self.seals.push_back(PendingSeal {
            segment: old.segment,
            seal,
        });
        self.segments.insert(
            number,
            Segment {
                first,
                end: DATA_START,
                sealed: false,
                bytes,
            },
        );
        true
    }

    fn place(&mut self, mut buf: DmaBuf, header: BatchHeader, ack: Rc<Ack>, now: Nanos) -> Batch {
        let Tail { segment, offset } = &mut self.tail;
        let place = *offset;
        header.encode(&segment.header, &mut buf);
        *offset += u64::from(header.bytes);
        if let Some(info) = self.segments.get_mut(&segment.header.number) {
            info.end = *offset;
        }
        self.in_flight.push_back(InFlight {
            sequence: header.sequence,
            start: Position {
                segment: segment.header.number,
                offset: place as u32,
            },
            bytes: header.bytes,
            records: header.records,
            next_lsn: header.next(),
            since: now,
            done: false,
            ack,
        });
        self.next_sequence += 1;
        self.placed_incarnation = header.incarnation;
        let peak = &mut self.metrics.in_flight_peak;
        *peak = (*peak).max(self.in_flight.len() as u64);
        Batch {
            buf,
            file: Rc::clone(&segment.file),
            offset: place,
            sequence: header.sequence,
        }
    }

    /// A batch is on the disk. Returns the acknowledgements that are due now, in order.
    pub(crate) fn complete(&mut self, sequence: u64, now: Nanos) -> Vec<(Rc<Ack>, Position)> {
        let mut due = Vec::new();
        if self.poisoned.is_some() {
            return due;
        }
        if let Some(batch) = self.in_flight.iter_mut().find(|b| b.sequence == sequence) {
            batch.done = true;
            let micros = now.since(batch.since).as_micros();
            self.metrics
                .note_flush(u64::try_from(micros).unwrap_or(u64::MAX));
        }
        while let Some(batch) = self.in_flight.pop_front_if(|batch| batch.done) {
            self.durable_sequence = batch.sequence;
            self.durable_lsn = batch.next_lsn - 1;
            self.durable_segment = batch.start.segment;
            self.metrics.batches += 1;
            self.metrics.appends += u64::from(batch.records);
            self.metrics.bytes += u64::from(batch.bytes);
            due.push((batch.ack, batch.start));
        }
        due
    }

    /// The first failure stands. Returns whom to tell.
    pub(crate) fn poison(&mut self, cause: &str) -> Vec<Rc<Ack>> {
        if self.poisoned.is_some() {
            return Vec::new();
        }
        self.poisoned = Some(cause.to_owned());
        self.metrics.poisoned = true;
        let mut told: Vec<Rc<Ack>> = self.in_flight.drain(..).map(|batch| batch.ack).collect();
        told.extend(self.gathering.take().map(|gathering| gathering.ack));
        told
    }

    /// Gives up the gathered records: they had no place yet, so their numbers are free again.
    /// Returns whom to tell, and how many records.
    pub(crate) fn refuse(&mut self) -> Option<(Rc<Ack>, u64)> {
        let gathering = self.gathering.take()?;
        self.next_lsn = gathering.first;
        Some((gathering.ack, u64::from(gathering.records)))
    }

    /// The next seal whose segment is all durable.
    pub(crate) fn seal_due(&self) -> Option<(Staged, Seal)> {
        let next = self.seals.front()?;
        let due = self.poisoned.is_none() && next.seal.sequence <= self.durable_sequence;
        due.then(|| (next.segment.clone(), next.seal))
    }

    /// The seal that was due is durable.
    pub(crate) fn sealed(&mut self) {
        let Some(done) = self.seals.pop_front() else {
            return;
        };
        if let Some(segment) = self.segments.get_mut(&done.segment.header.number) {
            segment.sealed = true;
        }
    }

    /// Whether a segment exists and may be released.
    pub(crate) fn check_release(&self, number: u32) -> Result<(), LogError> {
        if let Some(cause) = &self.poisoned {
            return Err(LogError::Poisoned {
                cause: cause.clone(),
            });
        }
        match self.segments.get(&number) {
            None => Err(LogError::NoSegment { segment: number }),
            Some(segment) if segment.sealed && number < self.durable_segment => Ok(()),
            Some(_) => Err(LogError::NotSealed { segment: number }),
        }
    }

    pub(crate) fn infos(&self) -> Vec<SegmentInfo> {
        let info = |(number, segment): (&u32, &Segment)| SegmentInfo {
            number: *number,
            first: Lsn(segment.first),
            bytes: segment.end,
            sealed: segment.sealed,
        };
        self.segments.iter().map(info).collect()
    }
}

/// The tail has no room, and no segment is staged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NeedsSegment;
