//! The shards of a node and what runs on them: LightningStor, CoronaFS and FiberLB, from start to drain.
//!
//! Volumes drain before objects do: an image that fills a volume is an object.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use balancers::{BalancerNode, BalancerService};
use control_kit::stop::Signals;
use engine::{Engine, EngineConfig, EngineHandle, ShardId};
use lightningstor::http::Users;
use lightningstor::node::{LightningStorNode, NodeConfig};
use lightningstor::store::{BODY_COST_MIN, Groups};
use shard_bridge::{Bridge, ShardDeaths};
use shards::{TenantId, resource_hash};
use volumes::{VolumeNode, VolumeService};

use crate::buckets::BucketService;
use crate::config::{Config, Role};
use crate::credentials::{self, RootCredentials};
use crate::images::{self, ObjectImages};
use crate::node::{announce, drain_begins};
use crate::state::{NodePhase, NodeState, Running};

/// How long requests in flight may take to end.
const DRAIN_LIMIT: Duration = Duration::from_secs(30);
/// How long calls of the control layer to shards may take to end; most take milliseconds.
const CALLS_DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// Descriptors that connections leave to files, rings and the control layer.
const FILES_RESERVE: u64 = 512;

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

/// Starts the shards and what runs on them, and waits for the end.
///
/// # Errors
/// Why they did not start, or did not end well.
pub async fn serve(
    config: &Config,
    root: Option<&RootCredentials>,
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

    let starting = start(config, root, &handle, groups, &bridge, state);
    tokio::select! {
        started = starting => started?,
        () = signals.next() => {
            tracing::info!("told to end before everything was recovered");
            return engine.shutdown().context("a shard ended badly");
        }
        shard = deaths.next() => return Err(dead(shard, engine, state)),
    }
    state.set_phase(NodePhase::Serving);
    announce(Some(config.shards), admin_addr, state)?;

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
    let drained = drain(state).await;
    let ended = tokio::task::spawn_blocking(move || engine.shutdown()).await?;
    ended.context("a shard ended badly")?;
    drained
}

/// Starts what the node's roles want on its shards.
async fn start(
    config: &Config,
    root: Option<&RootCredentials>,
    engine: &EngineHandle,
    groups: Groups,
    bridge: &Bridge,
    state: &NodeState,
) -> Result<()> {
    let mut users = None;
    let mut catalog = None;
    if let Some(root) = root {
        let mut node_config = config.lightningstor(root)?;
        keep_below_open_files(&mut node_config, config.shards)?;
        let known = users.insert(node_config.http.users.clone()).clone();
        let node = LightningStorNode::start(engine, groups, node_config).await;
        let node = Arc::new(node.context("cannot serve LightningStor")?);
        state.set_lightningstor(Arc::clone(&node));
        let buckets = node.buckets().clone();
        let buckets = BucketService::new(bridge.clone(), buckets, known);
        catalog = Some(images::catalog(ObjectImages::new(
            buckets.clone(),
            node.images().clone(),
        )));
        state.set_buckets(buckets);
    } else {
        engine::raise_open_files().context("cannot raise the limit of open files")?;
    }
    if config.roles.contains(&Role::CoronaFs) {
        let mut node_config = config.coronafs.node(&config.data_dir, config.shards)?;
        node_config.images = catalog;
        let node = VolumeNode::start(engine, node_config).await;
        let node = Arc::new(node.context("cannot serve CoronaFS")?);
        state.set_coronafs(Arc::clone(&node));
        let tenant = move |user: &str| tenant_of(users.as_ref(), user);
        let service = VolumeService::start(bridge.clone(), node, tenant).await;
        state.set_volumes(service.context("cannot serve CoronaFS")?);
    }
    if config.roles.contains(&Role::FiberLb) {
        let node = BalancerNode::start(engine, config.fiberlb.clone(), state.metrics()).await;
        let (node, store, kept) = node.context("cannot serve FiberLB")?;
        let service = BalancerService::new(&node, store, kept);
        state.set_fiberlb(Arc::new(node), service);
    }
    Ok(())
}

/// Whose work a shard counts it as: the same for objects and volumes of a user.
fn tenant_of(users: Option<&Users>, user: &str) -> TenantId {
    let known = users.map(|users| users.tenant_of(user));
    TenantId(known.unwrap_or_else(|| resource_hash(&[user.as_bytes()])))
}

async fn drain(state: &NodeState) -> Result<()> {
    let mut outcome = Ok(());
    if let Some(node) = state.fiberlb() {
        let stopped = node.stop().await;
        outcome = stopped.context("FiberLB did not end well");
    }
    if let Some(node) = state.coronafs() {
        let drained = node.drain(DRAIN_LIMIT).await;
        outcome = outcome.and(drained.context("the drain of volumes was not clean"));
    }
    if let Some(node) = state.lightningstor() {
        let drained = node.drain(DRAIN_LIMIT).await;
        outcome = outcome.and(drained.context("the drain was not clean"));
    }
    outcome
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
