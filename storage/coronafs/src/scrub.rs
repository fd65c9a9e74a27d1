//! Scrubs: all blocks of volumes with checksums, and of their snapshots, are read and compared, each place
//! of the data file once, as slowly as is allowed. What does not match is counted, kept by its volume
//! and offset, and told in the log; nothing is repaired, as nobody knows what should be there.
//!
//! Invariants:
//! - Each step looks maps up anew, by number and cluster, and no map is held between them: whoever
//!   writes, snapshots or removes does not notice.
//! - Nothing is reported that was written over, moved or removed meanwhile: a block of a volume that does
//!   not match is looked at again behind its slot's lock, and those of snapshots are not written.
//! - A pass ends: it does not meet a block again, nor follow what is written behind it.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::{Rc, Weak};
use std::time::Duration;

use engine::{Nanos, SchedGroup};
use futures_channel::oneshot;
use futures_util::future::join;

use crate::data::take_buf;
use crate::error::VolumeError;
use crate::map::{BLOCK, BLOCKS, CLUSTER, Piece, Tree, runs};
use crate::partition::{Inner, Partition};
use crate::sums::sum_of;
use crate::types::{SnapshotId, VolumeId};

/// Damaged blocks that a status names, and those that a scrub of one volume does.
const NAMED_MAX: usize = 16;
const SCRUBBED_NAMED_MAX: usize = 1024;
/// Least time from a pass in the background to the next.
const PAUSE: Duration = Duration::from_mins(1);

/// A block that is not what was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DamagedBlock {
    /// The volume that has it. Others may share it.
    pub volume: VolumeId,
    /// When it was met in a snapshot of the volume, which one.
    pub snapshot: Option<SnapshotId>,
    /// The block's first byte in the volume.
    pub offset: u64,
    /// The checksum of what was written, unless that is lost.
    pub expected: Option<u32>,
    /// That of what is there, unless it cannot be read.
    pub found: Option<u32>,
}

impl DamagedBlock {
    /// What a read of the block answers, when the disk did.
    pub(crate) fn error(&self) -> VolumeError {
        let (volume, offset) = (self.volume, self.offset);
        match (self.expected, self.found) {
            (Some(expected), Some(found)) => VolumeError::Mismatch {
                volume,
                offset,
                expected,
                found,
            },
            _ => VolumeError::NoChecksum { volume, offset },
        }
    }
}

/// What was found since the partition was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScrubStatus {
    /// Passes in the background that have ended.
    pub passes: u64,
    /// Bytes that scrubs have compared.
    pub bytes: u64,
    /// Damaged blocks that scrubs have met, each in each pass.
    pub errors: u64,
    /// Damaged blocks that reads have met, each time.
    pub read_errors: u64,
    /// The last of them, each once, the newest last.
    pub damaged: Vec<DamagedBlock>,
}

/// What a scrub of one volume has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scrubbed {
    /// Bytes that were compared.
    pub bytes: u64,
    /// Damaged blocks.
    pub errors: u64,
    /// The first of them.
    pub damaged: Vec<DamagedBlock>,
}

/// Who has met a damaged block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Read,
    Scrub,
}

/// What was found in a partition.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    passes: Cell<u64>,
    bytes: Cell<u64>,
    errors: Cell<u64>,
    read_errors: Cell<u64>,
    named: RefCell<VecDeque<DamagedBlock>>,
}

impl Findings {
    pub(crate) fn note(&self, by: Found, block: &DamagedBlock) {
        let count = match by {
            Found::Read => &self.read_errors,
            Found::Scrub => &self.errors,
        };
        count.set(count.get() + 1);
        let mut named = self.named.borrow_mut();
        if named.contains(block) {
            return;
        }
        tracing::error!(
            volume = block.volume.0,
            snapshot = block.snapshot.map(|id| id.0),
            offset = block.offset,
            expected = block.expected,
            found = block.found,
            "a block is not what was written"
        );
        if named.len() == NAMED_MAX {
            named.pop_front();
        }
        named.push_back(*block);
    }
}

