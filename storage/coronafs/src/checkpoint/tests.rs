//! Checkpoints as they are written and read.

use super::*;
use crate::image::digest::Running;
use crate::image::{Ending, ImageDigest, ImageRef, VolumeImage};
use crate::map::{Piece, ZEROS};
use crate::types::{KeyId, Limits};

fn frames_of(image: &Image) -> Vec<Vec<u8>> {
    let mut frames = vec![FRAMES.frame(HEAD, 0, &head_payload(3, 77, image.newest))];
    let mut items = ImageWriter::new(image);
    loop {
        let mut out = Writer::default();
        let more = items.write(&mut out, 400);
        frames.push(FRAMES.frame(ITEMS, frames.len() as u32, &out.bytes));
        if !more {
            break;
        }
    }
    let end = items.items.to_le_bytes();
    frames.push(FRAMES.frame(END, frames.len() as u32, &end));
    frames
}

fn load(frames: &[Vec<u8>]) -> Option<Loaded> {
    let mut loader = Loader::default();
    for frame in frames {
        loader.take(frame).ok()?;
    }
    loader.finish()
}

fn meta(name: &str) -> Meta {
    Meta {
        owner: "me".into(),
        name: name.into(),
        bytes: 1 << 40,
        created_ms: 12,
        origin: Some(SnapshotId(4)),
        generation: 9,
        limits: Limits {
            ops_per_s: 1,
            bytes_per_s: 2,
            burst_ms: 3,
            ..Limits::default()
        },
        key: Some(KeyId(3)),
        image: None,
        checksums: true,
    }
}

/// A volume with a chain of snapshots, an empty one, and one whose leaf is empty again.
fn image() -> Image {
    let mut tree = Tree::default();
    let piece = |cluster, mask| Piece { cluster, mask };
    for index in [0, 1, 63, 64, 5_000, 1 << 23] {
        tree.set(
            index,
            &[piece(index as u32, 0xff), piece(7, 0xff00)],
            |_| {},
        );
    }
    let mut image = Image {
        newest: 40,
        ..Image::default()
    };
    for number in 0..5 {
        let snapshot = Snapshot {
            volume: VolumeId(1),
            name: format!("s{number}"),
            bytes: 1 << 40,
            created_ms: number,
            key: (number > 2).then_some(KeyId(number)),
            checksums: number > 2,
            frozen: Frozen {
                tree: tree.clone(),
                mapped_blocks: 0,
            },
        };
        image.snapshots.push((SnapshotId(10 + number), snapshot));
        tree.set(64, &[piece(100 + number as u32, 1)], |_| {});
    }
    let mut emptied = Tree::default();
    emptied.set(70, &[piece(1, 1)], |_| {});
    emptied.set(70, &[], |_| {});
    image.volumes.push((VolumeId(1), meta("one"), tree));
    image
        .volumes
        .push((VolumeId(2), meta("two"), Tree::default()));
    image.volumes.push((VolumeId(3), meta("three"), emptied));
    for (number, ending) in [
        None,
        Some(Ending::Filled { verified: true }),
        Some(Ending::Failed("why".into())),
    ]
    .into_iter()
    .enumerate()
    {
        let mut filled = VolumeImage::new(
            ImageRef {
                identity: format!("image{number}"),
                bytes: 1 << 30,
                digest: (number != 1).then_some(ImageDigest([9; 32])),
            },
            1 << 20,
        );
        filled.set_hashed(Running::new(5, [7; 8]));
        if ending.is_none() {
            // More than a frame of these tests holds.
            (0..40).for_each(|chunk| filled.set_fetched(chunk, [chunk as u8; 32]));
            assert_eq!(filled.fetched.len(), 35);
        }
        filled.ending = ending;
        let mut meta = meta(&format!("image{number}"));
        meta.image = Some(filled);
        let mut tree = Tree::default();
        tree.set(3, &[piece(8, 3), piece(ZEROS, 0xf0)], |_| {});
        tree.set(9, &[piece(ZEROS, 1)], |_| {});
        let id = VolumeId(4 + number as u64);
        image.volumes.push((id, meta, tree));
    }
    image
}

#[test]
fn what_was_written_is_read_and_shared_as_before() {
    let image = image();
    let frames = frames_of(&image);
    let loaded = load(&frames).unwrap();
    assert_eq!(
        (loaded.partition, loaded.start_lsn, loaded.state.newest),
        (3, 77, 40)
    );
    for (id, meta, tree) in &image.volumes {
        let volume = &loaded.state.volumes[id];
        assert_eq!(*volume.meta.borrow(), *meta);
        for index in [0, 1, 2, 3, 9, 63, 64, 70, 5_000, 1 << 23] {
            assert_eq!(volume.tree.borrow().slot(index), tree.slot(index));
        }
    }
    let mut roots = Vec::new();
    for (id, snapshot) in &image.snapshots {
        let found = &loaded.state.snapshots[id];
        assert_eq!(found.name, snapshot.name);
        assert_eq!(found.checksums, snapshot.checksums);
        assert_eq!(found.frozen.tree.slot(64), snapshot.frozen.tree.slot(64));
        let leaf = std::ptr::from_ref(found.frozen.tree.leaf(5_000).unwrap());
        roots.push(leaf);
    }
    assert!(
        roots.iter().all(|leaf| *leaf == roots[0]),
        "a shared leaf is one"
    );
    // Each leaf once: four of the first state, and one more for each later state.
    let mut image = image;
    image.volumes.retain(|(_, meta, _)| meta.image.is_none());
    let leaves = frames_of(&image).concat().len();
    assert!(leaves < 2_500, "{leaves} bytes");
}

