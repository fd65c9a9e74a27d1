//! `cargo xtask tidy`: what this repository promises about its own shape, checked.
//!
//! Each check is a pure function from the [`Tree`] to findings; none of them writes. A finding is
//! an error with a place. A note is worth reading and fails nothing.

mod adr;
mod fences;
mod heads;
mod layers;
mod links;
pub mod markers;
mod paths;
mod rust;
mod sizes;
mod top;
mod tree;

use std::process::ExitCode;

use anyhow::Result;

pub use self::tree::{Finding, SourceFile, Tree};
use crate::workspace::Workspace;

type Check = fn(&Tree) -> Vec<Finding>;

const CHECKS: [(&str, Check); 9] = [
    ("layering", layers::check),
    ("fences", fences::check),
    ("sizes", sizes::check),
    ("file heads", heads::check),
    ("unfinished markers", markers::check),
    ("top level", top::check),
    ("machine paths", paths::check),
    ("links", links::check),
    ("dependency record", adr::check),
];

/// Checks the tree of the workspace, prints `path:line: what`, and a closing summary.
pub fn run(workspace: &Workspace) -> Result<ExitCode> {
    let tree = Tree::load(workspace)?;
    for note in sizes::notes(&tree) {
        println!("note: {note}");
    }
    let mut findings_count = 0;
    for (name, check) in CHECKS {
        for finding in check(&tree) {
            println!("{finding} [{name}]");
            findings_count += 1;
        }
    }
    let summary = format!(
        "tidy: {} files, {} checks",
        tree.files().len(),
        CHECKS.len()
    );
    if findings_count == 0 {
        println!("{summary}, nothing found");
        return Ok(ExitCode::SUCCESS);
    }
    println!("{summary}, {findings_count} findings");
    Ok(ExitCode::FAILURE)
}
