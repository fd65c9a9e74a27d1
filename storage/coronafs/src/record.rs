//! The records of the log: every change of volumes, snapshots and maps. Sans-IO.
//!
//! A record's kind is the log's mark; its payload begins with a u8 version, 3, or 2 where it was written
//! before volumes had checksums and images. All numbers are little-endian, a text is a u32 length and UTF-8.
//!
//! | kind | record | payload behind the version |
//! | --- | --- | --- |
//! | 1 | volume created | u64 id, u64 bytes, u64 created (ms), owner, name, u64 key (0 none); from version 3 on u8 checksums (0 or 1) |
//! | 2 | volume deleted | u64 id |
//! | 3 | map | u64 volume, u32 count, then slots: u64 cluster, u8 pieces, each u32 cluster of the data file, u16 mask |
//! | 4 | snapshot created | u64 id, u64 volume, u64 created (ms), name |
//! | 5 | snapshot deleted | u64 id |
//! | 6 | clone | u64 id, u64 snapshot, u64 created (ms), owner, name |
//! | 7 | rollback | u64 volume, u64 snapshot |
//! | 8 | resize | u64 volume, u64 bytes |
//! | 9 | rename | u64 volume, name |
//! | 10 | attached | u64 volume, u64 generation |
//! | 11 | limits | u64 volume, u64 operations and u64 bytes a second (0 is none), u16 burst (ms), u16 shares (0 is the default) |
//! | 12 to 15 | of images | see [`crate::image::record`] |
//! | 16 | map with checksums | as 3, and behind each slot's pieces u16 mask, u32 checksum for each block of it |
//!
//! Version 2 had neither the last ones nor pieces of zeros, and is read as well. Such a piece has the cluster
//! 2^32 - 1 and is the last of its slot.
//!
//! A map record says what the slots are from now on, so replaying one twice does no harm. The order of
//! the others is what makes a snapshot what it is: it holds what the records before it say.

use segment_log::bytes::{Decode, Reader, Writer};

use crate::image::VolumeImage;
use crate::image::record::{self as image_record, ImageChange};
use crate::map::{BLOCKS, Piece, ZEROS};
use crate::sums::BlockSums;
use crate::types::{KeyId, Limits, SnapshotId, VolumeId};

const VERSION: u8 = 3;
/// The oldest that is read: before volumes had checksums and images.
const VERSION_2: u8 = 2;
/// Bytes of slots in one map record, about.
pub(crate) const MAP_BYTES: usize = 256 << 10;
/// Smallest slot in a map record.
const SLOT_BYTES_MIN: usize = 9;

pub(crate) const MAP: u8 = 3;
pub(crate) const MAP_WITH_SUMS: u8 = 16;

/// A slot as a record holds it.
pub(crate) type SlotChange = (u64, Vec<Piece>);

/// The same of a volume with checksums: those of what was written since the slot's record before.
pub(crate) type SummedSlotChange = (u64, Vec<Piece>, BlockSums);

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Create {
        id: VolumeId,
        bytes: u64,
        created_ms: u64,
        owner: String,
        name: String,
        key: Option<KeyId>,
        image: Option<VolumeImage>,
        checksums: bool,
    },
    Delete {
        id: VolumeId,
    },
    Map {
        volume: VolumeId,
        slots: Vec<SlotChange>,
    },
    MapWithSums {
        volume: VolumeId,
        slots: Vec<SummedSlotChange>,
    },
    Snapshot {
        id: SnapshotId,
        volume: VolumeId,
        created_ms: u64,
        name: String,
    },
    DeleteSnapshot {
        id: SnapshotId,
    },
    Clone {
        id: VolumeId,
        snapshot: SnapshotId,
        created_ms: u64,
        owner: String,
        name: String,
    },
    Rollback {
        volume: VolumeId,
        snapshot: SnapshotId,
    },
    Resize {
        volume: VolumeId,
        bytes: u64,
    },
    Rename {
        volume: VolumeId,
        name: String,
    },
    Attach {
        volume: VolumeId,
        generation: u64,
    },
    Limit {
        volume: VolumeId,
        limits: Limits,
    },
    Image {
        volume: VolumeId,
        change: ImageChange,
    },
}

pub(crate) fn put_slot(out: &mut Writer, index: u64, pieces: &[Piece]) {
    out.u64(index);
    out.u8(pieces.len() as u8);
    for piece in pieces {
        out.u32(piece.cluster);
        out.u16(piece.mask);
    }
}