/// A map that is scrubbed. Numbers of volumes and snapshots are of one kind.
#[derive(Clone, Copy, Debug)]
enum Map {
    Volume(VolumeId),
    Snapshot(SnapshotId, VolumeId),
}

impl Map {
    fn number(self) -> u64 {
        match self {
            Map::Volume(id) => id.0,
            Map::Snapshot(id, _) => id.0,
        }
    }
}

/// A scrub in progress.
struct Pass {
    /// A volume and its snapshots alone.
    only: Option<VolumeId>,
    bytes_per_s: u64,
    /// The next step may begin.
    next_at: Nanos,
    map: Option<Map>,
    next_slot: u64,
    /// The blocks of each cluster of the data file that were looked at.
    seen: Vec<u16>,
    found: Scrubbed,
}

impl Pass {
    fn new(only: Option<VolumeId>, bytes_per_s: u64) -> Pass {
        Pass {
            only,
            bytes_per_s,
            next_at: engine::now(),
            map: None,
            next_slot: 0,
            seen: Vec::new(),
            found: Scrubbed::default(),
        }
    }

    /// Those of the blocks of a piece that were not looked at.
    fn unseen(&self, piece: Piece) -> Piece {
        let seen = self.seen.get(piece.cluster as usize);
        Piece {
            mask: piece.mask & !seen.copied().unwrap_or(0),
            ..piece
        }
    }

    fn see(&mut self, piece: Piece) {
        let at = piece.cluster as usize;
        if at >= self.seen.len() {
            self.seen.resize(at + 1, 0);
        }
        self.seen[at] |= piece.mask;
    }

    async fn pace(&mut self, bytes: u64) {
        if self.bytes_per_s > 0 {
            let took = Duration::from_secs(1).mul_f64(bytes as f64 / self.bytes_per_s as f64);
            self.next_at = self.next_at.max(engine::now()) + took;
            engine::sleep_until(self.next_at).await;
        }
        engine::yield_if_needed().await;
    }
}

impl Partition {
    /// What scrubs and reads have found.
    pub fn scrub_status(&self) -> ScrubStatus {
        let findings = &self.inner.findings;
        ScrubStatus {
            passes: findings.passes.get(),
            bytes: findings.bytes.get(),
            errors: findings.errors.get(),
            read_errors: findings.read_errors.get(),
            damaged: findings.named.borrow().iter().copied().collect(),
        }
    }

    /// Compares all blocks of a volume and its snapshots with their checksums, as many bytes a second as
    /// is said, or as fast as others leave when that is 0. It ends early when nobody waits for it.
    ///
    /// # Errors
    /// `NoSuchVolume`; `Invalid` when the volume has no checksums; `Busy`, `Gone`.
    pub async fn scrub(&self, id: VolumeId, bytes_per_s: u64) -> Result<Scrubbed, VolumeError> {
        if !self.inner.volume(id)?.summed {
            return Err(VolumeError::Invalid {
                what: format!("to scrub volume {:#x}, which has no checksums,", id.0),
                allowed: "only volumes that were made with checksums are",
            });
        }
        let inner = Rc::clone(&self.inner);
        let (answer, answered) = oneshot::channel();
        let body = async move {
            let mut pass = Pass::new(Some(id), bytes_per_s);
            let outcome = loop {
                if answer.is_canceled() || inner.is_closing() {
                    return;
                }
                match inner.scrub_step(&mut pass).await {
                    Ok(Some(bytes)) => pass.pace(bytes).await,
                    Ok(None) => break Ok(pass.found),
                    Err(error) => break Err(error),
                }
            };
            // The caller may have gone.
            let _ = answer.send(outcome);
        };
        let task = engine::try_spawn_own(SchedGroup::MAINTENANCE, body);
        task.map_err(|_| VolumeError::Busy)?.detach();
        answered.await.map_err(|_| VolumeError::Gone)?
    }

