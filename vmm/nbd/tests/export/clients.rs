//! Clients that others wrote: libnbd's and QEMU's.

use std::path::Path;
use std::process::Command;

use sha2::{Digest, Sha256};

use crate::support::{Backend, MIB, pattern};

/// What a program says, when it succeeds.
pub fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    let output =
        output.unwrap_or_else(|e| panic!("{program}: {e}; `cargo xtask setup` installs it"));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{program} {args:?}: {said}{errors}"
    );
    said
}

pub fn digest(path: &Path) -> String {
    let mut hasher = Sha256::new();
    let mut file = std::fs::File::open(path).unwrap();
    let mut bytes = vec![0; 1 << 20];
    loop {
        let got = std::io::Read::read(&mut file, &mut bytes).unwrap();
        if got == 0 {
            return hex::encode(hasher.finalize());
        }
        hasher.update(&bytes[..got]);
    }
}

/// A file with data, zeros and holes.
pub fn image(path: &Path) {
    let file = std::fs::File::create(path).unwrap();
    file.set_len(64 * MIB).unwrap();
    for (at, len) in [(0, 3 << 20), (17 << 20, 70_144), (40 << 20, 9 << 20)] {
        let bytes = pattern(len, at as u32);
        std::os::unix::fs::FileExt::write_all_at(&file, &bytes, at).unwrap();
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn nbdcopy_copies_in_and_out_by_many_connections() {
    let backend = Backend::plain();
    let dir = tempfile::tempdir().unwrap();
    let (there, back) = (dir.path().join("there"), dir.path().join("back"));
    image(&there);
    let uri = backend.uri("disk");
    let many = ["--connections=4", "--threads=4"];
    run(
        "nbdcopy",
        &[&many[..], &["--flush", text(&there), &uri]].concat(),
    );
    // The server and the export count them, each on its own.
    assert_eq!(backend.stats().connections, 8);
    run("nbdcopy", &[&many[..], &[&uri, text(&back)]].concat());
    assert_eq!(digest(&back), digest(&there));
    // What was a hole is one on both sides.
    let read = backend.stats().read_bytes;
    assert!(read < 20 * MIB, "{read} bytes were read");
    run(
        "nbdcopy",
        &["--connections=1", "--requests=64", &uri, text(&back)],
    );
    assert_eq!(digest(&back), digest(&there));
    backend.stop();
}

#[test]
fn nbdinfo_sees_what_is_there() {
    let backend = Backend::plain();
    let uri = backend.uri("disk");
    let said = run("nbdinfo", &[&uri]);
    for line in [
        "export-size: 67108864 (64M)",
        "can_multi_conn: true",
        "can_fast_zero: true",
        "is_read_only: false",
        "block_size_minimum: 512",
        "block_size_maximum: 33554432",
        "ultracloud:changed-since:monday",
        "description: disk of memory",
    ] {
        assert!(said.contains(line), "{line} is not in {said}");
    }
    let listed = run("nbdinfo", &["--list", &backend.uri("")]);
    assert!(listed.contains("export=\"disk\""), "{listed}");
    run("qemu-io", &["-f", "raw", "-c", "write -P 5 1M 64k", &uri]);
    let map = run("nbdinfo", &["--map", &uri]);
    let words: Vec<Vec<&str>> = map
        .lines()
        .map(|l| l.split_whitespace().collect())
        .collect();
    let words: Vec<&[&str]> = words.iter().map(|words| &words[..3]).collect();
    let expected = [
        ["0", "1048576", "3"],
        ["1048576", "65536", "0"],
        ["1114112", "65994752", "3"],
    ];
    assert_eq!(words, expected.map(|words| words.to_vec()));
    let changed = run("nbdinfo", &["--map=ultracloud:changed-since:monday", &uri]);
    let second = changed.lines().nth(1).unwrap();
    let words: Vec<&str> = second.split_whitespace().take(3).collect();
    assert_eq!(words, ["1048576", "65536", "1"], "{changed}");
    backend.stop();
}

#[test]
fn qemu_converts_compares_and_maps() {
    let backend = Backend::plain();
    let dir = tempfile::tempdir().unwrap();
    let (there, back) = (dir.path().join("there"), dir.path().join("back.qcow2"));
    image(&there);
    let uri = backend.uri("disk");
    let convert = ["convert", "-n", "-f", "raw", "-O", "raw", "-W", "-m", "8"];
    run("qemu-img", &[&convert[..], &[text(&there), &uri]].concat());
    run(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "raw", text(&there), &uri],
    );
    let info = run("qemu-img", &["info", "--output=json", &uri]);
    assert!(info.contains("\"virtual-size\": 67108864"), "{info}");
    let map = run("qemu-img", &["map", "--output=json", "-f", "raw", &uri]);
    let part =
        "\"start\": 17825792, \"length\": 73728, \"depth\": 0, \"present\": true, \"zero\": false";
    assert!(map.contains(part), "{map}");
    run(
        "qemu-img",
        &["convert", "-f", "raw", "-O", "qcow2", &uri, text(&back)],
    );
    let compare = ["compare", "-f", "raw", "-F", "qcow2"];
    run(
        "qemu-img",
        &[&compare[..], &[text(&there), text(&back)]].concat(),
    );
    backend.stop();
}

#[test]
fn qemu_maps_what_has_changed_by_its_own_name_for_it() {
    let backend = Backend::plain();
    let uri = backend.uri("disk");
    run("qemu-io", &["-f", "raw", "-c", "write -P 5 1M 64k", &uri]);
    let socket = backend.socket().display();
    let options = format!(
        "driver=nbd,server.type=unix,server.path={socket},export=disk,\
         x-dirty-bitmap=qemu:dirty-bitmap:monday"
    );
    let map = run(
        "qemu-img",
        &["map", "--output=json", "--image-opts", &options],
    );
    let part = "\"start\": 1048576, \"length\": 65536, \"depth\": 0, \"present\": false, \"zero\": false, \"data\": false";
    assert!(map.contains(part), "{map}");
    assert!(map.contains("\"start\": 1114112"), "{map}");
    backend.stop();
}

#[test]
fn qemu_io_reads_back_what_it_did() {
    let backend = Backend::plain();
    let uri = backend.uri("disk");
    let commands = [
        "aio_write -P 1 0 2M",
        "aio_write -P 2 2M 1M",
        "aio_flush",
        "write -z -u 1M 512k",
        "write -f -P 3 8M 4k",
        "discard 2M 64k",
        "flush",
        "read -P 1 0 1M",
        "read -P 0 1M 512k",
        "read -P 1 1536k 512k",
        "read -P 0 2M 64k",
        "read -P 2 2112k 448k",
        "read -P 3 8M 4k",
    ];
    let mut args = vec!["-f", "raw"];
    args.extend(commands.iter().flat_map(|command| ["-c", command]));
    args.push(&uri);
    let said = run("qemu-io", &args);
    assert!(!said.contains("failed"), "{said}");
    assert!(backend.flushes() > 0);
    let socket = backend.socket().display().to_string();
    let listed = run("qemu-nbd", &["--list", "-k", &socket]);
    assert!(listed.contains("export: 'disk'"), "{listed}");
    backend.stop();
}
