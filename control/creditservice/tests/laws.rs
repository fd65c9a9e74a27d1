//! The laws of the ledger under random operations, some of which make sense: BY-4 and CR-1 for the rules
//! alone.
//!
//! What may go wrong: any operation in any order and any number of times, ids used twice, clocks that jump
//! back and forth, limits that are lowered below their use. What must hold after each: [`Book::check`], and
//! the laws that each property names.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use std::collections::BTreeMap;
use std::num::NonZeroU64;

use creditservice::{
    AccountId, Book, CHAIN_OPS_MAX, Done, Entry, Name, NewAccount, Operation, Quota, Refusal,
    State, TransferId, commit, give_back, release,
};
use proptest::prelude::*;

/// Few of each, so that they meet.
const TENANTS: usize = 2;
const UNITS: usize = 2;
const IDS: u128 = 24;

fn quota(number: usize) -> Quota {
    let name =
        |prefix: &str, number: usize| -> Name { format!("{prefix}{number}").parse().unwrap() };
    Quota {
        tenant: name("t", number % TENANTS),
        unit: name("u", number / TENANTS),
    }
}

fn any_id() -> impl Strategy<Value = TransferId> {
    (1..=IDS).prop_map(|number| TransferId::try_from(number).unwrap())
}

fn any_quota() -> impl Strategy<Value = Quota> {
    (0..TENANTS * UNITS).prop_map(quota)
}

fn any_operation() -> impl Strategy<Value = Operation> {
    let amount = 0..8_u64;
    prop_oneof![
        6 => (any_quota(), any_id(), amount.clone(), 1..60_u64).prop_map(|(quota, id, amount, timeout)| {
            quota.reserve(id, amount, NonZeroU64::new(timeout).unwrap())
        }),
        4 => any_id().prop_map(commit),
        1 => (any_id(), any_id(), prop::option::of(amount.clone())).prop_map(|(id, pending, amount)| {
            Operation::Post { id, pending, amount }
        }),
        2 => any_id().prop_map(release),
        2 => any_id().prop_map(Operation::Expire),
        3 => (any_id(), any_id(), amount).prop_map(|(id, of, amount)| give_back(id, of, amount)),
    ]
}

/// Limits are chains of their own, as they open accounts first.
fn any_chain() -> impl Strategy<Value = Vec<Operation>> {
    prop_oneof![
        1 => (any_quota(), any_id(), 0..24_u64).prop_map(|(quota, id, limit)| quota.set_limit(id, limit)),
        1 => (any_quota(), any_id()).prop_map(|(quota, id)| quota.close(id)),
        14 => prop::collection::vec(any_operation(), 1..4),
    ]
}

#[derive(Clone, Debug)]
struct Step {
    now_ms: u64,
    chain: Vec<Operation>,
}

/// A history: the clock goes on by and large, and jumps.
fn any_history() -> impl Strategy<Value = Vec<Step>> {
    let step = (0..40_u64, any_chain());
    prop::collection::vec(step, 1..80).prop_map(|steps| {
        let one = |(at, (jump_ms, chain)): (usize, (u64, Vec<Operation>))| Step {
            now_ms: at as u64 + jump_ms,
            chain,
        };
        let first = (0..TENANTS * UNITS).map(|number| Step {
            now_ms: 0,
            chain: quota(number).set_limit(TransferId::derive([number.to_string()]), 12),
        });
        first
            .chain(steps.into_iter().enumerate().map(one))
            .collect()
    })
}

