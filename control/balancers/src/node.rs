//! FiberLB on a node: program, tables, documents, from start to stop.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use control_kit::metrics::Registry;
use engine::{CallError, EngineHandle};
use fiberlb::attach::AttachMode;
use fiberlb::desired::mapped;
use fiberlb::kernel::KernelTables;
use fiberlb::program::{FiberLb, Options};
use fiberlb::tables::Mirror;
use fiberlb::with_causes;
use fiberlb_abi::Config;
use tokio::task::JoinHandle;

use crate::attach::{Attachments, Purpose, needs_xdp};
use crate::driver::{self, Counts, Shared};
use crate::model::Model;
use crate::spec::{self, Balancer};
use crate::store::{Kept, Store};
use crate::tables::Tables;

/// `f_type` of a bpffs.
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;
/// Of so many new flows one makes an event; a power of two.
const SAMPLE: u32 = 1024;

/// Flows that are remembered by default.
pub const FLOWS_MAX: u32 = fiberlb_abi::FLOWS_MAX;

/// Where tunnels to backends come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tunnels {
    /// Source of outer headers to backends with IPv4.
    pub source_v4: Option<Ipv4Addr>,
    /// Source of outer headers to backends with IPv6.
    pub source_v6: Option<Ipv6Addr>,
    /// Destination port of GUE.
    pub gue_port: u16,
}

/// Tunnels that end here, as on a machine of backends.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TunnelEnds {
    /// Interfaces that they come in by.
    pub interfaces: Vec<String>,
    /// Addresses that they lead to.
    pub addrs: Vec<IpAddr>,
}

/// Everything that a node is told.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// The directory of `balancers.json`.
    pub root: PathBuf,
    /// Interfaces whose packets are balanced.
    pub interfaces: Vec<String>,
    /// How they are attached.
    pub attach: AttachMode,
    /// Where maps and attachments are pinned; without it they end with the process.
    pub pins: Option<PathBuf>,
    /// The program, where it is not where it is looked for.
    pub object: Option<PathBuf>,
    /// Flows that are remembered.
    pub flows_max: u32,
    /// How long a flow that nobody uses is remembered.
    pub flow_idle: Duration,
    /// New flows a second and CPU that are remembered; 0 is no limit.
    pub new_flows_per_s: u32,
    /// New flows of TCP a second and CPU above which a VIP asks sources to prove themselves; 0 is never.
    pub syn_cookies_above_per_s: u32,
    /// Where tunnels come from.
    pub tunnels: Tunnels,
    /// Tunnels that end here.
    pub tunnel_ends: TunnelEnds,
    /// Whether a stop takes the program and its flows away.
    pub detach_on_stop: bool,
}

