//! Where a change stands in the history: the transaction's revision and the change's place in it.

/// `main` is the revision that clients see; `sub` numbers the changes of one transaction from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct Revision {
    pub(crate) main: i64,
    pub(crate) sub: u32,
}

/// A key of the table of versions: `main` then `sub`, big-endian, so that bytes sort as revisions.
pub(crate) type RevisionBytes = [u8; 12];

impl Revision {
    pub(crate) fn new(main: i64, sub: u32) -> Self {
        Self { main, sub }
    }

    pub(crate) fn to_bytes(self) -> RevisionBytes {
        // Main revisions start at 1 and only grow: the sign bit is never set.
        let mut bytes = [0; 12];
        bytes[..8].copy_from_slice(&self.main.to_be_bytes());
        bytes[8..].copy_from_slice(&self.sub.to_be_bytes());
        bytes
    }

    pub(crate) fn from_bytes(bytes: RevisionBytes) -> Self {
        let (main, sub) = bytes.split_at(8);
        Self {
            main: i64::from_be_bytes(main.try_into().expect("split at 8")),
            sub: u32::from_be_bytes(sub.try_into().expect("12 less 8 is 4")),
        }
    }

    /// The key that etcd's own store gives this version; what HashKV hashes.
    ///
    /// | bytes | what |
    /// | --- | --- |
    /// | 0..8 | main, big-endian |
    /// | 8 | `_` |
    /// | 9..17 | sub, big-endian |
    /// | 17 | `t`, only on a tombstone |
    pub(crate) fn etcd_key(self, tombstone: bool) -> ([u8; 18], usize) {
        let mut key = [0; 18];
        key[..8].copy_from_slice(&self.main.to_be_bytes());
        key[8] = b'_';
        key[9..17].copy_from_slice(&u64::from(self.sub).to_be_bytes());
        key[17] = b't';
        (key, if tombstone { 18 } else { 17 })
    }
}
