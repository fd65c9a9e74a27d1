//! The rings between guest and device (virtio 1.2, sections 2.7 and 2.8).
//!
//! The other side is hostile. Whatever it wrote is read once, into a value of our own, and checked
//! before it is used: an index is below the ring's size, a chain is no longer than the ring or its
//! table, a range is in the guest's memory, what may be written follows what may be read. What does
//! not hold is a [`Fault`], and a ring with a fault is not looked at again until it is set up anew.

mod chain;
mod packed;
mod split;

use std::rc::Rc;

use smallvec::SmallVec;

use crate::memory::{Memory, Outside};

#[cfg(fuzzing)]
pub(crate) use chain::CHAIN_BYTES_MAX;
pub(crate) use chain::{Chain, Descriptor, HEAD};
pub(crate) use packed::Packed;
pub(crate) use split::Split;

/// Most entries of a ring.
pub(crate) const SIZE_MAX: u16 = 1024;

/// Why a ring cannot be trusted any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fault {
    #[error("{ahead} requests are said to wait in a ring of {size}")]
    Ahead { ahead: u16, size: u16 },
    #[error("descriptor {index} of {size}")]
    Index { index: u16, size: u16 },
    #[error("a chain of more than {limit} descriptors")]
    Long { limit: u16 },
    #[error("a chain of more than {limit} bytes")]
    Large { limit: u64 },
    #[error("an indirect table of {len} bytes with flags {flags:#x}")]
    Indirect { len: u32, flags: u16 },
    #[error("what is to be read follows what is to be written")]
    Order,
    #[error(transparent)]
    Outside(#[from] Outside),
    #[error("the memory of the ring was cut short")]
    CutShort,
}

/// Where a ring lies in the front end's process; of a packed ring, `driver` and `device` are what each
/// side says of when it is to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RingAddr {
    /// The table of descriptors.
    pub(crate) descriptors: u64,
    /// What the driver offers.
    pub(crate) driver: u64,
    /// What the device has used.
    pub(crate) device: u64,
    /// Where the used ring is in the guest, when writes to it are to be logged.
    pub(crate) log: Option<u64>,
}

/// What the driver has agreed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RingFeatures {
    pub(crate) event_idx: bool,
    pub(crate) indirect: bool,
    pub(crate) packed: bool,
}

/// How far a ring was worked on, as SET_VRING_BASE and GET_VRING_BASE have it. Split: the next head to
/// take. Packed: the next place to take from, and above it the next to give back at, with wrap counters.
pub(crate) type Base = u32;

/// How a ring is made.
#[derive(Clone)]
pub(crate) struct RingSpec {
    pub(crate) memory: Rc<Memory>,
    pub(crate) size: u16,
    pub(crate) addr: RingAddr,
    pub(crate) features: RingFeatures,
    pub(crate) base: Base,
    /// Whether requests in progress are marked.
    pub(crate) marked: bool,
}

/// What identifies a request to its ring and to its marks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Token {
    /// Split: the first descriptor. Packed: the buffer's id.
    pub(crate) id: u16,
    /// Places of a packed ring that it takes.
    pub(crate) places: u16,
    /// Where it is marked.
    pub(crate) mark: u16,
}

/// What publishing did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Published {
    /// There was nothing to show.
    Nothing,
    /// The driver was shown something, and wants no call for it.
    Quietly,
    /// The driver is to be called.
    Call,
}

impl Published {
    fn shown(wants_call: bool) -> Published {
        if wants_call {
            Published::Call
        } else {
            Published::Quietly
        }
    }
}

/// A part of the guest that was written, for the log of a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Dirty {
    pub(crate) addr: u64,
    pub(crate) len: u64,
}

/// Either form of a ring, on the device's side.
pub(crate) enum Ring {
    Split(Split),
    Packed(Packed),
}

macro_rules! either {
    ($ring:expr, $inner:ident => $do:expr) => {
        match $ring {
            Ring::Split($inner) => $do,
            Ring::Packed($inner) => $do,
        }
    };
}

impl Ring {
    /// # Errors
    /// When it is not in the guest's memory.
    pub(crate) fn new(spec: RingSpec) -> Result<Ring, Outside> {
        if spec.features.packed {
            Packed::new(spec).map(Ring::Packed)
        } else {
            Split::new(spec).map(Ring::Split)
        }
    }

    /// Whether nothing was ever taken from it or given back: a driver begins with zeros.
    pub(crate) fn is_untouched(&self) -> bool {
        either!(self, ring => ring.is_untouched())
    }

    /// Whether a request waits.
    #[inline]
    pub(crate) fn is_pending(&self) -> Result<bool, Fault> {
        match self {
            Ring::Split(ring) => ring.is_pending(),
            Ring::Packed(ring) => Ok(ring.is_pending()),
        }
    }

    /// Walks the next request that the driver offers. Whether there was one.
    #[inline]
    pub(crate) fn pop(&mut self, into: &mut Chain) -> Result<bool, Fault> {
        either!(self, ring => ring.pop(into))
    }

    /// Gives a request back, `written` bytes of it written. The driver sees it after [`Ring::publish`].
    #[inline]
    pub(crate) fn push(&mut self, token: Token, written: u32) {
        match self {
            Ring::Split(ring) => ring.push(token.id, written),
            Ring::Packed(ring) => ring.push(token, written),
        }
    }

    /// Whether the driver was shown all that was given back.
    #[inline]
    pub(crate) fn is_shown(&self) -> bool {
        either!(self, ring => ring.is_shown())
    }

    /// Shows the driver what was given back.
    #[inline]
    pub(crate) fn publish(&mut self) -> Published {
        either!(self, ring => ring.publish())
    }

    /// Asks the driver for no kicks.
    #[inline]
    pub(crate) fn silence(&mut self) {
        either!(self, ring => ring.silence());
    }

    /// Asks the driver for kicks from now on. What came meanwhile must be looked for after that.
    #[inline]
    pub(crate) fn listen(&mut self) {
        either!(self, ring => ring.listen());
    }

    /// How far it was worked on.
    pub(crate) fn base(&self) -> Base {
        either!(self, ring => ring.base())
    }

    /// Up to where requests were given back: an index, or a place with its wrap counter.
    #[inline]
    pub(crate) fn used(&self) -> u16 {
        either!(self, ring => ring.used())
    }

    /// Whether the memory that it lies in was cut short.
    pub(crate) fn is_broken(&self) -> bool {
        either!(self, ring => ring.is_broken())
    }

    /// The parts of the guest that the last [`Ring::publish`] wrote, when they are to be logged.
    pub(crate) fn dirty(&self) -> SmallVec<[Dirty; 3]> {
        either!(self, ring => ring.dirty())
    }
}
