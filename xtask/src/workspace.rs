//! The checkout and its cargo: where it is, and how a binary of it is built and found.
//!
//! Binaries are found through cargo's JSON messages, so that a target directory elsewhere works.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::process;

/// The checkout that the command was called in.
pub struct Workspace {
    root: PathBuf,
}

/// Which of cargo's profiles a binary is built with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// For tests.
    Dev,
    /// For measuring and for the quickstart.
    Release,
}

impl Workspace {
    /// Finds the workspace around the current directory.
    pub fn locate() -> Result<Self> {
        let manifest = process::capture(cargo().args([
            "locate-project",
            "--workspace",
            "--message-format",
            "plain",
        ]))?;
        let root = Path::new(&manifest)
            .parent()
            .context("the manifest has no directory")?;
        Ok(Self {
            root: root.to_owned(),
        })
    }

    /// The directory of the workspace's Cargo.toml.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A cargo command that runs in the checkout.
    pub fn cargo(&self) -> Command {
        let mut command = cargo();
        command.current_dir(&self.root);
        command
    }

    /// The files that git knows, from the root; `options` go to `git ls-files`.
    ///
    /// The checkout may belong to another user, as it does in containers.
    pub fn git_files(&self, options: &[&str]) -> Result<Vec<String>> {
        let mut command = Command::new("git");
        command
            .arg("-c")
            .arg(format!("safe.directory={}", self.root.display()));
        command
            .args(["ls-files", "-z"])
            .args(options)
            .current_dir(&self.root);
        let listed = process::capture(&mut command).context("git lists the files of the tree")?;
        let names = listed.split('\0').filter(|name| !name.is_empty());
        Ok(names.map(str::to_owned).collect())
    }

    /// Where cargo puts what it builds.
    pub fn target_dir(&self) -> Result<PathBuf> {
        let text =
            process::capture(
                self.cargo()
                    .args(["metadata", "--no-deps", "--format-version=1"]),
            )?;
        let metadata: Value = serde_json::from_str(&text).context("cargo metadata is not JSON")?;
        let dir = metadata["target_directory"].as_str();
        Ok(dir
            .context("cargo metadata names no target_directory")?
            .into())
    }

    /// Builds the server binary and gives its path.
    ///
    /// For tests the whole workspace is selected, so that features resolve as they do for the tests
    /// and nothing is compiled twice. A release has its own features only.
    pub fn build_server(&self, profile: Profile) -> Result<PathBuf> {
        self.build(profile, "ultracloud")
    }

    /// Builds a binary, which is called as its package is, and gives its path.
    pub fn build(&self, profile: Profile, binary: &str) -> Result<PathBuf> {
        let [path] = self.build_all(profile, [binary])?;
        Ok(path)
    }

    /// Builds several at once, with the features that they want together, and gives their paths.
    pub fn build_all<const N: usize>(
        &self,
        profile: Profile,
        binaries: [&str; N],
    ) -> Result<[PathBuf; N]> {
        let mut command = self.cargo();
        command.arg("build");
        for binary in binaries {
            command.args(["--bin", binary]);
        }
        match profile {
            Profile::Dev => {
                command.arg("--workspace");
            }
            Profile::Release => {
                command.arg("--release");
                for binary in binaries {
                    command.args(["--package", binary]);
                }
            }
        }
        command.arg("--message-format=json-render-diagnostics");
        let output = command
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .context("cannot start cargo build")?;
        if !output.status.success() {
            bail!(
                "`{}` ended with {}",
                process::shown(&command),
                output.status
            );
        }
        let said = String::from_utf8_lossy(&output.stdout);
        let mut paths = binaries.map(|_| PathBuf::new());
        for (path, binary) in paths.iter_mut().zip(binaries) {
            *path = executable(&said, binary)
                .with_context(|| format!("cargo built no binary named {binary}"))?;
        }
        Ok(paths)
    }
}

fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// The path of the binary `name` in cargo's stream of JSON messages.
fn executable(messages: &str, name: &str) -> Option<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["target"]["name"] == name)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_binary_is_found_among_cargos_messages() {
        let messages = r#"{"reason":"compiler-artifact","target":{"name":"engine"},"executable":null}
not json
{"reason":"compiler-artifact","target":{"name":"ultracloud"},"executable":"/t/debug/ultracloud"}
{"reason":"build-finished","success":true}"#;
        let found = executable(messages, "ultracloud");
        assert_eq!(found, Some(PathBuf::from("/t/debug/ultracloud")));
        assert_eq!(executable(messages, "engine"), None);
        assert_eq!(executable(messages, "absent"), None);
    }
}
