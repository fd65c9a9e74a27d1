//! Reading a record back: one O_DIRECT read of the blocks that hold it, then every check that the
//! bytes allow.

use std::rc::Rc;

use engine::fs::File;
use engine::{BLOCK, MAX_BUF};

use crate::commit::{Commit, READERS_MAX};
use crate::error::LogError;
use crate::files;
use crate::format::{DATA_START, RECORD_HEADER, decode_record};
use crate::types::{Position, RecordBuf};

impl Commit {
    pub(crate) async fn read(
        &self,
        position: Position,
        len: u32,
        headroom: usize,
    ) -> Result<RecordBuf, LogError> {
        let Position { segment, offset } = position;
        let bad = |expected: &str| LogError::corrupt(segment, u64::from(offset), expected);
        let end = self.end_of(segment)?;
        let (offset, len) = (u64::from(offset), len as usize);
        if offset < DATA_START || !offset.is_multiple_of(8) || offset + len as u64 > end {
            return Err(bad("a record's place inside the segment's batches"));
        }
        if len < RECORD_HEADER || !len.is_multiple_of(8) {
            return Err(bad("a record's length"));
        }
        let within = (offset % BLOCK as u64) as usize;
        let blocks = (within + len).next_multiple_of(BLOCK);
        // Whole blocks in front, so that what is read stays aligned.
        let before = headroom
            .saturating_sub(within + RECORD_HEADER)
            .next_multiple_of(BLOCK);
        let wanted = before + blocks;
        if headroom > MAX_BUF || wanted > MAX_BUF {
            return Err(LogError::TooLarge {
                len: headroom.saturating_add(len),
                max: MAX_BUF,
            });
        }
        let file = self.reader(segment).await?;
        let buf = engine::take_buf(wanted).map_err(|_| LogError::Busy)?;
        let (read, slice) = file
            .read_at(buf.slice(before..wanted), offset - within as u64)
            .await;
        let read = read.map_err(|e| LogError::io("read", file.path(), e))?;
        // It may have been released, and recycled, meanwhile.
        self.end_of(segment)?;
        let mut buf = slice.into_inner();
        buf.set_len(wanted);
        let start = before + within;
        if read < within + len {
            return Err(bad("more bytes"));
        }
        let record = decode_record(&buf[start..start + len], position).map_err(bad)?;
        if record.len as usize != len {
            return Err(bad("a record of the given length"));
        }
        let payload = start + RECORD_HEADER..start + RECORD_HEADER + record.payload.len();
        let (kind, lsn) = (record.kind, record.lsn);
        Ok(RecordBuf {
            buf,
            kind,
            lsn,
            payload,
        })
    }

    fn end_of(&self, segment: u32) -> Result<u64, LogError> {
        let state = self.state.borrow();
        let found = state.segments.get(&segment);
        found
            .map(|found| found.end)
            .ok_or(LogError::NoSegment { segment })
    }

    /// The segment's file: the tail's own, or one of those kept open.
    pub(crate) async fn reader(&self, segment: u32) -> Result<Rc<File>, LogError> {
        {
            let state = self.state.borrow();
            if state.tail.segment.header.number == segment {
                return Ok(Rc::clone(&state.tail.segment.file));
            }
        }
        let turn = self.reads.get() + 1;
        self.reads.set(turn);
        if let Some((file, used)) = self.readers.borrow_mut().get_mut(&segment) {
            *used = turn;
            return Ok(Rc::clone(file));
        }
        let file = files::open_to_read(&files::segment_path(&self.dir, segment)).await?;
        self.end_of(segment)?;
        let mut readers = self.readers.borrow_mut();
        if readers.len() >= READERS_MAX {
            let oldest = readers
                .iter()
                .min_by_key(|(_, (_, used))| *used)
                .map(|(n, _)| *n);
            oldest.map(|number| readers.remove(&number));
        }
        readers.insert(segment, (Rc::clone(&file), turn));
        Ok(file)
    }
}
