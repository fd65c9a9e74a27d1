//! What a lane leaves below the work root: answers, scope markers, and one `result.json` ([`proof`]).

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};
use proof::{Accelerator, Build, LaneResult, NotShown, RunDir, Step, Versions, WorkRoot};
use serde_json::Value;
use time::format_description::well_known::Rfc3339;

use super::schema;
use crate::process;
use crate::setup::Clients;
use crate::workspace::{Profile, Workspace};

/// What a lane is about, whatever a run of it shows.
pub struct About {
    /// Its name.
    pub lane: &'static str,
    /// Ids of its contracts.
    pub contracts: &'static [&'static str],
    /// Its scope markers.
    pub scopes: &'static [Scope],
    /// What belongs to its contracts and is not shown by it.
    pub not_shown: &'static [Part],
    /// Programs that are not ours and that it runs, as set-up names them.
    pub clients: &'static [&'static str],
    /// What its virtual machines run on.
    pub accelerator: Accelerator,
}

/// A scope marker: a file of plain words (contract GEN-5).
pub struct Scope {
    /// `NAME-scope.txt`.
    pub name: &'static str,
    /// What the lane is about there, and what it is not.
    pub words: &'static str,
}

/// A part of a contract.
pub struct Part {
    /// The part.
    pub what: &'static str,
    /// Why it is not shown.
    pub reason: &'static str,
}

/// What no lane on processes of one machine shows.
pub const NO_MACHINES: Part = Part {
    what: "KVM: the contract asks for virtual machines",
    reason: "the members are processes on loopback addresses of one machine",
};
/// What a killed process does not stand for.
pub const NO_POWER_LOSS: Part = Part {
    what: "power loss of machines",
    reason: "a killed process leaves the kernel's cache, a machine does not",
};
/// The scope of lanes on processes of one machine.
pub const PROCESSES: Scope = Scope {
    name: "machine",
    words: "The members are processes on loopback addresses of one machine. No virtual machine is \
            started (vm_accelerator_mode=none). No contract that asks for KVM is claimed.",
};

/// The artifacts of one run.
pub struct Artifacts {
    about: &'static About,
    build: Build,
    run: RunDir,
    commit: String,
    versions: Versions,
    steps: Vec<Step>,
    files: Vec<String>,
    facts: BTreeMap<String, Value>,
    began: Instant,
}

impl Artifacts {
    /// Begins a run: its directory, its scope markers, and what it runs on.
    pub fn create(
        workspace: &Workspace,
        about: &'static About,
        build: Build,
        clients: Option<&Clients>,
    ) -> Result<Self> {
        let root = WorkRoot::locate(workspace.root())?;
        let run = root.begin(about.lane)?;
        for scope in about.scopes {
            let path = run.dir.join(scope_file(scope));
            let words = format!("{}\n", scope.words);
            fs::write(&path, words).with_context(|| format!("cannot write {}", path.display()))?;
        }
        let mut git = Command::new("git");
        git.arg("-C")
            .arg(workspace.root())
            .args(["describe", "--always", "--dirty"]);
        Ok(Self {
            about,
            build,
            run,
            commit: process::capture(&mut git).unwrap_or_else(|_| "unknown".to_owned()),
            versions: versions(about, clients)?,
            steps: Vec::new(),
            files: Vec::new(),
            facts: BTreeMap::new(),
            began: Instant::now(),
        })
    }

    /// Where the artifacts lie.
    pub fn dir(&self) -> &Path {
        &self.run.dir
    }

    /// Keeps an answer as `NAME.json`.
    pub fn keep(&mut self, name: &str, answer: &Value) -> Result<()> {
        let file = format!("{name}.json");
        let text = serde_json::to_string_pretty(answer)?;
        fs::write(self.run.dir.join(&file), text + "\n")
            .with_context(|| format!("cannot write {file}"))?;
        self.files.push(file);
        Ok(())
    }

    /// Says something in `result.json` besides what every lane says.
    pub fn fact(&mut self, name: &str, value: impl Into<Value>) {
        self.facts.insert(name.to_owned(), value.into());
    }

    /// Runs a step of the story and notes how it ended.
    pub fn step<T>(&mut self, name: &str, run: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        eprintln!("{}: {name}", self.about.lane);
        let began = Instant::now();
        let outcome = run(self).with_context(|| format!("step {name}"));
        self.steps.push(Step {
            step: name.to_owned(),
            success: outcome.is_ok(),
            seconds: seconds_since(began),
        });
        outcome
    }

    /// Writes `result.json`, once it is to its schema, and says where it is.
    pub fn finish(self, outcome: &Result<()>) -> Result<()> {
        let lane = self.about.lane;
        let flag = match self.build {
            Build::Development => " --dev",
            Build::Release | Build::Sources => "",
        };
        let part = |part: &Part| NotShown {
            what: part.what.to_owned(),
            verified_here: false,
            reason: part.reason.to_owned(),
        };
        let result = LaneResult {
            lane: lane.to_owned(),
            stamp: self.run.stamp.to_string(),
            success: outcome.is_ok(),
            error: outcome.as_ref().err().map(|error| format!("{error:#}")),
            command: format!("cargo xtask lane {lane}{flag}"),
            build: self.build,
            commit: self.commit,
            contracts: self
                .about
                .contracts
                .iter()
                .map(ToString::to_string)
                .collect(),
            vm_accelerator_mode: self.about.accelerator,
            scope_files: self.about.scopes.iter().map(scope_file).collect(),
            not_shown: self.about.not_shown.iter().map(part).collect(),
            versions: self.versions,
            started: self.run.started.format(&Rfc3339)?,
            seconds: seconds_since(self.began),
            steps: self.steps,
            artifacts: self.files,
            facts: self.facts,
        };
        schema::check(&serde_json::to_value(&result)?)?;
        let text = serde_json::to_string_pretty(&result)? + "\n";
        println!("{}", self.run.write_result(&text)?.display());
        Ok(())
    }
}

/// What a lane that builds binaries runs.
pub fn build_of(profile: Profile) -> Build {
    match profile {
        Profile::Dev => Build::Development,
        Profile::Release => Build::Release,
    }
}

fn scope_file(scope: &Scope) -> String {
    format!("{}-scope.txt", scope.name)
}

fn versions(about: &About, clients: Option<&Clients>) -> Result<Versions> {
    let version = |tool: &&str| Some(((*tool).to_owned(), clients?.version(tool).to_owned()));
    let kernel = "/proc/sys/kernel/osrelease";
    Ok(Versions {
        rustc: process::capture(Command::new("rustc").arg("--version"))?,
        kernel: fs::read_to_string(kernel)
            .context(kernel)?
            .trim()
            .to_owned(),
        clients: about.clients.iter().filter_map(version).collect(),
    })
}

/// To a thousandth.
fn seconds_since(began: Instant) -> f64 {
    (began.elapsed().as_secs_f64() * 1e3).round() / 1e3
}
