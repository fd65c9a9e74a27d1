//! Three members and more: growing, shrinking, moving leadership, losing members. Contracts CF-4 to
//! CF-6, CF-9, BY-5.
//!
//! Each test has a loopback address of its own, made of its process's number, so that the ports that
//! members must know of each other beforehand are free.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU16, Ordering};

use serde_json::Value;

use crate::support::{Ctl, Member, eventually};

static NEXT_FIRST_PORT: AtomicU16 = AtomicU16::new(23_800);

/// This test process's own loopback address.
fn host() -> String {
    let pid = std::process::id();
    format!(
        "127.{}.{}.{}",
        1 + (pid >> 16) % 250,
        (pid >> 8) & 255,
        1 + (pid & 255) % 250
    )
}

thread_local! {
    /// A test is a thread: each has ports of its own where several are in one process.
    static FIRST_PORT: u16 = NEXT_FIRST_PORT.fetch_add(10, Ordering::Relaxed);
}

fn peer(number: u16) -> SocketAddr {
    let port = FIRST_PORT.with(|first| first + number);
    format!("{}:{port}", host()).parse().unwrap()
}

/// Starts member `number`; `with` are the other members that it is told of.
fn start(number: u16, with: &[u16], state: &str) -> Member {
    let one = |n: &u16| format!("m{n}=http://{}", peer(*n));
    let cluster: Vec<String> = with.iter().chain([&number]).map(one).collect();
    let cluster = cluster.join(",");
    let args = [
        "--chainfire-initial-cluster",
        &cluster,
        "--chainfire-initial-cluster-state",
        state,
    ];
    let listen = format!("{}:0", host());
    Member::start(
        &format!("m{number}"),
        &listen,
        &peer(number).to_string(),
        &args,
    )
}

/// Three first members. Each prints that it listens before there is a leader, so they start in turn.
fn three() -> Vec<Member> {
    let members = vec![
        start(1, &[2, 3], "new"),
        start(2, &[1, 3], "new"),
        start(3, &[1, 2], "new"),
    ];
    leader(&members);
    members
}

fn status(member: &Member) -> Option<Value> {
    let output = member.ctl().output(&["-w", "json", "endpoint", "status"]);
    let all: Value = serde_json::from_slice(&output.stdout).ok()?;
    all.get(0)?.get("Status").cloned()
}

/// The place of the member that leads, and that each of them knows.
fn leader(members: &[Member]) -> usize {
    eventually("one leader", || {
        let all: Vec<Value> = members.iter().map(status).collect::<Option<_>>()?;
        let leads = all[0]["leader"].as_u64().filter(|id| *id != 0)?;
        let agreed = all
            .iter()
            .all(|status| status["leader"].as_u64() == Some(leads));
        let place = all
            .iter()
            .position(|s| s["header"]["member_id"].as_u64() == Some(leads));
        place.filter(|_| agreed)
    })
}

fn id(member: &Member) -> u64 {
    status(member).unwrap()["header"]["member_id"]
        .as_u64()
        .unwrap()
}

fn hex(id: u64) -> String {
    format!("{id:x}")
}

fn all(members: &[Member]) -> Ctl {
    let clients: Vec<SocketAddr> = members.iter().map(|member| member.client).collect();
    Ctl::new(&clients)
}

/// Whether the members are voters, by id.
fn voters(ctl: &Ctl) -> Vec<(u64, bool)> {
    let list = ctl.json(&["member", "list"]);
    let members = list["members"].as_array().unwrap();
    let one = |m: &Value| {
        (
            m["ID"].as_u64().unwrap(),
            m["isLearner"] != Value::Bool(true),
        )
    };
    members.iter().map(one).collect()
}

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
