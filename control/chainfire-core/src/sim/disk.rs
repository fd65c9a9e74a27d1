//! A simulated disk.
//!
//! Fault model. A crash may keep or lose, of what was not synced: any 512-byte sector of a write,
//! any change of a length, and any suffix of the changes of names. What was synced stays. A disk
//! can be told to fail its next write or sync, and to be full. After a crash the handles of the
//! run before it fail for ever, so what still runs there cannot reach the disk.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use crate::disk::{Disk, DiskFile};

const SECTOR: u64 = 512;

/// A small seeded generator (SplitMix64): what decides in a simulation.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The generator of a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    #[expect(
        clippy::should_implement_trait,
        reason = "it never ends, and is asked for one at a time"
    )]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = self.0;
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below a bound.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    /// Whether something of this probability happens.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// One of them.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len() as u64) as usize]
    }
}

#[derive(Debug, Clone)]
enum Change {
    Write { offset: u64, bytes: Vec<u8> },
    Len(u64),
}

#[derive(Debug, Default)]
struct Content {
    durable: Vec<u8>,
    current: Vec<u8>,
    unsynced: Vec<Change>,
}

#[derive(Debug, Clone)]
enum NameChange {
    Set(String, u64),
    Rename(String, String),
    Remove(String),
}

type Names = BTreeMap<String, u64>;

#[derive(Debug)]
struct Inner {
    epoch: u64,
    next_file: u64,
    names: Names,
    durable_names: Names,
    name_changes: Vec<NameChange>,
    contents: BTreeMap<u64, Content>,
    fail_next_write: bool,
    fail_next_sync: bool,
    full: bool,
    syncs: u64,
}

/// A disk that can crash. Clones made by [`SimDisk::reopened`] belong to the newest run.
#[derive(Debug, Clone)]
pub struct SimDisk {
    inner: Arc<Mutex<Inner>>,
    epoch: u64,
}

fn apply_name(names: &mut Names, change: &NameChange) {
    match change {
        NameChange::Set(name, file) => {
            names.insert(name.clone(), *file);
        }
        NameChange::Rename(from, to) => {
            if let Some(file) = names.remove(from) {
                names.insert(to.clone(), file);
            }
        }
        NameChange::Remove(name) => {
            names.remove(name);
        }
    }
}

fn apply_write(content: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
    let end = offset as usize + bytes.len();
    if content.len() < end {
        content.resize(end, 0);
    }
    content[offset as usize..end].copy_from_slice(bytes);
}

/// How much a crash keeps of what was not synced.
#[derive(Clone, Copy)]
enum Keep {
    Nothing,
    Everything,
    Some,
}

impl Content {
    fn sync(&mut self) {
        for change in std::mem::take(&mut self.unsynced) {
            match change {
                Change::Write { offset, bytes } => apply_write(&mut self.durable, offset, &bytes),
                Change::Len(len) => self.durable.resize(len as usize, 0),
            }
        }
    }

    fn crash(&mut self, random: &mut Random) {
        let keep = *random.pick(&[Keep::Nothing, Keep::Everything, Keep::Some, Keep::Some]);
        for change in std::mem::take(&mut self.unsynced) {
            match (change, keep) {
                (_, Keep::Nothing) => {}
                (Change::Len(len), _) => {
                    if matches!(keep, Keep::Everything) || random.chance(50) {
                        self.durable.resize(len as usize, 0);
                    }
                }
                (Change::Write { offset, bytes }, Keep::Everything) => {
                    apply_write(&mut self.durable, offset, &bytes);
                }
                (Change::Write { offset, bytes }, Keep::Some) => {
                    let mut at = 0;
                    while at < bytes.len() {
                        let place = offset + at as u64;
                        let room = (SECTOR - place % SECTOR) as usize;
                        let end = (at + room).min(bytes.len());
                        if random.chance(60) {
                            apply_write(&mut self.durable, place, &bytes[at..end]);
                        }
                        at = end;
                    }
                }
            }
        }
        self.current.clone_from(&self.durable);
    }
}

impl Default for SimDisk {
    fn default() -> Self {
        Self::new()
    }
}

impl SimDisk {
    /// An empty disk.
    pub fn new() -> Self {
        let inner = Inner {
            epoch: 0,
            next_file: 0,
            names: Names::new(),
            durable_names: Names::new(),
            name_changes: Vec::new(),
            contents: BTreeMap::new(),
            fail_next_write: false,
            fail_next_sync: false,
            full: false,
            syncs: 0,
        };
        Self {
            inner: Arc::new(Mutex::new(inner)),
            epoch: 0,
        }
    }

