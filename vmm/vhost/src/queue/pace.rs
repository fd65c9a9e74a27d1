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

/// Requests that take so long are not polled for: to be woken takes some microseconds more.
const SLOW: Duration = Duration::from_micros(250);

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
    /// What the last request took.
    took: Duration,
}

impl Pace {
    pub(super) fn new(polling: Polling, now: Nanos) -> Pace {
        Pace {
            polling,
            window: Duration::ZERO,
            worked: now,
            looked: None,
            period: now,
            polled: Duration::ZERO,
            took: Duration::ZERO,
        }
    }

    /// A request has ended.
    #[inline]
    pub(super) fn ended(&mut self, took: Duration) {
        self.took = took;
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
            && self.took < SLOW
            && now - self.worked < self.window
            && self.polled < share;
        if polls {
            self.looked = Some(now);
        }
        polls
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether it polls behind requests that come in such a time and took so long.
    fn polls_behind(idle: Duration, took: Duration) -> bool {
        let mut now = Nanos(0);
        let mut pace = Pace::new(Polling::default(), now);
        for _ in 0..4 {
            now = now + idle;
            pace.ended(took);
            pace.looked(now, true);
        }
        pace.polls(now + Duration::from_micros(1))
    }

    #[test]
    fn a_ring_is_polled_while_requests_come_soon_and_are_fast() {
        let us = Duration::from_micros;
        assert!(polls_behind(us(10), us(2)));
        assert!(!polls_behind(us(200), us(2)));
        assert!(!polls_behind(us(10), us(300)));
    }

    #[test]
    fn its_share_of_the_time_is_bounded() {
        let mut now = Nanos(0);
        let mut pace = Pace::new(Polling::default(), now);
        let mut polled = Duration::ZERO;
        while now < Nanos(9_000_000) {
            now = now + Duration::from_micros(20);
            polled += Duration::from_nanos(pace.looked(now, true));
            let _ = pace.polls(now);
        }
        let bound = PERIOD * Polling::default().share_max_percent / 100;
        assert!(
            polled > bound / 2 && polled <= bound + Duration::from_micros(20),
            "{polled:?}"
        );
    }
}
