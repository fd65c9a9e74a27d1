//! Who takes part, and how each is started: on its own loopback port, over its own directory below
//! the run's, with default settings but for the ones named here.
//!
//! A contender that is not installed is missing, which is no error; one that does not start is.
#![forbid(unsafe_code)]

mod garage;
mod nginx;
mod s3s;
mod ultracloud;

use std::ffi::OsStr;
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::site::{Keys, Site};
use crate::proc;
use crate::process::{Process, SERVER_CPU};

pub use ultracloud::{Cpus, Node, Setup};

/// Our name in the report.
pub const OURS: &str = ultracloud::NAME;
/// The static file server's name.
pub const NGINX: &str = nginx::NAME;
/// Whom a contender without limits is compared with, where nginx takes no part: the first that does.
pub const PEERS: [&str; 4] = [nginx::NAME, garage::NAME, garage::NAME_UNSYNCED, s3s::NAME];

/// How long a server may take to answer after its start.
const START_DEADLINE: Duration = Duration::from_mins(1);

/// A contender as it starts.
pub struct Contender {
    /// Its name in the report and on the command line.
    pub name: &'static str,
    /// Whether a strict run goes on without it.
    pub optional: bool,
    /// What to do when it is missing.
    pub hint: &'static str,
    find: fn() -> Option<PathBuf>,
    start: fn(&Path, &Path) -> Result<Site>,
}

/// Everyone who can take part, in the order of the report.
pub const CONTENDERS: [Contender; 5] = [
    ultracloud::CONTENDER,
    nginx::CONTENDER,
    s3s::CONTENDER,
    garage::CONTENDER,
    garage::CONTENDER_UNSYNCED,
];

impl Contender {
    /// Starts it in a directory of its own below `dir`; nothing when it is not installed.
    pub fn start(&self, dir: &Path) -> Result<Option<Site>> {
        let Some(program) = (self.find)() else {
            return Ok(None);
        };
        let dir = dir.join(self.name);
        fs::create_dir(&dir).with_context(|| format!("make {}", dir.display()))?;
        let site = (self.start)(&program, &dir)
            .with_context(|| format!("start {} ({})", self.name, program.display()))?;
        proc::check_pinned(site.process.id(), SERVER_CPU)
            .with_context(|| format!("pin {}", self.name))?;
        Ok(Some(site))
    }
}

/// A program that the environment names; an empty value names none.
fn in_environment(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable)
        .filter(|value| value.as_os_str() != OsStr::new(""))
        .map(PathBuf::from)
}

/// Waits until something listens at the address.
fn listening(process: &mut Process, address: SocketAddr) -> Result<()> {
    let what = format!("listening on {address}");
    process.until(&what, START_DEADLINE, |_| {
        Ok(TcpStream::connect(address).is_ok().then_some(()))
    })
}

/// The keys of a run's servers, which live as long as the run and listen on loopback only.
fn throw_away_keys() -> Keys {
    Keys {
        access: "PERFOBJECTSACCESSKEY".to_owned(),
        secret: "perfobjectssecretkeyperfobjectssecretkey".to_owned(),
    }
}
