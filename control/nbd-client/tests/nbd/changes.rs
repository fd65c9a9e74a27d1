//! An incremental backup's view: a snapshot, exported as a clone of it, with what has changed since an older
//! one.

use std::rc::Rc;

use coronafs::{Access, Attach, NewClone, Partition, PointInTime, SnapshotId};
use engine::LocalFut;
use nbd_export::{ChangedRanges, ChangedSince, Changes, Export};
use shards::block::BlockError;

use crate::support::{MIB, Volume, connect, run_program};

/// What a snapshot has that an older one has not.
struct Diff {
    partition: Partition,
    old: SnapshotId,
    new: SnapshotId,
}

impl Changes for Diff {
    fn changed(&self, offset: u64, _len: u64) -> LocalFut<Result<ChangedRanges, BlockError>> {
        let (partition, old, new) = (self.partition.clone(), self.old, self.new);
        Box::pin(async move {
            let diff = partition
                .diff(PointInTime::Snapshot(old), new, offset)
                .await;
            let (found, next) = diff.map_err(|e| BlockError::Io(std::io::Error::other(e)))?;
            let ranges = found
                .iter()
                .map(|range| range.offset..range.offset + range.bytes);
            Ok(ChangedRanges {
                ranges: ranges.collect(),
                end: next.unwrap_or(u64::MAX),
            })
        })
    }
}

#[tokio::test]
async fn a_snapshot_tells_what_has_changed_since_an_older_one() {
    let volume = Volume::start();
    let client = connect(&volume.target("disk")).await;
    let snapshot = |name: &'static str| {
        volume.on_shard(async move |running| {
            let partition = &running.partition;
            let disk = partition.find("me", "disk").unwrap();
            partition.snapshot(disk, name.into()).await.unwrap().id
        })
    };
    client.write(MIB, vec![1; 1 << 20].into()).await.unwrap();
    let old = snapshot("monday");
    client.write(8 * MIB, vec![2; 65_536].into()).await.unwrap();
    client.write(40 * MIB, vec![3; 512].into()).await.unwrap();
    client.write_zeroes(MIB, 4096).await.unwrap();
    let new = snapshot("tuesday");
    client
        .write(20 * MIB, vec![4; 65_536].into())
        .await
        .unwrap();
    volume.on_shard(async move |running| {
        let partition = running.partition.clone();
        let clone = NewClone {
            snapshot: new,
            owner: "me".into(),
            name: "backup".into(),
        };
        let clone = partition.clone_snapshot(clone).await.unwrap().id;
        let how = Attach {
            access: Access::ReadOnly,
            take_over: false,
        };
        let device = Rc::new(partition.attach(clone, how).await.unwrap());
        let diff = Diff {
            partition,
            old,
            new,
        };
        let export = Export {
            changed_since: vec![ChangedSince {
                name: "monday".into(),
                changes: Rc::new(diff),
            }],
            ..Export::new("backup", device)
        };
        running.server.add(export).unwrap();
    });
    let uri = volume.uri("backup");
    let said = run_program("nbdinfo", &["--map=ultracloud:changed-since:monday", &uri]);
    let changed: Vec<(u64, u64)> = said
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|words| words[2] == "1")
        .map(|words| (words[0].parse().unwrap(), words[1].parse().unwrap()))
        .collect();
    let expected = [(MIB, 4096), (8 * MIB, 65_536), (40 * MIB, 4096)];
    assert_eq!(changed, expected, "{said}");
    // The same for QEMU, which calls what is dirty no data.
    let socket = volume.socket();
    let options = format!(
        "driver=nbd,server.type=unix,server.path={},export=backup,\
         x-dirty-bitmap=qemu:dirty-bitmap:monday",
        socket.display()
    );
    let map = run_program(
        "qemu-img",
        &["map", "--output=json", "--image-opts", &options],
    );
    let part = "\"start\": 8388608, \"length\": 65536";
    assert!(map.contains(part), "{map}");
    // What was written since is not in it.
    let backup = connect(&volume.target("backup")).await;
    assert_eq!(backup.read(20 * MIB, 512).await.unwrap(), [0; 512]);
    assert_eq!(backup.read(8 * MIB, 512).await.unwrap(), [2; 512]);
}
