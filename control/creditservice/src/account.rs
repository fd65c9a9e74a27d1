//! An account: four sums that only transfers change.

use serde::{Deserialize, Serialize};

use crate::id::{AccountId, Name};

/// The most that a sum may be. Half of what the type holds, so that the difference of two sums always
/// has a sign.
pub(crate) const SUM_MAX: u128 = i128::MAX as u128;

/// What an account is opened with, and keeps for ever.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewAccount {
    /// Names it.
    pub id: AccountId,
    /// The tenant that it belongs to.
    pub owner: Name,
    /// What it counts; transfers stay within one unit.
    pub unit: Name,
    /// Whether debits, posted and pending, may be no more than the credits that are posted.
    pub debits_must_not_exceed_credits: bool,
}

/// An account as it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// Names it.
    pub id: AccountId,
    /// The tenant that it belongs to.
    pub owner: Name,
    /// What it counts.
    pub unit: Name,
    /// Whether debits, posted and pending, may be no more than the credits that are posted.
    pub debits_must_not_exceed_credits: bool,
    /// A closed account takes no transfer any more.
    pub closed: bool,
    /// Debits that are held and neither posted nor void.
    pub debits_pending: u128,
    /// Debits that are final. Only grows.
    pub debits_posted: u128,
    /// Credits that are held and neither posted nor void.
    pub credits_pending: u128,
    /// Credits that are final. Only grows.
    pub credits_posted: u128,
    /// Transfers that named it so far; each has a place in this order.
    pub transfers_count: u64,
    /// When it was opened, in milliseconds since 1970.
    pub opened_ms: u64,
}

impl Account {
    pub(crate) fn new(new: &NewAccount, now_ms: u64) -> Account {
        Account {
            id: new.id,
            owner: new.owner.clone(),
            unit: new.unit.clone(),
            debits_must_not_exceed_credits: new.debits_must_not_exceed_credits,
            closed: false,
            debits_pending: 0,
            debits_posted: 0,
            credits_pending: 0,
            credits_posted: 0,
            transfers_count: 0,
            opened_ms: now_ms,
        }
    }

    pub(crate) fn is_what(&self, new: &NewAccount) -> bool {
        self.id == new.id
            && self.owner == new.owner
            && self.unit == new.unit
            && self.debits_must_not_exceed_credits == new.debits_must_not_exceed_credits
    }

    /// Posted credits less posted debits.
    pub fn balance(&self) -> i128 {
        // Neither sum is more than `SUM_MAX`, so neither changes its sign here.
        self.credits_posted as i128 - self.debits_posted as i128
    }

    /// What may still be debited where debits must not exceed credits; nothing where they do, as after a
    /// limit was lowered below its use.
    pub fn free(&self) -> u128 {
        self.credits_posted
            .saturating_sub(self.debits_posted)
            .saturating_sub(self.debits_pending)
    }
}
