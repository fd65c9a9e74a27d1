//! The story of `chainfire-live-membership-proof` (contract CLM-1): three members, a temporary fourth
//! that learns, votes, leads, restarts and goes, and the removal of whoever leads.
//!
//! A writer's keys are read back from every member's own state at the end: none that was
//! acknowledged may be missing.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use proof::Accelerator;
use serde_json::{Value, json};

use super::answers::{keys, members, number};
use super::artifacts::{About, Artifacts, NO_MACHINES, NO_POWER_LOSS, PROCESSES, Scope};
use super::members::{Ctl, Member, State};

const NAMES: [&str; 4] = ["node01", "node02", "node03", "node04"];
/// Where the temporary member stands.
const TEMPORARY: usize = 3;
/// Keys that each step writes.
const KEYS_PER_STEP: usize = 10;

/// What the lane is about.
pub const ABOUT: About = About {
    lane: "chainfire-live-membership-proof",
    contracts: &["CLM-1", "CF-4", "CF-5", "CF-9"],
    scopes: &[
        PROCESSES,
        Scope {
            name: "chainfire",
            words: "ChainFire's members alone are changed: adding, promoting, restarting, handing over \
                    leadership and removing, one after another, with a writer beside. Reads are from \
                    each member's own state. No other service runs.",
        },
    ],
    not_shown: &[NO_MACHINES, NO_POWER_LOSS],
    clients: &[],
    accelerator: Accelerator::None,
};

struct Story<'a> {
    server: &'a Path,
    cli: &'a Path,
    members: Vec<Member>,
    /// Keys that were acknowledged.
    written: Vec<String>,
}

/// Runs the story.
pub fn run(server: &Path, cli: &Path, artifacts: &mut Artifacts) -> Result<()> {
    let dir = artifacts.dir().join("nodes");
    let members = NAMES.iter().zip(0..);
    let members = members.map(|(name, number)| Member::new(name, number, &dir));
    let mut story = Story {
        server,
        cli,
        members: members.collect::<Result<_>>()?,
        written: Vec::new(),
    };
    artifacts.step("clean-local-state", |out| story.begin(out))?;
    artifacts.step("learner-add", |out| story.add_learner(out))?;
    artifacts.step("voter-promotion", |out| story.promote(out))?;
    artifacts.step("leader-transfer", |out| story.transfer(out))?;
    artifacts.step("temporary-voter-restart", |out| story.restart(out))?;
    artifacts.step("current-leader-removal", |out| story.remove_leader(out))?;
    artifacts.step("removed-leader-re-add", |out| story.add_again(out))?;
    artifacts.step("scale-in", |out| story.scale_in(out))
}

