//! The process is killed and the machine is not: everything that was acknowledged is there.

use super::*;

fn config_of(bytes: u64) -> VolumeConfig {
    VolumeConfig {
        unflushed_bytes: bytes,
        ..config()
    }
}

fn kill(sim: &Sim, node: NodeId) {
    sim.kill(node);
    sim.start(node, engine_config()).unwrap();
}

fn crash(sim: &Sim, node: NodeId) {
    sim.crash(node);
    sim.start(node, engine_config()).unwrap();
}

async fn all(device: &Attachment) -> Vec<u64> {
    let len = device.geometry().bytes as usize;
    stamps(&read(device, 0, len).await.unwrap())
}

#[test]
fn what_was_acknowledged_is_there_after_a_kill_and_durable_after_the_next_flush() {
    let (sim, node) = world(1);
    let id = sim.run(node, 0, async move {
        let store = open().await;
        assert_eq!(store.survived(), Survived::Closed);
        let volume = store.create(new_volume("v", MIB)).await.unwrap().id;
        let device = attach(&store, volume).await;
        write(&device, 0, &sectors(1, 2048)).await.unwrap();
        device.flush().await.unwrap();
        // In place, to new blocks behind a snapshot, and emptied.
        write(&device, 512 * 100, &sectors(2, 9)).await.unwrap();
        store.snapshot(volume, "s".into()).await.unwrap();
        write(&device, 512 * 301, &sectors(3, 400)).await.unwrap();
        device.discard(64 * KIB * 8, 128 * KIB).await.unwrap();
        let zeroed = device.write_zeroes(512 * 2000, 512 * 48, true, false).await;
        zeroed.unwrap();
        volume
    });
    let mut model = vec![1; 2048];
    model[100..109].fill(2);
    model[301..701].fill(3);
    model[1024..1280].fill(0);
    model[2000..].fill(0);
    let wanted = model.clone();
    kill(&sim, node);
    sim.run(node, 0, async move {
        let store = open().await;
        assert_eq!(store.survived(), Survived::Acknowledged);
        let device = attach(&store, id).await;
        assert_eq!(device.survived(), Survived::Acknowledged);
        assert_eq!(all(&device).await, wanted);
        device.flush().await.unwrap();
        audit(&store).await;
    });
    crash(&sim, node);
    sim.run(node, 0, async move {
        let store = open().await;
        assert!(matches!(store.survived(), Survived::Flushed(_)));
        assert_eq!(all(&attach(&store, id).await).await, model);
        store.close().await.unwrap();
        drop(store);
        assert_eq!(open().await.survived(), Survived::Closed);
    });
}

/// What a killed life had emptied is referred to by the durable map until a flush: nobody is given it.
#[test]
fn what_is_durable_keeps_its_clusters_until_a_flush_says_otherwise() {
    for seed in 0..8 {
        let (sim, node) = world(seed);
        let ids = sim.run(node, 0, async move {
            let store = open().await;
            let mut ids = Vec::new();
            for (stamp, name) in [(1, "a"), (2, "b")] {
                let volume = store.create(new_volume(name, MIB)).await.unwrap().id;
                let device = attach(&store, volume).await;
                write(&device, 0, &sectors(stamp, 1024)).await.unwrap();
                device.flush().await.unwrap();
                ids.push(volume);
            }
            let device = attach(&store, ids[0]).await;
            device.discard(0, MIB).await.unwrap();
            ids
        });
        kill(&sim, node);
        let (a, b) = (ids[0], ids[1]);
        sim.run(node, 0, async move {
            let store = open().await;
            assert_eq!(all(&attach(&store, a).await).await, [0; 2048]);
            let other = attach(&store, b).await;
            write(&other, 0, &sectors(3, 2048)).await.unwrap();
            other.flush().await.unwrap();
        });
        crash(&sim, node);
        sim.run(node, 0, async move {
            let store = open().await;
            let seen = all(&attach(&store, a).await).await;
            assert!(seen.iter().all(|stamp| [0, 1].contains(stamp)), "{seen:?}");
            assert_eq!(all(&attach(&store, b).await).await, [3; 2048]);
            audit(&store).await;
        });
    }
}

#[test]
fn a_rollback_is_not_undone_by_what_was_entered_before() {
    let (sim, node) = world(3);
    let id = sim.run(node, 0, async move {
        let store = open().await;
        let volume = store.create(new_volume("v", MIB)).await.unwrap().id;
        let device = attach(&store, volume).await;
        write(&device, 0, &sectors(1, 1000)).await.unwrap();
        let first = store.snapshot(volume, "first".into()).await.unwrap().id;
        write(&device, 0, &sectors(2, 500)).await.unwrap();
        drop(device);
        store.rollback(volume, first).await.unwrap();
        let device = attach(&store, volume).await;
        write(&device, 0, &sectors(3, 8)).await.unwrap();
        volume
    });
    kill(&sim, node);
    sim.run(node, 0, async move {
        let store = open().await;
        let seen = all(&attach(&store, id).await).await;
        let mut model = vec![1; 1000];
        model.resize(2048, 0);
        model[..8].fill(3);
        assert_eq!(seen, model);
        audit(&store).await;
    });
}

