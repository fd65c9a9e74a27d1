//! Random clients on one ledger in a simulated cloud: BY-4.
//!
//! What may go wrong: two processes with clocks that differ work on one ledger; either dies at any message,
//! in the middle of calls, and starts again; requests and answers get lost, and writes arrive long after
//! their sender has given up. Clients try again with the same ids until they know, as a saga does whose
//! executor died; some give up for good before they have begun to commit, as one does that nobody adopts.
//!
//! What must hold: at every look the laws of the ledger do, and no more is reserved and used than the limit;
//! what a client was told is so; and when all is over and swept, nothing is reserved, and what the ledger
//! says is used is what the clients have.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU64;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use control_kit::clock::Clock;
use creditservice::{
    Book, Error, ErrorKind, InUse, Ledger, Options, Quota, Refusal, TransferId, Want,
};
use store_sim::{Faults, SimStore, World, for_seeds};
use tokio::task::{JoinHandle, LocalSet};

use crate::support::{id, quota};

/// Seeds, unless `UC_SEEDS` says more; `UC_SEED` replays one.
const SEEDS: u64 = 200;
const CLIENTS: u64 = 5;
const ROUNDS: u64 = 6;
const LIMIT: u64 = 12;
const UNITS: [&str; 2] = ["vcpu", "images"];
const TIMEOUT_MS: NonZeroU64 = NonZeroU64::new(30_000).unwrap();

/// What clients have, by reservation.
type Has = BTreeMap<(Quota, TransferId), u64>;

fn options(clock: Clock) -> Options {
    Options {
        clock,
        patience: Duration::from_secs(5),
        ..Options::default()
    }
}

/// A process that has the ledger open. It dies by being cut off: what it has sent may still arrive.
struct Process {
    world: World,
    /// By how much its clock is ahead.
    ahead_ms: u64,
    running: RefCell<Option<(SimStore, Ledger, JoinHandle<()>)>>,
}

impl Process {
    fn new(world: &World, ahead_ms: u64) -> Rc<Process> {
        Rc::new(Process {
            world: world.clone(),
            ahead_ms,
            running: RefCell::default(),
        })
    }

    fn kill(&self) {
        if let Some((store, _, sweeper)) = self.running.take() {
            store.cut_off();
            sweeper.abort();
        }
    }

    /// Its ledger; it starts where it does not run.
    async fn ledger(&self) -> Ledger {
        loop {
            if let Some((_, ledger, _)) = &*self.running.borrow() {
                return ledger.clone();
            }
            let store = self.world.client();
            let ahead = Clock::virtual_from(self.world.clock().unix_ms() + self.ahead_ms);
            let Ok(ledger) = Ledger::open(Arc::new(store.clone()), options(ahead)).await else {
                continue;
            };
            let swept = ledger.clone();
            let (stopper, stop) = control_kit::stop::pair();
            let sweeper = tokio::spawn(async move {
                let _stopper = stopper;
                swept.keep_swept(Duration::from_secs(5), stop).await;
            });
            self.kill();
            self.running.replace(Some((store, ledger, sweeper)));
        }
    }
}

/// A client: it has some of the quotas, by reservation, and knows so.
struct Client {
    number: u64,
    world: World,
    processes: [Rc<Process>; 2],
    has: Rc<RefCell<Has>>,
}

impl Client {
    fn chance(&self, of: u64) -> bool {
        self.world.network().below(of) == 0
    }

    /// Asks one process or the other until the outcome is known.
    async fn certain<T, F: Future<Output = Result<T, Error>>>(
        &self,
        mut call: impl FnMut(Ledger) -> F,
    ) -> Result<T, Refusal> {
        loop {
            let error = match self.once(&mut call).await {
                Some(Ok(done)) => return Ok(done),
                Some(Err(error)) => error,
                None => continue,
            };
            if let Some(refused) = error.refusal() {
                return Err(refused.refusal.clone());
            }
            let passing = [ErrorKind::Unavailable, ErrorKind::Unknown];
            assert!(passing.contains(&error.kind()), "{error}");
        }
    }

    /// Asks one of the processes. No answer comes from one that is dead.
    async fn once<T, F: Future<Output = Result<T, Error>>>(
        &self,
        call: &mut impl FnMut(Ledger) -> F,
    ) -> Option<Result<T, Error>> {
        let process = &self.processes[self.world.network().below(2) as usize];
        let ledger = limited(process.ledger()).await?;
        limited(call(ledger)).await
    }

    async fn work(self) {
        for round in 0..ROUNDS {
            self.round(round).await;
        }
    }

    fn wants(&self, round: u64) -> Vec<Want> {
        let count = 1 + self.world.network().below(2) as usize;
        let one = |unit: &str| Want {
            quota: quota("t1", unit),
            reservation: self.id(round, unit),
            amount: 1 + self.world.network().below(4),
        };
        UNITS.into_iter().take(count).map(one).collect()
    }

    fn id(&self, round: u64, what: &str) -> TransferId {
        TransferId::derive([format!("{}/{round}/{what}", self.number)])
    }

