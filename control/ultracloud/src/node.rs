//! Running a node: lock, keys, admin endpoint, shards, LightningStor; then waiting for the end.
//!
//! The end is a signal (drain, exit 0), a second signal (exit at once), or a shard that died (exit
//! non-zero with its reason: what it owned is unreachable, and a restart recovers it).

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use chainfire::node::ChainfireNode;
use control_kit::server::{self, Port};
use control_kit::stop::{self, Signals, Stop};
use engine::{Engine, EngineConfig, ShardId};
use lightningstor::access::ROOT_ID;
use lightningstor::node::{LightningStorNode, NodeConfig};
use lightningstor::store::BODY_COST_MIN;
use shard_bridge::{Bridge, ShardDeaths};

use crate::NodeArgs;
use crate::buckets::BucketService;
use crate::config::{Config, Role};
use crate::credentials::{self, Origin, RootCredentials};
use crate::lock::DataLock;
use crate::state::{NodePhase, NodeState, Running};
use crate::{admin, api};

/// How long requests in flight may take to end.
const DRAIN_LIMIT: Duration = Duration::from_secs(30);
/// How long calls of the control layer to shards may take to end; most take milliseconds.
const CALLS_DRAIN_LIMIT: Duration = Duration::from_secs(5);
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
    if config.roles.contains(&Role::LightningStor) {
        let (keys, origin) = credentials::load(&config.data_dir)?;
        show_credentials(&keys, &origin)?;
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

/// Descriptors that connections leave to files, rings and the control layer.
const FILES_RESERVE: u64 = 512;
/// Connections to the admin endpoint; within what is left.
const ADMIN_CONNECTIONS_MAX: usize = 256;

/// Raises the limit of open files, and keeps what the shards want of them below it: a connection has
/// one, and so has each chunk of a body in memory, which get a quarter of a shard's at most.
fn keep_below_open_files(config: &mut NodeConfig, shards: usize) -> Result<()> {
    let files = match engine::raise_open_files() {
        Ok(files) => files,
        Err(error) => bail!("cannot tell the limit of open files: {error}"),
    };
    let room = files.saturating_sub(FILES_RESERVE) / shards.max(1) as u64;
    if room < CONNECTIONS_MIN {
        bail!(
            "at most {files} files may be open, too few for {shards} shards; raise RLIMIT_NOFILE \
             (LimitNOFILE= of the unit) to {} or more",
            FILES_RESERVE + CONNECTIONS_MIN * shards as u64
        );
    }
    let (connections, cache) = (
        &mut config.http.limits.connections_max,
        &mut config.store.body_cache_bytes_max,
    );
    let chunks = (*cache / BODY_COST_MIN).min(room / 4);
    let cached = (chunks * BODY_COST_MIN).min(*cache);
    let granted = usize::try_from(room - chunks).unwrap_or(usize::MAX);
    let granted = granted.min(*connections);
    if granted < *connections || *cache - cached >= BODY_COST_MIN {
        tracing::warn!(
            files,
            granted,
            wanted = *connections,
            body_cache_mib = cached >> 20,
            "fewer connections a shard or bodies in memory than configured: RLIMIT_NOFILE is low"
        );
    }
    (*connections, *cache) = (granted, cached);
    Ok(())
}

/// A node with fewer connections a shard is not worth starting.
const CONNECTIONS_MIN: u64 = 64;

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
    keys: RootCredentials,
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
        Some(root) => serve_objects(&config, &root.keys, &state, admin_addr, &mut signals).await,
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
fn drain_begins(state: &NodeState) -> Result<()> {
    state.set_phase(NodePhase::Draining);
    tracing::info!("draining; a second signal ends the process at once");
    let signals = Signals::new().context("cannot listen for signals")?;
    tokio::spawn(signals.end_at_once());
    Ok(())
}

async fn serve_objects(
    config: &Config,
    root: &RootCredentials,
    state: &Arc<NodeState>,
    admin_addr: SocketAddr,
    signals: &mut Signals,
) -> Result<()> {
    let mut engine_config = EngineConfig::with_shards(config.shards);
    engine_config.pool_bytes = config.pool_bytes;
    engine_config.seed = credentials::random_seed()?;
    let groups = LightningStorNode::declare(&mut engine_config);
    let engine = Engine::start(engine_config).context("cannot start the shards")?;
    let handle = engine.handle();
    let capabilities = engine.capabilities().clone();
    for missing in &capabilities.missing {
        tracing::warn!(
            missing,
            "the kernel did not grant everything; the node runs slower"
        );
    }
    state.set_running(Running {
        handle: handle.clone(),
        capabilities,
    });
    let mut deaths = ShardDeaths::watch(&handle);
    let bridge = Bridge::new(&handle, config.bridge, state.metrics());

    let mut node_config = config.lightningstor(root)?;
    keep_below_open_files(&mut node_config, config.shards)?;
    let users = node_config.http.users.clone();
    let start = LightningStorNode::start(&handle, groups, node_config);
    let node = tokio::select! {
        started = start => started.context("cannot serve LightningStor")?,
        () = signals.next() => {
            tracing::info!("told to end before everything was recovered");
            return engine.shutdown().context("a shard ended badly");
        }
        shard = deaths.next() => return Err(dead(shard, engine, state)),
    };
    let node = Arc::new(node);
    state.set_lightningstor(Arc::clone(&node));
    let buckets = node.buckets().clone();
    state.set_buckets(BucketService::new(bridge.clone(), buckets, users));
    state.set_phase(NodePhase::Serving);
    announce(Some((&node, config)), admin_addr, state)?;

    tokio::select! {
        () = signals.next() => {}
        shard = deaths.next() => return Err(dead(shard, engine, state)),
    }
    drain_begins(state)?;
    let left = bridge.drain(CALLS_DRAIN_LIMIT).await;
    if left > 0 {
        tracing::warn!(
            left,
            "calls to shards were still running at the drain's deadline"
        );
    }
    let drained = node
        .drain(DRAIN_LIMIT)
        .await
        .context("the drain was not clean");
    let ended = tokio::task::spawn_blocking(move || engine.shutdown()).await?;
    ended.context("a shard ended badly")?;
    drained
}

/// Tells the addresses: one line that programs read, and one that people do.
fn announce(
    objects: Option<(&LightningStorNode, &Config)>,
    admin: SocketAddr,
    state: &NodeState,
) -> Result<()> {
    let mut line = String::from("listening");
    if let Some((node, _)) = objects {
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
    if let Some((node, config)) = objects {
        let (s3, shards, partitions) = (node.s3_addr(), config.shards, node.partitions());
        tracing::info!(%s3, %admin, shards, partitions, user = ROOT_ID, "serving");
    } else {
        tracing::info!(%admin, "serving");
    }
    Ok(())
}

/// What a dead shard says of itself; the other shards are ended.
fn dead(shard: ShardId, engine: Engine, state: &NodeState) -> anyhow::Error {
    state.set_phase(NodePhase::Failed(format!("shard {} died", shard.0)));
    let why = match engine.shutdown() {
        Err(error) => anyhow!(error),
        Ok(()) => anyhow!("it ended without an error"),
    };
    why.context(format!(
        "shard {} died; restart the node to recover what it owned",
        shard.0
    ))
}
