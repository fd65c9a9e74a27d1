//! The data file of a partition: clusters of 64 KiB, read and written in place with O_DIRECT, straight
//! from and to the memory of whoever asks.
//!
//! Invariants: a flush returns after one that began after it was called. A failed write or flush, and a
//! write that is dropped in flight, poisons the partition; a guest's memory that cannot be read does not. The file grows by allocated
//! space, so that a full disk is met before a write is. It does not know volumes.

mod opening;

use std::cell::{Cell, RefCell};
use std::io;
use std::ops::Range;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use engine::fs::{File, OpenOptions};
use engine::sync::{Notify, Semaphore, SemaphorePermit};
use engine::{DmaBuf, GuestList};
use segment_log::durable::{FlushGate, Poison, is_full};
use xts::Cipher;

use crate::error::VolumeError;
use crate::map::CLUSTER;
use crate::space::{Epoch, Layer, Space};

/// How the bytes of a volume are on disk.
#[derive(Clone, Copy)]
pub(crate) struct Coding<'a> {
    pub(crate) cipher: &'a Cipher,
    /// The bytes' place in the volume.
    pub(crate) place: u64,
}

impl Coding<'_> {
    /// Encrypts a guest's bytes from position `at` of its list on, until the buffer is full.
    pub(crate) fn encrypt_out(self, from: &GuestList, at: u64, into: &mut [u8]) -> io::Result<()> {
        let place = self.place + at;
        let part = at..at + into.len() as u64;
        if !from.is_whole_in(xts::UNIT as u64) {
            from.copy_out(at, into)?;
            self.cipher.encrypt(place, into);
            return Ok(());
        }
        let mut done = 0;
        from.each_window(part, |window| {
            let into = &mut into[done..done + window.len()];
            self.cipher.encrypt_out(place + done as u64, &window, into);
            done += window.len();
        })
    }

    /// Decrypts a buffer into a guest's memory, from position `at` of its list on.
    pub(crate) fn decrypt_in(self, from: &mut [u8], into: &GuestList, at: u64) -> io::Result<()> {
        let place = self.place + at;
        let part = at..at + from.len() as u64;
        if !into.is_whole_in(xts::UNIT as u64) {
            self.cipher.decrypt(place, from);
            return into.copy_in(at, from);
        }
        let mut done = 0;
        into.each_window(part, |window| {
            let from = &from[done..done + window.len()];
            self.cipher.decrypt_in(place + done as u64, from, &window);
            done += window.len();
        })
    }
}

/// Bytes of buffers of ours that transfers have at once; more wait.
const BOUNCES_BYTES_MAX: u64 = 4 << 20;
/// Those that may wait for them.
const BOUNCERS_MAX: usize = 65_536;
/// How long the shard's pool may be empty.
const BUF_WAIT: Duration = Duration::from_secs(30);
/// Bytes of a bounce buffer.
pub(crate) const BOUNCE: u64 = 512 << 10;
/// Clusters that are given space at once: 4 MiB.
const BACK_CLUSTERS_MAX: u32 = 64;
/// Free clusters in a row whose space is given back: 1 to 64 MiB.
const HOLE_CLUSTERS_MIN: u32 = 16;
const HOLE_CLUSTERS_MAX: u32 = 1024;
/// Those that may wait for the file to grow.
const GROWERS_MAX: usize = 65_536;

/// An open data file.
pub(crate) struct DataFile {
    file: Rc<File>,
    poison: Rc<Poison>,
    flushes: Rc<FlushGate>,
    growing: Semaphore,
    grow_bytes: u64,
    pub(crate) space: RefCell<Space>,
    /// What places and lengths of transfers are a multiple of.
    pub(crate) sector: u32,
    /// Clusters became free that operations in progress had held back.
    pub(crate) freed: Notify,
    bouncing: Semaphore,
    /// Transfers that went through a buffer of ours, as the guest's memory was not aligned, or what is
    /// on disk is encrypted.
    pub(crate) bounces: Cell<u64>,
    /// Those of them that shared it.
    pub(crate) joined: Cell<u64>,
    /// Operations that were dropped before they ended.
    pub(crate) abandoned: Cell<u64>,
    /// Whether the file system has holes, as far as is known.
    holes: Cell<bool>,
}

