//! The one writer of the log: turns queued jobs into batches, one write and one sync each.
//!
//! It runs where the caller puts it: on its own thread in production, as a task of the simulation.
//! After a failed write or sync it is poisoned: it fails all later jobs and touches no file again.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use prost::Message as _;
use tokio::sync::mpsc;

use crate::codec::{EntryMessage, LogIdMessage, VoteMessage};
use crate::disk::{Disk, DiskFile as _};
use crate::types::{LogId, Vote};
use crate::wal::record::{
    BatchId, Kind, PAYLOAD_MAX, SEGMENT_HEADER, push_record, record_len, segment_header,
};
use crate::wal::state::{Pending, Place, State};
use crate::wal::{Jobs, Queued, StateMessage, WalOptions, segment_name};

/// Called once the job is durable, or has failed.
pub(crate) type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

/// What the writer is asked for.
pub(crate) enum Job {
    Append {
        entries: Vec<Pending>,
        done: Done,
    },
    Vote {
        vote: Vote,
        done: Done,
    },
    /// Up to where entries are known to be committed.
    Committed(LogId),
    Truncate {
        last: Option<LogId>,
        done: Done,
    },
    Purge(LogId),
    /// Writes what has not been worth a sync so far.
    Flush {
        done: Done,
    },
}

/// Names of files that wait to become segments.
pub(crate) const SPARE_PREFIX: &str = "spare-";
const SPARES_MAX: usize = 2;

/// What recovery found out for the writer.
pub(crate) struct Position {
    pub(crate) segment: u64,
    pub(crate) offset: u64,
    pub(crate) batch: u64,
    pub(crate) boot: u32,
    /// The highest entry of each segment, where it has any.
    pub(crate) highest: BTreeMap<u64, Option<u64>>,
    pub(crate) spares: Vec<String>,
}

/// Writes the log.
pub struct Writer<D: Disk> {
    disk: D,
    options: WalOptions,
    state: Arc<Mutex<State<D::File>>>,
    position: Position,
    file: Option<D::File>,
    buffer: Vec<u8>,
    purge_pending: Option<LogId>,
    /// As the disk has it, for the record that opens a segment.
    durable: StateMessage,
    spare_number: u64,
}

impl<D: Disk> Writer<D> {
    pub(crate) fn new(
        disk: D,
        options: WalOptions,
        state: Arc<Mutex<State<D::File>>>,
        position: Position,
        durable: StateMessage,
    ) -> Self {
        let file = lock(&state).files.get(&position.segment).cloned();
        Self {
            disk,
            options,
            state,
            position,
            file,
            buffer: Vec::new(),
            purge_pending: None,
            durable,
            spare_number: 0,
        }
    }

    /// Opens this run in the log: durable when it returns.
    pub(crate) fn open_run(&mut self) -> io::Result<()> {
        let len = record_len(self.durable.encoded_len());
        if self.needs_segment(len) {
            return self.roll(0);
        }
        self.begin();
        self.push(Kind::State, |this, out| this.durable.encode_raw(out));
        self.write()
    }

    /// Writes `jobs` in as few batches as fit the segments, and answers each.
    pub(crate) fn step(&mut self, jobs: &mut Vec<Job>) {
        let result = self.write_batch(jobs);
        if let Err(error) = &result {
            let mut state = lock(&self.state);
            if state.poison.is_none() {
                tracing::error!(%error, "the log cannot be written; this member stops");
                state.poison = Some(error.to_string());
            }
        }
        for job in jobs.drain(..) {
            if let Job::Append { done, .. }
            | Job::Vote { done, .. }
            | Job::Truncate { done, .. }
            | Job::Flush { done } = job
            {
                done(result.as_ref().copied().map_err(copy_error));
            }
        }
        if result.is_ok() {
            self.release_segments();
        }
    }

    fn write_batch(&mut self, jobs: &[Job]) -> io::Result<()> {
        if let Some(poison) = &lock(&self.state).poison {
            return Err(io::Error::other(format!("the log failed before: {poison}")));
        }
        let len = batch_len(jobs)?;
        if self.needs_segment(len) {
            self.roll(len)?;
        }
        self.begin();
        let mut places = Vec::new();
        for job in jobs {
            self.push_job(job, &mut places);
        }
        self.write()?;
        let mut state = lock(&self.state);
        for (index, ticket, place) in places {
            state.placed(index, ticket, place);
        }
        state.evict();
        Ok(())
    }

