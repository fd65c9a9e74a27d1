//! PostgreSQL under Patroni, as processes: one node of the `patroni-failover` lane.
//!
//! PostgreSQL refuses to run as root. Where the lane does, both run in a user namespace in which that user
//! is called `postgres`: they see what the lane sees, a checkout and a cache below `/root` included.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::members::DEADLINE;
use crate::process::{self, Running};

const USER: &str = "postgres";
/// Where Debian keeps PostgreSQL, each version in a directory of its own.
const VERSIONS: &str = "/usr/lib/postgresql";
const POSTGRES_PORT: u16 = 25_432;
const REST_PORT: u16 = 28_008;
/// Rows that a writer would write if nobody ended it.
const ROWS_MAX: u64 = 100_000;

/// What all nodes have in common.
pub struct Place {
    /// Configuration, and what the nodes say.
    pub logs: PathBuf,
    /// Databases.
    pub data: PathBuf,
    /// The programs of PostgreSQL.
    pub postgresql: PathBuf,
    /// The programs of Patroni.
    pub patroni: PathBuf,
    /// The address of the run.
    pub host: String,
    /// ChainFire's clients' addresses.
    pub endpoints: Vec<String>,
}

/// The programs of the newest PostgreSQL that is installed.
pub fn newest() -> Result<PathBuf> {
    let entries = fs::read_dir(VERSIONS).with_context(|| format!("cannot read {VERSIONS}"))?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let newest = names.filter_map(|name| name.parse::<u32>().ok()).max();
    let newest = newest.with_context(|| format!("{VERSIONS} has no version"))?;
    Ok(Path::new(VERSIONS).join(newest.to_string()).join("bin"))
}

/// A node: Patroni, and the PostgreSQL that it runs. Both are killed when it is dropped.
pub struct Postgres {
    /// Its name in the cluster.
    pub name: &'static str,
    host: String,
    port: u16,
    config: PathBuf,
    data: PathBuf,
    logs: PathBuf,
    postgresql: PathBuf,
    patroni: PathBuf,
    process: Option<Running>,
    starts: u32,
}

impl Postgres {
    /// A node that does not run yet.
    pub fn new(place: &Place, name: &'static str, number: u16) -> Result<Self> {
        let node = Self {
            name,
            host: place.host.clone(),
            port: POSTGRES_PORT + number,
            config: place.logs.join(format!("{name}.yml")),
            data: place.data.join(name),
            logs: place.logs.clone(),
            postgresql: place.postgresql.clone(),
            patroni: place.patroni.clone(),
            process: None,
            starts: 0,
        };
        fs::write(
            &node.config,
            node.configuration(&place.endpoints, REST_PORT + number),
        )
        .with_context(|| format!("cannot write {}", node.config.display()))?;
        Ok(node)
    }

    /// Synchronous replication: what a client was told is on both nodes while both run. Flushes are
    /// left on; only making a database does without.
    fn configuration(&self, endpoints: &[String], rest: u16) -> String {
        let Self {
            name, host, port, ..
        } = self;
        let (data, bin) = (self.data.display(), self.postgresql.display());
        let hosts = endpoints.join(",");
        format!(
            "scope: proof
name: {name}
restapi: {{listen: '{host}:{rest}', connect_address: '{host}:{rest}'}}
etcd3: {{hosts: '{hosts}', protocol: http}}
bootstrap:
  dcs:
    ttl: 30
    loop_wait: 2
    retry_timeout: 10
    synchronous_mode: true
    postgresql: {{use_pg_rewind: true}}
  initdb: [{{encoding: UTF8}}, {{locale: C}}, data-checksums, no-sync]
postgresql:
  listen: '{host}:{port}'
  connect_address: '{host}:{port}'
  data_dir: '{data}'
  bin_dir: '{bin}'
  pgpass: '{data}.pgpass'
  authentication:
    superuser: {{username: postgres, password: secret}}
    replication: {{username: replicator, password: secret}}
  parameters: {{unix_socket_directories: '', shared_buffers: 32MB, max_connections: 20}}
  pg_hba:
  - host all all 127.0.0.0/8 scram-sha-256
  - host replication replicator 127.0.0.0/8 scram-sha-256
"
        )
    }

    /// Starts Patroni, which starts PostgreSQL; what they say goes into `NAME-N.log`. Patroni is told to
    /// stop when this process ends, and stops PostgreSQL.
    pub fn start(&mut self) -> Result<()> {
        self.starts += 1;
        let mut command = Command::new("unshare");
        if process::capture(Command::new("id").arg("-u"))? == "0" {
            command.arg("--user");
            command.args(["--map-user", USER, "--map-group", USER]);
        }
        command.args(["--", "setpriv", "--pdeathsig", "TERM", "--"]);
        command.arg(self.patroni.join("python"));
        command.args(["-m", "patroni"]).arg(&self.config);
        self.process = Some(Running::start(&mut command, &self.log())?);
        Ok(())
    }

    fn log(&self) -> PathBuf {
        self.logs.join(format!("{}-{}.log", self.name, self.starts))
    }

    /// What Patroni and PostgreSQL have said since the last start.
    pub fn said(&self) -> Result<String> {
        let said = fs::read(self.log()).with_context(|| format!("{} has no log", self.name))?;
        Ok(String::from_utf8_lossy(&said).into_owned())
    }

    /// An error if Patroni was started and has ended by itself.
    pub fn check(&mut self) -> Result<()> {
        if let Some(process) = &mut self.process
            && !process.is_running()?
        {
            let said = self.said()?;
            bail!(
                "Patroni of {} has ended:\n{}",
                self.name,
                process::tail(&said, 10)
            );
        }
        Ok(())
    }

