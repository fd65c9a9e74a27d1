//! The mode on CPUs with VAES: two blocks in a register, eight registers side by side, so that no round
//! waits for the one before.
//!
//! Two ports do AES, and each instruction beside it takes from them or, where another thread runs on the same
//! core, from the decoder that both have. So the masks cost few: those of two units are made together, between
//! the rounds of the two units before, with their lower and higher halves apart, as a number is then doubled
//! twice by two shifts and a look-up. The loop has one half of a unit, and so fits the CPU's cache of decoded
//! instructions. A walk loads each byte once, and stores it once.

use std::arch::asm;
use std::arch::x86_64::{
    __m128i, __m256i, _MM_HINT_T0, _mm_aesimc_si128, _mm_aeskeygenassist_si128, _mm_prefetch,
    _mm_sfence, _mm_shuffle_epi32, _mm_slli_si128, _mm_xor_si128, _mm256_add_epi64,
    _mm256_aesdec_epi128, _mm256_aesdeclast_epi128, _mm256_aesenc_epi128, _mm256_aesenclast_epi128,
    _mm256_and_si256, _mm256_castps_si256, _mm256_castsi256_ps, _mm256_loadu_si256,
    _mm256_permute4x64_epi64, _mm256_permutevar_ps, _mm256_set_epi64x, _mm256_setr_epi32,
    _mm256_setzero_si256, _mm256_shuffle_epi32, _mm256_slli_epi64, _mm256_srai_epi32,
    _mm256_srli_epi64, _mm256_storeu_si256, _mm256_stream_si256, _mm256_unpackhi_epi64,
    _mm256_unpacklo_epi64, _mm256_xor_si256,
};

use zerocopy::IntoBytes;
use zeroize::Zeroizing;

use super::{CELL, KeyBytes, UNIT, Walk, Way};

/// Rounds of AES-256, and one key more.
const KEYS: usize = 15;
/// Registers that are worked on together: half a unit.
const SIDE: usize = 8;
/// What is made of the masks while the rounds of half a unit run: as many registers for each of two units.
const STEPS: usize = SIDE / 2;
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
        let units = walk.bytes / UNIT;
        let mut tweaks = self.tweaks(number);
        let (mut one, mut other) = (Masks::of(tweaks[0]), Masks::none());
        let (mut masks, mut next) = (&mut one, &mut other);
        let (mut from, mut into) = (walk.from, walk.into);
        for two in 0..units.div_ceil(2) {
            let then = two + 1;
            if then.is_multiple_of(SIDE) {
                tweaks = self.tweaks(number.wrapping_add(2 * then as u64));
            }
            let mut ahead = Ahead::new(tweaks[then % SIDE]);
            let halves = 2 * (units - 2 * two).min(2);
            for (masks, next) in masks.halves().zip(next.steps()).take(halves) {
                // SAFETY: half a unit lies here on both sides.
                unsafe {
                    half::<DECRYPTS, PASSES>(keys, from, into, masks, &mut ahead, next);
                    (from, into) = (from.add(UNIT / 2), into.add(UNIT / 2));
                }
            }
            std::mem::swap(&mut masks, &mut next);
        }
        if PASSES {
            // Such stores are not in the order of others: whoever is told next must find the bytes.
            _mm_sfence();
        }
    }

    /// The tweaks of units from this number on, two in each.
    #[target_feature(enable = "avx2,vaes")]
    fn tweaks(&self, number: u64) -> [__m256i; SIDE] {
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
        work
    }
}

/// Whether what is written goes past the cache. So many bytes are for another core or a device, which has the
/// lines of the last time yet: to take each back from it costs more than all the rounds.
fn passes(walk: Walk) -> bool {
    let moves = !std::ptr::eq(walk.from, walk.into);
    moves && walk.bytes >= PASSING_BYTES_MIN && walk.into.addr().is_multiple_of(2 * CELL)
}

/// What is added to the blocks of two units: the tweak of each, and for each other block twice that of the one
/// before.
#[repr(align(64))]
struct Masks([[__m256i; 2 * SIDE]; 2]);

/// Where masks of either unit go.
type Step<'a> = (&'a mut [__m256i; STEPS], &'a mut [__m256i; STEPS]);

impl Masks {
    #[target_feature(enable = "avx2")]
    fn none() -> Masks {
        Masks([[_mm256_setzero_si256(); 2 * SIDE]; 2])
    }

    #[target_feature(enable = "avx2")]
    fn of(tweaks: __m256i) -> Masks {
        let mut masks = Masks::none();
        let mut ahead = Ahead::new(tweaks);
        for step in masks.steps() {
            for at in 0..STEPS {
                (step.0[at], step.1[at]) = ahead.step();
            }
        }
        masks
    }

    /// Those of each half of a unit, one unit behind the other.
    fn halves(&self) -> impl Iterator<Item = &[__m256i; SIDE]> {
        self.0.as_flattened().as_chunks().0.iter()
    }

