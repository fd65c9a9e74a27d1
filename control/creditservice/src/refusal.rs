//! Why an operation was refused: what, of which object, and what to do next.
//!
//! A refusal changes nothing, so that the same id may be tried again.

use std::fmt;

use crate::id::{AccountId, Name, TransferId};
use crate::transfer::{CHAIN_OPS_MAX, State, TIMEOUT_MS_MAX};

/// A chain was refused, and with it all of its operations.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{refusal}")]
pub struct Refused {
    /// The place in the chain of the operation that was refused, from 0.
    pub at: usize,
    /// Why.
    pub refusal: Refusal,
}

/// Why an operation was refused.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The debit account has not that much left.
    Exceeds(Box<Shortage>),
    /// The id names a transfer that says something else.
    OtherTransfer(TransferId),
    /// The id names an account that is something else.
    OtherAccount(AccountId),
    /// No account has this id.
    UnknownAccount(AccountId),
    /// No transfer has this id.
    UnknownTransfer(TransferId),
    /// An amount of zero.
    ZeroAmount(TransferId),
    /// Debit and credit are one account.
    SameAccount(AccountId),
    /// The accounts count different things.
    OtherUnit {
        /// One of them.
        debit: (AccountId, Name),
        /// The other.
        credit: (AccountId, Name),
    },
    /// The account takes no transfer any more.
    Closed(AccountId),
    /// The account cannot be closed yet.
    Unsettled {
        /// Which.
        account: AccountId,
        /// Credits less debits.
        balance: i128,
        /// Debits and credits that are pending.
        pending: u128,
    },
    /// It was no reservation.
    NotReserved(TransferId),
    /// The reservation's time is over.
    Expired {
        /// Which.
        pending: TransferId,
        /// When it was over, in milliseconds since 1970.
        expired_ms: u64,
    },
    /// The reservation has ended otherwise.
    Ended {
        /// Which.
        pending: TransferId,
        /// How it ended.
        state: State,
    },
    /// The reservation's time is not over.
    NotDue {
        /// Which.
        pending: TransferId,
        /// When it will be, in milliseconds since 1970.
        expires_ms: u64,
    },
    /// More is to be posted than was reserved.
    MoreThanReserved {
        /// The reservation.
        pending: TransferId,
        /// What it holds.
        reserved: u64,
        /// What was asked.
        asked: u64,
    },
    /// The transfer has posted nothing that could be given back.
    NotPosted {
        /// Which.
        original: TransferId,
        /// How far it has come.
        state: State,
    },
    /// More is to be given back than is left.
    MoreThanKept {
        /// The transfer.
        original: TransferId,
        /// What is left of it.
        kept: u64,
        /// What was asked.
        asked: u64,
    },
    /// A sum would be larger than an account can hold.
    Overflow(AccountId),
    /// A reservation may not hold that long.
    Timeout {
        /// Which.
        id: TransferId,
        /// What was asked, in milliseconds.
        timeout_ms: u64,
    },
    /// A chain has none, or too many, operations.
    ChainLength(usize),
    /// An account holds less than its reservations: what was read is not what was written.
    Damaged(AccountId),
}

/// What is missing, in the words of a quota. For accounts that are none's quota: what the debit account
/// and the credit account hold together is the limit, and what the credit account holds is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shortage {
    /// Whose it is.
    pub owner: Name,
    /// What it counts.
    pub unit: Name,
    /// The account that has not enough.
    pub debit: AccountId,
    /// The account that was to get it.
    pub credit: AccountId,
    /// How much there may be at most.
    pub limit: u128,
    /// How much is in use.
    pub used: u128,
    /// How much is held by reservations that are pending.
    pub reserved: u128,
    /// How much was asked for.
    pub asked: u64,
}

impl Shortage {
    /// What could be had now.
    pub fn free(&self) -> u128 {
        self.limit
            .saturating_sub(self.used)
            .saturating_sub(self.reserved)
    }
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shortage {
            owner,
            unit,
            limit,
            used,
            reserved,
            asked,
            ..
        } = self;
        let free = self.free();
        write!(
            f,
            "{asked} {unit} of {owner} refused: limit {limit}, used {used}, reserved {reserved}, \
             free {free}"
        )
    }
}

