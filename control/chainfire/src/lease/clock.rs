//! When leases end, as the leader counts it.
//!
//! Leases themselves are replicated; their time is not. Only the leader counts, and a new leader gives
//! each lease its whole time again, so that a change of leaders, or a clock that jumps, ends no lease
//! early. A lease that has ended is revoked through consensus; until that has happened it is reported
//! again and again, at intervals, as a proposal may be lost.
//!
//! No clock is read here: callers pass milliseconds of a clock that never goes back.

use std::collections::{BTreeSet, HashMap, HashSet};

/// How long a revocation may take before it is asked for again.
const RETRY_MS: u64 = 1_000;

#[derive(Clone, Copy, Debug)]
struct Entry {
    ttl_ms: u64,
    /// When it ends, or when its revocation is asked for again.
    due_ms: u64,
    ended: bool,
}

/// The leader's count of every lease.
#[derive(Debug, Default)]
pub struct LeaseClock {
    entries: HashMap<i64, Entry>,
    /// (due, lease), so that the first is the next to look at.
    order: BTreeSet<(u64, i64)>,
}

impl LeaseClock {
    /// A new leader's clock: every lease has its whole time from now on.
    pub fn lead(leases: impl IntoIterator<Item = (i64, u64)>, now_ms: u64) -> LeaseClock {
        let mut clock = LeaseClock::default();
        for (lease, ttl_s) in leases {
            clock.grant(lease, ttl_s, now_ms);
        }
        clock
    }

    /// These are the leases that there are: new ones have their whole time, others are forgotten.
    pub fn reconcile(&mut self, leases: impl IntoIterator<Item = (i64, u64)>, now_ms: u64) {
        let mut seen = 0;
        let mut known = HashSet::with_capacity(self.entries.len());
        for (lease, ttl_s) in leases {
            seen += 1;
            known.insert(lease);
            if !self.entries.contains_key(&lease) {
                self.grant(lease, ttl_s, now_ms);
            }
        }
        if self.entries.len() > seen {
            let gone: Vec<i64> = self
                .entries
                .keys()
                .copied()
                .filter(|id| !known.contains(id))
                .collect();
            for lease in gone {
                self.revoke(lease);
            }
        }
    }

    /// A lease was granted.
    pub fn grant(&mut self, lease: i64, ttl_s: u64, now_ms: u64) {
        let ttl_ms = ttl_s.saturating_mul(1_000);
        let entry = Entry {
            ttl_ms,
            due_ms: now_ms.saturating_add(ttl_ms),
            ended: false,
        };
        self.put(lease, entry);
    }

    /// A lease was revoked. One that is not known is none.
    pub fn revoke(&mut self, lease: i64) {
        if let Some(entry) = self.entries.remove(&lease) {
            self.order.remove(&(entry.due_ms, lease));
        }
    }

    /// A client keeps its lease alive: the seconds that it has from now on. `None` for a lease that is
    /// not there or has ended: once its revocation is on the way, it cannot come back.
    pub fn renew(&mut self, lease: i64, now_ms: u64) -> Option<u64> {
        let entry = *self.entries.get(&lease)?;
        if entry.ended || entry.due_ms <= now_ms {
            return None;
        }
        let due_ms = now_ms.saturating_add(entry.ttl_ms);
        self.put(lease, Entry { due_ms, ..entry });
        Some(entry.ttl_ms / 1_000)
    }

    /// Milliseconds that a lease has left, 0 for one that has ended; `None` for one that is not there.
    pub fn remaining_ms(&self, lease: i64, now_ms: u64) -> Option<u64> {
        let entry = self.entries.get(&lease)?;
        if entry.ended {
            return Some(0);
        }
        Some(entry.due_ms.saturating_sub(now_ms))
    }

