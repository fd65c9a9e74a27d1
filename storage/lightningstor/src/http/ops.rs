//! From a head to an answer: who is it, what is wanted, may they, and then the operation.

use engine::Flow;
use s3_wire::checksum::{BodyDigests, BodyPromise};
use s3_wire::metadata::amz_field;
use s3_wire::request::ObjectPath;
use s3_wire::sigv4::PayloadMode;
use s3_wire::{BucketName, S3Error, S3ErrorCode, S3Op};
use shards::{PartitionId, TenantId, Turn};

use super::body::Body;
use super::config::User;
use super::exchange::{Exchange, Reply};
use super::metrics::OpKind;
use super::server::{Server, unix_s};
use super::{attributes, buckets, copy, listing, multipart, objects};
use crate::access::{Access, Action, Decision, Resource, authorize};
use crate::store::Bucket;

/// Cost of a small operation in turns of the tenant.
pub(crate) const OP_COST: u32 = 1;

/// How a request ended.
pub(crate) struct Done {
    pub(crate) op: OpKind,
    pub(crate) reply: Result<Reply, S3Error>,
}

/// An authenticated and authorized request.
pub(crate) struct Call<'a> {
    pub(crate) exchange: &'a Exchange<'a>,
    pub(crate) user: &'a User,
    pub(crate) tenant: TenantId,
    pub(crate) payload: PayloadMode,
    /// The bucket that the operation is on, as it was when the operation was allowed.
    bucket: Option<Bucket>,
}

impl Call<'_> {
    pub(crate) fn server(&self) -> &Server {
        self.exchange.server
    }

    /// The bucket that the operation is on.
    ///
    /// # Errors
    /// NoSuchBucket.
    pub(crate) fn bucket(&self, name: &BucketName) -> Result<Bucket, S3Error> {
        let allowed = self.bucket.as_ref().filter(|bucket| bucket.name == *name);
        allowed.cloned().ok_or_else(|| no_such_bucket(name))
    }

    /// The bucket of the operation's object and the partition that owns the key.
    ///
    /// # Errors
    /// As [`Call::bucket`].
    pub(crate) fn place(&self, path: &ObjectPath) -> Result<(Bucket, PartitionId), S3Error> {
        Ok((self.bucket(&path.bucket)?, self.server().partition_of(path)))
    }

    /// As [`Call::place`], of another object that the operation reads.
    ///
    /// # Errors
    /// NoSuchBucket, AccessDenied.
    pub(crate) fn source(&self, path: &ObjectPath) -> Result<(Bucket, PartitionId), S3Error> {
        let bucket = self.server().store.buckets().lookup(&path.bucket);
        self.allow(Action::GetObject, Resource::object(path), bucket.as_ref())?;
        self.check_owner("x-amz-source-expected-bucket-owner", bucket.as_ref())?;
        let bucket = bucket.ok_or_else(|| no_such_bucket(&path.bucket))?;
        Ok((bucket, self.server().partition_of(path)))
    }

    /// Asks whether the user may.
    ///
    /// # Errors
    /// AccessDenied.
    pub(crate) fn allow(
        &self,
        action: Action,
        resource: Resource<'_>,
        bucket: Option<&Bucket>,
    ) -> Result<(), S3Error> {
        let access = Access {
            user: &self.user.id,
            action,
            resource,
            owner: bucket.map(|bucket| &*bucket.owner),
        };
        match authorize(&access) {
            Decision::Allow => Ok(()),
            Decision::Deny => Err(S3ErrorCode::AccessDenied.into()),
        }
    }

    /// Checks the owner that the request expects a bucket to have, if it does.
    fn check_owner(&self, field: &str, bucket: Option<&Bucket>) -> Result<(), S3Error> {
        let expected = amz_field(self.exchange.head, field)?;
        match (expected, bucket) {
            (Some(expected), Some(bucket)) if *expected != *bucket.owner => {
                let what = "The bucket does not belong to the owner that the request expects.";
                Err(S3Error::new(S3ErrorCode::AccessDenied, what))
            }
            _ => Ok(()),
        }
    }

    /// A turn for a small operation.
    ///
    /// # Errors
    /// SlowDown.
    pub(crate) async fn turn(&self) -> Result<Turn, S3Error> {
        self.server().turn(self.tenant, OP_COST).await
    }

    /// The SHA-256 that the body must have, when it is signed as a whole.
    pub(crate) fn payload_sha256(&self) -> Option<[u8; 32]> {
        match &self.payload {
            PayloadMode::Sha256(digest) => Some(*digest),
            _ => None,
        }
    }

    /// A body of XML, checked against everything that the request promised.
    ///
    /// # Errors
    /// As [`Body::read_all`]; of the digests.
    pub(crate) async fn text(
        &self,
        body: &mut Body<'_>,
        bytes_max: usize,
    ) -> Result<Vec<u8>, S3Error> {
        let promise = BodyPromise::parse(self.exchange.head)?;
        body.decode(self.exchange.head, &self.payload)?;
        let memory = body.len().unwrap_or(u64::MAX).min(bytes_max as u64);
        let _memory = self.server().budget(self.tenant, memory).await?;
        let text = body
            .read_all(bytes_max, S3ErrorCode::MaxMessageLengthExceeded)
            .await?;
        let trailers = body.finish().await?;
        let mut digests = BodyDigests::new(promise, self.payload_sha256(), false);
        digests.update(&text);
        digests.finish(&trailers)?;
        self.exchange.look_at_rest(body);
        Ok(text)
    }
}

