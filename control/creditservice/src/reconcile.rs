//! The ledger beside the inventory: what a service has, and what the ledger says that it has.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use control_kit::store::{Entry, TXN_OPS_MAX};

use crate::account::Account;
use crate::entries::decode;
use crate::error::Error;
use crate::id::{AccountId, Name, TransferId};
use crate::keys::parts;
use crate::ledger::Ledger;
use crate::quota::Quota;
use crate::transfer::Transfer;

/// Something that a service has, with the reservation that it was made under.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InUse {
    /// Whose, and of what.
    pub quota: Quota,
    /// The reservation.
    pub reservation: TransferId,
    /// How much.
    pub amount: u64,
}

/// A reservation of which the ledger and the inventory say different things.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Whose, and of what.
    pub quota: Quota,
    /// The reservation.
    pub reservation: TransferId,
    /// How much is in use by the ledger.
    pub ledger: u64,
    /// How much is there by the inventory.
    pub inventory: u64,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Difference {
            quota: Quota { tenant, unit },
            reservation,
            ledger,
            inventory,
        } = self;
        write!(
            f,
            "{unit} of {tenant}, reservation {reservation}: {ledger} in the ledger, {inventory} in the \
             inventory"
        )
    }
}

/// What a comparison found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drift {
    /// Where they differ.
    pub differences: Vec<Difference>,
    /// What is there already while its reservation is still pending: a create on its way. No drift, as the
    /// reservation counts against the limit, and it ends by being committed or expired.
    pub pending: Vec<InUse>,
    /// By how much they differ, all taken together.
    pub units: u128,
}

impl Ledger {
    /// Compares what the ledger says is used of these units with an inventory of them, which has to be whole
    /// and is to be taken before. The metric `uc_creditservice_drift_units` is what was found.
    ///
    /// What is committed or given back between the inventory and the comparison differs and is no drift: a
    /// difference that two comparisons find is one.
    ///
    /// # Errors
    /// When the ledger could not be read.
    pub async fn reconcile(
        &self,
        units: &BTreeSet<Name>,
        inventory: &[InUse],
    ) -> Result<Drift, Error> {
        let ledger = self.used(units).await?;
        let mut there: BTreeMap<(Quota, TransferId), u64> = BTreeMap::new();
        for one in inventory {
            let sum = there
                .entry((one.quota.clone(), one.reservation))
                .or_default();
            *sum = sum.saturating_add(one.amount);
        }
        let held = self
            .held(there.keys().filter(|one| !ledger.contains_key(one)))
            .await?;
        let mut drift = Drift::default();
        let all: BTreeSet<&(Quota, TransferId)> = ledger.keys().chain(there.keys()).collect();
        for key in all {
            let (quota, reservation) = key.clone();
            let by_ledger = ledger.get(key).copied().unwrap_or(0);
            let by_inventory = there.get(key).copied().unwrap_or(0);
            if by_ledger == by_inventory {
                continue;
            }
            if held.get(key).is_some_and(|held| *held == by_inventory) {
                drift.pending.push(InUse {
                    quota,
                    reservation,
                    amount: by_inventory,
                });
                continue;
            }
            drift.units += u128::from(by_ledger.abs_diff(by_inventory));
            drift.differences.push(Difference {
                quota,
                reservation,
                ledger: by_ledger,
                inventory: by_inventory,
            });
        }
        let shown = i64::try_from(drift.units).unwrap_or(i64::MAX);
        self.metrics.drift.set(shown);
        Ok(drift)
    }

    /// What is used of these units, by reservation.
    async fn used(
        &self,
        units: &BTreeSet<Name>,
    ) -> Result<BTreeMap<(Quota, TransferId), u64>, Error> {
        let mut quotas: BTreeMap<AccountId, Quota> = BTreeMap::new();
        for entry in self.records.all(self.records.keys.kind("account")).await? {
            let account: Account = decode(&entry.key, &entry.value)?;
            let quota = Quota {
                tenant: account.owner,
                unit: account.unit,
            };
            if units.contains(&quota.unit) && quota.used() == account.id {
                quotas.insert(account.id, quota);
            }
        }
        let mut used = BTreeMap::new();
        for (account, quota) in quotas {
            for Entry { key, value, .. } in
                self.records.all(self.records.keys.used_of(account)).await?
            {
                let (_, reservation) = parts(&key)?;
                used.insert((quota.clone(), reservation), decode(&key, &value)?);
            }
        }
        Ok(used)
    }

    /// What these reservations hold that are pending.
    async fn held<'k>(
        &self,
        of: impl Iterator<Item = &'k (Quota, TransferId)>,
    ) -> Result<BTreeMap<(Quota, TransferId), u64>, Error> {
        let of: Vec<&(Quota, TransferId)> = of.collect();
        let mut held = BTreeMap::new();
        for some in of.chunks(TXN_OPS_MAX) {
            let key = |(_, id): &&(Quota, TransferId)| self.records.keys.transfer(*id);
            let keys: Vec<String> = some.iter().map(key).collect();
            let entries = self.records.read(&keys).await?;
            for one in some {
                let transfer = self.records.transfer(one.1, &entries)?.value;
                let of_quota = |transfer: &Transfer| transfer.credit == one.0.used();
                if let Some(transfer) = transfer.filter(of_quota) {
                    held.insert((*one).clone(), transfer.held());
                }
            }
        }
        Ok(held)
    }
}
