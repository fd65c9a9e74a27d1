//! CopyObject and UploadPartCopy: the bytes go from one object to another through the store, with new
//! digests, as if a client had read and written them.

use std::ops::Range;
use std::rc::Rc;

use engine::DmaBuf;
use s3_wire::checksum::{BodyPromise, ChecksumType, chosen_algorithm};
use s3_wire::conditional::Conditions;
use s3_wire::metadata::ObjectHeaders;
use s3_wire::request::{CopyParams, ObjectPath, PartRef, PartSource};
use s3_wire::xml::{self, CopyResult};
use s3_wire::{S3Error, S3ErrorCode};
use shards::PartitionId;

use super::errors;
use super::exchange::Reply;
use super::multipart;
use super::objects::{commit, new_meta, write_condition};
use super::ops::Call;
use super::read::{ReadFrom, Reading};
use super::receive::{Intake, Received, Source};
use super::select::current;
use super::server::unix_ms;
use crate::store::{self, ObjectChecksum, ObjectMeta};

/// An object that is about to be copied.
struct Opened {
    meta: ObjectMeta,
    body: Bytes,
}

enum Bytes {
    Memory(DmaBuf, Range<usize>),
    Pinned(Reading),
}

/// Opens the source and checks the conditions on it.
async fn open(call: &Call<'_>, path: &ObjectPath) -> Result<Opened, S3Error> {
    let (bucket, partition) = call.source(path)?;
    let turn = call.turn().await?;
    let (id, key) = (bucket.id, path.key.clone());
    let found = call
        .server()
        .on(partition, move |p| async move { p.get(id, &key, 0).await })
        .await;
    drop(turn);
    let opened = found.map_err(|error| errors::report(&error, "copy source"))?;
    let body = match opened.body {
        store::Body::Inline { buf, range } => Bytes::Memory(buf, range),
        store::Body::Stored(id) => Bytes::Pinned(Reading::new(ReadFrom {
            server: Rc::clone(call.exchange.server),
            partition,
            tenant: call.tenant,
            id,
        })),
    };
    let conditions = Conditions::of_copy_source(call.exchange.head);
    conditions
        .evaluate_copy_source(&current(&opened.meta))
        .into_result()?;
    Ok(Opened {
        meta: opened.meta,
        body,
    })
}

/// Takes a range of the source in, for the owner of the new key.
async fn take_in(
    call: &Call<'_>,
    body: Bytes,
    range: Range<u64>,
    partition: PartitionId,
    promise: BodyPromise,
) -> Result<Received, S3Error> {
    let len = range.end - range.start;
    let source = match body {
        Bytes::Memory(buf, whole) => {
            let start = whole.start + range.start as usize;
            Source::Memory {
                buf,
                range: start..start + len as usize,
            }
        }
        Bytes::Pinned(mut reading) => {
            reading.begin(range).await?;
            Source::Object {
                reading,
                left: len,
                piece: None,
            }
        }
    };
    let server = call.exchange.server;
    let tenant = call.tenant;
    Intake {
        server,
        partition,
        tenant,
        len,
        promise,
        payload_sha256: None,
    }
    .run(source)
    .await
}

pub(crate) async fn object(
    call: &Call<'_>,
    path: &ObjectPath,
    params: &CopyParams,
) -> Result<Reply, S3Error> {
    let head = call.exchange.head;
    if params.source == *path && !params.replace_metadata {
        let what = "A copy of an object onto itself has to replace its metadata.";
        return Err(S3Error::new(S3ErrorCode::InvalidRequest, what));
    }
    let (bucket, partition) = call.place(path)?;
    let condition = write_condition(&Conditions::of_request(head))?;
    let headers = ObjectHeaders::parse(head)?;
    let chosen = chosen_algorithm(head)?;
    let Opened { meta: source, body } = open(call, &params.source).await?;
    let kept = source.checksum.map(|checksum| checksum.value.algorithm());
    let promise = BodyPromise {
        algorithm: chosen.or(kept),
        ..BodyPromise::default()
    };
    let received = take_in(call, body, 0..source.size, partition, promise).await?;
    let (etag, checksum) = (received.etag, received.checksum);
    let mut meta = new_meta(headers, received.size, etag);
    if !params.replace_metadata {
        meta.content = source.content;
        meta.user = source.user;
        meta.tags = source.tags;
    }
    meta.checksum = checksum.map(|value| ObjectChecksum {
        value,
        kind: ChecksumType::FullObject,
    });
    let modified_s = (meta.modified_ms / 1000) as i64;
    commit(call, &bucket, partition, path, meta, condition, received).await?;
    let mut answer = Vec::with_capacity(320);
    xml::write_copy_object(
        &mut answer,
        &CopyResult {
            etag,
            modified_s,
            checksum,
        },
    );
    Ok(call.exchange.xml(200, answer))
}

pub(crate) async fn part(
    call: &Call<'_>,
    path: &ObjectPath,
    part: &PartRef,
    source: &PartSource,
) -> Result<Reply, S3Error> {
    let (bucket, partition) = call.place(path)?;
    let upload = multipart::upload_ref(&bucket, path, &part.upload_id)?;
    let algorithm = multipart::checksum_of(call, partition, &upload).await?;
    let opened = open(call, &source.source).await?;
    let range = source.range.clone().unwrap_or(0..opened.meta.size);
    if range.end > opened.meta.size {
        let what = "The copy range lies outside the source object.";
        return Err(S3Error::new(S3ErrorCode::InvalidArgument, what));
    }
    let promise = BodyPromise {
        algorithm: algorithm.map(|checksum| checksum.algorithm),
        ..BodyPromise::default()
    };
    let received = take_in(call, opened.body, range, partition, promise).await?;
    let (etag, checksum) = (received.etag, received.checksum);
    multipart::commit_part(call, partition, upload, part.number, received).await?;
    let mut answer = Vec::with_capacity(320);
    let modified_s = (unix_ms() / 1000) as i64;
    xml::write_copy_part(
        &mut answer,
        &CopyResult {
            etag,
            modified_s,
            checksum,
        },
    );
    Ok(call.exchange.xml(200, answer))
}
