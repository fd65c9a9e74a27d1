//! A reconciler in a simulated cloud: whatever changes, is lost, breaks or fails, what is outside becomes what
//! stands in the store.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use control_kit::metrics::Registry;
use control_kit::reconcile::{Config, Metrics, Next, Reconcile, run};
use control_kit::stop;
use control_kit::store::{SharedStore, Txn, Write, get};
use store_sim::{Faults, World, for_seeds};

/// Seeds, unless `UC_SEEDS` says more; `UC_SEED` replays one.
const SEEDS: u64 = 200;

/// Keeps a copy of the objects.
struct Copier {
    world: World,
    store: SharedStore,
    copy: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
    busy: Mutex<Vec<String>>,
}

#[async_trait]
impl Reconcile for Copier {
    async fn reconcile(&self, key: &str) -> Result<Next, String> {
        {
            let mut busy = self.busy.lock().unwrap();
            assert!(
                !busy.iter().any(|one| one == key),
                "{key} is looked at twice at once"
            );
            busy.push(key.to_owned());
        }
        let looked = self.look(key).await;
        self.busy.lock().unwrap().retain(|one| one != key);
        looked
    }

    async fn inventory(&self) -> Result<Vec<String>, String> {
        Ok(self.copy.lock().unwrap().keys().cloned().collect())
    }
}

impl Copier {
    async fn look(&self, key: &str) -> Result<Next, String> {
        let found = get(&*self.store, key)
            .await
            .map_err(|error| error.to_string())?;
        let pause = self.world.network().below(500);
        self.world.pass(Duration::from_millis(pause)).await;
        if self.world.network().below(10) == 0 {
            return Err("it did not work this time".into());
        }
        let mut copy = self.copy.lock().unwrap();
        match found {
            Some(entry) => copy.insert(key.to_owned(), entry.value.to_vec()),
            None => copy.remove(key),
        };
        Ok(Next::Settled)
    }
}

async fn storm(seed: u64) {
    let world = World::new(seed, Faults::rough());
    let store: SharedStore = Arc::new(world.client());
    let copy = Arc::default();
    let copier = Arc::new(Copier {
        world: world.clone(),
        store: Arc::clone(&store),
        copy: Arc::clone(&copy),
        busy: Mutex::default(),
    });
    let (stopper, stop) = stop::pair();
    let metrics = Metrics::new(&Registry::default());
    let config = Config {
        workers: 3,
        ..Config::default()
    };
    let running = run(Arc::clone(&store), "wanted/", config, metrics, copier, stop);
    let running = tokio::spawn(running);
    let writer = world.client();
    for _ in 0..30 {
        let key = format!("wanted/{}", world.network().below(6));
        let write = match world.network().below(4) {
            0 => Write::Delete(key),
            number => Write::put(key, format!("value {number}")),
        };
        // A write that fails, or comes late, is as good as any other.
        let _ = control_kit::store::Store::commit(&writer, Txn::default().then(write)).await;
        let pause = world.network().below(1000);
        world.pass(Duration::from_millis(pause)).await;
    }
    // What is late arrives, and then nothing changes any more.
    world.pass(Duration::from_mins(1)).await;
    world.network().set(Faults::default());
    world.pass(Duration::from_mins(15)).await;
    let range = control_kit::store::Range::prefix("wanted/", 100);
    let wanted = control_kit::store::all(&*store, range).await.unwrap();
    let wanted: BTreeMap<String, Vec<u8>> = wanted
        .into_iter()
        .map(|entry| (entry.key, entry.value.to_vec()))
        .collect();
    assert_eq!(*copy.lock().unwrap(), wanted, "seed {seed}");
    stopper.stop();
    running.await.unwrap();
}

#[test]
fn what_is_outside_becomes_what_is_wanted() {
    for_seeds(SEEDS, storm);
}
