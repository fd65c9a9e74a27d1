//! Snapshots for the fuzz target.

use bytes::BufMut as _;
use crc_fast::{CrcAlgorithm, Digest};

use super::{HEAD, KIND_END, KIND_ROWS, MAGIC, crc32c};

/// How many whole rows a payload begins with, and where they end.
fn rows(payload: &[u8]) -> (u64, usize) {
    let (mut count, mut at) = (0, 0);
    while at + 9 <= payload.len() {
        let len = |from: usize| {
            let mut field = [0; 4];
            field.copy_from_slice(&payload[from..from + 4]);
            u32::from_le_bytes(field) as usize
        };
        let end = at + 9 + len(at + 1).saturating_add(len(at + 5));
        if end > payload.len() {
            break;
        }
        (count, at) = (count + 1, end);
    }
    (count, at)
}

fn chunk(number: u64, kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut chunk = MAGIC.to_vec();
    chunk.put_u64_le(number);
    chunk.put_u8(kind);
    chunk.put_slice(payload);
    let crc = crc32c(&chunk);
    chunk.put_u32_le(crc);
    chunk
}

/// The rows of chunks in chunks that are right, with an end.
pub(crate) fn put_right(chunks: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut right = Vec::new();
    let (mut count, mut chain) = (0, Digest::new(CrcAlgorithm::Crc32Iscsi));
    for given in chunks {
        let Some(payload) = given.get(HEAD..) else {
            continue;
        };
        let (rows, end) = rows(payload);
        let chunk = chunk(right.len() as u64, KIND_ROWS, &payload[..end]);
        chain.update(&chunk[chunk.len() - 4..]);
        right.push(chunk);
        count += rows;
    }
    let mut end = Vec::new();
    end.put_u64_le(count);
    end.put_u32_le(chain.finalize() as u32);
    right.push(chunk(right.len() as u64, KIND_END, &end));
    right
}
