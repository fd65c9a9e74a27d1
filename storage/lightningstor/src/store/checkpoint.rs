//! The form of a checkpoint: frames (`segment_log::frames`, kinds 1 head, 2 items, 3 end) over the items of a walk. Sans-IO; `checkpoint::file` writes and
//! reads it.
//!
//! Head: u32 format version, u32 partition, u64 start LSN, u64 next bucket. Items: see
//! `index::walk`. End: u64 number of items. A file without its end frame is no checkpoint.
//!
//! Format 2 names the runs that hold the objects, and holds those of a memtable that was too small for
//! a run of its own. Format 1 held all objects; it is still read.

pub(super) mod file;
#[cfg(test)]
mod tests;

use segment_log::frames;
pub(super) use segment_log::frames::FRAME_HEAD;

use super::bytes::{Decode, Malformed, Reader, Writer};
use super::index::{Index, Item};
use super::run::RunRef;

const FORMAT: u32 = 2;
/// Held every object in its items.
const FORMAT_WITH_OBJECTS: u32 = 1;
/// Largest payload: the largest manifest is below it.
pub(super) const PAYLOAD_MAX: usize = 2 << 20;

const FRAMES: frames::Format = frames::Format {
    magic: *b"UCkp",
    payload_bytes_max: PAYLOAD_MAX,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum FrameKind {
    Head = 1,
    Items = 2,
    End = 3,
}

/// What a checkpoint says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) partition: u32,
    /// Every record up to this one is in the checkpoint.
    pub(super) start_lsn: u64,
    pub(super) next_bucket: u64,
}

/// A frame's bytes.
pub(super) fn frame(kind: FrameKind, number: u32, payload: &[u8]) -> Vec<u8> {
    FRAMES.frame(kind as u8, number, payload)
}

impl Head {
    pub(super) fn payload(self) -> Vec<u8> {
        let mut out = Writer::default();
        out.u32(FORMAT);
        out.u32(self.partition);
        out.u64(self.start_lsn);
        out.u64(self.next_bucket);
        out.bytes
    }

    fn decode(payload: &[u8]) -> Decode<Head> {
        let mut from = Reader::new(payload);
        let format = from.u32("format version")?;
        if format != FORMAT && format != FORMAT_WITH_OBJECTS {
            return Err(from.bad("format version"));
        }
        let head = Head {
            partition: from.u32("partition")?,
            start_lsn: from.u64("start LSN")?,
            next_bucket: from.u64("next bucket")?,
        };
        from.end("head")?;
        Ok(head)
    }
}

/// The end frame's payload.
pub(super) fn end_payload(items: u64) -> Vec<u8> {
    items.to_le_bytes().to_vec()
}

/// What a checkpoint holds.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) head: Head,
    pub(super) index: Index,
    pub(super) runs: Vec<RunRef>,
}

/// Builds an index from frames in order.
#[derive(Debug, Default)]
pub(super) struct Loader {
    index: Index,
    runs: Vec<RunRef>,
    head: Option<Head>,
    frames: u32,
    items: u64,
    ended: bool,
}

impl Loader {
    /// Payload length that a frame's first [`FRAME_HEAD`] bytes state.
    pub(super) fn payload_len(head: &[u8]) -> Decode<usize> {
        FRAMES.payload_len(head)
    }

    /// Takes the next frame; true when it was the last.
    pub(super) fn take(&mut self, frame: &[u8]) -> Decode<bool> {
        let (kind, payload) = FRAMES.decode(frame, self.frames)?;
        if self.ended {
            return Err(Malformed {
                what: "frame number",
                at: 12,
            });
        }
        self.frames += 1;
        match (kind, self.head) {
            (1, None) => {
                let head = Head::decode(payload)?;
                self.index.set_next_bucket(head.next_bucket);
                self.head = Some(head);
            }
            (2, Some(_)) => self.take_items(payload)?,
            (3, Some(_)) => {
                let mut from = Reader::new(payload);
                if from.u64("item count")? != self.items {
                    return Err(Malformed {
                        what: "item count",
                        at: 0,
                    });
                }
                from.end("end")?;
                self.ended = true;
            }
            _ => {
                return Err(Malformed {
                    what: "frame kind",
                    at: 4,
                });
            }
        }
        Ok(self.ended)
    }

    fn take_items(&mut self, payload: &[u8]) -> Decode<()> {
        let mut from = Reader::new(payload);
        while from.left() > 0 {
            match Item::decode(&mut from)? {
                Item::Run(run) => self.runs.push(run),
                item => self.index.load(item),
            }
            self.items += 1;
        }
        Ok(())
    }

    /// What it holds, when the end was seen.
    pub(super) fn finish(self) -> Option<Loaded> {
        let head = self.head.filter(|_| self.ended)?;
        Some(Loaded {
            head,
            index: self.index,
            runs: self.runs,
        })
    }
}
