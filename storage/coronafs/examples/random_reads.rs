//! What a 4 KiB random read of a volume costs, plain and encrypted, 32 in flight, before and after 1,000 snapshots with a write
//! between each two. Prints reads a second, and CPU time of the whole process for each. Usage:
//! `random_reads DIR [SECONDS]`; DIR on tmpfs shows the layer rather than a disk.

use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use coronafs::{Access, Attach, Attachment, MasterKey, NewVolume, Partition, VolumeConfig};
use engine::{Engine, EngineConfig, GuestIov, GuestList, GuestMem, SchedGroup, ShardId};
use shards::block::BlockDevice;
use shards::placement::PartitionId;

const BYTES: u64 = 512 << 20;
const BLOCK: u64 = 4096;
const PIECE: u64 = 1 << 20;
const DEPTH: u64 = 32;
const SNAPSHOTS: u64 = 1000;

/// User and system time of the process, kernel workers of its ring included, in microseconds.
fn cpu_micros() -> u64 {
    let stat = read_text("/proc/self/stat");
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: u64 = after_name
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|n| n.parse::<u64>().ok())
        .sum();
    // USER_HZ is 100 on every Linux that the engine runs on.
    ticks * 10_000
}

#[allow(
    clippy::disallowed_methods,
    reason = "a measuring tool reads the clock of the kernel"
)]
fn read_text(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn list(mem: &GuestMem, offset: u64, len: u64) -> GuestList {
    let mut list = GuestList::new();
    let range = GuestIov {
        offset,
        len: len as u32,
    };
    list.push(mem, range).expect("inside of the memory");
    list
}

/// Reads blocks by chance for a while, `DEPTH` at a time.
async fn measure(device: &Rc<Attachment>, mem: &GuestMem, time: Duration, what: &str) {
    let (begin, cpu) = (engine::now(), cpu_micros());
    let end = begin + time;
    let readers = (0..DEPTH).map(|number| {
        let (device, mem) = (Rc::clone(device), mem.clone());
        engine::spawn_local(SchedGroup::FOREGROUND, async move {
            let mut reads = 0_u64;
            while engine::now() < end {
                let block = engine::random() % (BYTES / BLOCK);
                let into = list(&mem, number * BLOCK, BLOCK);
                let read = device.read(block * BLOCK, into).await;
                read.expect("a block is read");
                reads += 1;
            }
            reads
        })
    });
    let mut reads = 0;
    for done in futures_util::future::join_all(readers.collect::<Vec<_>>()).await {
        reads += done;
    }
    let took = engine::now().since(begin).as_secs_f64();
    let cpu = (cpu_micros() - cpu) as f64 / reads as f64;
    println!(
        "{what:<24} {:>10.0} reads/s {cpu:>8.2} us CPU/read",
        reads as f64 / took
    );
}

async fn work(root: &Path, time: Duration) {
    let config = VolumeConfig {
        master_key: Some(MasterKey::new([7; 32])),
        ..VolumeConfig::default()
    };
    let store = Partition::open(root, PartitionId(0), &config).await;
    let store = store.expect("the partition opens");
    for encrypted in [false, true] {
        println!("encrypted: {encrypted}");
        volume(&store, time, encrypted).await;
    }
    store.close().await.expect("the partition closes");
}

async fn volume(store: &Partition, time: Duration, encrypted: bool) {
    let new = NewVolume {
        owner: "bench".into(),
        name: format!("reads-{:x}", engine::random()),
        bytes: BYTES,
        encrypted,
    };
    let volume = store.create(new).await.expect("a volume is made").id;
    let writer = Attach {
        access: Access::Exclusive,
        take_over: false,
    };
    let device = store.attach(volume, writer).await;
    let device = Rc::new(device.expect("the volume is attached"));
    let mem = GuestMem::anonymous(PIECE as usize).expect("memory");
    for at in (0..BYTES).step_by(PIECE as usize) {
        let wrote = device.write(at, list(&mem, 0, PIECE), false).await;
        wrote.expect("the volume is written");
    }
    device.flush().await.expect("a flush");
    measure(&device, &mem, time, "no snapshot").await;
    for number in 0..SNAPSHOTS {
        let taken = store.snapshot(volume, format!("s{number}")).await;
        taken.expect("a snapshot");
        let block = engine::random() % (BYTES / BLOCK);
        let wrote = device
            .write(block * BLOCK, list(&mem, 0, BLOCK), false)
            .await;
        wrote.expect("a block is written");
    }
    measure(&device, &mem, time, "1,000 snapshots").await;
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let root = arguments.next().expect("usage: random_reads DIR [SECONDS]");
    let seconds = arguments.next().and_then(|n| n.parse().ok()).unwrap_or(3);
    let engine = Engine::start(EngineConfig::unpinned(1)).expect("the engine starts");
    let answer = engine.handle().call_blocking(ShardId(0), move |_| {
        Box::pin(async move { work(Path::new(&root), Duration::from_secs(seconds)).await })
    });
    answer.expect("the shard answers");
    engine.shutdown().expect("the engine ends");
}
