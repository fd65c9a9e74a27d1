//! Time, order and the ends of a run. Contract BY-2: the same seed takes the same steps.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::Duration;

use super::super::{Sim, SimConfig};
use super::{addr, durable_file, logged, one_node, start, two_nodes};
use crate::net::{ListenOptions, Listener, TcpStream, UdpSocket};
use crate::sync::Notify;

/// A bit of everything, with faults, a partition and a crash; answers the trace's hash.
fn mixed_run(seed: u64) -> u64 {
    let (sim, a, b) = two_nodes(seed);
    let file = sim.run(b, 1, durable_file("/f"));
    sim.configure(|config| {
        config.datagram_drops_one_in = 4;
        config.sync_fails_one_in = 10;
        config.short_sends_one_in = 3;
    });
    let _server = sim.spawn(b, 0, async move {
        let mut listener = Listener::bind(&addr(b, 80), ListenOptions::default()).unwrap();
        while let Ok(stream) = listener.accept().await {
            while let Ok(Some(buf)) = stream.recv_ring().await {
                if stream.send(buf.to_vec()).await.0.is_err() {
                    break;
                }
            }
        }
    });
    let _writer = sim.spawn(b, 1, async move {
        for number in 0..50_u64 {
            let (done, _) = file
                .write_then_datasync(vec![number as u8; 700], number * 700)
                .await;
            if done.is_err() {
                return;
            }
        }
    });
    let _client = sim.spawn(a, 0, async move {
        crate::sleep(Duration::from_millis(1)).await;
        let Ok(stream) = TcpStream::connect(&addr(b, 80)).await else {
            return;
        };
        while stream
            .send(vec![crate::random() as u8; 3_000])
            .await
            .0
            .is_ok()
        {
            if !matches!(stream.recv(vec![0; 9_000]).await.0, Ok(1..)) {
                return;
            }
        }
    });
    let _datagrams = sim.spawn(a, 1, async move {
        let socket = UdpSocket::bind(&addr(a, 9), false).unwrap();
        loop {
            let _ = socket.send_to(vec![1], &addr(b, 9)).await;
            crate::sleep(Duration::from_micros(300)).await;
        }
    });
    sim.run_for(Duration::from_millis(10));
    sim.partition(a, b);
    sim.run_for(Duration::from_millis(5));
    sim.heal();
    sim.run_for(Duration::from_millis(5));
    sim.crash(b);
    start(&sim, b);
    sim.run_for(Duration::from_millis(20));
    sim.trace_hash()
}

#[test]
fn the_same_seed_takes_the_same_steps_and_another_takes_others() {
    for seed in 0..10 {
        assert_eq!(mixed_run(seed), mixed_run(seed), "seed {seed}");
        assert_ne!(mixed_run(seed), mixed_run(seed + 1), "seed {seed}");
    }
}

#[test]
fn a_day_of_waiting_costs_no_time_and_shards_work_side_by_side() {
    let (sim, node) = one_node(1);
    let day = Duration::from_hours(24);
    let other = sim.spawn(node, 1, crate::sleep(day));
    sim.run(node, 0, crate::sleep(day));
    assert!(other.take().is_some() || sim.join(&other).is_some());
    assert!((day..day + Duration::from_millis(1)).contains(&(sim.now() - crate::Nanos(0))));
}

#[test]
fn a_task_that_waits_for_nothing_is_a_deadlock_that_names_the_seed() {
    let (sim, node) = one_node(4711);
    let run = || sim.run(node, 0, std::future::pending::<()>());
    let panic = catch_unwind(AssertUnwindSafe(run)).unwrap_err();
    let text = panic.downcast_ref::<String>().expect("a panic with words");
    assert!(
        text.contains("deadlock") && text.contains("seed 4711"),
        "{text}"
    );
}

#[test]
fn a_run_without_end_stops_at_the_step_limit() {
    let sim = Sim::with_config(
        1,
        SimConfig {
            steps_max: 1_000,
            ..SimConfig::default()
        },
    );
    let node = sim.node("a");
    start(&sim, node);
    let run = || {
        sim.run(node, 0, async {
            loop {
                crate::yield_now().await;
                crate::sleep(Duration::from_micros(1)).await;
            }
        });
    };
    let panic = catch_unwind(AssertUnwindSafe(run)).unwrap_err();
    assert!(
        panic
            .downcast_ref::<String>()
            .is_some_and(|text| text.contains("1000 steps"))
    );
}

#[test]
fn a_crash_from_inside_a_task_ends_that_task() {
    let (sim, node) = one_node(2);
    let world = sim.clone();
    let ended = sim.try_run(node, 0, async move {
        world.crash(node);
        std::future::pending::<()>().await;
    });
    assert!(ended.is_none());
    start(&sim, node);
    assert_eq!(sim.run(node, 0, async { 7 }), 7);
}

