//! The story of `durability-proof`, as far as it is ChainFire's (contract DUR-1): what was acknowledged
//! outlives kills, stops and a flush that fails, and a logical backup that was taken meanwhile brings it
//! into a new cluster.
//!
//! The time from each loss of the leader until the rest has another is judged: 3 s. Contents are compared
//! by digests of keys, values, leases and their times, as of the backup's revision.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use proof::Accelerator;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::answers::{keys, leader, members, number};
use super::artifacts::{About, Artifacts, NO_MACHINES, NO_POWER_LOSS, PROCESSES, Part, Scope};
use super::members::{Ctl, DEADLINE, Member, State};
use super::writer::Writer;
use crate::process::{self, Running};

const NAMES: [&str; 3] = ["node01", "node02", "node03"];
const RESTORED: [&str; 3] = ["node11", "node12", "node13"];
/// All keys of the story begin so.
const ROOT: &str = "/proof/";
/// What the writer writes.
const LIVE: &str = "/proof/live/";
const LEASES: usize = 5;
/// Writes that pass between two faults.
const WRITES: usize = 30;
/// How long a cluster may be without a leader after one was lost.
const LEADER_LIMIT: Duration = Duration::from_secs(3);

/// What the lane is about.
pub const ABOUT: About = About {
    lane: "durability-proof",
    contracts: &["DUR-1", "CF-5", "CF-7"],
    scopes: &[
        PROCESSES,
        Scope {
            name: "chainfire",
            words: "ChainFire's half of the contract: keys and leases outlive kills, stops and a flush \
                    that fails, and a logical backup is restored. FlareDB, the deployer, CoronaFS and \
                    LightningStor are not part of it.",
        },
    ],
    not_shown: &[
        Part {
            what: "FlareDB's rows",
            reason: "there is no FlareDB yet",
        },
        Part {
            what: "the deployer's replay (deployer_restore_mode)",
            reason: "there is no deployer yet",
        },
        Part {
            what: "failures of CoronaFS and LightningStor in the same cluster",
            reason: "there is no CoronaFS yet, and the cluster runs ChainFire alone",
        },
        NO_POWER_LOSS,
        NO_MACHINES,
    ],
    clients: &["etcdctl", "strace"],
    accelerator: Accelerator::None,
};

struct Story<'a> {
    server: &'a Path,
    cli: &'a Path,
    nodes: PathBuf,
    members: Vec<Member>,
    restored: Vec<Member>,
    /// Each loss of a leader, and how long it took until there was another.
    losses: Vec<Value>,
    backup: PathBuf,
    /// The revision of the backup, and the digest of what was there then.
    content: (u64, String),
}

/// Runs the story.
pub fn run(server: &Path, cli: &Path, artifacts: &mut Artifacts) -> Result<()> {
    let nodes = artifacts.dir().join("nodes");
    let all = |names: [&'static str; 3], first: u16| -> Result<Vec<Member>> {
        let members = names.into_iter().zip(first..);
        members
            .map(|(name, number)| Member::new(name, number, &nodes))
            .collect()
    };
    let mut story = Story {
        server,
        cli,
        members: all(NAMES, 0)?,
        restored: all(RESTORED, 3)?,
        losses: Vec::new(),
        backup: artifacts.dir().join("backup.jsonl"),
        content: (0, String::new()),
        nodes,
    };
    artifacts.step("clean-local-state", |out| story.begin(out))?;
    artifacts.step("leases", |out| story.grant(out))?;
    let running: Vec<&Member> = story.members.iter().collect();
    let writer = Writer::start(cli, &running, LIVE);
    artifacts.step("flush-error-of-the-leader", |out| {
        story.flush_error(&writer, out)
    })?;
    artifacts.step("kill-of-the-leader", |_| {
        story.lose_leaders(&writer, Fault::Kill)
    })?;
    artifacts.step("stop-of-the-leader", |_| {
        story.lose_leaders(&writer, Fault::Stop)
    })?;
    artifacts.step("new-leader-in-time", |out| story.judge_losses(out))?;
    artifacts.step("backup-under-writes", |out| story.back_up(&writer, out))?;
    artifacts.step("nothing-acknowledged-is-lost", |out| {
        story.nothing_lost(writer, out)
    })?;
    artifacts.step("restore", |out| story.restore(out))?;
    artifacts.step("restored-state-outlives-kills", |out| {
        story.kill_restored(out)
    })?;
    artifacts.step("damaged-backup-is-refused", |out| story.damage(out))
}

