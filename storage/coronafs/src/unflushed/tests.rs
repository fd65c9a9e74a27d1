//! The file of unflushed changes: what is read after a kill at any store, and what is not.

use super::*;
use crate::tests::{engine_config, world};

const A: VolumeId = VolumeId(1);
const B: VolumeId = VolumeId(2);

fn piece(cluster: u32) -> Vec<Piece> {
    vec![Piece {
        cluster,
        mask: 0xFFFF,
    }]
}

async fn open() -> (Unflushed, Found) {
    let opened = Unflushed::open(Path::new("/"), 3, 0, Rc::default()).await;
    engine::fs::sync_dir("/").await.unwrap();
    opened.unwrap()
}

const NONE: BlockSums = BlockSums::NONE;

fn slots(found: Found) -> BTreeMap<(VolumeId, u64), Vec<Piece>> {
    match found {
        Found::Slots(slots) => slots
            .into_iter()
            .map(|(at, slot)| (at, slot.pieces))
            .collect(),
        Found::Nothing(why) => panic!("{why}"),
    }
}

fn nothing(found: &Found) -> &'static str {
    match found {
        Found::Slots(slots) => panic!("{slots:?}"),
        Found::Nothing(why) => why,
    }
}

#[test]
fn a_kill_keeps_what_was_entered_in_order_and_a_power_cut_nothing() {
    let (sim, node) = world(1);
    sim.run(node, 0, async {
        let (unflushed, found) = open().await;
        assert_eq!(nothing(&found), "there are none");
        let room = unflushed.try_room(6).unwrap();
        room.put(A, 7, &piece(1), &NONE);
        room.put(B, 7, &piece(2), &NONE);
        room.put(A, 7, &piece(3), &NONE);
        room.put(A, 8, &[], &NONE);
        room.void(B);
        room.put(B, 9, &piece(4), &NONE);
    });
    for _ in 0..2 {
        sim.kill(node);
        sim.start(node, engine_config()).unwrap();
        let left = sim.run(node, 0, async { slots(open().await.1) });
        let wanted = [((A, 7), piece(3)), ((A, 8), vec![]), ((B, 9), piece(4))];
        assert_eq!(left, BTreeMap::from(wanted));
    }
    sim.crash(node);
    sim.start(node, engine_config()).unwrap();
    let found = sim.run(node, 0, async { open().await.1 });
    // The head was zeroed, or it has another boot id.
    let why = nothing(&found);
    assert!(
        ["there are none", "the machine was restarted"].contains(&why),
        "{why}"
    );
}

#[test]
fn a_half_is_used_again_when_it_is_void_and_order_is_kept() {
    let (sim, node) = world(2);
    sim.run(node, 0, async {
        let (unflushed, _) = open().await;
        let kept = unflushed.try_room(1).unwrap();
        let fill = |first: u32| {
            let mut next = first;
            let newer = unflushed.newer.get();
            while let Some(room) = unflushed
                .try_room(1)
                .filter(|_| unflushed.newer.get() == newer)
            {
                room.put(A, 1, &piece(next), &NONE);
                next += 1;
            }
            next
        };
        // The room that found the first half full began the second one.
        let second = fill(0);
        assert!(!unflushed.is_older_void());
        let end = fill(second);
        assert!(unflushed.try_room(1).is_none());
        kept.put(A, 1, &piece(end), &NONE);
        assert_eq!(
            slots(open().await.1),
            BTreeMap::from([((A, 1), piece(end))])
        );
        unflushed.void_older();
        let room = unflushed.try_room(1).unwrap();
        room.put(A, 2, &piece(9), &NONE);
        let wanted = [((A, 1), piece(end)), ((A, 2), piece(9))];
        assert_eq!(slots(open().await.1), BTreeMap::from(wanted));
        unflushed.void_all();
        assert_eq!(slots(open().await.1), BTreeMap::new());
    });
}

#[test]
fn what_is_damaged_in_doubt_or_of_another_partition_is_refused() {
    let (sim, node) = world(3);
    sim.run(node, 0, async {
        let enter = async || {
            let (unflushed, _) = open().await;
            unflushed.try_room(1).unwrap().put(A, 1, &piece(5), &NONE);
            unflushed
        };
        let unflushed = enter().await;
        let at = HEAD_BYTES + 12;
        unflushed.mem.copy_in(at, &[0xFF]).unwrap();
        assert_eq!(nothing(&open().await.1), "they are damaged");
        let unflushed = enter().await;
        unflushed.mem.store(USED[0], u64::MAX).unwrap();
        assert_eq!(nothing(&open().await.1), "they are damaged");
        enter().await.doubt();
        assert_eq!(nothing(&open().await.1), "a flush had failed");
        enter().await;
        let other = Unflushed::open(Path::new("/"), 4, 0, Rc::default()).await;
        let why = "they are damaged, or another partition's";
        assert_eq!(nothing(&other.unwrap().1), why);
    });
}

#[test]
fn a_prefix_of_entries_is_whole_entries_or_an_error() {
    let (sim, node) = world(4);
    let (bytes, ends, lap) = sim.run(node, 0, async {
        let (unflushed, _) = open().await;
        let room = unflushed.try_room(20).unwrap();
        let mut ends = vec![0];
        for at in 0..20 {
            room.put(A, at, &piece(at as u32), &NONE);
            ends.push(unflushed.used[0].get() as usize);
        }
        let mut bytes = vec![0; unflushed.used[0].get() as usize];
        unflushed.mem.copy_out(HEAD_BYTES, &mut bytes).unwrap();
        (bytes, ends, unflushed.laps[0].get())
    });
    for len in 0..=bytes.len() {
        let mut slots = LastSlots::new();
        let played = play(&bytes[..len], lap, &mut slots);
        assert_eq!(played.is_ok(), ends.contains(&len), "{len} bytes");
        assert_eq!(
            slots.len(),
            ends.iter().filter(|end| **end <= len).count() - 1
        );
    }
}

#[test]
fn entries_of_an_older_lap_are_not_played() {
    let (sim, node) = world(5);
    sim.run(node, 0, async {
        let (unflushed, _) = open().await;
        unflushed.try_room(1).unwrap().put(A, 1, &piece(1), &NONE);
        let used = unflushed.used[0].get();
        unflushed.void_all();
        unflushed.mem.store(USED[0], used).unwrap();
        assert_eq!(nothing(&open().await.1), "they are damaged");
    });
}

#[test]
fn a_loss_is_told_until_it_is_settled_and_new_entries_are_kept_meanwhile() {
    let (sim, node) = world(6);
    sim.run(node, 0, async {
        let (unflushed, _) = open().await;
        assert_eq!(unflushed.lost(), Ok(None));
        unflushed.doubt();
        let (unflushed, found) = open().await;
        assert_eq!(nothing(&found), "a flush had failed");
        unflushed.try_room(1).unwrap().put(A, 1, &piece(1), &NONE);
    });
    sim.kill(node);
    sim.start(node, engine_config()).unwrap();
    sim.run(node, 0, async {
        let (unflushed, found) = open().await;
        assert_eq!(slots(found), BTreeMap::from([((A, 1), piece(1))]));
        assert_eq!(unflushed.lost(), Ok(Some("a flush had failed")));
        unflushed.settle();
        assert_eq!(open().await.0.lost(), Ok(None));
    });
}
