//! `ultractl`: what operators do to a running UltraCloud, from a shell.
//!
//! Each service has a subcommand. Answers go to stdout, as text for people or with `-o json` and `-o yaml`
//! as documents for programs; progress and errors go to stderr, and the exit code says how it ended
//! ([`failure`]).

#![forbid(unsafe_code)]

mod api;
mod audit;
mod bucket;
mod chainfire;
mod completion;
mod context;
mod doctor;
mod failure;
mod lb;
mod operation;
mod output;
mod progress;
mod proof;
mod volume;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser, Subcommand};

use crate::failure::{Exit, Failure};
use crate::output::Format;

/// UltraCloud's command line.
#[derive(Debug, Parser)]
#[command(name = "ultractl", version)]
struct Cli {
    /// Form of the output.
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Text)]
    output: Format,
    #[command(flatten)]
    choice: context::Choice,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Who did what, as services have noted it.
    Audit(audit::Args),
    /// LightningStor's buckets: create, list, get, delete.
    Bucket(bucket::Args),
    /// ChainFire, the coordination store: members, keys, backups.
    Chainfire(chainfire::Args),
    /// The clouds to work on, and which one is asked now.
    #[command(subcommand)]
    Context(context::Command),
    /// Says whether this machine is fit for a node; ends with 1 when it is not.
    Doctor,
    /// FiberLB's load balancers: apply, list, status, drain, explain and more.
    Lb(lb::Args),
    /// Long operations of a service: list, get, wait, retry, force-delete.
    Operation(operation::Args),
    /// What proof lanes have left below the work root, `ULTRACLOUD_WORK_ROOT` or ./work.
    #[command(subcommand)]
    Proof(proof::Command),
    /// CoronaFS's volumes, disks of virtual machines: create, attach, snapshot, clone and more.
    Volume(volume::Args),
    /// Prints the script that completes this command line in a shell.
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return not_understood(&error),
    };
    let format = cli.output;
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            let failure = Failure::of(&error);
            failure.show(format);
            failure.exit().into()
        }
    }
}

/// Says what is wrong with the command line, or the help that was asked for.
fn not_understood(error: &clap::Error) -> ExitCode {
    let args = std::env::args_os().skip(1);
    let format = Format::asked(args.map(|arg| arg.to_string_lossy().into_owned()));
    let is_asked_for = matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
    );
    let is_help = error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
    if is_asked_for || (is_help && !format.is_structured()) {
        // Fails when nobody reads it; then there is nothing to say.
        let _ = error.print();
        return if is_asked_for {
            ExitCode::SUCCESS
        } else {
            Exit::Usage.into()
        };
    }
    failure::of_usage(error).show(format);
    Exit::Usage.into()
}

fn run(cli: Cli) -> Result<ExitCode> {
    let format = cli.output;
    match cli.command {
        Command::Audit(args) => runtime()?.block_on(audit::run(args, &cli.choice, format))?,
        Command::Bucket(args) => runtime()?.block_on(bucket::run(args, &cli.choice, format))?,
        Command::Chainfire(args) => {
            runtime()?.block_on(chainfire::run(args, &cli.choice, format))?;
        }
        Command::Context(command) => context::run(&cli.choice, command, format)?,
        Command::Doctor => return doctor::run(format),
        Command::Lb(args) => runtime()?.block_on(lb::run(args, &cli.choice, format))?,
        Command::Operation(args) => {
            runtime()?.block_on(operation::run(args, &cli.choice, format))?;
        }
        Command::Proof(command) => proof::run(command, format)?,
        Command::Volume(args) => runtime()?.block_on(volume::run(args, &cli.choice, format))?,
        Command::Completion { shell } => completion::run(shell, Cli::command())?,
    }
    Ok(ExitCode::SUCCESS)
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.context("cannot start a runtime")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// A command's own argument of the name of one that all commands take would give it its value.
    fn check(command: &clap::Command, mut taken: BTreeSet<String>) {
        let (everywhere, own): (Vec<_>, Vec<_>) = command
            .get_arguments()
            .partition(|argument| argument.is_global_set());
        for argument in own.iter().chain(&everywhere) {
            let id = argument.get_id().as_str();
            assert!(!taken.contains(id), "{}: {id}", command.get_name());
        }
        taken.extend(
            everywhere
                .iter()
                .map(|argument| argument.get_id().to_string()),
        );
        for sub in command.get_subcommands() {
            check(sub, taken.clone());
        }
    }

    #[test]
    fn no_command_takes_the_name_of_an_argument_of_all() {
        let cli = Cli::command();
        cli.clone().debug_assert();
        check(&cli, BTreeSet::new());
    }
}
