//! The work root's layout: lanes, runs, and the link to the newest.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use time::OffsetDateTime;

use crate::error::{Error, ErrorKind};
use crate::result::{FILE, LaneResult, Unusable};
use crate::stamp::{SAME_SECOND_MAX, Stamp};

/// Names the work root.
pub const ROOT_VARIABLE: &str = "ULTRACLOUD_WORK_ROOT";
/// The work root when nothing names it, below a directory of the caller's.
const DEFAULT: &str = "work";
/// The link to the newest run.
const LATEST: &str = "latest";

/// Where proof lanes leave what they have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkRoot {
    dir: PathBuf,
}

/// The directory of a run that has begun.
#[derive(Debug)]
pub struct RunDir {
    /// The run's name.
    pub stamp: Stamp,
    /// When it began.
    pub started: OffsetDateTime,
    /// Where its artifacts go.
    pub dir: PathBuf,
}

/// A run, as it lies there.
#[derive(Debug)]
pub struct Proof {
    /// Its lane.
    pub lane: String,
    /// Its name.
    pub stamp: Stamp,
    /// Its directory.
    pub dir: PathBuf,
    /// Whether its lane's `latest` points to it.
    pub is_latest: bool,
}

impl Proof {
    /// Reads how it ended.
    ///
    /// # Errors
    /// When it has no result, or one that is not whole.
    pub fn result(&self) -> Result<LaneResult, Unusable> {
        LaneResult::read(&self.dir)
    }
}

impl WorkRoot {
    /// What the environment names, else `work` below `base`.
    ///
    /// # Errors
    /// When there is no current directory to name it from.
    pub fn locate(base: &Path) -> Result<WorkRoot, Error> {
        let named = std::env::var_os(ROOT_VARIABLE).filter(|dir| !dir.is_empty());
        let dir = named.map_or_else(|| base.join(DEFAULT), PathBuf::from);
        WorkRoot::at(&dir)
    }

    /// At a directory, which need not be there.
    ///
    /// # Errors
    /// When there is no current directory to name it from.
    pub fn at(dir: &Path) -> Result<WorkRoot, Error> {
        let dir = std::path::absolute(dir).map_err(Error::io("name", dir))?;
        Ok(WorkRoot { dir })
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes the directory of a run that begins now, and points `latest` to it.
    ///
    /// # Errors
    /// When it cannot be made, or [`SAME_SECOND_MAX`] runs of the lane began in this second.
    pub fn begin(&self, lane: &str) -> Result<RunDir, Error> {
        self.begin_at(lane, OffsetDateTime::now_utc())
    }

    pub(crate) fn begin_at(&self, lane: &str, started: OffsetDateTime) -> Result<RunDir, Error> {
        let parent = self.dir.join(lane);
        fs::create_dir_all(&parent).map_err(Error::io("make", &parent))?;
        for nth in 1..=SAME_SECOND_MAX {
            let stamp = Stamp::at(started, nth);
            let dir = parent.join(stamp.as_str());
            match fs::create_dir(&dir) {
                Ok(()) => {
                    point_latest(&parent, &stamp)?;
                    return Ok(RunDir {
                        stamp,
                        started,
                        dir,
                    });
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Error::io("make", &dir)(error)),
            }
        }
        let what = format!("{SAME_SECOND_MAX} runs of {lane} began in one second; start it again");
        Err(Error::new(ErrorKind::OutOfPlace, what))
    }

    /// The lanes that have runs, by name. A root that is not there has none.
    ///
    /// # Errors
    /// When a directory cannot be read.
    pub fn lanes(&self) -> Result<Vec<String>, Error> {
        let mut lanes = Vec::new();
        for name in directories(&self.dir)? {
            if !self.proofs(&name)?.is_empty() {
                lanes.push(name);
            }
        }
        Ok(lanes)
    }

    /// The runs of a lane, the newest first. What has no stamp for a name is none.
    ///
    /// # Errors
    /// When the lane's directory cannot be read.
    pub fn proofs(&self, lane: &str) -> Result<Vec<Proof>, Error> {
        let parent = self.dir.join(lane);
        let latest = latest(&parent);
        let mut stamps: Vec<Stamp> = directories(&parent)?
            .iter()
            .filter_map(|name| Stamp::parse(name))
            .collect();
        stamps.sort_by(|a, b| b.cmp(a));
        let proof = |stamp: Stamp| Proof {
            lane: lane.to_owned(),
            dir: parent.join(stamp.as_str()),
            is_latest: latest.as_deref() == Some(OsStr::new(stamp.as_str())),
            stamp,
        };
        Ok(stamps.into_iter().map(proof).collect())
    }
}

impl RunDir {
    /// Writes the run's result, whole or not at all.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_result(&self, text: &str) -> Result<PathBuf, Error> {
        let path = self.dir.join(FILE);
        let unfinished = self.dir.join(".result.json.unfinished");
        fs::write(&unfinished, text).map_err(Error::io("write", &unfinished))?;
        fs::rename(&unfinished, &path).map_err(Error::io("write", &path))?;
        Ok(path)
    }
}

