//! What a volume may do in a second, by the shard's clock. Sans-IO: it says when.
//!
//! Each limit is a bucket that fills with time; it is kept as the moment at which it was, or will be,
//! full of debt paid back. An operation may begin when the debt before it is at most the burst.

use engine::Nanos;

use crate::types::Limits;

const SECOND_NS: u64 = 1_000_000_000;

/// Two buckets.
#[derive(Debug)]
pub(crate) struct Throttle {
    limits: Limits,
    ops_paid: u64,
    bytes_paid: u64,
}

impl Throttle {
    pub(crate) fn new(limits: Limits) -> Throttle {
        Throttle {
            limits,
            ops_paid: 0,
            bytes_paid: 0,
        }
    }

    /// Whether nothing is limited.
    pub(crate) fn is_free(&self) -> bool {
        self.limits.ops_per_s == 0 && self.limits.bytes_per_s == 0
    }

    /// When an operation of `bytes` that comes now may begin; it is counted.
    pub(crate) fn admit(&mut self, now: Nanos, bytes: u64) -> Nanos {
        let burst = u64::from(self.limits.burst_ms) * 1_000_000;
        let ops = spend(&mut self.ops_paid, now.0, self.limits.ops_per_s, 1);
        let bytes = spend(&mut self.bytes_paid, now.0, self.limits.bytes_per_s, bytes);
        Nanos(
            now.0
                .max(ops.saturating_sub(burst))
                .max(bytes.saturating_sub(burst)),
        )
    }
}

/// Adds units to a bucket's debt; returns when what was owed before is paid.
fn spend(paid: &mut u64, now: u64, per_s: u64, units: u64) -> u64 {
    if per_s == 0 {
        return now;
    }
    let before = (*paid).max(now);
    let cost = u128::from(units) * u128::from(SECOND_NS) / u128::from(per_s);
    *paid = before.saturating_add(u64::try_from(cost).unwrap_or(u64::MAX));
    before
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn a_burst_passes_at_once_and_the_rest_at_the_rate() {
        let mut throttle = Throttle::new(Limits {
            ops_per_s: 100,
            bytes_per_s: 0,
            burst_ms: 50,
            ..Limits::default()
        });
        let start = Nanos(1_000 * MS);
        let begins: Vec<u64> = (0..8)
            .map(|_| throttle.admit(start, 1 << 20).0 / MS)
            .collect();
        assert_eq!(begins, [1000, 1000, 1000, 1000, 1000, 1000, 1010, 1020]);
        // At rest the bucket fills to the burst, not further.
        let later = Nanos(9_000 * MS);
        let begins: Vec<u64> = (0..7).map(|_| throttle.admit(later, 1).0 / MS).collect();
        assert_eq!(begins, [9000, 9000, 9000, 9000, 9000, 9000, 9010]);
    }

    #[test]
    fn bytes_are_limited_beside_operations_and_nothing_by_zero() {
        let mut throttle = Throttle::new(Limits {
            ops_per_s: 1_000_000,
            bytes_per_s: 1 << 20,
            ..Limits::default()
        });
        let start = Nanos(0);
        assert_eq!(throttle.admit(start, 512 << 10), Nanos(0));
        assert_eq!(throttle.admit(start, 4 << 10), Nanos(500 * MS));
        let mut free = Throttle::new(Limits::default());
        assert!((0..100).all(|_| free.admit(start, u64::MAX) == start));
    }
}
