//! Checks of backends: one task each, which asks now and then and tells what came of it.
//!
//! The first check comes within a fifth of a second, the next ones an interval apart, give or take a tenth, so
//! that many do not come at once. At most [`RUNNING_MAX`] run at a time; each has its deadline, connecting
//! included.

mod ask;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};

use crate::spec::{BackendKey, Check};
use ask::Asker;

/// Checks that run at a time.
const RUNNING_MAX: usize = 256;
/// Within this time of being known, a backend is asked first.
const FIRST_WITHIN_MS: u64 = 200;

/// A check that has ended.
#[derive(Debug)]
pub struct Ended {
    /// Of whom.
    pub key: BackendKey,
    /// Where.
    pub addr: IpAddr,
    /// Passed, or failed and why.
    pub result: Result<(), String>,
    /// How long it took.
    pub took: Duration,
}

/// What is to be checked.
pub type Wanted = BTreeMap<BackendKey, (IpAddr, u16, Check)>;

/// Tasks that check.
pub struct Checks {
    running: BTreeMap<BackendKey, ((IpAddr, u16, Check), Ends)>,
    tell: mpsc::Sender<Ended>,
    slots: Arc<Semaphore>,
}

/// Ends a task with its owner.
struct Ends(JoinHandle<()>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Checks {
    /// Checks nobody yet.
    pub fn new(tell: mpsc::Sender<Ended>) -> Checks {
        Checks {
            running: BTreeMap::new(),
            tell,
            slots: Arc::new(Semaphore::new(RUNNING_MAX)),
        }
    }

    /// Checks these from now on, and nobody else. Checks that stay as they are go on.
    pub fn follow(&mut self, wanted: Wanted) {
        self.running
            .retain(|key, (asked, _)| wanted.get(key) == Some(asked));
        for (key, asked) in wanted {
            if self.running.contains_key(&key) {
                continue;
            }
            let (tell, slots) = (self.tell.clone(), Arc::clone(&self.slots));
            let task = tokio::spawn(go_on(key.clone(), asked.clone(), tell, slots));
            self.running.insert(key, (asked, Ends(task)));
        }
    }
}

async fn go_on(
    key: BackendKey,
    (addr, port, check): (IpAddr, u16, Check),
    tell: mpsc::Sender<Ended>,
    slots: Arc<Semaphore>,
) {
    let mut dice = Dice::new(&key);
    let asker = Asker::new(addr, port, &check.kind);
    let limit = Duration::from_millis(check.timeout_ms);
    sleep(Duration::from_millis(dice.below(FIRST_WITHIN_MS))).await;
    loop {
        let began = Instant::now();
        {
            let Ok(_slot) = slots.acquire().await else {
                return;
            };
            let asked = Instant::now();
            let result = match tokio::time::timeout(limit, asker.ask()).await {
                Ok(result) => result,
                Err(_) => Err(format!("no answer within {} ms", check.timeout_ms)),
            };
            let ended = Ended {
                key: key.clone(),
                addr,
                result,
                took: asked.elapsed(),
            };
            if tell.send(ended).await.is_err() {
                return;
            }
        }
        let tenth = check.interval_ms / 10;
        let wait = check.interval_ms - tenth + dice.below(2 * tenth + 1);
        sleep_until(began + Duration::from_millis(wait)).await;
    }
}

/// Numbers that differ from one backend to the next: SplitMix64.
struct Dice(u64);

impl Dice {
    fn new(key: &BackendKey) -> Dice {
        let text = key.to_string();
        let seed = text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        Dice(seed)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % bound.max(1)
    }
}
