//! Volumes of another node: two nodes on one host, one of which owns the volume. Contract CO-1.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use guest::{Disk, Machine, stories};
use serde_json::{Value, json};

use crate::api::{ANN, body, error, rest, root_token, start};
use crate::support::{Node, admin};
use crate::volumes::{kernel, restart};

const ROLES: &str = "roles = [\"lightningstor\", \"coronafs\"]\n";
const MIB: u64 = 1 << 20;
const REMOTES: &str = "/v1/remote-volumes";
const PATIENCE: Duration = Duration::from_mins(2);

/// A node and its directory.
struct Side {
    dir: tempfile::TempDir,
    node: Option<Node>,
}

impl Side {
    fn start() -> Side {
        let (dir, node) = start(ROLES);
        let node = Some(node);
        Side { dir, node }
    }

    fn node(&self) -> &Node {
        self.node.as_ref().unwrap()
    }

    fn root(&self) -> String {
        root_token(&self.dir.path().join("data"))
    }

    fn ask(&self, method: &str, path: &str, request: &Value) -> Value {
        let text = match request {
            Value::Null => String::new(),
            request => request.to_string(),
        };
        let answer = rest(self.node(), &self.root(), method, path, &text);
        assert!(answer.status < 300, "{method} {path}: {}", answer.text());
        body(&answer)
    }

    fn refused(&self, token: &str, method: &str, path: &str, request: &Value) -> (u16, String) {
        let text = match request {
            Value::Null => String::new(),
            request => request.to_string(),
        };
        let (status, code, _) = error(&rest(self.node(), token, method, path, &text));
        (status, code)
    }

    fn kill(&mut self) {
        self.node.take().unwrap().kill();
    }

    fn drain(&mut self) {
        self.node.take().unwrap().drain();
    }

    fn restart(&mut self) {
        self.node = Some(restart(self.dir.path()));
    }

    /// What it says of its only remote volume.
    fn remote(&self) -> Value {
        let listed = self.ask("GET", REMOTES, &Value::Null);
        listed["volumes"][0].clone()
    }

    fn wait_for(&self, state: &str) {
        let end = Instant::now() + PATIENCE;
        while self.remote()["state"] != state {
            assert!(Instant::now() < end, "no {state}: {}", self.remote());
            std::thread::yield_now();
        }
    }

    /// Makes a volume `disk`, attaches it by NBD, and answers the endpoint.
    fn serve(&self, bytes: u64, listen: &str) -> (u64, String) {
        let volume = json!({ "name": "disk", "bytes": bytes });
        self.ask("POST", "/v1/volumes", &volume);
        let request = json!({ "kind": "nbd", "access": "shared", "listen": listen });
        let made = self.ask("POST", "/v1/volumes/disk/attachments", &request);
        let socket = made["socket"].as_str().unwrap();
        let endpoint = match made["uri"].as_str().unwrap().strip_prefix("nbd://") {
            Some(address) => address.to_owned(),
            None => format!("unix:{socket}"),
        };
        (made["id"].as_u64().unwrap(), endpoint)
    }
}

/// Makes every partition of a killed node find that something is lost.
fn lose(dir: &Path) {
    let partitions = std::fs::read_dir(dir.join("data/coronafs")).unwrap();
    let mut lost = 0;
    for partition in partitions {
        let file = partition.unwrap().path().join("unflushed");
        if let Ok(mut bytes) = std::fs::read(&file) {
            // The number of the partition, which has a checksum.
            bytes[12] ^= 1;
            std::fs::write(&file, bytes).unwrap();
            lost += 1;
        }
    }
    assert!(lost > 0, "a node has partitions");
}

#[test]
fn a_remote_volume_is_attached_over_restarts_of_both_nodes_until_something_is_lost() {
    let (mut owner, mut other) = (Side::start(), Side::start());
    let (id, endpoint) = owner.serve(8 * MIB, "127.0.0.1:0");
    let request = json!({ "name": "theirs", "endpoint": endpoint, "queues": 2 });
    let made = other.ask("POST", REMOTES, &request);
    assert_eq!(
        (&made["state"], &made["bytes"], &made["access"]),
        (&json!("connected"), &json!(8 * MIB), &json!("shared"))
    );
    let socket = PathBuf::from(made["socket"].as_str().unwrap());
    assert!(socket.exists());
    let grown = json!({ "bytes": 16 * MIB });
    owner.ask("POST", "/v1/volumes/disk/resize", &grown);
    let end = Instant::now() + PATIENCE;
    while other.remote()["bytes"] != 16 * MIB {
        assert!(Instant::now() < end, "{}", other.remote());
    }

    // A node that was killed has all that it acknowledged, and so has one that was drained.
    owner.kill();
    other.wait_for("connecting");
    let (status, said) = admin(other.node(), "/healthz");
    assert!(
        status == 503 && said.contains("remote volume theirs"),
        "{said}"
    );
    owner.restart();
    other.wait_for("connected");
    assert_eq!(admin(other.node(), "/healthz").0, 200);
    owner.drain();
    other.wait_for("connecting");
    owner.restart();
    other.wait_for("connected");
    let (_, metrics) = admin(other.node(), "/metrics");
    for said in [
        "uc_volume_remote_connected{shard=",
        "uc_volume_requests_total{shard=",
        "remote=\"theirs\"} 3",
    ] {
        assert!(metrics.contains(said), "{said} in {metrics}");
    }

    // Its own restarts, also while the owner is away.
    other.kill();
    other.restart();
    other.wait_for("connected");
    assert_eq!(other.remote()["socket"], made["socket"]);
    other.drain();
    owner.kill();
    other.restart();
    other.wait_for("connecting");
    owner.restart();
    other.wait_for("connected");
    assert!(socket.exists());

    // What the owner had acknowledged may be lost: neither now nor after a restart of this node is it gone on
    // with.
    owner.kill();
    lose(owner.dir.path());
    owner.restart();
    other.wait_for("lost");
    let why = other.remote()["why"].to_string();
    assert!(why.contains("may be lost"), "{why}");
    other.kill();
    other.restart();
    other.wait_for("lost");
    other.ask("DELETE", &format!("{REMOTES}/theirs"), &Value::Null);
    assert!(!socket.exists());
    other.ask("POST", REMOTES, &request);

    // The end of the owner's attachment is for good.
    let attachment = format!("/v1/volumes/disk/attachments/{id}");
    owner.ask("DELETE", &attachment, &Value::Null);
    other.wait_for("lost");
    let why = other.remote()["why"].to_string();
    assert!(why.contains("detached"), "{why}");
    other.ask("DELETE", &format!("{REMOTES}/theirs"), &Value::Null);
    assert_eq!(other.remote(), Value::Null);
    other.drain();
    owner.drain();
}

