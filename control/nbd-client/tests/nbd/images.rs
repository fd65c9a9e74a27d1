//! Images of all flavours in and out, compared by qemu-img.

use std::path::Path;

use nbd_client::image::{
    Export, Format, From, Import, Phase, Progress, To, export, import, inspect,
};
use nbd_client::image::{ImageError, Summary};

use crate::support::{BYTES, MIB, QemuNbd, Volume, connect, raw_image, run_program, text};

/// Size of most images.
const SMALL: u64 = 16 * MIB;

fn qemu_img(args: &[&str]) -> String {
    run_program("qemu-img", args)
}

fn silent(_: Progress) {}

async fn into_volume(volume: &Volume, job: &Import) -> Result<Summary, ImageError> {
    let client = connect(&volume.target("disk")).await;
    import(&client, job, &mut silent).await
}

/// An export to a file that may be there.
fn replacing(path: &Path, format: Format) -> Export {
    let path = path.to_owned();
    let overwrite = true;
    Export {
        to: To::File { path, overwrite },
        ..Export::new("", format)
    }
}

/// Whether the volume holds what an image does, as QEMU sees both.
fn same(image: &Path, format: &str, volume: &Volume) {
    let args = [
        "compare",
        "-f",
        format,
        "-F",
        "raw",
        text(image),
        &volume.uri("disk"),
    ];
    qemu_img(&args);
}

#[tokio::test]
async fn raw_images_go_in_and_out_and_stay_sparse() {
    let volume = Volume::start();
    let dir = tempfile::tempdir().unwrap();
    let (there, back) = (dir.path().join("there"), dir.path().join("back"));
    raw_image(&there, BYTES);
    let mut seen = Vec::new();
    let client = connect(&volume.target("disk")).await;
    let mut watch = |progress| seen.push(progress);
    let job = Import::new(&there);
    let imported = import(&client, &job, &mut watch).await.unwrap();
    assert_eq!((imported.bytes, imported.verified), (BYTES, true));
    // Two and three MiB, and a bit over one grain; the zeros that were stored are not.
    let data = 5 * MIB + 2 * 65_536;
    assert_eq!(imported.data_bytes, data);
    assert!(volume.mapped_bytes() <= data, "{}", volume.mapped_bytes());
    for phase in [Phase::Copy, Phase::Verify] {
        let last = seen.iter().rfind(|progress| progress.phase == phase);
        assert_eq!(
            last.map(|last| (last.done, last.total)),
            Some((BYTES, Some(BYTES)))
        );
    }
    same(&there, "raw", &volume);
    let exported = export(&client, &Export::new(&back, Format::Raw), &mut silent).await;
    assert_eq!(exported.unwrap(), imported);
    qemu_img(&[
        "compare",
        "-f",
        "raw",
        "-F",
        "raw",
        text(&there),
        text(&back),
    ]);
    let blocks = std::os::unix::fs::MetadataExt::blocks(&back.metadata().unwrap());
    assert!(blocks * 512 < 6 * MIB, "{blocks} blocks are stored");
    // What is there is not replaced unless that is asked for.
    let again = export(&client, &Export::new(&back, Format::Raw), &mut silent).await;
    assert!(again.unwrap_err().to_string().contains(text(&back)));
    let replace = replacing(&back, Format::Qcow2);
    export(&client, &replace, &mut silent).await.unwrap();
    qemu_img(&["check", "-f", "qcow2", text(&back)]);
    same(&back, "qcow2", &volume);
    let left = std::fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(left, 2, "nothing else is left");
}

