//! The data file of a partition: bodies past 64 KiB, in extents of 4 KiB blocks, O_DIRECT.
//!
//! Invariants: a body is written from its caller's buffers without a copy; [`DataFile::flush`]
//! returns after a flush that began after it was called; one flush serves all that wait for it. A
//! failed write or flush poisons the partition. The file only grows; free ranges of it become holes,
//! and get space again before they are given out, so that a full disk is met before a body is.
//!
//! It does not know objects: who owns an extent is the index's affair.

use std::cell::{Cell, RefCell};
use std::io;
use std::path::Path;
use std::rc::Rc;

use engine::fs::{File, OpenOptions};
use engine::sync::Semaphore;
use engine::{BLOCK, DmaBuf};
use segment_log::durable::{FlushGate, Poison, is_full};

use super::ballast::Ballast;
use super::error::StoreError;
use super::extent::{Extent, ExtentAllocator, blocks_of};
use super::space::{Space, Taken};
use super::types::EXTENTS_MAX;

/// Most blocks of a data file: 16 TiB.
const BLOCKS_MAX: u32 = u32::MAX;

/// Most blocks that are discarded at once: 64 MiB.
const DISCARD_BLOCKS_MAX: u32 = (64 << 20) / BLOCK as u32;

/// An open data file.
pub(super) struct DataFile {
    file: Rc<File>,
    poison: Rc<Poison>,
    space: Rc<RefCell<Space>>,
    flushes: Rc<FlushGate>,
    growing: Semaphore,
    grow_bytes: u64,
    /// Something was refused for want of space, and the disk has had none since.
    pub(super) pressed: Cell<bool>,
    pub(super) ballast: Ballast,
    /// Whether the file system has holes, as far as is known.
    holes: Cell<bool>,
}

impl DataFile {
    /// Opens or makes the file; its name is durable only after a `sync_dir` of the caller's.
    pub(super) async fn open(
        path: &Path,
        grow_bytes: u64,
        poison: Rc<Poison>,
    ) -> Result<DataFile, StoreError> {
        let options = OpenOptions {
            write: true,
            create: true,
            direct: true,
            ..OpenOptions::default()
        };
        let file = File::open(path, options).await;
        let file = file.map_err(|e| StoreError::internal("cannot open the data file", &e))?;
        Ok(DataFile {
            file: Rc::new(file),
            poison,
            space: Space::new(ExtentAllocator::default()),
            flushes: Rc::default(),
            growing: Semaphore::new(1, 4096),
            grow_bytes,
            pressed: Cell::new(false),
            ballast: Ballast::new(path.with_file_name("ballast")),
            holes: Cell::new(true),
        })
    }

    /// Takes what the recovered index refers to; must come before any other use.
    pub(super) fn claim(&self, used: Vec<Extent>) -> Result<(), StoreError> {
        let blocks = self.file.opened_len() / BLOCK as u64;
        let blocks = u32::try_from(blocks).unwrap_or(BLOCKS_MAX);
        let allocator =
            ExtentAllocator::rebuild(blocks, used).map_err(|overlap| StoreError::Corrupt {
                what: format!("the extent map ({overlap})"),
                segment: super::error::DATA_FILE,
                offset: overlap.extent.offset(),
            })?;
        self.space.borrow_mut().start_from(allocator);
        Ok(())
    }

    pub(super) fn space(&self) -> &Rc<RefCell<Space>> {
        &self.space
    }

    /// Takes blocks, growing the file when it must. Nothing is taken when the future is dropped.
    ///
    /// # Errors
    /// `Full`, also while the ballast is spent; `Busy`, `Internal`.
    pub(super) async fn reserve(&self, bytes: u64) -> Result<Vec<Extent>, StoreError> {
        let blocks = u32::try_from(blocks_of(bytes)).map_err(|_| StoreError::Full)?;
        self.check_ballast()?;
        loop {
            let taken = self.space.borrow_mut().take(blocks, EXTENTS_MAX);
            if let Some(taken) = taken {
                return self.back(taken).await;
            }
            let turn = self
                .growing
                .acquire(1)
                .await
                .map_err(|_| StoreError::Busy)?;
            let room = self.space.borrow().allocator.free_blocks() >= u64::from(blocks)
                && self.space.borrow().allocator.longest() >= blocks;
            if !room {
                self.grow(blocks).await?;
            }
            drop(turn);
        }
    }

