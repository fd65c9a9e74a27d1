//! PutObject, GetObject, HeadObject, DeleteObject, DeleteObjects.

use std::ops::Range;
use std::rc::Rc;

use s3_wire::checksum::{BodyPromise, ChecksumType};
use s3_wire::conditional::{Conditions, EtagCondition};
use s3_wire::metadata::{ObjectHeaders, StorageClass};
use s3_wire::request::{ObjectPath, ReadParams};
use s3_wire::xml::{self, DeleteOutcome, DeleteResultWriter, DeleteTarget, XML_BYTES_MAX};
use s3_wire::{BucketName, Etag, ObjectKey, S3Error, S3ErrorCode};
use shards::PartitionId;

use super::body::Body;
use super::errors;
use super::exchange::Reply;
use super::ops::Call;
use super::read::{ReadFrom, Reading};
use super::receive::{Held, Intake, Received, Source};
use super::select::{FLAG_REDUCED, Selected, read_head, unchanged};
use super::server::unix_ms;
use crate::access::{Action, Resource};
use crate::store::{
    self, Bucket, BucketId, Condition, ContentHeaders, ObjectChecksum, ObjectMeta, ObjectPart,
    ObjectParts, Opened, Partition, PutDone, PutSmall, StoreError,
};

/// Room kept before an inline body for the head of its answer.
pub(crate) const HEAD_ROOM: usize = 2048;
/// Keys of a DeleteObjects that are deleted at a time.
const DELETES_AT_A_TIME: usize = 32;

pub(crate) async fn put(
    call: &Call<'_>,
    path: &ObjectPath,
    body: &mut Body<'_>,
) -> Result<Reply, S3Error> {
    let head = call.exchange.head;
    let (bucket, partition) = call.place(path)?;
    let condition = write_condition(&Conditions::of_request(head))?;
    let headers = ObjectHeaders::parse(head)?;
    let received = intake(call, partition, body).await?;
    let (etag, checksum) = (received.etag, received.checksum);
    let mut meta = new_meta(headers, received.size, etag);
    meta.checksum = checksum.map(|value| ObjectChecksum {
        value,
        kind: ChecksumType::FullObject,
    });
    commit(call, &bucket, partition, path, meta, condition, received).await?;
    call.exchange.look_at_rest(body);
    let mut out = Vec::with_capacity(320);
    let mut fields = call.exchange.start(&mut out, 200).etag(&etag);
    if let Some(checksum) = checksum {
        fields = fields
            .header(checksum.algorithm().header(), &checksum.to_base64())
            .header("x-amz-checksum-type", ChecksumType::FullObject.as_str());
    }
    fields.content_length(0).finish();
    Ok(Reply::Text {
        head: out,
        body: Vec::new(),
    })
}

/// Takes in the body of a PutObject or UploadPart.
pub(crate) async fn intake(
    call: &Call<'_>,
    partition: PartitionId,
    body: &mut Body<'_>,
) -> Result<Received, S3Error> {
    let promise = BodyPromise::parse(call.exchange.head)?;
    body.decode(call.exchange.head, &call.payload)?;
    let has_length = call.exchange.head.content_length().is_some() || call.exchange.head.chunked();
    let len = body
        .len()
        .filter(|_| has_length)
        .ok_or(S3ErrorCode::MissingContentLength)?;
    let intake = Intake {
        server: call.exchange.server,
        partition,
        tenant: call.tenant,
        len,
        promise,
        payload_sha256: call.payload_sha256(),
    };
    intake.run(Source::Body(body)).await
}

/// Makes received bytes an object.
pub(crate) async fn commit(
    call: &Call<'_>,
    bucket: &Bucket,
    partition: PartitionId,
    path: &ObjectPath,
    meta: ObjectMeta,
    condition: Condition,
    received: Received,
) -> Result<PutDone, S3Error> {
    let turn = call.turn().await?;
    let (bucket, key) = (bucket.id, path.key.clone());
    let done = match received.held {
        Held::Small(body) => {
            let put = PutSmall {
                bucket,
                key,
                meta,
                body,
                condition,
            };
            call.server()
                .on(partition, move |p| async move { p.put_small(put).await })
                .await
        }
        Held::Streamed(upload) => {
            let id = upload.id();
            let done = call.server().on(partition, move |p| async move {
                p.put_commit(id, bucket, key, meta, condition).await
            });
            let done = done.await;
            if done.is_ok() {
                upload.committed();
            }
            done
        }
    };
    drop(turn);
    done.map_err(|error| errors::report(&error, "put"))
}

