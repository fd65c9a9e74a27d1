//! What an export has done, counted on its shard.

use std::cell::Cell;

use crate::blk::Kind;
use crate::export::QUEUES_MAX;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counts since the export began.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Stats {
            $($(#[$doc])* pub $name: u64,)*
        }

        #[derive(Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: Cell<u64>,)*
            pub(crate) latencies: Latencies,
            /// Requests in progress, by ring.
            pub(crate) depths: [Cell<u64>; QUEUES_MAX as usize],
        }

        impl Counters {
            pub(crate) fn read(&self) -> Stats {
                Stats { $($name: self.$name.get(),)* }
            }
        }
    };
}

counters! {
    /// Front ends that connected.
    connections,
    /// Messages of front ends that were refused.
    refusals,
    /// Rings that were not looked at any more, because of what a guest wrote there.
    faults,
    /// Requests taken from rings.
    requests,
    /// Requests that were done again after a backend died.
    resubmitted,
    /// Requests that ended with an error, or were none.
    errors,
    /// Descriptors that went on in memory where the one before ended, and were one transfer with it.
    merged,
    /// Bytes that guests read.
    read_bytes,
    /// Bytes that guests wrote.
    written_bytes,
    /// Times that a ring was woken by its driver.
    kicks,
    /// Times that a driver was called.
    calls,
    /// Nanoseconds of looking at rings where nothing was.
    polled_ns,
}

/// Buckets of latencies: the first has what took less than a microsecond, each next one twice as long, the
/// last all that took longer.
pub const LATENCY_BUCKETS: usize = 22;

/// How long requests of one kind took, from when they were taken until they were given back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latency {
    /// Requests by bucket.
    pub counts: [u64; LATENCY_BUCKETS],
    /// All of them together, in nanoseconds.
    pub total_ns: u64,
}

/// The same for each kind of request that a device does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LatencyByKind {
    /// Reads.
    pub read: Latency,
    /// Writes.
    pub write: Latency,
    /// Flushes.
    pub flush: Latency,
    /// Discards and writes of zeros.
    pub unmap: Latency,
}

#[derive(Default)]
struct OfKind {
    counts: [Cell<u64>; LATENCY_BUCKETS],
    total_ns: Cell<u64>,
}

impl OfKind {
    fn read(&self) -> Latency {
        Latency {
            counts: std::array::from_fn(|bucket| self.counts[bucket].get()),
            total_ns: self.total_ns.get(),
        }
    }
}

#[derive(Default)]
pub(crate) struct Latencies {
    read: OfKind,
    write: OfKind,
    flush: OfKind,
    unmap: OfKind,
}

impl Latencies {
    pub(crate) fn read(&self) -> LatencyByKind {
        LatencyByKind {
            read: self.read.read(),
            write: self.write.read(),
            flush: self.flush.read(),
            unmap: self.unmap.read(),
        }
    }

    #[inline]
    pub(crate) fn record(&self, kind: Kind, nanos: u64, requests: u64) {
        let of_kind = match kind {
            Kind::Read => &self.read,
            Kind::Write => &self.write,
            Kind::Flush => &self.flush,
            Kind::Discard | Kind::WriteZeroes => &self.unmap,
            Kind::Id | Kind::Unknown(_) => return,
        };
        let bits = u64::BITS - (nanos / 1000).leading_zeros();
        add(
            &of_kind.counts[(bits as usize).min(LATENCY_BUCKETS - 1)],
            requests,
        );
        add(&of_kind.total_ns, nanos * requests);
    }
}

/// Adds to a counter.
#[inline]
pub(crate) fn add(counter: &Cell<u64>, count: u64) {
    counter.set(counter.get().wrapping_add(count));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_lie_below_the_bounds_of_their_buckets() {
        let latencies = Latencies::default();
        for (nanos, bucket) in [
            (0, 0),
            (999, 0),
            (1000, 1),
            (1999, 1),
            (2000, 2),
            (3999, 2),
            (1_000_000, 10),
            (u64::MAX / 2, LATENCY_BUCKETS - 1),
        ] {
            let before = latencies.read().write.counts[bucket];
            latencies.record(Kind::Write, nanos, 1);
            assert_eq!(latencies.read().write.counts[bucket], before + 1, "{nanos}");
        }
        latencies.record(Kind::Id, 1, 1);
        assert_eq!(latencies.read().read, Latency::default());
        let counts = latencies.read().write.counts;
        assert_eq!(counts.iter().sum::<u64>(), 8);
    }
}
