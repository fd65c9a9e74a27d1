//! The time of day, for what people read and for times that outlive a process.
//!
//! Intervals within a process are measured by tokio's clock, which never goes back.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// Tells the time of day.
#[derive(Clone, Copy, Debug, Default)]
pub enum Clock {
    /// The machine's.
    #[default]
    System,
    /// Moves with tokio's clock from a given time on: under a simulation that clock is virtual.
    Tokio {
        /// Milliseconds since 1970, at `since`.
        start_unix_ms: u64,
        /// When that was.
        since: Instant,
    },
}

impl Clock {
    /// A clock of a simulation.
    pub fn virtual_from(start_unix_ms: u64) -> Clock {
        Clock::Tokio {
            start_unix_ms,
            since: Instant::now(),
        }
    }

    /// Milliseconds since 1970; 0 on a machine that thinks it is earlier.
    pub fn unix_ms(&self) -> u64 {
        match self {
            Clock::System => {
                let since = SystemTime::now().duration_since(UNIX_EPOCH);
                since.map_or(0, millis)
            }
            Clock::Tokio {
                start_unix_ms,
                since,
            } => start_unix_ms + millis(since.elapsed()),
        }
    }
}

/// A duration in whole milliseconds.
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
