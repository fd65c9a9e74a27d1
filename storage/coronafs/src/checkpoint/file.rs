//! Checkpoints on disk: `checkpoint-N`, the newest two. Only the newest is used.
//!
//! A checkpoint is a state at a moment when no change of volumes as such was in progress. The maps in it
//! may be ahead of the log by writes that nobody has flushed; their data is made durable before the
//! checkpoint gets its name, so it maps nothing that is not on disk. What the log says after its start
//! is played on it.

use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use engine::SchedGroup;
use engine::fs::{self, File, OpenOptions};
use engine::sync::Notify;
use segment_log::LogError;
use segment_log::bytes::Writer;
use segment_log::frames::FRAME_HEAD;

use super::{END, FRAMES, HEAD, ITEMS, Image, ImageWriter, Loaded, Loader, head_payload};
use crate::error::VolumeError;
use crate::partition::Inner;
use crate::state::State;

/// Bytes of items in a frame, about.
const FRAME_ITEMS: usize = 64 << 10;
const KEPT: usize = 2;
/// The part of `checkpoint_log_bytes` that is logged between tries.
const RETRY_PART: u64 = 8;
const PREFIX: &str = "checkpoint-";
const TEMPORARY: &str = ".tmp";

/// Checkpoints on disk, and when the next is due.
#[derive(Default)]
pub(crate) struct Checkpoints {
    /// Those kept, oldest first.
    kept: RefCell<Vec<Kept>>,
    /// The number of the next one that is tried.
    pub(crate) next: Cell<u64>,
    running: Cell<bool>,
    end: Notify,
    /// Bytes of records since the newest began.
    pub(crate) log_bytes: Cell<u64>,
    /// How many of them make the next one due, after one that failed.
    retry_bytes: Cell<u64>,
    /// What the newest one of this life wrote.
    file_bytes: Cell<u64>,
    pub(crate) written: Cell<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Kept {
    number: u64,
    /// Every record up to this one is in it.
    start_lsn: u64,
}

/// What a partition's directory holds.
pub(crate) struct Found {
    pub(crate) start_lsn: u64,
    pub(crate) state: State,
    pub(crate) checkpoints: Checkpoints,
}

fn path_of(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{PREFIX}{number:08}"))
}

fn number_of(name: &str) -> Option<u64> {
    name.strip_prefix(PREFIX)?.parse().ok()
}

impl Checkpoints {
    /// Waits until none is being written.
    pub(crate) async fn ended(&self) {
        while self.running.get() {
            self.end.notified().await;
        }
    }
}

/// Reads the newest checkpoint.
///
/// # Errors
/// `Corrupt` when it is damaged, which no crash does: it was durable before it got its name. The one
/// before it is no answer. With the log it makes what is durable of each map, but this one may be ahead
/// of that, and what it gave up was free since.
pub(crate) async fn find(dir: &Path, partition: u16) -> Result<Found, VolumeError> {
    let entries = fs::read_dir(dir).await;
    let entries = entries.map_err(|e| VolumeError::internal("cannot list", &e))?;
    let mut numbers = Vec::new();
    for entry in entries {
        if entry.name.starts_with(PREFIX) && entry.name.ends_with(TEMPORARY) {
            remove(&dir.join(&entry.name)).await?;
        }
        numbers.extend(number_of(&entry.name));
    }
    numbers.sort_unstable();
    let checkpoints = Checkpoints::default();
    checkpoints
        .next
        .set(numbers.last().map_or(1, |last| last + 1));
    let mut found = Found {
        start_lsn: 0,
        state: State::default(),
        checkpoints,
    };
    let Some(number) = numbers.pop() else {
        return Ok(found);
    };
    let newest = load(&path_of(dir, number), partition).await?;
    let mut kept = vec![Kept {
        number,
        start_lsn: newest.start_lsn,
    }];
    // The log reaches back to the one before it.
    if let Some(number) = numbers.pop() {
        match load(&path_of(dir, number), partition).await {
            Ok(Loaded { start_lsn, .. }) => kept.insert(0, Kept { number, start_lsn }),
            Err(error @ VolumeError::Corrupt { .. }) => tracing::warn!(%error, "not the newest"),
            Err(error) => return Err(error),
        }
    }
    found.start_lsn = newest.start_lsn;
    found.state = newest.state;
    found.checkpoints.kept.replace(kept);
    Ok(found)
}

async fn remove(path: &Path) -> Result<(), VolumeError> {
    let removed = fs::remove_file(path).await;
    removed.map_err(|e| VolumeError::internal("cannot remove a checkpoint", &e))
}

/// # Errors
/// `Corrupt` when the file is damaged, or another partition's.
async fn load(path: &Path, partition: u16) -> Result<Loaded, VolumeError> {
    let failed = |error: &std::io::Error| VolumeError::internal("cannot read a checkpoint", error);
    let damaged = |why: &str, offset| VolumeError::Corrupt {
        what: format!("the checkpoint {} is damaged: {why}", path.display()),
        offset,
    };
    let file = File::open(path, OpenOptions::default())
        .await
        .map_err(|e| failed(&e))?;
    let mut loader = Loader::default();
    let mut offset = 0;
    loop {
        let (read, head) = file.read_at(vec![0; FRAME_HEAD], offset).await;
        read.map_err(|e| failed(&e))?;
        let len = FRAMES.payload_len(&head);
        let len = len.map_err(|malformed| damaged(&malformed.to_string(), offset))?;
        let (read, frame) = file.read_at(vec![0; FRAME_HEAD + len], offset).await;
        read.map_err(|e| failed(&e))?;
        let last = loader.take(&frame);
        if last.map_err(|malformed| damaged(&malformed.to_string(), offset))? {
            break;
        }
        offset += frame.len() as u64;
        engine::yield_if_needed().await;
    }
    let loaded = loader.finish();
    loaded
        .filter(|loaded| loaded.partition == u32::from(partition))
        .ok_or_else(|| damaged("it is another partition's", 0))
}

/// Ends a run, also when its task is dropped.
struct Running<'a>(&'a Inner);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.checkpoints.running.set(false);
        self.0.checkpoints.end.notify_all();
    }
}

