//! Clusters of ChainFire and of etcd, each of one or three members on loopback.
//!
//! All members run on one CPU with fsync on, whoever they are; the load runs on the other one.
#![forbid(unsafe_code)]

use std::fmt;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::proc;
use crate::process::{self, Process, SERVER_CPU, pinned};

/// Our name in the report.
pub const OURS: &str = "chainfire";
/// The peer's name in the report.
pub const ETCD: &str = "etcd";
/// How long a member may take to serve.
const START_DEADLINE: Duration = Duration::from_secs(30);
const MEMBER_NAMES: [&str; 3] = ["one", "two", "three"];

/// Who can serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// `ultracloud node` with the role chainfire, by this binary.
    Chainfire(PathBuf),
    /// Debian's etcd.
    Etcd(PathBuf),
}

impl Kind {
    /// Its name in the report.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Chainfire(_) => OURS,
            Self::Etcd(_) => ETCD,
        }
    }

    /// Those that are installed: ours where `ULTRACLOUD_BIN` names it.
    pub fn installed() -> Vec<Kind> {
        let ours = std::env::var_os("ULTRACLOUD_BIN").map(|path| Self::Chainfire(path.into()));
        let etcd = process::on_path("etcd").map(Self::Etcd);
        ours.into_iter().chain(etcd).collect()
    }

    /// What its binary says it is.
    pub fn version(&self) -> String {
        let (Self::Chainfire(program) | Self::Etcd(program)) = self;
        process::version(program, "--version").unwrap_or_else(|| "version unknown".to_owned())
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A running cluster. Dropping it kills its members.
pub struct Cluster {
    /// Who serves.
    pub name: &'static str,
    /// Where clients are served, member by member.
    pub endpoints: Vec<String>,
    members: Vec<Process>,
}

struct Place {
    name: &'static str,
    client: String,
    peer: String,
    admin: String,
}

impl Cluster {
    /// Starts a cluster of so many members, each in a directory of its own below `dir`, and waits
    /// until all of them answer.
    pub fn start(kind: &Kind, members: usize, dir: &Path) -> Result<Self> {
        ensure!(
            (1..=MEMBER_NAMES.len()).contains(&members),
            "{members} members"
        );
        let ports = free_ports(3 * members)?;
        let places: Vec<Place> = MEMBER_NAMES[..members]
            .iter()
            .zip(ports.chunks_exact(3))
            .map(|(name, ports)| Place {
                name,
                client: format!("127.0.0.1:{}", ports[0]),
                peer: format!("127.0.0.1:{}", ports[1]),
                admin: format!("127.0.0.1:{}", ports[2]),
            })
            .collect();
        let of_member = |place: &Place| format!("{}=http://{}", place.name, place.peer);
        let initial: Vec<String> = places.iter().map(of_member).collect();
        let initial = initial.join(",");
        let mut processes = Vec::new();
        for place in &places {
            let dir = dir.join(place.name);
            fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
            let mut command = command(kind, place, &initial, &dir);
            processes.push(Process::start(kind.name(), &mut command, &dir)?);
        }
        Ok(Self {
            name: kind.name(),
            endpoints: places
                .iter()
                .map(|place| format!("http://{}", place.client))
                .collect(),
            members: processes,
        })
    }

    /// Asks `probe` until it has an answer; a member's end or the deadline is an error.
    pub fn until<T>(&mut self, what: &str, mut probe: impl FnMut() -> Option<T>) -> Result<T> {
        let first = self.members.first_mut().context("no member was started")?;
        first.until(what, START_DEADLINE, |_| Ok(probe()))
    }

    /// CPU of all members so far.
    pub fn cpu(&self) -> Result<Duration> {
        let members = self.members.iter();
        members.map(|member| proc::tree_cpu(member.id())).sum()
    }

    /// The memory that its first member holds now, in bytes.
    pub fn memory(&self) -> Result<u64> {
        let first = self.members.first().context("no member was started")?;
        Ok(proc::memory(first.id())?.held)
    }

    /// The last words of its members, to be put behind an error.
    pub fn tail(&self) -> String {
        self.members.iter().map(Process::tail).collect()
    }
}

fn command(kind: &Kind, place: &Place, initial: &str, dir: &Path) -> Command {
    match kind {
        Kind::Chainfire(program) => {
            let mut command = pinned(SERVER_CPU, program);
            command
                .args([
                    "node",
                    "--role",
                    "chainfire",
                    "--admin-listen",
                    &place.admin,
                ])
                .arg("--data-dir")
                .arg(dir.join("data"))
                .args(["--chainfire-name", place.name])
                .args(["--chainfire-listen", &place.client])
                .args(["--chainfire-peer-listen", &place.peer])
                .args(["--chainfire-initial-cluster", initial])
                .env("RUST_LOG", "warn");
            command
        }
        Kind::Etcd(program) => {
            let mut command = pinned(SERVER_CPU, program);
            let (client, peer) = (
                format!("http://{}", place.client),
                format!("http://{}", place.peer),
            );
            command
                .args(["--name", place.name, "--log-level", "error"])
                .arg("--data-dir")
                .arg(dir.join("data"))
                .args(["--listen-client-urls", &client])
                .args(["--advertise-client-urls", &client])
                .args(["--listen-peer-urls", &peer])
                .args(["--initial-advertise-peer-urls", &peer])
                .args(["--initial-cluster", initial])
                .args(["--quota-backend-bytes", "8589934592"]);
            command
        }
    }
}

/// Ports that are free now. They were bound at the same time, so they differ.
fn free_ports(count: usize) -> Result<Vec<u16>> {
    let bind = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("bind a port of loopback");
    let listeners: Vec<TcpListener> = (0..count).map(|_| bind()).collect::<Result<_>>()?;
    listeners
        .iter()
        .map(|listener| Ok(listener.local_addr().context("ask for a port")?.port()))
        .collect()
}
