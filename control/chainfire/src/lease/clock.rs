//! When leases end, as the leader counts it.
//!
//! Leases themselves are replicated; their time is not. Only the leader counts, and a new leader gives
//! each lease its whole time again, so that a change of leaders, or a clock that jumps, ends no lease
//! early. What a long lease has left is replicated now and then, a *checkpoint*: a new leader gives it
//! that instead, so that leases end although leaders change. A lease that has ended is revoked through
//! consensus; until that has happened it is reported again and again, at intervals, as a proposal may be
//! lost.
//!
//! No clock is read here: callers pass milliseconds of a clock that never goes back.

use std::collections::{BTreeSet, HashMap, HashSet};

use chainfire_store::Lease;

/// How long a revocation may take before it is asked for again.
const RETRY_MS: u64 = 1_000;
/// How often what a lease has left is replicated: etcd's interval.
const CHECKPOINT_MS: u64 = 300_000;

/// A lease, as the state machine has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granted {
    /// The lease.
    pub id: i64,
    /// Its whole time.
    pub ttl_s: u64,
    /// What it had left at its last checkpoint; 0 without one since it was renewed.
    pub remaining_s: u64,
}

impl From<Lease> for Granted {
    fn from(lease: Lease) -> Granted {
        Granted {
            id: lease.id,
            ttl_s: lease.ttl_s as u64,
            remaining_s: lease.remaining_s as u64,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    ttl_ms: u64,
    /// When it ends, or when its revocation is asked for again.
    due_ms: u64,
    /// When what it has left is replicated next; `None` when it ends before.
    checkpoint_ms: Option<u64>,
    /// Whether the state machine has a checkpoint, or may have one soon.
    checkpointed: bool,
    ended: bool,
}

impl Entry {
    /// With so much left from now on.
    fn new(ttl_s: u64, left_s: u64, now_ms: u64) -> Entry {
        let due_ms = now_ms.saturating_add(left_s.saturating_mul(1_000));
        Entry {
            ttl_ms: ttl_s.saturating_mul(1_000),
            due_ms,
            checkpoint_ms: next_checkpoint_ms(due_ms, now_ms),
            checkpointed: false,
            ended: false,
        }
    }
}

fn next_checkpoint_ms(due_ms: u64, now_ms: u64) -> Option<u64> {
    let next = now_ms.saturating_add(CHECKPOINT_MS);
    (next < due_ms).then_some(next)
}

/// The leader's count of every lease.
#[derive(Debug, Default)]
pub struct LeaseClock {
    entries: HashMap<i64, Entry>,
    /// (due, lease), so that the first is the next to look at.
    order: BTreeSet<(u64, i64)>,
    /// (checkpoint, lease).
    checkpoints: BTreeSet<(u64, i64)>,
}

impl LeaseClock {
    /// A new leader's clock: every lease has from now on what its last checkpoint left it, or else its
    /// whole time.
    pub fn lead(leases: impl IntoIterator<Item = Granted>, now_ms: u64) -> LeaseClock {
        let mut clock = LeaseClock::default();
        for lease in leases {
            let left_s = match lease.remaining_s {
                0 => lease.ttl_s,
                remaining_s => remaining_s,
            };
            let entry = Entry {
                checkpointed: lease.remaining_s != 0,
                ..Entry::new(lease.ttl_s, left_s, now_ms)
            };
            clock.put(lease.id, entry);
        }
        clock
    }

    /// These are the leases that there are: new ones have their whole time, others are forgotten.
    pub fn reconcile(&mut self, leases: impl IntoIterator<Item = Granted>, now_ms: u64) {
        let mut seen = 0;
        let mut known = HashSet::with_capacity(self.entries.len());
        for lease in leases {
            seen += 1;
            known.insert(lease.id);
            if !self.entries.contains_key(&lease.id) {
                self.grant(lease.id, lease.ttl_s, now_ms);
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
        self.put(lease, Entry::new(ttl_s, ttl_s, now_ms));
    }

    /// A lease was revoked. One that is not known is none.
    pub fn revoke(&mut self, lease: i64) {
        if let Some(entry) = self.entries.remove(&lease) {
            self.forget(lease, entry);
        }
    }

    /// A client keeps its lease alive: the seconds that it has from now on. `None` for a lease that is
    /// not there or has ended: once its revocation is on the way, it cannot come back.
    pub fn renew(&mut self, lease: i64, now_ms: u64) -> Option<u64> {
        let entry = *self.entries.get(&lease)?;
        if entry.ended || entry.due_ms <= now_ms {
            return None;
        }
        let ttl_s = entry.ttl_ms / 1_000;
        let renewed = Entry {
            checkpointed: entry.checkpointed,
            ..Entry::new(ttl_s, ttl_s, now_ms)
        };
        self.put(lease, renewed);
        Some(ttl_s)
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
                checkpoint_ms: None,
                ended: true,
                ..entry
            };
            self.put(lease, again);
            expired.push(lease);
        }
        expired
    }

    /// Up to `count_max` leases whose checkpoint is due, each with the seconds that it has left. One that
    /// is lost on its way is made up for by the next.
    pub fn checkpoint(&mut self, now_ms: u64, count_max: usize) -> Vec<(i64, u64)> {
        let mut due = Vec::new();
        while due.len() < count_max {
            let Some(&(at_ms, lease)) = self.checkpoints.first() else {
                break;
            };
            if at_ms > now_ms {
                break;
            }
            let entry = self.entries[&lease];
            let checkpoint_ms = next_checkpoint_ms(entry.due_ms, now_ms);
            self.put(
                lease,
                Entry {
                    checkpoint_ms,
                    checkpointed: true,
                    ..entry
                },
            );
            let left_ms = entry.due_ms.saturating_sub(now_ms);
            // Less than a second is not 0, which stands for no checkpoint.
            due.push((lease, left_ms.div_ceil(1_000).max(1)));
        }
        due
    }

    /// Whether the state machine has a checkpoint of a lease, or may have one soon: a renewal holds
    /// only once that was taken back.
    pub fn is_checkpointed(&self, lease: i64) -> bool {
        let entry = self.entries.get(&lease);
        entry.is_some_and(|entry| entry.checkpointed)
    }

    /// The checkpoint of a lease was taken back.
    pub fn uncheckpointed(&mut self, lease: i64) {
        if let Some(entry) = self.entries.get_mut(&lease) {
            entry.checkpointed = false;
        }
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
            self.forget(lease, old);
        }
        self.order.insert((entry.due_ms, lease));
        if let Some(at_ms) = entry.checkpoint_ms {
            self.checkpoints.insert((at_ms, lease));
        }
    }

    fn forget(&mut self, lease: i64, old: Entry) {
        self.order.remove(&(old.due_ms, lease));
        if let Some(at_ms) = old.checkpoint_ms {
            self.checkpoints.remove(&(at_ms, lease));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn granted(id: i64, ttl_s: u64) -> Granted {
        Granted {
            id,
            ttl_s,
            remaining_s: 0,
        }
    }

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
        let mut clock = LeaseClock::lead((1..=5).map(|id| granted(id, 10 - id as u64)), 0);
        assert_eq!(clock.expire(60_000, 3), [5, 4, 3]);
        assert_eq!(clock.expire(60_000, 3), [2, 1]);
        assert_eq!(clock.len(), 5);
    }

    #[test]
    fn reconciling_adds_what_is_new_and_forgets_what_is_gone() {
        let mut clock = LeaseClock::lead([granted(1, 10), granted(2, 10)], 0);
        clock.reconcile([granted(2, 10), granted(3, 5)], 4_000);
        assert_eq!(clock.remaining_ms(1, 4_000), None);
        assert_eq!(clock.remaining_ms(2, 4_000), Some(6_000));
        assert_eq!(clock.remaining_ms(3, 4_000), Some(5_000));
        assert_eq!(clock.expire(60_000, 9), [3, 2]);
    }

    #[test]
    fn a_new_leader_gives_every_lease_its_whole_time() {
        let mut old = LeaseClock::default();
        old.grant(1, 10, 0);
        let mut new = LeaseClock::lead([granted(1, 10)], 9_999);
        assert_eq!(old.expire(10_000, 1), [1]);
        assert_eq!(new.expire(10_000, 1), [0; 0]);
        assert_eq!(new.remaining_ms(1, 10_000), Some(9_999));
    }
    #[test]
    fn a_new_leader_gives_a_lease_what_its_checkpoint_left_it() {
        let left = Granted {
            remaining_s: 4,
            ..granted(1, 1_000)
        };
        let mut clock = LeaseClock::lead([left], 10_000);
        assert_eq!(clock.remaining_ms(1, 10_000), Some(4_000));
        assert_eq!(clock.renew(1, 11_000), Some(1_000), "renewed, it has all");
        assert_eq!(clock.remaining_ms(1, 11_000), Some(1_000_000));
        assert!(clock.is_checkpointed(1), "until it was taken back");
        clock.uncheckpointed(1);
        assert!(!clock.is_checkpointed(1));
    }

    #[test]
    fn only_leases_that_outlive_the_interval_are_checkpointed_and_again_each_interval() {
        let mut clock = LeaseClock::lead([granted(1, 1_000), granted(2, 300), granted(3, 700)], 0);
        assert_eq!(clock.checkpoint(CHECKPOINT_MS - 1, 9), []);
        assert_eq!(clock.checkpoint(CHECKPOINT_MS, 1), [(1, 700)]);
        assert_eq!(clock.checkpoint(CHECKPOINT_MS + 500, 9), [(3, 400)]);
        assert_eq!(clock.checkpoint(CHECKPOINT_MS + 500, 9), []);
        let again = clock.checkpoint(2 * CHECKPOINT_MS + 500, 9);
        assert_eq!(
            again,
            [(1, 400), (3, 100)],
            "of part of a second, a whole one"
        );
        assert_eq!(clock.checkpoint(3 * CHECKPOINT_MS + 500, 9), [(1, 100)]);
        assert_eq!(clock.checkpoint(4 * CHECKPOINT_MS, 9), [], "it has ended");
    }

    #[test]
    fn a_renewal_puts_the_checkpoint_off_and_an_end_takes_it_away() {
        let mut clock = LeaseClock::lead([granted(1, 1_000), granted(2, 1_000)], 0);
        clock.renew(1, 200_000);
        clock.revoke(2);
        assert_eq!(clock.checkpoint(CHECKPOINT_MS, 9), []);
        assert_eq!(clock.checkpoint(200_000 + CHECKPOINT_MS, 9), [(1, 700)]);
        assert_eq!(clock.expire(2_000_000, 9), [1]);
        assert_eq!(clock.checkpoint(2_000_000, 9), []);
    }
}
