//! Compaction: what may be read afterwards, what is kept, and in which steps the rest goes.

use chainfire_store::{Options, RpcError};
use etcd_wire::etcdserverpb::RangeRequest;
use etcd_wire::mvccpb::event::EventType;

use crate::support::{Machine, delete, options, put, range, shown, text};

fn at(revision: i64) -> RangeRequest {
    RangeRequest {
        revision,
        ..range("\0", "\0")
    }
}

#[test]
fn a_compaction_refuses_what_is_not_ahead() {
    let mut machine = Machine::new();
    assert_eq!(machine.view().compact_revision(), -1);
    machine.put("k", "1");
    machine.put("k", "2");
    assert_eq!(machine.compact(4), Err(RpcError::FutureRev));
    assert_eq!(machine.compact(2), Ok(()));
    assert_eq!(machine.compact(2), Err(RpcError::Compacted));
    assert_eq!(machine.compact(1), Err(RpcError::Compacted));
    assert_eq!(machine.view().compact_revision(), 2);
    assert_eq!(machine.refusal(&at(1)), RpcError::Compacted.text());
    assert_eq!(shown(&machine.range(&at(2)).kvs), ["k=1"]);
    assert_eq!(machine.compact(3), Ok(()));
    assert_eq!(machine.refusal(&at(2)), RpcError::Compacted.text());
}

#[test]
fn the_newest_version_before_stays_and_tombstones_go() {
    let mut machine = Machine::new();
    machine.put("kept", "1");
    machine.put("gone", "1");
    machine.put("kept", "2");
    machine.delete(delete("gone", ""));
    machine.put("kept", "3");
    let full = machine.view().size_bytes();
    let old = machine.view();
    machine.compact(5).unwrap();
    // The tombstone at the compacted revision stays, for watchers that begin there.
    assert_eq!(machine.view().indexed_keys(), 2);
    let events = machine
        .view()
        .events_since(5, b"\0", b"\0", 1 << 20)
        .unwrap();
    let told: Vec<_> = events.batches.iter().map(|batch| batch.revision).collect();
    assert_eq!(told, [5, 6]);
    assert_eq!(events.batches[0].events[0].r#type(), EventType::Delete);
    assert_eq!(shown(&machine.range(&at(5)).kvs), ["kept=2"]);

    machine.compact(6).unwrap();
    assert_eq!(machine.view().indexed_keys(), 1);
    assert_eq!(machine.all(), ["kept=3"]);
    let kv = machine.range(&range("kept", "")).kvs.remove(0);
    assert_eq!(
        (kv.create_revision, kv.version),
        (2, 3),
        "history does not change"
    );
    assert!(machine.view().size_bytes() < full / 3);
    assert!(!machine.view().is_purging());
    let before = RangeRequest {
        revision: 3,
        ..range("\0", "\0")
    };
    let answer = old.range(&before).unwrap();
    assert_eq!(
        shown(&answer.kvs),
        ["gone=1", "kept=1"],
        "an old view keeps what it sees"
    );
}

#[test]
fn a_long_compaction_goes_in_steps_that_nobody_sees() {
    let mut slow = Machine::with(Options {
        purge_versions_max: 7,
        ..options()
    });
    let mut fast = Machine::with(Options {
        purge_versions_max: 1_000,
        ..options()
    });
    for machine in [&mut slow, &mut fast] {
        for i in 0..200 {
            machine.put(&format!("k{}", i % 10), &i.to_string());
        }
        machine.delete(delete("k3", ""));
        machine.compact(202).unwrap();
    }
    assert!(slow.view().is_purging() && !fast.view().is_purging());
    let mut steps = 0;
    while slow.view().is_purging() {
        let (here, there) = (slow.view(), fast.view());
        assert_eq!(here.hash().unwrap(), there.hash().unwrap());
        assert_eq!(here.hash_kv(0).unwrap(), there.hash_kv(0).unwrap());
        assert_eq!(
            here.range(&at(202)).unwrap(),
            there.range(&at(202)).unwrap()
        );
        let size = here.size_bytes();
        slow.store.purge().unwrap();
        assert!(slow.view().size_bytes() <= size);
        steps += 1;
    }
    assert!(steps >= 200 / 7, "{steps} steps of 7 versions");
    assert_eq!(slow.view().size_bytes(), fast.view().size_bytes());
    assert!(!slow.store.purge().unwrap());
    // Further changes and a further compaction.
    for machine in [&mut slow, &mut fast] {
        machine.put("k3", "again");
        machine.put("k4", "again");
        machine.compact(204).unwrap();
    }
    while slow.store.purge().unwrap() {}
    assert_eq!(slow.view().size_bytes(), fast.view().size_bytes());
    assert_eq!(slow.view().hash().unwrap(), fast.view().hash().unwrap());
}

#[test]
fn values_before_a_change_are_there_until_compacted() {
    let mut machine = Machine::new();
    machine.put("k", "1");
    machine.put("k", "2");
    machine.delete(delete("k", ""));
    let before = |machine: &Machine, revision| {
        let kv = machine.view().before(b"k", revision).unwrap();
        kv.map(|kv| text(&kv.value))
    };
    assert_eq!(before(&machine, 2), None);
    assert_eq!(before(&machine, 3).unwrap(), "1");
    assert_eq!(before(&machine, 4).unwrap(), "2");
    machine.compact(3).unwrap();
    assert_eq!(before(&machine, 3), None);
    assert_eq!(before(&machine, 4).unwrap(), "2");
}

#[test]
fn events_come_in_whole_revisions_and_bounded() {
    let mut machine = Machine::new();
    for i in 0..10 {
        machine
            .put_with(put(&format!("{}/{i}", i % 2), &"x".repeat(100)))
            .unwrap();
    }
    machine.delete(delete("0/", "0/9"));
    let view = machine.view();
    let all = view.events_since(2, b"\0", b"\0", usize::MAX).unwrap();
    assert_eq!(
        all.batches, machine.events,
        "as they were told at the commits"
    );
    assert_eq!(all.next_revision, 13);
    let ones = view.events_since(5, b"1/", b"10", usize::MAX).unwrap();
    let told: Vec<_> = ones.batches.iter().map(|batch| batch.revision).collect();
    assert_eq!(told, [5, 7, 9, 11]);
    // In pieces, the last of which is a whole revision of five deletions.
    let mut from = 2;
    let mut pieces = Vec::new();
    while from <= view.revision() {
        let piece = view.events_since(from, b"\0", b"\0", 150).unwrap();
        assert!(piece.batches.len() <= 2);
        pieces.extend(piece.batches);
        from = piece.next_revision;
    }
    assert_eq!(pieces, machine.events);
    machine.compact(6).unwrap();
    let refused = machine.view().events_since(5, b"\0", b"\0", 1).unwrap_err();
    assert_eq!(refused.to_string(), RpcError::Compacted.text());
    assert!(machine.view().events_since(6, b"\0", b"\0", 1).is_ok());
    let future = machine.view().events_since(99, b"\0", b"\0", 1).unwrap();
    assert!(future.batches.is_empty());
}
