//! Answers that get lost, and requests that come late.
//!
//! What may go wrong: a transaction whose answer is lost has been done, has not been done, or is done later,
//! at any time. What must hold: the caller is told what has become of what it asked, and what it was told
//! stays true.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use control_kit::store::wire::COMMIT;
use control_kit::store::{
    LeaseId, Outcome, Page, Range, SharedStore, Store, StoreError, StoreErrorKind, Txn, Watch,
};
use creditservice::{Error, ErrorKind, Ledger, State, TransferId};

use crate::support::*;

/// What becomes of a transaction that writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Done, and the answer is lost.
    Done,
    /// Not done, and the caller cannot know.
    Lost,
    /// It is on its way still, until [`Faulty::arrive`]; its sender has waited for a second.
    Late,
    /// Nobody was there.
    Unreached,
    /// The store is full.
    Full,
}

/// A store that lets the next transactions that write go wrong.
struct Faulty {
    sim: store_sim::World,
    store: SharedStore,
    fates: Mutex<Vec<Fate>>,
    late: Mutex<Vec<Txn>>,
}

impl Faulty {
    fn next(&self, fates: &[Fate]) {
        *self.fates.lock().unwrap() = fates.iter().rev().copied().collect();
    }

    /// What was late arrives; whether any of it changed something.
    async fn arrive(&self) -> bool {
        let late = std::mem::take(&mut *self.late.lock().unwrap());
        assert!(!late.is_empty(), "nothing was late");
        let mut changed = false;
        for txn in late {
            let outcome = self.store.commit(txn).await.unwrap();
            changed |= matches!(outcome, Outcome::Committed { .. });
        }
        changed
    }
}

#[async_trait]
impl Store for Faulty {
    async fn commit(&self, txn: Txn) -> Result<Outcome, StoreError> {
        let writes = !txn.writes.is_empty();
        let fate = writes.then(|| self.fates.lock().unwrap().pop()).flatten();
        let kind = match fate {
            None => return self.store.commit(txn).await,
            Some(Fate::Done) => {
                self.store.commit(txn).await?;
                StoreErrorKind::Unknown
            }
            Some(Fate::Lost) => StoreErrorKind::Unknown,
            Some(Fate::Late) => {
                self.late.lock().unwrap().push(txn);
                self.sim.pass(Duration::from_secs(1)).await;
                StoreErrorKind::Unknown
            }
            Some(Fate::Unreached) => StoreErrorKind::Unavailable,
            Some(Fate::Full) => StoreErrorKind::Refused,
        };
        Err(StoreError::new(kind, COMMIT, "so the test wants it"))
    }

    async fn range(&self, range: Range) -> Result<Page, StoreError> {
        self.store.range(range).await
    }

    async fn watch(&self, prefix: &str, since: i64) -> Result<Watch, StoreError> {
        self.store.watch(prefix, since).await
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.store.grant(ttl).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.store.keep_alive(lease).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.store.revoke(lease).await
    }
}

/// Reserves for longer than anything is late here.
async fn reserve(ledger: &Ledger, number: u128, amount: u64) -> Result<(), Error> {
    ledger.reserve(&[want(number, amount)], ms(60_000)).await
}

