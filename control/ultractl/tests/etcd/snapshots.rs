//! Whole states between the two: etcd restores what ChainFire saved, ChainFire what etcd saved.

use std::process::Command;

use etcd_wire::etcdserverpb::kv_client::KvClient;
use etcd_wire::etcdserverpb::request_op::Request;
use etcd_wire::etcdserverpb::{PutRequest, RequestOp, TxnRequest};
use serde_json::Value;
use tonic::transport::Endpoint;

use crate::peer::Etcd;
use crate::support::{Ctl, Member};

/// Keys beside the few that are told apart: enough for a tree of three levels.
const KEYS: usize = 24_000;
const KEYS_PER_TXN: usize = 120;

/// Writes a history with everything in it that a snapshot holds, but users.
fn write_history(ctl: &Ctl) -> String {
    let lease = ctl.run(&["lease", "grant", "6000"]);
    let lease = lease.split(' ').nth(1).unwrap().to_owned();
    for value in ["1", "2", "3"] {
        ctl.run(&["put", "a", value]);
    }
    ctl.run(&["put", "leased", "1", &format!("--lease={lease}")]);
    ctl.run(&["put", "gone", "1"]);
    ctl.run(&["del", "gone"]);
    ctl.run(&["put", "big", &"x".repeat(100_000)]);
    ctl.run(&["compaction", "7"]);
    ctl.run(&["put", "a", "4"]);
    ctl.run(&["put", "later", "1"]);
    ctl.run(&["del", "later"]);
    ctl.feed(&["txn"], "\nput t/1 x\nput t/2 y\ndel big\n\n\n");
    lease
}

fn write_users(ctl: &Ctl) {
    for command in [
        "role add reader",
        "role grant-permission reader read t/ --prefix",
        "user add root:pw",
        "user add alice:secret",
        "user grant-role alice reader",
        "user grant-role root root",
        "auth enable",
    ] {
        let args: Vec<&str> = command.split(' ').collect();
        ctl.run(&args);
    }
}

/// What a client sees of keys and leases: at the newest revision, and at one before.
fn seen(ctl: &Ctl) -> Vec<Value> {
    let all = ["get", "", "--prefix"];
    let before = ["get", "", "--prefix", "--rev=9"];
    let mut seen = vec![ctl.json(&all), ctl.json(&before)];
    for hashed in ["--rev=0", "--rev=9"] {
        let mut hash = ctl.json(&["endpoint", "hashkv", hashed]);
        seen.push(hash[0]["HashKV"].take());
    }
    seen.push(ctl.json(&["lease", "list"]));
    seen.iter_mut().for_each(without_own);
    seen
}

/// Removes what is a cluster's own from the heads of answers.
fn without_own(value: &mut Value) {
    if let Value::Object(fields) = value {
        for own in ["cluster_id", "member_id", "raft_term"] {
            fields.remove(own);
        }
        fields.values_mut().for_each(without_own);
    }
}

async fn write_many(member: &Member) {
    let url = format!("http://{}", member.client);
    let channel = Endpoint::from_shared(url).unwrap().connect().await;
    let mut client = KvClient::new(channel.unwrap());
    for first in (0..KEYS).step_by(KEYS_PER_TXN) {
        let put = |number: usize| RequestOp {
            request: Some(Request::RequestPut(PutRequest {
                key: format!("many/{number:06}").into(),
                value: format!("value of {number}").into(),
                ..PutRequest::default()
            })),
        };
        let request = TxnRequest {
            success: (first..first + KEYS_PER_TXN).map(put).collect(),
            ..TxnRequest::default()
        };
        client.txn(request).await.unwrap();
    }
}

#[tokio::test]
async fn etcd_restores_a_snapshot_of_chainfire() {
    let member = Member::alone();
    let ctl = member.ctl();
    let lease = write_history(&ctl);
    write_many(&member).await;
    let before = seen(&ctl);
    write_users(&ctl);
    let root = ctl.with("--user=root:pw");
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("snapshot");
    root.run(&["snapshot", "save", file.to_str().unwrap()]);
    let status = Ctl::new(&[]).json(&["snapshot", "status", file.to_str().unwrap()]);
    assert_eq!(status["revision"], before[0]["header"]["revision"]);
    assert!(status["totalKey"].as_u64().unwrap() > KEYS as u64);

    let etcd = Etcd::restored(&file);
    let restored = etcd.ctl().with("--user=root:pw");
    assert_eq!(seen(&restored), before);
    let compacted = restored.fails(&["get", "a", "--rev=6"]);
    assert!(compacted.contains("has been compacted"), "{compacted}");
    let left = restored.run(&["lease", "timetolive", &lease, "--keys"]);
    assert!(left.contains("granted with TTL(6000s)"), "{left}");
    assert!(left.contains("attached keys([leased])"), "{left}");
    let alice = etcd.ctl().with("--user=alice:secret");
    assert_eq!(alice.run(&["get", "t/1"]), "t/1\nx\n");
    assert!(alice.fails(&["get", "a"]).contains("permission denied"));
    assert!(
        etcd.ctl()
            .fails(&["get", "a"])
            .contains("user name is empty")
    );
    // It goes on from there, and its own check finds nothing.
    restored.run(&["put", "more", "1"]);
    restored.run(&["lease", "revoke", &lease]);
    assert_eq!(restored.run(&["get", "leased"]), "");
    restored.run(&["compaction", "12"]);
    restored.run(&["defrag"]);
    let again = etcd.file("again");
    restored.run(&["snapshot", "save", again.to_str().unwrap()]);
}

#[test]
fn etcd_restores_a_snapshot_of_an_empty_member() {
    let member = Member::alone();
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("snapshot");
    member
        .ctl()
        .run(&["snapshot", "save", file.to_str().unwrap()]);
    let etcd = Etcd::restored(&file);
    let empty = etcd.ctl().json(&["get", "", "--prefix"]);
    assert_eq!(empty["header"]["revision"], 1);
    etcd.ctl().run(&["put", "a", "1"]);
}

#[test]
fn chainfire_restores_a_snapshot_of_etcd() {
    let etcd = Etcd::start();
    let lease = write_history(&etcd.ctl());
    let before = etcd.ctl().run(&["get", "", "--prefix"]);
    write_users(&etcd.ctl());
    let file = etcd.file("snapshot");
    let file = file.to_str().unwrap();
    let root = etcd.ctl().with("--user=root:pw");
    root.run(&["snapshot", "save", file]);

    let member = Member::alone();
    let restored = Command::new(env!("CARGO_BIN_EXE_ultractl"))
        .env("ULTRACTL_CONFIG", "/dev/null")
        .args([
            "chainfire",
            "--endpoints",
            &format!("http://{}", member.client),
        ])
        .args(["restore", file])
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&restored.stderr);
    assert!(restored.status.success(), "{errors}");
    let root = member.ctl().with("--user=root:pw");
    assert_eq!(root.run(&["get", "", "--prefix"]), before);
    let left = root.run(&["lease", "timetolive", &lease, "--keys"]);
    assert!(left.contains("granted with TTL(6000s)"), "{left}");
    assert!(left.contains("attached keys([leased])"), "{left}");
    let alice = member.ctl().with("--user=alice:secret");
    assert_eq!(alice.run(&["get", "t/1"]), "t/1\nx\n");
    assert!(alice.fails(&["get", "a"]).contains("permission denied"));
}
