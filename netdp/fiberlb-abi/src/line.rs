//! The table of IPv4's flows: one cache line a flow, at a place that the program computes by itself.
//!
//! A hash of the kernel's costs a call, a hash of its own and three cache lines. This table is an array, so
//! finding a line is a few instructions without a call, and mostly touches one cache line:
//!
//! - A flow's **home** is the line that its hash names. It lies there, or on another of the eight lines of
//!   the home's **bucket**; then a bit of [`Line::hops`] of the home says so. So the home alone tells that a
//!   flow is not in the table. When the bucket is full, the flow goes to a second bucket, and
//!   [`Line::over`] of the home says so.
//! - The table begins with few lines and doubles when both buckets of a new flow are full, up to what there
//!   is; then the oldest flow of the second goes. Few flows so are on few pages: with flows all over a large
//!   table, most of a packet's time would be the processor's search for the page.
//! - A flow that was put when the table was smaller is found at the home that it had then, as far down as
//!   [`Shape::floor`], and is put anew with a packet of each second. User space raises the floor when it
//!   has seen that no flow is left below.
//! - A line is free when [`FlowKeyV4::ports`] is 0, which no packet's is. Who takes a flow away sets it to 0
//!   and does no more: one atomic step, also from user space. Bits that led there are left, and lead to a
//!   line with another key or none until it is taken again.
//! - Lines are taken by the program alone, under the lock of their bucket; who reads takes no lock. A line
//!   gets its key last, so that no reader finds a half-written flow under it.
//! - The place depends on a number that is drawn when the table is made: nobody can aim at one bucket.

use crate::{Back, Flow, FlowKey, layout};

/// Lines of a bucket.
pub const WAYS: u32 = 8;
/// [`Line::home`] of a flow that is in its second bucket.
pub const NO_HOME: u8 = 255;
/// Locks; a bucket's is the one at its number modulo this.
pub const LOCKS_MAX: u32 = 1024;

const FACTOR: u64 = 0xD6E8_FEB8_6659_FD93;

/// [`FlowKey`] of IPv4, in two words so that it is compared in two steps.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct FlowKeyV4 {
    /// The source address below the destination address, as a packet has them.
    pub addrs: u64,
    /// The source port below the destination port, as a packet has them, below the protocol.
    pub ports: u64,
}
layout!(FlowKeyV4, 16);

impl FlowKeyV4 {
    /// Of a key whose addresses are IPv4's.
    #[inline(always)]
    pub fn of(key: &FlowKey) -> Self {
        let ports = u64::from(key.sport) | (u64::from(key.dport) << 16);
        Self {
            addrs: u64::from(key.src.words[3]) | (u64::from(key.dst.words[3]) << 32),
            ports: ports | (u64::from(key.proto) << 32),
        }
    }

    /// Two hashes: where it may lie.
    ///
    /// What a sender chooses is in the lower halves of the words: how a change there spreads depends on
    /// `seed`.
    #[inline(always)]
    pub fn hashes(&self, seed: u64) -> Hashes {
        let state = (self.addrs ^ seed).wrapping_mul(FACTOR);
        let state = (state ^ (state >> 32) ^ self.ports).wrapping_mul(FACTOR);
        Hashes {
            // The upper bits are the ones that all others went into.
            home: state.swap_bytes() as u32,
            // Few packets ask for it: it is worth another turn, and does not follow from the first.
            second: ((state ^ (state >> 32)).wrapping_mul(FACTOR) >> 32) as u32,
        }
    }
}

/// Where a flow may lie in a table of any size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hashes {
    /// See [`Hashes::home`].
    pub home: u32,
    /// See [`Hashes::second`].
    pub second: u32,
}

impl Hashes {
    /// Its home in a table of `lines` lines, a power of two.
    #[inline(always)]
    pub fn home(self, lines: u32) -> u32 {
        self.home & lines.wrapping_sub(1)
    }

