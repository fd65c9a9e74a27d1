//! Transfers, and the operations that make them.
//!
//! What a transfer says never changes. How far it has come is its [`State`], which only moves on: a
//! reservation is pending until it is posted, void or expired, once.

use std::num::NonZeroU64;

use serde::{Deserialize, Serialize};

use crate::account::NewAccount;
use crate::id::{AccountId, TransferId};

/// The longest that a reservation may hold, in milliseconds: a day. What was reserved while a clock was
/// wrong is held no longer than that after the wrong time.
pub const TIMEOUT_MS_MAX: u64 = 24 * 60 * 60 * 1000;

/// The most operations that are one: with all their keys they fit into one transaction of the store.
pub const CHAIN_OPS_MAX: usize = 12;

/// What moves, and between whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Names the transfer.
    pub id: TransferId,
    /// The account that gives.
    pub debit: AccountId,
    /// The account that gets.
    pub credit: AccountId,
    /// How much; not zero.
    pub amount: u64,
    /// What it is for, in the caller's numbers.
    pub code: u16,
}

/// Sets what `account` and `used` hold together, by a transfer of the difference between `source` and
/// `account`. It may take `account` below zero: a limit can be lowered below its use, and nothing is
/// reserved of it then until the use has fallen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewLimit {
    /// Names the transfer.
    pub id: TransferId,
    /// Where credit comes from and goes to.
    pub source: AccountId,
    /// The account whose credit is the limit.
    pub account: AccountId,
    /// The account that has what was used of it.
    pub used: AccountId,
    /// The new limit.
    pub limit: u64,
    /// What it is for, in the caller's numbers.
    pub code: u16,
}

/// One thing to do. Each is safe to ask for again: an id that is known with the same content is a
/// success, with another content a conflict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Opens an account.
    Open(NewAccount),
    /// Closes an account for ever. It must have nothing pending, and equal debits and credits.
    Close(AccountId),
    /// Moves an amount at once.
    Move(Entry),
    /// Holds an amount until it is posted or void, or the timeout is over.
    Reserve {
        /// What is held, and between whom.
        entry: Entry,
        /// How long it may stay pending; at most [`TIMEOUT_MS_MAX`].
        timeout_ms: NonZeroU64,
    },
    /// Makes a reservation final. What is not posted of it is free again.
    Post {
        /// Names the transfer.
        id: TransferId,
        /// The reservation.
        pending: TransferId,
        /// How much of it; all when nothing is said.
        amount: Option<u64>,
    },
    /// Ends a reservation: all of it is free again.
    Void {
        /// Names the transfer.
        id: TransferId,
        /// The reservation.
        pending: TransferId,
    },
    /// Moves back, in whole or in part, what a transfer had moved for good.
    Return {
        /// Names the transfer.
        id: TransferId,
        /// The transfer that moved it: a move, or a reservation that was posted.
        original: TransferId,
        /// How much; not zero, and with earlier returns no more than was posted.
        amount: u64,
    },
    /// Sets a limit.
    Limit(NewLimit),
    /// Ends a reservation whose time is over; changes nothing where it has ended already.
    Expire(TransferId),
}

/// What kind of a transfer it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Moved at once.
    Move,
    /// Held until something ends it.
    Reserve {
        /// How long it may stay pending.
        timeout_ms: NonZeroU64,
    },
    /// Made a reservation final.
    Post {
        /// The reservation.
        pending: TransferId,
    },
    /// Ended a reservation.
    Void {
        /// The reservation.
        pending: TransferId,
    },
    /// Moved back what another had moved.
    Return {
        /// The other.
        original: TransferId,
    },
    /// Set a limit; its amount is the difference, and may be zero.
    Limit {
        /// The new limit.
        limit: u64,
    },
}

/// How far a transfer has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// A reservation that holds its amount.
    Pending {
        /// When its time is over, in milliseconds since 1970.
        expires_ms: u64,
    },
    /// A move, or a reservation that was made final.
    Posted {
        /// The transfer that posted it; a move's own id.
        by: TransferId,
        /// How much is final.
        amount: u64,
        /// How much of that was given back since.
        returned: u64,
    },
    /// A reservation that was ended.
    Void {
        /// The transfer that ended it.
        by: TransferId,
    },
    /// A reservation that ran out of time.
    Expired {
        /// When that was noticed, in milliseconds since 1970.
        at_ms: u64,
    },
    /// A transfer that nothing can follow: what posts, ends or gives back another, or sets a limit.
    Final,
}

/// A transfer as it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transfer {
    /// Names it.
    pub id: TransferId,
    /// What kind it is.
    pub kind: Kind,
    /// The account that gives.
    pub debit: AccountId,
    /// The account that gets.
    pub credit: AccountId,
    /// How much.
    pub amount: u64,
    /// What it is for, in the caller's numbers.
    pub code: u16,
    /// When it was made, in milliseconds since 1970, by the clock of the process that made it.
    pub made_ms: u64,
    /// Its place among the transfers of the account that gives, from 1.
    pub debit_seq: u64,
    /// Its place among the transfers of the account that gets, from 1.
    pub credit_seq: u64,
    /// How far it has come.
    pub state: State,
}

impl Transfer {
    /// What it holds: all of a pending reservation, and nothing else.
    pub fn held(&self) -> u64 {
        match self.state {
            State::Pending { .. } => self.amount,
            _ => 0,
        }
    }

    /// What it has moved for good and was not given back.
    pub fn kept(&self) -> u64 {
        match self.state {
            State::Posted {
                amount, returned, ..
            } => amount - returned,
            _ => 0,
        }
    }
}

/// What became of an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// It had been done before, and nothing changed.
    pub repeated: bool,
    /// The transfer as it stands, where it is one; of an [`Operation::Expire`] the reservation.
    pub transfer: Option<Transfer>,
}
