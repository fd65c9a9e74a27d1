//! `cargo xtask`: the tools of this repository, one binary, no shell scripts.
//!
//! Each subcommand is one module. Results go to stdout, progress to stderr, and a failure exits
//! with 1 after naming what failed and what to do next. Nothing here is linked into a product.
#![forbid(unsafe_code)]

mod bench;
mod bpf;
mod fuzz;
mod lane;
mod process;
mod quickstart;
mod setup;
mod test;
mod tidy;
mod volume_ctl;
mod work_root;
mod workspace;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::workspace::Workspace;

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "The tools of UltraCloud"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Check and install what the other commands need
    Setup {
        /// Also what the benchmarks run beside: wrk, nginx, s3s-fs
        #[arg(long)]
        bench: bool,
        /// Also what the lane patroni-failover runs: PostgreSQL and Patroni
        #[arg(long, conflicts_with = "bench")]
        failover: bool,
        /// Also what the lane vm-volumes runs in its guests: fio
        #[arg(long, conflicts_with_all = ["bench", "failover"])]
        volumes: bool,
        /// Also what the lane fiberlb runs: backends and clients
        #[arg(long, conflicts_with_all = ["bench", "failover", "volumes"])]
        balancing: bool,
    },
    /// Start a node and show its main job with real clients
    Quickstart(quickstart::Options),
    /// Run every test of the workspace
    Test {
        /// Histories that the model test of LightningStor plays; as many as wanted, past its 200
        #[arg(long)]
        seeds: Option<u64>,
        /// Passed to cargo nextest run
        #[arg(last = true)]
        nextest: Vec<String>,
    },
    /// Build the programs for the kernel and print where the object is
    Bpf(bpf::Options),
    /// Fuzz every decoder of outside bytes for a while
    Fuzz(fuzz::Options),
    /// Check layering, sizes, fences and wording of the tree
    Tidy,
    /// Run a proof lane: real binaries through a story, with artifacts below work/
    Lane(lane::Options),
    /// Established flows, for the lane fiberlb to run on another machine
    #[command(hide = true)]
    Flows(lane::fiberlb::flows::Options),
    /// Show, limit and prune what lanes have left below the work root
    WorkRoot(work_root::Options),
    /// Measure beside the peers
    Bench(bench::Options),
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    let workspace = Workspace::locate()?;
    match command {
        Command::Setup {
            bench,
            failover,
            volumes,
            balancing,
        } => {
            let scope = match (bench, failover, volumes, balancing) {
                (true, ..) => setup::Scope::Bench,
                (_, true, ..) => setup::Scope::Failover,
                (_, _, true, _) => setup::Scope::Volumes,
                (.., true) => setup::Scope::Balancing,
                _ => setup::Scope::Clients,
            };
            setup::run(&workspace, scope)?;
        }
        Command::Quickstart(options) => quickstart::run(&workspace, &options)?,
        Command::Test { seeds, nextest } => test::run(&workspace, seeds, &nextest)?,
        Command::Bpf(options) => bpf::run(&workspace, &options)?,
        Command::Fuzz(options) => fuzz::run(&workspace, &options)?,
        Command::Tidy => return tidy::run(&workspace),
        Command::Lane(options) => lane::run(&workspace, &options)?,
        Command::Flows(options) => lane::fiberlb::flows::run(&options)?,
        Command::WorkRoot(options) => return work_root::run(&workspace, &options),
        Command::Bench(options) => bench::run(&workspace, &options)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The directory that outlives checkouts: `ULTRACLOUD_CACHE`, else `~/.cache/ultracloud`.
fn cache_dir() -> anyhow::Result<PathBuf> {
    if let Some(dir) = std::env::var_os("ULTRACLOUD_CACHE").filter(|dir| !dir.is_empty()) {
        return Ok(std::path::absolute(dir)?);
    }
    let home = std::env::var_os("HOME")
        .filter(|home| !home.is_empty())
        .ok_or_else(|| anyhow::anyhow!("neither ULTRACLOUD_CACHE nor HOME is set"))?;
    Ok(PathBuf::from(home).join(".cache/ultracloud"))
}
