//! LightningStor on all shards of an engine: format, recovery, serving, drain.
//!
//! The number of partitions is written down once, when the data directory is first used; later
//! starts place them on however many shards there are. All partitions recover, and all shards know the
//! buckets, before one connection is accepted. A drain first lets every request on every shard end, and only then closes the stores:
//! a request on one shard may be at work in the store of another.

use std::cell::{OnceCell, RefCell};
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use engine::net::{Addr, ListenOptions, Listener};
use engine::{CallError, EngineConfig, EngineHandle, ShardId, Sharded};
use segment_log::data_dir::{self, FormatError};
use shards::placement::PartitionId;
use shards::service::{LifecycleError, Readiness};
use shards::{Lifecycle, PlacementMap, Router, Service};

use crate::buckets::Buckets;
use crate::http::{self, HttpConfig, HttpMetrics, Server};
use crate::store::{Groups, Images, StoreConfig, StoreError, StoreMetrics, StoreShard};

/// Calls of one shard to others that may be in flight.
const CALLS_MAX: u32 = 4096;
/// Longest that an operation of the store may take on its owner.
const CALL_DEADLINE: Duration = Duration::from_mins(1);

/// Everything that a node is told.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Where the data is.
    pub data_dir: PathBuf,
    /// Partitions of a new data directory; an old one keeps its own number.
    pub partitions: u16,
    /// The S3 front.
    pub http: HttpConfig,
    /// The stores.
    pub store: StoreConfig,
}

