//! The head of the file of unflushed changes: whose it is, which log it lies beside, and what its halves
//! hold. A kill may come between any two stores, and each of them leaves a head that tells no lie.

use std::io;

use engine::SurvivingMem;
use segment_log::Recovered;
use segment_log::bytes::{Decode, Writer};

use super::{HEAD_BYTES, LastSlots, play};
use crate::types::MACHINE_RESTARTED;

const MAGIC: u64 = u64::from_le_bytes(*b"UCunfl\r\n");
const FORMAT: u32 = 2;
pub(super) const NEWER: usize = 48;
pub(super) const USED: [usize; 2] = [56, 64];
pub(super) const DOUBT: usize = 72;
pub(super) const LAPS: [usize; 2] = [80, 88];
pub(super) const LOST: usize = 96;
pub(super) const RECORDS: Bounds = Bounds {
    least: 104,
    most: 112,
};
pub(super) const LIVES: Bounds = Bounds {
    least: 120,
    most: 128,
};
pub(super) const UNMARKED: usize = 136;

pub(super) const FLUSH_FAILED: &str = "a flush had failed";
pub(super) const DAMAGED: &str = "they are damaged";
pub(super) const OF_OTHERS: &str = "they are damaged, or another partition's";
pub(crate) const OTHER_VOLUMES: &str = "they are of other volumes";
pub(super) const OTHER_LOG: &str = "they belong to another log than is there";
/// What a life of the same boot may have lost things by; the word [`LOST`] is the place in it, from 1 on.
const REASONS: [&str; 5] = [FLUSH_FAILED, DAMAGED, OF_OTHERS, OTHER_VOLUMES, OTHER_LOG];

/// Two words: what the log reaches at least, and at most.
#[derive(Clone, Copy)]
pub(super) struct Bounds {
    pub(super) least: usize,
    pub(super) most: usize,
}

impl Bounds {
    fn hold(self, mem: &SurvivingMem, value: u64) -> io::Result<bool> {
        Ok((mem.load(self.least)?..=mem.load(self.most)?).contains(&value))
    }
}

