//! SHA-256 (FIPS 180-4) over an image chunk by chunk, whose state between chunks can be stored. Sans-IO,
//! but it gives others their turn.

use sha2::block_api::compress256;
use sha2::{Digest, Sha256};

/// Bytes that are hashed without a break: some 200 us at worst.
const STEP: usize = 64 << 10;
/// Bytes of a block of SHA-256.
const BLOCK: usize = 64;
/// Words before anything is hashed.
const START: [u32; 8] = [
    0x6a09_e667,
    0xbb67_ae85,
    0x3c6e_f372,
    0xa54f_f53a,
    0x510e_527f,
    0x9b05_688c,
    0x1f83_d9ab,
    0x5be0_cd19,
];

/// The hash over the first chunks of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Running {
    chunks: u64,
    words: [u32; 8],
}

impl Default for Running {
    fn default() -> Running {
        Running {
            chunks: 0,
            words: START,
        }
    }
}

impl Running {
    pub(crate) fn new(chunks: u64, words: [u32; 8]) -> Running {
        Running { chunks, words }
    }

    pub(crate) fn chunks(&self) -> u64 {
        self.chunks
    }

    pub(crate) fn words(&self) -> &[u32; 8] {
        &self.words
    }

    /// Passes over chunks that nobody wants hashed.
    pub(crate) fn skip_to(&mut self, chunks: u64) {
        self.chunks = chunks;
    }

    /// Adds the next chunk, which is not the last.
    ///
    /// # Panics
    /// When it is no whole number of blocks.
    pub(crate) async fn add(&mut self, chunk: &[u8]) {
        assert!(chunk.len().is_multiple_of(BLOCK), "chunks are whole");
        for step in chunk.chunks(STEP) {
            compress256(&mut self.words, step.as_chunks().0);
            engine::yield_if_needed().await;
        }
        self.chunks += 1;
    }

    /// Adds the last chunk of an image of `bytes`: the words are its digest then.
    pub(crate) async fn add_last(&mut self, chunk: &[u8], bytes: u64) {
        let whole = chunk.len() / BLOCK * BLOCK;
        self.add(&chunk[..whole]).await;
        // The rest, a bit that is set, zeros, and the number of bits.
        let mut end = chunk[whole..].to_vec();
        end.push(0x80);
        end.resize((end.len() + 8).next_multiple_of(BLOCK) - 8, 0);
        end.extend_from_slice(&(bytes * 8).to_be_bytes());
        compress256(&mut self.words, end.as_chunks().0);
    }

    /// The words as a digest is written.
    pub(crate) fn digest(&self) -> [u8; 32] {
        let mut digest = [0; 32];
        for (into, word) in digest.chunks_mut(4).zip(self.words) {
            into.copy_from_slice(&word.to_be_bytes());
        }
        digest
    }
}

/// The hash of a chunk alone.
pub(crate) async fn of_chunk(chunk: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for step in chunk.chunks(STEP) {
        hash.update(step);
        engine::yield_if_needed().await;
    }
    hash.finalize().into()
}
