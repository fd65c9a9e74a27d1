//! The story of `patroni-failover` (contract BY-9): PostgreSQL under Patroni, whose leader's key is in a
//! ChainFire of three members.
//!
//! The primary is killed while rows are written, and the replica takes its place with every row that was
//! acknowledged; the old one is rewound and follows. The leader of ChainFire is killed, and PostgreSQL's
//! stays: another member leads within seconds, well before the key's lease of 30 s ends, and Patroni asks
//! again meanwhile. At last patronictl hands leadership over. All is judged on what patronictl, psql and
//! ChainFire answer.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use proof::Accelerator;
use serde_json::{Value, json};

use super::answers::{self, decoded, leader, number};
use super::artifacts::{About, Artifacts, NO_POWER_LOSS, PROCESSES, Part, Scope};
use super::members::{Ctl, Member, State};
use super::postgres::{self, Place, Postgres};
use crate::process;

const MEMBERS: [&str; 3] = ["node01", "node02", "node03"];
const FIRST: usize = 0;
const SECOND: usize = 1;
/// The key that the primary holds, on its lease.
const LEADER_KEY: &str = "/service/proof/leader";
/// The key that the primary writes in each of its rounds.
const STATUS_KEY: &str = "/service/proof/status";
/// Rows that a writer has acknowledged before something is done to it, and again after.
const ROWS: usize = 100;
/// How long Patroni may take to make a database, copy one, or notice that a primary is gone.
const PATRONI_DEADLINE: Duration = Duration::from_mins(5);
/// Patronictl is a program of its own in each question: it is not asked all the time.
const PATRONI_REST: Duration = Duration::from_millis(500);

/// What the lane is about.
pub const ABOUT: About = About {
    lane: "patroni-failover",
    contracts: &["BY-9"],
    scopes: &[
        PROCESSES,
        Scope {
            name: "patroni",
            words: "PostgreSQL and Patroni are used as they are, ChainFire in etcd's place. Their part \
                    of the contract is shown, not that of its other clients.",
        },
    ],
    not_shown: &[
        Part {
            what: "a majority of ChainFire lost",
            reason: "Patroni then makes its primary read-only, by design",
        },
        Part {
            what: "packets lost between machines",
            reason: "everything is on one machine; control/ultractl/tests/faults has ChainFire's part",
        },
        NO_POWER_LOSS,
    ],
    clients: &["postgres", "patroni"],
    accelerator: Accelerator::None,
};

struct Story<'a> {
    server: &'a Path,
    cli: &'a Path,
    members: Vec<Member>,
    nodes: [Postgres; 2],
    acknowledged: BTreeSet<u64>,
    /// The timeline of PostgreSQL's history, which each promotion counts up.
    timeline: u64,
}

/// Runs the story. `patroni` has Patroni's programs.
pub fn run(server: &Path, cli: &Path, patroni: &Path, artifacts: &mut Artifacts) -> Result<()> {
    let logs = artifacts.dir().join("nodes");
    let members = MEMBERS.into_iter().zip(0..);
    let members = members.map(|(name, number)| Member::new(name, number, &logs));
    let members = members.collect::<Result<Vec<_>>>()?;
    let endpoints: Vec<String> = members.iter().map(|member| member.client.clone()).collect();
    let (host, _) = endpoints[0]
        .split_once(':')
        .context("an address has a port")?;
    let data = tempfile::tempdir().context("cannot make a directory for PostgreSQL")?;
    let place = Place {
        logs,
        data: data.path().canonicalize()?,
        postgresql: postgres::newest()?,
        patroni: patroni.to_owned(),
        host: host.to_owned(),
        endpoints,
    };
    let mut story = Story {
        server,
        cli,
        nodes: [
            Postgres::new(&place, "pg1", 0)?,
            Postgres::new(&place, "pg2", 1)?,
        ],
        members,
        acknowledged: BTreeSet::new(),
        timeline: 0,
    };
    artifacts.step("chainfire-starts", |out| story.start_members(out))?;
    artifacts.step("postgresql-replicates", |out| story.start_nodes(out))?;
    artifacts.step("primary-killed", |out| story.kill_primary(out))?;
    artifacts.step("replica-promoted", |out| story.take_over(out))?;
    artifacts.step("old-primary-follows", |out| story.come_back(out))?;
    artifacts.step("chainfire-leader-killed", |out| {
        story.kill_chainfire_leader(out)
    })?;
    artifacts.step("switchover", |out| story.switch_over(out))?;
    artifacts.step("nothing-acknowledged-is-lost", |out| {
        story.nothing_lost(out)
    })
}