    /// Loses power: what was not synced may be lost, and all handles so far fail from now on.
    pub fn crash(&self, random: &mut Random) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.epoch += 1;
        inner.fail_next_sync = false;
        inner.fail_next_write = false;
        inner.full = false;
        let changes = std::mem::take(&mut inner.name_changes);
        let kept = random.below(changes.len() as u64 + 1) as usize;
        for change in &changes[..kept] {
            apply_name(&mut inner.durable_names, change);
        }
        inner.names = inner.durable_names.clone();
        let live: Vec<u64> = inner.names.values().copied().collect();
        inner.contents.retain(|file, _| live.contains(file));
        for content in inner.contents.values_mut() {
            content.crash(random);
        }
    }

    /// The disk for the next run.
    pub fn reopened(&self) -> Self {
        let epoch = self
            .inner
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .epoch;
        Self {
            inner: self.inner.clone(),
            epoch,
        }
    }

    /// Fails the next write of any file.
    pub fn fail_next_write(&self) {
        self.inner
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .fail_next_write = true;
    }

    /// Fails the next sync of any file.
    pub fn fail_next_sync(&self) {
        self.inner
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .fail_next_sync = true;
    }

    /// Is full from now on.
    pub fn fill(&self) {
        self.inner
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .full = true;
    }

    /// Ends all faults.
    pub fn repair(&self) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.fail_next_sync = false;
        inner.fail_next_write = false;
        inner.full = false;
    }

    /// Syncs of files so far.
    pub fn syncs(&self) -> u64 {
        self.inner
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .syncs
    }

    /// Changes bytes of a file behind everyone's back.
    pub fn damage(&self, name: &str, offset: usize, mask: u8) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let file = inner.names[name];
        let content = inner
            .contents
            .get_mut(&file)
            .expect("a named file has content");
        content.durable[offset] ^= mask;
        content.current[offset] ^= mask;
    }

    fn with<T>(&self, act: impl FnOnce(&mut Inner) -> io::Result<T>) -> io::Result<T> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.epoch != self.epoch {
            return Err(io::Error::other("this run has crashed"));
        }
        act(&mut inner)
    }
}

fn not_found(name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("{name}: no such file"))
}

impl Disk for SimDisk {
    type File = SimFile;

    fn list(&self) -> io::Result<Vec<String>> {
        self.with(|inner| Ok(inner.names.keys().cloned().collect()))
    }

    fn open(&self, name: &str) -> io::Result<SimFile> {
        let file = self.with(|inner| {
            inner
                .names
                .get(name)
                .copied()
                .ok_or_else(|| not_found(name))
        })?;
        Ok(SimFile {
            disk: self.clone(),
            file,
        })
    }

    fn create(&self, name: &str) -> io::Result<SimFile> {
        let file = self.with(|inner| {
            inner.next_file += 1;
            let file = inner.next_file;
            let change = NameChange::Set(name.to_owned(), file);
            apply_name(&mut inner.names, &change);
            inner.name_changes.push(change);
            inner.contents.insert(file, Content::default());
            Ok(file)
        })?;
        Ok(SimFile {
            disk: self.clone(),
            file,
        })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.with(|inner| {
            if !inner.names.contains_key(from) {
                return Err(not_found(from));
            }
            let change = NameChange::Rename(from.to_owned(), to.to_owned());
            apply_name(&mut inner.names, &change);
            inner.name_changes.push(change);
            Ok(())
        })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.with(|inner| {
            if !inner.names.contains_key(name) {
                return Err(not_found(name));
            }
            let change = NameChange::Remove(name.to_owned());
            apply_name(&mut inner.names, &change);
            inner.name_changes.push(change);
            Ok(())
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.with(|inner| {
            inner.name_changes.clear();
            inner.durable_names = inner.names.clone();
            Ok(())
        })
    }
}

/// A file of a [`SimDisk`].
#[derive(Debug, Clone)]
pub struct SimFile {
    disk: SimDisk,
    file: u64,
}

impl SimFile {
    fn with<T>(
        &self,
        act: impl FnOnce(&mut Content) -> io::Result<T>,
        before: impl FnOnce(&mut Inner) -> io::Result<()>,
    ) -> io::Result<T> {
        self.disk.with(|inner| {
            before(inner)?;
            let content = inner.contents.get_mut(&self.file);
            act(content.ok_or_else(|| io::Error::other("the file is gone"))?)
        })
    }
}

fn may_write(inner: &mut Inner) -> io::Result<()> {
    if std::mem::take(&mut inner.fail_next_write) {
        return Err(io::Error::other("simulated EIO of a write"));
    }
    if inner.full {
        return Err(io::Error::new(
            io::ErrorKind::StorageFull,
            "simulated full disk",
        ));
    }
    Ok(())
}

impl DiskFile for SimFile {
    fn size(&self) -> io::Result<u64> {
        self.with(|content| Ok(content.current.len() as u64), |_| Ok(()))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let act = |content: &mut Content| {
            content.current.resize(len as usize, 0);
            content.unsynced.push(Change::Len(len));
            Ok(())
        };
        self.with(act, may_write)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let act = |content: &mut Content| {
            let from = offset as usize;
            let bytes = content.current.get(from..from + buffer.len());
            buffer.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        };
        self.with(act, |_| Ok(()))
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let act = |content: &mut Content| {
            apply_write(&mut content.current, offset, bytes);
            content.unsynced.push(Change::Write {
                offset,
                bytes: bytes.to_vec(),
            });
            Ok(())
        };
        self.with(act, may_write)
    }

    fn sync(&self) -> io::Result<()> {
        let before = |inner: &mut Inner| {
            inner.syncs += 1;
            if std::mem::take(&mut inner.fail_next_sync) {
                return Err(io::Error::other("simulated EIO of a sync"));
            }
            Ok(())
        };
        let act = |content: &mut Content| {
            content.sync();
            Ok(())
        };
        self.with(act, before)
    }
}