/// Metadata of an object that is written now.
pub(crate) fn new_meta(headers: ObjectHeaders, size: u64, etag: Etag) -> ObjectMeta {
    let text = |value: Option<Box<str>>| value.map(String::from);
    let mut meta = ObjectMeta::new(size, etag, unix_ms());
    meta.content = ContentHeaders {
        content_type: text(headers.content_type),
        encoding: text(headers.content_encoding),
        disposition: text(headers.content_disposition),
        language: text(headers.content_language),
        cache_control: text(headers.cache_control),
        expires: text(headers.expires),
    };
    meta.user = headers
        .user
        .into_iter()
        .map(|(n, v)| (String::from(n), String::from(v)))
        .collect();
    if headers.storage_class == StorageClass::ReducedRedundancy {
        meta.flags |= FLAG_REDUCED;
    }
    meta
}

/// The condition of a write in the store's words.
///
/// # Errors
/// PreconditionFailed for tags that no object here can have, NotImplemented for what S3 does not
/// have on writes.
pub(crate) fn write_condition(conditions: &Conditions) -> Result<Condition, S3Error> {
    conditions.check_write()?;
    let unsupported = |what| Err(S3Error::new(S3ErrorCode::NotImplemented, what));
    if conditions.if_unmodified_since_s.is_some() {
        return unsupported("If-Unmodified-Since is not implemented for writes.");
    }
    match (&conditions.if_match, &conditions.if_none_match) {
        (None, None) => Ok(Condition::None),
        (None, Some(_)) => Ok(Condition::IfNoneMatchAny),
        (Some(_), Some(_)) => {
            unsupported("If-Match and If-None-Match exclude each other in writes.")
        }
        (Some(EtagCondition::Any), None) => Ok(Condition::IfMatchAny),
        (Some(EtagCondition::Tags(tags)), None) => match &tags[..] {
            [tag] => match tag.opaque.parse::<Etag>() {
                Ok(etag) if !tag.weak => Ok(Condition::IfMatch(etag)),
                _ => Err(S3ErrorCode::PreconditionFailed.into()),
            },
            _ => unsupported("If-Match of a write takes one tag."),
        },
    }
}

pub(crate) async fn get(
    call: &Call<'_>,
    path: &ObjectPath,
    params: &ReadParams,
) -> Result<Reply, S3Error> {
    let (bucket, partition) = call.place(path)?;
    let turn = call.turn().await?;
    let (id, key) = (bucket.id, path.key.clone());
    let part = params.part_number;
    let found = call
        .server()
        .on(partition, move |p| async move {
            get_part(&p, id, &key, part).await
        })
        .await;
    drop(turn);
    let (opened, part) = found.map_err(|error| errors::report(&error, "get"))?;
    let meta = opened.meta;
    let stored = match opened.body {
        store::Body::Inline { buf, range } => Stored::Memory(buf, range),
        store::Body::Stored(id) => Stored::Pinned(Reading::new(ReadFrom {
            server: Rc::clone(call.exchange.server),
            partition,
            tenant: call.tenant,
            id,
        })),
    };
    if let Some(reply) = unchanged(call, &meta)? {
        return Ok(reply);
    }
    let selected = Selected::of(call, params, &meta, part)?;
    let out = read_head(call, params, &meta, &selected);
    let range = selected.range();
    match stored {
        Stored::Memory(buf, whole) => {
            let start = whole.start + range.start as usize;
            let range = start..start + (range.end - range.start) as usize;
            Ok(Reply::Inline {
                head: out,
                buf,
                range,
            })
        }
        Stored::Pinned(mut reading) => {
            reading.begin(range.clone()).await?;
            Ok(Reply::Stream {
                head: out,
                reading,
                range,
            })
        }
    }
}

/// The bytes of an opened object.
enum Stored {
    Memory(engine::DmaBuf, Range<usize>),
    Pinned(Reading),
}

pub(crate) async fn head(
    call: &Call<'_>,
    path: &ObjectPath,
    params: &ReadParams,
) -> Result<Reply, S3Error> {
    let (bucket, partition) = call.place(path)?;
    let turn = call.turn().await?;
    let found = head_of(call, bucket.id, &path.key, partition, params.part_number).await;
    drop(turn);
    let (meta, part) = found?;
    if let Some(reply) = unchanged(call, &meta)? {
        return Ok(reply);
    }
    let selected = Selected::of(call, params, &meta, part)?;
    let out = read_head(call, params, &meta, &selected);
    Ok(Reply::Text {
        head: out,
        body: Vec::new(),
    })
}

