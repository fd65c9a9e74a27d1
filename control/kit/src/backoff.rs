//! How long to wait before something is tried again.

use std::time::Duration;

/// Pauses that double, up to a longest one.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    next: Duration,
    longest: Duration,
}

impl Backoff {
    /// Begins with `first`.
    pub fn new(first: Duration, longest: Duration) -> Backoff {
        Backoff {
            next: first.min(longest),
            longest,
        }
    }

    /// The pause before the next try.
    pub fn pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(self.longest);
        pause
    }

    /// The pause before try number `attempt`, counted from 1.
    pub fn before(self, attempt: u32) -> Duration {
        let doubled = 1_u32.checked_shl(attempt.saturating_sub(1));
        let pause = doubled.and_then(|times| self.next.checked_mul(times));
        pause.unwrap_or(self.longest).min(self.longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let second = Duration::from_secs(1);
        let mut backoff = Backoff::new(second, second * 5);
        let pauses = [
            backoff.pause(),
            backoff.pause(),
            backoff.pause(),
            backoff.pause(),
        ];
        assert_eq!(pauses.map(|pause| pause.as_secs()), [1, 2, 4, 5]);
        let backoff = Backoff::new(second, second * 5);
        assert_eq!(backoff.before(1), second);
        assert_eq!(backoff.before(3), second * 4);
        assert_eq!(backoff.before(40), second * 5);
        assert_eq!(backoff.before(u32::MAX), second * 5);
    }
}
