//! The same volumes on the real kernel, io_uring and disk: written, flushed, shared, closed and opened
//! again.

#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::os::fd::AsFd;
use std::rc::Rc;

use coronafs::*;
use engine::fs::{File, OpenOptions};
use engine::{Engine, EngineConfig, GuestIov, GuestList, GuestMem, ShardId};
use futures_util::future::LocalBoxFuture;
use sha2::{Digest, Sha256};
use shards::block::{BlockDevice, BlockError};
use shards::placement::PartitionId;

const LEN: usize = 3 << 20;

fn list(mem: &GuestMem, offset: usize, len: usize) -> GuestList {
    let mut list = GuestList::new();
    let (offset, len) = (offset as u64, len as u32);
    list.push(mem, GuestIov { offset, len }).unwrap();
    list
}

fn pattern(seed: u32) -> Vec<u8> {
    let words = (0..LEN as u32 / 4).map(|at| at.wrapping_mul(0x9E37_79B9) ^ seed);
    words.flat_map(u32::to_le_bytes).collect()
}

async fn content(device: &Attachment) -> Vec<u8> {
    let mem = GuestMem::anonymous(LEN).unwrap();
    device.read(0, list(&mem, 0, LEN)).await.unwrap();
    let mut bytes = vec![0; LEN];
    mem.copy_out(0, &mut bytes).unwrap();
    bytes
}

/// Writes over all of a volume, and reads it, by parts that are asked for at once.
async fn side_by_side(device: &Attachment, model: &mut Vec<u8>) {
    const PART: usize = 96 << 10;
    *model = pattern(3);
    let mem = GuestMem::anonymous(LEN).unwrap();
    mem.copy_in(0, model).unwrap();
    let starts = || (0..LEN).step_by(PART);
    let writes = starts().map(|start| {
        let part = list(&mem, start, PART);
        device.write(start as u64, part, false)
    });
    for wrote in futures_util::future::join_all(writes).await {
        wrote.unwrap();
    }
    assert!(content(device).await == *model);
    mem.fill_zero(0, LEN).unwrap();
    let reads = starts().map(|start| {
        let part = list(&mem, start, PART);
        device.read(start as u64, part)
    });
    for read in futures_util::future::join_all(reads).await {
        read.unwrap();
    }
    let mut bytes = vec![0; LEN];
    mem.copy_out(0, &mut bytes).unwrap();
    assert!(bytes == *model);
}

async fn work(root: &std::path::Path, encrypted: bool, checksums: bool) {
    let config = VolumeConfig {
        master_key: encrypted.then(|| MasterKey::new([3; 32])),
        ..VolumeConfig::default()
    };
    let partition = PartitionId(10 + 2 * u16::from(checksums) + u16::from(encrypted));
    let writer = Attach {
        access: Access::Exclusive,
        take_over: false,
    };
    let store = Partition::open(root, partition, &config).await.unwrap();
    let new = NewVolume {
        owner: "me".into(),
        name: "disk".into(),
        bytes: LEN as u64,
        encrypted,
        checksums,
    };
    let id = store.create(new).await.unwrap().id;
    let device = store.attach(id, writer).await.unwrap();
    let mut model = pattern(1);
    let mem = GuestMem::anonymous(LEN).unwrap();
    mem.copy_in(0, &model).unwrap();
    // Of all sizes and alignments, in flight together.
    let ends = [512, 5_120, 65_536, 70_144, 1 << 20, (1 << 20) + 4_096, LEN];
    let starts = std::iter::once(0).chain(ends);
    let writes = starts.zip(ends).map(|(start, end)| {
        let part = list(&mem, start, end - start);
        device.write(start as u64, part, end == LEN)
    });
    for wrote in futures_util::future::join_all(writes).await {
        wrote.unwrap();
    }
    device.flush().await.unwrap();
    assert!(content(&device).await == model);
    side_by_side(&device, &mut model).await;
    let joins = encrypted && !checksums;
    assert_eq!(store.joined_bounces() > 0, joins, "what lies side by side");
    let snapshot = store.snapshot(id, "first".into()).await.unwrap().id;
    let first = model.clone();
    let new = pattern(2);
    mem.copy_in(0, &new).unwrap();
    for (start, end) in [(1_024, 2_048), (60_000 / 512 * 512, 200_192)] {
        let part = list(&mem, start, end - start);
        device.write(start as u64, part, false).await.unwrap();
        model[start..end].copy_from_slice(&new[start..end]);
    }
    device.discard(1 << 20, 1 << 20).await.unwrap();
    model[1 << 20..2 << 20].fill(0);
    device
        .write_zeroes(2 << 20, 1_024, true, true)
        .await
        .unwrap();
    model[2 << 20..(2 << 20) + 1_024].fill(0);
    assert!(content(&device).await == model);
    drop(device);
    store.close().await.unwrap();
    drop(store);
    let store = Partition::open(root, partition, &config).await.unwrap();
    let device = store.attach(id, writer).await.unwrap();
    assert_eq!(device.generation(), 2);
    assert!(content(&device).await == model);
    let clone = NewClone {
        snapshot,
        owner: "me".into(),
        name: "clone".into(),
    };
    let clone = store.clone_snapshot(clone).await.unwrap().id;
    let copy = store.attach(clone, writer).await.unwrap();
    assert!(content(&copy).await == first);
    drop(copy);
    if checksums {
        assert_eq!(store.scrub(clone, 0).await.unwrap().errors, 0);
        assert_eq!(store.scrub(id, 0).await.unwrap().errors, 0);
        assert_eq!(store.scrub_status().read_errors, 0);
    }
    store.delete(clone).await.unwrap();
    store.close().await.unwrap();
}