/// Two slots of a leaf, its parent, and a volume and a snapshot that share them.
#[test]
fn the_bytes_of_format_two_are_read() {
    let items = concat!(
        "0102000204000000ff000700000000ff06010500000001",
        "00",
        "03",
        "0100000000000000",
        "0000000000010000",
        "0c00000000000000",
        "0400000000000000",
        "0900000000000000",
        "0100000000000000",
        "0200000000000000",
        "03000000",
        "020000006d65",
        "030000006f6e65",
        "0300000000000000",
        "01000000",
        "04",
        "0a00000000000000",
        "0100000000000000",
        "0000000000010000",
        "0500000000000000",
        "0100000073",
        "0300000000000000",
        "01000000",
    );
    let mut head = head_payload(3, 77, 40);
    for (format, is_read) in [(1, false), (2, true), (3, false), (4, false)] {
        head[0] = format;
        let frames = [
            FRAMES.frame(HEAD, 0, &head),
            FRAMES.frame(ITEMS, 1, &hex::decode(items).unwrap()),
            FRAMES.frame(END, 2, &3_u64.to_le_bytes()),
        ];
        let loaded = load(&frames);
        assert_eq!(loaded.is_some(), is_read, "format {format}");
        let Some(loaded) = loaded else { continue };
        let volume = &loaded.state.volumes[&VolumeId(1)];
        let wanted = Meta {
            checksums: false,
            ..meta("one")
        };
        assert_eq!(*volume.meta.borrow(), wanted);
        assert_eq!(volume.tree.borrow().slot(0).len(), 2);
        let snapshot = &loaded.state.snapshots[&SnapshotId(10)];
        assert_eq!((snapshot.name.as_str(), snapshot.created_ms), ("s", 5));
        assert_eq!(snapshot.frozen.tree.slot(6).len(), 1);
    }
}

#[test]
fn a_damaged_or_cut_file_is_no_checkpoint() {
    let frames = frames_of(&image());
    assert!(load(&frames[..frames.len() - 1]).is_none());
    let mut swapped = frames.clone();
    swapped.swap(1, 2);
    assert!(load(&swapped).is_none());
    for at in 0..frames.len() {
        let mut damaged = frames.clone();
        let middle = damaged[at].len() / 2;
        damaged[at][middle] ^= 1;
        assert!(load(&damaged).is_none(), "frame {at}");
    }
}

/// One volume and one snapshot without maps, as format 2 had them.
#[test]
fn a_checkpoint_of_format_two_is_read_and_has_no_checksums() {
    let mut head = head_payload(0, 5, 9);
    head[..4].copy_from_slice(&2_u32.to_le_bytes());
    let mut items = Writer::default();
    items.u8(3);
    for number in [7, 1 << 20, 12, 0, 3] {
        items.u64(number);
    }
    put_limits(&mut items, Limits::default());
    items.text("me");
    items.text("old");
    put_key(&mut items, Some(KeyId(3)));
    items.u32(0);
    items.u8(4);
    for number in [8, 7, 1 << 20, 13] {
        items.u64(number);
    }
    items.text("s");
    put_key(&mut items, Some(KeyId(3)));
    items.u32(0);
    let frames = [
        FRAMES.frame(HEAD, 0, &head),
        FRAMES.frame(ITEMS, 1, &items.bytes),
        FRAMES.frame(END, 2, &2_u64.to_le_bytes()),
    ];
    let loaded = load(&frames).unwrap();
    let volume = loaded.state.volumes[&VolumeId(7)].meta.borrow();
    assert_eq!((&volume.name[..], volume.checksums), ("old", false));
    let snapshot = &loaded.state.snapshots[&SnapshotId(8)];
    assert_eq!((&snapshot.name[..], snapshot.checksums), ("s", false));
}

#[test]
fn items_that_make_no_tree_are_refused() {
    let refused = |items: &[u8]| {
        let frames = [
            FRAMES.frame(HEAD, 0, &head_payload(0, 0, 0)),
            FRAMES.frame(ITEMS, 1, items),
        ];
        let mut loader = Loader::default();
        loader.take(&frames[0]).unwrap();
        loader.take(&frames[1]).is_err()
    };
    let leaf = [1, 1, 5, 1, 9, 0, 0, 0, 1, 0];
    assert!(!refused(&leaf));
    // A slot twice, a slot too far, no piece, a child that is not there or of the wrong level.
    assert!(refused(&[
        1, 2, 5, 1, 9, 0, 0, 0, 1, 0, 5, 1, 9, 0, 0, 0, 1, 0
    ]));
    assert!(refused(&[1, 1, 64, 1, 9, 0, 0, 0, 1, 0]));
    assert!(refused(&[1, 1, 5, 0]));
    assert!(refused(&[2, 2, 1, 0, 1, 0, 0, 0]));
    let with_leaf = |inner: &[u8]| refused(&[&leaf[..], inner].concat());
    assert!(!with_leaf(&[2, 2, 1, 0, 1, 0, 0, 0]));
    assert!(with_leaf(&[2, 3, 1, 0, 1, 0, 0, 0]));
    assert!(with_leaf(&[2, 2, 0]));
    assert!(with_leaf(&[2, 2, 1, 64, 1, 0, 0, 0]));
    assert!(with_leaf(&[9]));
}
