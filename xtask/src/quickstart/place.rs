//! Where a quickstart lives on disk: the node's data and log, and scratch for the clients.
//!
//! Throw-away places vanish at the end unless something failed or the node is kept. They lie on a
//! real disk, since the server bypasses the page cache and a gigabyte is put several times.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::process;

/// The large object, its copy in the node, its download, and the trees.
const FREE_GIB_MIN: u64 = 4;

/// The directories of one run.
pub struct Place {
    home: Home,
    scratch: TempDir,
    bucket_suffix: String,
}

enum Home {
    Given(PathBuf),
    ThrowAway(TempDir),
}

impl Place {
    /// Makes the directories and checks that there is room.
    pub fn prepare(dir: Option<&Path>) -> Result<Self> {
        let place = Self::make(dir)?;
        for dir in [place.home(), place.scratch()] {
            let disk = Disk::of(dir)?;
            if disk.free_gib < FREE_GIB_MIN {
                bail!(
                    "{} has {} GiB free, the quickstart needs {FREE_GIB_MIN}: set TMPDIR or \
                     pass --dir",
                    dir.display(),
                    disk.free_gib
                );
            }
        }
        Ok(place)
    }

    fn make(dir: Option<&Path>) -> Result<Self> {
        let home = match dir {
            Some(dir) => {
                std::fs::create_dir_all(dir)
                    .with_context(|| format!("cannot create {}", dir.display()))?;
                Home::Given(std::path::absolute(dir)?)
            }
            None => Home::ThrowAway(throw_away("ultracloud-quickstart-")?),
        };
        let scratch = throw_away("ultracloud-scratch-")?;
        let mut place = Self {
            home,
            scratch,
            bucket_suffix: String::new(),
        };
        if place.has_data() {
            place.bucket_suffix = format!("-{}", std::process::id());
        }
        std::fs::create_dir_all(place.data())?;
        Ok(place)
    }

    /// The node's `--data-dir`.
    pub fn data(&self) -> PathBuf {
        self.home().join("data")
    }

    /// What the node says.
    pub fn log(&self) -> PathBuf {
        self.home().join("server.log")
    }

    /// For inputs, downloads and the clients' own logs.
    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// Ends every bucket's name: empty in a new place, else what tells this run's buckets from
    /// those of earlier ones.
    pub fn bucket_suffix(&self) -> &str {
        &self.bucket_suffix
    }

    fn has_data(&self) -> bool {
        self.data()
            .read_dir()
            .is_ok_and(|mut entries| entries.next().is_some())
    }

    /// Leaves the node's data and log where they are; scratch goes.
    pub fn keep(self) {
        if let Home::ThrowAway(dir) = self.home {
            eprintln!("kept: {}", dir.keep().display());
        }
    }

    fn home(&self) -> &Path {
        match &self.home {
            Home::Given(dir) => dir,
            Home::ThrowAway(dir) => dir.path(),
        }
    }
}

fn throw_away(prefix: &str) -> Result<TempDir> {
    let mut parent = std::env::temp_dir();
    if Disk::of(&parent)?.kind == "tmpfs" {
        parent = crate::cache_dir()?;
        std::fs::create_dir_all(&parent)?;
    }
    tempfile::Builder::new()
        .prefix(prefix)
        .tempdir_in(&parent)
        .with_context(|| format!("cannot make a directory in {}", parent.display()))
}

#[derive(Debug, PartialEq, Eq)]
struct Disk {
    kind: String,
    free_gib: u64,
}

impl Disk {
    fn of(dir: &Path) -> Result<Self> {
        let said = process::capture(
            Command::new("df")
                .args(["--output=fstype,avail", "-k"])
                .arg(dir),
        )?;
        Self::parse(&said).with_context(|| format!("df says about {}: {said}", dir.display()))
    }

    /// Reads the second line of df: a type and free KiB.
    fn parse(said: &str) -> Option<Self> {
        let mut words = said.lines().nth(1)?.split_whitespace();
        let kind = words.next()?.to_owned();
        let free_kib: u64 = words.next()?.parse().ok()?;
        Some(Self {
            kind,
            free_gib: free_kib >> 20,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn df_is_read_by_its_second_line() {
        let disk = Disk::parse("Type     Avail\next4  83886080\n");
        assert_eq!(
            disk,
            Some(Disk {
                kind: "ext4".into(),
                free_gib: 80
            })
        );
        assert_eq!(Disk::parse("Type Avail\n"), None);
    }

    #[test]
    fn a_given_directory_stays_and_a_second_run_names_other_buckets() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::make(Some(dir.path())).unwrap();
        assert_eq!(place.bucket_suffix(), "");
        std::fs::write(place.data().join("x"), "x").unwrap();
        let scratch = place.scratch().to_owned();
        drop(place);
        assert!(!scratch.exists());
        let again = Place::make(Some(dir.path())).unwrap();
        assert!(again.data().join("x").exists());
        assert_ne!(again.bucket_suffix(), "");
    }
}
