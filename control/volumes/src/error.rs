//! What a user is told when something fails.

use control_kit::api_error::ApiError;
use coronafs::VolumeError;
use shard_bridge::Failure;
use tonic::Code;

use crate::shard::AttachError;

/// What a user is told of a failure, of this object.
pub fn told(failure: Failure<VolumeError>, object: &str) -> ApiError {
    failure.into_api_error(|error| of_volume(&error, object))
}

/// The same, of an attachment.
pub fn attach_told(failure: Failure<AttachError>, object: &str) -> ApiError {
    failure.into_api_error(|error| match error {
        AttachError::Volume(error) => of_volume(&error, object),
        AttachError::Lost(_) => {
            ApiError::new(Code::FailedPrecondition, "writes-lost", error.to_string())
                .object(object)
                .next("detach the volume, restart the guest, and attach it again")
        }
        AttachError::Place(why) => ApiError::new(Code::FailedPrecondition, "not-served-there", why)
            .object(object)
            .next("give another place, or see to the node's config"),
        AttachError::Export { why, .. } => {
            tracing::error!(%why, object, "a volume cannot be exported");
            let what = format!("the volume cannot be served at a socket: {why}");
            ApiError::new(Code::Internal, "export-failed", what)
                .object(object)
                .next(
                    "look at the node's directory of sockets, `coronafs.socket_dir` of its config",
                )
        }
    })
}

/// The code, its name, and what to do next.
fn meaning(error: &VolumeError) -> (Code, &'static str, &'static str) {
    match error {
        VolumeError::NoSuchVolume => (Code::NotFound, "no-such-volume", "list your volumes"),
        VolumeError::NoSuchSnapshot => (
            Code::NotFound,
            "no-such-snapshot",
            "list the volume's snapshots",
        ),
        VolumeError::NameTaken(_) => (Code::AlreadyExists, "name-taken", "choose another name"),
        VolumeError::Invalid { .. } => (
            Code::InvalidArgument,
            "invalid-volume",
            "give what is allowed",
        ),
        VolumeError::Attached(_) => (
            Code::FailedPrecondition,
            "volume-attached",
            "detach it first; to attach it a second time, attach read-only, shared by both, or with take-over",
        ),
        VolumeError::HasSnapshots(_) => (
            Code::FailedPrecondition,
            "volume-has-snapshots",
            "delete its snapshots first",
        ),
        VolumeError::InUse(_) => (
            Code::FailedPrecondition,
            "volume-in-use",
            "choose a larger size, or discard what lies behind the new end",
        ),
        VolumeError::Filling => (
            Code::FailedPrecondition,
            "volume-filling",
            "flatten it, and wait until its image is filled",
        ),
        VolumeError::Image(_) => (
            Code::FailedPrecondition,
            "image-unusable",
            "see that the object is there as it was, and give the digest that it has",
        ),
        other => meaning_of_state(other),
    }
}

/// The same of what is no fault of the request.
fn meaning_of_state(error: &VolumeError) -> (Code, &'static str, &'static str) {
    match error {
        VolumeError::Fenced => (
            Code::Aborted,
            "volume-fenced",
            "look who has attached the volume",
        ),
        VolumeError::Busy => (
            Code::ResourceExhausted,
            "volumes-busy",
            "retry after 100 ms, and after twice as long each further time",
        ),
        VolumeError::Full => (
            Code::ResourceExhausted,
            "volumes-full",
            "delete volumes or snapshots that are not needed, or make the file system larger",
        ),
        VolumeError::Key { .. } => (
            Code::FailedPrecondition,
            "key-unusable",
            "start the node with the master key that the volume was made with",
        ),
        VolumeError::Poisoned(_) => (
            Code::Unavailable,
            "volumes-read-only",
            "check the disk, then restart the node; /healthz names the cause",
        ),
        VolumeError::Gone => (
            Code::Unavailable,
            "shard-gone",
            "retry when /readyz answers 200 again",
        ),
        _ => (
            Code::Internal,
            "internal",
            "look for the request id in the node's log",
        ),
    }
}

fn of_volume(error: &VolumeError, object: &str) -> ApiError {
    let (code, name, next) = meaning(error);
    if matches!(code, Code::Internal) || matches!(error, VolumeError::Poisoned(_)) {
        tracing::error!(%error, object, "an operation on a volume failed");
    }
    ApiError::new(code, name, error.to_string())
        .object(object)
        .next(next)
}

/// Only the owner and root.
pub fn denied(object: String) -> ApiError {
    let what = "only the owner and root may do this";
    ApiError::new(Code::PermissionDenied, "access-denied", what)
        .object(object)
        .next("leave the owner out for your own volumes, or ask as root")
}

/// What was asked makes no sense.
pub fn invalid(object: &str, what: impl Into<String>, next: &str) -> ApiError {
    ApiError::new(Code::InvalidArgument, "invalid-request", what)
        .object(object)
        .next(next)
}
