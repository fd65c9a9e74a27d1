//! Writes of whole clusters, many with one operation.
//!
//! Clusters that a volume took one by one, as after a snapshot with writes here and there, lie scattered in
//! the data file, and a sequential read of them is an operation each. A write of several whole clusters
//! that are new, or that lie so, goes to clusters side by side: it is one operation, and so is what reads
//! it later. What it leaves is free again with the next flush.
//!
//! Invariants:
//! - A write whose clusters are the layer's own and can stay where they are never fails for want of space.
//! - Slots are locked in ascending order, and all slots of a run before anything of it is written.

use std::ops::Range;

use engine::GuestList;
use futures_util::future::{join, join_all};

use crate::attach::Attachment;
use crate::data::DataFile;
use crate::error::VolumeError;
use crate::map::CLUSTER;
use crate::space::{Layer, Space};
use crate::transfer::{Source, Span, first_error};
use crate::unflushed::Room;
use crate::volume::Volume;

/// Own clusters side by side that a write leaves where they are: moving them saves little.
const KEPT_MIN: u64 = 4;
/// The file grows for a run unless one in so many of its clusters is free.
const FREE_SHARE: u64 = 4;

/// What one future of a write does.
enum Part {
    /// A range inside of one cluster.
    Span(Span),
    /// Some whole clusters.
    Run(Range<u64>),
}

/// The first cluster of a run that is the layer's own, and how many lie side by side from it on.
fn own_run(volume: &Volume, space: &Space, run: Range<u64>) -> Option<(u32, u64)> {
    let own = |index| volume.own_piece(space, index).map(|piece| piece.cluster);
    let first = own(run.start)?;
    let follows = |(index, cluster): &(u64, u32)| own(*index) == Some(*cluster);
    let side = run.zip(first..).take_while(follows).count();
    Some((first, side as u64))
}

/// Splits whole clusters of a write into runs that each stay together: long ones that are in place, and what
/// is between them.
fn split(volume: &Volume, space: &Space, whole: Range<u64>) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    let (mut at, mut after_kept) = (whole.start, true);
    while at < whole.end {
        let len = own_run(volume, space, at..whole.end).map_or(1, |(_, len)| len);
        let kept = len >= KEPT_MIN;
        match runs.last_mut() {
            Some(last) if !kept && !after_kept => last.end = at + len,
            _ => runs.push(at..at + len),
        }
        (at, after_kept) = (at + len, kept);
    }
    runs
}

impl DataFile {
    /// Takes clusters side by side, at least two and at most `most`, growing the file when that costs little
    /// of the disk; none when there are none to be had.
    async fn take_run(&self, near: Option<u32>, most: u32, layer: Layer) -> Option<Range<u32>> {
        let taken = self.space.borrow_mut().take_run(near, most, layer);
        if taken.is_some() {
            return taken;
        }
        let few = u64::from(self.space.borrow().count()) / FREE_SHARE;
        // Whoever cannot do without meets the error again.
        self.grow_past(few).await.ok()?;
        self.space.borrow_mut().take_run(near, most, layer)
    }
}

impl Attachment {
    /// Writes a range, and maps it.
    pub(crate) async fn write_parts(
        &self,
        room: &Room<'_>,
        offset: u64,
        from: &GuestList,
    ) -> Result<(), VolumeError> {
        let writes = self
            .parts(offset, from.len())
            .into_iter()
            .map(|part| async {
                match part {
                    Part::Span(span) => {
                        let at = span.index * CLUSTER + span.start - offset;
                        self.write_span(room, span, Source::Guest(from, at)).await
                    }
                    Part::Run(run) => {
                        let at = run.start * CLUSTER - offset;
                        self.write_run(room, run, from, at).await
                    }
                }
            });
        first_error(join_all(writes).await)
    }

    fn parts(&self, offset: u64, len: u64) -> Vec<Part> {
        let whole = offset.div_ceil(CLUSTER)..(offset + len) / CLUSTER;
        let spans = |offset, len| Span::parts(offset, len).map(Part::Span);
        if self.volume.summed || whole.end < whole.start + 2 {
            return spans(offset, len).collect();
        }
        let runs = split(&self.volume, &self.inner.data.space.borrow(), whole.clone());
        let (first, last) = (whole.start * CLUSTER, whole.end * CLUSTER);
        let ends = spans(offset, first - offset).chain(spans(last, offset + len - last));
        ends.chain(runs.into_iter().map(Part::Run)).collect()
    }

    /// Writes whole clusters from a place of the list on: where they are if they are side by side, else to
    /// new places as far as there are some.
    async fn write_run(
        &self,
        room: &Room<'_>,
        run: Range<u64>,
        from: &GuestList,
        at: u64,
    ) -> Result<(), VolumeError> {
        let (data, volume) = (&self.inner.data, &self.volume);
        let mut locks = Vec::with_capacity((run.end - run.start) as usize);
        for index in run.clone() {
            locks.push(volume.locks.lock(index).await);
        }
        let base = run.start;
        let list = |indexes: &Range<u64>| {
            let start = at + (indexes.start - base) * CLUSTER;
            from.slice(start..start + (indexes.end - indexes.start) * CLUSTER)
        };
        let own = own_run(volume, &data.space.borrow(), run.clone());
        if let Some((first, side)) = own
            && side == run.end - run.start
        {
            return self
                .write_clusters(room, run.clone(), first, list(&run))
                .await;
        }
        let mut writes = Vec::new();
        let mut next = run.start;
        while next + 1 < run.end {
            let near = volume.place_before(next);
            let most = (run.end - next) as u32;
            let Some(taken) = data.take_run(near, most, volume.layer.get()).await else {
                break;
            };
            let indexes = next..next + taken.len() as u64;
            next = indexes.end;
            let list = list(&indexes);
            writes.push(self.write_clusters(room, indexes, taken.start, list));
        }
        let rest = (next..run.end).map(|index| {
            let span = Span {
                index,
                start: 0,
                end: CLUSTER,
            };
            let from = Source::Guest(from, at + (index - base) * CLUSTER);
            self.write_locked(room, span, from)
        });
        let (moved, rest) = join(join_all(writes), join_all(rest)).await;
        first_error(moved).and(first_error(rest))
    }

    /// Writes clusters that lie side by side in the data file from `first` on, and maps them. The caller has
    /// the slots' locks.
    async fn write_clusters(
        &self,
        room: &Room<'_>,
        indexes: Range<u64>,
        first: u32,
        list: GuestList,
    ) -> Result<(), VolumeError> {
        let data = &self.inner.data;
        let coding = self.coding(indexes.start * CLUSTER);
        let wrote = data.write(list, u64::from(first) * CLUSTER, coding).await;
        let mut space = data.space.borrow_mut();
        for (index, cluster) in indexes.zip(first..) {
            self.map_written(&mut space, room, (index, u16::MAX), cluster, &wrote);
        }
        wrote
    }
}
