//! The volumes and snapshots of a partition, and what each record changes of them. Sans-IO: a restart
//! plays records into it, and a running partition does so when they are durable.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use crate::image::VolumeImage;
use crate::map::{CLUSTER, Tree};
use crate::record::{Change, SlotChange};
use crate::types::{KeyId, Limits, SnapshotId, SnapshotInfo, VolumeId};
use crate::volume::Volume;

/// What a volume is, beside its map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Meta {
    pub(crate) owner: String,
    pub(crate) name: String,
    pub(crate) bytes: u64,
    pub(crate) created_ms: u64,
    pub(crate) origin: Option<SnapshotId>,
    pub(crate) generation: u64,
    pub(crate) limits: Limits,
    pub(crate) key: Option<KeyId>,
    pub(crate) image: Option<VolumeImage>,
    pub(crate) checksums: bool,
}

/// A volume's state as it was.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    pub(crate) volume: VolumeId,
    pub(crate) name: String,
    pub(crate) bytes: u64,
    pub(crate) created_ms: u64,
    pub(crate) key: Option<KeyId>,
    pub(crate) checksums: bool,
    pub(crate) frozen: Frozen,
}

/// A map that nobody changes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Frozen {
    pub(crate) tree: Tree,
    pub(crate) mapped_blocks: u64,
}

impl Snapshot {
    pub(crate) fn info(&self, id: SnapshotId) -> SnapshotInfo {
        SnapshotInfo {
            id,
            volume: self.volume,
            name: self.name.clone(),
            bytes: self.bytes,
            created_ms: self.created_ms,
            mapped_bytes: self.frozen.mapped_blocks * crate::map::BLOCK,
        }
    }
}

/// All of a partition.
#[derive(Default)]
pub(crate) struct State {
    /// The newest number that a volume or snapshot was given.
    pub(crate) newest: u64,
    pub(crate) volumes: BTreeMap<VolumeId, Rc<Volume>>,
    pub(crate) names: BTreeMap<(String, String), VolumeId>,
    pub(crate) snapshots: BTreeMap<SnapshotId, Snapshot>,
    by_volume: BTreeSet<(VolumeId, SnapshotId)>,
}

/// What a change leaves to be taken apart.
pub(crate) type Leftover = Option<Tree>;

/// Why a record does not fit what is there.
type Refusal = &'static str;

impl State {
    pub(crate) fn add_volume(&mut self, id: VolumeId, meta: Meta, map: Frozen) {
        let name = (meta.owner.clone(), meta.name.clone());
        self.names.insert(name, id);
        self.newest = self.newest.max(id.0);
        self.volumes.insert(id, Rc::new(Volume::new(id, meta, map)));
    }

    pub(crate) fn add_snapshot(&mut self, id: SnapshotId, snapshot: Snapshot) {
        self.newest = self.newest.max(id.0);
        self.by_volume.insert((snapshot.volume, id));
        self.snapshots.insert(id, snapshot);
    }

    fn volume(&self, id: VolumeId) -> Result<&Rc<Volume>, Refusal> {
        self.volumes.get(&id).ok_or("there is no such volume")
    }

    /// Whether there was a volume of this number.
    pub(crate) fn is_removed(&self, id: VolumeId) -> bool {
        let is_there =
            self.volumes.contains_key(&id) || self.snapshots.contains_key(&SnapshotId(id.0));
        id.0 <= self.newest && !is_there
    }

    fn snapshot(&self, id: SnapshotId) -> Result<&Snapshot, Refusal> {
        self.snapshots.get(&id).ok_or("there is no such snapshot")
    }

    /// The snapshots of a volume.
    pub(crate) fn snapshots_of(
        &self,
        volume: VolumeId,
    ) -> impl Iterator<Item = (SnapshotId, &Snapshot)> {
        let range = (volume, SnapshotId(0))..=(volume, SnapshotId(u64::MAX));
        let ids = self.by_volume.range(range);
        ids.filter_map(|(_, id)| Some((*id, self.snapshots.get(id)?)))
    }

