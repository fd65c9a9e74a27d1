//! What can be done with volumes and snapshots as such.

use std::ops::Bound;
use std::rc::Rc;

use crate::error::VolumeError;
use crate::image::VolumeImage;
use crate::map::{BLOCK, BLOCKS, CLUSTER, Leaf, Tree, differing};
use crate::partition::{For, Inner, Partition};
use crate::record::Change;
use crate::types::*;
use crate::volume::Volume;

/// Most changed ranges that one call of [`Partition::diff`] returns.
pub const CHANGED_MAX: usize = 4096;
/// Leaves that a step of a diff looks at.
const DIFF_LEAVES: usize = 256;

impl Inner {
    fn next_id(&self) -> u64 {
        let mut state = self.state.borrow_mut();
        let first = u64::from(self.id.0) << 48;
        state.newest = state.newest.max(first) + 1;
        state.newest
    }

    /// # Errors
    /// `Invalid`, `NameTaken`, `Full` of volumes.
    fn check_new(&self, owner: &str, name: &str) -> Result<(), VolumeError> {
        check_owner(owner)?;
        check_name("name", name)?;
        let state = self.state.borrow();
        if state.volumes.len() >= self.config.volumes_max {
            return Err(VolumeError::Full);
        }
        if state
            .names
            .contains_key(&(owner.to_owned(), name.to_owned()))
        {
            return Err(VolumeError::NameTaken(name.to_owned()));
        }
        Ok(())
    }

    pub(crate) fn info(&self, id: VolumeId) -> Result<VolumeInfo, VolumeError> {
        let volume = self.volume(id)?;
        let snapshots = self.state.borrow().snapshots_of(id).count();
        Ok(volume.info(snapshots))
    }

    fn snapshot_info(&self, id: SnapshotId) -> Result<SnapshotInfo, VolumeError> {
        let state = self.state.borrow();
        let found = state
            .snapshots
            .get(&id)
            .ok_or(VolumeError::NoSuchSnapshot)?;
        Ok(found.info(id))
    }

    pub(crate) async fn create(
        self: &Rc<Inner>,
        new: NewVolume,
        image: Option<VolumeImage>,
    ) -> Result<VolumeInfo, VolumeError> {
        let _turn = self.turn().await?;
        self.check_new(&new.owner, &new.name)?;
        check_size(new.bytes)?;
        let id = VolumeId(self.next_id());
        let key = new.encrypted.then(|| KeyId(self.next_id()));
        if let Some(key) = key {
            self.keys.make(key).await?;
        }
        let change = Change::Create {
            id,
            bytes: new.bytes,
            created_ms: now_ms(),
            owner: new.owner,
            name: new.name,
            key,
            checksums: new.checksums,
            image,
        };
        let made = self.change(change, None).await;
        self.erase_unused(key).await?;
        made?;
        self.info(id)
    }

    /// Takes a snapshot; see the invariants of [`crate::partition`].
    async fn snapshot(
        self: Rc<Inner>,
        of: VolumeId,
        name: String,
    ) -> Result<SnapshotInfo, VolumeError> {
        let _turn = self.turn().await?;
        check_name("name", &name)?;
        let volume = self.volume(of)?;
        // It would need the image for ever.
        volume.check_filled()?;
        {
            let state = self.state.borrow();
            if state.snapshots.len() >= self.config.snapshots_max {
                return Err(VolumeError::Full);
            }
            if state
                .snapshots_of(of)
                .any(|(_, snapshot)| snapshot.name == name)
            {
                return Err(VolumeError::NameTaken(name));
            }
        }
        let id = SnapshotId(self.next_id());
        let _commit = volume.commits.acquire(1).await?;
        let (captured, frozen) = {
            let _closed = volume.gate.close().await;
            // What is written from here on goes to clusters of a new layer, and its records come
            // behind the snapshot's: the turn to commit is ours.
            volume.layer.set(self.data.space.borrow_mut().new_layer());
            (volume.capture(), volume.frozen())
        };
        let claim = captured.claim(For::Order);
        if let Err(error) = self.write_captured(&captured, claim).await {
            self.reap(Some(frozen.tree));
            return Err(error);
        }
        let change = Change::Snapshot {
            id,
            volume: of,
            created_ms: now_ms(),
            name,
        };
        self.change(change, Some(frozen)).await?;
        captured.end(&mut self.data.space.borrow_mut());
        self.snapshot_info(id)
    }