    /// Refuses what only takes space while there is none for what gives it back.
    pub(super) fn check_ballast(&self) -> Result<(), StoreError> {
        if self.ballast.is_spent() {
            self.pressed.set(true);
            return Err(StoreError::Full);
        }
        Ok(())
    }

    /// Gives the unbacked blocks space.
    async fn back(&self, taken: Taken) -> Result<Vec<Extent>, StoreError> {
        let mut backing = Backing {
            space: &self.space,
            taken: Some(taken),
        };
        while let Some(range) = backing.next() {
            match self.file.allocate(range.offset(), range.bytes()).await {
                Ok(()) => backing.done(),
                // Where the file system cannot promise space, a write finds out.
                Err(error) if error.kind() == io::ErrorKind::Unsupported => backing.done(),
                Err(error) if is_full(&error) => {
                    self.pressed.set(true);
                    return Err(StoreError::Full);
                }
                Err(error) => {
                    return Err(StoreError::internal(
                        "cannot allocate in the data file",
                        &error,
                    ));
                }
            }
        }
        Ok(backing.finish())
    }

    async fn grow(&self, blocks: u32) -> Result<(), StoreError> {
        let old = self.space.borrow().allocator.blocks();
        let step = u32::try_from(blocks_of(self.grow_bytes)).unwrap_or(BLOCKS_MAX);
        for grow in [step.max(blocks), blocks] {
            if grow > BLOCKS_MAX - old {
                continue;
            }
            let range = Extent {
                start: old,
                blocks: grow,
            };
            match self.file.allocate(range.offset(), range.bytes()).await {
                Ok(()) => {
                    self.space.borrow_mut().allocator.grow(grow);
                    return Ok(());
                }
                Err(error) if is_full(&error) => {}
                Err(error) => {
                    return Err(StoreError::internal("cannot grow the data file", &error));
                }
            }
        }
        self.pressed.set(true);
        Err(StoreError::Full)
    }

    /// Gives the file system the space of a free range of at least `blocks_min` blocks, as long as
    /// more than `slack_bytes` are free and allocated. Returns the bytes; 0 when there is no such
    /// range.
    ///
    /// What is free here is free after a crash too: the record that freed it is durable. Nobody is
    /// given the range meanwhile.
    ///
    /// # Errors
    /// `Internal`; the range stays allocated, and free.
    pub(super) async fn discard_one(
        &self,
        blocks_min: u32,
        slack_bytes: u64,
    ) -> Result<u64, StoreError> {
        if !self.holes.get() {
            return Ok(0);
        }
        let found = self.space.borrow_mut().begin_discard(
            blocks_min,
            blocks_of(slack_bytes),
            DISCARD_BLOCKS_MAX,
        );
        let Some(range) = found else { return Ok(0) };
        let mut discard = Discard {
            space: &self.space,
            range,
            done: false,
        };
        let discarded = self.file.discard(range.offset(), range.bytes()).await;
        if let Err(error) = &discarded
            && error.kind() == io::ErrorKind::Unsupported
        {
            // Such a file system keeps the space for bodies to come.
            self.holes.set(false);
            return Ok(0);
        }
        discarded.map_err(|e| StoreError::internal("cannot discard in the data file", &e))?;
        discard.done = true;
        Ok(range.bytes())
    }

    /// Writes the buffer's content, padded to whole blocks, at a block-aligned offset of the body in
    /// `extents`. The caller must see it through to its end before it frees the extents: a cancelled
    /// write may still happen.
    pub(super) async fn write(
        &self,
        mut buf: DmaBuf,
        extents: &[Extent],
        offset: u64,
    ) -> Result<(), StoreError> {
        let len = buf.len();
        let padded = len.next_multiple_of(BLOCK);
        buf.set_len(padded);
        buf[len..].fill(0);
        let mut at = 0;
        for (place, piece) in pieces(extents, offset, padded) {
            self.poison.check()?;
            let (wrote, slice) = self.file.write_at(buf.slice(at..at + piece), place).await;
            buf = slice.into_inner();
            if let Err(error) = wrote {
                return Err(self.failed(&error));
            }
            at += piece;
        }
        if at == padded {
            return Ok(());
        }
        Err(StoreError::Internal(
            "a chunk was written past the body's extents".to_owned(),
        ))
    }