#[test]
fn remote_volumes_are_roots_and_are_checked() {
    let (owner, other) = (Side::start(), Side::start());
    let (_, endpoint) = owner.serve(MIB, "");
    let root = other.root();
    let good = json!({ "name": "theirs", "endpoint": endpoint });
    let refused = |token: &str, request: &Value| other.refused(token, "POST", REMOTES, request);
    let code = |status: u16, code: &str| (status, code.to_owned());
    assert_eq!(refused(ANN, &good), code(403, "access-denied"));
    for request in [
        json!({ "name": "a/b", "endpoint": endpoint }),
        json!({ "name": "a", "endpoint": "unix:relative" }),
        json!({ "name": "a", "endpoint": "host" }),
        json!({ "name": "a", "endpoint": endpoint, "access": "exclusive" }),
        json!({ "name": "a", "endpoint": endpoint, "queues": 17 }),
    ] {
        let expected = code(400, "invalid-request");
        assert_eq!(refused(&root, &request), expected, "{request}");
    }
    let nobody = json!({ "name": "a", "endpoint": "unix:/nobody/there" });
    assert_eq!(refused(&root, &nobody), code(503, "remote-absent"));
    let elsewhere = json!({ "name": "a", "endpoint": "192.0.2.1:1" });
    assert_eq!(refused(&root, &elsewhere), code(400, "not-served-there"));
    other.ask("POST", REMOTES, &good);
    assert_eq!(refused(&root, &good), code(409, "name-taken"));
    let path = format!("{REMOTES}/theirs");
    assert_eq!(
        other.refused(ANN, "DELETE", &path, &Value::Null),
        code(403, "access-denied")
    );
    other.ask("DELETE", &path, &Value::Null);
    let gone = other.refused(&root, "DELETE", &path, &Value::Null);
    assert_eq!(gone, code(404, "no-such-attachment"));
}

#[test]
fn a_guest_moves_between_nodes_that_share_a_volume_under_writes() {
    let Some(kernel) = kernel() else { return };
    let (mut owner, mut other) = (Side::start(), Side::start());
    let (_, endpoint) = owner.serve(64 * MIB, "127.0.0.1:0");
    let shared = json!({ "access": "shared", "queues": 2 });
    let attach = |side: &Side| side.ask("POST", "/v1/volumes/disk/attachments", &shared);
    let here = attach(&owner);
    let request = json!({ "name": "disk", "endpoint": endpoint, "queues": 2 });
    let there = other.ask("POST", REMOTES, &request);
    let back = attach(&owner);
    let machine = |name: &str, made: &Value, incoming: Option<PathBuf>| Machine {
        disks: vec![Disk::new("disk", made["socket"].as_str().unwrap())],
        incoming,
        ..Machine::new(&kernel, other.dir.path(), name)
    };
    let incoming = |name: &str| Some(other.dir.path().join(name));
    let (first, second) = (incoming("m1"), incoming("m2"));
    let machines = [
        machine("here", &here, None),
        machine("there", &there, first.clone()),
        machine("back", &back, second.clone()),
    ];
    let mut guest = machines[0].boot().unwrap();
    let digest = stories::make_files(&mut guest, "vda", 2048).unwrap();
    stories::begin_writing(&mut guest).unwrap();
    for (machine, incoming) in machines[1..].iter().zip([first, second]) {
        let target = machine.boot().unwrap();
        // It listens for the migration when it answers.
        drop(target.qmp().unwrap());
        let mut qmp = guest.qmp().unwrap();
        guest.migrate(&mut qmp, &incoming.unwrap()).unwrap();
        guest.kill().unwrap();
        guest = target;
        if machine.name == "there" {
            // The owner and then this node are killed under it.
            owner.kill();
            owner.restart();
            other.wait_for("connected");
            guest.run("sync").unwrap();
            other.kill();
            other.restart();
            guest.run("sync").unwrap();
        }
        // It goes on writing where it is now.
        let count = "n=$(ls -l /tmp/s0; cat /tmp/s0); while [ \"$n\" = \"$(ls -l /tmp/s0; cat /tmp/s0)\" ]; do usleep 10000; done";
        guest.run(count).unwrap();
    }
    let count = stories::stop_writing(&mut guest, "vda").unwrap();
    assert!(count > 8, "{count} files were written");
    assert_eq!(stories::digest(&mut guest, "/mnt/a").unwrap(), digest);
    guest.run("umount /mnt").unwrap();
    assert!(guest.power_off().unwrap().success());
    other.drain();
    owner.drain();
}
