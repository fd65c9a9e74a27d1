//! Another set of voters in one step, while the leader is killed in the middle. Contract BY-5.
//!
//! Two members that learn replace two that vote. Both are stopped before the change, so that it cannot be
//! committed: its joint membership needs a majority of the new voters, too. That is the middle.

use std::collections::BTreeSet;
use std::process::{Child, Stdio};

use serde_json::Value;

use crate::support::cluster::{leader, peer, start, three};
use crate::support::ctl::ultractl_command;
use crate::support::{Member, eventually, ultractl};

/// The names of the voters as a member knows them, once no change is under way there.
fn settled(member: &Member) -> Option<BTreeSet<String>> {
    let status = ultractl(member, &["member", "status"]).ok()?;
    if status["leader_id"] == "0" || under_way(&status) {
        return None;
    }
    let members = status["members"].as_array()?.iter();
    let voters = members.filter(|known| known["is_voter"] == true);
    let name = |known: &Value| Some(known["member"]["name"].as_str()?.to_owned());
    voters.map(name).collect()
}

fn under_way(status: &Value) -> bool {
    let refusals = status["refusals"].as_array();
    refusals
        .into_iter()
        .flatten()
        .any(|one| one["what"] == "changes of members")
}

/// Adds two members that learn to three that vote.
fn five() -> Vec<Member> {
    let mut members = three();
    for number in [4, 5] {
        let url = format!("--peer-urls=http://{}", peer(number));
        let name = format!("m{number}");
        eventually("the change before is committed", || {
            ultractl(&members[0], &["member", "add", &name, &url, "--learner"]).ok()
        });
        members.push(start(number, &[1, 2, 3], "existing"));
    }
    members[0].ctl().run(&["put", "a", "1"]);
    for learner in &members[3..] {
        eventually("the learner has it", || {
            let read = learner.ctl().run(&["get", "a", "--consistency=s"]);
            (read == "a\n1\n").then_some(())
        });
    }
    members
}

/// Stops the new voters and asks for the change, until the leader is at it and cannot end it.
fn half_done(members: &[Member], leads: usize, voters: &[&str]) -> Child {
    eventually("the change is under way", || {
        for member in &members[3..] {
            member.signal("STOP");
        }
        let args = [&["member", "replace"], voters].concat();
        let mut command = ultractl_command(&members[leads], &args);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut asked = command.spawn().unwrap();
        let begun = eventually("the change begins, or is refused", || {
            let status = ultractl(&members[leads], &["member", "status"]).ok()?;
            if under_way(&status) {
                return Some(true);
            }
            // It is refused when the stopped members have been silent for too long.
            asked.try_wait().unwrap().map(|_| false)
        });
        if begun {
            return Some(asked);
        }
        for member in &members[3..] {
            member.signal("CONT");
        }
        None
    })
}

/// The leader, at a place, is killed with the change half done.
fn replaced_while_the_leader_dies(place: usize) {
    let mut members = five();
    if leader(&members) != place {
        let name = members[place].name.clone();
        ultractl(&members[0], &["member", "transfer", &name]).unwrap();
    }
    let leads = eventually("the leader is the chosen one", || {
        let leads = leader(&members);
        (leads == place).then_some(leads)
    });
    let mut asked = half_done(&members, leads, &["m1", "m4", "m5"]);
    members[leads].kill();
    for member in &members[3..] {
        member.signal("CONT");
    }
    assert!(
        !asked.wait().unwrap().success(),
        "nobody can have said that it is done"
    );
    let sets = [["m1", "m2", "m3"], ["m1", "m4", "m5"]].map(|names| {
        names
            .map(str::to_owned)
            .into_iter()
            .collect::<BTreeSet<_>>()
    });
    let found = eventually(
        "one of the two sets of voters, and the same everywhere",
        || {
            leader(&members);
            let mut alive = members.iter().filter(|member| member.runs());
            let found = settled(alive.next()?)?;
            let same = |member: &Member| settled(member).as_ref() == Some(&found);
            (alive.all(same) && sets.contains(&found)).then_some(found)
        },
    );
    members[leads].restart();
    for member in members.iter().filter(|one| found.contains(&one.name)) {
        eventually("every voter knows the same voters", || {
            (settled(member).as_ref() == Some(&found)).then_some(())
        });
        let key = format!("from/{}", member.name);
        assert_eq!(member.ctl().run(&["put", &key, "x"]), "OK\n");
        assert_eq!(member.ctl().run(&["get", "a"]), "a\n1\n");
    }
    println!(
        "the leader m{} died half-way: the voters are {found:?}",
        place + 1
    );
}

#[test]
fn a_replacement_ends_in_one_set_of_voters_when_a_leader_that_stays_dies() {
    replaced_while_the_leader_dies(0);
}

#[test]
fn a_replacement_ends_in_one_set_of_voters_when_a_leader_that_leaves_dies() {
    replaced_while_the_leader_dies(1);
}
