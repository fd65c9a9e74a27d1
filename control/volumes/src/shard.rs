//! One shard's volumes, and what exports them to guests.

mod remote;

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;

use coronafs::{
    Attach, Attachment, Partition, PointInTime, SnapshotId, Survived, VolumeError, VolumeId,
    VolumeInfo, VolumeShard,
};
use engine::net::Addr;
use engine::sync::Semaphore;
use engine::{LocalFut, SchedGroup, ShardId};
use futures_channel::oneshot;
use futures_util::future::join_all;
use nbd_export::{ChangedRanges, ChangedSince, Changes, Listen, Server, ServerConfig, Tls};
use nbd_wire::session::Token;
use shards::block::{BlockDevice as _, BlockError};
use shards::placement::PartitionId;
use shards::{PlacementMap, Service};
use vhost_blk::{Export, ExportConfig};

use crate::attachments::{Attached, Kind, Place};
use crate::metrics::{Counts, ExportMetrics, PartitionMetrics, ShardMetrics, Source, Vhost};
use crate::node::NodeConfig;

use remote::ServedRemote;
pub use remote::{MadeRemote, RemoteBefore, RemoteError, RemoteShown, WantedRemote};

/// What an NBD export is called: whoever chooses nothing gets it.
const EXPORT: &str = "";
/// Snapshots that an NBD export can be compared with, the newest.
const CHANGED_SINCE_MAX: usize = 16;
/// Calls to attach or detach that may wait for their turn.
const TURNS_MAX: usize = 1024;

/// Why a volume was not attached.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AttachError {
    /// The volume refused.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// It cannot be served there; nothing has changed.
    #[error("{0}")]
    Place(String),
    /// A guest that was at work must not go on.
    #[error(
        "writes that the guest was told of may be lost ({0}): restart the guest after its volume was detached and attached again"
    )]
    Lost(String),
    /// It could not be served. Attachments that stood in the way have ended.
    #[error("{why}")]
    Export {
        /// Why.
        why: String,
        /// Those that have ended.
        ended: Vec<u64>,
    },
}

/// What an attachment is to be.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Which volume, and how it is attached.
    pub volume: VolumeId,
    /// See [`Attach`].
    pub how: Attach,
    /// How it is served.
    pub kind: Kind,
    /// Rings offered, with vhost-user.
    pub queues: u16,
    /// An address instead of a socket, with NBD.
    pub listen: Option<SocketAddr>,
    /// Who it was before a restart.
    pub again: Option<(u64, Place)>,
    /// What NBD's clients know it by; another one when it is new.
    pub verifier: Option<Token>,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Made {
    /// The new attachment.
    pub attached: Attached,
    /// Its generation.
    pub generation: u64,
    /// Those of the volume that it ended.
    pub ended: Vec<u64>,
}

/// What exports a volume.
enum Exporter {
    Vhost(Export),
    Nbd(Server<Attachment>),
}

/// A volume that is exported.
struct Served {
    attachment: Rc<Attachment>,
    exporter: Exporter,
    queues: u16,
}

/// Whether an attachment comes again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ends {
    ForGood,
    ForARestart,
}

impl Served {
    /// Ends the export, then makes durable what came over it.
    async fn end(self, ends: Ends) -> Result<(), VolumeError> {
        match self.exporter {
            Exporter::Vhost(export) => export.stop().await,
            Exporter::Nbd(server) if ends == Ends::ForGood => server.stop_for_good().await,
            Exporter::Nbd(server) => server.stop().await,
        }
        match self.attachment.flush().await {
            // Whoever fenced it has waited for its writes, and a partition that closes makes them durable.
            Ok(()) | Err(BlockError::Fenced) => Ok(()),
            Err(error) => Err(VolumeError::Internal(error.to_string())),
        }
    }

    fn counts(&self) -> Counts {
        match &self.exporter {
            Exporter::Vhost(export) => Counts::Vhost(Box::new(Vhost {
                stats: export.stats(),
                latencies: export.latencies(),
                queues: self.queues,
                depths: export.depths(),
            })),
            Exporter::Nbd(server) => {
                // Those of the export count from when a client has chosen it.
                let mut counts = server.export_stats(EXPORT).unwrap_or_default();
                let before = server.stats();
                counts.turned_away += before.turned_away;
                counts.refusals += before.refusals;
                Counts::Nbd(counts)
            }
        }
    }
}

/// One shard's part of the node.
pub struct VolumesShard {
    shard: ShardId,
    config: NodeConfig,
    map: PlacementMap,
    store: OnceCell<Rc<VolumeShard>>,
    served: RefCell<BTreeMap<(VolumeId, u64), Served>>,
    remotes: RefCell<BTreeMap<String, ServedRemote>>,
    /// Attaching and detaching go one at a time, so that an end never overtakes a begin.
    turns: Semaphore,
    draining: Cell<bool>,
}

