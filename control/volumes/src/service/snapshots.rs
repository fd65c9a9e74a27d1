//! Snapshots: taken, listed, removed, gone back to, compared.

use control_kit::api::Caller;
use control_kit::api_error::ApiError;
use control_kit::audit;
use control_kit::page;
use coronafs::{PointInTime, SnapshotId, SnapshotInfo, VolumeId};
use coronafs_api::v1;

use super::volumes::no_such_snapshot;
use super::{Found, VolumeService, hex};
use crate::error::told;

impl VolumeService {
    pub(super) async fn find_snapshot(
        &self,
        caller: &Caller,
        of: &Found,
        name: &str,
    ) -> Result<SnapshotInfo, ApiError> {
        let (id, wanted) = (of.id, name.to_owned());
        let found = self.on_partition(caller, id, move |partition| async move {
            let mut all = partition.snapshots(id).into_iter();
            Ok(all.find(|snapshot| snapshot.name == wanted))
        });
        let found = found.await.map_err(|failure| told(failure, &of.object()))?;
        found.ok_or_else(|| no_such_snapshot(of, name))
    }

    /// Takes a snapshot.
    ///
    /// # Errors
    /// What the user is told.
    pub async fn create_snapshot(
        &self,
        caller: &Caller,
        request: v1::CreateSnapshotRequest,
    ) -> Result<v1::Snapshot, ApiError> {
        let of = self.find(caller, &request.owner, &request.volume).await?;
        let object = format!("snapshot {} of {}", request.name, of.object());
        let id = of.id;
        let taken = self.on_partition(caller, id, move |partition| async move {
            partition.snapshot(id, request.name).await
        });
        let taken = taken.await.map_err(|failure| told(failure, &object))?;
        audit::log_done(caller, "snapshot-create", object);
        Ok(shown(taken, &of.name))
    }

    /// A page of a volume's snapshots.
    ///
    /// # Errors
    /// What the user is told.
    pub async fn list_snapshots(
        &self,
        caller: &Caller,
        request: v1::ListSnapshotsRequest,
    ) -> Result<v1::ListSnapshotsResponse, ApiError> {
        let limit = page::limit(request.limit)?;
        let after = page::key(&request.after)?;
        let after = after.and_then(|after| u64::from_str_radix(&after, 16).ok());
        let of = self.find(caller, &request.owner, &request.volume).await?;
        let (id, after) = (of.id, SnapshotId(after.unwrap_or_default()));
        let listed = self.on_partition(caller, id, move |partition| async move {
            partition.stat(id)?;
            let behind = partition.snapshots(id).into_iter();
            let behind = behind.filter(|snapshot| snapshot.id > after);
            Ok(behind.take(limit + 1).collect::<Vec<_>>())
        });
        let mut listed = listed
            .await
            .map_err(|failure| told(failure, &of.object()))?;
        let more = listed.len() > limit;
        listed.truncate(limit);
        let last = listed.last().filter(|_| more);
        let last = last.map(|last| hex(VolumeId(last.id.0)));
        let snapshots = listed.into_iter().map(|one| shown(one, &of.name));
        Ok(v1::ListSnapshotsResponse {
            snapshots: snapshots.collect(),
            next: page::token(last.as_deref()),
        })
    }

    /// Removes a snapshot.
    ///
    /// # Errors
    /// What the user is told.
    pub async fn delete_snapshot(
        &self,
        caller: &Caller,
        request: v1::DeleteSnapshotRequest,
    ) -> Result<v1::DeleteSnapshotResponse, ApiError> {
        let of = self.find(caller, &request.owner, &request.volume).await?;
        let snapshot = self.find_snapshot(caller, &of, &request.name).await?;
        let object = format!("snapshot {} of {}", request.name, of.object());
        let deleted = self.on_partition(caller, of.id, move |partition| async move {
            partition.delete_snapshot(snapshot.id).await
        });
        deleted.await.map_err(|failure| told(failure, &object))?;
        audit::log_done(caller, "snapshot-delete", object);
        Ok(v1::DeleteSnapshotResponse {})
    }

    /// Makes a volume hold what one of its snapshots holds.
    ///
    /// # Errors
    /// What the user is told.
    pub async fn rollback(
        &self,
        caller: &Caller,
        request: v1::RollbackVolumeRequest,
    ) -> Result<v1::Volume, ApiError> {
        let of = self.find(caller, &request.owner, &request.name).await?;
        let snapshot = self.find_snapshot(caller, &of, &request.snapshot).await?;
        let _order = self.order(of.id).await;
        self.check_detached(&of)?;
        let id = of.id;
        let gone_back = self.on_partition(caller, id, move |partition| async move {
            partition.rollback(id, snapshot.id).await?;
            partition.stat(id)
        });
        let info = gone_back
            .await
            .map_err(|failure| told(failure, &of.object()))?;
        let object = format!("{} to {}", of.object(), request.snapshot);
        audit::log_done(caller, "volume-rollback", object);
        Ok(self.shown(info))
    }

    /// A page of the ranges in which a snapshot differs from an older state.
    ///
    /// # Errors
    /// What the user is told.
    pub async fn list_changes(
        &self,
        caller: &Caller,
        request: v1::ListChangesRequest,
    ) -> Result<v1::ListChangesResponse, ApiError> {
        let of = self.find(caller, &request.owner, &request.volume).await?;
        let new = self.find_snapshot(caller, &of, &request.snapshot).await?;
        let old = if request.since.is_empty() {
            PointInTime::Empty
        } else {
            let since = self.find_snapshot(caller, &of, &request.since).await?;
            PointInTime::Snapshot(since.id)
        };
        let from = request.from;
        let found = self.on_partition(caller, of.id, move |partition| async move {
            partition.diff(old, new.id, from).await
        });
        let (changes, next) = found.await.map_err(|failure| told(failure, &of.object()))?;
        let changes = changes.into_iter().map(|change| v1::Change {
            offset: change.offset,
            bytes: change.bytes,
            zero: change.zero,
        });
        Ok(v1::ListChangesResponse {
            changes: changes.collect(),
            next: next.unwrap_or_default(),
        })
    }
}

fn shown(info: SnapshotInfo, volume: &str) -> v1::Snapshot {
    v1::Snapshot {
        id: hex(VolumeId(info.id.0)),
        name: info.name,
        volume: volume.to_owned(),
        bytes: info.bytes,
        mapped_bytes: info.mapped_bytes,
        created_unix_ms: info.created_ms as i64,
    }
}
