//! `ultractl proof`: what proof lanes have left, the runs without a usable result included.

use std::fmt::Write as _;

use ::proof::{Accelerator, LaneResult, Proof, Stamp, WorkRoot};
use anyhow::Result;
use clap::Subcommand;
use serde::Serialize;

use crate::failure::{Exit, Failure};
use crate::output::{Format, show, table};

/// The link to a lane's newest run, in place of its stamp.
const LATEST: &str = "latest";

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Shows every run, the newest of a lane first; a lane's latest has a star.
    List {
        /// The runs of this lane alone.
        lane: Option<String>,
    },
    /// Shows a run: what it showed, what it did not and why, and the command that repeats it.
    Show {
        /// Its lane [default: that of the newest run].
        lane: Option<String>,
        /// The run, or `latest` [default: the lane's newest].
        stamp: Option<String>,
    },
}

/// A run in a list. Without a result `success` is null and `problem` says why.
#[derive(Debug, Serialize)]
struct Listed {
    lane: String,
    stamp: String,
    latest: bool,
    success: Option<bool>,
    problem: Option<String>,
    contracts: Vec<String>,
    not_shown: Vec<String>,
    commit: Option<String>,
    command: Option<String>,
    seconds: Option<f64>,
}

impl Listed {
    fn of(proof: &Proof) -> Listed {
        let (result, problem) = match proof.result() {
            Ok(result) => (Some(result), None),
            Err(problem) => (None, Some(problem.to_string())),
        };
        let one = result.as_ref();
        let parts = one.map(|result| result.not_shown.iter().map(|part| part.what.clone()));
        Listed {
            lane: proof.lane.clone(),
            stamp: proof.stamp.to_string(),
            latest: proof.is_latest,
            success: one.map(|result| result.success),
            problem,
            contracts: one
                .map(|result| result.contracts.clone())
                .unwrap_or_default(),
            not_shown: parts.map(Iterator::collect).unwrap_or_default(),
            commit: one.map(|result| result.commit.clone()),
            command: one.map(|result| result.command.clone()),
            seconds: one.map(|result| result.seconds),
        }
    }
}

/// Runs a command.
pub fn run(command: Command, format: Format) -> Result<()> {
    let root = WorkRoot::locate(&std::env::current_dir()?)?;
    match command {
        Command::List { lane } => {
            let listed: Vec<Listed> = found(&root, lane.as_deref())?
                .iter()
                .map(Listed::of)
                .collect();
            show(format, &listed, |listed| lines(listed, format, &root))
        }
        Command::Show { lane, stamp } => {
            let proof = chosen(&root, lane.as_deref(), stamp.as_deref())?;
            let (lane, stamp) = (&proof.lane, &proof.stamp);
            let result = proof.result().map_err(|problem| {
                Failure::new(Exit::Failed, "no-result", problem.to_string())
                    .object(format!("proof {lane} {stamp}"))
                    .next(format!("what it left is in {}", proof.dir.display()))
            })?;
            show(format, &result, |result| told(result, &proof))
        }
    }
}

/// The runs of all lanes, or of one.
fn found(root: &WorkRoot, lane: Option<&str>) -> Result<Vec<Proof>> {
    let lanes = match lane {
        Some(lane) => vec![lane.to_owned()],
        None => root.lanes()?,
    };
    let mut proofs = Vec::new();
    for name in &lanes {
        proofs.extend(root.proofs(name)?);
    }
    if let (Some(lane), true) = (lane, proofs.is_empty()) {
        return Err(no_proof(root, &format!("lane {lane}")).into());
    }
    Ok(proofs)
}

fn chosen(root: &WorkRoot, lane: Option<&str>, stamp: Option<&str>) -> Result<Proof> {
    let mut proofs = found(root, lane)?;
    proofs.sort_by(|a, b| b.stamp.cmp(&a.stamp));
    let asked = match stamp {
        None | Some(LATEST) => None,
        Some(text) => Some(Stamp::parse(text).ok_or_else(|| {
            Failure::usage(format!("{text} is no stamp"))
                .next("a stamp is as 20261126T091500Z, or `latest`")
        })?),
    };
    let found = proofs.into_iter().find(|proof| match &asked {
        None => stamp.is_none() || proof.is_latest,
        Some(asked) => proof.stamp == *asked,
    });
    found.ok_or_else(|| {
        let what = match (lane, asked) {
            (Some(lane), Some(stamp)) => format!("lane {lane} at {stamp}"),
            _ => "any lane".to_owned(),
        };
        no_proof(root, &what).into()
    })
}

fn no_proof(root: &WorkRoot, what: &str) -> Failure {
    let root = root.dir().display();
    Failure::new(
        Exit::NotFound,
        "no-proof",
        format!("no proof of {what} below {root}"),
    )
    .next("`ultractl proof list` shows what there is; ULTRACLOUD_WORK_ROOT names another root")
}

fn lines(listed: &[Listed], format: Format, root: &WorkRoot) -> String {
    if listed.is_empty() {
        return format!(
            "no proofs below {}; `cargo xtask lane NAME` makes them\n",
            root.dir().display()
        );
    }
    let row = |one: &Listed| {
        let success = match (one.success, &one.problem) {
            (Some(true), _) => "yes",
            (Some(false), _) => "no",
            (None, _) => "?",
        };
        let star = if one.latest { "*" } else { "" };
        let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
        let mut row = vec![
            star.to_owned(),
            one.lane.clone(),
            one.stamp.clone(),
            success.into(),
        ];
        if format == Format::Wide {
            let seconds = one
                .seconds
                .map_or_else(|| "-".into(), |seconds| format!("{seconds:.1}"));
            row.extend([
                one.contracts.join(","),
                seconds,
                text(&one.commit),
                text(&one.command),
            ]);
        }
        row.push(match &one.problem {
            Some(problem) => problem.clone(),
            None if one.not_shown.is_empty() => "-".to_owned(),
            None => one.not_shown.join("; "),
        });
        row
    };
    let mut heads = vec!["", "LANE", "STAMP", "SUCCESS"];
    if format == Format::Wide {
        heads.extend(["CONTRACTS", "SECONDS", "COMMIT", "COMMAND"]);
    }
    heads.push("NOT SHOWN");
    table(&heads, &listed.iter().map(row).collect::<Vec<_>>())
}

fn told(result: &LaneResult, proof: &Proof) -> String {
    let mut text = String::new();
    let mut line = |what: &str, said: &str| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{what:<12}{said}");
    };
    line("lane", &result.lane);
    line("stamp", &result.stamp);
    let ended = match &result.error {
        Some(error) => format!("no: {error}"),
        None if result.success => "yes".to_owned(),
        None => "no".to_owned(),
    };
    line("success", &ended);
    line("contracts", &result.contracts.join(", "));
    line(
        "machines",
        match result.vm_accelerator_mode {
            Accelerator::None => "no virtual machines",
            Accelerator::Tcg => "virtual machines under TCG",
            Accelerator::Kvm => "virtual machines under KVM",
        },
    );
    line("commit", &result.commit);
    line("again by", &result.command);
    line("files", &proof.dir.display().to_string());
    for step in &result.steps {
        let ended = if step.success { "done" } else { "failed" };
        line(
            "step",
            &format!("{}: {ended} in {:.1} s", step.step, step.seconds),
        );
    }
    for part in &result.not_shown {
        line("not shown", &format!("{}: {}", part.what, part.reason));
    }
    text
}
