//! `ultractl volume` before a real node, with images that QEMU's own tools make and judge.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::node::Node;

fn volume(node: &Node, args: &[&str]) -> String {
    node.ann("volume", args)
        .unwrap_or_else(|said| panic!("{args:?}: {said}"))
}

fn json(node: &Node, args: &[&str]) -> Value {
    let said = volume(node, &[args, &["-o", "json"]].concat());
    serde_json::from_str(&said).unwrap()
}

fn qemu_img(args: &[&str]) {
    let output = Command::new("qemu-img").args(args).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "qemu-img {args:?}: {said}");
}

/// Bytes that no two places share.
fn pattern(len: u64) -> Vec<u8> {
    (0..len / 8)
        .flat_map(|word| word.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes())
        .collect()
}

/// A raw image of 9 MiB with data at both ends, and a hole.
fn raw_image(dir: &Path) -> String {
    let path = dir.join("disk.raw");
    let mut bytes = pattern(2 << 20);
    bytes.resize(8 << 20, 0);
    bytes.extend(pattern(1 << 20));
    std::fs::write(&path, bytes).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn images_become_volumes_and_volumes_images() {
    let node = Node::start();
    let raw = raw_image(node.dir.path());
    let path = |name: &str| node.dir.path().join(name).to_str().unwrap().to_owned();
    let (qcow2, back, back2) = (path("disk.qcow2"), path("back.raw"), path("back.qcow2"));
    qemu_img(&["convert", "-O", "qcow2", "-c", &raw, &qcow2]);

    let done = json(&node, &["import", &raw, "of-raw"]);
    assert_eq!(
        (&done["verified"], &done["bytes"]),
        (&true.into(), &(9 << 20).into())
    );
    let shown = json(&node, &["stat", "of-raw"]);
    assert_eq!(shown["mapped_bytes"], 3 << 20);
    assert_eq!(shown["attachments"], serde_json::json!([]));
    let said = volume(
        &node,
        &[
            "import",
            &qcow2,
            "of-qcow2",
            "--encrypted",
            "--size",
            "16MiB",
        ],
    );
    assert!(said.contains("read back and equal"), "{said}");
    assert_eq!(json(&node, &["stat", "of-qcow2"])["encrypted"], true);

    volume(
        &node,
        &["export", "of-raw", &back2, "--image-format", "qcow2"],
    );
    qemu_img(&["compare", &raw, &back2]);
    volume(&node, &["resize", "of-qcow2", "9MiB"]);
    volume(&node, &["export", "of-qcow2", &back]);
    qemu_img(&["compare", &raw, &back]);
    let refused = node
        .ann("volume", &["export", "of-raw", &back])
        .unwrap_err();
    assert!(refused.contains("back.raw"), "{refused}");

    // What is no image leaves no volume.
    let cut = std::fs::read(&qcow2).unwrap();
    std::fs::write(&qcow2, &cut[..cut.len() / 2]).unwrap();
    node.ann("volume", &["import", &qcow2, "of-nothing"])
        .unwrap_err();
    let names: Vec<String> = json(&node, &["list"])
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["name"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(names, ["of-qcow2", "of-raw"]);
}

#[test]
fn a_volume_is_compared_with_its_snapshots_over_nbd() {
    let node = Node::start();
    let raw = raw_image(node.dir.path());
    volume(&node, &["import", &raw, "disk", "--no-verify"]);
    volume(&node, &["snapshot", "create", "disk", "monday"]);
    let made = json(&node, &["attach", "disk", "--nbd"]);
    let socket = made["attachment"]["socket"].as_str().unwrap().to_owned();
    let uri = made["attachment"]["uri"].as_str().unwrap().to_owned();
    let write = Command::new("qemu-io")
        .args(["-f", "raw", "-c", "write -P 7 1M 64k", "-c", "flush", &uri])
        .output()
        .unwrap();
    assert!(
        write.status.success(),
        "{}",
        String::from_utf8_lossy(&write.stderr)
    );
    let options = format!(
        "driver=nbd,server.type=unix,server.path={socket},x-dirty-bitmap=qemu:dirty-bitmap:monday"
    );
    let map = Command::new("qemu-img")
        .args(["map", "--output=json", "--image-opts", &options])
        .output()
        .unwrap();
    // What is dirty shows as what holds no data, as QEMU has it.
    let map: Value = serde_json::from_slice(&map.stdout).unwrap();
    let dirty: Vec<(u64, u64)> = map
        .as_array()
        .unwrap()
        .iter()
        .filter(|range| range["data"] == false)
        .map(|range| {
            (
                range["start"].as_u64().unwrap(),
                range["length"].as_u64().unwrap(),
            )
        })
        .collect();
    assert_eq!(dirty, [(1 << 20, 64 << 10)], "{map}");
    // While somebody writes, a snapshot is what can be exported.
    let back = node.dir.path().join("back.raw");
    let to = back.to_str().unwrap();
    let refused = node.ann("volume", &["export", "disk", to]).unwrap_err();
    assert!(refused.contains("--snapshot"), "{refused}");
    volume(&node, &["export", "disk", to, "--snapshot", "monday"]);
    assert!(std::fs::read(&back).unwrap() == std::fs::read(&raw).unwrap());
    assert_eq!(json(&node, &["list"]).as_array().unwrap().len(), 1);
    std::fs::remove_file(&back).unwrap();
    volume(&node, &["detach", "disk"]);
    volume(&node, &["snapshot", "create", "disk", "tuesday"]);
    let changes = json(&node, &["diff", "disk", "tuesday", "--since", "monday"]);
    assert_eq!(
        changes,
        serde_json::json!([{ "offset": 1 << 20, "bytes": 64 << 10, "zero": false }])
    );
    volume(&node, &["rollback", "disk", "monday"]);
    volume(&node, &["export", "disk", to]);
    assert!(std::fs::read(back).unwrap() == std::fs::read(raw).unwrap());
}
