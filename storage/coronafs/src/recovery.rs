//! What a restart makes of a partition's files: the newest checkpoint, the log behind it, what was not
//! flushed when the process alone has ended, and from the maps that come out what is free, and what a
//! volume may write in place.

use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;

use engine::fs;
use segment_log::durable::Poison;
use segment_log::{Log, LogError, Lsn};
use shards::placement::PartitionId;

use crate::checkpoint::file;
use crate::config::VolumeConfig;
use crate::data::DataFile;
use crate::error::VolumeError;
use crate::keys::Keys;
use crate::map::{CLUSTER, Node, Piece, Tree};
use crate::partition::{Partition, Parts};
use crate::record::Change;
use crate::space::{Layer, Space};
use crate::state::State;
use crate::sums::BlockSums;
use crate::sums::file::Sums;
use crate::types::{Survived, VolumeId};
use crate::unflushed::{LastSlot, LastSlots, OTHER_VOLUMES, Unflushed};
use crate::volume::Volume;

/// Plays records in order, refusing a gap.
struct Replay {
    state: State,
    last: u64,
    bytes: u64,
    /// Checksums that records say, by cluster of the data file.
    sums: BTreeMap<u32, BlockSums>,
}

impl Replay {
    fn take(&mut self, record: &segment_log::Record<'_>) -> Result<(), LogError> {
        let Lsn(lsn) = record.lsn;
        let refused = |reason: String| LogError::Refused {
            lsn: record.lsn,
            reason,
        };
        if lsn != self.last + 1 {
            let (from, to) = (self.last + 1, lsn.saturating_sub(1));
            return Err(refused(format!(
                "records {from} to {to} are missing and no checkpoint holds them"
            )));
        }
        let change = Change::decode(record.kind, record.payload);
        let change = change.map_err(|malformed| refused(malformed.to_string()))?;
        if let Change::MapWithSums { volume, slots } = &change
            && self.state.volumes.contains_key(volume)
        {
            for (_, pieces, sums) in slots {
                lay_sums(&mut self.sums, pieces, sums);
            }
        }
        let applied = self.state.apply(change, None);
        applied.map_err(|refusal| refused(refusal.to_owned()))?;
        self.last = lsn;
        self.bytes += u64::from(record.len);
        Ok(())
    }
}

impl Partition {
    /// Opens or makes a partition below `root`, whose name is durable.
    ///
    /// # Errors
    /// `Corrupt` when something durable is damaged or missing, `Full`, `Internal`.
    pub async fn open(
        root: &Path,
        id: PartitionId,
        config: &VolumeConfig,
    ) -> Result<Partition, VolumeError> {
        let dir = root.join(format!("v{:03}", id.0));
        let failed = |e: &std::io::Error| VolumeError::internal("cannot make the directory", e);
        fs::create_dir_all(&dir).await.map_err(|e| failed(&e))?;
        fs::sync_dir(root).await.map_err(|e| failed(&e))?;
        let poison = Rc::new(Poison::default());
        let grow = config.data_grow_bytes;
        // First: it waits for what a process that was killed has left in progress.
        let data = DataFile::open(&dir.join("data"), grow, Rc::clone(&poison)).await?;
        let found = file::find(&dir, id.0).await?;
        let mut replay = Replay {
            state: found.state,
            last: found.start_lsn,
            bytes: 0,
            sums: BTreeMap::new(),
        };
        // Before the log: it must know how far that may come.
        let opened = Unflushed::open(&dir, id.0, config.unflushed_bytes, Rc::clone(&poison));
        let (unflushed, left) = opened.await?;
        let unflushed = Rc::new(unflushed);
        // The kernel tells of a failed flush once: no later start may believe that all is there.
        let doubted = Rc::clone(&unflushed);
        data.on_loss(move || doubted.doubt());
        let (log_dir, start) = (dir.join("log"), Lsn(found.start_lsn));
        let opened = Log::open(&log_dir, config.log.clone(), start, 0, |record| {
            replay.take(&record)
        });
        let (log, recovered) = opened.await?;
        // What the last life completed may be in a cache only, and a flush of this one finds nothing
        // that it had to make durable.
        data.flush().await?;
        let mut state = replay.state;
        let (master, in_use) = (config.master_key.as_ref(), state.keys().collect());
        let keys = Keys::open(&dir, master, &in_use, Rc::clone(&poison)).await?;
        let sums = Sums::open(&dir, id.0, config.checksum_cache_bytes, Rc::clone(&poison)).await?;
        fs::sync_dir(&dir).await.map_err(|e| failed(&e))?;
        count(&mut state, &data).await?;
        let left = unflushed.judge(left, &recovered)?;
        let survived = survive(&state, &data, &unflushed, left, &mut replay.sums)?;
        sums.restore(replay.sums).await?;
        unflushed.bind(&log, &recovered);
        poison.check()?;
        own(&state, &data).await;
        tracing::info!(
            partition = id.0,
            checkpoint_lsn = found.start_lsn,
            records = recovered.records,
            torn_bytes = recovered.torn_bytes,
            ?survived,
            volumes = state.volumes.len(),
            snapshots = state.snapshots.len(),
            "the partition is recovered"
        );
        let checkpoints = found.checkpoints;
        checkpoints.log_bytes.set(replay.bytes);
        let parts = Parts {
            id,
            dir,
            log,
            data,
            poison,
            unflushed,
            sums,
            keys,
            survived,
            state,
            checkpoints,
        };
        Ok(Partition::new(parts, config))
    }
}

