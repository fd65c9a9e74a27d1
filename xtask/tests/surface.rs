//! `cargo xtask lane supported-surface-guard` from outside: what it leaves of a tree that passes and of one
//! that does not. Contracts SSG-1, GEN-5, GEN-9, GEN-10.
#![allow(
    clippy::unwrap_used,
    reason = "a test's own steps that fail are failures"
)]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

/// A workspace with one crate, in a git of its own.
fn small_tree(code: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (path, text) in [
        (
            "Cargo.toml",
            "[workspace]\nmembers = [\"control/a\"]\nresolver = \"3\"\n",
        ),
        (
            "control/a/Cargo.toml",
            "[package]\nname = \"a\"\nedition = \"2024\"\n",
        ),
        ("control/a/src/lib.rs", code),
        ("README.md", "# A\n"),
        (".gitignore", "/work\n"),
    ] {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let git = Command::new("git")
        .args(["init", "--quiet"])
        .current_dir(dir.path())
        .status();
    assert!(git.unwrap().success());
    dir
}

fn lane(root: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_xtask"))
        .args(["lane", "supported-surface-guard"])
        .current_dir(root)
        .env_remove("ULTRACLOUD_WORK_ROOT")
        .output()
        .unwrap()
}

fn read(root: &Path, file: &str) -> String {
    let run = root.join("work/supported-surface-guard/latest");
    fs::read_to_string(run.join(file)).unwrap()
}

fn json(root: &Path, file: &str) -> Value {
    serde_json::from_str(&read(root, file)).unwrap()
}

#[test]
fn a_finished_tree_leaves_a_proof() {
    let tree = small_tree("//! Finished.\n");
    let output = lane(tree.path());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let result = json(tree.path(), "result.json");
    assert_eq!(result["success"], true);
    assert_eq!(result["vm_accelerator_mode"], "none");
    assert_eq!(result["files"], 5);
    assert_eq!(result["not_shown"][0]["verified_here"], false);
    assert!(read(tree.path(), "surface-scope.txt").contains("nothing is built or run"));
    let surface = json(tree.path(), "surface.json");
    assert_eq!(surface["guards"].as_array().unwrap().len(), 5);
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.trim_end().ends_with("result.json"), "{said}");
}

#[test]
fn an_unfinished_tree_fails_and_says_where() {
    let stub = concat!("Status::unimple", "mented(\"no\")");
    let wording = concat!("coming ", "soon");
    let code = format!(
        "//! It is {wording}.\nfn get() {{ {stub}; }}\nmod {};\n",
        concat!("netboot", "_base")
    );
    let tree = small_tree(&code);
    let output = lane(tree.path());
    assert_eq!(output.status.code(), Some(1));
    let result = json(tree.path(), "result.json");
    assert_eq!(result["success"], false);
    assert!(!result["error"].as_str().unwrap().is_empty());
    let surface = json(tree.path(), "surface.json");
    for (guard, place) in [
        ("unfinished-wording", "control/a/src/lib.rs:1: "),
        ("api-stubs", "control/a/src/lib.rs:2: "),
        ("archived-names", "control/a/src/lib.rs:3: "),
    ] {
        let guards = surface["guards"].as_array().unwrap();
        let found = guards.iter().find(|one| one["guard"] == guard).unwrap();
        let findings = found["findings"].as_str().unwrap();
        assert!(findings.contains(place), "{guard}: {findings}");
    }
}