    /// Begins to scrub in the background, for as long as the partition is there.
    pub(crate) fn begin_scrubs(&self) {
        if self.inner.config.scrub_bytes_per_s == 0 {
            return;
        }
        let partition = self.inner.id.0;
        let scrubs = scrub_on(Rc::downgrade(&self.inner));
        match engine::try_spawn_own(SchedGroup::MAINTENANCE, scrubs) {
            Ok(task) => task.detach(),
            Err(error) => tracing::warn!(partition, %error, "the partition is not scrubbed"),
        }
    }
}

/// Scrubs until the partition is closed or gone. A pass begins anew at each start.
async fn scrub_on(partition: Weak<Inner>) {
    let Some(rate) = partition
        .upgrade()
        .map(|inner| inner.config.scrub_bytes_per_s)
    else {
        return;
    };
    loop {
        let mut pass = Pass::new(None, rate);
        loop {
            let Some(inner) = partition.upgrade().filter(|inner| !inner.is_closing()) else {
                return;
            };
            let step = inner.scrub_step(&mut pass).await;
            let passes = &inner.findings.passes;
            match &step {
                Ok(Some(_)) => {}
                Ok(None) => passes.set(passes.get() + 1),
                Err(error) => {
                    tracing::warn!(partition = inner.id.0, %error, "a scrub goes on later");
                }
            }
            drop(inner);
            match step {
                Ok(Some(bytes)) => pass.pace(bytes).await,
                Ok(None) => break,
                // The step is done again.
                Err(_) => engine::sleep(PAUSE).await,
            }
        }
        engine::sleep(PAUSE).await;
    }
}

impl Inner {
    /// Looks at the next slot that has data, or goes on to the next map; answers the bytes read, and
    /// `None` behind the last map.
    ///
    /// # Errors
    /// `Busy`: another try does the same.
    async fn scrub_step(self: &Rc<Inner>, pass: &mut Pass) -> Result<Option<u64>, VolumeError> {
        let Some(map) = pass.map else {
            pass.map = self.map_behind(0, pass.only);
            return Ok(pass.map.map(|_| 0));
        };
        let using = self.data.using();
        let slot = self.with_map(map, |tree| {
            let index = tree.next_mapped(pass.next_slot)?;
            Some((index, tree.slot(index)))
        });
        let Some((index, pieces)) = slot.flatten() else {
            using.end();
            pass.map = self.map_behind(map.number(), pass.only);
            pass.next_slot = 0;
            return Ok(pass.map.map(|_| 0));
        };
        let mut bytes = 0;
        let mut outcome = Ok(());
        for piece in pieces.into_iter().filter(|piece| piece.has_data()) {
            let unseen = pass.unseen(piece);
            outcome = self.compare(map, index, unseen, &mut pass.found).await;
            if outcome.is_err() {
                break;
            }
            bytes += u64::from(unseen.mask.count_ones()) * BLOCK;
            pass.see(unseen);
        }
        using.end();
        pass.found.bytes += bytes;
        self.findings.bytes.set(self.findings.bytes.get() + bytes);
        outcome?;
        pass.next_slot = index + 1;
        Ok(Some(bytes))
    }

    /// The map with checksums whose number is the next.
    fn map_behind(&self, number: u64, only: Option<VolumeId>) -> Option<Map> {
        let state = self.state.borrow();
        let wanted = |id: VolumeId| only.is_none_or(|only| only == id);
        let mut volumes = state.volumes.range(VolumeId(number + 1)..);
        let volume = volumes.find(|(id, volume)| volume.summed && wanted(**id));
        let volume = volume.map(|(id, _)| Map::Volume(*id));
        let mut snapshots = state.snapshots.range(SnapshotId(number + 1)..);
        let snapshot = snapshots.find(|(_, found)| found.checksums && wanted(found.volume));
        let snapshot = snapshot.map(|(id, found)| Map::Snapshot(*id, found.volume));
        let both = volume.into_iter().chain(snapshot);
        both.min_by_key(|map| map.number())
    }

