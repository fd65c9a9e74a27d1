//! Checkpoint files of a partition: written in the background while the index changes, found and
//! read at the start.
//!
//! What changed since the newest run is written as a run first, unless it is little, then a file that
//! names all runs and holds the rest of the index. It is written under a temporary name, flushed, renamed, and its
//! directory flushed; only then is an older one removed, with the runs that nobody names any more.
//! Two are kept: log segments are released behind the older, so that damage to the newer costs a
//! longer replay and no data.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use engine::fs::{self, File, OpenOptions};
use segment_log::LogError;

use super::{FRAME_HEAD, FrameKind, Head, Loaded, Loader, end_payload, frame};
use crate::store::error::StoreError;
use crate::store::index::{Index, WalkCursor, put_run};
use crate::store::partition::Inner;
use crate::store::run::{Run, RunRef};
use crate::store::runs::Runs;

/// Bytes of items in a frame, about.
const FRAME_ITEMS: usize = 64 << 10;
/// Slots of a memtable that are let go at a time.
const SLOTS_AT_A_TIME: usize = 512;
pub(in crate::store) const KEPT: usize = 2;
const PREFIX: &str = "checkpoint-";
const TEMPORARY: &str = ".tmp";

pub(in crate::store) fn path_of(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{PREFIX}{number:08}"))
}

fn number_of(name: &str) -> Option<u64> {
    name.strip_prefix(PREFIX)?.parse().ok()
}

/// A checkpoint on the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::store) struct Kept {
    pub(in crate::store) number: u64,
    /// Every record up to this one is in it.
    pub(in crate::store) start_lsn: u64,
    /// Numbers of the runs that it names.
    pub(in crate::store) runs: BTreeSet<u64>,
}

impl Kept {
    fn new(number: u64, start_lsn: u64, runs: &[RunRef]) -> Kept {
        Kept {
            number,
            start_lsn,
            runs: runs.iter().map(|run| run.number).collect(),
        }
    }
}

/// What a partition's directory holds.
pub(in crate::store) struct Found {
    /// The newest intact checkpoint's start, index and runs; empty without one.
    pub(in crate::store) start_lsn: u64,
    pub(in crate::store) index: Index,
    pub(in crate::store) runs: Runs,
    /// The intact ones that were looked at, oldest first: at most two.
    pub(in crate::store) kept: Vec<Kept>,
    pub(in crate::store) next: u64,
}

/// The numbers of the checkpoints there are, ascending. Removes what was left half-written.
async fn numbers(dir: &Path) -> Result<Vec<u64>, StoreError> {
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
    Ok(numbers)
}

/// Reads the newest intact checkpoint, and opens the runs that it names.
///
/// # Errors
/// `Corrupt` when checkpoints name runs and none can be used; `Busy`, `Internal`.
pub(in crate::store) async fn find(dir: &Path, partition: u16) -> Result<Found, StoreError> {
    let mut numbers = numbers(dir).await?;
    let next = numbers.last().map_or(1, |last| last + 1);
    let mut damaged = None;
    let mut found = loop {
        let Some(number) = numbers.pop() else {
            if let Some(error) = damaged {
                return Err(error);
            }
            break Found {
                start_lsn: 0,
                index: Index::default(),
                runs: Runs::open(dir, partition, &[]).await?,
                kept: Vec::new(),
                next,
            };
        };
        let path = path_of(dir, number);
        let Some(Loaded { head, index, runs }) = load(&path, partition).await? else {
            tracing::error!(path = %path.display(), "the checkpoint is damaged, an older is used");
            continue;
        };
        match Runs::open(dir, partition, &runs).await {
            Ok(open) => {
                break Found {
                    start_lsn: head.start_lsn,
                    index,
                    runs: open,
                    kept: vec![Kept::new(number, head.start_lsn, &runs)],
                    next,
                };
            }
            Err(error @ StoreError::Corrupt { .. }) => {
                tracing::error!(path = %path.display(), %error, "the checkpoint is not used");
                damaged = Some(error);
            }
            Err(error) => return Err(error),
        }
    };
    // An older one beside it stays a fallback; its own start says how far.
    if let Some(number) = numbers.pop()
        && let Some(older) = load(&path_of(dir, number), partition).await?
    {
        let kept = Kept::new(number, older.head.start_lsn, &older.runs);
        found.kept.insert(0, kept);
    }
    Ok(found)
}

/// `None` when the file is damaged.
async fn load(path: &Path, partition: u16) -> Result<Option<Loaded>, StoreError> {
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
    let loaded = loader.finish();
    Ok(loaded.filter(|loaded| loaded.head.partition == u32::from(partition)))
}

/// Ends a run, also when its task is dropped.
struct Running<'a>(&'a Inner);

