//! Whether a call has begun: settled once, between its shard and its caller.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

const WAITING: u8 = 0;
const BEGUN: u8 = 1;
const ABANDONED: u8 = 2;

/// One call's state; clones are the same call's.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ticket(Arc<AtomicU8>);

impl Ticket {
    /// The shard is about to run the call. False when its caller has gone: it must not run then.
    pub(crate) fn begin(&self) -> bool {
        self.settle(BEGUN)
    }

    /// The caller goes. True when the call has not begun, and so never will.
    pub(crate) fn abandon(&self) -> bool {
        self.settle(ABANDONED)
    }

    fn settle(&self, state: u8) -> bool {
        let first = self
            .0
            .compare_exchange(WAITING, state, Ordering::AcqRel, Ordering::Acquire);
        first.map_or_else(|now| now == state, |_| true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_begins_or_is_abandoned_and_never_both() {
        let ticket = Ticket::default();
        assert!(ticket.begin());
        assert!(!ticket.abandon());
        let ticket = Ticket::default();
        assert!(ticket.abandon());
        assert!(!ticket.begin());
    }
}