    /// The first line of its second bucket.
    #[inline(always)]
    pub fn second(self, lines: u32) -> u32 {
        self.second & lines.wrapping_sub(1) & !(WAYS - 1)
    }
}

/// The table's shape; one entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Shape {
    /// Drawn with the table and kept as long.
    pub seed: u64,
    /// Lines in use, a power of two.
    pub lines: u32,
    /// The smallest number of lines at which a flow may have been put that still lies there.
    pub floor: u32,
    /// All lines, a power of two.
    pub lines_max: u32,
    /// Changes with what leads to VIPs, so that what the program knows of it is known to be old.
    pub vips: u32,
}
layout!(Shape, 24);

/// One line.
///
/// | bytes | field |
/// | --- | --- |
/// | 0-15 | key: what every look-up compares |
/// | 16-31 | flow: what every packet needs |
/// | 32-55 | what a reply needs |
/// | 56-63 | about the flows whose home this is, whoever lies here |
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Line {
    /// Whose.
    pub key: FlowKeyV4,
    /// What is known of it.
    pub flow: Flow,
    /// Reverse: the way back.
    pub back: Back,
    /// Lines of the bucket that flows whose home is this line may lie on, a bit each.
    pub hops: u8,
    /// Flows whose home is this line may lie in their second bucket.
    pub over: u8,
    /// The home of the flow that lies here, within the bucket; [`NO_HOME`].
    pub home: u8,
    /// Zero.
    pub reserved: [u8; 5],
}
layout!(Line, 64);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Addr;

    fn key(src: u32, sport: u16) -> FlowKeyV4 {
        FlowKeyV4::of(&FlowKey {
            src: Addr::v4(src),
            dst: Addr::v4(0x0102_00c0),
            sport,
            dport: 80,
            proto: 17,
        })
    }

    #[test]
    fn alike_flows_spread_over_buckets_whatever_the_seed() {
        for seed in [0, 1, u64::MAX, 0x0123_4567_89ab_cdef] {
            let mut counts = [[0_u32; 64]; 2];
            for at in 0..64_000_u32 {
                let at = key((at >> 8).to_be(), (at as u16 & 255).to_be()).hashes(seed);
                counts[0][at.home(512) as usize / 8] += 1;
                counts[1][at.second(512) as usize / 8] += 1;
            }
            for counts in counts {
                let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
                assert!(*least > 800 && *most < 1200, "{seed}: {least} to {most}");
            }
        }
    }

    #[test]
    fn few_of_many_alike_flows_find_their_bucket_full() {
        for seed in [0, 1, u64::MAX, 0x0123_4567_89ab_cdef] {
            let mut counts = [0_u8; 4096];
            for port in 0..8192_u16 {
                let at = key(0x0a00_0001_u32.to_be(), port.to_be()).hashes(seed);
                counts[at.home(32_768) as usize / 8] += 1;
            }
            // Of 8,192 at random, 2 would.
            let full = counts.iter().filter(|count| **count > 8).count();
            assert!(full < 10, "{seed}: {full}");
        }
    }

    #[test]
    fn another_seed_breaks_up_what_meets_under_one() {
        let meets = |seed| {
            (0..40_000_u32)
                .map(|at| key(at, at as u16 ^ 7))
                .filter(move |key| key.hashes(seed).home(1 << 16) / 8 == 5)
        };
        let together: u32 = meets(1).count() as u32;
        let still = meets(1).filter(|key| key.hashes(2).home(1 << 16) / 8 == 5);
        assert!(together > 1);
        assert!(still.count() < 2);
    }

    #[test]
    fn a_table_twice_as_large_has_the_home_where_it_was_or_one_size_on() {
        for at in 0..1000 {
            let at = key(at, 1).hashes(9);
            let (small, large) = (at.home(64), at.home(128));
            assert!(large == small || large == small + 64);
            assert!(at.second(64) < 64 && at.second(64).is_multiple_of(WAYS));
        }
    }
}