impl VolumesShard {
    pub(crate) fn new(shard: ShardId, config: NodeConfig, map: PlacementMap) -> Rc<VolumesShard> {
        Rc::new(VolumesShard {
            shard,
            config,
            map,
            store: OnceCell::new(),
            served: RefCell::default(),
            remotes: RefCell::default(),
            turns: Semaphore::new(1, TURNS_MAX),
            draining: Cell::new(false),
        })
    }

    /// The partition that a volume is in.
    ///
    /// # Errors
    /// `Gone` when it is elsewhere, or nothing is recovered yet.
    pub fn partition(&self, id: PartitionId) -> Result<&Partition, VolumeError> {
        self.store.get().ok_or(VolumeError::Gone)?.partition(id)
    }

    fn partitions(&self) -> impl Iterator<Item = &Partition> {
        self.store
            .get()
            .into_iter()
            .flat_map(|store| store.partitions())
    }

    /// The volume of a name, if it is on this shard.
    pub fn find(&self, owner: &str, name: &str) -> Option<VolumeId> {
        self.partitions()
            .find_map(|partition| partition.find(owner, name))
    }

    /// The first `count` volumes behind an owner and a name, of all partitions of this shard.
    pub fn list(
        &self,
        owner: Option<&str>,
        after: &(String, String),
        count: usize,
    ) -> Vec<VolumeInfo> {
        let mut listed: Vec<VolumeInfo> = self
            .partitions()
            .flat_map(|partition| partition.list_by_name(owner, after, count))
            .collect();
        listed.sort_by(|a, b| (&a.owner, &a.name).cmp(&(&b.owner, &b.name)));
        listed.truncate(count);
        listed
    }

