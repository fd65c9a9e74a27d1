//! The hub, shared by the streams of a node: a lock that is held for short steps without I/O, and a
//! bell for each stream.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use etcd_wire::mvccpb::Event;
use tokio::sync::Notify;

use super::hub::{Hub, StreamId};

/// The hub of a node.
pub struct SharedHub {
    hub: Mutex<Hub>,
    bells: Mutex<HashMap<StreamId, Arc<Notify>>>,
    next: AtomicU64,
}

impl SharedHub {
    /// Shares a hub.
    pub fn new(hub: Hub) -> Arc<SharedHub> {
        Arc::new(SharedHub {
            hub: Mutex::new(hub),
            bells: Mutex::default(),
            next: AtomicU64::new(0),
        })
    }

    /// The hub, for one step.
    pub fn lock(&self) -> MutexGuard<'_, Hub> {
        self.hub.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A revision was committed: finds whom it concerns, and rings for them.
    pub fn publish(&self, revision: i64, events: &[Arc<Event>]) {
        let woken = self.lock().publish(revision, events);
        self.ring(&woken);
    }

    /// The store was replaced by a later one: every watcher reads what it missed.
    pub fn jump(&self, revision: i64) {
        let woken = self.lock().jump(revision);
        self.ring(&woken);
    }

    fn ring(&self, streams: &BTreeSet<StreamId>) {
        if streams.is_empty() {
            return;
        }
        let bells = self.bells();
        for stream in streams {
            if let Some(bell) = bells.get(stream) {
                bell.notify_one();
            }
        }
    }

    /// A new stream, which ends when the handle is dropped.
    pub fn open(self: &Arc<SharedHub>) -> StreamHandle {
        let id = StreamId(self.next.fetch_add(1, Ordering::Relaxed));
        let bell = Arc::new(Notify::new());
        self.bells().insert(id, Arc::clone(&bell));
        self.lock().open(id);
        StreamHandle {
            hub: Arc::clone(self),
            id,
            bell,
        }
    }

    fn bells(&self) -> MutexGuard<'_, HashMap<StreamId, Arc<Notify>>> {
        self.bells.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A stream in the hub.
pub struct StreamHandle {
    hub: Arc<SharedHub>,
    id: StreamId,
    bell: Arc<Notify>,
}

impl StreamHandle {
    /// Its name in the hub.
    pub fn id(&self) -> StreamId {
        self.id
    }

    /// The hub, for one step.
    pub fn hub(&self) -> MutexGuard<'_, Hub> {
        self.hub.lock()
    }

    /// Returns when something was delivered since the last time. Cancel-safe.
    pub async fn rung(&self) {
        self.bell.notified().await;
    }
}

impl Drop for StreamHandle {
    fn drop(&mut self) {
        self.hub.bells().remove(&self.id);
        self.hub.lock().close(self.id);
    }
}
