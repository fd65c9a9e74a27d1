//! Hashes that choose a slot of a ring. User space asks them too, to explain where a flow goes.
//!
//! A multiplication and a fold per word, 64 bits wide: few instructions, and every bit of the input
//! reaches the upper half, which is what [`slot_of`] looks at.

use crate::{Addr, FlowKey};

const SEED: u64 = 0x9E37_79B9_7F4A_7C15;
const FACTOR: u64 = 0xD6E8_FEB8_6659_FD93;

#[inline(always)]
fn mix(state: u64, word: u64) -> u64 {
    let state = (state ^ word).wrapping_mul(FACTOR);
    state ^ (state >> 32)
}

#[inline(always)]
fn pair(high: u32, low: u32) -> u64 {
    (u64::from(high) << 32) | u64::from(low)
}

#[inline(always)]
fn mix_addr(state: u64, addr: &Addr) -> u64 {
    let state = mix(state, pair(addr.words[0], addr.words[1]));
    mix(state, pair(addr.words[2], addr.words[3]))
}

#[inline(always)]
fn finish(state: u64) -> u32 {
    mix(state, SEED) as u32
}

/// Of both addresses, both ports and the protocol.
#[inline(always)]
pub fn hash_flow(key: &FlowKey) -> u32 {
    let state = mix_addr(mix_addr(SEED, &key.src), &key.dst);
    let ports = (u32::from(key.sport) << 16) | u32::from(key.dport);
    finish(mix(state, pair(ports, key.proto)))
}

/// Of both addresses and the protocol.
#[inline(always)]
pub fn hash_three(key: &FlowKey) -> u32 {
    let state = mix_addr(mix_addr(SEED, &key.src), &key.dst);
    finish(mix(state, pair(0, key.proto)))
}

/// Of the source address.
#[inline(always)]
pub fn hash_source(key: &FlowKey) -> u32 {
    finish(mix_addr(SEED, &key.src))
}

/// The slot of a ring of `len` slots.
#[inline(always)]
pub fn slot_of(hash: u32, len: u32) -> u32 {
    ((u64::from(hash) * u64::from(len)) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts over `bins` of what `hash` makes of many alike keys.
    fn spread(bins: usize, hash: impl Fn(u32) -> u32) -> (u32, u32) {
        let mut counts = [0_u32; 64];
        for at in 0..bins as u32 * 1000 {
            counts[slot_of(hash(at), bins as u32) as usize] += 1;
        }
        let used = &counts[..bins];
        (*used.iter().min().unwrap(), *used.iter().max().unwrap())
    }

    #[test]
    fn keys_that_differ_in_one_field_spread_evenly() {
        let key = FlowKey {
            src: Addr::v4(0x0100_000a),
            dst: Addr::v4(0x0a00_000a),
            sport: 1,
            dport: 80_u16.to_be(),
            proto: 6,
        };
        let by_port = |at: u32| {
            hash_flow(&FlowKey {
                sport: (at as u16).to_be(),
                ..key
            })
        };
        let by_addr = |at: u32| {
            hash_source(&FlowKey {
                src: Addr::v4(at.to_be()),
                ..key
            })
        };
        let by_three = |at: u32| {
            hash_three(&FlowKey {
                src: Addr::v4(at.to_be()),
                ..key
            })
        };
        for (what, (least, most)) in [
            ("port", spread(50, by_port)),
            ("source", spread(64, by_addr)),
            ("three", spread(64, by_three)),
        ] {
            assert!(least > 800 && most < 1200, "{what}: {least} to {most}");
        }
    }

    #[test]
    fn each_hash_sees_its_fields_and_no_others() {
        let key = FlowKey::default();
        let port = FlowKey { sport: 7, ..key };
        let dst = FlowKey {
            dst: Addr::v4(9),
            ..key
        };
        assert_ne!(hash_flow(&key), hash_flow(&port));
        assert_eq!(hash_three(&key), hash_three(&port));
        assert_ne!(hash_three(&key), hash_three(&dst));
        assert_eq!(hash_source(&key), hash_source(&dst));
    }

    #[test]
    fn a_slot_is_within_its_ring() {
        assert_eq!(slot_of(0, 65_537), 0);
        assert_eq!(slot_of(u32::MAX, 65_537), 65_536);
        assert_eq!(slot_of(u32::MAX, 1), 0);
    }
}