impl Inner {
    fn checkpoint_is_due(&self) -> bool {
        let checkpoints = &self.checkpoints;
        let due = self
            .config
            .checkpoint_log_bytes
            .max(checkpoints.file_bytes.get())
            .max(checkpoints.retry_bytes.get());
        checkpoints.log_bytes.get() >= due && !checkpoints.running.get() && !self.is_closing()
    }

    pub(crate) fn checkpoint_if_due(self: &Rc<Inner>) {
        if !self.checkpoint_is_due() {
            return;
        }
        let inner = Rc::clone(self);
        let body = async move {
            // Another one may have begun, or failed, since.
            if !inner.checkpoint_is_due() {
                return;
            }
            match inner.checkpoint().await {
                Ok(()) | Err(VolumeError::Busy) => {}
                Err(error) => tracing::warn!(%error, "a checkpoint was not written"),
            }
        };
        if let Ok(task) = engine::try_spawn_own(SchedGroup::BACKGROUND, body) {
            task.detach();
        }
    }

    /// Writes a checkpoint, drops the oldest, and releases log segments that nobody needs.
    ///
    /// # Errors
    /// `Full` and others of the file system: the one before stays in force. `Poisoned`; `Busy` when
    /// one is being written.
    pub(crate) async fn checkpoint(self: &Rc<Inner>) -> Result<(), VolumeError> {
        if self.checkpoints.running.replace(true) {
            return Err(VolumeError::Busy);
        }
        let _running = Running(self);
        self.poison.check()?;
        let bytes = self.checkpoints.log_bytes.replace(0);
        let written = self.write_checkpoint().await;
        let kept = written.inspect_err(|_| {
            let since = &self.checkpoints.log_bytes;
            since.set(since.get() + bytes);
            // Not at every record: each try writes all that there is space for.
            let pause = self.config.checkpoint_log_bytes / RETRY_PART;
            self.checkpoints.retry_bytes.set(since.get() + pause);
        })?;
        self.checkpoints.retry_bytes.set(0);
        self.checkpoints.kept.borrow_mut().push(kept);
        self.checkpoints
            .written
            .set(self.checkpoints.written.get() + 1);
        self.drop_old_checkpoints().await?;
        self.release_segments().await
    }

