//! Volumes over the node's own API, and as disks of a real guest. Contracts CO-1, CARD-6, BY-8.

use std::path::{Path, PathBuf};

use guest::{Disk, Machine};
use serde_json::{Value, json};

use crate::api::{ANN, BOB, body, error, rest, root_token, start};
use crate::support::{Node, admin, command, data_of};

const ROLES: &str = "roles = [\"lightningstor\", \"coronafs\"]\n";
const MIB: u64 = 1 << 20;

/// The answer of a request that has to succeed.
fn done(node: &Node, token: &str, method: &str, path: &str, request: &Value) -> Value {
    let text = if request.is_null() {
        String::new()
    } else {
        request.to_string()
    };
    let answer = rest(node, token, method, path, &text);
    assert!(answer.status < 300, "{method} {path}: {}", answer.text());
    body(&answer)
}

fn post(node: &Node, path: &str, request: &Value) -> Value {
    done(node, ANN, "POST", path, request)
}

fn get(node: &Node, path: &str) -> Value {
    done(node, ANN, "GET", path, &Value::Null)
}

/// The code of a request that is refused.
fn refused(node: &Node, token: &str, method: &str, path: &str, request: &str) -> (u16, String) {
    let (status, code, _) = error(&rest(node, token, method, path, request));
    (status, code)
}

fn code(status: u16, code: &str) -> (u16, String) {
    (status, code.to_owned())
}

fn names(page: &Value) -> Vec<&str> {
    let volumes = page["volumes"].as_array().unwrap();
    volumes
        .iter()
        .map(|v| v["name"].as_str().unwrap())
        .collect()
}

/// A node again, over the directory of one that has ended.
pub fn restart(dir: &Path) -> Node {
    let mut command = command(&dir.join("data"));
    Node::from_command(command.arg("--config").arg(dir.join("node.toml")))
}

#[test]
fn volumes_and_snapshots_are_made_changed_and_removed() {
    let (_dir, node) = start(ROLES);
    let made = post(
        &node,
        "/v1/volumes",
        &json!({ "name": "disk", "bytes": 8 * MIB }),
    );
    assert_eq!(
        (&made["owner"], &made["bytes"]),
        (&json!("ann-id"), &json!(8 * MIB))
    );
    assert_eq!(made["id"].as_str().unwrap().len(), 16);
    let snapshots = "/v1/volumes/disk/snapshots";
    let taken = post(&node, snapshots, &json!({ "name": "first" }));
    assert_eq!(
        (&taken["volume"], &taken["bytes"]),
        (&json!("disk"), &json!(8 * MIB))
    );
    let clone = json!({ "name": "copy", "from_volume": "disk", "from_snapshot": "first",
        "bytes": 16 * MIB, "limits": { "ops_per_s": 500 } });
    let copy = post(&node, "/v1/volumes", &clone);
    assert_eq!(
        (&copy["bytes"], &copy["origin"]),
        (&json!(16 * MIB), &taken["id"])
    );
    assert_eq!(copy["limits"]["ops_per_s"], 500);

    let renamed = post(
        &node,
        "/v1/volumes/copy/rename",
        &json!({ "new_name": "twin" }),
    );
    assert_eq!(
        (&renamed["name"], &renamed["id"]),
        (&json!("twin"), &copy["id"])
    );
    let grown = post(
        &node,
        "/v1/volumes/twin/resize",
        &json!({ "bytes": 32 * MIB }),
    );
    assert_eq!(grown["bytes"], 32 * MIB);
    let limits = json!({ "limits": { "bytes_per_s": MIB, "burst_ms": 100 } });
    let limited = done(&node, ANN, "PUT", "/v1/volumes/twin/limits", &limits);
    assert_eq!(limited["limits"]["bytes_per_s"], MIB);
    assert_eq!(limited["limits"]["ops_per_s"], 0);
    let changes = get(&node, "/v1/volumes/disk/snapshots/first/changes");
    assert_eq!(changes, json!({ "changes": [], "next": 0 }));
    post(
        &node,
        "/v1/volumes/disk/rollback",
        &json!({ "snapshot": "first" }),
    );

    let first = get(&node, "/v1/volumes?limit=1");
    assert_eq!(names(&first), ["disk"]);
    let next = first["next"].as_str().unwrap();
    let second = get(&node, &format!("/v1/volumes?limit=1&after={next}"));
    assert_eq!(
        (names(&second), &second["next"]),
        (vec!["twin"], &json!(""))
    );

    let delete = |path: &str| rest(&node, ANN, "DELETE", path, "").status;
    let held = refused(&node, ANN, "DELETE", "/v1/volumes/disk", "");
    assert_eq!(held, code(400, "volume-has-snapshots"));
    assert_eq!(delete("/v1/volumes/disk/snapshots/first"), 200);
    assert_eq!(get(&node, snapshots)["snapshots"], json!([]));
    assert_eq!(
        (delete("/v1/volumes/disk"), delete("/v1/volumes/twin")),
        (200, 200)
    );
    assert_eq!(names(&get(&node, "/v1/volumes")), [""; 0]);
}

