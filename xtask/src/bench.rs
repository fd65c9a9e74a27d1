//! `cargo xtask bench`: builds the `perf` crate in release and runs one of its suites.
//!
//! It measures nothing itself: bars, peers and reports are `perf`'s.

use anyhow::Result;
use clap::ValueEnum;

use crate::bpf;
use crate::process;
use crate::setup::{self, Scope};
use crate::workspace::{Profile, Workspace};

/// What `cargo xtask bench` takes.
#[derive(clap::Args)]
pub struct Options {
    /// Which suite
    suite: Suite,
    /// One JSON object a line instead of a table
    #[arg(long)]
    json: bool,
    /// Passed to perf
    #[arg(last = true)]
    perf: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Suite {
    /// Echo, random read, group commit and cross-shard hop beside raw io_uring, tokio, compio
    Engine,
    /// GET, PUT and LIST beside nginx and s3s-fs; restart, memory, compaction and tenants of our node
    Objects,
    /// Put, get, watch and lease of ChainFire beside etcd, on one and on three nodes
    Chainfire,
    /// A call through the control kit beside bare tonic and axum; operations and reservations
    Control,
    /// Volumes by vhost-user-blk beside qemu-storage-daemon
    Volumes,
    /// A packet and a change of a ring in FiberLB
    Fiberlb,
    /// An object of 6 GiB and the memory that it takes
    BigObject,
}

impl Suite {
    fn name(self) -> &'static str {
        match self {
            Self::Engine => "engine",
            Self::Objects => "objects",
            Self::Chainfire => "chainfire",
            Self::Control => "control",
            Self::Volumes => "volumes",
            Self::Fiberlb => "fiberlb",
            Self::BigObject => "big-object",
        }
    }
}

/// Runs a suite. For `objects` the server is built and the peers are installed first; where they
/// are stands in `ULTRACLOUD_BIN`, `ULTRACLOUD_CLIENTS` and `ULTRACLOUD_S3S_FS`.
pub fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let mut command = workspace.cargo();
    if options.suite == Suite::BigObject {
        command.env("ULTRACLOUD_BIN", workspace.build_server(Profile::Release)?);
    }
    if matches!(options.suite, Suite::Chainfire | Suite::Control) {
        setup::run_as_progress(workspace, Scope::Bench)?;
        command.env("ULTRACLOUD_BIN", workspace.build_server(Profile::Release)?);
    }
    if options.suite == Suite::Volumes {
        setup::run_as_progress(workspace, Scope::Bench)?;
    }
    if options.suite == Suite::Fiberlb {
        let clients = setup::run_as_progress(workspace, Scope::Clients)?;
        let object = bpf::build(workspace, clients.bpf(), bpf::Flavour::Measure)?;
        command.env(bpf::OBJECT_VARIABLE, object);
    }
    if options.suite == Suite::Objects {
        let clients = setup::run_as_progress(workspace, Scope::Bench)?;
        command.env("ULTRACLOUD_CLIENTS", clients.bin());
        command.env("ULTRACLOUD_S3S_FS", clients.s3s_fs());
        command.env("ULTRACLOUD_BIN", workspace.build_server(Profile::Release)?);
    }
    command.args([
        "run",
        "--release",
        "--package",
        "perf",
        "--",
        options.suite.name(),
    ]);
    if options.json {
        command.arg("--json");
    }
    process::run(command.args(&options.perf))
}
