//! The order of objects in a bucket: by key bytes, then newest version first. Searching borrows the
//! key, so that a lookup allocates nothing.

use std::borrow::Borrow;
use std::cmp::{Ordering, Reverse};

use crate::store::types::{BucketId, Version};

/// A place in the order of all objects of a partition: bucket, key bytes, newest version first.
pub(crate) type Rank<'a> = (BucketId, &'a [u8], Reverse<u64>);

/// An object's name in its bucket.
#[derive(Clone, Debug)]
pub(crate) struct ObjectName {
    pub(crate) key: Box<str>,
    pub(crate) version: Version,
}

/// Something that has a place in the order.
pub(crate) trait NameRef {
    fn rank(&self) -> (&[u8], Reverse<u64>);
}

/// A place in the order: key bytes and version. The bytes need not be UTF-8.
pub(crate) struct Probe<'a>(pub(crate) &'a [u8], pub(crate) u64);

/// Where a walk over objects goes on: at the first that is not below a rank, or behind it. The key
/// bytes need not be UTF-8.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct NamePosition {
    pub(crate) bucket: BucketId,
    pub(crate) key: Vec<u8>,
    pub(crate) version: u64,
    pub(crate) behind: bool,
}

impl NamePosition {
    /// Before everything.
    pub(crate) fn start() -> NamePosition {
        NamePosition::from(BucketId(0), b"")
    }

    /// At the first object of a bucket whose key is not below `key`.
    pub(crate) fn from(bucket: BucketId, key: &[u8]) -> NamePosition {
        NamePosition {
            bucket,
            key: key.to_vec(),
            version: u64::MAX,
            behind: false,
        }
    }

    /// Behind every version of a key.
    pub(crate) fn after(bucket: BucketId, key: &[u8]) -> NamePosition {
        NamePosition {
            bucket,
            key: key.to_vec(),
            version: 0,
            behind: true,
        }
    }

    /// Moves behind a rank, reusing memory.
    pub(crate) fn pass(&mut self, (bucket, key, Reverse(version)): Rank<'_>) {
        self.bucket = bucket;
        self.key.clear();
        self.key.extend_from_slice(key);
        self.version = version;
        self.behind = true;
    }

    pub(crate) fn rank(&self) -> Rank<'_> {
        (self.bucket, &self.key, Reverse(self.version))
    }

    /// Whether a rank lies before it.
    pub(crate) fn is_past(&self, rank: Rank<'_>) -> bool {
        match rank.cmp(&self.rank()) {
            Ordering::Less => true,
            Ordering::Equal => self.behind,
            Ordering::Greater => false,
        }
    }
}

impl NameRef for NamePosition {
    fn rank(&self) -> (&[u8], Reverse<u64>) {
        (&self.key, Reverse(self.version))
    }
}

impl NameRef for ObjectName {
    fn rank(&self) -> (&[u8], Reverse<u64>) {
        (self.key.as_bytes(), Reverse(self.version.0))
    }
}

impl NameRef for Probe<'_> {
    fn rank(&self) -> (&[u8], Reverse<u64>) {
        (self.0, Reverse(self.1))
    }
}

impl Ord for dyn NameRef + '_ {
    fn cmp(&self, other: &Self) -> Ordering {
        self.rank().cmp(&other.rank())
    }
}

impl PartialOrd for dyn NameRef + '_ {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for dyn NameRef + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.rank() == other.rank()
    }
}

impl Eq for dyn NameRef + '_ {}

impl Ord for ObjectName {
    fn cmp(&self, other: &Self) -> Ordering {
        self.rank().cmp(&other.rank())
    }
}

impl PartialOrd for ObjectName {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for ObjectName {
    fn eq(&self, other: &Self) -> bool {
        self.rank() == other.rank()
    }
}

impl Eq for ObjectName {}

impl<'a> Borrow<dyn NameRef + 'a> for ObjectName {
    fn borrow(&self) -> &(dyn NameRef + 'a) {
        self
    }
}