/// An image in memory.
struct Memory(Rc<Vec<u8>>);

impl ImageResolver for Memory {
    fn resolve<'a>(
        &'a self,
        identity: &'a str,
    ) -> LocalBoxFuture<'a, Result<Rc<dyn ImageSource>, ImageError>> {
        assert_eq!(identity, "image");
        let source: Rc<dyn ImageSource> = Rc::new(Memory(Rc::clone(&self.0)));
        Box::pin(async move { Ok(source) })
    }
}

impl ImageSource for Memory {
    fn bytes(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at<'a>(
        &'a self,
        offset: u64,
        into: &'a mut [u8],
    ) -> LocalBoxFuture<'a, Result<(), ImageError>> {
        let from = offset as usize;
        into.copy_from_slice(&self.0[from..from + into.len()]);
        Box::pin(async { Ok(()) })
    }
}

/// A volume from an image is read and written while it is filled, and holds both afterwards.
async fn from_image(root: &std::path::Path) {
    let config = VolumeConfig {
        master_key: Some(MasterKey::new([3; 32])),
        image_chunk_bytes: 256 << 10,
        image_bytes_per_s: 0,
        ..VolumeConfig::default()
    };
    let writer = Attach {
        access: Access::Exclusive,
        take_over: false,
    };
    for (partition, encrypted) in [(PartitionId(5), false), (PartitionId(6), true)] {
        let store = Partition::open(root, partition, &config).await.unwrap();
        let mut model = pattern(3);
        let of_image = model.len() - 70_001;
        let bytes = model[..of_image].to_vec();
        let image = ImageRef {
            identity: "image".into(),
            bytes: of_image as u64,
            digest: Some(ImageDigest(Sha256::digest(&bytes).into())),
        };
        model[of_image..].fill(0);
        store.set_image_resolver(Rc::new(Memory(Rc::new(bytes))));
        let new = NewVolume {
            owner: "me".into(),
            name: "disk".into(),
            bytes: LEN as u64,
            encrypted,
            checksums: false,
        };
        let id = store.create_from_image(new, image).await.unwrap().id;
        let device = store.attach(id, writer).await.unwrap();
        let mem = GuestMem::anonymous(LEN).unwrap();
        mem.copy_in(0, &pattern(4)).unwrap();
        for (start, end) in [(512, 70_144), (1 << 20, (1 << 20) + 4_096)] {
            let part = list(&mem, start, end - start);
            device.write(start as u64, part, false).await.unwrap();
            model[start..end].copy_from_slice(&pattern(4)[start..end]);
        }
        device.discard(2 << 20, 64 << 10).await.unwrap();
        model[2 << 20..(2 << 20) + (64 << 10)].fill(0);
        assert!(content(&device).await == model);
        let state = store.flatten(id).await.unwrap().image.unwrap();
        assert_eq!((state.phase, state.verified), (ImagePhase::Filled, true));
        assert!(content(&device).await == model);
        drop(device);
        store.close().await.unwrap();
        drop(store);
        let store = Partition::open(root, partition, &config).await.unwrap();
        let device = store.attach(id, writer).await.unwrap();
        assert!(content(&device).await == model);
        drop(device);
        store.close().await.unwrap();
    }
}

