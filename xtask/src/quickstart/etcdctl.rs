//! ChainFire's part of the quickstart: etcd's own command line against the node.

use std::io::Write;
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::show::Show;
use crate::process;

/// Keys that are put before the kill.
const KEYS: usize = 20;
const PREFIX: &str = "/quickstart/";

/// etcdctl at one member.
pub struct Etcdctl {
    endpoint: String,
    named: String,
}

/// What was acknowledged.
pub struct Acknowledged {
    revision: u64,
}

impl Etcdctl {
    /// etcdctl at a member that serves here.
    pub fn new(endpoint: SocketAddr) -> Result<Self> {
        let mut version = Command::new("etcdctl");
        let version = process::capture(version.arg("version").env("ETCDCTL_API", "3"))?;
        let version = version.lines().next().unwrap_or_default();
        let number = version.rsplit(' ').next().unwrap_or_default();
        Ok(Self {
            endpoint: endpoint.to_string(),
            named: format!("etcdctl {number}"),
        })
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("etcdctl");
        command
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.endpoint])
            .args(args);
        command
    }

    fn json(&self, args: &[&str]) -> Result<Value> {
        let mut command = self.command(args);
        let said = process::capture(command.args(["-w", "json"]))?;
        serde_json::from_str(&said).with_context(|| format!("etcdctl said no JSON: {said}"))
    }

    /// Puts keys, and changes one only if it is as it was read.
    pub fn drive(&self, show: &mut Show) -> Result<Acknowledged> {
        let what = "keys of the coordination store, and compare-and-swap";
        show.step(what, &self.named, || {
            for number in 0..KEYS {
                let key = format!("{PREFIX}{number:02}");
                process::capture(&mut self.command(&["put", &key, "first"]))?;
            }
            let swap = format!("val(\"{PREFIX}00\") = \"first\"\n\nput {PREFIX}00 second\n\n\n");
            let first = self.txn(&swap)?;
            ensure!(first.starts_with("SUCCESS"), "a true comparison: {first}");
            let again = self.txn(&swap)?;
            ensure!(again.starts_with("FAILURE"), "a false comparison: {again}");
            let revision = revision(&self.json(&["get", PREFIX, "--prefix"])?)?;
            let result = format!("{KEYS} keys at revision {revision}");
            Ok((Acknowledged { revision }, result))
        })
    }

    fn txn(&self, text: &str) -> Result<String> {
        let mut command = self.command(&["txn"]);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start etcdctl")?;
        let mut input = child.stdin.take().context("etcdctl takes no input")?;
        input.write_all(text.as_bytes())?;
        drop(input);
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "etcdctl txn: {}", output.status);
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Finds after a crash what was acknowledged before it, at the same revision.
    pub fn read_back(&self, acknowledged: &Acknowledged, show: &mut Show) -> Result<()> {
        let what = "after the crash every key is there, at its revision";
        show.step(what, &self.named, || {
            let answer = self.json(&["get", PREFIX, "--prefix"])?;
            let found = answer["kvs"].as_array().map_or(0, Vec::len);
            let revision = revision(&answer)?;
            ensure!(
                found == KEYS && revision == acknowledged.revision,
                "{found} keys at revision {revision}; {KEYS} at {} were acknowledged",
                acknowledged.revision
            );
            Ok(((), format!("{found} keys at revision {revision}")))
        })
    }
}

fn revision(answer: &Value) -> Result<u64> {
    let revision = answer["header"]["revision"].as_u64();
    revision.with_context(|| format!("an answer without a revision: {answer}"))
}
