//! A connection's memory: units that requests take and give back. It is one mapping, of which the kernel
//! backs what was used; a part of it need not be in one run.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::io;
use std::rc::Rc;

use engine::sync::{Semaphore, SemaphorePermit};
use engine::{GuestIov, GuestList, GuestMem, GuestPart};

/// What is given out.
const UNIT: u32 = 64 << 10;
/// Most bytes that a request works on at once.
pub(crate) const PIECE: u32 = 1 << 20;

pub(crate) struct Memory {
    mem: GuestMem,
    free: RefCell<BTreeSet<u32>>,
    units: Semaphore,
    closed: Cell<bool>,
}

impl Memory {
    /// At least two pieces; `waiting` requests may wait for a part.
    ///
    /// # Errors
    /// When the kernel has none.
    pub(crate) fn new(bytes: u64, waiting: usize) -> io::Result<Rc<Memory>> {
        let units = (bytes.max(2 * u64::from(PIECE)) / u64::from(UNIT)) as u32;
        Ok(Rc::new(Memory {
            mem: GuestMem::anonymous(units as usize * UNIT as usize)?,
            free: RefCell::new((0..units).collect()),
            units: Semaphore::new(u64::from(units), waiting),
            closed: Cell::new(false),
        }))
    }

    /// Gives out nothing any more. A receive that was given up may still write to what it had.
    pub(crate) fn close(&self) {
        self.closed.set(true);
    }

    /// Takes `len` bytes, 1 to [`PIECE`], waiting for them in line.
    ///
    /// # Errors
    /// When too many wait, or nothing is given out any more.
    pub(crate) async fn lease(self: &Rc<Memory>, len: u32) -> io::Result<Lease> {
        assert!((1..=PIECE).contains(&len), "{len} bytes are no piece");
        let count = len.div_ceil(UNIT);
        let permit = self.units.acquire(u64::from(count)).await;
        let permit = permit.map_err(|_| io::Error::from(io::ErrorKind::ResourceBusy))?;
        if self.closed.get() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        let mut units = Vec::with_capacity(count as usize);
        let mut free = self.free.borrow_mut();
        units.extend(std::iter::from_fn(|| free.pop_first()).take(count as usize));
        drop(free);
        assert_eq!(units.len(), count as usize, "permits are units");
        Ok(Lease {
            memory: Rc::clone(self),
            runs: runs(&units, len),
            units,
            _permit: permit,
        })
    }
}

/// The ranges of units in order, up to a length.
fn runs(units: &[u32], len: u32) -> Vec<GuestIov> {
    let mut runs: Vec<GuestIov> = Vec::new();
    let mut left = len;
    for unit in units {
        let offset = u64::from(*unit) * u64::from(UNIT);
        let bytes = left.min(UNIT);
        match runs.last_mut() {
            Some(last) if last.offset + u64::from(last.len) == offset => last.len += bytes,
            _ => runs.push(GuestIov { offset, len: bytes }),
        }
        left -= bytes;
    }
    runs
}

/// A part of the memory; given back when dropped.
pub(crate) struct Lease {
    memory: Rc<Memory>,
    units: Vec<u32>,
    runs: Vec<GuestIov>,
    _permit: SemaphorePermit,
}

impl Lease {
    /// Its first `len` bytes, for a device.
    pub(crate) fn list(&self, len: u32) -> GuestList {
        let mut list = GuestList::new();
        for run in &self.runs {
            let pushed = list.push(&self.memory.mem, *run);
            pushed.expect("runs are inside of the memory, and few");
        }
        list.truncate(u64::from(len));
        list
    }

    /// Its bytes from `at` up to `end`, for a socket.
    pub(crate) fn parts(&self, at: u32, end: u32) -> Vec<GuestPart> {
        let mut parts = Vec::new();
        let mut start = 0;
        for run in &self.runs {
            let (from, to) = (at.max(start), end.min(start + run.len));
            if from < to {
                let range = GuestIov {
                    offset: run.offset + u64::from(from - start),
                    len: to - from,
                };
                let part = self.memory.mem.part(range);
                parts.push(part.expect("runs are inside of the memory"));
            }
            start += run.len;
        }
        parts
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.memory.free.borrow_mut().extend(&self.units);
    }
}

#[cfg(test)]
mod tests {
    use engine::IoBuf;

    use super::*;

    #[test]
    fn a_part_may_lie_in_several_runs() {
        let all = runs(&[1, 2, 5], 3 * UNIT - 100);
        let lens: Vec<_> = all.iter().map(|run| (run.offset, run.len)).collect();
        let unit = u64::from(UNIT);
        assert_eq!(lens, [(unit, 2 * UNIT), (5 * unit, UNIT - 100)]);
    }

    #[test]
    fn what_was_given_back_is_given_out_again() {
        let memory = Memory::new(0, 1).expect("memory");
        let now = |lease| futures_util::FutureExt::now_or_never(lease).expect("at once");
        let first = now(memory.lease(PIECE)).expect("free");
        let second = now(memory.lease(UNIT + 1)).expect("free");
        assert_eq!(second.list(UNIT + 1).len(), u64::from(UNIT) + 1);
        let parts = second.parts(10, UNIT + 1);
        let lens: Vec<_> = parts.iter().map(IoBuf::len).collect();
        assert_eq!(lens, [UNIT as usize - 9]);
        drop(first);
        drop(second);
        assert_eq!(memory.free.borrow().len(), 32);
        let _all =
            [memory.lease(PIECE), memory.lease(PIECE)].map(|lease| now(lease).expect("free"));
        assert!(memory.free.borrow().is_empty());
    }
}
