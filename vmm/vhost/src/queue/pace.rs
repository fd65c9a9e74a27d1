//! How long a ring is polled between requests.

use std::time::Duration;

use engine::Nanos;

/// How long a ring is polled before its task sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Polling {
    /// The longest window; zero switches polling off.
    pub window_max: Duration,
    /// Most of the shard's time that one ring polls in vain, in percent, over a hundredth of a second.
    pub share_max_percent: u32,
}

impl Default for Polling {
    fn default() -> Polling {
        Polling {
            window_max: Duration::from_micros(50),
            share_max_percent: 50,
        }
    }
}

/// Over what time the share of polling is counted.
const PERIOD: Duration = Duration::from_millis(10);

/// The smallest window that is worth it.
const WINDOW_MIN: Duration = Duration::from_micros(4);

/// How long to poll. See the head of the module above.
pub(super) struct Pace {
    polling: Polling,
    window: Duration,
    /// When work was seen last.
    worked: Nanos,
    /// When the ring was looked at last while polling.
    looked: Option<Nanos>,
    period: Nanos,
    polled: Duration,
}

impl Pace {
    pub(super) fn new(polling: Polling) -> Pace {
        let now = engine::now();
        Pace {
            polling,
            window: Duration::ZERO,
            worked: now,
            looked: None,
            period: now,
            polled: Duration::ZERO,
        }
    }

    /// Nanoseconds polled in vain since the last look.
    pub(super) fn looked(&mut self, now: Nanos, worked: bool) -> u64 {
        if now - self.period > PERIOD {
            self.period = now;
            self.polled = Duration::ZERO;
        }
        let vain = self.looked.take().map_or(Duration::ZERO, |last| now - last);
        self.polled += vain;
        if worked {
            let idle = now - self.worked;
            self.worked = now;
            self.window = if idle <= self.polling.window_max {
                (idle * 2)
                    .clamp(WINDOW_MIN, self.polling.window_max.max(WINDOW_MIN))
                    .max(self.window)
            } else {
                self.window / 2
            };
        }
        vain.as_nanos() as u64
    }

    pub(super) fn polls(&mut self, now: Nanos) -> bool {
        let share = PERIOD * self.polling.share_max_percent / 100;
        let polls = !self.polling.window_max.is_zero()
            && now - self.worked < self.window
            && self.polled < share;
        if polls {
            self.looked = Some(now);
        }
        polls
    }
}
