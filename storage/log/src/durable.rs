//! What a store needs for the files beside its log: flushes that serve all who wait, the poison
//! that ends writing, and what tells that the disk is full.

use std::cell::{Cell, RefCell};
use std::io;

use engine::fs::File;
use engine::sync::Notify;

/// Whether space has ended: the disk's, a quota's, or what a file may have.
pub fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}

/// A write or flush failed before: the first cause.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a write or flush failed: {0}")]
pub struct Poisoned(pub String);

/// Set by the first failed write or flush, for ever.
#[derive(Debug, Default)]
pub struct Poison {
    cause: RefCell<Option<String>>,
}

impl Poison {
    /// Why nothing more is written.
    pub fn cause(&self) -> Option<String> {
        self.cause.borrow().clone()
    }

    /// Refuses what would write, once it is set.
    ///
    /// # Errors
    /// [`Poisoned`].
    pub fn check(&self) -> Result<(), Poisoned> {
        self.cause().map_or(Ok(()), |cause| Err(Poisoned(cause)))
    }

    /// Whether it is set.
    pub fn is_set(&self) -> bool {
        self.cause.borrow().is_some()
    }

    /// Sets it, unless it is set, and answers the first cause.
    pub fn set(&self, cause: &str) -> Poisoned {
        let mut first = self.cause.borrow_mut();
        if first.is_none() {
            tracing::error!(cause, "the partition takes no more writes");
        }
        Poisoned(first.get_or_insert_with(|| cause.to_owned()).clone())
    }
}

/// Why a flush failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FlushError {
    /// The shard had no slot for it; it was not started.
    #[error("too much is in progress")]
    Busy,
    /// It failed, now or before: see [`Poison`].
    #[error(transparent)]
    Poisoned(#[from] Poisoned),
}

/// Flushes of one file: `begun` and `done` count them; at most one runs.
#[derive(Default)]
pub struct FlushGate {
    begun: Cell<u64>,
    done: Cell<u64>,
    running: Cell<bool>,
    failed: Cell<bool>,
    ended: Notify,
}

impl FlushGate {
    /// Whether a flush has failed: what it should have made durable may be lost.
    pub fn has_failed(&self) -> bool {
        self.failed.get()
    }

    /// Makes all writes that have completed before the call durable: returns after a flush that began
    /// after it. One flush serves all that wait for it. Cancel-safe.
    ///
    /// # Errors
    /// [`FlushError`]. A failed flush sets the poison.
    pub async fn flush(&self, file: &File, poison: &Poison) -> Result<(), FlushError> {
        let wanted = self.begun.get() + 1;
        loop {
            poison.check()?;
            if self.done.get() >= wanted {
                return Ok(());
            }
            if self.running.get() {
                self.ended.notified().await;
                continue;
            }
            let number = self.begun.get() + 1;
            self.begun.set(number);
            self.running.set(true);
            let ended = FlushEnd { gate: self };
            if let Err(error) = file.datasync().await {
                if error.kind() == std::io::ErrorKind::ResourceBusy {
                    return Err(FlushError::Busy);
                }
                self.failed.set(true);
                let poisoned = poison.set(&error.to_string());
                drop(ended);
                return Err(poisoned.into());
            }
            self.done.set(number);
            drop(ended);
        }
    }
}

/// Lets the next flush begin, also when this one's future was dropped.
struct FlushEnd<'a> {
    gate: &'a FlushGate,
}

impl Drop for FlushEnd<'_> {
    fn drop(&mut self) {
        self.gate.running.set(false);
        self.gate.ended.notify_all();
    }
}
