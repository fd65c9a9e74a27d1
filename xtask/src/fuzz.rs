//! `cargo xtask fuzz`: libFuzzer over every decoder of outside bytes, for a bounded time.
//!
//! The stable compiler carries LLVM's coverage pass, so that neither nightly nor another tool is
//! needed. Flags would reach build scripts too, unless the target is named; and they change every
//! artefact, so that the build has a target directory of its own. What a target has learnt stays
//! there in a corpus; the committed seeds are what it begins with. A run of counted inputs learns
//! nothing and begins from the seeds alone, so that the same tree meets the same inputs.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::process;
use crate::workspace::Workspace;

const SEEDS: &str = "perf/fuzz/seeds";
/// What cargo's `RUSTFLAGS` has to say; the level counts edges.
const FLAGS: [&str; 7] = [
    "--cfg fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
];
/// Longest that one input may take, in seconds.
const INPUT_SECONDS_MAX: u64 = 10;
/// Most memory that the program may take: an input makes a decoder allocate little.
const MEMORY_MIB_MAX: u64 = 512;
/// Largest input: two blocks of a log and a bit.
const INPUT_BYTES_MAX: u64 = 9_000;
/// Beyond the time that was asked for.
const GRACE: Duration = Duration::from_mins(2);

#[derive(clap::Args)]
pub struct Options {
    /// How long each target runs
    #[arg(long, default_value_t = 10)]
    pub seconds: u64,
    /// Ends each target after this many inputs too, which are the same at every run
    #[arg(long)]
    pub inputs: Option<u64>,
    /// Runs the target once with this input
    #[arg(long, requires = "target")]
    pub input: Option<PathBuf>,
    /// The target; all of them without it
    pub target: Option<String>,
}

/// Where a target's things are.
struct Place {
    binary: PathBuf,
    /// What this checkout's fuzzing leaves behind.
    work: PathBuf,
    seeds: PathBuf,
}

/// Builds the targets and runs them one after the other.
pub fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let seeds = workspace.root().join(SEEDS);
    let mut targets = targets(&seeds)?;
    if let Some(target) = &options.target {
        ensure!(
            targets.contains(target),
            "no fuzz target {target}; there are {}",
            targets.join(", ")
        );
        targets = vec![target.clone()];
    }
    let work = workspace.target_dir()?.join("fuzz");
    let binary = build(workspace, &work)?;
    let place = Place {
        binary,
        work,
        seeds,
    };
    for target in targets {
        match &options.input {
            Some(input) => replay(&place, &target, input)?,
            None => fuzz(&place, &target, options.seconds, options.inputs)?,
        }
    }
    Ok(())
}

/// The targets are named as their directories of seeds.
fn targets(seeds: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(seeds)
        .with_context(|| format!("cannot list the seeds in {}", seeds.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

fn build(workspace: &Workspace, work: &Path) -> Result<PathBuf> {
    let host = host()?;
    let mut command = workspace.cargo();
    command
        .args(["build", "--package", "fuzz", "--target", &host])
        .env("RUSTFLAGS", FLAGS.join(" "))
        .env("CARGO_TARGET_DIR", work);
    process::run_as_progress(&mut command)?;
    Ok(work.join(host).join("debug/fuzz"))
}

/// What the compiler calls this machine.
fn host() -> Result<String> {
    let said = process::capture(Command::new("rustc").arg("-vV"))?;
    let host = said.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc names no host")?.to_owned())
}

fn command(place: &Place, target: &str) -> Command {
    let mut command = Command::new(&place.binary);
    command.env("UC_FUZZ_TARGET", target);
    command.arg(format!("-timeout={INPUT_SECONDS_MAX}"));
    command.arg(format!("-rss_limit_mb={MEMORY_MIB_MAX}"));
    command
}

fn fuzz(place: &Place, target: &str, seconds: u64, inputs: Option<u64>) -> Result<()> {
    let learnt = place.work.join("corpus").join(target);
    let corpus = if inputs.is_some() {
        place.work.join("repeated").join(target)
    } else {
        learnt
    };
    if inputs.is_some() && corpus.exists() {
        let emptied = std::fs::remove_dir_all(&corpus);
        emptied.with_context(|| format!("cannot empty {}", corpus.display()))?;
    }
    let found = place.work.join("found").join(target);
    for dir in [&corpus, &found] {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    let mut command = command(place, target);
    command
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-max_len={INPUT_BYTES_MAX}"))
        .arg(format!("-artifact_prefix={}/", found.display()))
        .arg("-print_final_stats=1")
        .args(inputs.map(|inputs| format!("-runs={inputs}")))
        .args(inputs.map(|_| "-seed=1"))
        .args([&corpus, &place.seeds.join(target)]);
    let log = place.work.join(format!("{target}.log"));
    let deadline = Duration::from_secs(seconds) + GRACE;
    match process::bounded(&mut command, &log, deadline) {
        Ok(said) => {
            let count = number(&said, "stat::number_of_executed_units:");
            println!("{target:<18} {count:>9} inputs in at most {seconds} s, none failed");
            Ok(())
        }
        Err(failed) => {
            let said = String::from_utf8_lossy(&std::fs::read(&log)?).into_owned();
            let Some(input) = artifact(&said) else {
                return Err(failed);
            };
            bail!("{failed:#}\nto replay: cargo xtask fuzz {target} --input {input}")
        }
    }
}

fn replay(place: &Place, target: &str, input: &Path) -> Result<()> {
    let mut command = command(place, target);
    process::run(command.arg(std::path::absolute(input)?))
}

/// What libFuzzer says behind a word of its statistics.
fn number<'t>(said: &'t str, what: &str) -> &'t str {
    let line = said.lines().find_map(|line| line.strip_prefix(what));
    line.map_or("?", str::trim)
}

/// The input that libFuzzer wrote down when it failed; before it there may be some that were slow.
fn artifact(said: &str) -> Option<&str> {
    said.lines()
        .rev()
        .find_map(|line| line.split_once("Test unit written to "))
        .map(|(_, path)| path.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_libfuzzer_says_is_understood() {
        let said = "INFO: seed corpus\nstat::number_of_executed_units: 4321\n\
            artifact_prefix='/w/'; Test unit written to /w/slow-unit-34cd\n\
            artifact_prefix='/w/'; Test unit written to /w/crash-12ab\n";
        assert_eq!(number(said, "stat::number_of_executed_units:"), "4321");
        assert_eq!(number(said, "stat::absent:"), "?");
        assert_eq!(artifact(said), Some("/w/crash-12ab"));
        assert_eq!(artifact("all is well"), None);
    }
}
