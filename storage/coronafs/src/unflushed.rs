//! The changes of maps that are acknowledged and not durable yet, in memory that outlives the process:
//! file `unflushed`, mapped ([`SurvivingMem`]). It costs a change some stores and no call of the kernel.
//! A restart of the process plays it on what the log says; after a restart of the machine, which another
//! boot id tells, it means nothing.
//!
//! | offset | field |
//! | --- | --- |
//! | 0 | u64 magic, stored last: there is a head |
//! | 8 | u32 format 2, u32 partition |
//! | 16 | the machine's boot id |
//! | 32 | u64 bytes of a half |
//! | 40 | u32 CRC32C of bytes 8 to 40, u32 0 |
//! | 48 | u64 which half is the newer one |
//! | 56, 64 | u64 bytes in use of the first half, of the second |
//! | 72 | u64, 1 when what was written may not be there: a flush of `data` has failed |
//! | 80, 88 | u64 lap of the first half, of the second: another number each time that it begins anew |
//! | 96 | u64, not 0 when something acknowledged was lost since the last clean close: which reason |
//! | 104, 112 | u64 the last record of the log beside it, at least and at most |
//! | 120, 128 | u64 the incarnation of that log, at least and at most |
//! | 136 | u64, 1 when the log had no room to say that it is open when this life began |
//! | 4096 | the first half, then the second: entries |
//!
//! An entry: u32 bytes of its body, u32 CRC32C of the half's lap and it, then the body: u64 volume, and a
//! slot as in a map record, and when blocks with checksums were written, those as there; or nothing: what
//! came before of that volume is void. Numbers are little-endian
//! but those of 64 bits in the head, which are stored whole, in the machine's order.
//!
//! Invariants:
//! - An entry counts once `bytes in use` covers it, which is one store behind those of the entry. So a
//!   kill between any two stores leaves whole entries, in order.
//! - A change is entered in the same step in which the map in memory changes, by whoever has its slot's
//!   lock. So a slot's last entry is what memory had, and never older than what the log says of it.
//! - Entries are played beside the log that they were made beside: what it may have reached is stored
//!   before a record is appended, and what it has reached when that is durable. A log that was closed
//!   has all that they say.
//! - A mapping that is broken keeps nothing, which ends writing: see [`Unflushed::keep`].
//! - The older half is void when everything that was dirty when it became the older one is durable.
//! - Whoever changes slots has room for the entries before it takes a lock or a turn ([`Room`]).

mod head;
mod room;
#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::rc::Rc;

use engine::SurvivingMem;
use engine::fs::{File, OpenOptions};
use engine::sync::{Notify, Semaphore};
use segment_log::bytes::{Decode, Reader, Writer};
use segment_log::durable::Poison;
use segment_log::{Log, Lsn, Recovered};

use crate::error::VolumeError;
use crate::map::{BLOCKS, Piece};
use crate::record::{put_slot, take_pieces};
use crate::sums::BlockSums;
use crate::types::VolumeId;
use head::{
    Beside, DOUBT, Halves, Head, LAPS, LIVES, LOST, NEWER, RECORDS, UNMARKED, USED, Unusable,
};

pub(crate) use head::OTHER_VOLUMES;

const HEAD_BYTES: u64 = 4096;
/// Bytes before an entry's body.
const ENTRY_HEAD: usize = 8;
/// The longest entry: a slot of a piece, and a checksum, for each block.
const ENTRY_BYTES_MAX: u64 = (ENTRY_HEAD + 8 + 8 + 1 + BLOCKS as usize * (6 + 4) + 2) as u64;
/// Entries that one [`Room`] may have.
pub(crate) const ENTRIES_MAX: usize = 160;
/// Least bytes of a half: some rooms.
const HALF_BYTES_MIN: u64 = 64 << 10;
/// Those that may wait for the older half to become void.
const WAITERS_MAX: usize = 65_536;

const _: () = assert!(ENTRIES_MAX as u64 * ENTRY_BYTES_MAX * 2 <= HALF_BYTES_MIN);

/// What the slots were at last, of the volumes that have some.
pub(crate) type LastSlots = BTreeMap<(VolumeId, u64), LastSlot>;

/// What a slot was at last, and the checksums of what was written to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LastSlot {
    pub(crate) pieces: Vec<Piece>,
    pub(crate) sums: BlockSums,
}

