//! The log against a model, through crashes, damage and failing disks.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::FutureExt as _;
use prost::Message as _;

use super::*;
use crate::error::ErrorKind;
use crate::sim::disk::{Random, SimDisk};
use crate::types::{Payload, Proposal, RequestId};

const SMALL: WalOptions = WalOptions {
    segment_bytes: 64 << 10,
    batch_bytes_max: 16 << 10,
    cache_bytes_max: 8 << 10,
    queue_max: 1024,
};

fn entry(term: u64, index: u64, bytes: usize) -> Entry {
    let request = RequestId {
        node: 1,
        boot: 1,
        number: index,
    };
    let command = Bytes::from(vec![(term ^ index) as u8; bytes]);
    let payload = Payload::Normal(Proposal { request, command });
    Entry {
        log_id: position(term, index),
        payload,
    }
}

/// A log whose writer runs when the test says so.
struct Driven {
    wal: Wal<crate::sim::disk::SimFile>,
    writer: Writer<SimDisk>,
    jobs: mpsc::Receiver<Queued>,
}

impl Driven {
    fn open(disk: &SimDisk) -> Self {
        let Opened {
            wal,
            writer,
            jobs: Jobs(jobs),
        } = open(disk.reopened(), SMALL).unwrap();
        Self { wal, writer, jobs }
    }

    /// Writes what is queued, as one step.
    fn step(&mut self) {
        while let Ok(first) = self.jobs.try_recv() {
            let mut batch = self.writer.drain(first, &mut self.jobs);
            self.writer.step(&mut batch);
        }
    }

    /// Runs what waits for the writer, and the writer.
    fn durably<T>(&mut self, act: impl Future<Output = T>) -> T {
        let mut act = std::pin::pin!(act);
        assert!(act.as_mut().now_or_never().is_none());
        self.step();
        act.now_or_never().expect("the writer answers each job")
    }

    fn append(&mut self, entries: Vec<Entry>, acknowledged: &Arc<AtomicU64>) {
        let last = entries.last().unwrap().log_id.index() + 1;
        let acknowledged = acknowledged.clone();
        let done: Done = Box::new(move |result| {
            if result.is_ok() {
                acknowledged.store(last, Ordering::Relaxed);
            }
        });
        self.wal
            .append(entries, done)
            .now_or_never()
            .unwrap()
            .unwrap();
    }
}

fn indexes(entries: &[Entry]) -> Vec<(u64, u64)> {
    entries
        .iter()
        .map(|e| (**e.log_id.committed_leader_id(), e.log_id.index()))
        .collect()
}

#[test]
fn an_appended_entry_is_readable_before_it_is_durable_and_one_sync_covers_many() {
    let disk = SimDisk::new();
    let mut log = Driven::open(&disk);
    let acknowledged = Arc::new(AtomicU64::new(0));
    for index in 0..50 {
        log.append(vec![entry(1, index, 100)], &acknowledged);
    }
    assert_eq!(log.wal.read(0..50).unwrap().len(), 50);
    assert_eq!(acknowledged.load(Ordering::Relaxed), 0);
    let before = disk.syncs();
    log.step();
    assert_eq!(acknowledged.load(Ordering::Relaxed), 50);
    assert_eq!(disk.syncs() - before, 1);
}

#[test]
fn what_is_committed_wakes_no_writer_and_is_durable_with_the_next_entry() {
    let disk = SimDisk::new();
    let mut log = Driven::open(&disk);
    let acknowledged = Arc::new(AtomicU64::new(0));
    log.append(vec![entry(1, 0, 10)], &acknowledged);
    log.step();
    log.wal.save_committed(Some(position(1, 0)));
    assert!(log.jobs.is_empty());
    log.append(vec![entry(1, 1, 10)], &acknowledged);
    log.step();
    let log = Driven::open(&disk);
    assert_eq!(log.wal.committed(), Some(position(1, 0)));
}

#[test]
fn entries_that_left_the_cache_are_read_from_the_disk() {
    let disk = SimDisk::new();
    let mut log = Driven::open(&disk);
    let acknowledged = Arc::new(AtomicU64::new(0));
    for index in 0..200 {
        log.append(vec![entry(1, index, 1000)], &acknowledged);
        log.step();
    }
    assert!(log.wal.segments() > 2);
    let entries = log.wal.read(0..200).unwrap();
    assert_eq!(
        entries,
        (0..200)
            .map(|index| entry(1, index, 1000))
            .collect::<Vec<_>>()
    );
    assert_eq!(log.wal.limited(10..100, 5000), 10..14);
}

#[test]
fn a_hole_is_refused() {
    let disk = SimDisk::new();
    let mut log = Driven::open(&disk);
    log.append(vec![entry(1, 0, 10)], &Arc::default());
    let appended = log
        .wal
        .append(vec![entry(1, 2, 10)], Box::new(|_| {}))
        .now_or_never()
        .unwrap();
    assert!(appended.is_err());
}

