//! Reading for somebody who passes bytes on: from sealed pages where they are held, else one verified
//! read, which is kept in pages when it is worth it.
//!
//! Invariant: as in `read`, no byte leaves that was not checked against its CRC since it came from the
//! disk.

use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;

use super::body_cache::ChunkName;
use super::error::StoreError;
use super::fetch::{PartBody, ReadState, Source, StoredBody};
use super::partition::{Inner, Partition};
use super::record::Place;
use super::types::{CHUNK, PagesPart, Piece, ReadId};

/// Most chunks that one piece holds: enough to make its way from shard to shard cheap.
const PIECE_CHUNKS_MAX: usize = 8;

/// What of an object lies in one body in extents.
struct Run {
    place: Place,
    body: Rc<StoredBody>,
    /// The bytes wanted, counted from the body's start.
    wanted: Range<u64>,
}

impl Partition {
    /// The next bytes of an opened object: at least one from the range's start on, none past its end,
    /// which is at most the object's. Bytes in memory come many at a time, others at most [`CHUNK`].
    /// Cancel-safe.
    ///
    /// # Errors
    /// `Gone` for an unknown read, `Busy` (no buffer), `Corrupt`; `Internal` for a range that is
    /// empty or past the object.
    pub async fn read_piece(&self, read: ReadId, range: Range<u64>) -> Result<Piece, StoreError> {
        let state = self.inner.reading(read)?;
        if range.is_empty() || range.end > state.size {
            let what = format!("a read of {range:?} of {} bytes", state.size);
            return Err(StoreError::Internal(what));
        }
        let done = self.inner.fetch_piece(&state, range).await;
        done.map_err(|error| self.inner.named(error, &state))
    }
}

impl Inner {
    async fn fetch_piece(&self, state: &ReadState, range: Range<u64>) -> Result<Piece, StoreError> {
        let chunk = CHUNK as u64;
        let (place, body, begin, size) = match &state.source {
            Source::Record(_) => {
                let len = (range.end - range.start).min(chunk) as usize;
                let (buf, found) = self.fetch(state, range.start, len).await?;
                return Ok(Piece::Buffer(buf, found));
            }
            Source::Extents(place, body) => (*place, Rc::clone(body), 0, state.size),
            Source::Parts { parts, .. } => {
                let at = parts.partition_point(|(begin, _)| *begin <= range.start) - 1;
                let (begin, part) = &parts[at];
                match &self.part_source(state, at).await?.body {
                    PartBody::Extents(body) => (part.place, Rc::clone(body), *begin, part.size),
                    PartBody::Inline(..) => {
                        let len = (begin + part.size).min(range.end) - range.start;
                        let (buf, range) = self.fetch(state, range.start, len as usize).await?;
                        return Ok(Piece::Buffer(buf, range));
                    }
                }
            }
        };
        let wanted = range.start - begin..(range.end - begin).min(size);
        let run = Run {
            place,
            body,
            wanted,
        };
        let held = self.held_pages(&run);
        if !held.is_empty() {
            return Ok(Piece::Pages(held));
        }
        let Range { start, end } = run.wanted;
        let chunk_end = (start / chunk + 1) * chunk;
        let len = end.min(chunk_end) - start;
        let (buf, found) = self.fetch_stored(&run.body, start, len as usize).await?;
        let whole = start.is_multiple_of(chunk) && start + len == chunk_end.min(size);
        if let Some(cache) = self.bodies.get().filter(|_| whole) {
            let name = self.chunk_name(&run, start);
            if cache.wants(name)
                && let Some(pages) = cache.keep(name, &buf[found.clone()])
            {
                let range = 0..pages.len();
                return Ok(Piece::Pages([PagesPart { pages, range }].into()));
            }
        }
        Ok(Piece::Buffer(buf, found))
    }

    fn chunk_name(&self, run: &Run, offset: u64) -> ChunkName {
        ChunkName {
            partition: self.id,
            place: run.place,
            number: offset / CHUNK as u64,
        }
    }

    /// What is held from the start of the wanted bytes on, without a gap.
    fn held_pages(&self, run: &Run) -> VecDeque<PagesPart> {
        let mut held = VecDeque::new();
        let Some(cache) = self.bodies.get() else {
            return held;
        };
        let mut at = run.wanted.start;
        while at < run.wanted.end && held.len() < PIECE_CHUNKS_MAX {
            let Some(pages) = cache.get(&self.chunk_name(run, at)) else {
                break;
            };
            let chunk_start = at - at % CHUNK as u64;
            let from = (at - chunk_start) as usize;
            let to = (run.wanted.end - chunk_start).min(pages.len() as u64) as usize;
            held.push_back(PagesPart {
                pages,
                range: from..to,
            });
            at = chunk_start + to as u64;
        }
        held
    }
}
