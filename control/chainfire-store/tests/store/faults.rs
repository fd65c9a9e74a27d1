//! A disk that fails, and data that was damaged on it.

use chainfire_store::{AppliedMeta, Durable, ErrorKind, Op, Store};
use etcd_wire::chainfire::Command;

use crate::disk::Disk;
use crate::support::{command, meta, options, put};

fn write(store: &mut Store, index: u64, durable: Durable) -> Result<(), chainfire_store::Error> {
    let mut batch = store.batch();
    let op = Op::Put(put(&format!("k{index}"), &"x".repeat(2_000)));
    batch.apply(&command(op), index)?.unwrap();
    batch.commit(meta(index), durable).map(drop)
}

#[test]
fn a_failed_write_is_the_stores_end_and_loses_nothing_durable() {
    for budget in [0, 1, 2, 3, 5, 8, 13, 21, 34] {
        let disk = Disk::default();
        let mut store = Store::open(disk.clone(), options()).unwrap();
        write(&mut store, 1, Durable::Yes).unwrap();
        disk.fail_after(budget);
        let reader = store.reader();
        let mut index = 2;
        let error = loop {
            let durable = store.durable().applied_index;
            assert_eq!(durable, index - 1);
            match write(&mut store, index, Durable::Yes) {
                Ok(()) => index += 1,
                Err(error) => break error,
            }
        };
        assert!(
            matches!(error.kind(), ErrorKind::Io | ErrorKind::Poisoned),
            "{error}"
        );
        assert_eq!(
            reader.view().applied_index(),
            index - 1,
            "what failed is not seen"
        );
        let again = write(&mut store, index, Durable::No).unwrap_err();
        assert_eq!(again.kind(), ErrorKind::Poisoned);
        assert_eq!(store.flush().unwrap_err().kind(), ErrorKind::Poisoned);
        for seed in 0..4 {
            let store = Store::open(disk.after_power_loss(seed), options()).unwrap();
            let applied = store.view().applied_index();
            assert!(
                applied == index - 1 || applied == index,
                "{applied} after {index}"
            );
        }
    }
}

#[test]
fn commits_become_durable_by_number_and_by_bytes() {
    let bounded = |batches, bytes| {
        let options = chainfire_store::Options {
            undurable_batches_max: batches,
            undurable_bytes_max: bytes,
            ..options()
        };
        let mut store = Store::open(Disk::default(), options).unwrap();
        (1..=12)
            .filter(|index| {
                write(&mut store, *index, Durable::No).unwrap();
                store.durable().applied_index == *index
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(bounded(3, u64::MAX), [4, 8, 12]);
    assert_eq!(bounded(u32::MAX, 5_000), [3, 6, 9, 12]);
    assert_eq!(bounded(0, u64::MAX).len(), 12);
    let mut store = Store::open(Disk::default(), options()).unwrap();
    write(&mut store, 1, Durable::No).unwrap();
    assert_eq!(store.durable().applied_index, 0);
    store.flush().unwrap();
    assert_eq!(store.durable().applied_index, 1);
    assert_eq!(store.durable().meta, meta(1));
}

#[test]
fn a_command_of_a_newer_version_stops_the_replica() {
    let mut store = Store::open(Disk::default(), options()).unwrap();
    let unknown = store.batch().apply(&Command::default(), 1).unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::Format);
    assert!(unknown.to_string().contains("entry 1"), "{unknown}");
}

#[test]
fn entries_without_a_command_move_the_mark() {
    let disk = Disk::default();
    let mut store = Store::open(disk.clone(), options()).unwrap();
    let mut batch = store.batch();
    batch.advance(1);
    batch.advance(7);
    batch.commit(AppliedMeta::default(), Durable::Yes).unwrap();
    drop(store);
    let store = Store::open(disk, options()).unwrap();
    assert_eq!(store.view().applied_index(), 7);
    assert_eq!(store.view().revision(), 1);
}

#[test]
#[should_panic(expected = "entry 7 comes after entry 7")]
fn the_log_does_not_go_backwards() {
    let mut store = Store::open(Disk::default(), options()).unwrap();
    let mut batch = store.batch();
    batch.advance(7);
    batch.advance(7);
}
