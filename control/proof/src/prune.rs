//! Removing old runs. Only directories with a stamp for a name, of lanes below the root, ever go.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::budget::bytes_below;
use crate::error::{Error, ErrorKind};
use crate::root::{Proof, WorkRoot, latest};
use crate::stamp::Stamp;

/// A run that goes, or went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pruned {
    /// Its lane.
    pub lane: String,
    /// Its name.
    pub stamp: String,
    /// What it takes, in bytes on disk.
    pub bytes: u64,
}

impl WorkRoot {
    /// The runs that go when each lane keeps its newest `keep`, and what its `latest` points to.
    ///
    /// # Errors
    /// When a lane's `latest` points elsewhere, as then nobody knows what may go; when a directory cannot
    /// be read.
    pub fn prunable(&self, keep: usize) -> Result<Vec<Pruned>, Error> {
        let mut gone = Vec::new();
        for proof in self.old(keep)? {
            gone.push(Pruned {
                bytes: bytes_below(&proof.dir)?,
                stamp: proof.stamp.as_str().to_owned(),
                lane: proof.lane,
            });
        }
        Ok(gone)
    }

    /// Removes them.
    ///
    /// # Errors
    /// As of [`WorkRoot::prunable`], before anything is removed; when one cannot be removed.
    pub fn prune(&self, keep: usize) -> Result<Vec<Pruned>, Error> {
        let gone = self.prunable(keep)?;
        let root = fs::canonicalize(self.dir()).map_err(Error::io("find", self.dir()))?;
        for one in &gone {
            let dir = self.dir().join(&one.lane).join(&one.stamp);
            inside(&root, &dir)?;
            fs::remove_dir_all(&dir).map_err(Error::io("remove", &dir))?;
        }
        Ok(gone)
    }

    fn old(&self, keep: usize) -> Result<Vec<Proof>, Error> {
        if self.dir().parent().is_none() {
            let what = "the work root is the root of the file system: nothing is removed there";
            return Err(Error::new(ErrorKind::OutOfPlace, what));
        }
        let mut old = Vec::new();
        for lane in self.lanes()? {
            self.check_latest(&lane)?;
            let proofs = self.proofs(&lane)?.into_iter().skip(keep);
            old.extend(proofs.filter(|proof| !proof.is_latest));
        }
        Ok(old)
    }

    fn check_latest(&self, lane: &str) -> Result<(), Error> {
        let dir = self.dir().join(lane);
        let names_a_run = |target: &OsString| target.to_str().and_then(Stamp::parse).is_some();
        match latest(&dir) {
            Some(target) if !names_a_run(&target) => {
                let target = Path::new(&target).display();
                let link = dir.join("latest");
                let link = link.display();
                let what = format!(
                    "{link} points to {target}, which is no run of the lane; point it to one or remove it"
                );
                Err(Error::new(ErrorKind::OutOfPlace, what))
            }
            _ => Ok(()),
        }
    }
}

