//! Records as they are written and read.

use super::*;

fn all() -> Vec<Change> {
    let (id, volume) = (VolumeId(0x1_0000_0000_0007), VolumeId(9));
    let snapshot = SnapshotId(11);
    let name = "name".to_owned();
    let limits = Limits {
        ops_per_s: 100,
        bytes_per_s: 1 << 20,
        burst_ms: 50,
    };
    let piece = |cluster, mask| Piece { cluster, mask };
    let mut sums = BlockSums::NONE;
    sums.set(4, 0x0403_0201);
    let slots = vec![
        (0, vec![piece(5, 0xffff)]),
        (9, vec![]),
        (1 << 34, vec![piece(6, 1), piece(7, 0xf0)]),
    ];
    vec![
        Change::Create {
            id,
            bytes: 1 << 30,
            created_ms: 1_700_000_000_000,
            owner: "me".into(),
            name: name.clone(),
            key: Some(KeyId(9)),
            checksums: true,
        },
        Change::Delete { id },
        Change::Map { volume, slots },
        Change::Snapshot {
            id: snapshot,
            volume,
            created_ms: 5,
            name: name.clone(),
        },
        Change::DeleteSnapshot { id: snapshot },
        Change::Clone {
            id,
            snapshot,
            created_ms: 6,
            owner: "you".into(),
            name: name.clone(),
        },
        Change::Rollback { volume, snapshot },
        Change::Resize {
            volume,
            bytes: 4096,
        },
        Change::Rename { volume, name },
        Change::Attach {
            volume,
            generation: 3,
        },
        Change::Limit { volume, limits },
        Change::MapWithSums {
            volume,
            slots: vec![
                (0, vec![piece(5, 0xffff)], sums),
                (9, vec![], BlockSums::NONE),
            ],
        },
    ]
}

#[test]
fn records_are_read_as_they_were_written_and_no_other_length_is() {
    let kinds = (1..=11).chain([MAP_WITH_SUMS]);
    for (number, change) in kinds.zip(all()) {
        let (kind, payload) = change.encode();
        assert_eq!(kind, number);
        assert_eq!(Change::decode(kind, &payload), Ok(change));
        for end in 0..payload.len() {
            assert!(
                Change::decode(kind, &payload[..end]).is_err(),
                "{kind} at {end}"
            );
        }
        let longer = [&payload[..], &[0]].concat();
        assert!(Change::decode(kind, &longer).is_err());
    }
}

#[test]
fn a_map_record_has_the_bytes_of_version_three() {
    let change = all().remove(2);
    let bytes = concat!(
        "03",
        "0900000000000000",
        "03000000",
        "000000000000000001",
        "05000000ffff",
        "090000000000000000",
        "000000000400000002",
        "060000000100",
        "07000000f000",
    );
    assert_eq!(hex::encode(change.encode().1), bytes);
}

#[test]
fn a_map_record_with_checksums_has_the_bytes_of_version_three() {
    let change = all().remove(11);
    let bytes = concat!(
        "03",
        "0900000000000000",
        "02000000",
        "000000000000000001",
        "05000000ffff",
        "100001020304",
        "090000000000000000",
        "0000",
    );
    assert_eq!(hex::encode(change.encode().1), bytes);
}

#[test]
fn records_of_version_two_are_read_and_make_volumes_without_checksums() {
    for change in all().into_iter().take(11) {
        let (kind, mut payload) = change.encode();
        payload[0] = 2;
        let wanted = match change {
            Change::Create {
                id,
                bytes,
                created_ms,
                owner,
                name,
                key,
                ..
            } => {
                assert_eq!(payload.pop(), Some(1));
                Change::Create {
                    id,
                    bytes,
                    created_ms,
                    owner,
                    name,
                    key,
                    checksums: false,
                }
            }
            other => other,
        };
        assert_eq!(Change::decode(kind, &payload), Ok(wanted));
        payload[0] = 4;
        assert!(Change::decode(kind, &payload).is_err());
    }
}

#[test]
fn pieces_that_overlap_or_are_empty_are_refused() {
    let decode = |pieces: &[(u32, u16)]| {
        let mut out = begin_map(VolumeId(1));
        out.u64(4);
        out.u8(pieces.len() as u8);
        for (cluster, mask) in pieces {
            out.u32(*cluster);
            out.u16(*mask);
        }
        Change::decode(MAP, &end_map(out, 1))
    };
    assert!(decode(&[(1, 1), (2, 2)]).is_ok());
    assert!(decode(&[(1, 3), (2, 2)]).is_err());
    assert!(decode(&[(1, 0)]).is_err());
    assert!(decode(&[(1, 1); 17]).is_err());
}
