//! `ultractl`: what operators do to a running UltraCloud, from a shell.
//!
//! Each service has a subcommand. Output is text for people, or with `-o json` one JSON document for
//! programs; errors go to stderr and end with a code that is not 0.

#![forbid(unsafe_code)]

mod bucket;
mod chainfire;
mod output;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

use crate::output::Format;

/// UltraCloud's command line.
#[derive(Debug, Parser)]
#[command(name = "ultractl", version)]
struct Cli {
    /// Form of the output.
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Text)]
    output: Format,
    #[command(subcommand)]
    service: Service,
}

#[derive(Debug, Subcommand)]
enum Service {
    /// LightningStor's buckets: create, list, get, delete.
    Bucket(bucket::Args),
    /// ChainFire, the coordination store: members, keys, backups.
    Chainfire(chainfire::Args),
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ultractl: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.context("cannot start a runtime")?;
    match cli.service {
        Service::Bucket(args) => runtime.block_on(bucket::run(args, cli.output)),
        Service::Chainfire(args) => runtime.block_on(chainfire::run(args, cli.output)),
    }
}
