//! CoronaFS on all shards of an engine: format, recovery, drain.

use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use control_kit::tls::{ClientTls, ServerTls};
use coronafs::VolumeConfig;
use engine::{CallError, EngineHandle, Sharded};
use segment_log::data_dir::{self, FormatError};
use shards::placement::PartitionId;
use shards::service::LifecycleError;
use shards::{Lifecycle, PlacementMap};

use crate::attachments::Attachments;
use crate::images::ImageCatalog;
use crate::metrics::{ShardMetrics, prometheus};
use crate::shard::VolumesShard;

/// Everything that a node is told.
#[derive(Clone)]
pub struct NodeConfig {
    /// The directory of all partitions.
    pub root: PathBuf,
    /// The directory of the sockets that guests connect to.
    pub sockets: PathBuf,
    /// Partitions of a new directory; an old one keeps its own number.
    pub partitions: u16,
    /// How partitions are run.
    pub volumes: VolumeConfig,
    /// What NBD's clients at an address are served with.
    pub nbd_tls: Option<ServerTls>,
    /// Where volumes that are made from images find them.
    pub images: Option<Arc<dyn ImageCatalog>>,
    /// How volumes of other nodes are connected to.
    pub remote_tls: Option<ClientTls>,
}

/// Why a node did not start or end well.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// The directory was not made by this program, or by a newer one.
    #[error("the volumes' directory cannot be used")]
    Format(#[from] FormatError),
    /// The directory of the sockets cannot be made.
    #[error("the sockets' directory {} cannot be made", at.display())]
    Sockets {
        /// The directory.
        at: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The list of what is attached cannot be used.
    #[error("the list of attachments cannot be used")]
    Attachments(#[source] std::io::Error),
    /// A shard did not answer.
    #[error("a shard did not answer")]
    Call(#[from] CallError),
    /// A shard failed to start, recover or drain.
    #[error("CoronaFS failed")]
    Service(#[from] LifecycleError),
}

/// CoronaFS on all shards of one engine.
pub struct VolumeNode {
    lifecycle: Lifecycle<VolumesShard>,
    map: PlacementMap,
    images: Option<Arc<dyn ImageCatalog>>,
    attachments: Attachments,
    /// Whether the verifiers that are written down held until this start.
    verifiers_held: bool,
    remote_tls: Option<ClientTls>,
}

impl VolumeNode {
    /// Opens the directory and recovers every partition. From any thread.
    ///
    /// # Errors
    /// [`NodeError`]; nothing serves then.
    pub async fn start(engine: &EngineHandle, config: NodeConfig) -> Result<VolumeNode, NodeError> {
        let opened = data_dir::open_on_shard(engine, &config.root, 'v', config.partitions);
        let partitions = opened.await??;
        let at = config.sockets.clone();
        let made = tokio::task::spawn_blocking(move || make_private(&at)).await;
        let made = made.map_err(std::io::Error::other).flatten();
        made.map_err(|source| NodeError::Sockets {
            at: config.sockets.clone(),
            source,
        })?;
        let map = PlacementMap::spread(partitions, engine.shards() as u16);
        let root = config.root.clone();
        let images = config.images.clone();
        let attachments = tokio::task::spawn_blocking(move || Attachments::load(&root)).await;
        let attachments = attachments.map_err(std::io::Error::other).flatten();
        let attachments = attachments.map_err(NodeError::Attachments)?;
        // Before a partition is opened: what it says then, it says once.
        let verifiers_held = attachments.begin().await.map_err(NodeError::Attachments)?;
        let remote_tls = config.remote_tls.clone();
        let placed = map.clone();
        let lifecycle = Lifecycle::start_all(engine, move |shard| {
            VolumesShard::new(shard, config.clone(), placed.clone())
        });
        Ok(VolumeNode {
            lifecycle: lifecycle.await?,
            map,
            images,
            attachments,
            verifiers_held,
            remote_tls,
        })
    }

    pub(crate) fn values(&self) -> &Sharded<VolumesShard> {
        self.lifecycle.values()
    }

    pub(crate) fn map(&self) -> &PlacementMap {
        &self.map
    }

    pub(crate) fn images(&self) -> Option<&Arc<dyn ImageCatalog>> {
        self.images.as_ref()
    }

    pub(crate) fn attachments(&self) -> &Attachments {
        &self.attachments
    }

    pub(crate) fn verifiers_held(&self) -> bool {
        self.verifiers_held
    }

    pub(crate) fn remote_tls(&self) -> Option<&ClientTls> {
        self.remote_tls.as_ref()
    }

    /// Partitions of the directory.
    pub fn partitions(&self) -> u16 {
        self.map.partitions()
    }

    /// Ends all exports and closes the partitions; guests wait for the next start.
    ///
    /// # Errors
    /// When a shard failed to close or is gone. What was made durable is safe all the same.
    pub async fn drain(&self, limit: Duration) -> Result<(), NodeError> {
        Ok(self.lifecycle.drain(limit).await?)
    }

    /// Counters by shard; a shard that is gone is missing.
    pub async fn metrics(&self) -> Vec<ShardMetrics> {
        let all = self.lifecycle.metrics().await.into_iter();
        all.map(|(_, metrics)| metrics).collect()
    }

    /// Partitions that take no more writes since a write or flush failed, and why; reads go on.
    pub async fn poisoned(&self) -> Vec<(PartitionId, String)> {
        let all = self.metrics().await.into_iter();
        all.flat_map(|metrics| metrics.poisoned).collect()
    }

    /// Prometheus text of all shards.
    pub async fn prometheus(&self) -> String {
        prometheus(&self.metrics().await)
    }
}

/// Makes a directory that only the node's user may enter: who reaches a socket has the volume.
fn make_private(dir: &Path) -> std::io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(dir)
}
