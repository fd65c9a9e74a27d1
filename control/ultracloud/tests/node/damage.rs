//! Damage on a real disk: what the client gets, what the operator is told.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::support::{Node, admin, command, connect, data_of, noise, request};

/// The file below a directory that holds these bytes, and where.
fn find(dir: &Path, bytes: &[u8]) -> Option<(PathBuf, u64)> {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if let Some(found) = find(&path, bytes) {
                return Some(found);
            }
            continue;
        }
        let held = fs::read(&path).unwrap();
        if let Some(at) = held.windows(bytes.len()).position(|window| window == bytes) {
            return Some((path, at as u64));
        }
    }
    None
}

/// Changes a byte of a file as a failing disk would.
fn rot(path: &Path, at: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 4], at).unwrap();
    file.sync_all().unwrap();
}

#[test]
fn a_rotten_byte_is_never_served_and_its_place_is_logged_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("stderr");
    let mut command = command(&data_of(&dir));
    let node = Node::from_command(command.stderr(File::create(&log).unwrap()));
    let mut client = node.client();
    client.put("/rot", b"").expect(200);
    let small = noise(1, 5_000);
    let large = noise(2, 1_200_000);
    client.put("/rot/small", &small).expect(200);
    client.put("/rot/large", &large).expect(200);
    for slice in [&small[2_000..2_064], &large[900_000..900_064]] {
        let (file, at) = find(&data_of(&dir), slice).unwrap();
        rot(&file, at);
    }
    client.get("/rot/small").refused(500, "InternalError");
    let ranged = request("GET", "/rot/large").header("range", "bytes=899000-901000");
    client.send(&ranged).refused(500, "InternalError");

    // Its beginning is whole, and what comes is cut off before the damage.
    let mut stream = connect(node.s3);
    let get = client.encode(&request("GET", "/rot/large").header("connection", "close"));
    stream.write_all(&get).unwrap();
    let mut got = Vec::new();
    // A reset is an end as well.
    let _ = stream.read_to_end(&mut got);
    let at = got.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
    let head = String::from_utf8(got[..at].to_vec()).unwrap();
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("Content-Length: 1200000"));
    assert!(got.len() - at <= 900_000 && got[at..] == large[..got.len() - at]);

    let (_, metrics) = admin(&node, "/metrics");
    let counted = metrics
        .lines()
        .filter(|line| line.starts_with("uc_lightningstor_corrupt_reads_total{"))
        .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap());
    assert!(counted.sum::<u64>() >= 3);
    node.drain();
    let said = fs::read_to_string(&log).unwrap();
    for (object, file) in [
        ("rot/small", "of log segment "),
        ("rot/large", "of the data file"),
    ] {
        let mut lines = said.lines();
        let line = lines.find(|l| l.contains(object)).unwrap();
        assert!(line.contains(file) && line.contains("at byte "), "{line}");
    }
}
