//! An orderly end: one side asks for it, any number of others wait for the request.

use tokio::sync::watch;

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
