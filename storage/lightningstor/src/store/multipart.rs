//! Multipart uploads. An upload lives on the partition of its key; completing it writes a manifest
//! that names the parts' records, and moves no byte.

use std::collections::BTreeSet;
use std::rc::Rc;

use engine::DmaBuf;
use s3_wire::checksum::{Checksum, ChecksumType, composite, full_object};
use s3_wire::{Etag, ObjectKey};

use super::error::StoreError;
use super::index::{PartEntry, Upload, UploadKey};
use super::partition::{Inner, Partition};
use super::record::{Change, ManifestPart, Record, Stored};
use super::space::Pin;
use super::types::{
    BucketId, Condition, INLINE_MAX, ObjectChecksum, ObjectMeta, PartBody, PartDone, PartInfo,
    PartPut, PartsChunk, PutDone, UploadChecksum, UploadId, UploadInfo, UploadRef, UploadsChunk,
    Version,
};
use super::write::keep_if_needed;

/// Largest number of a part.
const PARTS_MAX: u16 = 10_000;

fn key_of(upload: &UploadRef) -> UploadKey {
    (upload.bucket, upload.key.as_str().into(), upload.upload)
}

fn record_of(upload: &UploadRef, change: Change) -> Record {
    let key = upload.key.as_str().into();
    Record {
        bucket: upload.bucket,
        key,
        version: Version::NULL,
        change,
    }
}

impl Partition {
    /// Begins an upload that will become the key's object with this metadata (its size, tag and
    /// checksum are found at completion). `modified_ms` says when it began.
    ///
    /// # Errors
    /// `NoSuchBucket`, `Busy`, `Full`, `Poisoned`, `Gone`.
    pub async fn upload_create(
        &self,
        bucket: BucketId,
        key: ObjectKey,
        meta: ObjectMeta,
        checksum: Option<UploadChecksum>,
    ) -> Result<UploadId, StoreError> {
        // Ids grow with time, so that the uploads of a key are listed by their age.
        let upload = UploadId(u128::from(meta.modified_ms) << 64 | u128::from(engine::random()));
        self.in_task(move |inner| async move {
            let _ticket = inner.enter(bucket)?;
            let to = UploadRef {
                bucket,
                key,
                upload,
            };
            let _key = inner.keys.acquire(bucket, to.key.as_str()).await?;
            inner
                .append(
                    record_of(
                        &to,
                        Change::UploadCreate {
                            upload,
                            meta,
                            checksum,
                        },
                    ),
                    None,
                    None,
                )
                .await?;
            Ok(upload)
        })
        .await
    }

    /// Adds a part; durable when it returns. It replaces an earlier one of its number. A streamed
    /// body is gone either way.
    ///
    /// # Errors
    /// `NoSuchUpload`, `InvalidPart` for a number outside 1 to 10,000, and as
    /// [`Partition::put_small`].
    pub async fn part_put(&self, to: UploadRef, part: PartPut) -> Result<PartDone, StoreError> {
        let PartPut {
            number,
            body,
            etag,
            size,
            checksum,
            modified_ms,
        } = part;
        let (small, write) = match body {
            PartBody::Small(body) => (body, None),
            PartBody::Write(write) => {
                let state = self.inner.writes.borrow_mut().remove(&write);
                (None, Some(state.ok_or(StoreError::Gone)?))
            }
        };
        if number == 0 || number > PARTS_MAX {
            return Err(StoreError::InvalidPart { number, etag: None });
        }
        let len = small.as_ref().map_or(0, |body| body.len());
        if write.is_none() && (len > INLINE_MAX || len as u64 != size) {
            return Err(StoreError::Internal(format!(
                "a part of {len} bytes for {size}"
            )));
        }
        self.in_task(move |inner| async move {
            let (stored, table) = match &write {
                Some(state) => inner.settle(state, size).await?,
                None => (Stored::Inline, None),
            };
            let upload = to.upload;
            let change = Change::PartPut {
                upload,
                number,
                etag,
                size,
                modified_ms,
                checksum,
                stored,
            };
            let done = inner.add_part(&to, change, small).await;
            keep_if_needed(&done, [write, table]);
            done.map(|()| PartDone { etag })
        })
        .await
    }

