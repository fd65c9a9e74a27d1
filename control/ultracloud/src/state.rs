//! What the node is doing, as the admin endpoint tells it.

use std::sync::{Arc, OnceLock};

use balancers::{BalancerNode, BalancerService};
use chainfire::node::ChainfireNode;
use control_kit::metrics::Registry;
use engine::{Capabilities, EngineHandle};
use lightningstor::node::LightningStorNode;
use tokio::sync::watch;
use volumes::{VolumeNode, VolumeService};

use crate::buckets::BucketService;

/// Where the node is in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePhase {
    /// Shards start and partitions recover.
    Starting,
    /// All that the node serves is served.
    Serving,
    /// No new requests; those in flight end.
    Draining,
    /// Something broke; the process is about to end.
    Failed(String),
}

impl NodePhase {
    /// Why the node does not serve; `None` when it does.
    pub fn why_not(&self) -> Option<String> {
        match self {
            NodePhase::Serving => None,
            NodePhase::Starting => Some("starting: partitions are being recovered".into()),
            NodePhase::Draining => Some("draining: the node is shutting down".into()),
            NodePhase::Failed(why) => Some(format!("failed: {why}")),
        }
    }
}

/// The engine, once it runs.
pub struct Running {
    /// Calls into the shards.
    pub handle: EngineHandle,
    /// What the kernel granted.
    pub capabilities: Capabilities,
}

/// Shared between the node and its admin endpoint.
pub struct NodeState {
    phase: watch::Sender<NodePhase>,
    running: OnceLock<Running>,
    lightningstor: OnceLock<Arc<LightningStorNode>>,
    chainfire: OnceLock<Arc<ChainfireNode>>,
    buckets: OnceLock<BucketService>,
    coronafs: OnceLock<Arc<VolumeNode>>,
    volumes: OnceLock<VolumeService>,
    fiberlb: OnceLock<(Arc<BalancerNode>, BalancerService)>,
    metrics: Registry,
}

impl NodeState {
    /// A node that starts.
    pub fn new() -> Arc<NodeState> {
        Arc::new(NodeState {
            phase: watch::Sender::new(NodePhase::Starting),
            running: OnceLock::new(),
            lightningstor: OnceLock::new(),
            chainfire: OnceLock::new(),
            buckets: OnceLock::new(),
            coronafs: OnceLock::new(),
            volumes: OnceLock::new(),
            fiberlb: OnceLock::new(),
            metrics: Registry::default(),
        })
    }

    /// Where it is now.
    pub fn phase(&self) -> NodePhase {
        self.phase.borrow().clone()
    }

    /// Goes on to another phase.
    pub fn set_phase(&self, phase: NodePhase) {
        self.phase.send_replace(phase);
    }

    /// The metrics of the node's own parts.
    pub fn metrics(&self) -> &Registry {
        &self.metrics
    }

    /// The engine runs. Later calls change nothing.
    pub fn set_running(&self, running: Running) {
        let _ = self.running.set(running);
    }

    /// The engine, once it runs.
    pub fn running(&self) -> Option<&Running> {
        self.running.get()
    }

    /// LightningStor serves. Later calls change nothing.
    pub fn set_lightningstor(&self, node: Arc<LightningStorNode>) {
        let _ = self.lightningstor.set(node);
    }

    /// LightningStor, once it serves.
    pub fn lightningstor(&self) -> Option<&Arc<LightningStorNode>> {
        self.lightningstor.get()
    }

    /// Buckets can be administered. Later calls change nothing.
    pub fn set_buckets(&self, buckets: BucketService) {
        let _ = self.buckets.set(buckets);
    }

    /// The administration of buckets, once LightningStor serves.
    pub fn buckets(&self) -> Option<&BucketService> {
        self.buckets.get()
    }

    /// CoronaFS has recovered. Later calls change nothing.
    pub fn set_coronafs(&self, node: Arc<VolumeNode>) {
        let _ = self.coronafs.set(node);
    }

    /// CoronaFS, once it has recovered.
    pub fn coronafs(&self) -> Option<&Arc<VolumeNode>> {
        self.coronafs.get()
    }

    /// Volumes can be administered. Later calls change nothing.
    pub fn set_volumes(&self, volumes: VolumeService) {
        let _ = self.volumes.set(volumes);
    }

    /// The administration of volumes, once CoronaFS serves.
    pub fn volumes(&self) -> Option<&VolumeService> {
        self.volumes.get()
    }

    /// FiberLB runs. Later calls change nothing.
    pub fn set_fiberlb(&self, node: Arc<BalancerNode>, service: BalancerService) {
        let _ = self.fiberlb.set((node, service));
    }

    /// FiberLB, once it runs.
    pub fn fiberlb(&self) -> Option<&Arc<BalancerNode>> {
        self.fiberlb.get().map(|(node, _)| node)
    }

    /// The administration of load balancers, once FiberLB runs.
    pub fn balancers(&self) -> Option<&BalancerService> {
        self.fiberlb.get().map(|(_, service)| service)
    }

    /// ChainFire runs. Later calls change nothing.
    pub fn set_chainfire(&self, node: Arc<ChainfireNode>) {
        let _ = self.chainfire.set(node);
    }

    /// ChainFire, once it runs.
    pub fn chainfire(&self) -> Option<&Arc<ChainfireNode>> {
        self.chainfire.get()
    }
}
