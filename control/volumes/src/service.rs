//! Volumes as users administer them: found by name on all shards, changed on the one that owns them.

use std::sync::Arc;
use std::time::Duration;

use control_kit::api::Caller;
use control_kit::api_error::ApiError;
use control_kit::request_id::RequestId;
use coronafs::{Attach, Partition, VolumeError, VolumeId};
use engine::ShardId;
use futures_util::future::try_join_all;
use shard_bridge::{Bridge, CallContext, ErrorKind, Failure, Target, Tenant};
use shards::placement::PartitionId;
use shards::{TenantId, resource_hash};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::Instant;
use tonic::Code;

use crate::attachments::{Attachments, Entry, Kind};
use crate::error::{denied, told};
use crate::node::VolumeNode;
use crate::shard::{AttachError, VolumesShard, Wanted};

mod attach;
mod remotes;
mod snapshots;
mod volumes;

/// Who may do everything.
const ROOT: &str = "root";
/// As whom the node calls its shards; no user is called so.
const NODE: &str = "(node)";
/// How long what must not stop half-way may take.
const OWN_CALL_LIMIT: Duration = Duration::from_mins(1);
/// Between two tries of a call for which there was no room.
const OWN_CALL_PAUSE: Duration = Duration::from_millis(50);
const ORDERS: usize = 64;

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
    /// See [`VolumeService::order`]; volumes share them.
    orders: [Mutex<()>; ORDERS],
    /// Held by whoever attaches or detaches a volume of another node.
    remotes: Mutex<()>,
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
        let service = VolumeService {
            inner: Arc::new(Inner {
                bridge,
                node,
                tenant_of: Box::new(tenant_of),
                names: Mutex::default(),
                orders: std::array::from_fn(|_| Mutex::default()),
                remotes: Mutex::default(),
            }),
        };
        service.judge().await?;
        service.restore().await?;
        service.restore_remotes();
        Ok(service)
    }

    fn attachments(&self) -> &Attachments {
        self.inner.node.attachments()
    }

    /// Gives NBD attachments their verifiers: those of before where nothing was lost since. Before any is served.
    async fn judge(&self) -> std::io::Result<()> {
        let held = self.inner.node.verifiers_held();
        let mut verifiers = Vec::new();
        for Entry { attached, .. } in self.attachments().all() {
            if attached.kind != Kind::Nbd {
                continue;
            }
            let volume = VolumeId(attached.volume);
            let judged = self
                .own_call(volume, move |shard| shard.judge(volume))
                .await;
            let (survived, fresh) = judged.map_err(|failure| {
                std::io::Error::other(format!("a partition does not answer: {failure}"))
            })?;
            let known = attached.verifier.filter(|_| held && survived);
            if known.is_none() {
                tracing::warn!(
                    volume = %hex(volume),
                    attachment = attached.id,
                    "NBD's clients of before must not go on: what they were told is written may be lost"
                );
            }
            verifiers.push(((attached.volume, attached.id), known.unwrap_or(fresh)));
        }
        if held && verifiers.is_empty() {
            return Ok(());
        }
        self.attachments().judge(&verifiers).await
    }

    async fn restore(&self) -> std::io::Result<()> {
        for entry in self.attachments().all() {
            let mut attached = entry.attached;
            let volume = VolumeId(attached.volume);
            let attachments = self.attachments();
            if !attached.lost.is_empty() {
                let why = Err(attached.lost.clone());
                attachments.note(attached.volume, attached.id, why).await;
                continue;
            }
            let wanted = Wanted {
                volume,
                how: Attach {
                    access: attached.access.into(),
                    take_over: false,
                },
                kind: attached.kind,
                queues: attached.queues,
                listen: None,
                again: Some((attached.id, attached.place.clone())),
                verifier: attached.verifier,
            };
            let made = self.own_call(volume, move |shard| shard.attach(wanted.clone()));
            let made = made.await;
            let is_lost = matches!(&made, Err(Failure::Service(AttachError::Lost(_))));
            let state = made.map(|made| made.generation).map_err(|failure| {
                let why = failure.to_string();
                let place = &attached.place;
                tracing::error!(volume = %hex(volume), ?place, why, "not attached again");
                why
            });
            if let (true, Err(why)) = (is_lost, &state) {
                // The next start finds nothing missing any more: this one says so for good.
                attached.lost.clone_from(why);
                let entry = Entry {
                    state: state.clone(),
                    attached,
                };
                let (of, id) = (entry.attached.volume, entry.attached.id);
                attachments.change(of, &[id], Some(entry)).await?;
                continue;
            }
            attachments.note(attached.volume, attached.id, state).await;
        }
        Ok(())
    }

    /// Attachments that should serve and do not, and why.
    pub fn not_serving(&self) -> Vec<(String, String)> {
        let all = self.attachments().all().into_iter();
        let failed = all.filter_map(|entry| {
            let why = entry.state.err()?;
            Some((hex(VolumeId(entry.attached.volume)), why))
        });
        failed.collect()
    }

    /// Held by whoever attaches, detaches, rolls back or removes the volume.
    async fn order(&self, volume: VolumeId) -> MutexGuard<'_, ()> {
        let orders = &self.inner.orders;
        let place = resource_hash(&[&volume.0.to_le_bytes()]) as usize % orders.len();
        orders[place].lock().await
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

    /// A call of the node's own, not of a user's: it is tried again while there is no room for it.
    async fn own_call<R, E, F, Fut>(&self, volume: VolumeId, f: F) -> Result<R, Failure<E>>
    where
        R: Send + 'static,
        E: Send + 'static,
        F: Fn(std::rc::Rc<VolumesShard>) -> Fut + Clone + Send + 'static,
        Fut: Future<Output = Result<R, E>> + 'static,
    {
        let context = self.own_context();
        self.own_call_at(&context, || self.shard_of(volume.partition()), f)
            .await
    }

    fn own_context(&self) -> CallContext {
        CallContext {
            tenant: Tenant::new(NODE, (self.inner.tenant_of)(ROOT)),
            request: RequestId::next(),
            deadline: Instant::now() + OWN_CALL_LIMIT,
        }
    }

    async fn own_call_at<R, E, F, Fut>(
        &self,
        context: &CallContext,
        target: impl Fn() -> Target<VolumesShard>,
        f: F,
    ) -> Result<R, Failure<E>>
    where
        R: Send + 'static,
        E: Send + 'static,
        F: Fn(std::rc::Rc<VolumesShard>) -> Fut + Clone + Send + 'static,
        Fut: Future<Output = Result<R, E>> + 'static,
    {
        loop {
            let called = self.inner.bridge.call(context, target(), f.clone()).await;
            let Err(Failure::Bridge(error)) = &called else {
                return called;
            };
            let has_no_room = matches!(
                error.kind(),
                ErrorKind::TenantBusy | ErrorKind::BridgeBusy | ErrorKind::ShardBusy
            );
            if !has_no_room || Instant::now() + OWN_CALL_PAUSE > context.deadline {
                return called;
            }
            tokio::time::sleep(OWN_CALL_PAUSE).await;
        }
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

/// Runs a change to its end, also when its caller goes away, with the node's own deadline.
async fn in_task<R, F, Fut>(caller: &Caller, change: F) -> Result<R, ApiError>
where
    R: Send + 'static,
    F: FnOnce(Caller) -> Fut,
    Fut: Future<Output = Result<R, ApiError>> + Send + 'static,
{
    let caller = Caller {
        deadline: Instant::now() + OWN_CALL_LIMIT,
        ..caller.clone()
    };
    let changed = tokio::spawn(change(caller)).await;
    changed.unwrap_or_else(|_| {
        let what = "the node is shutting down";
        Err(ApiError::new(Code::Unavailable, "shutting-down", what)
            .next("retry when /readyz answers 200 again"))
    })
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
