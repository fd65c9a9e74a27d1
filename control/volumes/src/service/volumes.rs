//! Volumes: made, listed, looked up, changed, removed.

use control_kit::api::Caller;
use control_kit::api_error::ApiError;
use control_kit::audit;
use control_kit::page;
use coronafs::{
    ImageDigest, ImageRef, Limits, NewClone, NewVolume, VolumeError, VolumeId, VolumeInfo,
    partition_for,
};
use coronafs_api::v1;
use engine::SchedGroup;
use shard_bridge::Failure;
use tonic::Code;

use super::attach::shown_attachment;
use super::{Found, ROOT, VolumeService, hex, in_task, object, owner_of};
use crate::attachments::Attachments;
use crate::error::{denied, invalid, told};
use crate::images;

/// Sizes of volumes are multiples of it.
const UNIT: u64 = 4096;

impl VolumeService {
    /// Makes a volume.
    ///
    /// # Errors
    /// What the user is told.
    pub async fn create(
        &self,
        caller: &Caller,
        request: v1::CreateVolumeRequest,
    ) -> Result<v1::Volume, ApiError> {
        let owner = owner_of(caller, &request.owner)?;
        let service = self.clone();
        in_task(caller, |caller| async move {
            service.create_now(&caller, owner, request).await
        })
        .await
    }

    async fn create_now(
        &self,
        caller: &Caller,
        owner: String,
        request: v1::CreateVolumeRequest,
    ) -> Result<v1::Volume, ApiError> {
        let object = object(&owner, &request.name);
        let limits = limits_of(request.limits);
        let _names = self.inner.names.lock().await;
        if self.look_up(caller, &owner, &request.name).await?.is_some() {
            let taken = VolumeError::NameTaken(request.name);
            return Err(told(Failure::Service(taken), &object));
        }
        let image = self.image_of(caller, &request).await?;
        let made = match (&*request.from_volume, &*request.from_snapshot) {
            ("", "") => self.create_new(caller, &owner, &request, image).await,
            (from, snapshot) if !from.is_empty() && !snapshot.is_empty() => {
                let of = self.find(caller, &owner, from).await?;
                let snapshot = self.find_snapshot(caller, &of, snapshot).await?;
                self.create_clone(caller, &owner, &request, snapshot.id)
                    .await
            }
            _ => {
                let what = "from_volume and from_snapshot are not given together";
                return Err(invalid(&object, what, "give both, or none of them"));
            }
        };
        let mut made = made.map_err(|failure| told(failure, &object))?;
        if limits != Limits::default() {
            let id = made.id;
            let limited = self.on_partition(caller, id, move |partition| async move {
                partition.limit(id, limits).await?;
                partition.stat(id)
            });
            made = match limited.await {
                Ok(made) => made,
                Err(failure) => {
                    // A volume without the limits that were asked for is not what was asked for.
                    let removed = self.on_partition(caller, id, move |partition| async move {
                        partition.delete(id).await
                    });
                    if let Err(error) = removed.await {
                        tracing::warn!(%error, object, "a volume without its limits is left");
                    }
                    return Err(told(failure, &object));
                }
            };
        }
        audit::log_done(caller, "volume-create", object);
        Ok(self.shown(made))
    }

    /// The image that a volume is to hold.
    async fn image_of(
        &self,
        caller: &Caller,
        request: &v1::CreateVolumeRequest,
    ) -> Result<Option<ImageRef>, ApiError> {
        let v1::CreateVolumeRequest {
            from_volume,
            from_image,
            image_sha256,
            ..
        } = request;
        if from_image.is_empty() {
            if !image_sha256.is_empty() {
                let what = "image_sha256 is given without from_image";
                return Err(invalid("image", what, "give both, or none of them"));
            }
            return Ok(None);
        }
        let object = format!("image {from_image}");
        if !from_volume.is_empty() {
            let what = "from_volume and from_image are both given";
            return Err(invalid(&object, what, "give one of them"));
        }
        let catalog = self.inner.node.images().ok_or_else(|| {
            let what = "this node keeps no objects";
            let next = "let it have the role lightningstor too, or import the image";
            invalid(&object, what, next)
        })?;
        let mut image = catalog.find(caller, from_image).await?;
        if !image_sha256.is_empty() {
            let digest = images::parse_digest(image_sha256).ok_or_else(|| {
                let what = "image_sha256 is no SHA-256";
                invalid(&object, what, "give its 64 hexadecimal digits")
            })?;
            image.digest = Some(ImageDigest(digest));
        }
        Ok(Some(image))
    }

