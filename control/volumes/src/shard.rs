//! One shard's volumes, and what exports them to guests.

use std::cell::{OnceCell, RefCell};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;

use coronafs::{Attach, Attachment, Partition, VolumeError, VolumeId, VolumeInfo, VolumeShard};
use engine::{SchedGroup, ShardId};
use futures_channel::oneshot;
use shards::block::BlockDevice as _;
use shards::placement::PartitionId;
use shards::{PlacementMap, Service};
use vhost_blk::{Endpoint, Export, ExportConfig};

use crate::attachments::Attached;
use crate::metrics::{ExportMetrics, ShardMetrics};
use crate::node::NodeConfig;

/// Why a volume was not attached.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AttachError {
    /// The volume refused.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The socket cannot be served.
    #[error("{0}")]
    Export(String),
}

/// What an attachment is to be.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Which volume, and how it is attached.
    pub volume: VolumeId,
    /// See [`Attach`].
    pub how: Attach,
    /// Rings offered.
    pub queues: u16,
    /// Who it was before a restart.
    pub again: Option<(u64, PathBuf)>,
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

/// A volume that is exported.
struct Served {
    attachment: Rc<Attachment>,
    export: Export,
    queues: u16,
}

impl Served {
    /// Ends the export, then makes durable what came over it.
    async fn end(self) -> Result<(), VolumeError> {
        self.export.stop().await;
        match self.attachment.flush().await {
            // Whoever fenced it has waited for its writes, and a partition that closes makes them durable.
            Ok(()) | Err(shards::block::BlockError::Fenced) => Ok(()),
            Err(error) => Err(VolumeError::Internal(error.to_string())),
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
}

impl VolumesShard {
    pub(crate) fn new(shard: ShardId, config: NodeConfig, map: PlacementMap) -> Rc<VolumesShard> {
        Rc::new(VolumesShard {
            shard,
            config,
            map,
            store: OnceCell::new(),
            served: RefCell::default(),
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
        let Wanted {
            volume,
            how,
            queues,
            again,
        } = wanted;
        let partition = self.partition(volume.partition())?;
        let attachment = Rc::new(partition.attach(volume, how).await?);
        let generation = attachment.generation();
        let (id, socket) = again.unwrap_or_else(|| {
            let name = format!("{:016x}-{generation}.sock", volume.0);
            (generation, self.config.sockets.join(name))
        });
        let config = ExportConfig {
            endpoint: Endpoint::Listen(socket.clone()),
            queues,
            group: SchedGroup::FOREGROUND,
            ..ExportConfig::listen(&socket, format!("volume {:016x}", volume.0))
        };
        let export = Export::start(Rc::clone(&attachment), config)
            .map_err(|error| AttachError::Export(error.to_string()))?;
        let served = Served {
            attachment,
            export,
            queues,
        };
        self.served.borrow_mut().insert((volume, id), served);
        let fenced = self.take(volume, |served| served.attachment.is_fenced());
        let ended = fenced.iter().map(|(id, _)| *id).collect();
        for (_, served) in fenced {
            served.end().await?;
        }
        Ok(Made {
            attached: Attached {
                volume: volume.0,
                id,
                access: how.access.into(),
                queues,
                socket,
            },
            generation,
            ended,
        })
    }

    fn take(&self, volume: VolumeId, which: impl Fn(&Served) -> bool) -> Vec<(u64, Served)> {
        let mut served = self.served.borrow_mut();
        let of_volume = (volume, 0)..=(volume, u64::MAX);
        let taken = served.extract_if(of_volume, |_, served| which(served));
        taken.map(|((_, id), served)| (id, served)).collect()
    }

    /// Ends the attachments of a volume that are not among these; what they wrote is durable then. Runs to
    /// its end when the caller goes away.
    ///
    /// # Errors
    /// When something cannot be made durable: they have ended all the same.
    pub async fn keep_only(
        self: Rc<Self>,
        volume: VolumeId,
        kept: Vec<u64>,
    ) -> Result<(), VolumeError> {
        let ending = async move {
            let mut outcome = Ok(());
            let ids = self.served.borrow().keys().copied().collect::<Vec<_>>();
            let others = ids
                .into_iter()
                .filter(|(of, id)| *of == volume && !kept.contains(id));
            for key in others {
                let served = self.served.borrow_mut().remove(&key);
                if let Some(served) = served {
                    outcome = outcome.and(served.end().await);
                }
            }
            outcome
        };
        in_task(ending).await.unwrap_or(Err(VolumeError::Busy))
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
        let fresh = self.store.set(store).is_ok();
        assert!(fresh, "a shard recovers once");
        Ok(())
    }

    async fn serve(self: Rc<Self>) -> Result<(), VolumeError> {
        Ok(())
    }

    async fn drain(self: Rc<Self>) -> Result<(), VolumeError> {
        let served = self.served.take();
        for (_, served) in served {
            served.end().await?;
        }
        match self.store.get() {
            Some(store) => store.close().await,
            None => Ok(()),
        }
    }

    fn metrics(&self) -> ShardMetrics {
        let served = self.served.borrow();
        let exports = served.iter().map(|((volume, id), served)| ExportMetrics {
            volume: *volume,
            id: *id,
            queues: served.queues,
            generation: served.attachment.generation(),
            stats: served.export.stats(),
        });
        let poisoned = self
            .partitions()
            .filter_map(|partition| Some((partition.id(), partition.poisoned()?)));
        ShardMetrics {
            shard: self.shard,
            exports: exports.collect(),
            poisoned: poisoned.collect(),
        }
    }
}
