//! The ledger as a service uses it: calls that go into batches, and what a quota's verbs are.

use std::num::NonZeroU64;
use std::time::Duration;

use control_kit::clock::Clock;
use control_kit::store::{Condition, Range, SharedStore, Write};
use futures_util::future::join_all;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::error::{Error, ErrorKind};
use crate::explain::{Explanation, HOLDS_MAX};
use crate::id::TransferId;
use crate::keys::{FORMAT, Keys};
use crate::metrics::Metrics;
use crate::quota::{self, Quota};
use crate::reads::hold;
use crate::records::{Committed, Records, not_written};
use crate::refusal::{Refusal, Refused, Shortage};
use crate::transfer::{CHAIN_OPS_MAX, Done, Operation, State};
use crate::worker::{Call, Worker};

/// Calls that may wait; more are refused.
const QUEUE_CALLS_MAX: usize = 4096;
/// How long is waited where the store did not answer.
pub(crate) const RETRY_AFTER: Duration = Duration::from_millis(50);
/// How many reservations of one account are looked at together.
const HELD_PAGE: usize = 64;

/// How a ledger is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// Below which key of the store it is.
    pub prefix: String,
    /// What it takes for the time.
    pub clock: Clock,
    /// How long a call is tried while the store does not answer or others are faster.
    pub patience: Duration,
    /// Where it counts.
    pub metrics: Metrics,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            prefix: "ledger".to_owned(),
            clock: Clock::System,
            patience: Duration::from_secs(10),
            metrics: Metrics::default(),
        }
    }
}

/// A ledger that is kept in a store. Clones are the same one; several processes may have the same ledger
/// open.
///
/// A call that is dropped before its answer may have been done, as one whose answer was lost; the same
/// call with the same ids tells.
#[derive(Clone)]
pub struct Ledger {
    pub(crate) records: Records,
    pub(crate) clock: Clock,
    pub(crate) metrics: Metrics,
    patience: Duration,
    queue: mpsc::Sender<Call>,
}

/// What is wanted of a quota.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Want {
    /// Of which.
    pub quota: Quota,
    /// The id of its reservation.
    pub reservation: TransferId,
    /// How much.
    pub amount: u64,
}

