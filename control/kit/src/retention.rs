//! Leases for what is kept for a while and then goes by itself: ended operations, audit events.
//!
//! Many keys share a lease, so that keeping one costs no write of its own; a lease is used for an eighth of
//! the time and for a bounded number of keys, so that no key goes early and no end deletes too many at once.

use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::store::{LeaseId, SharedStore, StoreError};

/// Keys of one lease at most.
const KEYS_MAX: u32 = 1024;

/// Gives leases of one length.
pub struct Retention {
    store: SharedStore,
    kept: Duration,
    current: Mutex<Option<Current>>,
}

#[derive(Clone, Copy)]
struct Current {
    lease: LeaseId,
    since: Instant,
    keys: u32,
}

impl Retention {
    /// Keys are kept this long, at least.
    pub fn new(store: SharedStore, kept: Duration) -> Retention {
        Retention {
            store,
            kept,
            current: Mutex::new(None),
        }
    }

    /// The lease for one key more.
    ///
    /// # Errors
    /// As of [`crate::store::Store::grant`].
    pub async fn lease(&self) -> Result<LeaseId, StoreError> {
        let mut current = self.current.lock().await;
        let used_for = self.kept / 8;
        if let Some(current) = current.as_mut()
            && current.keys < KEYS_MAX
            && current.since.elapsed() < used_for
        {
            current.keys += 1;
            return Ok(current.lease);
        }
        let since = Instant::now();
        let lease = self.store.grant(self.kept + used_for).await?;
        *current = Some(Current {
            lease,
            since,
            keys: 1,
        });
        Ok(lease)
    }

    /// The store has said that a lease is gone: another is made.
    pub async fn forget(&self) {
        *self.current.lock().await = None;
    }
}
