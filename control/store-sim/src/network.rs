//! What happens to messages, drawn from a seed.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

/// How bad the network is; chances in a thousand.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// A message takes up to this long.
    pub delay_max: Duration,
    /// A request never arrives.
    pub lost_request: u64,
    /// An answer never comes back.
    pub lost_answer: u64,
    /// A write arrives only after its sender has given up on it.
    pub late: u64,
    /// How late.
    pub late_max: Duration,
    /// A watch breaks before its next answer.
    pub broken_watch: u64,
}

impl Faults {
    /// A network that most retries get through.
    pub fn rough() -> Faults {
        Faults {
            delay_max: Duration::from_millis(20),
            lost_request: 30,
            lost_answer: 30,
            late: 20,
            late_max: Duration::from_secs(20),
            broken_watch: 20,
        }
    }
}

/// The network of a world.
#[derive(Debug)]
pub struct Network {
    dice: Mutex<Dice>,
    /// Messages so far, in both directions.
    messages: watch::Sender<u64>,
}

#[derive(Debug)]
struct Dice {
    state: u64,
    faults: Faults,
}

impl Dice {
    /// SplitMix64.
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn up_to(&mut self, longest: Duration) -> Duration {
        let micros = longest.as_micros() as u64;
        Duration::from_micros(self.next() % (micros + 1))
    }
}

impl Network {
    pub(crate) fn new(seed: u64, faults: Faults) -> Network {
        Network {
            dice: Mutex::new(Dice {
                state: seed,
                faults,
            }),
            messages: watch::Sender::new(0),
        }
    }

    /// Faults from now on.
    pub fn set(&self, faults: Faults) {
        self.with(|dice| dice.faults = faults);
    }

    /// A number below `bound` of the same seed, for the scenario's own choices.
    pub fn below(&self, bound: u64) -> u64 {
        self.with(|dice| dice.next() % bound)
    }

    fn with<T>(&self, run: impl FnOnce(&mut Dice) -> T) -> T {
        run(&mut self.dice.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn chance(&self, of: impl FnOnce(&Faults) -> u64) -> bool {
        self.with(|dice| dice.next() % 1000 < of(&dice.faults))
    }

    /// Messages so far, requests and answers.
    pub fn messages(&self) -> u64 {
        *self.messages.borrow()
    }

    /// Returns when so many messages were under way, before the last of them gets on.
    pub async fn message(&self, number: u64) {
        let mut messages = self.messages.subscribe();
        // The sender lives as long as the network.
        let _ = messages.wait_for(|count| *count >= number).await;
    }

    pub(crate) async fn delay(&self) {
        self.messages.send_modify(|count| *count += 1);
        let delay = self.with(|dice| dice.up_to(dice.faults.delay_max));
        tokio::time::sleep(delay).await;
    }

    pub(crate) fn loses_request(&self) -> bool {
        self.chance(|faults| faults.lost_request)
    }

    pub(crate) fn loses_answer(&self) -> bool {
        self.chance(|faults| faults.lost_answer)
    }

    pub(crate) fn breaks_watch(&self) -> bool {
        self.chance(|faults| faults.broken_watch)
    }

    pub(crate) fn late(&self) -> Option<Duration> {
        let late = self.chance(|faults| faults.late);
        late.then(|| self.with(|dice| dice.up_to(dice.faults.late_max)))
    }
}
