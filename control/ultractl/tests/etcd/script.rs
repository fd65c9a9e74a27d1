//! The script of commands, run on both sides.

use crate::commands;
use crate::judged::{self, Difference};
use crate::peer::Etcd;
use crate::side::{Done, Side, Step, both};
use crate::support::Member;

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
    let rules: Vec<_> = judged::COMMANDS
        .iter()
        .filter(|rule| judged.contains(&rule.name))
        .collect();
    let unjudged = judged::unjudged(&rules, &found);
    assert!(unjudged.is_empty(), "{}", unjudged.join("\n"));
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
fn commands_on_users_are_answered_as_by_etcd() {
    play(
        &commands::users(),
        &["revision-in-heads-of-members", "password-of-a-user-without"],
    );
}