fn played(history: &[Step]) -> Book {
    let mut book = Book::new();
    for step in history {
        let _ = book.apply(step.now_ms, &step.chain);
    }
    book
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    /// BY-4: debits equal credits, and what is pending is what is reserved, after every step; a refusal
    /// changes nothing.
    #[test]
    fn sums_are_conserved_at_every_step(history in any_history()) {
        let mut book = Book::new();
        for step in &history {
            let before = book.clone();
            let refused = book.apply(step.now_ms, &step.chain).is_err();
            prop_assert!(!refused || book == before);
            if let Err(broken) = book.check() {
                return Err(TestCaseError::fail(format!("{broken} after {step:?}")));
            }
        }
    }

    /// CR-1: what is reserved anew fits into the limit together with all that is used and reserved.
    #[test]
    fn no_reservation_is_taken_past_the_limit(history in any_history()) {
        let mut book = Book::new();
        for step in &history {
            let before = book.clone();
            let Ok(done) = book.apply(step.now_ms, &step.chain) else { continue };
            for quota in (0..TENANTS * UNITS).map(quota) {
                let Some(now) = quota.standing(&book) else { continue };
                let new = |done: &Done| !done.repeated && done.transfer.as_ref().is_some_and(|one| {
                    one.debit == quota.account() && matches!(one.state, State::Pending { .. })
                });
                if done.iter().any(new) {
                    prop_assert!(now.used + now.reserved <= now.limit, "{now:?} after {step:?}");
                }
                // Only a lower limit leaves more in use than is allowed, and nothing adds to it.
                let was = quota.standing(&before);
                let had = was.map_or(0, |was| was.used + was.reserved);
                let has = now.used + now.reserved;
                prop_assert!(has <= now.limit || has <= had, "{was:?} then {now:?}");
            }
        }
    }

    /// CR-1: doing again what was done, from the beginning and as far as one likes, changes nothing.
    #[test]
    fn any_prefix_may_be_played_again(history in any_history(), share in 0.0..1.0_f64) {
        let mut book = Book::new();
        let mut accepted = Vec::new();
        for step in &history {
            if book.apply(step.now_ms, &step.chain).is_ok() {
                accepted.push(step);
            }
        }
        let before = book.clone();
        let prefix = (accepted.len() as f64 * share) as usize;
        for step in &accepted[..prefix] {
            let done = book.apply(step.now_ms + 1000, &step.chain);
            let done = match done {
                Ok(done) => done,
                // A chain may have named a reservation before another chain has ended it.
                Err(refused) => return Err(TestCaseError::fail(format!("{refused} on {step:?}"))),
            };
            prop_assert!(done.iter().all(|one| one.repeated), "{step:?}");
        }
        prop_assert!(book == before);
    }

    /// CR-1: a reservation is posted or void at most once, and what is expired counts as if it were void.
    #[test]
    fn a_reservation_ends_once_and_expired_is_as_void(history in any_history()) {
        let mut book = Book::new();
        let mut ended: BTreeMap<TransferId, State> = BTreeMap::new();
        for step in &history {
            let _ = book.apply(step.now_ms, &step.chain);
            for transfer in book.transfers() {
                let state = match transfer.state {
                    State::Pending { .. } | State::Final => continue,
                    State::Posted { by, amount, .. } => State::Posted { by, amount, returned: 0 },
                    state => state,
                };
                prop_assert_eq!(*ended.entry(transfer.id).or_insert(state), state);
            }
        }
        let (mut expired, mut voided) = (book.clone(), book);
        for id in expired.due(u64::MAX) {
            expired.apply(u64::MAX, &[Operation::Expire(id)]).unwrap();
            voided.apply(u64::MAX, &[release(id)]).unwrap();
        }
        prop_assert!(expired.due(u64::MAX).is_empty());
        for (one, other) in expired.accounts().zip(voided.accounts()) {
            prop_assert_eq!(one.debits_pending, 0);
            prop_assert_eq!(one.debits_posted, other.debits_posted);
            prop_assert_eq!(one.credits_pending, other.credits_pending);
            prop_assert_eq!(one.credits_posted, other.credits_posted);
        }
        expired.check().map_err(|broken| TestCaseError::fail(broken.to_string()))?;
    }

    /// CR-2: what is exported and imported is the same, to the last bit of its sum.
    #[test]
    fn an_export_comes_back_with_the_same_sum(history in any_history()) {
        let book = played(&history);
        let export = book.export();
        let again = Book::import(&export.text).unwrap();
        prop_assert!(again == book);
        prop_assert_eq!(again.export(), export);
    }

    /// CR-2: an export that was cut or changed anywhere is refused.
    #[test]
    fn a_changed_export_is_refused(history in any_history(), at in any::<prop::sample::Index>(), to in any::<u8>()) {
        let text = played(&history).export().text;
        let cut = at.index(text.len());
        prop_assert!(Book::import(&text[..cut]).is_err());
        let mut bytes = text.into_bytes();
        prop_assume!(bytes[cut] != to);
        bytes[cut] = to;
        let changed = String::from_utf8_lossy(&bytes);
        prop_assert!(Book::import(&changed).is_err());
    }
}