    async fn create_new(
        &self,
        caller: &Caller,
        owner: &str,
        request: &v1::CreateVolumeRequest,
        image: Option<ImageRef>,
    ) -> Result<VolumeInfo, Failure<VolumeError>> {
        let image_bytes = image
            .as_ref()
            .map(|image| image.bytes.next_multiple_of(UNIT));
        let new = NewVolume {
            owner: owner.to_owned(),
            name: request.name.clone(),
            bytes: image_bytes
                .filter(|_| request.bytes == 0)
                .unwrap_or(request.bytes),
            encrypted: request.encrypted,
            checksums: request.checksums,
        };
        let place = partition_for(self.inner.node.map(), owner, &request.name);
        let place = VolumeId(u64::from(place.0) << 48);
        self.on_partition(caller, place, |partition| async move {
            match image {
                Some(image) => partition.create_from_image(new, image).await,
                None => partition.create(new).await,
            }
        })
        .await
    }

    async fn create_clone(
        &self,
        caller: &Caller,
        owner: &str,
        request: &v1::CreateVolumeRequest,
        snapshot: coronafs::SnapshotId,
    ) -> Result<VolumeInfo, Failure<VolumeError>> {
        let new = NewClone {
            snapshot,
            owner: owner.to_owned(),
            name: request.name.clone(),
        };
        let bytes = request.bytes;
        self.on_partition(caller, VolumeId(snapshot.0), move |partition| async move {
            let of = partition.stat_snapshot(snapshot)?;
            if bytes != 0 && bytes < of.bytes {
                return Err(VolumeError::Invalid {
                    what: format!("a size of {bytes} bytes"),
                    allowed: "the snapshot's size, or more",
                });
            }
            let made = partition.clone_snapshot(new).await?;
            if bytes == 0 || bytes == made.bytes {
                return Ok(made);
            }
            let resized = partition.resize(made.id, bytes).await;
            if resized.is_err() {
                // Best effort: what is left has a name, and can be deleted by it.
                let _ = partition.delete(made.id).await;
            }
            resized
        })
        .await
    }

    /// Begins to fill a volume from its image.
    ///
    /// # Errors
    /// What the user is told.
    pub async fn flatten(
        &self,
        caller: &Caller,
        request: v1::FlattenVolumeRequest,
    ) -> Result<v1::Volume, ApiError> {
        let found = self.find(caller, &request.owner, &request.name).await?;
        let id = found.id;
        let begun = self.on_partition(caller, id, move |partition| async move {
            let info = partition.stat(id)?;
            let fill = async move {
                if let Err(error) = partition.flatten(id).await {
                    tracing::warn!(volume = %hex(id), %error, "a volume is not filled from its image");
                }
            };
            let task = engine::try_spawn_local(SchedGroup::FOREGROUND, fill);
            task.map_err(|_| VolumeError::Busy)?.detach();
            Ok(info)
        });
        let info = begun
            .await
            .map_err(|failure| told(failure, &found.object()))?;
        audit::log_done(caller, "volume-flatten", found.object());
        Ok(self.shown(info))
    }

    /// Compares a volume's blocks with their checksums.
    ///
    /// # Errors
    /// What the user is told.
    pub async fn scrub(
        &self,
        caller: &Caller,
        request: v1::ScrubVolumeRequest,
    ) -> Result<v1::ScrubVolumeResponse, ApiError> {
        let found = self.find(caller, &request.owner, &request.name).await?;
        let (id, bytes_per_s) = (found.id, request.bytes_per_s);
        let scrubbed = self.on_partition(caller, id, move |partition| async move {
            partition.scrub(id, bytes_per_s).await
        });
        let scrubbed = scrubbed
            .await
            .map_err(|failure| told(failure, &found.object()))?;
        let damaged = scrubbed.damaged.iter().map(|block| v1::DamagedBlock {
            offset: block.offset,
            snapshot: block
                .snapshot
                .map_or_else(String::new, |snapshot| hex(VolumeId(snapshot.0))),
        });
        Ok(v1::ScrubVolumeResponse {
            bytes: scrubbed.bytes,
            errors: scrubbed.errors,
            damaged: damaged.collect(),
        })
    }

