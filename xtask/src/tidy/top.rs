//! The top level: a few known names, dot-files, and nothing else (contract CARD-4).

use super::tree::{Finding, Tree};

const NAMES: [&str; 15] = [
    "Cargo.lock",
    "Cargo.toml",
    "README.md",
    "control",
    "docs",
    "engine",
    "netdp",
    "nix",
    "perf",
    "proto",
    "rust-toolchain.toml",
    "shards",
    "storage",
    "vmm",
    "xtask",
];

/// Made by tools; never tracked.
const IGNORED: [&str; 2] = ["target", "work"];

/// Names beside the root's Cargo.toml that do not belong there, and tracked build output.
pub fn check(tree: &Tree) -> Vec<Finding> {
    let known =
        |name: &str| name.starts_with('.') || NAMES.contains(&name) || IGNORED.contains(&name);
    let unknown = tree.top().iter().filter(|name| !known(name));
    let mut findings: Vec<Finding> = unknown
        .map(|name| Finding::new(name, 1, "does not belong at the top level"))
        .collect();
    for name in IGNORED.iter().filter(|name| tree.contains(name)) {
        findings.push(Finding::new(name, 1, "is output: git must ignore it"));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_names_and_dot_files_belong_to_the_top() {
        let tree = Tree::of(&[
            ("Cargo.toml", ""),
            (".ci/run", ""),
            ("engine/src/lib.rs", "//! x"),
        ]);
        assert_eq!(check(&tree), []);
    }

    #[test]
    fn other_names_and_tracked_output_are_found() {
        assert_eq!(
            check(&Tree::of(&[("scripts/run.sh", "")]))[0].path,
            "scripts"
        );
        assert_eq!(check(&Tree::of(&[("notes.md", "")]))[0].path, "notes.md");
        assert_eq!(
            check(&Tree::of(&[("target/debug/x", "")]))[0].path,
            "target"
        );
    }
}
