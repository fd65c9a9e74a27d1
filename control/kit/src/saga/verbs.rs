//! What is asked of operations: begin, read, wait, retry, force-delete.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::http::StatusCode;
use serde::Serialize;
use serde_json::{Map, Value};
use tonic::Code;
use uuid::Uuid;

use super::executor::Sagas;
use super::journal::{
    self, ENDED, OPEN, Tracked, Written, decode, ended_key, object_key, open_key,
};
use super::record::{Record, SagaId, State};
use crate::api::{Call, Caller};
use crate::api_error::ApiError;
use crate::clock::millis;
use crate::lease::Fence;
use crate::store::{self, Entry, Outcome, Range, StoreError, Txn};

/// What begins an operation.
#[derive(Clone, Debug, Default)]
pub struct Begin {
    /// Its name. Beginning it again with the same content begins nothing, and answers how it stands.
    pub id: SagaId,
    /// Which definition it follows.
    pub kind: String,
    /// What it works on; operations on other things run beside it.
    pub object: String,
    /// For whom.
    pub tenant: String,
    /// Who asks.
    pub principal: String,
    /// By which request.
    pub request_id: String,
    /// What the steps get to read.
    pub input: Value,
    /// What must hold, and what is written to the store with it.
    pub with: Txn,
}

impl Begin {
    /// An operation of a kind on an object, for whoever calls; under its idempotency key, if it has one.
    pub fn of<T>(call: &Call<T>, kind: &str, object: impl Into<String>) -> Begin {
        let Caller {
            principal,
            request_id,
            idempotency_key,
            ..
        } = &call.caller;
        let key = idempotency_key.as_deref();
        Begin {
            id: key.map_or_else(SagaId::new, |key| {
                SagaId::of_key(&principal.tenant, kind, key)
            }),
            kind: kind.to_owned(),
            object: object.into(),
            tenant: principal.tenant.to_string(),
            principal: principal.name.to_string(),
            request_id: request_id.as_str().to_owned(),
            ..Begin::default()
        }
    }

    /// What the steps get to read.
    ///
    /// # Panics
    /// If it has a map whose keys are no text.
    pub fn input(mut self, input: &impl Serialize) -> Begin {
        self.input = serde_json::to_value(input).expect("an input's keys are text");
        self
    }

    /// What must hold, and what is written with it.
    pub fn with(mut self, with: Txn) -> Begin {
        self.with = with;
        self
    }
}

impl SagaId {
    /// The id of what a client asked for under an idempotency key: the same each time.
    pub fn of_key(tenant: &str, kind: &str, key: &str) -> SagaId {
        let text = format!("{tenant}\0{kind}\0{key}");
        SagaId::from_u128(Uuid::new_v5(&Uuid::NAMESPACE_OID, text.as_bytes()).as_u128())
    }
}

/// What went wrong, to match on.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SagaErrorKind {
    /// This process may not begin anything now.
    NotReady,
    /// This process has as many open as it may.
    TooMany,
    /// There is no such operation.
    NotFound,
    /// The object has an operation that has not ended.
    Busy,
    /// The id, or idempotency key, was used for something else.
    Reused,
    /// A condition that came along does not hold.
    Conflict,
    /// The verb does not fit the operation's state.
    WrongState,
    /// The store failed.
    Store,
}

/// An error of a verb.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct SagaError {
    kind: SagaErrorKind,
    message: String,
    object: String,
}

impl SagaError {
    fn new(
        kind: SagaErrorKind,
        message: impl Into<String>,
        object: impl Into<String>,
    ) -> SagaError {
        SagaError {
            kind,
            message: message.into(),
            object: object.into(),
        }
    }

    /// What to match on.
    pub fn kind(&self) -> SagaErrorKind {
        self.kind
    }
}

impl From<StoreError> for SagaError {
    fn from(error: StoreError) -> SagaError {
        SagaError::new(SagaErrorKind::Store, error.to_string(), "")
    }
}

