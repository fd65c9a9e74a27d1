//! The script of commands, run on both sides.

use serde_json::Value;

use crate::commands;
use crate::judged::{self, Difference};
use crate::peer::Etcd;
use crate::side::{Done, Side, Step, both};
use crate::support::{Ctl, Member, cluster, eventually};

fn shown(done: &Done) -> String {
    let printed = done.printed.join("\n");
    let complained = done.complained.join("\n");
    format!("{:?}\n{printed}\n{complained}", done.status)
}

/// Lines of members come in the order of their ids.
fn sorted(step: &Step, done: &Done) -> Done {
    let mut done = done.clone();
    if step.told().ends_with("member list") {
        done.printed.sort();
    }
    done
}

pub fn compare(ours: &mut Side, theirs: &mut Side, steps: &[Step]) -> Vec<Difference> {
    let mut found = Vec::new();
    for step in steps {
        let (our, their) = both(ours, theirs, step);
        for (our, their) in our.iter().zip(&their) {
            let (our, their) = (sorted(step, our), sorted(step, their));
            if our != their {
                found.push(Difference {
                    asked: step.told(),
                    ours: shown(&our),
                    theirs: shown(&their),
                });
            }
        }
    }
    found
}

/// Runs a part of the script on a fresh pair. `judged` names the rules that must recognise something.
fn play(steps: &[Step], judged: &[&str]) {
    let (member, etcd) = (Member::alone(), Etcd::start());
    let mut sides = [Side::new(member.ctl()), Side::new(etcd.ctl())];
    let urls = [member.peer, etcd.peer];
    let ids = [member.ctl(), etcd.ctl()].map(|ctl| {
        let list = ctl.run(&["member", "list"]);
        list.split(',').next().unwrap().to_owned()
    });
    for (at, side) in sides.iter_mut().enumerate() {
        side.know("peer_url", format!("http://{}", urls[at]));
        let file = etcd.file(&format!("snapshot-{at}"));
        side.know("file", file.to_str().unwrap().to_owned());
        side.know("member", ids[at].clone());
    }
    let [ours, theirs] = &mut sides;
    let found = compare(ours, theirs, steps);
    judge(judged, &found);
}

/// Fails where there is a difference besides those of the rules `judged`.
fn judge(judged: &[&str], found: &[Difference]) {
    let rules: Vec<_> = judged::COMMANDS
        .iter()
        .filter(|rule| judged.contains(&rule.name))
        .collect();
    let unjudged = judged::unjudged(&rules, found);
    assert!(unjudged.is_empty(), "{}", unjudged.join("\n"));
}

/// The ids of m1 and m2, and where m1 serves clients, once m1 leads and every member has told where it
/// serves.
fn standing(ctl: &Ctl) -> (String, String, String) {
    eventually("m1 leads, and every member is there", || {
        let list = ctl.json(&["member", "list"]);
        let members = list["members"].as_array().unwrap();
        let told = members.iter().all(|one| one["clientURLs"].is_array());
        let named = |name: &str| members.iter().find(|one| one["name"] == name);
        let (first, second) = (named("m1")?, named("m2")?);
        let hex = |one: &Value| one["ID"].as_u64().map(|id| format!("{id:x}"));
        let all = ctl.json(&["endpoint", "status"]);
        if all[0]["Status"]["leader"] != first["ID"] {
            // It fails while nobody leads.
            ctl.output(&["move-leader", &hex(first)?]);
            return None;
        }
        let client = first["clientURLs"][0].as_str()?;
        let client = client.trim_start_matches("http://").to_owned();
        Some((hex(first)?, hex(second)?, client)).filter(|_| told)
    })
}

#[test]
fn commands_on_keys_are_answered_as_by_etcd() {
    play(&commands::keys(), &[]);
}

#[test]
fn transactions_and_compactions_are_answered_as_by_etcd() {
    let steps = [commands::transactions(), commands::compactions()];
    play(&steps.concat(), &["hash-at-the-compacted-revision"]);
}

#[test]
fn commands_on_leases_are_answered_as_by_etcd() {
    play(&commands::leases(), &[]);
}

#[test]
fn commands_on_a_cluster_of_one_are_answered_as_by_etcd() {
    play(
        &commands::cluster(),
        &[
            "a-learner-stays-one",
            "learners-are-not-counted",
            "revision-in-heads-of-members",
            "heads-of-alarms",
            "head-of-a-transfer",
            "authority-with-a-scheme",
        ],
    );
}

#[test]
fn commands_on_a_cluster_of_three_are_answered_as_by_etcd() {
    let (members, etcds) = (cluster::three(), Etcd::three());
    let clients: Vec<_> = etcds.iter().map(|etcd| etcd.client).collect();
    let ctls = [cluster::all(&members), Ctl::new(&clients)];
    // etcd changes members once they have known each other for a while.
    let [_, theirs] = &ctls;
    let probe = ["member", "add", "probe", "--learner", "--peer-urls"];
    let probed = eventually("etcd changes members", || {
        let output = theirs.output(&[&probe[..], &["http://127.0.0.9:1"]].concat());
        let said = String::from_utf8(output.stdout).unwrap();
        output.status.success().then_some(said)
    });
    let probed = probed.split_whitespace().nth(1).unwrap();
    theirs.run(&["member", "remove", probed]);
    let found = ctls.each_ref().map(standing);
    let side = |ctl: Ctl, (leader, follower, _): &(String, String, String)| {
        let mut side = Side::new(ctl);
        side.know("leader", leader.clone());
        side.know("follower", follower.clone());
        side
    };
    let [ours, theirs] = &found;
    let [our_ctl, their_ctl] = ctls;
    let (mut our, mut their) = (side(our_ctl, ours), side(their_ctl, theirs));
    let mut differences = compare(&mut our, &mut their, &commands::members());
    let at =
        |found: &(String, String, String)| side(Ctl::at(std::slice::from_ref(&found.2)), found);
    let (mut our, mut their) = (at(ours), at(theirs));
    differences.extend(compare(&mut our, &mut their, &commands::at_the_leader()));
    judge(
        &[
            "revision-in-heads-of-members",
            "heads-of-alarms",
            "head-of-a-transfer",
        ],
        &differences,
    );
}

#[test]
fn commands_on_users_are_answered_as_by_etcd() {
    play(
        &commands::users(),
        &["revision-in-heads-of-members", "password-of-a-user-without"],
    );
}
