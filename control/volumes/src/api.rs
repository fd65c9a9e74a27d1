//! The verbs of volumes, over gRPC and REST.

use std::sync::Arc;

use control_kit::api::{Api, ApiMessage, Call, Verb};
use control_kit::api_error::ApiError;
use coronafs_api::v1;

use crate::service::VolumeService;

/// The service's full name.
pub const SERVICE: &str = "ultracloud.coronafs.v1.Volumes";

/// What has the service, once it serves.
pub trait HasVolumes: Send + Sync + 'static {
    /// The service.
    ///
    /// # Errors
    /// Why there is none now.
    fn volumes(&self) -> Result<&VolumeService, ApiError>;
}

/// Makes of a method of the service what runs a verb.
macro_rules! run {
    ($method:ident) => {
        |state: Arc<S>, call: Call<_>| async move {
            state.volumes()?.$method(&call.caller, call.message).await
        }
    };
}

/// Adds the verbs of volumes to an API.
pub fn verbs<S: HasVolumes>(api: Api<S>) -> Api<S> {
    remotes(attachments(snapshots(volumes(api))))
}

/// One verb; it spells out what a closure cannot.
fn verb<S, Req, Resp, F, Fut>(api: Api<S>, verb: Verb, run: F) -> Api<S>
where
    S: HasVolumes,
    Req: ApiMessage,
    Resp: ApiMessage,
    F: Fn(Arc<S>, Call<Req>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Resp, ApiError>> + Send,
{
    api.verb(verb, run)
}

fn volumes<S: HasVolumes>(api: Api<S>) -> Api<S> {
    const ALL: &str = "/v1/volumes";
    const ONE: &str = "/v1/volumes/{name}";
    let create = Verb::post("CreateVolume", ALL, "Makes a volume").created();
    let api = verb::<S, v1::CreateVolumeRequest, _, _, _>(api, create, run!(create));
    let list = Verb::get("ListVolumes", ALL, "Volumes, by owner and name");
    let api = verb::<S, v1::ListVolumesRequest, _, _, _>(api, list, run!(list));
    let get = Verb::get("GetVolume", ONE, "One volume");
    let api = verb::<S, v1::GetVolumeRequest, _, _, _>(api, get, run!(get));
    let what = "Removes a volume that is not attached and has no snapshots";
    let delete = Verb::delete("DeleteVolume", ONE, what);
    let api = verb::<S, v1::DeleteVolumeRequest, _, _, _>(api, delete, run!(delete));
    let path = "/v1/volumes/{name}/rename";
    let rename = Verb::post("RenameVolume", path, "Gives a volume another name");
    let api = verb::<S, v1::RenameVolumeRequest, _, _, _>(api, rename, run!(rename));
    let path = "/v1/volumes/{name}/resize";
    let resize = Verb::post("ResizeVolume", path, "Gives a volume another size");
    let api = verb::<S, v1::ResizeVolumeRequest, _, _, _>(api, resize, run!(resize));
    let path = "/v1/volumes/{name}/limits";
    let limit = Verb::put("SetVolumeLimits", path, "Limits what a volume may do");
    let api = verb::<S, v1::SetVolumeLimitsRequest, _, _, _>(api, limit, run!(set_limits));
    let path = "/v1/volumes/{name}/rollback";
    let rollback = Verb::post("RollbackVolume", path, "Goes back to a snapshot");
    let api = verb::<S, v1::RollbackVolumeRequest, _, _, _>(api, rollback, run!(rollback));
    let path = "/v1/volumes/{name}/flatten";
    let flatten = Verb::post("FlattenVolume", path, "Fills a volume from its image");
    let api = verb::<S, v1::FlattenVolumeRequest, _, _, _>(api, flatten, run!(flatten));
    let path = "/v1/volumes/{name}/scrub";
    let scrub = Verb::post("ScrubVolume", path, "Verifies a volume's checksums");
    verb::<S, v1::ScrubVolumeRequest, _, _, _>(api, scrub, run!(scrub))
}

fn snapshots<S: HasVolumes>(api: Api<S>) -> Api<S> {
    const ALL: &str = "/v1/volumes/{volume}/snapshots";
    let create = Verb::post("CreateSnapshot", ALL, "Takes a snapshot").created();
    let api = verb::<S, v1::CreateSnapshotRequest, _, _, _>(api, create, run!(create_snapshot));
    let list = Verb::get("ListSnapshots", ALL, "A volume's snapshots, oldest first");
    let api = verb::<S, v1::ListSnapshotsRequest, _, _, _>(api, list, run!(list_snapshots));
    let path = "/v1/volumes/{volume}/snapshots/{name}";
    let delete = Verb::delete("DeleteSnapshot", path, "Removes a snapshot");
    let api = verb::<S, v1::DeleteSnapshotRequest, _, _, _>(api, delete, run!(delete_snapshot));
    let path = "/v1/volumes/{volume}/snapshots/{snapshot}/changes";
    let changes = Verb::get(
        "ListChanges",
        path,
        "Where a snapshot differs from an older one",
    );
    verb::<S, v1::ListChangesRequest, _, _, _>(api, changes, run!(list_changes))
}

fn attachments<S: HasVolumes>(api: Api<S>) -> Api<S> {
    let path = "/v1/volumes/{volume}/attachments";
    let attach = Verb::post("AttachVolume", path, "Serves a volume as a disk").created();
    let api = verb::<S, v1::AttachVolumeRequest, _, _, _>(api, attach, run!(attach));
    let path = "/v1/volumes/{volume}/attachments/{id}";
    let detach = Verb::delete("DetachVolume", path, "Ends an attachment");
    verb::<S, v1::DetachVolumeRequest, _, _, _>(api, detach, run!(detach))
}

fn remotes<S: HasVolumes>(api: Api<S>) -> Api<S> {
    const ALL: &str = "/v1/remote-volumes";
    let what = "Serves another node's volume as a disk";
    let attach = Verb::post("AttachRemoteVolume", ALL, what).created();
    let api = verb::<S, v1::AttachRemoteVolumeRequest, _, _, _>(api, attach, run!(attach_remote));
    let what = "Volumes of other nodes that are served here";
    let list = Verb::get("ListRemoteVolumes", ALL, what);
    let api = verb::<S, v1::ListRemoteVolumesRequest, _, _, _>(api, list, run!(list_remotes));
    let path = "/v1/remote-volumes/{name}";
    let what = "Ends serving another node's volume";
    let detach = Verb::delete("DetachRemoteVolume", path, what);
    verb::<S, v1::DetachRemoteVolumeRequest, _, _, _>(api, detach, run!(detach_remote))
}
