//! The checksums of a partition: the file `sums`, and pages of it in memory.
//!
//! Invariants:
//! - A block's checksum is in a page before a map refers to the block, and never changes while
//!   something that a restart could read does (`sums::places`). So a page may be written at any time,
//!   and a write that is torn leaves checksums that are right.
//! - What the file lacks of that stands in the log since the newest checkpoint, or among the unflushed
//!   changes; a checkpoint counts when the file has all.
//! - Pages are bounded: those that are clean go when there are too many, and who would make too many
//!   dirty writes one first. While nothing can be written none becomes dirty.
//! - The file grows by space that was allocated, durably, before a page there is used.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::rc::Rc;

use engine::DmaBuf;
use engine::fs::{File, OpenOptions};
use engine::sync::{Notify, Semaphore};
use futures_util::future::join_all;
use segment_log::durable::{FlushGate, Poison, is_full};

use super::{BlockSums, SECTOR_BYTES, SECTOR_CLUSTERS, put_sector, take_sector};
use crate::data::{Going, take_buf};
use crate::error::VolumeError;
use crate::map::{BLOCK, BLOCKS, CLUSTER};

/// Bytes of a page, which is read and written at once.
const PAGE_BYTES: u64 = 4096;
const PAGE_SECTORS: usize = PAGE_BYTES as usize / SECTOR_BYTES;
/// Clusters of a page: 3.5 MiB of data.
pub(crate) const PAGE_CLUSTERS: u32 = (PAGE_SECTORS * SECTOR_CLUSTERS) as u32;
/// By how much the file grows where it can: some GiB of data.
const GROW_BYTES: u64 = 4 << 20;
const PAGES_MIN: usize = 2;
/// Pages that are written together.
const WRITES: usize = 16;
const GROWERS_MAX: usize = 65_536;

/// A page of checksums, while somebody has it.
pub(crate) struct Page {
    number: u32,
    clusters: RefCell<Vec<BlockSums>>,
    dirty: Cell<bool>,
    writing: Cell<bool>,
    /// Since it was last looked at for its place.
    used: Cell<bool>,
}

pub(crate) struct Sums {
    partition: u16,
    file: Rc<File>,
    poison: Rc<Poison>,
    flushes: Rc<FlushGate>,
    growing: Semaphore,
    /// Bytes of the file that have space.
    len: Cell<u64>,
    pages: RefCell<BTreeMap<u32, Rc<Page>>>,
    pages_max: usize,
    loading: RefCell<BTreeSet<u32>>,
    /// A page was loaded or written, or could not be.
    changed: Notify,
    dirty: Cell<usize>,
    /// Where the next search for a page to give up or to write begins.
    hand: Cell<u32>,
    /// Pages were written that no sync has made durable.
    unsynced: Cell<bool>,
    /// Pages that were in memory when they were wanted, and that were read.
    found: Cell<u64>,
    loaded: Cell<u64>,
}

/// Ends the loading of a page, also when its future is dropped.
struct Loading<'a>(&'a Sums, u32);

impl Drop for Loading<'_> {
    fn drop(&mut self) {
        self.0.loading.borrow_mut().remove(&self.1);
        self.0.changed.notify_all();
    }
}

/// Ends the writing of a page: it is dirty unless that was told.
struct Writing<'a> {
    sums: &'a Sums,
    page: Rc<Page>,
    done: bool,
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.page.writing.set(false);
        if !self.done {
            self.sums.set_dirty(&self.page);
        }
        self.sums.changed.notify_all();
    }
}

