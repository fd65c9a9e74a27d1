//! Reading the ledger. Each answer is what the store has during the call.

use crate::account::Account;
use control_kit::store::{Entry, Range, TXN_OPS_MAX};

use crate::entries::decode;
use crate::error::{Error, ErrorKind};
use crate::explain::Hold;
use crate::id::{AccountId, TransferId};
use crate::keys::{parts, stranger};
use crate::ledger::Ledger;
use crate::quota::{Quota, Standing};
use crate::transfer::Transfer;

/// The most entries that a page reads.
const PAGE_MAX: usize = TXN_OPS_MAX;

/// Where a page of an account's transfers begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor(u64);

impl Cursor {
    /// The account's first transfer.
    pub fn start() -> Cursor {
        Cursor(1)
    }
}

/// Transfers of an account, in the order in which they were made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transfers {
    /// Those of this page.
    pub transfers: Vec<Transfer>,
    /// Where the next page begins, where there is one.
    pub next: Option<Cursor>,
}

impl Ledger {
    /// An account, where there is one of this id.
    ///
    /// # Errors
    /// When it could not be read.
    pub async fn account(&self, id: AccountId) -> Result<Option<Account>, Error> {
        let key = self.records.keys.account(id);
        let entries = self.records.read(&[key]).await?;
        Ok(self.records.account(id, &entries)?.value)
    }

    /// A transfer, where there is one of this id.
    ///
    /// # Errors
    /// When it could not be read.
    pub async fn transfer(&self, id: TransferId) -> Result<Option<Transfer>, Error> {
        let key = self.records.keys.transfer(id);
        let entries = self.records.read(&[key]).await?;
        Ok(self.records.transfer(id, &entries)?.value)
    }

    /// How a quota stands, where it was opened.
    ///
    /// # Errors
    /// When it could not be read.
    pub async fn standing(&self, quota: &Quota) -> Result<Option<Standing>, Error> {
        let (account, used) = (quota.account(), quota.used());
        let keys = [account, used].map(|id| self.records.keys.account(id));
        let entries = self.records.read(&keys).await?;
        let account = self.records.account(account, &entries)?.value;
        let used = self.records.account(used, &entries)?.value;
        let both = account.as_ref().zip(used.as_ref());
        Ok(both.map(|(account, used)| Standing::of(account, used)))
    }

    /// The reservations that are pending on a quota, the first to expire first; at most `limit`, and at most
    /// 128.
    ///
    /// # Errors
    /// When they could not be read.
    pub async fn holds(&self, quota: &Quota, limit: usize) -> Result<Vec<Hold>, Error> {
        let held = Range {
            limit: limit.clamp(1, PAGE_MAX),
            ..self.records.keys.held_of(quota.account())
        };
        let page = self.records.page(held).await?;
        let hold = |entry: Entry| hold(&entry.key, &entry.value);
        page.entries.into_iter().map(hold).collect()
    }

    /// A page of an account's transfers. It has at least `limit` where there are as many, and up to one
    /// batch more.
    ///
    /// # Errors
    /// When they could not be read.
    pub async fn transfers(
        &self,
        account: AccountId,
        from: Cursor,
        limit: usize,
    ) -> Result<Transfers, Error> {
        let limit = limit.clamp(1, PAGE_MAX);
        let places = Range {
            limit,
            ..self.records.keys.history_from(account, from.0)
        };
        let page = self.records.page(places).await?;
        let (mut ids, mut next) = (Vec::new(), from);
        let mut more = page.more;
        for entry in page.entries {
            if ids.len() >= limit {
                more = true;
                break;
            }
            let batch: Vec<TransferId> = decode(&entry.key, &entry.value)?;
            next = Cursor(next.0 + batch.len() as u64);
            ids.extend(batch);
        }
        let mut transfers = Vec::with_capacity(ids.len());
        for ids in ids.chunks(TXN_OPS_MAX) {
            let keys: Vec<String> = ids
                .iter()
                .map(|id| self.records.keys.transfer(*id))
                .collect();
            let entries = self.records.read(&keys).await?;
            for id in ids {
                let transfer = self.records.transfer(*id, &entries)?.value;
                transfers.push(transfer.ok_or_else(|| {
                    let what = format!("transfer {id} of account {account} is not there");
                    Error::new(ErrorKind::Damaged, what)
                })?);
            }
        }
        let next = more.then_some(next);
        Ok(Transfers { transfers, next })
    }
}

/// What a key of `held` says.
pub(crate) fn hold(key: &str, value: &[u8]) -> Result<Hold, Error> {
    let (Some(expires_ms), reservation) = parts(key)? else {
        return Err(stranger(key));
    };
    Ok(Hold {
        reservation,
        amount: decode(key, value)?,
        expires_ms,
    })
}
