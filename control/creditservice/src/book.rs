//! The rules of the ledger, without I/O and without a clock: accounts and transfers in memory, and what an
//! operation does to them at a time that is given.
//!
//! A book may be complete, or hold only what its operations name; it cannot tell. A chain changes all that
//! it says or nothing. Only the state of a transfer decides what may follow it: a time given that is
//! earlier than one before delays expiry, and never frees or spends anything twice.

mod audit;
mod limits;

use std::collections::BTreeMap;

use crate::account::{Account, NewAccount, SUM_MAX};
use crate::id::{AccountId, TransferId};
use crate::refusal::{Refusal, Refused, Shortage};
use crate::transfer::{
    CHAIN_OPS_MAX, Done, Entry, Kind, Operation, State, TIMEOUT_MS_MAX, Transfer,
};

pub use audit::Broken;
pub(crate) use limits::together;

/// Accounts and transfers, and the rules that change them.
#[derive(Clone, Debug, Default)]
pub struct Book {
    accounts: BTreeMap<AccountId, Account>,
    transfers: BTreeMap<TransferId, Transfer>,
    /// What was there before, for each change since [`Book::settle`], oldest first.
    undo: Vec<Before>,
}

/// Two books are one when they hold the same; how they came to it is left out.
impl PartialEq for Book {
    fn eq(&self, other: &Book) -> bool {
        self.accounts == other.accounts && self.transfers == other.transfers
    }
}

#[derive(Clone, Debug)]
enum Before {
    Account(AccountId, Option<Account>),
    Transfer(TransferId, Option<Transfer>),
}

/// What an operation wants to write as a transfer.
struct Draft {
    kind: Kind,
    entry: Entry,
}

impl Draft {
    /// What follows an earlier transfer, between the same accounts.
    fn after(earlier: &Transfer, id: TransferId, kind: Kind, amount: u64) -> Draft {
        let entry = Entry {
            id,
            debit: earlier.debit,
            credit: earlier.credit,
            amount,
            code: earlier.code,
        };
        Draft { kind, entry }
    }

    /// Whether a transfer says the same. A limit's amount and direction depend on what it was before.
    fn is_what(&self, transfer: &Transfer) -> bool {
        let entry = &self.entry;
        let same = self.kind == transfer.kind && entry.code == transfer.code;
        let sides = (transfer.debit, transfer.credit);
        if let Kind::Limit { .. } = self.kind {
            return same
                && (sides == (entry.debit, entry.credit) || sides == (entry.credit, entry.debit));
        }
        same && sides == (entry.debit, entry.credit) && entry.amount == transfer.amount
    }
}

impl Book {
    /// An empty book.
    pub fn new() -> Book {
        Book::default()
    }

    /// Does all operations of a chain, or none.
    ///
    /// # Errors
    /// Which operation was refused, and why; the book is as it was.
    pub fn apply(&mut self, now_ms: u64, chain: &[Operation]) -> Result<Vec<Done>, Refused> {
        let done = self.attempt(now_ms, chain);
        self.undo.clear();
        done
    }

    /// The account with this id.
    pub fn account(&self, id: AccountId) -> Option<&Account> {
        self.accounts.get(&id)
    }

    /// The transfer with this id.
    pub fn transfer(&self, id: TransferId) -> Option<&Transfer> {
        self.transfers.get(&id)
    }

    /// All accounts, by id.
    pub fn accounts(&self) -> impl Iterator<Item = &Account> {
        self.accounts.values()
    }

    /// All transfers, by id.
    pub fn transfers(&self) -> impl Iterator<Item = &Transfer> {
        self.transfers.values()
    }

    /// The reservations whose time is over, by id.
    pub fn due(&self, now_ms: u64) -> Vec<TransferId> {
        let due = |transfer: &&Transfer| match transfer.state {
            State::Pending { expires_ms } => expires_ms <= now_ms,
            _ => false,
        };
        self.transfers().filter(due).map(|one| one.id).collect()
    }