    /// Whether all that NBD's clients were told is written is there, in the partition of a volume, and a verifier
    /// for when it is not.
    ///
    /// # Errors
    /// `Gone`, `Internal`.
    #[expect(
        clippy::unused_async,
        reason = "what a shard is called for is a future"
    )]
    pub async fn judge(self: Rc<Self>, volume: VolumeId) -> Result<(bool, Token), VolumeError> {
        let survived = self.partition(volume.partition())?.survived();
        let fresh = nbd_export::fresh_token();
        let fresh = fresh.map_err(|error| VolumeError::Internal(error.to_string()))?;
        Ok((!matches!(survived, Survived::Flushed(_)), fresh))
    }

    /// Attaches a volume and exports it. Runs to its end when the caller goes away.
    ///
    /// # Errors
    /// [`AttachError`]; then nothing is attached that was not before.
    pub async fn attach(self: Rc<Self>, wanted: Wanted) -> Result<Made, AttachError> {
        let shard = Rc::clone(&self);
        let made = in_task(async move { shard.attach_now(wanted).await }).await;
        made.unwrap_or(Err(AttachError::Volume(VolumeError::Busy)))
    }

    async fn attach_now(&self, wanted: Wanted) -> Result<Made, AttachError> {
        let _turn = self.turns.acquire(1).await.map_err(VolumeError::from)?;
        if self.draining.get() {
            return Err(VolumeError::Gone.into());
        }
        let volume = wanted.volume;
        let partition = self.partition(volume.partition())?.clone();
        if let (Some(_), Kind::VhostUser, Some(why)) =
            (&wanted.again, wanted.kind, partition.survived().lost())
        {
            return Err(AttachError::Lost(why.to_owned()));
        }
        // Before anybody is fenced for it.
        let tls = self.tls(&wanted).map_err(AttachError::Place)?;
        let verifier = match (wanted.kind, wanted.verifier) {
            (Kind::VhostUser, _) => None,
            (Kind::Nbd, Some(verifier)) => Some(verifier),
            (Kind::Nbd, None) => {
                let fresh = nbd_export::fresh_token();
                Some(fresh.map_err(|error| AttachError::Place(error.to_string()))?)
            }
        };
        let attachment = Rc::new(partition.attach(volume, wanted.how).await?);
        let generation = attachment.generation();
        let id = wanted.again.as_ref().map_or(generation, |(id, _)| *id);
        let mut ended = Vec::new();
        for (id, served) in self.take(volume, |served| served.attachment.is_fenced()) {
            // Its writes have ended, and are made durable with the next flush of whoever has it now.
            if let Err(error) = served.end(Ends::ForGood).await {
                tracing::warn!(volume = volume.0, id, %error, "an attachment ended badly");
            }
            ended.push(id);
        }
        let exported = match wanted.kind {
            Kind::VhostUser => self.export_vhost(&attachment, &wanted, id),
            Kind::Nbd => self.export_nbd(&partition, &attachment, &wanted, (id, tls, verifier)),
        };
        let (exporter, place) = match exported {
            Ok(exported) => exported,
            Err(error) => {
                let why = error.to_string();
                return Err(AttachError::Export { why, ended });
            }
        };
        let served = Served {
            attachment,
            exporter,
            queues: wanted.queues,
        };
        self.served.borrow_mut().insert((volume, id), served);
        Ok(Made {
            attached: Attached {
                volume: volume.0,
                id,
                access: wanted.how.access.into(),
                queues: wanted.queues,
                kind: wanted.kind,
                place,
                lost: String::new(),
                verifier,
            },
            generation,
            ended,
        })
    }

    /// Where an attachment is served: where it was, or at a socket of its own.
    fn place(&self, wanted: &Wanted, id: u64) -> Place {
        if let Some((_, place)) = &wanted.again {
            return place.clone();
        }
        if let Some(address) = wanted.listen {
            return Place::Address(address);
        }
        let name = format!("{:016x}-{id}.sock", wanted.volume.0);
        Place::Socket(self.config.sockets.join(name))
    }

    fn export_vhost(
        &self,
        attachment: &Rc<Attachment>,
        wanted: &Wanted,
        id: u64,
    ) -> io::Result<(Exporter, Place)> {
        let place = self.place(wanted, id);
        let Place::Socket(socket) = &place else {
            let what = "vhost-user is served at a unix socket";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        };
        let config = ExportConfig {
            queues: wanted.queues,
            ..ExportConfig::listen(socket, format!("volume {:016x}", wanted.volume.0))
        };
        let export = Export::start(Rc::clone(attachment), config)?;
        Ok((Exporter::Vhost(export), place))
    }

    fn export_nbd(
        &self,
        partition: &Partition,
        attachment: &Rc<Attachment>,
        wanted: &Wanted,
        (id, tls, verifier): (u64, Tls, Option<Token>),
    ) -> io::Result<(Exporter, Place)> {
        let place = self.place(wanted, id);
        let listen = match &place {
            Place::Socket(path) => Listen::Unix(path.clone()),
            Place::Address(address) => Listen::Tcp(*address),
        };
        let server = Server::start(ServerConfig {
            tls,
            ..ServerConfig::new(listen)
        })?;
        let snapshots = partition.snapshots(wanted.volume).into_iter().rev();
        let older = snapshots
            .take(CHANGED_SINCE_MAX)
            .map(|snapshot| ChangedSince {
                name: snapshot.name,
                changes: Rc::new(Since {
                    partition: partition.clone(),
                    volume: wanted.volume,
                    snapshot: snapshot.id,
                }),
            });
        let export = nbd_export::Export {
            changed_since: older.collect(),
            verifier,
            ..nbd_export::Export::new(EXPORT, Rc::clone(attachment))
        };
        server.add(export).map_err(io::Error::other)?;
        let place = match server.addr() {
            Addr::Inet(bound) => Place::Address(*bound),
            Addr::Unix(_) => place,
        };
        Ok((Exporter::Nbd(server), place))
    }

    /// What clients are served with where they connect.
    fn tls(&self, wanted: &Wanted) -> Result<Tls, String> {
        let again = wanted.again.as_ref().map(|(_, place)| place);
        let address = match (again, &wanted.listen) {
            (Some(Place::Address(address)), _) | (None, Some(address)) => address,
            (Some(Place::Socket(_)), _) | (None, None) => return Ok(Tls::None),
        };
        match &self.config.nbd_tls {
            Some(tls) => Ok(Tls::Required(tls.current())),
            None if address.ip().is_loopback() => Ok(Tls::None),
            None => {
                let what =
                    "an address that others reach wants coronafs.nbd_tls in the node's config";
                Err(what.to_owned())
            }
        }
    }

    fn take(&self, volume: VolumeId, which: impl Fn(&Served) -> bool) -> Vec<(u64, Served)> {
        let mut served = self.served.borrow_mut();
        let of_volume = (volume, 0)..=(volume, u64::MAX);
        let taken = served.extract_if(of_volume, |_, served| which(served));
        taken.map(|((_, id), served)| (id, served)).collect()
    }

    /// Ends the attachments of a volume that are not among these; what they wrote is durable then. Which
    /// serve now. Runs to its end when the caller goes away.
    ///
    /// # Errors
    /// When something cannot be made durable: they have ended all the same.
    pub async fn keep_only(
        self: Rc<Self>,
        volume: VolumeId,
        kept: Vec<u64>,
    ) -> Result<Vec<u64>, VolumeError> {
        let ending = async move {
            let _turn = self.turns.acquire(1).await?;
            let ids = self.ids(volume).into_iter();
            let others: Vec<u64> = ids.filter(|id| !kept.contains(id)).collect();
            let mut outcome = Ok(());
            for id in others {
                let served = self.served.borrow_mut().remove(&(volume, id));
                if let Some(served) = served {
                    outcome = outcome.and(served.end(Ends::ForGood).await);
                }
            }
            outcome.map(|()| self.ids(volume))
        };
        in_task(ending).await.unwrap_or(Err(VolumeError::Busy))
    }

    fn ids(&self, volume: VolumeId) -> Vec<u64> {
        let served = self.served.borrow();
        let of_volume = served.range((volume, 0)..=(volume, u64::MAX));
        of_volume.map(|((_, id), _)| *id).collect()
    }
}

