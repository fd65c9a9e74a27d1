//! The disk of one simulated node: a tree of names over files of 512-byte sectors. It survives
//! restarts of the node. Nothing here knows time or ops; the world decides when a step happens.
//!
//! Fault model. What must survive a crash (power loss):
//! - every sector and length that was visible when a later successful sync of the file was
//!   submitted, and every write with dsync that was acknowledged;
//! - every name operation that was done before a later sync of its directory was submitted. A
//!   file's sync does not keep its name, nor a name's sync the file's bytes.
//!
//! What may fail or be lost:
//! - each unflushed sector on its own becomes its durable value or any version written since, so
//!   writes tear at 512 bytes and reorder freely; a write still in flight counts as unflushed;
//! - an unflushed length becomes the durable one or any set since; bytes of lost sectors inside
//!   the length read as zeros or as before;
//! - each unflushed name operation on its own is kept or lost, but none is kept when an earlier
//!   one on the same name was lost. A rename is one operation: never half of it;
//! - a sync that answers EIO, or the flush of a write with dsync: half of what it should have flushed
//!   is durable, the rest stays visible and is never written by a later sync, as Linux marks the
//!   pages clean;
//! - reads and writes answer EIO, writes are short, bits flip at rest: by rate or by injection;
//! - space ends: a write is short by what does not fit and ENOSPC when nothing does, an allocation
//!   all or nothing.
//!
//! Space is taken by files that a visible name or an open handle reaches. What a file loses is free
//! at once, though its name comes back when power is lost before the directory is synced: a real
//! file system commits its journal rather than answer ENOSPC.
//!
//! What never happens: a sector torn inside, a durable sector changed without a write, a bit flip
//! or a failed write, bytes of one file in another.

mod content;
mod names;
mod ranges;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

pub(super) use content::SECTOR;

use self::content::Content;
use self::names::{Change, Dir};
use crate::backend::{DiskSpace, Metadata};
use crate::rng::Rng;

/// A file or directory, whatever its names.
pub(super) type Inode = u64;

/// A negated errno's positive value.
pub(super) type Errno = i32;

const ROOT: Inode = 0;

/// Size of a disk unless a test sets another.
const CAPACITY_DEFAULT: u64 = 1 << 40;

#[derive(Debug)]
enum Entry {
    File(Content),
    Dir(Dir),
}

/// Failures that a test has ordered; each is used up by the next op of its kind.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ordered {
    pub(super) reads: u32,
    pub(super) writes: u32,
    pub(super) syncs: u32,
}

impl Ordered {
    /// Uses one up, when there is one.
    pub(super) fn take(count: &mut u32) -> bool {
        let some = *count > 0;
        *count = count.saturating_sub(1);
        some
    }
}

#[derive(Debug)]
pub(super) struct Disk {
    entries: BTreeMap<Inode, Entry>,
    changes: Vec<Change>,
    next_inode: Inode,
    seq: u64,
    capacity: u64,
    used: u64,
    pub(super) ordered: Ordered,
    /// Latencies are multiplied by this.
    pub(super) slow_factor: u64,
}

impl Disk {
    pub(super) fn new() -> Disk {
        Disk {
            entries: BTreeMap::from([(ROOT, Entry::Dir(Dir::default()))]),
            changes: Vec::new(),
            next_inode: ROOT + 1,
            seq: 0,
            capacity: CAPACITY_DEFAULT,
            used: 0,
            ordered: Ordered::default(),
            slow_factor: 1,
        }
    }

    /// The point up to which a sync submitted now has to reach.
    pub(super) fn seq(&self) -> u64 {
        self.seq
    }

    fn next_seq(&mut self) -> u64 {
        self.seq += 1;
        self.seq
    }

    fn file(&self, inode: Inode) -> Option<&Content> {
        match self.entries.get(&inode) {
            Some(Entry::File(content)) => Some(content),
            _ => None,
        }
    }

    fn file_mut(&mut self, inode: Inode) -> Option<&mut Content> {
        match self.entries.get_mut(&inode) {
            Some(Entry::File(content)) => Some(content),
            _ => None,
        }
    }

    pub(super) fn len(&self, inode: Inode) -> u64 {
        self.file(inode).map_or(0, Content::len)
    }

    pub(super) fn read(&self, inode: Inode, offset: u64, len: u64) -> Vec<u8> {
        self.file(inode)
            .map(|content| content.read(offset, len))
            .unwrap_or_default()
    }

    /// Applies a step to a file and books the space it took or gave back.
    fn change(
        &mut self,
        inode: Inode,
        offset: u64,
        takes: u64,
        step: impl FnOnce(&mut Content, u64),
    ) -> Result<(), Errno> {
        if offset
            .checked_add(takes)
            .is_none_or(|end| end > i64::MAX as u64)
        {
            return Err(libc::EFBIG);
        }
        let seq = self.next_seq();
        let free = self.capacity.saturating_sub(self.used);
        let Some(content) = self.file_mut(inode) else {
            return Ok(());
        };
        if takes > 0 && content.needs(offset, takes) > free {
            return Err(libc::ENOSPC);
        }
        let before = content.allocated();
        step(content, seq);
        let after = content.allocated();
        self.used = self.used + after - before;
        Ok(())
    }

    /// Leading bytes of a write that there is space for.
    pub(super) fn fits(&self, inode: Inode, offset: u64, len: u64) -> u64 {
        let free = self.capacity.saturating_sub(self.used);
        self.file(inode)
            .map_or(len, |content| content.fits(offset, len, free))
    }

