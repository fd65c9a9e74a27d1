//! openraft's own suite for logs and state machines, over ours.

use std::sync::{Arc, Mutex};

use openraft::StorageError;
use openraft::async_runtime::AsyncRuntime as _;
use openraft::testing::log::{StoreBuilder, Suite};
use openraft_rt_sim::SimRuntime;

use crate::env::Environment as _;
use crate::log_store::LogStore;
use crate::machine::{Durability, Machine, Waiting};
use crate::sim::cluster::SimEnvironment;
use crate::sim::disk::{Random, SimDisk, SimFile};
use crate::sim::machine::{self, Ledger};
use crate::sim::runtime::NodeRuntime;
use crate::types::TypeConfig;
use crate::wal::{self, Opened, WalOptions};

type Log = LogStore<NodeRuntime, SimFile>;
type State = Machine<SimEnvironment, machine::Machine>;

struct Builder;

impl StoreBuilder<TypeConfig<NodeRuntime>, Log, State> for Builder {
    async fn build(&self) -> Result<((), Log, State), StorageError<TypeConfig<NodeRuntime>>> {
        let random = Arc::new(Mutex::new(Random::new(1)));
        let environment = SimEnvironment::new(random, SimDisk::new());
        let state = machine::Machine::open(SimDisk::new(), Ledger::default()).unwrap();
        let (state, _) = State::new(
            environment.clone(),
            state,
            Waiting::default(),
            Durability::default(),
        )
        .unwrap();
        let Opened { wal, writer, jobs } =
            wal::open(environment.log_disk(), WalOptions::default()).unwrap();
        environment.start_writer(writer, jobs).unwrap();
        Ok(((), Log::new(wal), state))
    }
}

#[test]
fn log_and_state_machine_do_what_openraft_expects() {
    SimRuntime::with_seed(1).block_on(async {
        Suite::test_all(Builder).await.unwrap();
    });
}
