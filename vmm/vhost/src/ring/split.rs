//! The split ring (virtio 1.2, section 2.7).
//!
//! ```text
//! driver's part                    device's part
//!  0         2  flags               0         2  flags
//!  2         2  index               2         2  index
//!  4    2 size  heads               4    8 size  used: head (4), bytes written (4)
//!  end       2  call me past this   end       2  kick me past this
//! ```

use std::rc::Rc;
use std::sync::atomic::{Ordering, fence};

use engine::GuestWindow;
use smallvec::SmallVec;

use super::chain::{Chain, DESCRIPTOR, Descriptor, INDIRECT, NEXT, table};
use super::{Base, Dirty, Fault, Published, RingSpec, Token};
use crate::memory::{Memory, Outside};

const FLAGS: usize = 0;
const INDEX: usize = 2;
const ENTRIES: usize = 4;
const NO_CALL: u16 = 1;
const NO_KICK: u16 = 1;

/// See the module's head.
pub(crate) struct Split {
    memory: Rc<Memory>,
    size: u16,
    descriptors: GuestWindow,
    driver: GuestWindow,
    device: GuestWindow,
    event_idx: bool,
    indirect: bool,
    /// The next head to take.
    next: u16,
    /// The driver's index when it was looked at last: what lies before it can be taken.
    offered: u16,
    /// The next place to give back at.
    used: u16,
    /// What the driver has been shown, and was called for or did not want to be.
    shown: u16,
    /// Whether the driver was asked for kicks; who was here before may have.
    listening: bool,
    log: Option<u64>,
    dirty: SmallVec<[Dirty; 3]>,
}

impl Split {
    /// # Errors
    /// When it is not in the guest's memory.
    pub(super) fn new(spec: RingSpec) -> Result<Split, Outside> {
        let (memory, size) = (spec.memory, usize::from(spec.size));
        let table = memory.user_window(spec.addr.descriptors, size * DESCRIPTOR, 16)?;
        let driver = memory.user_window(spec.addr.driver, ENTRIES + 2 * size + 2, 2)?;
        let device = memory.user_window(spec.addr.device, ENTRIES + 8 * size + 2, 4)?;
        let used = u16::from_le(device.u16(INDEX).load(Ordering::Acquire));
        let next = spec.base as u16;
        Ok(Split {
            size: spec.size,
            descriptors: table,
            driver,
            device,
            event_idx: spec.features.event_idx,
            indirect: spec.features.indirect,
            next,
            offered: next,
            used,
            shown: used,
            listening: true,
            log: spec.addr.log,
            dirty: SmallVec::new(),
            memory,
        })
    }

    /// Whether nothing was ever taken from it or given back: a driver begins with zeros.
    pub(super) fn is_untouched(&self) -> bool {
        let mut entries = (0..usize::from(self.size)).map(|place| ENTRIES + 8 * place);
        self.next == 0 && self.used == 0 && entries.all(|at| self.device.read::<8>(at) == [0; 8])
    }

    /// Whether a request waits.
    #[inline]
    pub(super) fn is_pending(&self) -> Result<bool, Fault> {
        if self.offered != self.next {
            return Ok(true);
        }
        self.look().map(|offered| offered != self.next)
    }

    /// The driver's index.
    #[inline]
    fn look(&self) -> Result<u16, Fault> {
        let offered = u16::from_le(self.driver.u16(INDEX).load(Ordering::Acquire));
        let ahead = offered.wrapping_sub(self.next);
        if ahead > self.size {
            return Err(self.fault(Fault::Ahead {
                ahead,
                size: self.size,
            }));
        }
        Ok(offered)
    }

    #[cold]
    fn fault(&self, fault: Fault) -> Fault {
        if self.is_broken() {
            return Fault::CutShort;
        }
        fault
    }

    /// Walks the next request that the driver offers. Whether there was one.
    #[inline]
    pub(super) fn pop(&mut self, into: &mut Chain) -> Result<bool, Fault> {
        if self.offered == self.next {
            self.offered = self.look()?;
            if self.offered == self.next {
                return Ok(false);
            }
        }
        let following = self.next.wrapping_add(1);
        if self.offered != following {
            let head = usize::from(self.head(following));
            self.descriptors.read_soon(head * DESCRIPTOR);
        }
        self.walk_sound(self.head(self.next), into)?;
        self.next = following;
        Ok(true)
    }

    /// The head that the driver has put at a place of its part.
    #[inline]
    fn head(&self, place: u16) -> u16 {
        let place = usize::from(place % self.size);
        let head = self.driver.u16(ENTRIES + 2 * place);
        u16::from_le(head.load(Ordering::Relaxed))
    }

    /// Walks the chain that begins at `head`.
    pub(crate) fn chain(&self, head: u16) -> Result<Chain, Fault> {
        let mut chain = Chain::default();
        self.walk_sound(head, &mut chain)?;
        Ok(chain)
    }

    fn walk_sound(&self, head: u16, chain: &mut Chain) -> Result<(), Fault> {
        match self.walk(head, chain) {
            Ok(()) if !self.is_broken() => Ok(()),
            Ok(()) => Err(Fault::CutShort),
            Err(fault) => Err(self.fault(fault)),
        }
    }