    /// Puts in what is known already.
    pub(crate) fn know(&mut self, accounts: Vec<Account>, transfers: Vec<Transfer>) {
        let accounts = accounts.into_iter().map(|one| (one.id, one));
        self.accounts.extend(accounts);
        let transfers = transfers.into_iter().map(|one| (one.id, one));
        self.transfers.extend(transfers);
    }

    /// The same as [`Book::apply`], and remembers what was before.
    pub(crate) fn attempt(
        &mut self,
        now_ms: u64,
        chain: &[Operation],
    ) -> Result<Vec<Done>, Refused> {
        if chain.is_empty() || chain.len() > CHAIN_OPS_MAX {
            let refusal = Refusal::ChainLength(chain.len());
            return Err(Refused { at: 0, refusal });
        }
        let mark = self.undo.len();
        let mut done = Vec::with_capacity(chain.len());
        for (at, operation) in chain.iter().enumerate() {
            match self.step(now_ms, operation) {
                Ok(one) => done.push(one),
                Err(refusal) => {
                    self.roll_back(mark);
                    return Err(Refused { at, refusal });
                }
            }
        }
        Ok(done)
    }

    /// How many changes are remembered.
    pub(crate) fn mark(&self) -> usize {
        self.undo.len()
    }

    /// Takes back what was changed since a mark.
    pub(crate) fn roll_back(&mut self, mark: usize) {
        for before in self.undo.drain(mark..).rev() {
            match before {
                Before::Account(id, Some(account)) => _ = self.accounts.insert(id, account),
                Before::Account(id, None) => _ = self.accounts.remove(&id),
                Before::Transfer(id, Some(transfer)) => _ = self.transfers.insert(id, transfer),
                Before::Transfer(id, None) => _ = self.transfers.remove(&id),
            }
        }
    }

