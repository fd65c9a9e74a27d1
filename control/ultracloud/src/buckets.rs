//! LightningStor's buckets, administered over gRPC and REST: requests are checked here, run on a shard
//! by way of the bridge, and what the store refuses is told to the user.

use control_kit::api::Caller;
use control_kit::api_error::ApiError;
use control_kit::audit;
use control_kit::page;
use lightningstor::buckets::{BucketError, BucketPage, Buckets, Whose};
use lightningstor::http::Users;
use lightningstor::store::{Bucket, StoreError};
use lightningstor_api::v1;
use s3_wire::BucketName;
use shard_bridge::{Bridge, CallContext, Failure, Target, Tenant};
use shards::TenantId;
use tonic::Code;

/// Serves `ultracloud.lightningstor.v1.Buckets`. The tenant of a call is the user.
#[derive(Clone, Debug)]
pub struct BucketService {
    bridge: Bridge,
    buckets: Buckets,
    users: Users,
}

impl BucketService {
    /// The service of a node's buckets, which belong to these users.
    pub fn new(bridge: Bridge, buckets: Buckets, users: Users) -> BucketService {
        BucketService {
            bridge,
            buckets,
            users,
        }
    }

    /// Makes a bucket that belongs to the caller.
    ///
    /// # Errors
    /// What the user is told.
    pub async fn create(
        &self,
        caller: &Caller,
        request: v1::CreateBucketRequest,
    ) -> Result<v1::Bucket, ApiError> {
        let name = parse(&request.name)?;
        let user = caller.principal.tenant.clone();
        let made = self.on_shard(caller, |buckets| async move {
            buckets.create(&user, name).await
        });
        let made = made.await.map_err(|why| told(why, &request.name))?;
        audit::log_done(caller, "bucket-create", format!("bucket {}", request.name));
        Ok(shown(made))
    }

    /// A page of buckets.
    ///
    /// # Errors
    /// What the user is told.
    pub async fn list(
        &self,
        caller: &Caller,
        request: v1::ListBucketsRequest,
    ) -> Result<v1::ListBucketsResponse, ApiError> {
        let limit = page::limit(request.limit)?;
        let after = page::key(&request.after)?;
        let (owner, all) = (request.owner, request.all_owners);
        if all && !owner.is_empty() {
            let what = "owner and all_owners are both given";
            return Err(
                ApiError::new(Code::InvalidArgument, "invalid-request", what)
                    .object("owner")
                    .next("give one of them, or none for your own buckets"),
            );
        }
        let (user, of) = (caller.principal.tenant.clone(), owner.clone());
        let listed = self.on_shard(caller, move |buckets| async move {
            let whose = match &*of {
                _ if all => Whose::All,
                "" => Whose::Own,
                of => Whose::Of(of),
            };
            buckets.list(&user, whose, after.as_deref(), limit)
        });
        let BucketPage { buckets, more } = listed.await.map_err(|why| match why {
            Failure::Service(BucketError::Denied) => denied(
                if all {
                    "everybody's buckets".to_owned()
                } else {
                    format!("the buckets of user {owner}")
                },
                "list your own buckets, without an owner, or ask as root",
            ),
            why => told(why, ""),
        })?;
        let last = buckets.last().filter(|_| more);
        Ok(v1::ListBucketsResponse {
            next: page::token(last.map(|last| last.name.as_str())),
            buckets: buckets.into_iter().map(shown).collect(),
        })
    }

    /// A bucket.
    ///
    /// # Errors
    /// What the user is told.
    pub async fn get(
        &self,
        caller: &Caller,
        request: v1::GetBucketRequest,
    ) -> Result<v1::Bucket, ApiError> {
        let name = parse(&request.name)?;
        let user = caller.principal.tenant.clone();
        let found = self.on_shard(caller, |buckets| async move { buckets.get(&user, &name) });
        Ok(shown(found.await.map_err(|why| told(why, &request.name))?))
    }

    /// Removes an empty bucket.
    ///
    /// # Errors
    /// What the user is told.
    pub async fn delete(
        &self,
        caller: &Caller,
        request: v1::DeleteBucketRequest,
    ) -> Result<v1::DeleteBucketResponse, ApiError> {
        let name = parse(&request.name)?;
        let user = caller.principal.tenant.clone();
        let removed = self.on_shard(caller, |buckets| async move {
            buckets.delete(&user, &name).await
        });
        removed.await.map_err(|why| told(why, &request.name))?;
        audit::log_done(caller, "bucket-delete", format!("bucket {}", request.name));
        Ok(v1::DeleteBucketResponse {})
    }

