//! PutObject, GetObject, HeadObject, DeleteObject, DeleteObjects.

use std::ops::Range;
use std::rc::Rc;

use s3_wire::checksum::{BodyPromise, ChecksumType};
use s3_wire::conditional::{Conditions, Current, EtagCondition, Outcome};
use s3_wire::metadata::{ObjectHeaders, StorageClass};
use s3_wire::range::{self, ResolvedRange};
use s3_wire::request::{ObjectPath, ReadParams};
use s3_wire::xml::{self, DeleteOutcome, DeleteResultWriter, DeleteTarget, XML_BYTES_MAX};
use s3_wire::{BucketName, Etag, ObjectKey, ResponseHead, S3Error, S3ErrorCode};
use shards::PartitionId;

use super::body::Body;
use super::errors;
use super::exchange::Reply;
use super::ops::Call;
use super::read::{ReadFrom, Reading};
use super::receive::{Held, Intake, Received, Source};
use super::server::unix_ms;
use crate::store::{
    self, Bucket, BucketId, Condition, ContentHeaders, ObjectChecksum, ObjectMeta, PutDone,
    PutSmall,
};

/// Room kept before an inline body for the head of its answer.
pub(crate) const HEAD_ROOM: usize = 2048;
/// `flags` of an object that was put with REDUCED_REDUNDANCY, which is only a label here.
const FLAG_REDUCED: u32 = 1;
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

pub(crate) fn storage_class(flags: u32) -> StorageClass {
    if flags & FLAG_REDUCED != 0 {
        StorageClass::ReducedRedundancy
    } else {
        StorageClass::Standard
    }
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
    let found = call
        .server()
        .on(partition, move |p| async move {
            p.get(id, &key, HEAD_ROOM).await
        })
        .await;
    drop(turn);
    let opened = found.map_err(|error| errors::report(&error, "get"))?;
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
    let selected = select_range(call, params, &meta)?;
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
    let meta = head_of(call, bucket.id, &path.key, partition).await;
    drop(turn);
    let meta = meta?;
    if let Some(reply) = unchanged(call, &meta)? {
        return Ok(reply);
    }
    let selected = select_range(call, params, &meta)?;
    let out = read_head(call, params, &meta, &selected);
    Ok(Reply::Text {
        head: out,
        body: Vec::new(),
    })
}

pub(crate) async fn head_of(
    call: &Call<'_>,
    bucket: BucketId,
    key: &ObjectKey,
    partition: PartitionId,
) -> Result<ObjectMeta, S3Error> {
    let key = key.clone();
    let found = call.server().on(
        partition,
        move |p| async move { p.head(bucket, &key).await },
    );
    found.await.map_err(|error| errors::report(&error, "head"))
}

/// What conditions look at.
pub(crate) fn current(meta: &ObjectMeta) -> Current {
    Current {
        etag: meta.etag,
        modified_s: (meta.modified_ms / 1000) as i64,
    }
}

/// The 304 of a read whose conditions say that the client has the object already.
///
/// # Errors
/// PreconditionFailed.
fn unchanged(call: &Call<'_>, meta: &ObjectMeta) -> Result<Option<Reply>, S3Error> {
    let conditions = Conditions::of_request(call.exchange.head);
    let outcome = conditions.evaluate_read(&current(meta));
    if outcome != Outcome::NotModified {
        return outcome.into_result().map(|()| None);
    }
    let mut head = Vec::with_capacity(320);
    let modified_s = (meta.modified_ms / 1000) as i64;
    let mut fields = call
        .exchange
        .start(&mut head, 304)
        .etag(&meta.etag)
        .last_modified(modified_s);
    // What a cache renews with the object (RFC 9110 section 15.4.5).
    for (name, value) in [
        ("Cache-Control", &meta.content.cache_control),
        ("Expires", &meta.content.expires),
    ] {
        if let Some(value) = value {
            fields = fields.header(name, value);
        }
    }
    fields.finish();
    Ok(Some(Reply::Text {
        head,
        body: Vec::new(),
    }))
}

/// Which bytes are answered, and as what.
enum Selected {
    Whole(u64),
    Range(Range<u64>),
    /// The only part of an object that came in one piece.
    Part(Range<u64>),
}

