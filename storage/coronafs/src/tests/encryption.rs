//! Encrypted volumes: what is on disk, who can read it, and what is left of a key.

use super::*;

const SECRET: u64 = 0x5EC2_E75E_C2E7;

fn crash(sim: &Sim, node: NodeId) {
    sim.crash(node);
    sim.start(node, engine_config()).unwrap();
}

fn encrypted(name: &str, bytes: u64) -> NewVolume {
    NewVolume {
        encrypted: true,
        ..new_volume(name, bytes)
    }
}

fn with_master(master_key: Option<MasterKey>) -> VolumeConfig {
    VolumeConfig {
        master_key,
        ..config()
    }
}

/// Whether any file has the secret in clear.
fn is_in_clear(sim: &Sim, node: NodeId) -> bool {
    let disk = sim.disk(node);
    let secret = SECRET.to_le_bytes().repeat(2);
    disk.files().iter().any(|(path, _)| {
        let bytes = disk.read_file(path).unwrap();
        bytes.windows(16).any(|window| window == secret)
    })
}

fn keys_file(sim: &Sim, node: NodeId) -> Vec<u8> {
    sim.disk(node).read_file("/data/v000/keys").unwrap()
}

#[test]
fn an_encrypted_volume_reads_as_written_and_leaves_no_clear_text() {
    let (sim, node) = world(1);
    let (id, clone, model) = sim.run(node, 0, async move {
        let store = open().await;
        let made = store.create(encrypted("v", MIB)).await.unwrap();
        assert!(made.key.is_some());
        let device = attach(&store, made.id).await;
        let mut model = vec![0; 2048];
        let mut put = async |first: usize, count: usize, skew| {
            let list = list_of(&sectors(SECRET, count), skew);
            device.write(first as u64 * 512, list, false).await.unwrap();
            model[first..first + count].fill(SECRET);
        };
        // Whole and in part, aligned and not, over clusters' ends, in place, behind a snapshot.
        put(0, 300, 0).await;
        put(701, 9, 0).await;
        put(703, 2, 72).await;
        let taken = store.snapshot(made.id, "s".into()).await.unwrap();
        put(298, 5, 0).await;
        put(100, 1, 0).await;
        for at in 0..8 {
            put(1024 + at * 9, 1, 0).await;
        }
        device.discard(4096 * 20, 8192).await.unwrap();
        let zeroed = device.write_zeroes(512 * 3, 512 * 3, true, true).await;
        zeroed.unwrap();
        model[160..176].fill(0);
        model[3..6].fill(0);
        let clone = store
            .clone_snapshot(new_clone("c", taken.id))
            .await
            .unwrap();
        assert_eq!(clone.key, made.key);
        let copy = attach(&store, clone.id).await;
        let seen = stamps(&read(&copy, 0, 701 * 512).await.unwrap());
        assert_eq!(seen[..300], [SECRET; 300]);
        write(&copy, 0, &sectors(SECRET + 1, 3)).await.unwrap();
        copy.flush().await.unwrap();
        assert_eq!(
            stamps(&read(&device, 0, MIB as usize).await.unwrap()),
            model
        );
        audit(&store).await;
        (made.id, clone.id, model)
    });
    assert!(!is_in_clear(&sim, node));
    crash(&sim, node);
    sim.run(node, 0, async move {
        let store = open().await;
        let device = attach(&store, id).await;
        assert_eq!(
            stamps(&read(&device, 0, MIB as usize).await.unwrap()),
            model
        );
        let copy = attach(&store, clone).await;
        let seen = stamps(&read(&copy, 0, 300 * 512).await.unwrap());
        assert_eq!(seen[..3], [SECRET + 1; 3]);
        assert_eq!(seen[3..], [SECRET; 297]);
    });
    assert!(!is_in_clear(&sim, node));
}

/// Ranges of these lengths, again and again, each behind a gap.
fn list_in_pieces(mem: &GuestMem, lens: &[u32], mut left: u32) -> GuestList {
    let mut list = GuestList::new();
    let mut offset = 0;
    for len in lens.iter().cycle() {
        let len = left.min(*len);
        list.push(mem, GuestIov { offset, len }).unwrap();
        offset += u64::from(len) + 24;
        left -= len;
        if left == 0 {
            break;
        }
    }
    list
}

