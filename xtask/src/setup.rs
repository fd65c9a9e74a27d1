//! `cargo xtask setup`: checks and installs what the other commands need, and says so line by line.
//!
//! Only what is missing is installed, so that a second run changes nothing and needs no network.
//! Every tool is shown to run before it counts. System packages need root: without it the exact
//! command is printed and nothing is changed.

mod bpf;
mod debian;
mod python;
mod vm;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

pub use bpf::{TARGET as BPF_TARGET, Toolchain};

use crate::process;
use crate::workspace::Workspace;

/// The nextest that the tests are known to run under; any installed one is taken.
const NEXTEST_VERSION: &str = "0.9.143";
/// The newest s3s-fs that builds with this toolchain; the object benchmark's peer.
const S3S_FS_VERSION: &str = "0.14.1";

/// How much is set up.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// What building, testing and the quickstart need.
    Clients,
    /// Also the peers and load generators of the benchmarks.
    Bench,
    /// Also PostgreSQL and Patroni, for the lane that fails them over.
    Failover,
    /// Also what runs in the guests of the lane about volumes.
    Volumes,
    /// Also the backends and the clients of the lane about FiberLB.
    Balancing,
}

/// The tools after set-up, by name.
pub struct Clients {
    cache: PathBuf,
    versions: BTreeMap<&'static str, String>,
    bpf: Toolchain,
}

impl Clients {
    /// The directory of the pinned Python clients: `aws`, `s3cmd`, and `python` with boto3.
    pub fn bin(&self) -> PathBuf {
        python::CLIENTS.bin(&self.cache)
    }

    /// The programs of the venv with Patroni; there after a set-up for failing over.
    pub fn patroni(&self) -> PathBuf {
        python::PATRONI.bin(&self.cache)
    }

    /// The directory of the kernel that guests boot in tests.
    pub fn vm(&self) -> PathBuf {
        vm::dir(&self.cache)
    }

    /// What builds programs for the kernel.
    pub fn bpf(&self) -> &Toolchain {
        &self.bpf
    }

    /// The s3s-fs server binary.
    pub fn s3s_fs(&self) -> PathBuf {
        s3s_fs(&self.cache)
    }

    /// The version that a tool reported, for tables.
    pub fn version(&self, tool: &str) -> &str {
        self.versions.get(tool).map_or("?", String::as_str)
    }
}

/// One thing was found or installed: its name, its version, why it is here.
struct Report<'a> {
    out: &'a mut dyn Write,
    versions: BTreeMap<&'static str, String>,
}

#[derive(Clone, Copy)]
enum State {
    Found,
    Installed,
}

impl Report<'_> {
    fn line(&mut self, state: State, name: &'static str, version: &str, why: &str) -> Result<()> {
        let state = match state {
            State::Found => "ok",
            State::Installed => "installed",
        };
        writeln!(self.out, "{state:<9}  {name:<13}  {version:<18}  {why}")?;
        self.versions.insert(name, version.to_owned());
        Ok(())
    }
}

/// Sets up and reports on stdout.
pub fn run(workspace: &Workspace, scope: Scope) -> Result<Clients> {
    set_up(workspace, scope, &mut std::io::stdout().lock())
}

/// Sets up and reports on stderr, for commands whose stdout is a result.
pub fn run_as_progress(workspace: &Workspace, scope: Scope) -> Result<Clients> {
    set_up(workspace, scope, &mut std::io::stderr().lock())
}

fn set_up(workspace: &Workspace, scope: Scope, out: &mut dyn Write) -> Result<Clients> {
    let cache = crate::cache_dir()?;
    std::fs::create_dir_all(&cache)
        .with_context(|| format!("cannot create the cache {}", cache.display()))?;
    let lock = File::create(cache.join("setup.lock"))?;
    lock.lock()
        .context("cannot lock the cache against another setup")?;
    let mut report = Report {
        out,
        versions: BTreeMap::new(),
    };
    debian::ensure(scope, &mut report)?;
    ensure_nextest(workspace, &mut report)?;
    python::CLIENTS.ensure(&cache, &mut report)?;
    vm::ensure(&cache, &mut report)?;
    let bpf = bpf::ensure(workspace, &cache, &mut report)?;
    match scope {
        Scope::Clients | Scope::Volumes | Scope::Balancing => {}
        Scope::Bench => ensure_s3s_fs(workspace, &cache, &mut report)?,
        Scope::Failover => python::PATRONI.ensure(&cache, &mut report)?,
    }
    let versions = report.versions;
    Ok(Clients {
        cache,
        versions,
        bpf,
    })
}

