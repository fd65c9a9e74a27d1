//! The mode on CPUs with VAES: two blocks in a register, eight registers side by side, so that no round
//! waits for the one before.
//!
//! The two ports that do AES are what bounds a walk, and any other work on the same registers may land on them.
//! So the masks of a unit are made between the rounds of the unit before it, three quarters of them in general
//! registers, which have ports of their own; with all of them there, the decoder becomes the bound. A walk
//! loads each byte once, and stores it once.

use std::arch::asm;
use std::arch::x86_64::{
    __m128i, __m256i, _MM_HINT_T0, _mm_aesimc_si128, _mm_aeskeygenassist_si128, _mm_prefetch,
    _mm_sfence, _mm_shuffle_epi32, _mm_slli_si128, _mm_xor_si128, _mm256_aesdec_epi128,
    _mm256_aesdeclast_epi128, _mm256_aesenc_epi128, _mm256_aesenclast_epi128, _mm256_loadu_si256,
    _mm256_or_si256, _mm256_set_epi64x, _mm256_shuffle_epi8, _mm256_slli_epi64, _mm256_srli_epi64,
    _mm256_storeu_si256, _mm256_stream_si256, _mm256_xor_si256,
};

use zerocopy::IntoBytes;
use zeroize::Zeroizing;

use super::{CELL, KeyBytes, UNIT, Walk, Way, doubled};

/// Rounds of AES-256, and one key more.
const KEYS: usize = 15;
/// Registers that are worked on together: half a unit.
const SIDE: usize = 8;
/// Units whose tweaks are made together.
const UNITS: usize = 2 * SIDE;
/// Blocks of a unit whose masks are made in general registers; those of the others are made in pairs.
const SINGLES: usize = 24;
/// Bytes that are fetched ahead: what the disk or another core wrote lies in no near cache.
const AHEAD: usize = 4 * UNIT;
/// Bytes of a walk that goes past the cache; of less, more is still near when it is asked for.
const PASSING_BYTES_MIN: usize = 32 << 10;
/// Bytes of a line of the cache.
const LINE: usize = 64;

type Keys = [[u8; 16]; KEYS];
/// Two blocks, in halves of each, the lower first.
type Pair = [u64; 4];
/// Each key twice: for both blocks of a register.
type WideKeys = [Pair; KEYS];

/// Keys of each round.
pub(super) struct Wide {
    encrypt: Zeroizing<WideKeys>,
    decrypt: Zeroizing<WideKeys>,
    tweaks: Zeroizing<WideKeys>,
}

impl Wide {
    /// None when the CPU has not the instructions.
    pub(super) fn new(key: &KeyBytes) -> Option<Wide> {
        let can = is_x86_feature_detected!("aes")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("vaes");
        let [data, tweaks] = key.as_chunks::<32>().0 else {
            unreachable!("64 bytes are two keys");
        };
        // SAFETY: the CPU has AES and AVX2, which the function may use: it was just asked.
        can.then(|| unsafe { Wide::expand(data, tweaks) })
    }

    #[target_feature(enable = "aes,avx2")]
    fn expand(data: &[u8; 32], tweaks: &[u8; 32]) -> Wide {
        let encrypt = expand(data);
        Wide {
            encrypt: widened(&encrypt),
            decrypt: widened(&inverse(&encrypt)),
            tweaks: widened(&expand(tweaks)),
        }
    }

    /// Works on whole units, the first of which has this number.
    ///
    /// # Safety
    /// As [`Walk`] says.
    pub(super) unsafe fn run(&self, number: u64, walk: Walk, way: Way) {
        let (encrypt, decrypt) = (&self.encrypt, &self.decrypt);
        // SAFETY: there is no such value on a CPU without the instructions: `new` has asked for each. The
        // memory is as the caller says, and `passes` has looked at where it begins.
        unsafe {
            match (way, passes(walk)) {
                (Way::Encrypt, false) => self.units::<false, false>(encrypt, number, walk),
                (Way::Encrypt, true) => self.units::<false, true>(encrypt, number, walk),
                (Way::Decrypt, false) => self.units::<true, false>(decrypt, number, walk),
                (Way::Decrypt, true) => self.units::<true, true>(decrypt, number, walk),
            }
        }
    }