    /// Makes the upload's listed parts the key's object.
    ///
    /// # Errors
    /// `NoSuchUpload`, `InvalidPart`, `InvalidPartOrder`, `EntityTooSmall`, and as
    /// [`Partition::put_small`].
    pub async fn upload_complete(
        &self,
        of: UploadRef,
        parts: Vec<(u16, Etag)>,
        condition: Condition,
        modified_ms: u64,
    ) -> Result<(PutDone, ObjectMeta), StoreError> {
        self.in_task(move |inner| async move {
            let _ticket = inner.enter(of.bucket)?;
            let _key = inner.keys.acquire(of.bucket, of.key.as_str()).await?;
            let upload = inner.upload(&of)?;
            let chosen = choose(&upload, &parts, inner.config.part_bytes_min)?;
            let (_read, record, _) = inner.read_record(upload.place, 0).await?;
            let Change::UploadCreate { mut meta, .. } = record.change else {
                return Err(StoreError::Internal(
                    "the upload's record is another".to_owned(),
                ));
            };
            let tags = chosen.iter().map(|(_, part)| &part.etag);
            meta.etag = Etag::multipart(tags).ok_or(StoreError::InvalidPartOrder)?;
            meta.size = chosen.iter().map(|(_, part)| part.size).sum();
            meta.parts = chosen.len() as u32;
            meta.modified_ms = modified_ms;
            meta.checksum = upload
                .checksum
                .and_then(|promise| combine(promise, &chosen));
            let manifest = chosen.iter().map(|(number, part)| ManifestPart {
                number: *number,
                place: part.place,
                size: part.size,
                extents: part.extents.to_vec(),
            });
            let parts = manifest.collect();
            let change = Change::UploadComplete {
                upload: of.upload,
                meta: meta.clone(),
                parts,
            };
            let done = inner
                .put_locked(of.bucket, &of.key, change, None, condition)
                .await?;
            Ok((done, meta))
        })
        .await
    }

    /// Ends an upload and frees its parts.
    ///
    /// # Errors
    /// `NoSuchUpload`, and as [`Partition::put_small`].
    pub async fn upload_abort(&self, of: UploadRef) -> Result<(), StoreError> {
        self.in_task(move |inner| async move {
            let _ticket = inner.enter(of.bucket)?;
            inner.abort(&of).await
        })
        .await
    }

    /// Ends all uploads of a bucket that is gone.
    pub(super) async fn drop_uploads(&self, bucket: BucketId) -> Result<(), StoreError> {
        self.in_task(move |inner| async move {
            let _ticket = inner.enter_any(bucket)?;
            loop {
                let first = {
                    let index = inner.index.borrow();
                    index
                        .uploads_after(bucket, None)
                        .next()
                        .map(|(key, _)| key.clone())
                };
                let Some((_, key, upload)) = first else {
                    return Ok(());
                };
                let key = ObjectKey::new(&key).map_err(|e| StoreError::Internal(e.to_string()))?;
                match inner
                    .abort(&UploadRef {
                        bucket,
                        key,
                        upload,
                    })
                    .await
                {
                    Ok(()) | Err(StoreError::NoSuchUpload) => {}
                    Err(error) => return Err(error),
                }
            }
        })
        .await
    }

    /// An upload's parts behind a number, at most `limit`.
    ///
    /// # Errors
    /// `NoSuchUpload`.
    pub fn parts(
        &self,
        of: &UploadRef,
        after: u16,
        limit: usize,
    ) -> Result<PartsChunk, StoreError> {
        let index = self.inner.index.borrow();
        let upload = index.upload(&key_of(of)).ok_or(StoreError::NoSuchUpload)?;
        let mut rest = upload.parts.range(after.saturating_add(1)..);
        let info = |(number, part): (&u16, &PartEntry)| PartInfo {
            number: *number,
            size: part.size,
            etag: part.etag,
            modified_ms: part.modified_ms,
            checksum: part.checksum,
        };
        let parts = rest.by_ref().take(limit).map(info).collect();
        Ok(PartsChunk {
            parts,
            more: rest.next().is_some(),
            checksum: upload.checksum,
        })
    }

