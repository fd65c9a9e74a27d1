//! Buckets as their users administer them: made, listed, looked up and removed, without HTTP.
//!
//! The S3 front and the control layer both come through here, so that names, ownership and what a
//! removal needs are decided once ([`crate::access`], [`StoreShard`]). Every operation says who
//! wants it; who that is has been found out before.
//!
//! It runs on any shard of the node. The control layer comes in by a call to a shard; it never waits
//! on a client.

use std::rc::Rc;

use engine::Sharded;
use s3_wire::BucketName;
use shards::Router;

use crate::access::{Access, Action, Decision, Resource, authorize};
use crate::store::{Bucket, BucketId, Groups, StoreError, StoreShard};

/// Why an operation on buckets was refused or failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BucketError {
    /// The bucket, or whose buckets are to be listed, is another user's.
    #[error("access to what belongs to another user is denied")]
    Denied,
    /// The name is taken, by the one who asks.
    #[error("the bucket exists and is the caller's own")]
    AlreadyOwned,
    /// The name is taken, by another user.
    #[error("the bucket's name is taken by another user")]
    AlreadyExists,
    /// The store refused or failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Whose buckets are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose<'a> {
    /// The caller's own.
    Own,
    /// Those of the user with this id; for the node's own user, or the user itself.
    Of(&'a str),
    /// Everybody's; for the node's own user.
    All,
}

/// Some buckets, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BucketPage {
    /// The buckets.
    pub buckets: Vec<Bucket>,
    /// Whether more follow after the last one.
    pub more: bool,
}

/// Administers buckets, on any shard. A handle: cheap to clone, free to send.
#[derive(Clone, Debug)]
pub struct Buckets {
    router: Router<StoreShard>,
    groups: Groups,
}

impl Buckets {
    /// The buckets of the stores behind a router.
    pub fn new(router: Router<StoreShard>, groups: Groups) -> Buckets {
        Buckets { router, groups }
    }

    /// The shards' values that calls of the control layer go to.
    pub fn values(&self) -> &Sharded<StoreShard> {
        self.router.values()
    }

    /// Makes a bucket that belongs to the caller. When the future is dropped it may still be made.
    ///
    /// # Errors
    /// `AlreadyOwned`, `AlreadyExists`; of the store `Full` (also of too many buckets), `Busy`,
    /// `Poisoned`, `Gone`.
    pub async fn create(&self, caller: &str, name: BucketName) -> Result<Bucket, BucketError> {
        may(caller, Action::CreateBucket, Resource::Bucket(&name), None)?;
        let store = self.store()?;
        let created_ms = engine::wall_clock() / 1_000_000;
        let created = store
            .create_bucket(&self.router, self.groups, name, caller, created_ms)
            .await;
        created.map_err(|error| match error {
            StoreError::BucketExists { owner } if owner == caller => BucketError::AlreadyOwned,
            StoreError::BucketExists { .. } => BucketError::AlreadyExists,
            error => error.into(),
        })
    }

    /// Up to `limit` buckets whose names come after `after`, in the order of their names.
    ///
    /// # Errors
    /// `Denied`; of the store `Gone`.
    pub fn list(
        &self,
        caller: &str,
        whose: Whose<'_>,
        after: Option<&str>,
        limit: usize,
    ) -> Result<BucketPage, BucketError> {
        // An id is never empty: everybody's buckets are nobody's own.
        let (owner, other) = match whose {
            Whose::Own => (Some(caller), None),
            Whose::Of(owner) => (Some(owner), Some(owner)),
            Whose::All => (None, Some("")),
        };
        may(caller, Action::ListAllMyBuckets, Resource::Service, other)?;
        let (buckets, more) = self.store()?.buckets().page(owner, after, limit);
        Ok(BucketPage { buckets, more })
    }

    /// A bucket, for who may list what is in it.
    ///
    /// # Errors
    /// `Denied`; of the store `NoSuchBucket`, `Gone`.
    pub fn get(&self, caller: &str, name: &BucketName) -> Result<Bucket, BucketError> {
        self.find(caller, Action::ListBucket, name)
    }

    /// Removes a bucket without objects; its uploads go with it. When the future is dropped it may
    /// still be removed.
    ///
    /// # Errors
    /// `Denied`; as [`Buckets::remove`].
    pub async fn delete(&self, caller: &str, name: &BucketName) -> Result<(), BucketError> {
        let bucket = self.find(caller, Action::DeleteBucket, name)?;
        Ok(self.remove(bucket.id).await?)
    }

    /// As [`Buckets::delete`], of a bucket on which it has been allowed.
    ///
    /// # Errors
    /// `NoSuchBucket`, `BucketNotEmpty`, `Full`, `Busy`, `Poisoned`, `Gone`.
    pub(crate) async fn remove(&self, id: BucketId) -> Result<(), StoreError> {
        let store = self.store()?;
        store.delete_bucket(&self.router, self.groups, id).await
    }

    fn find(&self, caller: &str, action: Action, name: &BucketName) -> Result<Bucket, BucketError> {
        let found = self.store()?.buckets().lookup(name);
        let owner = found.as_ref().map(|bucket| &*bucket.owner);
        may(caller, action, Resource::Bucket(name), owner)?;
        Ok(found.ok_or(StoreError::NoSuchBucket)?)
    }

    fn store(&self) -> Result<Rc<StoreShard>, StoreError> {
        self.router.values().try_local().ok_or(StoreError::Gone)
    }
}

fn may(
    user: &str,
    action: Action,
    resource: Resource<'_>,
    owner: Option<&str>,
) -> Result<(), BucketError> {
    let access = Access {
        user,
        action,
        resource,
        owner,
    };
    match authorize(&access) {
        Decision::Allow => Ok(()),
        Decision::Deny => Err(BucketError::Denied),
    }
}
