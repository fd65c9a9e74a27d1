//! What a volume says is allocated.

use super::*;

async fn extents(device: &Attachment, offset: u64, len: u64) -> Vec<(u64, bool)> {
    let found = device.extents(offset, len).await.unwrap();
    found
        .iter()
        .map(|extent| (extent.bytes, extent.hole))
        .collect()
}

#[test]
fn extents_follow_what_is_written_and_freed() {
    let (sim, node) = world(7);
    sim.run(node, 0, async {
        let store = open().await;
        let id = store.create(new_volume("disk", 64 * MIB)).await.unwrap().id;
        let device = store.attach(id, WRITER).await.unwrap();
        let all = 64 * MIB;
        assert_eq!(extents(&device, 0, all).await, [(all, true)]);
        let write = async |offset, len| {
            let list = list_of(&vec![1; len], 0);
            device.write(offset, list, false).await.unwrap();
        };
        // A block in the middle, one that reaches into the next cluster, and one far away.
        write(8 * KIB, 4 * KIB as usize).await;
        write(60 * KIB, 8 * KIB as usize).await;
        write(40 * MIB, 512).await;
        let hole = 40 * MIB - 68 * KIB;
        let rest = all - 40 * MIB - 4 * KIB;
        let expected = [
            (8 * KIB, true),
            (4 * KIB, false),
            (48 * KIB, true),
            (8 * KIB, false),
            (hole, true),
            (4 * KIB, false),
            (rest, true),
        ];
        assert_eq!(extents(&device, 0, all).await, expected);
        // From and to the middle of extents.
        let part = extents(&device, 9 * KIB, 52 * KIB).await;
        assert_eq!(part, [(3 * KIB, false), (48 * KIB, true), (KIB, false)]);
        assert_eq!(extents(&device, 20 * MIB, MIB).await, [(MIB, true)]);
        // What a snapshot shares is there, what was freed since is not.
        store.snapshot(id, "one".into()).await.unwrap();
        device.discard(60 * KIB, 4 * KIB).await.unwrap();
        write(12 * KIB, 4 * KIB as usize).await;
        let now = extents(&device, 0, 128 * KIB).await;
        let expected = [
            (8 * KIB, true),
            (8 * KIB, false),
            (48 * KIB, true),
            (4 * KIB, false),
            (60 * KIB, true),
        ];
        assert_eq!(now, expected);
        // No answer is longer than it may be, and the next begins where it ended.
        for block in 0..600 {
            write(8 * MIB + 8 * KIB * block, 512).await;
        }
        let first = extents(&device, 8 * MIB, 8 * MIB).await;
        assert_eq!(first.len(), EXTENTS_MAX);
        let end: u64 = first.iter().map(|(bytes, _)| bytes).sum();
        let second = extents(&device, 8 * MIB + end, 8 * MIB - end).await;
        assert_ne!(second[0].1, first[EXTENTS_MAX - 1].1);
        let past = device.extents(all, 512).await;
        assert!(matches!(past, Err(BlockError::OutOfRange { .. })));
    });
}