    async fn write_checkpoint(self: &Rc<Inner>) -> Result<Kept, VolumeError> {
        let number = self.checkpoints.next.get();
        self.checkpoints.next.set(number + 1);
        let (image, start_lsn) = {
            // While we have the turn every record that is durable is shown.
            let _turn = self.quiet().await?;
            for volume in self.state.borrow().volumes.values() {
                volume.keep_places();
            }
            (Image::of(&self.state.borrow()), self.log.last_durable().0)
        };
        let written = self.write_image(number, &image, start_lsn).await;
        for tree in image.into_trees() {
            self.reap(Some(tree));
        }
        written
    }

    async fn write_image(
        &self,
        number: u64,
        image: &Image,
        start_lsn: u64,
    ) -> Result<Kept, VolumeError> {
        self.data.flush().await?;
        self.sums.sync().await?;
        let path = path_of(&self.dir, number);
        let temporary = path.with_extension(&TEMPORARY[1..]);
        let written = async {
            self.write_frames(&temporary, image, start_lsn).await?;
            fs::rename(&temporary, &path).await?;
            fs::sync_dir(&self.dir).await
        };
        if let Err(error) = written.await {
            // What is left of it is removed by the next start.
            let _ = fs::remove_file(&temporary).await;
            return Err(match error.kind() {
                // A write that ends early has met the end of the space.
                std::io::ErrorKind::WriteZero => VolumeError::Full,
                _ => VolumeError::internal("cannot write a checkpoint", &error),
            });
        }
        Ok(Kept { number, start_lsn })
    }

    async fn write_frames(
        &self,
        path: &Path,
        image: &Image,
        start_lsn: u64,
    ) -> std::io::Result<()> {
        let options = OpenOptions {
            write: true,
            create: true,
            ..OpenOptions::default()
        };
        let file = File::open(path, options).await?;
        let mut items = ImageWriter::new(image);
        let head = head_payload(self.id.0, start_lsn, image.newest);
        let mut frame = FRAMES.frame(HEAD, 0, &head);
        let (mut offset, mut number, mut more) = (0, 0, true);
        loop {
            let len = frame.len() as u64;
            file.write_at(frame, offset).await.0?;
            offset += len;
            number += 1;
            if !more {
                break;
            }
            let mut out = Writer::default();
            more = items.write(&mut out, FRAME_ITEMS);
            frame = FRAMES.frame(ITEMS, number, &out.bytes);
            engine::yield_now().await;
        }
        let end = FRAMES.frame(END, number, &items.items.to_le_bytes());
        offset += end.len() as u64;
        file.write_at(end, offset - (FRAME_HEAD + 8) as u64)
            .await
            .0?;
        self.checkpoints.file_bytes.set(offset);
        file.datasync().await
    }

    /// Removes all but the newest ones, damaged ones too.
    async fn drop_old_checkpoints(&self) -> Result<(), VolumeError> {
        let kept: Vec<u64> = {
            let mut kept = self.checkpoints.kept.borrow_mut();
            let old = kept.len().saturating_sub(KEPT);
            kept.drain(..old);
            kept.iter().map(|kept| kept.number).collect()
        };
        let entries = fs::read_dir(&self.dir).await;
        let entries = entries.map_err(|e| VolumeError::internal("cannot list", &e))?;
        for entry in entries {
            if number_of(&entry.name).is_some_and(|number| !kept.contains(&number)) {
                remove(&self.dir.join(&entry.name)).await?;
            }
        }
        let synced = fs::sync_dir(&self.dir).await;
        synced.map_err(|e| VolumeError::internal("cannot sync the directory", &e))
    }

    /// Releases sealed segments that every kept checkpoint starts behind, when there are two.
    async fn release_segments(&self) -> Result<(), VolumeError> {
        let oldest = {
            let kept = self.checkpoints.kept.borrow();
            if kept.len() < KEPT {
                0
            } else {
                kept[0].start_lsn
            }
        };
        for pair in self.log.segments().windows(2) {
            let (segment, last) = (&pair[0], pair[1].first.0.saturating_sub(1));
            if !segment.sealed || last > oldest {
                continue;
            }
            match self.log.release(segment.number).await {
                Ok(()) | Err(LogError::NoSegment { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}
