//! What an encrypted volume's blocks are on disk: AES-256 in XTS mode (IEEE 1619-2018, NIST SP 800-38E).
//! Sans-IO.
//!
//! Bytes are worked on in place, or on their way between a buffer of ours and a guest's memory, in one walk: a
//! copy before or behind it costs half as much again. The guest may change its memory meanwhile: each byte of
//! it is loaded once or stored once, and never looked at. On a CPU with VAES the rounds are ours too (`wide`), as nothing else there is as fast; elsewhere AES is
//! the `aes` crate's. Both give the same bytes.
//!
//! A data unit is 512 bytes, and its number is that of its place in the volume, not in the data file. So
//! what volumes share means the same to each of them, and a cluster moves without being opened. The
//! mode hides what is there, and nothing tells that somebody changed it.

#[cfg(target_arch = "x86_64")]
mod wide;

use aes::Aes256;
use aes::cipher::{Block, BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};
use engine::GuestWindow;
use zeroize::Zeroizing;

/// Bytes of a data unit.
pub const UNIT: usize = 512;
/// Bytes of a block of the cipher.
const CELL: usize = 16;
/// Units that are worked on together: 4 KiB, so that the CPU has many blocks side by side.
const GROUP: usize = 8;

/// The two keys of a volume: for its data, then for the tweaks.
pub type KeyBytes = Zeroizing<[u8; 64]>;

/// A volume's keys, made ready.
pub struct Cipher {
    rounds: Rounds,
}

/// What works on blocks.
enum Rounds {
    #[cfg(target_arch = "x86_64")]
    Wide(Box<wide::Wide>),
    Library(Box<Library>),
}

/// The `aes` crate.
struct Library {
    data: Aes256,
    tweaks: Aes256,
}

#[derive(Clone, Copy)]
enum Way {
    Encrypt,
    Decrypt,
}

impl Cipher {
    /// Makes the keys ready for the best instructions of this CPU.
    pub fn new(key: &KeyBytes) -> Cipher {
        #[cfg(target_arch = "x86_64")]
        if let Some(wide) = wide::Wide::new(key) {
            let rounds = Rounds::Wide(Box::new(wide));
            return Cipher { rounds };
        }
        Cipher {
            rounds: Rounds::Library(Box::new(Library::new(key))),
        }
    }

    /// Encrypts what lies at a byte of the volume.
    ///
    /// # Panics
    /// When place or length are no whole number of units.
    pub fn encrypt(&self, place: u64, bytes: &mut [u8]) {
        // SAFETY: the bytes are ours alone.
        unsafe { self.run(place, Walk::in_place(bytes), Way::Encrypt) };
    }

    /// Decrypts it.
    ///
    /// # Panics
    /// As [`Cipher::encrypt`].
    pub fn decrypt(&self, place: u64, bytes: &mut [u8]) {
        // SAFETY: as above.
        unsafe { self.run(place, Walk::in_place(bytes), Way::Decrypt) };
    }

    /// Encrypts what a guest has into a buffer of the same length.
    ///
    /// # Panics
    /// As [`Cipher::encrypt`], and when the lengths differ.
    pub fn encrypt_out(&self, place: u64, from: &GuestWindow, into: &mut [u8]) {
        assert_eq!(from.len(), into.len(), "as much is written as is read");
        let walk = Walk {
            from: from.as_ptr(),
            into: into.as_mut_ptr(),
            bytes: into.len(),
        };
        // SAFETY: a window is mapped while it lives, and `into` is ours alone.
        unsafe { self.run(place, walk, Way::Encrypt) };
    }

    /// Decrypts a buffer into as much of a guest's memory.
    ///
    /// # Panics
    /// As [`Cipher::encrypt_out`].
    pub fn decrypt_in(&self, place: u64, from: &[u8], into: &GuestWindow) {
        assert_eq!(from.len(), into.len(), "as much is written as is read");
        let walk = Walk {
            from: from.as_ptr(),
            into: into.as_ptr(),
            bytes: from.len(),
        };
        // SAFETY: as above, the other way.
        unsafe { self.run(place, walk, Way::Decrypt) };
    }

