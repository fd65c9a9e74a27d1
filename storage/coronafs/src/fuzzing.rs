//! What the fuzzer calls: records, checkpoints, unflushed changes and sectors of checksums of any bytes.

use segment_log::bytes::Writer;

use crate::checkpoint::{
    END, FRAMES, HEAD, ITEMS, Image, ImageWriter, Loaded, Loader, head_payload,
};
use crate::record::Change;
use crate::sums::{SECTOR_BYTES, put_sector, take_sector};
use crate::unflushed::{LastSlots, play};

/// A record of the log: its kind, then its bytes.
///
/// # Panics
/// When what it decodes to is not written so that it decodes to the same.
pub fn record(data: &[u8]) {
    let Some((kind, payload)) = data.split_first() else {
        return;
    };
    let Ok(change) = Change::decode(*kind, payload) else {
        return;
    };
    let (kind, again) = change.encode();
    let again = Change::decode(kind, &again).expect("a written record decodes");
    assert_eq!(again, change);
}

/// Unflushed changes of any bytes, and bodies of entries with right checksums: a byte of length, and a
/// body each.
pub fn unflushed(data: &[u8]) {
    let _ = play(data, 0, &mut LastSlots::new());
    let (mut entries, mut rest) = (Vec::new(), data);
    while let [len, behind @ ..] = rest {
        let (body, behind) = behind.split_at(usize::from(*len).min(behind.len()));
        entries.extend_from_slice(&(body.len() as u32).to_le_bytes());
        let sealed = [&0_u64.to_le_bytes()[..], body].concat();
        entries.extend_from_slice(&crc_fast::crc32_iscsi(&sealed).to_le_bytes());
        entries.extend_from_slice(body);
        rest = behind;
    }
    let _ = play(&entries, 0, &mut LastSlots::new());
}

/// A sector of checksums of any bytes, and one with a right checksum and head.
///
/// # Panics
/// When what it holds is not written so that it is read as the same.
pub fn checksums(data: &[u8]) {
    let _ = take_sector(data, 3, 9);
    let mut bytes = [0; SECTOR_BYTES];
    put_sector(&mut bytes, 3, 9, &[]);
    let body = &mut bytes[16..];
    let len = data.len().min(body.len());
    body[..len].copy_from_slice(&data[..len]);
    let crc = crc_fast::crc32_iscsi(&bytes[4..]);
    bytes[..4].copy_from_slice(&crc.to_le_bytes());
    let sector = take_sector(&bytes, 3, 9).expect("a sector with a right checksum is read");
    put_sector(&mut bytes, 3, 9, &sector);
    assert_eq!(take_sector(&bytes, 3, 9), Ok(sector));
}

/// A checkpoint: frames of any bytes as they come, and frames with right checksums: a byte of kind,
/// two of length, and a payload each.
///
/// # Panics
/// When what it holds is not written so that it is read as the same.
pub fn checkpoint(data: &[u8]) {
    let _ = FRAMES.payload_len(data);
    let _ = Loader::default().take(data);
    let (mut loader, mut rest, mut number) = (Loader::default(), data, 0);
    while let [kind, low, high, behind @ ..] = rest {
        let len = usize::from(u16::from_le_bytes([*low, *high])).min(behind.len());
        let (payload, behind) = behind.split_at(len);
        match loader.take(&FRAMES.frame(*kind, number, payload)) {
            Ok(false) => {}
            Ok(true) => break,
            Err(_) => return,
        }
        (rest, number) = (behind, number + 1);
    }
    let Some(loaded) = loader.finish() else {
        return;
    };
    let written = items(&loaded);
    let (count, bytes) = &written;
    let head = head_payload(0, loaded.start_lsn, loaded.state.newest);
    let mut again = Loader::default();
    for (number, (kind, payload)) in [
        (HEAD, &head[..]),
        (ITEMS, bytes),
        (END, &count.to_le_bytes()),
    ]
    .into_iter()
    .enumerate()
    {
        let frame = FRAMES.frame(kind, number as u32, payload);
        again.take(&frame).expect("a written frame is read");
    }
    let again = again.finish().expect("the end was written");
    assert_eq!(items(&again), written);
}

fn items(loaded: &Loaded) -> (u64, Vec<u8>) {
    let image = Image::of(&loaded.state);
    let mut writer = ImageWriter::new(&image);
    let mut out = Writer::default();
    while writer.write(&mut out, usize::MAX) {}
    (writer.items, out.bytes)
}
