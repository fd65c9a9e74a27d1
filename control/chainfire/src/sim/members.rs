//! A member as `node` puts it together, but for ports and files.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chainfire_core::disk::{Disk as _, DiskFile as _};
use chainfire_core::sim::cluster::{self, Members, SimEnvironment};
use chainfire_core::sim::disk::{SimDisk, SimFile};
use chainfire_core::sim::network::SimTransport;
use chainfire_core::sim::runtime::{NodeRuntime, SimRuntime, on};
use chainfire_core::types::NodeId;
use chainfire_core::{AsyncRuntime as _, Member};
use chainfire_store::{Options, RpcError, StorageBackend, Store};
use control_kit::stop::{self, Stop, Stopper};
use etcd_wire::chainfire::LeaseTime;
use etcd_wire::etcdserverpb::{WatchRequest, WatchResponse};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::broken::{Breakage, Broken};
use super::history::SharedHistory;
use super::lease::{SharedTimes, Witness};
use super::ledger::{self, Observed, SharedLedger};
use crate::api::{Api, Caller};
use crate::consensus::Consensus;
use crate::grpc::streams::ClientHistory;
use crate::lease::LeaseKeeper;
use crate::raft::{Peers, RaftConsensus, StoreMachine};
use crate::watch::SharedHub;
use crate::watch::hub::Hub;
use crate::watch::stream::{CHANNEL_LENGTH, WatchStream};

/// A world of whole members.
pub type World = cluster::World<Keys>;
/// The core of a member.
pub type SimNode = cluster::SimNode<Keys>;
type SimConsensus = RaftConsensus<SimEnvironment, SimTransport<Keys>, Observed>;

const FILE: &str = "store";
/// So little that watchers often fall behind.
const WATCH_QUEUE_BYTES_MAX: usize = 600;
/// How long a leader may take to tell a lease's time.
const LEASE_TIMEOUT: Duration = Duration::from_secs(5);
const QUOTA_BYTES: u64 = 1 << 30;

/// A file of a simulated disk, for redb.
#[derive(Debug)]
struct Backend(SimFile);

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.0.size()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, data)
    }
}

fn open_store(disk: &SimDisk) -> io::Result<Store> {
    let file = match disk.open(FILE) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let file = disk.create(FILE)?;
            disk.sync()?;
            file
        }
        opened => opened?,
    };
    let options = Options {
        cache_bytes: 1 << 20,
        purge_versions_max: 8,
        lease_ttl_s_min: 1,
        ..Options::default()
    };
    Store::open(Backend(file), options).map_err(io::Error::other)
}

/// What runs beside the core of a member that is up.
struct Service {
    consensus: Arc<SimConsensus>,
    api: Arc<Api>,
    /// Dropped with the member: each ends one task, so that their order is not left to chance.
    stoppers: Vec<Stopper>,
}

impl Service {
    fn stop(&mut self) -> Stop {
        let (stopper, stop) = stop::pair();
        self.stoppers.push(stopper);
        stop
    }
}

/// A client's end of a watch stream.
pub struct Stream {
    pub requests: mpsc::Sender<Result<WatchRequest, Status>>,
    pub answers: mpsc::Receiver<Result<WatchResponse, Status>>,
}