    /// What changed since the book was made: accounts and transfers as they were, by id.
    pub(crate) fn changed(&self) -> Changed<'_> {
        let mut changed = Changed::default();
        for before in &self.undo {
            match before {
                Before::Account(id, was) => {
                    changed.accounts.entry(*id).or_insert(was.as_ref());
                }
                Before::Transfer(id, was) => {
                    changed.transfers.entry(*id).or_insert(was.as_ref());
                }
            }
        }
        changed
    }

    fn put_account(&mut self, account: Account) {
        let id = account.id;
        let before = self.accounts.insert(id, account);
        self.undo.push(Before::Account(id, before));
    }

    fn put_transfer(&mut self, transfer: Transfer) {
        let id = transfer.id;
        let before = self.transfers.insert(id, transfer);
        self.undo.push(Before::Transfer(id, before));
    }

    fn step(&mut self, now_ms: u64, operation: &Operation) -> Result<Done, Refusal> {
        let draft = match *operation {
            Operation::Open(ref new) => return self.open(now_ms, new),
            Operation::Close(id) => return self.close(id),
            Operation::Expire(pending) => return self.expire(now_ms, pending),
            Operation::Move(entry) => Draft {
                kind: Kind::Move,
                entry,
            },
            Operation::Reserve { entry, timeout_ms } => Draft {
                kind: Kind::Reserve { timeout_ms },
                entry,
            },
            Operation::Post {
                id,
                pending,
                amount,
            } => {
                let reserved = self.reservation(pending)?;
                let amount = amount.unwrap_or(reserved.amount);
                Draft::after(reserved, id, Kind::Post { pending }, amount)
            }
            Operation::Void { id, pending } => {
                let reserved = self.reservation(pending)?;
                Draft::after(reserved, id, Kind::Void { pending }, reserved.amount)
            }
            Operation::Return {
                id,
                original,
                amount,
            } => {
                let moved = self.known_transfer(original)?;
                let mut draft = Draft::after(moved, id, Kind::Return { original }, amount);
                draft.entry.debit = moved.credit;
                draft.entry.credit = moved.debit;
                draft
            }
            Operation::Limit(ref limit) => self.limit(limit)?,
        };
        self.transfer_once(now_ms, &draft)
    }

    fn transfer_once(&mut self, now_ms: u64, draft: &Draft) -> Result<Done, Refusal> {
        let id = draft.entry.id;
        match self.transfers.get(&id) {
            Some(known) if draft.is_what(known) => Ok(repeated(Some(known.clone()))),
            Some(_) => Err(Refusal::OtherTransfer(id)),
            None => self.write(now_ms, draft),
        }
    }

    fn open(&mut self, now_ms: u64, new: &NewAccount) -> Result<Done, Refusal> {
        if let Some(known) = self.accounts.get(&new.id) {
            if !known.is_what(new) {
                return Err(Refusal::OtherAccount(new.id));
            }
            return Ok(repeated(None));
        }
        self.put_account(Account::new(new, now_ms));
        Ok(did(None))
    }

    fn close(&mut self, id: AccountId) -> Result<Done, Refusal> {
        let mut account = self.known(id)?.clone();
        if account.closed {
            return Ok(repeated(None));
        }
        let pending = account.debits_pending.max(account.credits_pending);
        let balance = account.balance();
        if pending != 0 || balance != 0 {
            return Err(Refusal::Unsettled {
                account: id,
                balance,
                pending,
            });
        }
        account.closed = true;
        self.put_account(account);
        Ok(did(None))
    }

    fn expire(&mut self, now_ms: u64, id: TransferId) -> Result<Done, Refusal> {
        let mut pending = self.reservation(id)?.clone();
        let State::Pending { expires_ms } = pending.state else {
            return Ok(repeated(Some(pending)));
        };
        if now_ms < expires_ms {
            return Err(Refusal::NotDue {
                pending: id,
                expires_ms,
            });
        }
        let (mut debit, mut credit) = self.sides(pending.debit, pending.credit)?;
        release(&mut debit, &mut credit, pending.amount)?;
        pending.state = State::Expired { at_ms: now_ms };
        self.put_account(debit);
        self.put_account(credit);
        self.put_transfer(pending.clone());
        Ok(did(Some(pending)))
    }

    /// Writes a transfer that is new, with all that it changes.
    fn write(&mut self, now_ms: u64, draft: &Draft) -> Result<Done, Refusal> {
        let entry = draft.entry;
        let (mut debit, mut credit) = self.sides(entry.debit, entry.credit)?;
        if entry.amount == 0 && !matches!(draft.kind, Kind::Limit { .. }) {
            return Err(Refusal::ZeroAmount(entry.id));
        }
        debit.transfers_count += 1;
        credit.transfers_count += 1;
        let followed = self.followed(now_ms, draft)?;
        if let (Kind::Post { .. } | Kind::Void { .. }, Some(pending)) = (draft.kind, &followed) {
            release(&mut debit, &mut credit, pending.amount)?;
        }
        let state = effect(now_ms, draft, &mut debit, &mut credit)?;
        let transfer = Transfer {
            id: entry.id,
            kind: draft.kind,
            debit: debit.id,
            credit: credit.id,
            amount: entry.amount,
            code: entry.code,
            made_ms: now_ms,
            debit_seq: debit.transfers_count,
            credit_seq: credit.transfers_count,
            state,
        };
        self.put_account(debit);
        self.put_account(credit);
        if let Some(followed) = followed {
            self.put_transfer(followed);
        }
        self.put_transfer(transfer.clone());
        Ok(did(Some(transfer)))
    }

    /// The earlier transfer that a new one follows, as it stands then.
    fn followed(&self, now_ms: u64, draft: &Draft) -> Result<Option<Transfer>, Refusal> {
        let Entry { id, amount, .. } = draft.entry;
        match draft.kind {
            Kind::Move | Kind::Reserve { .. } | Kind::Limit { .. } => Ok(None),
            Kind::Post { pending } => {
                let mut pending = self.open_reservation(now_ms, pending)?;
                if amount > pending.amount {
                    return Err(Refusal::MoreThanReserved {
                        pending: pending.id,
                        reserved: pending.amount,
                        asked: amount,
                    });
                }
                pending.state = State::Posted {
                    by: id,
                    amount,
                    returned: 0,
                };
                Ok(Some(pending))
            }
            Kind::Void { pending } => {
                let mut pending = self.voidable(pending)?;
                pending.state = State::Void { by: id };
                Ok(Some(pending))
            }
            Kind::Return { original } => self.returned(original, amount).map(Some),
        }
    }

    fn known(&self, id: AccountId) -> Result<&Account, Refusal> {
        self.accounts.get(&id).ok_or(Refusal::UnknownAccount(id))
    }

    fn known_transfer(&self, id: TransferId) -> Result<&Transfer, Refusal> {
        self.transfers.get(&id).ok_or(Refusal::UnknownTransfer(id))
    }

    fn reservation(&self, id: TransferId) -> Result<&Transfer, Refusal> {
        let transfer = self.known_transfer(id)?;
        match transfer.kind {
            Kind::Reserve { .. } => Ok(transfer),
            _ => Err(Refusal::NotReserved(id)),
        }
    }

    /// Both accounts of a transfer, which may take one.
    fn sides(&self, debit: AccountId, credit: AccountId) -> Result<(Account, Account), Refusal> {
        if debit == credit {
            return Err(Refusal::SameAccount(debit));
        }
        let (debit, credit) = (self.known(debit)?, self.known(credit)?);
        if debit.unit != credit.unit {
            return Err(Refusal::OtherUnit {
                debit: (debit.id, debit.unit.clone()),
                credit: (credit.id, credit.unit.clone()),
            });
        }
        if let Some(closed) = [debit, credit].into_iter().find(|one| one.closed) {
            return Err(Refusal::Closed(closed.id));
        }
        Ok((debit.clone(), credit.clone()))
    }

    /// A reservation that may still be posted.
    fn open_reservation(&self, now_ms: u64, id: TransferId) -> Result<Transfer, Refusal> {
        let transfer = self.voidable(id)?;
        match transfer.state {
            State::Pending { expires_ms } if expires_ms <= now_ms => Err(Refusal::Expired {
                pending: id,
                expired_ms: expires_ms,
            }),
            _ => Ok(transfer),
        }
    }

    /// A reservation that has not ended. Its time may be over: then ending it is what is due anyway.
    fn voidable(&self, id: TransferId) -> Result<Transfer, Refusal> {
        let transfer = self.reservation(id)?;
        match transfer.state {
            State::Pending { .. } => Ok(transfer.clone()),
            State::Expired { at_ms } => Err(Refusal::Expired {
                pending: id,
                expired_ms: at_ms,
            }),
            state => Err(Refusal::Ended { pending: id, state }),
        }
    }

    /// A transfer after so much of it was given back.
    fn returned(&self, id: TransferId, asked: u64) -> Result<Transfer, Refusal> {
        let mut transfer = self.known_transfer(id)?.clone();
        let kept = transfer.kept();
        match &mut transfer.state {
            State::Posted { returned, .. } if asked <= kept => *returned += asked,
            State::Posted { .. } => {
                return Err(Refusal::MoreThanKept {
                    original: id,
                    kept,
                    asked,
                });
            }
            state => {
                let state = *state;
                return Err(Refusal::NotPosted {
                    original: id,
                    state,
                });
            }
        }
        Ok(transfer)
    }
}

