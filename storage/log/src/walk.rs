//! Walking a complete segment in steps while the log runs: for whoever moves records out of it.
//!
//! Every batch is verified before a record of it is shown. Nothing is kept between two steps, so a
//! walker may take its time, and the segment may be released in between.

use std::rc::Rc;

use crate::commit::Commit;
use crate::error::LogError;
use crate::format::{BLOCK, DATA_START, SegmentHeader, each_record};
use crate::recovery::{Found, Window};
use crate::types::{Position, Record};

impl Commit {
    pub(crate) async fn walk(
        &self,
        number: u32,
        from: u64,
        bytes: u64,
        mut visit: impl FnMut(Record<'_>),
    ) -> Result<Option<u64>, LogError> {
        let end = self.sealed_end(number)?;
        let segment = self.segment_to_walk(number).await?;
        let mut window = Window::new(&segment);
        let start = from.max(DATA_START);
        let mut offset = start;
        while offset < end && offset - start < bytes.max(1) {
            let batch = window.batch(offset, end).await?;
            // It may have been released, and recycled, meanwhile.
            self.sealed_end(number)?;
            let bad = |within: usize, expected: &str| {
                LogError::corrupt(number, offset + within as u64, expected)
            };
            let batch = batch.ok_or_else(|| bad(0, "a batch of this segment"))?;
            let len = batch.bytes as usize;
            let held = window.held(offset, len);
            let held = held.ok_or_else(|| bad(0, "a whole batch"))?;
            let position = Position {
                segment: number,
                offset: offset as u32,
            };
            let shown = each_record(&batch, held, position, |record| {
                visit(record);
                Ok::<(), LogError>(())
            });
            shown.map_err(|(at, expected)| bad(at, expected))??;
            offset += len as u64;
        }
        Ok((offset < end).then_some(offset))
    }

    async fn segment_to_walk(&self, number: u32) -> Result<Found, LogError> {
        let file = self.reader(number).await?;
        let head = engine::take_buf(BLOCK).map_err(|_| LogError::Busy)?;
        let (read, head) = file.read_at(head, 0).await;
        read.map_err(|e| LogError::io("read", file.path(), e))?;
        self.sealed_end(number)?;
        let header = SegmentHeader::decode(&head);
        let header = header.map_err(|expected| LogError::corrupt(number, 0, expected))?;
        Ok(Found {
            header,
            seal: None,
            file: Rc::clone(&file),
        })
    }

    fn sealed_end(&self, segment: u32) -> Result<u64, LogError> {
        let state = self.state.borrow();
        match state.segments.get(&segment) {
            None => Err(LogError::NoSegment { segment }),
            Some(found) if found.sealed => Ok(found.end),
            Some(_) => Err(LogError::NotSealed { segment }),
        }
    }
}
