//! Trials: what is measured of our node alone, against bars of its own instead of peers.
//!
//! Every trial starts its own node over a directory of its own, with nothing else running, and
//! removes both at its end. A figure that was not shown to be what it says, as a quiet window in
//! which the server was not quiet, ends the run.
#![forbid(unsafe_code)]

mod compaction;
mod idle;
mod restart;
mod scale;
mod tenants;
mod tiny;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::ValueEnum;

use super::contenders::{Node, OURS, Setup};
use super::options::ObjectsArgs;
use super::script::{Body, Script};
use super::site::Endpoint;
use super::wrk::{self, Report};
use crate::report::{Limit, Peer, Row, Spread};

/// One trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Trial {
    /// Memory and CPU of a fresh node that nobody asks anything.
    Idle,
    /// GET of one tenant while another floods the shard.
    Tenants,
    /// GET while compaction runs.
    Compaction,
    /// Restart over a million keys, after a clean stop and after kill -9; with --large.
    Restart,
    /// Memory, GET and restart with ten million keys; with --scale.
    Scale,
}

impl Trial {
    fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Tenants => "tenants",
            Self::Compaction => "compaction",
            Self::Restart => "restart",
            Self::Scale => "scale",
        }
    }

    /// Runs it in a directory of its own below `parent`.
    pub fn run(
        self,
        args: &ObjectsArgs,
        program: &Path,
        wrk: &Path,
        parent: &Path,
    ) -> Result<Vec<Row>> {
        let name = self.name();
        let dir = parent.join(name);
        fs::create_dir(&dir).with_context(|| format!("make {}", dir.display()))?;
        eprintln!("trial: {name}");
        let lab = Lab {
            args,
            program,
            wrk,
            dir: &dir,
        };
        let rows = match self {
            Self::Idle => idle::run(&lab),
            Self::Tenants => tenants::run(&lab),
            Self::Compaction => compaction::run(&lab),
            Self::Restart => restart::run(&lab),
            Self::Scale => scale::run(&lab),
        };
        let rows = rows.with_context(|| format!("the trial {name} failed"))?;
        fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))?;
        Ok(rows)
    }
}

/// What a trial works with.
struct Lab<'a> {
    args: &'a ObjectsArgs,
    program: &'a Path,
    wrk: &'a Path,
    dir: &'a Path,
}

/// One window of load.
#[derive(Clone, Copy)]
struct Window<'a> {
    /// Names its files; two windows at a time have two names.
    name: &'a str,
    endpoint: &'a Endpoint,
    /// A file of targets.
    targets: &'a Path,
    body: Body<'a>,
    connections: u32,
    seconds: u64,
    yields: bool,
}

impl Lab<'_> {
    fn rounds(&self) -> std::ops::Range<u32> {
        0..self.args.rounds
    }

    /// Starts a node over what this trial has written so far.
    fn node(&self, setup: &Setup<'_>) -> Result<Node> {
        Node::start(self.program, self.dir, setup)
    }

    fn run(&self, window: &Window<'_>) -> Result<Report> {
        self.start(window)?.finish()
    }

    fn start(&self, window: &Window<'_>) -> Result<wrk::Running> {
        let dir = self.dir.join(format!("load-{}", window.name));
        fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        let script = dir.join("script.lua");
        let text = Script {
            host: &window.endpoint.address.to_string(),
            targets: window.targets,
            body: window.body,
        };
        fs::write(&script, text.lua()?).context("write the load's script")?;
        let load = wrk::Load {
            wrk: self.wrk,
            script: &script,
            address: window.endpoint.address,
            connections: window.connections,
            seconds: window.seconds,
            yields: window.yields,
            dir: &dir,
        };
        load.start()
    }

    /// Writes targets, one a line, into a file of this trial.
    fn targets(
        &self,
        name: &str,
        targets: impl Iterator<Item = Result<String>>,
    ) -> Result<PathBuf> {
        let lines: Vec<String> = targets.collect::<Result<_>>()?;
        let path = self.dir.join(format!("targets-{name}"));
        fs::write(&path, lines.join("\n") + "\n")
            .with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }
}

/// A row of ours.
fn row(bar: &'static str, unit: &'static str, values: &[f64], limit: Option<f64>) -> Result<Row> {
    Ok(Row {
        bar,
        contender: OURS,
        unit,
        spread: Spread::of(values).with_context(|| format!("sum up {bar}"))?,
        peer: None,
        limit: limit.map(Limit::Value),
    })
}

/// A row of ours that is held against another of ours.
fn row_beside(
    bar: &'static str,
    values: &[f64],
    other: &Row,
    ratio_max: Option<f64>,
) -> Result<Row> {
    Ok(Row {
        peer: Some(Peer {
            name: other.bar.to_owned(),
            median: other.spread.median,
        }),
        limit: ratio_max.map(Limit::Ratio),
        ..row(bar, other.unit, values, None)?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trial_has_one_name_everywhere() {
        for trial in Trial::value_variants() {
            let value = trial.to_possible_value().unwrap();
            assert_eq!(value.get_name(), trial.name());
        }
    }

    #[test]
    fn a_row_beside_another_is_judged_by_the_others_median() {
        let quiet = row("quiet", "ms", &[1.0, 2.0, 3.0], None).unwrap();
        for (busy, ok) in [(6.0, true), (6.1, false)] {
            let row = row_beside("busy", &[busy], &quiet, Some(3.0)).unwrap();
            assert_eq!(row.ok(), Some(ok));
            assert_eq!(row.peer.unwrap().name, "quiet");
        }
        assert!(row("none", "ms", &[], None).is_err());
    }
}