    async fn rollback(self: Rc<Inner>, of: VolumeId, to: SnapshotId) -> Result<(), VolumeError> {
        let _turn = self.turn().await?;
        let volume = self.volume(of)?;
        if self.snapshot_info(to)?.volume != of {
            return Err(VolumeError::NoSuchSnapshot);
        }
        volume.check_detached()?;
        let room = self.room(1, For::Freeing).await?;
        let _commit = volume.commits.acquire(1).await?;
        let _closed = volume.gate.close().await;
        // What was entered of the volume must not be played on what it is rolled back to: void before
        // the rollback can be durable, and durable before it is void.
        self.commit_captured(&volume, For::Freeing).await?;
        room.void(of);
        drop(room);
        let change = Change::Rollback {
            volume: of,
            snapshot: to,
        };
        self.change(change, None).await?;
        volume.changed.notify_all();
        Ok(())
    }

    async fn resize(self: Rc<Inner>, of: VolumeId, bytes: u64) -> Result<VolumeInfo, VolumeError> {
        let _turn = self.turn().await?;
        check_size(bytes)?;
        let volume = self.volume(of)?;
        let _commit = volume.commits.acquire(1).await?;
        let _closed = volume.gate.close().await;
        if volume.bytes() > bytes {
            if volume
                .filling()
                .is_some_and(|filling| bytes < filling.end())
            {
                return Err(VolumeError::Filling);
            }
            let used = used_end(&volume.tree.borrow());
            if used > bytes {
                return Err(VolumeError::InUse(used));
            }
            // What emptied the end is durable before the end is gone: a restart must not find there
            // what was discarded, for the day on which the volume grows again.
            let captured = volume.capture();
            let claim = captured.claim(For::Order);
            self.write_captured(&captured, claim).await?;
            captured.end(&mut self.data.space.borrow_mut());
        }
        let change = Change::Resize { volume: of, bytes };
        self.change(change, None).await?;
        volume.changed.notify_all();
        self.info(of)
    }

    async fn delete(self: Rc<Inner>, id: VolumeId) -> Result<(), VolumeError> {
        let _turn = self.turn().await?;
        // A removal that is asked for again is answered when its key is gone.
        self.keys.erase_left().await?;
        let volume = self.volume(id)?;
        volume.check_detached()?;
        let snapshots = self.state.borrow().snapshots_of(id).count();
        if snapshots > 0 {
            return Err(VolumeError::HasSnapshots(snapshots));
        }
        let _commit = volume.commits.acquire(1).await?;
        let _closed = volume.gate.close().await;
        let key = volume.meta.borrow().key;
        self.change(Change::Delete { id }, None).await?;
        self.erase_unused(key).await
    }

    /// Erases a key that no volume and no snapshot has. The caller has the turn.
    ///
    /// # Errors
    /// `Full`, `Busy`, `Poisoned`: what had the key is gone; the next removal or start erases it.
    async fn erase_unused(&self, key: Option<KeyId>) -> Result<(), VolumeError> {
        let is_used = |key| self.state.borrow().keys().any(|used| used == key);
        match key.filter(|key| !is_used(*key)) {
            Some(key) => self.keys.erase(key).await,
            None => Ok(()),
        }
    }

    /// A volume's or a snapshot's map.
    fn map_of(&self, at: PointInTime) -> Result<Tree, VolumeError> {
        match at {
            PointInTime::Snapshot(id) => {
                let state = self.state.borrow();
                let found = state
                    .snapshots
                    .get(&id)
                    .ok_or(VolumeError::NoSuchSnapshot)?;
                Ok(found.frozen.tree.clone())
            }
            PointInTime::Empty => Ok(Tree::default()),
        }
    }
}

