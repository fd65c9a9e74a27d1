//! Volumes as users administer them: found by name on all shards, changed on the one that owns them.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use control_kit::api::Caller;
use control_kit::api_error::ApiError;
use control_kit::audit::Event;
use control_kit::request_id::RequestId;
use coronafs::{Attach, Partition, VolumeError, VolumeId};
use engine::ShardId;
use futures_util::future::try_join_all;
use shard_bridge::{Bridge, CallContext, Failure, Target, Tenant};
use shards::TenantId;
use shards::placement::PartitionId;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::attachments::{Attachments, Entry};
use crate::error::{denied, told};
use crate::node::VolumeNode;
use crate::shard::{VolumesShard, Wanted};

mod attach;
mod snapshots;
mod volumes;

/// Who may do everything.
const ROOT: &str = "root";
/// How long what a user does not wait for any more may go on.
const CLEAN_UP_LIMIT: Duration = Duration::from_mins(1);
const SHUT_DOWN: &str = "the node is shutting down";

/// Serves `ultracloud.coronafs.v1.Volumes`. The tenant of a call is the user. Clones are the same.
#[derive(Clone)]
pub struct VolumeService {
    inner: Arc<Inner>,
}

struct Inner {
    bridge: Bridge,
    node: Arc<VolumeNode>,
    tenant_of: Box<dyn Fn(&str) -> TenantId + Send + Sync>,
    /// Held by whoever gives a volume a name: names are unique over all partitions.
    names: Mutex<()>,
    attachments: Mutex<Attachments>,
}

impl std::fmt::Debug for VolumeService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VolumeService").finish_non_exhaustive()
    }
}

/// A volume that a user has named.
#[derive(Clone, Debug)]
struct Found {
    id: VolumeId,
    owner: String,
    name: String,
}

impl Found {
    fn object(&self) -> String {
        object(&self.owner, &self.name)
    }
}

fn object(owner: &str, name: &str) -> String {
    format!("volume {name} of {owner}")
}

impl VolumeService {
    /// The service of a node's volumes: reads what was attached when the node ended, and serves it again.
    /// What cannot be served says so in its volume's attachments, and keeps nobody else waiting.
    ///
    /// # Errors
    /// When the list of attachments cannot be read.
    pub async fn start(
        bridge: Bridge,
        node: Arc<VolumeNode>,
        tenant_of: impl Fn(&str) -> TenantId + Send + Sync + 'static,
    ) -> std::io::Result<VolumeService> {
        let root = node.root().clone();
        let attachments = tokio::task::spawn_blocking(move || Attachments::load(&root)).await;
        let attachments = attachments.map_err(std::io::Error::other)??;
        let service = VolumeService {
            inner: Arc::new(Inner {
                bridge,
                node,
                tenant_of: Box::new(tenant_of),
                names: Mutex::default(),
                attachments: Mutex::new(attachments),
            }),
        };
        service.restore().await;
        Ok(service)
    }

    async fn restore(&self) {
        let mut attachments = self.inner.attachments.lock().await;
        let all: Vec<Entry> = attachments.entries().to_vec();
        for (at, entry) in all.into_iter().enumerate() {
            let attached = entry.attached;
            let volume = VolumeId(attached.volume);
            let wanted = Wanted {
                volume,
                how: Attach {
                    access: attached.access.into(),
                    take_over: false,
                },
                queues: attached.queues,
                again: Some((attached.id, attached.socket.clone())),
            };
            let made = self.own_call(volume, |shard| shard.attach(wanted)).await;
            let state = made.map(|made| made.generation).map_err(|failure| {
                let why = format!("{failure}");
                let socket = attached.socket.display();
                tracing::error!(volume = %hex(volume), %socket, why, "not attached again");
                why
            });
            attachments.note(at, state);
        }
    }

    /// Attachments that should serve and do not, and why.
    pub async fn not_serving(&self) -> Vec<(String, String)> {
        let attachments = self.inner.attachments.lock().await;
        let failed = attachments.entries().iter().filter_map(|entry| {
            let why = entry.state.as_ref().err()?;
            Some((hex(VolumeId(entry.attached.volume)), why.clone()))
        });
        failed.collect()
    }

    fn context(&self, caller: &Caller) -> CallContext {
        let user = &*caller.principal.tenant;
        CallContext {
            tenant: Tenant::new(user, (self.inner.tenant_of)(user)),
            request: caller.request_id.clone(),
            deadline: caller.deadline,
        }
    }

    /// The shard of a volume, or of a partition's place.
    fn shard_of(&self, partition: PartitionId) -> Target<VolumesShard> {
        let node = &self.inner.node;
        Target::Shard(node.values().clone(), node.map().shard_of(partition))
    }

