//! A member from its configuration to its end: identity, store, consensus, ports, and the tasks beside.

mod config;
mod identity;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::routing::get;
use chainfire_core::{
    Environment as _, ErrorKind as CoreErrorKind, Options, StateMachine as _, TokioEnvironment,
};
use chainfire_store::{FileBackend, Store};
use control_kit::server::{Limits, Port};
use control_kit::stop::{self, Stop, Stopper};
use control_kit::tls::{ClientTls, ServerTls, TlsFiles};
use tokio::task::JoinHandle;

pub use self::config::{ChainfireConfig, ClusterState, InitialMember};
use self::identity::Identity;
use crate::api::Api;
use crate::consensus::{Change, Consensus, Member};
use crate::error::{Error, ErrorKind};
use crate::gateway;
use crate::grpc::Grpc;
use crate::lease::LeaseKeeper;
use crate::metrics::Metrics;
use crate::raft::{PeerChannels, PeerService, RaftConsensus, RaftNode, StoreMachine};
use crate::watch::SharedHub;
use crate::watch::hub::Hub;

/// Bytes that may wait for a watch stream before its watchers read history instead.
const WATCH_QUEUE_BYTES_MAX: usize = 4 << 20;

/// A running member.
pub struct ChainfireNode {
    consensus: Arc<RaftConsensus>,
    client_addr: SocketAddr,
    peer_addr: SocketAddr,
    api: Arc<Api>,
    metrics: Arc<Metrics>,
    stopper: Stopper,
    peer_stopper: Stopper,
    tasks: Mutex<Vec<JoinHandle<()>>>,
    peer_port: Mutex<Vec<JoinHandle<()>>>,
}

impl ChainfireNode {
    /// Starts a member: a new one, or the one that the data directory holds.
    ///
    /// # Errors
    /// What could not be used, and why.
    pub async fn start(config: ChainfireConfig) -> Result<ChainfireNode, Error> {
        let server_tls = |files: &Option<TlsFiles>| open_tls(files.as_ref(), ServerTls::open);
        let peer_client = open_tls(config.peer_tls.as_ref(), ClientTls::open)?;
        let bind = |addr, tls| Port::bind(addr, tls, Limits::default());
        let unbound = |error| Error::caused(ErrorKind::Port, "ChainFire has no port", error);
        let client_port = bind(config.listen, server_tls(&config.client_tls)?);
        let client_port = client_port.await.map_err(unbound)?;
        let peer_port = bind(config.peer_listen, server_tls(&config.peer_tls)?);
        let peer_port = peer_port.await.map_err(unbound)?;
        let config = config.with_addresses(client_port.addr(), peer_port.addr());

        let identity = identity::take(&config, peer_client.as_ref()).await?;
        let channels = PeerChannels::new(identity.cluster_id, identity.member_id, peer_client);
        let store = open_store(&config.data_dir)?;
        let revision = store.view().revision();
        let hub = SharedHub::new(Hub::new(revision, WATCH_QUEUE_BYTES_MAX));
        let machine = StoreMachine::new(store, Arc::clone(&hub));
        let own = config.own_member(identity.member_id);
        let node = start_node(
            &config.data_dir,
            &identity,
            &own,
            channels.clone(),
            machine,
            config.force_new_cluster,
        )
        .await?;
        let leases = LeaseKeeper::new();
        let consensus =
            RaftConsensus::new(node, identity.cluster_id, channels, Arc::clone(&leases));

        let (stopper, stop) = stop::pair();
        let (peer_stopper, peer_stop) = stop::pair();
        let (client_addr, peer_addr) = (client_port.addr(), peer_port.addr());
        let seam: Arc<dyn Consensus> = Arc::clone(&consensus) as Arc<dyn Consensus>;
        let api = Api::new(Arc::clone(&seam), hub, stop.clone(), config.quota_bytes);
        let peer_routes = PeerService::routes(Arc::clone(&consensus), peer_stop.clone());
        let peer_routes = peer_routes.into_axum_router();
        let peer_port = tokio::spawn(peer_port.serve(peer_routes, peer_stop));
        let metrics = Arc::new(Metrics::new());
        let router = client_router(&api, Arc::clone(&metrics));
        let tasks = vec![
            tokio::spawn(client_port.serve(router, stop.clone())),
            tokio::spawn(Arc::clone(&consensus).follow(stop.clone())),
            tokio::spawn(leases.run(Arc::clone(&seam), stop.clone())),
            tokio::spawn(publish(seam, own, stop)),
        ];
        Ok(ChainfireNode {
            consensus,
            client_addr,
            peer_addr,
            api,
            metrics,
            stopper,
            peer_stopper,
            tasks: Mutex::new(tasks),
            peer_port: Mutex::new(vec![peer_port]),
        })
    }

    /// Where clients are served.
    pub fn client_addr(&self) -> SocketAddr {
        self.client_addr
    }

    /// Where other members are served.
    pub fn peer_addr(&self) -> SocketAddr {
        self.peer_addr
    }

    /// Why somebody has to act; `None` when nobody has.
    pub fn failed(&self) -> Option<String> {
        self.consensus.standing().failed
    }

