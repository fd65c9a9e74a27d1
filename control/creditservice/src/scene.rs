//! What a batch needs to know of accounts and transfers, with the revisions that it knows them from; and
//! what is remembered of that from one batch to the next.

use std::collections::{BTreeMap, BTreeSet};

use control_kit::store::{Condition, Entry, Write};

use crate::account::Account;
use crate::book::Book;
use crate::entries;
use crate::error::Error;
use crate::id::{AccountId, TransferId};
use crate::keys::Keys;
use crate::records::{Known, Records};
use crate::transfer::{Operation, Transfer};

/// The most accounts, and the most transfers, that are remembered.
const REMEMBERED_MAX: usize = 16 * 1024;

/// The accounts and transfers that operations name, and those that follow from them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Needs {
    pub accounts: BTreeSet<AccountId>,
    /// Transfers that have to be known, as the reservation that is posted.
    pub transfers: BTreeSet<TransferId>,
    /// Transfers that are taken for new until the store says otherwise.
    pub new: BTreeSet<TransferId>,
}

impl Needs {
    /// What an operation names.
    pub fn add(&mut self, operation: &Operation) {
        match operation {
            Operation::Open(new) => drop(self.accounts.insert(new.id)),
            Operation::Close(id) => drop(self.accounts.insert(*id)),
            Operation::Move(entry) | Operation::Reserve { entry, .. } => {
                self.new.insert(entry.id);
                self.accounts.extend([entry.debit, entry.credit]);
            }
            Operation::Post { id, pending, .. } | Operation::Void { id, pending } => {
                self.new.insert(*id);
                self.transfers.insert(*pending);
            }
            Operation::Return { id, original, .. } => {
                self.new.insert(*id);
                self.transfers.insert(*original);
            }
            Operation::Limit(limit) => {
                self.new.insert(limit.id);
                self.accounts
                    .extend([limit.source, limit.account, limit.used]);
            }
            Operation::Expire(pending) => drop(self.transfers.insert(*pending)),
        }
    }

    /// At most so many keys, also when every transfer that has to be known brings two accounts.
    pub fn keys_max(&self) -> usize {
        self.accounts.len() + 3 * self.transfers.len() + self.new.len()
    }

    fn all_transfers(&self) -> impl Iterator<Item = TransferId> {
        self.transfers.union(&self.new).copied()
    }

    pub fn keys(&self, keys: &Keys) -> Vec<String> {
        let accounts = self.accounts.iter().map(|id| keys.account(*id));
        let transfers = self.all_transfers().map(|id| keys.transfer(id));
        accounts.chain(transfers).collect()
    }
}

/// What is known.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scene {
    accounts: BTreeMap<AccountId, Known<Account>>,
    transfers: BTreeMap<TransferId, Known<Transfer>>,
    /// Whether all of it was read at one revision, during this batch.
    pub consistent: bool,
}

impl Scene {
    /// What entries of the store say that were read together.
    pub fn of(
        records: &Records,
        needs: &Needs,
        entries: &BTreeMap<String, Entry>,
    ) -> Result<Scene, Error> {
        let mut scene = Scene {
            consistent: true,
            ..Scene::default()
        };
        for id in &needs.accounts {
            scene.accounts.insert(*id, records.account(*id, entries)?);
        }
        for id in needs.all_transfers() {
            scene.transfers.insert(id, records.transfer(id, entries)?);
        }
        Ok(scene)
    }

    /// The accounts of the transfers that have to be known are needed too. Whether all is there now.
    pub fn complete(&self, needs: &mut Needs) -> bool {
        for id in &needs.transfers {
            let known = self.transfers.get(id).and_then(|one| one.value.as_ref());
            if let Some(transfer) = known {
                needs.accounts.extend([transfer.debit, transfer.credit]);
            }
        }
        let has_account = |id| self.accounts.contains_key(id);
        let has_transfer = |id| self.transfers.contains_key(id);
        needs.accounts.iter().all(has_account) && needs.transfers.iter().all(has_transfer)
    }

    /// As a book.
    pub fn book(&self) -> Book {
        let accounts = self.accounts.values().filter_map(|one| one.value.clone());
        let transfers = self.transfers.values().filter_map(|one| one.value.clone());
        let mut book = Book::new();
        book.know(accounts.collect(), transfers.collect());
        book
    }

    /// That nothing of it has changed in the store.
    pub fn conditions(&self, keys: &Keys, needs: &Needs) -> Vec<Condition> {
        let account = |id: &AccountId| match self.accounts.get(id) {
            Some(known) => known.condition(keys.account(*id)),
            None => Condition::Absent(keys.account(*id)),
        };
        let transfer = |id: TransferId| match self.transfers.get(&id) {
            Some(known) => known.condition(keys.transfer(id)),
            None => Condition::Absent(keys.transfer(id)),
        };
        let accounts = needs.accounts.iter().map(account);
        accounts
            .chain(needs.all_transfers().map(transfer))
            .collect()
    }
}

impl Scene {
    /// Every account that is there, to be written as it is.
    pub fn accounts_again(&self, keys: &Keys, needs: &Needs) -> Vec<Write> {
        let known = |id: &AccountId| self.accounts.get(id)?.value.as_ref();
        let accounts = needs.accounts.iter().filter_map(known);
        accounts
            .map(|one| Write::put(keys.account(one.id), entries::encode(one)))
            .collect()
    }

    /// They were written at this revision.
    pub fn accounts_written(&mut self, revision: i64) {
        for known in self.accounts.values_mut() {
            if known.value.is_some() {
                known.mod_revision = revision;
            }
        }
    }
}

/// What is remembered. Never trusted: each commit says which revisions it took things from.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    accounts: BTreeMap<AccountId, Known<Account>>,
    transfers: BTreeMap<TransferId, Known<Transfer>>,
}

impl Memory {
    /// What is remembered of what is needed.
    pub fn scene(&self, needs: &mut Needs) -> Scene {
        let mut scene = Scene::default();
        for id in needs.all_transfers() {
            if let Some(known) = self.transfers.get(&id) {
                scene.transfers.insert(id, known.clone());
            }
        }
        scene.complete(needs);
        for id in &needs.accounts {
            if let Some(known) = self.accounts.get(id) {
                scene.accounts.insert(*id, known.clone());
            }
        }
        scene
    }

    /// Keeps what is there after a commit: what changed has its revision.
    pub fn keep(&mut self, scene: Scene, book: &Book, revision: i64) {
        let changed = book.changed();
        if self.accounts.len() > REMEMBERED_MAX {
            self.accounts.clear();
        }
        if self.transfers.len() > REMEMBERED_MAX {
            self.transfers.clear();
        }
        let old = |known: &Known<Account>| known.value.is_some();
        self.accounts
            .extend(scene.accounts.into_iter().filter(|(_, one)| old(one)));
        let old = |known: &Known<Transfer>| known.value.is_some();
        self.transfers
            .extend(scene.transfers.into_iter().filter(|(_, one)| old(one)));
        for id in changed.accounts.keys() {
            let value = book.account(*id).cloned();
            let known = Known {
                mod_revision: revision,
                value,
            };
            self.accounts.insert(*id, known);
        }
        for id in changed.transfers.keys() {
            let value = book.transfer(*id).cloned();
            let known = Known {
                mod_revision: revision,
                value,
            };
            self.transfers.insert(*id, known);
        }
    }

    /// Forgets what a batch needed, as it may be wrong.
    pub fn forget(&mut self, needs: &Needs) {
        for id in &needs.accounts {
            self.accounts.remove(id);
        }
        for id in needs.all_transfers() {
            self.transfers.remove(&id);
        }
    }
}