#[test]
fn ranges_of_any_length_hold_what_one_range_would() {
    let (sim, node) = world(8);
    sim.run(node, 0, async move {
        let store = open().await;
        let made = store.create(encrypted("v", 2 * MIB)).await.unwrap();
        let device = attach(&store, made.id).await;
        let mem = GuestMem::anonymous(2 * MIB as usize).unwrap();
        // Whole units at any byte, parts of units, and a unit over many ranges.
        let shapes: [&[u32]; 4] = [&[512, 4096, 1024], &[100, 5000], &[511, 1], &[7, 131_072]];
        let (mut bytes, mut stamp) = (vec![0; 1200 * 512], 0_u64);
        for wrote in shapes {
            for seen in shapes {
                // More than a buffer of ours where the ranges are not too many for it.
                let sectors = if wrote == [511, 1] || seen == [511, 1] {
                    200
                } else {
                    1200
                };
                let bytes = &mut bytes[..sectors * 512];
                for sector in bytes.chunks_mut(512) {
                    stamp += 1;
                    sector.copy_from_slice(&stamp.to_le_bytes().repeat(64));
                }
                let from = list_in_pieces(&mem, wrote, bytes.len() as u32);
                from.copy_in(0, bytes).unwrap();
                device.write(3 * 512, from, false).await.unwrap();
                let read = read(&device, 3 * 512, bytes.len()).await.unwrap();
                assert!(read == *bytes, "written by {wrote:?}");
                mem.fill_zero(0, mem.len()).unwrap();
                let into = list_in_pieces(&mem, seen, bytes.len() as u32);
                device.read(3 * 512, into.clone()).await.unwrap();
                let mut read = vec![0; bytes.len()];
                into.copy_out(0, &mut read).unwrap();
                assert!(read == *bytes, "read by {seen:?}");
            }
        }
    });
}

#[test]
fn a_read_that_fails_leaves_what_the_guest_had() {
    let (sim, node) = world(9);
    let disk = sim.disk(node);
    sim.run(node, 0, async move {
        let store = open().await;
        let made = store.create(encrypted("v", MIB)).await.unwrap();
        let device = attach(&store, made.id).await;
        write(&device, 0, &sectors(5, 256)).await.unwrap();
        let list = list_of(&sectors(6, 256), 0);
        disk.fail_next_read();
        assert!(device.read(0, list.clone()).await.is_err());
        let mut bytes = vec![0; 256 * 512];
        list.copy_out(0, &mut bytes).unwrap();
        assert_eq!(stamps(&bytes), [6; 256]);
        device.read(0, list.clone()).await.unwrap();
        list.copy_out(0, &mut bytes).unwrap();
        assert_eq!(stamps(&bytes), [5; 256]);
    });
}

#[test]
fn another_master_key_is_refused_by_the_key_s_number_and_damages_nothing() {
    let (sim, node) = world(2);
    let (id, key) = sim.run(node, 0, async move {
        let store = open().await;
        let made = store.create(encrypted("v", MIB)).await.unwrap();
        let device = attach(&store, made.id).await;
        write(&device, 0, &sectors(7, 100)).await.unwrap();
        device.flush().await.unwrap();
        (made.id, made.key.unwrap())
    });
    crash(&sim, node);
    let before = keys_file(&sim, node);
    sim.run(node, 0, async move {
        for (master, why) in [
            (
                Some(MasterKey::new([9; 32])),
                "another master key has wrapped it",
            ),
            (None, "no master key is configured"),
        ] {
            let refused = open_with(&with_master(master)).await.unwrap_err();
            assert_eq!(refused, VolumeError::Key { id: key, why });
            assert!(
                refused.to_string().contains(&key.0.to_string()),
                "{refused}"
            );
        }
    });
    assert_eq!(keys_file(&sim, node), before);
    sim.run(node, 0, async move {
        let store = open().await;
        let device = attach(&store, id).await;
        assert_eq!(stamps(&read(&device, 0, 51_200).await.unwrap()), [7; 100]);
    });
    let (sim, node) = world(3);
    sim.run(node, 0, async move {
        let store = open_with(&with_master(None)).await.unwrap();
        let refused = store.create(encrypted("v", MIB)).await.unwrap_err();
        assert!(matches!(refused, VolumeError::Invalid { .. }), "{refused}");
        store.create(new_volume("v", MIB)).await.unwrap();
    });
}

