//! Starts an engine of real shard cores on simulated backends. The only part of the simulator
//! that knows how a core is built.

use std::rc::Rc;
use std::sync::Arc;

use super::{NodeId, Sim, SimBackend, Tickable, WorldTask};
use crate::buf::Pool;
use crate::config::{EngineConfig, ValidConfig};
use crate::engine::{EngineHandle, Mesh};
use crate::error::{Error, ErrorKind};
use crate::flows::Flow;
use crate::sched::SchedGroup;
use crate::shard::{ShardCore, ShardId, ShardParts};
use crate::task::TaskInfo;
use crate::time::Nanos;

/// A core with the mesh that brings its mail.
struct SimCore {
    core: Rc<ShardCore>,
    mesh: Arc<Mesh>,
}

impl Tickable for SimCore {
    fn tick(&self) -> bool {
        self.core.tick()
    }

    fn is_runnable(&self) -> bool {
        self.core.is_runnable()
    }

    fn next_deadline(&self) -> Option<Nanos> {
        self.core.next_deadline()
    }

    fn teardown(&self) {
        self.mesh.stop();
        self.core.teardown();
        // The backend is dead and answers at once, so each round empties the slots.
        while self.core.in_flight() > 0 && self.core.tick() {
            self.core.teardown();
        }
        self.mesh.discard(self.core.id());
    }

    fn spawn(&self, task: WorldTask) {
        let info = TaskInfo {
            group: SchedGroup::FOREGROUND,
            level: 0,
            flow: Flow::OWN,
        };
        self.core.spawn(info, task).detach();
    }
}

impl Sim {
    /// Starts an engine on a node and gives it power. A node may run several; tasks go to the
    /// newest.
    ///
    /// # Errors
    /// As [`crate::Engine::start`]: a bad value in `config`, or no memory or place for a shard.
    pub fn start(&self, node: NodeId, config: EngineConfig) -> Result<EngineHandle, Error> {
        let config = config.validate()?;
        let mesh = Mesh::new(config.shards(), config.raw().mailbox)?;
        let mut pools = Vec::with_capacity(config.shards());
        for index in 0..config.shards() {
            let owner = u32::from(mesh.endpoint(ShardId(index as u16)).number);
            let pool = Pool::new(config.raw().pool_bytes, owner, |_, _| None).map_err(|e| {
                Error::with(
                    ErrorKind::Exhausted,
                    "no memory for a shard's buffer pool",
                    e,
                )
            })?;
            pools.push(pool);
        }
        let seed = self.inner.world.borrow_mut().rng.next_u64();
        self.attach(
            node,
            config.shards(),
            config.raw().recv_buffers,
            |backends| {
                let parts = backends.into_iter().zip(pools).enumerate();
                parts
                    .map(|(i, (backend, pool))| core(i, &config, &mesh, backend, pool, seed))
                    .collect()
            },
        );
        Ok(EngineHandle { mesh })
    }
}

fn core(
    index: usize,
    config: &ValidConfig,
    mesh: &Arc<Mesh>,
    backend: SimBackend,
    pool: Pool,
    seed: u64,
) -> Rc<dyn Tickable> {
    let id = ShardId(index as u16);
    let core = ShardCore::new(ShardParts {
        id,
        config: config.clone(),
        endpoint: mesh.endpoint(id),
        mesh: Arc::clone(mesh),
        backend: Box::new(backend),
        pool,
        seed: seed.wrapping_add(index as u64),
    });
    Rc::new(SimCore {
        core,
        mesh: Arc::clone(mesh),
    })
}
