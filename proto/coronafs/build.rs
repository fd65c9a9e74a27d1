//! Compiles `proto/`.

use std::error::Error;

/// Fields that hold a name of a volume or snapshot.
const NAMES: [&str; 18] = [
    "CreateVolumeRequest.name",
    "GetVolumeRequest.name",
    "DeleteVolumeRequest.name",
    "RenameVolumeRequest.name",
    "RenameVolumeRequest.new_name",
    "ResizeVolumeRequest.name",
    "SetVolumeLimitsRequest.name",
    "RollbackVolumeRequest.name",
    "RollbackVolumeRequest.snapshot",
    "CreateSnapshotRequest.volume",
    "CreateSnapshotRequest.name",
    "ListSnapshotsRequest.volume",
    "DeleteSnapshotRequest.volume",
    "DeleteSnapshotRequest.name",
    "ListChangesRequest.volume",
    "AttachVolumeRequest.volume",
    "AttachRemoteVolumeRequest.name",
    "DetachRemoteVolumeRequest.name",
];
const OTHERS: [(&str, &str); 8] = [
    ("ListVolumesRequest.limit", "maximum = 1000"),
    ("ListSnapshotsRequest.limit", "maximum = 1000"),
    ("ResizeVolumeRequest.bytes", "multiple_of = 4096"),
    ("CreateVolumeRequest.bytes", "multiple_of = 4096"),
    ("AttachVolumeRequest.queues", "maximum = 16"),
    ("AttachRemoteVolumeRequest.queues", "maximum = 16"),
    ("Limits.burst_ms", "maximum = 60000"),
    ("Limits.shares", "maximum = 10000"),
];

fn main() -> Result<(), Box<dyn Error>> {
    let names = NAMES.map(|field| (field, "min_length = 1, max_length = 128"));
    let full: Vec<(String, &str)> = names
        .into_iter()
        .chain(OTHERS)
        .map(|(field, says)| (format!("ultracloud.coronafs.v1.{field}"), says))
        .collect();
    let constraints: Vec<(&str, &str)> = full.iter().map(|(f, says)| (f.as_str(), *says)).collect();
    api_build::compile(&["ultracloud/coronafs/v1/volumes.proto"], &constraints)
}
