//! What has been done, counted on the shard.

use std::cell::Cell;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counts since an export was added, or the server began.
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

        impl std::ops::AddAssign for Stats {
            fn add_assign(&mut self, other: Stats) {
                $(self.$name += other.$name;)*
            }
        }
    };
}

counters! {
    /// Clients that connected; of an export, that chose it.
    connections,
    /// Clients that were not let in, as there were too many.
    turned_away,
    /// Clients that were disconnected for what they sent, or did not take.
    refusals,
    /// Requests.
    requests,
    /// Requests that were answered with an error.
    errors,
    /// Bytes that clients read; holes that were sent as such are not counted.
    read_bytes,
    /// Bytes that clients wrote.
    written_bytes,
}

/// Adds to a counter.
#[inline]
pub(crate) fn add(counter: &Cell<u64>, count: u64) {
    counter.set(counter.get().wrapping_add(count));
}
