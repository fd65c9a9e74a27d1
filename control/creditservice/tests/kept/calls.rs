//! What a service calls, and what it is told.

use std::collections::BTreeSet;
use std::time::Duration;

use control_kit::api_error::ApiError;
use control_kit::metrics::Registry;
use control_kit::stop;
use creditservice::{Cursor, Difference, ErrorKind, InUse, Operation, State};
use futures_util::FutureExt as _;
use futures_util::future::join_all;
use store_sim::Faults;
use tonic::{Code, Status};

use crate::support::*;

#[tokio::test(start_paused = true)]
async fn a_quota_is_reserved_committed_and_given_back() {
    let world = World::new();
    let ledger = world.ledger().await;
    assert_eq!(ledger.standing(&vcpu()).await.unwrap(), None);
    let unopened = reserve(&ledger, 2, 1).await;
    assert_eq!(code(unopened), "account-unknown");
    ledger.set_limit(id(1), &vcpu(), 4).await.unwrap();
    reserve(&ledger, 2, 3).await.unwrap();
    stands(&ledger, (4, 0, 3, 1)).await;
    ledger.commit(&[id(2)]).await.unwrap();
    stands(&ledger, (4, 3, 0, 1)).await;
    ledger.give_back(id(3), id(2), 1).await.unwrap();
    stands(&ledger, (4, 2, 0, 2)).await;
    reserve(&ledger, 4, 2).await.unwrap();
    ledger.release(&[id(4)]).await.unwrap();
    stands(&ledger, (4, 2, 0, 2)).await;
    // Each of them again: nothing changes.
    ledger.set_limit(id(1), &vcpu(), 4).await.unwrap();
    reserve(&ledger, 2, 3).await.unwrap();
    ledger.commit(&[id(2)]).await.unwrap();
    ledger.give_back(id(3), id(2), 1).await.unwrap();
    ledger.release(&[id(4)]).await.unwrap();
    stands(&ledger, (4, 2, 0, 2)).await;
    // What was released is not reserved any more, and the one who asks again is told so.
    assert_eq!(code(reserve(&ledger, 4, 2).await), "reservation-ended");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_says_who_holds_it_when_that_ends_and_what_helps() {
    let world = World::new();
    let ledger = world.ledger().await;
    ledger.set_limit(id(1), &vcpu(), 4).await.unwrap();
    ledger.reserve(&[want(2, 3)], ms(40_000)).await.unwrap();
    let error = reserve(&ledger, 3, 2).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert_eq!(
        error.to_string(),
        format!(
            "2 vcpu of t1 refused: limit 4, used 0, reserved 3, free 1; 3 of 4 vcpu held by reservation \
             {}, expires in 40 s",
            id(2)
        )
    );
    let next = "try again in 40 s, release what is not needed, or have the limit raised";
    assert_eq!(error.next(), next);
    assert_eq!(error.explanation().unwrap().holds.len(), 1);
    let api = ApiError::from(&error);
    assert_eq!(api.code(), "limit-exceeded");
    assert_eq!(
        Status::from(api).message(),
        format!("{error}; quota vcpu of t1; next: {next}")
    );
    let other = ledger.reserve(&[want(2, 4)], ms(40_000)).await.unwrap_err();
    let status = Status::from(ApiError::from(&other));
    assert_eq!(status.code(), Code::AlreadyExists, "409 over HTTP");
    let holds = ledger.holds(&vcpu(), 10).await.unwrap();
    assert_eq!((holds[0].reservation, holds[0].amount), (id(2), 3));
}

#[tokio::test(start_paused = true)]
async fn what_has_expired_is_in_nobodys_way_and_one_sweeper_of_many_ends_it() {
    let world = World::new();
    let (ledger, other) = (world.ledger().await, world.ledger().await);
    ledger.set_limit(id(1), &vcpu(), 200).await.unwrap();
    for number in 0..100 {
        reserve(&ledger, 10 + number, 2).await.unwrap();
    }
    assert_eq!(code(reserve(&ledger, 2, 1).await), "limit-exceeded");
    world.pass(1000).await;
    // Nobody has swept: whoever wants the room makes it.
    reserve(&other, 2, 200).await.unwrap();
    stands(&ledger, (200, 0, 200, 0)).await;
    assert_eq!(code(ledger.commit(&[id(10)]).await), "reservation-expired");
    ledger.release(&[id(10), id(11)]).await.unwrap();

    ledger.release(&[id(2)]).await.unwrap();
    for number in 0..150 {
        reserve(&ledger, 1000 + number, 1).await.unwrap();
    }
    assert_eq!(ledger.sweep().await.unwrap(), 0);
    world.pass(1000).await;
    let sweeps = join_all([ledger.sweep(), other.sweep(), ledger.sweep()]).await;
    let expired: usize = sweeps.into_iter().map(Result::unwrap).sum();
    assert_eq!(expired, 150);
    stands(&ledger, (200, 0, 0, 200)).await;
}

#[tokio::test(start_paused = true)]
async fn a_sweeper_that_runs_ends_what_is_due_until_it_is_stopped() {
    let world = World::new();
    let ledger = world.ledger().await;
    ledger.set_limit(id(1), &vcpu(), 4).await.unwrap();
    reserve(&ledger, 2, 4).await.unwrap();
    let (stopper, stop) = stop::pair();
    let swept = ledger.clone();
    let sweeper = tokio::spawn(async move { swept.keep_swept(second(), stop).await });
    world.pass(1000).await;
    while ledger.standing(&vcpu()).await.unwrap().unwrap().reserved > 0 {
        world.pass(100).await;
    }
    stopper.stop();
    sweeper.await.unwrap();
    let transfer = ledger.transfer(id(2)).await.unwrap().unwrap();
    assert!(matches!(transfer.state, State::Expired { .. }));
}

#[tokio::test(start_paused = true)]
async fn callers_at_the_same_time_share_transactions() {
    let world = World::new();
    let registry = Registry::default();
    let ledger = world.counted(&registry).await;
    ledger.set_limit(id(1), &vcpu(), 300).await.unwrap();
    let before = metric(&registry, "uc_creditservice_batches_total");
    let calls = (0..400).map(|number| reserve(&ledger, 10 + number, 1));
    let taken = join_all(calls)
        .await
        .iter()
        .filter(|one| one.is_ok())
        .count();
    assert_eq!(taken, 300);
    let batches = metric(&registry, "uc_creditservice_batches_total") - before;
    assert!(
        (8..=12).contains(&batches),
        "{batches} transactions for 300 reservations"
    );
    let commits: Vec<_> = (0..300).map(|number| id(10 + number)).collect();
    join_all(
        commits
            .iter()
            .map(|one| ledger.commit(std::slice::from_ref(one))),
    )
    .await;
    let batches = metric(&registry, "uc_creditservice_batches_total") - before - batches;
    assert!(
        (12..=16).contains(&batches),
        "{batches} transactions for 300 commits"
    );
    stands(&ledger, (300, 300, 0, 0)).await;
    assert_eq!(metric(&registry, "uc_creditservice_conflicts_total"), 0);
}

#[tokio::test(start_paused = true)]
async fn processes_on_one_ledger_never_give_out_more_than_the_limit() {
    let world = World::with(Faults {
        delay_max: Duration::from_millis(5),
        ..Faults::default()
    });
    let registry = Registry::default();
    let ledgers = [
        world.ledger().await,
        world.counted(&registry).await,
        world.ledger().await,
    ];
    ledgers[0].set_limit(id(1), &vcpu(), 50).await.unwrap();
    let calls = (0..120_u128).map(|number| {
        let ledger = ledgers[number as usize % ledgers.len()].clone();
        async move {
            let taken = reserve(&ledger, 10 + number, 1).await;
            if taken.is_ok() && number % 2 == 0 {
                ledger.commit(&[id(10 + number)]).await.unwrap();
            }
            taken
        }
    });
    let taken = join_all(calls).await;
    assert_eq!(taken.iter().filter(|one| one.is_ok()).count(), 50);
    assert!(
        taken
            .iter()
            .filter_map(|one| one.as_ref().err())
            .all(is_limit)
    );
    let conflicts = metric(&registry, "uc_creditservice_conflicts_total");
    assert!(conflicts > 0, "they did not meet");
    let book = ledgers[0].audit().await.unwrap();
    let standing = vcpu().standing(&book).unwrap();
    assert_eq!((standing.used + standing.reserved, standing.free), (50, 0));
}

#[tokio::test(start_paused = true)]
async fn several_quotas_are_reserved_and_committed_together_or_not_at_all() {
    let world = World::new();
    let ledger = world.ledger().await;
    let bytes = quota("t1", "bytes");
    ledger.set_limit(id(1), &vcpu(), 4).await.unwrap();
    ledger.set_limit(id(2), &bytes, 1 << 40).await.unwrap();
    let mut wants = [want(10, 2), want(11, 0)];
    wants[1].quota = bytes.clone();
    wants[1].amount = (1 << 40) + 1;
    assert_eq!(
        code(ledger.reserve(&wants, ms(1000)).await),
        "limit-exceeded"
    );
    stands(&ledger, (4, 0, 0, 4)).await;
    wants[1].amount = 1 << 40;
    ledger.reserve(&wants, ms(1000)).await.unwrap();
    ledger.release(&[id(11)]).await.unwrap();
    assert_eq!(
        code(ledger.commit(&[id(10), id(11)]).await),
        "reservation-ended"
    );
    stands(&ledger, (4, 0, 2, 2)).await;
    let many: Vec<_> = (20..33).map(|number| want(number, 1)).collect();
    assert_eq!(code(ledger.reserve(&many, ms(1000)).await), "chain-length");
}

#[tokio::test(start_paused = true)]
async fn the_transfers_of_an_account_are_read_page_by_page_in_their_order() {
    let world = World::new();
    let ledger = world.ledger().await;
    ledger.set_limit(id(1), &vcpu(), 1000).await.unwrap();
    join_all((0..150).map(|number| reserve(&ledger, 1000 + number, 1))).await;
    for number in 0..20 {
        reserve(&ledger, 2000 + number, 1).await.unwrap();
    }
    let (mut all, mut from, mut pages) = (Vec::new(), Cursor::start(), 0);
    loop {
        let page = ledger.transfers(vcpu().account(), from, 7).await.unwrap();
        assert!(page.transfers.len() >= 7 || page.next.is_none());
        all.extend(page.transfers);
        pages += 1;
        match page.next {
            Some(next) => from = next,
            None => break,
        }
    }
    assert!(pages > 3, "{pages}");
    let count = ledger
        .account(vcpu().account())
        .await
        .unwrap()
        .unwrap()
        .transfers_count;
    assert_eq!(count, 171);
    let places = all.iter().map(|one| {
        let gives = one.debit == vcpu().account();
        if gives { one.debit_seq } else { one.credit_seq }
    });
    assert!(places.eq(1..=171));
    let none = ledger
        .transfers(vcpu().source(), Cursor::start(), 7)
        .await
        .unwrap();
    assert_eq!((none.transfers.len(), none.next), (1, None));
}

#[tokio::test(start_paused = true)]
async fn an_inventory_that_differs_is_drift_and_the_metric_says_by_how_much() {
    let world = World::new();
    let registry = Registry::default();
    let ledger = world.counted(&registry).await;
    let other = quota("t2", "vcpu");
    ledger.set_limit(id(1), &vcpu(), 100).await.unwrap();
    ledger.set_limit(id(2), &other, 100).await.unwrap();
    ledger
        .set_limit(id(3), &quota("t1", "bytes"), 100)
        .await
        .unwrap();
    let mut bytes = want(13, 50);
    bytes.quota = quota("t1", "bytes");
    for (want, committed) in [
        (want(10, 4), true),
        (want(11, 5), true),
        (want(12, 6), false),
        (bytes, true),
    ] {
        ledger
            .reserve(std::slice::from_ref(&want), ms(1000))
            .await
            .unwrap();
        if committed {
            ledger.commit(&[want.reservation]).await.unwrap();
        }
    }
    let units: BTreeSet<_> = [vcpu().unit].into();
    let has = |number: u128, amount| InUse {
        quota: vcpu(),
        reservation: id(number),
        amount,
    };
    let right = [has(10, 4), has(11, 5), has(12, 6)];
    let drift = ledger.reconcile(&units, &right).await.unwrap();
    assert_eq!((drift.differences, drift.units), (vec![], 0));
    assert_eq!(drift.pending, [has(12, 6)]);
    assert_eq!(metric(&registry, "uc_creditservice_drift_units"), 0);

    // One smaller, one gone, one that nobody has reserved, one of another tenant's.
    let stranger = InUse {
        quota: other.clone(),
        reservation: id(12),
        amount: 6,
    };
    let wrong = [has(10, 3), has(99, 7), stranger];
    let drift = ledger.reconcile(&units, &wrong).await.unwrap();
    let differs = |quota: &creditservice::Quota, number, ledger, inventory| Difference {
        quota: quota.clone(),
        reservation: id(number),
        ledger,
        inventory,
    };
    let wanted = [
        differs(&vcpu(), 10, 4, 3),
        differs(&vcpu(), 11, 5, 0),
        differs(&vcpu(), 99, 0, 7),
        differs(&other, 12, 0, 6),
    ];
    assert_eq!(drift.differences, wanted);
    assert_eq!(
        metric(&registry, "uc_creditservice_drift_units"),
        1 + 5 + 7 + 6
    );
    let text = drift.differences[0].to_string();
    assert_eq!(
        text,
        format!(
            "vcpu of t1, reservation {}: 4 in the ledger, 3 in the inventory",
            id(10)
        )
    );
    // A reservation that expires while the thing is there is drift as well.
    world.pass(1000).await;
    ledger.sweep().await.unwrap();
    assert_eq!(ledger.reconcile(&units, &right).await.unwrap().units, 6);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_dropped_is_done_or_not_and_the_same_call_tells() {
    let world = World::new();
    let ledger = world.ledger().await;
    ledger.set_limit(id(1), &vcpu(), 4).await.unwrap();
    {
        let call = reserve(&ledger, 2, 3);
        tokio::pin!(call);
        // Once polled, it waits in the queue.
        assert!(call.as_mut().now_or_never().is_none());
    }
    reserve(&ledger, 2, 3).await.unwrap();
    stands(&ledger, (4, 0, 3, 1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_is_full_says_so() {
    let world = World::new();
    let ledger = world.ledger().await;
    let calls = (0..5000).map(|_| ledger.submit(vec![Operation::Expire(id(9))]));
    let busy = |one: &Result<_, creditservice::Error>| matches!(one, Err(error) if error.kind() == ErrorKind::Busy);
    let answers = join_all(calls).await;
    assert_eq!(answers.iter().filter(|one| busy(one)).count(), 5000 - 4096);
}
