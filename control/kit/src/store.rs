//! Where a control service keeps its state: a transactional key-value store with leases and watches.
//!
//! [`Client`] is ChainFire, or any etcd, over gRPC. Everything above (leases, sagas, ledgers,
//! reconcilers) sees [`Store`] alone, so that it runs unchanged on the simulated store of the tests.
//!
//! Invariants of every implementation:
//! - A transaction is all or nothing, at one revision. What [`Store::commit`] answers as committed is
//!   durable.
//! - [`StoreErrorKind::Unknown`] means that it may happen still, even later: whoever gets it sends the same
//!   transaction again, with the same conditions, or reads back.
//! - A range is linearizable, and all of it is as of one revision.

mod client;
pub mod wire;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::Stream;
use tonic::Code;

use crate::api_error::ApiError;

pub use client::{Client, ClientConfig};

/// Operations of one transaction at most: conditions, or writes. etcd's own bound.
pub const TXN_OPS_MAX: usize = 128;

/// A lease's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LeaseId(pub i64);

/// A key with its value and where it stands in the store's history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// The value.
    pub value: Bytes,
    /// The revision that made the key; it changes only when the key is deleted and made again.
    pub create_revision: i64,
    /// The revision that wrote it last.
    pub mod_revision: i64,
    /// The lease with which it ends.
    pub lease: Option<LeaseId>,
}

/// Which entries to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    /// The first key.
    pub from: String,
    /// The first key that no longer belongs to it; `None` for `from` alone.
    pub to: Option<String>,
    /// Entries at most.
    pub limit: usize,
}

impl Range {
    /// One key.
    pub fn key(key: impl Into<String>) -> Range {
        Range {
            from: key.into(),
            to: None,
            limit: 1,
        }
    }

    /// All keys that begin so.
    pub fn prefix(prefix: impl Into<String>, limit: usize) -> Range {
        let from = prefix.into();
        let to = Some(after_prefix(&from));
        Range { from, to, limit }
    }

    /// The rest of this range, behind a key that was read.
    pub fn after(&self, key: &str) -> Range {
        Range {
            from: format!("{key}\0"),
            to: self.to.clone(),
            limit: self.limit,
        }
    }
}

/// The first key behind all that begin with a prefix.
///
/// # Panics
/// If the prefix is empty: keys of a service lie below its name.
pub fn after_prefix(prefix: &str) -> String {
    let last = prefix.chars().next_back();
    let last = last.expect("a prefix is not empty");
    let head = &prefix[..prefix.len() - last.len_utf8()];
    let next = (u32::from(last) + 1..=u32::from(char::MAX)).find_map(char::from_u32);
    format!("{head}{}", next.unwrap_or(char::MAX))
}

/// Entries as of one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// In the order of their keys.
    pub entries: Vec<Entry>,
    /// What they are as of.
    pub revision: i64,
    /// Whether the limit left some out.
    pub more: bool,
}

/// What must hold for a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// There is no such key.
    Absent(String),
    /// The key was written last at this revision.
    Unchanged(String, i64),
    /// The key was made at this revision and has been there since, whatever was written to it: the holder
    /// of a lease still holds it.
    Held(String, i64),
}

impl Condition {
    /// The key that it speaks of.
    pub fn key(&self) -> &str {
        match self {
            Condition::Absent(key) | Condition::Unchanged(key, _) | Condition::Held(key, _) => key,
        }
    }

    /// That an entry is as it was read, or still absent.
    pub fn as_read(key: &str, entry: Option<&Entry>) -> Condition {
        match entry {
            Some(entry) => Condition::Unchanged(key.to_owned(), entry.mod_revision),
            None => Condition::Absent(key.to_owned()),
        }
    }
}

/// What a transaction changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Writes a key.
    Put {
        /// The key.
        key: String,
        /// The value.
        value: Bytes,
        /// The lease with which it ends.
        lease: Option<LeaseId>,
    },
    /// Deletes a key; nothing if there is none.
    Delete(String),
}

impl Write {
    /// A key that stays.
    pub fn put(key: impl Into<String>, value: impl Into<Bytes>) -> Write {
        Write::Put {
            key: key.into(),
            value: value.into(),
            lease: None,
        }
    }

    /// A key that ends with a lease.
    pub fn leased(key: impl Into<String>, value: impl Into<Bytes>, lease: LeaseId) -> Write {
        Write::Put {
            key: key.into(),
            value: value.into(),
            lease: Some(lease),
        }
    }

    /// The key that it writes.
    pub fn key(&self) -> &str {
        match self {
            Write::Put { key, .. } | Write::Delete(key) => key,
        }
    }
}

/// All or nothing: when every condition holds, the writes happen at one revision. No key is written twice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    /// What must hold.
    pub conditions: Vec<Condition>,
    /// What happens then.
    pub writes: Vec<Write>,
    /// Keys that are read when a condition does not hold.
    pub on_conflict: Vec<String>,
}