    fn push_job(&mut self, job: &Job, places: &mut Vec<(u64, u64, Place)>) {
        match job {
            Job::Append { entries, .. } => {
                for Pending { entry, ticket } in entries {
                    let offset = self.position.offset + self.buffer.len() as u64;
                    self.push(Kind::Entry, |_, out| {
                        EntryMessage::from(entry).encode_raw(out);
                    });
                    let len = self.position.offset + self.buffer.len() as u64 - offset;
                    let segment = self.position.segment;
                    let place = Place {
                        segment,
                        offset,
                        len: len as u32,
                    };
                    let index = entry.log_id.index();
                    places.push((index, *ticket, place));
                    let highest = self.position.highest.entry(segment).or_default();
                    *highest = (*highest).max(Some(index));
                }
            }
            Job::Vote { vote, .. } => {
                self.durable.vote = Some((*vote).into());
                self.push(Kind::Vote, |_, out| {
                    VoteMessage::from(*vote).encode_raw(out);
                });
            }
            Job::Committed(committed) => {
                self.durable.committed = Some((*committed).into());
                self.push(Kind::Committed, |_, out| {
                    LogIdMessage::from(*committed).encode_raw(out);
                });
            }
            Job::Truncate { last, .. } => {
                let last = last.map(LogIdMessage::from);
                self.push(Kind::Truncate, |_, out| {
                    if let Some(last) = last {
                        out.extend_from_slice(&last.encode_length_delimited_to_vec());
                    }
                });
            }
            Job::Purge(upto) => {
                self.durable.purged = Some((*upto).into());
                self.purge_pending = Some(*upto);
                self.push(Kind::Purge, |_, out| {
                    LogIdMessage::from(*upto).encode_raw(out);
                });
            }
            Job::Flush { .. } => {}
        }
    }

    fn begin(&mut self) {
        self.buffer.clear();
        self.position.batch += 1;
    }

    fn push(&mut self, kind: Kind, payload: impl FnOnce(&Self, &mut Vec<u8>)) {
        let mut buffer = std::mem::take(&mut self.buffer);
        let id = BatchId {
            boot: self.position.boot,
            number: self.position.batch,
            start: self.position.offset as u32,
        };
        push_record(&mut buffer, self.position.segment, id, kind, |out| {
            payload(self, out);
        });
        self.buffer = buffer;
    }

    fn write(&mut self) -> io::Result<()> {
        let Some(file) = &self.file else {
            return Err(io::Error::other("no segment is open"));
        };
        if !self.buffer.is_empty() {
            file.write_at(self.position.offset, &self.buffer)?;
            file.sync()?;
            self.position.offset += self.buffer.len() as u64;
        }
        Ok(())
    }

    fn needs_segment(&self, len: usize) -> bool {
        self.file.is_none() || self.position.offset + len as u64 > self.options.segment_bytes
    }

    /// Begins a segment with room for a batch of `len` bytes.
    fn roll(&mut self, len: usize) -> io::Result<()> {
        let segment = self.position.segment + 1;
        let previous_end = if self.file.is_some() {
            self.position.offset
        } else {
            0
        };
        let opening = SEGMENT_HEADER + record_len(self.durable.encoded_len());
        let size = self.options.segment_bytes.max((opening + len) as u64);
        let (name, file) = self.spare(size)?;
        file.write_at(0, &segment_header(segment, previous_end))?;
        file.sync()?;
        self.disk.rename(&name, &segment_name(segment))?;
        self.disk.sync()?;
        lock(&self.state).files.insert(segment, file.clone());
        self.file = Some(file);
        self.position.segment = segment;
        self.position.offset = SEGMENT_HEADER as u64;
        self.position.highest.insert(segment, None);
        self.begin();
        self.push(Kind::State, |this, out| this.durable.encode_raw(out));
        self.write()
    }

