//! Snapshots: whole, checked, and taken in whole or not at all.

use bytes::Bytes;
use chainfire_store::{AppliedMeta, Durable, ErrorKind, InMemoryBackend, Op, Snapshot, Store};
use etcd_wire::etcdserverpb::{AuthUserAddRequest, PutRequest};
use proptest::prelude::*;

use crate::support::{Machine, command, delete, options, put};

fn busy() -> Machine {
    let mut machine = Machine::new();
    for id in 1..50 {
        machine.grant(id, 60 + id).unwrap();
    }
    for name in ["ann", "bob"] {
        let add = AuthUserAddRequest {
            name: name.into(),
            ..AuthUserAddRequest::default()
        };
        machine.op(Op::UserAdd(add)).unwrap();
    }
    for i in 0..300_i64 {
        let request = PutRequest {
            lease: i % 50,
            ..put(&format!("k{}", i % 70), &"x".repeat(i as usize % 90))
        };
        machine.put_with(request).unwrap();
    }
    machine.delete(delete("k1", "k3"));
    machine.compact(200).unwrap();
    machine
}

fn chunks(machine: &Machine, size: usize) -> Vec<Bytes> {
    Snapshot::new(machine.view(), size)
        .collect::<Result<_, _>>()
        .unwrap()
}

fn taken(chunks: &[Bytes]) -> Result<Store, chainfire_store::Error> {
    let mut store = Store::open(InMemoryBackend::new(), options()).unwrap();
    let mut restore = store.restore()?;
    for chunk in chunks {
        restore.push(chunk)?;
    }
    restore.finish()?;
    Ok(store)
}

fn same(a: &Store, b: &Store) {
    let (a, b) = (a.view(), b.view());
    assert_eq!(a.hash().unwrap(), b.hash().unwrap());
    assert_eq!(a.hash_kv(0).unwrap(), b.hash_kv(0).unwrap());
    assert_eq!(a.size_bytes(), b.size_bytes());
    assert_eq!(a.applied(), b.applied());
    assert_eq!(a.applied_index(), b.applied_index());
    assert!(a.leases().eq(b.leases()));
    for lease in a.leases() {
        assert!(a.lease_keys(lease.id).eq(b.lease_keys(lease.id)));
    }
}

#[test]
fn a_snapshot_is_the_state_whatever_the_chunks() {
    let machine = busy();
    for size in [1, 100, 4_096, 1 << 20] {
        let chunks = chunks(&machine, size);
        if size > 200 {
            assert!(chunks.iter().all(|chunk| chunk.len() <= size + 17));
        }
        let store = taken(&chunks).unwrap();
        same(&machine.store, &store);
        assert_eq!(
            store.durable().applied_index,
            machine.view().applied_index()
        );
    }
    same(
        &Machine::new().store,
        &taken(&chunks(&Machine::new(), 100)).unwrap(),
    );
}

#[test]
fn a_snapshot_does_not_see_later_writes() {
    let mut machine = busy();
    let mut snapshot = Snapshot::new(machine.view(), 500);
    let mut chunks = vec![snapshot.next().unwrap().unwrap()];
    let before = machine.view();
    machine.delete(delete("\0", "\0"));
    machine.compact(303).unwrap();
    chunks.extend(snapshot.map(Result::unwrap));
    let store = taken(&chunks).unwrap();
    assert_eq!(store.view().hash().unwrap(), before.hash().unwrap());
}

#[test]
fn a_snapshot_takes_the_place_of_everything() {
    let machine = busy();
    let mut other = Machine::new();
    other.grant(99, 60).unwrap();
    other.put("mine", "1");
    let reader = other.store.reader();
    let old = reader.view();
    let mut restore = other.store.restore().unwrap();
    for chunk in chunks(&machine, 1_000) {
        restore.push(&chunk).unwrap();
    }
    restore.finish().unwrap();
    same(&machine.store, &other.store);
    assert_eq!(old.revision(), 2);
    assert_eq!(reader.view().revision(), machine.view().revision());
    // And goes on from there.
    let index = machine.view().applied_index() + 1;
    let mut batch = other.store.batch();
    batch
        .apply(&command(Op::Put(put("k", "v"))), index)
        .unwrap()
        .unwrap();
    batch.commit(AppliedMeta::default(), Durable::No).unwrap();
    assert_eq!(reader.view().revision(), machine.view().revision() + 1);
}