/// What changed: as it was, by id; nothing where it is new.
#[derive(Debug, Default)]
pub(crate) struct Changed<'b> {
    pub accounts: BTreeMap<AccountId, Option<&'b Account>>,
    pub transfers: BTreeMap<TransferId, Option<&'b Transfer>>,
}

fn did(transfer: Option<Transfer>) -> Done {
    Done {
        repeated: false,
        transfer,
    }
}

fn repeated(transfer: Option<Transfer>) -> Done {
    Done {
        repeated: true,
        transfer,
    }
}

fn expiry(id: TransferId, now_ms: u64, timeout_ms: u64) -> Result<u64, Refusal> {
    let expires_ms = now_ms.checked_add(timeout_ms);
    match expires_ms {
        Some(expires_ms) if timeout_ms <= TIMEOUT_MS_MAX => Ok(expires_ms),
        _ => Err(Refusal::Timeout { id, timeout_ms }),
    }
}

/// Whether the debit account may give so much.
fn room(debit: &Account, credit: &Account, asked: u64) -> Result<(), Refusal> {
    if !debit.debits_must_not_exceed_credits || u128::from(asked) <= debit.free() {
        return Ok(());
    }
    let used = credit.balance();
    Err(Refusal::Exceeds(Box::new(Shortage {
        owner: debit.owner.clone(),
        unit: debit.unit.clone(),
        debit: debit.id,
        credit: credit.id,
        limit: u128::try_from(debit.balance().saturating_add(used)).unwrap_or(0),
        used: u128::try_from(used).unwrap_or(0),
        reserved: debit.debits_pending,
        asked,
    })))
}

