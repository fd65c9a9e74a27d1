//! Checked frames: the form of the files that stand beside a log, as checkpoints do. Sans-IO.
//!
//! | offset | bytes | field of a frame |
//! | --- | --- | --- |
//! | 0 | 4 | magic of the file's format |
//! | 4 | 1 | kind, as the format says |
//! | 5 | 3 | zero |
//! | 8 | 4 | length of the payload |
//! | 12 | 4 | number of the frame, from 0 |
//! | 16 | 8 | CRC-64/NVME over bytes 0 to 16, then the payload |
//! | 24 | | payload |
//!
//! The CRC covers the frame's number, so frames cannot change places.

use crc_fast::{CrcAlgorithm, Digest};

use crate::bytes::{Decode, Malformed, Reader, Writer};

/// Bytes before a frame's payload.
pub const FRAME_HEAD: usize = 24;

/// What frames of one kind of file have in common.
#[derive(Clone, Copy, Debug)]
pub struct Format {
    /// Its first four bytes.
    pub magic: [u8; 4],
    /// Largest payload of a frame.
    pub payload_bytes_max: usize,
}

fn crc_of(head: &[u8], payload: &[u8]) -> u64 {
    let mut digest = Digest::new(CrcAlgorithm::Crc64Nvme);
    digest.update(head);
    digest.update(payload);
    digest.finalize()
}

impl Format {
    /// A frame's bytes.
    pub fn frame(&self, kind: u8, number: u32, payload: &[u8]) -> Vec<u8> {
        let mut out = Writer {
            bytes: Vec::with_capacity(FRAME_HEAD + payload.len()),
        };
        out.raw(&self.magic);
        out.raw(&[kind, 0, 0, 0]);
        out.u32(payload.len() as u32);
        out.u32(number);
        let crc = crc_of(&out.bytes, payload);
        out.u64(crc);
        out.raw(payload);
        out.bytes
    }

    /// Payload length that a frame's first [`FRAME_HEAD`] bytes state.
    ///
    /// # Errors
    /// When they are no head of such a frame.
    pub fn payload_len(&self, head: &[u8]) -> Decode<usize> {
        let mut from = Reader::new(head);
        if from.raw(4, "frame magic")? != self.magic {
            return Err(Malformed {
                what: "frame magic",
                at: 0,
            });
        }
        from.u32("frame kind")?;
        let len = from.u32("frame length")? as usize;
        if len > self.payload_bytes_max {
            return Err(Malformed {
                what: "frame length",
                at: 8,
            });
        }
        Ok(len)
    }

    /// Kind and payload of the whole frame that must be number `number` of its file.
    ///
    /// # Errors
    /// When it is another, or its CRC is wrong.
    pub fn decode<'a>(&self, frame: &'a [u8], number: u32) -> Decode<(u32, &'a [u8])> {
        let len = self.payload_len(frame)?;
        let mut from = Reader::new(frame);
        from.raw(4, "frame magic")?;
        let kind = from.u32("frame kind")?;
        from.u32("frame length")?;
        let found = from.u32("frame number")?;
        let crc = from.u64("frame CRC")?;
        let payload = from.raw(len, "frame payload")?;
        from.end("frame")?;
        if crc != crc_of(&frame[..16], payload) {
            return Err(Malformed {
                what: "frame CRC",
                at: 16,
            });
        }
        if found != number {
            return Err(Malformed {
                what: "frame number",
                at: 12,
            });
        }
        Ok((kind, payload))
    }
}
