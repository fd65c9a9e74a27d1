//! `cargo xtask lane`: proof lanes. A lane runs the real binaries through a story, keeps what they
//! answered, and says in `result.json` what was shown and what was not.
//!
//! Artifacts lie in `work/LANE/STAMP`, to which `work/LANE/latest` points. A lane that fails leaves
//! what it has, with `success` false and the step that failed.

mod answers;
mod artifacts;
mod durability;
mod members;
mod membership;
mod writer;

use anyhow::Result;
use clap::ValueEnum;

use self::artifacts::Artifacts;
use crate::setup::{self, Scope};
use crate::workspace::{Profile, Workspace};

/// What `cargo xtask lane` takes.
#[derive(clap::Args)]
pub struct Options {
    /// Which lane
    lane: Lane,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Lane {
    /// Adding, promoting, moving leadership, restarting and removing live members of ChainFire
    ChainfireLiveMembershipProof,
    /// Backup and restore of ChainFire's keys under writes, kills, stops and a flush that fails
    DurabilityProof,
}

impl Lane {
    fn name(self) -> &'static str {
        match self {
            Self::ChainfireLiveMembershipProof => "chainfire-live-membership-proof",
            Self::DurabilityProof => "durability-proof",
        }
    }
}

/// Runs a lane on a release build.
///
/// # Errors
/// The step that failed; `result.json` says the same.
pub fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    setup::run_as_progress(workspace, Scope::Clients)?;
    let server = workspace.build(Profile::Release, "ultracloud")?;
    let cli = workspace.build(Profile::Release, "ultractl")?;
    let mut artifacts = Artifacts::create(workspace, options.lane.name())?;
    let outcome = match options.lane {
        Lane::ChainfireLiveMembershipProof => membership::run(&server, &cli, &mut artifacts),
        Lane::DurabilityProof => durability::run(&server, &cli, &mut artifacts),
    };
    artifacts.finish(&outcome)?;
    outcome
}
