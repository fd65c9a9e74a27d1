//! A node whose disk is full, on the real kernel. Contract LS-1.
//!
//! The data directory lies on a tmpfs of fixed size, mounted in a mount namespace of its own: root may
//! do that, and so may anybody where user namespaces are allowed. Where neither is, a limit on the
//! size of files stands in for the end of the disk: the data file meets it, the log does not. The test
//! prints which of them it used.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::support::{Answer, Client, Node, Payload, admin, command, noise, request};

/// Room for the log's segments, the ballast, and some of everything else.
const DISK_MIB: u32 = 320;
/// Above a log segment, which is 64 MiB.
const FILE_MIB: u32 = 80;
const LARGE: usize = 1 << 20;
const SMALL: usize = 60_000;
const PART: usize = 5 << 20;
/// Longest that a disk may stay full once enough was removed.
const RECOVERY_LIMIT: Duration = Duration::from_mins(1);

/// A disk that ends.
enum Disk {
    /// A process that keeps a mount namespace alive, until its stdin ends; and how to enter it.
    Mounted { holder: Child, enter: Vec<String> },
    /// Only files end.
    Limited,
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Disk::Mounted { holder, .. } = self {
            drop(holder.stdin.take());
            // Fails when it has ended already.
            let _ = holder.wait();
        }
    }
}

impl Disk {
    fn new(dir: &Path) -> Disk {
        let (root, other): (&[&str], &[&str]) = (&[], &["--user", "--map-root-user"]);
        for user in [root, other] {
            if let Some(holder) = mount(user, dir) {
                let target = holder.id().to_string();
                let mut enter = vec!["nsenter".into(), "--target".into(), target];
                enter.push("--mount".into());
                if !user.is_empty() {
                    enter.extend(["--user".into(), "--preserve-credentials".into()]);
                }
                eprintln!("full_disk: the disk is a tmpfs of {DISK_MIB} MiB ({user:?})");
                return Disk::Mounted { holder, enter };
            }
        }
        eprintln!(
            "full_disk: neither a mount namespace nor a user namespace is allowed here, so the disk is \
             a limit of {FILE_MIB} MiB on the size of files. Refusals of bodies in extents are shown; \
             those of the log are not. Run it as root to see them."
        );
        Disk::Limited
    }

    fn start(&self, data: &Path) -> Node {
        let plain = command(data);
        let mut wrapped = match self {
            Disk::Mounted { enter, .. } => {
                let mut wrapped = Command::new(&enter[0]);
                wrapped.args(&enter[1..]).arg("--");
                wrapped
            }
            Disk::Limited => {
                let mut wrapped = Command::new("prlimit");
                wrapped.arg(format!("--fsize={}", u64::from(FILE_MIB) << 20));
                wrapped
            }
        };
        wrapped.arg(plain.get_program()).args(plain.get_args());
        for (name, value) in plain.get_envs() {
            wrapped.env(name, value.unwrap_or_default());
        }
        // Beside the mount, which is seen from within only.
        let config = data.ancestors().nth(2).unwrap().join("node.toml");
        let text = "[shards]\ncount = 1\npool_mib = 32\n[lightningstor]\npartitions = 1\n";
        std::fs::write(&config, text).unwrap();
        Node::from_command(wrapped.arg("--config").arg(config))
    }

    fn ends_for_the_log(&self) -> bool {
        matches!(self, Disk::Mounted { .. })
    }
}

