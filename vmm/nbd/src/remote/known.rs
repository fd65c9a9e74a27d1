//! What is known of an export, and whether one that is found again is the same. No I/O.

use nbd_wire::session::{Shape, Token};
use nbd_wire::{BlockSizes, PAYLOAD_BYTES_MAX, transmission};
use shards::block::Geometry;

/// Smallest block of a device.
const BLOCK_BYTES_MIN: u32 = 512;
/// Largest one that guests take.
const BLOCK_BYTES_MAX: u32 = 64 << 10;

/// What is known of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// See [`Export::verifier`](crate::Export::verifier); a server that is not ours has none.
    pub verifier: Option<Token>,
    /// Its size.
    pub bytes: u64,
    /// What it can do ([`nbd_wire::transmission`]).
    pub flags: u16,
    /// Sizes of requests.
    pub sizes: BlockSizes,
    /// What the device behind is like, if the server says so.
    pub shape: Option<Shape>,
}

impl Known {
    /// Takes what a server says, when it makes sense.
    ///
    /// # Errors
    /// What does not.
    pub(super) fn checked(mut self) -> Result<Known, &'static str> {
        let sizes = &mut self.sizes;
        sizes.maximum = sizes.maximum.min(PAYLOAD_BYTES_MAX);
        let powers = sizes.minimum.is_power_of_two() && sizes.preferred.is_power_of_two();
        let unit = sizes.minimum.max(BLOCK_BYTES_MIN);
        if !powers || unit > BLOCK_BYTES_MAX || sizes.maximum < unit.max(4096) {
            return Err("its sizes of blocks make no sense");
        }
        sizes.maximum -= sizes.maximum % unit;
        if self.flags & transmission::HAS_FLAGS == 0 {
            return Err("it says nothing of the export");
        }
        if self.bytes < u64::from(unit) {
            return Err("the export is empty");
        }
        Ok(self)
    }

    pub(super) fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// What a device over it is like.
    pub(super) fn geometry(&self, read_only: bool) -> Geometry {
        let block_bytes = self.sizes.minimum.max(BLOCK_BYTES_MIN);
        let preferred = self.sizes.preferred.clamp(block_bytes, BLOCK_BYTES_MAX);
        let shape = self.shape.unwrap_or(Shape {
            physical_bytes: preferred,
            optimal_bytes: 0,
            discard_granularity: preferred,
            serial: [0; 20],
        });
        let trims = self.has(transmission::TRIM);
        Geometry {
            bytes: self.bytes - self.bytes % u64::from(block_bytes),
            block_bytes,
            physical_bytes: shape.physical_bytes.max(block_bytes),
            optimal_bytes: shape.optimal_bytes,
            discard_granularity: if trims { shape.discard_granularity } else { 0 },
            read_only: read_only || self.has(transmission::READ_ONLY),
            serial: shape.serial,
        }
    }

    /// Whether what was found behind a new connection is what this is known of, with everything that was
    /// acknowledged.
    ///
    /// # Errors
    /// Why not: nothing may go on then.
    pub(super) fn is_still(&self, found: &Known) -> Result<(), &'static str> {
        match (self.verifier, found.verifier) {
            (Some(known), Some(found)) if known == found => {}
            (Some(_), Some(_)) => {
                return Err(
                    "writes that it had acknowledged may be lost, or it is another export now",
                );
            }
            (Some(_), None) => return Err("it is served by another server now"),
            (None, Some(_)) => return Err("it was served by another server before"),
            (None, None) if self.bytes != found.bytes => {
                return Err("it has another size, and may be another export now");
            }
            (None, None) => {}
        }
        if self.geometry(false).block_bytes != found.geometry(false).block_bytes {
            return Err("it has blocks of another size now");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(verifier: Option<u128>) -> Known {
        Known {
            verifier: verifier.map(Token),
            bytes: 1 << 20,
            flags: transmission::HAS_FLAGS | transmission::TRIM,
            sizes: BlockSizes {
                minimum: 512,
                preferred: 4096,
                maximum: 32 << 20,
            },
            shape: None,
        }
    }

    #[test]
    fn only_the_same_verifier_goes_on() {
        let ours = known(Some(1));
        ours.is_still(&ours).expect("the same");
        let grown = Known {
            bytes: 2 << 20,
            ..ours
        };
        ours.is_still(&grown).expect("a resize is allowed");
        for other in [known(Some(2)), known(None)] {
            ours.is_still(&other).expect_err("another");
            other.is_still(&ours).expect_err("another");
        }
        let stranger = known(None);
        stranger.is_still(&stranger).expect("nothing differs");
        let grown = Known {
            bytes: 2 << 20,
            ..stranger
        };
        stranger.is_still(&grown).expect_err("perhaps another");
        let mut blocks = ours;
        blocks.sizes.minimum = 4096;
        ours.is_still(&blocks).expect_err("blocks of another size");
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let checked = |change: fn(&mut Known)| {
            let mut known = known(None);
            change(&mut known);
            known.checked()
        };
        checked(|_| {}).expect("all is well");
        checked(|known| known.sizes.minimum = 1).expect("blocks of a byte are those of a sector");
        checked(|known| known.sizes.minimum = 0).expect_err("no power of two");
        checked(|known| known.sizes.minimum = 1 << 20).expect_err("too large");
        checked(|known| known.sizes.preferred = 5000).expect_err("no power of two");
        checked(|known| known.sizes.maximum = 100).expect_err("too small");
        checked(|known| known.bytes = 511).expect_err("empty");
        checked(|known| known.flags = 0).expect_err("no flags");
        let odd = checked(|known| known.bytes = 5000).expect("some bytes are left over");
        assert_eq!(odd.geometry(false).bytes, 4608);
        assert_eq!(odd.geometry(false).discard_granularity, 4096);
    }
}
