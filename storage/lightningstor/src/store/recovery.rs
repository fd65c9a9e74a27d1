//! Opening a partition: the newest intact checkpoint and its runs, the log behind it, then a walk over
//! the whole index, which counts what is live and finds the data file's free blocks.
//!
//! Invariant: nothing is served from a partition whose log misses a record, whose entries refer to a
//! segment that is not there, or in which two bodies share a block.

use std::cell::RefCell;
use std::ops::ControlFlow;
use std::path::Path;
use std::rc::Rc;

use engine::fs;
use segment_log::durable::Poison;
use segment_log::{Log, LogError, Lsn};
use shards::placement::PartitionId;

use super::buckets::BucketTable;
use super::checkpoint::file;
use super::config::StoreConfig;
use super::data::DataFile;
use super::error::StoreError;
use super::extent::Extent;
use super::index::{Index, NamePosition, Tally};
use super::partition::{Partition, Parts};
use super::record::{Kind, Place, Record};
use super::scan::{Fetch, View};

fn place_of(record: &segment_log::Record<'_>) -> Place {
    let position = record.position;
    Place {
        segment: position.segment,
        offset: position.offset,
        len: record.len,
    }
}

/// Applies records in order, refusing a gap.
struct Replay {
    index: Index,
    last: u64,
    bytes: u64,
}

impl Replay {
    fn take(&mut self, record: &segment_log::Record<'_>) -> Result<(), LogError> {
        let Lsn(lsn) = record.lsn;
        let refused = |reason: String| LogError::Refused {
            lsn: record.lsn,
            reason,
        };
        if lsn != self.last + 1 {
            let reason = format!(
                "records {} to {} are missing and no checkpoint holds them",
                self.last + 1,
                lsn.saturating_sub(1)
            );
            return Err(refused(reason));
        }
        let decoded = Record::decode(record.kind, record.payload);
        let (change, _) = decoded.map_err(|malformed| refused(malformed.to_string()))?;
        // What the key had, and freed extents, do not matter yet: all is counted from the final index.
        if record.kind != Kind::PartCopy as u8 {
            self.index.apply(place_of(record), change, None);
        }
        self.last = lsn;
        self.bytes += u64::from(record.len);
        Ok(())
    }
}

impl Partition {
    /// Opens or makes a partition below `root`.
    pub(super) async fn open(
        root: &Path,
        id: PartitionId,
        config: &StoreConfig,
        buckets: &Rc<BucketTable>,
    ) -> Result<Partition, StoreError> {
        let dir = root.join(format!("p{:03}", id.0));
        let failed = |e: &std::io::Error| StoreError::internal("cannot make the directory", e);
        fs::create_dir_all(&dir).await.map_err(|e| failed(&e))?;
        fs::sync_dir(root).await.map_err(|e| failed(&e))?;
        let found = file::find(&dir, id.0).await?;
        let start = found.start_lsn;
        let mut replay = Replay {
            index: found.index,
            last: start,
            bytes: 0,
        };
        let log_dir = dir.join("log");
        let opened = Log::open(&log_dir, config.log.clone(), Lsn(start), 0, |record| {
            replay.take(&record)
        });
        let (log, recovered) = opened.await?;
        let index = RefCell::new(replay.index);
        let view = View {
            index: &index,
            runs: &found.runs,
        };
        let (tally, extents) = count(view).await?;
        let mut index = index.into_inner();
        index.begin_tally(tally);
        require_segments(&log, &index)?;
        let poison = Rc::new(Poison::default());
        let data = DataFile::open(
            &dir.join("data"),
            config.data_grow_bytes,
            Rc::clone(&poison),
        )
        .await?;
        data.claim(extents)?;
        fs::sync_dir(&dir).await.map_err(|e| failed(&e))?;
        tracing::info!(
            partition = id.0,
            checkpoint_lsn = start,
            records = recovered.records,
            torn_bytes = recovered.torn_bytes,
            clean = recovered.clean,
            "the partition is recovered"
        );
        let parts = Parts {
            id,
            dir,
            log,
            data,
            poison,
            index,
            runs: found.runs,
            last: recovered.last,
            kept: found.kept,
            next_checkpoint: found.next,
            log_bytes: replay.bytes,
        };
        Ok(Partition::new(parts, config, buckets))
    }
}

/// Counts what the whole index refers to: the sums, and every extent.
pub(super) async fn count(view: View<'_>) -> Result<(Tally, Vec<Extent>), StoreError> {
    let mut tally = view.index.borrow().tally_uploads();
    let mut extents: Vec<Extent> = view.index.borrow().upload_extents().collect();
    let mut broken = None;
    let walked = view.walk(NamePosition::start(), Fetch::Ahead, |_, seen| {
        match seen.entry() {
            Ok(entry) => {
                if let Some(entry) = entry {
                    tally.gain_object(&entry);
                    extents.extend(entry.extents());
                }
                ControlFlow::Continue(())
            }
            Err(error) => {
                broken = Some(error);
                ControlFlow::Break(())
            }
        }
    });
    walked.await?;
    broken.map_or(Ok((tally, extents)), Err)
}

fn require_segments(log: &Log, index: &Index) -> Result<(), StoreError> {
    let there: Vec<u32> = log
        .segments()
        .iter()
        .map(|segment| segment.number)
        .collect();
    match index
        .live_segments()
        .find(|segment| !there.contains(segment))
    {
        None => Ok(()),
        Some(segment) => Err(StoreError::Corrupt {
            what: "a log segment (it is missing)".into(),
            segment,
            offset: 0,
        }),
    }
}
