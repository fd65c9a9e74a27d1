//! What survives a crash and what a disk may refuse.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use super::super::Sim;
use super::{durable_file, logged, one_node, start, writable};
use crate::backend::OpenOptions;
use crate::fs::{self, File};
use crate::{EngineConfig, SchedGroup};

const KIB: usize = 1024;

#[test]
fn acknowledged_synced_data_survives_a_crash_at_any_point() {
    for seed in 0..200 {
        let (sim, node) = one_node(seed);
        let acknowledged = logged(&sim, node, |log| async move {
            let file = durable_file("/log").await;
            for number in 0..64_u64 {
                let bytes = vec![number as u8 + 1; 1_500];
                let offset = number * 1_500;
                let done = match number % 3 {
                    0 => file.write_then_datasync(bytes, offset).await.0,
                    1 => file.write_durable(bytes, offset).await.0,
                    _ => {
                        file.write_at(bytes, offset).await.0.unwrap();
                        file.datasync().await
                    }
                };
                done.unwrap();
                log.borrow_mut().push(number);
            }
        });
        sim.run_for(Duration::from_micros(500 + seed * 150));
        sim.crash(node);
        let bytes = sim.disk(node).read_file("/log").unwrap_or_default();
        let acknowledged = acknowledged.borrow();
        for number in acknowledged.iter() {
            let start = *number as usize * 1_500;
            let record = bytes.get(start..start + 1_500);
            let whole = record.is_some_and(|r| r.iter().all(|b| *b == *number as u8 + 1));
            assert!(
                whole,
                "seed {seed}: record {number} of {} is lost",
                acknowledged.len()
            );
        }
    }
}

#[test]
fn unsynced_writes_tear_at_sectors_and_never_inside_one() {
    let mut kept = BTreeSet::new();
    for seed in 0..64 {
        let (sim, node) = one_node(seed);
        sim.run(node, 0, async {
            let file = durable_file("/f").await;
            file.write_then_datasync(vec![1; 4 * KIB], 0)
                .await
                .0
                .unwrap();
            file.write_at(vec![2; 4 * KIB], 0).await.0.unwrap();
        });
        sim.crash(node);
        let bytes = sim.disk(node).read_file("/f").unwrap();
        assert_eq!(bytes.len(), 4 * KIB);
        let mut new = 0;
        for sector in bytes.chunks(512) {
            assert!(
                sector.iter().all(|b| *b == sector[0]),
                "seed {seed}: torn inside a sector"
            );
            assert!(
                sector[0] == 1 || sector[0] == 2,
                "seed {seed}: bytes from nowhere"
            );
            new += u32::from(sector[0] == 2);
        }
        kept.insert(new);
    }
    assert!(
        kept.len() > 3,
        "sectors are kept and lost one by one, seen {kept:?}"
    );
}

#[test]
fn a_write_in_flight_at_a_crash_happened_in_full_in_part_or_not() {
    let mut kept = BTreeSet::new();
    for seed in 0..128 {
        let (sim, node) = one_node(seed);
        sim.run(node, 0, async {
            let file = durable_file("/f").await;
            file.write_then_datasync(vec![1; 2 * KIB], 0)
                .await
                .0
                .unwrap();
        });
        sim.disk(node).set_slow_factor(1_000);
        let _detached = sim.spawn(node, 0, async {
            let file = File::open("/f", writable()).await.unwrap();
            file.write_durable(vec![2; 2 * KIB], 0).await.0.unwrap();
            panic!("the write was to be in flight");
        });
        // The open takes up to 200 ms on the slow disk, the write at least 20 ms.
        sim.run_for(Duration::from_millis(15));
        for _ in 0..1_000 {
            if sim.dump().contains(": write ") {
                break;
            }
            sim.run_for(Duration::from_millis(1));
        }
        assert!(
            sim.dump().contains(": write "),
            "seed {seed}: no write in flight"
        );
        sim.crash(node);
        let bytes = sim.disk(node).read_file("/f").unwrap();
        kept.insert(bytes.chunks(512).filter(|sector| sector[0] == 2).count());
    }
    assert!(kept.contains(&0) && kept.len() >= 4, "seen {kept:?}");
}

#[test]
fn names_survive_a_crash_only_after_a_directory_sync() {
    let (mut kept, mut lost) = (0, 0);
    for seed in 0..64 {
        let (sim, node) = one_node(seed);
        sim.run(node, 0, async {
            fs::create_dir_all("/d").await.unwrap();
            fs::sync_dir("/").await.unwrap();
            let old = File::open("/d/old", writable()).await.unwrap();
            old.write_then_datasync(vec![1; 512], 0).await.0.unwrap();
            fs::sync_dir("/d").await.unwrap();
            let new = File::open("/d/tmp", writable()).await.unwrap();
            new.write_then_datasync(vec![2; 512], 0).await.0.unwrap();
            fs::rename("/d/tmp", "/d/old").await.unwrap();
        });
        sim.crash(node);
        let disk = sim.disk(node);
        match disk
            .read_file("/d/old")
            .expect("the name was durable")
            .first()
        {
            Some(1) => lost += 1,
            Some(2) => {
                kept += 1;
                assert!(
                    disk.read_file("/d/tmp").is_none(),
                    "seed {seed}: half a rename"
                );
            }
            other => panic!("seed {seed}: {other:?}"),
        }
    }
    assert!(kept > 0 && lost > 0, "kept {kept}, lost {lost}");
}

