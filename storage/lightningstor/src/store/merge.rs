//! Runs come to be: a frozen memtable becomes the newest run, and runs of one level become one of
//! the next.
//!
//! Merging keeps the newest slot of each name. Slots that say nothing hide older runs; in the
//! oldest run there is nothing left to hide, and they go. It runs in the background group, beside
//! checkpoints, and is given up when the partition closes: its inputs stay what they are.

use std::ops::ControlFlow;
use std::rc::Rc;

use super::bytes::Writer;
use super::error::StoreError;
use super::index::{Memtable, NamePosition, ObjectEntry};
use super::partition::Inner;
use super::run::{Run, RunWriter};
use super::scan::{Fetch, Scan, Seen};

/// Slots after which writing a memtable gives way to others.
const SLOTS_AT_A_TIME: usize = 256;

/// Ends a merge, also when its task is dropped.
struct Merging<'a>(&'a Inner);

impl Drop for Merging<'_> {
    fn drop(&mut self) {
        self.0.checkpoints.merging.set(false);
        self.0.checkpoints.ended.notify_all();
    }
}

fn encode<'b>(entry: &ObjectEntry, buf: &'b mut Vec<u8>) -> &'b [u8] {
    let mut out = Writer {
        bytes: std::mem::take(buf),
    };
    out.bytes.clear();
    entry.encode(&mut out);
    *buf = out.bytes;
    buf
}

impl Inner {
    /// Writes a memtable as a run of the first level. It is durable but for its names.
    ///
    /// # Errors
    /// `Full`, `Busy`, `Internal`; nothing is left of it then.
    pub(super) async fn write_run(&self, table: &Memtable) -> Result<Option<Rc<Run>>, StoreError> {
        let building = self.runs.build(0);
        let (dir, partition) = (self.runs.dir(), self.runs.partition());
        let slots = table.len() as u64;
        let mut writer = RunWriter::create(dir, building.of, partition, slots).await?;
        let begin = NamePosition::start();
        let mut bytes = Vec::new();
        let mut wrote = Ok(());
        for (number, (rank, slot)) in table.from(&begin).enumerate() {
            let entry = slot.as_ref().map(|entry| encode(entry, &mut bytes));
            writer.push(rank, entry);
            if writer.is_due() {
                wrote = writer.write_due().await;
            } else if number % SLOTS_AT_A_TIME == 0 {
                engine::yield_if_needed().await;
            }
            if wrote.is_err() {
                break;
            }
        }
        self.end_run(writer, wrote).await
    }

    /// Finishes a run, or removes what was written of one that failed.
    async fn end_run(
        &self,
        writer: RunWriter,
        wrote: Result<(), StoreError>,
    ) -> Result<Option<Rc<Run>>, StoreError> {
        let number = writer.number();
        let finished = match wrote {
            Ok(()) => writer.finish().await,
            Err(error) => {
                drop(writer);
                Err(error)
            }
        };
        if finished.is_err()
            && let Err(left) = super::run::remove(self.runs.dir(), number).await
        {
            tracing::warn!(partition = self.id.0, %left, "an unfinished run is left behind");
        }
        finished
    }

    /// Merges runs until no level has too many.
    pub(super) async fn merge_due(self: &Rc<Inner>) {
        if self.checkpoints.merging.replace(true) {
            return;
        }
        let _merging = Merging(self);
        while let Some(inputs) = self.runs.due(self.config.runs_per_level) {
            if self.is_closing() {
                return;
            }
            if let Err(error) = self.merge(&inputs).await {
                if !matches!(error, StoreError::Gone | StoreError::Busy) {
                    tracing::warn!(partition = self.id.0, %error, "a merge of the index was given up");
                }
                return;
            }
        }
    }

    async fn merge(&self, inputs: &[Rc<Run>]) -> Result<(), StoreError> {
        let level = inputs[0].of().level;
        let is_oldest = !self.runs.list().iter().any(|run| run.of().level > level);
        let building = self.runs.build(level + 1);
        let (dir, partition) = (self.runs.dir(), self.runs.partition());
        let slots_max = inputs.iter().map(|run| run.slots()).sum();
        let mut writer = RunWriter::create(dir, building.of, partition, slots_max).await?;
        let mut scan = Scan::new(inputs, NamePosition::start(), Fetch::Ahead);
        let wrote = loop {
            let more = scan.run_on(&self.runs, |rank, seen| {
                let entry = match seen {
                    Seen::Stored(_, bytes) => Some(bytes),
                    Seen::Gone | Seen::Entry(_) => None,
                };
                if entry.is_some() || !is_oldest {
                    writer.push(rank, entry);
                }
                if writer.is_due() {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            });
            match more.await {
                Ok(_) if self.is_closing() => break Err(StoreError::Gone),
                Ok(true) => {}
                Ok(false) => break Ok(()),
                Err(error) => break Err(error),
            }
            if let Err(error) = writer.write_due().await {
                break Err(error);
            }
            engine::yield_now().await;
        };
        let merged = self.end_run(writer, wrote).await?;
        engine::fs::sync_dir(self.runs.dir())
            .await
            .map_err(|e| StoreError::internal("cannot flush the directory", &e))?;
        self.runs.install(merged, inputs);
        let merges = &self.counters.index_merges;
        merges.set(merges.get() + 1);
        Ok(())
    }
}
