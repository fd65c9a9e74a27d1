//! The partitions of volumes that one shard owns.

use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;

use shards::placement::{PartitionId, PlacementMap, resource_hash};

use crate::config::VolumeConfig;
use crate::error::VolumeError;
use crate::partition::Partition;
use crate::types::{SnapshotId, VolumeId};

impl VolumeId {
    /// The partition that the volume is in, with its snapshots and their clones.
    pub fn partition(self) -> PartitionId {
        PartitionId((self.0 >> 48) as u16)
    }
}

impl SnapshotId {
    /// The partition that the snapshot is in.
    pub fn partition(self) -> PartitionId {
        VolumeId(self.0).partition()
    }
}

/// The partition for a new volume. A clone goes to its snapshot's instead, so a volume is found by its
/// name only by whoever looks in all partitions, or keeps names elsewhere.
pub fn partition_for(map: &PlacementMap, owner: &str, name: &str) -> PartitionId {
    map.partition_of(resource_hash(&[owner.as_bytes(), name.as_bytes()]))
}

/// The partitions of one shard.
#[derive(Debug)]
pub struct VolumeShard {
    partitions: BTreeMap<PartitionId, Partition>,
}

impl VolumeShard {
    /// Recovers all partitions that the map places on this shard.
    ///
    /// # Errors
    /// `Corrupt` when something durable is damaged or missing, `Full`, `Internal`.
    pub async fn open(
        root: &Path,
        config: &VolumeConfig,
        map: &PlacementMap,
    ) -> Result<Rc<VolumeShard>, VolumeError> {
        let mut partitions = BTreeMap::new();
        for id in map.owned_by(engine::shard_id()) {
            partitions.insert(id, Partition::open(root, id, config).await?);
        }
        Ok(Rc::new(VolumeShard { partitions }))
    }

    /// A partition of this shard.
    ///
    /// # Errors
    /// `Gone` when it is elsewhere.
    pub fn partition(&self, id: PartitionId) -> Result<&Partition, VolumeError> {
        self.partitions.get(&id).ok_or(VolumeError::Gone)
    }

    /// All of them, in order.
    pub fn partitions(&self) -> impl Iterator<Item = &Partition> {
        self.partitions.values()
    }

    /// Closes all partitions.
    ///
    /// # Errors
    /// The first one's that failed; the others are closed all the same.
    pub async fn close(&self) -> Result<(), VolumeError> {
        let mut outcome = Ok(());
        for partition in self.partitions.values() {
            let closed = partition.close().await;
            outcome = outcome.and(closed);
        }
        outcome
    }
}
