//! Snapshots of etcd, as `etcdctl snapshot save` writes them: read whole, for a restore into ChainFire.
//!
//! Keys come as they were at the snapshot's revision, without their history; leases with the time that
//! was granted; users with their passwords' hashes, roles, and whether authentication was on. A file with
//! a SHA-256 behind it, as the clients write it, is checked against that; one that was copied out of a
//! member's directory has none.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt as _;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bbolt_format::Reader;
use bytes::Bytes;
use etcd_wire::authpb::{Role, User};
use etcd_wire::etcdserverpb::auth_client::AuthClient;
use etcd_wire::etcdserverpb::{
    AuthEnableRequest, AuthRoleAddRequest, AuthRoleGrantPermissionRequest, AuthUserAddRequest,
    AuthUserGrantRoleRequest,
};
use etcd_wire::mvccpb::KeyValue;
use prost::Message;
use sha2::{Digest as _, Sha256};

use super::file::Backup;
use crate::chainfire::{Session, failed};

/// Where the mark of a bbolt file is, and what it is.
const MARK: (u64, [u8; 4]) = (16, 0xED0C_DAED_u32.to_le_bytes());
/// A file with a checksum is as much longer than a multiple of this as the checksum is long.
const UNIT_BYTES: u64 = 512;
const SUM_BYTES: u64 = 32;
/// Bytes that are read at once for the checksum.
const PIECE_BYTES: usize = 1 << 20;
/// Of a revision's bytes in the bucket of keys: main, `_`, sub, and `t` for a deletion.
const REVISION_BYTES: usize = 17;

/// etcd's record of a lease.
#[derive(Clone, PartialEq, Message)]
struct LeaseRecord {
    #[prost(int64, tag = "1")]
    id: i64,
    #[prost(int64, tag = "2")]
    ttl: i64,
}

/// Users and roles.
#[derive(Debug, Default)]
pub struct Accounts {
    users: Vec<User>,
    roles: Vec<Role>,
    enabled: bool,
}

/// Whether a file is a snapshot of etcd.
pub fn is_snapshot(file: &File) -> bool {
    let mut found = [0; 4];
    file.read_exact_at(&mut found, MARK.0).is_ok() && found == MARK.1
}

type Buckets<'f> = Reader<Box<dyn FnMut(u64, usize) -> Result<Vec<u8>> + 'f>>;

/// Reads a snapshot whole.
pub fn read(file: &File) -> Result<(Backup, Accounts)> {
    let bytes = file.metadata()?.len();
    let (bytes, sha256) = checked(file, bytes)?;
    let read = |offset: u64, length: usize| {
        let mut piece = vec![0; length];
        file.read_exact_at(&mut piece, offset)?;
        Ok(piece)
    };
    let mut buckets = Reader::open(bytes, Box::new(read) as Box<_>)?;
    let (revision, mut kvs) = keys(&mut buckets)?;
    let mut leases = Vec::new();
    each(&mut buckets, "lease", |_, value| {
        let lease = LeaseRecord::decode(value).context("a lease is damaged")?;
        leases.push((lease.id, lease.ttl));
        Ok(())
    })?;
    let ids: BTreeSet<i64> = leases.iter().map(|(id, _)| *id).collect();
    for kv in &mut kvs {
        // A lease that had ended, and whose keys were not deleted yet.
        if !ids.contains(&kv.lease) {
            kv.lease = 0;
        }
    }
    let backup = Backup {
        cluster_id: 0,
        revision,
        leases,
        kvs,
        sha256,
    };
    Ok((backup, accounts(&mut buckets)?))
}

/// How long the database is, and the file's SHA-256, which must be the one behind it, if there is one.
fn checked(file: &File, bytes: u64) -> Result<(u64, String)> {
    let has_sum = bytes % UNIT_BYTES == SUM_BYTES;
    let database = if has_sum { bytes - SUM_BYTES } else { bytes };
    let mut digest = Sha256::new();
    let mut at = 0;
    let mut piece = vec![0; PIECE_BYTES];
    while at < database {
        let length = PIECE_BYTES.min((database - at) as usize);
        file.read_exact_at(&mut piece[..length], at)?;
        digest.update(&piece[..length]);
        at += length as u64;
    }
    let found = digest.finalize();
    if has_sum {
        let mut sum = [0; SUM_BYTES as usize];
        file.read_exact_at(&mut sum, database)?;
        ensure!(
            found[..] == sum,
            "the snapshot is damaged: its checksum differs"
        );
    }
    Ok((database, hex::encode(found)))
}

