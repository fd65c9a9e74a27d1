//! Damage, faults and bounds, one at a time, under the simulator.
//!
//! Fault model: one bit flips at rest; one write or flush fails; the disk is full; power is lost
//! while a segment is recycled. Damage to anything that is shown to have been durable must be
//! reported with its place and never skipped; damage to the very last batch of a log that was not
//! closed cannot be told from a torn write. A failed write ends the log, a full disk does not.

#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

mod support;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use engine::Rng;
use engine::fs::{File, OpenOptions};
use segment_log::{FlushMode, LogConfig, LogError, Lsn, Position};
use support::{BLOCK, Seen, World, for_seeds, open, payload, segment_path, small};

/// Appends `count` records one after the other; where each batch starts, and what replay must show.
fn fill(world: &World, seed: u64, count: u64, close: bool) -> Vec<Seen> {
    world.run(async move {
        let (log, _, _) = open(small(), Lsn(0), 0).await.unwrap();
        let mut all = Vec::new();
        for id in 0..count {
            let payload = payload(seed, id, 12 << 10);
            let done = log.append(3, &[&payload]).await.unwrap();
            let (lsn, len) = (done.lsn.0, done.len);
            all.push(Seen {
                lsn,
                kind: 3,
                payload,
                position: done.position,
                len,
            });
        }
        if close {
            log.close().await.unwrap();
        }
        all
    })
}

fn corrupt_segment(error: &LogError) -> Option<(u32, u64)> {
    match error {
        LogError::Corrupt {
            segment, offset, ..
        } => Some((*segment, *offset)),
        _ => None,
    }
}

#[test]
fn a_flip_in_a_batch_that_later_ones_prove_durable_is_reported_at_its_place() {
    for_seeds(200, |seed| {
        let world = World::new(seed);
        let mut rng = Rng::new(seed ^ 0xF11F);
        let closed = rng.once_in(2);
        let all = fill(&world, seed, 30, closed);
        // Of a log that was not closed, nothing proves the last one.
        let upto = if closed { all.len() } else { all.len() - 1 };
        let victim = &all[rng.below(upto as u64) as usize];
        let start = u64::from(victim.position.offset) / BLOCK * BLOCK;
        let end = u64::from(victim.position.offset + victim.len).next_multiple_of(BLOCK);
        world.crash();
        world.flip(victim.position.segment, start + rng.below(end - start));
        let error = world.open(small()).unwrap_err();
        assert_eq!(
            corrupt_segment(&error),
            Some((victim.position.segment, start)),
            "{error}"
        );
    });
}

#[test]
fn a_flip_in_an_open_mark_does_not_hide_what_came_after_it() {
    let world = World::new(1);
    fill(&world, 1, 3, true);
    world.crash();
    // The clean mark, then the second life's open mark, then its record.
    let second = fill(&world, 2, 1, false);
    world.crash();
    let mark = u64::from(second[0].position.offset) / BLOCK * BLOCK - BLOCK;
    world.flip(second[0].position.segment, mark + 20);
    let error = world.open(small()).unwrap_err();
    assert_eq!(
        corrupt_segment(&error),
        Some((second[0].position.segment, mark)),
        "{error}"
    );
}

#[test]
fn a_flip_in_the_last_batch_of_a_crashed_log_counts_as_torn() {
    for_seeds(50, |seed| {
        let world = World::new(seed);
        let all = fill(&world, seed, 12, false);
        let (last, rest) = all.split_last().unwrap();
        world.crash();
        world.flip(
            last.position.segment,
            u64::from(last.position.offset) + seed % 24,
        );
        let (log, recovered, seen) = world.open(small()).unwrap();
        assert_eq!(seen, rest, "seed {seed}");
        assert!(!recovered.clean);
        assert!(recovered.torn_bytes >= BLOCK);
        // Its number is free, its bytes are gone for good.
        let again = world.run(async move { log.append(1, &[b"again"]).await.unwrap() });
        assert_eq!(again.lsn.0, last.lsn);
        world.crash();
        let (_, _, seen) = world.open(small()).unwrap();
        assert_eq!(
            (seen.len(), seen.last().unwrap().payload.as_slice()),
            (12, &b"again"[..])
        );
    });
}