/// A taken cluster that is free again unless it gets space.
struct GiveBack<'a> {
    data: &'a DataFile,
    cluster: Option<u32>,
}

impl GiveBack<'_> {
    fn keep(mut self) {
        self.cluster = None;
    }
}

impl Drop for GiveBack<'_> {
    fn drop(&mut self) {
        self.data.space.borrow_mut().end(self.cluster);
    }
}

/// Ends the making of a hole, also when its future was dropped.
struct Hole<'a> {
    data: &'a DataFile,
    run: Range<u32>,
    done: bool,
}

impl Drop for Hole<'_> {
    fn drop(&mut self) {
        let mut space = self.data.space.borrow_mut();
        space.end_hole(self.run.clone(), self.done);
    }
}

/// An operation on clusters. One that is dropped before [`Using::end`] may still be on its way in the
/// kernel: what is freed from then on stays unused until the next start.
pub(crate) struct Using<'a> {
    data: &'a DataFile,
    epoch: Option<Epoch>,
}

impl Using<'_> {
    pub(crate) fn end(mut self) {
        if let Some(epoch) = self.epoch.take() {
            let freed = self.data.space.borrow_mut().leave(&epoch);
            if freed {
                self.data.freed.notify_all();
            }
        }
    }
}

impl Drop for Using<'_> {
    fn drop(&mut self) {
        if self.epoch.is_some() {
            self.data.abandoned.set(self.data.abandoned.get() + 1);
            // Nobody waits for what is not going to be free.
            self.data.freed.notify_all();
        }
    }
}

/// A write that the kernel has. One that is dropped on its way goes on, past the gate and the slot's
/// lock that held others back for it: it may undo what is written there next.
pub(crate) struct Going<'a> {
    poison: &'a Poison,
    ended: bool,
}

impl Going<'_> {
    pub(crate) fn new(poison: &Poison) -> Going<'_> {
        Going {
            poison,
            ended: false,
        }
    }

    pub(crate) fn end(mut self) {
        self.ended = true;
    }
}

impl Drop for Going<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.poison.set("a write was dropped before it ended");
        }
    }
}

impl DataFile {
    /// Opens or makes the file; its name is durable only after a `sync_dir` of the caller's.
    pub(crate) async fn open(
        path: &Path,
        grow_bytes: u64,
        poison: Rc<Poison>,
    ) -> Result<DataFile, VolumeError> {
        let options = OpenOptions {
            write: true,
            create: true,
            direct: true,
            ..OpenOptions::default()
        };
        let file = File::open(path, options).await;
        let file = file.map_err(|e| VolumeError::internal("cannot open the data file", &e))?;
        opening::lock(&file).await?;
        let mut space = Space::new();
        let clusters = u32::try_from(file.opened_len() / CLUSTER).unwrap_or(u32::MAX);
        space.grow(clusters, false);
        Ok(DataFile {
            file: Rc::new(file),
            poison,
            flushes: Rc::default(),
            growing: Semaphore::new(1, GROWERS_MAX),
            grow_bytes,
            space: RefCell::new(space),
            sector: opening::probe(path).await?,
            freed: Notify::default(),
            bouncing: Semaphore::new(BOUNCES_BYTES_MAX, BOUNCERS_MAX),
            bounces: Cell::new(0),
            joined: Cell::new(0),
            abandoned: Cell::new(0),
            holes: Cell::new(true),
        })
    }

