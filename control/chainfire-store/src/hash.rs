//! Hashes by which replicas compare themselves. They depend on what was applied, not on how it
//! was batched or how far a compaction has come.

use bytes::Bytes;
use crc_fast::{CrcAlgorithm, Digest};
use etcd_wire::RpcError;
use prost::Message;

use crate::error::Error;
use crate::index::survives_as_base;
use crate::load::StateRow;
use crate::reads::ReadError;
use crate::record;
use crate::revision::Revision;
use crate::view::View;

/// The answer to HashKV.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvHash {
    /// CRC32C of the versions, as etcd computes it.
    pub hash: u32,
    /// The newest revision.
    pub revision: i64,
    /// The last compaction's revision; -1 before the first.
    pub compact_revision: i64,
    /// Up to which revision was hashed.
    pub hash_revision: i64,
}

impl View {
    /// The hash of every version up to a revision (0: the newest) that etcd gives, byte for byte:
    /// the table's name, then each version's key and value. Of versions at or before the compacted
    /// revision those count that a reader at the hashed revision sees.
    ///
    /// # Errors
    /// `Compacted`, `FutureRev`; or the storage failed.
    pub fn hash_kv(&self, revision: i64) -> Result<KvHash, ReadError> {
        let state = self.state();
        if revision > 0 && revision < state.compacted {
            return Err(RpcError::Compacted.into());
        }
        if revision > state.revision {
            return Err(RpcError::FutureRev.into());
        }
        let upto = if revision <= 0 {
            state.revision
        } else {
            revision
        };
        // When nobody sees anything there, etcd hashes all that a compaction leaves.
        let none_visible = !state
            .index
            .iter()
            .any(|entry| entry.visible(upto).is_some());
        let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
        digest.update(b"key");
        for row in self.versions_from(Revision::default())? {
            let (at, bytes) = row?;
            if at.main > upto {
                break;
            }
            if at.main > state.compacted || self.counts(at, &bytes, upto, none_visible)? {
                hash_version(&mut digest, at, &bytes)?;
            }
        }
        Ok(KvHash {
            hash: digest.finalize() as u32,
            revision: state.revision,
            compact_revision: state.compacted,
            hash_revision: upto,
        })
    }

    /// Whether a version from before the compaction is hashed.
    fn counts(
        &self,
        at: Revision,
        bytes: &Bytes,
        upto: i64,
        none_visible: bool,
    ) -> Result<bool, Error> {
        if none_visible {
            return self.is_reachable(at, bytes);
        }
        let found = record::decode(at, bytes)?;
        let entry = self.state().index.get(&found.kv.key);
        Ok(entry.and_then(|entry| entry.visible(upto)) == Some(at))
    }

    /// Whether the last compaction leaves a version.
    pub(crate) fn is_reachable(&self, at: Revision, bytes: &Bytes) -> Result<bool, Error> {
        let compacted = self.state().compacted;
        if at.main > compacted {
            return Ok(true);
        }
        let found = record::decode(at, bytes)?;
        let entry = self.state().index.get(&found.kv.key);
        let base = entry.and_then(|entry| entry.at(compacted));
        Ok(base.is_some_and(|base| base.revision == at && survives_as_base(base, compacted)))
    }

    /// The hash of the whole state: keys with their history, leases, users, roles, alarms. Where
    /// the log stands and who is a member does not count.
    ///
    /// # Errors
    /// The storage failed.
    pub fn hash(&self) -> Result<u32, Error> {
        let state = self.state();
        let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
        for row in self.versions_from(Revision::default())? {
            let (at, bytes) = row?;
            if self.is_reachable(at, &bytes)? {
                hash_version(&mut digest, at, &bytes)?;
            }
        }
        for lease in state.leases.iter() {
            for number in [lease.id, lease.ttl_s, lease.remaining_s] {
                digest.update(&number.to_be_bytes());
            }
        }
        for user in state.auth.users.values() {
            digest.update(&user.encode_length_delimited_to_vec());
        }
        for role in state.auth.roles.values() {
            digest.update(&role.encode_length_delimited_to_vec());
        }
        digest.update(&StateRow::replicated(state).encode_to_vec());
        Ok(digest.finalize() as u32)
    }
}

fn hash_version(digest: &mut Digest, at: Revision, bytes: &[u8]) -> Result<(), Error> {
    let (tombstone, kv) = record::split(at, bytes)?;
    let (key, len) = at.etcd_key(tombstone);
    digest.update(&key[..len]);
    digest.update(kv);
    Ok(())
}
