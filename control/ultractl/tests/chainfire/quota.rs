//! A quota that is used up: writes are refused and reads go on, until an operator has made room.

use crate::support::cluster::{all, leader, setup};
use crate::support::{Ctl, Member, eventually};

/// The smallest quota, so that a test fills it soon.
const CONFIG: &str = "[chainfire]\nquota_mib = 16\n";
const QUOTA_MIB: usize = 16;
const FULL: &str = "etcdserver: mvcc: database space exceeded";

/// Puts values of a mebibyte until one is refused; how many were taken.
fn fill(ctl: &Ctl) -> usize {
    let value = "x".repeat(1 << 20);
    for number in 0..=QUOTA_MIB {
        let output = ctl.fed(&["put", &format!("large/{number}")], &value);
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(said.contains(FULL), "{said}");
            return number;
        }
    }
    panic!("{QUOTA_MIB} MiB are never used up");
}

/// What a full cluster does, at each of its members.
fn refused(ctl: &Ctl) {
    let alarms = eventually("the alarm is known", || {
        let alarms = ctl.run(&["alarm", "list"]);
        (!alarms.is_empty()).then_some(alarms)
    });
    assert!(alarms.contains("alarm:NOSPACE"), "{alarms}");
    // Not only what is large.
    assert!(ctl.fails(&["put", "small", "1"]).contains(FULL));
    let txn = "value(\"before\") = \"1\"\n\nput small 1\n\n\n";
    let said = String::from_utf8(ctl.fed(&["txn"], txn).stderr).unwrap();
    assert!(said.contains(FULL), "{said}");
    assert!(ctl.fails(&["lease", "grant", "60"]).contains(FULL));
    assert_eq!(ctl.run(&["get", "before"]), "before\n1\n");
    assert_eq!(ctl.run(&["get", "small"]), "");
}

/// Deletes, compacts and ends the alarm, as etcd's operators do.
fn make_room(ctl: &Ctl) {
    ctl.run(&["del", "large/", "--prefix"]);
    let status = &ctl.json(&["endpoint", "status"])[0]["Status"];
    let revision = status["header"]["revision"].to_string();
    ctl.run(&["compact", &revision]);
    ctl.run(&["defrag"]);
    let ended = ctl.run(&["alarm", "disarm"]);
    assert!(ended.contains("alarm:NOSPACE"), "{ended}");
    assert_eq!(ctl.run(&["alarm", "list"]), "");
}

#[test]
fn a_full_member_reads_and_deletes_until_there_is_room() {
    let mut member = Member::of(crate::support::Setup {
        config: CONFIG.into(),
        ..setup("http", 1, &[], "new")
    });
    let ctl = member.ctl();
    ctl.run(&["put", "before", "1"]);
    let taken = fill(&ctl);
    assert!(taken >= QUOTA_MIB - 1, "{taken} of {QUOTA_MIB}");
    refused(&ctl);
    // The alarm outlives the process.
    member.kill();
    member.restart();
    refused(&member.ctl());
    make_room(&member.ctl());
    assert_eq!(member.ctl().run(&["put", "small", "1"]), "OK\n");
    assert!(fill(&member.ctl()) > QUOTA_MIB / 2, "the room is usable");
}

#[test]
fn all_members_refuse_what_one_has_no_room_for() {
    let start = |number: u16| {
        let others: Vec<u16> = (1..=3).filter(|other| *other != number).collect();
        Member::of(crate::support::Setup {
            config: CONFIG.into(),
            ..setup("http", number, &others, "new")
        })
    };
    let members = [1, 2, 3].map(start);
    let leads = leader(&members);
    members[leads].ctl().run(&["put", "before", "1"]);
    fill(&members[(leads + 1) % 3].ctl());
    for member in &members {
        refused(&member.ctl());
    }
    make_room(&members[(leads + 2) % 3].ctl());
    for member in &members {
        assert_eq!(member.ctl().run(&["put", "small", &member.name]), "OK\n");
    }
    assert!(
        all(&members)
            .output(&["endpoint", "health"])
            .status
            .success()
    );
}