#[test]
fn damage_to_headers_seals_and_files_is_reported() {
    let damaged = |segment: u32, offset: u64| {
        let world = World::new(9);
        let all = fill(&world, 9, 120, true);
        assert!(
            all.last().unwrap().position.segment > 3,
            "several segments are in use"
        );
        world.crash();
        world.flip(segment, offset);
        world.open(small()).unwrap_err()
    };
    for offset in [0, 9, 13, 17, 25, 33] {
        assert_eq!(
            corrupt_segment(&damaged(2, offset)),
            Some((2, 0)),
            "header byte {offset}"
        );
    }
    for offset in [0, 5, 9, 17, 21, 25, 33, 41] {
        let place = Some((1, BLOCK));
        assert_eq!(
            corrupt_segment(&damaged(1, BLOCK + offset)),
            place,
            "seal byte {offset}"
        );
    }
    let world = World::new(9);
    fill(&world, 9, 120, true);
    world.run(async {
        let options = OpenOptions {
            write: true,
            ..OpenOptions::default()
        };
        let file = File::open(segment_path(2), options).await.unwrap();
        file.set_len(32 << 10).await.unwrap();
    });
    let error = world.open(small()).unwrap_err();
    assert_eq!(corrupt_segment(&error), Some((2, 0)), "{error}");
}

#[test]
fn a_record_that_the_caller_knows_of_and_the_log_does_not_is_damage() {
    let world = World::new(4);
    fill(&world, 4, 5, true);
    let error = world.run(open(small(), Lsn(6), 0)).unwrap_err();
    assert!(error.to_string().contains("record 6"), "{error}");
    let (_, recovered, seen) = world.run(open(small(), Lsn(5), 0)).unwrap();
    assert_eq!(
        (recovered.records, recovered.last, seen.len()),
        (0, Lsn(5), 0)
    );
    let other = World::new(5);
    assert!(corrupt_segment(&other.run(open(small(), Lsn(1), 0)).unwrap_err()).is_some());
}

#[test]
fn a_failed_flush_or_write_poisons_for_good_and_reads_go_on() {
    for_seeds(60, |seed| {
        let world = World::new(seed);
        let flush = [FlushMode::Adaptive, FlushMode::Linked, FlushMode::Dsync][seed as usize % 3];
        let disk = world.sim.disk(world.node);
        let before = world.run(async move {
            let config = LogConfig {
                flush,
                spare_segments: 0,
                ..small()
            };
            let (log, _, _) = open(config, Lsn(0), 0).await.unwrap();
            let kept = log.append(1, &[b"kept"]).await.unwrap();
            // A DSYNC write is no sync of its own to the simulated disk.
            let write = flush == FlushMode::Dsync || seed.is_multiple_of(2);
            if write {
                disk.fail_next_write();
            } else {
                disk.fail_next_sync();
            }
            let parts = [&b"lost"[..]];
            let waiting = (0..5).map(|_| log.append(1, &parts));
            let waiting = futures_util::future::join_all(waiting).await;
            let poisoned = |r: &Result<_, LogError>| matches!(r, Err(LogError::Poisoned { .. }));
            assert!(waiting.iter().all(poisoned), "one batch, one answer");
            let late = log.append(1, &[b"late"]).await.unwrap_err();
            assert!(matches!(&late, LogError::Poisoned { cause } if cause.contains("offset")));
            assert!(log.metrics().poisoned);
            assert_eq!(log.last_durable(), kept.lsn);
            let read = log.read(kept.position, kept.len, 0).await.unwrap();
            assert_eq!(&read.buf[read.payload], b"kept");
            assert!(matches!(log.close().await, Err(LogError::Poisoned { .. })));
            assert!(matches!(
                log.release(1).await,
                Err(LogError::Poisoned { .. })
            ));
            kept
        });
        world.crash();
        let (_, _, seen) = world.open(small()).unwrap();
        assert_eq!(seen[0].lsn, before.lsn.0);
        assert_eq!(seen[0].payload, b"kept");
    });
}

