//! Operations' keys and transactions.
//!
//! | key | value | until |
//! | --- | --- | --- |
//! | `saga/open/ID` | the record | the operation has ended |
//! | `saga/object/OBJECT` | `ID` | the operation has ended |
//! | `saga/ended/ID` | the record | the retention is over |
//! | `saga/executor/NAME` | `NAME` | the executor's lease ends |

use std::time::Duration;

use serde_json::from_slice;

use super::record::{Record, SagaId};
use crate::audit;
use crate::lease::Fence;
use crate::retention::Retention;
use crate::store::{
    self, Condition, Entry, Outcome, SharedStore, StoreError, StoreErrorKind, Txn, Write,
};

pub const OPEN: &str = "saga/open/";
pub const ENDED: &str = "saga/ended/";
pub const EXECUTORS: &str = "saga/executor/";
/// How long a write is sent again while nobody knows how it ended.
const SETTLE_LIMIT: Duration = Duration::from_secs(30);

pub fn open_key(id: SagaId) -> String {
    format!("{OPEN}{id}")
}

pub fn ended_key(id: SagaId) -> String {
    format!("{ENDED}{id}")
}

pub fn object_key(object: &str) -> String {
    format!("saga/object/{object}")
}

pub fn executor_key(name: &str) -> String {
    format!("{EXECUTORS}{name}")
}

/// A record, and the revision at which it was read or written.
#[derive(Clone, Debug)]
pub struct Tracked {
    pub record: Record,
    pub mod_revision: i64,
}

/// How a write of a record ended.
#[derive(Debug)]
pub enum Written {
    /// It stands, since this revision.
    At(i64),
    /// A condition of the step did not hold.
    Conflict,
    /// The record is somebody else's now, or the executor's lease has ended.
    Lost,
}

/// Where records are written.
pub struct Journal {
    pub store: SharedStore,
    pub retention: Retention,
}

/// The record in an entry.
///
/// # Errors
/// When it is none that this version can read.
pub fn decode(entry: &Entry) -> Result<Tracked, StoreError> {
    let broken = |error: serde_json::Error| {
        let why = format!("{} is no operation: {error}", entry.key);
        StoreError::new(StoreErrorKind::Refused, "cannot read an operation", why)
    };
    Ok(Tracked {
        record: from_slice(&entry.value).map_err(broken)?,
        mod_revision: entry.mod_revision,
    })
}

fn encoded(record: &Record) -> Vec<u8> {
    serde_json::to_vec(record).expect("a record is text, numbers and JSON")
}

/// The event of an operation that was begun, or has ended or failed.
fn event(record: &Record, outcome: &str) -> audit::Event {
    let trouble = record.trouble.as_ref();
    audit::Event {
        at_unix_ms: record.updated_unix_ms,
        tenant: record.tenant.clone(),
        principal: record.principal.clone(),
        request_id: record.request_id.clone(),
        action: record.kind.clone(),
        object: record.object.clone(),
        outcome: outcome.to_owned(),
        detail: trouble.map_or_else(String::new, |one| format!("{}: {}", one.step, one.message)),
    }
}

impl Journal {
    /// Begins an operation, in one transaction with what comes along. A conflict reads back the record of
    /// this id, open or ended, the object's operation, and the executor's key.
    ///
    /// # Errors
    /// When the store refuses, or does not answer for certain.
    pub async fn begin(
        &self,
        fence: &Fence,
        record: &Record,
        with: Txn,
    ) -> Result<Outcome, StoreError> {
        let event = event(record, "begun");
        let (open, ended) = (open_key(record.id), ended_key(record.id));
        let object = object_key(&record.object);
        let mut txn = with;
        txn.conditions.extend([
            fence.condition(),
            Condition::Absent(open.clone()),
            Condition::Absent(ended.clone()),
            Condition::Absent(object.clone()),
        ]);
        txn.writes.extend([
            Write::put(open.clone(), encoded(record)),
            Write::put(object.clone(), record.id.to_string()),
            event.write(self.retention.lease().await?),
        ]);
        let mine = [open, ended, object, fence.key().to_owned()];
        txn.on_conflict.splice(0..0, mine);
        let outcome = store::settle(&*self.store, &txn, SETTLE_LIMIT).await;
        if let Ok(Outcome::Committed { .. }) = outcome {
            event.log();
        }
        self.forget_if_gone(outcome).await
    }

    /// The record of an operation that has not ended.
    ///
    /// # Errors
    /// When the store does not answer, or holds something else.
    pub async fn open(&self, id: SagaId) -> Result<Option<Tracked>, StoreError> {
        let entry = store::get(&*self.store, &open_key(id)).await?;
        entry.as_ref().map(decode).transpose()
    }

    /// Writes a record on, over the one that was read at a revision, in one transaction with `staged`.
    ///
    /// # Errors
    /// As of [`Journal::begin`].
    pub async fn write(
        &self,
        fence: &Fence,
        before: i64,
        record: &Record,
        staged: Txn,
    ) -> Result<Written, StoreError> {
        let (open, ended) = (open_key(record.id), ended_key(record.id));
        let mut txn = staged;
        txn.conditions.extend([
            fence.condition(),
            Condition::Unchanged(open.clone(), before),
        ]);
        let told = record.state.is_ended() || record.failure.is_some();
        let event = told.then(|| event(record, record.state.name()));
        if let Some(event) = &event {
            txn.writes.push(event.write(self.retention.lease().await?));
        }
        if record.state.is_ended() {
            let lease = self.retention.lease().await?;
            txn.writes.extend([
                Write::Delete(open.clone()),
                Write::Delete(object_key(&record.object)),
                Write::leased(ended.clone(), encoded(record), lease),
            ]);
        } else {
            txn.writes.push(Write::put(open.clone(), encoded(record)));
        }
        txn.on_conflict = vec![open, ended, fence.key().to_owned()];
        let outcome = store::settle(&*self.store, &txn, SETTLE_LIMIT).await;
        let written = match self.forget_if_gone(outcome).await? {
            Outcome::Committed { revision } => Written::At(revision),
            Outcome::Conflict { entries, .. } => judge(fence, before, record, &entries),
        };
        if let (Written::At(_), Some(event)) = (&written, &event) {
            event.log();
        }
        Ok(written)
    }

    async fn forget_if_gone(
        &self,
        outcome: Result<Outcome, StoreError>,
    ) -> Result<Outcome, StoreError> {
        if let Err(error) = &outcome
            && error.kind() == StoreErrorKind::Gone
        {
            self.retention.forget().await;
        }
        outcome
    }
}

/// What a conflict means: this very write, which had happened; a condition of the step; or somebody else.
fn judge(fence: &Fence, before: i64, record: &Record, entries: &[Entry]) -> Written {
    let written = encoded(record);
    let mut fenced = false;
    let mut unchanged = false;
    for entry in entries {
        if entry.key == fence.key() {
            fenced = entry.create_revision == fence.epoch();
        } else if entry.value == written {
            return Written::At(entry.mod_revision);
        } else {
            unchanged |= entry.mod_revision == before;
        }
    }
    if fenced && unchanged {
        Written::Conflict
    } else {
        Written::Lost
    }
}
