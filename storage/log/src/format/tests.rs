//! The format's laws: what was encoded decodes to itself, and no damage goes unseen or does harm.

use engine::Rng;
use proptest::prelude::*;

use super::*;

const START: Position = Position {
    segment: 7,
    offset: 8192,
};

fn segment() -> SegmentHeader {
    SegmentHeader {
        number: 7,
        salt: 0x0123_4567_89AB_CDEF,
        bytes: 64 << 10,
    }
}

fn seal() -> Seal {
    Seal {
        end: 16_384,
        first: 10,
        last: 19,
        sequence: 5,
        incarnation: 2,
    }
}

fn batch_of(records: &[(u8, Vec<u8>)], first: u64) -> (BatchHeader, Vec<u8>) {
    let mut bytes = vec![0; BATCH_HEADER];
    for (index, (kind, payload)) in records.iter().enumerate() {
        let start = bytes.len();
        bytes.resize(start + record_span(payload.len()), 0xAA);
        let (left, right) = payload.split_at(payload.len() / 3);
        encode_record(
            &mut bytes[start..],
            first + index as u64,
            *kind,
            &[left, right],
        );
    }
    let used = bytes.len();
    bytes.resize(batch_span(used - BATCH_HEADER), 0);
    let header = BatchHeader {
        bytes: bytes.len() as u32,
        sequence: 9,
        durable: 7,
        first,
        incarnation: 3,
        records: records.len() as u32,
        used: used as u32,
        kind: BatchKind::Records,
    };
    header.encode(&segment(), &mut bytes);
    (header, bytes)
}

type Shown = Vec<(u64, u8, Vec<u8>, Position, u32)>;

fn show(header: &BatchHeader, batch: &[u8]) -> Result<Shown, (usize, &'static str)> {
    let mut shown = Vec::new();
    let done: Result<(), ()> = each_record(header, batch, START, |r| {
        shown.push((r.lsn.0, r.kind, r.payload.to_vec(), r.position, r.len));
        Ok(())
    })?;
    assert_eq!(done, Ok(()));
    Ok(shown)
}

proptest! {
    #[test]
    fn a_batch_decodes_to_its_records(
        records in prop::collection::vec((any::<u8>(), prop::collection::vec(any::<u8>(), 0..300)), 0..20),
        first in 1..u64::MAX / 2,
    ) {
        let (header, bytes) = batch_of(&records, first);
        prop_assert_eq!(BatchHeader::peek(&segment(), &bytes), Some(header));
        prop_assert!(BatchHeader::verify(&bytes));
        let shown = show(&header, &bytes).unwrap();
        prop_assert_eq!(shown.len(), records.len());
        let mut at = START.offset + BATCH_HEADER as u32;
        for (index, (lsn, kind, payload, position, len)) in shown.into_iter().enumerate() {
            prop_assert_eq!(lsn, first + index as u64);
            prop_assert_eq!((kind, payload), records[index].clone());
            prop_assert_eq!(position, Position { segment: 7, offset: at });
            at += len;
        }
    }

    #[test]
    fn headers_and_seals_decode_to_themselves(
        number in 1..u32::MAX,
        salt in any::<u64>(),
        first in 1..u64::MAX / 2,
        count in 0..1000_u64,
        sequence in any::<u64>(),
        incarnation in any::<u32>(),
    ) {
        let header = SegmentHeader { number, salt, bytes: 1 << 20 };
        let mut block = [0; BLOCK];
        header.encode(&mut block);
        prop_assert_eq!(SegmentHeader::decode(&block), Ok(header));
        let seal = Seal { end: 12_288, first, last: first + count - 1, sequence, incarnation };
        seal.encode(&header, &mut block);
        prop_assert_eq!(Seal::decode(&header, &block), Some(seal));
        let other = SegmentHeader { salt: !salt, ..header };
        prop_assert_eq!(Seal::decode(&other, &block), None);
    }

    #[test]
    fn any_bytes_at_all_decode_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..5000)) {
        prop_assert!(SegmentHeader::decode(&bytes).is_err());
        prop_assert!(Seal::decode(&segment(), &bytes).is_none());
        prop_assert!(BatchHeader::peek(&segment(), &bytes).is_none());
        prop_assert!(!BatchHeader::verify(&bytes));
        prop_assert!(decode_record(&bytes, START).is_err());
    }
}

#[test]
fn every_flipped_bit_of_a_batch_is_seen() {
    let (_, good) = batch_of(&[(1, vec![5; 100]), (2, vec![]), (3, vec![9; 700])], 40);
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        let intact = BatchHeader::peek(&segment(), &bad).is_some() && BatchHeader::verify(&bad);
        assert!(!intact, "bit {bit}");
    }
}

#[test]
fn every_flipped_bit_of_a_header_seal_or_record_is_seen() {
    let mut block = vec![0; BLOCK];
    segment().encode(&mut block);
    for bit in 0..size_of::<SegmentLayout>() * 8 {
        let mut bad = block.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(SegmentHeader::decode(&bad).is_err(), "header bit {bit}");
    }
    seal().encode(&segment(), &mut block);
    for bit in 0..size_of::<SealLayout>() * 8 {
        let mut bad = block.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(Seal::decode(&segment(), &bad), None, "seal bit {bit}");
    }
    let mut record = vec![0; record_span(50)];
    encode_record(&mut record, 77, 4, &[&[8; 50]]);
    for bit in 0..(RECORD_HEADER + 50) * 8 {
        let mut bad = record.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(decode_record(&bad, START).is_err(), "record bit {bit}");
    }
}

/// Mutants whose checksums are right again: what a faulty writer, or an attacker with the salt,
/// could leave. The decoder must stay in bounds and show only records that check.
#[test]
fn mutants_with_right_checksums_do_no_harm() {
    let (_, good) = batch_of(&[(1, vec![5; 100]), (2, vec![]), (3, vec![9; 700])], 40);
    for seed in 0..20_000 {
        let mut rng = Rng::new(seed);
        let mut bad = good.clone();
        for _ in 0..=rng.below(4) {
            let reach = if rng.once_in(2) {
                BATCH_HEADER as u64
            } else {
                300
            };
            let at = rng.below(reach) as usize;
            bad[at] = rng.next_u64() as u8;
        }
        let crc = crc(&[&bad[8..]]);
        put(&mut bad, offset_of!(BatchLayout, crc), crc.to_le_bytes());
        let Some(header) = BatchHeader::peek(&segment(), &bad) else {
            continue;
        };
        assert!((BLOCK..=BATCH_BYTES_LIMIT).contains(&(header.bytes as usize)));
        if let Ok(shown) = show(&header, &bad) {
            assert!(shown.len() <= 3, "seed {seed}");
        }
    }
}
