//! `cargo xtask lane`: proof lanes. A lane runs the real binaries through a story, keeps what they
//! answered, and says in `result.json` what was shown and what was not.
//!
//! Artifacts lie in `LANE/STAMP` below the work root, to which `LANE/latest` points ([`proof`]). A lane
//! that fails leaves what it has, with `success` false and the step that failed.

mod announce;
mod answers;
mod artifacts;
mod durability;
pub mod fiberlb;
mod members;
mod membership;
mod patroni;
mod postgres;
mod schema;
mod surface;
mod vm_volumes;
mod writer;

use anyhow::Result;
use clap::ValueEnum;
use proof::Build;

use self::artifacts::{About, Artifacts, build_of};
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
    /// Layer 4 in network namespaces: rings, drains, restarts, deaths and a flood under established flows
    Fiberlb,
    /// PostgreSQL under Patroni fails over, with its leader's key in ChainFire
    PatroniFailover,
    /// What ships is finished, complete, and free of what was archived, as its sources say
    SupportedSurfaceGuard,
    /// Volumes as disks of real guests: kills, resets, snapshots, hot plug, live migration
    VmVolumes,
}

impl Lane {
    fn about(self) -> &'static About {
        match self {
            Self::ChainfireLiveMembershipProof => &membership::ABOUT,
            Self::DurabilityProof => &durability::ABOUT,
            Self::Fiberlb => &fiberlb::ABOUT,
            Self::PatroniFailover => &patroni::ABOUT,
            Self::SupportedSurfaceGuard => &surface::ABOUT,
            Self::VmVolumes => &vm_volumes::ABOUT,
        }
    }

    /// What it needs of the system.
    fn scope(self) -> Scope {
        match self {
            Self::Fiberlb => Scope::Balancing,
            Self::PatroniFailover => Scope::Failover,
            Self::VmVolumes => Scope::Volumes,
            _ => Scope::Clients,
        }
    }
}

/// Runs a lane, on release builds unless told otherwise.
///
/// # Errors
/// The step that failed; `result.json` says the same.
pub fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let lane = options.lane;
    if lane == Lane::SupportedSurfaceGuard {
        let mut artifacts = Artifacts::create(workspace, lane.about(), Build::Sources, None)?;
        let outcome = surface::run(workspace, &mut artifacts);
        artifacts.finish(&outcome)?;
        return outcome;
    }
    let clients = setup::run_as_progress(workspace, lane.scope())?;
    let profile = if options.dev {
        Profile::Dev
    } else {
        Profile::Release
    };
    let [server, cli] = workspace.build_all(profile, ["ultracloud", "ultractl"])?;
    let mut artifacts =
        Artifacts::create(workspace, lane.about(), build_of(profile), Some(&clients))?;
    let outcome = match lane {
        Lane::ChainfireLiveMembershipProof => membership::run(&server, &cli, &mut artifacts),
        Lane::DurabilityProof => durability::run(&server, &cli, &mut artifacts),
        Lane::Fiberlb => {
            let object = crate::bpf::build(workspace, clients.bpf(), crate::bpf::Flavour::Product)?;
            fiberlb::run(&server, &cli, &object, &mut artifacts)
        }
        Lane::PatroniFailover => patroni::run(&server, &cli, &clients.patroni(), &mut artifacts),
        Lane::VmVolumes => vm_volumes::run(&server, &cli, &clients.vm(), &mut artifacts),
        Lane::SupportedSurfaceGuard => Ok(()),
    };
    artifacts.finish(&outcome)?;
    outcome
}