    /// # Safety
    /// As [`Walk`] says; where it passes the cache, its stores are aligned.
    #[target_feature(enable = "avx2,vaes")]
    unsafe fn units<const DECRYPTS: bool, const PASSES: bool>(
        &self,
        keys: &WideKeys,
        number: u64,
        walk: Walk,
    ) {
        let mut tweaks = self.tweaks(number);
        let (mut one, mut other) = (Masks::of(tweaks[0]), Masks::of(0));
        let (mut masks, mut next) = (&mut one, &mut other);
        for at in 0..walk.bytes / UNIT {
            let then = at + 1;
            if then.is_multiple_of(UNITS) {
                tweaks = self.tweaks(number.wrapping_add(then as u64));
            }
            // SAFETY: a unit lies here on both sides.
            let (from, into) = unsafe { (walk.from.add(at * UNIT), walk.into.add(at * UNIT)) };
            let mut ahead = Ahead::new(from, into, tweaks[then % UNITS]);
            // SAFETY: as above; the halves are one behind the other.
            unsafe {
                half::<DECRYPTS, PASSES, 0>(keys, from, into, masks, &mut ahead, next);
                half::<DECRYPTS, PASSES, 1>(keys, from, into, masks, &mut ahead, next);
            }
            std::mem::swap(&mut masks, &mut next);
        }
        if PASSES {
            // Such stores are not in the order of others: whoever is told next must find the bytes.
            _mm_sfence();
        }
    }

    /// The tweaks of units from this number on.
    #[target_feature(enable = "avx2,vaes")]
    fn tweaks(&self, number: u64) -> [u128; UNITS] {
        let keys = &*self.tweaks;
        let first = register(&keys[0]);
        let mut work = [first; SIDE];
        for (work, two) in work.iter_mut().zip(0..) {
            let number = number.wrapping_add(2 * two);
            let numbers = _mm256_set_epi64x(0, number.wrapping_add(1) as i64, 0, number as i64);
            *work = _mm256_xor_si256(numbers, first);
        }
        let turn = round::<false>;
        work = turn(&keys[2], turn(&keys[1], work));
        work = turn(&keys[4], turn(&keys[3], work));
        work = turn(&keys[6], turn(&keys[5], work));
        work = turn(&keys[8], turn(&keys[7], work));
        work = turn(&keys[10], turn(&keys[9], work));
        work = turn(&keys[12], turn(&keys[11], work));
        work = turn(&keys[13], work);
        let last = register(&keys[KEYS - 1]);
        for work in &mut work {
            *work = _mm256_aesenclast_epi128(*work, last);
        }
        zerocopy::transmute!(work)
    }
}

/// Whether what is written goes past the cache. So many bytes are for another core or a device, which has the
/// lines of the last time yet: to take each back from it costs more than all the rounds.
fn passes(walk: Walk) -> bool {
    let moves = !std::ptr::eq(walk.from, walk.into);
    moves && walk.bytes >= PASSING_BYTES_MIN && walk.into.addr().is_multiple_of(2 * CELL)
}

/// What is added to the blocks of a unit: its tweak, and for each other block twice that of the one before.
#[repr(align(64))]
struct Masks([Pair; 2 * SIDE]);

impl Masks {
    fn of(tweak: u128) -> Masks {
        let mut masks = Masks([[0; 4]; 2 * SIDE]);
        let mut mask = Single::of(tweak);
        for block in masks.singles() {
            *block = [mask.low, mask.high];
            mask.double();
        }
        masks
    }

    fn singles(&mut self) -> &mut [[u64; 2]] {
        self.0.as_flattened_mut().as_chunks_mut().0
    }
}

/// A mask in general registers.
#[derive(Clone, Copy)]
struct Single {
    low: u64,
    high: u64,
}

impl Single {
    fn of(tweak: u128) -> Single {
        Single {
            low: tweak as u64,
            high: (tweak >> 64) as u64,
        }
    }

    /// As [`doubled`], of which the compiler makes a shift over two registers that takes four times as long.
    #[inline]
    fn double(&mut self) {
        // SAFETY: it works on three registers and the flags alone.
        unsafe {
            asm!(
                "add {low}, {low}",
                "adc {high}, {high}",
                "sbb {over}, {over}",
                "and {over:e}, 0x87",
                "xor {low}, {over}",
                low = inout(reg) self.low,
                high = inout(reg) self.high,
                over = out(reg) _,
                options(pure, nomem, nostack),
            );
        }
    }
}

/// What is done for later units while the rounds of one run.
struct Ahead {
    single: Single,
    pair: __m256i,
    from: *const u8,
    into: *const u8,
}