#[test]
fn a_full_disk_refuses_records_until_there_is_space() {
    for_seeds(40, |seed| {
        let world = World::new(seed);
        let disk = world.sim.disk(world.node);
        let spare_segments = seed as usize % 3;
        world.run(async move {
            let config = LogConfig {
                spare_segments,
                ..small()
            };
            let (log, _, _) = open(config, Lsn(0), 0).await.unwrap();
            let mut next = 1;
            for capacity in [400_u64 << 10, 600 << 10, 1 << 20] {
                disk.set_capacity(capacity);
                let full = loop {
                    let bytes = payload(seed, next, 12 << 10);
                    match log.append(1, &[&bytes]).await {
                        Ok(done) => assert_eq!(done.lsn.0, next, "numbers stay dense"),
                        Err(error) => break error,
                    }
                    next += 1;
                };
                assert!(matches!(full, LogError::Full { .. }), "{full}");
                // Whoever comes while it is full is refused, and none of it shows later.
                let parts = [&b"refused"[..]];
                let refused = (0..20).map(|_| log.append(9, &parts));
                for refused in futures_util::future::join_all(refused).await {
                    // A small one may still fit what is left of the segment.
                    match refused {
                        Ok(done) => next = next.max(done.lsn.0 + 1),
                        Err(error) => assert!(matches!(error, LogError::Full { .. }), "{error}"),
                    }
                }
            }
            assert!(log.metrics().full > 0);
            assert!(!log.metrics().poisoned);
            disk.set_capacity(1 << 30);
            assert_eq!(log.append(1, &[b"again"]).await.unwrap().lsn.0, next);
            log.close().await.unwrap();
        });
        world.crash();
        let (_, recovered, seen) = world.open(small()).unwrap();
        assert!(recovered.clean);
        assert!(seen.windows(2).all(|w| w[0].lsn + 1 == w[1].lsn));
        assert_eq!(seen.last().unwrap().payload, b"again");
    });
}

#[test]
fn a_full_disk_does_not_keep_a_full_log_from_opening() {
    let world = World::new(3);
    let config = LogConfig {
        spare_segments: 0,
        ..small()
    };
    let disk = world.sim.disk(world.node);
    disk.set_capacity(128 << 10);
    let mut lives = 0;
    // Each life costs two marks; the segment fills up and cannot be followed by another.
    while lives < 40 {
        let config = config.clone();
        world.run(async move {
            let (log, _, _) = open(config, Lsn(0), 0).await.unwrap();
            log.close().await.unwrap();
        });
        lives += 1;
    }
    let (log, recovered, _) = world.open(config).unwrap();
    assert!(recovered.clean);
    world.run(async move {
        assert!(matches!(
            log.append(1, &[b"x"]).await,
            Err(LogError::Full { .. })
        ));
        disk.set_capacity(1 << 20);
        assert_eq!(log.append(1, &[b"x"]).await.unwrap().lsn, Lsn(1));
    });
}

#[test]
fn released_segments_are_recycled_under_new_numbers() {
    let world = World::new(7);
    world.run(async {
        let (log, _, _) = open(small(), Lsn(0), 0).await.unwrap();
        let mut first = None;
        for id in 0..400 {
            let done = log.append(1, &[&payload(7, id, 12 << 10)]).await.unwrap();
            first.get_or_insert(done);
            let segments = log.segments();
            let tail = segments.last().unwrap();
            assert!(!tail.sealed);
            let refused = log.release(tail.number).await;
            assert!(matches!(refused, Err(LogError::NotSealed { .. })));
            if segments.len() > 3 && segments[0].sealed {
                log.release(segments[0].number).await.unwrap();
                let again = log.release(segments[0].number).await;
                assert!(matches!(again, Err(LogError::NoSegment { .. })));
            }
        }
        let first = first.unwrap();
        let gone = log.read(first.position, first.len, 0).await;
        assert!(matches!(gone, Err(LogError::NoSegment { segment: 1 })));
        log.close().await.unwrap();
    });
    let files = world.segment_files();
    assert!(
        files.len() <= 6 && files[0] > 5,
        "the directory holds {files:?}"
    );
    let (_, recovered, seen) = world.open(small()).unwrap();
    assert_eq!(recovered.last, Lsn(400));
    assert!(seen.windows(2).all(|w| w[0].lsn + 1 == w[1].lsn));
}

