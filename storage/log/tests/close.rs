//! How a log ends, and how it bears a shard without operation slots or buffers.

#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

mod support;

use std::rc::Rc;
use std::time::Duration;

use engine::fs::{File, OpenOptions};
use engine::sim::Sim;
use engine::{EngineConfig, SchedGroup};
use segment_log::{LogConfig, LogError, Lsn};
use support::{World, for_seeds, open, small};

#[test]
fn a_second_close_ends_with_the_first_also_when_that_was_dropped() {
    for_seeds(32, |seed| {
        let world = World::new(seed);
        world.run(async move {
            let (log, ..) = open(small(), Lsn(0), 0).await.unwrap();
            let writer = Rc::clone(&log);
            let append = async move { writer.append(1, &[&[7; 500]]).await };
            let append = engine::spawn_local(SchedGroup::FOREGROUND, append);
            let first = Rc::clone(&log);
            let first =
                engine::spawn_local(SchedGroup::FOREGROUND, async move { first.close().await });
            engine::yield_now().await;
            if seed % 2 == 0 {
                drop(first);
            } else {
                first.detach();
            }
            log.close().await.unwrap();
            // Everything that was taken is durable, and nothing is taken any more.
            match append.await {
                Ok(done) => assert!(log.last_durable() >= done.lsn),
                Err(error) => assert!(matches!(error, LogError::Closed), "{error}"),
            }
            assert!(matches!(log.append(1, &[]).await, Err(LogError::Closed)));
            log.close().await.unwrap();
        });
        // Power is lost at the moment at which the second close has returned.
        world.crash();
        let (_, recovered, _) = world.open(small()).unwrap();
        assert!(recovered.clean, "seed {seed}: {recovered:?}");
    });
}

#[test]
fn a_full_table_of_operations_delays_batches_and_poisons_nothing() {
    for_seeds(16, |seed| {
        let sim = Sim::new(seed);
        let node = sim.node("a");
        let mut config = EngineConfig::unpinned(1);
        config.pool_bytes = 8 << 20;
        config.recv_buffers = 8;
        config.ops_max = 64;
        sim.start(node, config).unwrap();
        sim.run(node, 0, async move {
            let config = LogConfig {
                batch_bytes_max: 4 << 10,
                batches_in_flight: 8,
                ..small()
            };
            let (log, ..) = open(config, Lsn(0), 0).await.unwrap();
            let options = OpenOptions {
                write: true,
                create: true,
                ..OpenOptions::default()
            };
            let other = Rc::new(File::open("/other", options).await.unwrap());
            // Others keep the table full for as long as records are appended.
            let greedy: Vec<_> = (0..80_u64)
                .map(|number| {
                    let other = Rc::clone(&other);
                    engine::spawn_local(SchedGroup::FOREGROUND, async move {
                        let mut refused = 0_u64;
                        for _ in 0..40 {
                            let wrote = other.write_at(vec![1; 512], number * 512).await.0;
                            refused += u64::from(wrote.is_err());
                            engine::yield_now().await;
                        }
                        refused
                    })
                })
                .collect();
            let mut acknowledged = 0;
            for number in 0..40_u64 {
                match log.append(1, &[&number.to_le_bytes()]).await {
                    Ok(_) => acknowledged += 1,
                    Err(error) => assert!(matches!(error, LogError::Busy), "{error}"),
                }
            }
            let mut refused = 0;
            for task in greedy {
                refused += task.await;
            }
            assert!(refused > 0, "seed {seed}: the table was never full");
            assert!(acknowledged > 0, "seed {seed}");
            assert!(!log.metrics().poisoned);
            log.append(1, &[b"after"]).await.unwrap();
            log.close().await.unwrap();
        });
    });
}

/// Others have all of the shard's buffers for a while: appends wait, in their order.
#[test]
fn appends_wait_for_buffers_that_others_have() {
    let world = World::new(6);
    world.run(async {
        let (log, _, _) = open(small(), Lsn(0), 0).await.unwrap();
        let mut taken = Vec::new();
        for len in [engine::MAX_BUF, 64 << 10, engine::BLOCK] {
            while let Ok(buf) = engine::take_buf(len) {
                taken.push(buf);
            }
        }
        let given_back = async move {
            engine::sleep(Duration::from_secs(1)).await;
            drop(taken);
        };
        let body = |number: u64| number.to_le_bytes();
        let bodies: Vec<_> = (0..20).map(body).collect();
        let parts: Vec<_> = bodies.iter().map(|body| [&body[..]]).collect();
        let appends = parts.iter().map(|parts| log.append(1, parts));
        let appends = futures_util::future::join_all(appends);
        let (appended, ()) = futures_util::future::join(appends, given_back).await;
        let numbers: Vec<u64> = appended
            .into_iter()
            .map(|done| done.unwrap().lsn.0)
            .collect();
        assert_eq!(numbers, (1..=20).collect::<Vec<_>>());
    });
}