    /// Every key that a volume or snapshot has.
    pub(crate) fn keys(&self) -> impl Iterator<Item = KeyId> + '_ {
        let volumes = self.volumes.values();
        let volumes = volumes.filter_map(|volume| volume.meta.borrow().key);
        let snapshots = self.snapshots.values();
        volumes.chain(snapshots.filter_map(|snapshot| snapshot.key))
    }

    /// Plays a record. `frozen` is what a new snapshot holds, when its volume has gone on meanwhile.
    pub(crate) fn apply(
        &mut self,
        change: Change,
        frozen: Option<Frozen>,
    ) -> Result<Leftover, Refusal> {
        match change {
            Change::Create {
                id,
                bytes,
                created_ms,
                owner,
                name,
                key,
                image,
                checksums,
            } => {
                let mut meta = new_meta(owner, name, bytes, created_ms);
                (meta.key, meta.image, meta.checksums) = (key, image, checksums);
                self.add_volume(id, meta, Frozen::default());
            }
            Change::Clone {
                id,
                snapshot,
                created_ms,
                owner,
                name,
            } => {
                let from = self.snapshot(snapshot)?;
                let frozen = from.frozen.clone();
                let mut meta = new_meta(owner, name, from.bytes, created_ms);
                (meta.origin, meta.key) = (Some(snapshot), from.key);
                meta.checksums = from.checksums;
                self.add_volume(id, meta, frozen);
            }
            Change::Snapshot {
                id,
                volume,
                created_ms,
                name,
            } => {
                let of = self.volume(volume)?;
                let snapshot = Snapshot {
                    volume,
                    name,
                    bytes: of.bytes(),
                    created_ms,
                    key: of.meta.borrow().key,
                    checksums: of.summed,
                    frozen: frozen.unwrap_or_else(|| of.frozen()),
                };
                self.add_snapshot(id, snapshot);
            }
            Change::Delete { id } => {
                let volume = self.volumes.remove(&id).ok_or("there is no such volume")?;
                self.names.remove(&volume.full_name());
                // A commit that waits for its turn finds nothing to record.
                return Ok(Some(volume.replace_map(&Frozen::default())));
            }
            Change::DeleteSnapshot { id } => {
                let snapshot = self.snapshots.remove(&id);
                let snapshot = snapshot.ok_or("there is no such snapshot")?;
                self.by_volume.remove(&(snapshot.volume, id));
                return Ok(Some(snapshot.frozen.tree));
            }
            Change::Rollback { volume, snapshot } => {
                let from = self.snapshot(snapshot)?;
                let volume = self.volume(volume)?;
                volume.meta.borrow_mut().bytes = from.bytes;
                return Ok(Some(volume.replace_map(&from.frozen)));
            }
            other => self.apply_setting(other)?,
        }
        Ok(None)
    }

    /// Those that change a volume that is there, and leave its map.
    fn apply_setting(&mut self, change: Change) -> Result<(), Refusal> {
        match change {
            // Numbers are never used again: what a removed volume's map was does not matter.
            Change::Map { volume, .. } | Change::MapWithSums { volume, .. }
                if self.is_removed(volume) => {}
            Change::Map { volume, slots } => {
                set_slots(self.volume(volume)?, slots)?;
            }
            // The checksums are kept by whoever plays records.
            Change::MapWithSums { volume, slots } => {
                let slots = slots.into_iter().map(|(index, pieces, _)| (index, pieces));
                set_slots(self.volume(volume)?, slots)?;
            }
            Change::Resize { volume, bytes } => {
                self.volume(volume)?.meta.borrow_mut().bytes = bytes;
            }
            Change::Rename { volume, name } => {
                let volume = Rc::clone(self.volume(volume)?);
                let mut meta = volume.meta.borrow_mut();
                self.names.remove(&(meta.owner.clone(), meta.name.clone()));
                self.names
                    .insert((meta.owner.clone(), name.clone()), volume.id);
                meta.name = name;
            }
            Change::Attach { volume, generation } => {
                self.volume(volume)?.meta.borrow_mut().generation = generation;
            }
            Change::Limit { volume, limits } => {
                self.volume(volume)?.set_limits(limits);
            }
            // As of a map: a fill may end behind a removal.
            Change::Image { volume, .. } if self.is_removed(volume) => {}
            Change::Image { volume, change } => self.volume(volume)?.apply_image(change),
            _ => unreachable!("applied by the caller"),
        }
        Ok(())
    }
}

fn set_slots(volume: &Volume, slots: impl IntoIterator<Item = SlotChange>) -> Result<(), Refusal> {
    let bytes = volume.bytes();
    let mut tree = volume.tree.borrow_mut();
    for (index, pieces) in slots {
        // A slot behind a new end may still be said to have no data.
        let has_data = pieces.iter().any(|piece| piece.has_data());
        if index >= bytes.div_ceil(CLUSTER) && has_data {
            return Err("a cluster past the volume's end");
        }
        tree.set(index, &pieces, |_| {});
    }
    Ok(())
}

fn new_meta(owner: String, name: String, bytes: u64, created_ms: u64) -> Meta {
    Meta {
        owner,
        name,
        bytes,
        created_ms,
        origin: None,
        generation: 0,
        limits: Limits::default(),
        key: None,
        image: None,
        checksums: false,
    }
}