/// Takes the pieces of a slot: at most one for each block, disjoint, none empty, zeros last.
pub(crate) fn take_pieces(from: &mut Reader<'_>) -> Decode<Vec<Piece>> {
    let count = u32::from(from.u8("pieces")?);
    if count > BLOCKS {
        return Err(from.bad("pieces"));
    }
    let mut pieces = Vec::with_capacity(count as usize);
    let mut seen = 0;
    for _ in 0..count {
        let cluster = from.u32("cluster")?;
        let mask = from.u16("mask")?;
        if mask == 0 || mask & seen != 0 {
            return Err(from.bad("mask"));
        }
        if cluster == ZEROS && pieces.len() + 1 != count as usize {
            return Err(from.bad("piece of zeros"));
        }
        seen |= mask;
        pieces.push(Piece { cluster, mask });
    }
    Ok(pieces)
}

/// Begins a map record; slots follow by [`put_slot`], and [`end_map`] counts them.
pub(crate) fn begin_map(volume: VolumeId) -> Writer {
    let mut out = Writer::default();
    out.u8(VERSION);
    out.u64(volume.0);
    out.u32(0);
    out
}

pub(crate) fn end_map(mut out: Writer, count: u32) -> Vec<u8> {
    out.bytes[9..13].copy_from_slice(&count.to_le_bytes());
    out.bytes
}

impl Change {
    /// Kind and payload.
    pub(crate) fn encode(&self) -> (u8, Vec<u8>) {
        let mut out = Writer::default();
        out.u8(VERSION);
        let kind = match self {
            Change::Create {
                id,
                bytes,
                created_ms,
                owner,
                name,
                key,
                image,
                checksums,
            } => {
                out.u64(id.0);
                out.u64(*bytes);
                out.u64(*created_ms);
                out.text(owner);
                out.text(name);
                put_key(&mut out, *key);
                out.u8(u8::from(*checksums));
                match image {
                    None => 1,
                    Some(image) => {
                        image_record::put_image(&mut out, image);
                        image_record::CREATE
                    }
                }
            }
            Change::Delete { id } => {
                out.u64(id.0);
                2
            }
            Change::Map { volume, slots } => {
                let mut out = begin_map(*volume);
                for (index, pieces) in slots {
                    put_slot(&mut out, *index, pieces);
                }
                return (MAP, end_map(out, slots.len() as u32));
            }
            Change::MapWithSums { volume, slots } => {
                let mut out = begin_map(*volume);
                for (index, pieces, sums) in slots {
                    put_slot(&mut out, *index, pieces);
                    sums.put(&mut out);
                }
                return (MAP_WITH_SUMS, end_map(out, slots.len() as u32));
            }
            Change::Clone {
                id,
                snapshot,
                created_ms,
                owner,
                name,
            } => {
                out.u64(id.0);
                out.u64(snapshot.0);
                out.u64(*created_ms);
                out.text(owner);
                out.text(name);
                6
            }
            other => other.encode_setting(&mut out),
        };
        (kind, out.bytes)
    }

    /// Those of a volume that is there.
    fn encode_setting(&self, out: &mut Writer) -> u8 {
        match self {
            Change::Snapshot {
                id,
                volume,
                created_ms,
                name,
            } => {
                out.u64(id.0);
                out.u64(volume.0);
                out.u64(*created_ms);
                out.text(name);
                4
            }
            Change::DeleteSnapshot { id } => {
                out.u64(id.0);
                5
            }
            Change::Rollback { volume, snapshot } => {
                out.u64(volume.0);
                out.u64(snapshot.0);
                7
            }
            Change::Resize { volume, bytes } => {
                out.u64(volume.0);
                out.u64(*bytes);
                8
            }
            Change::Rename { volume, name } => {
                out.u64(volume.0);
                out.text(name);
                9
            }
            Change::Attach { volume, generation } => {
                out.u64(volume.0);
                out.u64(*generation);
                10
            }
            Change::Limit { volume, limits } => {
                out.u64(volume.0);
                put_limits(out, *limits);
                11
            }
            Change::Image { volume, change } => {
                out.u64(volume.0);
                change.put(out)
            }
            _ => unreachable!("encoded by the caller"),
        }
    }