    /// Kills Patroni and PostgreSQL, as a power cut of their machine would.
    pub fn kill(&mut self) -> Result<()> {
        self.process = None;
        let Some(pid) = self.postmaster() else {
            return Ok(());
        };
        process::capture(Command::new("kill").args(["-KILL", &pid]))?;
        let gone = process::until(DEADLINE, || Ok(self.postmaster().is_none().then_some(())))?;
        gone.with_context(|| format!("PostgreSQL {pid} does not end"))
    }

    /// The process of PostgreSQL, if it runs in this node's directory.
    fn postmaster(&self) -> Option<String> {
        let file = fs::read_to_string(self.data.join("postmaster.pid")).ok()?;
        let pid = file.lines().next()?.trim().to_owned();
        let within = fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
        (within == self.data).then_some(pid)
    }

    /// `patronictl` with this node's configuration.
    pub fn ctl(&self, args: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command
            .args(["--signal=KILL", &DEADLINE.as_secs().to_string()])
            .arg(self.patroni.join("patronictl"))
            .arg("-c")
            .arg(&self.config)
            .args(args);
        command
    }

    /// psql at this node, as the superuser; it ends at the first error.
    fn psql(&self) -> Command {
        let mut command = Command::new(self.postgresql.join("psql"));
        command
            .env("PGPASSWORD", "secret")
            .env("PGCONNECT_TIMEOUT", "5")
            .args(["-h", &self.host, "-p", &self.port.to_string()])
            .args(["-U", "postgres", "-d", "postgres", "-XAtq"])
            .args(["-v", "ON_ERROR_STOP=1"]);
        command
    }

    /// Runs a statement; what it gives.
    pub fn ask(&self, statement: &str) -> Result<String> {
        let limit = format!("set statement_timeout = {}", DEADLINE.as_millis());
        process::capture(self.psql().args(["-c", &limit, "-c", statement]))
    }

    /// Asks until a statement gives this.
    pub fn gives(&self, statement: &str, wanted: &str) -> Result<()> {
        let mut last = String::new();
        let found = process::until(DEADLINE, || {
            last = self
                .ask(statement)
                .unwrap_or_else(|error| format!("{error:#}"));
            Ok((last == wanted).then_some(()))
        })?;
        match found {
            Some(()) => Ok(()),
            None => bail!("{}: {statement} gives {last}, not {wanted}", self.name),
        }
    }

    /// The rows that this node has.
    pub fn rows(&self) -> Result<BTreeSet<u64>> {
        Ok(numbers(&self.ask("select number from rows")?).collect())
    }

    /// Begins to write rows from a number on, one transaction each, in one session.
    pub fn write(&self, first: u64) -> Result<Rows> {
        let statements = self.data.with_file_name(format!("rows-{first}.sql"));
        let said = self.logs.join(format!("rows-{first}.log"));
        let mut text = String::new();
        for number in first..first + ROWS_MAX {
            // The pause keeps the writer at work for as long as a story goes on.
            writeln!(
                text,
                "insert into rows select {number} from pg_sleep(0.01) returning number;"
            )?;
        }
        fs::write(&statements, text)?;
        let process = Running::start(self.psql().arg("-f").arg(&statements), &said)?;
        Ok(Rows { process, said })
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // The error was reported by whoever came before, or there is nothing to end.
        self.kill().ok();
    }
}

/// A writer of rows at work.
pub struct Rows {
    process: Running,
    said: PathBuf,
}

impl Rows {
    /// The rows that were acknowledged so far.
    fn acknowledged(&self) -> Result<BTreeSet<u64>> {
        Ok(numbers(whole(&fs::read_to_string(&self.said)?)).collect())
    }

    /// Waits until so many more are acknowledged.
    pub fn progress(&mut self, rows: usize) -> Result<()> {
        let wanted = self.acknowledged()?.len() + rows;
        let reached = process::until(DEADLINE, || {
            let reached = self.acknowledged()?.len() >= wanted;
            ensure!(
                reached || self.process.is_running()?,
                "the writer has ended: {}",
                process::tail(&fs::read_to_string(&self.said)?, 3)
            );
            Ok(reached.then_some(()))
        })?;
        reached.with_context(|| format!("{rows} rows were not acknowledged in {DEADLINE:?}"))
    }

    /// Waits until it has lost its server; the rows that were acknowledged.
    pub fn lost(mut self) -> Result<BTreeSet<u64>> {
        let ended = process::until(DEADLINE, || Ok((!self.process.is_running()?).then_some(())))?;
        ended.context("the writer outlived its server")?;
        self.acknowledged()
    }

    /// Ends it; the rows that were acknowledged.
    pub fn finish(self) -> Result<BTreeSet<u64>> {
        let Self { process, said } = self;
        drop(process);
        Ok(numbers(whole(&fs::read_to_string(said)?)).collect())
    }
}

/// Without a last line that has no end: it may be cut off.
fn whole(text: &str) -> &str {
    text.rfind('\n').map_or("", |end| &text[..end])
}

/// The lines that are numbers.
fn numbers(text: &str) -> impl Iterator<Item = u64> + '_ {
    text.lines().filter_map(|line| line.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_without_an_end_does_not_count() {
        assert_eq!(whole("1\n2\n3"), "1\n2");
        assert_eq!(whole("1"), "");
    }

    #[test]
    fn rows_are_the_lines_that_are_numbers() {
        let said = "1\n2\npsql:rows.sql:3: server closed the connection\n17\n";
        assert_eq!(numbers(said).collect::<Vec<_>>(), [1, 2, 17]);
    }
}