impl Sums {
    /// Opens or makes the file; its name is durable only after a `sync_dir` of the caller's.
    pub(crate) async fn open(
        dir: &Path,
        partition: u16,
        cache_bytes: u64,
        poison: Rc<Poison>,
    ) -> Result<Sums, VolumeError> {
        let options = OpenOptions {
            write: true,
            create: true,
            direct: true,
            ..OpenOptions::default()
        };
        let file = File::open(dir.join("sums"), options).await;
        let file = file.map_err(|e| VolumeError::internal("cannot open the checksums", &e))?;
        let len = file.opened_len() / PAGE_BYTES * PAGE_BYTES;
        let pages_max = usize::try_from(cache_bytes / PAGE_BYTES).unwrap_or(usize::MAX);
        Ok(Sums {
            partition,
            file: Rc::new(file),
            poison,
            flushes: Rc::default(),
            growing: Semaphore::new(1, GROWERS_MAX),
            len: Cell::new(len),
            pages: RefCell::default(),
            pages_max: pages_max.max(PAGES_MIN),
            loading: RefCell::default(),
            changed: Notify::default(),
            dirty: Cell::new(0),
            hand: Cell::new(0),
            unsynced: Cell::new(false),
            found: Cell::new(0),
            loaded: Cell::new(0),
        })
    }

    /// Pages that were in memory when they were wanted, and that were read.
    pub(crate) fn pages_used(&self) -> (u64, u64) {
        (self.found.get(), self.loaded.get())
    }

    /// The checksums of the blocks that lie at a place of the data file.
    ///
    /// # Errors
    /// `Busy`, `Internal` when they cannot be read.
    pub(crate) async fn at(&self, place: u64, bytes: u64) -> Result<Vec<Option<u32>>, VolumeError> {
        let blocks = place / BLOCK..(place + bytes).div_ceil(BLOCK);
        let mut found = Vec::with_capacity(blocks.clone().count());
        let mut page: Option<Rc<Page>> = None;
        for block in blocks {
            let cluster = (block / u64::from(BLOCKS)) as u32;
            let page = match page.take().filter(|page| page.has(cluster)) {
                Some(same) => page.insert(same),
                None => page.insert(self.page(cluster).await?),
            };
            found.push(page.of(cluster).get((block % u64::from(BLOCKS)) as u32));
        }
        Ok(found)
    }

    /// The page of a cluster, for somebody who is going to change it.
    ///
    /// # Errors
    /// `Full`, `Busy`, `Poisoned`, `Internal`.
    pub(crate) async fn page_to_change(&self, cluster: u32) -> Result<Rc<Page>, VolumeError> {
        self.poison.check()?;
        self.back(cluster / PAGE_CLUSTERS).await?;
        while self.dirty.get() >= self.dirty_max() && !self.is_dirty(cluster / PAGE_CLUSTERS) {
            self.write_one().await?;
        }
        self.page(cluster).await
    }

    fn is_dirty(&self, number: u32) -> bool {
        let pages = self.pages.borrow();
        pages.get(&number).is_some_and(|page| page.dirty.get())
    }

    /// Half of the pages, so that reads find clean ones to give up.
    fn dirty_max(&self) -> usize {
        self.pages_max / 2
    }

    /// Takes checksums over that a start has found: it needs no space, and stops at none.
    ///
    /// # Errors
    /// `Busy`, `Poisoned`, `Internal`.
    pub(crate) async fn restore(&self, found: BTreeMap<u32, BlockSums>) -> Result<(), VolumeError> {
        for (cluster, sums) in found {
            let page = self.page(cluster).await?;
            self.put(&page, cluster, &sums);
            drop(page);
            if self.dirty.get() >= self.dirty_max() {
                match self.write_one().await {
                    Ok(()) | Err(VolumeError::Full) => {}
                    failed => failed?,
                }
            }
            engine::yield_if_needed().await;
        }
        Ok(())
    }

    /// Changes checksums of a cluster of a page.
    pub(crate) fn put(&self, page: &Rc<Page>, cluster: u32, sums: &BlockSums) {
        let at = (cluster % PAGE_CLUSTERS) as usize;
        page.clusters.borrow_mut()[at].renew(sums);
        self.set_dirty(page);
    }

    fn set_dirty(&self, page: &Page) {
        if !page.dirty.replace(true) {
            self.dirty.set(self.dirty.get() + 1);
        }
    }