#[test]
fn a_synced_rename_survives_every_crash() {
    for seed in 0..64 {
        let (sim, node) = one_node(seed);
        sim.run(node, 0, async {
            let file = File::open("/tmp", writable()).await.unwrap();
            file.write_then_datasync(vec![7; 700], 0).await.0.unwrap();
            fs::rename("/tmp", "/final").await.unwrap();
            fs::sync_dir("/").await.unwrap();
        });
        sim.crash(node);
        assert_eq!(
            sim.disk(node).read_file("/final"),
            Some(vec![7; 700]),
            "seed {seed}"
        );
        assert_eq!(sim.disk(node).files().len(), 1);
    }
}

#[test]
fn after_a_failed_sync_a_later_one_does_not_bring_the_data_back() {
    let mut lost = 0;
    for seed in 0..64 {
        let (sim, node) = one_node(seed);
        let disk = sim.disk(node);
        sim.run(node, 0, async move {
            let file = durable_file("/f").await;
            file.write_then_datasync(vec![1; KIB], 0).await.0.unwrap();
            file.write_at(vec![2; KIB], 0).await.0.unwrap();
            disk.fail_next_sync();
            let failed = file.datasync().await.unwrap_err();
            assert_eq!(failed.raw_os_error().or(Some(libc::EIO)), Some(libc::EIO));
            file.datasync().await.unwrap();
            let (read, bytes) = file.read_at(vec![0; KIB], 0).await;
            assert_eq!(read.unwrap(), KIB);
            assert_eq!(bytes, vec![2; KIB], "readers see what was written");
        });
        sim.crash(node);
        let bytes = sim.disk(node).read_file("/f").unwrap();
        lost += u32::from(bytes.contains(&1));
    }
    assert!(lost > 16, "a failed sync loses data in {lost} of 64 seeds");
}

#[test]
fn a_full_disk_refuses_and_space_comes_back() {
    let (sim, node) = one_node(1);
    let disk = sim.disk(node);
    disk.set_capacity(64 * KIB as u64);
    sim.run(node, 0, async move {
        let file = File::open("/f", writable()).await.unwrap();
        file.write_at(vec![1; 48 * KIB], 0).await.0.unwrap();
        let full = file
            .write_at(vec![1; 32 * KIB], 48 * KIB as u64)
            .await
            .0
            .unwrap_err();
        assert_eq!(
            full.kind(),
            std::io::ErrorKind::WriteZero,
            "a half was written"
        );
        assert_eq!(fs::space("/").await.unwrap().available, 0);
        let full = file.allocate(64 * KIB as u64, 4 * KIB as u64).await;
        assert_eq!(full.unwrap_err().kind(), std::io::ErrorKind::StorageFull);
        let full = file.write_at(vec![1; KIB], 64 * KIB as u64).await.0;
        assert_eq!(full.unwrap_err().kind(), std::io::ErrorKind::StorageFull);
        file.discard(0, 32 * KIB as u64).await.unwrap();
        file.write_at(vec![1; 32 * KIB], 48 * KIB as u64)
            .await
            .0
            .unwrap();
        let (read, bytes) = file.read_at(vec![0; KIB], 0).await;
        assert_eq!((read.unwrap(), bytes), (KIB, vec![0; KIB]));
        drop(file);
        fs::remove_file("/f").await.unwrap();
        fs::sync_dir("/").await.unwrap();
    });
    sim.stop(node);
    start(&sim, node);
    let space = sim.run(node, 0, async { fs::space("/").await.unwrap() });
    assert_eq!(space.available, space.total);
}

#[test]
fn a_removed_file_gives_its_space_back_when_it_is_closed() {
    let (sim, node) = one_node(1);
    let disk = sim.disk(node);
    sim.run(node, 0, async move {
        let kept = File::open("/kept", writable()).await.unwrap();
        kept.write_at(vec![1; 8 * KIB], 0).await.0.unwrap();
        fs::remove_file("/kept").await.unwrap();
        fs::sync_dir("/").await.unwrap();
        assert_eq!(disk.used_bytes(), 8 * KIB as u64, "it is open");
        let closed = durable_file("/closed").await;
        closed.write_at(vec![1; 16 * KIB], 0).await.0.unwrap();
        drop((kept, closed));
        fs::sync_dir("/").await.unwrap();
        assert_eq!(disk.used_bytes(), 16 * KIB as u64);
        fs::remove_file("/closed").await.unwrap();
        assert_eq!(disk.used_bytes(), 0, "the name need not be synced");
    });
}