    /// Begins an operation: no cluster that it may see is given out until it ends.
    pub(crate) fn using(&self) -> Using<'_> {
        Using {
            data: self,
            epoch: Some(self.space.borrow_mut().enter()),
        }
    }

    /// Takes a cluster, growing the file when it must.
    ///
    /// # Errors
    /// `Full`, `Busy`, `Internal`.
    pub(crate) async fn take(&self, near: Option<u32>, layer: Layer) -> Result<u32, VolumeError> {
        loop {
            let taken = self.space.borrow_mut().take(near, layer);
            if let Some(taken) = taken {
                if taken.backed {
                    return Ok(taken.cluster);
                }
                let Err(error) = self.back(taken.cluster).await else {
                    return Ok(taken.cluster);
                };
                // When the disk has none for it: one that kept its space, elsewhere in the file.
                let full = error == VolumeError::Full;
                let other = full.then(|| self.space.borrow_mut().take_backed(layer));
                return other.flatten().ok_or(error);
            }
            self.grow_past(0).await?;
        }
    }

    /// Grows the file unless it has more free clusters than these.
    ///
    /// # Errors
    /// `Full`, `Busy`, `Internal`.
    pub(crate) async fn grow_past(&self, free: u64) -> Result<(), VolumeError> {
        let _turn = self.growing.acquire(1).await?;
        if self.space.borrow().free_count() <= free {
            self.grow().await?;
        }
        Ok(())
    }

    /// Gives a taken cluster space on the disk, and those behind it that may want some.
    async fn back(&self, cluster: u32) -> Result<(), VolumeError> {
        let giving = GiveBack {
            data: self,
            cluster: Some(cluster),
        };
        let _turn = self.growing.acquire(1).await?;
        let run = self.space.borrow().unbacked_run(cluster, BACK_CLUSTERS_MAX);
        for clusters in [run, 1] {
            let (offset, len) = (u64::from(cluster) * CLUSTER, u64::from(clusters) * CLUSTER);
            match self.file.allocate(offset, len).await {
                Err(error) if is_full(&error) => {}
                // Where the file system cannot promise space, a write finds out.
                Err(error) if error.kind() != io::ErrorKind::Unsupported => {
                    return Err(VolumeError::internal(
                        "cannot allocate in the data file",
                        &error,
                    ));
                }
                _ => {
                    self.space.borrow_mut().back(cluster..cluster + clusters);
                    giving.keep();
                    return Ok(());
                }
            }
        }
        Err(VolumeError::Full)
    }

    /// Gives the file system the space of free clusters, until at most `slack` clusters are free and
    /// have some. What is free here is free after a crash too. Nobody is given the clusters meanwhile.
    ///
    /// # Errors
    /// `Busy`, `Internal`; the clusters stay free.
    pub(crate) async fn give_space_back(&self, slack: u64) -> Result<(), VolumeError> {
        let mut from = 0;
        while self.holes.get() && self.space.borrow().surplus() > slack {
            let _turn = self.growing.acquire(1).await?;
            let found =
                self.space
                    .borrow_mut()
                    .begin_hole(from, HOLE_CLUSTERS_MIN, HOLE_CLUSTERS_MAX);
            let Some(run) = found else { break };
            from = run.end;
            let mut hole = Hole {
                data: self,
                run: run.clone(),
                done: false,
            };
            let (offset, len) = (u64::from(run.start) * CLUSTER, run.len() as u64 * CLUSTER);
            match self.file.discard(offset, len).await {
                Ok(()) => hole.done = true,
                // Such a file system keeps the space for what is to come.
                Err(error) if error.kind() == io::ErrorKind::Unsupported => self.holes.set(false),
                Err(error) => {
                    return Err(VolumeError::internal(
                        "cannot discard in the data file",
                        &error,
                    ));
                }
            }
        }
        Ok(())
    }

    async fn grow(&self) -> Result<(), VolumeError> {
        let old = self.space.borrow().count();
        let step = u32::try_from(self.grow_bytes / CLUSTER).unwrap_or(u32::MAX);
        for clusters in [step.max(1), 1] {
            if clusters > u32::MAX - old {
                continue;
            }
            let (offset, len) = (u64::from(old) * CLUSTER, u64::from(clusters) * CLUSTER);
            match self.file.allocate(offset, len).await {
                Ok(()) => {
                    self.space.borrow_mut().grow(clusters, true);
                    return Ok(());
                }
                // Where the file system cannot promise space, a write finds out.
                Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                    let grown = self.file.set_len(offset + len).await;
                    grown.map_err(|e| VolumeError::internal("cannot grow the data file", &e))?;
                    self.space.borrow_mut().grow(clusters, true);
                    return Ok(());
                }
                Err(error) if is_full(&error) => {}
                Err(error) => {
                    return Err(VolumeError::internal("cannot grow the data file", &error));
                }
            }
        }
        Err(VolumeError::Full)
    }

    /// The right to as many bytes of buffers, all that its holder is going to have at once.
    ///
    /// # Errors
    /// `Busy` when too many wait.
    pub(crate) async fn bouncing(&self, bytes: u64) -> Result<SemaphorePermit, VolumeError> {
        Ok(self.bouncing.acquire(bytes).await?)
    }

    /// Reads a run of the file.
    ///
    /// # Errors
    /// `Corrupt` when the file ends before, `Busy`, `Internal`.
    pub(crate) async fn read(
        &self,
        into: GuestList,
        place: u64,
        coding: Option<Coding<'_>>,
    ) -> Result<(), VolumeError> {
        let len = into.len();
        if coding.is_some() || !into.is_aligned(self.sector) {
            return self.read_bounced(&into, place, coding).await;
        }
        let (read, into) = self.file.read_list_at(into, place).await;
        whole(read.map_err(|e| failed_read(&e))?, len, place)?;
        intact(&into)
    }

    /// Whether [`DataFile::read_now`] may have something to read.
    pub(crate) fn reads_now(&self) -> bool {
        self.file.is_in_memory()
    }

    /// Reads a short run of a file that lies in memory, at once. None when it cannot: [`DataFile::read`] does.
    pub(crate) fn read_now(&self, into: &GuestList, place: u64) -> Option<Result<(), VolumeError>> {
        let read = self.file.read_list_now(into, place)?;
        Some(read.map_err(|e| bad_memory(&e)))
    }

    async fn read_bounced(
        &self,
        into: &GuestList,
        place: u64,
        coding: Option<Coding<'_>>,
    ) -> Result<(), VolumeError> {
        self.bounces.set(self.bounces.get() + 1);
        let _right = self.bouncing(BOUNCE.min(into.len())).await?;
        let mut at = 0;
        while at < into.len() {
            let len = BOUNCE.min(into.len() - at);
            let buf = take_buf(len).await?;
            let mut buf = self.read_buf(buf, place + at).await?;
            let put = match coding {
                Some(coding) => coding.decrypt_in(&mut buf, into, at),
                None => into.copy_in(at, &buf),
            };
            put.map_err(|e| bad_memory(&e))?;
            at += len;
        }
        Ok(())
    }

    /// Reads as many bytes as the buffer has.
    ///
    /// # Errors
    /// As [`DataFile::read`].
    pub(crate) async fn read_buf(&self, buf: DmaBuf, place: u64) -> Result<DmaBuf, VolumeError> {
        let len = buf.len();
        let (read, slice) = self.file.read_at(buf.slice(0..len), place).await;
        let read = read.map_err(|e| failed_read(&e))?;
        whole(read, len as u64, place)?;
        Ok(slice.into_inner())
    }

    /// Writes a run of the file.
    ///
    /// # Errors
    /// `Poisoned`; `Busy` when it was not begun; `Internal` when the guest's memory cannot be read.
    pub(crate) async fn write(
        &self,
        from: GuestList,
        place: u64,
        coding: Option<Coding<'_>>,
    ) -> Result<(), VolumeError> {
        self.poison.check()?;
        if coding.is_some() || !from.is_aligned(self.sector) {
            self.bounces.set(self.bounces.get() + 1);
            let _right = self.bouncing(BOUNCE.min(from.len())).await?;
            let mut at = 0;
            while at < from.len() {
                let len = BOUNCE.min(from.len() - at);
                let mut buf = take_buf(len).await?;
                let got = match coding {
                    Some(coding) => coding.encrypt_out(&from, at, &mut buf),
                    None => from.copy_out(at, &mut buf),
                };
                got.map_err(|e| bad_memory(&e))?;
                self.write_buf(buf, place + at).await?;
                at += len;
            }
            return Ok(());
        }
        intact(&from)?;
        let going = self.going();
        let (wrote, from) = self.file.write_list_at(from, place).await;
        going.end();
        wrote.map_err(|e| match e.kind() {
            // Memory of the guest that is not there; the disk is as good as before.
            io::ErrorKind::InvalidInput | io::ErrorKind::WriteZero => bad_memory(&e),
            _ => self.failed_write(&e),
        })?;
        intact(&from)
    }

    /// Writes the buffer.
    ///
    /// # Errors
    /// As [`DataFile::write`].
    pub(crate) async fn write_buf(&self, buf: DmaBuf, place: u64) -> Result<(), VolumeError> {
        self.poison.check()?;
        let going = self.going();
        let (wrote, _) = self.file.write_at(buf, place).await;
        going.end();
        wrote.map_err(|e| self.failed_write(&e))
    }

    /// Writes a part of the buffer.
    ///
    /// # Errors
    /// As [`DataFile::write`].
    pub(crate) async fn write_part(
        &self,
        buf: DmaBuf,
        part: Range<usize>,
        place: u64,
    ) -> Result<DmaBuf, VolumeError> {
        self.poison.check()?;
        let going = self.going();
        let (wrote, slice) = self.file.write_at(buf.slice(part), place).await;
        going.end();
        wrote.map_err(|e| self.failed_write(&e))?;
        Ok(slice.into_inner())
    }

    pub(crate) fn going(&self) -> Going<'_> {
        Going::new(&self.poison)
    }

    fn failed_write(&self, error: &io::Error) -> VolumeError {
        match error.kind() {
            // The shard had no slot: it was not started.
            io::ErrorKind::ResourceBusy => VolumeError::Busy,
            // A short write of a buffer of ours is one to a full disk.
            io::ErrorKind::WriteZero => VolumeError::Full,
            _ if is_full(error) => VolumeError::Full,
            _ => self.poison.set(&error.to_string()).into(),
        }
    }

    /// Makes all writes that have completed before the call durable.
    ///
    /// # Errors
    /// `Poisoned`, `Busy`.
    pub(crate) async fn flush(&self) -> Result<(), VolumeError> {
        let flushed = self.flushes.flush(&self.file, &self.poison).await;
        flushed.map_err(VolumeError::from)
    }

    /// Runs `tell` when a flush fails, before anybody hears of it: what was written before it may not be
    /// there any more.
    pub(crate) fn on_loss(&self, tell: impl Fn() + 'static) {
        self.flushes.on_failure(tell);
    }
}

/// A buffer, for whoever has the right to it.
///
/// # Errors
/// `Busy` when the shard's pool stays empty.
pub(crate) async fn take_buf(bytes: u64) -> Result<DmaBuf, VolumeError> {
    let deadline = engine::now() + BUF_WAIT;
    Ok(engine::take_buf_until(bytes as usize, deadline).await?)
}

fn whole(read: usize, len: u64, place: u64) -> Result<(), VolumeError> {
    if read as u64 == len {
        return Ok(());
    }
    Err(VolumeError::Corrupt {
        what: "the data file is too short".into(),
        offset: place,
    })
}

fn failed_read(error: &io::Error) -> VolumeError {
    VolumeError::internal("cannot read the data file", error)
}

/// Memory that was cut short reads as zeros that nobody wrote, and keeps nothing.
fn intact(list: &GuestList) -> Result<(), VolumeError> {
    if list.is_broken() {
        let error = io::Error::from(io::ErrorKind::UnexpectedEof);
        return Err(bad_memory(&error));
    }
    Ok(())
}

pub(crate) fn bad_memory(error: &io::Error) -> VolumeError {
    VolumeError::Internal(format!("the memory of the transfer is not usable: {error}"))
}