    /// # Safety
    /// As [`Walk`] says.
    unsafe fn run(&self, place: u64, walk: Walk, way: Way) {
        assert!(
            place.is_multiple_of(UNIT as u64) && walk.bytes.is_multiple_of(UNIT),
            "units are encrypted whole"
        );
        let number = place / UNIT as u64;
        // SAFETY: as the caller says.
        unsafe {
            match &self.rounds {
                #[cfg(target_arch = "x86_64")]
                Rounds::Wide(wide) => wide.run(number, walk, way),
                Rounds::Library(library) => library.run(number, walk, way),
            }
        }
    }
}

/// Whole units on their way. What works on them wants all of `from` readable and all of `into` writable, which
/// are the same place or do not overlap. Others may change either meanwhile, as no reference to them is made.
#[derive(Clone, Copy)]
struct Walk {
    from: *const u8,
    into: *mut u8,
    bytes: usize,
}

impl Walk {
    fn in_place(bytes: &mut [u8]) -> Walk {
        let into = bytes.as_mut_ptr();
        Walk {
            from: into,
            into,
            bytes: bytes.len(),
        }
    }
}

impl Library {
    fn new(key: &KeyBytes) -> Library {
        let (data, tweaks) = key.split_at(32);
        let half = |half: &[u8]| Aes256::new_from_slice(half).expect("32 bytes are a key");
        Library {
            data: half(data),
            tweaks: half(tweaks),
        }
    }

    /// Works on whole units, the first of which has this number.
    ///
    /// # Safety
    /// As [`Walk`] says.
    unsafe fn run(&self, number: u64, walk: Walk, way: Way) {
        let mut group = [0; GROUP * UNIT];
        for at in (0..walk.bytes).step_by(group.len()) {
            let part = &mut group[..(walk.bytes - at).min(GROUP * UNIT)];
            // SAFETY: the part lies inside of both, and is neither.
            unsafe {
                walk.from
                    .add(at)
                    .copy_to_nonoverlapping(part.as_mut_ptr(), part.len());
            };
            self.group(number.wrapping_add((at / UNIT) as u64), part, way);
            // SAFETY: as above.
            unsafe {
                walk.into
                    .add(at)
                    .copy_from_nonoverlapping(part.as_ptr(), part.len());
            };
        }
    }

    fn group(&self, mut number: u64, group: &mut [u8], way: Way) {
        let mut tweaks: [Block<Aes256>; GROUP] = Default::default();
        for tweak in &mut tweaks {
            *tweak = u128::from(number).to_le_bytes().into();
            number = number.wrapping_add(1);
        }
        self.tweaks.encrypt_blocks(&mut tweaks);
        let masks = masks(tweaks.map(|tweak| u128::from_le_bytes(tweak.into())));
        let (blocks, _) = Block::<Aes256>::slice_as_chunks_mut(group);
        mask(blocks, masks.as_flattened());
        match way {
            Way::Encrypt => self.data.encrypt_blocks(blocks),
            Way::Decrypt => self.data.decrypt_blocks(blocks),
        }
        mask(blocks, masks.as_flattened());
    }
}

/// What is added to the blocks of each unit, side by side: one doubling waits for the one before.
fn masks(mut tweaks: [u128; GROUP]) -> [[u128; UNIT / CELL]; GROUP] {
    let mut masks = [[0; UNIT / CELL]; GROUP];
    for at in 0..UNIT / CELL {
        for (unit, tweak) in masks.iter_mut().zip(&mut tweaks) {
            unit[at] = *tweak;
            *tweak = doubled(*tweak);
        }
    }
    masks
}