/// Whole members, and what is known of all of them together.
#[derive(Default)]
pub struct Keys {
    pub ledger: SharedLedger,
    pub history: SharedHistory,
    pub times: SharedTimes,
    breakage: Option<Breakage>,
    hubs: Mutex<BTreeMap<NodeId, Arc<SharedHub>>>,
    services: Mutex<BTreeMap<NodeId, Service>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Keys {
    /// Of which something may be broken.
    pub fn with(breakage: Option<Breakage>) -> Keys {
        Keys {
            breakage,
            ..Keys::default()
        }
    }

    /// What a member that is up may be asked.
    pub fn api(&self, id: NodeId) -> Option<Arc<Api>> {
        let services = lock(&self.services);
        services.get(&id).map(|service| Arc::clone(&service.api))
    }

    fn consensus(&self, id: NodeId) -> Option<Arc<SimConsensus>> {
        let services = lock(&self.services);
        let service = services.get(&id)?;
        Some(Arc::clone(&service.consensus))
    }

    /// A watch stream to a member that is up. To be called on the member.
    pub fn watch(&self, id: NodeId) -> Option<Stream> {
        let mut services = lock(&self.services);
        let service = services.get_mut(&id)?;
        let stop = service.stop();
        let api = Arc::clone(&service.api);
        let (requests, incoming) = mpsc::channel(8);
        let (outgoing, answers) = mpsc::channel(CHANNEL_LENGTH);
        let handle = api.hub.open();
        let caller = Caller::default();
        let stream = WatchStream::new(handle, Arc::new(ClientHistory { api, caller }));
        let incoming = ReceiverStream::new(incoming);
        drop(NodeRuntime::spawn(
            stream.run::<NodeRuntime>(incoming, outgoing, stop),
        ));
        let answers = match self.breakage {
            Some(breakage) => breakage.between(answers),
            None => answers,
        };
        Some(Stream { requests, answers })
    }
}

impl Members for Keys {
    type Machine = Observed;

    fn open(&self, id: NodeId, state: SimDisk) -> io::Result<Observed> {
        let store = open_store(&state)?;
        let view = store.view();
        ledger::lock(&self.ledger).stands(&view);
        let hub = SharedHub::new(Hub::new(view.revision(), WATCH_QUEUE_BYTES_MAX));
        lock(&self.hubs).insert(id, Arc::clone(&hub));
        let machine = StoreMachine::new(store, hub);
        Ok(Observed::new(machine, Arc::clone(&self.ledger)))
    }

    fn started(&self, world: &Arc<World>, node: &SimNode) {
        let id = node.id();
        let hub = lock(&self.hubs).remove(&id);
        let hub = hub.expect("the state machine was opened before");
        let leases = LeaseKeeper::<NodeRuntime>::new();
        let transport = world.transport(id);
        let consensus = SimConsensus::new(node.clone(), 1, transport, Arc::clone(&leases));
        let seam = Arc::new(Broken {
            consensus: Arc::clone(&consensus),
            breakage: self.breakage,
        });
        let (stopper, stop) = stop::pair();
        let mut service = Service {
            api: Api::new(
                Arc::clone(&seam) as Arc<dyn Consensus>,
                hub,
                stop,
                QUOTA_BYTES,
            ),
            consensus: Arc::clone(&consensus),
            stoppers: vec![stopper],
        };
        let witness = Arc::new(Witness {
            consensus: seam,
            times: Arc::clone(&self.times),
            history: Arc::clone(&self.history),
        });
        drop(NodeRuntime::spawn(consensus.follow(service.stop())));
        drop(NodeRuntime::spawn(leases.run(witness, service.stop())));
        lock(&self.services).insert(id, service);
    }

    fn crashed(&self, id: NodeId) {
        let service = lock(&self.services).remove(&id);
        drop(service);
    }
}

impl Peers for SimTransport<Keys> {
    async fn lease_time(
        &self,
        leader: NodeId,
        _member: &Member,
        id: i64,
        peek: bool,
    ) -> Result<Option<LeaseTime>, Status> {
        let asked = async {
            if !self.carry(self.from(), leader).await {
                return std::future::pending().await;
            }
            let consensus = self.world().members.consensus(leader);
            let consensus = consensus.ok_or(RpcError::NoLeader)?;
            if !consensus.standing().leads() {
                return Err(RpcError::LeaderChanged.into());
            }
            let answer = on(leader, consensus.own_lease_time(id, peek)).await;
            if !self.carry(leader, self.from()).await {
                return std::future::pending().await;
            }
            answer
        };
        let answer = SimRuntime::timeout(LEASE_TIMEOUT, asked).await;
        answer.unwrap_or_else(|_| Err(RpcError::Timeout.into()))
    }
}
