//! The index of keys: for each key where its versions stand. In memory, rebuilt at open.
//!
//! Invariants: a key's stamps ascend; a stamp is a tombstone only after a put; the index holds no
//! key without a stamp. An entry is never changed in place once it is in the tree: readers hold it.

use std::sync::Arc;

use crate::revision::Revision;
use crate::tree::Element;

/// Stamps of one link of a history. A new version copies at most this many.
const LINK: usize = 32;

/// One version of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) revision: Revision,
    pub(crate) tombstone: bool,
}

/// Older versions of a key, in links of which the newest comes first.
#[derive(Debug)]
struct Link {
    /// Ascending.
    stamps: Vec<Stamp>,
    older: Option<Arc<Link>>,
}

impl Drop for Link {
    /// A long chain must not be dropped by recursion.
    fn drop(&mut self) {
        let mut next = self.older.take();
        while let Some(link) = next {
            next = Arc::into_inner(link).and_then(|mut link| link.older.take());
        }
    }
}

/// A key and its versions.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) key: Arc<[u8]>,
    /// The main revision that created the newest generation; 0 if that ended in a tombstone.
    pub(crate) created: i64,
    /// How often the newest generation was put; 0 if that ended in a tombstone.
    pub(crate) version: i64,
    /// The lease of the newest version; 0: none.
    pub(crate) lease: i64,
    pub(crate) newest: Stamp,
    older: Option<Arc<Link>>,
}

impl Element for Entry {
    fn key(&self) -> &[u8] {
        &self.key
    }
}

/// What a put or a tombstone makes of a key.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Change {
    pub(crate) created: i64,
    pub(crate) version: i64,
    pub(crate) lease: i64,
    pub(crate) stamp: Stamp,
}

impl Entry {
    pub(crate) fn first(key: Arc<[u8]>, change: Change) -> Self {
        Self {
            key,
            created: change.created,
            version: change.version,
            lease: change.lease,
            newest: change.stamp,
            older: None,
        }
    }

    /// The entry after one more version.
    pub(crate) fn next(&self, change: Change) -> Self {
        assert!(change.stamp.revision > self.newest.revision);
        let older = match &self.older {
            Some(link) if link.stamps.len() < LINK => {
                let mut stamps = Vec::with_capacity(link.stamps.len() + 1);
                stamps.extend_from_slice(&link.stamps);
                stamps.push(self.newest);
                Link {
                    stamps,
                    older: link.older.clone(),
                }
            }
            full => Link {
                stamps: vec![self.newest],
                older: full.clone(),
            },
        };
        Self {
            older: Some(Arc::new(older)),
            ..Self::first(Arc::clone(&self.key), change)
        }
    }

    /// Whether the key exists now.
    pub(crate) fn is_alive(&self) -> bool {
        !self.newest.tombstone
    }

    /// The versions, newest first.
    pub(crate) fn stamps(&self) -> impl Iterator<Item = Stamp> + '_ {
        let mut link = self.older.as_deref();
        let older = std::iter::from_fn(move || {
            let now = link?;
            link = now.older.as_deref();
            Some(now.stamps.iter().rev().copied())
        });
        std::iter::once(self.newest).chain(older.flatten())
    }

    /// The newest version at or before a main revision, also if it is a tombstone.
    pub(crate) fn at(&self, main: i64) -> Option<Stamp> {
        self.stamps().find(|stamp| stamp.revision.main <= main)
    }

    /// The version that a reader at a main revision sees.
    pub(crate) fn visible(&self, main: i64) -> Option<Revision> {
        let stamp = self.at(main)?;
        (!stamp.tombstone).then_some(stamp.revision)
    }

    /// Splits off what a compaction at `compacted` makes unreachable, as far as the walk has come
    /// (`at`, at most `compacted`): every version before the newest at or before `at`, and that
    /// one too if it is a tombstone from before `compacted`. A tombstone at `compacted` itself
    /// stays, for watchers that start there. Without an entry the key is gone.
    pub(crate) fn compact(&self, at: Revision, compacted: i64) -> (Option<Self>, Vec<Revision>) {
        let mut kept = Vec::new();
        let mut dropped = Vec::new();
        let mut base_seen = false;
        for stamp in self.stamps() {
            if stamp.revision > at {
                kept.push(stamp);
                continue;
            }
            if base_seen || !survives_as_base(stamp, compacted) {
                dropped.push(stamp.revision);
            } else {
                kept.push(stamp);
            }
            base_seen = true;
        }
        kept.reverse();
        let Some(newest) = kept.pop() else {
            return (None, dropped);
        };
        let mut older = None;
        for stamps in kept.chunks(LINK) {
            older = Some(Arc::new(Link {
                stamps: stamps.to_vec(),
                older,
            }));
        }
        let entry = Self {
            key: Arc::clone(&self.key),
            created: self.created,
            version: self.version,
            lease: self.lease,
            newest,
            older,
        };
        (Some(entry), dropped)
    }
}

/// Whether the newest version at or before the compacted revision stays.
pub(crate) fn survives_as_base(stamp: Stamp, compacted: i64) -> bool {
    !stamp.tombstone || stamp.revision.main == compacted
}
