//! `ultracloud`: the server binary. One process is one node: shards that carry the data path, and a
//! small tokio runtime around them for the admin endpoint, signals and start-up.
//!
//! This file reads the command line. It does nothing itself: `node` runs a node, `data_path` what is on its
//! shards, `config` decides
//! what it is told, `credentials` and `lock` own their files in the data directory, `admin` answers
//! operators.

#![forbid(unsafe_code)]

mod admin;
mod api;
mod buckets;
mod config;
mod credentials;
mod data_path;
mod images;
mod lock;
mod node;
mod state;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use control_kit::logging::{self, LogFormat};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// UltraCloud, a cloud from a few Linux machines.
#[derive(Debug, Parser)]
#[command(name = "ultracloud", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs a node on its data directory, until SIGTERM.
    Node(NodeArgs),
}

/// The command line of a node. What is given here wins over the config file.
#[derive(Clone, Debug, Args)]
struct NodeArgs {
    /// Directory of everything that the node keeps; made when it does not exist.
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// Config file (TOML).
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where S3 is served [default: 127.0.0.1:9000]. Port 0 lets the kernel choose.
    #[arg(long, value_name = "ADDR")]
    s3_listen: Option<SocketAddr>,
    /// Where health and metrics are served [default: 127.0.0.1:9001].
    #[arg(long, value_name = "ADDR")]
    admin_listen: Option<SocketAddr>,
    /// What the node serves; repeat it for more [default: lightningstor].
    #[arg(long = "role", value_enum, value_name = "ROLE")]
    roles: Vec<config::Role>,
    #[command(flatten)]
    chainfire: ChainfireArgs,
    /// Form of the log on stderr; RUST_LOG chooses what is in it.
    #[arg(long, value_enum, default_value_t)]
    log_format: LogFormat,
}

/// ChainFire's part of it. A single node needs none of these.
#[derive(Clone, Debug, Default, Args)]
struct ChainfireArgs {
    /// This member's name [default: default].
    #[arg(long = "chainfire-name", value_name = "NAME")]
    name: Option<String>,
    /// Where etcd's clients are served [default: 127.0.0.1:2379].
    #[arg(long = "chainfire-listen", value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// Where other members are served [default: 127.0.0.1:2380].
    #[arg(long = "chainfire-peer-listen", value_name = "ADDR")]
    peer_listen: Option<SocketAddr>,
    /// The first members as NAME=URL, commas between; at the first start only.
    #[arg(long = "chainfire-initial-cluster", value_name = "MEMBERS")]
    initial_cluster: Option<String>,
    /// Whether the cluster is made now, or was there when this member was added.
    #[arg(long = "chainfire-initial-cluster-state", value_enum)]
    initial_cluster_state: Option<ClusterStateArg>,
    /// Makes this member the only one of its cluster, once: for the survivor with the longest log, after
    /// a majority of the voters was lost for good.
    #[arg(long = "chainfire-force-new-cluster")]
    force_new_cluster: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
enum ClusterStateArg {
    New,
    Existing,
}

fn main() -> ExitCode {
    let Command::Node(args) = Cli::parse().command;
    logging::start(args.log_format);
    match node::run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ultracloud: {error:#}");
            ExitCode::FAILURE
        }
    }
}
