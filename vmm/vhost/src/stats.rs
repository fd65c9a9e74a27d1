//! What an export has done, counted on its shard.

use std::cell::Cell;

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

/// Adds to a counter.
#[inline]
pub(crate) fn add(counter: &Cell<u64>, count: u64) {
    counter.set(counter.get().wrapping_add(count));
}
