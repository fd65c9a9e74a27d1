//! `cargo xtask test`: every test of the workspace, once, with the clients that tests drive and the
//! programs for the kernel that they load.
//!
//! The nextest run comes last, so that its summary is the closing line. Failed tests are never
//! retried.

use anyhow::{Result, ensure};

use crate::bpf;
use crate::fuzz;
use crate::process;
use crate::setup::{self, Scope};
use crate::workspace::{Profile, Workspace};

/// Inputs that each fuzz target gets, the same at every run.
const FUZZ_INPUTS: u64 = 4000;
/// How long it may take for them at most.
const FUZZ_SECONDS: u64 = 6;

/// Sets up, builds the server and the programs for the kernel, model-checks the engine, fuzzes, runs nextest with `nextest` appended.
/// More `seeds` than the model test plays by itself take longer than a test may otherwise.
pub fn run(workspace: &Workspace, seeds: Option<u64>, nextest: &[String]) -> Result<()> {
    let clients = setup::run(workspace, Scope::Clients)?;
    let server = workspace.build_server(Profile::Dev)?;
    let program = bpf::build(workspace, clients.bpf(), bpf::Flavour::Product)?;
    check_interleavings(workspace)?;
    let options = fuzz::Options {
        seconds: FUZZ_SECONDS,
        inputs: Some(FUZZ_INPUTS),
        input: None,
        target: None,
    };
    fuzz::run(workspace, &options)?;
    let mut command = workspace.cargo();
    command
        .args(["nextest", "run", "--workspace"])
        .args(nextest)
        .env("ULTRACLOUD_BIN", server)
        .env("ULTRACLOUD_CLIENTS", clients.bin())
        .env("ULTRACLOUD_VM", clients.vm())
        .env(bpf::OBJECT_VARIABLE, program);
    if let Some(seeds) = seeds {
        command
            .args(["--profile", "patient"])
            .env("UC_SEEDS", seeds.to_string());
    }
    process::run(&mut command)
}

/// Runs the engine's loom models, in a target directory of their own since they change RUSTFLAGS.
fn check_interleavings(workspace: &Workspace) -> Result<()> {
    if !workspace.root().join("engine/tests/loom.rs").is_file() {
        return Ok(());
    }
    let flags = std::env::var("RUSTFLAGS").unwrap_or_default();
    ensure!(
        !flags.contains("loom"),
        "RUSTFLAGS already names loom: unset it"
    );
    let mut command = workspace.cargo();
    command
        .args(["test", "--package", "engine", "--test", "loom"])
        .env("RUSTFLAGS", format!("{flags} --cfg loom"))
        .env("CARGO_TARGET_DIR", workspace.target_dir()?.join("loom"));
    process::run(&mut command)
}