#[tokio::test]
async fn qcow2_of_every_flavour_is_read_as_qemu_reads_it() {
    let dir = tempfile::tempdir().unwrap();
    let raw = dir.path().join("raw");
    raw_image(&raw, SMALL);
    let image = dir.path().join("image");
    for (options, compressed) in [
        ("compat=0.10", false),
        ("compat=1.1", false),
        ("compat=1.1", true),
        ("compat=0.10,cluster_size=4k", true),
        ("cluster_size=512", false),
        ("cluster_size=2M", false),
        ("cluster_size=2M", true),
        ("lazy_refcounts=on,refcount_bits=1", false),
        ("preallocation=metadata", false),
        ("preallocation=falloc,cluster_size=16k", false),
    ] {
        let volume = Volume::start();
        let mut args = vec!["convert", "-f", "raw", "-O", "qcow2", "-o", options];
        if compressed {
            args.push("-c");
        }
        args.extend([text(&raw), text(&image)]);
        qemu_img(&args);
        let info = inspect(&image).unwrap();
        assert_eq!((info.format, info.bytes), (Format::Qcow2, SMALL));
        into_volume(&volume, &Import::new(&image)).await.unwrap();
        same(&image, "qcow2", &volume);
        let mapped = volume.mapped_bytes();
        assert!(mapped < 6 * MIB, "{options}: {mapped} bytes");
    }
}

#[tokio::test]
async fn snapshots_inside_of_an_image_and_discards_are_seen_through() {
    let (volume, dir) = (Volume::start(), tempfile::tempdir().unwrap());
    let image = dir.path().join("image");
    qemu_img(&["create", "-f", "qcow2", text(&image), "16M"]);
    let io = |commands: &[&str]| {
        let mut args = vec!["-f", "qcow2", "-d", "unmap"];
        args.extend(commands.iter().flat_map(|command| ["-c", command]));
        args.push(text(&image));
        run_program("qemu-io", &args);
    };
    io(&["write -P 1 0 4M", "write -P 2 8M 1M"]);
    qemu_img(&["snapshot", "-c", "first", text(&image)]);
    io(&["write -P 3 1M 64k", "discard 8M 512k", "write -z 2M 1M"]);
    into_volume(&volume, &Import::new(&image)).await.unwrap();
    same(&image, "qcow2", &volume);
}

#[tokio::test]
async fn a_backing_file_is_used_when_it_is_named_and_only_then() {
    let (volume, dir) = (Volume::start(), tempfile::tempdir().unwrap());
    let (base, image) = (dir.path().join("base"), dir.path().join("image"));
    raw_image(&base, SMALL / 2);
    let backing = ["-b", text(&base), "-F", "raw"];
    let create = ["create", "-f", "qcow2"];
    qemu_img(&[&create[..], &backing, &[text(&image), "16M"]].concat());
    let write = [
        "-f",
        "qcow2",
        "-c",
        "write -P 3 1M 64k",
        "-c",
        "write -z 64k 64k",
    ];
    run_program("qemu-io", &[&write[..], &[text(&image)]].concat());
    assert!(inspect(&image).unwrap().needs_backing);
    let refused = into_volume(&volume, &Import::new(&image))
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("backing file"), "{refused}");
    let job = Import {
        backing: Some(base.clone()),
        ..Import::new(&image)
    };
    into_volume(&volume, &job).await.unwrap();
    same(&image, "qcow2", &volume);
    // One that is based on another itself is refused.
    let job = Import {
        backing: Some(image.clone()),
        ..Import::new(&image)
    };
    let refused = into_volume(&volume, &job).await.unwrap_err();
    assert!(refused.to_string().contains("of its own"), "{refused}");
}

#[tokio::test]
async fn what_is_not_supported_is_refused_by_name() {
    let (volume, dir) = (Volume::start(), tempfile::tempdir().unwrap());
    let (image, other) = (dir.path().join("image"), dir.path().join("other"));
    let create = |options: &str| {
        qemu_img(&["create", "-f", "qcow2", "-o", options, text(&image), "16M"]);
    };
    let data_file = format!("data_file={}", other.display());
    for (options, why) in [
        (data_file.as_str(), "another file"),
        ("extended_l2=on", "not supported"),
        ("compression_type=zstd", "not supported"),
    ] {
        create(options);
        let refused = into_volume(&volume, &Import::new(&image))
            .await
            .unwrap_err();
        let said = refused.to_string();
        assert!(said.contains(why) && said.contains(text(&image)), "{said}");
    }
    create("compat=1.1");
    let job = Import::new(&image);
    qemu_img(&["resize", "-q", text(&image), "65M"]);
    let refused = into_volume(&volume, &job).await.unwrap_err();
    assert!(matches!(refused, ImageError::TooLarge { .. }), "{refused}");
    let refused = into_volume(&volume, &Import::new(dir.path()))
        .await
        .unwrap_err();
    assert!(matches!(refused, ImageError::Image { .. }), "{refused}");
    assert_eq!(volume.mapped_bytes(), 0);
}

