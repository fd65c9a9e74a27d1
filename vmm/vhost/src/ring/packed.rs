//! The packed ring (virtio 1.2, section 2.8): one ring of descriptors that both sides write.
//!
//! A descriptor is the driver's when its AVAIL flag is its USED flag's opposite and equals the
//! wrap counter of the side that looks; both flip with each round. Each side has a part of four bytes:
//!
//! ```text
//!  0  2  place (15 bits) and wrap counter (1 bit) of the event
//!  2  2  0 always, 1 never, 2 at the event
//! ```

use std::rc::Rc;
use std::sync::atomic::{Ordering, fence};

use engine::GuestWindow;
use smallvec::SmallVec;

use super::chain::{Chain, DESCRIPTOR, Descriptor, INDIRECT, NEXT, WRITE, table};
use super::{Base, Dirty, Fault, Published, RingSpec, Token};
use crate::memory::{Memory, Outside};

const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;
const FLAGS_AT: usize = 14;
const EVENT: usize = 0;
const EVENT_FLAGS: usize = 2;
const ALWAYS: u16 = 0;
const NEVER: u16 = 1;
const AT_EVENT: u16 = 2;
const WRAP: u16 = 1 << 15;

/// A place in the ring and the round's wrap counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    index: u16,
    wrap: bool,
}

impl Place {
    #[inline]
    fn advance(&mut self, by: u16, size: u16) {
        self.index += by;
        if self.index >= size {
            self.index -= size;
            self.wrap = !self.wrap;
        }
    }

    fn from_bits(bits: u16, size: u16) -> Place {
        Place {
            index: (bits & !WRAP) % size,
            wrap: bits & WRAP != 0,
        }
    }

    fn bits(self) -> u16 {
        self.index | if self.wrap { WRAP } else { 0 }
    }
}

/// See the module's head.
pub(crate) struct Packed {
    memory: Rc<Memory>,
    size: u16,
    ring: GuestWindow,
    driver: GuestWindow,
    device: GuestWindow,
    event_idx: bool,
    indirect: bool,
    next: Place,
    used: Place,
    /// Where the driver was last told to look.
    shown: Place,
    /// Requests given back since then: their places, and the flags of the first, which are written
    /// last and show all of them.
    given: u32,
    first: Option<(u16, u16)>,
    called: bool,
    log: Option<u64>,
}

impl Packed {
    pub(super) fn new(spec: RingSpec) -> Result<Packed, Outside> {
        let (memory, size) = (spec.memory, usize::from(spec.size));
        let ring = memory.user_window(spec.addr.descriptors, size * DESCRIPTOR, 16)?;
        let driver = memory.user_window(spec.addr.driver, 4, 4)?;
        let device = memory.user_window(spec.addr.device, 4, 4)?;
        let used = Place::from_bits((spec.base >> 16) as u16, spec.size);
        Ok(Packed {
            size: spec.size,
            ring,
            driver,
            device,
            event_idx: spec.features.event_idx,
            indirect: spec.features.indirect,
            next: Place::from_bits(spec.base as u16, spec.size),
            used,
            shown: used,
            given: 0,
            first: None,
            called: false,
            log: spec.addr.log,
            memory,
        })
    }

    #[inline]
    pub(super) fn is_pending(&self) -> bool {
        let flags = self.flags(self.next.index).load(Ordering::Acquire);
        let flags = u16::from_le(flags);
        let (avail, used) = (flags & AVAIL != 0, flags & USED != 0);
        avail == self.next.wrap && used != self.next.wrap
    }

    #[inline]
    fn flags(&self, index: u16) -> &std::sync::atomic::AtomicU16 {
        self.ring.u16(usize::from(index) * DESCRIPTOR + FLAGS_AT)
    }

    pub(super) fn pop(&mut self) -> Result<Option<Chain>, Fault> {
        if !self.is_pending() {
            return Ok(None);
        }
        let walked = self.walk();
        if self.is_broken() {
            return Err(Fault::CutShort);
        }
        let chain = walked?;
        self.next.advance(chain.token.places, self.size);
        Ok(Some(chain))
    }

