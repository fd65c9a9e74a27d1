//! A range of keys as etcd's requests name it.
//!
//! | `range_end` | the range |
//! | --- | --- |
//! | empty | the one key |
//! | one zero byte | the key and all after it |
//! | anything else | from the key to below the end |

use bytes::Bytes;

/// A range of keys.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeyRange {
    /// One key.
    One(Bytes),
    /// All keys from this one on.
    From(Bytes),
    /// From the first to below the second.
    Between(Bytes, Bytes),
}

impl KeyRange {
    /// What a request's two fields mean. An empty key is the least one.
    pub fn new(key: Bytes, range_end: Bytes) -> KeyRange {
        match range_end.as_ref() {
            [] => KeyRange::One(key),
            [0] => KeyRange::From(key),
            _ => KeyRange::Between(key, range_end),
        }
    }

    /// A request's two fields for it.
    pub fn bounds(&self) -> (&[u8], &[u8]) {
        match self {
            KeyRange::One(key) => (key, &[]),
            KeyRange::From(start) => (start, &[0]),
            KeyRange::Between(start, end) => (start, end),
        }
    }

    /// Whether the key lies in it.
    pub fn contains(&self, key: &[u8]) -> bool {
        match self {
            KeyRange::One(one) => one == key,
            KeyRange::From(start) => key >= start.as_ref(),
            KeyRange::Between(start, end) => key >= start.as_ref() && key < end.as_ref(),
        }
    }
}