impl Drop for Running<'_> {
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
        let _running = Running(self);
        self.poison.check()?;
        let bytes = self.checkpoints.log_bytes.replace(0);
        let mut written = self.write_whole().await;
        if matches!(written, Err(StoreError::Full)) && self.spend_ballast().await? {
            written = self.write_whole().await;
        }
        if matches!(written, Err(StoreError::Full)) && self.drop_fallback().await? {
            written = self.write_whole().await;
        }
        let kept = written.inspect_err(|_| {
            let since = &self.checkpoints.log_bytes;
            since.set(since.get() + bytes);
        })?;
        self.checkpoints.kept.borrow_mut().push(kept);
        self.counters
            .checkpoints
            .set(self.counters.checkpoints.get() + 1);
        self.drop_old_checkpoints().await?;
        self.release_segments().await
    }

    /// Writes what changed as a run, and a checkpoint that names it. When it fails everything is as
    /// before.
    async fn write_whole(&self) -> Result<Kept, StoreError> {
        let number = self.checkpoints.next.get();
        self.checkpoints.next.set(number + 1);
        // What is set aside holds every record up to here, and the next memtable none of them. A
        // memtable that stays may change while it is written, as buckets and uploads may.
        let start_lsn = self.applied.through();
        let little = self.index.borrow().memtable_bytes() < self.config.run_memtable_bytes_min;
        let frozen = if little {
            None
        } else {
            self.index.borrow_mut().freeze()
        };
        let written = async {
            let run = match &frozen {
                Some(frozen) => self.write_run(frozen).await?,
                None => None,
            };
            let kept = self.write_checkpoint(number, start_lsn, run.as_deref());
            Ok((kept.await?, run))
        };
        match written.await {
            Ok((kept, run)) => {
                let bytes = run.as_ref().map_or(0, |run| run.disk_bytes());
                let file_bytes = &self.checkpoints.file_bytes;
                file_bytes.set(file_bytes.get() + bytes);
                self.runs.install(run, &[]);
                self.index.borrow_mut().drop_frozen();
                if let Some(mut written) = frozen.and_then(Rc::into_inner) {
                    while written.drop_some(SLOTS_AT_A_TIME) {
                        engine::yield_now().await;
                    }
                }
                Ok(kept)
            }
            Err(error) => {
                self.index.borrow_mut().thaw();
                Err(error)
            }
        }
    }

    async fn write_checkpoint(
        &self,
        number: u64,
        start_lsn: u64,
        new: Option<&Run>,
    ) -> Result<Kept, StoreError> {
        let mut runs = self.runs.refs();
        runs.extend(new.map(Run::of));
        let path = path_of(&self.dir, number);
        let temporary = path.with_extension(&TEMPORARY[1..]);
        let written = async {
            self.write_frames(&temporary, start_lsn, &runs).await?;
            fs::rename(&temporary, &path).await?;
            fs::sync_dir(&self.dir).await
        };
        if let Err(error) = written.await {
            // What is left of it, or of its run, is removed by the next one or at the next start.
            let _ = fs::remove_file(&temporary).await;
            return Err(StoreError::of_new_file("cannot write a checkpoint", &error));
        }
        Ok(Kept::new(number, start_lsn, &runs))
    }

    async fn write_frames(
        &self,
        path: &Path,
        start_lsn: u64,
        runs: &[RunRef],
    ) -> std::io::Result<()> {
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
                if number == 1 {
                    for run in runs {
                        put_run(&mut payload, *run);
                    }
                    items += runs.len() as u64;
                }
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
        let Kept { number, .. } = self.checkpoints.kept.borrow_mut().remove(0);
        let removed = fs::remove_file(path_of(&self.dir, number)).await;
        removed.map_err(|e| StoreError::internal("cannot remove an old checkpoint", &e))?;
        self.runs.remove_unnamed(&self.named_runs()).await?;
        Ok(true)
    }

    /// Numbers of the runs that kept checkpoints name.
    fn named_runs(&self) -> BTreeSet<u64> {
        let kept = self.checkpoints.kept.borrow();
        kept.iter()
            .flat_map(|kept| kept.runs.iter().copied())
            .collect()
    }

    /// Removes all but the newest ones, damaged ones too, and the runs that nobody names.
    async fn drop_old_checkpoints(&self) -> Result<(), StoreError> {
        let kept: Vec<u64> = {
            let mut kept = self.checkpoints.kept.borrow_mut();
            let old = kept.len().saturating_sub(KEPT);
            kept.drain(..old);
            kept.iter().map(|kept| kept.number).collect()
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
        // First the names that refer to runs, then the runs.
        fs::sync_dir(&self.dir).await.map_err(|e| failed(&e))?;
        self.runs.remove_unnamed(&self.named_runs()).await
    }

    /// Releases sealed segments without a live record, a reader, or a checkpoint that starts in or
    /// before them.
    pub(in crate::store) async fn release_segments(&self) -> Result<(), StoreError> {
        let oldest = {
            let kept = self.checkpoints.kept.borrow();
            if kept.len() < KEPT {
                0
            } else {
                kept[0].start_lsn
            }
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