/// Takes over what a life before has left, when there is something.
fn survive(
    state: &State,
    data: &DataFile,
    unflushed: &Unflushed,
    left: Result<Option<LastSlots>, &'static str>,
    sums: &mut BTreeMap<u32, BlockSums>,
) -> Result<Survived, VolumeError> {
    let restored = match left {
        Ok(None) => {
            unflushed.settle();
            return Ok(Survived::Closed);
        }
        Ok(Some(slots)) => restore(state, data, &slots, sums)?,
        Err(why) => Err(why),
    };
    if let Err(why) = restored {
        unflushed.lose(why);
        return Ok(Survived::Flushed(why));
    }
    let lost = unflushed.lost()?;
    Ok(lost.map_or(Survived::Acknowledged, Survived::Flushed))
}

/// Gives maps the slots that a life before had in memory. What they are durably stays referred to.
/// Answers why there is nothing to rely on, when that is so: then no map is touched.
fn restore(
    state: &State,
    data: &DataFile,
    slots: &LastSlots,
    sums: &mut BTreeMap<u32, BlockSums>,
) -> Result<Result<(), &'static str>, VolumeError> {
    let mut space = data.space.borrow_mut();
    let fits = |((id, index), slot): (&(VolumeId, u64), &LastSlot)| {
        let Some(volume) = state.volumes.get(id) else {
            return state.is_removed(*id);
        };
        let inside = *index < volume.bytes().div_ceil(CLUSTER);
        let mut data = slot.pieces.iter().filter(|piece| piece.has_data());
        let there = data.clone().all(|piece| piece.cluster < space.count());
        (inside || data.next().is_none()) && there
    };
    if !slots.iter().all(fits) {
        return Ok(Err(OTHER_VOLUMES));
    }
    for ((id, index), slot) in slots {
        if let Some(volume) = state.volumes.get(id) {
            volume.restore_slot(&mut space, *index, slot)?;
            lay_sums(sums, &slot.pieces, &slot.sums);
        }
    }
    Ok(Ok(()))
}

/// Takes checksums of a slot's blocks over to where they lie.
fn lay_sums(into: &mut BTreeMap<u32, BlockSums>, pieces: &[Piece], sums: &BlockSums) {
    for piece in pieces.iter().filter(|piece| piece.has_data()) {
        let here = sums.only(piece.mask);
        if here.known() != 0 {
            into.entry(piece.cluster).or_default().renew(&here);
        }
    }
}

/// Counts references and valid blocks of all maps, each node once.
async fn count(state: &mut State, data: &DataFile) -> Result<(), VolumeError> {
    let mut counted = BTreeMap::new();
    for volume in state.volumes.values() {
        let blocks = claim_tree(&volume.tree.borrow(), &data.space, &mut counted)?;
        volume.mapped_blocks.set(blocks);
        engine::yield_now().await;
    }
    for snapshot in state.snapshots.values_mut() {
        let frozen = &mut snapshot.frozen;
        frozen.mapped_blocks = claim_tree(&frozen.tree, &data.space, &mut counted)?;
        engine::yield_if_needed().await;
    }
    Ok(())
}

/// Gives volumes what is theirs alone, and says what is missing of their images.
async fn own(state: &State, data: &DataFile) {
    for volume in state.volumes.values() {
        own_what_is_alone(volume, data);
        volume.begin_filling().await;
        engine::yield_now().await;
    }
}

fn own_what_is_alone(volume: &Volume, data: &DataFile) {
    let mut space = data.space.borrow_mut();
    let layer = space.new_layer();
    volume.layer.set(layer);
    if let Some(root) = volume.tree.borrow().root() {
        adopt(root, layer, volume.summed, &mut space);
    }
}

fn claim_tree(
    tree: &Tree,
    space: &std::cell::RefCell<Space>,
    counted: &mut BTreeMap<usize, u64>,
) -> Result<u64, VolumeError> {
    match tree.root() {
        Some(root) => claim(root, &mut space.borrow_mut(), counted),
        None => Ok(0),
    }
}

/// Claims what lies below a node, unless that was done; answers its valid blocks.
fn claim(
    node: &Rc<Node>,
    space: &mut Space,
    counted: &mut BTreeMap<usize, u64>,
) -> Result<u64, VolumeError> {
    let address = Rc::as_ptr(node).addr();
    if let Some(blocks) = counted.get(&address) {
        return Ok(*blocks);
    }
    let mut blocks = 0;
    match &**node {
        Node::Leaf(leaf) => {
            for cluster in leaf.clusters() {
                space.claim(cluster)?;
            }
            blocks += leaf.blocks();
        }
        Node::Inner(children) => {
            for child in children.iter().flatten() {
                blocks += claim(child, space, counted)?;
            }
        }
    }
    if Rc::strong_count(node) > 1 {
        counted.insert(address, blocks);
    }
    Ok(blocks)
}

/// Gives a layer the clusters below a node that nothing else refers to.
fn adopt(node: &Rc<Node>, layer: Layer, summed: bool, space: &mut Space) {
    if Rc::strong_count(node) > 1 {
        return;
    }
    match &**node {
        Node::Leaf(leaf) => {
            let mut adopt = |cluster| {
                if space.references(cluster) == 1 {
                    space.adopt(cluster, layer);
                }
            };
            if summed {
                leaf.clusters().for_each(adopt);
            } else {
                leaf.first_clusters().for_each(&mut adopt);
            }
        }
        Node::Inner(children) => {
            for child in children.iter().flatten() {
                adopt(child, layer, summed, space);
            }
        }
    }
}
