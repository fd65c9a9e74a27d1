//! `ultractl chainfire`: what operators do. Contracts CF-1, CF-7.

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