/// The byte behind the last block that has data.
fn used_end(tree: &Tree) -> u64 {
    let Some(index) = tree.last_mapped() else {
        return 0;
    };
    let blocks = tree
        .slot(index)
        .iter()
        .filter(|piece| piece.has_data())
        .fold(0, |all, piece| all | piece.mask);
    index * CLUSTER + u64::from(16 - blocks.leading_zeros()) * BLOCK
}

fn now_ms() -> u64 {
    engine::wall_clock() / 1_000_000
}

/// What a diff is taken from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PointInTime {
    /// A volume's state as a snapshot holds it.
    Snapshot(SnapshotId),
    /// A volume without data: everything that the other has is a change.
    Empty,
}

impl Volume {
    fn info(&self, snapshots: usize) -> VolumeInfo {
        let meta = self.meta.borrow();
        let image = meta.image.as_ref();
        VolumeInfo {
            id: self.id,
            owner: meta.owner.clone(),
            name: meta.name.clone(),
            bytes: meta.bytes,
            created_ms: meta.created_ms,
            origin: meta.origin,
            key: meta.key,
            checksums: meta.checksums,
            generation: meta.generation,
            attached: self.holders.borrow().len(),
            limits: meta.limits,
            mapped_bytes: self.mapped_blocks.get() * BLOCK,
            snapshots,
            image: image.map(|image| image.state(self.filling.borrow().as_deref())),
        }
    }

    /// # Errors
    /// `Attached`.
    fn check_detached(&self) -> Result<(), VolumeError> {
        match self.holders.borrow().last() {
            Some(holder) => Err(VolumeError::Attached(holder.generation)),
            None => Ok(()),
        }
    }
}

impl Partition {
    /// Makes an empty volume. The key of an encrypted one is durable before it is.
    ///
    /// # Errors
    /// `Invalid`, `NameTaken`, `Full`, `Busy`, `Poisoned`, `Gone`.
    pub async fn create(&self, new: NewVolume) -> Result<VolumeInfo, VolumeError> {
        self.in_task(|inner| async move { inner.create(new, None).await })
            .await
    }

    /// Makes a volume that holds what a snapshot holds, at once, whatever its size: they share all
    /// clusters until one of them is written.
    ///
    /// # Errors
    /// `NoSuchSnapshot`, and those of [`Partition::create`].
    pub async fn clone_snapshot(&self, new: NewClone) -> Result<VolumeInfo, VolumeError> {
        self.in_task(|inner| async move {
            let _turn = inner.turn().await?;
            inner.check_new(&new.owner, &new.name)?;
            inner.snapshot_info(new.snapshot)?;
            let id = VolumeId(inner.next_id());
            let change = Change::Clone {
                id,
                snapshot: new.snapshot,
                created_ms: now_ms(),
                owner: new.owner,
                name: new.name,
            };
            inner.change(change, None).await?;
            inner.info(id)
        })
        .await
    }

    /// Removes a volume. Its space is free a little later. When nothing else has its key, that is
    /// overwritten, durably, before this returns: whatever is left of it cannot be read. While a key
    /// cannot be overwritten this and every other removal is an error, also when it is asked for again.
    ///
    /// # Errors
    /// `NoSuchVolume`, `Attached`, `HasSnapshots`, `Full`, `Busy`, `Poisoned`, `Gone`.
    pub async fn delete(&self, id: VolumeId) -> Result<(), VolumeError> {
        self.in_task(|inner| inner.delete(id)).await
    }

    /// Gives a volume another name.
    ///
    /// # Errors
    /// `NoSuchVolume`, and those of [`Partition::create`].
    pub async fn rename(&self, id: VolumeId, name: String) -> Result<(), VolumeError> {
        self.in_task(move |inner| async move {
            let _turn = inner.turn().await?;
            let owner = inner.volume(id)?.meta.borrow().owner.clone();
            check_name("name", &name)?;
            if inner
                .state
                .borrow()
                .names
                .contains_key(&(owner, name.clone()))
            {
                return Err(VolumeError::NameTaken(name));
            }
            inner
                .change(Change::Rename { volume: id, name }, None)
                .await
        })
        .await
    }

