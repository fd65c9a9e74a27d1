//! Blocks of several streams through one vector, a lane each.
//!
//! Which instructions run is decided once, at [`Lanes::detect`]: AVX-512, AVX2, SSE or NEON, or plain
//! words. All give the same bits. Lanes that have nothing to do repeat another lane's work and
//! their result is dropped.

use std::hint::black_box;

use fearless_simd::{Level, Simd, SimdBase, SimdCombine, SimdFrom, SimdSplit, dispatch, u32x4};

use super::rounds::{SINES, compress};

/// Most streams that are hashed at once.
pub(crate) const LANES_MAX: usize = 8;

/// A block of MD5.
pub(crate) type Block = [u8; 64];
/// The state of one stream between two blocks.
pub(crate) type State = [u32; 4];

/// What this machine hashes with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lanes {
    level: Option<Level>,
}

impl Lanes {
    /// The fastest that the processor has.
    pub(crate) fn detect() -> Lanes {
        Lanes {
            level: Some(Level::new()),
        }
    }

    /// Plain words, one stream after the other.
    #[cfg(test)]
    pub(crate) fn portable() -> Lanes {
        Lanes { level: None }
    }

    /// Advances each state over its blocks; all have equally many.
    pub(crate) fn run(self, states: &mut [State], blocks: &[&[Block]]) {
        assert_eq!(states.len(), blocks.len(), "a state for each stream");
        let count = states.len();
        assert!(count <= LANES_MAX, "no more streams than lanes");
        match self.level {
            Some(level) if count > 4 => {
                let mut padded = pad::<8, _>(states);
                let blocks = pad::<8, _>(blocks);
                dispatch!(level, simd => eight(simd, &mut padded, &blocks));
                states.copy_from_slice(&padded[..count]);
            }
            Some(level) if count > 1 => {
                let mut padded = pad::<4, _>(states);
                let blocks = pad::<4, _>(blocks);
                dispatch!(level, simd => four(simd, &mut padded, &blocks));
                states.copy_from_slice(&padded[..count]);
            }
            _ => {
                for (state, blocks) in states.iter_mut().zip(blocks) {
                    scalar(state, blocks);
                }
            }
        }
    }
}

/// The first again in each place that is left.
fn pad<const N: usize, T: Copy>(items: &[T]) -> [T; N] {
    std::array::from_fn(|lane| items[if lane < items.len() { lane } else { 0 }])
}

/// [`SINES`], opaque to the compiler; see [`compress`].
#[inline(always)]
fn sines() -> &'static [u32; 64] {
    black_box(&SINES)
}

/// The expression for each of the 16 words. Closures would not be compiled for the vector unit.
macro_rules! sixteen {
    ($word:ident => $value:expr) => {
        sixteen!(@ $word => $value; 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    (@ $word:ident => $value:expr; $($at:literal)*) => {
        [$({ let $word = $at; $value }),*]
    };
}

#[inline(always)]
fn word(block: &Block, at: usize) -> u32 {
    let (words, _) = block.as_chunks::<4>();
    u32::from_le_bytes(words[at])
}

/// One stream: a vector has nothing to offer, the chain of steps is as long.
pub(crate) fn scalar(state: &mut State, blocks: &[Block]) {
    let sines = sines();
    for block in blocks {
        *state = compress(*state, &sixteen!(at => word(block, at)), sines);
    }
}

/// Words 4 × `quarter` to 4 × `quarter` + 3 of a block.
#[inline(always)]
fn row<S: Simd>(simd: S, block: &Block, quarter: usize) -> u32x4<S> {
    let at = 4 * quarter;
    let row = [
        word(block, at),
        word(block, at + 1),
        word(block, at + 2),
        word(block, at + 3),
    ];
    u32x4::simd_from(simd, row)
}

/// A column of each row: rows of four lanes into vectors of one word each, and back.
#[inline(always)]
fn transposed<S: Simd>([a, b, c, d]: [u32x4<S>; 4]) -> [u32x4<S>; 4] {
    let (ac_low, ac_high) = (a.zip_low(c), a.zip_high(c));
    let (bd_low, bd_high) = (b.zip_low(d), b.zip_high(d));
    [
        ac_low.zip_low(bd_low),
        ac_low.zip_high(bd_low),
        ac_high.zip_low(bd_high),
        ac_high.zip_high(bd_high),
    ]
}

#[inline(always)]
fn quarter<S: Simd>(simd: S, [a, b, c, d]: [&Block; 4], at: usize) -> [u32x4<S>; 4] {
    transposed([
        row(simd, a, at),
        row(simd, b, at),
        row(simd, c, at),
        row(simd, d, at),
    ])
}

#[inline(always)]
fn message<S: Simd>(simd: S, blocks: [&Block; 4]) -> [u32x4<S>; 16] {
    let [w0, w1, w2, w3] = quarter(simd, blocks, 0);
    let [w4, w5, w6, w7] = quarter(simd, blocks, 1);
    let [w8, w9, w10, w11] = quarter(simd, blocks, 2);
    let [w12, w13, w14, w15] = quarter(simd, blocks, 3);
    [
        w0, w1, w2, w3, w4, w5, w6, w7, w8, w9, w10, w11, w12, w13, w14, w15,
    ]
}

#[inline(always)]
fn load<S: Simd>(simd: S, [a, b, c, d]: [State; 4]) -> [u32x4<S>; 4] {
    transposed([
        u32x4::simd_from(simd, a),
        u32x4::simd_from(simd, b),
        u32x4::simd_from(simd, c),
        u32x4::simd_from(simd, d),
    ])
}

#[inline(always)]
fn store<S: Simd>(wide: [u32x4<S>; 4]) -> [State; 4] {
    let [a, b, c, d] = transposed(wide);
    [*a, *b, *c, *d]
}

#[inline(always)]
fn four<S: Simd>(simd: S, states: &mut [State; 4], blocks: &[&[Block]; 4]) {
    let sines = sines();
    let mut wide = load(simd, *states);
    let [a, b, c, d] = *blocks;
    for (((a, b), c), d) in a.iter().zip(b).zip(c).zip(d) {
        wide = compress(wide, &message(simd, [a, b, c, d]), sines);
    }
    *states = store(wide);
}

#[inline(always)]
#[allow(clippy::many_single_char_names)]
fn eight<S: Simd>(simd: S, states: &mut [State; 8], blocks: &[&[Block]; 8]) {
    let sines = sines();
    let [s0, s1, s2, s3, s4, s5, s6, s7] = *states;
    let low = load(simd, [s0, s1, s2, s3]);
    let high = load(simd, [s4, s5, s6, s7]);
    let mut wide = [
        low[0].combine(high[0]),
        low[1].combine(high[1]),
        low[2].combine(high[2]),
        low[3].combine(high[3]),
    ];
    let [a, b, c, d, e, f, g, h] = *blocks;
    let low = a.iter().zip(b).zip(c).zip(d);
    let high = e.iter().zip(f).zip(g).zip(h);
    for ((((a, b), c), d), (((e, f), g), h)) in low.zip(high) {
        let (low, high) = (message(simd, [a, b, c, d]), message(simd, [e, f, g, h]));
        let message = sixteen!(at => low[at].combine(high[at]));
        wide = compress(wide, &message, sines);
    }
    let [a, b, c, d] = wide;
    let (a, b, c, d) = (a.split(), b.split(), c.split(), d.split());
    let [s0, s1, s2, s3] = store([a.0, b.0, c.0, d.0]);
    let [s4, s5, s6, s7] = store([a.1, b.1, c.1, d.1]);
    *states = [s0, s1, s2, s3, s4, s5, s6, s7];
}
