//! The sweeper: ends reservations whose time is over.
//!
//! Any number of processes may sweep one ledger: each reservation ends once. A sweep reads only what is due,
//! in the order of expiry.

use std::time::Duration;

use control_kit::stop::Stop;

use crate::error::Error;
use crate::keys::parts;
use crate::ledger::Ledger;

impl Ledger {
    /// Ends every reservation whose time is over; how many this call was the one to end.
    ///
    /// # Errors
    /// The first thing that went wrong; all others that are due have been tried.
    pub async fn sweep(&self) -> Result<usize, Error> {
        let mut range = self.records.keys.due(self.clock.unix_ms());
        let (mut expired, mut first) = (0, None);
        loop {
            let page = self.records.page(range.clone()).await?;
            let mut due = Vec::with_capacity(page.entries.len());
            for entry in page.entries {
                match parts(&entry.key) {
                    Ok((_, id)) => due.push(id),
                    Err(error) => first = first.or(Some(error)),
                }
                range = range.after(&entry.key);
            }
            match self.expire(due).await {
                Ok(count) => expired += count,
                Err(error) => first = first.or(Some(error)),
            }
            if !page.more {
                return first.map_or(Ok(expired), Err);
            }
        }
    }

    /// Sweeps each `interval` until the end is asked for. What goes wrong is logged, and tried again.
    pub async fn keep_swept(&self, interval: Duration, stop: Stop) {
        loop {
            if let Err(error) = self.sweep().await {
                tracing::warn!(%error, next = error.next(), "the ledger was not swept");
            }
            tokio::select! {
                () = tokio::time::sleep(interval) => {}
                () = stop.requested() => return,
            }
        }
    }
}
