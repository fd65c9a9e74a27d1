//! The store as the ledger uses it: many keys at once, pages, and one transaction for a batch.

use std::collections::BTreeMap;

use control_kit::store::{
    Condition, Entry, Outcome, Page, Range, SharedStore, StoreError, StoreErrorKind, TXN_OPS_MAX,
    Txn, Write,
};

use crate::account::Account;
use crate::entries::decode;
use crate::error::{Error, ErrorKind};
use crate::id::{AccountId, TransferId};
use crate::keys::Keys;
use crate::transfer::Transfer;

/// A value as the store has it; without one, no such key.
#[derive(Clone, Debug)]
pub(crate) struct Known<T> {
    /// The revision that wrote it; 0 where there is none.
    pub mod_revision: i64,
    pub value: Option<T>,
}

impl<T> Known<T> {
    pub fn absent() -> Known<T> {
        Known {
            mod_revision: 0,
            value: None,
        }
    }

    /// That nobody has changed it since.
    pub fn condition(&self, key: String) -> Condition {
        match self.value {
            Some(_) => Condition::Unchanged(key, self.mod_revision),
            None => Condition::Absent(key),
        }
    }
}

/// The store, and where the ledger is in it.
#[derive(Clone)]
pub(crate) struct Records {
    pub store: SharedStore,
    pub keys: Keys,
}

impl Records {
    /// What these keys have, all at one revision: a transaction whose condition does not hold, since a
    /// ledger always has a format, and which then reads them.
    pub async fn read(&self, wanted: &[String]) -> Result<BTreeMap<String, Entry>, Error> {
        assert!(
            wanted.len() <= TXN_OPS_MAX,
            "{} keys are read at once",
            wanted.len()
        );
        let txn = Txn {
            conditions: vec![Condition::Absent(self.keys.format())],
            writes: Vec::new(),
            on_conflict: wanted.to_vec(),
        };
        match self.store.commit(txn).await.map_err(not_read)? {
            Outcome::Conflict { entries, .. } => Ok(by_key(entries)),
            Outcome::Committed { .. } => Err(Error::new(
                ErrorKind::Damaged,
                format!("{} is gone: there is no ledger", self.keys.format()),
            )),
        }
    }

    /// A part of a range.
    pub async fn page(&self, range: Range) -> Result<Page, Error> {
        self.store.range(range).await.map_err(not_read)
    }

    /// All of a range, a page after the other.
    pub async fn all(&self, range: Range) -> Result<Vec<Entry>, Error> {
        let all = control_kit::store::all(&*self.store, range).await;
        all.map_err(not_read)
    }

    /// Writes all when nothing has changed that the conditions name; else tells what these keys have now.
    pub async fn commit(
        &self,
        conditions: Vec<Condition>,
        writes: Vec<Write>,
        on_conflict: Vec<String>,
    ) -> Result<Committed, StoreError> {
        let txn = Txn {
            conditions,
            writes,
            on_conflict,
        };
        Ok(match self.store.commit(txn).await? {
            Outcome::Committed { revision } => Committed::At(revision),
            Outcome::Conflict { entries, .. } => Committed::Not(by_key(entries)),
        })
    }

    pub fn account(
        &self,
        id: AccountId,
        entries: &BTreeMap<String, Entry>,
    ) -> Result<Known<Account>, Error> {
        known(&self.keys.account(id), entries)
    }

    pub fn transfer(
        &self,
        id: TransferId,
        entries: &BTreeMap<String, Entry>,
    ) -> Result<Known<Transfer>, Error> {
        known(&self.keys.transfer(id), entries)
    }
}

/// How a transaction ended.
pub(crate) enum Committed {
    /// At this revision.
    At(i64),
    /// It changed nothing; the keys that were to be read back.
    Not(BTreeMap<String, Entry>),
}

fn by_key(entries: Vec<Entry>) -> BTreeMap<String, Entry> {
    let one = |entry: Entry| (entry.key.clone(), entry);
    entries.into_iter().map(one).collect()
}

fn known<T: serde::de::DeserializeOwned>(
    key: &str,
    entries: &BTreeMap<String, Entry>,
) -> Result<Known<T>, Error> {
    match entries.get(key) {
        Some(entry) => Ok(Known {
            mod_revision: entry.mod_revision,
            value: Some(decode(key, &entry.value)?),
        }),
        None => Ok(Known::absent()),
    }
}

/// A read changes nothing, whatever became of it.
pub(crate) fn not_read(error: StoreError) -> Error {
    let kind = match error.kind() {
        StoreErrorKind::Refused => ErrorKind::Store,
        _ => ErrorKind::Unavailable,
    };
    Error::caused(kind, "the ledger could not be read", error)
}

/// A write that failed.
pub(crate) fn not_written(error: StoreError) -> Error {
    let kind = match error.kind() {
        StoreErrorKind::Unknown => ErrorKind::Unknown,
        StoreErrorKind::Refused => ErrorKind::Store,
        _ => ErrorKind::Unavailable,
    };
    Error::caused(kind, "the ledger could not be written", error)
}
