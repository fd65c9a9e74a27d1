//! The files that the checks look at: those that git tracks or would track.
//!
//! Read once, so that a check is a pure function. A file that is not UTF-8 has no text; the checks
//! of text pass it by.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

use anyhow::{Context, Result};

use super::rust::RustFile;
use crate::workspace::Workspace;

/// One file: its path from the root, its text, and its syntax when it is Rust.
pub struct SourceFile {
    /// With `/` between its parts.
    pub path: String,
    /// Empty when the file is not UTF-8.
    pub text: String,
    /// For `.rs` files.
    pub rust: Option<RustFile>,
}

/// Everything that is checked.
pub struct Tree {
    files: Vec<SourceFile>,
    top: BTreeSet<String>,
}

/// Something wrong at a place.
#[derive(Debug, PartialEq, Eq)]
pub struct Finding {
    /// From the root of the tree.
    pub path: String,
    /// From 1.
    pub line: usize,
    /// What is wrong and, where it is not plain, what to do.
    pub what: String,
}

impl Finding {
    /// A finding in `file`.
    pub fn new(path: &str, line: usize, what: impl Into<String>) -> Self {
        Self {
            path: path.to_owned(),
            line,
            what: what.into(),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.what)
    }
}

impl Tree {
    /// Reads the tree from a checkout.
    pub fn load(workspace: &Workspace) -> Result<Self> {
        let root = workspace.root();
        let listed = workspace.git_files(&["--cached", "--others", "--exclude-standard"])?;
        let paths: BTreeSet<&str> = listed.iter().map(String::as_str).collect();
        let mut files = Vec::new();
        for path in paths {
            let on_disk = root.join(path);
            if on_disk.is_file() {
                let bytes =
                    std::fs::read(&on_disk).with_context(|| format!("cannot read {path}"))?;
                files.push(SourceFile::new(
                    path,
                    String::from_utf8(bytes).unwrap_or_default(),
                ));
            }
        }
        let mut top = BTreeSet::new();
        for entry in root
            .read_dir()
            .context("cannot list the root of the tree")?
        {
            top.insert(entry?.file_name().to_string_lossy().into_owned());
        }
        Ok(Self { files, top })
    }

    /// A tree from memory, for the tests of the checks.
    #[cfg(test)]
    pub fn of(files: &[(&str, &str)]) -> Self {
        let first = |path: &str| path.split('/').next().unwrap_or_default().to_owned();
        Self {
            files: files
                .iter()
                .map(|(path, text)| SourceFile::new(path, (*text).into()))
                .collect(),
            top: files.iter().map(|(path, _)| first(path)).collect(),
        }
    }

    /// All files, ordered by path.
    pub fn files(&self) -> &[SourceFile] {
        &self.files
    }

    /// The Rust files, with their syntax.
    pub fn rust_files(&self) -> impl Iterator<Item = (&SourceFile, &RustFile)> {
        self.files
            .iter()
            .filter_map(|file| Some((file, file.rust.as_ref()?)))
    }

    /// The text of a file.
    pub fn text(&self, path: &str) -> Option<&str> {
        self.files
            .iter()
            .find(|file| file.path == path)
            .map(|file| file.text.as_str())
    }

    /// Whether a path is a file or a directory of the tree.
    pub fn contains(&self, path: &str) -> bool {
        let below = format!("{path}/");
        path.is_empty()
            || self
                .files
                .iter()
                .any(|file| file.path == path || file.path.starts_with(&below))
    }

    /// The names beside the root's Cargo.toml, also those that git ignores.
    pub fn top(&self) -> &BTreeSet<String> {
        &self.top
    }
}

impl SourceFile {
    fn new(path: &str, text: String) -> Self {
        let mut file = Self {
            path: path.to_owned(),
            text,
            rust: None,
        };
        if file.has_extension("rs") {
            file.rust = Some(RustFile::parse(path, &file.text));
        }
        file
    }

    /// Whether its name ends so, after a dot.
    pub fn has_extension(&self, wanted: &str) -> bool {
        Path::new(&self.path)
            .extension()
            .is_some_and(|extension| extension == wanted)
    }

    /// The lines with their numbers, from 1.
    pub fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text
            .lines()
            .enumerate()
            .map(|(index, line)| (index + 1, line))
    }
}