/// Why a node did not start or end well.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// The file of load balancers cannot be used.
    #[error("the load balancers cannot be read")]
    Store(#[source] std::io::Error),
    /// What the file says is refused, as by an older program.
    #[error("{path}: {what}")]
    Document {
        /// Where in the file.
        path: String,
        /// What is wrong.
        what: String,
    },
    /// The directory of pins is not on a bpffs.
    #[error(
        "{} is on no file system of BPF: mount one (mount -t bpf bpf /sys/fs/bpf), or set fiberlb.pin_dir to a \
         directory of one, or to \"\" for flows that end with the process", at.display()
    )]
    Pins {
        /// The directory.
        at: PathBuf,
    },
    /// The program cannot be loaded.
    #[error("FiberLB's program cannot be loaded")]
    Program(#[from] fiberlb::Error),
    /// The program cannot be taken away.
    #[error("FiberLB's program cannot be taken away")]
    Detach(#[source] std::io::Error),
    /// Shard 0 did not answer.
    #[error("shard 0 did not answer")]
    Call(#[from] CallError),
    /// A thread of the control layer failed.
    #[error("a thread failed")]
    Thread(#[source] tokio::task::JoinError),
}

/// FiberLB on a node.
pub struct BalancerNode {
    shared: Arc<Shared>,
    config: NodeConfig,
    driver: JoinHandle<()>,
}

/// What is ready when the program is loaded.
struct Loaded {
    attachments: Attachments,
    tables: KernelTables,
    mirror: Mirror,
    store: Store,
    kept: Kept,
}

impl BalancerNode {
    /// Loads the program, takes over what is pinned, and begins to bring the tables to what the file says. The
    /// store, which the service writes, comes beside the node.
    ///
    /// # Errors
    /// [`NodeError`]; what an earlier process has pinned goes on then.
    pub async fn start(
        engine: &EngineHandle,
        config: NodeConfig,
        registry: &Registry,
    ) -> Result<(BalancerNode, Store, Kept), NodeError> {
        let told = config.clone();
        let loaded = tokio::task::spawn_blocking(move || load(&told)).await;
        let loaded = loaded.map_err(NodeError::Thread)??;
        let written = loaded.mirror.vips.values();
        let generation = written.map(|vip| vip.generation).max().unwrap_or(0);
        let mut model = Model::new(generation);
        let (store, kept) = (loaded.store, loaded.kept);
        model.replace(&std::collections::BTreeSet::new(), documents(&kept)?);
        for (key, drain) in kept.drains() {
            model.set_drain(&key, Some(drain));
        }
        let started = Tables::start(engine, loaded.tables, loaded.mirror, config.flow_idle);
        let tables = started.await?;
        let shared = Shared::new(model, tables, Arc::new(loaded.attachments));
        let driver = tokio::spawn(driver::run(Arc::clone(&shared), Counts::new(registry)));
        let node = BalancerNode {
            shared,
            config,
            driver,
        };
        Ok((node, store, kept))
    }

    /// Names of the interfaces that are configured.
    pub fn interfaces(&self) -> &[String] {
        &self.config.interfaces
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Why the node does not balance as it should; `None` when it does.
    pub fn not_ready(&self) -> Option<String> {
        let applied = self.shared.tables.applied().borrow().clone();
        if let Some(error) = applied.error {
            return Some(format!("FiberLB: the tables are not as wanted: {error}"));
        }
        if applied.generation == 0 {
            return Some("FiberLB: starting: checks and next hops are not known".to_owned());
        }
        let interfaces = self.shared.attachments.interfaces();
        let mut failed: Vec<String> = interfaces
            .into_iter()
            .filter_map(|interface| {
                let why = interface.error?;
                Some(format!(
                    "FiberLB: interface {} is not attached: {why}",
                    interface.name
                ))
            })
            .collect();
        failed.extend(self.beyond_tc());
        (!failed.is_empty()).then(|| failed.join("\n"))
    }

    /// A listener of before that the way in which an interface is attached now cannot serve.
    fn beyond_tc(&self) -> Option<String> {
        let interface = self.shared.attachments.by_tc()?;
        let model = self.shared.model();
        model.balancers().find_map(|balancer| {
            let listeners = balancer.listeners.iter();
            let mut found =
                listeners.filter_map(|listener| Some((&listener.name, needs_xdp(listener)?)));
            let (listener, what) = found.next()?;
            Some(format!(
                "FiberLB: interface {interface} is attached by tc, and listener {listener} of {} has {what}, which \
                 needs XDP: take another interface, or change the listener",
                balancer.key
            ))
        })
    }

    /// Stops checks. What is pinned goes on without the process, unless the config says otherwise.
    ///
    /// # Errors
    /// When the program was to be taken away and could not be.
    pub async fn stop(&self) -> Result<(), NodeError> {
        self.driver.abort();
        if !self.config.detach_on_stop {
            if let Some(pins) = &self.config.pins {
                tracing::info!(
                    pins = %pins.display(),
                    "packets go on being balanced without the node; fiberlb.detach_on_stop = true ends that"
                );
            }
            return Ok(());
        }
        let attachments = Arc::clone(&self.shared.attachments);
        let removed = tokio::task::spawn_blocking(move || attachments.remove()).await;
        removed
            .map_err(NodeError::Thread)?
            .map_err(NodeError::Detach)
    }
}

impl Drop for BalancerNode {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// The load balancers that a file keeps.
fn documents(kept: &Kept) -> Result<Vec<Balancer>, NodeError> {
    let mut sets = std::collections::BTreeMap::<(&str, &str), Vec<_>>::new();
    for balancer in &kept.balancers {
        let set = sets.entry((&balancer.owner, &balancer.set));
        set.or_default().push(balancer.clone());
    }
    let mut all: Vec<Balancer> = Vec::new();
    for (of, written) in sets {
        let parsed = spec::parse(of, &written, &kept.hosts, all.iter());
        let parsed = parsed.map_err(|faults| NodeError::Document {
            path: format!(
                "balancers.json, set {} of {}: {}",
                of.1, of.0, faults[0].path
            ),
            what: faults[0].what.clone(),
        })?;
        all.extend(parsed);
    }
    Ok(all)
}

/// Reads the file, loads the program and attaches it; blocks.
fn load(config: &NodeConfig) -> Result<Loaded, NodeError> {
    let (store, kept) = Store::open(&config.root).map_err(NodeError::Store)?;
    if let Some(pins) = &config.pins {
        check_pins(pins)?;
    }
    let object = fiberlb::object::read(config.object.as_deref())?;
    let options = Options {
        flows_max: config.flows_max,
        pins: config.pins.clone(),
    };
    let (lb, mut tables) = FiberLb::load(&object, &options).inspect_err(|error| {
        tracing::error!(
            error = with_causes(error),
            "FiberLB's program cannot be loaded"
        );
    })?;
    let before = tables.config()?;
    tables.set_config(&Config {
        insert_cost_ns: 1_000_000_000_u32
            .checked_div(config.new_flows_per_s)
            .unwrap_or(0),
        // A tenth of a second's flows may come at once.
        insert_burst_ns: 100_000_000,
        sample_mask: SAMPLE - 1,
        gue_port: config.tunnels.gue_port.to_be(),
        tunnel_v4: config
            .tunnels
            .source_v4
            .map(|a| mapped(a.into()))
            .unwrap_or_default(),
        tunnel_v6: config
            .tunnels
            .source_v6
            .map(|a| mapped(a.into()))
            .unwrap_or_default(),
        ..before
    })?;
    tables.set_gate_rate(config.syn_cookies_above_per_s)?;
    let mirror = tables.read()?;
    let ends = config.tunnel_ends.addrs.iter().map(|addr| mapped(*addr));
    tables.set_tunnel_ends(&ends.collect())?;
    let balanced = config.interfaces.iter();
    let balanced = balanced.map(|name| (Purpose::Balance, name.clone()));
    let ends = config.tunnel_ends.interfaces.iter();
    let ends = ends.map(|name| (Purpose::EndTunnels, name.clone()));
    let pins = config.pins.clone();
    let attachments = Attachments::new(lb, config.attach, pins, balanced.chain(ends));
    attachments.attach();
    attachments.detach_others();
    Ok(Loaded {
        attachments,
        tables,
        mirror,
        store,
        kept,
    })
}

/// Refuses a directory where nothing can be pinned, before the kernel does without saying why.
fn check_pins(pins: &Path) -> Result<(), NodeError> {
    let there = pins
        .ancestors()
        .find_map(|dir| rustix::fs::statfs(dir).ok());
    let is_bpf = there.is_some_and(|found| found.f_type == BPF_FS_MAGIC);
    if is_bpf {
        return Ok(());
    }
    Err(NodeError::Pins {
        at: pins.to_owned(),
    })
}
