//! The rings between guest and device (virtio 1.2, section 2.7). Packed rings are not offered.
//!
//! The other side is hostile. Whatever it wrote is read once, into a value of our own, and checked
//! before it is used: an index is below the ring's size, a chain is no longer than the ring or its
//! table, a range is in the guest's memory, what may be written follows what may be read. What does
//! not hold is a [`Fault`], and a ring with a fault is not looked at again until it is set up anew.

mod chain;
mod split;

use std::rc::Rc;

use crate::memory::{Memory, Outside};

#[cfg(fuzzing)]
pub(crate) use chain::CHAIN_BYTES_MAX;
pub(crate) use chain::Chain;
pub(crate) use split::Ring;

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

/// Where a ring lies in the front end's process.
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
}

/// How a ring is made.
#[derive(Clone)]
pub(crate) struct RingSpec {
    pub(crate) memory: Rc<Memory>,
    pub(crate) size: u16,
    pub(crate) addr: RingAddr,
    pub(crate) features: RingFeatures,
    /// The first head to take.
    pub(crate) base: u16,
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