#[test]
fn a_failed_flush_of_a_durable_write_loses_what_it_should_have_kept() {
    let mut lost = 0;
    for seed in 0..64 {
        let (sim, node) = one_node(seed);
        let disk = sim.disk(node);
        sim.run(node, 0, async move {
            let file = durable_file("/f").await;
            file.write_durable(vec![1; 2 * KIB], 0).await.0.unwrap();
            disk.fail_next_sync();
            assert!(file.write_durable(vec![2; KIB], 0).await.0.is_err());
            file.datasync().await.unwrap();
            let (read, bytes) = file.read_at(vec![0; 2 * KIB], 0).await;
            assert_eq!(read.unwrap(), 2 * KIB);
            assert_eq!(bytes[..KIB], vec![2; KIB], "readers see what was written");
        });
        sim.crash(node);
        let bytes = sim.disk(node).read_file("/f").unwrap();
        assert_eq!(
            bytes[KIB..],
            vec![1; KIB],
            "seed {seed}: it was not written"
        );
        lost += u32::from(bytes[..KIB].contains(&1));
    }
    assert!(lost > 16, "a failed flush loses data in {lost} of 64 seeds");
}

#[test]
fn without_a_slot_an_operation_is_not_started_and_says_so() {
    let sim = Sim::new(5);
    let node = sim.node("a");
    let mut config = EngineConfig::unpinned(1);
    config.ops_max = 64;
    sim.start(node, config).unwrap();
    sim.run(node, 0, async {
        let file = Rc::new(durable_file("/f").await);
        let writes: Vec<_> = (0..100_u8)
            .map(|number| {
                let file = Rc::clone(&file);
                let write = async move { file.write_at(vec![number; 512], 0).await.0 };
                crate::spawn_local(SchedGroup::FOREGROUND, write)
            })
            .collect();
        let mut refused = 0;
        for write in writes {
            if let Err(error) = write.await {
                assert_eq!(error.kind(), std::io::ErrorKind::ResourceBusy, "{error}");
                refused += 1;
            }
        }
        assert!(refused > 30 && refused < 100, "{refused} of 100");
    });
}

#[test]
fn direct_files_refuse_what_is_not_aligned() {
    let (sim, node) = one_node(2);
    sim.run(node, 0, async {
        let options = OpenOptions {
            direct: true,
            ..writable()
        };
        let file = File::open("/f", options).await.unwrap();
        let aligned = || crate::take_buf(4 * KIB).unwrap();
        file.write_at(aligned(), 4 * KIB as u64).await.0.unwrap();
        assert!(file.write_at(aligned(), 512).await.0.is_err(), "offset");
        assert!(
            file.write_at(aligned().slice(0..512), 0).await.0.is_err(),
            "length"
        );
        assert!(
            file.write_at(aligned().slice(1..4 * KIB), 0)
                .await
                .0
                .is_err(),
            "memory"
        );
    });
}

#[test]
fn bits_rot_and_reads_and_writes_fail_where_a_test_says_so() {
    let (sim, node) = one_node(3);
    let disk = sim.disk(node);
    sim.run(node, 0, async {
        let file = durable_file("/f").await;
        file.write_then_datasync(vec![0; KIB], 0).await.0.unwrap();
    });
    disk.flip_bit("/f", 600);
    let bytes = disk.read_file("/f").unwrap();
    assert_eq!(bytes.iter().map(|b| b.count_ones()).sum::<u32>(), 1);
    assert_ne!(bytes[600], 0);
    sim.run(node, 0, async move {
        let file = File::open("/f", writable()).await.unwrap();
        disk.fail_next_read();
        assert!(file.read_at(vec![0; KIB], 0).await.0.is_err());
        assert!(file.read_at(vec![0; KIB], 0).await.0.is_ok());
        disk.fail_next_write();
        assert!(file.write_at(vec![1; KIB], 0).await.0.is_err());
        assert!(file.write_at(vec![1; KIB], 0).await.0.is_ok());
    });
}

#[test]
fn a_lock_is_exclusive_on_a_node_and_ends_with_its_engine() {
    let (sim, node) = one_node(4);
    let holder = async {
        let file = File::open("/lock", writable()).await.unwrap();
        file.lock().await.map(|()| file)
    };
    let held = sim.run(node, 0, holder).unwrap();
    start(&sim, node);
    let second = async {
        let file = File::open("/lock", writable()).await.unwrap();
        file.lock().await.map_err(|e| e.kind())
    };
    assert_eq!(
        sim.run(node, 1, second),
        Err(std::io::ErrorKind::WouldBlock)
    );
    drop(held);
    sim.crash(node);
    start(&sim, node);
    let again = async {
        let file = File::open("/lock", writable()).await.unwrap();
        file.lock().await.is_ok()
    };
    assert!(sim.run(node, 0, again));
}
