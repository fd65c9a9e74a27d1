//! `cargo xtask work-root` from outside, on work roots of its own. Contracts WRB-1, WRB-2.
#![allow(
    clippy::unwrap_used,
    reason = "a test's own steps that fail are failures"
)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output};

/// A work root with some proofs of two lanes, 64 KiB each.
fn work_root() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for lane in ["durability-proof", "patroni-failover"] {
        let lane = dir.path().join("work").join(lane);
        for minute in 10..14 {
            let run = lane.join(format!("20261126T09{minute}00Z"));
            fs::create_dir_all(&run).unwrap();
            fs::write(run.join("answers.json"), vec![7; 64 << 10]).unwrap();
        }
        symlink("20261126T091300Z", lane.join("latest")).unwrap();
    }
    dir
}

fn xtask(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_xtask"))
        .arg("work-root")
        .args(args)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("ULTRACLOUD_WORK_ROOT", dir.join("work"))
        .env_remove("ULTRACLOUD_WORK_BUDGET_GIB")
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn status_tells_each_lane_and_how_to_make_room() {
    let dir = work_root();
    let output = xtask(dir.path(), &["status"]);
    assert!(output.status.success());
    let said = said(&output);
    for part in [
        "budget     20480.0 MiB",
        "durability-proof (4 proofs)",
        "patroni-failover (4 proofs)",
        "prune-proof-logs 2` removes 4 proofs",
    ] {
        assert!(said.contains(part), "{part} in {said}");
    }
}

#[test]
fn enforce_fails_past_the_budget() {
    let dir = work_root();
    assert!(xtask(dir.path(), &["enforce"]).status.success());
    let past = xtask(dir.path(), &["enforce", "--budget-gib", "0"]);
    assert_eq!(past.status.code(), Some(1));
    assert!(said(&past).contains("used "), "it says by what");
    let none = xtask(&dir.path().join("none"), &["enforce", "--budget-gib", "0"]);
    assert!(
        none.status.success(),
        "a root that is not there takes nothing"
    );
}

#[test]
fn pruning_keeps_the_newest_of_each_lane() {
    let dir = work_root();
    let output = xtask(dir.path(), &["prune-proof-logs", "2"]);
    assert!(output.status.success());
    assert!(
        said(&output).contains("removed 4 proofs"),
        "{}",
        said(&output)
    );
    for lane in ["durability-proof", "patroni-failover"] {
        let lane = dir.path().join("work").join(lane);
        assert!(!lane.join("20261126T091100Z").exists());
        assert!(lane.join("20261126T091200Z").exists());
        assert!(lane.join("latest/answers.json").exists());
    }
    assert_eq!(
        xtask(dir.path(), &["prune-proof-logs", "0"]).status.code(),
        Some(2)
    );
}

#[test]
fn pruning_refuses_a_latest_that_points_out() {
    let dir = work_root();
    let link = dir.path().join("work/durability-proof/latest");
    fs::remove_file(&link).unwrap();
    symlink("/", &link).unwrap();
    let output = xtask(dir.path(), &["prune-proof-logs", "1"]);
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("latest points to /"), "{error}");
    assert!(
        dir.path()
            .join("work/patroni-failover/20261126T091000Z")
            .exists()
    );
}
