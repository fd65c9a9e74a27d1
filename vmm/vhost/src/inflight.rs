//! Which requests of a ring are in progress, in memory that the front end keeps while we are dead
//! (vhost-user, "Inflight I/O tracking"): who comes after us does them again, in their order.
//!
//! A region a queue, in the form for its ring ([`split`], [`packed`]), each with room for either, and one of
//! our own behind them ([`Cache`]). Numbers are in the order of this machine. Every region begins so:
//!
//! ```text
//!  0  8  features: 0 split, bit 34 packed
//!  8  2  version (1)
//! 10  2  number of states
//! ```
//!
//! What is read back was in the front end's hands: every index is checked, and a list is followed for
//! no more steps than the ring has places.

mod packed;
mod split;

use std::io;
use std::sync::atomic::Ordering;

use engine::{GuestMem, GuestWindow};

use crate::cache::Cache;
use crate::command::InflightShape;
use crate::ring::{Chain, Fault, Ring};

use packed::PackedMarks;
use split::SplitMarks;

const FEATURES_AT: usize = 0;
const VERSION_AT: usize = 8;
const COUNT_AT: usize = 10;
const VERSION: u16 = 1;

/// Bytes of a last region, which is our own: the driver's choice of cache.
const CHOICE_BYTES: usize = 64;

/// Bytes of all regions.
pub(crate) fn marks_bytes(queues: u16, size: u16) -> u64 {
    u64::from(queues) * region_bytes(size) as u64 + CHOICE_BYTES as u64
}

/// Bytes of one queue's region.
fn region_bytes(size: u16) -> usize {
    let bytes = |head, state| head + state * usize::from(size);
    let split = bytes(split::HEAD, split::STATE);
    let packed = bytes(packed::HEAD, packed::STATE);
    split.max(packed).next_multiple_of(64)
}

/// The driver's choice of cache in the marks.
impl Cache {
    fn place(shape: InflightShape) -> u64 {
        u64::from(shape.queues) * region_bytes(shape.size) as u64
    }

    /// The choice that stands in the marks.
    ///
    /// # Errors
    /// When the memory is too short.
    pub(crate) fn kept(marks: &GuestMem, shape: InflightShape) -> io::Result<Option<Cache>> {
        let mut byte = [0];
        marks.copy_out(Cache::place(shape), &mut byte)?;
        Ok(match byte {
            [1] => Some(Cache::WriteThrough),
            [2] => Some(Cache::WriteBack),
            _ => None,
        })
    }

    /// # Errors
    /// When the memory is too short.
    pub(crate) fn keep(self, marks: &GuestMem, shape: InflightShape) -> io::Result<()> {
        let byte = match self {
            Cache::WriteThrough => 1,
            Cache::WriteBack => 2,
        };
        marks.copy_in(Cache::place(shape), &[byte])
    }
}

/// Of which ring marks are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Marked {
    /// The queue's number.
    pub(crate) queue: u16,
    /// Entries of its ring.
    pub(crate) size: u16,
    pub(crate) packed: bool,
}

/// The marks of one ring.
pub(crate) enum Inflight {
    Split(SplitMarks),
    Packed(PackedMarks),
}

impl Inflight {
    /// The marks of a ring of those that lie in `memory`, with `states` for each.
    ///
    /// # Errors
    /// When the memory is too short, or holds something else.
    pub(crate) fn open(memory: &GuestMem, states: u16, of: Marked) -> io::Result<Inflight> {
        if of.packed {
            let region = opened(memory, states, of, packed::FEATURES)?;
            return Ok(Inflight::Packed(PackedMarks::new(region, of.size)));
        }
        let region = opened(memory, states, of, split::FEATURES)?;
        Ok(Inflight::Split(SplitMarks::new(region, of.size)))
    }

    /// Whether the memory behind was cut short.
    pub(crate) fn is_broken(&self) -> bool {
        self.region().is_broken()
    }

    fn region(&self) -> &GuestWindow {
        match self {
            Inflight::Split(marks) => &marks.region,
            Inflight::Packed(marks) => &marks.region,
        }
    }