    fn steps(&mut self) -> impl Iterator<Item = Step<'_>> {
        let [one, other] = &mut self.0;
        one.as_chunks_mut()
            .0
            .iter_mut()
            .zip(other.as_chunks_mut().0)
    }
}

/// The masks of two blocks of each of two units, lower and higher halves apart: the first block of either unit,
/// then the second.
struct Ahead {
    low: __m256i,
    high: __m256i,
}

impl Ahead {
    #[inline]
    #[target_feature(enable = "avx2")]
    fn new(tweaks: __m256i) -> Ahead {
        let twice = doubled(tweaks);
        let (low, high) = halves(tweaks, twice);
        Ahead {
            low: _mm256_permute4x64_epi64::<0b11_01_10_00>(low),
            high: _mm256_permute4x64_epi64::<0b11_01_10_00>(high),
        }
    }

    /// The masks of two blocks of each unit. It goes on to those behind them, which are four times as much.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn step(&mut self) -> (__m256i, __m256i) {
        let masks = halves(self.low, self.high);
        // What the polynomial makes of the two bits that leave a number.
        let meant = _mm256_setr_epi32(0, 0x87, 0x10E, 0x189, 0, 0x87, 0x10E, 0x189);
        let over = _mm256_srli_epi64::<62>(self.high);
        let sum = _mm256_permutevar_ps(_mm256_castsi256_ps(meant), over);
        let over = _mm256_srli_epi64::<62>(self.low);
        self.low = _mm256_xor_si256(_mm256_slli_epi64::<2>(self.low), _mm256_castps_si256(sum));
        self.high = _mm256_xor_si256(_mm256_slli_epi64::<2>(self.high), over);
        masks
    }
}

/// The lower, and the higher, halves of the numbers of both, in turn.
#[inline]
#[target_feature(enable = "avx2")]
fn halves(one: __m256i, other: __m256i) -> (__m256i, __m256i) {
    let low = _mm256_unpacklo_epi64(one, other);
    (low, _mm256_unpackhi_epi64(one, other))
}

/// Twice both numbers.
#[inline]
#[target_feature(enable = "avx2")]
fn doubled(pair: __m256i) -> __m256i {
    let polynomial = _mm256_setr_epi32(0x87, 0, 1, 0, 0x87, 0, 1, 0);
    let over = _mm256_srai_epi32::<31>(_mm256_shuffle_epi32::<0b00_01_00_11>(pair));
    _mm256_xor_si256(
        _mm256_add_epi64(pair, pair),
        _mm256_and_si256(over, polynomial),
    )
}

/// Fetches a line of a later unit, or what lies behind the walk: that never faults.
#[inline]
fn fetch<const PASSES: bool>(from: *const u8, into: *const u8, at: usize) {
    // SAFETY: they are hints, which take any address and which a CPU may leave alone.
    unsafe {
        _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(AHEAD + at).cast());
        if !PASSES {
            // For us alone: a line that another core has too would be fetched again by the store.
            asm!(
                "prefetchw [{}]",
                in(reg) into.wrapping_add(AHEAD + at),
                options(nostack, preserves_flags),
            );
        }
    }
}

/// Works on half a unit.
///
/// # Safety
/// Half a unit can be read at `from` and written at `into`, which is the same place or does not overlap. It is a
/// multiple of a register when it passes the cache.
#[inline]
#[target_feature(enable = "avx2,vaes")]
unsafe fn half<const DECRYPTS: bool, const PASSES: bool>(
    keys: &WideKeys,
    from: *const u8,
    into: *mut u8,
    masks: &[__m256i; SIDE],
    ahead: &mut Ahead,
    next: Step<'_>,
) {
    let first = register(&keys[0]);
    let mut work = [first; SIDE];
    for (at, work) in work.iter_mut().enumerate() {
        let place = from.wrapping_add(at * 2 * CELL);
        // SAFETY: inside of the half, as the caller says; it may lie at any byte.
        let bytes = unsafe { _mm256_loadu_si256(place.cast()) };
        *work = _mm256_xor_si256(_mm256_xor_si256(first, masks[at]), bytes);
    }
    let (one, other) = next;
    // Written out, as the compiler else keeps the loop and counts in it.
    macro_rules! steps {
        ($($step:literal)*) => {$(
            work = round::<DECRYPTS>(&keys[3 * $step + 1], work);
            (one[$step], other[$step]) = ahead.step();
            work = round::<DECRYPTS>(&keys[3 * $step + 2], work);
            fetch::<PASSES>(from, into, $step * LINE);
            work = round::<DECRYPTS>(&keys[3 * $step + 3], work);
        )*};
    }
    steps!(0 1 2 3);
    work = round::<DECRYPTS>(&keys[KEYS - 2], work);
    let last = register(&keys[KEYS - 1]);
    for (at, work) in work.into_iter().enumerate() {
        // The last round adds the mask too.
        let key = _mm256_xor_si256(last, masks[at]);
        let bytes = if DECRYPTS {
            _mm256_aesdeclast_epi128(work, key)
        } else {
            _mm256_aesenclast_epi128(work, key)
        };
        let place = into.wrapping_add(at * 2 * CELL);
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
