//! The packed ring (virtio 1.2, section 2.8): one ring of descriptors that both sides write.
//!
//! A descriptor is offered when its AVAIL flag is the wrap counter of the round and its USED flag is not;
//! it is given back when both are. The counter of each side flips when that side comes to the ring's
//! start again. Each side has a part of four bytes that says when it wants to be told:
//!
//! ```text
//! descriptor, 16 bytes              a side's part
//!  0  8  address in the guest        0  2  a place (15 bits) and its wrap counter (1 bit)
//!  8  4  length, or bytes written    2  2  0 always, 1 never, 2 at that place
//! 12  2  id of the buffer
//! 14  2  flags
//! ```

use std::rc::Rc;
use std::sync::atomic::{AtomicU16, Ordering, fence};

use engine::GuestWindow;
use smallvec::SmallVec;

use super::chain::{Chain, DESCRIPTOR, Descriptor, INDIRECT, NEXT, WRITE, table};
use super::{Base, Dirty, Fault, Published, RingSpec, Token};
use crate::memory::{Memory, Outside};

const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;
const FLAGS_AT: usize = 14;
const EVENT_AT: usize = 0;
const WHEN_AT: usize = 2;
const SIDE: usize = 4;
const ALWAYS: u16 = 0;
const NEVER: u16 = 1;
const AT_EVENT: u16 = 2;
const WRAP: u16 = 1 << 15;

/// Where a new ring begins, on both sides: at the first place of a round whose counter is 1.
const BEGIN: u16 = WRAP;

/// A place in the ring, and the wrap counter of its round.
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

    /// What a front end says is in the ring, whatever it says.
    fn from_bits(bits: u16, size: u16) -> Place {
        Place {
            index: (bits & !WRAP) % size,
            wrap: bits & WRAP != 0,
        }
    }

    #[inline]
    fn bits(self) -> u16 {
        self.index | if self.wrap { WRAP } else { 0 }
    }

    /// Whether a descriptor here with these flags is offered.
    #[inline]
    fn is_offered(self, flags: u16) -> bool {
        (flags & AVAIL != 0) == self.wrap && (flags & USED != 0) != self.wrap
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
    marked: bool,
    /// The next place to take from.
    next: Place,
    /// The next place to give back at.
    used: Place,
    /// Places from `used` on that are taken.
    taken: u16,
    /// Up to where the driver was shown what was given back.
    shown: Place,
    /// Places that were given back since.
    given: u16,
    /// The first of them with its flags, which are written last and show all of them.
    first: Option<(u16, u16)>,
    /// Whether the driver was told to kick never.
    silent: bool,
    /// The ring and our part of it, in the guest.
    log: Option<[Dirty; 2]>,
}

impl Packed {
    pub(super) fn new(spec: RingSpec) -> Result<Packed, Outside> {
        let (memory, size) = (spec.memory, usize::from(spec.size));
        let ring = memory.user_window(spec.addr.descriptors, size * DESCRIPTOR, 16)?;
        let driver = memory.user_window(spec.addr.driver, SIDE, 4)?;
        let device = memory.user_window(spec.addr.device, SIDE, 4)?;
        let used = Place::from_bits((spec.base >> 16) as u16, spec.size);
        // What a front end says of the log is about a split ring.
        let written = |user, len| {
            let addr = memory.guest_of(user)?;
            let len = len as u64;
            Ok::<Dirty, Outside>(Dirty { addr, len })
        };
        let log = match spec.addr.log {
            Some(_) => Some([
                written(spec.addr.descriptors, size * DESCRIPTOR)?,
                written(spec.addr.device, SIDE)?,
            ]),
            None => None,
        };
        let mut packed = Packed {
            size: spec.size,
            ring,
            driver,
            device,
            event_idx: spec.features.event_idx,
            indirect: spec.features.indirect,
            marked: spec.marked,
            next: Place::from_bits(spec.base as u16, spec.size),
            used,
            taken: 0,
            shown: used,
            given: 0,
            first: None,
            silent: false,
            log,
            memory,
        };
        packed.taken = packed.ahead();
        Ok(packed)
    }

    /// Places from `used` to `next`.
    fn ahead(&self) -> u16 {
        let round = if self.next.wrap == self.used.wrap {
            0
        } else {
            self.size
        };
        // A base that lies counts as one of a ring in which nothing is taken.
        (self.next.index + round).saturating_sub(self.used.index) % (self.size + 1)
    }

    pub(super) fn is_untouched(&self) -> bool {
        let at_begin = self.next.bits() == BEGIN && self.used.bits() == BEGIN;
        let used = |index| u16::from_le(self.flags(index).load(Ordering::Relaxed)) & USED != 0;
        at_begin && !(0..self.size).any(used)
    }

    #[inline]
    pub(super) fn is_pending(&self) -> bool {
        let flags = self.flags(self.next.index).load(Ordering::Acquire);
        self.next.is_offered(u16::from_le(flags))
    }

    #[inline]
    fn flags(&self, index: u16) -> &AtomicU16 {
        self.ring.u16(usize::from(index) * DESCRIPTOR + FLAGS_AT)
    }

    #[inline]
    pub(super) fn pop(&mut self, into: &mut Chain) -> Result<bool, Fault> {
        if !self.is_pending() {
            return Ok(false);
        }
        let mut at = self.next;
        let (ring, size) = (&self.ring, self.size);
        let walked = self.walk(into, || {
            let found = Descriptor::read_packed(ring, at.index);
            at.advance(1, size);
            Some(found)
        });
        self.sound(walked)?;
        let places = into.token.places;
        // What the driver was not shown yet is not its to offer.
        if places > self.size - self.taken - self.given {
            let ahead = self.taken + self.given + places;
            return Err(Fault::Ahead {
                ahead,
                size: self.size,
            });
        }
        self.next.advance(places, self.size);
        self.taken += places;
        Ok(true)
    }

