//! What the fuzzer calls: records, checkpoints and runs of any bytes.

use super::checkpoint::{FrameKind, Loaded, Loader, end_payload, frame};
use super::index::{WalkCursor, put_run};
use super::record::Record;
pub use super::run::fuzzing::{block as run_block, frame as run_frame};

/// A record of the log: its kind, then its bytes.
pub fn record(data: &[u8]) {
    let Some((kind, payload)) = data.split_first() else {
        return;
    };
    let Ok((record, body)) = Record::decode(*kind, payload) else {
        return;
    };
    let mut again = record.encode_head();
    again.extend_from_slice(&payload[body]);
    let decoded = Record::decode(record.change.kind() as u8, &again);
    let (decoded, _) = decoded.expect("a written record decodes");
    assert_eq!(decoded, record);
}

/// A checkpoint: frames of any bytes as they come, and frames with right checksums: a byte of kind,
/// two of length, and a payload each.
pub fn checkpoint(data: &[u8]) {
    let mut raw = Loader::default();
    let _ = Loader::payload_len(data);
    let _ = raw.take(data);
    let (mut loader, mut rest, mut number) = (Loader::default(), data, 0);
    while let [kind, low, high, behind @ ..] = rest {
        let kind = match kind {
            1 => FrameKind::Head,
            2 => FrameKind::Items,
            _ => FrameKind::End,
        };
        let len = usize::from(u16::from_le_bytes([*low, *high])).min(behind.len());
        let (payload, behind) = behind.split_at(len);
        match loader.take(&frame(kind, number, payload)) {
            Ok(false) => {}
            Ok(true) => break,
            Err(_) => return,
        }
        (rest, number) = (behind, number + 1);
    }
    let Some(loaded) = loader.finish() else {
        return;
    };
    let (count, items) = all(&loaded);
    let mut again = Loader::default();
    let frames = [
        frame(FrameKind::Head, 0, &loaded.head.payload()),
        frame(FrameKind::Items, 1, &items),
        frame(FrameKind::End, 2, &end_payload(count)),
    ];
    for frame in frames {
        again.take(&frame).expect("a written frame is read");
    }
    let again = again.finish().expect("the end was written");
    assert_eq!(again.head, loaded.head);
    assert_eq!(all(&again), (count, items));
}

/// Every item of a checkpoint, as it is written.
fn all(loaded: &Loaded) -> (u64, Vec<u8>) {
    let mut items = Vec::new();
    loaded.runs.iter().for_each(|run| put_run(&mut items, *run));
    let count = loaded
        .index
        .walk(&mut WalkCursor::default(), usize::MAX, &mut items);
    (count + loaded.runs.len() as u64, items)
}