fn faulty_world() -> (Arc<Faulty>, World) {
    let mut world = World::new();
    let faulty = Arc::new(Faulty {
        sim: world.sim.clone(),
        store: world.store.clone(),
        fates: Mutex::default(),
        late: Mutex::default(),
    });
    world.store = faulty.clone();
    (faulty, world)
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_is_found_by_its_id_and_what_was_not_done_is_done() {
    for fates in [
        &[Fate::Done][..],
        &[Fate::Lost],
        &[Fate::Unreached, Fate::Unreached],
        &[Fate::Done, Fate::Lost, Fate::Done],
        &[
            Fate::Lost,
            Fate::Done,
            Fate::Lost,
            Fate::Unreached,
            Fate::Lost,
        ],
    ] {
        let (faulty, world) = faulty_world();
        let ledger = world.ledger().await;
        ledger.set_limit(id(1), &vcpu(), 4).await.unwrap();
        faulty.next(fates);
        reserve(&ledger, 2, 3).await.unwrap();
        stands(&ledger, (4, 0, 3, 1)).await;
        faulty.next(fates);
        ledger.commit(&[id(2)]).await.unwrap();
        stands(&ledger, (4, 3, 0, 1)).await;
        faulty.next(fates);
        assert_eq!(code(reserve(&ledger, 3, 2).await), "limit-exceeded");
        faulty.next(fates);
        ledger
            .set_limit(id(4), &quota("t2", "vcpu"), 4)
            .await
            .unwrap();
        stands(&ledger, (4, 3, 0, 1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_comes_late_does_nothing_twice() {
    let (faulty, world) = faulty_world();
    let ledger = world.ledger().await;
    ledger.set_limit(id(1), &vcpu(), 4).await.unwrap();
    faulty.next(&[Fate::Late]);
    reserve(&ledger, 2, 3).await.unwrap();
    assert!(!faulty.arrive().await, "it was done already");
    faulty.next(&[Fate::Late, Fate::Late]);
    ledger.commit(&[id(2)]).await.unwrap();
    assert!(!faulty.arrive().await);
    stands(&ledger, (4, 3, 0, 1)).await;
    // The first limit of a quota has no account yet that it depends on.
    let other = quota("t2", "images");
    faulty.next(&[Fate::Late]);
    ledger.set_limit(id(3), &other, 7).await.unwrap();
    assert!(!faulty.arrive().await);
    ledger.audit().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_was_refused_after_a_lost_answer_stays_refused_when_the_request_comes_late() {
    let (faulty, world) = faulty_world();
    let ledger = world.ledger().await;
    ledger.set_limit(id(1), &vcpu(), 4).await.unwrap();
    ledger.reserve(&[want(2, 3)], ms(1000)).await.unwrap();
    // Its time is over before anybody knows whether it was posted.
    faulty.next(&[Fate::Late]);
    assert_eq!(code(ledger.commit(&[id(2)]).await), "reservation-expired");
    assert!(!faulty.arrive().await, "it was told that it did not happen");
    stands(&ledger, (4, 0, 3, 1)).await;
    let transfer = ledger.transfer(id(2)).await.unwrap().unwrap();
    assert!(matches!(transfer.state, State::Pending { .. }));
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_found_out_in_time_is_answered_as_unknown_and_asking_again_tells() {
    let (faulty, world) = faulty_world();
    let ledger = world.ledger().await;
    ledger.set_limit(id(1), &vcpu(), 4).await.unwrap();
    faulty.next(&[Fate::Lost; 500]);
    let error = reserve(&ledger, 2, 3).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unknown);
    assert!(
        error.next().contains("with the same ids"),
        "{}",
        error.next()
    );
    faulty.next(&[Fate::Unreached; 500]);
    let error = reserve(&ledger, 2, 3).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    faulty.next(&[Fate::Full]);
    let error = reserve(&ledger, 2, 3).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Store);
    faulty.next(&[]);
    reserve(&ledger, 2, 3).await.unwrap();
    stands(&ledger, (4, 0, 3, 1)).await;
}

#[tokio::test(start_paused = true)]
async fn one_call_in_trouble_does_not_change_what_another_process_was_told() {
    let (faulty, world) = faulty_world();
    let (one, other) = (world.ledger().await, world.ledger().await);
    one.set_limit(id(1), &vcpu(), 4).await.unwrap();
    for number in 0..20_u128 {
        let reservation = |which: u128| 100 + 2 * number + which;
        faulty.next(&[Fate::Late, Fate::Done]);
        let (first, second) = tokio::join!(
            reserve(&one, reservation(0), 3),
            reserve(&other, reservation(1), 3)
        );
        assert_ne!(first.is_ok(), second.is_ok(), "there is room for one");
        if !faulty.late.lock().unwrap().is_empty() {
            faulty.arrive().await;
        }
        stands(&one, (4, 0, 3, 1)).await;
        let both: [TransferId; 2] = [id(reservation(0)), id(reservation(1))];
        for (id, taken) in both.into_iter().zip([first, second]) {
            let there = one.transfer(id).await.unwrap();
            assert_eq!(there.is_some(), taken.is_ok());
            if there.is_some() {
                one.release(&[id]).await.unwrap();
            }
        }
    }
}