fn ensure_nextest(workspace: &Workspace, report: &mut Report) -> Result<()> {
    let installed = || version_of(workspace.cargo().args(["nextest", "--version"]));
    let mut install = workspace.cargo();
    install.args([
        "install",
        "--locked",
        "cargo-nextest",
        "--version",
        NEXTEST_VERSION,
    ]);
    ensure_built(
        "cargo-nextest",
        "runs the tests",
        installed,
        &mut install,
        report,
    )
}

fn ensure_s3s_fs(workspace: &Workspace, cache: &Path, report: &mut Report) -> Result<()> {
    let binary = s3s_fs(cache);
    let installed = || version_of(Command::new(&binary).arg("--version"));
    let mut install = workspace.cargo();
    install.args(["install", "s3s-fs", "--version", S3S_FS_VERSION]);
    install
        .args(["--features", "binary", "--locked", "--root"])
        .arg(cache.join("s3s-fs"));
    ensure_built(
        "s3s-fs",
        "a peer of the object benchmark",
        installed,
        &mut install,
        report,
    )
}

fn s3s_fs(cache: &Path) -> PathBuf {
    cache.join("s3s-fs/bin/s3s-fs")
}

fn ensure_built(
    name: &'static str,
    why: &str,
    installed: impl Fn() -> Option<String>,
    install: &mut Command,
    report: &mut Report,
) -> Result<()> {
    if let Some(version) = installed() {
        return report.line(State::Found, name, &version, why);
    }
    eprintln!("building {name} ({why}); this takes minutes, once");
    process::run_as_progress(install)?;
    let version = installed().with_context(|| format!("{name} was installed but does not run"))?;
    report.line(State::Installed, name, &version, why)
}

/// The version that a successful run of the command prints.
fn version_of(command: &mut Command) -> Option<String> {
    let said = process::capture(command).ok()?;
    Some(version_in(&said).unwrap_or("?").to_owned())
}

/// The first thing in a text that reads like a version.
fn version_in(text: &str) -> Option<&str> {
    text.split_whitespace().find_map(|word| {
        let start = word.find(|c: char| c.is_ascii_digit())?;
        let version = word[start..].trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
        version.contains('.').then_some(version)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_found_in_what_tools_really_print() {
        for (said, version) in [
            (
                "aws-cli/1.46.3 Python/3.11.7 Linux/6.18 botocore/1.44.5",
                "1.46.3",
            ),
            ("s3cmd version 2.4.0", "2.4.0"),
            ("rclone v1.60.1-DEV\n- os/version: debian 12", "1.60.1-DEV"),
            (
                "wrk debian/4.1.0-3+b2 [epoll] Copyright (C) 2012",
                "4.1.0-3+b2",
            ),
            ("nginx version: nginx/1.22.1", "1.22.1"),
            ("cc (Debian 12.2.0-14) 12.2.0", "12.2.0-14"),
            ("cargo-nextest 0.9.143 (60fa45f63 2026-08-04)", "0.9.143"),
        ] {
            assert_eq!(version_in(said), Some(version), "{said}");
        }
        assert_eq!(version_in("no number"), None);
    }

    #[test]
    fn a_report_line_names_state_tool_version_and_reason() {
        let mut out = Vec::new();
        let mut report = Report {
            out: &mut out,
            versions: BTreeMap::new(),
        };
        report
            .line(State::Installed, "curl", "7.88.1", "speaks HTTP")
            .unwrap();
        assert_eq!(report.versions["curl"], "7.88.1");
        let line = String::from_utf8(out).unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(words, ["installed", "curl", "7.88.1", "speaks", "HTTP"]);
    }
}