    fn failed(&self, error: &io::Error) -> StoreError {
        if error.kind() == io::ErrorKind::ResourceBusy {
            // The shard had no slot: it was not started.
            return StoreError::Busy;
        }
        if is_full(error) {
            self.pressed.set(true);
            return StoreError::Full;
        }
        self.poison.set(&error.to_string()).into()
    }

    /// Reads `len` bytes, whole blocks, at a block-aligned offset of a body into the buffer's start.
    pub(super) async fn read(
        &self,
        mut buf: DmaBuf,
        extents: &[Extent],
        offset: u64,
        len: usize,
    ) -> Result<DmaBuf, StoreError> {
        buf.set_len(len);
        let mut at = 0;
        for (place, piece) in pieces(extents, offset, len) {
            let (read, slice) = self.file.read_at(buf.slice(at..at + piece), place).await;
            buf = slice.into_inner();
            let read = read.map_err(|e| StoreError::internal("cannot read the data file", &e))?;
            if read != piece {
                return Err(damaged("a body (the data file is too short)", place));
            }
            at += piece;
        }
        if at == len {
            Ok(buf)
        } else {
            Err(damaged("a body (its extents are too short)", offset))
        }
    }

    /// Makes all writes that have completed before the call durable.
    pub(super) async fn flush(&self) -> Result<(), StoreError> {
        let flushed = self.flushes.flush(&self.file, &self.poison).await;
        flushed.map_err(StoreError::from)
    }
}

/// Taken blocks on their way to have space; given back when it ends early.
struct Backing<'a> {
    space: &'a RefCell<Space>,
    taken: Option<Taken>,
}

impl Backing<'_> {
    fn next(&self) -> Option<Extent> {
        self.taken.as_ref()?.unbacked.last().copied()
    }

    fn done(&mut self) {
        if let Some(taken) = &mut self.taken {
            taken.unbacked.pop();
        }
    }

    fn finish(mut self) -> Vec<Extent> {
        self.taken
            .take()
            .map(|taken| taken.extents)
            .unwrap_or_default()
    }
}

impl Drop for Backing<'_> {
    fn drop(&mut self) {
        if let Some(taken) = self.taken.take() {
            self.space.borrow_mut().untake(taken);
        }
    }
}

/// Ends a discard, also when its future was dropped: the range is free again.
struct Discard<'a> {
    space: &'a RefCell<Space>,
    range: Extent,
    done: bool,
}

impl Drop for Discard<'_> {
    fn drop(&mut self) {
        self.space.borrow_mut().end_discard(self.range, self.done);
    }
}

pub(super) fn damaged(what: &str, offset: u64) -> StoreError {
    StoreError::Corrupt {
        what: what.to_owned(),
        segment: super::error::DATA_FILE,
        offset,
    }
}

/// Where in the file `len` bytes at `offset` of a body lie: (offset, length) of each run.
pub(super) fn pieces(extents: &[Extent], offset: u64, len: usize) -> Vec<(u64, usize)> {
    let mut found: Vec<(u64, usize)> = Vec::new();
    let mut skip = offset;
    let mut left = len as u64;
    for extent in extents {
        if left == 0 {
            break;
        }
        if skip >= extent.bytes() {
            skip -= extent.bytes();
            continue;
        }
        let place = extent.offset() + skip;
        let piece = left.min(extent.bytes() - skip);
        skip = 0;
        left -= piece;
        match found.last_mut() {
            Some((last, last_len)) if *last + *last_len as u64 == place => {
                *last_len += piece as usize;
            }
            _ => found.push((place, piece as usize)),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_of_a_body_maps_to_runs_of_the_file() {
        let extents = [
            Extent {
                start: 10,
                blocks: 2,
            },
            Extent {
                start: 12,
                blocks: 1,
            },
            Extent {
                start: 4,
                blocks: 1,
            },
        ];
        assert_eq!(pieces(&extents, 0, 3 * BLOCK), [(10 * 4096, 3 * BLOCK)]);
        assert_eq!(
            pieces(&extents, 8192, 2 * BLOCK),
            [(12 * 4096, BLOCK), (4 * 4096, BLOCK)]
        );
        assert_eq!(pieces(&extents, 4 * 4096, BLOCK), []);
    }
}