impl Ledger {
    /// Opens the ledger of a store, and makes an empty one where there is none. Its task ends with the last
    /// clone.
    ///
    /// # Errors
    /// When the store does not answer, or has something else there.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub async fn open(store: SharedStore, options: Options) -> Result<Ledger, Error> {
        let keys = Keys::below(&options.prefix);
        let records = Records { store, keys };
        found(&records, options.patience).await?;
        let (queue, calls) = mpsc::channel(QUEUE_CALLS_MAX);
        let worker = Worker::new(
            records.clone(),
            options.clock,
            options.metrics.clone(),
            options.patience,
            calls,
        );
        tokio::spawn(worker.run());
        Ok(Ledger {
            records,
            clock: options.clock,
            metrics: options.metrics,
            patience: options.patience,
            queue,
        })
    }

    /// Does all operations of a chain, or none.
    ///
    /// Before a reservation is refused for want of room, those whose time is over are ended.
    ///
    /// # Errors
    /// What was refused and why, or why it could not be done.
    pub async fn submit(&self, chain: Vec<Operation>) -> Result<Vec<Done>, Error> {
        let started = Instant::now();
        let result = loop {
            let error = match self.call(chain.clone()).await {
                Ok(done) => break Ok(done),
                Err(error) => error,
            };
            let Some(Refusal::Exceeds(shortage)) = error.reason() else {
                break Err(error);
            };
            let (explanation, due) = self.explain(shortage).await?;
            if due.is_empty() || started.elapsed() > self.patience {
                break Err(error.explained(explanation));
            }
            self.expire(due).await?;
        };
        self.metrics.calls.record(started.elapsed());
        result
    }

    /// Sets a quota's limit, and opens it where there is none: see [`Quota::set_limit`].
    ///
    /// # Errors
    /// As [`Ledger::submit`].
    pub async fn set_limit(&self, id: TransferId, quota: &Quota, limit: u64) -> Result<(), Error> {
        self.submit(quota.set_limit(id, limit)).await.map(drop)
    }

    /// Reserves all that is wanted, or nothing. It is held until it is committed or released, or the timeout
    /// is over.
    ///
    /// # Errors
    /// As [`Ledger::submit`]; also where these reservations were made before and have ended since.
    pub async fn reserve(&self, wants: &[Want], timeout_ms: NonZeroU64) -> Result<(), Error> {
        let one = |want: &Want| {
            want.quota
                .reserve(want.reservation, want.amount, timeout_ms)
        };
        let done = self.submit(wants.iter().map(one).collect()).await?;
        let ended = |done: &Done| match done.transfer.as_ref()?.state {
            State::Pending { .. } | State::Posted { .. } => None,
            state => Some((done.transfer.as_ref()?.id, state)),
        };
        for (at, done) in done.iter().enumerate() {
            if let Some((pending, state)) = ended(done) {
                let refusal = Refusal::Ended { pending, state };
                return Err(Refused { at, refusal }.into());
            }
        }
        Ok(())
    }

    /// Makes reservations final, all or none.
    ///
    /// # Errors
    /// As [`Ledger::submit`].
    pub async fn commit(&self, reservations: &[TransferId]) -> Result<(), Error> {
        let chain = reservations.iter().copied().map(quota::commit);
        self.submit(chain.collect()).await.map(drop)
    }

    /// Ends reservations, each by itself. That one has ended without being committed is as good.
    ///
    /// # Errors
    /// As [`Ledger::submit`], for the first of them that failed; the others were tried.
    pub async fn release(&self, reservations: &[TransferId]) -> Result<(), Error> {
        let one = |id: &TransferId| self.submit(vec![quota::release(*id)]);
        for result in join_all(reservations.iter().map(one)).await {
            let Err(error) = result else { continue };
            match error.reason() {
                Some(
                    Refusal::Expired { .. }
                    | Refusal::Ended {
                        state: State::Void { .. },
                        ..
                    },
                ) => {}
                _ => return Err(error),
            }
        }
        Ok(())
    }

    /// Gives back so much of what a committed reservation has taken.
    ///
    /// # Errors
    /// As [`Ledger::submit`].
    pub async fn give_back(
        &self,
        id: TransferId,
        reservation: TransferId,
        amount: u64,
    ) -> Result<(), Error> {
        let chain = vec![quota::give_back(id, reservation, amount)];
        self.submit(chain).await.map(drop)
    }

    async fn call(&self, chain: Vec<Operation>) -> Result<Vec<Done>, Error> {
        if chain.is_empty() || chain.len() > CHAIN_OPS_MAX {
            let refusal = Refusal::ChainLength(chain.len());
            return Err(Refused { at: 0, refusal }.into());
        }
        let (answer, answered) = oneshot::channel();
        let call = Call { chain, answer };
        let ended = "the ledger's task has ended";
        self.queue.try_send(call).map_err(|error| match error {
            TrySendError::Full(_) => {
                let what = format!("{QUEUE_CALLS_MAX} calls wait for the ledger already");
                Error::new(ErrorKind::Busy, what)
            }
            TrySendError::Closed(_) => Error::new(ErrorKind::Unavailable, ended),
        })?;
        answered
            .await
            .unwrap_or_else(|_| Err(Error::new(ErrorKind::Unknown, ended)))
    }

    /// Ends reservations whose time is over; how many this was the one to end.
    pub(crate) async fn expire(&self, due: Vec<TransferId>) -> Result<usize, Error> {
        let calls = due
            .into_iter()
            .map(|id| self.call(vec![Operation::Expire(id)]));
        let (mut expired, mut first) = (0, None);
        for result in join_all(calls).await {
            match result {
                Ok(done) => expired += usize::from(done.iter().any(|one| !one.repeated)),
                // By the clock of now its time is not over.
                Err(error) if matches!(error.reason(), Some(Refusal::NotDue { .. })) => {}
                Err(error) => first = first.or(Some(error)),
            }
        }
        self.metrics.expired.add(expired as u64);
        first.map_or(Ok(expired), Err)
    }

    /// What stands behind a shortage, and the reservations of the account whose time is over.
    async fn explain(&self, shortage: &Shortage) -> Result<(Explanation, Vec<TransferId>), Error> {
        let now_ms = self.clock.unix_ms();
        let held = Range {
            limit: HELD_PAGE,
            ..self.records.keys.held_of(shortage.debit)
        };
        let page = self.records.page(held).await?;
        let (mut holds, mut due) = (Vec::new(), Vec::new());
        for entry in page.entries {
            let hold = hold(&entry.key, &entry.value)?;
            if hold.expires_ms <= now_ms {
                due.push(hold.reservation);
            }
            holds.push(hold);
        }
        let more = page.more || holds.len() > HOLDS_MAX;
        holds.truncate(HOLDS_MAX);
        let explanation = Explanation {
            shortage: shortage.clone(),
            holds,
            more,
            now_ms,
        };
        Ok((explanation, due))
    }
}

/// Sees to it that there is a ledger.
async fn found(records: &Records, patience: Duration) -> Result<(), Error> {
    let started = Instant::now();
    let (format, importing) = (records.keys.format(), records.keys.importing());
    let both = vec![format.clone(), importing.clone()];
    loop {
        let conditions = both.iter().cloned().map(Condition::Absent).collect();
        let writes = vec![Write::put(format.clone(), FORMAT)];
        let committed = records.commit(conditions, writes, both.clone()).await;
        let found = match committed.map_err(not_written) {
            Ok(Committed::At(_)) => return Ok(()),
            Ok(Committed::Not(found)) => found,
            // Whether it was written is seen when it is tried again.
            Err(error) if error.lasts() || started.elapsed() > patience => return Err(error),
            Err(_) => {
                tokio::time::sleep(RETRY_AFTER).await;
                continue;
            }
        };
        return match found.get(&format) {
            Some(entry) if entry.value == FORMAT => Ok(()),
            Some(_) => {
                let what = format!("{format} does not say {FORMAT}");
                Err(Error::new(ErrorKind::Damaged, what))
            }
            None => {
                let what = format!("{importing} says that an import has not ended: run it again");
                Err(Error::new(ErrorKind::Damaged, what))
            }
        };
    }
}