/// Why a node did not start or end well.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// The data directory was not made by this program, or by a newer one.
    #[error("the data directory cannot be used")]
    Format(#[from] FormatError),
    /// A shard did not answer.
    #[error("a shard did not answer")]
    Call(#[from] CallError),
    /// The placement was refused.
    #[error("the partitions cannot be placed")]
    Placement(#[from] shards::InstallError),
    /// A shard failed to start, recover, serve or drain.
    #[error("LightningStor failed")]
    Service(#[from] LifecycleError),
}

/// Why one shard's part failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ShardError {
    /// Its store.
    #[error("the store failed")]
    Store(#[from] StoreError),
    /// Its listener.
    #[error("S3 cannot be served on {at}")]
    Listen {
        /// The address.
        at: SocketAddr,
        /// What the kernel said.
        source: std::io::Error,
    },
}

/// LightningStor on all shards of one engine.
pub struct LightningStorNode {
    engine: EngineHandle,
    lifecycle: Lifecycle<NodeShard>,
    images: Images,
    buckets: Buckets,
    bound: SocketAddr,
    partitions: u16,
}

impl fmt::Debug for LightningStorNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LightningStorNode")
            .field("bound", &self.bound)
            .finish_non_exhaustive()
    }
}

/// One shard's counters.
#[derive(Debug)]
pub struct NodeMetrics {
    /// The store's.
    pub store: StoreMetrics,
    /// Partitions that take no more writes, and why.
    pub poisoned: Vec<(PartitionId, String)>,
    /// The S3 front's.
    pub http: HttpMetrics,
}

impl LightningStorNode {
    /// Declares the calls between shards; before the engine starts.
    pub fn declare(config: &mut EngineConfig) -> Groups {
        Groups {
            objects: config.add_service("lightningstor", 1, CALLS_MAX, CALL_DEADLINE),
            inner: config.add_service("lightningstor-inner", 2, CALLS_MAX, CALL_DEADLINE),
        }
    }

    /// Opens the data directory, recovers every partition and serves. From any thread.
    ///
    /// # Errors
    /// [`NodeError`]; nothing serves then.
    pub async fn start(
        engine: &EngineHandle,
        groups: Groups,
        config: NodeConfig,
    ) -> Result<LightningStorNode, NodeError> {
        let (root, partitions) = (&config.data_dir, config.partitions);
        let opened = data_dir::open_on_shard(engine, root, 'p', partitions);
        let partitions = opened.await??;
        let map = PlacementMap::spread(partitions, engine.shards() as u16);
        let stores = Sharded::new(engine);
        let router = Router::new(&stores);
        router.install(map.clone()).await?;
        let plan = Plan {
            config,
            groups,
            map,
            stores,
            router,
            bound: Arc::default(),
        };
        let bound = Arc::clone(&plan.bound);
        let images = Images::new(plan.router.clone(), groups);
        let buckets = Buckets::new(plan.router.clone(), groups);
        let lifecycle =
            Lifecycle::start_all(engine, move |shard| NodeShard::new(shard, plan.clone())).await?;
        // Only now: a request on one shard works in the store of another, which must know the
        // buckets by then.
        for shard in engine.shard_ids() {
            let values = lifecycle.values().clone();
            let accepting = engine.call(shard, move |_| {
                Box::pin(async move { values.local().accept() })
            });
            accepting.await?;
        }
        let bound = *bound
            .get()
            .expect("a node that serves has bound its address");
        Ok(LightningStorNode {
            engine: engine.clone(),
            lifecycle,
            images,
            buckets,
            bound,
            partitions,
        })
    }

    /// Where S3 is served.
    pub fn s3_addr(&self) -> SocketAddr {
        self.bound
    }

    /// Partitions of the data directory.
    pub fn partitions(&self) -> u16 {
        self.partitions
    }

    /// Objects as images, on any shard of the node.
    pub fn images(&self) -> &Images {
        &self.images
    }

    /// The buckets, to be administered on any shard of the node.
    pub fn buckets(&self) -> &Buckets {
        &self.buckets
    }

    /// Whether all shards serve.
    pub fn readiness(&self) -> Readiness {
        self.lifecycle.readiness()
    }

    /// Stops accepting, gives requests in flight `limit` to end, and closes the stores.
    ///
    /// # Errors
    /// When a shard failed to close or is gone. The data is safe all the same; the next start
    /// replays more of the log.
    pub async fn drain(&self, limit: Duration) -> Result<(), NodeError> {
        let drains = self.engine.shard_ids().map(|shard| {
            let values = self.lifecycle.values().clone();
            self.engine.call(shard, move |_| {
                Box::pin(async move {
                    let Some(server) = values.try_local().and_then(|s| s.server.get().cloned())
                    else {
                        return;
                    };
                    if engine::timeout(limit, server.drain()).await.is_none() {
                        let left = server.metrics().connections;
                        tracing::warn!(left, "requests were still running at the drain's deadline");
                    }
                })
            })
        });
        for drained in futures_util::future::join_all(drains).await {
            drained?;
        }
        Ok(self.lifecycle.drain(limit).await?)
    }

    /// Counters by shard; a shard that is gone is missing.
    pub async fn metrics(&self) -> Vec<(ShardId, NodeMetrics)> {
        let all = self.lifecycle.metrics().await;
        all.into_iter()
            .filter_map(|(shard, metrics)| Some((shard, metrics?)))
            .collect()
    }

    /// Partitions that take no more writes since a write or flush failed, and why; reads go on.
    pub async fn poisoned(&self) -> Vec<(PartitionId, String)> {
        let all = self.metrics().await.into_iter();
        all.flat_map(|(_, metrics)| metrics.poisoned).collect()
    }

    /// Prometheus text of all shards.
    pub async fn prometheus(&self) -> String {
        let mut text = String::new();
        let (mut stores, mut fronts) = (Vec::new(), Vec::new());
        for (shard, metrics) in self.metrics().await {
            stores.push((shard.0, metrics.store));
            fronts.push((shard.0, metrics.http));
        }
        crate::store::prometheus(&mut text, &stores);
        http::prometheus(&mut text, &fronts);
        text
    }
}

/// What every shard is made from.
#[derive(Clone)]
struct Plan {
    config: NodeConfig,
    groups: Groups,
    map: PlacementMap,
    stores: Sharded<StoreShard>,
    router: Router<StoreShard>,
    bound: Arc<OnceLock<SocketAddr>>,
}

/// One shard's part of the node.
struct NodeShard {
    shard: ShardId,
    plan: Plan,
    /// Until connections are accepted. The first shard's is bound early: it settles the port for all.
    listener: RefCell<Option<Listener>>,
    store: OnceCell<Rc<StoreShard>>,
    server: OnceCell<Rc<Server>>,
}

impl NodeShard {
    fn new(shard: ShardId, plan: Plan) -> Rc<NodeShard> {
        Rc::new(NodeShard {
            shard,
            plan,
            listener: RefCell::default(),
            store: OnceCell::new(),
            server: OnceCell::new(),
        })
    }

    fn bind(at: SocketAddr) -> Result<(Listener, SocketAddr), ShardError> {
        let failed = |source| ShardError::Listen { at, source };
        let options = ListenOptions {
            reuse_port: true,
            backlog: http::BACKLOG,
        };
        let listener = Listener::bind(&Addr::Inet(at), options).map_err(failed)?;
        match listener.local_addr().map_err(failed)? {
            Addr::Inet(bound) => Ok((listener, bound)),
            Addr::Unix(path) => {
                let what = format!("bound to {} instead", path.display());
                Err(failed(std::io::Error::other(what)))
            }
        }
    }

    /// Begins to accept connections; they wait at the listener until then.
    fn accept(&self) {
        let listener = self.listener.borrow_mut().take();
        self.server
            .get()
            .expect("a shard recovers before it serves")
            .accept_from(listener.expect("a shard that serves has its listener"));
    }

    fn root(&self) -> &Path {
        &self.plan.config.data_dir
    }
}

impl Service for NodeShard {
    type Error = ShardError;
    type Metrics = Option<NodeMetrics>;

    async fn start(self: Rc<Self>) -> Result<(), ShardError> {
        if self.shard == ShardId(0) {
            let (listener, bound) = Self::bind(self.plan.config.http.listen)?;
            *self.listener.borrow_mut() = Some(listener);
            self.plan
                .bound
                .set(bound)
                .expect("only the first shard settles the address");
        }
        Ok(())
    }

    async fn recover(self: Rc<Self>) -> Result<(), ShardError> {
        let store = StoreShard::open(self.root(), &self.plan.config.store, &self.plan.map).await?;
        self.plan.stores.set_local(Rc::clone(&store));
        let Plan {
            config,
            router,
            groups,
            ..
        } = &self.plan;
        let front = Server::new(
            config.http.clone(),
            Rc::clone(&store),
            router.clone(),
            *groups,
        );
        let fresh = self.store.set(store).is_ok() && self.server.set(front).is_ok();
        assert!(fresh, "a shard recovers once");
        Ok(())
    }

    async fn serve(self: Rc<Self>) -> Result<(), ShardError> {
        let store = self.store.get().expect("a shard recovers before it serves");
        store
            .load_buckets(&self.plan.router, self.plan.groups)
            .await?;
        if self.listener.borrow().is_none() {
            let at = *self.plan.bound.get().expect("the first shard has started");
            *self.listener.borrow_mut() = Some(Self::bind(at)?.0);
        }
        Ok(())
    }

    async fn drain(self: Rc<Self>) -> Result<(), ShardError> {
        if let Some(server) = self.server.get() {
            // Requests have had their time; those that still run end with the engine.
            server.stop_accepting();
        }
        if let Some(store) = self.store.get() {
            store.close().await?;
        }
        Ok(())
    }

    fn metrics(&self) -> Option<NodeMetrics> {
        let store = self.store.get()?;
        Some(NodeMetrics {
            store: store.metrics(),
            poisoned: store.poisoned(),
            http: self.server.get()?.metrics(),
        })
    }
}
