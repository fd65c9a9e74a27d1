//! The log as Raft's library wants it.

use std::fmt::Debug;
use std::io;
use std::marker::PhantomData;
use std::ops::{Bound, Range, RangeBounds};

use openraft::async_runtime::AsyncRuntime;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};

use crate::disk::DiskFile;
use crate::types::{Entry, LogId, TypeConfig, Vote};
use crate::wal::Wal;

/// Bytes of entries in one message to another member.
const REPLICATED_BYTES_MAX: usize = 1 << 20;

/// A [`Wal`] for Raft on the runtime `R`.
pub(crate) struct LogStore<R, F> {
    wal: Wal<F>,
    runtime: PhantomData<fn() -> R>,
}

impl<R, F> LogStore<R, F> {
    pub(crate) fn new(wal: Wal<F>) -> Self {
        Self {
            wal,
            runtime: PhantomData,
        }
    }
}

fn bounds(range: &impl RangeBounds<u64>) -> Range<u64> {
    let start = match range.start_bound() {
        Bound::Included(&index) => index,
        Bound::Excluded(&index) => index.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(&index) => index.saturating_add(1),
        Bound::Excluded(&index) => index,
        Bound::Unbounded => u64::MAX,
    };
    start..end
}

impl<R, F> RaftLogReader<TypeConfig<R>> for LogStore<R, F>
where
    R: AsyncRuntime + 'static,
    F: DiskFile,
{
    async fn try_get_log_entries<B: RangeBounds<u64> + Clone + Debug + Send>(
        &mut self,
        range: B,
    ) -> Result<Vec<Entry>, io::Error> {
        self.wal.read(bounds(&range))
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.wal.vote())
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, io::Error> {
        self.wal
            .read(self.wal.limited(start..end, REPLICATED_BYTES_MAX))
    }
}

impl<R, F> RaftLogStorage<TypeConfig<R>> for LogStore<R, F>
where
    R: AsyncRuntime + 'static,
    F: DiskFile,
{
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig<R>>, io::Error> {
        let (last_purged_log_id, last_log_id) = self.wal.bounds();
        Ok(LogState {
            last_purged_log_id,
            last_log_id,
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        Self::new(self.wal.clone())
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        self.wal.save_vote(*vote).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        self.wal.save_committed(committed);
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.wal.committed())
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: IOFlushed<TypeConfig<R>>,
    ) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        self.wal
            .append(entries, Box::new(|result| callback.io_completed(result)))
            .await
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        self.wal.truncate_after(last_log_id).await
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        self.wal.purge(log_id).await
    }
}
