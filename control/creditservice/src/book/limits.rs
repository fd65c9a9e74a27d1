//! Limits: what a quota's account and its used account hold together.

use super::{Book, Draft};
use crate::account::Account;
use crate::id::AccountId;
use crate::refusal::Refusal;
use crate::transfer::{Entry, Kind, NewLimit};

/// What two accounts hold together.
pub(crate) fn together(account: &Account, used: &Account) -> Option<i128> {
    account.balance().checked_add(used.balance())
}

impl Book {
    /// The transfer that takes a limit from what it is to what it shall be: of nothing, where it is that.
    pub(super) fn limit(&self, new: &NewLimit) -> Result<Draft, Refusal> {
        let account = self.known(new.account)?;
        let used = self.known(new.used)?;
        if new.used == new.account || new.used == new.source {
            return Err(Refusal::SameAccount(new.used));
        }
        if used.unit != account.unit {
            return Err(Refusal::OtherUnit {
                debit: (account.id, account.unit.clone()),
                credit: (used.id, used.unit.clone()),
            });
        }
        let missing = if self.transfers.contains_key(&new.id) {
            // It was set before; what is missing now is another's doing.
            Some(0)
        } else {
            together(account, used).and_then(|now| i128::from(new.limit).checked_sub(now))
        };
        let missing = missing.ok_or(Refusal::Overflow(new.account))?;
        let amount = u64::try_from(missing.unsigned_abs());
        let amount = amount.map_err(|_| Refusal::Overflow(new.account))?;
        let (debit, credit): (AccountId, AccountId) = if missing < 0 {
            (new.account, new.source)
        } else {
            (new.source, new.account)
        };
        let entry = Entry {
            id: new.id,
            debit,
            credit,
            amount,
            code: new.code,
        };
        Ok(Draft {
            kind: Kind::Limit { limit: new.limit },
            entry,
        })
    }
}