/// What a start found in the file.
#[derive(Debug)]
pub(crate) enum Found {
    /// What a life of this boot has left.
    Slots(LastSlots),
    /// Why there is nothing to rely on.
    Nothing(&'static str),
}

/// The open file.
pub(crate) struct Unflushed {
    mem: SurvivingMem,
    poison: Rc<Poison>,
    half_bytes: u64,
    newer: Cell<usize>,
    used: [Cell<u64>; 2],
    laps: [Cell<u64>; 2],
    /// The most that the log may have reached before this life opened it: its incarnation.
    lives_max: u64,
    /// The last number that a record may have been given.
    records_max: Cell<u64>,
    /// Bytes of rooms that are not used.
    promised: Cell<u64>,
    /// A room was given back, or the older half is void.
    pub(crate) released: Notify,
    /// One at a time makes the older half void.
    pub(crate) voiding: Semaphore,
    entry: RefCell<Writer>,
}

/// Space for entries, until it is dropped.
pub(crate) struct Room<'a> {
    unflushed: &'a Unflushed,
    left: Cell<u64>,
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        let promised = &self.unflushed.promised;
        promised.set(promised.get() - self.left.get());
        self.unflushed.released.notify_all();
    }
}

impl Room<'_> {
    /// Enters what a slot is from now on, and the checksums of blocks that were written.
    ///
    /// # Panics
    /// When the room is used up.
    pub(crate) fn put(&self, volume: VolumeId, index: u64, pieces: &[Piece], sums: &BlockSums) {
        self.enter(volume, |body| {
            put_slot(body, index, pieces);
            if sums.known() != 0 {
                sums.put(body);
            }
        });
    }

    /// Voids what was entered of a volume: all of it is durable.
    ///
    /// # Panics
    /// As [`Room::put`].
    pub(crate) fn void(&self, volume: VolumeId) {
        self.enter(volume, |_| {});
    }

    fn enter(&self, volume: VolumeId, fill: impl FnOnce(&mut Writer)) {
        let mut entry = self.unflushed.entry.borrow_mut();
        entry.bytes.clear();
        entry.u64(self.unflushed.laps[self.unflushed.newer.get()].get());
        entry.u64(volume.0);
        fill(&mut entry);
        let len = (entry.bytes.len() - ENTRY_HEAD) as u32;
        let crc = crc_fast::crc32_iscsi(&entry.bytes);
        entry.bytes[..4].copy_from_slice(&len.to_le_bytes());
        entry.bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        let bytes = entry.bytes.len() as u64;
        assert!(bytes <= self.left.get(), "a change has room for its entry");
        self.left.set(self.left.get() - bytes);
        let promised = &self.unflushed.promised;
        promised.set(promised.get() - bytes);
        self.unflushed.append(&entry.bytes);
    }
}

impl Unflushed {
    /// Opens or makes the file, whose name is durable after a `sync_dir` of the caller's, and reads what
    /// a life before has left. What is entered from now on follows that. The log is opened after it:
    /// that it may be in its next life is stored first.
    ///
    /// # Errors
    /// `Full`, `Busy`, `Internal`.
    pub(crate) async fn open(
        dir: &Path,
        partition: u16,
        bytes: u64,
        poison: Rc<Poison>,
    ) -> Result<(Unflushed, Found), VolumeError> {
        let failed = |e: &io::Error| VolumeError::internal("cannot map the unflushed changes", e);
        let boot = engine::fs::boot_id().await.map_err(|e| failed(&e))?;
        let options = OpenOptions {
            write: true,
            create: true,
            ..OpenOptions::default()
        };
        let file = File::open(dir.join("unflushed"), options).await;
        let file = file.map_err(|e| failed(&e))?;
        let half_bytes = (bytes / 2).max(HALF_BYTES_MIN).next_multiple_of(4096);
        let wanted = HEAD_BYTES + 2 * half_bytes;
        // What a life with another size has left is read as it is.
        let len = wanted.max(file.opened_len());
        let mem = file.map_surviving(len as usize).await;
        let mem = mem.map_err(|e| failed(&e))?;
        let head = Head {
            partition,
            boot,
            half_bytes,
        };
        Unflushed::over(mem, &head, poison).map_err(|e| failed(&e))
    }

