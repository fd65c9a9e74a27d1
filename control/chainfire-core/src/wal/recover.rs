//! Opening a log: reads all segments in order and rebuilds what they say.
//!
//! Only the last segment may end in a torn batch, which is cut. Everything else that cannot be read
//! is damage, and an error that names file and offset.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use crate::codec::{self, EntryMessage, LogIdMessage, VoteMessage};
use crate::disk::{Disk, DiskFile as _};
use crate::error::{Error, Result};
use crate::types::Entry;
use crate::wal::record::{
    ALIGNMENT, BatchId, Kind, Record, SEGMENT_HEADER, parse_record, parse_segment_header,
};
use crate::wal::state::{Place, State};
use crate::wal::writer::{Position, SPARE_PREFIX, Writer};
use crate::wal::{StateMessage, WalOptions, parse_segment_name, segment_name};

/// Batches are numbered below this, as the next run counts on.
const BATCH_END: u64 = 1 << 63;

struct Replay<F> {
    state: State<F>,
    durable: StateMessage,
    batch: BatchId,
    highest: BTreeMap<u64, Option<u64>>,
}

/// A segment while it is read.
struct Segment<'a> {
    number: u64,
    name: &'a str,
    bytes: &'a [u8],
}

/// A log as it was found, open for this run.
pub(crate) struct Recovered<D: Disk> {
    pub(crate) state: Arc<Mutex<State<D::File>>>,
    pub(crate) writer: Writer<D>,
    pub(crate) boot: u32,
}

pub(crate) fn recover<D: Disk>(disk: D, options: WalOptions) -> Result<Recovered<D>> {
    let names = disk
        .list()
        .map_err(|error| Error::storage("listing the log", error))?;
    let segments: BTreeMap<u64, String> = names
        .iter()
        .filter_map(|name| Some((parse_segment_name(name)?, name.clone())))
        .collect();
    let mut replay = Replay {
        state: State::new(options.cache_bytes_max),
        durable: StateMessage::default(),
        batch: BatchId::default(),
        highest: BTreeMap::new(),
    };
    let end = replay.segments(&disk, &segments)?;
    let last = segments.last_key_value().map(|(&number, _)| number);
    replay.check_purged(segments.first_key_value().map(|(_, name)| name.as_str()))?;
    let boot = replay.next_boot(segments.last_key_value().map(|(_, name)| name.as_str()))?;
    replay.durable.boot = boot;
    let position = Position {
        segment: last.unwrap_or(0),
        offset: end,
        batch: replay.batch.number,
        boot,
        highest: replay.highest,
        spares: names
            .into_iter()
            .filter(|name| name.starts_with(SPARE_PREFIX))
            .collect(),
    };
    replay.state.evict();
    let state = Arc::new(Mutex::new(replay.state));
    let mut writer = Writer::new(disk, options, state.clone(), position, replay.durable);
    writer
        .open_run()
        .map_err(|error| Error::storage("opening the log for a new run", error))?;
    Ok(Recovered {
        state,
        writer,
        boot,
    })
}

fn read_segment<D: Disk>(
    disk: &D,
    replay: &mut Replay<D::File>,
    number: u64,
    name: &str,
) -> Result<(Vec<u8>, u64)> {
    let reading = |error| Error::storage(format!("reading {name}"), error);
    let file = disk.open(name).map_err(reading)?;
    let len = file.size().map_err(reading)?;
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
    file.read_at(0, &mut bytes).map_err(reading)?;
    let previous_end = parse_segment_header(&bytes, number)
        .ok_or_else(|| Error::corrupt(name, 0, "not the header of this segment"))?;
    replay.state.files.insert(number, file);
    replay.highest.insert(number, None);
    Ok((bytes, previous_end))
}

impl<F: Clone> Replay<F> {
    /// Replays all segments; where the last one ends.
    fn segments<D: Disk<File = F>>(
        &mut self,
        disk: &D,
        segments: &BTreeMap<u64, String>,
    ) -> Result<u64> {
        let mut end = SEGMENT_HEADER as u64;
        let mut previous: Option<(u64, u64)> = None;
        let last = segments.last_key_value().map(|(&number, _)| number);
        for (&number, name) in segments {
            let (bytes, previous_end) = read_segment(disk, self, number, name)?;
            if let Some((before, before_end)) = previous
                && (number != before + 1 || previous_end != before_end)
            {
                let what = format!(
                    "the segment before it should be {} and end at {previous_end}, but {} ends at \
                     {before_end}",
                    segment_name(number - 1),
                    segment_name(before),
                );
                return Err(Error::corrupt(name, 16, what));
            }
            let segment = Segment {
                number,
                name,
                bytes: &bytes,
            };
            let segment_end = self.segment(&segment)?;
            if Some(number) == last {
                self.check_tail(&segment, segment_end)?;
            }
            end = segment_end as u64;
            previous = Some((number, end));
        }
        Ok(end)
    }

