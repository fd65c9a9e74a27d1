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
mod patroni;
mod postgres;
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
    /// On development builds, which are made sooner and are slower
    #[arg(long)]
    dev: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Lane {
    /// Adding, promoting, moving leadership, restarting and removing live members of ChainFire
    ChainfireLiveMembershipProof,
    /// Backup and restore of ChainFire's keys under writes, kills, stops and a flush that fails
    DurabilityProof,
    /// PostgreSQL under Patroni fails over, with its leader's key in ChainFire
    PatroniFailover,
}

impl Lane {
    fn name(self) -> &'static str {
        match self {
            Self::ChainfireLiveMembershipProof => "chainfire-live-membership-proof",
            Self::DurabilityProof => "durability-proof",
            Self::PatroniFailover => "patroni-failover",
        }
    }

    /// What it needs of the system.
    fn scope(self) -> Scope {
        match self {
            Self::ChainfireLiveMembershipProof | Self::DurabilityProof => Scope::Clients,
            Self::PatroniFailover => Scope::Failover,
        }
    }
}

/// Runs a lane, on release builds unless told otherwise.
///
/// # Errors
/// The step that failed; `result.json` says the same.
pub fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let lane = options.lane;
    let clients = setup::run_as_progress(workspace, lane.scope())?;
    let profile = if options.dev {
        Profile::Dev
    } else {
        Profile::Release
    };
    let server = workspace.build(profile, "ultracloud")?;
    let cli = workspace.build(profile, "ultractl")?;
    let mut artifacts = Artifacts::create(workspace, lane.name(), profile)?;
    let outcome = match lane {
        Lane::ChainfireLiveMembershipProof => membership::run(&server, &cli, &mut artifacts),
        Lane::DurabilityProof => durability::run(&server, &cli, &mut artifacts),
        Lane::PatroniFailover => patroni::run(&server, &cli, &clients.patroni(), &mut artifacts),
    };
    artifacts.finish(&outcome)?;
    outcome
}