/// How a transaction ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It happened, at this revision.
    Committed {
        /// The revision; the older one when there was nothing to write.
        revision: i64,
    },
    /// A condition did not hold, and nothing happened.
    Conflict {
        /// What was asked for in that case; absent keys are left out.
        entries: Vec<Entry>,
        /// What they are as of.
        revision: i64,
    },
}

/// A change of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The key.
    pub key: String,
    /// What it is now; `None` once it is deleted or its lease has ended.
    pub entry: Option<Entry>,
}

/// All that one revision, or several, changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// The last revision that is told.
    pub revision: i64,
    /// In order.
    pub events: Vec<Event>,
}

/// Changes as they come. It ends with an error; whoever watches reads all anew then.
pub type Watch = Pin<Box<dyn Stream<Item = Result<Changes, StoreError>> + Send>>;

/// What went wrong, to match on.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreErrorKind {
    /// It did not happen, for now: nobody answers, no leader, overload.
    Unavailable,
    /// It may have happened, or may happen still.
    Unknown,
    /// It will not happen as it stands: no room, no permission, malformed.
    Refused,
    /// The lease has ended, or the history that a watch asks for was compacted.
    Gone,
}

/// An error of the store.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{what}: {why}")]
pub struct StoreError {
    kind: StoreErrorKind,
    what: &'static str,
    why: String,
}

impl StoreError {
    /// `what` is what was tried, as "cannot read from the store".
    pub fn new(kind: StoreErrorKind, what: &'static str, why: impl Into<String>) -> StoreError {
        StoreError {
            kind,
            what,
            why: why.into(),
        }
    }

    /// What to match on.
    pub fn kind(&self) -> StoreErrorKind {
        self.kind
    }

    /// Whether the same call may do better a little later.
    pub fn is_passing(&self) -> bool {
        matches!(
            self.kind,
            StoreErrorKind::Unavailable | StoreErrorKind::Unknown
        )
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> ApiError {
        let code = match error.kind {
            StoreErrorKind::Refused => Code::FailedPrecondition,
            _ => Code::Unavailable,
        };
        ApiError::new(code, "store-unavailable", error.to_string())
            .next("try again in a moment; `ultractl chainfire member status` says how the store is")
    }
}

/// A transactional key-value store with leases and watches.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Reads entries; linearizable.
    async fn range(&self, range: Range) -> Result<Page, StoreError>;

    /// Runs a transaction.
    async fn commit(&self, txn: Txn) -> Result<Outcome, StoreError>;

    /// Tells every change of keys with a prefix since (and without) a revision.
    async fn watch(&self, prefix: &str, since: i64) -> Result<Watch, StoreError>;

    /// Makes a lease that lives this long, at least, unless it is kept alive.
    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError>;

    /// Lets a lease live its whole time again.
    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError>;

    /// Ends a lease, and with it its keys. One that has ended is no error.
    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError>;
}

/// The store as services share it.
pub type SharedStore = Arc<dyn Store>;

/// One key's entry.
///
/// # Errors
/// As of [`Store::range`].
pub async fn get(store: &dyn Store, key: &str) -> Result<Option<Entry>, StoreError> {
    Ok(store.range(Range::key(key)).await?.entries.pop())
}

/// Every entry of a range, page by page: each page is as of a revision of its own.
///
/// # Errors
/// As of [`Store::range`].
pub async fn all(store: &dyn Store, mut range: Range) -> Result<Vec<Entry>, StoreError> {
    let mut entries: Vec<Entry> = Vec::new();
    loop {
        let page = store.range(range.clone()).await?;
        entries.extend(page.entries);
        match entries.last() {
            Some(last) if page.more => range = range.after(&last.key),
            _ => return Ok(entries),
        }
    }
}

/// A transaction, sent again while it is not known how it ended, so that the answer is certain. Its conditions
/// must fail once it has happened; the caller then sees a conflict that may be its own work, and looks.
///
/// # Errors
/// As of [`Store::commit`], [`StoreErrorKind::Unknown`] when the time was up.
pub async fn settle(store: &dyn Store, txn: &Txn, limit: Duration) -> Result<Outcome, StoreError> {
    let deadline = tokio::time::Instant::now() + limit;
    let mut pause = Duration::from_millis(10);
    loop {
        let error = match store.commit(txn.clone()).await {
            Err(error) if error.is_passing() => error,
            ended => return ended,
        };
        if tokio::time::Instant::now() + pause >= deadline {
            return Err(error);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_before_the_first_key_that_does_not_begin_so() {
        assert_eq!(after_prefix("a/"), "a0");
        assert_eq!(after_prefix("\u{d7ff}"), "\u{e000}");
        let range = Range::prefix("saga/", 5);
        assert!(range.to.as_deref().unwrap() > "saga/\u{10ffff}");
        let rest = range.after("saga/7");
        assert!(rest.from.as_str() > "saga/7" && rest.from.as_str() < "saga/70");
    }
}