#[test]
fn a_snapshot_that_breaks_off_changes_nothing() {
    let machine = busy();
    let all = chunks(&machine, 1_000);
    let mut other = Machine::new();
    other.put("mine", "1");
    for count in [0, 1, all.len() - 1] {
        let mut restore = other.store.restore().unwrap();
        for chunk in &all[..count] {
            restore.push(chunk).unwrap();
        }
        let unfinished = restore.finish().unwrap_err();
        assert_eq!(unfinished.kind(), ErrorKind::Corrupt);
        assert_eq!(other.all(), ["mine=1"]);
        other.put("mine", "1");
    }
}

#[test]
fn damaged_chunks_are_refused() {
    let all = chunks(&busy(), 1_000);
    assert!(all.len() > 5);
    let refused = |chunks: &[Bytes]| taken(chunks).map(drop).unwrap_err();
    for at in [0, 3, all.len() - 1] {
        for byte in [0, 5, 12, 20, all[at].len() - 1] {
            let mut damaged = all.clone();
            let mut bytes = all[at].to_vec();
            bytes[byte] ^= 0x10;
            damaged[at] = bytes.into();
            let error = refused(&damaged);
            assert_eq!(error.kind(), ErrorKind::Corrupt);
            assert!(
                error.to_string().contains(&format!("chunk {at}")),
                "{error}"
            );
        }
        let mut short = all.clone();
        short[at] = all[at].slice(..all[at].len() / 2);
        refused(&short);
    }
    let mut swapped = all.clone();
    swapped.swap(2, 3);
    refused(&swapped);
    let mut missing = all.clone();
    missing.remove(2);
    refused(&missing);
    let mut more = all.clone();
    more.push(all[0].clone());
    refused(&more);
    // A chunk of another snapshot with the right number and its own checksum.
    let mut other = Machine::new();
    for i in 0..200 {
        other.put(&format!("other{i}"), "x");
    }
    let mut mixed = all.clone();
    mixed[2] = chunks(&other, 1_000)[2].clone();
    refused(&mixed);
}

/// A chunk with a right frame around whatever payload.
fn framed(number: u64, kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut chunk = [&b"CFS1"[..], &number.to_le_bytes(), &[kind], payload].concat();
    let crc = crc_fast::crc32_iscsi(&chunk);
    chunk.extend(crc.to_le_bytes());
    chunk
}

fn row() -> impl Strategy<Value = Vec<u8>> {
    let key = prop::collection::vec(any::<u8>(), 0..14);
    let value = prop::collection::vec(any::<u8>(), 0..20);
    (0_u8..6, key, value, any::<bool>()).prop_map(|(table, key, value, state)| {
        let key = if state { b"state".to_vec() } else { key };
        let mut row = vec![table];
        row.extend((key.len() as u32).to_le_bytes());
        row.extend((value.len() as u32).to_le_bytes());
        [row, key, value].concat()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Rows that no store has written are refused with an error, or taken; never a panic.
    #[test]
    fn rows_of_any_kind_are_refused_or_taken(
        rows in prop::collection::vec(row(), 0..5),
        cut in 0_usize..8,
    ) {
        let mut store = Store::open(InMemoryBackend::new(), options()).unwrap();
        let before = store.view().hash().unwrap();
        let mut restore = store.restore().unwrap();
        let mut payload = rows.concat();
        payload.truncate(payload.len().saturating_sub(cut / 4));
        let chunk = framed(0, 0, &payload);
        let crc = &chunk[chunk.len() - 4..];
        let mut end = (rows.len() as u64).to_le_bytes().to_vec();
        end.extend(crc_fast::crc32_iscsi(crc).to_le_bytes());
        let pushed = restore.push(&chunk).and_then(|()| restore.push(&framed(1, 1, &end)));
        if pushed.is_err() {
            drop(restore);
            prop_assert_eq!(store.view().hash().unwrap(), before);
        } else if restore.finish().is_ok() {
            store.view().hash().unwrap();
        }
    }
}

#[test]
fn a_snapshot_without_the_states_row_is_refused() {
    let crc = |bytes: &[u8]| {
        let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes);
        (crc as u32).to_le_bytes()
    };
    // The first chunk is the end: no rows, whose checksums' checksum is that of nothing.
    let mut end = b"CFS1".to_vec();
    end.extend_from_slice(&0_u64.to_le_bytes());
    end.push(1);
    end.extend_from_slice(&0_u64.to_le_bytes());
    end.extend_from_slice(&crc(b""));
    end.extend_from_slice(&crc(&end));
    let error = taken(&[end.into()]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("the state's row"), "{error}");
}