    async fn round(&self, round: u64) {
        let wants = self.wants(round);
        let mut reserve = |ledger: Ledger| {
            let wants = wants.clone();
            async move { ledger.reserve(&wants, TIMEOUT_MS).await }
        };
        if self.chance(5) {
            self.once(&mut reserve).await;
            return;
        }
        if let Err(reason) = self.certain(reserve).await {
            let fits = matches!(reason, Refusal::Exceeds(_) | Refusal::Ended { .. });
            assert!(fits, "{reason}");
            return;
        }
        let ids: Vec<TransferId> = wants.iter().map(|want| want.reservation).collect();
        if self.chance(4) {
            let release = |ledger: Ledger| {
                let ids = ids.clone();
                async move { ledger.release(&ids).await }
            };
            return self.certain(release).await.unwrap();
        }
        let commit = |ledger: Ledger| {
            let ids = ids.clone();
            async move { ledger.commit(&ids).await }
        };
        if let Err(reason) = self.certain(commit).await {
            assert!(matches!(reason, Refusal::Expired { .. }), "{reason}");
            return;
        }
        let taken = wants
            .iter()
            .map(|one| ((one.quota.clone(), one.reservation), one.amount));
        self.has.borrow_mut().extend(taken);
        if self.chance(2) {
            self.give_back(round, &wants[0]).await;
        }
    }

    async fn give_back(&self, round: u64, want: &Want) {
        let amount = 1 + self.world.network().below(want.amount);
        let back = self.id(round, "back");
        let give_back =
            |ledger: Ledger| async move { ledger.give_back(back, want.reservation, amount).await };
        self.certain(give_back).await.unwrap();
        let key = (want.quota.clone(), want.reservation);
        *self.has.borrow_mut().get_mut(&key).unwrap() -= amount;
    }
}

async fn limited<T>(call: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(Duration::from_secs(20), call)
        .await
        .ok()
}

/// Kills one process or the other, after some messages each time, until it is ended.
async fn trouble(world: World, processes: [Rc<Process>; 2]) {
    loop {
        let next = world.network().messages() + 1 + world.network().below(120);
        world.network().message(next).await;
        processes[world.network().below(2) as usize].kill();
    }
}

/// Looks at the ledger over and over, as soon as it holds still.
async fn look(world: World, ledger: Ledger) {
    loop {
        match ledger.audit().await {
            Ok(book) => check(&book),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}"),
        }
        world.pass(Duration::from_secs(1)).await;
    }
}

fn check(book: &Book) {
    for unit in UNITS {
        let Some(now) = quota("t1", unit).standing(book) else {
            continue;
        };
        assert!(
            now.used + now.reserved <= u128::from(LIMIT),
            "{unit}: {now:?}"
        );
    }
}

async fn history(seed: u64) {
    let world = World::new(seed, Faults::default());
    let last = Ledger::open(Arc::new(world.client()), options(world.clock()));
    let last = last.await.unwrap();
    for (number, unit) in (1..).zip(UNITS) {
        let quota = quota("t1", unit);
        last.set_limit(id(number), &quota, LIMIT).await.unwrap();
    }
    world.network().set(Faults::rough());
    let ahead_ms = world.network().below(20_000);
    let processes = [Process::new(&world, 0), Process::new(&world, ahead_ms)];
    let has: Rc<RefCell<Has>> = Rc::default();
    let clients = (0..CLIENTS).map(|number| {
        let client = Client {
            number,
            world: world.clone(),
            processes: processes.clone(),
            has: Rc::clone(&has),
        };
        tokio::task::spawn_local(client.work())
    });
    let clients: Vec<_> = clients.collect();
    let trouble = tokio::task::spawn_local(trouble(world.clone(), processes.clone()));
    let looking = tokio::task::spawn_local(look(world.clone(), last.clone()));
    for client in clients {
        client.await.unwrap();
    }
    trouble.abort();
    looking.abort();
    if let Err(error) = looking.await {
        assert!(error.is_cancelled(), "{error}");
    }
    for process in &processes {
        process.kill();
    }
    world.network().set(Faults::default());
    // Whatever is late arrives, and every time is over.
    world.pass(Duration::from_mins(2)).await;
    last.sweep().await.unwrap();
    judge(&last, has.take()).await;
}

/// All is over: nothing is reserved, and the ledger says what the clients have.
async fn judge(ledger: &Ledger, has: Has) {
    let book = ledger.audit().await.unwrap();
    check(&book);
    for account in book.accounts() {
        assert_eq!((account.debits_pending, account.credits_pending), (0, 0));
    }
    let one = |((quota, reservation), amount)| InUse {
        quota,
        reservation,
        amount,
    };
    let inventory: Vec<InUse> = has.into_iter().map(one).collect();
    let units: BTreeSet<_> = UNITS
        .into_iter()
        .map(|unit| quota("t1", unit).unit)
        .collect();
    let drift = ledger.reconcile(&units, &inventory).await.unwrap();
    assert_eq!(
        (drift.units, drift.pending.len()),
        (0, 0),
        "{:?}",
        drift.differences
    );
    assert!(book.transfers().count() > 5, "nothing was done");
}

#[test]
fn seeds_of_clients_crashes_and_lost_answers_leave_no_drift() {
    for_seeds(SEEDS, |seed| async move {
        LocalSet::new().run_until(history(seed)).await;
    });
}
