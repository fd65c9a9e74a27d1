//! The 64 steps of MD5 (RFC 1321, section 3.4), over anything that adds, rotates and mixes like a
//! 32-bit word: one word, or a vector with a word of each lane.
//!
//! Written out flat so that every shift is an immediate. Nothing here knows how many
//! lanes there are or where the message comes from.

use std::ops::{Add, BitAnd, BitOr, BitXor, Not};

/// The state before the first block.
pub(crate) const INITIAL: [u32; 4] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];

/// The table T of the RFC: the integer part of 2^32 × |sin(n)|.
#[rustfmt::skip]
#[allow(clippy::unreadable_literal)]
pub(crate) const SINES: [u32; 64] = [
    0xd76aa478, 0xe8c7b756, 0x242070db, 0xc1bdceee, 0xf57c0faf, 0x4787c62a, 0xa8304613, 0xfd469501,
    0x698098d8, 0x8b44f7af, 0xffff5bb1, 0x895cd7be, 0x6b901122, 0xfd987193, 0xa679438e, 0x49b40821,
    0xf61e2562, 0xc040b340, 0x265e5a51, 0xe9b6c7aa, 0xd62f105d, 0x02441453, 0xd8a1e681, 0xe7d3fbc8,
    0x21e1cde6, 0xc33707d6, 0xf4d50d87, 0x455a14ed, 0xa9e3e905, 0xfcefa3f8, 0x676f02d9, 0x8d2a4c8a,
    0xfffa3942, 0x8771f681, 0x6d9d6122, 0xfde5380c, 0xa4beea44, 0x4bdecfa9, 0xf6bb4b60, 0xbebfbc70,
    0x289b7ec6, 0xeaa127fa, 0xd4ef3085, 0x04881d05, 0xd9d4d039, 0xe6db99e5, 0x1fa27cf8, 0xc4ac5665,
    0xf4292244, 0x432aff97, 0xab9423a7, 0xfc93a039, 0x655b59c3, 0x8f0ccc92, 0xffeff47d, 0x85845dd1,
    0x6fa87e4f, 0xfe2ce6e0, 0xa3014314, 0x4e0811a1, 0xf7537e82, 0xbd3af235, 0x2ad7d2bb, 0xeb86d391,
];

/// What MD5 computes with. Additions wrap.
pub(crate) trait Word:
    Copy + BitAnd<Output = Self> + BitOr<Output = Self> + BitXor<Output = Self> + Not<Output = Self>
{
    fn plus(self, other: Self) -> Self;
    fn plus_constant(self, constant: u32) -> Self;
    fn rotate<const BITS: u32>(self) -> Self;
}

impl Word for u32 {
    #[inline(always)]
    fn plus(self, other: u32) -> u32 {
        self.wrapping_add(other)
    }

    #[inline(always)]
    fn plus_constant(self, constant: u32) -> u32 {
        self.wrapping_add(constant)
    }

    #[inline(always)]
    fn rotate<const BITS: u32>(self) -> u32 {
        self.rotate_left(BITS)
    }
}

macro_rules! vector_word {
    ($($vector:ident),*) => {$(
        impl<S: fearless_simd::Simd> Word for fearless_simd::$vector<S> {
            #[inline(always)]
            fn plus(self, other: Self) -> Self {
                Add::add(self, other)
            }

            #[inline(always)]
            fn plus_constant(self, constant: u32) -> Self {
                Add::add(self, constant)
            }

            #[inline(always)]
            fn rotate<const BITS: u32>(self) -> Self {
                (self << BITS) | (self >> (32 - BITS))
            }
        }
    )*};
}

vector_word!(u32x4, u32x8);

// Each mix of the RFC, added to a sum. `x` is what the step before has just found and the sum is known
// by then, so that what does not need `x` is done first: the chain of steps is what takes the time.

#[inline(always)]
fn f<W: Word>(sum: W, x: W, y: W, z: W) -> W {
    sum.plus(z ^ (x & (y ^ z)))
}

/// The two halves of this mix share no bit, so that each can be added for itself.
#[inline(always)]
fn g<W: Word>(sum: W, x: W, y: W, z: W) -> W {
    sum.plus(y & !z).plus(x & z)
}

