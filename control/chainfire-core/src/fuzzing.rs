//! Fuzz targets over this crate's decoders: what another member sends, and the log on the disk.

use std::fmt::Debug;

use bytes::Bytes;
use openraft::TokioRuntime;

use crate::codec::{DecodeError, decode_membership, encode_membership};
use crate::disk::{Disk as _, DiskFile as _};
use crate::error::Error;
use crate::membership::{decode_change, encode_change};
use crate::rpc;
use crate::sim::disk::SimDisk;
use crate::types::{Entry, Payload, Vote};
use crate::wal::fuzzing::{self as segments, Right};
use crate::wal::{self, Opened, WalOptions, position};

/// What decodes is encoded to something that decodes to the same.
fn round<T>(
    body: &Bytes,
    decode: impl Fn(Bytes) -> Result<T, DecodeError>,
    encode: impl Fn(&T) -> Bytes,
) {
    let Ok(decoded) = decode(body.clone()) else {
        return;
    };
    let encoded = encode(&decoded);
    let again = decode(encoded.clone()).expect("what was encoded decodes");
    assert_eq!(encode(&again), encoded);
}

/// The first byte chooses the message; the rest is its bytes.
pub fn rpc(input: &[u8]) {
    let [which, body @ ..] = input else { return };
    let body = Bytes::copy_from_slice(body);
    match which % 12 {
        0 => round(&body, rpc::decode_vote_request::<TokioRuntime>, |it| {
            rpc::encode_vote_request(it)
        }),
        1 => round(&body, rpc::decode_vote_response::<TokioRuntime>, |it| {
            rpc::encode_vote_response(it)
        }),
        2 => round(&body, rpc::decode_append_request::<TokioRuntime>, |it| {
            rpc::encode_append_request(it)
        }),
        3 => round(&body, rpc::decode_append_response::<TokioRuntime>, |it| {
            rpc::encode_append_response(it)
        }),
        4 => round(&body, rpc::decode_transfer::<TokioRuntime>, |it| {
            rpc::encode_transfer(it)
        }),
        5 => round(&body, rpc::decode_snapshot_head, |(vote, meta)| {
            rpc::encode_snapshot_head(*vote, meta)
        }),
        6 => round(&body, rpc::decode_vote, |it| rpc::encode_vote(*it)),
        7 => round(
            &body,
            |bytes| rpc::decode_position(&bytes),
            |it| rpc::encode_position(*it),
        ),
        8 => round(&body, rpc::decode_proposal, rpc::encode_proposal),
        9 => round(&body, decode_change, encode_change),
        10 => reply(body),
        _ => round(
            &body,
            |bytes| decode_membership(&bytes),
            |it| encode_membership(it).into(),
        ),
    }
}

/// A body stays what it is; an error of the other member is one here, with its words.
fn reply(body: Bytes) {
    match rpc::decode_reply(body) {
        Ok(body) => {
            let again = rpc::decode_reply(rpc::encode_reply(Ok(body.clone())));
            assert_eq!(again.ok(), Some(body), "a body stays the same");
        }
        Err(error) => {
            let (kind, what) = (error.kind(), error.to_string());
            let again = rpc::decode_reply(rpc::encode_reply(Err(error)));
            let again = again.expect_err("an error stays one");
            assert_eq!((again.kind(), again.to_string()), (kind, what));
        }
    }
}

const OPTIONS: WalOptions = WalOptions {
    segment_bytes: 64 << 10,
    batch_bytes_max: 8 << 10,
    cache_bytes_max: 1 << 10,
    queue_max: 8,
};

/// A log of two segments, or of one if the second is empty.
#[derive(Clone)]
struct Segments {
    first: Vec<u8>,
    second: Vec<u8>,
}

impl Segments {
    fn put_right(&self, right: Right) -> (Segments, u32) {
        let mut segments = self.clone();
        let first = Default::default();
        let (end, batch) = segments::put_right(&mut segments.first, 1, 0, right, first);
        let (_, batch) = segments::put_right(&mut segments.second, 2, end, right, batch);
        (segments, batch.start)
    }