#[test]
fn purged_segments_are_recycled_and_their_old_records_stay_dead() {
    let disk = SimDisk::new();
    let mut log = Driven::open(&disk);
    let acknowledged = Arc::new(AtomicU64::new(0));
    let mut random = Random::new(3);
    for index in 0..1000 {
        log.append(vec![entry(1, index, 1000)], &acknowledged);
        log.step();
        if index % 50 == 49 {
            log.wal
                .purge(position(1, index - 20))
                .now_or_never()
                .unwrap()
                .unwrap();
            log.step();
            assert!(log.wal.segments() <= 3, "{} segments", log.wal.segments());
            disk.crash(&mut random);
            log = Driven::open(&disk);
            assert_eq!(
                log.wal.bounds(),
                (Some(position(1, index - 20)), Some(position(1, index)))
            );
            assert_eq!(log.wal.read(0..2000).unwrap().len(), 20);
        }
    }
    let names = disk.reopened().list().unwrap();
    assert!(names.len() <= 6, "{names:?}");
}

#[test]
fn a_failed_sync_or_write_or_a_full_disk_ends_writing_and_not_reading() {
    for fault in [
        SimDisk::fail_next_sync,
        SimDisk::fail_next_write,
        SimDisk::fill,
    ] {
        let disk = SimDisk::new();
        let mut log = Driven::open(&disk);
        let acknowledged = Arc::new(AtomicU64::new(0));
        log.append(vec![entry(1, 0, 10)], &acknowledged);
        log.step();
        fault(&disk);
        log.append(vec![entry(1, 1, 10)], &acknowledged);
        log.step();
        log.append(vec![entry(1, 2, 10)], &acknowledged);
        log.step();
        assert_eq!(acknowledged.load(Ordering::Relaxed), 1);
        assert!(log.wal.failure().is_some());
        assert_eq!(log.wal.read(0..3).unwrap().len(), 3);
        disk.crash(&mut Random::new(1));
        let log = Driven::open(&disk);
        assert_eq!(log.wal.read(0..1).unwrap(), vec![entry(1, 0, 10)]);
    }
}

#[test]
fn damage_of_what_was_durable_is_an_error_with_file_and_offset() {
    let disk = SimDisk::new();
    let mut log = Driven::open(&disk);
    for index in 0..20 {
        log.append(vec![entry(1, index, 100)], &Arc::default());
        log.step();
    }
    drop(log);
    let name = segment_name(1);
    let file = disk.reopened().open(&name).unwrap();
    let mut bytes = vec![0; file.size().unwrap() as usize];
    file.read_at(0, &mut bytes).unwrap();
    let mut at = record::SEGMENT_HEADER;
    let mut records = Vec::new();
    while let Some(record) = parse_record(&bytes, at, 1) {
        records.push(at..record.end);
        at = record.end;
    }
    let durable_for_sure = records.len() - 1;
    for record in &records[..durable_for_sure] {
        disk.damage(&name, record.start + 20, 0x40);
        let error = open(disk.reopened(), SMALL).err().expect("damage is seen");
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        let expected = format!("{name} is damaged at offset {}", record.start);
        assert!(error.to_string().contains(&expected), "{error}");
        disk.damage(&name, record.start + 20, 0x40);
    }
    disk.damage(&name, 9, 1);
    assert_eq!(
        open(disk.reopened(), SMALL).err().unwrap().kind(),
        ErrorKind::Corrupt
    );
    disk.damage(&name, 9, 1);
    assert!(open(disk.reopened(), SMALL).is_ok());
}

/// A log of one segment with these records, each a batch.
fn written(records: &[(record::BatchId, Kind, Vec<u8>)]) -> SimDisk {
    let mut bytes = record::segment_header(1, 0).to_vec();
    for (batch, kind, payload) in records {
        let start = bytes.len() as u32;
        let batch = record::BatchId { start, ..*batch };
        record::push_record(&mut bytes, 1, batch, *kind, |out| {
            out.extend_from_slice(payload);
        });
    }
    let disk = SimDisk::new();
    let file = disk.create(&segment_name(1)).unwrap();
    file.write_at(0, &bytes).unwrap();
    disk
}

fn refusal(disk: &SimDisk) -> String {
    let error = open(disk.reopened(), SMALL).err().expect("it is refused");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    error.to_string()
}

#[test]
fn a_log_that_no_run_could_follow_is_refused() {
    let batch = |boot, number| record::BatchId {
        boot,
        number,
        start: 0,
    };
    let vote = VoteMessage::from(Vote::new(1, 1)).encode_to_vec();
    for last in [batch(u32::MAX, 2), batch(2, 1 << 63)] {
        let disk = written(&[
            (batch(1, 1), Kind::State, Vec::new()),
            (last, Kind::Vote, vote.clone()),
        ]);
        let what = refusal(&disk);
        assert!(what.contains("no run can follow"), "{what}");
    }
}