    /// # Errors
    /// When the payload is not such a record.
    pub(crate) fn decode(kind: u8, payload: &[u8]) -> Decode<Change> {
        let mut from = Reader::new(payload);
        let version = from.u8("version")?;
        if ![VERSION, VERSION_2].contains(&version) {
            return Err(from.bad("version"));
        }
        let first = from.u64("id")?;
        let (id, volume, snapshot) = (VolumeId(first), VolumeId(first), SnapshotId(first));
        let change = match kind {
            1 | image_record::CREATE => take_create(kind, version, id, &mut from)?,
            2 => Change::Delete { id },
            MAP => {
                let count = from.count(SLOT_BYTES_MIN, "slots")?;
                let mut slots = Vec::with_capacity(count);
                for _ in 0..count {
                    slots.push((from.u64("slot")?, take_pieces(&mut from)?));
                }
                Change::Map { volume, slots }
            }
            MAP_WITH_SUMS => take_map_with_sums(volume, &mut from)?,
            4 => Change::Snapshot {
                id: snapshot,
                volume: VolumeId(from.u64("volume")?),
                created_ms: from.u64("created")?,
                name: from.text("name")?.to_owned(),
            },
            5 => Change::DeleteSnapshot { id: snapshot },
            6 => Change::Clone {
                id,
                snapshot: SnapshotId(from.u64("snapshot")?),
                created_ms: from.u64("created")?,
                owner: from.text("owner")?.to_owned(),
                name: from.text("name")?.to_owned(),
            },
            7 => Change::Rollback {
                volume,
                snapshot: SnapshotId(from.u64("snapshot")?),
            },
            8 => Change::Resize {
                volume,
                bytes: from.u64("bytes")?,
            },
            9 => Change::Rename {
                volume,
                name: from.text("name")?.to_owned(),
            },
            10 => Change::Attach {
                volume,
                generation: from.u64("generation")?,
            },
            11 => Change::Limit {
                volume,
                limits: take_limits(&mut from)?,
            },
            image_record::FETCHED..=image_record::ENDED => Change::Image {
                volume,
                change: ImageChange::take(kind, &mut from)?,
            },
            _ => return Err(from.bad("kind")),
        };
        from.end("record")?;
        Ok(change)
    }
}

fn take_map_with_sums(volume: VolumeId, from: &mut Reader<'_>) -> Decode<Change> {
    let count = from.count(SLOT_BYTES_MIN, "slots")?;
    let mut slots = Vec::with_capacity(count);
    for _ in 0..count {
        let (index, pieces) = (from.u64("slot")?, take_pieces(from)?);
        slots.push((index, pieces, BlockSums::take(from)?));
    }
    Ok(Change::MapWithSums { volume, slots })
}

fn take_create(kind: u8, version: u8, id: VolumeId, from: &mut Reader<'_>) -> Decode<Change> {
    Ok(Change::Create {
        id,
        bytes: from.u64("bytes")?,
        created_ms: from.u64("created")?,
        owner: from.text("owner")?.to_owned(),
        name: from.text("name")?.to_owned(),
        key: take_key(from)?,
        checksums: version != VERSION_2 && from.flag("checksums")?,
        image: match kind {
            image_record::CREATE => Some(image_record::take_image(from)?),
            _ => None,
        },
    })
}

pub(crate) fn put_key(out: &mut Writer, key: Option<KeyId>) {
    out.u64(key.map_or(0, |key| key.0));
}

pub(crate) fn take_key(from: &mut Reader<'_>) -> Decode<Option<KeyId>> {
    let key = KeyId(from.u64("key")?);
    Ok(Some(key).filter(|key| key.0 != 0))
}

pub(crate) fn put_limits(out: &mut Writer, limits: Limits) {
    out.u64(limits.ops_per_s);
    out.u64(limits.bytes_per_s);
    // Both are below their bounds, which are below 16 bits.
    out.u32(limits.burst_ms | limits.shares << 16);
}

pub(crate) fn take_limits(from: &mut Reader<'_>) -> Decode<Limits> {
    let ops_per_s = from.u64("operations a second")?;
    let bytes_per_s = from.u64("bytes a second")?;
    let both = from.u32("burst and shares")?;
    Ok(Limits {
        ops_per_s,
        bytes_per_s,
        burst_ms: both & 0xFFFF,
        shares: both >> 16,
    })
}

#[cfg(test)]
mod tests;
