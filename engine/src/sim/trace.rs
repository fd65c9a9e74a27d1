//! A running hash over everything that happens in a world, and the last events in clear for the
//! report of a failed run. Two runs with equal hashes took the same steps.

use std::collections::VecDeque;
use std::fmt;

use crate::time::Nanos;

/// Events kept in clear.
const RECENT_MAX: usize = 48;

/// One thing that happened.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record {
    pub(super) at: Nanos,
    pub(super) node: u32,
    pub(super) shard: u32,
    pub(super) kind: &'static str,
    pub(super) result: i64,
    /// [`digest`] of the bytes that moved; 0 without any.
    pub(super) bytes: u64,
}

#[derive(Debug)]
pub(super) struct Trace {
    hash: u64,
    count: u64,
    recent: VecDeque<Record>,
}

impl Trace {
    pub(super) fn new(seed: u64) -> Trace {
        Trace {
            hash: mix(seed, 0x5EED),
            count: 0,
            recent: VecDeque::new(),
        }
    }

    pub(super) fn hash(&self) -> u64 {
        self.hash
    }

    pub(super) fn record(&mut self, record: Record) {
        let mut hash = mix(self.hash, record.at.0);
        hash = mix(hash, u64::from(record.node) << 32 | u64::from(record.shard));
        hash = mix(hash, digest(record.kind.as_bytes()));
        hash = mix(hash, record.result.cast_unsigned());
        self.hash = mix(hash, record.bytes);
        self.count += 1;
        if self.recent.len() == RECENT_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back(record);
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} events, hash {:016x}; the last ones:",
            self.count, self.hash
        )?;
        for r in &self.recent {
            writeln!(
                f,
                "  {} node {} shard {} {} = {}",
                r.at, r.node, r.shard, r.kind, r.result
            )?;
        }
        Ok(())
    }
}

/// Mixes a word into a hash (the finaliser of SplitMix64 over the sum).
fn mix(hash: u64, word: u64) -> u64 {
    let mut z = hash
        .rotate_left(5)
        .wrapping_add(word)
        .wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A checksum of bytes: order and length matter.
pub(super) fn digest(bytes: &[u8]) -> u64 {
    let mut hash = bytes.len() as u64;
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        hash = mix(hash, u64::from_le_bytes(*word));
    }
    for byte in rest {
        hash = mix(hash, u64::from(*byte));
    }
    hash
}