    async fn page(&self, cluster: u32) -> Result<Rc<Page>, VolumeError> {
        let number = cluster / PAGE_CLUSTERS;
        loop {
            if let Some(page) = self.pages.borrow().get(&number) {
                page.used.set(true);
                self.found.set(self.found.get() + 1);
                return Ok(Rc::clone(page));
            }
            if self.loading.borrow_mut().insert(number) {
                break;
            }
            self.changed.notified().await;
        }
        let _loading = Loading(self, number);
        let clusters = self.load(number).await?;
        self.loaded.set(self.loaded.get() + 1);
        let page = Rc::new(Page {
            number,
            clusters: RefCell::new(clusters),
            dirty: Cell::new(false),
            writing: Cell::new(false),
            used: Cell::new(true),
        });
        self.give_up_pages();
        self.pages.borrow_mut().insert(number, Rc::clone(&page));
        Ok(page)
    }

    async fn load(&self, number: u32) -> Result<Vec<BlockSums>, VolumeError> {
        let offset = u64::from(number) * PAGE_BYTES;
        let mut clusters = vec![BlockSums::default(); PAGE_CLUSTERS as usize];
        let buf = take_buf(PAGE_BYTES).await?;
        let (read, slice) = self
            .file
            .read_at(buf.slice(0..PAGE_BYTES as usize), offset)
            .await;
        let read = read.map_err(|e| VolumeError::internal("cannot read the checksums", &e))?;
        let mut buf = slice.into_inner();
        // Nothing was put behind the file's end.
        buf[read..].fill(0);
        let sectors = buf
            .chunks(SECTOR_BYTES)
            .zip(clusters.chunks_mut(SECTOR_CLUSTERS));
        for (first, (bytes, into)) in (number * PAGE_SECTORS as u32..).zip(sectors) {
            match take_sector(bytes, self.partition, first) {
                Ok(sector) => into.copy_from_slice(&sector),
                // Its blocks have no checksum then, and whoever reads one is told so.
                Err(malformed) => tracing::error!(
                    partition = self.partition,
                    sector = first,
                    %malformed,
                    "checksums are damaged"
                ),
            }
        }
        Ok(clusters)
    }

    /// Gives up clean pages that nobody has, until there is place for one.
    fn give_up_pages(&self) {
        let mut pages = self.pages.borrow_mut();
        for _ in 0..2 * pages.len() {
            if pages.len() < self.pages_max {
                return;
            }
            let behind = pages.range(self.hand.get()..).next();
            let Some((number, page)) = behind.or_else(|| pages.iter().next()) else {
                return;
            };
            let number = *number;
            self.hand.set(number.wrapping_add(1));
            let idle = Rc::strong_count(page) == 1 && !page.dirty.get();
            if idle && !page.used.replace(false) {
                pages.remove(&number);
            }
        }
    }

    /// Writes a dirty page, or waits until another has done so.
    async fn write_one(&self) -> Result<(), VolumeError> {
        self.poison.check()?;
        let found = {
            let pages = self.pages.borrow();
            let (before, behind) = (
                pages.range(..self.hand.get()),
                pages.range(self.hand.get()..),
            );
            let ready = |page: &&Rc<Page>| page.dirty.get() && !page.writing.get();
            behind
                .chain(before)
                .map(|(_, page)| page)
                .find(ready)
                .cloned()
        };
        match found {
            Some(page) => {
                self.hand.set(page.number.wrapping_add(1));
                self.write(page).await?;
            }
            None => self.changed.notified().await,
        }
        Ok(())
    }

    /// Writes a page as it is now; false when it is not dirty, or somebody else is at it.
    async fn write(&self, page: Rc<Page>) -> Result<bool, VolumeError> {
        let mut buf = take_buf(PAGE_BYTES).await?;
        if !page.dirty.get() || page.writing.get() {
            return Ok(false);
        }
        self.poison.check()?;
        page.writing.set(true);
        page.dirty.set(false);
        self.dirty.set(self.dirty.get() - 1);
        let offset = u64::from(page.number) * PAGE_BYTES;
        self.encode(&page, &mut buf);
        let mut writing = Writing {
            sums: self,
            page,
            done: false,
        };
        let going = Going::new(&self.poison);
        let (wrote, _) = self.file.write_at(buf, offset).await;
        going.end();
        wrote.map_err(|e| self.failed(&e))?;
        writing.done = true;
        self.unsynced.set(true);
        Ok(true)
    }

