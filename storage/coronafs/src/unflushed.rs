//! The changes of maps that are acknowledged and not durable yet, in memory that outlives the process:
//! file `unflushed`, mapped ([`SurvivingMem`]). It costs a change some stores and no call of the kernel.
//! A restart of the process plays it on what the log says; after a restart of the machine, which another
//! boot id tells, it means nothing.
//!
//! | offset | field |
//! | --- | --- |
//! | 0 | u64 magic, stored last: there is a head |
//! | 8 | u32 format 1, u32 partition |
//! | 16 | the machine's boot id |
//! | 32 | u64 bytes of a half |
//! | 40 | u32 CRC32C of bytes 8 to 40, u32 0 |
//! | 48 | u64 which half is the newer one |
//! | 56, 64 | u64 bytes in use of the first half, of the second |
//! | 72 | u64, 1 when what was written may not be there: a flush of `data` has failed |
//! | 4096 | the first half, then the second: entries |
//!
//! An entry: u32 bytes of its body, u32 CRC32C of it, then the body: u64 volume, and a slot as in a map
//! record, or nothing: what came before of that volume is void. Numbers are little-endian but those of 64
//! bits in the head, which are stored whole, in the machine's order.
//!
//! Invariants:
//! - An entry counts once `bytes in use` covers it, which is one store behind those of the entry. So a
//!   kill between any two stores leaves whole entries, in order.
//! - A change is entered in the same step in which the map in memory changes, by whoever has its slot's
//!   lock. So a slot's last entry is what memory had, and never older than what the log says of it.
//! - The older half is void when everything that was dirty when it became the older one is durable.
//! - Whoever changes slots has room for the entries before it takes a lock or a turn ([`Room`]).

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

use crate::error::VolumeError;
use crate::map::{BLOCKS, Piece};
use crate::record::{put_slot, take_pieces};
use crate::types::{MACHINE_RESTARTED, VolumeId};

const MAGIC: u64 = u64::from_le_bytes(*b"UCunfl\r\n");
const FORMAT: u32 = 1;
const HEAD_BYTES: u64 = 4096;
const NEWER: usize = 48;
const USED: [usize; 2] = [56, 64];
const DOUBT: usize = 72;
/// Bytes before an entry's body.
const ENTRY_HEAD: usize = 8;
/// The longest entry: a slot of a piece for each block.
const ENTRY_BYTES_MAX: u64 = (ENTRY_HEAD + 8 + 8 + 1 + BLOCKS as usize * 6) as u64;
/// Entries that one [`Room`] may have.
pub(crate) const ENTRIES_MAX: usize = 256;
/// Least bytes of a half: some rooms.
const HALF_BYTES_MIN: u64 = 64 << 10;
/// Those that may wait for the older half to become void.
const WAITERS_MAX: usize = 65_536;

const _: () = assert!(ENTRIES_MAX as u64 * ENTRY_BYTES_MAX * 2 <= HALF_BYTES_MIN);

/// What the slots were at last, of the volumes that have some.
pub(crate) type LastSlots = BTreeMap<(VolumeId, u64), Vec<Piece>>;

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
    /// Enters what a slot is from now on.
    ///
    /// # Panics
    /// When the room is used up.
    pub(crate) fn put(&self, volume: VolumeId, index: u64, pieces: &[Piece]) {
        self.enter(volume, |body| put_slot(body, index, pieces));
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
        entry.u64(0);
        entry.u64(volume.0);
        fill(&mut entry);
        let body = &entry.bytes[ENTRY_HEAD..];
        let (len, crc) = (body.len() as u32, crc_fast::crc32_iscsi(body));
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
    /// a life before has left. What is entered from now on follows that.
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
        let (halves, found) = match Halves::read(&mem, head)? {
            Ok(halves) => match halves.last_slots(&mem)? {
                Ok(slots) => (halves, Found::Slots(slots)),
                Err(_) => (Halves::make(&mem, head)?, Found::Nothing("it is damaged")),
            },
            Err(why) => (Halves::make(&mem, head)?, Found::Nothing(why)),
        };
        let unflushed = Unflushed {
            mem,
            poison,
            half_bytes: halves.half_bytes,
            newer: Cell::new(halves.newer),
            used: halves.used.map(Cell::new),
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
            self.mem.store(NEWER, self.newer.get() as u64);
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
        self.mem.store(DOUBT, 1);
    }

    fn set_used(&self, half: usize, used: u64) {
        self.used[half].set(used);
        self.mem.store(USED[half], used);
    }

    fn append(&self, entry: &[u8]) {
        let half = self.newer.get();
        let used = self.used[half].get();
        let offset = HEAD_BYTES + half as u64 * self.half_bytes + used;
        match self.mem.copy_in(offset, entry) {
            Ok(()) => self.set_used(half, used + entry.len() as u64),
            Err(error) => {
                let cause = format!("the unflushed changes cannot be kept: {error}");
                self.poison.set(&cause);
            }
        }
    }
}