/// What a lane's `latest` names.
pub(crate) fn latest(lane: &Path) -> Option<std::ffi::OsString> {
    let target = fs::read_link(lane.join(LATEST)).ok()?;
    Some(target.into_os_string())
}

fn point_latest(lane: &Path, stamp: &Stamp) -> Result<(), Error> {
    // A link of its own name that is then renamed: whoever looks finds the old run or the new one.
    let beside = lane.join(format!(".latest-{stamp}"));
    let link = lane.join(LATEST);
    std::os::unix::fs::symlink(stamp.as_str(), &beside).map_err(Error::io("link", &beside))?;
    fs::rename(&beside, &link).map_err(Error::io("link", &link))
}

/// The names of the directories in a directory, sorted; links are none.
fn directories(dir: &Path) -> Result<Vec<String>, Error> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io("read", dir)(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(Error::io("read", dir))?;
        let kind = entry.file_type().map_err(Error::io("read", dir))?;
        if kind.is_dir()
            && let Some(name) = entry.file_name().to_str()
        {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    fn root() -> (tempfile::TempDir, WorkRoot) {
        let dir = tempfile::tempdir().unwrap();
        let root = WorkRoot::at(&dir.path().join("work")).unwrap();
        (dir, root)
    }

    #[test]
    fn two_runs_of_one_second_do_not_collide() {
        let (_dir, root) = root();
        let second = datetime!(2026-11-26 09:15:00 UTC);
        let first = root.begin_at("a-lane", second).unwrap();
        let other = root.begin_at("a-lane", second).unwrap();
        assert_ne!(first.dir, other.dir);
        let proofs = root.proofs("a-lane").unwrap();
        let seen: Vec<(&str, bool)> = proofs
            .iter()
            .map(|proof| (proof.stamp.as_str(), proof.is_latest))
            .collect();
        assert_eq!(
            seen,
            [("20261126T091500Z-02", true), ("20261126T091500Z", false)]
        );
        for _ in 2..SAME_SECOND_MAX {
            root.begin_at("a-lane", second).unwrap();
        }
        let error = root.begin_at("a-lane", second).unwrap_err();
        assert!(error.to_string().contains("in one second"), "{error}");
    }

    #[test]
    fn a_run_without_a_result_or_with_a_broken_one_is_told() {
        let (_dir, root) = root();
        let run = root.begin("a-lane").unwrap();
        let result = || root.proofs("a-lane").unwrap()[0].result();
        assert_eq!(result(), Err(Unusable::Missing));
        let written = run.write_result("{\"lane\": \"a-lane\"}").unwrap();
        assert_eq!(written, run.dir.join(FILE));
        let Err(Unusable::Broken(why)) = result() else {
            panic!("it was read");
        };
        assert!(why.contains("missing field"), "{why}");
        assert_eq!(root.lanes().unwrap(), ["a-lane"]);
    }

    #[test]
    fn a_root_that_is_not_there_is_empty() {
        let (_dir, root) = root();
        assert!(root.lanes().unwrap().is_empty());
        assert!(root.proofs("a-lane").unwrap().is_empty());
    }
}
