//! The laws of a complete book, checked from its transfers alone:
//!
//! - all debits equal all credits, posted and pending;
//! - an account's sums are those of its transfers, and what is pending is what open reservations hold;
//! - a reservation ended at most once, by the transfer that its state names;
//! - no more was given back than was posted;
//! - the places of an account's transfers are 1, 2, 3 and so on;
//! - a closed account is settled.

use std::collections::BTreeMap;

use super::Book;
use crate::account::Account;
use crate::id::{AccountId, TransferId};
use crate::transfer::{Kind, State, Transfer};

/// A law that does not hold, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Broken(String);

/// Where the law is checked that a condition stands for.
fn law(holds: bool, what: impl FnOnce() -> String) -> Result<(), Broken> {
    if holds { Ok(()) } else { Err(Broken(what())) }
}

/// An account's sums, made again from transfers.
#[derive(Default)]
struct Sums {
    debits: Side,
    credits: Side,
    places: Vec<u64>,
}

#[derive(Default, PartialEq)]
struct Side {
    pending: u128,
    posted: u128,
}

impl Side {
    fn add(&mut self, transfer: &Transfer) {
        let amount = u128::from(transfer.amount);
        match (transfer.kind, transfer.state) {
            (Kind::Reserve { .. }, State::Pending { .. }) => self.pending += amount,
            (Kind::Reserve { .. } | Kind::Void { .. }, _) => {}
            (Kind::Move | Kind::Post { .. } | Kind::Return { .. } | Kind::Limit { .. }, _) => {
                self.posted += amount;
            }
        }
    }
}

impl Book {
    /// Checks every law. The book has to be complete.
    ///
    /// # Errors
    /// The first law that does not hold.
    pub fn check(&self) -> Result<(), Broken> {
        let mut sums: BTreeMap<AccountId, Sums> = BTreeMap::new();
        let mut returned: BTreeMap<TransferId, u128> = BTreeMap::new();
        for transfer in self.transfers() {
            self.check_transfer(transfer)?;
            if let Kind::Return { original } = transfer.kind {
                *returned.entry(original).or_default() += u128::from(transfer.amount);
            }
            let debit = sums.entry(transfer.debit).or_default();
            debit.debits.add(transfer);
            debit.places.push(transfer.debit_seq);
            let credit = sums.entry(transfer.credit).or_default();
            credit.credits.add(transfer);
            credit.places.push(transfer.credit_seq);
        }
        for transfer in self.transfers() {
            let given_back = returned.remove(&transfer.id).unwrap_or(0);
            check_returned(transfer, given_back)?;
        }
        for account in self.accounts() {
            check_account(account, sums.remove(&account.id).unwrap_or_default())?;
        }
        self.check_totals()
    }

    fn check_totals(&self) -> Result<(), Broken> {
        // Sums of sums may pass what the type holds; the differences are zero all the same.
        let total = |of: fn(&Account) -> u128| {
            self.accounts()
                .fold(0_u128, |total, account| total.wrapping_add(of(account)))
        };
        law(
            total(|one| one.debits_posted) == total(|one| one.credits_posted),
            || "posted debits and posted credits differ".to_owned(),
        )?;
        law(
            total(|one| one.debits_pending) == total(|one| one.credits_pending),
            || "pending debits and pending credits differ".to_owned(),
        )
    }

    fn check_transfer(&self, transfer: &Transfer) -> Result<(), Broken> {
        let id = transfer.id;
        let unit = |account| self.account(account).map(|one| &one.unit);
        let (debit, credit) = (unit(transfer.debit), unit(transfer.credit));
        law(debit.is_some() && credit.is_some(), || {
            format!("transfer {id} names an account that is not there")
        })?;
        law(debit == credit && transfer.debit != transfer.credit, || {
            format!("transfer {id} is not between two accounts of one unit")
        })?;
        let may_be_zero = matches!(transfer.kind, Kind::Limit { .. });
        law(transfer.amount > 0 || may_be_zero, || {
            format!("transfer {id} has an amount of zero")
        })?;
        law(self.state_fits(transfer), || {
            format!("transfer {id} cannot be {}", transfer.state)
        })
    }

    /// Whether a transfer may be in its state, as far as the transfers tell that it names.
    fn state_fits(&self, transfer: &Transfer) -> bool {
        let id = transfer.id;
        match (transfer.kind, transfer.state) {
            (Kind::Move, State::Posted { by, amount, .. }) => by == id && amount == transfer.amount,
            (Kind::Reserve { timeout_ms }, State::Pending { expires_ms }) => {
                transfer.made_ms.checked_add(timeout_ms.get()) == Some(expires_ms)
            }
            (Kind::Reserve { .. }, State::Posted { by, amount, .. }) => {
                amount <= transfer.amount
                    && self.transfer(by).is_some_and(|post| {
                        post.kind == Kind::Post { pending: id } && post.amount == amount
                    })
            }
            (Kind::Reserve { .. }, State::Void { by }) => {
                let void = self.transfer(by);
                void.is_some_and(|void| void.kind == Kind::Void { pending: id })
            }
            (Kind::Reserve { timeout_ms }, State::Expired { at_ms }) => {
                let due = transfer.made_ms.checked_add(timeout_ms.get());
                due.is_some_and(|due| due <= at_ms)
            }
            (Kind::Post { pending }, State::Final) => {
                let pending = self.transfer(pending).map(|one| one.state);
                matches!(pending, Some(State::Posted { by, .. }) if by == id)
            }
            (Kind::Void { pending }, State::Final) => {
                let pending = self.transfer(pending).map(|one| one.state);
                matches!(pending, Some(State::Void { by }) if by == id)
            }
            (Kind::Return { original }, State::Final) => {
                let original = self.transfer(original).map(|one| one.state);
                matches!(original, Some(State::Posted { .. }))
            }
            (Kind::Limit { .. }, State::Final) => true,
            _ => false,
        }
    }
}

fn check_returned(transfer: &Transfer, given_back: u128) -> Result<(), Broken> {
    let (posted, returned) = match transfer.state {
        State::Posted {
            amount, returned, ..
        } => (amount, returned),
        _ => (0, 0),
    };
    law(
        given_back == u128::from(returned) && returned <= posted,
        || {
            format!(
                "transfer {} posted {posted} and says that {returned} came back, its returns are {given_back}",
                transfer.id
            )
        },
    )
}

fn check_account(account: &Account, mut sums: Sums) -> Result<(), Broken> {
    let id = account.id;
    for (what, of, is) in [
        (
            "pending debits",
            sums.debits.pending,
            account.debits_pending,
        ),
        ("posted debits", sums.debits.posted, account.debits_posted),
        (
            "pending credits",
            sums.credits.pending,
            account.credits_pending,
        ),
        (
            "posted credits",
            sums.credits.posted,
            account.credits_posted,
        ),
    ] {
        law(of == is, || {
            format!("account {id} says {is} for its {what}, its transfers say {of}")
        })?;
    }
    sums.places.sort_unstable();
    let in_order = sums.places.iter().copied().eq(1..=account.transfers_count);
    law(in_order, || {
        format!("account {id} has a gap in the order of its transfers")
    })?;
    let settled = sums.debits == sums.credits && account.debits_pending == 0;
    law(!account.closed || settled, || {
        format!("account {id} is closed and not settled")
    })
}
