//! Where the ledger keeps what, below one prefix:
//!
//! | key | value |
//! | --- | --- |
//! | `format` | which format this is |
//! | `importing` | until an import has ended: the SHA-256 of what is imported |
//! | `account/<account>` | the account, as JSON |
//! | `transfer/<transfer>` | the transfer, as JSON |
//! | `history/<account>/<place>` | the transfers of an account from this place on that one batch made |
//! | `held/<account>/<expires>/<transfer>` | how much a pending reservation holds of the account |
//! | `expiry/<expires>/<transfer>` | nothing: the pending reservations, by when their time is over |
//! | `used/<account>/<transfer>` | how much of a posted transfer the account still has |
//!
//! The last four follow from the first two and are written with them, by one transaction. Numbers in keys
//! have 20 digits, so that keys sort as the numbers do.

use control_kit::store::Range;

use crate::error::{Error, ErrorKind};
use crate::id::{AccountId, TransferId};

/// What `format` says.
pub(crate) const FORMAT: &str = "ultracloud-ledger-1";

/// How many keys are read together, where nothing else is said.
const PAGE: usize = 128;

/// The keys of one ledger.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    prefix: String,
}

impl Keys {
    /// Below a prefix, which ends in a slash.
    pub fn below(prefix: &str) -> Keys {
        Keys {
            prefix: format!("{}/", prefix.trim_end_matches('/')),
        }
    }

    pub fn format(&self) -> String {
        format!("{}format", self.prefix)
    }

    pub fn importing(&self) -> String {
        format!("{}importing", self.prefix)
    }

    pub fn account(&self, id: AccountId) -> String {
        format!("{}account/{id}", self.prefix)
    }

    pub fn transfer(&self, id: TransferId) -> String {
        format!("{}transfer/{id}", self.prefix)
    }

    pub fn history(&self, account: AccountId, place: u64) -> String {
        format!("{}history/{account}/{place:020}", self.prefix)
    }

    pub fn held(&self, account: AccountId, expires_ms: u64, id: TransferId) -> String {
        format!("{}held/{account}/{expires_ms:020}/{id}", self.prefix)
    }

    pub fn expiry(&self, expires_ms: u64, id: TransferId) -> String {
        format!("{}expiry/{expires_ms:020}/{id}", self.prefix)
    }

    pub fn used(&self, account: AccountId, id: TransferId) -> String {
        format!("{}used/{account}/{id}", self.prefix)
    }

    /// Everything of the ledger.
    pub fn all(&self) -> Range {
        Range::prefix(self.prefix.clone(), PAGE)
    }

    /// All of one kind, as `account`.
    pub fn kind(&self, kind: &str) -> Range {
        Range::prefix(format!("{}{kind}/", self.prefix), PAGE)
    }

    /// An account's transfers from a place on.
    pub fn history_from(&self, account: AccountId, place: u64) -> Range {
        Range {
            from: self.history(account, place),
            ..Range::prefix(format!("{}history/{account}/", self.prefix), PAGE)
        }
    }

    /// What is held of an account.
    pub fn held_of(&self, account: AccountId) -> Range {
        Range::prefix(format!("{}held/{account}/", self.prefix), PAGE)
    }

    /// What is used on an account.
    pub fn used_of(&self, account: AccountId) -> Range {
        Range::prefix(format!("{}used/{account}/", self.prefix), PAGE)
    }

    /// The reservations whose time is over.
    pub fn due(&self, now_ms: u64) -> Range {
        let all = self.kind("expiry");
        match now_ms.checked_add(1) {
            Some(next) => Range {
                to: Some(format!("{}expiry/{next:020}/", self.prefix)),
                ..all
            },
            None => all,
        }
    }
}

/// The last part of a key that `held`, `expiry` or `used` made, and the number before it where it has one.
///
/// # Errors
/// When none of them made it.
pub(crate) fn parts(key: &str) -> Result<(Option<u64>, TransferId), Error> {
    let mut parts = key.rsplit('/');
    let id = parts.next().and_then(|part| part.parse().ok());
    let number = parts.next().and_then(|part| part.parse().ok());
    id.map(|id| (number, id)).ok_or_else(|| stranger(key))
}

/// A key that no ledger makes.
pub(crate) fn stranger(key: &str) -> Error {
    let what = format!("{key} is not what a ledger keeps there");
    Error::new(ErrorKind::Damaged, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn has(range: &Range, key: &str) -> bool {
        range.from.as_str() <= key && key < range.to.as_deref().unwrap()
    }

    #[test]
    fn keys_sort_as_their_numbers_do_and_ranges_hold_what_they_say() {
        let keys = Keys::below("ledger");
        let (account, id) = (AccountId::derive(["a"]), TransferId::derive(["t"]));
        let one = keys.expiry(9, id);
        assert!(one < keys.expiry(10, id) && keys.expiry(10, id) < keys.expiry(u64::MAX, id));
        for (now_ms, due) in [(8, false), (9, true), (10, true), (u64::MAX, true)] {
            assert_eq!(has(&keys.due(now_ms), &one), due, "{now_ms}");
        }
        let last = TransferId::try_from(u128::MAX - 1).unwrap();
        assert!(has(&keys.due(u64::MAX), &keys.expiry(u64::MAX, last)));
        let held = keys.held(account, 7, id);
        assert!(has(&keys.held_of(account), &held));
        assert_eq!(parts(&held).unwrap(), (Some(7), id));
        assert!(parts("ledger/held/nonsense").is_err());
        let used = keys.used(account, id);
        assert!(has(&keys.used_of(account), &used));
        assert_eq!(parts(&used).unwrap().1, id);
        let places = keys.history_from(account, 5);
        assert!(has(&places, &keys.history(account, 5)));
        assert!(!has(&places, &keys.history(account, 4)));
        assert!(has(&keys.all(), &keys.format()) && has(&keys.all(), &used));
    }
}
