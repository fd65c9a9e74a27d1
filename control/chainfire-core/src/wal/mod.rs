//! The write-ahead log: the vote and the entries of Raft, durable when acknowledged.
//!
//! Appends return once the entries can be read; they are acknowledged by a callback after the one
//! sync that covers their batch. While a sync is under way the next batch gathers.
//!
//! Invariants:
//! - An acknowledged entry or vote is there after any crash, with all that was queued before it.
//! - An unacknowledged one is there whole or not at all, and nothing after it without it.
//! - Damage of what was durable is an error that names file and offset; a torn tail is cut.
//! - A failed write or sync ends all writing for good; reads go on.
//!
//! It does not know what entries mean, and deletes a segment only when all its entries were purged.

#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod record;
mod recover;
mod state;
#[cfg(test)]
mod tests;
mod writer;

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use tokio::sync::mpsc;

use crate::codec::{self, EntryMessage, LogIdMessage, VoteMessage};
use crate::disk::{Disk, DiskFile};
use crate::error::Result;
use crate::types::{Entry, LogId, Vote};
use crate::wal::record::{Kind, parse_record};
use crate::wal::recover::Recovered;
pub(crate) use crate::wal::state::position;
use crate::wal::state::{Located, Place, State};
pub use crate::wal::writer::Writer;
pub(crate) use crate::wal::writer::lock;
use crate::wal::writer::{Done, Job};

/// Sizes of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalOptions {
    /// Bytes of a segment, at least 64 KiB and below 4 GiB.
    pub segment_bytes: u64,
    /// A batch takes no more jobs once it has this many bytes.
    pub batch_bytes_max: usize,
    /// Bytes of entries kept in memory besides those on their way to the disk.
    pub cache_bytes_max: usize,
    /// Jobs that may wait.
    pub queue_max: usize,
}

impl Default for WalOptions {
    fn default() -> Self {
        Self {
            segment_bytes: 16 << 20,
            batch_bytes_max: 4 << 20,
            cache_bytes_max: 32 << 20,
            queue_max: 4096,
        }
    }
}

/// Everything but the entries, as a record.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub(crate) struct StateMessage {
    #[prost(message, optional, tag = "1")]
    vote: Option<VoteMessage>,
    #[prost(message, optional, tag = "2")]
    committed: Option<LogIdMessage>,
    #[prost(message, optional, tag = "3")]
    purged: Option<LogIdMessage>,
    #[prost(uint32, tag = "4")]
    boot: u32,
}

fn segment_name(segment: u64) -> String {
    format!("{segment:016x}.wal")
}

fn parse_segment_name(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".wal")?;
    let number = u64::from_str_radix(digits, 16).ok()?;
    (segment_name(number) == name).then_some(number)
}

/// A log that has been opened, and what must run for it.
pub struct Opened<D: Disk> {
    /// The handle.
    pub wal: Wal<D::File>,
    /// Writes what the handle queues: see [`Writer::run`] and [`Writer::serve`].
    pub writer: Writer<D>,
    /// What the handle queues.
    pub jobs: Jobs,
}

impl<D: Disk> Opened<D> {
    /// Writes a vote and one entry without a running writer. Entries after `applied` stay; a log
    /// that ends before it, as after a snapshot, begins anew behind it.
    pub(crate) fn write_now(
        &mut self,
        applied: Option<LogId>,
        vote: Vote,
        entry: Entry,
    ) -> io::Result<()> {
        let results: Arc<Mutex<Vec<io::Result<()>>>> = Arc::default();
        let done = || -> Done {
            let results = results.clone();
            Box::new(move |result| lock(&results).push(result))
        };
        let mut jobs = Vec::new();
        {
            let mut state = lock(&self.wal.state);
            if let Some(applied) = applied.filter(|&applied| state.last() < Some(applied)) {
                state.purge(applied);
                jobs.push(Job::Purge(applied));
            }
            let entries = vec![state.push(entry, None).map_err(io::Error::other)?];
            jobs.push(Job::Append {
                entries,
                done: done(),
            });
            jobs.push(Job::Vote { vote, done: done() });
        }
        self.writer.step(&mut jobs);
        let results = std::mem::take(&mut *lock(&results));
        results.into_iter().collect()
    }
}

/// A job, and up to where entries were known to be committed when it was queued, where that is news.
/// It rides along: alone it is worth neither a sync nor waking the writer.
struct Queued {
    committed: Option<LogId>,
    job: Job,
}

/// The queue between the handles and the writer.
pub struct Jobs(mpsc::Receiver<Queued>);

/// A handle on the log; clones are the same log.
#[derive(Debug)]
pub struct Wal<F> {
    state: Arc<Mutex<State<F>>>,
    jobs: mpsc::Sender<Queued>,
    boot: u32,
}

impl<F> Clone for Wal<F> {
    fn clone(&self) -> Self {
        Self {
            state: self.state.clone(),
            jobs: self.jobs.clone(),
            boot: self.boot,
        }
    }
}

/// Opens the log on `disk`, making one where there is none, and counts this run in it.
///
/// # Errors
/// Damage, or a disk that fails.
pub fn open<D: Disk>(disk: D, options: WalOptions) -> Result<Opened<D>> {
    assert!(
        (64 << 10..1 << 32).contains(&options.segment_bytes),
        "a segment has at least 64 KiB and less than 4 GiB"
    );
    let Recovered {
        state,
        writer,
        boot,
    } = recover::recover(disk, options)?;
    let (sender, jobs) = mpsc::channel(options.queue_max);
    Ok(Opened {
        wal: Wal {
            state,
            jobs: sender,
            boot,
        },
        writer,
        jobs: Jobs(jobs),
    })
}

fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the log's writer has ended")
}

impl<F: DiskFile> Wal<F> {
    /// The number of this run; no run before had it.
    pub(crate) fn boot(&self) -> u32 {
        self.boot
    }

    /// The last purged position and the last position.
    pub fn bounds(&self) -> (Option<LogId>, Option<LogId>) {
        let state = lock(&self.state);
        (state.purged, state.last())
    }

    /// The vote as last made durable.
    pub fn vote(&self) -> Option<Vote> {
        lock(&self.state).vote
    }

    /// Up to where entries were known to be committed, as last noted.
    pub fn committed(&self) -> Option<LogId> {
        lock(&self.state).committed
    }

    /// Why the log takes no more writes, if so.
    pub fn failure(&self) -> Option<String> {
        lock(&self.state).poison.clone()
    }

    /// Segments there are.
    #[cfg(test)]
    pub(crate) fn segments(&self) -> usize {
        lock(&self.state).files.len()
    }

    async fn send(&self, job: Job) -> io::Result<()> {
        let committed = lock(&self.state).committed_news.take();
        let queued = Queued { committed, job };
        self.jobs.send(queued).await.map_err(|_| closed())
    }

    /// Adds entries: readable when this returns, durable when `done` is called with success.
    ///
    /// # Errors
    /// Entries that do not follow the last one; a writer that has ended.
    pub async fn append(
        &self,
        entries: impl IntoIterator<Item = Entry> + Send,
        done: Done,
    ) -> io::Result<()> {
        let pushed = {
            let mut state = lock(&self.state);
            let entries = entries.into_iter();
            entries
                .map(|entry| state.push(entry, None))
                .collect::<std::result::Result<_, _>>()
        };
        let entries = pushed.map_err(io::Error::other)?;
        self.send(Job::Append { entries, done }).await
    }

    /// Makes the vote durable.
    pub async fn save_vote(&self, vote: Vote) -> io::Result<()> {
        self.durably(|done| Job::Vote { vote, done }).await?;
        lock(&self.state).vote = Some(vote);
        Ok(())
    }

    /// Makes all that was queued before durable.
    pub async fn flush(&self) -> io::Result<()> {
        self.durably(|done| Job::Flush { done }).await
    }

    async fn durably(&self, job: impl FnOnce(Done) -> Job) -> io::Result<()> {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let done: Done = Box::new(move |result| {
            // Whoever waited may be gone; the write counts all the same.
            let _ = sender.send(result);
        });
        self.send(job(done)).await?;
        receiver.await.map_err(|_| closed())?
    }

    /// Notes up to where entries are committed; becomes durable with the next batch.
    pub fn save_committed(&self, committed: Option<LogId>) {
        let mut state = lock(&self.state);
        state.committed = committed;
        state.committed_news = committed;
    }

    /// Drops the entries after `last`, durably: a state machine may be replaced right after, and
    /// must not meet the dropped entries again.
    pub async fn truncate_after(&self, last: Option<LogId>) -> io::Result<()> {
        lock(&self.state).truncate_after(last);
        self.durably(|done| Job::Truncate { last, done }).await
    }

    /// Drops the entries up to `upto`.
    pub async fn purge(&self, upto: LogId) -> io::Result<()> {
        lock(&self.state).purge(upto);
        self.send(Job::Purge(upto)).await
    }

    /// The part of `range` that has at most `bytes_max` bytes, but at least one entry.
    pub fn limited(&self, range: Range<u64>, bytes_max: usize) -> Range<u64> {
        lock(&self.state).limited(range, bytes_max)
    }

    /// The entries of `range` that are in the log.
    ///
    /// # Errors
    /// Damage, or a disk that fails.
    pub fn read(&self, range: Range<u64>) -> io::Result<Vec<Entry>> {
        let located: Vec<(u64, Located)> = {
            let state = lock(&self.state);
            let have = state.range();
            let range = range.start.max(have.start)..range.end.min(have.end);
            range
                .filter_map(|index| Some((index, state.locate(index)?)))
                .collect()
        };
        let mut entries = Vec::with_capacity(located.len());
        for (index, located) in located {
            let entry = match located {
                Located::Cached(entry) => entry,
                Located::OnDisk(place) => match self.read_place(place) {
                    Ok(entry) if entry.log_id.index() == index => entry,
                    // Purged since, and its segment with it.
                    _ if lock(&self.state).range().start > index => continue,
                    Ok(entry) => {
                        let what = format!("{} where entry {index} was written", entry.log_id);
                        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
                    }
                    Err(error) => return Err(error),
                },
            };
            entries.push(entry);
        }
        Ok(entries)
    }

    fn read_place(&self, place: Place) -> io::Result<Entry> {
        let name = segment_name(place.segment);
        let invalid = |what: String| {
            let what = format!("{name} at {}: {what}", place.offset);
            io::Error::new(io::ErrorKind::InvalidData, what)
        };
        let file = lock(&self.state).files.get(&place.segment).cloned();
        let file = file.ok_or_else(|| invalid("the segment is gone".to_owned()))?;
        let mut bytes = vec![0; place.len as usize];
        file.read_at(place.offset, &mut bytes)?;
        let record = parse_record(&bytes, 0, place.segment)
            .filter(|record| record.kind == Kind::Entry)
            .ok_or_else(|| invalid("the record is damaged".to_owned()))?;
        codec::decode::<EntryMessage>("entry", &bytes[record.payload])
            .and_then(Entry::try_from)
            .map_err(|error| invalid(error.to_string()))
    }
}
