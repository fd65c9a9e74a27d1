//! The order of objects in a bucket: by key bytes, then newest version first. Searching borrows the
//! key, so that a lookup allocates nothing.

use std::borrow::Borrow;
use std::cmp::{Ordering, Reverse};

use crate::store::types::Version;

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
