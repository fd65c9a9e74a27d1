//! The table of buckets: owned by partition 0, whose log holds it, and mirrored on every shard.
//!
//! A change is made by the shard that owns partition 0: a durable record, then a new image of the
//! table to all shards, then the answer. An image replaces the one before whole, so that a shard
//! that missed one is right again with the next.
//!
//! Removal, safe against a crash at each step: mark the bucket as `Deleting` everywhere (in memory:
//! writes are refused, those in progress end), ask every partition whether it is empty, write the
//! record, take it out of the table, then drop its uploads. A crash before the record leaves the
//! bucket as it was; after it, uploads that are left are dropped at the next start, and bucket
//! numbers are never reused.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use engine::{CallError, SchedGroup, ServiceGroup, ShardId};
use futures_channel::oneshot;
use s3_wire::BucketName;
use shards::placement::PartitionId;
use shards::route::{RouteError, Router};

use super::StoreShard;
use super::error::StoreError;
use super::partition::Partition;
use super::record::{Change, Record};
use super::types::{Bucket, BucketId, BucketState, Version};

/// Where the table lives.
const HOME: PartitionId = PartitionId(0);
/// How often a busy shard is asked.
const TRIES_MAX: u32 = 10;

/// The calls that changes of the table make.
#[derive(Clone, Copy, Debug)]
pub struct Groups {
    /// To the table's owner.
    pub objects: ServiceGroup,
    /// From there to all shards: a higher level.
    pub inner: ServiceGroup,
}

/// The table at one moment.
#[derive(Debug, Default)]
pub(super) struct Image {
    version: u64,
    by_name: BTreeMap<Box<str>, Bucket>,
    names: BTreeMap<BucketId, Box<str>>,
}

impl Image {
    fn new(version: u64, buckets: impl Iterator<Item = Bucket>) -> Arc<Image> {
        let by_name: BTreeMap<Box<str>, Bucket> = buckets
            .map(|bucket| (bucket.name.as_str().into(), bucket))
            .collect();
        let names = by_name
            .iter()
            .map(|(name, bucket)| (bucket.id, name.clone()))
            .collect();
        Arc::new(Image {
            version,
            by_name,
            names,
        })
    }

    fn next(&self, change: impl FnOnce(&mut Vec<Bucket>)) -> Arc<Image> {
        let mut buckets: Vec<Bucket> = self.by_name.values().cloned().collect();
        change(&mut buckets);
        Image::new(self.version + 1, buckets.into_iter())
    }

    fn by_id(&self, id: BucketId) -> Option<&Bucket> {
        self.by_name.get(self.names.get(&id)?)
    }
}

/// One shard's mirror of the buckets.
#[derive(Debug, Default)]
pub struct BucketTable {
    image: RefCell<Arc<Image>>,
}

impl BucketTable {
    /// The bucket of a name, also while its removal is being decided.
    pub fn lookup(&self, name: &BucketName) -> Option<Bucket> {
        self.image.borrow().by_name.get(name.as_str()).cloned()
    }

    /// Up to `limit` buckets, by name, of an owner or of all, whose names come after `after`; and
    /// whether more follow.
    pub fn page(
        &self,
        owner: Option<&str>,
        after: Option<&str>,
        limit: usize,
    ) -> (Vec<Bucket>, bool) {
        let image = self.image.borrow();
        let begin = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut found = image
            .by_name
            .range::<str, _>((begin, Bound::Unbounded))
            .map(|(_, bucket)| bucket)
            .filter(|bucket| owner.is_none_or(|owner| bucket.owner == owner));
        let page = found.by_ref().take(limit).cloned().collect();
        (page, found.next().is_some())
    }

    /// Every bucket, by name.
    #[cfg(test)]
    pub(super) fn all(&self) -> Vec<Bucket> {
        self.page(None, None, usize::MAX).0
    }

    /// Whether a bucket takes writes; `None` when there is no such bucket.
    pub fn state(&self, id: BucketId) -> Option<BucketState> {
        self.image.borrow().by_id(id).map(|bucket| bucket.state)
    }

    /// The name of a bucket, for people; its number when it is gone.
    pub(super) fn name(&self, id: BucketId) -> String {
        let image = self.image.borrow();
        let found = image.by_id(id).map(|bucket| bucket.name.to_string());
        found.unwrap_or_else(|| format!("bucket {}", id.0))
    }

    fn image(&self) -> Arc<Image> {
        Arc::clone(&self.image.borrow())
    }

    fn install(&self, image: Arc<Image>) {
        let mut held = self.image.borrow_mut();
        if image.version > held.version {
            *held = image;
        }
    }

    /// A table of these buckets, for tests that need no other shard.
    #[cfg(test)]
    pub(super) fn set(&self, buckets: Vec<Bucket>) {
        let version = self.image.borrow().version + 1;
        *self.image.borrow_mut() = Image::new(version, buckets.into_iter());
    }
}

