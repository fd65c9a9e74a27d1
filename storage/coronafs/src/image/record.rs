//! What the log and checkpoints say of images. Sans-IO.
//!
//! | kind | record | payload behind the version |
//! | --- | --- | --- |
//! | 12 | volume created from an image | as of kind 1, then u64 bytes of the image, its identity, u32 bytes of a chunk, u8 1 and the 32 bytes of its digest, or u8 0 |
//! | 13 | chunk fetched | u64 volume, u64 chunk, the 32 bytes of its SHA-256 |
//! | 14 | chunks hashed | u64 volume, u64 chunks, u32 each of the 8 words of SHA-256 over them |
//! | 15 | filling ended | u64 volume, u8 1 filled, 2 filled and verified, 3 failed, and why |
//!
//! A volume in a checkpoint is followed by its image: item 5 (u64 volume, then bytes, identity, bytes of a
//! chunk and digest as in a record, chunks and words as in a record, u8 0 or as in the record of the
//! end), and any number of items 6 (u64 volume, u64 chunk, the 32 bytes of its SHA-256).

use segment_log::bytes::{Decode, Reader, Writer};

use super::digest::Running;
use super::{
    Ending, IMAGE_CHUNK_BYTES_MAX, IMAGE_IDENTITY_BYTES_MAX, ImageDigest, ImageRef, VolumeImage,
};
use crate::map::CLUSTER;
use crate::types::VolumeId;

pub(crate) const CREATE: u8 = 12;
pub(crate) const FETCHED: u8 = 13;
pub(crate) const HASHED: u8 = 14;
pub(crate) const ENDED: u8 = 15;

/// What a record says of a volume's image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ImageChange {
    Fetched { chunk: u64, hash: [u8; 32] },
    Hashed(Running),
    Ended(Ending),
}

impl ImageChange {
    /// Appends it; returns its kind.
    pub(crate) fn put(&self, out: &mut Writer) -> u8 {
        match self {
            ImageChange::Fetched { chunk, hash } => {
                out.u64(*chunk);
                out.raw(hash);
                FETCHED
            }
            ImageChange::Hashed(hashed) => {
                put_hashed(out, hashed);
                HASHED
            }
            ImageChange::Ended(ending) => {
                put_ending(out, Some(ending));
                ENDED
            }
        }
    }

    pub(crate) fn take(kind: u8, from: &mut Reader<'_>) -> Decode<ImageChange> {
        let before = from.bad("kind");
        match kind {
            FETCHED => Ok(ImageChange::Fetched {
                chunk: from.u64("chunk")?,
                hash: take_hash(from)?,
            }),
            HASHED => Ok(ImageChange::Hashed(take_hashed(from)?)),
            ENDED => {
                let before = from.bad("ending");
                let ending = take_ending(from)?;
                ending.map(ImageChange::Ended).ok_or(before)
            }
            _ => Err(before),
        }
    }
}

/// What a volume is made from.
pub(crate) fn put_image(out: &mut Writer, made: &VolumeImage) {
    out.u64(made.image.bytes);
    out.text(&made.image.identity);
    out.u32(made.chunk_bytes);
    out.u8(u8::from(made.image.digest.is_some()));
    if let Some(digest) = &made.image.digest {
        out.raw(&digest.0);
    }
}

/// Of a sound size, whatever the bytes say.
pub(crate) fn take_image(from: &mut Reader<'_>) -> Decode<VolumeImage> {
    let before = from.bad("image");
    let bytes = from.u64("image's bytes")?;
    let identity = from.text("identity")?;
    let chunk_bytes = from.u32("chunk's bytes")?;
    let mut digest = None;
    if from.flag("digest")? {
        digest = Some(ImageDigest(take_hash(from)?));
    }
    let fits = (1..=crate::types::VOLUME_BYTES_MAX).contains(&bytes)
        && (1..=IMAGE_IDENTITY_BYTES_MAX).contains(&identity.len())
        && is_chunk(chunk_bytes);
    if !fits {
        return Err(before);
    }
    let image = ImageRef {
        identity: identity.to_owned(),
        bytes,
        digest,
    };
    Ok(VolumeImage::new(image, chunk_bytes))
}

/// Whether images may be fetched in chunks of this size.
pub(crate) fn is_chunk(bytes: u32) -> bool {
    (1..=IMAGE_CHUNK_BYTES_MAX).contains(&bytes) && u64::from(bytes).is_multiple_of(CLUSTER)
}

/// All of it but hashes of chunks.
pub(crate) fn put_state(out: &mut Writer, id: VolumeId, image: &VolumeImage) {
    out.u8(5);
    out.u64(id.0);
    put_image(out, image);
    put_hashed(out, &image.hashed);
    put_ending(out, image.ending.as_ref());
}

pub(crate) fn take_state(from: &mut Reader<'_>) -> Decode<(VolumeId, VolumeImage)> {
    let id = VolumeId(from.u64("volume")?);
    let mut image = take_image(from)?;
    image.hashed = take_hashed(from)?;
    image.ending = take_ending(from)?;
    Ok((id, image))
}

pub(crate) fn put_fetched(out: &mut Writer, id: VolumeId, chunk: u64, hash: &[u8; 32]) {
    out.u8(6);
    out.u64(id.0);
    out.u64(chunk);
    out.raw(hash);
}

pub(crate) fn take_fetched(from: &mut Reader<'_>) -> Decode<(VolumeId, u64, [u8; 32])> {
    let id = VolumeId(from.u64("volume")?);
    Ok((id, from.u64("chunk")?, take_hash(from)?))
}

fn take_hash(from: &mut Reader<'_>) -> Decode<[u8; 32]> {
    let mut hash = [0; 32];
    hash.copy_from_slice(from.raw(32, "hash")?);
    Ok(hash)
}

fn put_hashed(out: &mut Writer, hashed: &Running) {
    out.u64(hashed.chunks());
    for word in hashed.words() {
        out.u32(*word);
    }
}

fn take_hashed(from: &mut Reader<'_>) -> Decode<Running> {
    let chunks = from.u64("chunks")?;
    let mut words = [0; 8];
    for word in &mut words {
        *word = from.u32("word of a hash")?;
    }
    Ok(Running::new(chunks, words))
}

fn put_ending(out: &mut Writer, ending: Option<&Ending>) {
    match ending {
        None => out.u8(0),
        Some(Ending::Filled { verified }) => out.u8(1 + u8::from(*verified)),
        Some(Ending::Failed(why)) => {
            out.u8(3);
            out.text(why);
        }
    }
}

fn take_ending(from: &mut Reader<'_>) -> Decode<Option<Ending>> {
    let before = from.bad("ending");
    Ok(Some(match from.u8("ending")? {
        0 => return Ok(None),
        kind @ 1..=2 => Ending::Filled {
            verified: kind == 2,
        },
        3 => Ending::Failed(from.text("why it failed")?.to_owned()),
        _ => return Err(before),
    }))
}