    fn walk(&self, head: u16, chain: &mut Chain) -> Result<(), Fault> {
        chain.begin(Token {
            id: head,
            places: 1,
            mark: head,
        });
        let (mut index, mut limit) = (head, self.size);
        let mut inner: Option<GuestWindow> = None;
        let mut seen = 0_u16;
        loop {
            if index >= limit {
                return Err(Fault::Index { index, size: limit });
            }
            seen += 1;
            if seen > limit {
                return Err(Fault::Long { limit });
            }
            let from = inner.as_ref().unwrap_or(&self.descriptors);
            let Descriptor {
                addr,
                len,
                flags,
                link,
            } = Descriptor::read(from, index);
            if flags & INDIRECT != 0 {
                if inner.is_some() || !self.indirect {
                    return Err(Fault::Indirect { len, flags });
                }
                let (found, entries) = table(&self.memory, addr, len, flags)?;
                inner = Some(found);
                (index, limit, seen) = (0, entries, 0);
                continue;
            }
            chain.add(&self.memory, addr, len, flags)?;
            if flags & NEXT == 0 {
                return chain.end(&self.memory);
            }
            index = link;
        }
    }

    /// Gives a request back, `written` bytes of it written. The driver sees it after [`Split::publish`].
    #[inline]
    pub(super) fn push(&mut self, head: u16, written: u32) {
        let place = usize::from(self.used % self.size);
        let entry = u64::from(head) | u64::from(written) << 32;
        self.device.write(ENTRIES + 8 * place, entry.to_le_bytes());
        self.used = self.used.wrapping_add(1);
    }

    pub(super) fn is_shown(&self) -> bool {
        self.shown == self.used
    }

    /// Shows the driver what was given back.
    pub(super) fn publish(&mut self) -> Published {
        let (old, new) = (self.shown, self.used);
        if old == new {
            return Published::Nothing;
        }
        self.device.u16(INDEX).store(new.to_le(), Ordering::Release);
        self.note_dirty(old, new);
        self.shown = new;
        // The driver writes when it wants to be called, then looks at the index; this is the mirror.
        fence(Ordering::SeqCst);
        let wanted = if self.event_idx {
            let event = self.driver.u16(ENTRIES + 2 * usize::from(self.size));
            let event = u16::from_le(event.load(Ordering::Relaxed));
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            u16::from_le(self.driver.u16(FLAGS).load(Ordering::Relaxed)) & NO_CALL == 0
        };
        Published::shown(wanted)
    }

    /// Asks the driver for no kicks.
    #[inline]
    pub(super) fn silence(&mut self) {
        if !self.listening {
            return;
        }
        self.listening = false;
        if self.event_idx {
            // A place that was passed already: the next time round it may bring a kick too many.
            self.kick_at(self.next.wrapping_sub(1));
        } else {
            let flags = self.device.u16(FLAGS);
            flags.store(NO_KICK.to_le(), Ordering::Relaxed);
        }
    }

    /// Asks the driver for kicks from now on. What came meanwhile must be looked for after that.
    pub(super) fn listen(&mut self) {
        self.listening = true;
        if self.event_idx {
            self.kick_at(self.next);
        } else {
            self.device.u16(FLAGS).store(0, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
    }

    fn kick_at(&self, index: u16) {
        let event = self.device.u16(ENTRIES + 8 * usize::from(self.size));
        event.store(index.to_le(), Ordering::Relaxed);
    }

    /// The next head to take.
    pub(super) fn base(&self) -> Base {
        Base::from(self.next)
    }

    /// Whether the memory that it lies in was cut short.
    pub(super) fn is_broken(&self) -> bool {
        self.descriptors.is_broken() || self.driver.is_broken() || self.device.is_broken()
    }

    /// The index that the driver is shown.
    pub(crate) fn used(&self) -> u16 {
        self.used
    }

    /// Goes on as if so many requests had been taken that were not given back yet.
    pub(crate) fn resume(&mut self, taken: u16) {
        self.next = self.used.wrapping_add(taken);
        self.offered = self.next;
    }

    fn note_dirty(&mut self, old: u16, new: u16) {
        let Some(log) = self.log else { return };
        self.dirty.clear();
        let mut add = |at: usize, len: usize| {
            let (addr, len) = (log.wrapping_add(at as u64), len as u64);
            self.dirty.push(Dirty { addr, len });
        };
        add(FLAGS, ENTRIES);
        let (first, count) = (
            usize::from(old % self.size),
            usize::from(new.wrapping_sub(old)),
        );
        let size = usize::from(self.size);
        let before_end = count.min(size - first);
        add(ENTRIES + 8 * first, 8 * before_end);
        if count > before_end {
            add(ENTRIES, 8 * (count - before_end).min(size));
        }
    }

    /// The parts of the guest that the last [`Split::publish`] wrote, when they are to be logged.
    pub(super) fn dirty(&self) -> SmallVec<[Dirty; 3]> {
        self.dirty.clone()
    }
}