pub(super) fn route_error(error: RouteError) -> StoreError {
    match error {
        RouteError::Busy | RouteError::Moved => StoreError::Busy,
        RouteError::Gone => StoreError::Gone,
        RouteError::Deadline => {
            StoreError::Internal("the owner of the buckets did not answer".into())
        }
    }
}

impl StoreShard {
    /// Makes a bucket, from any shard. When the future is dropped it may still be made.
    ///
    /// # Errors
    /// `BucketExists`, `Full` (also of too many buckets), `Busy`, `Poisoned`, `Gone`.
    pub async fn create_bucket(
        &self,
        router: &Router<StoreShard>,
        groups: Groups,
        name: BucketName,
        owner: &str,
        created_ms: u64,
    ) -> Result<Bucket, StoreError> {
        let (to, owner) = (router.clone(), owner.to_owned());
        let call = router.call(HOME, groups.objects, move |store, _| {
            let change = Rc::clone(&store);
            store.detached(async move {
                let _turn = change
                    .table_turn
                    .acquire(1)
                    .await
                    .map_err(|_| StoreError::Busy)?;
                change
                    .create_here(&to, groups.inner, name, owner, created_ms)
                    .await
            })
        });
        call.await.map_err(route_error)?
    }

    /// Removes a bucket without objects, from any shard; its uploads go with it. When the future is
    /// dropped it may still be removed.
    ///
    /// # Errors
    /// `NoSuchBucket`, `BucketNotEmpty`, `Full`, `Busy`, `Poisoned`, `Gone`.
    pub async fn delete_bucket(
        &self,
        router: &Router<StoreShard>,
        groups: Groups,
        id: BucketId,
    ) -> Result<(), StoreError> {
        let to = router.clone();
        let call = router.call(HOME, groups.objects, move |store, _| {
            let change = Rc::clone(&store);
            store.detached(async move {
                let _turn = change
                    .table_turn
                    .acquire(1)
                    .await
                    .map_err(|_| StoreError::Busy)?;
                change.delete_here(&to, groups.inner, id).await
            })
        });
        call.await.map_err(route_error)?
    }

    /// Fetches the table from its owner and drops uploads of buckets that are gone. Once on every
    /// shard, after all stores are open and before anything is served.
    ///
    /// # Errors
    /// As [`StoreShard::delete_bucket`].
    pub async fn load_buckets(
        &self,
        router: &Router<StoreShard>,
        groups: Groups,
    ) -> Result<(), StoreError> {
        let image = router.call(HOME, groups.objects, |store, _| async move {
            store.table.image()
        });
        self.table.install(image.await.map_err(route_error)?);
        for partition in self.partitions.values() {
            let known = |id: &BucketId| self.table.state(*id).is_some();
            let with_uploads = partition.inner.index.borrow().buckets_with_uploads();
            for bucket in with_uploads.into_iter().filter(|id| !known(id)) {
                partition.drop_uploads(bucket).await?;
            }
        }
        Ok(())
    }

    /// Builds the table from partition 0, when it is on this shard.
    pub(super) fn show_buckets(&self) {
        let Some(home) = self.partitions.get(&HOME) else {
            return;
        };
        let index = home.inner.index.borrow();
        let bucket = |(name, row): (&str, &super::index::BucketRow)| {
            let name = BucketName::new(name).ok()?;
            let (id, owner, created_ms) = (row.id, row.owner.clone(), row.created_ms);
            Some(Bucket {
                id,
                name,
                owner,
                created_ms,
                state: BucketState::Active,
            })
        };
        self.table
            .install(Image::new(1, index.buckets().filter_map(bucket)));
    }

