//! `ultractl volume` against a node, for stories that give volumes to guests.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use guest::Disk;
use serde_json::Value;

use crate::process;

/// Whose volumes, by which program.
pub struct VolumeCtl {
    cli: PathBuf,
    url: String,
    token: PathBuf,
}

impl VolumeCtl {
    /// Of the node whose admin endpoint is `url` and whose files are in `data`.
    pub fn new(cli: &Path, url: String, data: &Path) -> VolumeCtl {
        VolumeCtl {
            cli: cli.to_owned(),
            url,
            token: data.join("root-token"),
        }
    }

    /// What `ultractl volume ... -o json` answers.
    pub fn ask(&self, args: &[&str]) -> Result<Value> {
        let mut command = Command::new(&self.cli);
        command
            .args(["volume", "--endpoint", &self.url, "-o", "json"])
            .arg("--token-file")
            .arg(&self.token)
            .args(args);
        let said = process::capture(&mut command)?;
        serde_json::from_str(&said).with_context(|| format!("ultractl said no JSON: {said}"))
    }

    /// Attaches a volume with the queues that a [`guest::Machine`] has: what was answered, and the disk.
    pub fn attach(&self, name: &str, more: &[&str]) -> Result<(Value, Disk)> {
        let mut args = vec!["attach", name, "--queues", "2"];
        args.extend_from_slice(more);
        let made = self.ask(&args)?;
        let socket = made["attachment"]["socket"].as_str();
        let disk = Disk::new(name, socket.context("no socket")?);
        Ok((made, disk))
    }
}
