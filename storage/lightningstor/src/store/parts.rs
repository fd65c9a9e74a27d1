//! The parts that a multipart object was put together from: numbers, places in the object, checksums.

use s3_wire::ObjectKey;

use super::error::StoreError;
use super::fetch::ReadState;
use super::partition::{Inner, Partition};
use super::types::{BucketId, ObjectMeta, ObjectPart, ObjectParts, ReadId};

impl Partition {
    /// An object's metadata, and its parts behind a number, at most `limit`.
    ///
    /// # Errors
    /// `NoSuchKey`, `Busy` (no buffer), `Corrupt`.
    pub async fn object_parts(
        &self,
        bucket: BucketId,
        key: &ObjectKey,
        after: u16,
        limit: usize,
    ) -> Result<(ObjectMeta, ObjectParts), StoreError> {
        let opened = self.inner.open_named(bucket, key, 0).await?;
        let (state, meta) = ReadState::new(bucket, key, opened);
        let parts = self.inner.parts_of(&state, after, limit).await?;
        Ok((meta, parts))
    }

    /// The parts of an opened object behind a number, at most `limit`.
    ///
    /// # Errors
    /// `Gone` for an unknown read, `Busy` (no buffer), `Corrupt`.
    pub async fn read_parts(
        &self,
        read: ReadId,
        after: u16,
        limit: usize,
    ) -> Result<ObjectParts, StoreError> {
        let state = self.inner.reading(read)?;
        self.inner.parts_of(&state, after, limit).await
    }
}

impl Inner {
    async fn parts_of(
        &self,
        state: &ReadState,
        after: u16,
        limit: usize,
    ) -> Result<ObjectParts, StoreError> {
        let all = state.parts();
        let first = all.partition_point(|(_, part)| part.number <= after);
        let chosen = all.iter().enumerate().skip(first).take(limit);
        let mut parts = Vec::with_capacity(limit.min(all.len() - first));
        for (at, (begin, part)) in chosen {
            // Checksums are in the parts' records.
            let source = self.part_source(state, at).await;
            let source = source.map_err(|error| self.named(error, state))?;
            parts.push(ObjectPart {
                number: part.number,
                begin: *begin,
                size: part.size,
                checksum: source.checksum,
            });
        }
        let more = first + parts.len() < all.len();
        Ok(ObjectParts { parts, more })
    }
}
