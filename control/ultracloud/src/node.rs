//! Running a node: lock, keys, admin endpoint, ChainFire, and the data path (`data_path`); then waiting for
//! the end.
//!
//! The end is a signal (drain, exit 0), a second signal (exit at once), or a shard that died (exit
//! non-zero with its reason: what it owned is unreachable, and a restart recovers it).

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use chainfire::node::ChainfireNode;
use control_kit::server::{self, Port};
use control_kit::stop::{self, Signals, Stop};
use lightningstor::access::ROOT_ID;

use crate::NodeArgs;
use crate::config::{Config, Role};
use crate::credentials::{self, Origin, RootCredentials};
use crate::lock::DataLock;
use crate::state::{NodePhase, NodeState};
use crate::{admin, api, data_path};

/// Connections to the admin endpoint; within the descriptors that connections to the shards leave.
const ADMIN_CONNECTIONS_MAX: usize = 256;
/// Threads of the control layer's runtime at most; one a CPU, as more would only take turns there.
const CONTROL_THREADS_MAX: usize = 2;

/// Runs a node until it is told to end.
///
/// # Errors
/// Why it did not start, or did not end well.
pub fn run(args: &NodeArgs) -> Result<()> {
    let config = Config::load(args)?;
    let _lock = DataLock::take(&config.data_dir)?;
    // Before keys are made and shown: a start that fails here has used nothing up.
    ports_are_free(&config)?;
    let mut root = None;
    if config.has_shards() {
        let mut keys = None;
        if config.roles.contains(&Role::LightningStor) {
            let (made, origin) = credentials::load(&config.data_dir)?;
            show_credentials(&made, &origin)?;
            keys = Some(made);
        }
        let (token, origin) = credentials::load_token(&config.data_dir)?;
        if let Origin::Made(path) = origin {
            tracing::info!(file = %path.display(), "made the root user's token for the API");
        }
        root = Some(Root { keys, token });
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(engine::allowed_cpus().len().clamp(1, CONTROL_THREADS_MAX))
        .thread_name("control")
        .enable_all()
        .build()
        .context("cannot start the control layer")?;
    runtime.block_on(serve(config, root))
}

/// The shards share the S3 port among themselves (SO_REUSEPORT), so the kernel would let a second
/// node of the same user share it too, and split its clients between two stores. This bind does
/// not share: it fails when anybody listens there.
fn ports_are_free(config: &Config) -> Result<()> {
    let s3 = config
        .roles
        .contains(&Role::LightningStor)
        .then(|| ("S3", config.s3_listen()));
    for (what, addr) in s3
        .into_iter()
        .chain([("the admin endpoint", config.admin_listen)])
    {
        let bound = std::net::TcpListener::bind(addr);
        drop(bound.with_context(|| format!("cannot serve {what} on {addr}"))?);
    }
    Ok(())
}

fn show_credentials(root: &RootCredentials, origin: &Origin) -> Result<()> {
    match origin {
        Origin::Environment => tracing::info!("root credentials are those of the environment"),
        Origin::File => tracing::info!("root credentials are those of the data directory"),
        Origin::Made(path) => {
            let mut out = std::io::stdout().lock();
            writeln!(
                out,
                "root credentials, shown once and kept in {}:",
                path.display()
            )?;
            writeln!(out, "  access_key = {}", root.access_key)?;
            writeln!(out, "  secret_key = {}", root.secret_key)?;
        }
    }
    Ok(())
}

/// What shows that somebody is the node's own user.
struct Root {
    /// For S3, on a node that serves it.
    keys: Option<RootCredentials>,
    token: String,
}

async fn serve(config: Config, root: Option<Root>) -> Result<()> {
    let mut signals = Signals::new().context("cannot listen for signals")?;
    let state = NodeState::new();
    // It answers until the very end.
    let (_stopper, stop) = stop::pair();
    let admin_addr = serve_admin(&config, root.as_ref(), &state, stop).await?;
    if config.roles.contains(&Role::Chainfire) {
        let start = ChainfireNode::start(config.chainfire.clone());
        let node = tokio::select! {
            started = start => started.context("cannot serve ChainFire")?,
            () = signals.next() => return Ok(()),
        };
        state.set_chainfire(Arc::new(node));
    }
    let served = match root {
        Some(root) => {
            let keys = root.keys.as_ref();
            data_path::serve(&config, keys, &state, admin_addr, &mut signals).await
        }
        None => serve_control(&state, admin_addr, &mut signals).await,
    };
    let ended = match state.chainfire() {
        Some(node) => node.shutdown().await.context("ChainFire did not end well"),
        None => Ok(()),
    };
    served.and(ended)
}

async fn serve_admin(
    config: &Config,
    root: Option<&Root>,
    state: &Arc<NodeState>,
    stop: Stop,
) -> Result<SocketAddr> {
    let limits = server::Limits {
        connections_max: ADMIN_CONNECTIONS_MAX,
        ..server::Limits::default()
    };
    let port = Port::bind(config.admin_listen, None, limits)
        .await
        .context("cannot serve the admin endpoint")?;
    let addr = port.addr();
    let api = root.map(|root| api::api(state, config.tokens(&root.token)));
    let router = admin::router(Arc::clone(state), api);
    tokio::spawn(port.serve(router, stop));
    Ok(addr)
}

/// A node without shards: it serves until it is told to end.
async fn serve_control(state: &NodeState, admin: SocketAddr, signals: &mut Signals) -> Result<()> {
    state.set_phase(NodePhase::Serving);
    announce(None, admin, state)?;
    signals.next().await;
    drain_begins(state)
}

/// From now on a second signal ends the process at once.
pub fn drain_begins(state: &NodeState) -> Result<()> {
    state.set_phase(NodePhase::Draining);
    tracing::info!("draining; a second signal ends the process at once");
    let signals = Signals::new().context("cannot listen for signals")?;
    tokio::spawn(signals.end_at_once());
    Ok(())
}

/// Tells the addresses: one line that programs read, and one that people do.
pub fn announce(shards: Option<usize>, admin: SocketAddr, state: &NodeState) -> Result<()> {
    let mut line = String::from("listening");
    let objects = state.lightningstor();
    if let Some(node) = objects {
        write!(line, " s3={}", node.s3_addr())?;
    }
    write!(line, " admin={admin}")?;
    if let Some(node) = state.chainfire() {
        let (client, peer) = (node.client_addr(), node.peer_addr());
        write!(line, " chainfire={client} chainfire_peer={peer}")?;
    }
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()?;
    if let Some(node) = objects {
        let (s3, partitions) = (node.s3_addr(), node.partitions());
        tracing::info!(%s3, shards, partitions, user = ROOT_ID, "serving objects");
    }
    if let Some(node) = state.coronafs() {
        let partitions = node.partitions();
        tracing::info!(shards, partitions, user = ROOT_ID, "serving volumes");
    }
    if let Some(node) = state.fiberlb() {
        let interfaces = node.interfaces();
        tracing::info!(?interfaces, user = ROOT_ID, "balancing packets");
    }
    tracing::info!(%admin, "serving");
    Ok(())
}
