//! A process that runs operations, and how it dies.

use std::sync::Arc;
use std::time::Duration;

use control_kit::metrics::Registry;
use control_kit::saga::{Definition, SagaConfig, Sagas};
use control_kit::stop::{self, Stopper};
use control_kit::store::{SharedStore, Write};
use store_sim::{SimStore, World};
use tokio::task::JoinHandle;

use crate::outside::Outside;

/// The steps of the operation.
pub const STEPS: [&str; 3] = ["reserve", "make", "publish"];
/// How long it may take.
pub const DEADLINE: Duration = Duration::from_mins(10);

/// One process.
pub struct Process {
    pub sagas: Sagas,
    store: SimStore,
    running: JoinHandle<()>,
    stopper: Stopper,
}

fn definition(world: &World, outside: &Outside) -> Definition {
    let mut definition = Definition::new("widget-create").deadline(DEADLINE);
    for step in STEPS {
        let (doing, undoing) = (
            (world.clone(), outside.clone()),
            (world.clone(), outside.clone()),
        );
        definition = definition.undoable(
            step,
            move |context| {
                let (world, outside) = doing.clone();
                async move {
                    // Work takes time, in which others may take over.
                    world.pass(Duration::from_millis(300)).await;
                    outside.apply(&context, step)?;
                    if step == "publish" {
                        let key = format!("widget/{}", context.record().object);
                        context.write(Write::put(key, "published"));
                    }
                    Ok(step)
                }
            },
            move |context| {
                let (world, outside) = undoing.clone();
                async move {
                    world.pass(Duration::from_millis(100)).await;
                    if step == "publish" {
                        let key = format!("widget/{}", context.record().object);
                        context.write(Write::Delete(key));
                    }
                    outside.revert(&context, step)
                }
            },
        );
    }
    definition
}

impl Process {
    pub fn start(world: &World, outside: &Outside) -> Process {
        let open_max = SagaConfig::default().open_max;
        Process::bounded(world, outside, open_max)
    }

    /// A process that has so many operations open at most.
    pub fn bounded(world: &World, outside: &Outside, open_max: usize) -> Process {
        Process::with(world, vec![definition(world, outside)], open_max)
    }

    /// A process of another version, which has none of the steps.
    pub fn without_definitions(world: &World) -> Process {
        Process::with(world, Vec::new(), 1)
    }

    fn with(world: &World, definitions: Vec<Definition>, open_max: usize) -> Process {
        let store = world.client();
        let shared: SharedStore = Arc::new(store.clone());
        let config = SagaConfig {
            clock: world.clock(),
            open_max,
            ..SagaConfig::default()
        };
        let (stopper, stop) = stop::pair();
        let (sagas, running) =
            Sagas::start(&shared, config, definitions, &Registry::default(), stop);
        Process {
            sagas,
            store,
            running,
            stopper,
        }
    }

    /// Dies at once, in the middle of whatever it does.
    pub async fn die(self) {
        self.store.cut_off();
        self.running.abort();
        // Cancelled, as it should be.
        let _ = self.running.await;
        drop(self.stopper);
    }

    /// Is cut off and does not know; after a while it hears again, and goes on.
    pub fn sleep_through(self, world: &World, pause: Duration) {
        let world = world.clone();
        self.store.cut_off();
        tokio::spawn(async move {
            world.pass(pause).await;
            self.store.reconnect();
            // It lives on beside the others.
            std::future::pending::<()>().await;
            drop(self);
        });
    }
}