/// A namespace in which a small tmpfs lies on `dir`; `None` where that is not allowed.
fn mount(user: &[&str], dir: &Path) -> Option<Child> {
    let script = r#"mount -t tmpfs -o "size=$1m" none "$0" && echo mounted && exec cat"#;
    let mut holder = Command::new("unshare")
        .args(user)
        .args(["--mount", "--propagation", "private", "sh", "-c", script])
        .arg(dir)
        .arg(DISK_MIB.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let mut line = String::new();
    let said = holder.stdout.take().map(BufReader::new);
    if said.is_some_and(|mut said| said.read_line(&mut line).is_ok()) && line == "mounted\n" {
        return Some(holder);
    }
    let _ = holder.wait();
    None
}

/// What was acknowledged: path to (seed, length).
type Stored = BTreeMap<String, (u64, usize)>;

/// Puts bodies of one length until one is refused.
fn fill(client: &mut Client, stored: &mut Stored, name: &str, len: usize) {
    for n in 0..4000_u64 {
        let path = format!("/full/{name}-{n:04}");
        let seed = n << 32 | len as u64;
        let answer = client.put(&path, &noise(seed, len));
        if answer.status != 200 {
            answer.refused(507, "InsufficientStorage");
            client.head(&path).expect(404);
            return;
        }
        stored.insert(path, (seed, len));
    }
    panic!("the disk is never full: {} objects", stored.len());
}

fn check(client: &mut Client, stored: &Stored, every: usize) {
    for (path, (seed, len)) in stored.iter().step_by(every) {
        let got = client.get(path).expect(200);
        assert!(got.body == noise(*seed, *len), "{path}");
    }
}

/// Puts until it is served: the disk has space again when the background work has found it.
fn put_in_the_end(client: &mut Client, path: &str, body: &[u8]) {
    let began = Instant::now();
    loop {
        let answer = client.put(path, body);
        if answer.status == 200 {
            return;
        }
        assert!(matches!(answer.status, 503 | 507), "{}", answer.text());
        assert!(
            began.elapsed() < RECOVERY_LIMIT,
            "{path}: {}",
            answer.text()
        );
        std::thread::yield_now();
    }
}

fn remove(client: &mut Client, path: &str) {
    let began = Instant::now();
    loop {
        let answer = client.delete(path);
        if answer.status == 204 {
            return;
        }
        // While a compaction needs the log's last room.
        assert!(answer.status == 503, "{path}: {}", answer.text());
        assert!(began.elapsed() < RECOVERY_LIMIT, "{path}");
        std::thread::yield_now();
    }
}

fn metric(node: &Node, name: &str) -> u64 {
    let (_, text) = admin(node, "/metrics");
    let prefix = format!("uc_lightningstor_{name}{{shard=\"0\"}} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&*prefix));
    line.unwrap_or_else(|| panic!("{name} in {text}"))
        .parse()
        .unwrap()
}

fn part(client: &mut Client, id: &str, payload: Payload) -> Answer {
    let (query, body) = (format!("partNumber=1&uploadId={id}"), noise(1, PART));
    let part = request("PUT", "/full/multi").query(&query).body(&body);
    client.send(&part.payload(payload))
}

/// Every way to send a body is refused with the same error, and leaves nothing.
fn every_upload_is_refused(node: &Node, client: &mut Client, upload: &str) {
    let used = metric(node, "data_used_bytes");
    for payload in [Payload::Unsigned, Payload::Sha256, Payload::SignedChunks] {
        let body = noise(5, 3 * LARGE);
        let put = request("PUT", "/full/refused").body(&body).payload(payload);
        client.send(&put).refused(507, "InsufficientStorage");
        part(client, upload, payload).refused(507, "InsufficientStorage");
    }
    let body = noise(5, 3 * LARGE);
    let put = request("PUT", "/full/refused").body(&body);
    let put = put
        .payload(Payload::UnsignedTrailer)
        .trailer("x-amz-checksum-crc32", "AAAAAA==");
    client.send(&put).refused(507, "InsufficientStorage");
    client.head("/full/refused").expect(404);
    let listed = client.send(&request("GET", "/full/multi").query(&format!("uploadId={upload}")));
    assert!(listed.expect(200).all("PartNumber").is_empty());
    assert_eq!(metric(node, "data_used_bytes"), used);
    let abort = format!("uploadId={upload}");
    let abort = request("DELETE", "/full/multi").query(&abort);
    client.send(&abort).expect(204);
}

#[test]
fn a_full_disk_answers_507_keeps_everything_and_serves_again_when_there_is_space() {
    let dir: TempDir = tempfile::tempdir().unwrap();
    let mount = dir.path().join("disk");
    std::fs::create_dir(&mount).unwrap();
    let disk = Disk::new(&mount);
    let data = mount.join("data");
    let node = disk.start(&data);
    let mut client = node.client();
    client.put("/full", b"").expect(200);
    let begun = client.send(&request("POST", "/full/multi").query("uploads"));
    let upload = begun.expect(200).one("UploadId");
    let mut stored = Stored::new();
    fill(&mut client, &mut stored, "large", LARGE);
    if disk.ends_for_the_log() {
        fill(&mut client, &mut stored, "small", SMALL);
    }
    assert!(stored.len() > 40, "{}", stored.len());
    every_upload_is_refused(&node, &mut client, &upload);
    assert_eq!(metric(&node, "full"), 1);
    assert_eq!(admin(&node, "/healthz").0, 200, "nothing is broken");
    check(&mut client, &stored, 1);

    // It ends, and begins again, with no space at all.
    node.drain();
    let node = disk.start(&data);
    check(&mut node.client(), &stored, 7);
    node.kill();
    let node = disk.start(&data);
    let mut client = node.client();
    check(&mut client, &stored, 7);
    // What starting gave back is soon used up, and nothing else.
    fill(&mut client, &mut stored, "more", LARGE);
    check(&mut client, &stored, 7);

    let removed: Vec<String> = stored
        .keys()
        .enumerate()
        .filter(|(at, _)| at % 3 > 0)
        .map(|(_, path)| path.clone())
        .collect();
    for path in &removed {
        remove(&mut client, path);
        stored.remove(path);
        client.head(path).expect(404);
    }
    for n in 0..10_u64 {
        for (name, len) in [("large", LARGE), ("small", SMALL)] {
            let (path, seed) = (format!("/full/again-{name}-{n}"), n + len as u64);
            put_in_the_end(&mut client, &path, &noise(seed, len));
            stored.insert(path, (seed, len));
        }
    }
    check(&mut client, &stored, 1);
    assert_eq!(metric(&node, "poisoned"), 0);
    node.drain();
}
