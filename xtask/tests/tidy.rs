//! `cargo xtask tidy` from outside: over a small tree it prints places and sets its exit status.
#![allow(
    clippy::unwrap_used,
    reason = "a test's own steps that fail are failures"
)]

use std::path::Path;
use std::process::{Command, Output};

fn write(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

/// A workspace with one crate, in a git of its own, that tidy finds nothing in.
fn small_tree() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    write(
        root,
        "Cargo.toml",
        "[workspace]\nmembers = [\"shards\"]\nresolver = \"3\"\n",
    );
    write(
        root,
        "shards/Cargo.toml",
        "[package]\nname = \"shards\"\nedition = \"2024\"\n",
    );
    write(
        root,
        "shards/src/lib.rs",
        "//! Owns nothing.\n#![forbid(unsafe_code)]\n",
    );
    write(root, "README.md", "[a crate](shards/src/lib.rs)\n");
    let ratchet = "files_past_600_lines = 0\nfunctions_past_70_lines = 0\n";
    write(root, "xtask/ratchet.toml", ratchet);
    write(root, ".gitignore", "/target\n");
    let git = Command::new("git")
        .args(["init", "--quiet"])
        .current_dir(root)
        .status()
        .unwrap();
    assert!(git.success());
    dir
}

fn tidy(root: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.arg("tidy").current_dir(root).output().unwrap()
}

#[test]
fn a_tidy_tree_passes() {
    let tree = small_tree();
    let output = tidy(tree.path());
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}");
    assert_eq!(said, "tidy: 6 files, 9 checks, nothing found\n");
}

#[test]
fn findings_are_places_and_fail() {
    let tree = small_tree();
    write(
        tree.path(),
        "README.md",
        "[a crate](shards)\n[gone](docs/GONE.md)\n",
    );
    write(
        tree.path(),
        "shards/src/lib.rs",
        "//! Owns nothing.\nmod odd;\n",
    );
    write(
        tree.path(),
        "shards/src/odd.rs",
        "//! Odd.\nunsafe fn a() {}\n",
    );
    write(tree.path(), "scripts/run", "true\n");
    let output = tidy(tree.path());
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    for place in [
        "README.md:2: ",
        "shards/src/lib.rs:1: ",
        "shards/src/odd.rs:2: ",
        "scripts:1: ",
    ] {
        assert!(
            said.lines().any(|line| line.starts_with(place)),
            "{place} in {said}"
        );
    }
    assert!(said.ends_with("4 findings\n"), "{said}");
}

#[test]
fn ignored_files_are_not_judged_and_deleted_ones_are_not_missed() {
    let tree = small_tree();
    write(tree.path(), "target/odd.rs", "no head\n");
    write(tree.path(), "gone.rs", "no head\n");
    let git = Command::new("git")
        .args(["add", "gone.rs"])
        .current_dir(tree.path())
        .status();
    assert!(git.unwrap().success());
    std::fs::remove_file(tree.path().join("gone.rs")).unwrap();
    assert!(tidy(tree.path()).status.success());
}
