//! The keeper over a real state machine, with the time that a test says.

use std::sync::atomic::{AtomicU64, Ordering};

use chainfire_core::TokioRuntime;
use chainfire_store::{AppliedMeta, Durable, InMemoryBackend, Options, Store};
use etcd_wire::RpcError;
use etcd_wire::chainfire::outcome;
use etcd_wire::etcdserverpb::LeaseGrantRequest;

use super::*;
use crate::consensus::{Change, Member, Standing};

type Keeper = LeaseKeeper<TokioRuntime>;

/// A cluster of one, without a log: what is proposed is applied at once.
struct Alone {
    store: Mutex<(Store, u64)>,
    term: AtomicU64,
}

impl Alone {
    fn new() -> Alone {
        let store = Store::open(InMemoryBackend::new(), Options::default()).unwrap();
        Alone {
            store: Mutex::new((store, 0)),
            term: AtomicU64::new(1),
        }
    }

    async fn grant(&self, id: i64, ttl: i64) {
        let command = Command {
            op: Some(Op::LeaseGrant(LeaseGrantRequest { id, ttl })),
            ..Command::default()
        };
        self.propose(command).await.unwrap();
    }

    fn remaining_s(&self, id: i64) -> i64 {
        self.view().lease(id).unwrap().remaining_s
    }
}

#[tonic::async_trait]
impl Consensus for Alone {
    fn cluster_id(&self) -> u64 {
        1
    }

    fn member_id(&self) -> u64 {
        1
    }

    fn term(&self) -> u64 {
        self.term.load(Ordering::Relaxed)
    }

    async fn propose(&self, command: Command) -> Result<outcome::Result, Status> {
        let mut guard = self.store.lock().unwrap();
        let (store, index) = &mut *guard;
        *index += 1;
        let mut batch = store.batch();
        let outcome = batch.apply(&command, *index).unwrap();
        batch.commit(AppliedMeta::default(), Durable::No).unwrap();
        Ok(outcome?)
    }

    async fn propose_leading(
        &self,
        term: u64,
        command: Command,
    ) -> Result<outcome::Result, Status> {
        if term != self.term() {
            return Err(RpcError::NotLeader.into());
        }
        self.propose(command).await
    }

    async fn barrier(&self) -> Result<(), Status> {
        Ok(())
    }

    fn view(&self) -> Arc<View> {
        self.store.lock().unwrap().0.view()
    }

    fn standing(&self) -> Standing {
        Standing {
            member_id: 1,
            leader_id: 1,
            term: self.term(),
            ..Standing::default()
        }
    }

    async fn change(&self, _: Change) -> Result<Vec<Member>, Status> {
        Err(RpcError::NotLeader.into())
    }

    async fn transfer(&self, _: u64) -> Result<u64, Status> {
        Err(RpcError::NotLeader.into())
    }

    async fn lease_time(&self, _: i64, _: bool) -> Result<Option<LeaseTime>, Status> {
        Err(RpcError::NotLeader.into())
    }
}

fn left_s(keeper: &Keeper, alone: &Alone, id: i64, now: u64) -> i64 {
    let time = keeper.time_at(&alone.view(), alone.term(), id, true, now);
    time.unwrap().ttl
}

#[tokio::test]
async fn what_a_lease_has_left_survives_a_change_of_leaders() {
    let (alone, keeper) = (Alone::new(), Keeper::new());
    alone.grant(1, 1_000).await;
    alone.grant(2, 60).await;
    assert_eq!(keeper.look(&alone, 0), (1, Vec::new()));
    keeper.checkpoint(&alone, 1, 299_999).await;
    assert_eq!(alone.remaining_s(1), 0, "not yet");
    keeper.checkpoint(&alone, 1, 400_000).await;
    assert_eq!(alone.remaining_s(1), 600);
    assert_eq!(alone.remaining_s(2), 0, "too short");

    alone.term.store(2, Ordering::Relaxed);
    assert_eq!(left_s(&keeper, &alone, 1, 500_000), 600);
    assert_eq!(left_s(&keeper, &alone, 2, 500_000), 60);
    assert_eq!(keeper.look(&alone, 1_100_000), (2, vec![2, 1]));
}

#[tokio::test]
async fn a_leader_of_before_checkpoints_no_more() {
    let (alone, keeper) = (Alone::new(), Keeper::new());
    alone.grant(1, 1_000).await;
    keeper.look(&alone, 0);
    alone.term.store(2, Ordering::Relaxed);
    keeper.checkpoint(&alone, 1, 400_000).await;
    assert_eq!(alone.remaining_s(1), 0);
}

#[tokio::test]
async fn a_renewal_takes_the_checkpoint_back() {
    let (alone, keeper) = (Alone::new(), Keeper::new());
    alone.grant(1, 1_000).await;
    keeper.look(&alone, 0);
    keeper.checkpoint(&alone, 1, 400_000).await;
    let renewed = keeper.time_at(&alone.view(), 1, 1, false, 410_000);
    assert_eq!(renewed.unwrap().ttl, 1_000);
    keeper.uncheckpoint(&alone, 1).await.unwrap();
    assert_eq!(alone.remaining_s(1), 0);
    alone.term.store(2, Ordering::Relaxed);
    assert_eq!(left_s(&keeper, &alone, 1, 420_000), 1_000);
}

#[tokio::test]
async fn a_renewal_under_a_new_leader_takes_the_old_ones_checkpoint_back() {
    let (alone, keeper) = (Alone::new(), Keeper::new());
    alone.grant(1, 1_000).await;
    keeper.look(&alone, 0);
    keeper.checkpoint(&alone, 1, 400_000).await;
    alone.term.store(2, Ordering::Relaxed);
    let renewed = keeper.time_at(&alone.view(), 2, 1, false, 500_000);
    assert_eq!(renewed.unwrap().ttl, 1_000);
    keeper.uncheckpoint(&alone, 1).await.unwrap();
    assert_eq!(alone.remaining_s(1), 0);
}
