//! The mode on CPUs with VAES: two blocks in a register, eight registers side by side, so that no round
//! waits for the one before.

use std::arch::x86_64::{
    __m128i, __m256i, _mm_aesimc_si128, _mm_aeskeygenassist_si128, _mm_shuffle_epi32,
    _mm_slli_si128, _mm_xor_si128, _mm256_aesdec_epi128, _mm256_aesdeclast_epi128,
    _mm256_aesenc_epi128, _mm256_aesenclast_epi128, _mm256_broadcastsi128_si256,
    _mm256_bslli_epi128, _mm256_bsrli_epi128, _mm256_clmulepi64_epi128, _mm256_permute2x128_si256,
    _mm256_set_epi64x, _mm256_slli_epi64, _mm256_srli_epi64, _mm256_xor_si256,
};

use zerocopy::IntoBytes;
use zeroize::Zeroizing;

use super::{KeyBytes, UNIT, Way};

/// Rounds of AES-256, and one key more.
const KEYS: usize = 15;
/// Registers that are worked on together: half a unit.
const SIDE: usize = 8;
/// Units whose tweaks are made together.
const UNITS: usize = 2 * SIDE;

type Keys = [[u8; 16]; KEYS];

/// Keys of each round.
pub(super) struct Wide {
    encrypt: Zeroizing<Keys>,
    decrypt: Zeroizing<Keys>,
    tweaks: Zeroizing<Keys>,
}

impl Wide {
    /// None when the CPU has not the instructions.
    pub(super) fn new(key: &KeyBytes) -> Option<Wide> {
        let can = is_x86_feature_detected!("aes")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("vaes")
            && is_x86_feature_detected!("vpclmulqdq");
        let [data, tweaks] = key.as_chunks::<32>().0 else {
            unreachable!("64 bytes are two keys");
        };
        // SAFETY: the CPU has AES and AVX2, which the function may use: it was just asked.
        can.then(|| unsafe { Wide::expand(data, tweaks) })
    }

    #[target_feature(enable = "aes,avx2")]
    fn expand(data: &[u8; 32], tweaks: &[u8; 32]) -> Wide {
        let encrypt = expand(data);
        let decrypt = inverse(&encrypt);
        Wide {
            encrypt,
            decrypt,
            tweaks: expand(tweaks),
        }
    }

    /// Works on whole units, the first of which has this number.
    pub(super) fn run(&self, number: u64, bytes: &mut [u8], way: Way) {
        // SAFETY: there is no such value on a CPU without the instructions: `new` has asked for each.
        unsafe {
            match way {
                Way::Encrypt => self.encrypt(number, bytes),
                Way::Decrypt => self.decrypt(number, bytes),
            }
        }
    }

    #[target_feature(enable = "avx2,vaes,vpclmulqdq")]
    fn encrypt(&self, number: u64, bytes: &mut [u8]) {
        let keys = widened(&self.encrypt);
        self.units(number, bytes, |half| encrypted(&keys, half));
    }

    #[target_feature(enable = "avx2,vaes,vpclmulqdq")]
    fn decrypt(&self, number: u64, bytes: &mut [u8]) {
        let keys = widened(&self.decrypt);
        self.units(number, bytes, |half| decrypted(&keys, half));
    }

