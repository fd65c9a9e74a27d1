//! What earlier versions wrote must open for ever: a store's file and a snapshot, format 1, of one
//! state that has everything in it.

use chainfire_store::{Command, Durable, Op, Options, Restore, Store};
use etcd_wire::authpb::{Permission, permission};
use etcd_wire::chainfire::{AuthEnable, ClusterVersion};
use etcd_wire::etcdserverpb::alarm_request::AlarmAction;
use etcd_wire::etcdserverpb::{
    AlarmRequest, AlarmType, AuthRoleAddRequest, AuthRoleGrantPermissionRequest,
    AuthUserAddRequest, AuthUserGrantRoleRequest, CompactionRequest, LeaseCheckpoint,
    LeaseCheckpointRequest, LeaseGrantRequest, PutRequest,
};

use crate::disk::Disk;
use crate::support::{command, delete, meta, options, put};

const STORE: &[u8] = include_bytes!("fixtures/store-1.redb");
const SNAPSHOT: &[u8] = include_bytes!("fixtures/snapshot-1.bin");

/// The commands that made the fixtures.
fn everything() -> Vec<Command> {
    let user = |name: &str| {
        Op::UserAdd(AuthUserAddRequest {
            name: name.into(),
            hashed_password: "aGFzaA==".into(),
            ..AuthUserAddRequest::default()
        })
    };
    let leased = PutRequest {
        lease: 7,
        ..put("leased", "x")
    };
    let checkpoint = LeaseCheckpoint {
        id: 7,
        remaining_ttl: 30,
    };
    let granted = AuthRoleGrantPermissionRequest {
        name: "role".into(),
        perm: Some(Permission {
            perm_type: permission::Type::Readwrite.into(),
            key: "k".into(),
            range_end: "l".into(),
        }),
    };
    [
        Op::Put(put("k", "1")),
        Op::LeaseGrant(LeaseGrantRequest { ttl: 60, id: 7 }),
        Op::Put(leased),
        Op::LeaseCheckpoint(LeaseCheckpointRequest {
            checkpoints: vec![checkpoint],
        }),
        Op::Put(put("k", "2")),
        Op::Put(put("gone", "x")),
        Op::DeleteRange(delete("gone", "")),
        Op::Compaction(CompactionRequest {
            revision: 4,
            physical: false,
        }),
        Op::Put(put("k", "3")),
        Op::ClusterVersion(ClusterVersion {
            version: "3.6.0".into(),
        }),
        Op::Alarm(AlarmRequest {
            action: AlarmAction::Activate.into(),
            member_id: 5,
            alarm: AlarmType::Nospace.into(),
        }),
        user("root"),
        user("ann"),
        Op::RoleAdd(AuthRoleAddRequest {
            name: "role".into(),
        }),
        Op::RoleGrantPermission(granted),
        Op::UserGrantRole(AuthUserGrantRoleRequest {
            user: "root".into(),
            role: "root".into(),
        }),
        Op::UserGrantRole(AuthUserGrantRoleRequest {
            user: "ann".into(),
            role: "role".into(),
        }),
        Op::AuthEnable(AuthEnable {
            token_key: "secret".into(),
        }),
    ]
    .map(command)
    .into()
}

/// One version a batch of a compaction: the fixtures have one that is under way.
fn slow() -> Options {
    Options {
        purge_versions_max: 1,
        ..options()
    }
}

fn made() -> Store {
    let mut store = Store::open(Disk::default(), slow()).unwrap();
    let commands = everything();
    let end = commands.len() as u64;
    let mut batch = store.batch();
    for (command, index) in commands.iter().zip(1..) {
        batch.apply(command, index).unwrap().unwrap();
    }
    batch.commit(meta(end), Durable::Yes).unwrap();
    store
}

fn same(old: &Store) {
    let new = made();
    let (old, new) = (old.view(), new.view());
    assert!(old.is_purging());
    assert_eq!(old.hash().unwrap(), new.hash().unwrap());
    assert_eq!(old.hash_kv(0).unwrap(), new.hash_kv(0).unwrap());
    assert_eq!(old.size_bytes(), new.size_bytes());
    assert_eq!(
        (old.applied_index(), old.applied()),
        (new.applied_index(), new.applied())
    );
    assert_eq!(old.auth(), new.auth());
    assert!(old.alarms().eq(new.alarms()) && old.leases().eq(new.leases()));
    assert!(old.lease_keys(7).eq([b"leased"]));
    assert_eq!(old.cluster_version(), "3.6.0");
}

#[test]
fn a_store_of_format_1_opens() {
    let mut store = Store::open(Disk::holding(STORE), slow()).unwrap();
    same(&store);
    while store.purge().unwrap() {}
    assert_eq!(store.view().indexed_keys(), 3);
}

#[test]
fn a_snapshot_of_format_1_is_taken() {
    let mut store = Store::open(Disk::default(), slow()).unwrap();
    let mut restore: Restore<'_> = store.restore().unwrap();
    let mut rest = SNAPSHOT;
    while let Some((len, after)) = rest.split_first_chunk() {
        let (chunk, after) = after.split_at(u32::from_le_bytes(*len) as usize);
        restore.push(chunk).unwrap();
        rest = after;
    }
    restore.finish().unwrap();
    same(&store);
}