/// Many volumes that nobody flushes: the memory fills up again and again, and nobody is refused.
#[test]
fn full_memory_makes_writers_wait_and_loses_nothing() {
    let (sim, node) = world(4);
    let (ids, models) = sim.run(node, 0, async move {
        let store = open_with(&config_of(0)).await.unwrap();
        let mut ids = Vec::new();
        let mut models: Vec<Vec<u64>> = Vec::new();
        for number in 0..6_u64 {
            let made = store.create(new_volume(&format!("v{number}"), MIB)).await;
            let device = attach(&store, made.unwrap().id).await;
            let mut model = vec![0; 2048];
            for at in 0..2048_u64 {
                // One block a cluster each, emptied and written in turns.
                let block = (at * 16 + at / 16) % 256;
                let stamp = number << 32 | at;
                let empties = (at + at / 256) % 3 == 2;
                if empties {
                    device.discard(block * 4096, 4096).await.unwrap();
                } else {
                    let wrote = write(&device, block * 4096, &sectors(stamp, 8)).await;
                    wrote.unwrap();
                }
                let now = if empties { 0 } else { stamp };
                model[block as usize * 8..][..8].fill(now);
            }
            ids.push(device.volume());
            models.push(model);
        }
        let appends = store.inner.log.metrics().appends;
        assert!(
            appends > 12,
            "{appends} records: only volumes were made and attached"
        );
        (ids, models)
    });
    kill(&sim, node);
    sim.run(node, 0, async move {
        let store = open_with(&config_of(0)).await.unwrap();
        for (id, model) in ids.into_iter().zip(models) {
            assert_eq!(all(&attach(&store, id).await).await, model);
        }
        audit(&store).await;
    });
}

#[test]
fn a_failed_flush_is_told_after_a_kill() {
    let (sim, node) = world(5);
    let disk = sim.disk(node);
    sim.run(node, 0, async move {
        let store = open().await;
        let volume = store.create(new_volume("v", MIB)).await.unwrap().id;
        let device = attach(&store, volume).await;
        write(&device, 0, &sectors(1, 64)).await.unwrap();
        disk.fail_next_sync();
        assert!(device.flush().await.is_err());
    });
    kill(&sim, node);
    sim.run(node, 0, async move {
        let store = open().await;
        assert_eq!(store.survived(), Survived::Flushed("a flush had failed"));
    });
}

#[test]
fn starts_that_are_killed_lose_nothing_and_undo_nothing() {
    for seed in 0..24 {
        let (sim, node) = world(seed);
        let id = sim.run(node, 0, async move {
            let store = open().await;
            let volume = store.create(new_volume("v", MIB)).await.unwrap().id;
            let device = attach(&store, volume).await;
            write(&device, 0, &sectors(1, 2048)).await.unwrap();
            device.flush().await.unwrap();
            store.snapshot(volume, "s".into()).await.unwrap();
            for at in 0..16 {
                let wrote = write(&device, at * 64 * KIB + 4096, &sectors(2, 3)).await;
                wrote.unwrap();
            }
            device.discard(64 * KIB * 3, 64 * KIB).await.unwrap();
            volume
        });
        let mut rng = engine::Rng::new(seed);
        for _ in 0..4 {
            kill(&sim, node);
            let _killed = sim.spawn(node, 0, open());
            sim.run_for(std::time::Duration::from_micros(rng.below(3_000)));
        }
        kill(&sim, node);
        sim.run(node, 0, async move {
            let store = open().await;
            assert_eq!(store.survived(), Survived::Acknowledged);
            let mut model = vec![1; 2048];
            for at in 0..16 {
                model[at * 128 + 8..][..3].fill(2);
            }
            model[3 * 128..4 * 128].fill(0);
            assert_eq!(all(&attach(&store, id).await).await, model, "seed {seed}");
            audit(&store).await;
        });
    }
}

#[test]
fn a_partition_is_opened_when_nobody_else_has_it() {
    let (sim, node) = world(7);
    sim.run(node, 0, async move {
        let first = open().await;
        let begin = engine::now();
        let refused = open_with(&config()).await.unwrap_err();
        assert!(refused.to_string().contains("in use"), "{refused}");
        assert!(engine::now().since(begin).as_secs() >= 60);
        let second = futures_util::future::join(open(), async move {
            engine::sleep(std::time::Duration::from_secs(5)).await;
            let ended = engine::now();
            drop(first);
            ended
        });
        let (_store, ended) = second.await;
        assert!(engine::now() >= ended);
    });
}

const UNFLUSHED: &str = "/data/v000/unflushed";

async fn mapped() -> engine::SurvivingMem {
    let options = engine::fs::OpenOptions {
        write: true,
        ..engine::fs::OpenOptions::default()
    };
    let file = engine::fs::File::open(UNFLUSHED, options).await.unwrap();
    let len = file.opened_len() as usize;
    file.map_surviving(len).await.unwrap()
}

async fn bytes_of_unflushed() -> Vec<u8> {
    let mem = mapped().await;
    let mut bytes = vec![0; mem.len()];
    mem.copy_out(0, &mut bytes).unwrap();
    bytes
}