impl Refusal {
    /// For programs; stays for ever.
    pub fn code(&self) -> &'static str {
        match self {
            Refusal::Exceeds(_) => "limit-exceeded",
            Refusal::OtherTransfer(_) => "transfer-id-taken",
            Refusal::OtherAccount(_) => "account-id-taken",
            Refusal::UnknownAccount(_) => "account-unknown",
            Refusal::UnknownTransfer(_) => "transfer-unknown",
            Refusal::ZeroAmount(_) => "amount-zero",
            Refusal::SameAccount(_) => "accounts-same",
            Refusal::OtherUnit { .. } => "units-differ",
            Refusal::Closed(_) => "account-closed",
            Refusal::Unsettled { .. } => "account-unsettled",
            Refusal::NotReserved(_) => "not-a-reservation",
            Refusal::Expired { .. } => "reservation-expired",
            Refusal::Ended { .. } => "reservation-ended",
            Refusal::NotDue { .. } => "reservation-not-due",
            Refusal::MoreThanReserved { .. } => "more-than-reserved",
            Refusal::NotPosted { .. } => "not-posted",
            Refusal::MoreThanKept { .. } => "more-than-kept",
            Refusal::Overflow(_) => "sum-overflow",
            Refusal::Timeout { .. } => "timeout-too-long",
            Refusal::ChainLength(_) => "chain-length",
            Refusal::Damaged(_) => "ledger-damaged",
        }
    }

    /// What to do about it.
    pub fn next(&self) -> &'static str {
        match self {
            Refusal::Exceeds(_) => {
                "ask for less, give back or release what is not needed, wait for reservations to end, \
                 or have the limit raised"
            }
            Refusal::OtherTransfer(_) | Refusal::OtherAccount(_) => {
                "use an id of its own for each thing, and the same content when trying again"
            }
            Refusal::UnknownAccount(_) => {
                "open the account first, by setting the limit of its quota"
            }
            Refusal::UnknownTransfer(_) => "check the id, and that what it names was done",
            Refusal::ZeroAmount(_) => "leave out what needs nothing",
            Refusal::SameAccount(_) => "name two accounts",
            Refusal::OtherUnit { .. } => "name two accounts of one unit",
            Refusal::Closed(_) => "use another account: a closed one stays closed",
            Refusal::Unsettled { .. } => {
                "give back what is used, end what is reserved and set the limit to 0 before closing"
            }
            Refusal::NotReserved(_) => "name the reservation itself",
            Refusal::Expired { .. } => "reserve again, with a new id",
            Refusal::Ended { .. } => {
                "reserve again, with a new id; what was posted ends by giving it back"
            }
            Refusal::NotDue { .. } => "void it to end it earlier",
            Refusal::MoreThanReserved { .. } => "reserve the rest with an id of its own",
            Refusal::NotPosted { .. } => "give back moves and posted reservations only",
            Refusal::MoreThanKept { .. } => "give back no more than is left",
            Refusal::Overflow(_) => "use a smaller amount, or a coarser unit",
            Refusal::Timeout { .. } => "reserve for a day at most, and again when that is over",
            Refusal::ChainLength(_) => "send between 1 and 12 operations at once",
            Refusal::Damaged(_) => {
                "stop what writes to the ledger, export it to see what does not add up, and restore it \
                 from an export or a backup"
            }
        }
    }
}

const _: () = assert!(CHAIN_OPS_MAX == 12, "the advice for ChainLength names it");

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Exceeds(shortage) => write!(f, "{shortage}"),
            Refusal::OtherTransfer(id) => write!(f, "transfer {id} exists and says something else"),
            Refusal::OtherAccount(id) => write!(f, "account {id} exists and is something else"),
            Refusal::UnknownAccount(id) => write!(f, "there is no account {id}"),
            Refusal::UnknownTransfer(id) => write!(f, "there is no transfer {id}"),
            Refusal::ZeroAmount(id) => write!(f, "transfer {id} has an amount of zero"),
            Refusal::SameAccount(id) => write!(f, "account {id} is on both sides of a transfer"),
            Refusal::OtherUnit { debit, credit } => write!(
                f,
                "account {} counts {}, and account {} counts {}",
                debit.0, debit.1, credit.0, credit.1
            ),
            Refusal::Closed(id) => write!(f, "account {id} is closed"),
            Refusal::Unsettled {
                account,
                balance,
                pending,
            } => write!(
                f,
                "account {account} cannot be closed: its balance is {balance}, and {pending} is pending"
            ),
            Refusal::NotReserved(id) => write!(f, "transfer {id} is no reservation"),
            Refusal::Expired {
                pending,
                expired_ms,
            } => write!(f, "reservation {pending} expired at {expired_ms} ms"),
            Refusal::Ended { pending, state } => {
                write!(f, "reservation {pending} has ended: {state}")
            }
            Refusal::NotDue { pending: id, .. } => {
                write!(f, "the time of reservation {id} is not over")
            }
            Refusal::MoreThanReserved {
                pending,
                reserved,
                asked,
            } => write!(
                f,
                "reservation {pending} holds {reserved}, and {asked} cannot be posted of it"
            ),
            Refusal::NotPosted { original, state } => {
                write!(f, "transfer {original} has nothing to give back: {state}")
            }
            Refusal::MoreThanKept {
                original,
                kept,
                asked,
            } => write!(
                f,
                "{kept} is left of transfer {original}, and {asked} cannot be given back of it"
            ),
            Refusal::Overflow(id) => write!(f, "account {id} cannot hold that much"),
            Refusal::Timeout { id, timeout_ms } => write!(
                f,
                "reservation {id} is to hold for {timeout_ms} ms, the most is {TIMEOUT_MS_MAX} ms"
            ),
            Refusal::ChainLength(count) => write!(
                f,
                "a chain of {count} operations, expected 1 to {CHAIN_OPS_MAX}"
            ),
            Refusal::Damaged(id) => write!(
                f,
                "the ledger is damaged: account {id} has less pending than its reservations hold"
            ),
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            State::Pending { expires_ms } => write!(f, "pending until {expires_ms} ms"),
            State::Posted {
                by,
                amount,
                returned,
            } => write!(f, "posted {amount} by {by}, {returned} given back"),
            State::Void { by } => write!(f, "void by {by}"),
            State::Expired { at_ms } => write!(f, "expired at {at_ms} ms"),
            State::Final => f.write_str("final"),
        }
    }
}
