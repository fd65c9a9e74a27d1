//! Deadlines of one shard, in order.

use std::collections::BTreeMap;
use std::task::Waker;

use crate::time::Nanos;

/// Names a timer: its deadline and a number that makes it unique.
pub(crate) type TimerId = (Nanos, u64);

#[derive(Default)]
pub(crate) struct Timers {
    by_deadline: BTreeMap<TimerId, Waker>,
    count: u64,
}

impl Timers {
    pub(crate) fn add(&mut self, deadline: Nanos, waker: Waker) -> TimerId {
        self.count += 1;
        let id = (deadline, self.count);
        self.by_deadline.insert(id, waker);
        id
    }

    /// Replaces the waker of a timer that has not fired.
    pub(crate) fn update(&mut self, id: TimerId, waker: &Waker) {
        if let Some(old) = self.by_deadline.get_mut(&id)
            && !old.will_wake(waker)
        {
            old.clone_from(waker);
        }
    }

    pub(crate) fn remove(&mut self, id: TimerId) {
        self.by_deadline.remove(&id);
    }

    pub(crate) fn next_deadline(&self) -> Option<Nanos> {
        self.by_deadline
            .first_key_value()
            .map(|((deadline, _), _)| *deadline)
    }

    /// Takes the first timer that is due.
    pub(crate) fn pop_due(&mut self, now: Nanos) -> Option<Waker> {
        let first = self.by_deadline.first_entry()?;
        (first.key().0 <= now).then(|| first.remove())
    }

    pub(crate) fn clear(&mut self) -> BTreeMap<TimerId, Waker> {
        std::mem::take(&mut self.by_deadline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_fire_in_order_and_only_when_due() {
        let mut timers = Timers::default();
        let late = timers.add(Nanos(20), Waker::noop().clone());
        timers.add(Nanos(10), Waker::noop().clone());
        assert_eq!(timers.next_deadline(), Some(Nanos(10)));
        assert!(timers.pop_due(Nanos(9)).is_none());
        assert!(timers.pop_due(Nanos(10)).is_some());
        assert!(timers.pop_due(Nanos(19)).is_none());
        timers.remove(late);
        assert!(timers.pop_due(Nanos(30)).is_none());
    }
}
