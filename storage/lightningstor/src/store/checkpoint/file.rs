//! Checkpoint files of a partition: written in the background while the index changes, found and
//! read at the start.
//!
//! A checkpoint is written under a temporary name, flushed, renamed, and its directory flushed;
//! only then is an older one removed. Two are kept: log segments are released behind the older, so
//! that damage to the newer costs a longer replay and no data.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use engine::fs::{self, File, OpenOptions};
use segment_log::LogError;

use super::{FRAME_HEAD, FrameKind, Head, Loader, end_payload, frame};
use crate::store::error::{StoreError, is_full};
use crate::store::index::{Index, WalkCursor};
use crate::store::partition::Inner;

/// Bytes of items in a frame, about.
const FRAME_ITEMS: usize = 64 << 10;
pub(in crate::store) const KEPT: usize = 2;
const PREFIX: &str = "checkpoint-";
const TEMPORARY: &str = ".tmp";

pub(in crate::store) fn path_of(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{PREFIX}{number:08}"))
}

fn number_of(name: &str) -> Option<u64> {
    name.strip_prefix(PREFIX)?.parse().ok()
}

/// What a partition's directory holds.
pub(in crate::store) struct Found {
    /// The newest intact checkpoint's head and index; empty without one.
    pub(in crate::store) start_lsn: u64,
    pub(in crate::store) index: Index,
    /// (number, start LSN) of the intact ones that were looked at: the newest, or none.
    pub(in crate::store) kept: Vec<(u64, u64)>,
    pub(in crate::store) next: u64,
}

/// Reads the newest intact checkpoint.
pub(in crate::store) async fn find(dir: &Path, partition: u16) -> Result<Found, StoreError> {
    let entries = fs::read_dir(dir)
        .await
        .map_err(|e| StoreError::internal("cannot list", &e))?;
    let mut numbers = Vec::new();
    for entry in entries {
        if entry
            .name
            .strip_prefix(PREFIX)
            .is_some_and(|rest| rest.ends_with(TEMPORARY))
        {
            let removed = fs::remove_file(dir.join(&entry.name)).await;
            removed
                .map_err(|e| StoreError::internal("cannot remove a half-written checkpoint", &e))?;
        }
        numbers.extend(number_of(&entry.name));
    }
    numbers.sort_unstable();
    let next = numbers.last().map_or(1, |last| last + 1);
    let mut found = Found {
        start_lsn: 0,
        index: Index::default(),
        kept: Vec::new(),
        next,
    };
    while let Some(number) = numbers.pop() {
        let path = path_of(dir, number);
        if let Some((head, index)) = load(&path, partition).await? {
            found.start_lsn = head.start_lsn;
            found.index = index;
            found.kept.push((number, head.start_lsn));
            break;
        }
        tracing::error!(path = %path.display(), "the checkpoint is damaged, an older is used");
    }
    // An older one beside it stays a fallback; its own start says how far.
    if let Some(number) = numbers.pop()
        && let Some(start) = start_of(&path_of(dir, number)).await
    {
        found.kept.insert(0, (number, start));
    }
    Ok(found)
}

/// The start LSN that an older checkpoint's head states.
async fn start_of(path: &Path) -> Option<u64> {
    let file = File::open(path, OpenOptions::default()).await.ok()?;
    let (read, bytes) = file.read_at(vec![0; FRAME_HEAD + Head::BYTES], 0).await;
    read.ok()?;
    let mut loader = Loader::default();
    loader.take(&bytes).ok()?;
    loader.head.map(|head| head.start_lsn)
}

/// `None` when the file is damaged.
async fn load(path: &Path, partition: u16) -> Result<Option<(Head, Index)>, StoreError> {
    let failed = |error: &std::io::Error| StoreError::internal("cannot read a checkpoint", error);
    let file = File::open(path, OpenOptions::default())
        .await
        .map_err(|e| failed(&e))?;
    let mut loader = Loader::default();
    let mut offset = 0;
    loop {
        let (read, head) = file.read_at(vec![0; FRAME_HEAD], offset).await;
        read.map_err(|e| failed(&e))?;
        let Ok(len) = Loader::payload_len(&head) else {
            return Ok(None);
        };
        let (read, frame) = file.read_at(vec![0; FRAME_HEAD + len], offset).await;
        read.map_err(|e| failed(&e))?;
        offset += frame.len() as u64;
        match loader.take(&frame) {
            Ok(true) => break,
            Ok(false) => engine::yield_if_needed().await,
            Err(malformed) => {
                tracing::error!(path = %path.display(), %malformed, "a checkpoint does not read");
                return Ok(None);
            }
        }
    }
    Ok(loader
        .finish()
        .filter(|(head, _)| head.partition == u32::from(partition)))
}

/// Ends a run, also when its task is dropped.
struct Run<'a>(&'a Inner);

impl Drop for Run<'_> {
    fn drop(&mut self) {
        self.0.checkpoints.running.set(false);
        self.0.checkpoints.ended.notify_all();
    }
}

