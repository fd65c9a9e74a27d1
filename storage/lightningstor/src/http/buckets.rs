//! Operations on buckets. The table of buckets is mirrored on every shard, so that reading it costs
//! no message; changes go to the owner of partition 0.

use s3_wire::xml::{self, BucketEntry, Owner};
use s3_wire::{BucketName, S3Error, S3ErrorCode};

use super::body::Body;
use super::errors;
use super::exchange::Reply;
use super::ops::Call;
use crate::buckets::{BucketError, Whose};
use crate::store::Bucket;

/// Largest CreateBucketConfiguration.
const CONFIGURATION_BYTES_MAX: usize = 64 << 10;

pub(crate) fn list(call: &Call<'_>) -> Result<Reply, S3Error> {
    let listed = call
        .server()
        .buckets
        .list(&call.user.id, Whose::Own, None, usize::MAX);
    let mine = listed
        .map_err(|error| refusal(error, "list buckets"))?
        .buckets;
    let owner = Owner {
        id: &call.user.id,
        display_name: &call.user.name,
    };
    let mut body = Vec::with_capacity(256 + 128 * mine.len());
    let entries = mine.iter().map(|bucket| BucketEntry {
        name: bucket.name.as_str(),
        created_s: (bucket.created_ms / 1000) as i64,
    });
    xml::write_buckets(&mut body, &owner, entries);
    Ok(call.exchange.xml(200, body))
}

/// What the client is told.
fn refusal(error: BucketError, what: &str) -> S3Error {
    match error {
        BucketError::Denied => S3ErrorCode::AccessDenied.into(),
        BucketError::AlreadyOwned => S3ErrorCode::BucketAlreadyOwnedByYou.into(),
        BucketError::AlreadyExists => S3ErrorCode::BucketAlreadyExists.into(),
        BucketError::Store(error) => errors::report(&error, what),
    }
}

/// The owner of a bucket and of everything in it.
pub(crate) fn owner<'a>(call: &'a Call<'_>, bucket: &'a Bucket) -> Owner<'a> {
    Owner {
        id: &bucket.owner,
        display_name: call.server().config().users.name_of(&bucket.owner),
    }
}

pub(crate) async fn create(
    call: &Call<'_>,
    name: BucketName,
    body: &mut Body<'_>,
) -> Result<Reply, S3Error> {
    let text = call.text(body, CONFIGURATION_BYTES_MAX).await?;
    let region = &call.server().config().region;
    match xml::parse_create_bucket(&text)? {
        Some(asked) if *asked != **region => {
            return Err(S3ErrorCode::IllegalLocationConstraint.into());
        }
        _ => {}
    }
    let turn = call.turn().await?;
    let location = format!("/{name}");
    let created = call.server().buckets.create(&call.user.id, name).await;
    drop(turn);
    created.map_err(|error| refusal(error, "create bucket"))?;
    let mut head = Vec::with_capacity(256);
    call.exchange
        .start(&mut head, 200)
        .header("Location", &location)
        .content_length(0)
        .finish();
    Ok(Reply::Text {
        head,
        body: Vec::new(),
    })
}

pub(crate) fn head(call: &Call<'_>, name: &BucketName) -> Result<Reply, S3Error> {
    call.bucket(name)?;
    let mut head = Vec::with_capacity(256);
    call.exchange
        .start(&mut head, 200)
        .header("x-amz-bucket-region", &call.server().config().region)
        .content_length(0)
        .finish();
    Ok(Reply::Text {
        head,
        body: Vec::new(),
    })
}

pub(crate) async fn delete(call: &Call<'_>, name: &BucketName) -> Result<Reply, S3Error> {
    let bucket = call.bucket(name)?;
    let _turn = call.turn().await?;
    let deleted = call.server().buckets.remove(bucket.id).await;
    deleted.map_err(|error| errors::report(&error, "delete bucket"))?;
    Ok(call.exchange.empty(204))
}

pub(crate) fn location(call: &Call<'_>, name: &BucketName) -> Result<Reply, S3Error> {
    call.bucket(name)?;
    let mut body = Vec::new();
    xml::write_location(&mut body, &call.server().config().region);
    Ok(call.exchange.xml(200, body))
}

/// No bucket was ever versioned: S3 answers with an empty configuration.
pub(crate) fn versioning(call: &Call<'_>, name: &BucketName) -> Result<Reply, S3Error> {
    call.bucket(name)?;
    let mut body = Vec::new();
    xml::write_never_versioned(&mut body);
    Ok(call.exchange.xml(200, body))
}
