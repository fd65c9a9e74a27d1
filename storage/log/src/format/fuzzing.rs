//! What the fuzzer calls: segment headers, seals, batches and records of any bytes, as they come and
//! with magics and checksums put right.

use super::*;

const SEGMENT: SegmentHeader = SegmentHeader {
    number: 7,
    salt: 0x5a17_0000_5a17_0000,
    bytes: 1 << 20,
};
const START: Position = Position {
    segment: SEGMENT.number,
    offset: DATA_START as u32,
};

/// A block or a batch of any bytes.
pub fn batch(data: &[u8]) {
    identify(data);
    seal(data);
    read(data);
    let mut right = data.to_vec();
    right.resize(right.len().max(BATCH_HEADER), 0);
    identify(&with_header(&right));
    seal(&with_seal(&right));
    let right = with_batch(&right);
    assert!(BatchHeader::verify(&right));
    read(&right);
}

fn identify(block: &[u8]) {
    if let Ok(header) = SegmentHeader::decode(block) {
        let mut again = [0; BLOCK];
        header.encode(&mut again);
        assert_eq!(SegmentHeader::decode(&again), Ok(header));
    }
}

fn seal(block: &[u8]) {
    if let Some(seal) = Seal::decode(&SEGMENT, block) {
        let mut again = [0; BLOCK];
        seal.encode(&SEGMENT, &mut again);
        assert_eq!(Seal::decode(&SEGMENT, &again), Some(seal));
    }
}

/// As a recovery reads it.
fn read(bytes: &[u8]) {
    let Some(header) = BatchHeader::peek(&SEGMENT, bytes) else {
        return;
    };
    let Some(batch) = bytes.get(..header.bytes as usize) else {
        return;
    };
    if !BatchHeader::verify(batch) {
        return;
    }
    let _: Result<Result<(), ()>, _> = each_record(&header, batch, START, |record| {
        let mut again = vec![0; record_span(record.payload.len())];
        encode_record(&mut again, record.lsn.0, record.kind, &[record.payload]);
        let decoded = decode_record(&again, record.position).expect("a written record decodes");
        assert_eq!(
            (decoded.lsn, decoded.kind, decoded.payload, decoded.len),
            (record.lsn, record.kind, record.payload, record.len)
        );
        Ok(())
    });
    let mut again = batch.to_vec();
    header.encode(&SEGMENT, &mut again);
    assert_eq!(BatchHeader::peek(&SEGMENT, &again), Some(header));
}

fn with_header(bytes: &[u8]) -> Vec<u8> {
    let mut right = bytes.to_vec();
    put(
        &mut right,
        offset_of!(SegmentLayout, magic),
        SEGMENT_MAGIC.to_le_bytes(),
    );
    put(
        &mut right,
        offset_of!(SegmentLayout, version),
        FORMAT_VERSION.to_le_bytes(),
    );
    let crc = SegmentHeader::crc(&right);
    put(
        &mut right,
        offset_of!(SegmentLayout, crc),
        crc.to_le_bytes(),
    );
    right
}

fn with_seal(bytes: &[u8]) -> Vec<u8> {
    let mut right = bytes.to_vec();
    put(
        &mut right,
        offset_of!(SealLayout, magic),
        SEAL_MAGIC.to_le_bytes(),
    );
    put(
        &mut right,
        offset_of!(SealLayout, salt),
        SEGMENT.salt.to_le_bytes(),
    );
    put(
        &mut right,
        offset_of!(SealLayout, number),
        SEGMENT.number.to_le_bytes(),
    );
    let crc = crc(&[&right[8..size_of::<SealLayout>()]]);
    put(&mut right, offset_of!(SealLayout, crc), crc.to_le_bytes());
    right
}

/// A batch of whole blocks whose records have their magic and checksum, as far as lengths lead.
fn with_batch(bytes: &[u8]) -> Vec<u8> {
    let mut right = bytes.to_vec();
    right.truncate(BATCH_BYTES_LIMIT);
    right.resize(right.len().next_multiple_of(BLOCK), 0);
    let len = right.len() as u32;
    let mut at = BATCH_HEADER;
    while at + RECORD_HEADER <= right.len() {
        let payload = u32_at(&right, at + offset_of!(RecordLayout, len)).unwrap_or_default();
        let end = at + RECORD_HEADER + payload as usize;
        put(
            &mut right,
            at + offset_of!(RecordLayout, magic),
            RECORD_MAGIC.to_le_bytes(),
        );
        if let Some(covered) = right.get(at + 8..end) {
            let crc = crc(&[covered]);
            put(
                &mut right,
                at + offset_of!(RecordLayout, crc),
                crc.to_le_bytes(),
            );
        }
        at += record_span(payload as usize);
    }
    put(
        &mut right,
        offset_of!(BatchLayout, magic),
        BATCH_MAGIC.to_le_bytes(),
    );
    put(
        &mut right,
        offset_of!(BatchLayout, salt),
        SEGMENT.salt.to_le_bytes(),
    );
    put(
        &mut right,
        offset_of!(BatchLayout, number),
        SEGMENT.number.to_le_bytes(),
    );
    put(
        &mut right,
        offset_of!(BatchLayout, bytes),
        len.to_le_bytes(),
    );
    let crc = crc(&[&right[8..]]);
    put(&mut right, offset_of!(BatchLayout, crc), crc.to_le_bytes());
    right
}
