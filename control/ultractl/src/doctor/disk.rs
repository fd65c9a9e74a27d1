//! Room on the disk of the work root, and whether the work root keeps its budget.

use std::path::Path;

use anyhow::{Context, Result};
use proof::{Budget, Usage, WorkRoot};

use super::Check;

const GIB: u64 = 1 << 30;
/// Below it a lane's run does not fit.
const FREE_MIN: u64 = 2 * GIB;
/// Below it the quickstart and the larger lanes do not fit one beside the other.
const FREE_WANTED: u64 = 10 * GIB;

/// Both.
pub fn check() -> Result<[Check; 2]> {
    let root = WorkRoot::locate(&std::env::current_dir()?)?;
    let disk = existing(root.dir());
    let stat = rustix::fs::statvfs(disk);
    let stat = stat.with_context(|| format!("cannot ask for the room at {}", disk.display()))?;
    let free = stat.f_bavail * stat.f_frsize;
    Ok([
        room(disk, free),
        work_root(root.dir(), &root.usage()?, Budget::of(None)?),
    ])
}

/// The directory itself, or the nearest above it that is there.
fn existing(dir: &Path) -> &Path {
    dir.ancestors()
        .find(|dir| dir.is_dir())
        .unwrap_or(Path::new("/"))
}

fn room(disk: &Path, free: u64) -> Check {
    let found = format!("{} free at {}", gib(free), disk.display());
    let next = "remove what is not needed there, or name a larger disk by ULTRACLOUD_WORK_ROOT";
    match free {
        ..FREE_MIN => Check::fail("disk", found, next),
        FREE_MIN..FREE_WANTED => Check::warn("disk", found, next),
        FREE_WANTED.. => Check::ok("disk", found),
    }
}

fn work_root(root: &Path, usage: &Usage, budget: Budget) -> Check {
    let root = root.display();
    let (used, most) = (gib(usage.bytes), gib(budget.bytes));
    let runs: usize = usage.lanes.iter().map(|lane| lane.proofs).sum();
    let found = format!("{used} of {most} used by {runs} proofs at {root}");
    if usage.bytes > budget.bytes {
        let next = "`cargo xtask work-root status` says by what, `cargo xtask work-root prune-proof-logs 2` \
                    removes old proofs";
        return Check::warn("work root", found, next);
    }
    Check::ok("work root", found)
}

/// In GiB, to a tenth.
fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / GIB as f64)
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    #[test]
    fn room_is_judged_by_what_lanes_take() {
        let at = Path::new("/srv");
        assert_eq!(room(at, GIB).state, State::Fail);
        assert_eq!(room(at, 3 * GIB).state, State::Warn);
        assert_eq!(
            room(at, 12 * GIB + GIB / 2),
            Check::ok("disk", "12.5 GiB free at /srv")
        );
        let usage = Usage {
            lanes: Vec::new(),
            other_bytes: 3 * GIB,
            bytes: 3 * GIB,
        };
        let budget = |gib: u64| Budget { bytes: gib * GIB };
        assert_eq!(work_root(at, &usage, budget(3)).state, State::Ok);
        assert_eq!(work_root(at, &usage, budget(2)).state, State::Warn);
        assert_eq!(existing(Path::new("/not/there")), Path::new("/"));
    }
}