    /// Gives a volume another size, also while it is attached. What is added reads as zeros.
    ///
    /// # Errors
    /// `NoSuchVolume`, `Invalid`; `InUse` when there is data behind the new end; `Filling` when the
    /// volume needs its image, and that is larger; `Full`, `Busy`, `Poisoned`, `Gone`.
    pub async fn resize(&self, id: VolumeId, bytes: u64) -> Result<VolumeInfo, VolumeError> {
        self.in_task(|inner| inner.resize(id, bytes)).await
    }

    /// Limits what a volume may do in a second, from now on.
    ///
    /// # Errors
    /// `NoSuchVolume`, `Invalid`, `Full`, `Busy`, `Poisoned`, `Gone`.
    pub async fn limit(&self, id: VolumeId, limits: Limits) -> Result<(), VolumeError> {
        self.in_task(move |inner| async move {
            let _turn = inner.turn().await?;
            inner.volume(id)?;
            check_limits(limits)?;
            inner
                .change(Change::Limit { volume: id, limits }, None)
                .await
        })
        .await
    }

    /// Takes a snapshot of a volume, attached or not, whatever its size. See [`crate::partition`] for
    /// what it holds.
    ///
    /// # Errors
    /// `NoSuchVolume`, `Filling`, and those of [`Partition::create`].
    pub async fn snapshot(&self, of: VolumeId, name: String) -> Result<SnapshotInfo, VolumeError> {
        self.in_task(|inner| inner.snapshot(of, name)).await
    }

    /// Removes a snapshot, wherever it stands: what others share with it stays. Its space is free a
    /// little later.
    ///
    /// # Errors
    /// `NoSuchSnapshot`, `Full`, `Busy`, `Poisoned`, `Gone`.
    pub async fn delete_snapshot(&self, id: SnapshotId) -> Result<(), VolumeError> {
        self.in_task(move |inner| async move {
            let _turn = inner.turn().await?;
            inner.keys.erase_left().await?;
            inner.snapshot_info(id)?;
            let key = {
                let state = inner.state.borrow();
                state.snapshots.get(&id).and_then(|found| found.key)
            };
            inner.change(Change::DeleteSnapshot { id }, None).await?;
            inner.erase_unused(key).await
        })
        .await
    }

    /// Makes a detached volume hold what one of its snapshots holds. The snapshots stay.
    ///
    /// # Errors
    /// `NoSuchVolume`, `NoSuchSnapshot`, `Attached`, `Full`, `Busy`, `Poisoned`, `Gone`.
    pub async fn rollback(&self, of: VolumeId, to: SnapshotId) -> Result<(), VolumeError> {
        self.in_task(|inner| inner.rollback(of, to)).await
    }

    /// What is known of a volume.
    ///
    /// # Errors
    /// `NoSuchVolume`.
    pub fn stat(&self, id: VolumeId) -> Result<VolumeInfo, VolumeError> {
        self.inner.info(id)
    }

    /// The volume of a name.
    pub fn find(&self, owner: &str, name: &str) -> Option<VolumeId> {
        let state = self.inner.state.borrow();
        state
            .names
            .get(&(owner.to_owned(), name.to_owned()))
            .copied()
    }

    /// Up to `count` volumes with a number past `after`, in order.
    pub fn list(&self, after: VolumeId, count: usize) -> Vec<VolumeInfo> {
        let state = self.inner.state.borrow();
        let volumes = state.volumes.range(VolumeId(after.0 + 1)..).take(count);
        volumes
            .map(|(id, volume)| volume.info(state.snapshots_of(*id).count()))
            .collect()
    }

    /// Up to `count` volumes behind an owner and a name, in the order of these; of one owner alone when
    /// one is given.
    pub fn list_by_name(
        &self,
        owner: Option<&str>,
        after: &(String, String),
        count: usize,
    ) -> Vec<VolumeInfo> {
        let state = self.inner.state.borrow();
        let first = owner.map(|owner| (owner.to_owned(), String::new()));
        let from = first.filter(|first| first > after);
        let from = from.as_ref().unwrap_or(after);
        let behind = state.names.range((Bound::Excluded(from), Bound::Unbounded));
        let listed = behind
            .take_while(|((of, _), _)| owner.is_none_or(|owner| owner == of))
            .take(count);
        let volumes = listed.filter_map(|(_, id)| Some((*id, state.volumes.get(id)?)));
        volumes
            .map(|(id, volume)| volume.info(state.snapshots_of(id).count()))
            .collect()
    }