#[tokio::test]
async fn an_export_that_was_used_is_the_image_afterwards_and_nothing_else() {
    let (qemu, dir) = (QemuNbd::start(), tempfile::tempdir().unwrap());
    let (image, back) = (dir.path().join("image"), dir.path().join("back"));
    // Not a whole number of sectors.
    raw_image(&image, SMALL + 100);
    std::fs::write(qemu.dir.path().join("disk"), vec![9; BYTES as usize]).unwrap();
    let client = connect(&qemu.target()).await;
    let job = Import {
        target_is_zero: false,
        ..Import::new(&image)
    };
    let imported = import(&client, &job, &mut silent).await.unwrap();
    let job = Export::new(&back, Format::Qcow2);
    let exported = export(&client, &job, &mut silent).await.unwrap();
    assert_eq!(exported.digest, imported.digest);
    qemu_img(&["check", "-f", "qcow2", text(&back)]);
    qemu_img(&[
        "compare",
        "-f",
        "raw",
        "-F",
        "qcow2",
        text(&image),
        text(&back),
    ]);
}

#[tokio::test]
async fn a_copy_that_is_not_the_same_is_found() {
    let (volume, dir) = (Volume::start(), tempfile::tempdir().unwrap());
    let image = dir.path().join("image");
    raw_image(&image, SMALL);
    let client = connect(&volume.target("disk")).await;
    // It is said to be zeros, and is not.
    client.write(30 * MIB, vec![1; 512].into()).await.unwrap();
    let differs = import(&client, &Import::new(&image), &mut silent)
        .await
        .unwrap_err();
    assert!(matches!(differs, ImageError::Differs { .. }), "{differs}");
}

#[tokio::test]
async fn a_file_that_reads_otherwise_takes_no_name() {
    let (volume, dir) = (Volume::start(), tempfile::tempdir().unwrap());
    let client = connect(&volume.target("disk")).await;
    let path = dir.path().join("backup");
    std::fs::write(&path, b"the one before").unwrap();
    let job = replacing(&path, Format::Raw);
    // More pieces than may be on their way, so the file is there when the last has been sent; zeros behind
    // them, so nobody else writes there.
    client.write(0, vec![1; 10 << 20].into()).await.unwrap();
    let part = dir.path().join("backup.part");
    let mut spoil = |progress: Progress| {
        if progress.phase == Phase::Copy && progress.done == BYTES {
            let file = std::fs::File::options().write(true).open(&part);
            std::os::unix::fs::FileExt::write_all_at(&file.unwrap(), &[1], BYTES - 1).unwrap();
        }
    };
    let differs = export(&client, &job, &mut spoil).await.unwrap_err();
    assert!(matches!(differs, ImageError::Differs { .. }), "{differs}");
    assert_eq!(std::fs::read(&path).unwrap(), b"the one before");
    assert!(!part.exists());
}

#[tokio::test]
async fn streams_are_raw_and_cannot_be_read_back() {
    let (volume, dir) = (Volume::start(), tempfile::tempdir().unwrap());
    let job = Import {
        from: From::Stdin,
        format: Some(Format::Qcow2),
        ..Import::new(dir.path())
    };
    let refused = into_volume(&volume, &job).await.unwrap_err();
    assert!(refused.to_string().contains("stream"), "{refused}");
    let client = connect(&volume.target("disk")).await;
    let job = Export {
        to: To::Stdout,
        ..Export::new("", Format::Qcow2)
    };
    let refused = export(&client, &job, &mut silent).await.unwrap_err();
    assert!(refused.to_string().contains("stream"), "{refused}");
}
