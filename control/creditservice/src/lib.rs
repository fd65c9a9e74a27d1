//! The ledger: quotas that cannot drift.
//!
//! There are no counters. What a tenant may use is credit on an account, what it is about to use is a
//! pending transfer with a timeout, and what it uses is a posted one; each has a 128-bit id that the client
//! made, so that asking again changes nothing. The model is TigerBeetle's.
//!
//! - [`Book`] has the rules, without I/O and without a clock.
//! - [`Quota`] says limits, reservations and use in terms of accounts and transfers.
//! - [`Ledger`] keeps a book in ChainFire, for any number of processes: calls share transactions, and a
//!   sweeper ends what has run out of time.
//! - [`Ledger::reconcile`] compares it with what a service really has.
//! - [`Export`] is a ledger as text, the same for the same ledger.
//!
//! # A step of an operation
//!
//! A step may run again after a crash or a lost answer, so its ids come from what it is:
//!
//! ```
//! use creditservice::{Error, Ledger, Quota, TransferId, Want};
//!
//! async fn reserve_vcpus(ledger: &Ledger, key: &str, tenant: &str) -> Result<TransferId, Error> {
//!     let reservation = TransferId::derive([key]);
//!     let quota = Quota {
//!         tenant: tenant.parse().expect("tenants have plain names"),
//!         unit: "vcpu".parse().expect("a plain name"),
//!     };
//!     let minute = 60_000.try_into().expect("not zero");
//!     let amount = 4;
//!     ledger.reserve(&[Want { quota, reservation, amount }], minute).await?;
//!     Ok(reservation)
//! }
//! ```
//!
//! A later step commits it with [`Ledger::commit`]; undoing the step is [`Ledger::release`], and after the
//! commit [`Ledger::give_back`].
//!
//! # What always holds
//!
//! - The sum of all debits is the sum of all credits, posted and pending.
//! - What is pending on an account is what its open reservations hold.
//! - A reservation is posted, void or expired once, and says by what.
//! - Nothing is reserved that the limit does not allow. Only a limit that is lowered below its use leaves
//!   more in use than allowed, and then nothing more is reserved.
//! - The same id with the same content is done once; with another content it is refused.
//! - A chain of operations is done in whole or not at all.
//! - Time decides only whether a reservation may still be posted, and whether it may be expired. A clock
//!   that goes back, or differs between processes, makes reservations end earlier or later, and never
//!   counts anything twice.

#![forbid(unsafe_code)]

mod account;
mod archive;
mod book;
mod entries;
mod error;
mod explain;
mod export;
mod id;
mod keys;
mod ledger;
mod metrics;
mod quota;
mod reads;
mod reconcile;
mod records;
mod refusal;
mod scene;
mod steps;
mod sweep;
mod transfer;
mod worker;

pub use account::{Account, NewAccount};
pub use book::{Book, Broken};
pub use error::{Error, ErrorKind};
pub use explain::{Explanation, HOLDS_MAX, Hold};
pub use export::{Export, NotALedger};
pub use id::{AccountId, Invalid, NAME_BYTES_MAX, Name, TransferId};
pub use ledger::{Ledger, Options, Want};
pub use metrics::Metrics;
pub use quota::{CODE_LIMIT, CODE_USE, Quota, Standing, commit, give_back, release};
pub use reads::{Cursor, Transfers};
pub use reconcile::{Difference, Drift, InUse};
pub use refusal::{Refusal, Refused, Shortage};
pub use steps::{QuotaSteps, Taken};
pub use transfer::{
    CHAIN_OPS_MAX, Done, Entry, Kind, NewLimit, Operation, State, TIMEOUT_MS_MAX, Transfer,
};
