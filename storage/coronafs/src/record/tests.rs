//! Records as they are written and read.

use super::*;
use crate::image::digest::Running;
use crate::image::{Ending, ImageDigest, ImageRef};

fn all() -> Vec<Change> {
    let (id, volume) = (VolumeId(0x1_0000_0000_0007), VolumeId(9));
    let snapshot = SnapshotId(11);
    let name = "name".to_owned();
    let limits = Limits {
        ops_per_s: 100,
        bytes_per_s: 1 << 20,
        burst_ms: 50,
        shares: 10_000,
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
            image: None,
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

/// Those of images, behind the others.
fn of_images() -> Vec<Change> {
    let (id, volume) = (VolumeId(0x1_0000_0000_0007), VolumeId(9));
    vec![
        Change::Create {
            id,
            bytes: 1 << 30,
            created_ms: 7,
            owner: "me".into(),
            name: "image".into(),
            key: None,
            checksums: false,
            image: Some(VolumeImage::new(image(), 1 << 20)),
        },
        Change::Image {
            volume,
            change: ImageChange::Fetched {
                chunk: 4,
                hash: [6; 32],
            },
        },
        Change::Image {
            volume,
            change: ImageChange::Hashed(Running::new(9, [1, 2, 3, 4, 5, 6, 7, 8])),
        },
        Change::Image {
            volume,
            change: ImageChange::Ended(Ending::Failed("why".into())),
        },
    ]
}

fn image() -> ImageRef {
    ImageRef {
        identity: "bucket/key".into(),
        bytes: 12_345,
        digest: Some(ImageDigest([5; 32])),
    }
}

#[test]
fn records_are_read_as_they_were_written_and_no_other_length_is() {
    let kinds = (1..=11).chain([MAP_WITH_SUMS]).chain(12..=15);
    for (number, change) in kinds.zip(all().into_iter().chain(of_images())) {
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
fn a_map_record_has_the_bytes_of_version_three_and_two_is_read() {
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
    let mut older = hex::decode(bytes).unwrap();
    for (version, is_read) in [(1, false), (2, true), (4, false)] {
        older[0] = version;
        assert_eq!(Change::decode(MAP, &older).is_ok(), is_read);
    }
}

#[test]
fn an_image_record_has_the_bytes_of_version_three() {
    let bytes = concat!(
        "03",
        "0700000000000100",
        "0000004000000000",
        "0700000000000000",
        "020000006d65",
        "05000000696d616765",
        "0000000000000000",
        "00",
        "3930000000000000",
        "0a0000006275636b65742f6b6579",
        "00001000",
        "01",
        "0505050505050505050505050505050505050505050505050505050505050505",
    );
    assert_eq!(hex::encode(of_images().remove(0).encode().1), bytes);
    let refused = |change: &dyn Fn(&mut VolumeImage)| {
        let mut image = VolumeImage::new(image(), 1 << 20);
        change(&mut image);
        let Change::Create { id, owner, .. } = of_images().remove(0) else {
            panic!("the record of a volume from an image")
        };
        let change = Change::Create {
            id,
            bytes: 1 << 30,
            created_ms: 0,
            name: owner.clone(),
            owner,
            key: None,
            checksums: false,
            image: Some(image),
        };
        let (kind, payload) = change.encode();
        Change::decode(kind, &payload).is_err()
    };
    assert!(!refused(&|_| ()));
    assert!(refused(&|image| image.chunk_bytes = 0));
    assert!(refused(&|image| image.chunk_bytes = 4096));
    assert!(refused(&|image| image.chunk_bytes = 32 << 20));
    assert!(refused(&|image| image.image.bytes = 0));
    assert!(refused(&|image| image.image.identity.clear()));
    assert!(refused(&|image| image.image.identity = "a".repeat(1025)));
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
                    image: None,
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
    assert!(decode(&[(1, 1), (ZEROS, 2)]).is_ok());
    assert!(decode(&[(ZEROS, 2), (1, 1)]).is_err());
}