    /// A file of at least `size` bytes: a recycled one, or a new one written with zeros, so that
    /// later writes change no metadata.
    fn spare(&mut self, size: u64) -> io::Result<(String, D::File)> {
        if size == self.options.segment_bytes
            && let Some(name) = self.position.spares.pop()
        {
            let file = self.disk.open(&name)?;
            if file.size()? == size {
                return Ok((name, file));
            }
        }
        let name = self.next_spare_name();
        let file = self.disk.create(&name)?;
        let zeros = vec![0; 1 << 20];
        let mut at = 0;
        while at < size {
            let part = (size - at).min(zeros.len() as u64);
            file.write_at(at, &zeros[..part as usize])?;
            at += part;
        }
        Ok((name, file))
    }

    fn next_spare_name(&mut self) -> String {
        self.spare_number += 1;
        format!("{SPARE_PREFIX}{}-{}", self.position.boot, self.spare_number)
    }

    /// Gives up the oldest segments whose entries are all purged. A failure here loses no data and
    /// is tried again at the next purge.
    fn release_segments(&mut self) {
        let Some(upto) = self.purge_pending else {
            return;
        };
        while let Some((&segment, &highest)) = self.position.highest.first_key_value() {
            if segment == self.position.segment || highest > Some(upto.index()) {
                break;
            }
            let name = segment_name(segment);
            let released = if self.position.spares.len() < SPARES_MAX {
                let spare = self.next_spare_name();
                self.disk
                    .rename(&name, &spare)
                    .map(|()| self.position.spares.push(spare))
            } else {
                self.disk.remove(&name)
            };
            if let Err(error) = released {
                tracing::warn!(%error, name, "a purged segment stays");
                return;
            }
            lock(&self.state).files.remove(&segment);
            self.position.highest.remove(&segment);
        }
        self.purge_pending = None;
    }

    /// Serves `jobs` on this thread until all senders are gone.
    pub fn run(mut self, jobs: Jobs) {
        let Jobs(mut jobs) = jobs;
        while let Some(first) = jobs.blocking_recv() {
            let mut batch = self.drain(first, &mut jobs);
            self.step(&mut batch);
        }
    }

    /// Serves `jobs` as a task until all senders are gone, waiting `pause()` before each batch: the
    /// time that the disk takes.
    pub async fn serve<P, F>(mut self, jobs: Jobs, mut pause: P)
    where
        P: FnMut() -> F,
        F: Future<Output = ()>,
    {
        let Jobs(mut jobs) = jobs;
        while let Some(first) = jobs.recv().await {
            pause().await;
            let mut batch = self.drain(first, &mut jobs);
            self.step(&mut batch);
        }
    }

    /// A batch: of what is said about commits, the newest word only.
    pub(super) fn drain(&self, first: Queued, jobs: &mut mpsc::Receiver<Queued>) -> Vec<Job> {
        let mut batch = Vec::new();
        let mut committed = None;
        let mut bytes = 0;
        let mut next = Some(first);
        while let Some(queued) = next {
            bytes += job_len(&queued.job);
            batch.push(queued.job);
            committed = queued.committed.or(committed);
            let is_full = bytes >= self.options.batch_bytes_max;
            next = if is_full { None } else { jobs.try_recv().ok() };
        }
        batch.extend(committed.map(Job::Committed));
        batch
    }
}

fn job_len(job: &Job) -> usize {
    match job {
        Job::Append { entries, .. } => entries
            .iter()
            .map(|pending| record_len(EntryMessage::from(&pending.entry).encoded_len()))
            .sum(),
        Job::Flush { .. } => 0,
        _ => record_len(64),
    }
}

fn batch_len(jobs: &[Job]) -> io::Result<usize> {
    for job in jobs {
        let Job::Append { entries, .. } = job else {
            continue;
        };
        for Pending { entry, .. } in entries {
            let len = EntryMessage::from(entry).encoded_len();
            if len > PAYLOAD_MAX {
                let what = format!("entry {} has {len} bytes, over {PAYLOAD_MAX}", entry.log_id);
                return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
            }
        }
    }
    Ok(jobs.iter().map(job_len).sum())
}

fn copy_error(error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), error.to_string())
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
