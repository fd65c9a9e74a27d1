//! Crashes at random points, three lives in a row, under the simulator.
//!
//! Fault model. What may happen: power is lost at any moment; then every 512-byte sector that was
//! not flushed, and every write in flight, is on the disk in its old or any newer version, each on
//! its own; names that were not synced are there or not. The process may also end alone, its writes
//! in flight done or not, its unflushed ones visible until power is lost later. Any write or flush
//! may answer EIO, after which the data under it may be lost though it stays readable.
//!
//! What must survive: every record that was acknowledged, byte for byte, in order, its number and
//! place unchanged, however many crashes follow. A record that was not acknowledged is there whole
//! or not at all, and never without all before it. Numbers are dense. A log that crashed opens
//! again, without help, and takes records; a log that met EIO is poisoned and opens after a restart.

#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

mod support;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use engine::Rng;
use segment_log::{FlushMode, Log, LogConfig, LogError, Lsn};
use support::{Seen, World, for_seeds, open, payload, small};

/// What the test knows of the log.
#[derive(Default)]
struct Model {
    /// Acknowledged records by number.
    acked: BTreeMap<u64, Seen>,
    /// Payloads that were handed to append, by their own id.
    sent: BTreeMap<u64, Vec<u8>>,
    next_id: u64,
    /// Set when the log refused a record for a reason that is no part of the test.
    surprise: Option<String>,
    /// Numbers below this were released.
    released: u64,
}

type Shared = Rc<RefCell<Model>>;

/// One appender: as many records as it can, noting each that is acknowledged.
async fn appender(log: Rc<Log>, model: Shared, seed: u64) {
    loop {
        let (id, bytes) = {
            let mut model = model.borrow_mut();
            let id = model.next_id;
            model.next_id += 1;
            let bytes = payload(seed, id, 12 << 10);
            model.sent.insert(id, bytes.clone());
            (id, bytes)
        };
        let kind = id as u8;
        let (head, tail) = bytes.split_at(bytes.len() / 2);
        match log.append(kind, &[head, tail]).await {
            Ok(done) => {
                let seen = Seen {
                    lsn: done.lsn.0,
                    kind,
                    payload: bytes,
                    position: done.position,
                    len: done.len,
                };
                let mut model = model.borrow_mut();
                assert!(log.last_durable() >= done.lsn, "acknowledged means durable");
                assert!(
                    model.acked.insert(done.lsn.0, seen).is_none(),
                    "a number was used twice"
                );
            }
            Err(LogError::Poisoned { .. }) => return,
            Err(other) => {
                model.borrow_mut().surprise = Some(other.to_string());
                return;
            }
        }
    }
}

/// Releases a sealed segment now and then, as a store would.
async fn releaser(log: Rc<Log>, model: Shared, every: Duration) {
    loop {
        engine::sleep(every).await;
        let segments = log.segments();
        let [oldest, next, ..] = &segments[..] else {
            continue;
        };
        if !oldest.sealed {
            continue;
        }
        // From here on they may be gone, whether or not the call returns.
        model.borrow_mut().released = next.first.0;
        match log.release(oldest.number).await {
            Ok(()) | Err(LogError::NotSealed { .. } | LogError::Poisoned { .. }) => {}
            // EIO on a name or a spare is no damage to what is in the log.
            Err(LogError::Io { .. }) => return,
            Err(other) => model.borrow_mut().surprise = Some(other.to_string()),
        }
    }
}

/// Compares what a restart replays with what the test knows, and takes it over.
fn check(seen: &[Seen], model: &Shared, what: &str) {
    let mut model = model.borrow_mut();
    for pair in seen.windows(2) {
        assert_eq!(pair[0].lsn + 1, pair[1].lsn, "{what}: numbers are dense");
    }
    let found: BTreeMap<u64, &Seen> = seen.iter().map(|seen| (seen.lsn, seen)).collect();
    for (lsn, acked) in model.acked.range(model.released..) {
        let there = found
            .get(lsn)
            .unwrap_or_else(|| panic!("{what}: record {lsn} is lost"));
        assert_eq!(*there, acked, "{what}: record {lsn} changed");
    }
    for seen in seen {
        let id = u64::from_le_bytes(*seen.payload.first_chunk().expect("an id"));
        let sent = model
            .sent
            .get(&id)
            .unwrap_or_else(|| panic!("{what}: {id} from nowhere"));
        assert_eq!(
            sent, &seen.payload,
            "{what}: record {} is not what was sent",
            seen.lsn
        );
    }
    // What was replayed is the log now: it must stay, acknowledged or not.
    for seen in seen {
        model.acked.insert(seen.lsn, seen.clone());
    }
}

fn config_of(rng: &mut Rng) -> LogConfig {
    LogConfig {
        flush: [FlushMode::Adaptive, FlushMode::Linked, FlushMode::Dsync][rng.below(3) as usize],
        spare_segments: rng.below(3) as usize,
        batches_in_flight: 1 + rng.below(8) as usize,
        beside_bytes_min: [0, 2 << 10, 1 << 20][rng.below(3) as usize],
        ..small()
    }
}

