//! GetObjectAttributes: what an object is, without its bytes.

use s3_wire::S3Error;
use s3_wire::conditional::Conditions;
use s3_wire::request::{AttributesParams, ObjectPath};
use s3_wire::xml::{self, AttributePart, ObjectAttributes, PartsPage};

use super::errors;
use super::exchange::Reply;
use super::ops::Call;
use super::select::{current, storage_class};
use crate::store::ObjectParts;

pub(crate) async fn get(
    call: &Call<'_>,
    path: &ObjectPath,
    params: &AttributesParams,
) -> Result<Reply, S3Error> {
    let (bucket, partition) = call.place(path)?;
    let (id, key) = (bucket.id, path.key.clone());
    // Only a page of parts reads their records.
    let page = params
        .object_parts
        .then_some((params.part_number_marker, usize::from(params.max_parts)));
    let turn = call.turn().await?;
    let found = call.server().on(partition, move |p| async move {
        match page {
            Some((after, limit)) => p.object_parts(id, &key, after, limit).await,
            None => Ok((p.head(id, &key).await?, ObjectParts::default())),
        }
    });
    let found = found.await;
    drop(turn);
    let (meta, found) = found.map_err(|error| errors::report(&error, "attributes"))?;
    let conditions = Conditions::of_request(call.exchange.head);
    conditions.evaluate_read(&current(&meta)).into_result()?;
    let last = found.parts.last().map(|part| part.number);
    let parts: Vec<AttributePart> = found
        .parts
        .into_iter()
        // S3 shows the parts only of objects that have a checksum.
        .filter(|_| meta.checksum.is_some())
        .map(|part| AttributePart {
            number: part.number,
            size_bytes: part.size,
            checksum: part.checksum,
        })
        .collect();
    let page = PartsPage {
        count: meta.parts,
        part_number_marker: params.part_number_marker,
        max_parts: params.max_parts,
        next_marker: last.filter(|_| found.more && !parts.is_empty()),
        parts: &parts,
    };
    let checksum = meta
        .checksum
        .map(|checksum| (checksum.value, checksum.kind));
    let attributes = ObjectAttributes {
        etag: params.etag.then_some(meta.etag),
        checksum: checksum.filter(|_| params.checksum),
        parts: (params.object_parts && meta.parts > 0).then_some(page),
        storage_class: params.storage_class.then(|| storage_class(meta.flags)),
        size_bytes: params.object_size.then_some(meta.size),
    };
    let mut body = Vec::with_capacity(512 + 160 * parts.len());
    xml::write_object_attributes(&mut body, &attributes);
    let mut head = Vec::with_capacity(320);
    call.exchange
        .start(&mut head, 200)
        .last_modified((meta.modified_ms / 1000) as i64)
        .header("Content-Type", "application/xml")
        .content_length(body.len() as u64)
        .finish();
    Ok(Reply::Text { head, body })
}
