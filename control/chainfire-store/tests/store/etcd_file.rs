//! The state as etcd's database file. That a real etcd restores it is a test of the command line's.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use bbolt_format::Reader;
use chainfire_store::{EtcdCluster, EtcdFile, Options};

use crate::support::{Machine, delete, options};

type Entries = Vec<(Vec<u8>, Vec<u8>)>;

fn file(machine: &Machine) -> Vec<u8> {
    let cluster = EtcdCluster {
        version: "3.5.0".into(),
        members: BTreeMap::from([("a1".into(), "{}".into())]),
    };
    let planned = EtcdFile::plan(machine.view(), cluster).unwrap();
    let mut bytes = Vec::new();
    let take = |page: &[u8]| {
        bytes.extend_from_slice(page);
        ControlFlow::Continue(())
    };
    planned.write(take).unwrap();
    assert_eq!(planned.bytes(), bytes.len() as u64);
    bytes
}

fn bucket(file: &[u8], name: &str) -> Entries {
    let mut reader = Reader::open(file.len() as u64, |offset, length| {
        Ok::<_, bbolt_format::Error>(file[offset as usize..][..length].to_vec())
    })
    .unwrap();
    let mut cursor = reader.bucket(name).unwrap().expect(name);
    let mut entries = Entries::new();
    while let Some(entry) = cursor.next_entry().unwrap() {
        entries.push(entry);
    }
    entries
}

/// The revision of a key of bucket `key`, and whether it is a tombstone's.
fn revision(key: &[u8]) -> (i64, i64, bool) {
    let number = |at: usize| i64::from_be_bytes(key[at..at + 8].try_into().unwrap());
    assert_eq!(key[8], b'_');
    (number(0), number(9), key.get(17) == Some(&b't'))
}

#[test]
fn a_file_has_every_bucket_of_etcd() {
    let mut machine = Machine::new();
    machine.grant(7, 60).unwrap();
    machine.put("a", "1");
    machine.put("b", "2");
    machine.delete(delete("a", ""));
    let file = file(&machine);
    let versions: Vec<_> = bucket(&file, "key")
        .iter()
        .map(|(key, _)| revision(key))
        .collect();
    assert_eq!(versions, [(2, 0, false), (3, 0, false), (4, 0, true)]);
    assert_eq!(bucket(&file, "lease")[0].0, 7_i64.to_be_bytes());
    assert_eq!(bucket(&file, "members"), [(b"a1".to_vec(), b"{}".to_vec())]);
    let cluster = (b"clusterVersion".to_vec(), b"3.5.0".to_vec());
    assert_eq!(bucket(&file, "cluster"), [cluster]);
    let applied = machine.view().applied_index().to_be_bytes().to_vec();
    assert_eq!(
        bucket(&file, "meta"),
        [(b"consistent_index".to_vec(), applied)]
    );
    assert_eq!(bucket(&file, "auth")[0], (b"authEnabled".to_vec(), vec![0]));
    for empty in ["alarm", "authRoles", "authUsers", "members_removed"] {
        assert_eq!(bucket(&file, empty), [], "{empty}");
    }
}

#[test]
fn a_compaction_under_way_does_not_show_in_the_file() {
    let mut machine = Machine::with(Options {
        purge_versions_max: 1,
        ..options()
    });
    for number in 0..40 {
        machine.put(&format!("{}", number % 7), &format!("{number}"));
    }
    machine.delete(delete("3", ""));
    machine.compact(41).unwrap();
    assert!(machine.view().is_purging());
    let before = file(&machine);
    while machine.store.purge().unwrap() {}
    assert!(before == file(&machine), "the same bytes");
    assert_eq!(bucket(&before, "key").len(), 8, "seven keys and a deletion");
    let compacted = bucket(&before, "meta").remove(1);
    assert_eq!(compacted.0, b"finishedCompactRev");
    assert_eq!(revision(&compacted.1), (41, 0, false));
}