impl Story<'_> {
    /// The command line at the members that run.
    fn ctl(&self) -> Ctl<'_> {
        let running: Vec<&Member> = self.members.iter().filter(|one| one.runs()).collect();
        Ctl::of(self.cli, &running)
    }

    /// The command line at one member alone.
    fn at(&self, member: usize) -> Ctl<'_> {
        Ctl::of(self.cli, &[&self.members[member]])
    }

    fn cluster(&self, members: &[usize]) -> String {
        let entries: Vec<String> = members.iter().map(|at| self.members[*at].entry()).collect();
        entries.join(",")
    }

    fn begin(&mut self, out: &mut Artifacts) -> Result<()> {
        let cluster = self.cluster(&[0, 1, 2]);
        for at in 0..TEMPORARY {
            self.members[at].start(self.server, &cluster, State::New)?;
        }
        let status = self.settled(&[0, 1, 2])?;
        out.keep("members-initial", &status)?;
        self.write("begin")
    }

    fn add_learner(&mut self, out: &mut Artifacts) -> Result<()> {
        let url = format!("http://{}", self.members[TEMPORARY].peer);
        let name = NAMES[TEMPORARY];
        let added = self
            .ctl()
            .ask(&["member", "add", name, "--peer-urls", &url, "--learner"])?;
        out.keep("learner-added", &added)?;
        let cluster = self.cluster(&[0, 1, 2, TEMPORARY]);
        self.members[TEMPORARY].start(self.server, &cluster, State::Existing)?;
        self.write("learner")?;
        let read = self.local_read(TEMPORARY)?;
        out.keep("learner-local-read", &read)
    }

    fn promote(&mut self, out: &mut Artifacts) -> Result<()> {
        self.ctl().until(
            "the learner has caught up and votes",
            &["member", "promote", NAMES[TEMPORARY]],
            |_| true,
        )?;
        let status = self.settled(&[0, 1, 2, TEMPORARY])?;
        out.keep("members-after-promotion", &status)?;
        self.write("promoted")
    }

    fn transfer(&mut self, out: &mut Artifacts) -> Result<()> {
        let answer = self.ctl().ask(&["member", "transfer", NAMES[TEMPORARY]])?;
        out.keep("leader-transfer", &answer)?;
        let leader = self.leader()?;
        ensure!(
            leader == TEMPORARY,
            "{} leads, not {}",
            NAMES[leader],
            NAMES[TEMPORARY]
        );
        self.write("transferred")
    }

    fn restart(&mut self, out: &mut Artifacts) -> Result<()> {
        self.members[TEMPORARY].kill();
        let before = self.leader()?;
        self.write("without-the-temporary-voter")?;
        let cluster = self.cluster(&[0, 1, 2, TEMPORARY]);
        self.members[TEMPORARY].start(self.server, &cluster, State::Existing)?;
        let read = self.local_read(TEMPORARY)?;
        out.keep("rejoined-local-read", &read)?;
        let status = self.settled(&[0, 1, 2, TEMPORARY])?;
        out.keep("members-after-rejoin", &status)?;
        ensure!(before != TEMPORARY, "a killed member led");
        Ok(())
    }

    fn remove_leader(&mut self, out: &mut Artifacts) -> Result<()> {
        let mut leader = self.leader()?;
        if leader == TEMPORARY {
            // The one that is removed has to be one of the three, to be added again.
            self.ctl().ask(&["member", "transfer", NAMES[0]])?;
            leader = self.leader()?;
        }
        let removed = NAMES[leader];
        let answer = self.ctl().ask(&["member", "remove", removed])?;
        out.keep("leader-removed", &answer)?;
        self.members[leader].wipe()?;
        let rest: Vec<usize> = (0..NAMES.len()).filter(|at| *at != leader).collect();
        let status = self.settled(&rest)?;
        out.keep("members-after-leader-removal", &status)?;
        self.write("after-leader-removal")
    }

    fn add_again(&mut self, out: &mut Artifacts) -> Result<()> {
        let gone = self.members.iter().position(|one| !one.runs());
        let gone = gone.context("no member was removed")?;
        let url = format!("http://{}", self.members[gone].peer);
        let added = self.ctl().ask(&[
            "member",
            "add",
            NAMES[gone],
            "--peer-urls",
            &url,
            "--learner",
        ])?;
        out.keep("removed-leader-added", &added)?;
        let cluster = self.cluster(&[0, 1, 2, TEMPORARY]);
        self.members[gone].start(self.server, &cluster, State::Existing)?;
        self.local_read(gone)?;
        let promoted = ["member", "promote", NAMES[gone]];
        self.ctl()
            .until("the member votes again", &promoted, |_| true)?;
        let status = self.settled(&[0, 1, 2, TEMPORARY])?;
        out.keep("members-after-re-add", &status)?;
        self.write("added-again")
    }

    fn scale_in(&mut self, out: &mut Artifacts) -> Result<()> {
        self.ctl().ask(&["member", "remove", NAMES[TEMPORARY]])?;
        self.members[TEMPORARY].wipe()?;
        self.write("three-again")?;
        let status = self.settled(&[0, 1, 2])?;
        out.keep("members-final", &status)?;
        let mut reads = Vec::new();
        for (at, name) in NAMES.iter().enumerate().take(TEMPORARY) {
            reads.push(json!({ "member": name, "answer": self.local_read(at)? }));
        }
        out.keep("local-reads-final", &Value::Array(reads))
    }

    /// Writes keys; each that was acknowledged counts from then on.
    fn write(&mut self, step: &str) -> Result<()> {
        for number in 0..KEYS_PER_STEP {
            let key = format!("/proof/{step}/{number}");
            self.ctl()
                .until("a write is acknowledged", &["put", &key, "written"], |_| {
                    true
                })?;
            self.written.push(key);
        }
        Ok(())
    }

    /// Reads everything that was written from a member's own state, once it has all of it.
    fn local_read(&self, member: usize) -> Result<Value> {
        let written = &self.written;
        let what = format!("{} has every key that was acknowledged", NAMES[member]);
        self.at(member).until(
            &what,
            &["get", "/proof/", "--prefix", "--local"],
            |answer| {
                let found = keys(answer);
                written.iter().all(|key| found.contains(key))
            },
        )
    }

    /// The cluster's status, once these members and no others are voters and there is a leader.
    fn settled(&self, voters: &[usize]) -> Result<Value> {
        let mut wanted: Vec<&str> = voters.iter().map(|at| NAMES[*at]).collect();
        wanted.sort_unstable();
        let what = format!("the voters are {wanted:?} under a leader");
        self.ctl().until(&what, &["member", "status"], |status| {
            let mut found: Vec<&str> = members(status)
                .filter(|member| member["is_voter"] == true)
                .filter_map(|member| member["member"]["name"].as_str())
                .collect();
            found.sort_unstable();
            found == wanted && number(&status["leader_id"]) != 0
        })
    }

    /// Who leads.
    fn leader(&self) -> Result<usize> {
        let mut leader = None;
        self.ctl()
            .until("a leader", &["member", "status"], |status| {
                let id = number(&status["leader_id"]);
                let mut known = members(status);
                let named = known.find(|one| id != 0 && number(&one["member"]["id"]) == id);
                let name = named.and_then(|one| one["member"]["name"].as_str());
                leader = name.and_then(|name| NAMES.iter().position(|one| *one == name));
                leader.is_some_and(|at| self.members[at].runs())
            })?;
        leader.context("the leader has no name")
    }
}
