//! Members of a ChainFire cluster as processes, and the command line that operators use on them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use super::{announce, answers};
use crate::process::{self, Running};

/// How long anything may take that the story waits for.
pub const DEADLINE: Duration = Duration::from_mins(1);

const CLIENT_PORT: u16 = 23_790;
const PEER_PORT: u16 = 23_800;
const ADMIN_PORT: u16 = 23_810;

/// A member: its ports and directory, and its process while it runs.
pub struct Member {
    /// Its name.
    pub name: &'static str,
    /// Where clients are served.
    pub client: String,
    /// Where other members are served.
    pub peer: String,
    admin: String,
    dir: PathBuf,
    process: Option<Running>,
    starts: u32,
}

/// Whether the cluster is made by the start.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum State {
    New,
    Existing,
}

impl Member {
    /// A member that does not run yet, with an empty directory. The run has a loopback address of its
    /// own, made of its process's number, so that ports which all members must know are free.
    pub fn new(name: &'static str, number: u16, dir: &Path) -> Result<Self> {
        let pid = std::process::id();
        let (a, b, c) = (1 + (pid >> 16) % 250, (pid >> 8) & 255, 1 + pid % 250);
        let at = |first: u16| format!("127.{a}.{b}.{c}:{}", first + number);
        let dir = dir.join(name);
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        Ok(Self {
            name,
            client: at(CLIENT_PORT),
            peer: at(PEER_PORT),
            admin: at(ADMIN_PORT),
            dir,
            process: None,
            starts: 0,
        })
    }

    /// `name=URL`, as the initial cluster is written.
    pub fn entry(&self) -> String {
        format!("{}=http://{}", self.name, self.peer)
    }

    /// Starts the process and waits until it listens; what it says goes into `NAME-N.log`.
    pub fn start(&mut self, server: &Path, cluster: &str, state: State) -> Result<()> {
        self.starts += 1;
        let state = match state {
            State::New => "new",
            State::Existing => "existing",
        };
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .arg(server)
            .args(["node", "--role", "chainfire", "--admin-listen", &self.admin])
            .arg("--data-dir")
            .arg(self.dir.join("data"))
            .args(["--chainfire-name", self.name])
            .args(["--chainfire-listen", &self.client])
            .args(["--chainfire-peer-listen", &self.peer])
            .args(["--chainfire-initial-cluster", cluster])
            .args(["--chainfire-initial-cluster-state", state]);
        let log = self.dir.join(format!("{}-{}.log", self.name, self.starts));
        let mut process = Running::start(&mut command, &log)?;
        announce::admin(&mut process, &log, DEADLINE)
            .with_context(|| format!("{} does not start", self.name))?;
        self.process = Some(process);
        Ok(())
    }

    /// Kills the process, as a power cut of its machine would.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Sends a signal to its process.
    pub fn signal(&self, name: &str) -> Result<()> {
        let pid = self.id()?.to_string();
        process::run(Command::new("kill").args([&format!("-{name}"), &pid]))
    }

    /// Its process, as the kernel knows it.
    pub fn id(&self) -> Result<u32> {
        let process = self.process.as_ref();
        let process = process.with_context(|| format!("{} does not run", self.name))?;
        Ok(process.id())
    }

    /// The status and the words of its health check.
    pub fn health(&self) -> Result<(String, String)> {
        let url = format!("http://{}/healthz", self.admin);
        let mut curl = Command::new("curl");
        curl.args([
            "--silent",
            "--max-time",
            "10",
            "--write-out",
            "%{http_code}",
        ]);
        let said = process::capture(curl.arg(url))?;
        let (words, code) = said.split_at(said.len().saturating_sub(3));
        Ok((code.to_owned(), words.trim().to_owned()))
    }

    /// Kills it and empties its directory of everything but its logs.
    pub fn wipe(&mut self) -> Result<()> {
        self.kill();
        fs::remove_dir_all(self.dir.join("data"))
            .with_context(|| format!("cannot empty {}", self.dir.display()))
    }

    /// Whether its process was started and not ended.
    pub fn runs(&self) -> bool {
        self.process.is_some()
    }
}

/// `ultractl chainfire` with some members as its endpoints.
pub struct Ctl<'a> {
    cli: &'a Path,
    endpoints: String,
}

impl<'a> Ctl<'a> {
    /// Asks one member.
    pub fn at(cli: &'a Path, client: &str) -> Self {
        Self {
            cli,
            endpoints: format!("http://{client}"),
        }
    }

    /// Asks the first of these members that answers.
    pub fn of(cli: &'a Path, members: &[&Member]) -> Self {
        let urls: Vec<String> = members
            .iter()
            .map(|member| format!("http://{}", member.client))
            .collect();
        Self {
            cli,
            endpoints: urls.join(","),
        }
    }

    /// The command, to be run by others; past a deadline it is killed.
    pub fn command(&self, seconds: u64, args: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command
            // Nobody's contexts.
            .env("ULTRACTL_CONFIG", "/dev/null")
            .args(["--signal=KILL", &seconds.to_string()])
            .arg(self.cli)
            .args(["-o", "json", "chainfire", "--endpoints", &self.endpoints])
            .args(args);
        command
    }

    /// Its answer, which is one JSON document.
    pub fn ask(&self, args: &[&str]) -> Result<Value> {
        let mut command = self.command(DEADLINE.as_secs(), args);
        let said = process::capture(&mut command)?;
        serde_json::from_str(&said)
            .with_context(|| format!("`{}` said no JSON: {said}", process::shown(&command)))
    }

    /// Asks until the answer is the one that is waited for.
    pub fn until(
        &self,
        what: &str,
        args: &[&str],
        is: impl FnMut(&Value) -> bool,
    ) -> Result<Value> {
        let ask = || Ok(self.ask(args));
        answers::until(what, process::POLL_INTERVAL, DEADLINE, ask, is)
    }
}