/// An object's metadata, and a part of it when one is asked for.
async fn head_of(
    call: &Call<'_>,
    bucket: BucketId,
    key: &ObjectKey,
    partition: PartitionId,
    part: Option<u16>,
) -> Result<(ObjectMeta, Option<ObjectPart>), S3Error> {
    let key = key.clone();
    let found = call.server().on(partition, move |p| async move {
        match part {
            None => Ok((p.head(bucket, &key).await?, None)),
            Some(number) => {
                let behind = number.saturating_sub(1);
                let (meta, parts) = p.object_parts(bucket, &key, behind, 1).await?;
                Ok((meta, only(number, parts)))
            }
        }
    });
    found.await.map_err(|error| errors::report(&error, "head"))
}

/// Opens an object, and finds a part of it when one is asked for.
async fn get_part(
    store: &Partition,
    bucket: BucketId,
    key: &ObjectKey,
    part: Option<u16>,
) -> Result<(Opened, Option<ObjectPart>), StoreError> {
    let opened = store.get(bucket, key, HEAD_ROOM).await?;
    let (Some(number), store::Body::Stored(id)) = (part, &opened.body) else {
        return Ok((opened, None));
    };
    match store.read_parts(*id, number.saturating_sub(1), 1).await {
        Ok(parts) => Ok((opened, only(number, parts))),
        Err(error) => {
            store.read_end(*id);
            Err(error)
        }
    }
}

/// The part of this number, if it is the one that was found.
fn only(number: u16, found: ObjectParts) -> Option<ObjectPart> {
    let mut parts = found.parts.into_iter();
    parts.next().filter(|part| part.number == number)
}

pub(crate) async fn delete(call: &Call<'_>, path: &ObjectPath) -> Result<Reply, S3Error> {
    let (bucket, partition) = call.place(path)?;
    let condition = write_condition(&Conditions::of_request(call.exchange.head))?;
    let turn = call.turn().await?;
    let deleted = delete_one(call, bucket.id, path.key.clone(), partition, condition).await;
    drop(turn);
    deleted?;
    Ok(call.exchange.empty(204))
}

async fn delete_one(
    call: &Call<'_>,
    bucket: BucketId,
    key: ObjectKey,
    partition: PartitionId,
    condition: Condition,
) -> Result<(), S3Error> {
    let deleted = call.server().on(partition, move |p| async move {
        p.delete(bucket, key, condition).await
    });
    deleted
        .await
        .map(drop)
        .map_err(|error| errors::report(&error, "delete"))
}

pub(crate) async fn delete_many(
    call: &Call<'_>,
    name: &BucketName,
    body: &mut Body<'_>,
) -> Result<Reply, S3Error> {
    let bucket = call.bucket(name)?;
    let text = call.text(body, XML_BYTES_MAX).await?;
    let request = xml::parse_delete_objects(&text)?;
    let mut outcomes = Vec::with_capacity(request.targets.len());
    for batch in request.targets.chunks(DELETES_AT_A_TIME) {
        let turn = call.server().turn(call.tenant, batch.len() as u32).await?;
        let deletes = batch
            .iter()
            .map(|target| delete_target(call, &bucket, target));
        outcomes.extend(futures_util::future::join_all(deletes).await);
        drop(turn);
    }
    let mut answer = Vec::with_capacity(256 + 64 * outcomes.len());
    let mut writer = DeleteResultWriter::new(&mut answer, request.quiet);
    for (target, outcome) in request.targets.iter().zip(&outcomes) {
        let outcome = match outcome {
            Ok(()) => DeleteOutcome::Deleted,
            Err(error) => DeleteOutcome::Failed(error),
        };
        writer.add(&target.key, outcome);
    }
    writer.finish();
    Ok(call.exchange.xml(200, answer))
}

async fn delete_target(
    call: &Call<'_>,
    bucket: &Bucket,
    target: &DeleteTarget,
) -> Result<(), S3Error> {
    if target.version_id.is_some() {
        let what = "Versions are not implemented; the key was not deleted.";
        return Err(S3Error::new(S3ErrorCode::NotImplemented, what));
    }
    let condition = match &target.etag {
        None => Condition::None,
        Some(etag) if **etag == *"*" => Condition::IfMatchAny,
        Some(etag) => {
            let etag = etag
                .parse()
                .map_err(|_| S3Error::from(S3ErrorCode::PreconditionFailed))?;
            Condition::IfMatch(etag)
        }
    };
    let path = ObjectPath {
        bucket: bucket.name.clone(),
        key: ObjectKey::new(&target.key)?,
    };
    call.allow(Action::DeleteObject, Resource::object(&path), Some(bucket))?;
    let partition = call.server().partition_of(&path);
    delete_one(call, bucket.id, path.key, partition, condition).await
}