impl From<SagaError> for ApiError {
    fn from(error: SagaError) -> ApiError {
        use SagaErrorKind::{
            Busy, Conflict, NotFound, NotReady, Reused, Store, TooMany, WrongState,
        };
        let (grpc, code, next) = match error.kind {
            NotReady => (Code::Unavailable, "not-ready", "try again in a moment"),
            TooMany => (
                Code::ResourceExhausted,
                "too-many-operations",
                "wait until operations have ended, and try again",
            ),
            NotFound => (
                Code::NotFound,
                "operation-not-found",
                "list operations to see its id",
            ),
            Busy => (
                Code::FailedPrecondition,
                "operation-under-way",
                "wait for that operation; retry or force-delete it if it has failed",
            ),
            Reused => (
                Code::AlreadyExists,
                "idempotency-key-reused",
                "use another key for another request",
            ),
            Conflict => (
                Code::Aborted,
                "changed-meanwhile",
                "read the object and try again",
            ),
            WrongState => (
                Code::FailedPrecondition,
                "wrong-operation-state",
                "only a failed operation is retried or force-deleted",
            ),
            Store => (
                Code::Unavailable,
                "store-unavailable",
                "try again in a moment",
            ),
        };
        let conflicts = matches!(error.kind, Busy | WrongState);
        let error = ApiError::new(grpc, code, error.message)
            .object(error.object)
            .next(next);
        if conflicts {
            // The request is right, and the object's state is not: HTTP has a word for it.
            error.status(StatusCode::CONFLICT)
        } else {
            error
        }
    }
}

impl Sagas {
    fn fence(&self) -> Result<Fence, SagaError> {
        let fence = self.0.fence.borrow().clone();
        let why = "no lease of the store is held yet";
        fence.ok_or_else(|| SagaError::new(SagaErrorKind::NotReady, why, ""))
    }

    /// Begins an operation. When this returns, it will end, whatever dies.
    ///
    /// # Errors
    /// [`SagaErrorKind`] says what. After `Store` it may have begun: begin it again, with the same id.
    ///
    /// # Panics
    /// If this executor has no definition of the kind.
    pub async fn begin(&self, begin: Begin) -> Result<Record, SagaError> {
        let definition = &self.0.definitions[begin.kind.as_str()];
        let fence = self.fence()?;
        if self.0.open() >= self.0.config.open_max {
            let what = format!("{} operations are open here already", self.0.open());
            return Err(SagaError::new(SagaErrorKind::TooMany, what, begin.object));
        }
        let now = self.0.config.clock.unix_ms();
        let record = Record {
            id: begin.id,
            kind: begin.kind,
            object: begin.object,
            tenant: begin.tenant,
            principal: begin.principal,
            request_id: begin.request_id,
            input: begin.input,
            state: State::Running,
            failure: None,
            done: Vec::new(),
            undo_current: false,
            attempt: 0,
            trouble: None,
            retry_unix_ms: 0,
            executor: self.0.name.clone(),
            epoch: fence.epoch(),
            seq: 0,
            started_unix_ms: now,
            updated_unix_ms: now,
            deadline_unix_ms: now + millis(definition.deadline),
            other: Map::new(),
        };
        match self.0.journal.begin(&fence, &record, begin.with).await? {
            Outcome::Committed { revision } => {
                self.0.hand_over(Tracked {
                    record: record.clone(),
                    mod_revision: revision,
                });
                Ok(record)
            }
            Outcome::Conflict { entries, .. } => self.not_begun(&fence, &record, &entries),
        }
    }