    /// Uploads of a bucket behind a key and id, whose keys have the prefix; at most `limit`.
    pub fn uploads(
        &self,
        bucket: BucketId,
        prefix: &str,
        after: Option<(&str, UploadId)>,
        limit: usize,
    ) -> UploadsChunk {
        let index = self.inner.index.borrow();
        let behind = after.filter(|(key, _)| *key >= prefix);
        let behind = behind.or((!prefix.is_empty()).then_some((prefix, UploadId(0))));
        // The bound is exclusive; an upload with id 0 does not exist but by a chance of 2^-128.
        let mut found = index
            .uploads_after(bucket, behind)
            .take_while(|((_, key, _), _)| key.starts_with(prefix));
        let info = |((_, key, upload), state): (&UploadKey, &Upload)| UploadInfo {
            key: key.clone(),
            upload: *upload,
            initiated_ms: state.initiated_ms,
            checksum: state.checksum,
        };
        let uploads = found.by_ref().take(limit).map(info).collect();
        UploadsChunk {
            uploads,
            more: found.next().is_some(),
        }
    }

    /// The metadata that an upload began with.
    ///
    /// # Errors
    /// `NoSuchUpload`, `Busy`, `Corrupt`.
    pub async fn upload_meta(&self, of: &UploadRef) -> Result<ObjectMeta, StoreError> {
        let upload = self.inner.upload(of)?;
        let segments = BTreeSet::from([upload.place.segment]);
        let _pin = Pin::new(self.inner.data.space(), None, segments);
        match self.inner.read_record(upload.place, 0).await?.1.change {
            Change::UploadCreate { meta, .. } => Ok(meta),
            _ => Err(StoreError::NoSuchUpload),
        }
    }
}

impl Inner {
    fn upload(&self, of: &UploadRef) -> Result<Upload, StoreError> {
        self.index
            .borrow()
            .upload(&key_of(of))
            .cloned()
            .ok_or(StoreError::NoSuchUpload)
    }

    async fn add_part(
        self: &Rc<Inner>,
        to: &UploadRef,
        change: Change,
        body: Option<DmaBuf>,
    ) -> Result<(), StoreError> {
        let _ticket = self.enter(to.bucket)?;
        let _key = self.keys.acquire(to.bucket, to.key.as_str()).await?;
        if self.index.borrow().upload(&key_of(to)).is_none() {
            return Err(StoreError::NoSuchUpload);
        }
        self.append(record_of(to, change), body.as_ref(), None)
            .await
            .map(drop)
    }

    async fn abort(self: &Rc<Inner>, of: &UploadRef) -> Result<(), StoreError> {
        let _key = self.keys.acquire(of.bucket, of.key.as_str()).await?;
        if self.index.borrow().upload(&key_of(of)).is_none() {
            return Err(StoreError::NoSuchUpload);
        }
        self.append(
            record_of(of, Change::UploadAbort { upload: of.upload }),
            None,
            None,
        )
        .await
        .map(drop)
    }
}

type Chosen = Vec<(u16, PartEntry)>;

/// The listed parts, if they may form an object.
fn choose(upload: &Upload, listed: &[(u16, Etag)], bytes_min: u64) -> Result<Chosen, StoreError> {
    let ascending = listed.windows(2).all(|pair| pair[0].0 < pair[1].0);
    if listed.is_empty() || !ascending {
        return Err(StoreError::InvalidPartOrder);
    }
    let mut chosen = Chosen::with_capacity(listed.len());
    for (at, (number, etag)) in listed.iter().enumerate() {
        let part = upload.parts.get(number);
        let Some(part) = part.filter(|part| part.etag == *etag) else {
            let etag = part.map(|part| part.etag);
            return Err(StoreError::InvalidPart {
                number: *number,
                etag,
            });
        };
        if part.size < bytes_min && at + 1 < listed.len() {
            let (number, size) = (*number, part.size);
            return Err(StoreError::EntityTooSmall {
                number,
                size,
                min: bytes_min,
            });
        }
        chosen.push((*number, part.clone()));
    }
    Ok(chosen)
}

/// The object's checksum, when every part has one of the promised algorithm.
fn combine(promise: UploadChecksum, parts: &Chosen) -> Option<ObjectChecksum> {
    let of = |part: &PartEntry| part.checksum.filter(|c| c.algorithm() == promise.algorithm);
    let sums: Option<Vec<(Checksum, u64)>> = parts
        .iter()
        .map(|(_, part)| Some((of(part)?, part.size)))
        .collect();
    let sums = sums?;
    let value = match promise.kind {
        ChecksumType::FullObject => full_object(sums)?,
        ChecksumType::Composite => composite(sums.iter().map(|(sum, _)| sum))?.0,
    };
    Some(ObjectChecksum {
        value,
        kind: promise.kind,
    })
}