impl Ahead {
    /// For a unit that is now worked on, and the tweak of the next.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn new(from: *const u8, into: *const u8, tweak: u128) -> Ahead {
        let over = tweak >> (128 - SINGLES);
        let first = (tweak << SINGLES) ^ over ^ (over << 1) ^ (over << 2) ^ (over << 7);
        Ahead {
            single: Single::of(tweak),
            pair: zerocopy::transmute!([first, doubled(first)]),
            from: from.wrapping_add(AHEAD),
            into: into.wrapping_add(AHEAD),
        }
    }

    /// Makes the mask of a block.
    #[inline]
    fn single<const PASSES: bool, const HALF: usize>(&mut self, next: &mut Masks, at: usize) {
        next.singles()[HALF * SINGLES / 2 + at] = [self.single.low, self.single.high];
        self.single.double();
    }

    /// Makes the masks of two blocks behind the singles.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn pair<const PASSES: bool, const HALF: usize>(&mut self, next: &mut Masks, at: usize) {
        let pairs = &mut next.0[SINGLES / 2..];
        pairs[HALF * (SIDE - SINGLES / 2 / 2) + at] = zerocopy::transmute!(self.pair);
        self.pair = quadrupled(self.pair);
    }

    /// Fetches a line of a later unit, or what lies behind the walk: that never faults.
    #[inline]
    fn fetch<const PASSES: bool, const HALF: usize>(&mut self, _: &mut Masks, at: usize) {
        let at = HALF * UNIT / 2 + at * LINE;
        // SAFETY: they are hints, which take any address and which a CPU may leave alone.
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(self.from.wrapping_add(at).cast());
            if !PASSES {
                // For us alone: a line that another core has too would be fetched again by the store.
                asm!(
                    "prefetchw [{}]",
                    in(reg) self.into.wrapping_add(at),
                    options(nostack, preserves_flags),
                );
            }
        }
    }
}

/// Works on half a unit.
///
/// # Safety
/// A unit can be read at `from` and written at `into`, which is the same place or does not overlap. It is a
/// multiple of a register when it passes the cache.
#[inline]
#[target_feature(enable = "avx2,vaes")]
unsafe fn half<const DECRYPTS: bool, const PASSES: bool, const HALF: usize>(
    keys: &WideKeys,
    from: *const u8,
    into: *mut u8,
    masks: &Masks,
    ahead: &mut Ahead,
    next: &mut Masks,
) {
    let masks: &[Pair; SIDE] = &masks.0.as_chunks().0[HALF];
    let first = register(&keys[0]);
    let mut work = [first; SIDE];
    for (at, work) in work.iter_mut().enumerate() {
        let place = from.wrapping_add((HALF * SIDE + at) * 2 * CELL);
        // SAFETY: inside of the unit, as the caller says; it may lie at any byte.
        let bytes = unsafe { _mm256_loadu_si256(place.cast()) };
        *work = _mm256_xor_si256(_mm256_xor_si256(first, register(&masks[at])), bytes);
    }
    macro_rules! rounds {
        ($($key:literal: $($step:ident $at:literal),*;)*) => {$(
            work = round::<DECRYPTS>(&keys[$key], work);
            $(ahead.$step::<PASSES, HALF>(next, $at);)*
        )*};
    }
    rounds! {
        1: single 0;
        2: single 1;
        3: single 2, pair 0, fetch 0;
        4: single 3;
        5: single 4;
        6: single 5, fetch 1;
        7: single 6;
        8: single 7;
        9: single 8, pair 1, fetch 2;
        10: single 9;
        11: single 10;
        12: single 11, fetch 3;
        13: ;
    }
    let last = register(&keys[KEYS - 1]);
    for (at, work) in work.into_iter().enumerate() {
        // The last round adds the mask too.
        let key = _mm256_xor_si256(last, register(&masks[at]));
        let bytes = if DECRYPTS {
            _mm256_aesdeclast_epi128(work, key)
        } else {
            _mm256_aesenclast_epi128(work, key)
        };
        let place = into.wrapping_add((HALF * SIDE + at) * 2 * CELL);
        // SAFETY: as above; aligned where it has to be.
        unsafe {
            if PASSES {
                _mm256_stream_si256(place.cast(), bytes);
            } else {
                _mm256_storeu_si256(place.cast(), bytes);
            }
        }
    }
}

/// A round on all registers, behind the round before and ahead of the next: left to itself, the compiler takes
/// some registers through all rounds alone, and each of those waits for the one before.
#[inline]
#[target_feature(enable = "avx2,vaes")]
fn round<const DECRYPTS: bool>(key: &Pair, work: [__m256i; SIDE]) -> [__m256i; SIDE] {
    let key = register(key);
    let [
        mut r0,
        mut r1,
        mut r2,
        mut r3,
        mut r4,
        mut r5,
        mut r6,
        mut r7,
    ] = work.map(|work| {
        if DECRYPTS {
            _mm256_aesdec_epi128(work, key)
        } else {
            _mm256_aesenc_epi128(work, key)
        }
    });
    // SAFETY: no instruction; it says that the registers are needed here.
    unsafe {
        asm!(
            "/* {} {} {} {} {} {} {} {} */",
            inout(ymm_reg) r0,
            inout(ymm_reg) r1,
            inout(ymm_reg) r2,
            inout(ymm_reg) r3,
            inout(ymm_reg) r4,
            inout(ymm_reg) r5,
            inout(ymm_reg) r6,
            inout(ymm_reg) r7,
            options(nomem, nostack, preserves_flags),
        );
    }
    [r0, r1, r2, r3, r4, r5, r6, r7]
}

