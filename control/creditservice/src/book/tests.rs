//! Each rule by an example: what is allowed, what is refused and with which words.

use std::num::NonZeroU64;

use super::*;
use crate::id::Name;
use crate::quota::{self, Quota};
use crate::transfer::NewLimit;

fn id(number: u128) -> TransferId {
    TransferId::try_from(number).unwrap()
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn ms(number: u64) -> NonZeroU64 {
    NonZeroU64::new(number).unwrap()
}

fn vcpu() -> Quota {
    Quota {
        tenant: name("t1"),
        unit: name("vcpu"),
    }
}

/// A book with a quota of 4 vCPU; its limit is transfer 1.
fn four() -> Book {
    let mut book = Book::new();
    book.apply(0, &vcpu().set_limit(id(1), 4)).unwrap();
    book
}

#[track_caller]
fn refused(book: &mut Book, now_ms: u64, operation: Operation) -> Refusal {
    let before = book.clone();
    let refused = book.apply(now_ms, &[operation]).unwrap_err();
    assert_eq!(*book, before, "a refusal changes nothing");
    book.check().unwrap();
    refused.refusal
}

#[track_caller]
fn done(book: &mut Book, now_ms: u64, operation: Operation) -> Done {
    let mut done = book.apply(now_ms, &[operation]).unwrap();
    book.check().unwrap();
    done.remove(0)
}

#[track_caller]
fn stands(book: &Book, limit: u128, used: u128, reserved: u128, free: u128) {
    let standing = vcpu().standing(book).unwrap();
    assert_eq!(
        (
            standing.limit,
            standing.used,
            standing.reserved,
            standing.free
        ),
        (limit, used, reserved, free)
    );
}

#[test]
fn a_reservation_is_held_committed_and_given_back() {
    let mut book = four();
    done(&mut book, 0, vcpu().reserve(id(2), 3, ms(1000)));
    stands(&book, 4, 0, 3, 1);
    done(&mut book, 999, quota::commit(id(2)));
    stands(&book, 4, 3, 0, 1);
    done(&mut book, 999, quota::give_back(id(3), id(2), 1));
    stands(&book, 4, 2, 0, 2);
    done(&mut book, 5000, quota::give_back(id(4), id(2), 2));
    stands(&book, 4, 0, 0, 4);
    let more = refused(&mut book, 5000, quota::give_back(id(5), id(2), 1));
    assert_eq!(
        more,
        Refusal::MoreThanKept {
            original: id(2),
            kept: 0,
            asked: 1
        }
    );
}

#[test]
fn a_part_can_be_posted_and_the_rest_is_free() {
    let mut book = four();
    done(&mut book, 0, vcpu().reserve(id(2), 3, ms(1000)));
    let post = |amount| Operation::Post {
        id: id(3),
        pending: id(2),
        amount: Some(amount),
    };
    assert_eq!(refused(&mut book, 0, post(0)), Refusal::ZeroAmount(id(3)));
    let more = refused(&mut book, 0, post(4));
    assert_eq!(more.code(), "more-than-reserved");
    done(&mut book, 0, post(2));
    stands(&book, 4, 2, 0, 2);
}

#[test]
fn more_than_is_free_is_refused_with_who_holds_it() {
    let mut book = four();
    done(&mut book, 0, vcpu().reserve(id(2), 1, ms(90_000)));
    done(&mut book, 0, vcpu().reserve(id(3), 2, ms(40_000)));
    let refusal = refused(&mut book, 0, vcpu().reserve(id(4), 2, ms(1000)));
    let Refusal::Exceeds(shortage) = refusal else {
        panic!("{refusal}");
    };
    assert_eq!(
        book.explain(500, &shortage).to_string(),
        format!(
            "2 vcpu of t1 refused: limit 4, used 0, reserved 3, free 1; \
             2 of 4 vcpu held by reservation {}, expires in 40 s; \
             1 of 4 vcpu held by reservation {}, expires in 90 s",
            id(3),
            id(2)
        )
    );
    assert_eq!(
        book.explain(500, &shortage).next(),
        "try again in 40 s, release what is not needed, or have the limit raised"
    );
    let refusal = refused(&mut book, 0, vcpu().reserve(id(4), 5, ms(1000)));
    let Refusal::Exceeds(shortage) = refusal else {
        panic!("{refusal}");
    };
    let next = book.explain(0, &shortage).next();
    assert_eq!(
        next,
        "give back 1 vcpu, or have the limit raised to at least 5: no reservation's end is enough"
    );
}

#[test]
fn an_explanation_names_the_first_to_expire_and_says_that_there_are_more() {
    let mut book = Book::new();
    book.apply(0, &vcpu().set_limit(id(1), 10)).unwrap();
    for number in 0..10 {
        let timeout = ms(20_000 - number * 1000);
        let one = vcpu().reserve(id(u128::from(number) + 2), 1, timeout);
        done(&mut book, 0, one);
    }
    let refusal = refused(&mut book, 0, vcpu().reserve(id(20), 9, ms(1)));
    let Refusal::Exceeds(shortage) = refusal else {
        panic!("{refusal}");
    };
    let explanation = book.explain(0, &shortage);
    let first: Vec<u64> = explanation
        .holds
        .iter()
        .map(|hold| hold.expires_ms)
        .collect();
    assert_eq!(first, (11..19).map(|s| s * 1000).collect::<Vec<_>>());
    assert!(explanation.more);
    let text = explanation.to_string();
    assert!(text.ends_with("; more is held by others"), "{text}");
    let next = explanation.next();
    assert!(
        next.starts_with("try again when reservations have ended"),
        "{next}"
    );
}

#[test]
fn the_timeout_races_with_the_post_and_one_of_them_wins() {
    // The last millisecond of it still counts, the next does not.
    for (now_ms, posted) in [(999, true), (1000, false)] {
        let mut book = four();
        done(&mut book, 0, vcpu().reserve(id(2), 4, ms(1000)));
        let result = book.apply(now_ms, &[quota::commit(id(2))]);
        assert_eq!(result.is_ok(), posted);
        let expired = done(&mut book, 1000, Operation::Expire(id(2)));
        assert_eq!(expired.repeated, posted, "what was posted does not expire");
        stands(
            &book,
            4,
            if posted { 4 } else { 0 },
            0,
            if posted { 0 } else { 4 },
        );
    }
    let mut book = four();
    done(&mut book, 0, vcpu().reserve(id(2), 4, ms(1000)));
    let early = refused(&mut book, 999, Operation::Expire(id(2)));
    assert_eq!(early.code(), "reservation-not-due");
    done(&mut book, 1000, Operation::Expire(id(2)));
    let late = refused(&mut book, 1000, quota::commit(id(2)));
    assert_eq!(late.code(), "reservation-expired");
}

#[test]
fn a_clock_that_goes_back_frees_and_spends_nothing_twice() {
    let mut book = four();
    done(&mut book, 5000, vcpu().reserve(id(2), 4, ms(1000)));
    // Seen too late, then seen again in time: it was never ended, so it can still be posted.
    let late = refused(&mut book, 6000, quota::commit(id(2)));
    assert_eq!(late.code(), "reservation-expired");
    done(&mut book, 5999, quota::commit(id(2)));
    stands(&book, 4, 4, 0, 0);

    let mut book = four();
    done(&mut book, 5000, vcpu().reserve(id(2), 4, ms(1000)));
    done(&mut book, 6000, Operation::Expire(id(2)));
    // Ended is ended, whatever the clock says afterwards.
    let ended = refused(&mut book, 5000, quota::commit(id(2)));
    assert_eq!(ended.code(), "reservation-expired");
    done(&mut book, 0, vcpu().reserve(id(3), 4, ms(1)));
    stands(&book, 4, 0, 4, 0);
}

#[test]
fn a_reservation_ends_once() {
    let mut book = four();
    done(&mut book, 0, vcpu().reserve(id(2), 1, ms(1000)));
    done(&mut book, 0, quota::commit(id(2)));
    let void = refused(&mut book, 0, quota::release(id(2)));
    assert_eq!(void.code(), "reservation-ended");
    assert!(void.to_string().contains("posted 1 by"), "{void}");
    let other = Operation::Post {
        id: id(9),
        pending: id(2),
        amount: None,
    };
    assert_eq!(refused(&mut book, 0, other).code(), "reservation-ended");

    done(&mut book, 0, vcpu().reserve(id(3), 1, ms(1000)));
    // Its time is over and nobody has noticed: ending it is what is due.
    done(&mut book, 2000, quota::release(id(3)));
    assert_eq!(
        refused(&mut book, 0, quota::commit(id(3))).code(),
        "reservation-ended"
    );
    assert!(done(&mut book, 2000, Operation::Expire(id(3))).repeated);
    assert_eq!(
        refused(&mut book, 0, quota::give_back(id(4), id(3), 1)).code(),
        "not-posted"
    );
}

#[test]
fn an_id_is_one_transfer() {
    let mut book = four();
    let first = vcpu().reserve(id(2), 3, ms(1000));
    assert!(!done(&mut book, 0, first.clone()).repeated);
    let again = done(&mut book, 700, first.clone());
    assert!(again.repeated);
    assert_eq!(again.transfer.unwrap().made_ms, 0, "it is the first one");
    for other in [
        vcpu().reserve(id(2), 2, ms(1000)),
        vcpu().reserve(id(2), 3, ms(1001)),
        Operation::Move(Entry {
            id: id(2),
            debit: vcpu().account(),
            credit: vcpu().used(),
            amount: 3,
            code: quota::CODE_USE,
        }),
        Operation::Void {
            id: id(2),
            pending: id(2),
        },
        vcpu().set_limit(id(2), 9).remove(3),
    ] {
        assert_eq!(refused(&mut book, 0, other), Refusal::OtherTransfer(id(2)));
    }
    // Also when it has ended long since: the answer is how it ended.
    done(&mut book, 1000, Operation::Expire(id(2)));
    let again = done(&mut book, 2000, first).transfer.unwrap();
    assert_eq!(again.state, State::Expired { at_ms: 1000 });
    stands(&book, 4, 0, 0, 4);
}

#[test]
fn a_limit_is_raised_lowered_and_lowered_below_its_use() {
    let mut book = four();
    done(&mut book, 0, vcpu().reserve(id(2), 3, ms(1000)));
    done(&mut book, 0, quota::commit(id(2)));
    done(&mut book, 0, vcpu().reserve(id(3), 1, ms(1000)));
    book.apply(0, &vcpu().set_limit(id(4), 2)).unwrap();
    book.check().unwrap();
    stands(&book, 2, 3, 1, 0);
    let refusal = refused(&mut book, 0, vcpu().reserve(id(5), 1, ms(1000)));
    assert_eq!(
        refusal.to_string(),
        "1 vcpu of t1 refused: limit 2, used 3, reserved 1, free 0"
    );
    // What was reserved before may still be committed.
    done(&mut book, 0, quota::commit(id(3)));
    stands(&book, 2, 4, 0, 0);
    done(&mut book, 0, quota::give_back(id(6), id(2), 2));
    assert_eq!(
        refused(&mut book, 0, vcpu().reserve(id(5), 1, ms(1000))).code(),
        "limit-exceeded"
    );
    done(&mut book, 0, quota::give_back(id(7), id(2), 1));
    done(&mut book, 0, vcpu().reserve(id(5), 1, ms(1000)));
    stands(&book, 2, 1, 1, 0);
    book.apply(0, &vcpu().set_limit(id(8), 10)).unwrap();
    stands(&book, 10, 1, 1, 8);
}

#[test]
fn a_limit_that_was_set_is_not_set_again_by_a_late_try() {
    let mut book = four();
    book.apply(0, &vcpu().set_limit(id(2), 4)).unwrap();
    book.apply(0, &vcpu().set_limit(id(3), 9)).unwrap();
    for (number, limit) in [(1, 4), (2, 4), (3, 9)] {
        let done = book.apply(0, &vcpu().set_limit(id(number), limit)).unwrap();
        assert!(done.iter().all(|one| one.repeated));
    }
    stands(&book, 9, 0, 0, 9);
    let other = book.apply(0, &vcpu().set_limit(id(1), 5)).unwrap_err();
    assert_eq!(
        (other.at, other.refusal),
        (3, Refusal::OtherTransfer(id(1)))
    );
    book.check().unwrap();
}

#[test]
fn a_chain_is_done_in_whole_or_not_at_all() {
    let mut book = four();
    let bytes = Quota {
        unit: name("bytes"),
        ..vcpu()
    };
    book.apply(0, &bytes.set_limit(id(2), 100)).unwrap();
    let chain = |amount| {
        vec![
            vcpu().reserve(id(3), 2, ms(1000)),
            bytes.reserve(id(4), amount, ms(1000)),
        ]
    };
    let before = book.clone();
    let refused = book.apply(0, &chain(101)).unwrap_err();
    assert_eq!(refused.at, 1);
    assert_eq!(book, before);
    book.apply(0, &chain(100)).unwrap();
    // An operation may build on an earlier one of its chain.
    book.apply(
        0,
        &[quota::commit(id(3)), quota::give_back(id(5), id(3), 2)],
    )
    .unwrap();
    book.check().unwrap();
    for count in [0, CHAIN_OPS_MAX + 1] {
        let chain = vec![quota::commit(id(4)); count];
        let refused = book.apply(0, &chain).unwrap_err();
        assert_eq!(refused.refusal, Refusal::ChainLength(count));
    }
    let most = vec![quota::commit(id(4)); CHAIN_OPS_MAX];
    assert_eq!(book.apply(0, &most).unwrap().len(), CHAIN_OPS_MAX);
}

#[test]
fn nonsense_is_refused_by_its_name() {
    let mut book = four();
    let entry = Entry {
        id: id(2),
        debit: vcpu().source(),
        credit: vcpu().account(),
        amount: 1,
        code: 7,
    };
    let nobody = AccountId::derive(["nobody"]);
    let other = Quota {
        unit: name("images"),
        ..vcpu()
    };
    book.apply(0, &other.set_limit(id(90), 1)).unwrap();
    let cases = [
        (Entry { amount: 0, ..entry }, "amount-zero"),
        (
            Entry {
                credit: entry.debit,
                ..entry
            },
            "accounts-same",
        ),
        (
            Entry {
                credit: nobody,
                ..entry
            },
            "account-unknown",
        ),
        (
            Entry {
                debit: nobody,
                ..entry
            },
            "account-unknown",
        ),
        (
            Entry {
                credit: other.used(),
                ..entry
            },
            "units-differ",
        ),
    ];
    for (entry, code) in cases {
        assert_eq!(refused(&mut book, 0, Operation::Move(entry)).code(), code);
        let timeout_ms = ms(1);
        let reserve = Operation::Reserve { entry, timeout_ms };
        assert_eq!(refused(&mut book, 0, reserve).code(), code);
    }
    let long = |timeout_ms| vcpu().reserve(id(2), 1, ms(timeout_ms));
    assert_eq!(
        refused(&mut book, 0, long(TIMEOUT_MS_MAX + 1)).code(),
        "timeout-too-long"
    );
    assert_eq!(
        refused(&mut book, u64::MAX, long(1)).code(),
        "timeout-too-long"
    );
    for of_nothing in [
        quota::commit(id(8)),
        quota::release(id(8)),
        Operation::Expire(id(8)),
    ] {
        assert_eq!(refused(&mut book, 0, of_nothing).code(), "transfer-unknown");
    }
    for of_a_limit in [
        quota::commit(id(1)),
        quota::release(id(1)),
        Operation::Expire(id(1)),
    ] {
        assert_eq!(
            refused(&mut book, 0, of_a_limit).code(),
            "not-a-reservation"
        );
    }
    assert_eq!(
        refused(&mut book, 0, quota::give_back(id(8), id(1), 1)).code(),
        "not-posted"
    );
    let limit = NewLimit {
        id: id(2),
        source: vcpu().source(),
        account: vcpu().account(),
        used: vcpu().account(),
        limit: 1,
        code: 0,
    };
    assert_eq!(
        refused(&mut book, 0, Operation::Limit(limit)).code(),
        "accounts-same"
    );
    let limit = NewLimit {
        used: other.used(),
        ..limit
    };
    assert_eq!(
        refused(&mut book, 0, Operation::Limit(limit)).code(),
        "units-differ"
    );
    let other_kind = NewAccount {
        id: vcpu().used(),
        owner: name("t2"),
        unit: name("vcpu"),
        debits_must_not_exceed_credits: true,
    };
    assert_eq!(
        refused(&mut book, 0, Operation::Open(other_kind)).code(),
        "account-id-taken"
    );
}

#[test]
fn a_quota_is_closed_when_it_is_settled_and_stays_closed() {
    let mut book = four();
    done(&mut book, 0, vcpu().reserve(id(2), 3, ms(1000)));
    let close = vcpu().close(id(3));
    let early = book.apply(0, &close).unwrap_err();
    assert_eq!(early.refusal.code(), "account-unsettled");
    done(&mut book, 0, quota::commit(id(2)));
    let early = book.apply(0, &close).unwrap_err();
    assert_eq!(early.refusal.code(), "account-unsettled");
    stands(&book, 4, 3, 0, 1);
    done(&mut book, 0, quota::give_back(id(4), id(2), 3));
    book.apply(0, &close).unwrap();
    book.check().unwrap();
    let again = book.apply(0, &close).unwrap();
    assert!(again.iter().all(|one| one.repeated));
    let closed = refused(&mut book, 0, vcpu().reserve(id(5), 1, ms(1000)));
    assert_eq!(closed.code(), "account-closed");
    let raised = book.apply(0, &vcpu().set_limit(id(6), 1)).unwrap_err();
    assert_eq!(raised.refusal.code(), "account-closed");
}

#[test]
fn sums_and_limits_that_would_overflow_are_refused() {
    let mut book = four();
    book.apply(0, &vcpu().set_limit(id(2), u64::MAX)).unwrap();
    stands(&book, u128::from(u64::MAX), 0, 0, u128::from(u64::MAX));
    let mut full = book.account(vcpu().account()).unwrap().clone();
    full.credits_posted = SUM_MAX;
    full.debits_posted = SUM_MAX - 4;
    let mut source = book.account(vcpu().source()).unwrap().clone();
    source.debits_posted = SUM_MAX - 1;
    book.know(vec![full, source], Vec::new());
    let entry = Entry {
        id: id(3),
        debit: vcpu().source(),
        credit: vcpu().account(),
        amount: 1,
        code: 0,
    };
    let over = |book: &mut Book, amount| {
        let entry = Entry { amount, ..entry };
        let before = book.clone();
        let refused = book.apply(0, &[Operation::Move(entry)]).unwrap_err();
        assert_eq!(*book, before);
        refused.refusal
    };
    assert_eq!(over(&mut book, 2), Refusal::Overflow(vcpu().source()));
    assert_eq!(over(&mut book, 1), Refusal::Overflow(vcpu().account()));
}

#[test]
fn every_refusal_says_what_to_do_next() {
    let mut book = four();
    let refusal = refused(&mut book, 0, vcpu().reserve(id(2), 5, ms(1)));
    assert!(refusal.next().contains("limit raised"));
    assert_eq!(refusal.code(), "limit-exceeded");
    let damaged = Refusal::Damaged(vcpu().used());
    assert!(damaged.next().contains("restore"));
}

#[test]
fn a_reservation_that_holds_more_than_its_account_says_is_damage() {
    let mut book = four();
    done(&mut book, 0, vcpu().reserve(id(2), 3, ms(1000)));
    let mut account = book.account(vcpu().account()).unwrap().clone();
    account.debits_pending = 2;
    book.know(vec![account], Vec::new());
    assert!(book.check().is_err());
    let refused = book.apply(0, &[quota::commit(id(2))]).unwrap_err();
    assert_eq!(refused.refusal, Refusal::Damaged(vcpu().account()));
}