    /// Why a beginning was refused, or that it had happened before.
    fn not_begun(
        &self,
        fence: &Fence,
        record: &Record,
        entries: &[Entry],
    ) -> Result<Record, SagaError> {
        let entries: BTreeMap<&str, &Entry> = entries
            .iter()
            .map(|entry| (entry.key.as_str(), entry))
            .collect();
        let (open, ended) = (open_key(record.id), ended_key(record.id));
        if let Some(entry) = entries.get(open.as_str()).or(entries.get(ended.as_str())) {
            let found = decode(entry)?;
            let same = |one: &Record| (one.kind.clone(), one.object.clone(), one.input.clone());
            if same(&found.record) != same(record) || found.record.tenant != record.tenant {
                let what = format!("{} is another operation", record.id);
                return Err(SagaError::new(SagaErrorKind::Reused, what, &record.object));
            }
            let mine = found.record.executor == record.executor;
            if mine && found.record.seq == 0 {
                // It was begun here, and the answer was lost. A task that has it already keeps it.
                self.0.hand_over(found.clone());
            }
            return Ok(found.record);
        }
        if let Some(entry) = entries.get(object_key(&record.object).as_str()) {
            let other = String::from_utf8_lossy(&entry.value);
            let what = format!("operation {other} works on it");
            return Err(SagaError::new(SagaErrorKind::Busy, what, &record.object));
        }
        let held = entries.get(fence.key());
        if held.is_none_or(|entry| entry.create_revision != fence.epoch()) {
            let what = "the lease of this process has ended";
            return Err(SagaError::new(
                SagaErrorKind::NotReady,
                what,
                &record.object,
            ));
        }
        let what = "what the request relies on has changed";
        Err(SagaError::new(
            SagaErrorKind::Conflict,
            what,
            &record.object,
        ))
    }