/// What a volume has that one of its snapshots has not.
struct Since {
    partition: Partition,
    volume: VolumeId,
    snapshot: SnapshotId,
}

impl Changes for Since {
    fn changed(&self, offset: u64, len: u64) -> LocalFut<Result<ChangedRanges, BlockError>> {
        let (partition, volume) = (self.partition.clone(), self.volume);
        let old = PointInTime::Snapshot(self.snapshot);
        Box::pin(async move {
            let found = partition.diff_volume(old, volume, offset).await;
            let (changed, next) = found.map_err(|error| BlockError::Io(io::Error::other(error)))?;
            let ranges = changed.iter().map(|one| one.offset..one.offset + one.bytes);
            Ok(ChangedRanges {
                ranges: ranges.filter(|range| range.end > offset).collect(),
                end: next.unwrap_or(offset + len),
            })
        })
    }
}

/// Runs work in a task of its own, to its end; `None` when there is no room for it.
async fn in_task<R: 'static>(work: impl Future<Output = R> + 'static) -> Option<R> {
    let (answer, answered) = oneshot::channel();
    let body = async move {
        // The caller may have gone; its work is done.
        let _ = answer.send(work.await);
    };
    let task = engine::try_spawn_local(SchedGroup::FOREGROUND, body).ok()?;
    task.detach();
    answered.await.ok()
}

impl Service for VolumesShard {
    type Error = VolumeError;
    type Metrics = ShardMetrics;

    async fn start(self: Rc<Self>) -> Result<(), VolumeError> {
        Ok(())
    }

    async fn recover(self: Rc<Self>) -> Result<(), VolumeError> {
        let store = VolumeShard::open(&self.config.root, &self.config.volumes, &self.map).await?;
        if let Some(images) = &self.config.images {
            let resolver = images.resolver();
            let partitions = store.partitions();
            partitions.for_each(|one| one.set_image_resolver(Rc::clone(&resolver)));
        }
        let fresh = self.store.set(store).is_ok();
        assert!(fresh, "a shard recovers once");
        Ok(())
    }

    async fn serve(self: Rc<Self>) -> Result<(), VolumeError> {
        Ok(())
    }

    async fn drain(self: Rc<Self>) -> Result<(), VolumeError> {
        self.draining.set(true);
        let turn = self.turns.acquire(1).await?;
        self.leave_remotes().await;
        let served = self.served.take().into_values();
        let ended = join_all(served.map(|served| served.end(Ends::ForARestart)))
            .await
            .into_iter()
            .collect::<Result<(), _>>();
        drop(turn);
        match self.store.get() {
            // Also when one ended badly: the other partitions are closed in order.
            Some(store) => {
                let closed = store.close().await;
                ended.and(closed)
            }
            None => ended,
        }
    }

    fn metrics(&self) -> ShardMetrics {
        let served = self.served.borrow();
        let exports = served.iter().map(|((volume, id), served)| ExportMetrics {
            source: Source::Volume {
                volume: *volume,
                id: *id,
                generation: served.attachment.generation(),
            },
            counts: served.counts(),
        });
        let (remote_exports, remotes) = self.remote_metrics();
        let poisoned = self
            .partitions()
            .filter_map(|partition| Some((partition.id(), partition.poisoned()?)));
        ShardMetrics {
            shard: self.shard,
            exports: exports.chain(remote_exports).collect(),
            remotes,
            poisoned: poisoned.collect(),
            partitions: self
                .partitions()
                .map(|partition| PartitionMetrics {
                    id: partition.id(),
                    bounces: partition.bounces(),
                    joined_bounces: partition.joined_bounces(),
                    share_waits: partition.share_waits(),
                    checksum_pages: partition.checksum_pages(),
                    scrub: partition.scrub_status(),
                })
                .collect(),
        }
    }
}