/// A block of the data file is changed behind our back: reads of it are refused, until it is rewritten.
async fn damaged(root: &std::path::Path) {
    const AT: usize = 77 * 4096;
    let config = VolumeConfig::default();
    let writer = Attach {
        access: Access::Exclusive,
        take_over: false,
    };
    let partition = PartitionId(20);
    let store = Partition::open(root, partition, &config).await.unwrap();
    let new = NewVolume {
        owner: "me".into(),
        name: "disk".into(),
        bytes: LEN as u64,
        checksums: true,
        ..NewVolume::default()
    };
    let id = store.create(new).await.unwrap().id;
    let device = store.attach(id, writer).await.unwrap();
    let mem = GuestMem::anonymous(LEN).unwrap();
    mem.copy_in(0, &pattern(1)).unwrap();
    device.write(0, list(&mem, 0, LEN), true).await.unwrap();
    let options = OpenOptions {
        write: true,
        ..OpenOptions::default()
    };
    let file = File::open(store.dir().join("data"), options).await.unwrap();
    let (read, mut bytes) = file.read_at(vec![0; 8 << 20], 0).await;
    bytes.truncate(read.unwrap());
    let block = &pattern(1)[AT..AT + 4096];
    let mut blocks = bytes.chunks(4096);
    let place = blocks.position(|found| found == block).unwrap() * 4096;
    let changed = vec![bytes[place + 1000] ^ 4];
    file.write_at(changed, place as u64 + 1000).await.0.unwrap();
    file.datasync().await.unwrap();
    let refused = device.read(AT as u64 + 512, list(&mem, 0, 512)).await;
    let Err(BlockError::Io(error)) = refused else {
        panic!("a damaged block is read");
    };
    let error = error.to_string();
    assert!(error.contains(&format!("byte {AT}")), "{error}");
    let scrubbed = store.scrub(id, 0).await.unwrap();
    let named: Vec<_> = scrubbed.damaged.iter().map(|block| block.offset).collect();
    assert_eq!((named, scrubbed.bytes), (vec![AT as u64], LEN as u64));
    let healed = device.write(AT as u64, list(&mem, AT, 4096), true);
    healed.await.unwrap();
    assert!(content(&device).await == pattern(1));
    assert_eq!(store.scrub(id, 0).await.unwrap().errors, 0);
    drop(device);
    store.close().await.unwrap();
}

/// A guest that takes its memory away fails alone, with what it asked for.
async fn hostile(root: &std::path::Path) {
    let config = VolumeConfig::default();
    let writer = Attach {
        access: Access::Exclusive,
        take_over: false,
    };
    let store = Partition::open(root, PartitionId(1), &config)
        .await
        .unwrap();
    let mut devices = Vec::new();
    for name in ["hostile", "other"] {
        let new = NewVolume {
            owner: "me".into(),
            name: name.into(),
            bytes: LEN as u64,
            ..NewVolume::default()
        };
        let id = store.create(new).await.unwrap().id;
        devices.push(store.attach(id, writer).await.unwrap());
    }
    let file = tempfile::tempfile().unwrap();
    file.set_len(1 << 20).unwrap();
    let mem = GuestMem::map(file.as_fd(), 0, 1 << 20).unwrap();
    let all = || list(&mem, 0, 1 << 20);
    devices[0].write(0, all(), true).await.unwrap();
    // Half of it, then all.
    for len in [512 << 10, 0] {
        file.set_len(len).unwrap();
        // To clusters that are there, to new ones, in buffers of ours, and the other way.
        let odd = list(&mem, (512 << 10) - 1024 + 8, 4096);
        assert!(devices[0].write(0, all(), false).await.is_err());
        assert!(devices[0].write(1 << 20, all(), false).await.is_err());
        assert!(devices[0].write(2 << 20, odd, false).await.is_err());
        assert!(devices[0].read(0, all()).await.is_err());
        assert_eq!(store.poisoned(), None);
    }
    let own = GuestMem::anonymous(LEN).unwrap();
    for (number, device) in (1..).zip(&devices) {
        own.copy_in(0, &pattern(number)).unwrap();
        device.write(0, list(&own, 0, LEN), false).await.unwrap();
        device.flush().await.unwrap();
        assert!(content(device).await == pattern(number));
    }
    drop(devices);
    store.close().await.unwrap();
}