    /// Writes the sectors that `keep` accepts; all or none when space is short.
    pub(super) fn write(
        &mut self,
        inode: Inode,
        offset: u64,
        bytes: &[u8],
        keep: impl FnMut() -> bool,
    ) -> Result<(), Errno> {
        self.change(inode, offset, bytes.len() as u64, |content, seq| {
            content.write(seq, offset, bytes, keep);
        })
    }

    pub(super) fn allocate(&mut self, inode: Inode, offset: u64, len: u64) -> Result<(), Errno> {
        self.change(inode, offset, len, |content, seq| {
            content.allocate(seq, offset, len);
        })
    }

    pub(super) fn punch(&mut self, inode: Inode, offset: u64, len: u64) -> Result<(), Errno> {
        self.change(inode, offset, 0, |content, seq| {
            content.punch(seq, offset, len);
        })
    }

    pub(super) fn set_len(&mut self, inode: Inode, len: u64) -> Result<(), Errno> {
        self.change(inode, len, 0, |content, seq| content.set_len(seq, len))
    }

    /// A sync of the file was submitted; [`Disk::end_sync`] follows unless power is lost.
    pub(super) fn begin_sync(&mut self, inode: Inode) {
        if let Some(content) = self.file_mut(inode) {
            content.syncs_in_flight += 1;
        }
    }

    pub(super) fn end_sync(&mut self, inode: Inode) {
        if let Some(content) = self.file_mut(inode) {
            content.syncs_in_flight = content.syncs_in_flight.saturating_sub(1);
        }
    }

    pub(super) fn sync(&mut self, inode: Inode, upto: u64) {
        if let Some(content) = self.file_mut(inode) {
            content.sync(upto);
        }
    }

    pub(super) fn fail_sync(&mut self, inode: Inode, upto: u64, rng: &mut Rng) {
        if let Some(content) = self.file_mut(inode) {
            content.fail_sync(upto, rng);
        }
    }

    pub(super) fn sync_range(&mut self, inode: Inode, offset: u64, len: u64) {
        if let Some(content) = self.file_mut(inode) {
            content.sync_range(offset, len);
        }
    }

    pub(super) fn fail_sync_range(&mut self, inode: Inode, offset: u64, len: u64, rng: &mut Rng) {
        if let Some(content) = self.file_mut(inode) {
            content.fail_sync_range(offset, len, rng);
        }
    }

    pub(super) fn metadata(&self, path: &Path) -> Result<Metadata, Errno> {
        let inode = self.lookup(path)?;
        Ok(match &self.entries[&inode] {
            Entry::File(content) => Metadata {
                len: content.len(),
                allocated: content.allocated(),
                is_dir: false,
            },
            Entry::Dir(_) => Metadata {
                len: 0,
                allocated: 0,
                is_dir: true,
            },
        })
    }

    pub(super) fn space(&self) -> DiskSpace {
        DiskSpace {
            available: self.capacity.saturating_sub(self.used),
            total: self.capacity,
        }
    }

    /// Bytes of space that are taken.
    pub(super) fn used(&self) -> u64 {
        self.used
    }

    pub(super) fn set_capacity(&mut self, bytes: u64) {
        self.capacity = bytes;
    }

    /// Flips a bit of a file's byte.
    pub(super) fn flip_bit(&mut self, path: &Path, offset: u64, bit: u8) -> Result<(), Errno> {
        let inode = self.lookup(path)?;
        let content = self.file_mut(inode).ok_or(libc::EISDIR)?;
        if offset >= content.len() {
            return Err(libc::EINVAL);
        }
        content.flip_bit(offset, bit);
        Ok(())
    }

    /// Power loss. No file is open afterwards.
    pub(super) fn crash(&mut self, rng: &mut Rng) {
        self.crash_names(rng);
        for entry in self.entries.values_mut() {
            if let Entry::File(content) = entry {
                content.crash(rng);
            }
        }
        self.collect(&[]);
    }

    /// Every file's path and length, in path order.
    pub(super) fn files(&self) -> Vec<(PathBuf, u64)> {
        let mut found = Vec::new();
        let mut left = vec![(PathBuf::from("/"), ROOT)];
        while let Some((path, inode)) = left.pop() {
            match &self.entries[&inode] {
                Entry::File(content) => found.push((path, content.len())),
                Entry::Dir(dir) => {
                    left.extend(
                        dir.now
                            .iter()
                            .map(|(name, inode)| (path.join(name), *inode)),
                    );
                }
            }
        }
        found.sort();
        found
    }

    /// Frees the space of files that no visible name and none of the `open` files reaches, and
    /// forgets those that no durable or unflushed name reaches either.
    pub(super) fn collect(&mut self, open: &[Inode]) {
        let mut reached = BTreeSet::new();
        let mut left: Vec<Inode> = vec![ROOT];
        left.extend_from_slice(open);
        self.reach(left, &mut reached, |dir| dir.now.values().collect());
        let space = |inode: &Inode| self.file(*inode).map_or(0, Content::allocated);
        self.used = reached.iter().map(space).sum();
        let mut left: Vec<Inode> = reached.iter().copied().collect();
        left.extend(self.changes.iter().flat_map(Change::targets));
        let mut kept = BTreeSet::new();
        self.reach(left, &mut kept, |dir| {
            dir.now.values().chain(dir.durable.values()).collect()
        });
        self.entries.retain(|inode, _| kept.contains(inode));
    }

    /// Adds what can be reached from `left` by the names that `names` chooses.
    fn reach(
        &self,
        mut left: Vec<Inode>,
        reached: &mut BTreeSet<Inode>,
        names: impl Fn(&Dir) -> Vec<&Inode>,
    ) {
        while let Some(inode) = left.pop() {
            if reached.insert(inode)
                && let Some(Entry::Dir(dir)) = self.entries.get(&inode)
            {
                left.extend(names(dir));
            }
        }
    }
}
