//! Images that lie: an error that names the file, and a volume that nothing else was written to.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nbd_client::image::{ImageError, Import, import};

use crate::support::{Volume, connect, run_program, text};

/// An image of a few clusters, and where the first entries of its tables are.
fn image(path: &Path, compressed: bool) -> (File, u64, u64) {
    let raw = path.with_extension("raw");
    std::fs::write(&raw, vec![7; 1 << 20]).unwrap();
    let mut args = vec!["convert", "-f", "raw", "-O", "qcow2"];
    if compressed {
        args.push("-c");
    }
    run_program("qemu-img", &[&args[..], &[text(&raw), text(path)]].concat());
    let file = File::options().read(true).write(true).open(path).unwrap();
    let word = |at| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, at).unwrap();
        u64::from_be_bytes(bytes)
    };
    let l1 = word(40);
    let l2 = word(l1) & 0x00FF_FFFF_FFFF_FE00;
    (file, l1, l2)
}

async fn refused(volume: &Volume, path: &Path) -> ImageError {
    let client = connect(&volume.target("disk")).await;
    let refused = import(&client, &Import::new(path), &mut |_| {}).await;
    refused.unwrap_err()
}

#[tokio::test]
async fn tables_that_point_anywhere_are_errors() {
    let (volume, dir) = (Volume::start(), tempfile::tempdir().unwrap());
    let path = dir.path().join("image");
    let copied = 1 << 63;
    let (_, l1, _) = image(&path, false);
    for (what, of_l1, entry) in [
        ("data behind the file's end", false, copied | 1 << 40),
        ("data in the L1 table", false, copied | l1),
        ("data in the refcount table", false, copied | 0x1_0000),
        ("data that is not at a cluster", false, copied | 0x5_0200),
        ("an L2 table that is not at a cluster", true, copied | 0x200),
        ("an L2 table behind the file's end", true, copied | 1 << 50),
        ("the L1 table as an L2 table", true, copied | l1),
        (
            "compressed data behind the file's end",
            false,
            1 << 62 | 1 << 40,
        ),
        ("compressed data nowhere", false, 1 << 62),
    ] {
        let (file, l1, l2) = image(&path, false);
        let at = if of_l1 { l1 } else { l2 };
        file.write_all_at(&u64::to_be_bytes(entry), at).unwrap();
        let client = connect(&volume.target("disk")).await;
        let job = Import {
            target_is_zero: false,
            ..Import::new(&path)
        };
        match import(&client, &job, &mut |_| {}).await {
            Err(error) => assert!(error.to_string().contains(text(&path)), "{what}: {error}"),
            Ok(done) => panic!("{what}: {done:?}"),
        }
    }
}

#[tokio::test]
async fn a_file_that_was_cut_short_is_not_taken_for_zeros() {
    let (volume, dir) = (Volume::start(), tempfile::tempdir().unwrap());
    let path = dir.path().join("image");
    for compressed in [false, true] {
        let (file, _, l2) = image(&path, compressed);
        // The data is behind the tables.
        let len = file.metadata().unwrap().len();
        file.set_len(len.min(l2 + 0x1_0000 + 512)).unwrap();
        if compressed {
            let mut entry = [0; 8];
            file.read_exact_at(&mut entry, l2).unwrap();
            let mut bytes = u64::from_be_bytes(entry);
            bytes += 1 << 30;
            file.write_all_at(&bytes.to_be_bytes(), l2).unwrap();
        }
        let error = refused(&volume, &path).await;
        assert!(error.to_string().contains(text(&path)), "{error}");
    }
}

#[tokio::test]
async fn heads_that_lie_are_refused_before_anything_is_read() {
    let (volume, dir) = (Volume::start(), tempfile::tempdir().unwrap());
    let path = dir.path().join("image");
    for (at, bytes) in [
        (24, (1_u64 << 62).to_be_bytes().to_vec()),
        (36, u32::MAX.to_be_bytes().to_vec()),
        (40, (1_u64 << 40).to_be_bytes().to_vec()),
        (56, u32::MAX.to_be_bytes().to_vec()),
        (20, 31_u32.to_be_bytes().to_vec()),
    ] {
        let (file, ..) = image(&path, false);
        file.write_all_at(&bytes, at).unwrap();
        let error = refused(&volume, &path).await;
        assert!(matches!(error, ImageError::Image { .. }), "{at}: {error}");
    }
    std::fs::write(&path, b"QFI\xfb\0\0\0\x03").unwrap();
    let error = refused(&volume, &path).await;
    assert!(matches!(error, ImageError::Image { .. }), "{error}");
    assert_eq!(volume.mapped_bytes(), 0);
}
