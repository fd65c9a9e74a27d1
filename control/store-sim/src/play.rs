//! Scenarios by seed, each on a clock of its own.

use std::future::Future;

/// Plays a scenario in one thread, on a clock that moves when everybody waits.
///
/// # Panics
/// When the scenario does.
pub fn simulate(scenario: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build();
    let runtime = runtime.expect("a runtime without I/O starts");
    runtime.block_on(scenario);
}

/// Plays the scenario of each seed: `count` of them, as many as `UC_SEEDS` says, or the one that `UC_SEED`
/// names. Says which one failed.
///
/// # Panics
/// When a scenario does, or a variable is no number.
pub fn for_seeds<F: Future<Output = ()>>(count: u64, scenario: impl Fn(u64) -> F) {
    let number = |name: &str| {
        let text = std::env::var(name).ok()?;
        let number = text.parse::<u64>();
        Some(number.unwrap_or_else(|_| panic!("{name} is no number: {text}")))
    };
    let seeds = match number("UC_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("UC_SEEDS").unwrap_or(count),
    };
    for seed in seeds {
        let told = Told(seed);
        simulate(scenario(seed));
        std::mem::forget(told);
    }
}

/// Names a seed when its scenario panics.
struct Told(u64);

impl Drop for Told {
    fn drop(&mut self) {
        eprintln!("replay with UC_SEED={}", self.0);
    }
}