/// Whether a directory really lies where its name has it.
fn inside(root: &Path, dir: &Path) -> Result<PathBuf, Error> {
    let real = fs::canonicalize(dir).map_err(Error::io("find", dir))?;
    if !real.starts_with(root) {
        let what = format!(
            "{} is really {}, outside of the work root",
            dir.display(),
            real.display()
        );
        return Err(Error::new(ErrorKind::OutOfPlace, what));
    }
    Ok(real)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::os::unix::fs::symlink;

    use time::macros::datetime;

    use super::*;

    /// A root with some runs of two lanes, each with a file of 8 KiB.
    fn root(runs: u8) -> (tempfile::TempDir, WorkRoot) {
        let dir = tempfile::tempdir().unwrap();
        let root = WorkRoot::at(&dir.path().join("work")).unwrap();
        for second in 0..runs {
            for lane in ["a", "b"] {
                let time =
                    datetime!(2026-11-26 09:15:00 UTC) + time::Duration::seconds(i64::from(second));
                let run = root.begin_at(lane, time).unwrap();
                fs::write(run.dir.join("file"), [7; 8192]).unwrap();
            }
        }
        (dir, root)
    }

    fn stamps(root: &WorkRoot, lane: &str) -> BTreeSet<String> {
        let proofs = root.proofs(lane).unwrap();
        proofs.iter().map(|proof| proof.stamp.to_string()).collect()
    }

    fn named(stamps: &[&str]) -> BTreeSet<String> {
        stamps.iter().map(|stamp| (*stamp).to_owned()).collect()
    }

    #[test]
    fn the_newest_stay_and_what_latest_points_to() {
        let (_dir, root) = root(5);
        let link = root.dir().join("a/latest");
        fs::remove_file(&link).unwrap();
        symlink("20261126T091501Z", &link).unwrap();
        let before = root.usage().unwrap();
        assert_eq!(before.lanes.len(), 2);
        assert_eq!(before.lanes[0].proofs, 5);
        assert!(before.lanes[0].bytes >= 5 * 8192, "{before:?}");
        let gone = root.prune(2).unwrap();
        assert_eq!(gone.len(), 2 + 3);
        assert!(gone.iter().all(|one| one.bytes >= 8192), "{gone:?}");
        let kept = ["20261126T091501Z", "20261126T091503Z", "20261126T091504Z"];
        assert_eq!(stamps(&root, "a"), named(&kept));
        assert_eq!(stamps(&root, "b"), named(&kept[1..]));
        assert!(root.usage().unwrap().bytes < before.bytes);
        assert!(root.prune(2).unwrap().is_empty());
        root.prune(0).unwrap();
        assert_eq!(stamps(&root, "b"), named(&kept[2..]), "latest stays");
    }

    #[test]
    fn what_has_no_stamp_or_is_a_link_is_left_alone() {
        let (dir, root) = root(2);
        let outside = dir.path().join("outside");
        fs::create_dir_all(outside.join("20200101T000000Z")).unwrap();
        symlink(&outside, root.dir().join("linked-lane")).unwrap();
        symlink(
            outside.join("20200101T000000Z"),
            root.dir().join("a/20200101T000000Z"),
        )
        .unwrap();
        fs::create_dir(root.dir().join("a/notes")).unwrap();
        fs::write(root.dir().join("a/20200102T000000Z"), "a file").unwrap();
        let gone = root.prune(1).unwrap();
        assert_eq!(gone.len(), 2, "{gone:?}");
        assert!(outside.join("20200101T000000Z").is_dir());
        assert!(root.dir().join("a/notes").is_dir());
        assert!(root.dir().join("a/20200102T000000Z").is_file());
        assert!(root.dir().join("a/20200101T000000Z").is_symlink());
    }

    #[test]
    fn nothing_goes_when_latest_points_out_of_its_lane() {
        let (dir, root) = root(3);
        let link = root.dir().join("b/latest");
        fs::remove_file(&link).unwrap();
        symlink(dir.path(), &link).unwrap();
        let error = root.prune(1).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutOfPlace);
        assert!(error.to_string().contains("b/latest points to"), "{error}");
        assert_eq!(stamps(&root, "a").len(), 3, "the other lane is whole");
        assert_eq!(stamps(&root, "b").len(), 3);
        let all = WorkRoot::at(Path::new("/")).unwrap();
        assert_eq!(all.prune(1).unwrap_err().kind(), ErrorKind::OutOfPlace);
    }

    #[test]
    fn a_directory_that_is_really_elsewhere_is_refused() {
        let (dir, root) = root(1);
        let outside = dir.path().join("outside");
        fs::create_dir(&outside).unwrap();
        let link = root.dir().join("a/link");
        symlink(&outside, &link).unwrap();
        let error = inside(&fs::canonicalize(root.dir()).unwrap(), &link).unwrap_err();
        assert!(
            error.to_string().contains("outside of the work root"),
            "{error}"
        );
    }
}