fn mask(blocks: &mut [Block<Aes256>], masks: &[u128]) {
    for (block, mask) in blocks.iter_mut().zip(masks) {
        let masked = u128::from_le_bytes((*block).into()) ^ mask;
        *block = masked.to_le_bytes().into();
    }
}

/// Twice a number of the field of 2^128 elements, by the polynomial of the mode.
fn doubled(tweak: u128) -> u128 {
    (tweak << 1) ^ (0x87 & (tweak >> 127).wrapping_neg())
}

#[cfg(test)]
mod tests {
    use super::*;

    use engine::GuestMem;
    use proptest::prelude::*;

    fn key(text: &str) -> KeyBytes {
        let mut key = KeyBytes::new([0; 64]);
        hex::decode_to_slice(text, &mut *key).unwrap();
        key
    }

    /// IEEE 1619-2018, annex B, vector 10.
    #[test]
    fn the_standard_s_vector_is_met_both_ways() {
        let key = key(concat!(
            "2718281828459045235360287471352662497757247093699959574966967627",
            "3141592653589793238462643383279502884197169399375105820974944592",
        ));
        let wanted = concat!(
            "1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b",
            "5d31e276f8fe4a8d66b317f9ac683f44680a86ac35adfc3345befecb4bb188fd",
            "5776926c49a3095eb108fd1098baec70aaa66999a72a82f27d848b21d4a741b0",
            "c5cd4d5fff9dac89aeba122961d03a757123e9870f8acf1000020887891429ca",
            "2a3e7a7d7df7b10355165c8b9a6d0a7de8b062c4500dc4cd120c0f7418dae3d0",
            "b5781c34803fa75421c790dfe1de1834f280d7667b327f6c8cd7557e12ac3a0f",
            "93ec05c52e0493ef31a12d3d9260f79a289d6a379bc70c50841473d1a8cc81ec",
            "583e9645e07b8d9670655ba5bbcfecc6dc3966380ad8fecb17b6ba02469a020a",
            "84e18e8f84252070c13e9f1f289be54fbc481457778f616015e1327a02b140f1",
            "505eb309326d68378f8374595c849d84f4c333ec4423885143cb47bd71c5edae",
            "9be69a2ffeceb1bec9de244fbe15992b11b77c040f12bd8f6a975a44a0f90c29",
            "a9abc3d4d893927284c58754cce294529f8614dcd2aba991925fedc4ae74ffac",
            "6e333b93eb4aff0479da9a410e4450e0dd7ae4c6e2910900575da401fc07059f",
            "645e8b7e9bfdef33943054ff84011493c27b3429eaedb4ed5376441a77ed4385",
            "1ad77f16f541dfd269d50d6a5f14fb0aab1cbb4c1550be97f7ab4066193c4caa",
            "773dad38014bd2092fa755c824bb5e54c4f36ffda9fcea70b9c6e693e148c151",
        );
        let plain: Vec<u8> = (0..UNIT).map(|at| at as u8).collect();
        for cipher in [Cipher::new(&key), library(&key)] {
            let mut bytes = plain.clone();
            cipher.encrypt(0xFF * UNIT as u64, &mut bytes);
            assert_eq!(hex::encode(&bytes), wanted);
            cipher.decrypt(0xFF * UNIT as u64, &mut bytes);
            assert_eq!(bytes, plain);
        }
    }

    /// Without instructions of this CPU's.
    fn library(key: &KeyBytes) -> Cipher {
        Cipher {
            rounds: Rounds::Library(Box::new(Library::new(key))),
        }
    }