    /// A page of volumes.
    ///
    /// # Errors
    /// What the user is told.
    pub async fn list(
        &self,
        caller: &Caller,
        request: v1::ListVolumesRequest,
    ) -> Result<v1::ListVolumesResponse, ApiError> {
        let limit = page::limit(request.limit)?;
        let owner = match (request.all_owners, &*request.owner) {
            (true, "") if &*caller.principal.tenant == ROOT => None,
            (true, "") => return Err(denied("everybody's volumes".to_owned())),
            (true, _) => {
                let what = "owner and all_owners are both given";
                let next = "give one of them, or none for your own volumes";
                return Err(invalid("owner", what, next));
            }
            (false, owner) => Some(owner_of(caller, owner)?),
        };
        let after = page::key(&request.after)?.unwrap_or_default();
        let (of, name) = after.split_once('/').unwrap_or_default();
        let after = (of.to_owned(), name.to_owned());
        let listed = self.on_all(caller, move |shard| {
            shard.list(owner.as_deref(), &after, limit + 1)
        });
        let listed = listed
            .await
            .map_err(|failure| told(failure, "the list of volumes"))?;
        let mut listed: Vec<VolumeInfo> = listed.into_iter().flatten().collect();
        listed.sort_by(|a, b| (&a.owner, &a.name).cmp(&(&b.owner, &b.name)));
        let more = listed.len() > limit;
        listed.truncate(limit);
        let last = listed.last().filter(|_| more);
        let last = last.map(|last| format!("{}/{}", last.owner, last.name));
        let attachments = self.attachments();
        let volumes = listed.into_iter().map(|info| shown(info, attachments));
        Ok(v1::ListVolumesResponse {
            volumes: volumes.collect(),
            next: page::token(last.as_deref()),
        })
    }

    /// A volume.
    ///
    /// # Errors
    /// What the user is told.
    pub async fn get(
        &self,
        caller: &Caller,
        request: v1::GetVolumeRequest,
    ) -> Result<v1::Volume, ApiError> {
        let found = self.find(caller, &request.owner, &request.name).await?;
        self.stat(caller, &found).await
    }

    pub(super) async fn stat(&self, caller: &Caller, of: &Found) -> Result<v1::Volume, ApiError> {
        let id = of.id;
        let info = self.on_partition(
            caller,
            id,
            move |partition| async move { partition.stat(id) },
        );
        let info = info.await.map_err(|failure| told(failure, &of.object()))?;
        Ok(self.shown(info))
    }

    /// Removes a volume.
    ///
    /// # Errors
    /// What the user is told.
    pub async fn delete(
        &self,
        caller: &Caller,
        request: v1::DeleteVolumeRequest,
    ) -> Result<v1::DeleteVolumeResponse, ApiError> {
        let found = self.find(caller, &request.owner, &request.name).await?;
        let _order = self.order(found.id).await;
        self.check_detached(&found)?;
        let id = found.id;
        let deleted = self.on_partition(caller, id, move |partition| async move {
            partition.delete(id).await
        });
        deleted
            .await
            .map_err(|failure| told(failure, &found.object()))?;
        audit::log_done(caller, "volume-delete", found.object());
        Ok(v1::DeleteVolumeResponse {})
    }

    /// Gives a volume another name.
    ///
    /// # Errors
    /// What the user is told.
    pub async fn rename(
        &self,
        caller: &Caller,
        request: v1::RenameVolumeRequest,
    ) -> Result<v1::Volume, ApiError> {
        let service = self.clone();
        in_task(caller, |caller| async move {
            service.rename_now(&caller, request).await
        })
        .await
    }

