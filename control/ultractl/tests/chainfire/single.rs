//! One member, by etcdctl: every kind of command.

use serde_json::Value;

use crate::support::{Ctl, Member, eventually, http};

fn count(value: &Value) -> u64 {
    value["count"].as_u64().unwrap_or(0)
}

#[test]
fn keys_are_put_read_listed_and_deleted() {
    let member = Member::alone();
    let ctl = member.ctl();
    assert_eq!(ctl.run(&["put", "a", "1"]), "OK\n");
    assert_eq!(ctl.run(&["get", "a"]), "a\n1\n");
    for key in ["b/1", "b/2", "c"] {
        ctl.run(&["put", key, key]);
    }
    assert_eq!(
        ctl.run(&["get", "b/", "--prefix", "--keys-only"]),
        "b/1\n\nb/2\n\n"
    );
    assert_eq!(
        ctl.run(&["get", "b/", "c", "--print-value-only"]),
        "b/1\nb/2\n"
    );
    let first = ctl.json(&["get", "a"]);
    assert_eq!(first["kvs"][0]["create_revision"], 2);
    assert_eq!(first["header"]["revision"], 5);
    assert_eq!(ctl.run(&["put", "a", "2", "--prev-kv"]), "OK\na\n1\n");
    assert_eq!(ctl.json(&["get", "a"])["kvs"][0]["version"], 2);
    assert_eq!(ctl.run(&["get", "a", "--rev=2"]), "a\n1\n");
    assert_eq!(ctl.run(&["del", "b/", "--prefix"]), "2\n");
    assert_eq!(ctl.run(&["del", "b/", "--prefix"]), "0\n");
    assert_eq!(count(&ctl.json(&["get", "", "--prefix"])), 2);
    assert!(ctl.fails(&["put", "", "x"]).contains("key is not provided"));
    assert!(
        ctl.fails(&["get", "a", "--rev=99"])
            .contains("future revision")
    );
}

#[test]
fn transactions_compare_and_do_one_of_two_lists() {
    let member = Member::alone();
    let ctl = member.ctl();
    ctl.run(&["put", "a", "1"]);
    let txn = "value(\"a\") = \"1\"\n\nput a 2\nput b 3\n\nget a\n\n";
    let said = ctl.feed(&["txn"], txn);
    assert!(said.starts_with("SUCCESS"), "{said}");
    let said = ctl.feed(&["txn"], txn);
    assert!(
        said.starts_with("FAILURE") && said.ends_with("a\n2\n"),
        "{said}"
    );
    let both = ctl.json(&["get", "", "--prefix"]);
    assert_eq!(
        both["kvs"][0]["mod_revision"],
        both["kvs"][1]["mod_revision"]
    );
}

#[test]
fn watchers_see_what_was_and_what_comes() {
    let member = Member::alone();
    let ctl = member.ctl();
    ctl.run(&["put", "w/a", "1"]);
    ctl.run(&["put", "other", "1"]);
    let mut watch = ctl.running(&["watch", "w/", "--prefix", "--rev=1", "--prev-kv"]);
    let mut lines = |count: usize| -> Vec<String> { (0..count).map(|_| watch.line()).collect() };
    assert_eq!(lines(3), ["PUT", "w/a", "1"]);
    ctl.run(&["put", "w/a", "2"]);
    assert_eq!(lines(5), ["PUT", "w/a", "1", "w/a", "2"]);
    ctl.run(&["del", "w/a"]);
    assert_eq!(lines(4), ["DELETE", "w/a", "2", "w/a"]);
}

#[test]
fn compaction_forgets_and_says_so() {
    let member = Member::alone();
    let ctl = member.ctl();
    for value in ["1", "2", "3"] {
        ctl.run(&["put", "a", value]);
    }
    assert_eq!(ctl.run(&["compact", "3"]), "compacted revision 3\n");
    assert!(
        ctl.fails(&["get", "a", "--rev=2"])
            .contains("has been compacted")
    );
    assert!(ctl.fails(&["compact", "3"]).contains("has been compacted"));
    assert_eq!(ctl.run(&["get", "a", "--rev=3"]), "a\n2\n");
    let watched = ctl.fails(&["watch", "a", "--rev=1"]);
    assert!(watched.contains("has been compacted"), "{watched}");
    assert!(ctl.run(&["defrag"]).contains("Finished defragmenting"));
}

fn granted(ctl: &Ctl, ttl: &str) -> String {
    let said = ctl.run(&["lease", "grant", ttl]);
    said.split(' ').nth(1).unwrap().to_owned()
}

