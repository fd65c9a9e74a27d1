//! A process that is killed in the middle of writes, by SIGKILL on the real kernel, and the one that
//! opens its partition next: everything that was acknowledged is there, flushed or not.

#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use coronafs::*;
use engine::fs::{File, OpenOptions};
use engine::{Engine, EngineConfig, GuestIov, GuestList, GuestMem, ShardId};
use shards::block::BlockDevice;
use shards::placement::PartitionId;

const DIR: &str = "UC_KILLED_DIR";
const WRITERS: u64 = 4;
/// Bytes and blocks of each writer's part of the volume.
const PART: u64 = 1 << 20;
const BLOCK: u64 = 4096;
const LIVES: u64 = 4;
/// Operations of a life before it is killed, at least.
const ACKNOWLEDGED_MIN: u64 = 400;

const WRITER: Attach = Attach {
    access: Access::Exclusive,
    take_over: false,
};

/// A writer's operation: where, how much, and with which stamp; 0 frees the range.
fn operation(writer: u64, number: u64) -> (u64, u64, u64) {
    let mixed = (number + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 20;
    let first = mixed % (PART / BLOCK - 8);
    let count = 1 + mixed / 977 % 8;
    let stamp = if number % 5 == 4 {
        0
    } else {
        writer << 40 | (number + 1)
    };
    (writer * PART + first * BLOCK, count * BLOCK, stamp)
}

fn list(mem: &GuestMem, len: u64) -> GuestList {
    let mut list = GuestList::new();
    let range = GuestIov {
        offset: 0,
        len: len as u32,
    };
    list.push(mem, range).unwrap();
    list
}

async fn open(dir: &Path) -> (Partition, Attachment) {
    let config = VolumeConfig::default();
    let store = Partition::open(dir, PartitionId(0), &config).await.unwrap();
    let id = if let Some(id) = store.find("me", "disk") {
        id
    } else {
        let new = NewVolume {
            owner: "me".into(),
            name: "disk".into(),
            bytes: WRITERS * PART,
            ..NewVolume::default()
        };
        store.create(new).await.unwrap().id
    };
    let device = store.attach(id, WRITER).await.unwrap();
    (store, device)
}

fn acknowledged(dir: &Path, writer: u64) -> PathBuf {
    dir.join(format!("acknowledged-{writer}"))
}

/// How many operations of a writer were acknowledged.
fn count(dir: &Path, writer: u64) -> u64 {
    std::fs::metadata(acknowledged(dir, writer)).map_or(0, |meta| meta.len())
}

fn all(dir: &Path) -> u64 {
    (0..WRITERS).map(|writer| count(dir, writer)).sum()
}

/// Waits until as many operations were acknowledged.
async fn until(dir: &Path, wanted: u64) {
    let deadline = engine::now() + Duration::from_mins(1);
    while all(dir) < wanted {
        assert!(engine::now() < deadline, "it does not write");
        engine::sleep(Duration::from_millis(2)).await;
    }
}

async fn write(dir: &Path, device: &Attachment, writer: u64) {
    let path = acknowledged(dir, writer);
    let options = OpenOptions {
        write: true,
        create: true,
        ..OpenOptions::default()
    };
    let file = File::open(path, options).await.unwrap();
    let mem = GuestMem::anonymous(8 * BLOCK as usize).unwrap();
    for number in count(dir, writer).. {
        let (offset, len, stamp) = operation(writer, number);
        if stamp == 0 {
            device.discard(offset, len).await.unwrap();
        } else {
            let bytes = stamp.to_le_bytes().repeat(len as usize / 8);
            mem.copy_in(0, &bytes).unwrap();
            device.write(offset, list(&mem, len), false).await.unwrap();
        }
        // A byte for each: the file's pages outlive us as well.
        file.write_at(vec![b'.'], number).await.0.unwrap();
        if writer == 0 && number % 64 == 63 {
            device.flush().await.unwrap();
        }
    }
}

/// Compares the volume with what the writers had been told.
async fn check(dir: &Path) {
    let (store, device) = open(dir).await;
    assert_eq!(store.survived(), Survived::Acknowledged);
    let mem = GuestMem::anonymous(PART as usize).unwrap();
    for writer in 0..WRITERS {
        let done = count(dir, writer);
        let mut model = vec![[0; 2]; (PART / BLOCK) as usize];
        for number in 0..=done {
            let (offset, len, stamp) = operation(writer, number);
            let first = (offset % PART / BLOCK) as usize;
            for block in &mut model[first..first + (len / BLOCK) as usize] {
                // The last one was in progress: it happened, or not, or was not told.
                *block = if number < done {
                    [stamp; 2]
                } else {
                    [block[0], stamp]
                };
            }
        }
        let mut into = GuestList::new();
        let range = GuestIov {
            offset: 0,
            len: PART as u32,
        };
        into.push(&mem, range).unwrap();
        device.read(writer * PART, into).await.unwrap();
        let mut bytes = vec![0; PART as usize];
        mem.copy_out(0, &mut bytes).unwrap();
        for (at, (sector, may)) in bytes
            .chunks(512)
            .zip(model.iter().flat_map(|m| [m; 8]))
            .enumerate()
        {
            let seen = u64::from_le_bytes(sector[..8].try_into().unwrap());
            assert!(
                may.contains(&seen),
                "writer {writer}, sector {at}: {seen:x}, not {may:x?}"
            );
            assert_eq!(sector, seen.to_le_bytes().repeat(64), "a torn sector");
        }
    }
}

fn on_a_shard<F: Future<Output = ()>>(
    work: impl FnOnce(PathBuf) -> F + Send + 'static,
    dir: &Path,
) {
    let engine = Engine::start(EngineConfig::unpinned(1)).unwrap();
    let dir = dir.to_owned();
    let done = engine.handle().call_blocking(ShardId(0), move |_| {
        Box::pin(async move { work(dir).await })
    });
    done.unwrap();
    engine.shutdown().unwrap();
}

/// The process that is killed, when it is one; there is nothing to do for it else.
#[test]
fn a_process_writes_until_it_is_killed() {
    let Some(dir) = std::env::var_os(DIR) else {
        return;
    };
    on_a_shard(
        |dir| async move {
            let (store, device) = open(&dir).await;
            let writers = (0..WRITERS).map(|writer| write(&dir, &device, writer));
            futures_util::future::join_all(writers).await;
            drop(store);
        },
        Path::new(&dir),
    );
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended on its own, which the test has seen then.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn what_a_killed_process_had_acknowledged_is_there() {
    let dir = tempfile::tempdir().unwrap();
    for life in 1..=LIVES {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_process_writes_until_it_is_killed"])
            .env(DIR, dir.path())
            .stdout(Stdio::null())
            .spawn();
        let child = Killed(child.unwrap());
        let wanted = all(dir.path()) + ACKNOWLEDGED_MIN + life * 37;
        on_a_shard(
            move |dir| async move { until(&dir, wanted).await },
            dir.path(),
        );
        drop(child);
        on_a_shard(|dir| async move { check(&dir).await }, dir.path());
    }
}