    /// Runs a change of the table to its end, also when its caller goes away.
    async fn detached<R: 'static>(
        self: Rc<Self>,
        change: impl Future<Output = Result<R, StoreError>> + 'static,
    ) -> Result<R, StoreError> {
        let (answer, answered) = oneshot::channel();
        let body = async move {
            // The caller may have gone; the change was still made.
            let _ = answer.send(change.await);
        };
        let task = engine::try_spawn_local(SchedGroup::FOREGROUND, body);
        task.map_err(|_| StoreError::Busy)?.detach();
        answered.await.map_err(|_| StoreError::Gone)?
    }

    fn home(&self) -> Result<Rc<Partition>, StoreError> {
        self.partition(HOME)
    }

    async fn create_here(
        &self,
        router: &Router<StoreShard>,
        inner: ServiceGroup,
        name: BucketName,
        owner: String,
        created_ms: u64,
    ) -> Result<Bucket, StoreError> {
        let home = self.home()?;
        if let Some(known) = self.table.lookup(&name) {
            return Err(StoreError::BucketExists { owner: known.owner });
        }
        if self.table.image().by_name.len() >= home.inner.config.buckets_max {
            return Err(StoreError::Full);
        }
        let id = home.inner.index.borrow().next_bucket();
        let change = Change::BucketCreate {
            owner: owner.clone(),
            created_ms,
        };
        write(&home, id, &name, change).await?;
        let bucket = Bucket {
            id,
            name,
            owner,
            created_ms,
            state: BucketState::Active,
        };
        let image = self
            .table
            .image()
            .next(|buckets| buckets.push(bucket.clone()));
        self.publish(router, inner, image).await?;
        Ok(bucket)
    }

    async fn delete_here(
        &self,
        router: &Router<StoreShard>,
        inner: ServiceGroup,
        id: BucketId,
    ) -> Result<(), StoreError> {
        let home = self.home()?;
        let bucket = self
            .table
            .image()
            .by_id(id)
            .cloned()
            .ok_or(StoreError::NoSuchBucket)?;
        let marked = |state: BucketState| {
            self.table.image().next(|buckets| {
                for bucket in buckets.iter_mut().filter(|bucket| bucket.id == id) {
                    bucket.state = state;
                }
            })
        };
        let emptied = match self
            .publish(router, inner, marked(BucketState::Deleting))
            .await
        {
            Ok(()) => self.all_empty(router, inner, id).await,
            Err(error) => Err(error),
        };
        let removed = match emptied {
            Ok(()) => write(&home, id, &bucket.name, Change::BucketDelete).await,
            Err(error) => Err(error),
        };
        match removed {
            Ok(()) => {}
            // The record may be there: no write may be acknowledged that the restart would lose.
            Err(error @ StoreError::Poisoned(_)) => return Err(error),
            Err(error) => {
                self.publish(router, inner, marked(BucketState::Active))
                    .await?;
                return Err(error);
            }
        }
        let image = self
            .table
            .image()
            .next(|buckets| buckets.retain(|b| b.id != id));
        self.publish(router, inner, image).await?;
        let drops = self.on_all(router, inner, move |store| async move {
            store.drop_uploads(id).await
        });
        if let Err(error) = drops.await {
            tracing::warn!(bucket = id.0, %error, "uploads of a removed bucket stay until the restart");
        }
        Ok(())
    }

    async fn publish(
        &self,
        router: &Router<StoreShard>,
        inner: ServiceGroup,
        image: Arc<Image>,
    ) -> Result<(), StoreError> {
        // The owner first: it makes the next image out of this one.
        self.table.install(Arc::clone(&image));
        self.on_all(router, inner, move |store| {
            let image = Arc::clone(&image);
            async move {
                store.table.install(image);
                Ok(())
            }
        })
        .await
    }

    async fn all_empty(
        &self,
        router: &Router<StoreShard>,
        inner: ServiceGroup,
        id: BucketId,
    ) -> Result<(), StoreError> {
        self.on_all(router, inner, move |store| async move {
            for partition in store.partitions.values() {
                partition.inner.quiet(id).await;
                if !partition.inner.is_empty(id).await? {
                    return Err(StoreError::BucketNotEmpty);
                }
            }
            Ok(())
        })
        .await
    }

    async fn drop_uploads(&self, id: BucketId) -> Result<(), StoreError> {
        for partition in self.partitions.values() {
            partition.drop_uploads(id).await?;
        }
        Ok(())
    }

    /// Runs something that may run twice on every shard's store.
    async fn on_all<F, Fut>(
        &self,
        router: &Router<StoreShard>,
        inner: ServiceGroup,
        f: F,
    ) -> Result<(), StoreError>
    where
        F: Fn(Rc<StoreShard>) -> Fut + Clone + Send + 'static,
        Fut: Future<Output = Result<(), StoreError>> + 'static,
    {
        let stores = router.values();
        for shard in 0..stores.shards() as u16 {
            let mut wait = Duration::from_millis(1);
            for left in (0..TRIES_MAX).rev() {
                match stores.invoke_on(ShardId(shard), inner, f.clone()).await {
                    Ok(done) => {
                        done?;
                        break;
                    }
                    Err(CallError::Busy) if left > 0 => {
                        engine::sleep(wait).await;
                        wait *= 2;
                    }
                    Err(CallError::Busy) => return Err(StoreError::Busy),
                    Err(CallError::Gone) => return Err(StoreError::Gone),
                    Err(CallError::Deadline) => {
                        let slow = format!("shard {shard} did not answer in time");
                        return Err(StoreError::Internal(slow));
                    }
                }
            }
        }
        Ok(())
    }
}

async fn write(
    home: &Partition,
    bucket: BucketId,
    name: &BucketName,
    change: Change,
) -> Result<(), StoreError> {
    let _ticket = home.inner.enter_any(bucket)?;
    let record = Record {
        bucket,
        key: name.as_str().into(),
        version: Version::NULL,
        change,
    };
    home.inner.append(record, None, None).await.map(drop)
}
