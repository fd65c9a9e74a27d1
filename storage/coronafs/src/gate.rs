//! What lets writes of a volume in side by side, and holds them up where something needs them out.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

use engine::sync::Notify;

/// Writes pass it; whoever closes it waits until none is inside.
#[derive(Default)]
pub(crate) struct Gate {
    inside: Cell<usize>,
    closed: Cell<usize>,
    changed: Notify,
}

/// Inside of a gate, until it is dropped.
pub(crate) struct Pass<'a>(&'a Gate);

/// A closed gate with nobody inside, until it is dropped.
pub(crate) struct Closed<'a>(&'a Gate);

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.0.inside.set(self.0.inside.get() - 1);
        if self.0.closed.get() > 0 && self.0.inside.get() == 0 {
            self.0.changed.notify_all();
        }
    }
}

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        self.0.closed.set(self.0.closed.get() - 1);
        self.0.changed.notify_all();
    }
}

impl Gate {
    /// Cancel-safe. Nothing that waits for a closing may be awaited inside.
    pub(crate) async fn pass(&self) -> Pass<'_> {
        while self.closed.get() > 0 {
            self.changed.notified().await;
        }
        self.inside.set(self.inside.get() + 1);
        Pass(self)
    }

    /// Cancel-safe: the gate opens again when the future is dropped.
    pub(crate) async fn close(&self) -> Closed<'_> {
        self.closed.set(self.closed.get() + 1);
        let closed = Closed(self);
        while self.inside.get() > 0 {
            self.changed.notified().await;
        }
        closed
    }
}

/// Clusters whose slots are being changed: one change of a slot at a time.
#[derive(Default)]
pub(crate) struct SlotLocks {
    held: RefCell<BTreeSet<u64>>,
    freed: Notify,
}

/// A locked slot, until it is dropped.
pub(crate) struct SlotLock<'a> {
    locks: &'a SlotLocks,
    index: u64,
}

impl Drop for SlotLock<'_> {
    fn drop(&mut self) {
        self.locks.held.borrow_mut().remove(&self.index);
        self.locks.freed.notify_all();
    }
}

impl SlotLocks {
    /// Cancel-safe. Whoever wants several takes them in ascending order.
    pub(crate) async fn lock(&self, index: u64) -> SlotLock<'_> {
        while !self.held.borrow_mut().insert(index) {
            self.freed.notified().await;
        }
        SlotLock { locks: self, index }
    }
}
