//! Laws of a run's parts, and of damage to each byte of them.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

type Name = (u64, Vec<u8>, Reverse<u64>);

fn names() -> impl Strategy<Value = BTreeMap<Name, Option<Vec<u8>>>> {
    let key = prop::collection::vec(prop::sample::select(vec![b'a', b'b', 0, 255]), 0..6);
    let name = (0..3_u64, key, 0..2_u64).prop_map(|(b, k, v)| (b, k, Reverse(v)));
    let entry = prop::option::of(prop::collection::vec(any::<u8>(), 0..40));
    prop::collection::btree_map(name, entry, 1..40)
}

fn rank((bucket, key, version): &Name) -> Rank<'_> {
    (BucketId(*bucket), key, *version)
}

fn build(slots: &BTreeMap<Name, Option<Vec<u8>>>) -> Vec<u8> {
    let mut builder = BlockBuilder::default();
    for (name, entry) in slots {
        builder.push(rank(name), entry.as_deref());
    }
    let mut bytes = Vec::new();
    builder.finish(&mut bytes);
    bytes
}

proptest! {
    #[test]
    fn a_block_finds_what_it_was_given_and_nothing_else(slots in names(), other in names()) {
        let block = Block::parse(build(&slots).into()).unwrap();
        prop_assert_eq!(block.len(), slots.len());
        for (number, (name, entry)) in slots.iter().enumerate() {
            prop_assert_eq!(block.rank(number), rank(name));
            prop_assert_eq!(block.entry(number), entry.as_deref());
            prop_assert_eq!(block.find(rank(name)), Some(number));
        }
        for name in other.keys() {
            prop_assert_eq!(block.find(rank(name)).is_some(), slots.contains_key(name));
            let below = slots.keys().filter(|known| *known < name).count();
            prop_assert_eq!(block.first(|known| known < rank(name)), below);
        }
    }

    #[test]
    fn a_block_of_any_bytes_is_refused_or_can_be_read(
        slots in names(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = build(&slots);
        let place = at.index(bytes.len());
        bytes[place] = byte;
        let shorter = bytes[..cut.index(bytes.len())].to_vec();
        for bytes in [bytes, shorter] {
            let Ok(block) = Block::parse(bytes.into()) else { continue };
            for number in 0..block.len() {
                // Their order is not what it was: it must only not panic.
                let _ = (block.entry(number), block.find(block.rank(number)));
            }
        }
    }

    #[test]
    fn a_filter_knows_every_name_and_few_others(names in names(), seed in any::<u64>()) {
        let mut bloom = Bloom::for_names(names.len() as u64);
        for name in names.keys() {
            bloom.add(hash_of(rank(name)));
        }
        let again = Bloom::decode(&bloom.encode().collect::<Vec<_>>().concat()).unwrap();
        prop_assert_eq!(&again, &bloom);
        for name in names.keys() {
            prop_assert!(again.may_have(hash_of(rank(name))));
        }
        let false_hits = (0..1000_u64)
            .filter(|n| {
                let key = (seed ^ n).to_le_bytes();
                again.may_have(hash_of((BucketId(9), &key, Reverse(0))))
            })
            .count();
        prop_assert!(false_hits < 100, "{} of 1000", false_hits);
    }

    #[test]
    fn a_table_and_a_foot_come_back_or_are_refused(
        firsts in names(),
        at in any::<prop::sample::Index>(),
        bit in 0..8_u8,
    ) {
        let blocks: Vec<BlockMeta> = (0_u32..)
            .zip(firsts.keys())
            .map(|(number, (bucket, key, Reverse(version)))| BlockMeta {
                offset: number * 2,
                len: 5000 + number,
                crc: u64::from(number) << 40,
                bucket: BucketId(*bucket),
                version: Version(*version),
                key: key.as_slice().into(),
            })
            .collect();
        let table = encode_table(&blocks).collect::<Vec<_>>().concat();
        let end = blocks.last().map_or(0, BlockMeta::end);
        prop_assert!(decode_table(&table, end - 1).is_err(), "a block lies behind the blocks' end");
        prop_assert_eq!(decode_table(&table, end), Ok(blocks));
        let mut flipped = table.clone();
        flipped[at.index(table.len())] ^= 1 << bit;
        // The CRC over the table is the foot's; here it must only not panic.
        let _ = decode_table(&flipped, end);
        let section = Section { offset: 8192, len: table.len() as u32, crc: 7 };
        let foot = Foot { number: 3, partition: 1, slots: 9, bloom: section, table: section };
        let bytes = foot.encode();
        prop_assert_eq!(bytes.len(), FOOT_BYTES);
        prop_assert_eq!(Foot::decode(&bytes), Ok(foot));
        let mut flipped = bytes.clone();
        flipped[at.index(bytes.len())] ^= 1 << bit;
        prop_assert!(Foot::decode(&flipped).is_err());
    }
}

#[test]
fn a_block_or_a_table_of_nothing_is_refused() {
    let nothing = 0_u32.to_le_bytes();
    assert!(Block::parse(nothing.into()).is_err());
    assert!(decode_table(&nothing, u64::MAX).is_err());
}

#[test]
fn a_filter_of_many_names_errs_on_about_one_in_a_hundred() {
    let mut bloom = Bloom::for_names(20_000);
    let hash = |n: u64| hash_of((BucketId(1), &n.to_be_bytes(), Reverse(0)));
    (0..20_000).for_each(|n| bloom.add(hash(n)));
    assert!((0..20_000).all(|n| bloom.may_have(hash(n))));
    let false_hits = (20_000..120_000)
        .filter(|n| bloom.may_have(hash(*n)))
        .count();
    assert!(false_hits < 2_500, "{false_hits} of 100,000");
}

#[test]
fn names_of_files_are_told_from_others() {
    let path = path_of(std::path::Path::new("/d"), 12, 1);
    assert_eq!(path, std::path::Path::new("/d/run-00000012.b"));
    assert_eq!(number_of("run-00000012.a"), Some(12));
    assert_eq!(number_of("run-123456789.b"), Some(123_456_789));
    for name in [
        "run-12.a",
        "run-00000012.c",
        "run-00000012",
        "checkpoint-00000012",
        "run-0000001x.a",
    ] {
        assert_eq!(number_of(name), None, "{name}");
    }
}