    fn over(mem: SurvivingMem, head: &Head, poison: Rc<Poison>) -> io::Result<(Unflushed, Found)> {
        let read = match Halves::read(&mem, head)? {
            Ok(halves) => match halves.last_slots(&mem)? {
                Ok(slots) => Ok((halves, slots)),
                Err(_) => Err(Unusable::Lost(head::DAMAGED)),
            },
            Err(unusable) => Err(unusable),
        };
        let (halves, found) = match read {
            Ok((halves, slots)) => (halves, Found::Slots(slots)),
            Err(Unusable::Lost(why)) => (Halves::replace(&mem, head, why)?, Found::Nothing(why)),
            Err(Unusable::Foreign(why)) => (Halves::make(&mem, head)?, Found::Nothing(why)),
        };
        let lives_max = mem.load(LIVES.most)?;
        mem.store(LIVES.most, lives_max.saturating_add(1))?;
        let unflushed = Unflushed {
            mem,
            poison,
            half_bytes: halves.half_bytes,
            newer: Cell::new(halves.newer),
            used: halves.used.map(Cell::new),
            laps: halves.laps.map(Cell::new),
            lives_max,
            records_max: Cell::new(0),
            promised: Cell::new(0),
            released: Notify::default(),
            voiding: Semaphore::new(1, WAITERS_MAX),
            entry: RefCell::default(),
        };
        Ok((unflushed, found))
    }

    /// Space for as many entries. `None` while neither half has it: see [`Unflushed::is_older_void`].
    ///
    /// # Panics
    /// When it is asked for more than [`ENTRIES_MAX`].
    pub(crate) fn try_room(&self, entries: usize) -> Option<Room<'_>> {
        assert!(entries <= ENTRIES_MAX, "rooms are bounded");
        let bytes = entries as u64 * ENTRY_BYTES_MAX;
        let wanted = self.promised.get() + bytes;
        if self.used[self.newer.get()].get() + wanted > self.half_bytes {
            if wanted > self.half_bytes || !self.is_older_void() {
                return None;
            }
            // An entry of a room that was given before goes to the newer half too: order is kept.
            self.newer.set(1 - self.newer.get());
            self.keep(self.mem.store(NEWER, self.newer.get() as u64));
        }
        self.promised.set(wanted);
        Some(Room {
            unflushed: self,
            left: Cell::new(bytes),
        })
    }

    /// Whether the older half holds nothing. Else it does when what is dirty now is durable, and
    /// [`Unflushed::void_older`] says so.
    pub(crate) fn is_older_void(&self) -> bool {
        self.used[1 - self.newer.get()].get() == 0
    }

    /// Everything that was dirty when the older half became that is durable.
    pub(crate) fn void_older(&self) {
        self.set_used(1 - self.newer.get(), 0);
        self.released.notify_all();
    }

    /// Everything is durable.
    pub(crate) fn void_all(&self) {
        for half in [1 - self.newer.get(), self.newer.get()] {
            self.set_used(half, 0);
        }
        self.released.notify_all();
    }

    /// What was written may not be there any more, so nothing that is entered may be relied on.
    pub(crate) fn doubt(&self) {
        self.keep(self.mem.store(DOUBT, 1));
    }

    /// Judges what was found by the log that was opened beside it: `true` when nothing of it is needed,
    /// an error when it cannot be relied on.
    ///
    /// # Errors
    /// `Internal` when the memory is not there.
    pub(crate) fn judge(
        &self,
        found: Found,
        log: &Recovered,
    ) -> Result<Result<Option<LastSlots>, &'static str>, VolumeError> {
        let beside = Beside::read(&self.mem, log, self.lives_max);
        let beside = beside.map_err(|e| not_kept(&e))?;
        // A log that nobody could open for want of space is as it was closed, and entries may be
        // ahead of it.
        if log.clean && !beside.unmarked {
            return Ok(Ok(None));
        }
        Ok(match found {
            Found::Slots(_) if !beside.same => Err(head::OTHER_LOG),
            Found::Slots(slots) => Ok(Some(slots)),
            Found::Nothing(why) => Err(why),
        })
    }

    /// Nothing was lost, and everything is durable.
    pub(crate) fn settle(&self) {
        self.void_all();
        self.keep(self.mem.store(LOST, 0));
    }

    /// What was found is not relied on; when it was of this boot, each start says so until a clean close.
    pub(crate) fn lose(&self, why: &'static str) {
        self.keep(head::lose(&self.mem, why));
        self.void_all();
    }

    /// Why something acknowledged is not there, lost now or since the last clean close.
    ///
    /// # Errors
    /// `Internal` when the memory is not there.
    pub(crate) fn lost(&self) -> Result<Option<&'static str>, VolumeError> {
        head::lost(&self.mem).map_err(|e| not_kept(&e))
    }

    /// What is entered from now on belongs to this log. No record was appended to it yet.
    pub(crate) fn bind(&self, log: &Log, found: &Recovered) {
        let (before, marked) = (u64::from(found.incarnation), log.is_marked());
        let least = if marked { before + 1 } else { before };
        self.records_max.set(found.last.0);
        for (at, value) in [
            (UNMARKED, u64::from(!marked)),
            (RECORDS.most, found.last.0),
            (LIVES.most, before + 1),
            (RECORDS.least, found.last.0),
            (LIVES.least, least),
        ] {
            self.keep(self.mem.store(at, value));
        }
    }

    /// A record is about to be appended.
    pub(crate) fn appending(&self) {
        let most = self.records_max.get() + 1;
        self.records_max.set(most);
        self.keep(self.mem.store(RECORDS.most, most));
    }

    /// A record is durable.
    pub(crate) fn appended(&self, record: Lsn) {
        self.keep(self.raise(record));
    }

    fn raise(&self, record: Lsn) -> io::Result<()> {
        if self.mem.load(RECORDS.least)? < record.0 {
            self.mem.store(RECORDS.least, record.0)?;
        }
        if self.mem.load(UNMARKED)? != 0 {
            // Behind the mark of this life.
            self.mem.store(LIVES.least, self.mem.load(LIVES.most)?)?;
            self.mem.store(UNMARKED, 0)?;
        }
        Ok(())
    }

    fn set_used(&self, half: usize, used: u64) {
        self.used[half].set(used);
        self.keep(self.mem.store(USED[half], used));
        if used == 0 {
            let lap = self.laps[half].get().wrapping_add(1);
            self.laps[half].set(lap);
            self.keep(self.mem.store(LAPS[half], lap));
        }
    }

    fn append(&self, entry: &[u8]) {
        let half = self.newer.get();
        let used = self.used[half].get();
        let offset = HEAD_BYTES + half as u64 * self.half_bytes + used;
        match self.mem.copy_in(offset, entry) {
            Ok(()) => self.set_used(half, used + entry.len() as u64),
            failed => self.keep(failed),
        }
    }

    /// What cannot be kept must not be acknowledged: it ends writing.
    fn keep(&self, kept: io::Result<()>) {
        if let Err(error) = kept {
            let cause = format!("the unflushed changes cannot be kept: {error}");
            self.poison.set(&cause);
        }
    }
}

