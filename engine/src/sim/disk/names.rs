//! A disk's directories: the names that are visible, those that are durable, and the changes in
//! between, in the order in which they were made.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

use super::content::Content;
use super::{Disk, Entry, Errno, Inode, ROOT};
use crate::backend::DirEntry;
use crate::rng::Rng;

/// A directory's visible and durable names.
#[derive(Debug, Default)]
pub(super) struct Dir {
    pub(super) now: BTreeMap<String, Inode>,
    pub(super) durable: BTreeMap<String, Inode>,
}

/// A name in a directory.
type Name = (Inode, String);

/// A name operation that is not durable yet: what its names stand for after it.
#[derive(Debug)]
pub(super) struct Change {
    seq: u64,
    edits: Vec<(Name, Option<Inode>)>,
}

impl Change {
    pub(super) fn targets(&self) -> impl Iterator<Item = Inode> {
        self.edits.iter().filter_map(|(_, to)| *to)
    }
}

/// The normal components of a path; `..` goes up, as on a tree without symbolic links.
fn parts(path: &Path) -> Result<Vec<String>, Errno> {
    let mut parts = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => parts.push(name.to_str().ok_or(libc::EILSEQ)?.to_owned()),
            Component::ParentDir => {
                parts.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    Ok(parts)
}

impl Disk {
    fn dir(&self, inode: Inode) -> Result<&Dir, Errno> {
        match self.entries.get(&inode) {
            Some(Entry::Dir(dir)) => Ok(dir),
            Some(Entry::File(_)) => Err(libc::ENOTDIR),
            None => Err(libc::ENOENT),
        }
    }

    fn walk(&self, parts: &[String]) -> Result<Inode, Errno> {
        parts.iter().try_fold(ROOT, |at, name| {
            self.dir(at)?.now.get(name).copied().ok_or(libc::ENOENT)
        })
    }

    pub(in crate::sim) fn lookup(&self, path: &Path) -> Result<Inode, Errno> {
        self.walk(&parts(path)?)
    }

    /// The directory that holds the path's last name, and that name.
    fn locate(&self, path: &Path) -> Result<Name, Errno> {
        let mut parts = parts(path)?;
        let name = parts.pop().ok_or(libc::EISDIR)?;
        let dir = self.walk(&parts)?;
        self.dir(dir)?;
        Ok((dir, name))
    }

    fn apply(&mut self, edits: Vec<(Name, Option<Inode>)>) {
        for ((dir, name), to) in &edits {
            if let Some(Entry::Dir(dir)) = self.entries.get_mut(dir) {
                match to {
                    Some(inode) => dir.now.insert(name.clone(), *inode),
                    None => dir.now.remove(name),
                };
            }
        }
        let seq = self.next_seq();
        self.changes.push(Change { seq, edits });
    }

    fn make(&mut self, name: Name, entry: Entry) -> Inode {
        let inode = self.next_inode;
        self.next_inode += 1;
        self.entries.insert(inode, entry);
        self.apply(vec![(name, Some(inode))]);
        inode
    }

    /// Finds or makes a file.
    pub(in crate::sim) fn open(
        &mut self,
        path: &Path,
        create: bool,
        create_new: bool,
    ) -> Result<Inode, Errno> {
        let name = self.locate(path)?;
        match self.dir(name.0)?.now.get(&name.1).copied() {
            Some(_) if create && create_new => Err(libc::EEXIST),
            Some(inode) if self.dir(inode).is_ok() => Err(libc::EISDIR),
            Some(inode) => Ok(inode),
            None if create => Ok(self.make(name, Entry::File(Content::default()))),
            None => Err(libc::ENOENT),
        }
    }

    pub(in crate::sim) fn create_dir_all(&mut self, path: &Path) -> Result<(), Errno> {
        let mut at = ROOT;
        for name in parts(path)? {
            at = match self.dir(at)?.now.get(&name) {
                Some(inode) => *inode,
                None => self.make((at, name), Entry::Dir(Dir::default())),
            };
        }
        self.dir(at).map(|_| ()).map_err(|_| libc::EEXIST)
    }

    pub(in crate::sim) fn remove_file(&mut self, path: &Path) -> Result<(), Errno> {
        let name = self.locate(path)?;
        let inode = *self.dir(name.0)?.now.get(&name.1).ok_or(libc::ENOENT)?;
        if self.dir(inode).is_ok() {
            return Err(libc::EISDIR);
        }
        self.apply(vec![(name, None)]);
        Ok(())
    }

    pub(in crate::sim) fn rename(&mut self, from: &Path, to: &Path) -> Result<(), Errno> {
        let (source, target) = (self.locate(from)?, self.locate(to)?);
        let inode = *self.dir(source.0)?.now.get(&source.1).ok_or(libc::ENOENT)?;
        if parts(to)?.starts_with(&parts(from)?) {
            return if source == target {
                Ok(())
            } else {
                Err(libc::EINVAL)
            };
        }
        if let Some(old) = self.dir(target.0)?.now.get(&target.1) {
            match (self.dir(inode).is_ok(), self.dir(*old)) {
                (true, Ok(dir)) if !dir.now.is_empty() => return Err(libc::ENOTEMPTY),
                (true, Err(_)) => return Err(libc::ENOTDIR),
                (false, Ok(_)) => return Err(libc::EISDIR),
                _ => {}
            }
        }
        self.apply(vec![(source, None), (target, Some(inode))]);
        Ok(())
    }

    pub(in crate::sim) fn read_dir(&self, path: &Path) -> Result<Vec<DirEntry>, Errno> {
        let dir = self.dir(self.lookup(path)?)?;
        Ok(dir
            .now
            .iter()
            .map(|(name, inode)| DirEntry {
                name: name.clone(),
                is_dir: self.dir(*inode).is_ok(),
                len: self.len(*inode),
            })
            .collect())
    }

    /// Makes the changes up to `upto` in a directory durable, with what they build on elsewhere.
    pub(in crate::sim) fn sync_dir(&mut self, path: &Path, upto: u64) -> Result<(), Errno> {
        let inode = self.lookup(path)?;
        self.dir(inode)?;
        let mut needed: BTreeSet<Name> = BTreeSet::new();
        let mut chosen: BTreeSet<u64> = BTreeSet::new();
        for change in self.changes.iter().rev() {
            let here = change.seq <= upto && change.edits.iter().any(|((d, _), _)| *d == inode);
            if here || change.edits.iter().any(|(name, _)| needed.contains(name)) {
                chosen.insert(change.seq);
                needed.extend(change.edits.iter().map(|(name, _)| name.clone()));
            }
        }
        let changes = std::mem::take(&mut self.changes);
        let (done, left) = changes.into_iter().partition(|c| chosen.contains(&c.seq));
        self.changes = left;
        for change in done {
            self.keep(change);
        }
        Ok(())
    }

    fn keep(&mut self, change: Change) {
        for ((dir, name), to) in change.edits {
            if let Some(Entry::Dir(dir)) = self.entries.get_mut(&dir) {
                match to {
                    Some(inode) => dir.durable.insert(name, inode),
                    None => dir.durable.remove(&name),
                };
            }
        }
    }

    pub(super) fn crash_names(&mut self, rng: &mut Rng) {
        let mut lost: BTreeSet<Name> = BTreeSet::new();
        for change in std::mem::take(&mut self.changes) {
            let blocked = change.edits.iter().any(|(name, _)| lost.contains(name));
            if blocked || rng.once_in(2) {
                lost.extend(change.edits.into_iter().map(|(name, _)| name));
            } else {
                self.keep(change);
            }
        }
        for entry in self.entries.values_mut() {
            if let Entry::Dir(dir) = entry {
                dir.now = dir.durable.clone();
            }
        }
    }
}