#[test]
fn what_the_next_run_writes_is_read_again_whatever_run_the_state_names() {
    let batch = record::BatchId {
        boot: 9,
        number: 1,
        start: 0,
    };
    // Without a boot in it.
    let disk = written(&[(batch, Kind::State, Vec::new())]);
    let mut log = Driven::open(&disk);
    log.append(vec![entry(1, 0, 10)], &Arc::default());
    log.step();
    let log = Driven::open(&disk);
    assert_eq!(log.wal.read(0..1).unwrap(), vec![entry(1, 0, 10)]);
}

#[test]
fn a_position_that_cannot_be_counted_on_from_is_refused() {
    let batch = record::BatchId {
        boot: 1,
        number: 1,
        start: 0,
    };
    for (kind, payload) in [
        (Kind::Purge, LogIdMessage::from(position(1, u64::MAX))),
        (Kind::Committed, LogIdMessage::from(position(1 << 63, 1))),
    ] {
        let what = refusal(&written(&[(batch, kind, payload.encode_to_vec())]));
        assert!(what.contains("below 2^63"), "{what}");
    }
}

/// What must be there after a crash, and what may be.
#[derive(Default)]
struct Model {
    /// By index from `first`: terms.
    terms: Vec<u64>,
    first: u64,
    /// Entries below this index were acknowledged in their present form.
    acknowledged: Arc<AtomicU64>,
    vote: Option<Vote>,
}

impl Model {
    fn next(&self) -> u64 {
        self.first + self.terms.len() as u64
    }

    fn last(&self) -> Option<LogId> {
        let term = self.terms.last()?;
        Some(position(*term, self.next() - 1))
    }

    /// Checks a reopened log, and takes from it what a crash left open.
    fn check(&mut self, log: &Driven, seed: u64) {
        let (purged, last) = log.wal.bounds();
        let first = purged.map_or(0, |id| id.index() + 1);
        let entries = log.wal.read(0..u64::MAX).unwrap();
        let found = indexes(&entries);
        assert!(first <= self.first, "seed {seed}: purged too much");
        let acknowledged = self.acknowledged.load(Ordering::Relaxed);
        let end = last.map_or(0, |id| id.index() + 1);
        assert!(
            end >= acknowledged,
            "seed {seed}: {end} ends before {acknowledged}"
        );
        for (term, index) in found {
            if index >= self.first && index < acknowledged {
                let expected = self.terms[(index - self.first) as usize];
                assert_eq!(term, expected, "seed {seed}: term of {index}");
            }
        }
        assert_eq!(log.wal.vote(), self.vote, "seed {seed}: vote");
        self.first = first;
        self.terms = indexes(&entries)
            .into_iter()
            .map(|(term, _)| term)
            .collect();
        self.acknowledged = Arc::new(AtomicU64::new(end));
    }
}

fn random_step(log: &mut Driven, model: &mut Model, random: &mut Random, term: &mut u64) {
    match random.below(20) {
        0..10 => {
            let count = 1 + random.below(5);
            let size = random.below(2000) as usize;
            let next = model.next();
            let entries = (next..next + count)
                .map(|index| entry(*term, index, size))
                .collect();
            model.terms.extend((0..count).map(|_| *term));
            log.append(entries, &model.acknowledged);
        }
        10..15 => log.step(),
        15 => {
            *term += 1;
            let vote = Vote::new(*term, 1 + random.below(3));
            let wal = log.wal.clone();
            log.durably(wal.save_vote(vote)).unwrap();
            model.vote = Some(vote);
        }
        16 if model.terms.len() > 2 => {
            let keep = 1 + random.below(model.terms.len() as u64 - 1) as usize;
            model.terms.truncate(keep);
            let acknowledged = model.acknowledged.load(Ordering::Relaxed).min(model.next());
            // Appends that were queued before may still be acknowledged, but not for this model.
            model.acknowledged = Arc::new(AtomicU64::new(acknowledged));
            *term += 1;
            let wal = log.wal.clone();
            log.durably(wal.truncate_after(model.last())).unwrap();
        }
        17 if model.terms.len() > 4 => {
            log.step();
            let drop = 1 + random.below(model.terms.len() as u64 / 2) as usize;
            let upto = position(model.terms[drop - 1], model.first + drop as u64 - 1);
            model.terms.drain(..drop);
            model.first += drop as u64;
            log.wal.purge(upto).now_or_never().unwrap().unwrap();
        }
        _ => log.wal.save_committed(model.last()),
    }
}

#[test]
fn crashes_keep_all_that_was_acknowledged() {
    for seed in 0..300 {
        let mut random = Random::new(seed);
        let disk = SimDisk::new();
        let mut model = Model::default();
        let mut term = 1;
        let mut log = Driven::open(&disk);
        for _ in 0..4 {
            for _ in 0..60 {
                random_step(&mut log, &mut model, &mut random, &mut term);
            }
            disk.crash(&mut random);
            log = Driven::open(&disk);
            model.check(&log, seed);
        }
    }
}