#[test]
fn a_text_that_adds_up_and_breaks_a_law_is_refused_by_the_law() {
    use sha2::{Digest, Sha256};
    let mut book = Book::new();
    let id = TransferId::try_from(1).unwrap();
    book.apply(0, &quota(0).set_limit(id, 12)).unwrap();
    let text = book
        .export()
        .text
        .replace("\"credits_posted\":12", "\"credits_posted\":13");
    let end = text.trim_end().rfind('\n').unwrap() + 1;
    let sum = hex::encode(Sha256::digest(&text[..end]));
    let text = format!("{}{{\"sha256\":\"{sum}\"}}\n", &text[..end]);
    let error = Book::import(&text).unwrap_err();
    let law = std::error::Error::source(&error).unwrap().to_string();
    assert!(
        law.contains("says 13 for its posted credits, its transfers say 12"),
        "{law}"
    );
}

/// One transfer of each kind and in each state.
fn one_of_each() -> Book {
    let id = |number: u128| TransferId::try_from(number).unwrap();
    let second = NonZeroU64::new(1000).unwrap();
    let mut book = Book::new();
    for (now_ms, chain) in [
        (0, quota(0).set_limit(id(1), 12)),
        (
            10,
            vec![
                quota(0).reserve(id(2), 3, second),
                quota(0).reserve(id(3), 2, second),
            ],
        ),
        (20, vec![commit(id(2)), release(id(3))]),
        (
            30,
            vec![
                give_back(id(4), id(2), 1),
                quota(0).reserve(id(5), 4, second),
            ],
        ),
        (
            2000,
            vec![Operation::Expire(id(5)), quota(0).reserve(id(6), 1, second)],
        ),
        (2001, quota(0).set_limit(id(7), 3)),
        (2002, quota(1).set_limit(id(8), 7)),
        (2003, quota(1).close(id(9))),
    ] {
        book.apply(now_ms, &chain).unwrap();
    }
    let entry = Entry {
        id: id(10),
        debit: quota(0).source(),
        credit: AccountId::derive(["another"]),
        amount: 5,
        code: 77,
    };
    let another = NewAccount {
        id: entry.credit,
        owner: "operator".parse().unwrap(),
        unit: quota(0).unit,
        debits_must_not_exceed_credits: false,
    };
    let chain = [Operation::Open(another), Operation::Move(entry)];
    book.apply(3000, &chain).unwrap();
    book
}

#[test]
fn an_exported_ledger_of_the_first_format_opens_for_ever() {
    let text = include_str!("fixtures/ledger-1.jsonl");
    let book = Book::import(text).unwrap();
    assert!(book == one_of_each());
    assert_eq!(book.export().text, text);
    let standing = quota(0).standing(&book).unwrap();
    assert_eq!(
        (standing.limit, standing.used, standing.reserved),
        (3, 2, 1)
    );
}

#[test]
fn a_chain_has_at_most_so_many_operations() {
    let id = TransferId::try_from(1).unwrap();
    let chain = vec![commit(id); CHAIN_OPS_MAX + 1];
    let refused = Book::new().apply(0, &chain).unwrap_err();
    assert_eq!(refused.refusal, Refusal::ChainLength(CHAIN_OPS_MAX + 1));
}