/// How a leader is lost.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    Kill,
    Stop,
}

impl Fault {
    fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill -9",
            Self::Stop => "SIGSTOP",
        }
    }
}

fn cluster(members: &[Member]) -> String {
    let entries: Vec<String> = members.iter().map(Member::entry).collect();
    entries.join(",")
}

impl Story<'_> {
    fn start(&mut self, at: usize) -> Result<()> {
        let cluster = cluster(&self.members);
        self.members[at].start(self.server, &cluster, State::New)
    }

    fn ctl(&self, members: &[Member]) -> Ctl<'_> {
        let running: Vec<&Member> = members.iter().filter(|one| one.runs()).collect();
        Ctl::of(self.cli, &running)
    }

    fn begin(&mut self, out: &mut Artifacts) -> Result<()> {
        for at in 0..NAMES.len() {
            self.start(at)?;
        }
        out.keep("members-initial", &self.settled(&self.members)?)
    }

    /// The cluster's status, once all three vote under a leader.
    fn settled(&self, cluster: &[Member]) -> Result<Value> {
        self.ctl(cluster).until(
            "three voters under a leader",
            &["member", "status"],
            |status| {
                let voters = members(status).filter(|member| member["is_voter"] == true);
                voters.count() == NAMES.len() && number(&status["leader_id"]) != 0
            },
        )
    }

    /// Keys that hang on leases.
    fn grant(&mut self, out: &mut Artifacts) -> Result<()> {
        let mut granted = Vec::new();
        for place in 0..LEASES {
            let ttl = (600 + 60 * place).to_string();
            let lease = etcdctl(&self.members, &["lease", "grant", &ttl])?;
            let id = number(&lease["ID"]);
            let (key, lease_id) = (format!("{ROOT}leased/{place}"), format!("{id:x}"));
            let put = ["put", &key, "leased", "--lease", &lease_id];
            self.ctl(&self.members).ask(&put)?;
            granted.push(lease);
        }
        out.keep("leases", &Value::Array(granted))
    }

    /// Every flush of the leader fails: it must stop, say why, and have everything after a restart.
    fn flush_error(&mut self, writer: &Writer, out: &mut Artifacts) -> Result<()> {
        writer.progress(WRITES)?;
        let leader = self.leader()?;
        let log = self.nodes.join("strace.log");
        let mut strace = Command::new("strace");
        strace
            .args(["-f", "-o", "/dev/null", "-e", "trace=fsync,fdatasync"])
            .args(["-e", "inject=fsync,fdatasync:error=EIO", "-p"])
            .arg(self.members[leader].id()?.to_string());
        let mut errors = Running::start(&mut strace, &log)?;
        let attached = process::until(DEADLINE, || {
            let said = fs::read_to_string(&log)?;
            let attached = said.contains(" attached");
            Ok((attached || !errors.is_running()?).then_some(attached))
        })?;
        ensure!(
            attached == Some(true),
            "strace does not work here: {}",
            fs::read_to_string(&log)?
        );
        self.succeeded("flush error", leader, Instant::now())?;
        let health = process::until(DEADLINE, || {
            let (code, words) = self.members[leader].health()?;
            Ok((code == "503").then_some(words))
        })?;
        let health = health.context("the member does not say that it has failed")?;
        ensure!(health.contains("Input/output error"), "it says {health:?}");
        let status = Ctl::of(self.cli, &[&self.members[leader]]).ask(&["member", "status"])?;
        out.keep(
            "flush-error",
            &json!({ "member": NAMES[leader], "healthz": health, "status": status }),
        )?;
        drop(errors);
        writer.progress(WRITES)?;
        self.members[leader].kill();
        self.start(leader)
    }

    /// Loses whoever leads, three times.
    fn lose_leaders(&mut self, writer: &Writer, fault: Fault) -> Result<()> {
        for _ in 0..3 {
            writer.progress(WRITES)?;
            let leader = self.leader()?;
            match fault {
                Fault::Kill => self.members[leader].kill(),
                Fault::Stop => self.members[leader].signal("STOP")?,
            }
            self.succeeded(fault.name(), leader, Instant::now())?;
            writer.progress(WRITES)?;
            match fault {
                Fault::Kill => self.start(leader)?,
                Fault::Stop => self.members[leader].signal("CONT")?,
            }
            self.settled(&self.members)?;
        }
        Ok(())
    }

    /// Waits until the others have another leader and acknowledge a write, and notes how long it took.
    fn succeeded(&mut self, fault: &str, lost: usize, since: Instant) -> Result<()> {
        let others = self.members.iter().enumerate();
        let others: Vec<&Member> = others
            .filter(|(at, _)| *at != lost)
            .map(|(_, m)| m)
            .collect();
        let ctl = Ctl::of(self.cli, &others);
        let status = ctl.until("another leader", &["member", "status"], |status| {
            leader(status).is_some_and(|leader| leader != NAMES[lost])
        })?;
        let elected = since.elapsed();
        let key = format!("{ROOT}after-loss/{}", self.losses.len());
        ctl.until("a write after the loss", &["put", &key, fault], |_| true)?;
        let served = since.elapsed();
        self.losses.push(json!({
            "fault": fault,
            "lost": NAMES[lost],
            "leads": leader(&status),
            "leader_known_s": seconds(elected),
            "write_acknowledged_s": seconds(served),
        }));
        Ok(())
    }

    fn judge_losses(&mut self, out: &mut Artifacts) -> Result<()> {
        let limit = LEADER_LIMIT.as_secs_f64();
        let time = |loss: &Value| loss["leader_known_s"].as_f64().unwrap_or(f64::MAX);
        let longest = self.losses.iter().map(time).fold(0.0, f64::max);
        out.keep(
            "new-leader",
            &json!({ "limit_s": limit, "longest_s": longest, "losses": self.losses }),
        )?;
        ensure!(
            longest <= limit,
            "a new leader after {longest} s, at most {limit} s are allowed"
        );
        Ok(())
    }

    /// A backup while clients write and a member is down.
    fn back_up(&mut self, writer: &Writer, out: &mut Artifacts) -> Result<()> {
        let down = (self.leader()? + 1) % NAMES.len();
        self.members[down].kill();
        writer.progress(WRITES)?;
        let before = writer.acknowledged();
        let file = self.backup.display().to_string();
        let answer = self.ctl(&self.members).ask(&["backup", &file])?;
        writer.progress(WRITES)?;
        self.start(down)?;
        out.keep("chainfire-backup-response", &answer)?;
        let revision = number(&answer["revision"]);
        self.content = (revision, self.digest(&self.members, Some(revision))?);
        let then = read(&self.ctl(&self.members), Some(revision))?;
        let kept: BTreeSet<String> = keys(&then).into_iter().collect();
        let missing = before.iter().find(|key| !kept.contains(*key));
        ensure!(
            missing.is_none(),
            "the backup lacks {missing:?}, which was acknowledged before it"
        );
        Ok(())
    }

    /// Every key that was acknowledged is in every member's own state.
    fn nothing_lost(&mut self, writer: Writer, out: &mut Artifacts) -> Result<()> {
        let acknowledged = writer.finish()?;
        let mut members = Vec::new();
        for member in &self.members {
            let get = ["get", ROOT, "--prefix", "--local"];
            let what = format!("{} has every key that was acknowledged", member.name);
            let answer = Ctl::of(self.cli, &[member]).until(&what, &get, |answer| {
                let found: BTreeSet<String> = keys(answer).into_iter().collect();
                acknowledged.iter().all(|key| found.contains(key))
            })?;
            members.push(json!({ "member": member.name, "keys": keys(&answer).len() }));
        }
        let acknowledged = acknowledged.len();
        out.keep(
            "acknowledged",
            &json!({ "acknowledged": acknowledged, "members": members }),
        )
    }

    fn restore(&mut self, out: &mut Artifacts) -> Result<()> {
        let cluster = cluster(&self.restored);
        for member in &mut self.restored {
            member.start(self.server, &cluster, State::New)?;
        }
        self.settled(&self.restored)?;
        let file = self.backup.display().to_string();
        let answer = self.ctl(&self.restored).ask(&["restore", &file])?;
        out.keep("chainfire-restored", &answer)?;
        let digest = self.digest(&self.restored, None)?;
        out.keep(
            "digests",
            &json!({
                "revision": self.content.0,
                "of": "SHA-256 of key, value, lease and its granted time, key by key",
                "source": self.content.1,
                "restored": digest,
            }),
        )?;
        ensure!(
            digest == self.content.1,
            "what was restored differs from what was there"
        );
        Ok(())
    }

    fn kill_restored(&mut self, out: &mut Artifacts) -> Result<()> {
        let cluster = cluster(&self.restored);
        for member in &mut self.restored {
            member.kill();
        }
        for member in &mut self.restored {
            member.start(self.server, &cluster, State::New)?;
        }
        out.keep("members-restored", &self.settled(&self.restored)?)?;
        let digest = self.digest(&self.restored, None)?;
        ensure!(
            digest == self.content.1,
            "it differs after all members were killed"
        );
        Ok(())
    }

    fn damage(&mut self, out: &mut Artifacts) -> Result<()> {
        let mut text = fs::read(&self.backup)?;
        let middle = text.len() / 2;
        text[middle] ^= 1;
        let damaged = self.backup.with_extension("damaged");
        fs::write(&damaged, text)?;
        let file = damaged.display().to_string();
        match self.ctl(&self.restored).ask(&["restore", &file]) {
            Ok(answer) => bail!("a damaged backup was restored: {answer}"),
            Err(error) => out.keep("damaged", &json!({ "refused": format!("{error:#}") })),
        }
    }

    /// A digest of everything that is there: now, or as of a revision.
    fn digest(&self, members: &[Member], revision: Option<u64>) -> Result<String> {
        let answer = read(&self.ctl(members), revision)?;
        let mut digest = Sha256::new();
        for kv in answer["kvs"].as_array().into_iter().flatten() {
            let lease = number(&kv["lease"]);
            let ttl = match lease {
                0 => 0,
                id => {
                    let asked = ["lease", "timetolive", &format!("{id:x}")];
                    number(&etcdctl(members, &asked)?["granted-ttl"])
                }
            };
            digest.update(format!("{} {} {lease:x} {ttl}\n", kv["key"], kv["value"]));
        }
        let mut text = String::new();
        for byte in digest.finalize() {
            write!(text, "{byte:02x}")?;
        }
        Ok(text)
    }

    /// Who leads.
    fn leader(&self) -> Result<usize> {
        let status = self.settled(&self.members)?;
        let name = leader(&status).context("the leader has no name")?;
        let place = NAMES.iter().position(|one| *one == name);
        place.with_context(|| format!("{name} leads"))
    }
}

/// What etcdctl answers at the members that run.
fn etcdctl(members: &[Member], args: &[&str]) -> Result<Value> {
    let running = members.iter().filter(|one| one.runs());
    let endpoints: Vec<&str> = running.map(|one| one.client.as_str()).collect();
    let mut command = Command::new("etcdctl");
    command
        .env("ETCDCTL_API", "3")
        .args(["-w", "json", "--endpoints", &endpoints.join(",")])
        .args(args);
    let said = process::capture(&mut command)?;
    serde_json::from_str(&said).with_context(|| format!("etcdctl said no JSON: {said}"))
}

/// Everything that is there: now, or as of a revision.
fn read(ctl: &Ctl, revision: Option<u64>) -> Result<Value> {
    let revision = revision.unwrap_or_default().to_string();
    ctl.ask(&["get", ROOT, "--prefix", "--rev", &revision])
}

/// Seconds, to the millisecond.
fn seconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e3).round() / 1e3
}