#[test]
fn power_may_fail_anywhere_in_a_recycling() {
    for_seeds(200, |seed| {
        let world = World::new(seed);
        let all = fill(&world, seed, 60, false);
        world.crash();
        let (log, _, seen) = world.open(small()).unwrap();
        assert_eq!(seen, all, "seed {seed}");
        let oldest = log.segments()[0];
        let kept = log.segments()[1].first;
        drop(world.sim.spawn(world.node, 0, async move {
            log.release(oldest.number).await.unwrap();
            for id in 0.. {
                log.append(9, &[&payload(seed, id, 12 << 10)])
                    .await
                    .unwrap();
            }
        }));
        world.sim.run_for(Duration::from_micros(seed * 37));
        world.crash();
        let (_, _, seen) = world
            .open(small())
            .unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        let old: Vec<&Seen> = seen
            .iter()
            .filter(|s| s.kind == 3 && s.lsn >= kept.0)
            .collect();
        let expected: Vec<&Seen> = all.iter().filter(|s| s.lsn >= kept.0).collect();
        assert_eq!(old, expected, "seed {seed}");
    });
}

#[test]
fn segments_that_are_not_needed_are_not_replayed_and_go() {
    let world = World::new(8);
    let all = fill(&world, 8, 80, true);
    let needed = 3;
    let (log, recovered, seen) = world.run(open(small(), Lsn(0), needed)).unwrap();
    let expected: Vec<Seen> = all
        .iter()
        .filter(|s| s.position.segment >= needed)
        .cloned()
        .collect();
    assert_eq!(seen, expected);
    assert_eq!(recovered.last, Lsn(80));
    assert_eq!(log.segments()[0].number, needed);
    assert_eq!(log.segments()[0].first.0, expected[0].lsn);
    // What a checkpoint covers is not even read: damage there waits for a read.
    drop(log);
    world.crash();
    let (early, after) = (&expected[0], expected[expected.len() - 3].lsn);
    world.flip(early.position.segment, u64::from(early.position.offset) + 4);
    let (log, recovered, seen) = world.run(open(small(), Lsn(after), needed)).unwrap();
    assert_eq!(recovered.records, 2);
    assert_eq!(seen, expected[expected.len() - 2..]);
    let (position, len) = (early.position, early.len);
    let error = world.run(async move { log.read(position, len, 0).await.unwrap_err() });
    assert!(corrupt_segment(&error).is_some(), "{error}");
}

#[test]
fn a_read_returns_the_record_with_its_headroom_or_says_what_is_wrong() {
    let world = World::new(6);
    let all = fill(&world, 6, 40, false);
    let (log, _, _) = world.open(small()).unwrap();
    world.run(async move {
        for (index, seen) in all.iter().enumerate() {
            let headroom = [0, 1, 100, 4096, 20_000][index % 5];
            let read = log.read(seen.position, seen.len, headroom).await.unwrap();
            assert!(read.payload.start >= headroom);
            assert_eq!((read.lsn.0, read.kind), (seen.lsn, seen.kind));
            assert_eq!(read.buf[read.payload], seen.payload);
        }
        let Seen { position, len, .. } = all[0];
        let shifted = Position {
            offset: position.offset + 8,
            ..position
        };
        for (position, len) in [
            (shifted, len),
            (position, len + 8),
            (position, 16),
            (position, u32::MAX - 7),
            (
                Position {
                    offset: 0,
                    ..position
                },
                len,
            ),
            (
                Position {
                    offset: u32::MAX - 7,
                    ..position
                },
                len,
            ),
        ] {
            let error = log.read(position, len, 0).await.unwrap_err();
            assert!(
                corrupt_segment(&error).is_some(),
                "{position:?} {len}: {error}"
            );
        }
        let far = log.read(position, len, 3 << 20).await.unwrap_err();
        assert!(matches!(far, LogError::TooLarge { .. }));
        let absent = Position {
            segment: 99,
            ..position
        };
        assert!(matches!(
            log.read(absent, len, 0).await,
            Err(LogError::NoSegment { segment: 99 })
        ));
    });
}

