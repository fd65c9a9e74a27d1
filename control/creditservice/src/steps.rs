//! Quotas as steps of operations: reserve, commit, release and give back, each once, however often it is
//! tried.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use control_kit::clock::millis;
use control_kit::saga::{Record, StepContext, StepError};

use crate::error::{Error, ErrorKind};
use crate::id::TransferId;
use crate::ledger::{Ledger, Want};
use crate::quota::Quota;
use crate::reconcile::InUse;
use crate::refusal::Refusal;
use crate::transfer::State;

/// How long a reservation is held past the deadline of its operation: what ends late still commits.
const MARGIN: Duration = Duration::from_mins(30);

/// What an operation takes, or took, of quotas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    by: String,
    amounts: Vec<(Quota, u64)>,
}

impl Taken {
    /// Taken by the operation of this id: the one that makes an object, also where another deletes it.
    pub fn by(operation: impl Into<String>) -> Taken {
        Taken {
            by: operation.into(),
            amounts: Vec::new(),
        }
    }

    /// And so much of this tenant's quota of a unit.
    ///
    /// # Errors
    /// Fatal, when one of them is no name.
    pub fn of(mut self, tenant: &str, unit: &str, amount: u64) -> Result<Taken, StepError> {
        let name = |text: &str| {
            let named = text.parse();
            named.map_err(|error| StepError::Fatal(format!("a quota's name is refused: {error}")))
        };
        let quota = Quota {
            tenant: name(tenant)?,
            unit: name(unit)?,
        };
        self.amounts.push((quota, amount));
        Ok(self)
    }

    /// What the ledger should say of an object that is there, to reconcile with.
    pub fn in_use(&self) -> Vec<InUse> {
        let wants = self.wants().into_iter();
        wants
            .map(|want| InUse {
                quota: want.quota,
                reservation: want.reservation,
                amount: want.amount,
            })
            .collect()
    }

    fn reservations(&self) -> Vec<TransferId> {
        let number = |at: usize| TransferId::derive([self.by.as_str(), "quota", &at.to_string()]);
        (0..self.amounts.len()).map(number).collect()
    }

    fn wants(&self) -> Vec<Want> {
        let reservations = self.reservations().into_iter();
        let wants = reservations.zip(&self.amounts);
        wants
            .map(|(reservation, (quota, amount))| Want {
                quota: quota.clone(),
                reservation,
                amount: *amount,
            })
            .collect()
    }
}

/// The steps. `F` says what an operation takes.
pub struct QuotaSteps<F> {
    ledger: Ledger,
    taken: F,
}

fn step_error(error: &Error) -> StepError {
    let what = format!("{error}; next: {}", error.next());
    match error.kind() {
        ErrorKind::Refused | ErrorKind::Damaged => StepError::Fatal(what),
        _ => StepError::Retry(what),
    }
}

impl<F: Fn(&Record) -> Result<Taken, StepError>> QuotaSteps<F> {
    /// On a ledger.
    pub fn new(ledger: Ledger, taken: F) -> QuotaSteps<F> {
        QuotaSteps { ledger, taken }
    }

    /// Reserves, until some time after the operation's deadline. Undone by [`QuotaSteps::release`].
    ///
    /// # Errors
    /// Fatal, when a quota does not allow it.
    pub async fn reserve(self: Arc<Self>, step: StepContext) -> Result<(), StepError> {
        let record = step.record();
        let wants = (self.taken)(record)?.wants();
        let whole = record
            .deadline_unix_ms
            .saturating_sub(record.started_unix_ms);
        let timeout = NonZeroU64::new(whole + millis(MARGIN)).unwrap_or(NonZeroU64::MIN);
        let reserved = self.ledger.reserve(&wants, timeout).await;
        reserved.map_err(|error| step_error(&error))
    }

    /// Makes what was reserved final: the object is there.
    ///
    /// # Errors
    /// Fatal, when the reservation has ended meanwhile.
    pub async fn commit(self: Arc<Self>, step: StepContext) -> Result<(), StepError> {
        let reservations = (self.taken)(step.record())?.reservations();
        let committed = self.ledger.commit(&reservations).await;
        committed.map_err(|error| step_error(&error))
    }

    /// Undoes [`QuotaSteps::reserve`], and a commit that happened all the same.
    ///
    /// # Errors
    /// When the ledger does not answer.
    pub async fn release(self: Arc<Self>, step: StepContext) -> Result<(), StepError> {
        let taken = (self.taken)(step.record())?;
        for (reservation, want) in taken.reservations().into_iter().zip(taken.wants()) {
            let Err(error) = self.ledger.release(&[reservation]).await else {
                continue;
            };
            match error.reason() {
                // It was never reserved.
                Some(Refusal::UnknownTransfer(_)) => {}
                Some(Refusal::Ended {
                    state: State::Posted { .. },
                    ..
                }) => self.return_one(reservation, want.amount).await?,
                _ => return Err(step_error(&error)),
            }
        }
        Ok(())
    }

    /// Gives back what the operation that made the object has taken: the object is gone.
    ///
    /// # Errors
    /// When the ledger does not answer.
    pub async fn give_back(self: Arc<Self>, step: StepContext) -> Result<(), StepError> {
        let taken = (self.taken)(step.record())?;
        for want in taken.wants() {
            self.return_one(want.reservation, want.amount).await?;
        }
        Ok(())
    }

    async fn return_one(&self, reservation: TransferId, amount: u64) -> Result<(), StepError> {
        let id = TransferId::derive([reservation.to_bytes().as_slice(), b"back"]);
        let returned = self.ledger.give_back(id, reservation, amount).await;
        returned.map_err(|error| step_error(&error))
    }
}