/// How a life ends.
#[derive(Clone, Copy, PartialEq)]
enum End {
    Power,
    Process,
}

/// A life: open, check, append from several tasks, end.
fn live(world: &World, rng: &mut Rng, model: &Shared, what: &str) {
    let config = config_of(rng);
    let (log, recovered, seen) = world
        .open(config)
        .unwrap_or_else(|e| panic!("{what}: the log does not open: {e}"));
    check(&seen, model, what);
    assert_eq!(recovered.records, seen.len() as u64, "{what}");
    if let Some(last) = seen.last() {
        assert_eq!(recovered.last, Lsn(last.lsn), "{what}");
    }
    let mut tasks = Vec::new();
    for _ in 0..=rng.below(12) {
        let work = appender(Rc::clone(&log), Rc::clone(model), world.sim.seed());
        tasks.push(world.sim.spawn(world.node, 0, work));
    }
    if rng.once_in(2) {
        let every = Duration::from_micros(2_000 + rng.below(8_000));
        let work = releaser(Rc::clone(&log), Rc::clone(model), every);
        drop(world.sim.spawn(world.node, 0, work));
    }
    drop(log);
    world.sim.run_for(Duration::from_micros(rng.below(40_000)));
    let end = if rng.once_in(3) {
        End::Process
    } else {
        End::Power
    };
    match end {
        End::Power => world.crash(),
        End::Process => {
            world.sim.stop(world.node);
            world.power();
        }
    }
    assert_eq!(model.borrow().surprise, None, "{what}");
}

#[test]
fn acknowledged_records_survive_crash_after_crash() {
    for_seeds(300, |seed| {
        let world = World::new(seed);
        let mut rng = Rng::new(seed ^ 0xC4A5);
        let model = Shared::default();
        for life in 0..4 {
            live(
                &world,
                &mut rng,
                &model,
                &format!("seed {seed}, life {life}"),
            );
        }
        let (_log, _, seen) = world.open(small()).expect("the log opens at last");
        check(&seen, &model, &format!("seed {seed}, the end"));
    });
}

#[test]
fn acknowledged_records_survive_failing_writes_and_flushes() {
    let poisoned = RefCell::new(0);
    for_seeds(200, |seed| {
        let world = World::new(seed);
        let mut rng = Rng::new(seed ^ 0xE10);
        let model = Shared::default();
        for life in 0..4 {
            let what = format!("seed {seed}, life {life}");
            world.sim.configure(|config| {
                config.sync_fails_one_in = 0;
                config.write_fails_one_in = 0;
            });
            let (log, _, seen) = world
                .open(config_of(&mut rng))
                .unwrap_or_else(|e| panic!("{what}: {e}"));
            check(&seen, &model, &what);
            for _ in 0..=rng.below(8) {
                let work = appender(Rc::clone(&log), Rc::clone(&model), seed);
                drop(world.sim.spawn(world.node, 0, work));
            }
            let one_in = 20 + rng.below(100);
            world.sim.configure(|config| {
                config.sync_fails_one_in = one_in;
                config.write_fails_one_in = one_in * 4;
            });
            world.sim.run_for(Duration::from_micros(rng.below(60_000)));
            *poisoned.borrow_mut() += u32::from(log.metrics().poisoned);
            drop(log);
            assert_eq!(model.borrow().surprise, None, "{what}");
            if rng.once_in(2) {
                world.crash();
            } else {
                world.sim.stop(world.node);
                world.power();
            }
        }
        world.sim.configure(|config| {
            config.sync_fails_one_in = 0;
            config.write_fails_one_in = 0;
        });
        let (_log, _, seen) = world.open(small()).expect("the log opens at last");
        check(&seen, &model, &format!("seed {seed}, the end"));
    });
    if std::env::var("UC_SEED").is_err() {
        assert!(
            *poisoned.borrow() > 50,
            "the faults hit: {} logs poisoned",
            poisoned.borrow()
        );
    }
}

#[test]
fn a_log_that_was_closed_is_clean_and_goes_on() {
    for_seeds(50, |seed| {
        let world = World::new(seed);
        let mut rng = Rng::new(seed);
        let mut next = 1;
        for life in 0..6 {
            let config = config_of(&mut rng);
            let count = rng.below(40);
            let (recovered, before) = world.run(async move {
                let (log, recovered, seen) = open(config, Lsn(0), 0).await.unwrap();
                for id in 0..count {
                    log.append(1, &[&payload(seed, id, 12 << 10)])
                        .await
                        .unwrap();
                }
                log.close().await.unwrap();
                assert!(matches!(
                    log.append(1, &[b"late"]).await,
                    Err(LogError::Closed)
                ));
                (recovered, seen.len() as u64)
            });
            assert!(recovered.clean, "seed {seed}, life {life}");
            assert_eq!(recovered.torn_bytes, 0, "seed {seed}, life {life}");
            assert_eq!(recovered.last, Lsn(next - 1), "seed {seed}, life {life}");
            assert_eq!(before, next - 1, "seed {seed}, life {life}");
            next += count;
            world.crash();
        }
    });
}
