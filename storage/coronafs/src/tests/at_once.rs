//! Reads at once, on the real engine and a partition that lies in memory.

use engine::{Engine, ShardId};

use super::*;

const BYTES: u64 = MIB;

fn run<F: Future<Output = ()> + 'static>(test: impl FnOnce(Partition) -> F + Send + 'static) {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let root = dir.path().to_owned();
    let engine = Engine::start(engine_config()).unwrap();
    let ran = engine.handle().call_blocking(ShardId(0), move |_| {
        Box::pin(async move {
            let store = Partition::open(&root, PartitionId(0), &config()).await;
            test(store.unwrap()).await;
        })
    });
    ran.unwrap();
    engine.shutdown().unwrap();
}

/// What a read at once gives; None when there is none.
fn read_at_once(device: &Attachment, offset: u64, len: u64) -> Option<Vec<u8>> {
    let mut bytes = vec![0xEE; len as usize];
    let mem = GuestMem::anonymous(bytes.len()).unwrap();
    mem.copy_in(0, &bytes).unwrap();
    let list = list_over(&mem, 0, bytes.len());
    let read = device.read_now(offset, &list);
    mem.copy_out(0, &mut bytes).unwrap();
    if read.is_none() {
        assert!(bytes.iter().all(|byte| *byte == 0xEE), "it wrote something");
    }
    read.map(|read| read.unwrap()).map(|()| bytes)
}

/// The same where there must be one, in a turn that has time for it.
async fn must_read(device: &Attachment, offset: u64, len: u64) -> Vec<u8> {
    for _ in 0..1000 {
        engine::yield_now().await;
        if let Some(found) = read_at_once(device, offset, len) {
            return found;
        }
    }
    panic!("{len} bytes at {offset} are not read at once");
}

/// Compares both ways to read all over the device. How many reads were done at once.
async fn compare(device: &Attachment) -> usize {
    let mut done = 0;
    for _ in 0..64 {
        let first = engine::random() % (BYTES / 512);
        let sectors = 1 + engine::random() % (BYTES / 512 - first).min(300);
        let (offset, len) = (first * 512, sectors * 512);
        let wanted = read(device, offset, len as usize).await.unwrap();
        // A new turn, as reads at once are no more than one allows.
        engine::yield_now().await;
        if let Some(found) = read_at_once(device, offset, len) {
            assert!(found == wanted, "{len} bytes at {offset}");
            done += 1;
        }
    }
    done
}

#[test]
fn they_agree_with_reads_after_any_change() {
    run(|store| async move {
        let volume = store.create(new_volume("v", BYTES)).await.unwrap().id;
        let mut device = attach(&store, volume).await;
        assert_eq!(compare(&device).await, 0, "holes are not on the disk");
        let mut kept = Vec::new();
        let mut done = 0;
        for round in 0..40_u64 {
            let first = engine::random() % (BYTES / 512 - 200);
            let bytes = sectors(round + 1, 1 + (engine::random() % 200) as usize);
            match engine::random() % 6 {
                0 => device
                    .discard(first * 512, bytes.len() as u64)
                    .await
                    .unwrap(),
                1 => {
                    let taken = store.snapshot(volume, format!("s{round}")).await;
                    kept.push(taken.unwrap().id);
                }
                2 if !kept.is_empty() => {
                    let to = kept[engine::random() as usize % kept.len()];
                    drop(device);
                    store.rollback(volume, to).await.unwrap();
                    device = attach(&store, volume).await;
                }
                _ => write(&device, first * 512, &bytes).await.unwrap(),
            }
            done += compare(&device).await;
        }
        assert!(done > 100, "{done} reads at once");
    });
}

#[test]
fn what_needs_more_than_a_copy_is_not_read_at_once() {
    run(|store| async move {
        let plain = store.create(new_volume("plain", BYTES)).await.unwrap().id;
        let device = attach(&store, plain).await;
        write(&device, 0, &sectors(1, 8)).await.unwrap();
        assert_eq!(must_read(&device, 0, 4096).await, sectors(1, 8));
        // Past the end, across the end of what there is, between sectors.
        for (offset, len) in [(BYTES, 512), (0, 8192), (100, 512)] {
            assert_eq!(read_at_once(&device, offset, len), None);
        }
        let limits = Limits {
            ops_per_s: 1,
            ..Limits::default()
        };
        store.limit(plain, limits).await.unwrap();
        assert_eq!(read_at_once(&device, 0, 4096), None);
        store.limit(plain, Limits::default()).await.unwrap();
        assert_eq!(must_read(&device, 0, 4096).await, sectors(1, 8));
        let next = Attach {
            take_over: true,
            ..WRITER
        };
        let other = store.attach(plain, next).await.unwrap();
        assert_eq!(read_at_once(&device, 0, 4096), None, "it is fenced");
        assert_eq!(must_read(&other, 0, 4096).await, sectors(1, 8));
        for (encrypted, checksums) in [(true, false), (false, true)] {
            let new = NewVolume {
                encrypted,
                checksums,
                ..new_volume(&format!("{encrypted}"), BYTES)
            };
            let volume = store.create(new).await.unwrap().id;
            let device = attach(&store, volume).await;
            write(&device, 0, &sectors(1, 8)).await.unwrap();
            assert_eq!(read_at_once(&device, 0, 4096), None);
            let whole = read(&device, 0, 4096).await.unwrap();
            assert_eq!(whole, sectors(1, 8));
        }
    });
}