    /// The steps of a kind of operation, in order; none when this process does not know it.
    pub fn steps(&self, kind: &str) -> Vec<&'static str> {
        let definition = self.0.definitions.get(kind);
        definition.map_or_else(Vec::new, |definition| definition.steps().collect())
    }

    /// An operation, ended or not.
    ///
    /// # Errors
    /// `NotFound`, also once its retention is over; `Store`.
    pub async fn get(&self, id: SagaId) -> Result<Record, SagaError> {
        let store = &*self.0.journal.store;
        // In this order: an operation goes from open to ended and never back.
        for key in [open_key(id), ended_key(id)] {
            if let Some(entry) = store::get(store, &key).await? {
                return Ok(decode(&entry)?.record);
            }
        }
        Err(SagaError::new(
            SagaErrorKind::NotFound,
            "no such operation",
            id.to_string(),
        ))
    }

    /// Operations, ended ones first, by id within: at most `limit` behind `after`. Gives the name of
    /// the next page, if there is one.
    ///
    /// # Errors
    /// `Store`.
    pub async fn list(
        &self,
        after: Option<&str>,
        limit: usize,
    ) -> Result<(Vec<Record>, Option<String>), SagaError> {
        let mut records = Vec::new();
        let mut last = None;
        for prefix in [ENDED, OPEN] {
            let mut range = Range::prefix(prefix, limit - records.len());
            if let Some(after) = after {
                if after.starts_with(prefix) {
                    range = range.after(after);
                } else if after > prefix {
                    // A page behind this part was asked for.
                    continue;
                }
            }
            if range.limit == 0 {
                return Ok((records, last));
            }
            let page = self.0.journal.store.range(range).await?;
            for entry in &page.entries {
                records.push(decode(entry)?.record);
                last = Some(entry.key.clone());
            }
            if page.more {
                return Ok((records, last));
            }
        }
        Ok((records, None))
    }

    /// Returns an operation once it has gone on past `seen`, needs an operator, or has ended; at the latest
    /// after `limit`, as it then stands.
    ///
    /// # Errors
    /// As of [`Sagas::get`].
    pub async fn wait(
        &self,
        id: SagaId,
        seen: Option<u64>,
        limit: Duration,
    ) -> Result<Record, SagaError> {
        let deadline = tokio::time::Instant::now() + limit;
        loop {
            let record = self.get(id).await?;
            let news = seen.is_none_or(|seen| record.seq > seen);
            let settled = !record.state.is_open();
            if (seen.is_some() && news) || settled {
                return Ok(record);
            }
            if tokio::time::timeout_at(deadline, self.changed(&record))
                .await
                .is_err()
            {
                return Ok(record);
            }
        }
    }

    /// Returns when an open operation has been written to since.
    async fn changed(&self, record: &Record) -> Result<(), StoreError> {
        use futures_util::StreamExt as _;
        let store = &self.0.journal.store;
        let key = open_key(record.id);
        let page = store.range(Range::key(key.as_str())).await?;
        let current = page.entries.first().map(decode).transpose()?;
        if current.is_none_or(|current| current.record.seq != record.seq) {
            return Ok(());
        }
        let mut changes = store.watch(&key, page.revision).await?;
        while let Some(change) = changes.next().await {
            if !change?.events.is_empty() {
                break;
            }
        }
        Ok(())
    }

    /// Lets a failed operation go on where it failed, with a deadline of its own.
    ///
    /// # Errors
    /// `WrongState` unless it has failed; `NotFound`, `NotReady`, `Store`.
    pub async fn retry(&self, id: SagaId) -> Result<Record, SagaError> {
        let (fence, tracked) = self.failed(id).await?;
        let mut next = tracked.record.clone();
        let definition = self.0.definitions.get(next.kind.as_str());
        let definition = definition.ok_or_else(|| {
            let what = format!("this process runs no {}", next.kind);
            SagaError::new(SagaErrorKind::WrongState, what, id.to_string())
        })?;
        let now = self.0.config.clock.unix_ms();
        let deadline = now + millis(definition.deadline);
        next.retried(&self.0.name, fence.epoch(), now, deadline);
        let tracked = self.decide(&fence, &tracked, next).await?;
        self.0.hand_over(tracked.clone());
        Ok(tracked.record)
    }

    /// Gives a failed operation up: its record ends, and its object is free for others. What its steps have
    /// left is no longer known to anybody; the record's `done` says what may be there.
    ///
    /// # Errors
    /// As of [`Sagas::retry`].
    pub async fn force_delete(&self, id: SagaId) -> Result<Record, SagaError> {
        let (fence, tracked) = self.failed(id).await?;
        let mut next = tracked.record.clone();
        next.force_deleted(self.0.config.clock.unix_ms());
        Ok(self.decide(&fence, &tracked, next).await?.record)
    }

    async fn failed(&self, id: SagaId) -> Result<(Fence, Tracked), SagaError> {
        let fence = self.fence()?;
        let Some(tracked) = self.0.journal.open(id).await? else {
            return Err(wrong_state(&self.get(id).await?));
        };
        if tracked.record.state == State::Failed {
            Ok((fence, tracked))
        } else {
            Err(wrong_state(&tracked.record))
        }
    }

    async fn decide(
        &self,
        fence: &Fence,
        before: &Tracked,
        next: Record,
    ) -> Result<Tracked, SagaError> {
        let definition = self.0.definitions.get(next.kind.as_str());
        let staged = Txn {
            writes: definition.map_or_else(Vec::new, |definition| definition.at_end(&next)),
            ..Txn::default()
        };
        let journal: &journal::Journal = &self.0.journal;
        match journal
            .write(fence, before.mod_revision, &next, staged)
            .await?
        {
            Written::At(mod_revision) => Ok(Tracked {
                record: next,
                mod_revision,
            }),
            Written::Conflict | Written::Lost => {
                let what = "somebody else has changed the operation";
                let id = next.id.to_string();
                Err(SagaError::new(SagaErrorKind::Conflict, what, id))
            }
        }
    }
}

fn wrong_state(record: &Record) -> SagaError {
    let what = format!("the operation is {}", record.state.name());
    SagaError::new(SagaErrorKind::WrongState, what, record.id.to_string())
}
