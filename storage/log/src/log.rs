//! The log's public face, and how it is opened.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::rc::Rc;

use crate::commit::{Claim, Commit};
use crate::config::LogConfig;
use crate::error::LogError;
use crate::files::{self, Source};
use crate::format::{DATA_START, SegmentHeader, record_span};
use crate::recovery::{self, Found, Scan, Wanted};
use crate::state::{Segment, Staged, Start, State, Tail};
use crate::types::{
    Appended, LogMetrics, Lsn, Position, Record, RecordBuf, Recovered, SegmentInfo,
};

/// An open log. It belongs to the shard that opened it.
///
/// Dropping it without [`Log::close`] is like a crash for what was not acknowledged yet: batches
/// that were dispatched may be durable.
pub struct Log {
    commit: Rc<Commit>,
}

impl Drop for Log {
    fn drop(&mut self) {
        self.commit.end();
    }
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log")
            .field("last_durable", &self.last_durable())
            .finish_non_exhaustive()
    }
}

impl Log {
    /// Opens the log in `dir`, or creates it. Shows every intact record with a number past `after`
    /// to `replay`, in order; segments below `first_segment_needed` are neither replayed nor kept.
    ///
    /// # Errors
    /// [`LogError::Corrupt`] when something that was durable is damaged or missing, also when
    /// record `after` itself is not there. [`LogError::Locked`] when the log is open elsewhere.
    /// [`LogError::Full`] only when the log is new. What `replay` returns ends the opening.
    pub async fn open(
        dir: &Path,
        config: LogConfig,
        after: Lsn,
        first_segment_needed: u32,
        replay: impl FnMut(Record<'_>) -> Result<(), LogError>,
    ) -> Result<(Rc<Log>, Recovered), LogError> {
        config.validate()?;
        files::make_dir(dir).await?;
        let lock = files::lock_dir(dir).await?;
        let mut found = recovery::find(dir).await?;
        if found.is_empty() {
            if after > Lsn(0) {
                return Err(LogError::corrupt(
                    1,
                    0,
                    format!("record {}, which was durable", after.0),
                ));
            }
            found.push(first_segment(dir, &config).await?);
        }
        let wanted = Wanted {
            after,
            first_segment: first_segment_needed,
        };
        let mut scan = recovery::scan(&found, wanted, replay).await?;
        recovery::secure(&found, &mut scan).await?;
        for (index, seal) in &scan.missing_seals {
            recovery::write_seal(&found[*index].header, &found[*index].file, seal).await?;
            found[*index].seal = Some(*seal);
        }
        let recovered = Recovered {
            last: Lsn(scan.chain.lsn - 1),
            records: scan.records,
            torn_bytes: scan.torn_bytes,
            clean: scan.clean,
            incarnation: scan.chain.incarnation,
        };
        let needless = needless(&found, &scan, first_segment_needed);
        let start = start(dir, &config, found, &scan).await?;
        let commit = Rc::new(Commit::new(dir.to_owned(), config, lock, State::new(start)));
        for number in needless {
            commit.release(number).await?;
        }
        commit.begin().await?;
        Ok((Rc::new(Log { commit }), recovered))
    }

    /// Appends a record, its payload the parts one after the other, and waits until it is durable.
    /// Records are acknowledged in the order of their numbers.
    ///
    /// Not cancel-safe: dropped early, the record may be there or not.
    ///
    /// # Errors
    /// [`LogError::TooLarge`], [`LogError::Busy`], [`LogError::Full`], [`LogError::Closed`]: the
    /// record is not in the log. [`LogError::Poisoned`]: it may be, after a restart.
    pub async fn append(&self, kind: u8, parts: &[&[u8]]) -> Result<Appended, LogError> {
        self.commit.append(kind, parts, Claim::Ordinary).await
    }

    /// As [`Log::append`], and may begin the segments of the reserve: for records that give space
    /// back in the end.
    ///
    /// # Errors
    /// As [`Log::append`].
    pub async fn append_reserved(&self, kind: u8, parts: &[&[u8]]) -> Result<Appended, LogError> {
        self.commit.append(kind, parts, Claim::Reserved).await
    }

    /// Reads a record back, with at least `headroom` bytes before its payload in the buffer, and
    /// checks it. `len` is what [`Appended`] or [`Record`] said.
    ///
    /// # Errors
    /// [`LogError::NoSegment`] when the segment was released, [`LogError::Corrupt`] when the bytes
    /// are not the record, [`LogError::TooLarge`] when headroom and record pass 2 MiB,
    /// [`LogError::Busy`] when the shard has no buffer left.
    pub async fn read(
        &self,
        position: Position,
        len: u32,
        headroom: usize,
    ) -> Result<RecordBuf, LogError> {
        self.commit.read(position, len, headroom).await
    }

    /// Shows the records of a complete segment in order, from the batch at `from` on (0 is the
    /// first) until batches of at least `bytes` were shown. Returns where the next call goes on,
    /// `None` at the segment's end. Bounded by one read of 1 MiB at a time; cancel-safe.
    ///
    /// # Errors
    /// [`LogError::NoSegment`] when the segment was released, [`LogError::NotSealed`],
    /// [`LogError::Corrupt`] when a batch is not as it was written (nothing of it is shown),
    /// [`LogError::Busy`] when the shard has no buffer left.
    pub async fn walk(
        &self,
        segment: u32,
        from: u64,
        bytes: u64,
        visit: impl FnMut(Record<'_>),
    ) -> Result<Option<u64>, LogError> {
        self.commit.walk(segment, from, bytes, visit).await
    }

    /// The last record that is durable, with all before it.
    pub fn last_durable(&self) -> Lsn {
        self.commit.last_durable()
    }

    /// Whether the log says on disk that it was opened. It does before the first record of this life;
    /// before that, only a full disk keeps it from it.
    pub fn is_marked(&self) -> bool {
        self.commit.state.borrow().marked
    }

    /// Why the log takes nothing more, when a write or flush has failed.
    pub fn poisoned(&self) -> Option<String> {
        self.commit.state.borrow().poisoned.clone()
    }

    /// Bytes of batches that fit into what is ready: the tail and the segments behind it. No file
    /// has to be made for them.
    pub fn room(&self) -> u64 {
        self.commit.state.borrow().room()
    }

    /// The segments that hold records and the one that takes the next, in order.
    pub fn segments(&self) -> Vec<SegmentInfo> {
        self.commit.segments()
    }

    /// Gives a segment up: the caller vouches that nothing in it is needed, now or after a restart.
    /// Its file is recycled, or removed when enough spares are there.
    ///
    /// # Errors
    /// [`LogError::NoSegment`], or [`LogError::NotSealed`] when it is one of the newest.
    pub async fn release(&self, segment: u32) -> Result<(), LogError> {
        self.commit.release(segment).await
    }

    /// Refuses new records, waits for those that were taken, and marks the log as closed in order.
    /// Reads go on. Closing twice is fine: both wait for the one end. It goes on when the future is
    /// dropped.
    ///
    /// # Errors
    /// [`LogError::Poisoned`], or [`LogError::Busy`] when the shard had no task or buffer left: there
    /// is no mark, and the next opening looks for a torn tail.
    pub async fn close(&self) -> Result<(), LogError> {
        self.commit.close().await
    }

    /// Counters since the log was opened.
    pub fn metrics(&self) -> LogMetrics {
        self.commit.metrics()
    }

    /// Bytes that a record with a payload of `len` bytes takes in the log.
    pub fn record_span(len: usize) -> usize {
        record_span(len)
    }
}

fn new_header(number: u32, config: &LogConfig) -> SegmentHeader {
    SegmentHeader {
        number,
        salt: engine::random(),
        bytes: config.segment_bytes,
    }
}

async fn first_segment(dir: &Path, config: &LogConfig) -> Result<Found, LogError> {
    let header = new_header(1, config);
    let file = files::stage(dir, header, Source::Fresh).await?;
    Ok(Found {
        header,
        seal: None,
        file,
    })
}

/// Sealed segments that the caller does not need.
fn needless(found: &[Found], scan: &Scan, first_needed: u32) -> Vec<u32> {
    let durable = if scan.offset == DATA_START {
        scan.tail.saturating_sub(1)
    } else {
        scan.tail
    };
    let sealed = found
        .iter()
        .take(durable)
        .filter(|segment| segment.seal.is_some());
    sealed
        .map(|segment| segment.header.number)
        .filter(|number| *number < first_needed)
        .collect()
}

/// Sorts what was found into segments with records, the tail, and those staged for later.
async fn start(
    dir: &Path,
    config: &LogConfig,
    found: Vec<Found>,
    scan: &Scan,
) -> Result<Start, LogError> {
    let firsts: BTreeMap<usize, u64> = scan.firsts.iter().copied().collect();
    let mut segments = BTreeMap::new();
    let mut staged = VecDeque::new();
    let mut tail = None;
    let mut useless = false;
    for (index, Found { header, seal, file }) in found.into_iter().enumerate() {
        let number = header.number;
        if index > scan.tail {
            // A gap among the staged would end their use: the first that is too small ends it.
            useless |= !config.fits(header.bytes);
            if useless {
                files::remove(&files::segment_path(dir, number)).await?;
            } else {
                staged.push_back(Staged { header, file });
            }
            continue;
        }
        let first = seal
            .map(|seal| seal.first)
            .or_else(|| firsts.get(&index).copied());
        let first = first.unwrap_or(scan.chain.lsn);
        let end = seal.map_or(scan.offset, |seal| u64::from(seal.end));
        segments.insert(
            number,
            Segment {
                first,
                end,
                sealed: seal.is_some(),
                bytes: header.bytes,
            },
        );
        if index == scan.tail {
            tail = Some(Tail {
                segment: Staged { header, file },
                offset: scan.offset,
            });
        }
    }
    if useless {
        files::sync_dir(dir).await?;
    }
    let tail = tail.ok_or_else(|| LogError::corrupt(1, 0, "a segment to exist"))?;
    Ok(Start {
        segments,
        staged,
        tail,
        next_lsn: scan.chain.lsn,
        next_sequence: scan.chain.sequence,
        incarnation: scan.chain.incarnation,
    })
}
