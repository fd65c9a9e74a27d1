//! Leases' time: [`clock`] counts it, [`keeper`] runs the count on the leader and ends what has ended.

mod clock;
mod keeper;

pub use clock::{Granted, LeaseClock};
pub use keeper::LeaseKeeper;
