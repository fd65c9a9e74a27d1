//! `ultractl chainfire`: what operators do. Contracts CF-1, CF-7.

use std::process::Command;

use serde_json::Value;

use crate::support::{Member, ultractl};

#[test]
fn keys_members_and_status_are_json() {
    let member = Member::alone();
    ultractl(&member, &["put", "a/1", "one"]).unwrap();
    ultractl(&member, &["put", "a/2", "two"]).unwrap();
    let read = ultractl(&member, &["get", "--prefix", "a/"]).unwrap();
    assert_eq!(read["count"], "2");
    let deleted = ultractl(&member, &["del", "a/1"]).unwrap();
    assert_eq!(deleted["deleted"], "1");
    let members = ultractl(&member, &["member", "list"]).unwrap();
    assert_eq!(members.as_array().unwrap().len(), 1);
    let status = ultractl(&member, &["member", "status"]).unwrap();
    assert_eq!(status["leader_id"], status["member_id"]);
    let alone = ultractl(&member, &["member", "transfer"]).unwrap_err();
    assert!(alone.contains("no other voter"), "{alone}");
    let last = ultractl(&member, &["member", "remove", "default"]).unwrap_err();
    assert!(last.contains("the last voter"), "{last}");
}

#[test]
fn a_backup_is_restored_elsewhere_and_nowhere_twice() {
    let (from, to) = (Member::alone(), Member::alone());
    let lease = from.ctl().run(&["lease", "grant", "600"]);
    let lease = format!("--lease={}", lease.split(' ').nth(1).unwrap());
    from.ctl().run(&["put", "leased", "1", &lease]);
    for number in 0..3 {
        from.ctl()
            .run(&["put", &format!("key/{number}"), &number.to_string()]);
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("backup");
    let file = file.to_str().unwrap();
    let made = ultractl(&from, &["backup", file]).unwrap();
    assert_eq!((&made["keys"], &made["leases"]), (&4.into(), &1.into()));
    assert!(
        ultractl(&from, &["backup", file])
            .unwrap_err()
            .contains("is there already")
    );
    let restored = ultractl(&to, &["restore", file]).unwrap();
    assert_eq!(restored["keys"], 4);
    let all = ["get", "", "--prefix"];
    assert_eq!(to.ctl().run(&all), from.ctl().run(&all));
    assert!(to.ctl().run(&["lease", "list"]).contains("found 1 leases"));
    assert!(
        ultractl(&to, &["restore", file])
            .unwrap_err()
            .contains("needs an empty one")
    );
}

#[test]
fn a_context_reaches_a_member_and_failures_have_codes() {
    let member = Member::alone();
    let dir = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ultractl"));
        command.env("ULTRACTL_CONFIG", dir.path().join("contexts.toml"));
        command.args(args).output().unwrap()
    };
    let url = format!("http://{}", member.client);
    let set = ["context", "set", "lab", "chainfire", "--endpoints", &url];
    assert!(run(&set).status.success());
    assert!(run(&["chainfire", "put", "a", "1"]).status.success());
    for (args, exit, code) in [
        (&["chainfire", "member", "remove", "x"][..], 3, "no-member"),
        (
            &["chainfire", "--user", "root:x", "get", "a"],
            5,
            "failed-precondition",
        ),
        (
            &["chainfire", "--endpoints", "http://127.0.0.1:1", "get", "a"],
            4,
            "no-member-answers",
        ),
        (&["chainfire", "get"], 2, "usage"),
    ] {
        let output = run(&[&["-o", "json"], args].concat());
        let said: Value = serde_json::from_slice(&output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(exit), "{args:?}: {said}");
        assert_eq!(said["error"]["code"], code, "{said}");
        assert!(output.stdout.is_empty());
    }
    let yaml = run(&["-o", "yaml", "chainfire", "get", "a"]);
    let yaml = String::from_utf8(yaml.stdout).unwrap();
    assert!(
        yaml.contains("count: \"1\"\n") && yaml.contains("key: YQ=="),
        "{yaml}"
    );
}