    /// Up to `count_max` leases to revoke now.
    pub fn expire(&mut self, now_ms: u64, count_max: usize) -> Vec<i64> {
        let mut expired = Vec::new();
        while expired.len() < count_max {
            let Some(&(due_ms, lease)) = self.order.first() else {
                break;
            };
            if due_ms > now_ms {
                break;
            }
            let entry = self.entries[&lease];
            let again = Entry {
                due_ms: now_ms + RETRY_MS,
                ended: true,
                ..entry
            };
            self.put(lease, again);
            expired.push(lease);
        }
        expired
    }

    /// When to look again; `None` without leases.
    pub fn next_due_ms(&self) -> Option<u64> {
        self.order.first().map(|(due_ms, _)| *due_ms)
    }

    /// How many leases it counts.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether it counts none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn put(&mut self, lease: i64, entry: Entry) {
        if let Some(old) = self.entries.insert(lease, entry) {
            self.order.remove(&(old.due_ms, lease));
        }
        self.order.insert((entry.due_ms, lease));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_that_nobody_renews_ends_after_its_time() {
        let mut clock = LeaseClock::default();
        clock.grant(7, 5, 1_000);
        assert_eq!(clock.expire(5_999, 10), [0; 0]);
        assert_eq!(clock.remaining_ms(7, 5_999), Some(1));
        assert_eq!(clock.expire(6_000, 10), [7]);
        assert_eq!(clock.remaining_ms(7, 6_000), Some(0));
    }

    #[test]
    fn renewing_gives_the_whole_time_and_comes_too_late_after_the_end() {
        let mut clock = LeaseClock::default();
        clock.grant(7, 5, 0);
        assert_eq!(clock.renew(7, 4_000), Some(5));
        assert_eq!(clock.expire(8_999, 10), [0; 0]);
        assert_eq!(clock.renew(7, 9_000), None, "due, though not reported yet");
        assert_eq!(clock.expire(9_000, 10), [7]);
        assert_eq!(clock.renew(7, 9_000), None);
        assert_eq!(clock.renew(8, 0), None);
    }

    #[test]
    fn a_revocation_is_asked_for_again_until_it_has_happened() {
        let mut clock = LeaseClock::default();
        clock.grant(1, 2, 0);
        assert_eq!(clock.expire(2_000, 10), [1]);
        assert_eq!(clock.expire(2_001, 10), [0; 0]);
        assert_eq!(clock.next_due_ms(), Some(3_000));
        assert_eq!(clock.expire(3_000, 10), [1]);
        clock.revoke(1);
        assert!(clock.is_empty());
        assert_eq!(clock.next_due_ms(), None);
    }

    #[test]
    fn many_ended_leases_are_reported_in_bounded_steps_in_the_order_of_their_end() {
        let mut clock = LeaseClock::lead((1..=5).map(|id| (id, 10 - id as u64)), 0);
        assert_eq!(clock.expire(60_000, 3), [5, 4, 3]);
        assert_eq!(clock.expire(60_000, 3), [2, 1]);
        assert_eq!(clock.len(), 5);
    }

    #[test]
    fn reconciling_adds_what_is_new_and_forgets_what_is_gone() {
        let mut clock = LeaseClock::lead([(1, 10), (2, 10)], 0);
        clock.reconcile([(2, 10), (3, 5)], 4_000);
        assert_eq!(clock.remaining_ms(1, 4_000), None);
        assert_eq!(clock.remaining_ms(2, 4_000), Some(6_000));
        assert_eq!(clock.remaining_ms(3, 4_000), Some(5_000));
        assert_eq!(clock.expire(60_000, 9), [3, 2]);
    }

    #[test]
    fn a_new_leader_gives_every_lease_its_whole_time() {
        let mut old = LeaseClock::default();
        old.grant(1, 10, 0);
        let mut new = LeaseClock::lead([(1, 10)], 9_999);
        assert_eq!(old.expire(10_000, 1), [1]);
        assert_eq!(new.expire(10_000, 1), [0; 0]);
        assert_eq!(new.remaining_ms(1, 10_000), Some(9_999));
    }
}