    proptest! {
        #[test]
        fn every_cpu_gives_the_same_bytes(
            key in proptest::array::uniform32(any::<u8>()),
            tweaks in proptest::array::uniform32(any::<u8>()),
            number in 0..u64::MAX / UNIT as u64 - 64,
            units in 1..64_usize,
            fill in any::<u8>(),
        ) {
            let mut keys = KeyBytes::new([0; 64]);
            keys[..32].copy_from_slice(&key);
            keys[32..].copy_from_slice(&tweaks);
            let plain: Vec<u8> = (0..units * UNIT).map(|at| (at / 3) as u8 ^ fill).collect();
            let (wide, narrow) = (Cipher::new(&keys), library(&keys));
            let place = number * UNIT as u64;
            let (mut one, mut other) = (plain.clone(), plain.clone());
            wide.encrypt(place, &mut one);
            narrow.encrypt(place, &mut other);
            prop_assert_eq!(&one, &other);
            wide.decrypt(place, &mut one);
            prop_assert_eq!(one, plain);
        }
    }

    /// Few and many, from and to any byte, and what lies around them stays.
    #[test]
    fn bytes_on_their_way_to_and_from_a_guest_are_as_in_place() {
        const ALL: usize = 256 * UNIT;
        let key = KeyBytes::new(std::array::from_fn(|at| (at * 5) as u8));
        let mem = GuestMem::anonymous(ALL).unwrap();
        let mut buf = vec![0; ALL];
        let aligned = buf.as_ptr().align_offset(64);
        let few = [
            (1, 0),
            (2, 8),
            (7, 511),
            (8, 1),
            (16, 64),
            (17, 33),
            (33, 500),
        ];
        let many = [(64, 0), (65, 32), (80, 96), (128, 33), (200, 4096)];
        for cipher in [Cipher::new(&key), library(&key)] {
            for (units, skew) in few.into_iter().chain(many) {
                for off in [0, 3] {
                    let (len, place) = (units * UNIT, 29 * UNIT as u64);
                    let plain: Vec<u8> = (0..len).map(|at| (at / 5) as u8).collect();
                    let mut wanted = plain.clone();
                    cipher.encrypt(place, &mut wanted);
                    mem.copy_in(0, &vec![0xEE; ALL]).unwrap();
                    mem.copy_in(skew, &plain).unwrap();
                    let window = mem.window(skew, len, 1).unwrap();
                    buf.fill(0xDD);
                    let (before, rest) = buf.split_at_mut(aligned + off);
                    cipher.encrypt_out(place, &window, &mut rest[..len]);
                    assert!(rest[..len] == wanted, "{units} units at {skew}");
                    let mut around = before.iter().chain(&rest[len..]);
                    assert!(around.all(|byte| *byte == 0xDD), "{units} units at {skew}");
                    mem.fill_zero(skew, len).unwrap();
                    cipher.decrypt_in(place, &rest[..len], &window);
                    let mut seen = vec![0; ALL];
                    mem.copy_out(0, &mut seen).unwrap();
                    let (before, rest) = seen.split_at(skew as usize);
                    assert!(rest[..len] == plain, "{units} units at {skew}");
                    let mut around = before.iter().chain(&rest[len..]);
                    assert!(around.all(|byte| *byte == 0xEE), "{units} units at {skew}");
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "as much is written as is read")]
    fn a_guest_s_window_of_another_length_is_refused() {
        let window = GuestMem::anonymous(UNIT).unwrap().window(0, UNIT, 1);
        library(&KeyBytes::new([1; 64])).decrypt_in(0, &[0; 2 * UNIT], &window.unwrap());
    }

    #[test]
    fn units_are_told_apart_by_their_place_and_not_by_how_many_come_together() {
        let cipher = Cipher::new(&KeyBytes::new(std::array::from_fn(|at| at as u8)));
        let mut together = vec![7; 21 * UNIT];
        cipher.encrypt(3 * UNIT as u64, &mut together);
        for (number, unit) in (3..).zip(together.chunks(UNIT)) {
            let mut alone = vec![7; UNIT];
            cipher.encrypt(number * UNIT as u64, &mut alone);
            assert_eq!(alone, unit);
        }
        let mut units: Vec<&[u8]> = together.chunks(UNIT).collect();
        units.sort_unstable();
        units.dedup();
        assert_eq!(units.len(), 21);
    }
}
