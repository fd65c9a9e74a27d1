//! MD5 (RFC 1321) of several streams at once: what one stream cannot do, because each step of MD5
//! waits for the one before, several streams can, one in each lane of a vector.
//!
//! A stream is an [`Md5`]; [`Lanes::update`] takes the next bytes of up to any number of them and
//! puts their whole blocks through the lanes together, as far as they go in step. What a stream
//! finds does not depend on its neighbours, on how its bytes were split, or on the machine. MD5 is
//! here for ETags and Content-MD5 only: it is no protection against anyone.

mod lanes;
mod rounds;
#[cfg(test)]
mod tests;

use lanes::{Block, State};
pub(crate) use lanes::{LANES_MAX, Lanes};

/// Bytes of a block.
const BLOCK_BYTES: usize = size_of::<Block>();
/// Where the length stands in the last block.
const LENGTH_AT: usize = BLOCK_BYTES - size_of::<u64>();

/// A stream between two updates.
#[derive(Clone, Debug)]
pub(crate) struct Md5 {
    state: State,
    /// The start of a block that is not full yet.
    tail: Block,
    /// Bytes so far.
    len: u64,
}

impl Default for Md5 {
    fn default() -> Md5 {
        Md5::new()
    }
}

/// A stream and its next bytes.
#[derive(Debug)]
pub(crate) struct Piece<'a> {
    /// The stream.
    pub(crate) md5: &'a mut Md5,
    /// Its next bytes.
    pub(crate) bytes: &'a [u8],
}

impl Md5 {
    /// A stream of no bytes.
    pub(crate) fn new() -> Md5 {
        Md5 {
            state: rounds::INITIAL,
            tail: [0; BLOCK_BYTES],
            len: 0,
        }
    }

    fn tail_len(&self) -> usize {
        (self.len % BLOCK_BYTES as u64) as usize
    }

    /// The digest of all bytes.
    pub(crate) fn finish(mut self) -> [u8; 16] {
        let (filled, bits) = (self.tail_len(), self.len.wrapping_mul(8));
        let mut last = [[0; BLOCK_BYTES]; 2];
        last[0][..filled].copy_from_slice(&self.tail[..filled]);
        last[0][filled] = 0x80;
        let count = if filled < LENGTH_AT { 1 } else { 2 };
        last[count - 1][LENGTH_AT..].copy_from_slice(&bits.to_le_bytes());
        lanes::scalar(&mut self.state, &last[..count]);
        let mut digest = [0; 16];
        for (bytes, word) in digest.chunks_exact_mut(4).zip(self.state) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        digest
    }

    /// Completes a block that was begun; what is left of the bytes.
    fn top_up<'b>(&mut self, bytes: &'b [u8]) -> &'b [u8] {
        let filled = self.tail_len();
        if filled == 0 {
            return bytes;
        }
        let (front, rest) = bytes.split_at(bytes.len().min(BLOCK_BYTES - filled));
        self.tail[filled..filled + front.len()].copy_from_slice(front);
        self.len += front.len() as u64;
        if filled + front.len() == BLOCK_BYTES {
            lanes::scalar(&mut self.state, &[self.tail]);
        }
        rest
    }
}

impl Lanes {
    /// Takes the next bytes of each stream.
    pub(crate) fn update(self, pieces: &mut [Piece<'_>]) {
        for group in pieces.chunks_mut(LANES_MAX) {
            self.update_group(group);
        }
    }

    fn update_group(self, group: &mut [Piece<'_>]) {
        let mut blocks: [&[Block]; LANES_MAX] = [&[]; LANES_MAX];
        for (piece, blocks) in group.iter_mut().zip(&mut blocks) {
            let rest = piece.md5.top_up(piece.bytes);
            let (whole, tail) = rest.as_chunks::<BLOCK_BYTES>();
            if !rest.is_empty() {
                piece.md5.tail[..tail.len()].copy_from_slice(tail);
                piece.md5.len += rest.len() as u64;
            }
            *blocks = whole;
        }
        // Those with blocks left go on together as far as the shortest of them goes.
        while let Some(common) = blocks.iter().map(|b| b.len()).filter(|len| *len > 0).min() {
            let (mut states, mut fronts) = ([State::default(); LANES_MAX], [&[][..]; LANES_MAX]);
            let mut count = 0;
            for (piece, left) in group
                .iter()
                .zip(&blocks)
                .filter(|(_, left)| !left.is_empty())
            {
                states[count] = piece.md5.state;
                fronts[count] = &left[..common];
                count += 1;
            }
            self.run(&mut states[..count], &fronts[..count]);
            let mut advanced = states[..count].iter();
            for (piece, left) in group.iter_mut().zip(&mut blocks) {
                if !left.is_empty() {
                    piece.md5.state = *advanced.next().expect("each that ran has a state");
                    *left = &left[common..];
                }
            }
        }
    }
}