/// Somebody cuts the file of unflushed changes short: what is not kept is not acknowledged.
async fn cut_short(root: &std::path::Path) {
    let config = VolumeConfig::default();
    let writer = Attach {
        access: Access::Exclusive,
        take_over: false,
    };
    let partition = PartitionId(4);
    let store = Partition::open(root, partition, &config).await.unwrap();
    let new = NewVolume {
        owner: "me".into(),
        name: "disk".into(),
        bytes: LEN as u64,
        ..NewVolume::default()
    };
    let id = store.create(new).await.unwrap().id;
    let device = store.attach(id, writer).await.unwrap();
    let own = GuestMem::anonymous(LEN).unwrap();
    device.write(0, list(&own, 0, 4096), false).await.unwrap();
    let options = OpenOptions {
        write: true,
        ..OpenOptions::default()
    };
    let file = File::open(store.dir().join("unflushed"), options).await;
    file.unwrap().set_len(0).await.unwrap();
    let wrote = device.write(65_536, list(&own, 0, 4096), false).await;
    assert!(wrote.is_err());
    let cause = store.poisoned().unwrap();
    assert!(cause.contains("cannot be kept"), "{cause}");
}

/// Blocks are freed over a whole file system, in rounds: the discards of a guest's trim end.
async fn trims_end(root: &std::path::Path) {
    const BYTES: u64 = 96 << 20;
    const WRITTEN: u64 = 20 << 20;
    const PIECE: usize = 1 << 20;
    let config = VolumeConfig::default();
    let writer = Attach {
        access: Access::Exclusive,
        take_over: false,
    };
    let store = Partition::open(root, PartitionId(7), &config)
        .await
        .unwrap();
    let new = NewVolume {
        owner: "me".into(),
        name: "disk".into(),
        bytes: BYTES,
        ..NewVolume::default()
    };
    let id = store.create(new).await.unwrap().id;
    let device = store.attach(id, writer).await.unwrap();
    let own = GuestMem::anonymous(PIECE).unwrap();
    for round in 0..3 {
        own.copy_in(0, &pattern(round)[..PIECE]).unwrap();
        for offset in (0..WRITTEN).step_by(PIECE) {
            let part = list(&own, 0, PIECE);
            device.write(offset, part, false).await.unwrap();
        }
        device.flush().await.unwrap();
        assert_eq!(store.stat(id).unwrap().mapped_bytes, WRITTEN);
        let discards = (0..BYTES).step_by(4 << 20).map(|offset| {
            let ends = device.discard(offset, 4 << 20);
            engine::timeout(std::time::Duration::from_secs(10), ends)
        });
        for ended in futures_util::future::join_all(discards).await {
            ended.expect("a discard ends").unwrap();
        }
        device.flush().await.unwrap();
        assert_eq!(store.stat(id).unwrap().mapped_bytes, 0);
    }
    drop(device);
    store.close().await.unwrap();
}

#[test]
fn volumes_work_on_the_real_kernel() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_owned();
    let engine = Engine::start(EngineConfig::unpinned(1)).unwrap();
    let handle = engine.handle();
    let answer = handle.call_blocking(ShardId(0), move |_| {
        Box::pin(async move {
            for (encrypted, checksums) in
                [(false, false), (true, false), (false, true), (true, true)]
            {
                work(&root, encrypted, checksums).await;
            }
            from_image(&root).await;
            damaged(&root).await;
            hostile(&root).await;
            cut_short(&root).await;
            trims_end(&root).await;
        })
    });
    answer.unwrap();
    engine.shutdown().unwrap();
}