    /// The request whose descriptors were kept elsewhere.
    pub(crate) fn chain(&self, kept: &[Descriptor]) -> Result<Chain, Fault> {
        let mut kept = kept.iter().copied();
        let mut chain = Chain::default();
        let walked = self.walk(&mut chain, || kept.next());
        self.sound(walked)?;
        Ok(chain)
    }

    fn sound(&self, walked: Result<(), Fault>) -> Result<(), Fault> {
        if self.is_broken() {
            return Err(Fault::CutShort);
        }
        walked
    }

    fn walk(
        &self,
        chain: &mut Chain,
        mut next: impl FnMut() -> Option<Descriptor>,
    ) -> Result<(), Fault> {
        let long = Fault::Long { limit: self.size };
        chain.begin(Token::default());
        loop {
            if chain.token.places == self.size {
                return Err(long);
            }
            let found = next().ok_or(long)?;
            chain.token.places += 1;
            chain.token.id = found.link;
            if self.marked {
                chain.descriptors.push(found);
            }
            let Descriptor {
                addr, len, flags, ..
            } = found;
            if flags & INDIRECT != 0 {
                if !self.indirect || chain.token.places > 1 {
                    return Err(Fault::Indirect { len, flags });
                }
                self.walk_table(chain, addr, len, flags)?;
                return chain.end(&self.memory);
            }
            chain.add(&self.memory, addr, len, flags)?;
            if flags & NEXT == 0 {
                return chain.end(&self.memory);
            }
        }
    }

    /// All descriptors of a table are the request, in order.
    fn walk_table(&self, chain: &mut Chain, addr: u64, len: u32, flags: u16) -> Result<(), Fault> {
        let (inner, entries) = table(&self.memory, addr, len, flags)?;
        for index in 0..entries {
            let Descriptor {
                addr, len, flags, ..
            } = Descriptor::read_packed(&inner, index);
            if flags & INDIRECT != 0 {
                return Err(Fault::Indirect { len, flags });
            }
            chain.add(&self.memory, addr, len, flags)?;
        }
        Ok(())
    }

    #[inline]
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
        self.taken -= token.places;
        self.given += token.places;
    }

    pub(super) fn is_shown(&self) -> bool {
        self.first.is_none()
    }

    pub(super) fn publish(&mut self) -> Published {
        let Some((index, flags)) = self.first.take() else {
            return Published::Nothing;
        };
        self.flags(index).store(flags.to_le(), Ordering::Release);
        let given = std::mem::take(&mut self.given);
        let old = std::mem::replace(&mut self.shown, self.used);
        // The driver writes when it wants to be called, then looks at the ring; this is the mirror.
        fence(Ordering::SeqCst);
        Published::shown(self.wants_call(old, given))
    }

    /// Whether the driver wants to be called for the places from `old` on.
    fn wants_call(&self, old: Place, given: u16) -> bool {
        let when = u16::from_le(self.driver.u16(WHEN_AT).load(Ordering::Acquire));
        match when & 3 {
            NEVER => false,
            AT_EVENT if self.event_idx => {
                let event = u16::from_le(self.driver.u16(EVENT_AT).load(Ordering::Relaxed));
                let event = Place::from_bits(event, self.size);
                // How far the event is from `old`, in places.
                let round = if event.wrap == old.wrap { 0 } else { self.size };
                let ahead = (event.index + round).checked_sub(old.index);
                ahead.is_some_and(|ahead| ahead < given)
            }
            _ => true,
        }
    }

    #[inline]
    pub(super) fn silence(&mut self) {
        if !self.silent {
            self.silent = true;
            let when = self.device.u16(WHEN_AT);
            when.store(NEVER.to_le(), Ordering::Relaxed);
        }
    }

    pub(super) fn listen(&mut self) {
        let mut how = ALWAYS;
        if self.event_idx {
            let event = self.device.u16(EVENT_AT);
            event.store(self.next.bits().to_le(), Ordering::Relaxed);
            how = AT_EVENT;
        }
        self.silent = false;
        let when = self.device.u16(WHEN_AT);
        when.store(how.to_le(), Ordering::Release);
        fence(Ordering::SeqCst);
    }

    pub(super) fn base(&self) -> Base {
        Base::from(self.next.bits()) | Base::from(self.used.bits()) << 16
    }

    /// Up to where requests were given back, as a place and its wrap counter.
    pub(crate) fn used(&self) -> u16 {
        self.used.bits()
    }

    /// Whether the driver was shown what was given back at a place.
    pub(crate) fn was_shown(&self, at: u16) -> bool {
        let at = Place::from_bits(at, self.size);
        let flags = u16::from_le(self.flags(at.index).load(Ordering::Acquire));
        !at.is_offered(flags)
    }

    /// Goes on where so much was given back, and so many places behind that were taken.
    pub(crate) fn resume(&mut self, used: u16, taken: u16) {
        self.used = Place::from_bits(used, self.size);
        self.shown = self.used;
        self.taken = taken.min(self.size);
        self.next = self.used;
        self.next.advance(self.taken, self.size);
    }

    pub(super) fn is_broken(&self) -> bool {
        self.ring.is_broken() || self.driver.is_broken() || self.device.is_broken()
    }

    /// All of it: it is small, and what was written in it is scattered.
    pub(super) fn dirty(&self) -> SmallVec<[Dirty; 3]> {
        self.log.iter().flatten().copied().collect()
    }
}
