//! A checkpoint taken while the index changes, and the log behind its start, give the same index.

use proptest::prelude::*;

use super::*;
use crate::store::index::tests::{History, Step, steps};
use crate::store::index::{EntryBody, WalkCursor};
use crate::store::types::{BucketId, Version};

fn load(frames: &[Vec<u8>]) -> Option<Loaded> {
    let mut loader = Loader::default();
    for frame in frames {
        loader.take(frame).ok()?;
    }
    loader.finish()
}

/// Walks the history's index in small steps, applying `during` in between. With `as_run` the objects
/// there are go into a run, and the checkpoint has none of them.
fn write(history: &mut History, during: &[Step], as_run: bool) -> Vec<Vec<u8>> {
    // No number is the same as number 1: the first that is given out.
    history.index.set_next_bucket(1);
    let start_lsn = history.log.len() as u64;
    if as_run {
        history.index.freeze();
    }
    let next_bucket = history.index.next_bucket().0;
    let head = Head {
        partition: 5,
        start_lsn,
        next_bucket,
    };
    let mut frames = vec![frame(FrameKind::Head, 0, &head.payload())];
    let mut during = during.iter();
    let mut cursor = WalkCursor::default();
    let mut items = 0;
    while !matches!(cursor, WalkCursor::End) {
        let mut payload = Vec::new();
        items += history.index.walk(&mut cursor, 80, &mut payload);
        frames.push(frame(FrameKind::Items, frames.len() as u32, &payload));
        for step in during.by_ref().take(2) {
            history.take(step);
        }
    }
    for step in during {
        history.take(step);
    }
    frames.push(frame(
        FrameKind::End,
        frames.len() as u32,
        &end_payload(items),
    ));
    frames
}

proptest! {
    #[test]
    fn a_fuzzy_checkpoint_and_the_log_behind_it_are_the_index(
        before in steps(),
        during in steps(),
        as_run in any::<bool>(),
    ) {
        let mut history = History::new();
        for step in &before {
            history.take(step);
        }
        let frames = write(&mut history, &during, as_run);
        let Loaded { head, mut index, .. } = load(&frames).unwrap();
        for (place, record) in &history.log[head.start_lsn as usize..] {
            index.apply(*place, record.clone(), None);
        }
        // What changed later is in the memtable again; what was set aside is in a run.
        prop_assert_eq!(index.memtables().0, history.index.memtables().0);
        prop_assert_eq!(index.beside_objects(), history.index.beside_objects());
    }

    #[test]
    fn a_damaged_or_shortened_checkpoint_is_none(
        before in steps(),
        at in any::<prop::sample::Index>(),
        bit in 0..8_u8,
        cut in any::<prop::sample::Index>(),
    ) {
        let mut history = History::new();
        for step in &before {
            history.take(step);
        }
        let frames = write(&mut history, &[], false);
        let which = at.index(frames.len());
        let mut flipped = frames.clone();
        let byte = at.index(flipped[which].len());
        flipped[which][byte] ^= 1 << bit;
        prop_assert!(load(&flipped).is_none());
        prop_assert!(load(&frames[..cut.index(frames.len())]).is_none());
        let mut swapped = frames.clone();
        swapped.swap(0, which);
        prop_assert!(which == 0 || load(&swapped).is_none());
    }

    #[test]
    fn any_bytes_are_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut loader = Loader::default();
        prop_assert!(loader.take(&bytes).is_err());
        let mut from = Reader::new(&bytes);
        while from.left() > 0 && Item::decode(&mut from).is_ok() {}
    }
}

/// A checkpoint as the first format wrote it: objects among its items.
fn first_format() -> Vec<Vec<u8>> {
    let mut head = Writer::default();
    head.u32(1);
    head.u32(5);
    head.u64(77);
    head.u64(4);
    let mut items = Writer::default();
    for (key, body) in [("a", 0), ("b", 1)] {
        items.u8(4);
        items.u64(3);
        items.text(key);
        items.u64(0);
        for field in [2, 4096, 512] {
            items.u32(field);
        }
        items.u64(100_000);
        items.raw(&[7; 16]);
        items.u16(0);
        items.u64(1_000);
        items.u8(body);
        if body == 1 {
            items.u32(1);
            items.u32(40);
            items.u32(25);
        }
    }
    vec![
        frame(FrameKind::Head, 0, &head.bytes),
        frame(FrameKind::Items, 1, &items.bytes),
        frame(FrameKind::End, 2, &end_payload(2)),
    ]
}

#[test]
fn the_first_format_is_still_read() {
    let loaded = load(&first_format()).unwrap();
    assert_eq!((loaded.head.start_lsn, loaded.head.next_bucket), (77, 4));
    assert_eq!(loaded.runs, []);
    let known = |key| {
        let slot = loaded.index.known(BucketId(3), key, Version::NULL);
        slot.cloned().flatten().unwrap()
    };
    assert_eq!(known("a").body, EntryBody::Inline);
    assert_eq!(known("b").extents().count(), 1);
    assert_eq!(known("b").place.offset, 4096);
}