fn add(account: AccountId, sum: &mut u128, amount: u64) -> Result<(), Refusal> {
    let after = sum.checked_add(u128::from(amount));
    *sum = after
        .filter(|after| *after <= SUM_MAX)
        .ok_or(Refusal::Overflow(account))?;
    Ok(())
}

fn post(debit: &mut Account, credit: &mut Account, amount: u64) -> Result<(), Refusal> {
    add(debit.id, &mut debit.debits_posted, amount)?;
    add(credit.id, &mut credit.credits_posted, amount)
}

fn hold(debit: &mut Account, credit: &mut Account, amount: u64) -> Result<(), Refusal> {
    add(debit.id, &mut debit.debits_pending, amount)?;
    add(credit.id, &mut credit.credits_pending, amount)
}

/// Takes back what [`hold`] had put.
fn release(debit: &mut Account, credit: &mut Account, amount: u64) -> Result<(), Refusal> {
    let less = |account: AccountId, pending: &mut u128| {
        let left = pending.checked_sub(u128::from(amount));
        *pending = left.ok_or(Refusal::Damaged(account))?;
        Ok(())
    };
    less(debit.id, &mut debit.debits_pending)?;
    less(credit.id, &mut credit.credits_pending)
}

/// What a new transfer does to its accounts, and the state that it is made in.
fn effect(
    now_ms: u64,
    draft: &Draft,
    debit: &mut Account,
    credit: &mut Account,
) -> Result<State, Refusal> {
    let Entry { id, amount, .. } = draft.entry;
    match draft.kind {
        Kind::Move => {
            room(debit, credit, amount)?;
            post(debit, credit, amount)?;
            Ok(State::Posted {
                by: id,
                amount,
                returned: 0,
            })
        }
        Kind::Reserve { timeout_ms } => {
            let expires_ms = expiry(id, now_ms, timeout_ms.get())?;
            room(debit, credit, amount)?;
            hold(debit, credit, amount)?;
            Ok(State::Pending { expires_ms })
        }
        Kind::Return { .. } => {
            room(debit, credit, amount)?;
            post(debit, credit, amount)?;
            Ok(State::Final)
        }
        Kind::Post { .. } | Kind::Limit { .. } => {
            post(debit, credit, amount)?;
            Ok(State::Final)
        }
        Kind::Void { .. } => Ok(State::Final),
    }
}

#[cfg(test)]
mod tests;
