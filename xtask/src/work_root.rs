//! `cargo xtask work-root`: how much disk the proofs take, the limit of it, and old ones removed
//! (contracts WRB-1, WRB-2). Where the work root is, and what may be removed, is decided in [`proof`].

use std::process::ExitCode;

use anyhow::Result;
use proof::{Budget, Pruned, Usage, WorkRoot};

use crate::workspace::Workspace;

/// What `cargo xtask work-root` takes.
#[derive(clap::Args)]
pub struct Options {
    /// How much the work root may take, in GiB [default: ULTRACLOUD_WORK_BUDGET_GIB, else 20]
    #[arg(long, global = true, value_name = "GIB")]
    budget_gib: Option<u64>,
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Show what takes how much, and how to make room
    Status,
    /// The same; exit with 1 when it is more than the budget
    Enforce,
    /// Remove old proofs: each lane keeps its newest N, and what its `latest` points to
    PruneProofLogs {
        /// How many stay
        #[arg(value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
        keep: u16,
    },
}

/// What `status` suggests to keep.
const KEEP_SUGGESTED: u16 = 2;
const MIB: f64 = 1024.0 * 1024.0;

/// Runs a command on the work root of the environment, else on `work` in the checkout.
pub fn run(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    let root = WorkRoot::locate(workspace.root())?;
    let budget = Budget::of(options.budget_gib)?;
    match options.command {
        Command::Status => {
            status(&root, budget)?;
        }
        Command::Enforce => {
            let usage = status(&root, budget)?;
            if usage.bytes > budget.bytes {
                eprintln!("error: the work root is past its budget");
                return Ok(ExitCode::FAILURE);
            }
        }
        Command::PruneProofLogs { keep } => {
            let gone = if root.dir().is_dir() {
                root.prune(usize::from(keep))?
            } else {
                Vec::new()
            };
            for one in &gone {
                println!(
                    "removed  {:>12}  {}/{}",
                    mib(one.bytes),
                    one.lane,
                    one.stamp
                );
            }
            println!("removed {} proofs, {}", gone.len(), mib(sum(&gone)));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn status(root: &WorkRoot, budget: Budget) -> Result<Usage> {
    let usage = root.usage()?;
    println!("work root  {}", root.dir().display());
    println!("budget     {}", mib(budget.bytes));
    println!("used       {}", mib(usage.bytes));
    println!();
    for lane in &usage.lanes {
        let (name, proofs) = (&lane.lane, lane.proofs);
        println!("{:>12}  {name} ({proofs} proofs)", mib(lane.bytes));
    }
    println!("{:>12}  what is no proof", mib(usage.other_bytes));
    println!();
    let prunable = root.prunable(usize::from(KEEP_SUGGESTED))?;
    if prunable.is_empty() {
        println!("no lane has more than {KEEP_SUGGESTED} proofs");
    } else {
        let (count, bytes) = (prunable.len(), mib(sum(&prunable)));
        println!(
            "`cargo xtask work-root prune-proof-logs {KEEP_SUGGESTED}` removes {count} proofs, {bytes}"
        );
    }
    println!("`cargo clean` removes what was built, which is elsewhere");
    Ok(usage)
}

fn sum(gone: &[Pruned]) -> u64 {
    gone.iter().map(|one| one.bytes).sum()
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / MIB)
}
