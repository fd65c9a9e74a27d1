//! Tests of partitions under the simulator: a world with one node, a small log, and sectors that can be
//! told apart.

mod at_once;
mod basic;
mod encryption;
mod extents;
mod faults;
mod image;
mod joint;
mod killed;
mod model;
mod runs;
mod shares;
mod sharing;
mod sums;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::rc::Rc;

use engine::sim::{NodeId, Sim, SimConfig};
use engine::{EngineConfig, GuestIov, GuestList, GuestMem};
use segment_log::LogConfig;
use shards::block::{BlockDevice, BlockError, EXTENTS_MAX};
use shards::placement::PartitionId;

use crate::map::Node;
use crate::*;

const ROOT: &str = "/data";
const SECTOR: usize = 512;
const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

const WRITER: Attach = Attach {
    access: Access::Exclusive,
    take_over: false,
};

fn config() -> VolumeConfig {
    VolumeConfig {
        log: LogConfig {
            segment_bytes: 256 << 10,
            spare_segments: 1,
            reserve_segments: 1,
            batch_bytes_max: 32 << 10,
            record_bytes_max: 128 << 10,
            ..LogConfig::default()
        },
        data_grow_bytes: MIB,
        data_slack_bytes: 2 * MIB,
        checkpoint_log_bytes: 2 << 10,
        dirty_slots_max: 24,
        pieces_max: 2,
        joined_bytes_min: 512,
        // Two pages.
        checksum_cache_bytes: 8 << 10,
        master_key: Some(MasterKey::new([7; 32])),
        ..VolumeConfig::default()
    }
}

pub(crate) fn engine_config() -> EngineConfig {
    EngineConfig {
        pool_bytes: 16 << 20,
        ..EngineConfig::unpinned(1)
    }
}

/// A simulation with one node that is up.
pub(crate) fn world(seed: u64) -> (Sim, NodeId) {
    let config = SimConfig {
        direct_align: 512,
        ..SimConfig::default()
    };
    let sim = Sim::with_config(seed, config);
    let node = sim.node("volumes");
    sim.start(node, engine_config()).unwrap();
    (sim, node)
}

async fn open_with(config: &VolumeConfig) -> Result<Partition, VolumeError> {
    engine::fs::create_dir_all(ROOT).await.unwrap();
    engine::fs::sync_dir("/").await.unwrap();
    Partition::open(Path::new(ROOT), PartitionId(0), config).await
}

async fn open() -> Partition {
    open_with(&config()).await.unwrap()
}

fn new_volume(name: &str, bytes: u64) -> NewVolume {
    NewVolume {
        owner: "me".into(),
        name: name.into(),
        bytes,
        ..NewVolume::default()
    }
}

fn new_clone(name: &str, snapshot: SnapshotId) -> NewClone {
    NewClone {
        snapshot,
        owner: "me".into(),
        name: name.into(),
    }
}

/// Memory that begins `skew` bytes behind an aligned address.
fn list_of(bytes: &[u8], skew: usize) -> GuestList {
    let mem = GuestMem::anonymous(bytes.len() + skew).unwrap();
    mem.copy_in(skew as u64, bytes).unwrap();
    list_over(&mem, skew, bytes.len())
}

fn list_over(mem: &GuestMem, skew: usize, len: usize) -> GuestList {
    let mut list = GuestList::new();
    // Two ranges, where there are two blocks.
    let first = if len > 4096 { 4096 } else { len };
    for (offset, len) in [(skew, first), (skew + first, len - first)] {
        let range = GuestIov {
            offset: offset as u64,
            len: len as u32,
        };
        if len > 0 {
            list.push(mem, range).unwrap();
        }
    }
    list
}

async fn write(device: &Attachment, offset: u64, bytes: &[u8]) -> Result<(), BlockError> {
    device.write(offset, list_of(bytes, 0), false).await
}

async fn read(device: &Attachment, offset: u64, len: usize) -> Result<Vec<u8>, BlockError> {
    let mem = GuestMem::anonymous(len).unwrap();
    device.read(offset, list_over(&mem, 0, len)).await?;
    let mut bytes = vec![0; len];
    mem.copy_out(0, &mut bytes).unwrap();
    Ok(bytes)
}

/// A sector's bytes for a stamp; 0 is zeros.
fn sectors(stamp: u64, count: usize) -> Vec<u8> {
    stamp.to_le_bytes().repeat(count * SECTOR / 8)
}

/// The stamps of sectors, none of them torn.
fn stamps(bytes: &[u8]) -> Vec<u64> {
    let sectors = bytes.chunks(SECTOR);
    sectors
        .map(|sector| {
            let stamp = u64::from_le_bytes(sector[..8].try_into().unwrap());
            assert_eq!(
                sector,
                stamp.to_le_bytes().repeat(SECTOR / 8),
                "a torn sector"
            );
            stamp
        })
        .collect()
}

async fn attach(store: &Partition, id: VolumeId) -> Attachment {
    store.attach(id, WRITER).await.unwrap()
}

/// Counts the references of a node's leaves, each node once.
fn count(node: &Rc<Node>, seen: &mut BTreeSet<usize>, found: &mut BTreeMap<u32, u32>) {
    if !seen.insert(Rc::as_ptr(node).addr()) {
        return;
    }
    match &**node {
        Node::Leaf(leaf) => {
            for cluster in leaf.clusters() {
                *found.entry(cluster).or_default() += 1;
            }
        }
        Node::Inner(children) => {
            for child in children.iter().flatten() {
                count(child, seen, found);
            }
        }
    }
}

/// Every reference is counted, and nothing else; the clusters that nothing refers to are free. Nothing
/// may be going on.
async fn audit(store: &Partition) {
    let inner = &store.inner;
    inner.checkpoints.ended().await;
    inner.reclaim().await.unwrap();
    inner.trimmed().await;
    let state = inner.state.borrow();
    let (mut seen, mut found) = (BTreeSet::new(), BTreeMap::new());
    for volume in state.volumes.values() {
        let tree = volume.tree.borrow();
        if let Some(root) = tree.root() {
            count(root, &mut seen, &mut found);
        }
        assert!(!volume.has_ended());
        let blocks: u64 = (0..volume.bytes().div_ceil(64 * KIB))
            .flat_map(|index| tree.slot(index))
            .filter(|piece| piece.has_data())
            .map(|piece| u64::from(piece.mask.count_ones()))
            .sum();
        assert_eq!(volume.mapped_blocks.get(), blocks);
    }
    for snapshot in state.snapshots.values() {
        if let Some(root) = snapshot.frozen.tree.root() {
            count(root, &mut seen, &mut found);
        }
    }
    let space = inner.data.space.borrow();
    for cluster in 0..space.count() {
        let wanted = found.get(&cluster).copied().unwrap_or(0);
        assert_eq!(space.references(cluster), wanted, "cluster {cluster}");
    }
    let free = u64::from(space.count()) - found.len() as u64;
    assert_eq!((space.free_count(), space.limbo_count()), (free, 0));
}
