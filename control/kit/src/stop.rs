//! An orderly end: one side asks for it, any number of others wait for the request. To a process it is a
//! signal that asks ([`Signals`]).

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

/// Exit code of a process that was told to end at once.
const EXIT_AT_ONCE: i32 = 130;
/// On every architecture that the engine runs on.
const SIGXFSZ: i32 = 25;

/// The signals that end a process: SIGTERM and SIGINT.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// Not one of them: a file that may not grow any more (RLIMIT_FSIZE) is a full disk. A signal
    /// that somebody listens for does not kill.
    _file_size: Signal,
}

impl Signals {
    /// Listens for them, from now on and for as long as the process lives.
    ///
    /// # Errors
    /// When the kernel does not let it.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn new() -> io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            _file_size: signal(SignalKind::from_raw(SIGXFSZ))?,
        })
    }

    /// Waits for one. Cancel-safe.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Waits for one, and ends the process at once: for whom an orderly end takes too long.
    pub async fn end_at_once(mut self) {
        self.next().await;
        tracing::warn!("ended at once");
        std::process::exit(EXIT_AT_ONCE);
    }
}

/// Asks for the end. Dropping it asks too, so that nothing outlives its owner.
#[derive(Debug)]
pub struct Stopper(watch::Sender<bool>);

/// Waits for the request to end.
#[derive(Clone, Debug)]
pub struct Stop(watch::Receiver<bool>);

/// A pair of both sides.
pub fn pair() -> (Stopper, Stop) {
    let (sender, receiver) = watch::channel(false);
    (Stopper(sender), Stop(receiver))
}

impl Stopper {
    /// Everybody who waits, or will wait, is told. Asking twice changes nothing.
    pub fn stop(&self) {
        self.0.send_replace(true);
    }
}

impl Stop {
    /// Returns once the end was asked for. Cancel-safe.
    pub async fn requested(&self) {
        let mut receiver = self.0.clone();
        // An error means that the stopper is gone, which asks for the end too.
        let _ = receiver.wait_for(|stopped| *stopped).await;
    }

    /// Whether the end was asked for.
    pub fn is_requested(&self) -> bool {
        *self.0.borrow() || self.0.has_changed().is_err()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn asking_and_dropping_both_end_the_wait() {
        let (stopper, stop) = pair();
        assert!(!stop.is_requested());
        stopper.stop();
        stop.requested().await;
        assert!(stop.is_requested());

        let (stopper, stop) = pair();
        drop(stopper);
        stop.requested().await;
        assert!(stop.is_requested());
    }
}