#[test]
fn a_key_is_overwritten_when_the_last_that_has_it_is_removed() {
    let (sim, node) = world(4);
    let disk = sim.disk(node);
    sim.run(node, 0, async move {
        let store = open().await;
        let keys = || disk.read_file("/data/v000/keys").unwrap();
        let used = || {
            keys()
                .chunks(512)
                .filter(|slot| slot.iter().any(|byte| *byte != 0))
                .count()
        };
        let first = store.create(encrypted("a", MIB)).await.unwrap().id;
        let other = store.create(encrypted("b", MIB)).await.unwrap().id;
        assert_eq!(used(), 2);
        let taken = store.snapshot(first, "s".into()).await.unwrap().id;
        let clone = store
            .clone_snapshot(new_clone("c", taken))
            .await
            .unwrap()
            .id;
        store.delete(other).await.unwrap();
        assert_eq!(used(), 1);
        store.delete_snapshot(taken).await.unwrap();
        store.delete(first).await.unwrap();
        assert_eq!(used(), 1);
        store.delete(clone).await.unwrap();
        assert_eq!(used(), 0);
        // A slot is used again, and a volume that is not made leaves none.
        store.create(encrypted("d", MIB)).await.unwrap();
        assert_eq!((used(), keys().len()), (1, 1024));
        let taken = store.create(encrypted("d", MIB)).await.unwrap_err();
        assert_eq!(taken, VolumeError::NameTaken("d".into()));
        assert_eq!(used(), 1);
    });
}

#[test]
fn a_key_that_nobody_has_is_erased_by_the_next_start() {
    let (sim, node) = world(5);
    sim.run(node, 0, async move {
        let store = open().await;
        store.create(encrypted("kept", MIB)).await.unwrap();
        // As when the power went before its volume was durable.
        store.inner.keys.make(KeyId(77)).await.unwrap();
    });
    crash(&sim, node);
    sim.run(node, 0, async move { drop(open().await) });
    let keys = keys_file(&sim, node);
    assert_eq!(keys[512..], [0; 512]);
    assert_ne!(keys[..512], [0; 512]);
}

#[test]
fn many_transfers_that_need_buffers_wait_for_them() {
    let (sim, node) = world(6);
    sim.run(node, 0, async move {
        let store = open().await;
        let made = store.create(encrypted("v", 32 * MIB)).await.unwrap();
        let plain = store.create(new_volume("p", 32 * MIB)).await.unwrap();
        // Twice as much as the shard's pool, at once, of each.
        for (id, skew) in [(made.id, 0), (plain.id, 72)] {
            let device = attach(&store, id).await;
            for round in 1..3 {
                let writes = (0..64_u64).map(|at| {
                    let list = list_of(&sectors(round << 32 | at, 1024), skew);
                    device.write(at * 512 * KIB, list, false)
                });
                for wrote in futures_util::future::join_all(writes).await {
                    wrote.unwrap();
                }
            }
            let mem = GuestMem::anonymous((32 * MIB) as usize + 4096).unwrap();
            let reads = (0..64_u64).map(|at| {
                let list = list_over(&mem, at as usize * 512 * 1024 + skew, 512 << 10);
                device.read(at * 512 * KIB, list)
            });
            for read in futures_util::future::join_all(reads).await {
                read.unwrap();
            }
            let mut first = [0; 8];
            mem.copy_out(63 * 512 * KIB + skew as u64, &mut first)
                .unwrap();
            assert_eq!(u64::from_le_bytes(first), 2 << 32 | 63);
        }
    });
}

/// As on a file system that writes elsewhere what is written over.
#[test]
fn a_key_that_could_not_be_erased_is_erased_by_later_removals_before_they_answer() {
    let (sim, node) = world(7);
    let disk = sim.disk(node);
    sim.run(node, 0, async move {
        let store = open().await;
        let first = store.create(encrypted("a", MIB)).await.unwrap().id;
        let other = store.create(new_volume("b", MIB)).await.unwrap().id;
        store.inner.checkpoints.ended().await;
        let options = engine::fs::OpenOptions {
            write: true,
            ..engine::fs::OpenOptions::default()
        };
        let file = engine::fs::File::open("/data/v000/keys", options).await;
        file.unwrap().discard(0, 4096).await.unwrap();
        disk.set_capacity(disk.used_bytes());
        assert_eq!(store.delete(first).await, Err(VolumeError::Full));
        assert_eq!(store.find("me", "a"), None);
        for id in [first, other] {
            assert_eq!(store.delete(id).await, Err(VolumeError::Full));
        }
        assert!(store.stat(other).is_ok());
        let used = disk.used_bytes();
        disk.set_capacity(1 << 40);
        assert_eq!(store.delete(first).await, Err(VolumeError::NoSuchVolume));
        assert_eq!(disk.used_bytes(), used + 4096);
        store.delete(other).await.unwrap();
        assert_eq!(store.poisoned(), None);
    });
}