fn each(
    buckets: &mut Buckets<'_>,
    name: &str,
    mut take: impl FnMut(&[u8], &[u8]) -> Result<()>,
) -> Result<()> {
    let Some(mut entries) = buckets.bucket(name)? else {
        return Ok(());
    };
    while let Some((key, value)) = entries.next_entry()? {
        take(&key, &value)?;
    }
    Ok(())
}

/// The newest revision, and the keys that there are then.
fn keys(buckets: &mut Buckets<'_>) -> Result<(i64, Vec<KeyValue>)> {
    let mut revision = 1;
    let mut kvs: BTreeMap<Bytes, KeyValue> = BTreeMap::new();
    each(buckets, "key", |at, value| {
        let main = at.first_chunk().map(|main| i64::from_be_bytes(*main));
        let Some(main) = main.filter(|_| at.len() >= REVISION_BYTES) else {
            bail!("the snapshot is damaged: a revision of {} bytes", at.len());
        };
        revision = main;
        let kv = KeyValue::decode(Bytes::copy_from_slice(value))
            .with_context(|| format!("the snapshot is damaged at revision {main}"))?;
        if at.len() > REVISION_BYTES {
            kvs.remove(&kv.key);
        } else {
            kvs.insert(kv.key.clone(), kv);
        }
        Ok(())
    })?;
    Ok((revision, kvs.into_values().collect()))
}

fn accounts(buckets: &mut Buckets<'_>) -> Result<Accounts> {
    let mut accounts = Accounts::default();
    each(buckets, "authRoles", |_, value| {
        let role = Role::decode(Bytes::copy_from_slice(value)).context("a role is damaged")?;
        accounts.roles.push(role);
        Ok(())
    })?;
    each(buckets, "authUsers", |_, value| {
        let user = User::decode(Bytes::copy_from_slice(value)).context("a user is damaged")?;
        accounts.users.push(user);
        Ok(())
    })?;
    each(buckets, "auth", |name, value| {
        if name == b"authEnabled" {
            accounts.enabled = value == [1];
        }
        Ok(())
    })?;
    Ok(accounts)
}

fn name(bytes: &Bytes) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl Accounts {
    /// Makes the roles, then the users, and turns authentication on if it was.
    pub async fn restore(self, session: &Session) -> Result<()> {
        let mut auth = AuthClient::new(session.channel.clone());
        for role in self.roles {
            let role_name = name(&role.name);
            let request = session.request(AuthRoleAddRequest {
                name: role_name.clone(),
            });
            auth.role_add(request).await.map_err(failed)?;
            for permission in role.key_permission {
                let request = session.request(AuthRoleGrantPermissionRequest {
                    name: role_name.clone(),
                    perm: Some(permission),
                });
                auth.role_grant_permission(request).await.map_err(failed)?;
            }
        }
        for user in self.users {
            let user_name = name(&user.name);
            let request = session.request(AuthUserAddRequest {
                name: user_name.clone(),
                hashed_password: BASE64.encode(&user.password),
                options: user.options,
                ..AuthUserAddRequest::default()
            });
            auth.user_add(request).await.map_err(failed)?;
            for role in user.roles {
                let request = session.request(AuthUserGrantRoleRequest {
                    user: user_name.clone(),
                    role,
                });
                auth.user_grant_role(request).await.map_err(failed)?;
            }
        }
        if self.enabled {
            let request = session.request(AuthEnableRequest {});
            auth.auth_enable(request).await.map_err(failed)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_no_bbolt_file_is_no_snapshot() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        for (bytes, expected) in [
            (&b""[..], false),
            (&b"{\"format\":\"ultracloud-chainfire-backup\"}"[..], false),
            (&[&[0; 16][..], &MARK.1].concat()[..], true),
        ] {
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(is_snapshot(&File::open(&path).unwrap()), expected);
        }
    }

    #[test]
    fn a_snapshot_with_another_checksum_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let database = vec![7; 1024];
        let sum = Sha256::digest(&database);
        std::fs::write(&path, [&database[..], &sum[..]].concat()).unwrap();
        let file = File::open(&path).unwrap();
        let bytes = 1024 + SUM_BYTES;
        assert_eq!(checked(&file, bytes).unwrap(), (1024, hex::encode(sum)));
        std::fs::write(&path, [&database[..], &[0; 32]].concat()).unwrap();
        let file = File::open(&path).unwrap();
        assert!(checked(&file, bytes).is_err());
        let without = checked(&file, 1024).unwrap();
        assert_eq!(without.0, 1024, "copied out of a directory, it has none");
    }
}