    fn encode(&self, page: &Page, buf: &mut DmaBuf) {
        let clusters = page.clusters.borrow();
        let sectors = buf
            .chunks_mut(SECTOR_BYTES)
            .zip(clusters.chunks(SECTOR_CLUSTERS));
        for (number, (out, clusters)) in (page.number * PAGE_SECTORS as u32..).zip(sectors) {
            if clusters.iter().any(|sums| sums.known() != 0) {
                put_sector(out, self.partition, number, clusters);
            } else {
                out.fill(0);
            }
        }
    }

    fn failed(&self, error: &io::Error) -> VolumeError {
        match error.kind() {
            io::ErrorKind::ResourceBusy => VolumeError::Busy,
            _ if is_full(error) => VolumeError::Full,
            _ => self.poison.set(&format!("checksums: {error}")).into(),
        }
    }

    /// Gives a page space on the disk.
    async fn back(&self, number: u32) -> Result<(), VolumeError> {
        let end = (u64::from(number) + 1) * PAGE_BYTES;
        if end <= self.len.get() {
            return Ok(());
        }
        let _turn = self.growing.acquire(1).await?;
        let old = self.len.get();
        for wanted in [end.next_multiple_of(GROW_BYTES), end] {
            if wanted <= old {
                return Ok(());
            }
            match self.file.allocate(old, wanted - old).await {
                Ok(()) => {}
                Err(error) if is_full(&error) => continue,
                // Where the file system cannot promise space, a write finds out.
                Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                    let grown = self.file.set_len(wanted).await;
                    grown.map_err(|e| VolumeError::internal("cannot grow the checksums", &e))?;
                }
                Err(error) => {
                    return Err(VolumeError::internal("cannot grow the checksums", &error));
                }
            }
            // A start does not have to find space for what it restores.
            self.flushes.flush(&self.file, &self.poison).await?;
            self.len.set(wanted);
            return Ok(());
        }
        Err(VolumeError::Full)
    }

    /// Makes durable what was put before the call. Costs nothing when that is nothing.
    ///
    /// # Errors
    /// `Full`, `Busy`, `Poisoned`.
    pub(crate) async fn sync(&self) -> Result<(), VolumeError> {
        let changed: Vec<Rc<Page>> = {
            let pages = self.pages.borrow();
            let changed = pages
                .values()
                .filter(|page| page.dirty.get() || page.writing.get());
            changed.cloned().collect()
        };
        for pages in changed.chunks(WRITES) {
            let writes = join_all(pages.iter().map(|page| self.write_out(page)));
            writes.await.into_iter().collect::<Result<(), _>>()?;
        }
        if self.unsynced.replace(false) {
            let synced = self.flushes.flush(&self.file, &self.poison).await;
            synced.inspect_err(|_| self.unsynced.set(true))?;
        }
        Ok(())
    }

    /// Returns when a page was written as it was at the call, or later.
    async fn write_out(&self, page: &Rc<Page>) -> Result<(), VolumeError> {
        while page.dirty.get() || page.writing.get() {
            if page.writing.get() {
                // It may hold less than now.
                self.changed.notified().await;
            } else if self.write(Rc::clone(page)).await? {
                break;
            }
        }
        Ok(())
    }

    /// Pages in memory, and how many of them are not written.
    #[cfg(test)]
    pub(crate) fn pages(&self) -> (usize, usize) {
        (self.pages.borrow().len(), self.dirty.get())
    }
}

impl Page {
    fn has(&self, cluster: u32) -> bool {
        cluster / PAGE_CLUSTERS == self.number
    }

    fn of(&self, cluster: u32) -> BlockSums {
        self.clusters.borrow()[(cluster % PAGE_CLUSTERS) as usize]
    }
}

const _: () = assert!(CLUSTER == BLOCK * BLOCKS as u64);
