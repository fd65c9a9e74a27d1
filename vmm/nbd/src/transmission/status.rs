//! Block status: what is allocated, and what has changed since an older state.

use nbd_wire::{ChunkKind, Extent, Request, allocation, block_status, command_flag};
use shards::block::{BlockDevice, EXTENTS_MAX};

use super::device::{Refusal, patiently};
use super::{Link, whole_chunk};
use crate::export::{ChangedRanges, Context};
use crate::wire::Broken;

/// The flag of what has changed, as QEMU's bitmaps have it.
const DIRTY: u32 = 1;

impl<D: BlockDevice> Link<D> {
    /// Answers with one chunk a context, all together or an error.
    pub(super) async fn block_status(&self, request: Request) -> Result<(), Broken> {
        let mut out = Vec::new();
        for (at, (id, context)) in self.contexts.iter().enumerate() {
            let found = match context {
                Context::Allocation => self.allocation(&request).await,
                Context::Changed(at) => self.changed(&request, *at).await,
                Context::Told => Ok(vec![Extent {
                    len: request.len,
                    flags: 0,
                }]),
            };
            let mut extents = match found {
                Ok(extents) => extents,
                Err(refusal) => return self.refuse(request.cookie, refusal).await,
            };
            if request.flags & command_flag::REQ_ONE != 0 {
                extents.truncate(1);
            }
            let done = at + 1 == self.contexts.len();
            let body = block_status(*id, &extents);
            out.extend(whole_chunk(
                ChunkKind::BLOCK_STATUS,
                request.cookie,
                done,
                &body,
            ));
        }
        self.wire.send(out).await
    }

    async fn allocation(&self, request: &Request) -> Result<Vec<Extent>, Refusal> {
        let (device, offset, len) = (self.device(), request.offset, request.len);
        let found = patiently(async || device.extents(offset, u64::from(len)).await).await?;
        let mut left = len;
        let mut extents = Vec::with_capacity(found.len().min(EXTENTS_MAX));
        for extent in found.iter().take(EXTENTS_MAX) {
            let flags = if extent.hole {
                allocation::HOLE | allocation::ZERO
            } else {
                0
            };
            let bytes = extent.bytes.min(u64::from(left)) as u32;
            push(&mut extents, bytes, flags);
            left -= bytes;
        }
        if extents.is_empty() {
            push(&mut extents, len, 0);
        }
        Ok(extents)
    }

    async fn changed(&self, request: &Request, at: usize) -> Result<Vec<Extent>, Refusal> {
        let changes = &self.entry.export.changed_since[at].changes;
        let (offset, len) = (request.offset, u64::from(request.len));
        let found = patiently(async || changes.changed(offset, len).await).await?;
        Ok(dirty(offset, offset + len, &found))
    }
}

/// Adds to extents that follow each other.
fn push(extents: &mut Vec<Extent>, len: u32, flags: u32) {
    match extents.last_mut() {
        _ if len == 0 => {}
        Some(last) if last.flags == flags => last.len += len,
        _ => extents.push(Extent { len, flags }),
    }
}

/// Ranges of bytes as extents of what they are in, which hold at least one.
fn dirty(start: u64, end: u64, changed: &ChangedRanges) -> Vec<Extent> {
    let end = changed.end.clamp(start + 1, end);
    let mut extents = Vec::new();
    let mut at = start;
    for range in &changed.ranges {
        let (from, to) = (range.start.clamp(at, end), range.end.clamp(at, end));
        push(&mut extents, (from - at) as u32, 0);
        push(&mut extents, (to - from) as u32, DIRTY);
        at = to;
        if extents.len() >= EXTENTS_MAX {
            return extents;
        }
    }
    push(&mut extents, (end - at) as u32, 0);
    extents
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_changed_is_clipped_to_what_was_asked_and_answered() {
        let changed = ChangedRanges {
            ranges: vec![0..100, 150..200, 390..1000],
            end: 400,
        };
        let lens = |start, end| {
            let found = dirty(start, end, &changed);
            found.iter().map(|e| (e.len, e.flags)).collect::<Vec<_>>()
        };
        assert_eq!(
            lens(50, 500),
            [(50, 1), (50, 0), (50, 1), (190, 0), (10, 1)]
        );
        assert_eq!(lens(120, 140), [(20, 0)]);
        assert_eq!(lens(395, 1000), [(5, 1)]);
        // One that is behind what was answered is not told of.
        assert_eq!(lens(200, 300), [(100, 0)]);
    }
}