fn not_kept(error: &io::Error) -> VolumeError {
    VolumeError::internal("cannot read the unflushed changes", error)
}

/// Plays entries of a lap in order.
pub(crate) fn play(entries: &[u8], lap: u64, slots: &mut LastSlots) -> Decode<()> {
    let mut from = Reader::new(entries);
    let mut sealed = Vec::new();
    while from.left() > 0 {
        let (len, crc) = (from.u32("entry's length")?, from.u32("entry's checksum")?);
        let damaged = from.bad("entry");
        let body = from.raw(len as usize, "entry")?;
        sealed.clear();
        sealed.extend_from_slice(&lap.to_le_bytes());
        sealed.extend_from_slice(body);
        if crc_fast::crc32_iscsi(&sealed) != crc {
            return Err(damaged);
        }
        let mut body = Reader::new(body);
        let volume = VolumeId(body.u64("volume")?);
        if body.left() == 0 {
            let all = (volume, 0)..=(volume, u64::MAX);
            let _void = slots.extract_if(all, |_, _| true).count();
            continue;
        }
        let index = body.u64("slot")?;
        let slot = slots.entry((volume, index)).or_default();
        slot.pieces = take_pieces(&mut body)?;
        if body.left() > 0 {
            // Those of other blocks stand in entries before, or in the log.
            slot.sums.renew(&BlockSums::take(&mut body)?);
        }
        body.end("entry")?;
    }
    Ok(())
}