#[test]
fn appends_of_one_turn_share_a_batch_and_a_lone_one_does_not_wait() {
    let world = World::new(2);
    world.run(async {
        let (log, _, _) = open(small(), Lsn(0), 0).await.unwrap();
        let body = [7_u8; 100];
        let parts = [&body[..]];
        let start = engine::now();
        log.append(1, &parts).await.unwrap();
        let alone = engine::now() - start;
        assert!(
            alone < Duration::from_millis(3),
            "one write and one flush: {alone:?}"
        );
        let before = log.metrics();
        let together = (0..50).map(|_| log.append(1, &parts));
        for done in futures_util::future::join_all(together).await {
            done.unwrap();
        }
        let after = log.metrics();
        assert_eq!(after.appends - before.appends, 50);
        assert_eq!(after.batches - before.batches, 1);
        assert_eq!(after.flush_us.iter().sum::<u64>(), after.batches);
    });
}

#[test]
fn the_queue_of_appenders_is_bounded() {
    let world = World::new(2);
    let (busy, taken) = world.run(async {
        let (log, _, _) = open(small(), Lsn(0), 0).await.unwrap();
        let body = [7_u8; 8000];
        let parts = [&body[..]];
        let all = (0..4200).map(|_| log.append(1, &parts));
        let all = futures_util::future::join_all(all).await;
        let busy = all
            .iter()
            .filter(|r| matches!(r, Err(LogError::Busy)))
            .count();
        assert_eq!(log.metrics().busy, busy as u64);
        (busy, all.iter().filter(|r| r.is_ok()).count())
    });
    assert_eq!(busy + taken, 4200);
    assert_eq!(taken, 4097, "one gathers, 4096 wait");
}

#[test]
fn limits_and_refusals_are_clear() {
    let world = World::new(2);
    world.run(async {
        let (log, _, _) = open(small(), Lsn(0), 0).await.unwrap();
        let large = vec![0; (12 << 10) + 1];
        let error = log.append(1, &[&large]).await.unwrap_err();
        assert!(matches!(
            error,
            LogError::TooLarge {
                len: 12_289,
                max: 12_288
            }
        ));
        assert_eq!(log.append(1, &[&large[1..]]).await.unwrap().lsn, Lsn(1));
        assert_eq!(log.append(1, &[]).await.unwrap().lsn, Lsn(2));
        let second = open(small(), Lsn(0), 0).await.map(drop).unwrap_err();
        assert!(matches!(second, LogError::Locked { .. }), "{second}");
    });
    world.crash();
    let refusing = world.run(async {
        let count = Rc::new(RefCell::new(0));
        let seen = Rc::clone(&count);
        let opened =
            segment_log::Log::open(support::DIR.as_ref(), small(), Lsn(0), 0, move |record| {
                *seen.borrow_mut() += 1;
                Err(LogError::Refused {
                    lsn: record.lsn,
                    reason: "unknown kind".into(),
                })
            });
        (opened.await.map(drop), *count.borrow())
    });
    let (Err(LogError::Refused { lsn: Lsn(1), .. }), 1) = refusing else {
        panic!("the replay's refusal ends the opening: {refusing:?}");
    };
}