#[inline]
#[target_feature(enable = "avx2")]
fn register(pair: &Pair) -> __m256i {
    zerocopy::transmute!(*pair)
}

/// Four times both numbers. The two bits that leave a half pick what they mean from a table: in the upper
/// half they are the lowest bits, and in the lower one what the polynomial makes of them, which is 9 bits long.
#[inline]
#[target_feature(enable = "avx2")]
fn quadrupled(pair: __m256i) -> __m256i {
    let both = |bytes: [u8; 16]| {
        let pair: __m256i = zerocopy::transmute!([bytes, bytes]);
        pair
    };
    let none = 0x80;
    // Where each byte of the sum has its bits from: the other half of the number.
    let source = both([
        8, 8, none, none, none, none, none, none, 0, none, none, none, none, none, none, none,
    ]);
    // And which part of the table says what they mean there.
    let part = both([0, 4, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0]);
    let table = both([0x00, 0x87, 0x0E, 0x89, 0, 0, 1, 1, 0, 1, 2, 3, 0, 0, 0, 0]);
    let over = _mm256_srli_epi64::<62>(pair);
    let picks = _mm256_or_si256(_mm256_shuffle_epi8(over, source), part);
    let sum = _mm256_shuffle_epi8(table, picks);
    _mm256_xor_si256(_mm256_slli_epi64::<2>(pair), sum)
}

fn widened(keys: &Keys) -> Zeroizing<WideKeys> {
    let mut wide = Zeroizing::new([[0; 4]; KEYS]);
    for (wide, key) in wide.iter_mut().zip(keys) {
        *wide = zerocopy::transmute!([*key, *key]);
    }
    wide
}

/// The key schedule of FIPS 197.
#[target_feature(enable = "aes,avx2")]
fn expand(key: &[u8; 32]) -> Zeroizing<Keys> {
    let mut keys = Zeroizing::new([[0; 16]; KEYS]);
    keys.as_flattened_mut()[..32].copy_from_slice(key);
    let mut put = |at: usize, word: __m128i| {
        let before: __m128i = zerocopy::transmute!(keys[at - 2]);
        let key = _mm_xor_si128(folded(before), word);
        keys[at].copy_from_slice(key.as_bytes());
        key
    };
    let mut last: __m128i =
        zerocopy::transmute!(*<&[u8; 16]>::try_from(&key[16..]).expect("16 bytes"));
    for turn in 0..7 {
        let at = 2 * turn + 2;
        let assist = match turn {
            0 => _mm_aeskeygenassist_si128::<0x01>(last),
            1 => _mm_aeskeygenassist_si128::<0x02>(last),
            2 => _mm_aeskeygenassist_si128::<0x04>(last),
            3 => _mm_aeskeygenassist_si128::<0x08>(last),
            4 => _mm_aeskeygenassist_si128::<0x10>(last),
            5 => _mm_aeskeygenassist_si128::<0x20>(last),
            _ => _mm_aeskeygenassist_si128::<0x40>(last),
        };
        let even = put(at, _mm_shuffle_epi32::<0xFF>(assist));
        if at + 1 < KEYS {
            let assist = _mm_aeskeygenassist_si128::<0x00>(even);
            last = put(at + 1, _mm_shuffle_epi32::<0xAA>(assist));
        }
    }
    keys
}

/// Each word with those before it added.
#[target_feature(enable = "avx2")]
fn folded(key: __m128i) -> __m128i {
    let key = _mm_xor_si128(key, _mm_slli_si128::<4>(key));
    _mm_xor_si128(key, _mm_slli_si128::<8>(key))
}

/// The keys of the equivalent inverse cipher.
#[target_feature(enable = "aes,avx2")]
fn inverse(keys: &Keys) -> Zeroizing<Keys> {
    let mut inverse = Zeroizing::new(*keys);
    inverse.reverse();
    for key in &mut inverse[1..KEYS - 1] {
        let mixed = _mm_aesimc_si128(zerocopy::transmute!(*key));
        key.copy_from_slice(mixed.as_bytes());
    }
    inverse
}
