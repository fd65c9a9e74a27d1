//! Settings of the whole program, and the limit on new flows.

use crate::{Addr, layout};

/// Settings; one entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Config {
    /// [`crate::LAYOUT`] of the pinned maps.
    pub layout: u32,
    /// New flows that are remembered: each costs so many nanoseconds of a CPU's credit; 0 is no limit.
    pub insert_cost_ns: u32,
    /// The most credit that a CPU saves up, in nanoseconds.
    pub insert_burst_ns: u64,
    /// A new flow makes an event when a random number has none of these bits.
    pub sample_mask: u32,
    /// Destination port of GUE in network order.
    pub gue_port: u16,
    /// Zero.
    pub reserved: u16,
    /// Source of outer headers, for backends with an IPv4 address.
    pub tunnel_v4: Addr,
    /// Source of outer headers, for backends with an IPv6 address.
    pub tunnel_v6: Addr,
}
layout!(Config, 56);

/// A token bucket; one a CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Bucket {
    /// Credit in nanoseconds.
    pub credit_ns: u64,
    /// When it was last topped up, by the monotonic clock.
    pub at_ns: u64,
}
layout!(Bucket, 16);

impl Bucket {
    /// Takes one insertion's credit at `now_ns`; false when there is not enough.
    #[inline(always)]
    pub fn take(&mut self, now_ns: u64, config: &Config) -> bool {
        self.spend(
            now_ns,
            u64::from(config.insert_cost_ns),
            config.insert_burst_ns,
        )
    }

    /// Takes `cost` at `now_ns` from what was saved up, of which there is at most `burst`.
    #[inline(always)]
    pub fn spend(&mut self, now_ns: u64, cost: u64, burst: u64) -> bool {
        let credit = self.credit(now_ns, burst);
        self.at_ns = now_ns;
        let enough = credit >= cost;
        self.credit_ns = if enough { credit - cost } else { credit };
        enough
    }

    /// What is saved up at `now_ns`.
    #[inline(always)]
    pub fn credit(&self, now_ns: u64, burst: u64) -> u64 {
        self.credit_ns
            .wrapping_add(now_ns.wrapping_sub(self.at_ns))
            .min(burst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let config = Config {
            insert_cost_ns: 100,
            insert_burst_ns: 300,
            ..Config::default()
        };
        let mut bucket = Bucket::default();
        let taken =
            |bucket: &mut Bucket, now| (0..10).filter(|_| bucket.take(now, &config)).count();
        assert_eq!(taken(&mut bucket, 1_000_000), 3);
        assert_eq!(taken(&mut bucket, 1_000_099), 0);
        assert_eq!(taken(&mut bucket, 1_000_100), 1);
        assert_eq!(taken(&mut bucket, 1_000_450), 3);
    }
}
