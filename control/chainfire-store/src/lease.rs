//! Leases and the keys that hang on them, as elements of shared trees.

use crate::tree::{Element, Tree};

/// The longest time to live that a client may ask for, as etcd has it, in seconds.
pub const LEASE_TTL_S_MAX: i64 = 9_000_000_000;

/// A lease. Its clock runs on the leader; the state machine keeps what was granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// Chosen by the client or the server, never 0.
    pub id: i64,
    /// What was granted, in seconds.
    pub ttl_s: i64,
    /// What was left at the last checkpoint, in seconds; 0: no checkpoint since the last renewal.
    pub remaining_s: i64,
    key: [u8; 8],
}

impl Lease {
    pub(crate) fn new(id: i64, ttl_s: i64, remaining_s: i64) -> Self {
        Self {
            id,
            ttl_s,
            remaining_s,
            key: id.to_be_bytes(),
        }
    }
}

impl Element for Lease {
    fn key(&self) -> &[u8] {
        &self.key
    }
}

/// A key on a lease: the lease's id, big-endian, then the key.
#[derive(Debug)]
pub(crate) struct Attachment(Box<[u8]>);

impl Attachment {
    pub(crate) fn new(lease: i64, key: &[u8]) -> Self {
        Self([&lease.to_be_bytes(), key].concat().into())
    }

    /// The attached key.
    pub(crate) fn attached(&self) -> &[u8] {
        &self.0[8..]
    }
}

impl Element for Attachment {
    fn key(&self) -> &[u8] {
        &self.0
    }
}

/// The keys on a lease, ascending.
pub(crate) fn attached_to(tree: &Tree<Attachment>, lease: i64) -> impl Iterator<Item = &[u8]> {
    let prefix = lease.to_be_bytes();
    tree.range(&prefix, std::ops::Bound::Unbounded)
        .take_while(move |attachment| attachment.0[..8] == prefix)
        .map(|attachment| attachment.attached())
}
