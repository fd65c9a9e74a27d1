//! What the objects hold: bytes that can be made again from a key's number, and the shape of bodies
//! that the load writes.
//!
//! Every body differs from every other in each of its 64 KiB, so that a server which stores equal
//! blocks once gains nothing. A written body is a stamp and a part of the pool, piece by piece.
#![forbid(unsafe_code)]

use anyhow::{Result, ensure};

/// Bytes of the pool, and of a written body's piece.
pub const PIECE_BYTES: usize = 64 << 10;
/// Bytes of the stamp that opens each piece: 16 hexadecimal digits.
pub const STAMP_BYTES: usize = 16;
/// The seed of the pool; the keys' numbers are far below it.
const POOL_SEED: u64 = 1 << 60;

/// The body of the object with this number, of `bytes` bytes.
pub fn stored(number: u64, bytes: usize) -> Vec<u8> {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ bytes as u64;
    let mut body = Vec::with_capacity(bytes + 8);
    while body.len() < bytes {
        body.extend(next(&mut state).to_le_bytes());
    }
    body.truncate(bytes);
    body
}

/// What follows the stamps of written bodies.
pub fn pool() -> Vec<u8> {
    stored(POOL_SEED, PIECE_BYTES)
}

/// SplitMix64: fast, and no two states give the same sequence.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Refuses a body that no request of the load has written whole.
pub fn check_written(body: &[u8], bytes: usize, pool: &[u8]) -> Result<()> {
    ensure!(
        body.len() == bytes,
        "a written object has {} bytes, expected {bytes}",
        body.len()
    );
    let mut before: Option<&[u8]> = None;
    for (at, piece) in body.chunks(PIECE_BYTES).enumerate() {
        let offset = at * PIECE_BYTES;
        let (stamp, rest) = piece.split_at(STAMP_BYTES.min(piece.len()));
        ensure!(
            stamp.iter().all(u8::is_ascii_hexdigit) && before != Some(stamp),
            "a written object has no stamp of its own at {offset}"
        );
        // Stamps of one body share all but the piece's number, their last two digits.
        ensure!(
            before.is_none_or(|before| before[..STAMP_BYTES - 2] == stamp[..STAMP_BYTES - 2]),
            "a written object mixes two bodies at {offset}"
        );
        ensure!(
            pool.starts_with(rest),
            "a written object differs from what was sent after {offset}"
        );
        before = Some(stamp);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(pieces: usize) -> Vec<u8> {
        let pool = pool();
        let piece = |at: usize| {
            let stamp = format!("{:08x}{:06x}{at:02x}", 3, 77).into_bytes();
            [&stamp, &pool[..PIECE_BYTES - STAMP_BYTES]].concat()
        };
        (0..pieces).flat_map(piece).collect()
    }

    fn check(body: &[u8], bytes: usize) -> Result<()> {
        check_written(body, bytes, &pool())
    }

    #[test]
    fn bodies_can_be_made_again_and_differ() {
        assert_eq!(stored(7, 4096), stored(7, 4096));
        assert_ne!(stored(7, 4096), stored(8, 4096));
        assert_eq!(stored(7, 4097).len(), 4097);
        let big = stored(1, 4 * PIECE_BYTES);
        let pieces: Vec<_> = big.chunks(PIECE_BYTES).collect();
        assert!(pieces.windows(2).all(|pair| pair[0] != pair[1]));
    }

    #[test]
    fn a_body_of_the_load_is_whole() {
        check(&written(1), PIECE_BYTES).unwrap();
        check(&written(3), 3 * PIECE_BYTES).unwrap();
        check(&written(1)[..4096], 4096).unwrap();
    }

    #[test]
    fn a_body_that_lacks_changed_or_mixes_bytes_is_refused() {
        let good = written(2);
        assert!(check(&good[1..], good.len()).is_err());
        for at in [0, STAMP_BYTES, PIECE_BYTES + 3, good.len() - 1] {
            let mut bad = good.clone();
            bad[at] = b'!';
            assert!(check(&bad, good.len()).is_err(), "byte {at}");
        }
        let doubled = [&good[..PIECE_BYTES], &good[..PIECE_BYTES]].concat();
        assert!(check(&doubled, good.len()).is_err());
        let mut mixed = good.clone();
        mixed[PIECE_BYTES] = b'f';
        assert!(check(&mixed, good.len()).is_err());
    }
}
