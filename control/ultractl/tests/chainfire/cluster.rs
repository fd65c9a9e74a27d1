//! Three members and more: growing, shrinking, moving leadership, losing members. Contracts CF-4 to
//! CF-6, CF-9, BY-5.

use crate::support::cluster::{all, hex, id, leader, peer, start, three, voters};
use crate::support::{Member, eventually};

#[test]
fn three_members_agree_and_outlive_one_of_them() {
    let mut members = three();
    let ctl = all(&members);
    for member in &members {
        let key = format!("from/{}", member.name);
        member.ctl().run(&["put", &key, "x"]);
    }
    for member in &members {
        let read = member
            .ctl()
            .run(&["get", "from/", "--prefix", "--keys-only"]);
        assert_eq!(read, "from/m1\n\nfrom/m2\n\nfrom/m3\n\n");
    }
    let leads = leader(&members);
    members[leads].kill();
    let rest: Vec<&Member> = members
        .iter()
        .enumerate()
        .filter(|(n, _)| *n != leads)
        .map(|(_, m)| m)
        .collect();
    eventually("a write without the old leader", || {
        rest[0]
            .ctl()
            .output(&["put", "after", "1"])
            .status
            .success()
            .then_some(())
    });
    assert_eq!(rest[1].ctl().run(&["get", "after"]), "after\n1\n");
    members[leads].restart();
    let back = members[leads].ctl();
    assert_eq!(back.run(&["get", "after"]), "after\n1\n");
    let members_now = ctl.json(&["member", "list"]);
    assert_eq!(members_now["members"].as_array().unwrap().len(), 3);
}

#[test]
fn leadership_moves_to_the_member_that_is_named() {
    let members = three();
    let before = leader(&members);
    let target = (before + 1) % 3;
    let to = hex(id(&members[target]));
    // etcdctl asks the leader among its endpoints.
    let said = all(&members).run(&["move-leader", &to]);
    assert!(said.starts_with("Leadership transferred"), "{said}");
    assert_eq!(leader(&members), target);
    let refused = members[before].ctl().fails(&["move-leader", &to]);
    assert!(refused.contains("no leader endpoint"), "{refused}");
}

#[test]
fn a_learner_is_added_reads_locally_is_promoted_and_removed() {
    let mut members = vec![start(1, &[], "new")];
    let ctl = members[0].ctl();
    ctl.run(&["put", "a", "1"]);
    let url = format!("--peer-urls=http://{}", peer(4));
    let added = ctl.json(&["member", "add", "m4", "--learner", &url]);
    let learner_id = added["member"]["ID"].as_u64().unwrap();
    members.push(start(4, &[1], "existing"));
    let learner = members[1].ctl();
    eventually("a local read of the learner", || {
        (learner.run(&["get", "a", "--consistency=s"]) == "a\n1\n").then_some(())
    });
    eventually("the learner is caught up", || {
        ctl.output(&["member", "promote", &hex(learner_id)])
            .status
            .success()
            .then_some(())
    });
    assert!(voters(&ctl).iter().all(|(_, voter)| *voter));
    let again = ctl.fails(&["member", "promote", &hex(learner_id)]);
    assert!(again.contains("can only promote a learner"), "{again}");
    assert_eq!(learner.run(&["put", "b", "2"]), "OK\n");
    ctl.run(&["member", "remove", &hex(learner_id)]);
    assert_eq!(voters(&ctl).len(), 1);
    assert_eq!(ctl.run(&["put", "c", "3"]), "OK\n");
    let unknown = ctl.fails(&["member", "remove", "dead"]);
    assert!(unknown.contains("ember not found"), "{unknown}");
}

#[test]
fn the_leader_is_removed_and_the_rest_elect_another() {
    let members = three();
    let leads = leader(&members);
    let removed = id(&members[leads]);
    let other = members[(leads + 1) % 3].ctl();
    other.run(&["put", "a", "1"]);
    other.run(&["member", "remove", &hex(removed)]);
    eventually("a leader among the rest", || {
        other
            .output(&["put", "b", "2"])
            .status
            .success()
            .then_some(())
    });
    let left = voters(&other);
    assert_eq!(left.len(), 2);
    assert!(left.iter().all(|(id, voter)| *id != removed && *voter));
}

#[test]
fn one_survivor_goes_on_alone_when_it_is_told_to() {
    let mut members = three();
    all(&members).run(&["put", "a", "1"]);
    let mut survivor = members.remove(0);
    eventually("the survivor has it", || {
        let read = survivor.ctl().run(&["get", "a", "--consistency=s"]);
        (read == "a\n1\n").then_some(())
    });
    for member in &mut members {
        member.kill();
    }
    survivor.drain();
    survivor.restart_with(&["--chainfire-force-new-cluster"]);
    assert_eq!(survivor.ctl().run(&["put", "b", "2"]), "OK\n");
    assert_eq!(survivor.ctl().run(&["get", "", "--prefix"]), "a\n1\nb\n2\n");
    assert_eq!(voters(&survivor.ctl()).len(), 1);
}