impl Story<'_> {
    fn start_members(&mut self, out: &mut Artifacts) -> Result<()> {
        for at in 0..MEMBERS.len() {
            self.start_member(at)?;
        }
        let status = self.led(&self.members)?;
        out.keep("chainfire-members", &status)
    }

    fn start_member(&mut self, at: usize) -> Result<()> {
        let entries: Vec<String> = self.members.iter().map(Member::entry).collect();
        self.members[at].start(self.server, &entries.join(","), State::New)
    }

    /// The status of ChainFire, once the first of `asked` that answers knows a leader that runs.
    fn led(&self, asked: &[Member]) -> Result<Value> {
        let running = self.members.iter().filter(|one| one.runs());
        let names: Vec<&str> = running.map(|one| one.name).collect();
        let asked: Vec<&Member> = asked.iter().filter(|one| one.runs()).collect();
        Ctl::of(self.cli, &asked).until("a leader", &["member", "status"], |status| {
            leader(status).is_some_and(|name| names.contains(&name))
        })
    }

    fn start_nodes(&mut self, out: &mut Artifacts) -> Result<()> {
        self.nodes[FIRST].start()?;
        let alone = self.until("pg1 leads", |list| stands(list, "pg1", "Leader"))?;
        out.keep("patroni-first", &alone)?;
        self.nodes[FIRST].ask("create table rows (number bigint primary key)")?;
        self.nodes[SECOND].start()?;
        let list = self.replicated(FIRST)?;
        out.keep("patroni-replicated", &list)?;
        let held = self.held_by(FIRST)?;
        out.keep("leader-key", &held)?;
        self.insert(FIRST, 0)?;
        self.nodes[SECOND].gives("select number from rows", "0")
    }

    /// Kills the primary while rows are written.
    fn kill_primary(&mut self, out: &mut Artifacts) -> Result<()> {
        let mut writer = self.nodes[FIRST].write(1)?;
        writer.progress(ROWS)?;
        self.nodes[FIRST].kill()?;
        let rows = writer.lost()?;
        out.keep(
            "primary-killed",
            &json!({ "signal": "KILL", "to": ["Patroni of pg1", "its PostgreSQL"],
                "rows_acknowledged": rows.len() }),
        )?;
        self.acknowledged.extend(rows);
        Ok(())
    }

    fn take_over(&mut self, out: &mut Artifacts) -> Result<()> {
        let list = self.promoted(SECOND)?;
        out.keep("patroni-after-failover", &list)?;
        let held = self.held_by(SECOND)?;
        out.keep("leader-key-after-failover", &held)?;
        let lost = self.lost(SECOND)?;
        out.keep("rows-lost-by-failover", &json!(lost))?;
        ensure!(lost.is_empty(), "acknowledged rows are gone: {lost:?}");
        self.insert(SECOND, 1_000_000)
    }

    /// The old primary has WAL that nobody else has: it has to be rewound before it can follow.
    fn come_back(&mut self, out: &mut Artifacts) -> Result<()> {
        self.nodes[FIRST].start()?;
        let list = self.replicated(SECOND)?;
        out.keep("patroni-after-return", &list)?;
        let said = self.nodes[FIRST].said()?;
        let rewound: Vec<&str> = said
            .lines()
            .filter(|line| line.contains("rewind"))
            .collect();
        out.keep("pg-rewind", &json!(rewound))?;
        ensure!(
            rewound.contains(&"pg_rewind: Done!"),
            "the old primary was not rewound: {rewound:?}"
        );
        self.insert(SECOND, 1_000_001)?;
        self.gives_the_same()?;
        Ok(())
    }

    /// Kills who leads ChainFire while rows are written: PostgreSQL's leader has to stay, on the key that it
    /// holds, and to be told so by the next leader of ChainFire.
    fn kill_chainfire_leader(&mut self, out: &mut Artifacts) -> Result<()> {
        let status = self.led(&self.members)?;
        let name = leader(&status).context("no leader is told")?.to_owned();
        let lost = MEMBERS.iter().position(|member| *member == name);
        let lost = lost.context("the leader is a member")?;
        let before = self.held_by(SECOND)?;
        let mut writer = self.nodes[SECOND].write(2_000_000)?;
        writer.progress(ROWS)?;
        let since = Instant::now();
        self.members[lost].kill();
        let status = self.led(&self.members)?;
        let elected = since.elapsed();
        let told = self.told(None)?;
        writer.progress(ROWS)?;
        // It is written after the lease was renewed, round by round.
        let told = self.told(Some(&told))?;
        self.told(Some(&told))?;
        writer.progress(ROWS)?;
        let list = self.replicated(SECOND)?;
        let after = self.held_by(SECOND)?;
        let rows = writer.finish()?;
        out.keep("patroni-after-chainfire-failover", &list)?;
        out.keep(
            "chainfire-leader-killed",
            &json!({
                "lost": name,
                "leads": leader(&status),
                "leader_known_s": (elected.as_secs_f64() * 1e3).round() / 1e3,
                "expected": "PostgreSQL's leader stays",
                "key_before": before["kvs"][0],
                "key_after": after["kvs"][0],
                "rows_acknowledged_meanwhile": rows.len(),
            }),
        )?;
        self.acknowledged.extend(rows);
        let same = |field: &str| before["kvs"][0][field] == after["kvs"][0][field];
        ensure!(
            same("create_revision") && same("lease"),
            "the leader's key was let go: {before} became {after}"
        );
        ensure!(
            timeline(&list, "pg2") == Some(self.timeline),
            "PostgreSQL was promoted: {list}"
        );
        self.start_member(lost)?;
        self.led(&self.members[lost..=lost])?;
        Ok(())
    }

    fn switch_over(&mut self, out: &mut Artifacts) -> Result<()> {
        let words = [
            "switchover",
            "proof",
            "--leader",
            "pg2",
            "--candidate",
            "pg1",
            "--force",
        ];
        let said = process::capture(&mut self.nodes[SECOND].ctl(&words))?;
        out.keep("switchover", &json!(said.lines().collect::<Vec<_>>()))?;
        self.promoted(FIRST)?;
        let list = self.replicated(FIRST)?;
        out.keep("patroni-after-switchover", &list)?;
        let held = self.held_by(FIRST)?;
        out.keep("leader-key-after-switchover", &held)?;
        self.insert(FIRST, 3_000_000)?;
        out.keep(
            "patroni-history",
            &self.patronictl(&["history", "-f", "json"])?,
        )
    }

    /// Every row that was acknowledged is on both nodes, which have the same rows.
    fn nothing_lost(&mut self, out: &mut Artifacts) -> Result<()> {
        let rows = self.gives_the_same()?;
        let lost = [self.lost(FIRST)?, self.lost(SECOND)?];
        out.keep(
            "rows",
            &json!({
                "acknowledged": self.acknowledged.len(),
                "rows_and_digest_on_both": rows,
                "lost_on_pg1": lost[FIRST],
                "lost_on_pg2": lost[SECOND],
            }),
        )?;
        let lost = lost.concat();
        ensure!(lost.is_empty(), "acknowledged rows are gone: {lost:?}");
        Ok(())
    }

    /// Writes one row by the primary.
    fn insert(&mut self, node: usize, row: u64) -> Result<()> {
        self.nodes[node].ask(&format!("insert into rows values ({row})"))?;
        self.acknowledged.insert(row);
        Ok(())
    }

    /// Rows that were acknowledged and that a node does not have.
    fn lost(&self, node: usize) -> Result<Vec<u64>> {
        let found = self.nodes[node].rows()?;
        Ok(self.acknowledged.difference(&found).copied().collect())
    }

    /// Waits until both nodes have the same rows; their number and digest.
    fn gives_the_same(&self) -> Result<String> {
        let digest =
            "select count(*), md5(string_agg(number::text, ' ' order by number)) from rows";
        let rows = self.nodes[FIRST].ask(digest)?;
        self.nodes[SECOND].gives(digest, &rows)?;
        Ok(rows)
    }

    /// What patronictl answers, by the first node's configuration; it asks ChainFire and needs no node.
    fn patronictl(&self, args: &[&str]) -> Result<Value> {
        let said = process::capture(&mut self.nodes[FIRST].ctl(args))?;
        serde_json::from_str(&said).with_context(|| format!("patronictl said no JSON: {said}"))
    }

    /// patronictl's list of the nodes, once it is the one that is waited for.
    fn until(&mut self, what: &str, is: impl Fn(&Value) -> bool) -> Result<Value> {
        let ask = || {
            for node in &mut self.nodes {
                node.check()?;
            }
            Ok(self.patronictl(&["list", "-f", "json"]))
        };
        answers::until(what, PATRONI_REST, PATRONI_DEADLINE, ask, is)
    }

    /// Waits until this node leads and the other is its synchronous replica.
    fn replicated(&mut self, primary: usize) -> Result<Value> {
        let (leads, follows) = (self.nodes[primary].name, self.nodes[1 - primary].name);
        let list = self.until("both nodes stand", |list| {
            stands(list, leads, "Leader")
                && stands(list, follows, "Sync Standby")
                && timeline(list, leads) == timeline(list, follows)
        })?;
        if self.timeline == 0 {
            self.timeline = timeline(&list, leads).context("no timeline is told")?;
        }
        Ok(list)
    }

    /// Waits until this node leads, on the timeline that a promotion begins.
    fn promoted(&mut self, node: usize) -> Result<Value> {
        let (name, next) = (self.nodes[node].name, self.timeline + 1);
        let what = format!("{name} is promoted to timeline {next}");
        let list = self.until(&what, |list| {
            stands(list, name, "Leader") && timeline(list, name) == Some(next)
        })?;
        self.timeline = next;
        Ok(list)
    }

    /// The leader's key, once this node holds it.
    fn held_by(&self, node: usize) -> Result<Value> {
        let name = self.nodes[node].name;
        let what = format!("{name} holds {LEADER_KEY}");
        self.ctl().until(&what, &["get", LEADER_KEY], |answer| {
            let value = answer["kvs"][0]["value"].as_str();
            value.and_then(decoded).as_deref() == Some(name)
        })
    }

    /// What the primary told in its last round, once it differs from what it told before.
    fn told(&self, before: Option<&Value>) -> Result<Value> {
        let what = "the primary's next round";
        let answer = self.ctl().until(what, &["get", STATUS_KEY], |answer| {
            let told = &answer["kvs"][0]["mod_revision"];
            number(told) != 0 && before != Some(told)
        })?;
        Ok(answer["kvs"][0]["mod_revision"].clone())
    }

    fn ctl(&self) -> Ctl<'_> {
        let running: Vec<&Member> = self.members.iter().filter(|one| one.runs()).collect();
        Ctl::of(self.cli, &running)
    }
}

/// Patronictl's line on a node.
fn line<'l>(list: &'l Value, name: &str) -> Option<&'l Value> {
    list.as_array()?.iter().find(|line| line["Member"] == name)
}

/// Whether a node has a role, and works in it.
fn stands(list: &Value, name: &str, role: &str) -> bool {
    line(list, name).is_some_and(|line| {
        let works = line["State"] == "running" || line["State"] == "streaming";
        works && line["Role"] == role
    })
}

/// The timeline that a node is on.
fn timeline(list: &Value, name: &str) -> Option<u64> {
    line(list, name)?["TL"].as_u64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_stands_in_its_role_once_it_works() {
        let list = json!([
            { "Member": "pg1", "Role": "Leader", "State": "running", "TL": 2 },
            { "Member": "pg2", "Role": "Sync Standby", "State": "starting" },
        ]);
        assert!(stands(&list, "pg1", "Leader"));
        assert!(!stands(&list, "pg1", "Replica"));
        assert!(!stands(&list, "pg2", "Sync Standby"));
        assert_eq!(timeline(&list, "pg1"), Some(2));
        assert_eq!(timeline(&list, "pg2"), None);
    }
}