#[inline(always)]
fn h<W: Word>(sum: W, x: W, y: W, z: W) -> W {
    sum.plus(x ^ (y ^ z))
}

#[inline(always)]
fn i<W: Word>(sum: W, x: W, y: W, z: W) -> W {
    sum.plus(y ^ (x | !z))
}

/// The sum that a step adds its mix to.
#[inline(always)]
fn sum<W: Word>(a: W, word: W, constant: u32) -> W {
    a.plus(word.plus_constant(constant))
}

/// Four steps of one round: their rotations, their words of the message, their place in the table.
macro_rules! four {
    ($mix:ident, [$a:ident, $b:ident, $c:ident, $d:ident], $block:ident, $sines:ident,
     [$s0:literal, $s1:literal, $s2:literal, $s3:literal],
     [$k0:literal, $k1:literal, $k2:literal, $k3:literal], $at:literal) => {
        $a = $mix(sum($a, $block[$k0], $sines[$at]), $b, $c, $d)
            .rotate::<$s0>()
            .plus($b);
        $d = $mix(sum($d, $block[$k1], $sines[$at + 1]), $a, $b, $c)
            .rotate::<$s1>()
            .plus($a);
        $c = $mix(sum($c, $block[$k2], $sines[$at + 2]), $d, $a, $b)
            .rotate::<$s2>()
            .plus($d);
        $b = $mix(sum($b, $block[$k3], $sines[$at + 3]), $c, $d, $a)
            .rotate::<$s3>()
            .plus($c);
    };
}

/// The state after one more block, given as 16 words.
///
/// `sines` is [`SINES`], behind a reference that the compiler cannot look through: it adds constants
/// that it knows last, which makes the chain of each step longer by one addition.
#[inline(always)]
#[rustfmt::skip]
#[allow(clippy::many_single_char_names)]
pub(crate) fn compress<W: Word>(state: [W; 4], m: &[W; 16], sines: &[u32; 64]) -> [W; 4] {
    let [mut a, mut b, mut c, mut d] = state;
    four!(f, [a, b, c, d], m, sines, [7, 12, 17, 22], [0, 1, 2, 3], 0);
    four!(f, [a, b, c, d], m, sines, [7, 12, 17, 22], [4, 5, 6, 7], 4);
    four!(f, [a, b, c, d], m, sines, [7, 12, 17, 22], [8, 9, 10, 11], 8);
    four!(f, [a, b, c, d], m, sines, [7, 12, 17, 22], [12, 13, 14, 15], 12);
    four!(g, [a, b, c, d], m, sines, [5, 9, 14, 20], [1, 6, 11, 0], 16);
    four!(g, [a, b, c, d], m, sines, [5, 9, 14, 20], [5, 10, 15, 4], 20);
    four!(g, [a, b, c, d], m, sines, [5, 9, 14, 20], [9, 14, 3, 8], 24);
    four!(g, [a, b, c, d], m, sines, [5, 9, 14, 20], [13, 2, 7, 12], 28);
    four!(h, [a, b, c, d], m, sines, [4, 11, 16, 23], [5, 8, 11, 14], 32);
    four!(h, [a, b, c, d], m, sines, [4, 11, 16, 23], [1, 4, 7, 10], 36);
    four!(h, [a, b, c, d], m, sines, [4, 11, 16, 23], [13, 0, 3, 6], 40);
    four!(h, [a, b, c, d], m, sines, [4, 11, 16, 23], [9, 12, 15, 2], 44);
    four!(i, [a, b, c, d], m, sines, [6, 10, 15, 21], [0, 7, 14, 5], 48);
    four!(i, [a, b, c, d], m, sines, [6, 10, 15, 21], [12, 3, 10, 1], 52);
    four!(i, [a, b, c, d], m, sines, [6, 10, 15, 21], [8, 15, 6, 13], 56);
    four!(i, [a, b, c, d], m, sines, [6, 10, 15, 21], [4, 11, 2, 9], 60);
    [state[0].plus(a), state[1].plus(b), state[2].plus(c), state[3].plus(d)]
}
