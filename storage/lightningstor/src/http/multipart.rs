//! Multipart uploads. An upload lives on the partition that owns its key, with all its parts.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use s3_wire::checksum::{ChecksumType, chosen_algorithm};
use s3_wire::conditional::Conditions;
use s3_wire::metadata::{ObjectHeaders, StorageClass, amz_field};
use s3_wire::request::{self, ListPartsParams, ListUploadsParams, ObjectPath, PartRef};
use s3_wire::xml::XML_BYTES_MAX;
use s3_wire::xml::{self, CompletedUpload, ListedPart, ListedUpload, PartsFrame, UploadsFrame};
use s3_wire::{BucketName, Etag, S3Error, S3ErrorCode};
use shards::PartitionId;

use super::body::Body;
use super::buckets::owner;
use super::errors;
use super::exchange::Reply;
use super::objects::{intake, new_meta, write_condition};
use super::ops::Call;
use super::receive::{Held, Received};
use super::server::unix_ms;
use crate::store::{
    Bucket, PartBody, PartPut, StoreError, UploadChecksum, UploadId, UploadInfo, UploadRef,
};

/// Largest body of a request that should have none.
const NO_BODY_BYTES_MAX: usize = 4096;

/// The upload that a request names.
///
/// # Errors
/// NoSuchUpload for an id that this server cannot have given out.
pub(crate) fn upload_ref(
    bucket: &Bucket,
    path: &ObjectPath,
    id: &request::UploadId,
) -> Result<UploadRef, S3Error> {
    let upload: UploadId =
        id.0.parse()
            .map_err(|_| S3Error::from(S3ErrorCode::NoSuchUpload))?;
    Ok(UploadRef {
        bucket: bucket.id,
        key: path.key.clone(),
        upload,
    })
}

pub(crate) async fn create(
    call: &Call<'_>,
    path: &ObjectPath,
    body: &mut Body<'_>,
) -> Result<Reply, S3Error> {
    let head = call.exchange.head;
    let (bucket, partition) = call.place(path)?;
    call.text(body, NO_BODY_BYTES_MAX).await?;
    let checksum = match chosen_algorithm(head)? {
        None => None,
        Some(algorithm) => {
            let kind = amz_field(head, "x-amz-checksum-type")?;
            let kind = ChecksumType::for_upload(algorithm, kind.as_deref())?;
            Some(UploadChecksum { algorithm, kind })
        }
    };
    // Size and tag are known when the upload is completed.
    let meta = new_meta(ObjectHeaders::parse(head)?, 0, Etag::single([0; 16]));
    let turn = call.turn().await?;
    let (id, key) = (bucket.id, path.key.clone());
    let created = call.server().on(partition, move |p| async move {
        p.upload_create(id, key, meta, checksum).await
    });
    let upload = created
        .await
        .map_err(|error| errors::report(&error, "create upload"))?;
    drop(turn);
    let mut answer = Vec::with_capacity(320);
    xml::write_initiate_multipart_upload(&mut answer, path, &upload.to_string());
    let mut out = Vec::with_capacity(320);
    let mut fields = call
        .exchange
        .start(&mut out, 200)
        .header("Content-Type", "application/xml");
    if let Some(checksum) = checksum {
        fields = fields
            .header("x-amz-checksum-algorithm", checksum.algorithm.as_str())
            .header("x-amz-checksum-type", checksum.kind.as_str());
    }
    fields.content_length(answer.len() as u64).finish();
    Ok(Reply::Text {
        head: out,
        body: answer,
    })
}

/// What an upload promised about its checksum.
///
/// # Errors
/// NoSuchUpload.
pub(crate) async fn checksum_of(
    call: &Call<'_>,
    partition: PartitionId,
    upload: &UploadRef,
) -> Result<Option<UploadChecksum>, S3Error> {
    let turn = call.turn().await?;
    let upload = upload.clone();
    let listed = call
        .server()
        .on(partition, move |p| async move { p.parts(&upload, 0, 0) })
        .await;
    drop(turn);
    Ok(listed
        .map_err(|error| errors::report(&error, "find upload"))?
        .checksum)
}

pub(crate) async fn put_part(
    call: &Call<'_>,
    path: &ObjectPath,
    part: &PartRef,
    body: &mut Body<'_>,
) -> Result<Reply, S3Error> {
    let (bucket, partition) = call.place(path)?;
    let upload = upload_ref(&bucket, path, &part.upload_id)?;
    // Before gigabytes are taken in for an upload that does not exist.
    checksum_of(call, partition, &upload).await?;
    let received = intake(call, partition, body).await?;
    let (etag, checksum) = (received.etag, received.checksum);
    commit_part(call, partition, upload, part.number, received).await?;
    call.exchange.look_at_rest(body);
    let mut out = Vec::with_capacity(320);
    let mut fields = call.exchange.start(&mut out, 200).etag(&etag);
    if let Some(checksum) = checksum {
        fields = fields.header(checksum.algorithm().header(), &checksum.to_base64());
    }
    fields.content_length(0).finish();
    Ok(Reply::Text {
        head: out,
        body: Vec::new(),
    })
}

