//! What a store needs for the files beside its log: flushes that serve all who wait, the poison
//! that ends writing, and what tells that the disk is full.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;

use engine::SchedGroup;
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

/// Flushes of one file: `begun` and `done` count them; at most one runs, in a task of its own, so that
/// what it came to is heard also when nobody waits for it any more: the kernel tells an error once.
#[derive(Default)]
pub struct FlushGate {
    begun: Cell<u64>,
    done: Cell<u64>,
    /// The last one that was not started.
    refused: Cell<u64>,
    running: Cell<bool>,
    on_failure: RefCell<Option<Box<dyn Fn()>>>,
    ended: Notify,
}

impl FlushGate {
    /// Runs `tell` in the step in which a flush fails, before anybody hears of it.
    pub fn on_failure(&self, tell: impl Fn() + 'static) {
        self.on_failure.replace(Some(Box::new(tell)));
    }

    /// Makes all writes that have completed before the call durable: returns after a flush that began
    /// after it. One flush serves all that wait for it. Cancel-safe: a flush that was begun goes on.
    ///
    /// # Errors
    /// [`FlushError`]. A failed flush sets the poison.
    pub async fn flush(
        self: &Rc<Self>,
        file: &Rc<File>,
        poison: &Rc<Poison>,
    ) -> Result<(), FlushError> {
        let wanted = self.begun.get() + 1;
        loop {
            poison.check()?;
            if self.done.get() >= wanted {
                return Ok(());
            }
            if self.refused.get() >= wanted {
                return Err(FlushError::Busy);
            }
            if self.running.get() {
                self.ended.notified().await;
            } else {
                self.begin(file, poison)?;
            }
        }
    }

    fn begin(self: &Rc<Self>, file: &Rc<File>, poison: &Rc<Poison>) -> Result<(), FlushError> {
        let (gate, file, poison) = (Rc::clone(self), Rc::clone(file), Rc::clone(poison));
        let number = self.begun.get() + 1;
        let flush = async move {
            match file.datasync().await {
                Ok(()) => gate.done.set(number),
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                    gate.refused.set(number);
                }
                Err(error) => gate.fail(&poison, &error),
            }
            gate.running.set(false);
            gate.ended.notify_all();
        };
        let task = engine::try_spawn_own(SchedGroup::FOREGROUND, flush);
        task.map_err(|_| FlushError::Busy)?.detach();
        self.begun.set(number);
        self.running.set(true);
        Ok(())
    }

    fn fail(&self, poison: &Poison, error: &io::Error) {
        if let Some(tell) = &*self.on_failure.borrow() {
            tell();
        }
        poison.set(&error.to_string());
    }
}
