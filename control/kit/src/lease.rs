//! Leases, fences and elections: who may act, and proof that somebody else's turn has come.
//!
//! A lease is kept alive by a task and counts as lost, on this process' own clock, before the store can end
//! it: its time is counted from before the last request for more was sent. A [`Fence`] is a key that ends
//! with the lease; the revision that made it is an epoch that only grows. A write under
//! [`Fence::condition`] is refused once the lease has ended, also when its sender slept meanwhile and does
//! not know.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::store::{
    self, Condition, Entry, LeaseId, Outcome, SharedStore, StoreError, StoreErrorKind, Txn, Write,
};

/// A lease that is kept alive until this is dropped; it ends by itself then, after its time.
#[derive(Debug)]
pub struct Held {
    lease: LeaseId,
    until: watch::Receiver<Instant>,
    keeping: JoinHandle<()>,
}

impl Held {
    /// Makes a lease and keeps it alive.
    ///
    /// # Errors
    /// As of [`store::Store::grant`].
    pub async fn grant(store: &SharedStore, ttl: Duration) -> Result<Held, StoreError> {
        let asked = Instant::now();
        let lease = store.grant(ttl).await?;
        let (sender, until) = watch::channel(asked + ttl);
        let keeping = tokio::spawn(keep(Arc::clone(store), lease, ttl, sender));
        Ok(Held {
            lease,
            until,
            keeping,
        })
    }

    /// Its number, for keys that end with it.
    pub fn lease(&self) -> LeaseId {
        self.lease
    }

    /// Whether it is certain that the store has not ended it.
    pub fn is_held(&self) -> bool {
        Instant::now() < *self.until.borrow()
    }

    /// Returns once it is no longer certain. Cancel-safe.
    pub async fn lost(&self) {
        let mut until = self.until.clone();
        loop {
            let end = *until.borrow_and_update();
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(end) => {
                    if *until.borrow() <= Instant::now() {
                        return;
                    }
                }
                changed = until.changed() => if changed.is_err() {
                    // Nobody keeps it any more: it lasts as long as it was last known to.
                    return tokio::time::sleep_until(end).await;
                },
            }
        }
    }

    /// Ends it now, and with it its keys.
    ///
    /// # Errors
    /// As of [`store::Store::revoke`]; it ends by itself then, after its time.
    pub async fn release(self, store: &SharedStore) -> Result<(), StoreError> {
        self.keeping.abort();
        store.revoke(self.lease).await
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.keeping.abort();
    }
}

/// Asks for more time, a third of it before it is needed, until the store says that the lease has ended.
async fn keep(store: SharedStore, lease: LeaseId, ttl: Duration, until: watch::Sender<Instant>) {
    let mut pause = ttl / 3;
    loop {
        tokio::time::sleep(pause).await;
        let asked = Instant::now();
        let answer = tokio::time::timeout(ttl / 3, store.keep_alive(lease)).await;
        pause = match answer {
            Ok(Ok(())) => {
                until.send_replace(asked + ttl);
                ttl / 3
            }
            Ok(Err(error)) if error.kind() == StoreErrorKind::Gone => {
                until.send_replace(asked);
                return;
            }
            // Asked again while there is time: a member that comes back has kept the lease.
            Ok(Err(_)) | Err(_) => ttl / 20,
        };
    }
}

/// A key that is there for as long as a lease, and the epoch that its making began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fence {
    key: String,
    epoch: i64,
}

impl Fence {
    /// Grows with every holder of the key. What is outside of the store keeps the greatest epoch that it
    /// has seen, and refuses those below.
    pub fn epoch(&self) -> i64 {
        self.epoch
    }

    /// The key.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Holds in a transaction for as long as this holder has the key.
    pub fn condition(&self) -> Condition {
        Condition::Held(self.key.clone(), self.epoch)
    }
}

/// How a claim ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The key was made, for this lease.
    Won(Fence),
    /// Somebody has it.
    Taken(Entry),
}

/// Claims a key for as long as a lease lives.
///
/// # Errors
/// When the store does not answer for certain, within the lease's time.
pub async fn claim(
    store: &SharedStore,
    held: &Held,
    key: &str,
    value: impl Into<Bytes>,
) -> Result<Claim, StoreError> {
    let txn = Txn {
        conditions: vec![Condition::Absent(key.to_owned())],
        writes: vec![Write::leased(key, value, held.lease())],
        on_conflict: vec![key.to_owned()],
    };
    let left = held
        .until
        .borrow()
        .saturating_duration_since(Instant::now());
    let fence = |epoch| {
        Claim::Won(Fence {
            key: key.to_owned(),
            epoch,
        })
    };
    match store::settle(&**store, &txn, left).await? {
        Outcome::Committed { revision } => Ok(fence(revision)),
        Outcome::Conflict { mut entries, .. } => match entries.pop() {
            // An earlier try of this claim, whose answer was lost.
            Some(entry) if entry.lease == Some(held.lease()) => Ok(fence(entry.create_revision)),
            Some(entry) => Ok(Claim::Taken(entry)),
            None => Err(StoreError::new(
                StoreErrorKind::Unavailable,
                "cannot claim a key",
                format!("{key} was there and is gone again"),
            )),
        },
    }
}

/// The one leader of an election, until [`Held::lost`].
#[derive(Debug)]
pub struct Leadership {
    /// What it leads by.
    pub held: Held,
    /// Proof of it, for each write.
    pub fence: Fence,
}

/// Waits to become the leader of an election, named by its key. Failures of the store are waited out.
pub async fn campaign(
    store: &SharedStore,
    key: &str,
    candidate: &str,
    ttl: Duration,
) -> Leadership {
    let mut backoff = Backoff::new(Duration::from_millis(50), ttl / 2);
    loop {
        match stand(store, key, candidate, ttl).await {
            Ok(leadership) => return leadership,
            Err(error) => {
                tracing::debug!(key, %error, "an election is tried again");
                tokio::time::sleep(backoff.pause()).await;
            }
        }
    }
}

async fn stand(
    store: &SharedStore,
    key: &str,
    candidate: &str,
    ttl: Duration,
) -> Result<Leadership, StoreError> {
    let held = Held::grant(store, ttl).await?;
    loop {
        match claim(store, &held, key, candidate.to_owned()).await? {
            Claim::Won(fence) => return Ok(Leadership { held, fence }),
            Claim::Taken(entry) => {
                let gone = absent(store, key, entry.mod_revision);
                tokio::select! {
                    biased;
                    gone = gone => gone?,
                    () = held.lost() => return Err(StoreError::new(
                        StoreErrorKind::Gone,
                        "cannot stand for an election",
                        "the candidate's lease has ended",
                    )),
                }
            }
        }
    }
}

/// Returns once a key that was there at a revision has gone.
async fn absent(store: &SharedStore, key: &str, since: i64) -> Result<(), StoreError> {
    let mut changes = store.watch(key, since).await?;
    while let Some(change) = changes.next().await {
        let mut events = change?.events.into_iter();
        if events.any(|event| event.key == key && event.entry.is_none()) {
            return Ok(());
        }
    }
    Ok(())
}
