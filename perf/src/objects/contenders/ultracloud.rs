//! Our server: each PUT is durable. Beside others it has one shard, on one CPU, and everything else at
//! its defaults; a trial of it alone says what it wants.
#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::Contender;
use crate::objects::client::Client;
use crate::objects::site::{Access, Endpoint, Keys, Site};
use crate::process::{self, Process, SERVER_CPU, on_cpus};

pub(super) const NAME: &str = "ultracloud";

pub(super) const CONTENDER: Contender = Contender {
    name: NAME,
    optional: false,
    hint: "name its binary in ULTRACLOUD_BIN, or run `cargo xtask bench objects`",
    find: || super::in_environment("ULTRACLOUD_BIN"),
    start: |program, dir| Ok(Node::start(program, dir, &Setup::default())?.site),
};

/// How long a node may take to start, the recovery of many keys included.
const START_DEADLINE: Duration = Duration::from_mins(10);
/// How long a node may take to end its requests and write its last checkpoint.
const STOP_DEADLINE: Duration = Duration::from_mins(2);

/// How a node is started.
#[derive(Clone, Copy, Default)]
pub struct Setup<'a> {
    /// Where it runs.
    pub cpus: Cpus,
    /// Users beside root.
    pub users: &'a [(&'static str, Keys)],
}

/// The CPUs of a node.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub enum Cpus {
    /// One shard on the CPU of servers under load.
    #[default]
    One,
    /// All of them, and as many shards as it takes by default.
    All,
}

/// A running node of ours.
pub struct Node {
    /// The server.
    pub site: Site,
    /// Where its health and its metrics are.
    admin: SocketAddr,
    /// From the start of its process until it said that it serves.
    pub ready_after: Duration,
    /// From the start of its process.
    pub started: Instant,
}

impl Node {
    /// The binary, when the environment names it.
    pub fn find() -> Option<PathBuf> {
        (CONTENDER.find)()
    }

    /// Starts a node in `dir`, over the data that an earlier one has left there.
    pub fn start(program: &Path, dir: &Path, setup: &Setup<'_>) -> Result<Self> {
        let keys = super::throw_away_keys();
        let config = dir.join("node.toml");
        fs::write(&config, setup.config()).context("write the node's config")?;
        let mut command = on_cpus(&setup.cpus.list()?, program);
        command
            .arg("node")
            .arg("--data-dir")
            .arg(dir.join("data"))
            .arg("--config")
            .arg(&config)
            .args(["--s3-listen", "127.0.0.1:0"])
            .args(["--admin-listen", "127.0.0.1:0"])
            .env("ULTRACLOUD_ACCESS_KEY", &keys.access)
            .env("ULTRACLOUD_SECRET_KEY", &keys.secret)
            .env("RUST_LOG", "warn");
        let version = process::version(program, "--version");
        let started = Instant::now();
        let mut process = Process::start(NAME, &mut command, dir)?;
        let (address, admin) =
            process.until("printing its listeners", START_DEADLINE, |process| {
                Ok(listeners(&process.said()?))
            })?;
        process.until("becoming healthy", START_DEADLINE, |_| {
            let answer = Client::connect(admin)?.request("GET", "/readyz", b"")?;
            Ok((answer.status == 200).then_some(()))
        })?;
        let ready_after = started.elapsed();
        let site = Site {
            name: NAME,
            version: version.unwrap_or_else(|| "version unknown".to_owned()),
            endpoint: Endpoint {
                address,
                access: Access::Signed(keys),
            },
            list_keys_max: u32::MAX,
            process,
        };
        Ok(Self {
            site,
            admin,
            ready_after,
            started,
        })
    }

    /// Ends it cleanly: its requests are answered and its stores are closed.
    pub fn stop(self) -> Result<()> {
        self.site.process.stop(STOP_DEADLINE)
    }

    /// Ends it as a crash of its process would.
    pub fn kill(self) -> Result<()> {
        self.site.process.kill()
    }

    /// One of its metrics, summed over shards.
    pub fn metric(&self, name: &str) -> Result<u64> {
        let answer = Client::connect(self.admin)?.request("GET", "/metrics", b"")?;
        let text = String::from_utf8(answer.ok()?).context("metrics that are not UTF-8")?;
        metric(&text, name)
    }
}

impl Cpus {
    fn list(self) -> Result<String> {
        if self == Self::One {
            return Ok(SERVER_CPU.to_string());
        }
        let cpus = std::thread::available_parallelism().context("count the CPUs")?;
        Ok(format!("0-{}", cpus.get() - 1))
    }
}

impl Setup<'_> {
    fn config(&self) -> String {
        let mut text = String::new();
        if self.cpus == Cpus::One {
            text.push_str("[shards]\ncount = 1\n");
        }
        for (name, keys) in self.users {
            let Keys { access, secret } = keys;
            write!(
                text,
                "[[lightningstor.user]]\nname = \"{name}\"\naccess_key = \"{access}\"\n\
                 secret_key = \"{secret}\"\n"
            )
            .expect("writing to a string cannot fail");
        }
        text
    }
}

/// The sum of a metric's values in Prometheus text.
fn metric(text: &str, name: &str) -> Result<u64> {
    let values = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let labelled = rest.starts_with(['{', ' ']);
        labelled.then(|| rest.rsplit(' ').next().unwrap_or_default())
    });
    let values: Vec<u64> = values
        .map(|value| value.parse().with_context(|| format!("{name} is {value}")))
        .collect::<Result<_>>()?;
    anyhow::ensure!(!values.is_empty(), "the node has no metric {name}");
    Ok(values.iter().sum())
}

/// The addresses of S3 and admin in the line `listening s3=ADDR admin=ADDR`.
fn listeners(said: &str) -> Option<(SocketAddr, SocketAddr)> {
    let ended = &said[..=said.rfind('\n')?];
    let mut lines = ended.lines();
    let line = lines.find_map(|line| line.strip_prefix("listening "))?;
    let address = |name: &str| {
        let mut words = line.split_whitespace();
        words.find_map(|word| word.strip_prefix(name)?.parse().ok())
    };
    Some((address("s3=")?, address("admin=")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_summed_over_shards_and_a_longer_name_is_another() {
        let text = "# HELP uc_a A.\nuc_a{shard=\"0\"} 2\nuc_a{shard=\"1\"} 40\nuc_ab{shard=\"0\"} 9\nuc_c 1\n";
        assert_eq!(metric(text, "uc_a").unwrap(), 42);
        assert_eq!(metric(text, "uc_c").unwrap(), 1);
        assert!(metric(text, "uc_d").is_err());
    }

    #[test]
    fn the_config_names_the_users_and_leaves_the_rest_at_its_defaults() {
        assert_eq!(Setup::default().config(), "[shards]\ncount = 1\n");
        let keys = Keys {
            access: "A".into(),
            secret: "S".into(),
        };
        let setup = Setup {
            cpus: Cpus::All,
            users: &[("one", keys)],
        };
        assert_eq!(
            setup.config(),
            "[[lightningstor.user]]\nname = \"one\"\naccess_key = \"A\"\nsecret_key = \"S\"\n"
        );
    }

    #[test]
    fn the_listeners_are_found_once_their_line_is_whole() {
        let said = "made root credentials\nlistening s3=127.0.0.1:41 admin=127.0.0.1:42";
        assert_eq!(listeners(said), None);
        let (s3, admin) = listeners(&format!("{said}\n")).unwrap();
        assert_eq!((s3.port(), admin.port()), (41, 42));
        assert_eq!(listeners(""), None);
        assert_eq!(listeners("listening s3=nowhere admin=127.0.0.1:42\n"), None);
    }
}
