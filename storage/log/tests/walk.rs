//! Walking complete segments while the log runs, and the reserve that a full disk leaves.
//!
//! Fault model: one bit flips at rest; the disk is full. A walk shows nothing of a damaged batch and
//! says where it is; on a full disk ordinary records are refused while the reserve is whole.

#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

mod support;

use std::time::Duration;

use segment_log::{LogConfig, LogError, Lsn};
use support::{Seen, World, open, payload, small};

#[test]
fn a_walk_shows_a_segment_in_steps_and_stops_at_damage() {
    let world = World::new(1);
    let (log, all) = world.run(async {
        let (log, _, _) = open(small(), Lsn(0), 0).await.unwrap();
        let mut all = Vec::new();
        for id in 0..30 {
            let payload = payload(1, id, 6 << 10);
            let done = log.append(3, &[&payload]).await.unwrap();
            all.push(Seen {
                lsn: done.lsn.0,
                kind: 3,
                payload,
                position: done.position,
                len: done.len,
            });
        }
        (log, all)
    });
    world.sim.run_for(Duration::from_secs(1));
    let walked = std::rc::Rc::clone(&log);
    let in_first: Vec<Seen> = all
        .into_iter()
        .filter(|seen| seen.position.segment == 1)
        .collect();
    let expected = in_first.clone();
    world.run(async move {
        let mut seen = Vec::new();
        let mut steps = 0;
        let mut from = Some(0);
        while let Some(at) = from {
            let visit = |record: segment_log::Record<'_>| {
                seen.push(Seen {
                    lsn: record.lsn.0,
                    kind: record.kind,
                    payload: record.payload.to_vec(),
                    position: record.position,
                    len: record.len,
                });
            };
            from = walked.walk(1, at, 16 << 10, visit).await.unwrap();
            steps += 1;
        }
        assert_eq!(seen, expected);
        assert!(steps >= 3, "{steps}");
        let tail = walked.segments().last().unwrap().number;
        let refused = walked.walk(tail, 0, 1, |_| {}).await;
        assert!(matches!(refused, Err(LogError::NotSealed { .. })));
        let refused = walked.walk(tail + 9, 0, 1, |_| {}).await;
        assert!(matches!(refused, Err(LogError::NoSegment { .. })));
    });
    let middle = &in_first[in_first.len() / 2];
    world.flip(1, u64::from(middle.position.offset) + 100);
    let wanted = middle.lsn;
    world.run(async move {
        let mut last = 0;
        let damaged = log.walk(1, 0, u64::MAX, |record| last = record.lsn.0).await;
        assert!(
            matches!(damaged, Err(LogError::Corrupt { segment: 1, .. })),
            "{damaged:?}"
        );
        assert!(last < wanted, "{last}");
    });
}

#[test]
fn a_full_disk_leaves_the_reserve_to_those_who_may_use_it() {
    let world = World::new(2);
    let disk = world.sim.disk(world.node);
    let config = LogConfig {
        reserve_segments: 1,
        ..small()
    };
    let log = world.run(async move { open(config, Lsn(0), 0).await.unwrap().0 });
    world.sim.run_for(Duration::from_secs(1));
    disk.set_capacity(5 * (64 << 10));
    world.run(async move {
        let body = payload(2, 1, 6 << 10);
        let mut stored = 0_u64;
        let full = loop {
            match log.append(1, &[&body]).await {
                Ok(_) => stored += 1,
                Err(error) => break error,
            }
            assert!(stored < 1_000);
        };
        assert!(matches!(full, LogError::Full { .. }), "{full}");
        // A segment takes more than six of these; the reserve is one.
        for _ in 0..6 {
            log.append_reserved(2, &[&body]).await.unwrap();
            let refused = log.append(1, &[b"small"]).await;
            assert!(matches!(refused, Err(LogError::Full { .. })), "{refused:?}");
        }
        // What is released becomes the reserve again, and then more.
        let first = log.segments()[0].number;
        log.release(first).await.unwrap();
        log.append_reserved(2, &[&body]).await.unwrap();
        disk.set_capacity(1 << 30);
        for _ in 0..30 {
            log.append(1, &[&body]).await.unwrap();
        }
        assert_eq!(log.metrics().appends, stored + 7 + 30);
        log.close().await.unwrap();
    });
}
