//! Clusters on loopback, and what their members say of them.
//!
//! Each test has a loopback address of its own, made of its process's number, so that the ports that
//! members must know of each other beforehand are free.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU16, Ordering};

use serde_json::Value;

use super::{Ctl, Member, Setup, eventually};

static NEXT_FIRST_PORT: AtomicU16 = AtomicU16::new(23_800);

/// This test process's own loopback address.
pub fn host() -> String {
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

pub fn peer(number: u16) -> SocketAddr {
    let port = FIRST_PORT.with(|first| first + number);
    format!("{}:{port}", host()).parse().unwrap()
}

/// What member `number` is started with; `with` are the other members that it is told of.
pub fn setup(scheme: &str, number: u16, with: &[u16], state: &str) -> Setup {
    let one = |n: &u16| format!("m{n}={scheme}://{}", peer(*n));
    let cluster: Vec<String> = with.iter().chain([&number]).map(one).collect();
    Setup {
        name: format!("m{number}"),
        listen: format!("{}:0", host()),
        peer_listen: peer(number).to_string(),
        args: initial(&cluster.join(","), state),
        ..Setup::default()
    }
}

/// The arguments that name the first members.
pub fn initial(cluster: &str, state: &str) -> Vec<String> {
    let args = [
        "--chainfire-initial-cluster",
        cluster,
        "--chainfire-initial-cluster-state",
        state,
    ];
    args.map(str::to_owned).to_vec()
}

/// Starts member `number`; `with` are the other members that it is told of.
pub fn start(number: u16, with: &[u16], state: &str) -> Member {
    Member::of(setup("http", number, with, state))
}

/// Three first members. Each prints that it listens before there is a leader, so they start in turn.
pub fn three() -> Vec<Member> {
    let members = vec![
        start(1, &[2, 3], "new"),
        start(2, &[1, 3], "new"),
        start(3, &[1, 2], "new"),
    ];
    leader(&members);
    members
}

pub fn status(member: &Member) -> Option<Value> {
    let output = member.ctl().output(&["-w", "json", "endpoint", "status"]);
    let all: Value = serde_json::from_slice(&output.stdout).ok()?;
    all.get(0)?.get("Status").cloned()
}

/// The place of the member that leads, and that each of those that run knows.
pub fn leader(members: &[Member]) -> usize {
    eventually("one leader", || agreed(members))
}

fn agreed(members: &[Member]) -> Option<usize> {
    let mut leads = None;
    let mut terms = Vec::new();
    for (place, member) in members.iter().enumerate().filter(|(_, one)| one.runs()) {
        terms.push(member.metric("uc_chainfire_term_number")?);
        let knows = member.metric("uc_chainfire_leader_known_bool")? == 1;
        if member.metric("uc_chainfire_leads_bool")? == 1 && leads.replace(place).is_some() {
            return None;
        }
        if !knows {
            return None;
        }
    }
    leads.filter(|_| terms.windows(2).all(|pair| pair[0] == pair[1]))
}

pub fn id(member: &Member) -> u64 {
    status(member).unwrap()["header"]["member_id"]
        .as_u64()
        .unwrap()
}

pub fn hex(id: u64) -> String {
    format!("{id:x}")
}

pub fn all(members: &[Member]) -> Ctl {
    let clients: Vec<SocketAddr> = members.iter().map(|member| member.client).collect();
    Ctl::new(&clients)
}

/// Whether the members are voters, by id.
pub fn voters(ctl: &Ctl) -> Vec<(u64, bool)> {
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
