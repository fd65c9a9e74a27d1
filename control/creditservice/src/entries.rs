//! A book as keys and values: what one transaction writes for what has changed, and what a whole book is.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use bytes::Bytes;
use control_kit::store::{Range, TXN_OPS_MAX, Write};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::account::Account;
use crate::book::{Book, Changed};
use crate::error::{Error, ErrorKind};
use crate::id::{AccountId, TransferId};
use crate::keys::{FORMAT, Keys};
use crate::transfer::{CHAIN_OPS_MAX, State, Transfer};

/// What an operation writes at most: two accounts, their two places in history, and for a post the
/// reservation, the post itself, the ends of `held` and `expiry` and the beginning of `used`.
const OPERATION_KEYS_MAX: usize = 9;

const _: () = assert!(CHAIN_OPS_MAX * OPERATION_KEYS_MAX <= TXN_OPS_MAX);

/// The places of a history that an import writes into one value.
const IMPORT_PLACES: usize = 32;

pub(crate) fn encode(value: &impl Serialize) -> Bytes {
    let text = serde_json::to_vec(value);
    text.expect("records have names for keys, and are JSON")
        .into()
}

pub(crate) fn decode<T: DeserializeOwned>(key: &str, value: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(value).map_err(|error| {
        let what = format!("{key} is not what a ledger keeps there");
        Error::caused(ErrorKind::Damaged, what, error)
    })
}

/// How many keys [`writes`] would write.
pub(crate) fn count(book: &Book, changed: &Changed<'_>) -> usize {
    let mut count = 0;
    for (id, was) in &changed.accounts {
        let now = book.account(*id).map(|now| now.transfers_count);
        let more = now != was.map(|was| was.transfers_count) && now != Some(0);
        count += 1 + usize::from(more);
    }
    for (id, was) in &changed.transfers {
        let Some(now) = book.transfer(*id) else {
            continue;
        };
        let held = expires(Some(now)) != expires(*was);
        let used = now.kept() != was.map_or(0, Transfer::kept);
        count += 1 + 2 * usize::from(held) + usize::from(used);
    }
    count
}

fn expires(transfer: Option<&Transfer>) -> Option<u64> {
    match transfer?.state {
        State::Pending { expires_ms } => Some(expires_ms),
        _ => None,
    }
}

/// Everything that has to be written for what has changed.
pub(crate) fn writes(keys: &Keys, book: &Book, changed: &Changed<'_>) -> Vec<Write> {
    let mut writes = Vec::new();
    let mut places: BTreeMap<AccountId, BTreeMap<u64, TransferId>> = BTreeMap::new();
    for (id, was) in &changed.transfers {
        let Some(now) = book.transfer(*id) else {
            continue;
        };
        if was.is_none() {
            let debit = places.entry(now.debit).or_default();
            debit.insert(now.debit_seq, *id);
            let credit = places.entry(now.credit).or_default();
            credit.insert(now.credit_seq, *id);
        }
        writes.push(Write::put(keys.transfer(*id), encode(now)));
        match (expires(*was), expires(Some(now))) {
            (None, Some(at)) => {
                let held = keys.held(now.debit, at, *id);
                writes.push(Write::put(held, encode(&now.amount)));
                writes.push(Write::put(keys.expiry(at, *id), Bytes::new()));
            }
            (Some(at), None) => {
                for key in [keys.held(now.debit, at, *id), keys.expiry(at, *id)] {
                    writes.push(Write::Delete(key));
                }
            }
            _ => {}
        }
        let used = keys.used(now.credit, *id);
        match (was.map_or(0, Transfer::kept), now.kept()) {
            (before, after) if before == after => {}
            (_, 0) => writes.push(Write::Delete(used)),
            (_, after) => writes.push(Write::put(used, encode(&after))),
        }
    }
    for id in changed.accounts.keys() {
        let Some(now) = book.account(*id) else {
            continue;
        };
        writes.push(Write::put(keys.account(*id), encode(now)));
        if let Some(places) = places.remove(id)
            && let Some((first, _)) = places.first_key_value()
        {
            let ids: Vec<TransferId> = places.values().copied().collect();
            writes.push(Write::put(keys.history(*id, *first), encode(&ids)));
        }
    }
    writes
}