    /// Changes a bit of the segments, of the last one only before `end`.
    fn damage(&mut self, end: usize, bit: usize) {
        let (first, last) = if self.second.is_empty() {
            (&mut self.first[..end], &mut [][..])
        } else {
            (&mut self.first[..], &mut self.second[..end])
        };
        let byte = (bit / 8) % (first.len() + last.len());
        let damaged = match byte.checked_sub(first.len()) {
            None => &mut first[byte],
            Some(byte) => &mut last[byte],
        };
        *damaged ^= 1 << (bit % 8);
    }

    /// Opened on a disk of its own, which is the second part.
    fn open(&self) -> Option<(Opened<SimDisk>, SimDisk)> {
        let disk = SimDisk::new();
        for (number, bytes) in [(1, &self.first), (2, &self.second)] {
            if !bytes.is_empty() {
                let file = disk.create(&segments::name(number));
                let written = file.and_then(|file| file.write_at(0, bytes));
                written.expect("the disk works");
            }
        }
        match wal::open(disk.reopened(), OPTIONS) {
            Ok(opened) => Some((opened, disk)),
            Err(error) => {
                named(&error);
                None
            }
        }
    }
}

/// What is damaged is named.
fn named(error: &Error) {
    let what = error.to_string();
    assert!(what.contains(".wal"), "which segment is damaged? {what}");
}

fn entries(opened: &Opened<SimDisk>) -> Vec<Entry> {
    let entries = opened.wal.read(0..u64::MAX);
    entries.expect("a log that opens reads")
}

fn same<T: PartialEq + Debug>(first: &T, second: &T, what: &str) {
    assert_eq!(first, second, "{what} after the log was opened twice");
}

/// A log that opens does so again with all that it had, and takes more.
fn goes_on(segments: &Segments) -> Option<Vec<Entry>> {
    let (opened, disk) = segments.open()?;
    let found = entries(&opened);
    let again = wal::open(disk.reopened(), OPTIONS);
    let mut again = again.expect("a log that opens does so again");
    same(&found, &entries(&again), "entries");
    same(&opened.wal.bounds(), &again.wal.bounds(), "bounds");
    same(&opened.wal.vote(), &again.wal.vote(), "the vote");
    same(&opened.wal.committed(), &again.wal.committed(), "commit");
    let vote = Vote::new(1, 7);
    let last = again.wal.bounds().1;
    let entry = Entry {
        log_id: position(1, last.map_or(0, |id| id.index() + 1)),
        payload: Payload::Blank,
    };
    let written = again.write_now(None, vote, entry.clone());
    written.expect("a log that opens takes more");
    let more = wal::open(disk.reopened(), OPTIONS).expect("a log that was written to opens");
    same(&Some(&entry), &entries(&more).last(), "the new entry");
    same(&more.wal.vote(), &Some(vote), "the new vote");
    Some(found)
}

/// The first bytes say where the second segment begins (0: there is none) and which bit is damaged.
/// The rest are the segments: as they are, with right checksums, and wholly put right. Of the last a
/// bit before the last batch is damaged, which is noticed or changes nothing.
pub fn log(input: &[u8]) {
    let [high, low, at_high, at_low, bytes @ ..] = input else {
        return;
    };
    let cut = match usize::from(u16::from_be_bytes([*high, *low])) {
        0 => bytes.len(),
        cut => cut.min(bytes.len()),
    };
    let as_is = Segments {
        first: bytes[..cut].to_vec(),
        second: bytes[cut..].to_vec(),
    };
    for segments in [&as_is, &as_is.put_right(Right::Sums).0] {
        if let Some((opened, _)) = segments.open() {
            entries(&opened);
        }
    }
    let (mut right, last_batch) = as_is.put_right(Right::Batches);
    let Some(whole) = goes_on(&right) else { return };
    let bit = usize::from(u16::from_be_bytes([*at_high, *at_low]));
    if as_is.first.is_empty() {
        return;
    }
    right.damage(last_batch as usize, bit);
    if let Some((opened, _)) = right.open() {
        assert_eq!(entries(&opened), whole, "bit {bit} is damaged");
    }
}