    /// `None` when it is gone.
    fn with_map<R>(&self, map: Map, look: impl FnOnce(&Tree) -> R) -> Option<R> {
        let state = self.state.borrow();
        match map {
            Map::Volume(id) => Some(look(&state.volumes.get(&id)?.tree.borrow())),
            Map::Snapshot(id, _) => Some(look(&state.snapshots.get(&id)?.frozen.tree)),
        }
    }

    /// Compares blocks of a slot with their checksums.
    async fn compare(
        &self,
        map: Map,
        index: u64,
        piece: Piece,
        found: &mut Scrubbed,
    ) -> Result<(), VolumeError> {
        for blocks in runs(piece.mask) {
            let place = u64::from(piece.cluster) * CLUSTER + u64::from(blocks.start) * BLOCK;
            let bytes = blocks.len() as u64 * BLOCK;
            let same = {
                let _right = self.data.bouncing(bytes + BLOCK).await?;
                self.matches(place, bytes).await?
            };
            if same {
                continue;
            }
            for block in blocks {
                if let Some(damaged) = self.damaged(map, index, block).await? {
                    self.findings.note(Found::Scrub, &damaged);
                    found.errors += 1;
                    if found.damaged.len() < SCRUBBED_NAMED_MAX {
                        found.damaged.push(damaged);
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether a run of blocks can be read and is what was written, as far as one look tells.
    async fn matches(&self, place: u64, bytes: u64) -> Result<bool, VolumeError> {
        let buf = take_buf(bytes).await?;
        let read = join(self.data.read_buf(buf, place), self.sums.at(place, bytes)).await;
        match read {
            (Ok(buf), Ok(expected)) => {
                let mut blocks = buf.chunks(BLOCK as usize).zip(expected);
                Ok(blocks.all(|(block, expected)| expected == Some(sum_of(block))))
            }
            (Err(VolumeError::Busy), _) | (_, Err(VolumeError::Busy)) => Err(VolumeError::Busy),
            _ => Ok(false),
        }
    }

    /// Looks at a block that does not match again, where nobody writes it: what is wrong with it.
    async fn damaged(
        &self,
        map: Map,
        index: u64,
        block: u32,
    ) -> Result<Option<DamagedBlock>, VolumeError> {
        // Snapshots are not written.
        let (volume, snapshot) = match map {
            Map::Volume(id) => (self.volume(id).ok(), None),
            Map::Snapshot(id, _) => (None, Some(id)),
        };
        let lock = async {
            match &volume {
                Some(volume) => Some(volume.locks.lock(index).await),
                None => None,
            }
        };
        let _lock = lock.await;
        let pieces = self.with_map(map, |tree| tree.slot(index));
        let pieces = pieces.unwrap_or_default();
        let mut data = pieces.iter().filter(|piece| piece.has_data());
        let piece = data.find(|piece| piece.mask >> block & 1 == 1);
        let Some(piece) = piece else { return Ok(None) };
        let place = u64::from(piece.cluster) * CLUSTER + u64::from(block) * BLOCK;
        let _right = self.data.bouncing(2 * BLOCK).await?;
        let buf = take_buf(BLOCK).await?;
        let read = join(self.data.read_buf(buf, place), self.sums.at(place, BLOCK)).await;
        let (found, expected) = match read {
            (Err(VolumeError::Busy), _) | (_, Err(VolumeError::Busy)) => {
                return Err(VolumeError::Busy);
            }
            (found, expected) => (found.ok(), expected.ok()),
        };
        let found = found.map(|buf| sum_of(&buf));
        let expected = expected.and_then(|sums| sums[0]);
        let of = match map {
            Map::Volume(id) | Map::Snapshot(_, id) => id,
        };
        Ok(
            (found.is_none() || found != expected).then(|| DamagedBlock {
                volume: of,
                snapshot,
                offset: index * CLUSTER + u64::from(block) * BLOCK,
                expected,
                found,
            }),
        )
    }
}

const _: () = assert!(BLOCKS == 16, "a mask has a bit for each block");