    #[inline]
    #[target_feature(enable = "avx2,vaes,vpclmulqdq")]
    fn units(
        &self,
        mut number: u64,
        bytes: &mut [u8],
        cipher: impl Fn([__m256i; SIDE]) -> [__m256i; SIDE],
    ) {
        let tweak_keys = widened(&self.tweaks);
        for units in bytes.chunks_mut(UNITS * UNIT) {
            let mut numbers = [_mm256_set_epi64x(0, 0, 0, 0); SIDE];
            for two in &mut numbers {
                *two = _mm256_set_epi64x(0, (number + 1) as i64, 0, number as i64);
                number += 2;
            }
            let tweaks = encrypted(&tweak_keys, numbers);
            for (at, unit) in units.as_chunks_mut::<UNIT>().0.iter_mut().enumerate() {
                let two = tweaks[at / 2];
                // One unit's tweak in both halves.
                let tweak = if at % 2 == 0 {
                    _mm256_permute2x128_si256::<0x00>(two, two)
                } else {
                    _mm256_permute2x128_si256::<0x11>(two, two)
                };
                one_unit(tweak, unit, &cipher);
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx2,vaes,vpclmulqdq")]
fn one_unit(
    tweak: __m256i,
    unit: &mut [u8; UNIT],
    cipher: &impl Fn([__m256i; SIDE]) -> [__m256i; SIDE],
) {
    // The first block's mask is the tweak, the second's twice as much, and each register's four times the last.
    let first = _mm256_permute2x128_si256::<0x30>(tweak, times::<1, 63>(tweak));
    let mut masks = [first; SIDE];
    masks[1] = times::<2, 62>(first);
    for at in 2..SIDE / 2 {
        masks[at] = times::<4, 60>(masks[at - 2]);
    }
    for at in SIDE / 2..SIDE {
        masks[at] = times_bytes::<1, 15>(masks[at - SIDE / 2]);
    }
    let (halves, _) = unit.as_chunks_mut::<{ UNIT / 2 }>();
    for half in halves {
        let (cells, _) = half.as_chunks_mut::<32>();
        let mut work = masks;
        for (work, cell) in work.iter_mut().zip(&*cells) {
            *work = _mm256_xor_si256(*work, zerocopy::transmute!(*cell));
        }
        let work = cipher(work);
        for ((work, cell), mask) in work.iter().zip(cells).zip(&mut masks) {
            let bytes = _mm256_xor_si256(*work, *mask);
            cell.copy_from_slice(bytes.as_bytes());
            *mask = times_bytes::<2, 14>(*mask);
        }
    }
}

/// Both numbers of the field times 2^BITS, by the polynomial of the mode; REST is 64 - BITS.
#[inline]
#[target_feature(enable = "avx2,vpclmulqdq")]
fn times<const BITS: i32, const REST: i32>(number: __m256i) -> __m256i {
    let over = _mm256_srli_epi64::<REST>(number);
    let shifted = _mm256_xor_si256(
        _mm256_slli_epi64::<BITS>(number),
        _mm256_bslli_epi128::<8>(over),
    );
    _mm256_xor_si256(
        shifted,
        _mm256_clmulepi64_epi128::<0x01>(over, polynomial()),
    )
}

/// Both numbers times 256^BYTES; REST is 16 - BYTES.
#[inline]
#[target_feature(enable = "avx2,vpclmulqdq")]
fn times_bytes<const BYTES: i32, const REST: i32>(number: __m256i) -> __m256i {
    let over = _mm256_bsrli_epi128::<REST>(number);
    _mm256_xor_si256(
        _mm256_bslli_epi128::<BYTES>(number),
        _mm256_clmulepi64_epi128::<0x00>(over, polynomial()),
    )
}

#[inline]
#[target_feature(enable = "avx2")]
fn polynomial() -> __m256i {
    _mm256_set_epi64x(0, 0x87, 0, 0x87)
}

#[inline]
#[target_feature(enable = "vaes")]
fn encrypted(keys: &[__m256i; KEYS], work: [__m256i; SIDE]) -> [__m256i; SIDE] {
    let round = |one, key| _mm256_aesenc_epi128(one, key);
    rounds(keys, work, round, |one, key| {
        _mm256_aesenclast_epi128(one, key)
    })
}

#[inline]
#[target_feature(enable = "vaes")]
fn decrypted(keys: &[__m256i; KEYS], work: [__m256i; SIDE]) -> [__m256i; SIDE] {
    let round = |one, key| _mm256_aesdec_epi128(one, key);
    rounds(keys, work, round, |one, key| {
        _mm256_aesdeclast_epi128(one, key)
    })
}

/// The first key, a round for each other one, and the last round.
#[inline]
#[target_feature(enable = "vaes")]
fn rounds(
    keys: &[__m256i; KEYS],
    mut work: [__m256i; SIDE],
    round: impl Fn(__m256i, __m256i) -> __m256i,
    last: impl Fn(__m256i, __m256i) -> __m256i,
) -> [__m256i; SIDE] {
    for one in &mut work {
        *one = _mm256_xor_si256(*one, keys[0]);
    }
    for key in &keys[1..KEYS - 1] {
        for one in &mut work {
            *one = round(*one, *key);
        }
    }
    for one in &mut work {
        *one = last(*one, keys[KEYS - 1]);
    }
    work
}

#[inline]
#[target_feature(enable = "avx2")]
fn widened(keys: &Keys) -> [__m256i; KEYS] {
    keys.map(|key| _mm256_broadcastsi128_si256(zerocopy::transmute!(key)))
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