impl Inner {
    /// Writes a checkpoint, drops the oldest, and releases log segments that nobody needs.
    ///
    /// # Errors
    /// `Full` and others of the file system: the one before stays in force. `Poisoned`.
    pub(in crate::store) async fn checkpoint(self: &Rc<Inner>) -> Result<(), StoreError> {
        if self.checkpoints.running.replace(true) {
            return Err(StoreError::Busy);
        }
        let _run = Run(self);
        self.poison.check()?;
        let bytes = self.checkpoints.log_bytes.replace(0);
        let number = self.checkpoints.next.get();
        self.checkpoints.next.set(number + 1);
        let start_lsn = self.applied.through();
        let mut written = self.write_checkpoint(number, start_lsn).await;
        // A write of a new file that ends early has met the end of the space.
        let full = |e: &std::io::Error| is_full(e) || e.kind() == std::io::ErrorKind::WriteZero;
        if written.as_ref().is_err_and(full) && self.drop_fallback().await? {
            written = self.write_checkpoint(number, start_lsn).await;
        }
        if let Err(error) = written {
            let since = &self.checkpoints.log_bytes;
            since.set(since.get() + bytes);
            if full(&error) {
                return Err(StoreError::Full);
            }
            return Err(StoreError::internal("cannot write a checkpoint", &error));
        }
        self.checkpoints.kept.borrow_mut().push((number, start_lsn));
        self.counters
            .checkpoints
            .set(self.counters.checkpoints.get() + 1);
        self.drop_old_checkpoints().await?;
        self.release_segments().await
    }

    async fn write_checkpoint(&self, number: u64, start_lsn: u64) -> std::io::Result<()> {
        let path = path_of(&self.dir, number);
        let temporary = path.with_extension(&TEMPORARY[1..]);
        let written = self.write_frames(&temporary, start_lsn).await;
        if written.is_err() {
            // What is left of it is removed at the next start, if not now.
            let _ = fs::remove_file(&temporary).await;
            return written;
        }
        fs::rename(&temporary, &path).await?;
        fs::sync_dir(&self.dir).await
    }

    async fn write_frames(&self, path: &Path, start_lsn: u64) -> std::io::Result<()> {
        let options = OpenOptions {
            write: true,
            create: true,
            ..OpenOptions::default()
        };
        let file = File::open(path, options).await?;
        let next_bucket = self.index.borrow().next_bucket().0;
        let head = Head {
            partition: u32::from(self.id.0),
            start_lsn,
            next_bucket,
        };
        let mut offset = 0;
        let mut number = 0;
        let mut items = 0;
        let mut cursor = WalkCursor::default();
        let mut next = Some(frame(FrameKind::Head, number, &head.payload()));
        while let Some(bytes) = next {
            let len = bytes.len() as u64;
            file.write_at(bytes, offset).await.0?;
            offset += len;
            number += 1;
            next = (!matches!(cursor, WalkCursor::End)).then(|| {
                let mut payload = Vec::with_capacity(FRAME_ITEMS * 2);
                items += self
                    .index
                    .borrow()
                    .walk(&mut cursor, FRAME_ITEMS, &mut payload);
                frame(FrameKind::Items, number, &payload)
            });
            engine::yield_now().await;
        }
        file.write_at(frame(FrameKind::End, number, &end_payload(items)), offset)
            .await
            .0?;
        self.checkpoints.file_bytes.set(offset);
        file.datasync().await
    }

    /// On a full disk the older of two makes room for the next: without one, no segment would come
    /// back. Nothing is released until there are two again.
    async fn drop_fallback(&self) -> Result<bool, StoreError> {
        if self.checkpoints.kept.borrow().len() < KEPT {
            return Ok(false);
        }
        let (number, _) = self.checkpoints.kept.borrow_mut().remove(0);
        let removed = fs::remove_file(path_of(&self.dir, number)).await;
        removed.map_err(|e| StoreError::internal("cannot remove an old checkpoint", &e))?;
        Ok(true)
    }

    /// Removes all but the newest ones, damaged ones too.
    async fn drop_old_checkpoints(&self) -> Result<(), StoreError> {
        let kept: Vec<u64> = {
            let mut kept = self.checkpoints.kept.borrow_mut();
            let old = kept.len().saturating_sub(KEPT);
            kept.drain(..old);
            kept.iter().map(|(number, _)| *number).collect()
        };
        let failed =
            |e: &std::io::Error| StoreError::internal("cannot remove an old checkpoint", e);
        for entry in fs::read_dir(&self.dir).await.map_err(|e| failed(&e))? {
            if number_of(&entry.name).is_some_and(|number| !kept.contains(&number)) {
                fs::remove_file(self.dir.join(&entry.name))
                    .await
                    .map_err(|e| failed(&e))?;
            }
        }
        fs::sync_dir(&self.dir).await.map_err(|e| failed(&e))
    }

    /// Releases sealed segments without a live record, a reader, or a checkpoint that starts in or
    /// before them.
    pub(in crate::store) async fn release_segments(&self) -> Result<(), StoreError> {
        let oldest = {
            let kept = self.checkpoints.kept.borrow();
            if kept.len() < KEPT { 0 } else { kept[0].1 }
        };
        let segments = self.log.segments();
        for pair in segments.windows(2) {
            let (segment, last) = (&pair[0], pair[1].first.0.saturating_sub(1));
            let needed = !segment.sealed
                || last > oldest
                || self.index.borrow().live_bytes(segment.number) > 0
                || self.data.space().borrow().is_segment_pinned(segment.number);
            if !needed {
                match self.log.release(segment.number).await {
                    // A checkpoint and the upkeep may both be at it.
                    Ok(()) | Err(LogError::NoSegment { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }
}
