//! A whole state as the database file that etcd keeps its own in, so that etcd's tools read it.
//!
//! | bucket | key | value |
//! | --- | --- | --- |
//! | `alarm` | `etcdserverpb.AlarmMember` | |
//! | `auth` | `authEnabled`, `authRevision` | a byte, 8 bytes big-endian |
//! | `authRoles`, `authUsers` | name | `authpb.Role`, `authpb.User` |
//! | `cluster` | `clusterVersion` | text |
//! | `key` | revision, `t` behind a tombstone's | `mvccpb.KeyValue` |
//! | `lease` | id, 8 bytes big-endian | `leasepb.Lease` |
//! | `members` | id in hex | JSON |
//! | `members_removed` | | |
//! | `meta` | `consistent_index`, and with a compaction `finishedCompactRev`, `scheduledCompactRev` | 8 bytes, a revision as in `key` |
//!
//! Versions that a compaction has made unreachable are left out, also while it is under way: etcd
//! restores the file to the same history, and gives the same hashes.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use bbolt_format::{Contents, Plan};
use etcd_wire::etcdserverpb::AlarmMember;
use prost::Message;

use crate::error::{Error, ErrorKind};
use crate::record;
use crate::revision::Revision;
use crate::view::View;

/// etcd's own record of a lease.
#[derive(Clone, Copy, PartialEq, Message)]
struct LeaseRecord {
    #[prost(int64, tag = "1")]
    id: i64,
    #[prost(int64, tag = "2")]
    ttl: i64,
    #[prost(int64, tag = "3")]
    remaining_ttl: i64,
}

/// What etcd's file has besides what a view sees.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EtcdCluster {
    /// The version of the cluster, as `3.5.0`.
    pub version: String,
    /// Every member as JSON, by its id in hex.
    pub members: BTreeMap<String, String>,
}

/// A view as a file of etcd, planned. The view, and the disk space of what it sees, is kept until
/// this is dropped; writes go on meanwhile.
#[derive(Debug)]
pub struct EtcdFile {
    view: Arc<View>,
    cluster: EtcdCluster,
    plan: Plan,
}

/// Why writing ended early.
enum Ended {
    Left,
    Failed(Error),
}

impl From<Error> for Ended {
    fn from(error: Error) -> Ended {
        Ended::Failed(error)
    }
}

impl From<bbolt_format::Error> for Ended {
    fn from(error: bbolt_format::Error) -> Ended {
        Ended::Failed(unwritable(error))
    }
}

fn unwritable(error: bbolt_format::Error) -> Error {
    Error::caused(ErrorKind::Format, "write a file of etcd", error)
}

impl EtcdFile {
    /// Plans the file: every version is read once.
    ///
    /// # Errors
    /// Reading failed; or a user or role has a name that etcd's file has no room for.
    pub fn plan(view: Arc<View>, cluster: EtcdCluster) -> Result<EtcdFile, Error> {
        let planned = Plan::of(|contents| fill(&view, &cluster, contents));
        let plan = planned.map_err(|ended: Ended| match ended {
            Ended::Failed(error) => error,
            Ended::Left => unreachable!("nobody takes anything while it is planned"),
        })?;
        Ok(EtcdFile {
            view,
            cluster,
            plan,
        })
    }

    /// Bytes of the file.
    pub fn bytes(&self) -> u64 {
        self.plan.bytes()
    }

    /// Writes the file, in pieces of whole pages, until `take` breaks.
    ///
    /// # Errors
    /// Reading failed.
    pub fn write(&self, mut take: impl FnMut(&[u8]) -> ControlFlow<()>) -> Result<(), Error> {
        let written = self.plan.write(
            |contents| fill(&self.view, &self.cluster, contents),
            |page| match take(page) {
                ControlFlow::Continue(()) => Ok(()),
                ControlFlow::Break(()) => Err(Ended::Left),
            },
        );
        match written {
            Ok(()) | Err(Ended::Left) => Ok(()),
            Err(Ended::Failed(error)) => Err(error),
        }
    }
}

type Filled = Result<(), Ended>;

/// The buckets, in the order of their names.
fn fill(view: &View, cluster: &EtcdCluster, contents: &mut Contents<'_, Ended>) -> Filled {
    fill_alarms(view, contents)?;
    fill_auth(view, contents)?;
    contents.bucket("cluster")?;
    contents.put(b"clusterVersion", cluster.version.as_bytes())?;
    fill_versions(view, contents)?;
    contents.bucket("lease")?;
    for lease in view.leases() {
        let record = LeaseRecord {
            id: lease.id,
            ttl: lease.ttl_s,
            remaining_ttl: lease.remaining_s,
        };
        contents.put(&lease.id.to_be_bytes(), &record.encode_to_vec())?;
    }
    contents.bucket("members")?;
    for (id, member) in &cluster.members {
        contents.put(id.as_bytes(), member.as_bytes())?;
    }
    contents.bucket("members_removed")?;
    fill_meta(view, contents)
}

fn fill_alarms(view: &View, contents: &mut Contents<'_, Ended>) -> Filled {
    contents.bucket("alarm")?;
    let alarm = |alarm: crate::Alarm| AlarmMember {
        member_id: alarm.member,
        alarm: alarm.kind,
    };
    let mut alarms: Vec<Vec<u8>> = view
        .alarms()
        .map(|on| alarm(on).encode_to_vec())
        .filter(|encoded| !encoded.is_empty())
        .collect();
    alarms.sort_unstable();
    alarms.iter().try_for_each(|alarm| contents.put(alarm, b""))
}

fn fill_auth(view: &View, contents: &mut Contents<'_, Ended>) -> Filled {
    let auth = view.auth();
    contents.bucket("auth")?;
    contents.put(b"authEnabled", &[u8::from(auth.is_enabled())])?;
    contents.put(b"authRevision", &auth.revision().to_be_bytes())?;
    contents.bucket("authRoles")?;
    for (name, role) in &auth.roles {
        contents.put(name.as_bytes(), &role.encode_to_vec())?;
    }
    contents.bucket("authUsers")?;
    for (name, user) in &auth.users {
        contents.put(name.as_bytes(), &user.encode_to_vec())?;
    }
    Ok(())
}

fn fill_versions(view: &View, contents: &mut Contents<'_, Ended>) -> Filled {
    contents.bucket("key")?;
    for row in view.versions_from(Revision::default())? {
        let (at, bytes) = row?;
        if view.is_purging() && !view.is_reachable(at, &bytes)? {
            continue;
        }
        let (tombstone, kv) = record::split(at, &bytes)?;
        let (key, length) = at.etcd_key(tombstone);
        contents.put(&key[..length], kv)?;
    }
    Ok(())
}

fn fill_meta(view: &View, contents: &mut Contents<'_, Ended>) -> Filled {
    contents.bucket("meta")?;
    contents.put(b"consistent_index", &view.applied_index().to_be_bytes())?;
    if view.compact_revision() > 0 {
        let (key, length) = Revision::new(view.compact_revision(), 0).etcd_key(false);
        contents.put(b"finishedCompactRev", &key[..length])?;
        contents.put(b"scheduledCompactRev", &key[..length])?;
    }
    Ok(())
}