/// Makes received bytes a part.
///
/// # Errors
/// Of the store.
pub(crate) async fn commit_part(
    call: &Call<'_>,
    partition: PartitionId,
    upload: UploadRef,
    number: u16,
    received: Received,
) -> Result<(), S3Error> {
    let turn = call.turn().await?;
    let part = |body| PartPut {
        number,
        body,
        etag: received.etag,
        size: received.size,
        checksum: received.checksum,
        modified_ms: unix_ms(),
    };
    let (part, streamed) = match received.held {
        Held::Small(body) => (part(PartBody::Small(body)), None),
        Held::Streamed(held) => (part(PartBody::Write(held.id())), Some(held)),
    };
    let put = call.server().on(
        partition,
        move |p| async move { p.part_put(upload, part).await },
    );
    let put = put.await;
    drop(turn);
    put.map_err(|error| errors::report(&error, "put part"))?;
    if let Some(held) = streamed {
        held.committed();
    }
    Ok(())
}

pub(crate) async fn complete(
    call: &Call<'_>,
    path: &ObjectPath,
    id: &request::UploadId,
    body: &mut Body<'_>,
) -> Result<Reply, S3Error> {
    let (bucket, partition) = call.place(path)?;
    let upload = upload_ref(&bucket, path, id)?;
    let condition = write_condition(&Conditions::of_request(call.exchange.head))?;
    let text = call.text(body, XML_BYTES_MAX).await?;
    let parts = xml::parse_complete_multipart_upload(&text)?;
    let parts = parts
        .into_iter()
        .map(|part| (part.number, part.etag))
        .collect();
    let turn = call.turn().await?;
    let completed = call.server().on(partition, move |p| async move {
        p.upload_complete(upload, parts, condition, unix_ms()).await
    });
    let completed = completed.await;
    drop(turn);
    let (_, meta) = completed.map_err(|error| errors::report(&error, "complete upload"))?;
    let mut answer = Vec::with_capacity(512);
    let location = format!(
        "http://{}{}",
        call.exchange.head.host(),
        call.exchange.head.raw_path()
    );
    let completed = CompletedUpload {
        location: &location,
        bucket: path.bucket.as_str(),
        key: path.key.as_str(),
        etag: meta.etag,
        checksum: meta
            .checksum
            .map(|c| (c.value, c.kind, meta.parts as usize)),
    };
    xml::write_complete_multipart_upload(&mut answer, &completed);
    Ok(call.exchange.xml(200, answer))
}

pub(crate) async fn abort(
    call: &Call<'_>,
    path: &ObjectPath,
    id: &request::UploadId,
) -> Result<Reply, S3Error> {
    let (bucket, partition) = call.place(path)?;
    let upload = upload_ref(&bucket, path, id)?;
    let turn = call.turn().await?;
    let aborted = call
        .server()
        .on(
            partition,
            move |p| async move { p.upload_abort(upload).await },
        )
        .await;
    drop(turn);
    aborted.map_err(|error| errors::report(&error, "abort upload"))?;
    Ok(call.exchange.empty(204))
}

pub(crate) async fn list_parts(
    call: &Call<'_>,
    path: &ObjectPath,
    params: &ListPartsParams,
) -> Result<Reply, S3Error> {
    let (bucket, partition) = call.place(path)?;
    let upload = upload_ref(&bucket, path, &params.upload_id)?;
    let (after, limit) = (params.part_number_marker, usize::from(params.max_parts));
    let turn = call.turn().await?;
    let listed = call
        .server()
        .on(
            partition,
            move |p| async move { p.parts(&upload, after, limit) },
        )
        .await;
    drop(turn);
    let listed = listed.map_err(|error| errors::report(&error, "list parts"))?;
    let last = listed.parts.last().map(|part| part.number);
    let frame = PartsFrame {
        bucket: path.bucket.as_str(),
        key: path.key.as_str(),
        upload_id: &params.upload_id.0,
        owner: owner(call, &bucket),
        storage_class: StorageClass::Standard,
        part_number_marker: params.part_number_marker,
        next_marker: last.filter(|_| listed.more),
        max_parts: params.max_parts,
        checksum: listed.checksum.map(|c| (c.algorithm, c.kind)),
    };
    let mut answer = Vec::with_capacity(512 + 256 * listed.parts.len());
    let parts = listed.parts.iter().map(|part| ListedPart {
        number: part.number,
        modified_s: (part.modified_ms / 1000) as i64,
        etag: part.etag,
        size_bytes: part.size,
        checksum: part.checksum,
    });
    xml::write_parts(&mut answer, &frame, parts);
    Ok(call.exchange.xml(200, answer))
}

