//! Pieces of a disk's content, and their digest.

use std::pin::Pin;

use bytes::Bytes;
use futures_util::stream::{self, Stream, StreamExt, TryStreamExt};
use sha2::{Digest, Sha256};

use crate::client::Client;
use crate::error::ClientError;

/// Most bytes of a piece of data.
pub(super) const PIECE: u64 = 1 << 20;
/// What is all zeros in units of this is left out.
pub(super) const GRAIN: u64 = 64 << 10;
/// Pieces that are read or written at once.
pub(super) const IN_FLIGHT: usize = 8;
/// What one block status asks for: a multiple of any size of blocks.
const STATUS_BYTES: u64 = 1 << 30;

/// A part of a disk.
#[derive(Clone, Debug)]
pub(super) enum Piece {
    Zeros { offset: u64, len: u64 },
    Data { offset: u64, data: Bytes },
}

impl Piece {
    pub(super) fn offset(&self) -> u64 {
        match self {
            Piece::Zeros { offset, .. } | Piece::Data { offset, .. } => *offset,
        }
    }

    pub(super) fn len(&self) -> u64 {
        match self {
            Piece::Zeros { len, .. } => *len,
            Piece::Data { data, .. } => data.len() as u64,
        }
    }
}

/// Cuts data into what is all zeros and what is not, in whole grains of the disk.
pub(super) fn split(offset: u64, data: &Bytes) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut start = 0;
    let mut zero = None;
    let mut put = |from: usize, to: usize, zero: bool| {
        let at = offset + from as u64;
        pieces.push(if zero {
            let len = (to - from) as u64;
            Piece::Zeros { offset: at, len }
        } else {
            let data = data.slice(from..to);
            Piece::Data { offset: at, data }
        });
    };
    let mut at = 0;
    while at < data.len() {
        let to_next = GRAIN - (offset + at as u64) % GRAIN;
        let end = data.len().min(at + to_next as usize);
        let is_zero = is_zero(&data[at..end]);
        if let Some(was) = zero.filter(|was| *was != is_zero) {
            put(start, at, was);
            start = at;
        }
        zero = Some(is_zero);
        at = end;
    }
    if let Some(zero) = zero {
        put(start, at, zero);
    }
    pieces
}

fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<16>();
    words.iter().all(|word| u128::from_ne_bytes(*word) == 0) && rest.iter().all(|byte| *byte == 0)
}

/// A digest of a disk, of pieces in order: zeros count for nothing, whether they are stored or not.
#[derive(Default)]
pub(super) struct ContentDigest {
    hasher: Sha256,
    data_bytes: u64,
    /// A grain of which the first bytes are here.
    partial: Vec<u8>,
    partial_at: u64,
}

impl ContentDigest {
    pub(super) fn update(&mut self, piece: &Piece) {
        match piece {
            Piece::Zeros { offset, len } => self.zeros(*offset, *len),
            Piece::Data { offset, data } => self.data(*offset, data),
        }
    }

    fn zeros(&mut self, offset: u64, len: u64) {
        if !self.partial.is_empty() {
            let missing = (GRAIN - self.partial.len() as u64).min(len);
            self.data(offset, &vec![0; missing as usize]);
            if len > missing {
                self.zeros(offset + missing, len - missing);
            }
            return;
        }
        // It begins at a grain, as pieces follow each other. Data may follow in its last one.
        let tail = (offset + len) % GRAIN;
        self.data(offset + len - tail, &vec![0; tail as usize]);
    }

    fn data(&mut self, mut offset: u64, mut data: &[u8]) {
        while !data.is_empty() {
            let to_next = (GRAIN - offset % GRAIN) as usize;
            let (part, rest) = data.split_at(data.len().min(to_next));
            if part.len() as u64 == GRAIN {
                self.grain(offset, part);
            } else {
                if self.partial.is_empty() {
                    self.partial_at = offset;
                }
                self.partial.extend(part);
                if part.len() == to_next {
                    self.end_partial();
                }
            }
            (offset, data) = (offset + part.len() as u64, rest);
        }
    }

    fn end_partial(&mut self) {
        let partial = std::mem::take(&mut self.partial);
        self.grain(self.partial_at, &partial);
    }

    fn grain(&mut self, offset: u64, data: &[u8]) {
        if is_zero(data) {
            return;
        }
        let end = data.len() - data.iter().rev().take_while(|byte| **byte == 0).count();
        self.data_bytes += data.len() as u64;
        self.hasher.update(offset.to_be_bytes());
        self.hasher.update((end as u64).to_be_bytes());
        self.hasher.update(&data[..end]);
    }