impl Selected {
    fn range(&self) -> Range<u64> {
        match self {
            Selected::Whole(size) => 0..*size,
            Selected::Range(range) | Selected::Part(range) => range.clone(),
        }
    }
}

fn select_range(
    call: &Call<'_>,
    params: &ReadParams,
    meta: &ObjectMeta,
) -> Result<Selected, S3Error> {
    if let Some(number) = params.part_number {
        if meta.parts == 0 {
            // An object that came in one piece is its own only part.
            let whole = Selected::Part(0..meta.size);
            return if number == 1 {
                Ok(whole)
            } else {
                Err(S3ErrorCode::InvalidRange.into())
            };
        }
        let what = "partNumber of an object with several parts is not implemented; use Range.";
        return Err(S3Error::new(S3ErrorCode::NotImplemented, what));
    }
    let conditions = Conditions::of_request(call.exchange.head);
    let range = params
        .range
        .filter(|_| conditions.range_applies(&current(meta)));
    match range::resolve(range, meta.size) {
        ResolvedRange::Full => Ok(Selected::Whole(meta.size)),
        ResolvedRange::Partial(range) => Ok(Selected::Range(range)),
        ResolvedRange::Unsatisfiable => Err(S3ErrorCode::InvalidRange.into()),
    }
}

/// The head of a GET's or HEAD's answer.
fn read_head(
    call: &Call<'_>,
    params: &ReadParams,
    meta: &ObjectMeta,
    selected: &Selected,
) -> Vec<u8> {
    let mut out = Vec::with_capacity(768);
    let range = selected.range();
    let is_partial = !matches!(selected, Selected::Whole(_)) && !range.is_empty();
    let mut fields = call
        .exchange
        .start(&mut out, if is_partial { 206 } else { 200 })
        .etag(&meta.etag)
        .last_modified((meta.modified_ms / 1000) as i64)
        .header("Accept-Ranges", "bytes");
    if is_partial {
        fields = fields.content_range(&range, meta.size);
    }
    if meta.flags & FLAG_REDUCED != 0 {
        fields = fields.header("x-amz-storage-class", storage_class(meta.flags).as_str());
    }
    fields = content_fields(fields, params, &meta.content);
    for (name, value) in &meta.user {
        let is_name = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        // Names come from headers; one from a presigned query may hold what a header cannot.
        if name.bytes().all(is_name) {
            fields = fields.header(&format!("x-amz-meta-{name}"), value);
        }
    }
    if let Some(checksum) = meta
        .checksum
        .filter(|_| params.checksum_mode && !is_partial)
    {
        fields = checksum_fields(fields, &checksum, meta.parts);
    }
    fields.content_length(range.end - range.start).finish();
    out
}

fn checksum_fields<'o>(
    fields: ResponseHead<'o>,
    checksum: &ObjectChecksum,
    parts: u32,
) -> ResponseHead<'o> {
    let mut value = checksum.value.to_base64();
    if checksum.kind == ChecksumType::Composite {
        value = format!("{value}-{parts}");
    }
    fields
        .header(checksum.value.algorithm().header(), &value)
        .header("x-amz-checksum-type", checksum.kind.as_str())
}

fn content_fields<'o>(
    mut fields: ResponseHead<'o>,
    params: &ReadParams,
    content: &ContentHeaders,
) -> ResponseHead<'o> {
    let stored = [
        (
            "Content-Type",
            content
                .content_type
                .as_deref()
                .or(Some("binary/octet-stream")),
        ),
        ("Content-Encoding", content.encoding.as_deref()),
        ("Content-Disposition", content.disposition.as_deref()),
        ("Content-Language", content.language.as_deref()),
        ("Cache-Control", content.cache_control.as_deref()),
        ("Expires", content.expires.as_deref()),
    ];
    for (name, value) in stored {
        let asked = params.overrides.iter().find(|(header, _)| *header == name);
        if let Some(value) = asked.map(|(_, value)| &**value).or(value) {
            fields = fields.header(name, value);
        }
    }
    fields
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
    let partition = call.server().partition_of(&path);
    delete_one(call, bucket.id, path.key, partition, condition).await
}