    /// Why it takes no requests now; `None` when it does.
    pub fn not_ready(&self) -> Option<String> {
        let standing = self.consensus.standing();
        if let Some(cause) = standing.failed {
            return Some(format!("ChainFire serves no more: {cause}"));
        }
        let leaderless = standing.leader_id == 0;
        leaderless.then(|| "no leader is known; start a majority of the voters".to_owned())
    }

    /// Its metrics as Prometheus reads them.
    pub fn prometheus(&self) -> String {
        self.metrics.text(&self.api)
    }

    /// Ends it: requests in flight may finish, then consensus ends with its log on the disk.
    ///
    /// # Errors
    /// The log or the store did not end well.
    pub async fn shutdown(&self) -> Result<(), Error> {
        self.stopper.stop();
        wait(&self.tasks).await;
        if self.consensus.standing().leads() {
            // Somebody else leads at once instead of after an election, if there is anybody.
            if let Err(status) = self.consensus.transfer(0).await {
                tracing::debug!(%status, "leadership is not handed over");
            }
        }
        let ended = self.consensus.node().shutdown().await;
        self.peer_stopper.stop();
        wait(&self.peer_port).await;
        ended
            .map_err(|error| Error::caused(ErrorKind::Storage, "ChainFire did not end well", error))
    }
}

async fn wait(tasks: &Mutex<Vec<JoinHandle<()>>>) {
    let tasks = std::mem::take(&mut *tasks.lock().unwrap_or_else(PoisonError::into_inner));
    for task in tasks {
        // A task that panicked has said so.
        let _ = task.await;
    }
}

fn open_tls<T>(
    files: Option<&TlsFiles>,
    open: impl FnOnce(TlsFiles) -> Result<T, control_kit::Error>,
) -> Result<Option<T>, Error> {
    let opened = files.cloned().map(open).transpose();
    opened.map_err(|error| Error::caused(ErrorKind::Config, "ChainFire's certificates", error))
}

fn open_store(data_dir: &Path) -> Result<Store, Error> {
    let path = data_dir.join("store.redb");
    let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
        let what = format!("cannot open the store {}", path.display());
        Error::caused(ErrorKind::Storage, what, error)
    };
    let mut options = std::fs::OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    let file = options.open(&path).map_err(|error| failed(error.into()))?;
    let backend = FileBackend::new(file).map_err(|error| failed(error.into()))?;
    Store::open(backend, chainfire_store::Options::default()).map_err(|error| failed(error.into()))
}

async fn start_node(
    data_dir: &Path,
    identity: &Identity,
    own: &Member,
    channels: PeerChannels,
    machine: StoreMachine,
    force_new_cluster: bool,
) -> Result<RaftNode, Error> {
    let path = data_dir.join("log");
    let storage = |error| {
        let what = format!("cannot open the log {}", path.display());
        Error::caused(ErrorKind::Storage, what, error)
    };
    let environment = TokioEnvironment::open(&path).map_err(storage)?;
    let options = Options::new(identity.member_id);
    if force_new_cluster {
        let standing = machine.standing().map_err(storage)?;
        let disk = environment.log_disk();
        let id = identity.member_id;
        let forced = chainfire_core::force_new_cluster(disk, options.wal, &standing, id);
        let given_up = forced.map_err(|error| {
            let what = "cannot make a new cluster of this member";
            Error::caused(ErrorKind::Cluster, what, error)
        })?;
        for (other, member) in given_up {
            tracing::warn!(
                id = format!("{other:x}"),
                name = member.name,
                "member given up"
            );
        }
    }
    let started = |error| Error::caused(ErrorKind::Storage, "ChainFire cannot start", error);
    let node = RaftNode::start(environment, channels, machine, options)
        .await
        .map_err(started)?;
    if identity.initial.is_empty() || node.is_initialized().await.map_err(started)? {
        return Ok(node);
    }
    match node.initialize(identity.initial_members(own)).await {
        // Another of the first members was faster.
        Err(error) if error.kind() == CoreErrorKind::Exists => Ok(node),
        made => made.map(|()| node).map_err(started),
    }
}

/// The client port: gRPC, the JSON gateway, and what Prometheus asks for.
fn client_router(api: &Arc<Api>, metrics: Arc<Metrics>) -> Router {
    let told = Arc::clone(api);
    let prometheus = move || std::future::ready(metrics.text(&told));
    Grpc::routes(api)
        .into_axum_router()
        .merge(gateway::router(Arc::clone(api)))
        .route("/metrics", get(prometheus))
}

/// Tells the cluster this member's name and client URLs, until it knows them.
async fn publish(consensus: Arc<dyn Consensus>, own: Member, stop: Stop) {
    const RETRY: std::time::Duration = std::time::Duration::from_secs(1);
    loop {
        let standing = consensus.standing();
        let known = standing.members.iter().find(|member| member.id == own.id);
        let same = known
            .is_some_and(|known| known.name == own.name && known.client_urls == own.client_urls);
        if same {
            return;
        }
        let changed = match known {
            Some(_) => consensus
                .change(Change::Update(own.clone()))
                .await
                .map(drop),
            None => Err(tonic::Status::unavailable(
                "the cluster is not known here yet",
            )),
        };
        if let Err(status) = changed {
            tracing::debug!(%status, "the member's URLs are not known to the cluster yet");
        }
        tokio::select! {
            () = stop.requested() => return,
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}