/// A whole book as keys and values, without the format.
pub(crate) fn whole(keys: &Keys, book: &Book) -> Vec<(String, Bytes)> {
    let mut all = Vec::new();
    let mut places: BTreeMap<AccountId, BTreeMap<u64, TransferId>> = BTreeMap::new();
    for transfer in book.transfers() {
        let id = transfer.id;
        for (account, place) in [
            (transfer.debit, transfer.debit_seq),
            (transfer.credit, transfer.credit_seq),
        ] {
            places.entry(account).or_default().insert(place, id);
        }
        all.push((keys.transfer(id), encode(transfer)));
        if let Some(at) = expires(Some(transfer)) {
            let held = keys.held(transfer.debit, at, id);
            all.push((held, encode(&transfer.amount)));
            all.push((keys.expiry(at, id), Bytes::new()));
        }
        if transfer.kept() > 0 {
            let used = keys.used(transfer.credit, id);
            all.push((used, encode(&transfer.kept())));
        }
    }
    for account in book.accounts() {
        all.push((keys.account(account.id), encode(account)));
    }
    for (account, places) in places {
        let places: Vec<(u64, TransferId)> = places.into_iter().collect();
        for some in places.chunks(IMPORT_PLACES) {
            let ids: Vec<TransferId> = some.iter().map(|(_, id)| *id).collect();
            all.push((keys.history(account, some[0].0), encode(&ids)));
        }
    }
    all
}

/// A book from all keys and values of a ledger. Those that follow from others are compared with what they
/// follow from.
pub(crate) fn book(keys: &Keys, all: &BTreeMap<String, Bytes>) -> Result<Book, Error> {
    let mut book = Book::new();
    let of = |kind: &str| {
        let Range { from, to, .. } = keys.kind(kind);
        let to = to.map_or(Bound::Unbounded, Bound::Excluded);
        all.range((Bound::Included(from), to))
    };
    for (key, value) in of("account") {
        let account: Account = decode(key, value)?;
        named(key, &keys.account(account.id))?;
        book.know(vec![account], Vec::new());
    }
    for (key, value) in of("transfer") {
        let transfer: Transfer = decode(key, value)?;
        named(key, &keys.transfer(transfer.id))?;
        book.know(Vec::new(), vec![transfer]);
    }
    book.check().map_err(|broken| {
        let what = "the laws of a ledger do not hold";
        Error::caused(ErrorKind::Damaged, what, broken)
    })?;
    let mut wanted = whole(keys, &book);
    wanted.push((keys.format(), FORMAT.into()));
    let wanted = unfolded(keys, wanted)?;
    let found = all.iter().map(|(key, value)| (key.clone(), value.clone()));
    let found = unfolded(keys, found.collect())?;
    if let Some((key, _)) = wanted.symmetric_difference(&found).next() {
        let what = format!("{key} does not follow from the accounts and transfers");
        return Err(Error::new(ErrorKind::Damaged, what));
    }
    Ok(book)
}

fn named(key: &str, wanted: &str) -> Result<(), Error> {
    if key == wanted {
        return Ok(());
    }
    let what = format!("{key} holds what belongs to {wanted}");
    Err(Error::new(ErrorKind::Damaged, what))
}

/// Keys and values with one place of a history in each: which of them were written together does not matter.
fn unfolded(keys: &Keys, all: Vec<(String, Bytes)>) -> Result<BTreeSet<(String, Bytes)>, Error> {
    let history = keys.kind("history").from;
    let mut unfolded = BTreeSet::new();
    for (key, value) in all {
        if !key.starts_with(&history) {
            unfolded.insert((key, value));
            continue;
        }
        let ids: Vec<TransferId> = decode(&key, &value)?;
        let first = key.rsplit_once('/').map(|(of, place)| (of, place.parse()));
        let Some((of, Ok(first))) = first else {
            let what = format!("{key} has no place in a history");
            return Err(Error::new(ErrorKind::Damaged, what));
        };
        for (place, id) in (first..u64::MAX).zip(ids) {
            unfolded.insert((format!("{of}/{place:020}"), encode(&id)));
        }
    }
    Ok(unfolded)
}