/// Whose the file is.
struct Head {
    partition: u16,
    boot: [u8; 16],
    half_bytes: u64,
}

impl Head {
    /// Bytes 8 to 48.
    fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.u32(FORMAT);
        out.u32(u32::from(self.partition));
        out.raw(&self.boot);
        out.u64(self.half_bytes);
        out.u32(crc_fast::crc32_iscsi(&out.bytes));
        out.u32(0);
        out.bytes
    }
}

/// The halves as the head has them.
struct Halves {
    half_bytes: u64,
    newer: usize,
    used: [u64; 2],
}

impl Halves {
    /// The halves of a life of the same boot, or why there are none.
    fn read(mem: &SurvivingMem, head: &Head) -> io::Result<Result<Halves, &'static str>> {
        if mem.load(0) != MAGIC {
            return Ok(Err("there are none"));
        }
        let mut bytes = vec![0; 40];
        mem.copy_out(8, &mut bytes)?;
        let half_bytes = u64::from_le_bytes(bytes[24..32].try_into().expect("eight bytes"));
        let ours = Head {
            half_bytes,
            ..*head
        };
        if bytes[8..24] != head.boot {
            return Ok(Err(MACHINE_RESTARTED));
        }
        if bytes != ours.encode() {
            return Ok(Err("they are damaged, or another partition's"));
        }
        if mem.load(DOUBT) != 0 {
            return Ok(Err("a flush had failed"));
        }
        let used = USED.map(|at| mem.load(at));
        let newer = mem.load(NEWER);
        let end = half_bytes
            .checked_mul(2)
            .and_then(|halves| halves.checked_add(HEAD_BYTES));
        let fits = end.is_some_and(|end| end <= mem.len() as u64);
        if !fits || newer > 1 || used.iter().any(|used| *used > half_bytes) {
            return Ok(Err("they are damaged"));
        }
        Ok(Ok(Halves {
            half_bytes,
            newer: newer as usize,
            used,
        }))
    }

    fn make(mem: &SurvivingMem, head: &Head) -> io::Result<Halves> {
        mem.store(0, 0);
        mem.copy_in(8, &head.encode())?;
        for at in [NEWER, USED[0], USED[1], DOUBT] {
            mem.store(at, 0);
        }
        mem.store(0, MAGIC);
        Ok(Halves {
            half_bytes: head.half_bytes,
            newer: 0,
            used: [0; 2],
        })
    }

    fn last_slots(&self, mem: &SurvivingMem) -> io::Result<Decode<LastSlots>> {
        let mut slots = LastSlots::new();
        for half in [1 - self.newer, self.newer] {
            let mut bytes = vec![0; self.used[half] as usize];
            mem.copy_out(HEAD_BYTES + half as u64 * self.half_bytes, &mut bytes)?;
            if let Err(malformed) = play(&bytes, &mut slots) {
                return Ok(Err(malformed));
            }
        }
        Ok(Ok(slots))
    }
}

/// Plays entries in order.
pub(crate) fn play(entries: &[u8], slots: &mut LastSlots) -> Decode<()> {
    let mut from = Reader::new(entries);
    while from.left() > 0 {
        let (len, crc) = (from.u32("entry's length")?, from.u32("entry's checksum")?);
        let damaged = from.bad("entry");
        let body = from.raw(len as usize, "entry")?;
        if crc_fast::crc32_iscsi(body) != crc {
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
        slots.insert((volume, index), take_pieces(&mut body)?);
        body.end("entry")?;
    }
    Ok(())
}