    /// The digest in text, and the bytes that were not all zeros.
    pub(super) fn finish(mut self) -> (String, u64) {
        if !self.partial.is_empty() {
            self.end_partial();
        }
        (hex::encode(self.hasher.finalize()), self.data_bytes)
    }
}

type Spans<'a> = Pin<Box<dyn Stream<Item = Result<(u64, u64, bool), ClientError>> + Send + 'a>>;

/// What the server says of an export, in order: offset, length, and whether it is zeros; data in pieces.
fn spans(client: &Client) -> Spans<'_> {
    let extents = stream::try_unfold(0, move |at| async move {
        let left = client.bytes() - at;
        if left == 0 {
            return Ok::<_, ClientError>(None);
        }
        let extents = client
            .block_status(at, left.min(STATUS_BYTES) as u32)
            .await?;
        let mut spans = Vec::new();
        let mut next = at;
        for extent in extents {
            let end = next + extent.bytes;
            while next < end {
                let most = if extent.zero { u64::MAX } else { PIECE };
                let len = most.min(end - next);
                spans.push(Ok((next, len, extent.zero)));
                next += len;
            }
        }
        Ok(Some((stream::iter(spans), next)))
    });
    Box::pin(extents.try_flatten())
}

/// All of an export, in order.
pub(super) fn content(
    client: &Client,
) -> impl Stream<Item = Result<Piece, ClientError>> + Send + '_ {
    let reads = spans(client).map(move |span| async move {
        let (offset, len, zero) = span?;
        if zero {
            return Ok(Piece::Zeros { offset, len });
        }
        let data = client.read(offset, len as u32).await?.into();
        Ok(Piece::Data { offset, data })
    });
    reads.buffered(IN_FLIGHT)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(pieces: &[Piece]) -> (String, u64) {
        let mut digest = ContentDigest::default();
        for piece in pieces {
            digest.update(piece);
        }
        digest.finish()
    }

    fn data(offset: u64, len: u64, byte: u8) -> Piece {
        let data = vec![byte; len as usize].into();
        Piece::Data { offset, data }
    }

    fn zeros(offset: u64, len: u64) -> Piece {
        Piece::Zeros { offset, len }
    }

    #[test]
    fn data_is_cut_into_grains_of_the_disk() {
        let mut bytes = vec![0; 4 * GRAIN as usize];
        bytes[GRAIN as usize + 5] = 1;
        let lens = |offset| -> Vec<(u64, bool)> {
            let pieces = split(offset, &Bytes::from(bytes.clone()));
            let zero = |piece: &Piece| matches!(piece, Piece::Zeros { .. });
            pieces
                .iter()
                .map(|piece| (piece.len(), zero(piece)))
                .collect()
        };
        let grains = [(GRAIN, true), (GRAIN, false), (2 * GRAIN, true)];
        assert_eq!(lens(GRAIN), grains);
        let moved = [(GRAIN - 512, true), (GRAIN, false), (2 * GRAIN + 512, true)];
        assert_eq!(lens(512), moved);
    }

    #[test]
    fn equal_disks_have_equal_digests_however_they_come() {
        let whole = [
            zeros(0, 3 * GRAIN),
            data(3 * GRAIN, GRAIN, 7),
            zeros(4 * GRAIN, GRAIN),
        ];
        let (wanted, bytes) = digest(&whole);
        assert_eq!(bytes, GRAIN);
        let at = 3 * GRAIN;
        for pieces in [
            vec![
                zeros(0, 512),
                zeros(512, at - 512),
                data(at, 512, 7),
                data(at + 512, GRAIN - 512, 7),
            ],
            vec![data(0, at, 0), data(at, GRAIN, 7)],
            vec![
                data(0, 512, 0),
                zeros(512, at - 1024),
                data(at - 512, 512, 0),
                data(at, GRAIN, 7),
            ],
            vec![zeros(0, at), data(at, GRAIN, 7), data(at + GRAIN, 100, 0)],
        ] {
            assert_eq!(digest(&pieces).0, wanted, "{pieces:?}");
        }
        // A grain of which a part is a hole.
        let (half, _) = digest(&[zeros(0, 512), data(512, 512, 3), zeros(1024, GRAIN)]);
        let (same, _) = digest(&[data(0, 512, 0), data(512, 512, 3), data(1024, 4096, 0)]);
        assert_eq!(half, same);
        for other in [
            vec![data(at, GRAIN, 8)],
            vec![data(at + GRAIN, GRAIN, 7)],
            vec![data(at, GRAIN - 512, 7)],
        ] {
            assert_ne!(digest(&other).0, wanted, "{other:?}");
        }
    }
}