    /// Runs a call on a shard as the caller's.
    pub(crate) async fn on_shard<R, F, Fut>(
        &self,
        caller: &Caller,
        f: F,
    ) -> Result<R, Failure<BucketError>>
    where
        R: Send + 'static,
        F: FnOnce(Buckets) -> Fut + Send + 'static,
        Fut: Future<Output = Result<R, BucketError>> + 'static,
    {
        let user = &*caller.principal.tenant;
        let context = CallContext {
            tenant: Tenant::new(user, TenantId(self.users.tenant_of(user))),
            request: caller.request_id.clone(),
            deadline: caller.deadline,
        };
        let target = Target::Any(self.buckets.values().clone());
        let buckets = self.buckets.clone();
        self.bridge.call(&context, target, |_| f(buckets)).await
    }
}

fn parse(name: &str) -> Result<BucketName, ApiError> {
    BucketName::new(name).map_err(|_| {
        let what = "not the name of a bucket: it has 3 to 63 of a-z, 0-9, '.' and '-', a letter or \
                    digit at both ends, no '..', is no IP address and has none of S3's reserved \
                    prefixes and suffixes";
        ApiError::new(Code::InvalidArgument, "invalid-bucket-name", what)
            .object(format!("bucket {name:?}"))
            .next("choose another name")
    })
}

fn denied(object: String, next: &str) -> ApiError {
    let what = "only the owner and root may do this";
    ApiError::new(Code::PermissionDenied, "access-denied", what)
        .object(object)
        .next(next)
}

fn shown(bucket: Bucket) -> v1::Bucket {
    v1::Bucket {
        name: bucket.name.to_string(),
        owner: bucket.owner,
        created_unix_ms: bucket.created_ms as i64,
    }
}

/// What the user is told of a failure, of the bucket with this name.
pub(crate) fn told(failure: Failure<BucketError>, name: &str) -> ApiError {
    failure.into_api_error(|error| {
        let error = match error {
            BucketError::Store(error) => return of_store(&error, name),
            error => error,
        };
        let object = format!("bucket {name}");
        match error {
            BucketError::AlreadyOwned => {
                let what = "the bucket exists already, and is yours";
                ApiError::new(Code::AlreadyExists, "bucket-already-owned", what)
                    .object(object)
                    .next("use it, or choose another name")
            }
            BucketError::AlreadyExists => {
                let what = "the name is taken by another user; names are unique on the node";
                ApiError::new(Code::AlreadyExists, "bucket-already-exists", what)
                    .object(object)
                    .next("choose another name")
            }
            _ => denied(object, "ask its owner, or do it as root"),
        }
    })
}

fn of_store(error: &StoreError, name: &str) -> ApiError {
    let (code, name_of_code, what, next) = match error {
        StoreError::NoSuchBucket => (
            Code::NotFound,
            "no-such-bucket",
            "the bucket does not exist",
            "list your buckets",
        ),
        StoreError::BucketNotEmpty => (
            Code::FailedPrecondition,
            "bucket-not-empty",
            "the bucket holds objects, and was not removed",
            "delete its objects over S3 first",
        ),
        StoreError::Busy => (
            Code::ResourceExhausted,
            "store-busy",
            "too many changes of buckets wait already; nothing happened",
            "retry after 100 ms, and after twice as long each further time",
        ),
        StoreError::Full => (
            Code::ResourceExhausted,
            "store-full",
            "there is no room: the disk is full, or the node holds its most buckets",
            "remove objects or buckets that are not needed, or make the file system larger",
        ),
        StoreError::Poisoned(_) => (
            Code::Unavailable,
            "store-read-only",
            "the store takes no changes of buckets since a write to its disk failed",
            "check the disk, then restart the node; /healthz names the cause",
        ),
        StoreError::Gone => (
            Code::Unavailable,
            "shard-gone",
            "the shard that owns the buckets is gone",
            "retry when /readyz answers 200 again",
        ),
        _ => (
            Code::Internal,
            "internal",
            "the store failed",
            "look for the request id in the node's log",
        ),
    };
    if matches!(code, Code::Internal) || matches!(error, StoreError::Poisoned(_)) {
        tracing::error!(%error, bucket = name, "an operation on a bucket failed");
    }
    let told = ApiError::new(code, name_of_code, what).next(next);
    if name.is_empty() {
        told
    } else {
        told.object(format!("bucket {name}"))
    }
}