/// Serves a request.
pub(crate) async fn perform(exchange: &Exchange<'_>, body: &mut Body<'_>) -> Done {
    let server = exchange.server;
    let users = &server.config().users;
    let entered = server
        .verifier
        .verify(exchange.head, unix_s(), users)
        .and_then(|who| {
            let user = users.get(who.user).ok_or(S3ErrorCode::InvalidAccessKeyId)?;
            let op = S3Op::classify(exchange.head, &server.config().hosts)?;
            Ok((who, user, op))
        });
    let (who, user, op) = match entered {
        Ok(entered) => entered,
        Err(error) => {
            return Done {
                op: OpKind::Refused,
                reply: Err(error),
            };
        }
    };
    let bucket = op
        .bucket()
        .and_then(|name| server.store.buckets().lookup(name));
    let tenant = TenantId(users.tenant(user));
    // The connection's next request begins as this one's tenant's, too.
    engine::set_flow(Flow::of_tenant(tenant.0));
    let call = Call {
        exchange,
        user,
        tenant,
        payload: who.payload,
        bucket,
    };
    let kind = OpKind::of(&op);
    let bucket = call.bucket.as_ref();
    let allowed = call
        .allow(Action::of(&op), Resource::of(&op), bucket)
        .and_then(|()| call.check_owner("x-amz-expected-bucket-owner", bucket));
    let reply = match allowed {
        Ok(()) => run(&call, op, body).await,
        Err(error) => Err(error),
    };
    Done { op: kind, reply }
}

fn no_such_bucket(name: &BucketName) -> S3Error {
    S3Error::from(S3ErrorCode::NoSuchBucket).on(format!("/{name}"))
}

async fn run(call: &Call<'_>, op: S3Op, body: &mut Body<'_>) -> Result<Reply, S3Error> {
    match op {
        S3Op::ListBuckets => buckets::list(call),
        S3Op::CreateBucket(name) => buckets::create(call, name, body).await,
        S3Op::HeadBucket(name) => buckets::head(call, &name),
        S3Op::DeleteBucket(name) => buckets::delete(call, &name).await,
        S3Op::GetBucketLocation(name) => buckets::location(call, &name),
        S3Op::GetBucketVersioning(name) => buckets::versioning(call, &name),
        S3Op::ListObjectsV1(name, params) => listing::objects_v1(call, &name, &params).await,
        S3Op::ListObjectsV2(name, params) => listing::objects_v2(call, &name, &params).await,
        S3Op::ListMultipartUploads(name, params) => {
            multipart::list_uploads(call, &name, &params).await
        }
        S3Op::DeleteObjects(name) => objects::delete_many(call, &name, body).await,
        S3Op::PutObject(path) => objects::put(call, &path, body).await,
        S3Op::GetObject(path, params) => objects::get(call, &path, &params).await,
        S3Op::HeadObject(path, params) => objects::head(call, &path, &params).await,
        S3Op::GetObjectAttributes(path, params) => attributes::get(call, &path, &params).await,
        S3Op::DeleteObject(path) => objects::delete(call, &path).await,
        S3Op::CopyObject(path, params) => copy::object(call, &path, &params).await,
        S3Op::CreateMultipartUpload(path) => multipart::create(call, &path, body).await,
        S3Op::UploadPart(path, part) => multipart::put_part(call, &path, &part, body).await,
        S3Op::UploadPartCopy(path, part, source) => copy::part(call, &path, &part, &source).await,
        S3Op::CompleteMultipartUpload(path, id) => {
            multipart::complete(call, &path, &id, body).await
        }
        S3Op::AbortMultipartUpload(path, id) => multipart::abort(call, &path, &id).await,
        S3Op::ListParts(path, params) => multipart::list_parts(call, &path, &params).await,
        S3Op::NotImplemented(what) => {
            let what = format!("This part of the S3 API is not implemented: {what}.");
            Err(S3Error::new(S3ErrorCode::NotImplemented, what))
        }
    }
}