    async fn on_shard<R, E, F, Fut>(
        &self,
        caller: &Caller,
        volume: VolumeId,
        f: F,
    ) -> Result<R, Failure<E>>
    where
        R: Send + 'static,
        E: Send + 'static,
        F: FnOnce(std::rc::Rc<VolumesShard>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<R, E>> + 'static,
    {
        let target = self.shard_of(volume.partition());
        let context = self.context(caller);
        self.inner.bridge.call(&context, target, f).await
    }

    /// A call of the node's own, not of a user's.
    async fn own_call<R, E, F, Fut>(&self, volume: VolumeId, f: F) -> Result<R, Failure<E>>
    where
        R: Send + 'static,
        E: Send + 'static,
        F: FnOnce(std::rc::Rc<VolumesShard>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<R, E>> + 'static,
    {
        let context = CallContext {
            tenant: Tenant::new(ROOT, (self.inner.tenant_of)(ROOT)),
            request: RequestId::next(),
            deadline: Instant::now() + CLEAN_UP_LIMIT,
        };
        let target = self.shard_of(volume.partition());
        self.inner.bridge.call(&context, target, f).await
    }

    /// Runs work on the partition of a volume.
    async fn on_partition<R, F, Fut>(
        &self,
        caller: &Caller,
        volume: VolumeId,
        f: F,
    ) -> Result<R, Failure<VolumeError>>
    where
        R: Send + 'static,
        F: FnOnce(Partition) -> Fut + Send + 'static,
        Fut: Future<Output = Result<R, VolumeError>> + 'static,
    {
        self.on_shard(caller, volume, move |shard| async move {
            let partition = shard.partition(volume.partition())?.clone();
            f(partition).await
        })
        .await
    }

    /// Runs the same on every shard.
    async fn on_all<R, F>(&self, caller: &Caller, f: F) -> Result<Vec<R>, Failure<VolumeError>>
    where
        R: Send + 'static,
        F: Fn(&VolumesShard) -> R + Clone + Send + 'static,
    {
        let values = self.inner.node.values();
        let context = self.context(caller);
        let calls = (0..values.shards() as u16).map(|shard| {
            let target = Target::Shard(values.clone(), ShardId(shard));
            let f = f.clone();
            self.inner
                .bridge
                .call(&context, target, move |shard| async move { Ok(f(&shard)) })
        });
        try_join_all(calls).await
    }

    /// The volume of a name, for its owner and root.
    ///
    /// # Errors
    /// `PermissionDenied`, `NotFound`, those of the bridge.
    async fn find(&self, caller: &Caller, owner: &str, name: &str) -> Result<Found, ApiError> {
        let owner = owner_of(caller, owner)?;
        let object = object(&owner, name);
        let id = self.look_up(caller, &owner, name).await?;
        let id = id.ok_or_else(|| told(Failure::Service(VolumeError::NoSuchVolume), &object))?;
        Ok(Found {
            id,
            owner,
            name: name.to_owned(),
        })
    }

    async fn look_up(
        &self,
        caller: &Caller,
        owner: &str,
        name: &str,
    ) -> Result<Option<VolumeId>, ApiError> {
        let wanted = (owner.to_owned(), name.to_owned());
        let found = self.on_all(caller, move |shard| shard.find(&wanted.0, &wanted.1));
        let found = found
            .await
            .map_err(|failure| told(failure, &object(owner, name)))?;
        Ok(found.into_iter().flatten().next())
    }
}

/// Whose volumes are meant: the caller's own, or for root anybody's.
fn owner_of(caller: &Caller, owner: &str) -> Result<String, ApiError> {
    let user = &*caller.principal.tenant;
    match owner {
        "" => Ok(user.to_owned()),
        owner if owner == user || user == ROOT => Ok(owner.to_owned()),
        owner => Err(denied(format!("the volumes of user {owner}"))),
    }
}

/// A number as users see it.
fn hex(id: VolumeId) -> String {
    format!("{:016x}", id.0)
}

/// A change that was made, as a line of the log.
fn audit(caller: &Caller, action: &str, object: String) {
    let at = SystemTime::now().duration_since(UNIX_EPOCH);
    let event = Event {
        at_unix_ms: at.map_or(0, |at| at.as_millis() as u64),
        tenant: caller.principal.tenant.to_string(),
        principal: caller.principal.name.to_string(),
        request_id: caller.request_id.as_str().to_owned(),
        action: action.to_owned(),
        object,
        outcome: "done".to_owned(),
        detail: String::new(),
    };
    event.log();
}
