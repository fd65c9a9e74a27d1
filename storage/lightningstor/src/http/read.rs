//! Reading a stored object piece by piece, one piece ahead of who takes them.
//!
//! The object stays pinned on its owner until the reading is dropped. Every piece is verified by the
//! store, which also says how long it is. A turn is held for each piece, not for as long as a slow
//! client takes.

use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use engine::{SchedGroup, Task};
use s3_wire::S3Error;
use shards::{PartitionId, TenantId};

use super::budget::Memory;
use super::config::CHUNK_BYTES;
use super::errors;
use super::server::Server;
use crate::store::{Piece, ReadId, StoreError};

/// Cost of a piece in turns of the tenant.
const PIECE_COST: u32 = 4;
/// Waits between tries when the owner has no buffer, doubled each time.
const BUSY_WAIT: Duration = Duration::from_millis(2);
const BUSY_TRIES_MAX: u32 = 10;

/// Which object is read, for whom.
#[derive(Clone)]
pub(crate) struct ReadFrom {
    pub(crate) server: Rc<Server>,
    pub(crate) partition: PartitionId,
    pub(crate) tenant: TenantId,
    pub(crate) id: ReadId,
}

/// A range of an object that is being read.
pub(crate) struct Reading {
    from: ReadFrom,
    at: u64,
    end: u64,
    ahead: Option<Task<Result<Piece, S3Error>>>,
    ready: Option<Piece>,
    memory: Option<Memory>,
}

impl Reading {
    /// Pins nothing by itself: `from.id` is pinned already, and is released when this is dropped.
    pub(crate) fn new(from: ReadFrom) -> Reading {
        Reading {
            from,
            at: 0,
            end: 0,
            ahead: None,
            ready: None,
            memory: None,
        }
    }

    /// Chooses the range, and reads and verifies its first piece.
    ///
    /// # Errors
    /// Of the read; SlowDown when there is no memory for it.
    pub(crate) async fn begin(&mut self, range: Range<u64>) -> Result<(), S3Error> {
        self.at = range.start;
        self.end = range.end;
        if !range.is_empty() {
            let pieces = 2.min((range.end - range.start).div_ceil(CHUNK_BYTES as u64));
            let bytes = pieces * CHUNK_BYTES as u64;
            self.memory = Some(self.from.server.budget(self.from.tenant, bytes).await?);
            self.ready = Some(self.take().await?);
        }
        Ok(())
    }

    /// The next piece; never empty before the range's end, and never past it.
    ///
    /// # Errors
    /// Of the read.
    pub(crate) async fn next(&mut self) -> Result<Piece, S3Error> {
        match self.ready.take() {
            Some(piece) => Ok(piece),
            None => self.take().await,
        }
    }

    async fn take(&mut self) -> Result<Piece, S3Error> {
        assert!(self.at < self.end, "a reading is not asked past its end");
        let ahead = match self.ahead.take() {
            Some(task) => task,
            None => self.start_next()?,
        };
        let piece = ahead.await?;
        let (came, left) = (piece.len() as u64, self.end - self.at);
        if !(1..=left).contains(&came) {
            let what = format!("{came} bytes came of {left} at {}", self.at);
            return Err(errors::report(&StoreError::Internal(what), "read_piece"));
        }
        self.at += came;
        if self.at < self.end {
            self.ahead = Some(self.start_next()?);
        }
        Ok(piece)
    }

    fn start_next(&self) -> Result<Task<Result<Piece, S3Error>>, S3Error> {
        let read = read_piece(self.from.clone(), self.at..self.end);
        engine::try_spawn_local(SchedGroup::FOREGROUND, read)
            .map_err(|_| errors::of_store(&StoreError::Busy))
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        let ReadFrom {
            server,
            partition,
            id,
            ..
        } = self.from.clone();
        let release = async move {
            let released = server.on(partition, move |p| async move {
                p.read_end(id);
                Ok(())
            });
            if let Err(error) = released.await {
                tracing::warn!(%error, "an object stays pinned until the node restarts");
            }
        };
        // Only a shard that is full or ending refuses; then the pin ends with the process.
        let _ = engine::try_spawn_local(SchedGroup::FOREGROUND, release).map(Task::detach);
    }
}

async fn read_piece(from: ReadFrom, range: Range<u64>) -> Result<Piece, S3Error> {
    let mut wait = BUSY_WAIT;
    for _ in 0..BUSY_TRIES_MAX {
        let turn = from.server.turn(from.tenant, PIECE_COST).await?;
        let (id, range) = (from.id, range.clone());
        let read = from.server.on(from.partition, move |p| async move {
            p.read_piece(id, range).await
        });
        let piece = read.await;
        drop(turn);
        match piece {
            Err(StoreError::Busy) => {
                engine::sleep(wait).await;
                wait *= 2;
            }
            other => return other.map_err(|error| errors::report(&error, "read_piece")),
        }
    }
    Err(errors::of_store(&StoreError::Busy))
}
