//! Writes that go on beside a story: one key after another, at a member for as long as it answers.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Result, bail, ensure};

use super::members::{Ctl, DEADLINE, Member};
use crate::process;

/// How long one write may take; one that takes longer may have happened, and does not count.
const WRITE_SECONDS: u64 = 3;
/// Writes that fail in a row before it is given up.
const FAILURES_MAX: usize = 1000;

/// What was acknowledged so far.
type Acknowledged = Arc<Mutex<Vec<String>>>;

/// The writer at work. Dropping it ends it.
pub struct Writer {
    stop: Arc<AtomicBool>,
    acknowledged: Acknowledged,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Writer {
    /// Begins to write keys with this prefix; a key's value is the key.
    pub fn start(cli: &Path, members: &[&Member], prefix: &'static str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Acknowledged::default();
        let ctls: Vec<String> = members.iter().map(|member| member.client.clone()).collect();
        let (told, noted, cli) = (Arc::clone(&stop), Arc::clone(&acknowledged), cli.to_owned());
        let thread = std::thread::spawn(move || write(&cli, &ctls, prefix, &told, &noted));
        Self {
            stop,
            acknowledged,
            thread: Some(thread),
        }
    }

    /// The keys that were acknowledged so far.
    pub fn acknowledged(&self) -> Vec<String> {
        lock(&self.acknowledged).clone()
    }

    /// Waits until so many more are acknowledged.
    pub fn progress(&self, keys: usize) -> Result<()> {
        let wanted = lock(&self.acknowledged).len() + keys;
        let reached = process::until(DEADLINE, || {
            Ok((lock(&self.acknowledged).len() >= wanted).then_some(()))
        })?;
        ensure!(
            reached.is_some(),
            "{keys} writes were not acknowledged in {DEADLINE:?}"
        );
        Ok(())
    }

    /// Ends it; every key that was acknowledged.
    pub fn finish(mut self) -> Result<Vec<String>> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(ended)) => ended?,
            _ => bail!("the writer failed"),
        }
        Ok(self.acknowledged())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Its outcome is nobody's any more.
            drop(thread.join());
        }
    }
}

fn lock(acknowledged: &Acknowledged) -> std::sync::MutexGuard<'_, Vec<String>> {
    acknowledged.lock().unwrap_or_else(PoisonError::into_inner)
}

fn write(
    cli: &Path,
    clients: &[String],
    prefix: &str,
    stop: &AtomicBool,
    acknowledged: &Acknowledged,
) -> Result<()> {
    let mut failures = 0;
    let mut at = 0;
    for number in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let key = format!("{prefix}{number:06}");
        let ctl = Ctl::at(cli, &clients[at % clients.len()]);
        match process::capture(&mut ctl.command(WRITE_SECONDS, &["put", &key, &key])) {
            Ok(_) => {
                lock(acknowledged).push(key);
                failures = 0;
            }
            Err(error) => {
                failures += 1;
                at += 1;
                ensure!(
                    failures < FAILURES_MAX,
                    "no write is acknowledged: {error:#}"
                );
            }
        }
    }
    Ok(())
}
