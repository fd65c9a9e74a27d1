//! What a lane leaves: a directory of answers and one `result.json`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::process;
use crate::workspace::{Profile, Workspace};

/// What no lane on processes of one machine shows.
const SCOPE: &str = "processes on loopback of one machine, no virtual machines: contracts that ask for KVM are not claimed";

/// The artifacts of one run.
pub struct Artifacts {
    lane: &'static str,
    profile: Profile,
    dir: PathBuf,
    commit: String,
    steps: Vec<Value>,
    files: Vec<String>,
    not_shown: &'static [&'static str],
    started: Instant,
}

impl Artifacts {
    /// Makes the run's directory and points `latest` to it.
    pub fn create(workspace: &Workspace, lane: &'static str, profile: Profile) -> Result<Self> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
        let stamp = format!("{}", now.as_secs());
        let root = workspace.root().join("work").join(lane);
        let dir = root.join(&stamp);
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let latest = root.join("latest");
        if latest.is_symlink() {
            fs::remove_file(&latest)?;
        }
        std::os::unix::fs::symlink(&stamp, &latest)
            .with_context(|| format!("cannot link {}", latest.display()))?;
        let mut git = Command::new("git");
        git.arg("-C")
            .arg(workspace.root())
            .args(["describe", "--always", "--dirty"]);
        Ok(Self {
            lane,
            profile,
            dir,
            commit: process::capture(&mut git).unwrap_or_else(|_| "unknown".to_owned()),
            steps: Vec::new(),
            files: Vec::new(),
            not_shown: &[],
            started: Instant::now(),
        })
    }

    /// Names what belongs to the lane's contract and is not shown by this run.
    pub fn leaves_out(&mut self, parts: &'static [&'static str]) {
        self.not_shown = parts;
    }

    /// Where the artifacts lie.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Keeps an answer as `NAME.json`.
    pub fn keep(&mut self, name: &str, answer: &Value) -> Result<()> {
        let file = format!("{name}.json");
        let text = serde_json::to_string_pretty(answer)?;
        fs::write(self.dir.join(&file), text + "\n")
            .with_context(|| format!("cannot write {file}"))?;
        self.files.push(file);
        Ok(())
    }

    /// Runs a step of the story and notes how it ended.
    pub fn step<T>(&mut self, name: &str, run: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        eprintln!("{}: {name}", self.lane);
        let started = Instant::now();
        let outcome = run(self).with_context(|| format!("step {name}"));
        self.steps.push(json!({
            "step": name,
            "success": outcome.is_ok(),
            "seconds": (started.elapsed().as_secs_f64() * 1e3).round() / 1e3,
        }));
        outcome
    }

    /// Writes `result.json` and says where it is.
    pub fn finish(&self, outcome: &Result<()>) -> Result<()> {
        let (build, flag) = match self.profile {
            Profile::Dev => ("development", " --dev"),
            Profile::Release => ("release", ""),
        };
        let result = json!({
            "lane": self.lane,
            "success": outcome.is_ok(),
            "error": outcome.as_ref().err().map(|error| format!("{error:#}")),
            "command": format!("cargo xtask lane {}{flag}", self.lane),
            "build": build,
            "commit": self.commit,
            "vm_accelerator_mode": "none",
            "scope": SCOPE,
            "not_shown": self.not_shown,
            "seconds": (self.started.elapsed().as_secs_f64() * 1e3).round() / 1e3,
            "steps": self.steps,
            "artifacts": self.files,
        });
        let path = self.dir.join("result.json");
        fs::write(&path, serde_json::to_string_pretty(&result)? + "\n")
            .with_context(|| format!("cannot write {}", path.display()))?;
        println!("{}", path.display());
        Ok(())
    }
}
