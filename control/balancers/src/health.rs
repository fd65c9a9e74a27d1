//! Whether a backend is healthy, from one check after the other. Pure: no clock, no sockets.
//!
//! The first check decides at once, then it takes [`Check::rise`] passes or [`Check::fall`] failures in a
//! row to change. A backend that goes back and forth is held down: each fall adds to a penalty that
//! halves each minute; above [`HOLD_ABOVE`] the backend stays down until it is below [`FREE_BELOW`]. With
//! [`PENALTY_MAX`] that is three minutes at most after its last fall.

use crate::spec::Check;

/// What a fall adds.
const FALL_PENALTY: f64 = 1000.0;
/// The penalty that holds a backend down: three falls within a minute or so.
const HOLD_ABOVE: f64 = 2500.0;
/// The penalty that lets it go.
const FREE_BELOW: f64 = 1500.0;
/// The largest penalty.
const PENALTY_MAX: f64 = 12_000.0;
/// In this time a penalty halves.
const HALF_LIFE_MS: f64 = 60_000.0;

/// What is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Verdict {
    /// No check has ended.
    #[default]
    Unknown,
    /// It takes traffic.
    Healthy,
    /// It does not.
    Unhealthy,
}

/// One backend's health.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Health {
    verdict: Verdict,
    /// Results in a row that speak against the verdict.
    against: u32,
    penalty: f64,
    penalty_at_ms: u64,
    held: bool,
    why: String,
}

impl Health {
    /// The verdict.
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// What the last check said, and whether the backend is held down.
    pub fn why(&self) -> String {
        if self.held && self.verdict == Verdict::Unhealthy {
            let last = if self.why.is_empty() {
                "it passes"
            } else {
                &self.why
            };
            return format!("held down, as it went back and forth; last check: {last}");
        }
        self.why.clone()
    }

    /// One check has ended: passed, or failed and why. True when the verdict changes.
    pub fn step(&mut self, result: Result<(), String>, now_ms: u64, check: &Check) -> bool {
        let passed = result.is_ok();
        self.why = result.err().unwrap_or_default();
        self.decay(now_ms);
        let before = self.verdict;
        self.verdict = match (before, passed) {
            (Verdict::Unknown, true) => Verdict::Healthy,
            (Verdict::Unknown, false) => Verdict::Unhealthy,
            (Verdict::Healthy, true) | (Verdict::Unhealthy, false) => {
                self.against = 0;
                before
            }
            (Verdict::Healthy, false) => {
                self.against += 1;
                if self.against < check.fall {
                    return false;
                }
                self.penalty = (self.penalty + FALL_PENALTY).min(PENALTY_MAX);
                self.held |= self.penalty > HOLD_ABOVE;
                Verdict::Unhealthy
            }
            (Verdict::Unhealthy, true) => {
                self.against = self.against.saturating_add(1);
                if self.held || self.against < check.rise {
                    return false;
                }
                Verdict::Healthy
            }
        };
        if self.verdict != before {
            self.against = 0;
        }
        self.verdict != before
    }

    fn decay(&mut self, now_ms: u64) {
        let passed = now_ms.saturating_sub(self.penalty_at_ms) as f64;
        self.penalty *= (-passed / HALF_LIFE_MS).exp2();
        self.penalty_at_ms = now_ms;
        self.held &= self.penalty >= FREE_BELOW;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::CheckKind;
    use proptest::prelude::*;

    fn check(rise: u32, fall: u32) -> Check {
        Check {
            kind: CheckKind::Tcp,
            interval_ms: 1000,
            timeout_ms: 1000,
            rise,
            fall,
        }
    }

    fn failed() -> Result<(), String> {
        Err("refused".to_owned())
    }

    #[test]
    fn the_first_check_decides_and_then_it_takes_several() {
        let check = check(2, 3);
        let mut health = Health::default();
        assert!(health.step(Ok(()), 0, &check));
        assert_eq!(health.verdict(), Verdict::Healthy);
        assert!(!health.step(failed(), 1000, &check));
        assert!(!health.step(failed(), 2000, &check));
        // A pass in between begins the count anew.
        assert!(!health.step(Ok(()), 3000, &check));
        assert!(!health.step(failed(), 4000, &check));
        assert!(!health.step(failed(), 5000, &check));
        assert!(health.step(failed(), 6000, &check));
        assert_eq!(
            (health.verdict(), &*health.why()),
            (Verdict::Unhealthy, "refused")
        );
        assert!(!health.step(Ok(()), 7000, &check));
        assert!(health.step(Ok(()), 8000, &check));
        let mut dead = Health::default();
        assert!(dead.step(failed(), 0, &check));
        assert_eq!(dead.verdict(), Verdict::Unhealthy);
    }

    #[test]
    fn a_backend_that_flaps_is_held_down_and_let_go_within_three_minutes() {
        let check = check(1, 1);
        let mut health = Health::default();
        let mut now = 0;
        let mut falls = 0;
        health.step(Ok(()), now, &check);
        for _ in 0..100 {
            now += 1000;
            falls += u32::from(health.step(failed(), now, &check));
            now += 1000;
            health.step(Ok(()), now, &check);
        }
        assert!(falls <= 10, "of 100 falls {falls} were seen");
        assert!(health.why().contains("held down") || health.verdict() == Verdict::Healthy);
        let mut quiet = 0;
        while health.verdict() != Verdict::Healthy {
            quiet += 1;
            health.step(Ok(()), now + quiet * 1000, &check);
            assert!(quiet <= 180, "still held after {quiet} s");
        }
    }

    proptest! {
        /// Whatever comes, a change takes as many results in a row as the thresholds say, and a backend
        /// that passes for long enough is healthy.
        #[test]
        fn thresholds_hold_for_any_results(
            results in proptest::collection::vec((any::<bool>(), 0_u64..5000), 1..200),
            rise in 1_u32..5,
            fall in 1_u32..5,
        ) {
            let check = check(rise, fall);
            let mut health = Health::default();
            let (mut now, mut row, mut last) = (0, 0, None);
            for (passed, after) in results {
                now += after;
                row = if last == Some(passed) { row + 1 } else { 1 };
                let before = health.verdict();
                let result = if passed { Ok(()) } else { failed() };
                if health.step(result, now, &check) && before != Verdict::Unknown {
                    let needed = if passed { rise } else { fall };
                    prop_assert!(row >= needed);
                }
                if !passed && row >= fall {
                    prop_assert_eq!(health.verdict(), Verdict::Unhealthy);
                }
                last = Some(passed);
            }
            for _ in 0..(200 + rise) {
                now += 1000;
                health.step(Ok(()), now, &check);
            }
            prop_assert_eq!(health.verdict(), Verdict::Healthy);
        }
    }
}