    async fn rename_now(
        &self,
        caller: &Caller,
        request: v1::RenameVolumeRequest,
    ) -> Result<v1::Volume, ApiError> {
        let _names = self.inner.names.lock().await;
        let mut found = self.find(caller, &request.owner, &request.name).await?;
        let new = request.new_name;
        if self.look_up(caller, &found.owner, &new).await?.is_some() {
            let taken = VolumeError::NameTaken(new);
            return Err(told(Failure::Service(taken), &found.object()));
        }
        let (id, name) = (found.id, new.clone());
        let renamed = self.on_partition(caller, id, move |partition| async move {
            partition.rename(id, name).await
        });
        renamed
            .await
            .map_err(|failure| told(failure, &found.object()))?;
        audit::log_done(
            caller,
            "volume-rename",
            format!("{} to {new}", found.object()),
        );
        found.name = new;
        self.stat(caller, &found).await
    }

    /// Gives a volume another size.
    ///
    /// # Errors
    /// What the user is told.
    pub async fn resize(
        &self,
        caller: &Caller,
        request: v1::ResizeVolumeRequest,
    ) -> Result<v1::Volume, ApiError> {
        let found = self.find(caller, &request.owner, &request.name).await?;
        let (id, bytes) = (found.id, request.bytes);
        let resized = self.on_partition(caller, id, move |partition| async move {
            partition.resize(id, bytes).await
        });
        let info = resized
            .await
            .map_err(|failure| told(failure, &found.object()))?;
        audit::log_done(
            caller,
            "volume-resize",
            format!("{} to {bytes} bytes", found.object()),
        );
        Ok(self.shown(info))
    }

    /// Limits what a volume may do.
    ///
    /// # Errors
    /// What the user is told.
    pub async fn set_limits(
        &self,
        caller: &Caller,
        request: v1::SetVolumeLimitsRequest,
    ) -> Result<v1::Volume, ApiError> {
        let found = self.find(caller, &request.owner, &request.name).await?;
        let (id, limits) = (found.id, limits_of(request.limits));
        let limited = self.on_partition(caller, id, move |partition| async move {
            partition.limit(id, limits).await?;
            partition.stat(id)
        });
        let info = limited
            .await
            .map_err(|failure| told(failure, &found.object()))?;
        audit::log_done(caller, "volume-limit", found.object());
        Ok(self.shown(info))
    }

    /// One that does not serve, as its socket could not be made, say, is attached all the same.
    pub(super) fn check_detached(&self, of: &Found) -> Result<(), ApiError> {
        let listed = self.attachments().of(of.id.0);
        let Some(entry) = listed.first() else {
            return Ok(());
        };
        let attached = VolumeError::Attached(entry.attached.id);
        Err(told(Failure::Service(attached), &of.object()))
    }

    pub(super) fn shown(&self, info: VolumeInfo) -> v1::Volume {
        shown(info, self.attachments())
    }
}

fn limits_of(limits: Option<v1::Limits>) -> Limits {
    let limits = limits.unwrap_or_default();
    Limits {
        ops_per_s: limits.ops_per_s,
        bytes_per_s: limits.bytes_per_s,
        burst_ms: limits.burst_ms,
        shares: limits.shares,
    }
}

fn shown(info: VolumeInfo, attachments: &Attachments) -> v1::Volume {
    let of_it = attachments.of(info.id.0);
    v1::Volume {
        id: hex(info.id),
        attachments: of_it
            .iter()
            .map(|entry| shown_attachment(entry, &info.name))
            .collect(),
        name: info.name,
        owner: info.owner,
        bytes: info.bytes,
        mapped_bytes: info.mapped_bytes,
        created_unix_ms: info.created_ms as i64,
        origin: info
            .origin
            .map_or_else(String::new, |origin| hex(VolumeId(origin.0))),
        generation: info.generation,
        snapshots: info.snapshots as u32,
        encrypted: info.key.is_some(),
        checksums: info.checksums,
        image: info.image.map(images::shown),
        limits: Some(v1::Limits {
            ops_per_s: info.limits.ops_per_s,
            bytes_per_s: info.limits.bytes_per_s,
            burst_ms: info.limits.burst_ms,
            shares: info.limits.shares,
        }),
    }
}

/// A volume of that name is not there; the word of what was looked for is a snapshot's.
pub(super) fn no_such_snapshot(of: &Found, name: &str) -> ApiError {
    let what = "the snapshot does not exist";
    ApiError::new(Code::NotFound, "no-such-snapshot", what)
        .object(format!("snapshot {name} of {}", of.object()))
        .next("list the volume's snapshots")
}
