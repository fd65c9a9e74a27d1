//! Quotas, in the terms of the ledger: which accounts a quota has, and which operations its verbs are.
//!
//! A tenant's quota of a unit is two accounts. The credit of the first is what is left of the limit, the
//! second has what is used; a reservation is a pending transfer from the first to the second. Limits come
//! from a third account, one a unit, whose debits are what was granted to all tenants.

use std::num::NonZeroU64;

use crate::account::{Account, NewAccount};
use crate::book::{Book, together};
use crate::id::{AccountId, Name, TransferId};
use crate::transfer::{Entry, NewLimit, Operation};

/// The code of what a tenant reserves, uses and gives back.
pub const CODE_USE: u16 = 1;
/// The code of what sets a limit.
pub const CODE_LIMIT: u16 = 2;

/// A tenant's quota of a unit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Quota {
    /// Whose. Accounts stay for ever, so this is a name that is never given to another tenant.
    pub tenant: Name,
    /// Of what, as `vcpu`, `bytes` or `images`.
    pub unit: Name,
}

/// How a quota stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// How much there may be at most.
    pub limit: u128,
    /// How much is in use.
    pub used: u128,
    /// How much is held by reservations that are pending.
    pub reserved: u128,
    /// How much can be reserved now; nothing while the limit is below the use.
    pub free: u128,
}

impl Standing {
    pub(crate) fn of(account: &Account, used: &Account) -> Standing {
        let positive = |sum: i128| u128::try_from(sum).unwrap_or(0);
        Standing {
            limit: positive(together(account, used).unwrap_or(i128::MAX)),
            used: positive(used.balance()),
            reserved: account.debits_pending,
            free: account.free(),
        }
    }
}

impl Quota {
    /// The account whose credit is what is left.
    pub fn account(&self) -> AccountId {
        AccountId::derive([b"quota", self.tenant.as_ref(), self.unit.as_ref()])
    }

    /// The account that has what is used.
    pub fn used(&self) -> AccountId {
        AccountId::derive([b"used", self.tenant.as_ref(), self.unit.as_ref()])
    }

    /// The account that limits of this unit come from.
    pub fn source(&self) -> AccountId {
        AccountId::derive([b"source", self.unit.as_ref()])
    }

    /// Sets the limit, and opens the quota where there is none yet. A limit below what is used or reserved
    /// is taken: nothing that is there ends, reservations may still be committed, and nothing more is
    /// reserved until there is room again.
    pub fn set_limit(&self, id: TransferId, limit: u64) -> Vec<Operation> {
        let limit = NewLimit {
            id,
            source: self.source(),
            account: self.account(),
            used: self.used(),
            limit,
            code: CODE_LIMIT,
        };
        let operator: Name = "operator".parse().expect("a plain word is a name");
        vec![
            self.open(self.source(), &operator, false),
            self.open(self.account(), &self.tenant, true),
            self.open(self.used(), &self.tenant, true),
            Operation::Limit(limit),
        ]
    }

    /// Takes the limit away and closes the quota for ever. Nothing may be used or reserved.
    pub fn close(&self, id: TransferId) -> Vec<Operation> {
        let mut chain = self.set_limit(id, 0);
        chain.push(Operation::Close(self.used()));
        chain.push(Operation::Close(self.account()));
        chain
    }

    /// Holds so much for so long.
    pub fn reserve(&self, id: TransferId, amount: u64, timeout_ms: NonZeroU64) -> Operation {
        let entry = Entry {
            id,
            debit: self.account(),
            credit: self.used(),
            amount,
            code: CODE_USE,
        };
        Operation::Reserve { entry, timeout_ms }
    }

    /// How it stands in a book; nothing where it was never opened.
    pub fn standing(&self, book: &Book) -> Option<Standing> {
        let account = book.account(self.account())?;
        let used = book.account(self.used())?;
        Some(Standing::of(account, used))
    }

    fn open(&self, id: AccountId, owner: &Name, limited: bool) -> Operation {
        Operation::Open(NewAccount {
            id,
            owner: owner.clone(),
            unit: self.unit.clone(),
            debits_must_not_exceed_credits: limited,
        })
    }
}

/// Makes all of a reservation final. Its id follows from the reservation's, so that a try again is the same
/// transfer.
pub fn commit(reservation: TransferId) -> Operation {
    Operation::Post {
        id: TransferId::derive([&reservation.to_bytes()[..], b"commit"]),
        pending: reservation,
        amount: None,
    }
}

/// Ends a reservation. Its id follows from the reservation's.
pub fn release(reservation: TransferId) -> Operation {
    Operation::Void {
        id: TransferId::derive([&reservation.to_bytes()[..], b"release"]),
        pending: reservation,
    }
}

/// Gives back so much of what a committed reservation has taken.
pub fn give_back(id: TransferId, reservation: TransferId, amount: u64) -> Operation {
    Operation::Return {
        id,
        original: reservation,
        amount,
    }
}
