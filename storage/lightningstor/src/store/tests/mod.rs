//! Tests of partitions under the simulator: a world with one node, small segments and parts, and
//! bodies that can be told apart.

mod basic;
mod bodies;
mod buckets;
mod cache;
mod compact;
mod crash;
mod faults;
mod image;
mod index;
mod multipart;
mod scrub;
mod space;

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use engine::sim::{NodeId, Sim};
use engine::{DmaBuf, EngineConfig};
use s3_wire::{BucketName, Etag, ObjectKey};
use segment_log::LogConfig;
use shards::placement::PartitionId;

use super::buckets::BucketTable;
use super::config::{StoreConfig, UpkeepConfig};
use super::error::StoreError;
use super::extent::ExtentAllocator;
use super::index::ObjectEntry;
use super::partition::Partition;
use super::recovery::count;
use super::types::*;

const ROOT: &str = "/data";
const BUCKET: BucketId = BucketId(7);

fn dir() -> PathBuf {
    Path::new(ROOT).join("p000")
}

fn config() -> StoreConfig {
    let log = LogConfig {
        segment_bytes: 512 << 10,
        spare_segments: 1,
        batch_bytes_max: 64 << 10,
        record_bytes_max: 128 << 10,
        ..LogConfig::default()
    };
    StoreConfig {
        log,
        data_grow_bytes: 1 << 20,
        checkpoint_log_bytes: 300 << 10,
        run_memtable_bytes_min: 4 << 10,
        runs_per_level: 2,
        crcs_inline_max: 3,
        part_bytes_min: 1000,
        upkeep: UpkeepConfig {
            interval: None,
            scrub_period: None,
            ..UpkeepConfig::default()
        },
        ..StoreConfig::default()
    }
}

/// With background work, often, and a reserve.
fn kept_up() -> StoreConfig {
    let mut config = config();
    config.log.reserve_segments = 1;
    config.upkeep.interval = Some(Duration::from_millis(2));
    config.upkeep.quiet_after = Duration::from_millis(500);
    config
}

fn engine_config(shards: usize) -> EngineConfig {
    EngineConfig {
        pool_bytes: 16 << 20,
        ..EngineConfig::unpinned(shards)
    }
}

/// A simulation with one node that is up.
fn world(seed: u64) -> (Sim, NodeId) {
    let sim = Sim::new(seed);
    let node = sim.node("store");
    sim.start(node, engine_config(1)).unwrap();
    (sim, node)
}

fn table() -> Rc<BucketTable> {
    let table = Rc::new(BucketTable::default());
    let name = BucketName::new("bucket").unwrap();
    let state = BucketState::Active;
    table.set(vec![Bucket {
        id: BUCKET,
        name,
        owner: "me".into(),
        created_ms: 1,
        state,
    }]);
    table
}

async fn open_with(config: &StoreConfig) -> Result<Partition, StoreError> {
    engine::fs::create_dir_all(ROOT).await.unwrap();
    engine::fs::sync_dir("/").await.unwrap();
    Partition::open(Path::new(ROOT), PartitionId(0), config, &table()).await
}

async fn open() -> Partition {
    open_with(&config()).await.unwrap()
}

/// Bytes that no other number gives.
fn bytes(number: u64, len: usize) -> Vec<u8> {
    let mut state = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(len);
    out
}

fn tag(body: &[u8]) -> Etag {
    let crc = crc_fast::crc64_nvme(body).to_le_bytes();
    let mut md5 = [0; 16];
    md5[..8].copy_from_slice(&crc);
    Etag::single(md5)
}

fn meta(body: &[u8]) -> ObjectMeta {
    let mut meta = ObjectMeta::new(body.len() as u64, tag(body), 1_000);
    meta.user = vec![("color".into(), "blue".into())];
    meta
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::new(name).unwrap()
}

fn buf(bytes: &[u8]) -> Result<DmaBuf, StoreError> {
    let mut buf = engine::take_buf(bytes.len())?;
    buf.copy_from_slice(bytes);
    Ok(buf)
}

async fn stream(store: &Partition, body: &[u8], expected: bool) -> Result<WriteId, StoreError> {
    let write = store
        .write_begin(expected.then_some(body.len() as u64))
        .await?;
    for (offset, chunk) in (0..).step_by(CHUNK).zip(body.chunks(CHUNK)) {
        let crcs = chunk.chunks(CRC_BLOCK).map(crc_fast::crc64_nvme).collect();
        if let Err(error) = store.write_chunk(write, offset, buf(chunk)?, crcs).await {
            store.write_abort(write).await;
            return Err(error);
        }
    }
    Ok(write)
}

async fn put_if(
    store: &Partition,
    name: &str,
    body: &[u8],
    condition: Condition,
) -> Result<PutDone, StoreError> {
    let (bucket, meta) = (BUCKET, meta(body));
    if body.len() > INLINE_MAX {
        let write = stream(store, body, body.len().is_multiple_of(2)).await?;
        return store
            .put_commit(write, bucket, key(name), meta, condition)
            .await;
    }
    let body = if body.is_empty() {
        None
    } else {
        Some(buf(body)?)
    };
    store
        .put_small(PutSmall {
            bucket,
            key: key(name),
            meta,
            body,
            condition,
        })
        .await
}

async fn put(store: &Partition, name: &str, body: &[u8]) -> Result<PutDone, StoreError> {
    put_if(store, name, body, Condition::None).await
}

/// Reads a whole object, a stored one in pieces of odd length.
async fn get(store: &Partition, name: &str) -> Result<Vec<u8>, StoreError> {
    let opened = store.get(BUCKET, &key(name), 300).await?;
    let id = match opened.body {
        Body::Inline { buf, range } => {
            assert!(range.start >= 300);
            return Ok(buf[range].to_vec());
        }
        Body::Stored(id) => id,
    };
    let mut all = Vec::new();
    while (all.len() as u64) < opened.meta.size {
        let piece = store.read_chunk(id, all.len() as u64, 150_001).await;
        let Ok((buf, range)) = piece else {
            store.read_end(id);
            return Err(piece.unwrap_err());
        };
        assert!(!range.is_empty());
        all.extend_from_slice(&buf[range]);
    }
    store.read_end(id);
    Ok(all)
}

async fn names(store: &Partition) -> Vec<String> {
    let chunk = store.list(BUCKET, ListCursor::Start, b"", 10_000).await;
    let chunk = chunk.unwrap();
    assert!(!chunk.more);
    chunk
        .entries
        .into_iter()
        .map(|entry| entry.key.into())
        .collect()
}

/// A key's entry in the index.
async fn entry(store: &Partition, name: &str) -> ObjectEntry {
    let found = store.inner.lookup(BUCKET, name, Version::NULL).await;
    found.unwrap().unwrap()
}

/// What is free and what the index refers to make up the data file, exactly, and what is counted is
/// there. Nothing may be going on but compaction.
async fn audit(store: &Partition) {
    let tally_now = || store.inner.index.borrow().tally().cloned().unwrap();
    let (tally, mut used) = loop {
        let before = tally_now();
        let counted = count(store.inner.view()).await.unwrap();
        // What moved meanwhile was counted in one place or the other.
        if before == tally_now() {
            break counted;
        }
    };
    assert_eq!(tally_now(), tally);
    let space = store.inner.data.space().borrow();
    used.extend(space.discarding());
    assert_eq!(space.parked().count(), 0, "nobody reads");
    let again = ExtentAllocator::rebuild(space.allocator.blocks(), used).unwrap();
    assert!(
        space.allocator.free_ranges().eq(again.free_ranges()),
        "the free ranges are the rest"
    );
}