#[test]
fn leases_hold_keys_and_end() {
    let member = Member::alone();
    let ctl = member.ctl();
    let lease = granted(&ctl, "600");
    ctl.run(&["put", "a", "1", &format!("--lease={lease}")]);
    let left = ctl.run(&["lease", "timetolive", &lease, "--keys"]);
    assert!(left.contains("granted with TTL(600s)") && left.contains("attached keys([a])"));
    assert!(ctl.run(&["lease", "list"]).contains(&lease));
    assert!(
        ctl.run(&["lease", "keep-alive", &lease, "--once"])
            .contains("TTL(600)")
    );
    assert!(ctl.run(&["lease", "revoke", &lease]).contains("revoked"));
    assert_eq!(ctl.run(&["get", "a"]), "");
    assert!(
        ctl.run(&["lease", "timetolive", &lease])
            .contains("already expired")
    );
    assert!(
        ctl.fails(&["lease", "revoke", &lease])
            .contains("lease not found")
    );

    let short = granted(&ctl, "1");
    ctl.run(&["put", "b", "1", &format!("--lease={short}")]);
    eventually("the key goes with its lease", || {
        ctl.run(&["get", "b"]).is_empty().then_some(())
    });
}

#[test]
fn locks_and_elections_have_one_owner_at_a_time() {
    let member = Member::alone();
    let ctl = member.ctl();
    let mut first = ctl.running(&["lock", "l"]);
    let key = first.line();
    assert!(key.starts_with("l/"));
    let mut second = ctl.running(&["lock", "l"]);
    eventually("the second waits", || {
        (count(&ctl.json(&["get", "l/", "--prefix"])) == 2).then_some(())
    });
    first.interrupt();
    assert_ne!(second.line(), key);

    let mut leader = ctl.running(&["elect", "e", "one"]);
    assert!(leader.line().starts_with("e/"));
    assert_eq!(leader.line(), "one");
    let mut listening = ctl.running(&["elect", "e", "--listen"]);
    assert!(listening.line().starts_with("e/"));
    assert_eq!(listening.line(), "one");
}

#[test]
fn users_may_do_what_their_roles_allow() {
    let member = Member::alone();
    let ctl = member.ctl();
    ctl.run(&["user", "add", "root:secret"]);
    ctl.run(&["user", "add", "ann:word"]);
    ctl.run(&["role", "add", "reader"]);
    ctl.run(&[
        "role",
        "grant-permission",
        "reader",
        "read",
        "a/",
        "--prefix",
    ]);
    ctl.run(&["user", "grant-role", "ann", "reader"]);
    ctl.run(&["role", "add", "root"]);
    ctl.run(&["user", "grant-role", "root", "root"]);
    assert_eq!(ctl.run(&["auth", "enable"]), "Authentication Enabled\n");
    let (root, ann) = (ctl.with("--user=root:secret"), ctl.with("--user=ann:word"));
    assert_eq!(root.run(&["put", "a/1", "x"]), "OK\n");
    assert_eq!(ann.run(&["get", "a/1"]), "a/1\nx\n");
    assert!(
        ann.fails(&["put", "a/1", "y"])
            .contains("permission denied")
    );
    assert!(ann.fails(&["get", "b"]).contains("permission denied"));
    assert!(ann.fails(&["user", "list"]).contains("permission denied"));
    assert!(ctl.fails(&["get", "a/1"]).contains("user name is empty"));
    let wrong = ctl.with("--user=ann:wrong").fails(&["get", "a/1"]);
    assert!(wrong.contains("authentication failed"), "{wrong}");
    assert_eq!(root.run(&["user", "list"]), "ann\nroot\n");
    assert!(root.run(&["role", "get", "reader"]).contains("[a/, a0)"));
    assert_eq!(root.run(&["auth", "disable"]), "Authentication Disabled\n");
    assert_eq!(ctl.run(&["get", "a/1"]), "a/1\nx\n");
}

#[test]
fn the_member_tells_how_it_is() {
    let member = Member::alone();
    let ctl = member.ctl();
    ctl.run(&["put", "a", "1"]);
    let status = &ctl.json(&["endpoint", "status"])[0]["Status"];
    assert_eq!(status["leader"], status["header"]["member_id"]);
    assert!(status["dbSize"].as_u64().unwrap() > 0);
    assert!(ctl.output(&["endpoint", "health"]).status.success());
    let hash = &ctl.json(&["endpoint", "hashkv"])[0]["HashKV"]["hash"];
    assert!(hash.as_u64().unwrap() > 0);
    let members = ctl.json(&["member", "list"]);
    assert_eq!(members["members"].as_array().unwrap().len(), 1);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("snapshot");
    ctl.run(&["snapshot", "save", file.to_str().unwrap()]);
    assert!(std::fs::metadata(&file).unwrap().len() > 32);
    assert_eq!(http(member.admin, "GET", "/readyz", "").0, 200);
    assert_eq!(http(member.client, "GET", "/health", "").0, 200);
    let (_, metrics) = http(member.admin, "GET", "/metrics", "");
    assert!(metrics.contains("uc_chainfire_leads_bool 1"), "{metrics}");
}

#[test]
fn what_was_answered_survives_a_kill_and_a_drain() {
    let mut member = Member::alone();
    for round in 0..3 {
        let value = round.to_string();
        member.ctl().run(&["put", "a", &value]);
        if round % 2 == 0 {
            member.kill();
        } else {
            member.drain();
        }
        member.restart();
        let read = member.ctl().json(&["get", "a"]);
        assert_eq!(read["kvs"][0]["version"], round + 1);
    }
}