    fn walk(&self) -> Result<Chain, Fault> {
        let mut chain = Chain::new(0);
        let mut at = self.next;
        loop {
            if chain.token.places == self.size {
                return Err(Fault::Long { limit: self.size });
            }
            chain.token.places += 1;
            let Descriptor { addr, len, last } = Descriptor::read(&self.ring, at.index);
            let [id, flags] = last;
            chain.token.id = id;
            if flags & INDIRECT != 0 {
                if !self.indirect || chain.token.places > 1 {
                    return Err(Fault::Indirect { len, flags });
                }
                self.walk_table(&mut chain, addr, len, flags)?;
                return Ok(chain);
            }
            chain.add(&self.memory, addr, len, flags)?;
            if flags & NEXT == 0 {
                return Ok(chain);
            }
            at.advance(1, self.size);
        }
    }

    /// All descriptors of a table are the request, in order.
    fn walk_table(&self, chain: &mut Chain, addr: u64, len: u32, flags: u16) -> Result<(), Fault> {
        let (inner, entries) = table(&self.memory, addr, len, flags & !WRITE)?;
        for index in 0..entries {
            let Descriptor { addr, len, last } = Descriptor::read(&inner, index);
            let [_, flags] = last;
            if flags & INDIRECT != 0 {
                return Err(Fault::Indirect { len, flags });
            }
            chain.add(&self.memory, addr, len, flags)?;
        }
        Ok(())
    }

    pub(super) fn push(&mut self, token: Token, written: u32) {
        let at = usize::from(self.used.index) * DESCRIPTOR;
        let mut flags = if written > 0 { WRITE } else { 0 };
        if self.used.wrap {
            flags |= AVAIL | USED;
        }
        self.ring.write(at + 8, written.to_le_bytes());
        self.ring.write(at + 12, token.id.to_le_bytes());
        if self.first.is_none() {
            self.first = Some((self.used.index, flags));
        } else {
            let place = self.flags(self.used.index);
            place.store(flags.to_le(), Ordering::Release);
        }
        self.used.advance(token.places, self.size);
        self.given = self.given.saturating_add(u32::from(token.places));
    }

    pub(super) fn publish(&mut self) -> Published {
        let Some((index, flags)) = self.first.take() else {
            return Published::Nothing;
        };
        self.flags(index).store(flags.to_le(), Ordering::Release);
        let given = std::mem::take(&mut self.given);
        let old = std::mem::replace(&mut self.shown, self.used);
        fence(Ordering::SeqCst);
        let first = !self.called;
        self.called = true;
        Published::shown(self.wants_call(old, given) || first)
    }

    /// Whether the driver wants to be called for the places from `old` on.
    fn wants_call(&self, old: Place, given: u32) -> bool {
        let flags = u16::from_le(self.driver.u16(EVENT_FLAGS).load(Ordering::Acquire));
        match flags & 3 {
            NEVER => false,
            AT_EVENT if self.event_idx => {
                let event = u16::from_le(self.driver.u16(EVENT).load(Ordering::Relaxed));
                let event = Place::from_bits(event, self.size);
                // How far the event is from `old`, in places.
                let size = i32::from(self.size);
                let round = if event.wrap == old.wrap { 0 } else { size };
                let ahead = i32::from(event.index) + round - i32::from(old.index);
                ahead >= 0 && ahead.unsigned_abs() < given
            }
            _ => true,
        }
    }

    pub(super) fn silence(&mut self) {
        let flags = self.device.u16(EVENT_FLAGS);
        flags.store(NEVER.to_le(), Ordering::Relaxed);
    }

    pub(super) fn listen(&mut self) {
        let mut how = ALWAYS;
        if self.event_idx {
            let event = self.device.u16(EVENT);
            event.store(self.next.bits().to_le(), Ordering::Relaxed);
            how = AT_EVENT;
        }
        let flags = self.device.u16(EVENT_FLAGS);
        flags.store(how.to_le(), Ordering::Release);
        fence(Ordering::SeqCst);
    }

    pub(super) fn base(&self) -> Base {
        Base::from(self.next.bits()) | Base::from(self.used.bits()) << 16
    }

    pub(super) fn is_broken(&self) -> bool {
        self.ring.is_broken() || self.driver.is_broken() || self.device.is_broken()
    }

    /// The whole ring: it is small, and what was written in it is scattered.
    pub(super) fn dirty(&self) -> SmallVec<[Dirty; 3]> {
        let len = u64::from(self.size) * DESCRIPTOR as u64;
        let whole = |addr| Dirty { addr, len };
        self.log.map(whole).into_iter().collect()
    }
}