    /// What is known of a snapshot.
    ///
    /// # Errors
    /// `NoSuchSnapshot`.
    pub fn stat_snapshot(&self, id: SnapshotId) -> Result<SnapshotInfo, VolumeError> {
        self.inner.snapshot_info(id)
    }

    /// The snapshots of a volume, oldest first.
    pub fn snapshots(&self, of: VolumeId) -> Vec<SnapshotInfo> {
        let state = self.inner.state.borrow();
        let found = state.snapshots_of(of);
        found.map(|(id, snapshot)| snapshot.info(id)).collect()
    }

    /// What a snapshot has that is not in an older state: ranges in order, from byte `from` on, and
    /// where the next call goes on when there are more. Costs as much as differs.
    ///
    /// # Errors
    /// `NoSuchSnapshot`.
    pub async fn diff(
        &self,
        old: PointInTime,
        new: SnapshotId,
        from: u64,
    ) -> Result<(Vec<Changed>, Option<u64>), VolumeError> {
        self.diff_of(old, from, |inner| inner.map_of(PointInTime::Snapshot(new)))
            .await
    }

    /// The same of a volume as it is now, flushed or not.
    ///
    /// # Errors
    /// `NoSuchVolume`, `NoSuchSnapshot`, `Filling`.
    pub async fn diff_volume(
        &self,
        old: PointInTime,
        new: VolumeId,
        from: u64,
    ) -> Result<(Vec<Changed>, Option<u64>), VolumeError> {
        self.diff_of(old, from, |inner| {
            let volume = inner.volume(new)?;
            volume.check_filled()?;
            Ok(volume.tree.borrow().clone())
        })
        .await
    }

    async fn diff_of(
        &self,
        old: PointInTime,
        from: u64,
        new: impl Fn(&Inner) -> Result<Tree, VolumeError>,
    ) -> Result<(Vec<Changed>, Option<u64>), VolumeError> {
        let mut found = Vec::new();
        let mut next = from / CLUSTER;
        loop {
            // Maps are looked up for each step, so that none is held while others work.
            let old = self.inner.map_of(old)?;
            let new = new(&self.inner)?;
            let mut leaves = 0;
            let mut stopped = None;
            differing(&old, &new, next, &mut |base, old, new| {
                if leaves == DIFF_LEAVES || found.len() >= CHANGED_MAX {
                    stopped = Some(base);
                    return false;
                }
                leaves += 1;
                compare(base, next, old, new, &mut found);
                true
            });
            match stopped {
                Some(base) if found.len() < CHANGED_MAX => next = base,
                stopped => return Ok((found, stopped.map(|base| base * CLUSTER))),
            }
            drop((old, new));
            engine::yield_if_needed().await;
        }
    }
}

/// Adds what differs between two leaves of the same place.
fn compare(base: u64, from: u64, old: Option<&Leaf>, new: Option<&Leaf>, found: &mut Vec<Changed>) {
    for index in base.max(from)..base + 64 {
        let slot = crate::map::slot_of(index);
        for block in 0..BLOCKS {
            let piece = |leaf: Option<&Leaf>| {
                let piece = leaf?.piece_of(slot, block);
                piece.filter(|p| p.has_data()).map(|p| p.cluster)
            };
            let (before, after) = (piece(old), piece(new));
            if before == after {
                continue;
            }
            let changed = Changed {
                offset: index * CLUSTER + u64::from(block) * BLOCK,
                bytes: BLOCK,
                zero: after.is_none(),
            };
            match found.last_mut() {
                Some(last)
                    if last.offset + last.bytes == changed.offset && last.zero == changed.zero =>
                {
                    last.bytes += BLOCK;
                }
                _ => found.push(changed),
            }
        }
    }
}
