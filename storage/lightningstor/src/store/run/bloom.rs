//! Whether a run may have a name: a Bloom filter whose probes stay in one cache line (Putze, Sanders,
//! Singler: "Cache-, Hash- and Space-Efficient Bloom Filters").
//!
//! It errs to one side only: a name that was added is always found. At 10 bits a name about one in
//! a hundred others is found too, and costs the read of a block.

use std::cmp::Reverse;

use shards::placement::resource_hash;

use crate::store::index::Rank;

const BITS_PER_NAME: u64 = 10;
const LINE_BITS: u64 = 512;
const LINE_WORDS: usize = 8;
const PROBES: u32 = 6;
/// Words of an encoded piece.
const PIECE_WORDS: usize = 4096;

/// The filter of one run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::store) struct Bloom {
    words: Vec<u64>,
}

/// The hash that stands for a name in filters, the same for ever.
pub(in crate::store) fn hash_of((bucket, key, Reverse(version)): Rank<'_>) -> u64 {
    resource_hash(&[&bucket.0.to_le_bytes(), key, &version.to_le_bytes()])
}

impl Bloom {
    /// An empty filter for a number of names.
    pub(super) fn for_names(names: u64) -> Bloom {
        let lines = (names * BITS_PER_NAME).div_ceil(LINE_BITS).max(1) as usize;
        Bloom {
            words: vec![0; lines * LINE_WORDS],
        }
    }

    fn line(&self, hash: u64) -> usize {
        let lines = (self.words.len() / LINE_WORDS) as u64;
        (((hash >> 32) * lines) >> 32) as usize * LINE_WORDS
    }

    /// Bits of a line that a hash sets: (word, mask).
    fn bits(hash: u64) -> impl Iterator<Item = (usize, u64)> {
        // The line is chosen by the high half, its bits by the low one.
        let low = hash as u32;
        let step = low.rotate_left(15) | 1;
        (0..PROBES).map(move |probe| {
            let bit = low.wrapping_add(step.wrapping_mul(probe)) >> 23;
            ((bit >> 6) as usize, 1 << (bit & 63))
        })
    }

    pub(super) fn add(&mut self, hash: u64) {
        let line = self.line(hash);
        for (word, mask) in Self::bits(hash) {
            self.words[line + word] |= mask;
        }
    }

    /// False only for a hash that was not added.
    pub(in crate::store) fn may_have(&self, hash: u64) -> bool {
        let line = self.line(hash);
        Self::bits(hash).all(|(word, mask)| self.words[line + word] & mask != 0)
    }

    /// Its bytes, in pieces.
    pub(super) fn encode(&self) -> impl Iterator<Item = Vec<u8>> + '_ {
        let bytes = |piece: &[u64]| piece.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.words.chunks(PIECE_WORDS).map(bytes)
    }

    /// `None` when the bytes are no whole lines.
    pub(super) fn decode(bytes: &[u8]) -> Option<Bloom> {
        let whole = !bytes.is_empty() && bytes.len().is_multiple_of(LINE_WORDS * 8);
        let word = |chunk: &[u8]| {
            let mut word = [0; 8];
            word.copy_from_slice(chunk);
            u64::from_le_bytes(word)
        };
        whole.then(|| Bloom {
            words: bytes.chunks_exact(8).map(word).collect(),
        })
    }

    /// Memory that it takes.
    pub(super) fn bytes(&self) -> usize {
        self.words.len() * 8
    }
}