/// A page of uploads.
#[derive(Default)]
struct UploadsPage {
    uploads: Vec<UploadInfo>,
    prefixes: BTreeSet<Box<str>>,
    next: Option<(Box<str>, String)>,
}

pub(crate) async fn list_uploads(
    call: &Call<'_>,
    name: &BucketName,
    params: &ListUploadsParams,
) -> Result<Reply, S3Error> {
    let bucket = call.bucket(name)?;
    let page = uploads_page(call, &bucket, params).await?;
    let prefixes: Vec<Box<str>> = page.prefixes.into_iter().collect();
    let frame = UploadsFrame {
        bucket: name.as_str(),
        prefix: &params.prefix,
        delimiter: &params.delimiter,
        key_marker: params.key_marker.as_deref().unwrap_or_default(),
        upload_id_marker: params.upload_id_marker.as_deref().unwrap_or_default(),
        next: page.next.as_ref().map(|(key, id)| (&**key, id.as_str())),
        max_uploads: params.max_uploads,
        encoding_url: params.encoding_url,
        owner: owner(call, &bucket),
        common_prefixes: &prefixes,
    };
    let ids: Vec<String> = page
        .uploads
        .iter()
        .map(|info| info.upload.to_string())
        .collect();
    let uploads = page
        .uploads
        .iter()
        .zip(&ids)
        .map(|(info, id)| ListedUpload {
            key: &info.key,
            upload_id: id,
            initiated_s: (info.initiated_ms / 1000) as i64,
            storage_class: StorageClass::Standard,
        });
    let mut answer = Vec::with_capacity(512 + 384 * ids.len());
    xml::write_uploads(&mut answer, &frame, uploads);
    Ok(call.exchange.xml(200, answer))
}

/// Merges the first uploads of every partition. Uploads are few beside objects: every partition is
/// asked for a whole page, once for each page that rolling up leaves short.
async fn uploads_page(
    call: &Call<'_>,
    bucket: &Bucket,
    params: &ListUploadsParams,
) -> Result<UploadsPage, S3Error> {
    let mut page = UploadsPage::default();
    let mut left = usize::from(params.max_uploads);
    if left == 0 {
        return Ok(page);
    }
    let mut after = params.key_marker.clone().map(|key| {
        let id = params
            .upload_id_marker
            .as_deref()
            .and_then(|id| id.parse().ok());
        (key, id.unwrap_or(UploadId(u128::MAX)))
    });
    loop {
        let turn = call.turn().await?;
        let listed = fetch_uploads(call, bucket, params, after.as_ref(), left + 1).await;
        drop(turn);
        let (uploads, more) = listed.map_err(|error| errors::report(&error, "list uploads"))?;
        let count = uploads.len();
        for info in uploads {
            if left == 0 {
                page.next = after.map(|(key, id)| (key, id.to_string()));
                return Ok(page);
            }
            after = Some((info.key.clone(), info.upload));
            match rolled_up(&info.key, params) {
                Some(prefix) if page.prefixes.contains(prefix) => {}
                Some(prefix) => {
                    page.prefixes.insert(prefix.into());
                    left -= 1;
                }
                None => {
                    page.uploads.push(info);
                    left -= 1;
                }
            }
        }
        if !more || count == 0 {
            return Ok(page);
        }
    }
}

async fn fetch_uploads(
    call: &Call<'_>,
    bucket: &Bucket,
    params: &ListUploadsParams,
    after: Option<&(Box<str>, UploadId)>,
    limit: usize,
) -> Result<(Vec<UploadInfo>, bool), StoreError> {
    let map = call
        .server()
        .router
        .map()
        .expect("a map is installed before anything is served");
    let fetches = (0..map.partitions()).map(|partition| {
        let (id, prefix, after) = (bucket.id, params.prefix.clone(), after.cloned());
        call.server()
            .on(PartitionId(partition), move |p| async move {
                let after = after.as_ref().map(|(key, id)| (&**key, *id));
                Ok(p.uploads(id, &prefix, after, limit))
            })
    });
    let (mut all, mut more) = (Vec::new(), false);
    for chunk in join_all(fetches).await {
        let chunk = chunk?;
        more |= chunk.more;
        all.extend(chunk.uploads);
    }
    all.sort_by(|a, b| (&a.key, a.upload).cmp(&(&b.key, b.upload)));
    more |= all.len() > limit;
    all.truncate(limit);
    Ok((all, more))
}

fn rolled_up<'k>(key: &'k str, params: &ListUploadsParams) -> Option<&'k str> {
    if params.delimiter.is_empty() {
        return None;
    }
    let rest = key.strip_prefix(&*params.prefix)?;
    let at = rest.find(&*params.delimiter)?;
    Some(&key[..params.prefix.len() + at + params.delimiter.len()])
}