    /// Finishes what who died has begun, sets the ring to where that was, and tells the requests to be
    /// done again, in order.
    ///
    /// # Panics
    /// When the ring is of the other form: marks are opened for theirs.
    pub(crate) fn recover(&mut self, ring: &mut Ring) -> Vec<Result<Chain, Fault>> {
        match (self, ring) {
            (Inflight::Split(marks), Ring::Split(ring)) => {
                let heads = marks.recover(ring.used());
                ring.resume(heads.len() as u16);
                heads.into_iter().map(|head| ring.chain(head)).collect()
            }
            (Inflight::Packed(marks), Ring::Packed(ring)) => {
                let found = marks.recover(ring.used(), |place| ring.was_shown(place));
                let Some(used) = found.used else {
                    return Vec::new();
                };
                let places = found.kept.iter().map(|kept| kept.descriptors.len());
                ring.resume(used, places.sum::<usize>() as u16);
                let again = found.kept.into_iter().map(|kept| {
                    let mut chain = ring.chain(&kept.descriptors)?;
                    chain.token.mark = kept.states[0];
                    Ok(chain)
                });
                again.collect()
            }
            _ => panic!("marks of one form on a ring of the other"),
        }
    }

    /// A request begins.
    #[inline]
    pub(crate) fn taken(&mut self, chain: &mut Chain) {
        match self {
            Inflight::Split(marks) => marks.taken(chain.token.mark),
            Inflight::Packed(marks) => chain.token.mark = marks.taken(&chain.descriptors),
        }
    }

    /// A request is being given back.
    #[inline]
    pub(crate) fn giving(&mut self, mark: u16) {
        match self {
            Inflight::Split(marks) => marks.giving(mark),
            Inflight::Packed(marks) => marks.giving(mark),
        }
    }

    /// The driver is about to be shown all that is being given back, up to `used`.
    #[inline]
    pub(crate) fn showing(&mut self, used: u16) {
        if let Inflight::Packed(marks) = self {
            marks.showing(used);
        }
    }

    /// The driver was shown all that was being given back.
    #[inline]
    pub(crate) fn given(&mut self, used: u16) {
        match self {
            Inflight::Split(marks) => marks.given(used),
            Inflight::Packed(marks) => marks.given(used),
        }
    }

    /// The ring has stopped, with nothing in progress.
    pub(crate) fn rest(&mut self) {
        if let Inflight::Packed(marks) = self {
            marks.rest();
        }
    }
}

/// The region of a ring, made new when it is, or was used by a ring of the other form.
fn opened(memory: &GuestMem, states: u16, of: Marked, features: u64) -> io::Result<GuestWindow> {
    let bytes = region_bytes(states);
    let region = memory.window(u64::from(of.queue) * bytes as u64, bytes, 64)?;
    let (version, count) = (region.u16(VERSION_AT), region.u16(COUNT_AT));
    let form = region.u64(FEATURES_AT);
    let found = (
        version.load(Ordering::Acquire),
        form.load(Ordering::Relaxed),
    );
    let other = split::FEATURES ^ packed::FEATURES ^ features;
    if found.0 == 0 || found == (VERSION, other) {
        version.store(0, Ordering::Release);
        (0..bytes / 8).for_each(|word| region.u64(8 * word).store(0, Ordering::Relaxed));
        form.store(features, Ordering::Relaxed);
        count.store(states, Ordering::Relaxed);
        version.store(VERSION, Ordering::Release);
    }
    let form = form.load(Ordering::Relaxed);
    let (version, count) = (
        version.load(Ordering::Acquire),
        count.load(Ordering::Relaxed),
    );
    if (form, version, count) == (features, VERSION, states) && of.size <= states {
        return Ok(region);
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidData,
        format!(
            "marks of version {version} and form {form:#x} for {count} requests; {of:?} needs version {VERSION} and form {features:#x} for {states}"
        ),
    ))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(super) const STATES: u16 = 8;

    pub(super) fn memory() -> GuestMem {
        GuestMem::anonymous(2 * region_bytes(STATES)).expect("memory")
    }

    /// Where the second ring's marks are.
    pub(super) fn base() -> u64 {
        region_bytes(STATES) as u64
    }

    pub(super) fn open(memory: &GuestMem, packed: bool) -> io::Result<Inflight> {
        let of = Marked {
            queue: 1,
            size: STATES,
            packed,
        };
        Inflight::open(memory, STATES, of)
    }

    #[test]
    fn marks_of_something_else_are_refused_and_those_of_the_other_form_made_new() {
        for packed in [false, true] {
            let memory = memory();
            open(&memory, packed).expect("new marks");
            open(&memory, !packed).expect("marks of the other form");
            open(&memory, packed).expect("and back");
            let mut of = Marked {
                queue: 1,
                size: 2 * STATES,
                packed,
            };
            assert!(Inflight::open(&memory, STATES, of).is_err());
            (of.queue, of.size) = (2, STATES);
            assert!(Inflight::open(&memory, STATES, of).is_err());
            memory.copy_in(base() + 10, &[9, 0]).expect("inside");
            assert!(open(&memory, packed).is_err());
            memory.copy_in(base(), &[7; 16]).expect("inside");
            assert!(open(&memory, packed).is_err());
        }
    }
}