/// Whose the file is.
pub(super) struct Head {
    pub(super) partition: u16,
    pub(super) boot: [u8; 16],
    pub(super) half_bytes: u64,
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

/// What there is when the halves cannot be relied on.
pub(super) enum Unusable {
    /// Nothing of this boot, and why.
    Foreign(&'static str),
    /// Something of this boot is lost, and why.
    Lost(&'static str),
}

/// The halves as the head has them.
pub(super) struct Halves {
    pub(super) half_bytes: u64,
    pub(super) newer: usize,
    pub(super) used: [u64; 2],
    pub(super) laps: [u64; 2],
}

impl Halves {
    /// The halves of a life of the same boot, or why there are none.
    pub(super) fn read(mem: &SurvivingMem, head: &Head) -> io::Result<Result<Halves, Unusable>> {
        if mem.load(0)? != MAGIC {
            return Ok(Err(Unusable::Foreign("there are none")));
        }
        let mut bytes = vec![0; 40];
        mem.copy_out(8, &mut bytes)?;
        let half_bytes = u64::from_le_bytes(bytes[24..32].try_into().expect("eight bytes"));
        let ours = Head {
            half_bytes,
            ..*head
        };
        if bytes[8..24] != head.boot {
            return Ok(Err(Unusable::Foreign(MACHINE_RESTARTED)));
        }
        if bytes != ours.encode() {
            return Ok(Err(Unusable::Lost(OF_OTHERS)));
        }
        if mem.load(DOUBT)? != 0 {
            return Ok(Err(Unusable::Lost(FLUSH_FAILED)));
        }
        let load = |at: [usize; 2]| Ok::<_, io::Error>([mem.load(at[0])?, mem.load(at[1])?]);
        let (newer, used, laps) = (mem.load(NEWER)?, load(USED)?, load(LAPS)?);
        let end = half_bytes
            .checked_mul(2)
            .and_then(|halves| halves.checked_add(HEAD_BYTES));
        let fits = end.is_some_and(|end| end <= mem.len() as u64);
        if !fits || newer > 1 || used.iter().any(|used| *used > half_bytes) {
            return Ok(Err(Unusable::Lost(DAMAGED)));
        }
        Ok(Ok(Halves {
            half_bytes,
            newer: newer as usize,
            used,
            laps,
        }))
    }

    /// A file that holds nothing, in place of one that means nothing.
    pub(super) fn make(mem: &SurvivingMem, head: &Head) -> io::Result<Halves> {
        mem.store(0, 0)?;
        mem.store(LOST, 0)?;
        // Beside any log, until it is known which it is.
        for bounds in [RECORDS, LIVES] {
            mem.store(bounds.least, 0)?;
            mem.store(bounds.most, u64::MAX)?;
        }
        mem.store(UNMARKED, 0)?;
        let halves = Halves::begin(mem, head)?;
        mem.store(0, MAGIC)?;
        Ok(halves)
    }

    /// The same in place of one of this boot, which tells from now on that something was lost.
    pub(super) fn replace(mem: &SurvivingMem, head: &Head, why: &str) -> io::Result<Halves> {
        // First: whatever is read of the rest after a kill, this is not taken back.
        lose(mem, why)?;
        Halves::begin(mem, head)
    }

    fn begin(mem: &SurvivingMem, head: &Head) -> io::Result<Halves> {
        let laps = [engine::random(), engine::random()];
        for at in [USED[0], USED[1], NEWER] {
            mem.store(at, 0)?;
        }
        for (at, lap) in LAPS.into_iter().zip(laps) {
            mem.store(at, lap)?;
        }
        mem.copy_in(8, &head.encode())?;
        mem.store(DOUBT, 0)?;
        Ok(Halves {
            half_bytes: head.half_bytes,
            newer: 0,
            used: [0; 2],
            laps,
        })
    }

    pub(super) fn last_slots(&self, mem: &SurvivingMem) -> io::Result<Decode<LastSlots>> {
        let mut slots = LastSlots::new();
        for half in [1 - self.newer, self.newer] {
            let mut bytes = vec![0; self.used[half] as usize];
            mem.copy_out(HEAD_BYTES + half as u64 * self.half_bytes, &mut bytes)?;
            if let Err(malformed) = play(&bytes, self.laps[half], &mut slots) {
                return Ok(Err(malformed));
            }
        }
        Ok(Ok(slots))
    }
}

/// Says, from now on, that something of this boot was lost. The first reason stays; others are none.
pub(super) fn lose(mem: &SurvivingMem, why: &str) -> io::Result<()> {
    let code = REASONS.iter().position(|reason| *reason == why);
    match code {
        Some(code) if lost(mem)?.is_none() => mem.store(LOST, code as u64 + 1),
        _ => Ok(()),
    }
}

/// What was lost in this boot and not told to all yet.
pub(super) fn lost(mem: &SurvivingMem) -> io::Result<Option<&'static str>> {
    let word = mem.load(LOST)?;
    let reason = |place: u64| REASONS.get(place as usize).copied().unwrap_or(DAMAGED);
    Ok(word.checked_sub(1).map(reason))
}

/// What the head says of the log that is there.
pub(super) struct Beside {
    /// Whether the entries were made beside it.
    pub(super) same: bool,
    /// Whether they were made before the log could say that it is open.
    pub(super) unmarked: bool,
}

impl Beside {
    pub(super) fn read(mem: &SurvivingMem, log: &Recovered, lives_max: u64) -> io::Result<Beside> {
        let life = u64::from(log.incarnation);
        let least = mem.load(LIVES.least)?;
        Ok(Beside {
            same: RECORDS.hold(mem, log.last.0)? && (least..=lives_max).contains(&life),
            unmarked: mem.load(UNMARKED)? != 0 && life == least,
        })
    }
}