#[test]
fn what_was_written_before_an_orderly_stop_is_there_after_it() {
    for seed in 0..20 {
        let (sim, node) = one_node(seed);
        let log = logged(&sim, node, |log| async move {
            let file = durable_file("/f").await;
            for number in 0..1_000_u64 {
                file.write_at(vec![number as u8 + 1; 512], number * 512)
                    .await
                    .0
                    .unwrap();
                log.borrow_mut().push(number);
            }
        });
        sim.run_for(Duration::from_millis(5));
        sim.stop(node);
        let bytes = sim.disk(node).read_file("/f").unwrap_or_default();
        assert!(bytes.len() >= log.borrow().len() * 512, "seed {seed}");
        start(&sim, node);
        assert_eq!(
            sim.run(node, 0, crate::fs::metadata("/f")).unwrap().len,
            bytes.len() as u64
        );
    }
}

#[test]
fn an_action_at_a_later_time_runs_between_steps() {
    let (sim, node) = one_node(3);
    sim.after(Duration::from_secs(1), move |sim| sim.crash(node));
    assert!(
        sim.try_run(node, 0, crate::sleep(Duration::from_secs(2)))
            .is_none()
    );
    assert!(sim.now() - crate::Nanos(0) >= Duration::from_secs(1));
}

#[test]
fn a_cancelled_op_ends_once_and_a_cancelled_write_may_have_happened() {
    let (mut in_time, mut late, mut happened) = (0, 0, 0);
    for seed in 0..100 {
        let (sim, node) = one_node(seed);
        let answered = sim.run(node, 0, async move {
            let file = durable_file("/f").await;
            let limit = Duration::from_micros(20 + seed);
            let write = file.write_at(vec![1; 512], 0);
            let answered = crate::timeout(limit, write).await.is_some();
            // The engine panics when a slot is answered twice, or reused before its last answer.
            for _ in 0..20 {
                let read = file.read_at(vec![0; 512], 0);
                let _ = crate::timeout(limit, read).await;
            }
            answered
        });
        sim.run_for(Duration::from_millis(10));
        assert!(
            !sim.dump().contains("slot"),
            "seed {seed}: ops were left\n{}",
            sim.dump()
        );
        let visible = sim
            .disk(node)
            .read_file("/f")
            .is_some_and(|bytes| bytes == [1; 512]);
        assert!(visible || !answered, "seed {seed}");
        in_time += u32::from(answered);
        late += u32::from(!answered);
        happened += u32::from(!answered && visible);
    }
    assert!(
        in_time > 0 && happened > 0 && happened < late,
        "{in_time} {late} {happened}"
    );
}

#[test]
fn shards_of_a_node_call_each_other_and_a_dead_engine_answers_gone() {
    let sim = Sim::new(12);
    let node = sim.node("a");
    let handle = sim.start(node, crate::EngineConfig::unpinned(2)).unwrap();
    let ask = || {
        let handle = handle.clone();
        async move {
            let there = |_: &crate::Shard| -> crate::LocalFut<crate::ShardId> {
                Box::pin(async {
                    crate::sleep(Duration::from_millis(1)).await;
                    crate::shard_id()
                })
            };
            handle.call(crate::ShardId(1), there).await
        }
    };
    assert_eq!(sim.run(node, 0, ask()).unwrap(), crate::ShardId(1));
    sim.crash(node);
    start(&sim, node);
    assert!(matches!(
        sim.run(node, 0, ask()),
        Err(crate::CallError::Gone)
    ));
}

/// Not `Gone`: the shard lives, and takes calls again when tasks have ended.
#[test]
fn a_shard_that_holds_its_most_tasks_is_busy_to_callers() {
    let sim = Sim::new(13);
    let node = sim.node("a");
    let handle = sim.start(node, crate::EngineConfig::unpinned(2)).unwrap();
    let end = Rc::new(Notify::default());
    let waiting = Rc::clone(&end);
    let filled = sim.run(node, 0, async move {
        let mut filled = 0;
        loop {
            let end = Rc::clone(&waiting);
            let task = async move { end.notified().await };
            match crate::try_spawn_local(crate::SchedGroup::FOREGROUND, task) {
                Ok(task) => task.detach(),
                Err(full) => break (filled, full),
            }
            filled += 1;
        }
    });
    assert_eq!(filled.1, crate::CallError::Busy);
    // The task that filled the shard has ended since, so that one more fits.
    let call = |takes| {
        let handle = handle.clone();
        sim.spawn(node, 1, async move {
            let answer =
                move |_: &crate::Shard| -> crate::LocalFut<()> { Box::pin(crate::sleep(takes)) };
            handle.call(crate::ShardId(0), answer).await
        })
    };
    let fits = call(Duration::from_secs(1));
    sim.run_for(Duration::from_millis(1));
    let refused = call(Duration::ZERO);
    assert_eq!(sim.join(&refused), Some(Err(crate::CallError::Busy)));
    assert_eq!(sim.join(&fits), Some(Ok(())));
    end.notify_all();
    sim.run_for(Duration::from_secs(1));
    let taken = call(Duration::ZERO);
    assert_eq!(sim.join(&taken), Some(Ok(())), "of {} tasks", filled.0);
}
