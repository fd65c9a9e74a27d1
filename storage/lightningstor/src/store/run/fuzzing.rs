//! What the fuzzer calls: parts of a run of any bytes.

use std::rc::Rc;

use super::*;
use crate::store::index::{ObjectEntry, Shown};

/// Where the blocks of a file end.
const FILE_BYTES: u64 = 1 << 30;

/// A block, with the entries of its slots.
pub fn block(data: &[u8]) {
    let Ok(block) = Block::parse(data.into()) else {
        return;
    };
    let block = Rc::new(block);
    let mut again = BlockBuilder::default();
    let mut walked = Some(block.slot(0));
    for number in 0..block.len() {
        let (rank, entry) = (block.rank(number), block.entry(number));
        let slot = walked.expect("a walk ends behind the last slot");
        assert_eq!((slot.rank(), slot.entry()), (rank, entry));
        // Their order is the writer's, so that it may not be found.
        if let Some(found) = block.find(rank) {
            assert_eq!(block.rank(found), rank);
        }
        entry.into_iter().for_each(object);
        again.push(rank, entry);
        walked = slot.next();
    }
    assert!(walked.is_none(), "a walk ends behind the last slot");
    let mut bytes = Vec::new();
    again.finish(&mut bytes);
    assert!(bytes == data, "a block has one form");
}

fn object(bytes: &[u8]) {
    let mut from = Reader::new(bytes);
    let Ok(entry) = ObjectEntry::decode(&mut from) else {
        return;
    };
    assert_eq!(Shown::decode(bytes), Ok(entry.shown()));
    let mut again = Writer::default();
    entry.encode(&mut again);
    assert!(again.bytes == bytes[..from.at()], "an entry has one form");
}

/// What stands beside the blocks: a foot as it comes and with magic, version and CRC put right, a
/// table, a filter.
pub fn frame(data: &[u8]) {
    let _ = Foot::decode(data);
    if let Some(Ok(foot)) = with_foot(data).map(|right| Foot::decode(&right)) {
        assert_eq!(Foot::decode(&foot.encode()), Ok(foot));
    }
    if let Ok(blocks) = decode_table(data, FILE_BYTES) {
        assert!(blocks.iter().all(|block| block.end() <= FILE_BYTES));
        assert!(blocks.is_sorted_by(|a, b| a.rank() < b.rank()));
        assert!(
            encode_table(&blocks).collect::<Vec<_>>().concat() == data,
            "a table has one form"
        );
    }
    if let Some(mut bloom) = Bloom::decode(data) {
        assert!(
            bloom.encode().collect::<Vec<_>>().concat() == data,
            "a filter has one form"
        );
        let hash = crc_fast::crc64_nvme(data);
        bloom.add(hash);
        assert!(bloom.may_have(hash));
    }
}

fn with_foot(data: &[u8]) -> Option<Vec<u8>> {
    let mut right = data.get(..FOOT_BYTES)?.to_vec();
    right[..4].copy_from_slice(&MAGIC);
    right[4..8].copy_from_slice(&FORMAT.to_le_bytes());
    let crc = crc_fast::crc64_nvme(&right[..FOOT_BYTES - 8]);
    right[FOOT_BYTES - 8..].copy_from_slice(&crc.to_le_bytes());
    Some(right)
}
