//! Known digests, and the same bits as `md-5` for any lengths, splits and mixes of lanes.

use md5::Digest as _;
use proptest::prelude::*;

use super::*;

fn expected(bytes: &[u8]) -> [u8; 16] {
    md5::Md5::digest(bytes).into()
}

fn one(lanes: Lanes, bytes: &[u8]) -> [u8; 16] {
    let mut md5 = Md5::new();
    lanes.update(&mut [Piece {
        md5: &mut md5,
        bytes,
    }]);
    md5.finish()
}

/// Bytes that differ between streams and positions.
fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

#[test]
fn the_test_suite_of_the_rfc() {
    let suite: [(&[u8], u128); 4] = [
        (b"", 0xd41d_8cd9_8f00_b204_e980_0998_ecf8_427e),
        (b"a", 0x0cc1_75b9_c0f1_b6a8_31c3_99e2_6977_2661),
        (b"message digest", 0xf96b_697d_7cb7_938d_525a_2f31_aaf1_61d0),
        (
            b"12345678901234567890123456789012345678901234567890123456789012345678901234567890",
            0x57ed_f4a2_2be3_c955_ac49_da2e_2107_b67a,
        ),
    ];
    for lanes in [Lanes::detect(), Lanes::portable()] {
        for (text, digest) in suite {
            assert_eq!(one(lanes, text), digest.to_be_bytes(), "{text:?}");
        }
    }
}

#[test]
fn every_length_around_the_padding() {
    let text = bytes(7, 200);
    for len in 0..=text.len() {
        for lanes in [Lanes::detect(), Lanes::portable()] {
            assert_eq!(
                one(lanes, &text[..len]),
                expected(&text[..len]),
                "{len} bytes"
            );
        }
    }
}

#[test]
fn every_number_of_lanes() {
    for count in 0..=2 * LANES_MAX + 1 {
        let texts: Vec<Vec<u8>> = (0..count)
            .map(|lane| bytes(lane as u64 + 1, 64 * (lane % 5 + 3) + lane))
            .collect();
        let mut sums = vec![Md5::new(); count];
        let lanes = Lanes::detect();
        let pieces = sums.iter_mut().zip(&texts);
        let mut pieces: Vec<Piece<'_>> = pieces.map(|(md5, bytes)| Piece { md5, bytes }).collect();
        lanes.update(&mut pieces);
        for (lane, (sum, text)) in sums.into_iter().zip(&texts).enumerate() {
            assert_eq!(sum.finish(), expected(text), "lane {lane} of {count}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Each turn gives some of the streams some of their next bytes.
    #[test]
    fn any_lengths_splits_and_mixes_give_the_digest(
        turns in proptest::collection::vec(
            proptest::collection::vec((any::<bool>(), 0_usize..400), 1..12),
            0..8,
        ),
        portable in any::<bool>(),
    ) {
        let lanes = if portable { Lanes::portable() } else { Lanes::detect() };
        let mut streams: Vec<(Md5, Vec<u8>)> = vec![Default::default(); 12];
        for (number, turn) in turns.iter().enumerate() {
            let mut next: Vec<Vec<u8>> = Vec::new();
            for (stream, (joins, len)) in turn.iter().enumerate() {
                let fresh = bytes((number * 16 + stream) as u64 + 1, *len);
                next.push(if *joins { fresh } else { Vec::new() });
            }
            let mut pieces = Vec::new();
            for ((md5, whole), bytes) in streams.iter_mut().zip(&next) {
                whole.extend_from_slice(bytes);
                pieces.push(Piece { md5, bytes });
            }
            lanes.update(&mut pieces);
        }
        for (md5, whole) in streams {
            prop_assert_eq!(md5.finish(), expected(&whole));
        }
    }
}