/// Two volumes, of which the one has freed what the other has been given since the file was copied.
async fn copied_and_gone_on() -> (Partition, VolumeId, Vec<u8>) {
    let store = open().await;
    let first = store.create(new_volume("a", MIB)).await.unwrap().id;
    let second = store.create(new_volume("b", MIB)).await.unwrap().id;
    let device = attach(&store, first).await;
    write(&device, 0, &sectors(1, 1024)).await.unwrap();
    let old = bytes_of_unflushed().await;
    device.discard(0, MIB).await.unwrap();
    device.flush().await.unwrap();
    let other = attach(&store, second).await;
    write(&other, 0, &sectors(2, 2048)).await.unwrap();
    other.flush().await.unwrap();
    (store, first, old)
}

/// As when files are restored from a backup, and this one is left.
#[test]
fn a_log_that_was_closed_is_not_changed_by_what_lies_beside_it() {
    let (sim, node) = world(8);
    sim.run(node, 0, async {
        let (store, first, old) = copied_and_gone_on().await;
        store.close().await.unwrap();
        drop(store);
        mapped().await.copy_in(0, &old).unwrap();
        let store = open().await;
        assert_eq!(store.survived(), Survived::Closed);
        assert_eq!(all(&attach(&store, first).await).await, [0; 2048]);
        audit(&store).await;
    });
}

#[test]
fn entries_of_another_log_are_not_played_and_each_start_says_so_until_a_close() {
    let (sim, node) = world(9);
    let first = sim.run(node, 0, async {
        let (_store, first, old) = copied_and_gone_on().await;
        mapped().await.copy_in(0, &old).unwrap();
        first
    });
    let why = "they belong to another log than is there";
    for stamp in 0..3 {
        kill(&sim, node);
        sim.run(node, 0, async move {
            let store = open().await;
            assert_eq!(store.survived(), Survived::Flushed(why));
            let device = attach(&store, first).await;
            // What was entered since is kept all the same.
            let mut model = vec![stamp; 8];
            model.resize(2048, 0);
            assert_eq!(all(&device).await, model);
            write(&device, 0, &sectors(stamp + 1, 8)).await.unwrap();
            audit(&store).await;
        });
    }
    kill(&sim, node);
    sim.run(node, 0, async move {
        open().await.close().await.unwrap();
        assert_eq!(open().await.survived(), Survived::Closed);
    });
    kill(&sim, node);
    let survived = sim.run(node, 0, async { open().await.survived() });
    assert_eq!(survived, Survived::Acknowledged);
}

/// The kernel tells of it once.
#[test]
fn a_flush_that_fails_at_a_start_is_told_by_the_next() {
    let mut told = 0;
    for seed in 48..300 {
        let (sim, node) = world(seed);
        let disk = sim.disk(node);
        sim.run(node, 0, async {
            let store = open().await;
            let volume = store.create(new_volume("v", MIB)).await.unwrap().id;
            let device = attach(&store, volume).await;
            write(&device, 0, &sectors(1, 64)).await.unwrap();
        });
        kill(&sim, node);
        let failed = std::rc::Rc::new(std::cell::RefCell::new(None));
        let opening = Rc::clone(&failed);
        let task = sim.spawn(node, 0, async move {
            let opened = Partition::open(Path::new(ROOT), PartitionId(0), &config()).await;
            *opening.borrow_mut() = opened.err().map(|error| error.to_string());
        });
        sim.run_for(std::time::Duration::from_micros(seed * 60));
        disk.fail_next_sync();
        sim.run_for(std::time::Duration::from_secs(1));
        drop(task);
        let cause = failed.borrow_mut().take();
        let Some(cause) = cause.filter(|cause| cause.contains("/v000/data:")) else {
            continue;
        };
        told += 1;
        kill(&sim, node);
        let survived = sim.run(node, 0, async { open().await.survived() });
        assert_eq!(survived, Survived::Flushed("a flush had failed"), "{cause}");
    }
    assert!(told > 0);
}

/// A guest's connection ends while it waits for a flush, and the kernel has told nobody else.
#[test]
fn a_failed_flush_that_nobody_waits_for_ends_writing_and_is_told_after_a_kill() {
    let (sim, node) = world(10);
    let disk = sim.disk(node);
    sim.run(node, 0, async move {
        let store = open().await;
        let volume = store.create(new_volume("v", MIB)).await.unwrap().id;
        let device = attach(&store, volume).await;
        write(&device, 0, &sectors(1, 64)).await.unwrap();
        disk.fail_next_sync();
        {
            let mut flush = std::pin::pin!(device.flush());
            let begun = std::future::poll_fn(|context| {
                std::task::Poll::Ready(flush.as_mut().poll(context).is_pending())
            });
            assert!(begun.await);
        }
        assert!(device.flush().await.is_err());
        assert!(store.poisoned().is_some());
    });
    kill(&sim, node);
    let survived = sim.run(node, 0, async { open().await.survived() });
    assert_eq!(survived, Survived::Flushed("a flush had failed"));
}
