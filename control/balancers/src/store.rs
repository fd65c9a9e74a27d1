//! `balancers.json`: what a node's load balancers are, durably.
//!
//! Written to a temporary file, flushed, renamed, and the directory flushed; so the file is old or new.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use fiberlb_api::v1;
use serde::{Deserialize, Serialize};

use crate::model::Drain;
use crate::spec::{BackendKey, BalancerKey, Hosts};

const NAME: &str = "balancers.json";
const TEMPORARY: &str = "balancers.json.new";
const VERSION: u32 = 1;

/// What the file says.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    version: u32,
    /// Addresses of hosts, as they were when documents were applied.
    pub hosts: Hosts,
    /// All load balancers, with owner and set.
    pub balancers: Vec<v1::LoadBalancer>,
    /// Drains that go on.
    drains: Vec<KeptDrain>,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeptDrain {
    owner: String,
    balancer: String,
    pool: String,
    backend: String,
    deadline_unix_ms: Option<u64>,
}

impl Kept {
    /// What is to be kept.
    pub fn new<'a>(
        hosts: Hosts,
        balancers: Vec<v1::LoadBalancer>,
        drains: impl Iterator<Item = (&'a BackendKey, Drain)>,
    ) -> Kept {
        let drains = drains.map(|(key, drain)| KeptDrain {
            owner: key.balancer.owner.clone(),
            balancer: key.balancer.name.clone(),
            pool: key.pool.clone(),
            backend: key.name.clone(),
            deadline_unix_ms: drain.deadline_ms,
        });
        Kept {
            version: VERSION,
            hosts,
            balancers,
            drains: drains.collect(),
        }
    }

    /// Drains that go on.
    pub fn drains(&self) -> impl Iterator<Item = (BackendKey, Drain)> {
        self.drains.iter().map(|drain| {
            let key = BackendKey {
                balancer: BalancerKey {
                    owner: drain.owner.clone(),
                    name: drain.balancer.clone(),
                },
                pool: drain.pool.clone(),
                name: drain.backend.clone(),
            };
            let deadline_ms = drain.deadline_unix_ms;
            (key, Drain { deadline_ms })
        })
    }
}

/// The file, in its directory.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
}

impl Store {
    /// Makes the directory where there is none, and reads the file; blocks.
    ///
    /// # Errors
    /// When it cannot be read, or was not written by this program.
    pub fn open(dir: &Path) -> io::Result<(Store, Kept)> {
        use std::os::unix::fs::DirBuilderExt as _;
        let mut builder = std::fs::DirBuilder::new();
        let made = builder.recursive(true).mode(0o700).create(dir);
        made.map_err(|error| named(dir, &error))?;
        let path = dir.join(NAME);
        let store = Store {
            dir: dir.to_owned(),
        };
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok((store, Kept::default()));
            }
            Err(error) => return Err(named(&path, &error)),
        };
        let kept = parse(&text).map_err(|what| named(&path, &io::Error::other(what)))?;
        Ok((store, kept))
    }

    /// Writes the file, durably.
    ///
    /// # Errors
    /// When it cannot be written: then what was there before counts.
    pub async fn write(&self, kept: &Kept) -> io::Result<()> {
        let text = serde_json::to_vec_pretty(kept)?;
        let dir = self.dir.clone();
        let written = tokio::task::spawn_blocking(move || write(&dir, &text)).await;
        let written = written.map_err(io::Error::other).flatten();
        written.map_err(|error| named(&self.dir.join(NAME), &error))
    }
}

fn parse(text: &[u8]) -> Result<Kept, String> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let versioned: Versioned = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    if versioned.version != VERSION {
        let found = versioned.version;
        return Err(format!(
            "version {found} is not known; this program knows {VERSION}"
        ));
    }
    serde_json::from_slice(text).map_err(|error| error.to_string())
}

fn write(dir: &Path, text: &[u8]) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let temporary = dir.join(TEMPORARY);
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(&temporary)?;
    file.write_all(text)?;
    file.sync_all()?;
    std::fs::rename(&temporary, dir.join(NAME))?;
    std::fs::File::open(dir)?.sync_all()
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the first version has it; it must open for ever.
    const FIRST: &str = r#"{ "version": 1, "hosts": { "b.example": "10.0.0.1" },
        "balancers": [ { "name": "web", "owner": "root", "set": "default",
            "listeners": [ { "name": "http", "protocol": "tcp", "vip": "192.0.2.1", "port": 80, "pool": "web" } ],
            "pools": [ { "name": "web", "backends": [ { "name": "b1", "address": "b.example" } ] } ] } ],
        "drains": [ { "owner": "root", "balancer": "web", "pool": "web", "backend": "b1",
            "deadline_unix_ms": 5 } ] }"#;

    #[tokio::test]
    async fn a_file_of_the_first_version_is_read_and_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let (_, kept) = Store::open(dir.path()).unwrap();
        assert_eq!(kept, Kept::default());
        std::fs::write(dir.path().join(NAME), FIRST).unwrap();
        let (store, kept) = Store::open(dir.path()).unwrap();
        assert_eq!(kept.balancers[0].listeners[0].vip, "192.0.2.1");
        let drains: Vec<_> = kept.drains().collect();
        assert_eq!(drains[0].1.deadline_ms, Some(5));
        let again = Kept::new(
            kept.hosts.clone(),
            kept.balancers.clone(),
            drains.iter().map(|(key, drain)| (key, *drain)),
        );
        assert_eq!(again, kept);
        store.write(&again).await.unwrap();
        assert_eq!(Store::open(dir.path()).unwrap().1, kept);
    }

    #[test]
    fn damage_and_newer_versions_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        for (text, part) in [("{", NAME), (r#"{"version":2,"new":1}"#, "version 2")] {
            std::fs::write(&path, text).unwrap();
            let said = Store::open(dir.path()).unwrap_err().to_string();
            assert!(said.contains(NAME) && said.contains(part), "{said}");
        }
    }
}