#[test]
fn what_is_asked_wrongly_is_refused_and_volumes_are_their_owners() {
    let (dir, node) = start(ROLES);
    post(
        &node,
        "/v1/volumes",
        &json!({ "name": "disk", "bytes": MIB }),
    );
    let ann = |method: &str, path: &str, request: &str| refused(&node, ANN, method, path, request);
    for (request, expected) in [
        (r#"{"name":"disk","bytes":4096}"#, code(409, "name-taken")),
        (
            r#"{"name":"a/b","bytes":4096}"#,
            code(400, "invalid-volume"),
        ),
        (r#"{"name":"b","bytes":4095}"#, code(400, "invalid-volume")),
        (r#"{"name":"b","bytes":0}"#, code(400, "invalid-volume")),
        (r#"{"name":"b","size":1}"#, code(400, "invalid-request")),
        (
            r#"{"name":"b","from_volume":"disk"}"#,
            code(400, "invalid-request"),
        ),
        (
            r#"{"name":"b","from_volume":"disk","from_snapshot":"none"}"#,
            code(404, "no-such-snapshot"),
        ),
    ] {
        assert_eq!(ann("POST", "/v1/volumes", request), expected, "{request}");
    }
    assert_eq!(
        ann("GET", "/v1/volumes/none", ""),
        code(404, "no-such-volume")
    );
    let attachments = "/v1/volumes/disk/attachments";
    let access = r#"{"access":"mine"}"#;
    assert_eq!(
        ann("POST", attachments, access),
        code(400, "invalid-request")
    );
    assert_eq!(
        ann("POST", attachments, r#"{"queues":17}"#),
        code(400, "invalid-request")
    );
    let none = "/v1/volumes/disk/attachments/7";
    assert_eq!(ann("DELETE", none, ""), code(404, "no-such-attachment"));

    // Somebody else's: for root alone.
    let of_ann = "/v1/volumes/disk?owner=ann-id";
    assert_eq!(
        refused(&node, BOB, "GET", of_ann, ""),
        code(403, "access-denied")
    );
    assert_eq!(
        refused(&node, BOB, "GET", "/v1/volumes/disk", ""),
        code(404, "no-such-volume")
    );
    let all = "/v1/volumes?all_owners=true";
    assert_eq!(
        refused(&node, BOB, "GET", all, ""),
        code(403, "access-denied")
    );
    let root = root_token(&data_of(&dir));
    assert_eq!(
        names(&done(&node, &root, "GET", all, &Value::Null)),
        ["disk"]
    );
    done(&node, &root, "GET", of_ann, &Value::Null);
    done(
        &node,
        BOB,
        "POST",
        "/v1/volumes",
        &json!({ "name": "disk", "bytes": MIB }),
    );
}

#[test]
fn an_attachment_outlives_the_node_and_keeps_its_socket() {
    let (dir, node) = start(ROLES);
    post(
        &node,
        "/v1/volumes",
        &json!({ "name": "disk", "bytes": MIB }),
    );
    let attachments = "/v1/volumes/disk/attachments";
    let made = post(&node, attachments, &json!({ "queues": 2 }));
    assert_eq!(
        (&made["access"], &made["serving"]),
        (&json!("exclusive"), &json!(true))
    );
    let socket = PathBuf::from(made["socket"].as_str().unwrap());
    assert!(socket.exists());
    let again = refused(&node, ANN, "POST", attachments, "{}");
    assert_eq!(again, code(400, "volume-attached"));
    let held = refused(&node, ANN, "DELETE", "/v1/volumes/disk", "");
    assert_eq!(held, code(400, "volume-attached"));
    let reader = post(&node, attachments, &json!({ "access": "read-only" }));

    node.kill();
    let node = restart(dir.path());
    let shown = get(&node, "/v1/volumes/disk");
    let listed = shown["attachments"].as_array().unwrap();
    assert_eq!(listed.len(), 2, "{shown}");
    for (now, then) in listed.iter().zip([&made, &reader]) {
        for field in ["id", "socket", "access", "queues", "serving"] {
            assert_eq!(now[field], then[field], "{field}");
        }
    }
    assert!(socket.exists());
    let (status, metrics) = admin(&node, "/metrics");
    assert!(
        status == 200 && metrics.contains("uc_volume_request_seconds_bucket{"),
        "{metrics}"
    );
    let (status, debug) = admin(&node, "/debug/volumes");
    assert!(
        status == 200 && debug.contains("\"read_only_partitions\""),
        "{debug}"
    );

    // A take-over ends the writer, not the reader.
    let taken = post(&node, attachments, &json!({ "take_over": true }));
    let shown = get(&node, "/v1/volumes/disk");
    let ids: Vec<&Value> = shown["attachments"]
        .as_array()
        .unwrap()
        .iter()
        .map(|a| &a["id"])
        .collect();
    assert_eq!(ids, [&reader["id"], &taken["id"]]);
    assert!(!socket.exists());
    for id in [&reader["id"], &taken["id"]] {
        let path = format!("{attachments}/{id}");
        assert_eq!(rest(&node, ANN, "DELETE", &path, "").status, 200);
    }
    assert_eq!(
        rest(&node, ANN, "DELETE", "/v1/volumes/disk", "").status,
        200
    );
    node.drain();
}

#[test]
fn a_node_without_the_role_says_so() {
    let (_dir, node) = start("");
    let refusal = refused(&node, ANN, "GET", "/v1/volumes", "");
    assert_eq!(refusal, code(400, "no-such-role"));
}

/// The guest's kernel; a test run by `cargo xtask test` has one.
pub fn kernel() -> Option<PathBuf> {
    let kernel = std::env::var_os("ULTRACLOUD_VM").map(PathBuf::from);
    if kernel.is_none() {
        eprintln!("no guest kernel (`cargo xtask test` has one): no guest was booted");
    }
    kernel
}

/// What a guest does with its first disk, /dev/vda: partitions it, makes a file system, writes.
const PREPARE: [&str; 4] = [
    r"printf 'o\nn\np\n1\n2048\n65535\nw\n' | fdisk -u /dev/vda >/dev/null",
    "mke2fs /dev/vda1 >/dev/null",
    "mount -t ext4 -o discard /dev/vda1 /mnt",
    "dd if=/dev/urandom of=/mnt/a bs=64k count=32 conv=fsync 2>/dev/null",
];

#[test]
fn a_guest_keeps_its_volume_when_the_node_is_killed_and_when_it_is_cloned() {
    let Some(kernel) = kernel() else { return };
    let (dir, node) = start(ROLES);
    post(
        &node,
        "/v1/volumes",
        &json!({ "name": "disk", "bytes": 64 * MIB }),
    );
    let made = post(
        &node,
        "/v1/volumes/disk/attachments",
        &json!({ "queues": 2 }),
    );
    let machine = Machine {
        disks: vec![Disk::new("disk", made["socket"].as_str().unwrap())],
        ..Machine::new(&kernel, dir.path(), "guest")
    };
    let mut guest = machine.boot().unwrap();
    for command in PREPARE {
        guest.run(command).unwrap();
    }
    let digest = guest.run("sha256sum </mnt/a").unwrap();
    // The node dies while the guest writes what it never flushes, and flushes it later.
    guest
        .run("dd if=/mnt/a of=/mnt/b bs=64k 2>/dev/null")
        .unwrap();
    let copying = "dd if=/mnt/a of=/mnt/c bs=64k conv=fsync 2>/dev/null";
    guest.begin(copying).unwrap();
    node.kill();
    let node = restart(dir.path());
    guest.finish(copying).unwrap();
    guest
        .run("sync; umount /mnt; echo 3 >/proc/sys/vm/drop_caches; mount -t ext4 /dev/vda1 /mnt")
        .unwrap();
    for file in ["a", "b", "c"] {
        let read = guest.run(&format!("sha256sum </mnt/{file}")).unwrap();
        assert_eq!(read, digest, "{file}");
    }

    // A snapshot under a mounted file system, its clone as a second disk, plugged in while it runs.
    guest.run("sync").unwrap();
    post(&node, "/v1/volumes/disk/snapshots", &json!({ "name": "s" }));
    guest.run("rm /mnt/a; sync").unwrap();
    let clone = json!({ "name": "copy", "from_volume": "disk", "from_snapshot": "s" });
    post(&node, "/v1/volumes", &clone);
    let second = post(
        &node,
        "/v1/volumes/copy/attachments",
        &json!({ "queues": 2 }),
    );
    let mut qmp = guest.qmp().unwrap();
    let disk = Disk::new("copy", second["socket"].as_str().unwrap());
    guest.plug(&mut qmp, &disk, 2).unwrap();
    guest.run("until [ -b /dev/vdb1 ]; do usleep 10000; done; mkdir /tmp/c; mount -t ext4 /dev/vdb1 /tmp/c").unwrap();
    assert_eq!(guest.run("sha256sum </tmp/c/a").unwrap(), digest);
    guest.run("umount /tmp/c").unwrap();
    guest.unplug(&mut qmp, "copy").unwrap();
    let path = format!("/v1/volumes/copy/attachments/{}", second["id"]);
    assert_eq!(rest(&node, ANN, "DELETE", &path, "").status, 200);

    // The disk grows under the guest.
    post(
        &node,
        "/v1/volumes/disk/resize",
        &json!({ "bytes": 96 * MIB }),
    );
    let sectors = 96 * MIB / 512;
    let grown = format!("until [ $(cat /sys/block/vda/size) = {sectors} ]; do usleep 10000; done");
    guest.run(&grown).unwrap();
    guest.run("umount /mnt").unwrap();
    assert!(guest.power_off().unwrap().success());
    node.drain();
}