    /// Replays a segment's records; where they end.
    fn segment(&mut self, segment: &Segment<'_>) -> Result<usize> {
        let mut at = SEGMENT_HEADER;
        self.batch.start = 0;
        while let Some(record) = parse_record(segment.bytes, at, segment.number) {
            let continues = record.batch == self.batch;
            let begins = record.batch.after(&self.batch) && record.batch.start as usize == at;
            if !continues && !begins {
                break;
            }
            self.batch = record.batch;
            self.record(segment, at, &record)?;
            at = record.end;
        }
        Ok(at)
    }

    /// Refuses to cut the last segment at `at` where something shows that it was durable.
    fn check_tail(&self, segment: &Segment<'_>, at: usize) -> Result<()> {
        let mut next = at;
        while next + ALIGNMENT <= segment.bytes.len() {
            if let Some(record) = parse_record(segment.bytes, next, segment.number)
                && record.batch.start as usize > at
                && !self.batch.after(&record.batch)
            {
                let what = format!(
                    "an unreadable record before batch {}, which begins at {}",
                    record.batch.number, record.batch.start
                );
                return Err(Error::corrupt(segment.name, at as u64, what));
            }
            next += ALIGNMENT;
        }
        Ok(())
    }

    fn record(&mut self, segment: &Segment<'_>, at: usize, record: &Record) -> Result<()> {
        let payload = &segment.bytes[record.payload.clone()];
        let corrupt = |what: String| Error::corrupt(segment.name, at as u64, what);
        let undecodable = |error: codec::DecodeError| corrupt(error.to_string());
        match record.kind {
            Kind::State => {
                let state: StateMessage =
                    codec::decode("log state", payload).map_err(undecodable)?;
                self.durable = state;
                self.state.vote = codec::optional(state.vote).map_err(undecodable)?;
                self.state.committed = codec::optional(state.committed).map_err(undecodable)?;
                if let Some(purged) = codec::optional(state.purged).map_err(undecodable)? {
                    self.state.purge(purged);
                }
            }
            Kind::Entry => {
                let entry: EntryMessage = codec::decode("entry", payload).map_err(undecodable)?;
                let entry: Entry = entry.try_into().map_err(undecodable)?;
                let index = entry.log_id.index();
                let len = (record.end - at) as u32;
                let place = Place {
                    segment: segment.number,
                    offset: at as u64,
                    len,
                };
                self.state.push(entry, Some(place)).map_err(corrupt)?;
                let highest = self.highest.entry(segment.number).or_default();
                *highest = (*highest).max(Some(index));
            }
            Kind::Vote => {
                let vote: VoteMessage = codec::decode("vote", payload).map_err(undecodable)?;
                self.durable.vote = Some(vote);
                self.state.vote = Some(vote.try_into().map_err(undecodable)?);
            }
            Kind::Committed => {
                let id: LogIdMessage = codec::decode("committed", payload).map_err(undecodable)?;
                self.durable.committed = Some(id);
                self.state.committed = Some(id.try_into().map_err(undecodable)?);
            }
            Kind::Truncate => {
                let last = codec::decode_log_id(payload).map_err(undecodable)?;
                self.state.truncate_after(last);
            }
            Kind::Purge => {
                let id: LogIdMessage = codec::decode("purge", payload).map_err(undecodable)?;
                self.durable.purged = Some(id);
                self.state.purge(id.try_into().map_err(undecodable)?);
            }
        }
        Ok(())
    }

    /// The number of this run. It and its batches must come after all there are: else nothing that
    /// this run writes would be read again.
    fn next_boot(&self, last_segment: Option<&str>) -> Result<u32> {
        let boot = self.durable.boot.max(self.batch.boot).checked_add(1);
        if let Some(boot) = boot
            && self.batch.number < BATCH_END
        {
            return Ok(boot);
        }
        let what = format!(
            "no run can follow run {} with batch {}",
            self.durable.boot.max(self.batch.boot),
            self.batch.number
        );
        Err(Error::corrupt(last_segment.unwrap_or("the log"), 0, what))
    }

    /// The first entry there is must be the first one not purged.
    fn check_purged(&self, first_segment: Option<&str>) -> Result<()> {
        let next = self.state.purged.map_or(0, |id| id.index() + 1);
        let range = self.state.range();
        if range.is_empty() || range.start == next {
            return Ok(());
        }
        let what = format!("the first entry is {}, but {next} is missing", range.start);
        Err(Error::corrupt(first_segment.unwrap_or("the log"), 0, what))
    }
}
