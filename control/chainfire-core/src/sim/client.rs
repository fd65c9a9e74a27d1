//! Clients: they write and read at any member, and record what they saw.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use openraft::Instant as _;
use openraft::async_runtime::AsyncRuntime as _;
use openraft_rt_sim::{SimInstant, SimRuntime};
use porcupine_rs::{Model, Operation};

use crate::error::ErrorKind;
use crate::sim::broken::Breakage;
use crate::sim::machine::{SimNode, World, Write};
use crate::sim::runtime::on;
use crate::wal::lock;

pub(crate) const KEYS: u64 = 4;

/// What a client saw.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Seen {
    /// A write and its outcome; none where it is not known.
    Wrote(Write, Option<bool>),
    /// A read of a register and its value.
    Read(u8, u32),
}

/// One register of integers, at first 0.
#[derive(Debug, Clone)]
pub(crate) struct Register;

impl Model for Register {
    type State = u32;
    type Op = Seen;
    type Metadata = ();

    fn init() -> u32 {
        0
    }

    fn step(state: &u32, op: &Seen) -> (bool, u32) {
        match op {
            Seen::Read(_, value) => (value == state, *state),
            Seen::Wrote(Write::Set { to, .. }, _) => (true, *to),
            Seen::Wrote(Write::Swap { from, to, .. }, outcome) => {
                let same = state == from;
                let next = if same { *to } else { *state };
                (outcome.is_none_or(|outcome| outcome == same), next)
            }
        }
    }
}

/// What all clients saw, in the order they began.
#[derive(Debug, Default)]
pub(crate) struct History {
    operations: Vec<Operation<Register>>,
    /// Gives every call and return its own instant, in the order they happened.
    clock: i64,
    pub(crate) acknowledged: usize,
    pub(crate) reads: usize,
}

impl History {
    fn tick(&mut self) -> i64 {
        self.clock += 1;
        self.clock
    }

    /// The operations of one register.
    pub(crate) fn of(&self, key: u8) -> Vec<Operation<Register>> {
        let touches = |op: &Seen| match op {
            Seen::Wrote(write, _) => write.key() == key,
            Seen::Read(read, _) => *read == key,
        };
        self.operations
            .iter()
            .filter(|operation| touches(&operation.op))
            .cloned()
            .collect()
    }

    /// The operations of one register, without the writes of unknown outcome whose value nobody saw.
    /// Such a write may have taken no effect: an order without it explains the whole history too.
    pub(crate) fn of_seen(&self, key: u8) -> Vec<Operation<Register>> {
        let mut operations = self.of(key);
        let values = operations
            .iter()
            .filter_map(|operation| match operation.op {
                Seen::Read(_, value) => Some(value),
                Seen::Wrote(Write::Swap { from, .. }, Some(true)) => Some(from),
                Seen::Wrote(..) => None,
            });
        let values: BTreeSet<u32> = values.collect();
        operations.retain(|operation| match operation.op {
            Seen::Wrote(write, None) => values.contains(&write.to()),
            _ => true,
        });
        operations
    }

    fn push(&mut self, client: u32, call_time: i64, return_time: i64, op: Seen) {
        let client_id = Some(client);
        self.operations.push(Operation {
            client_id,
            call_time,
            return_time,
            op,
            metadata: None,
        });
    }
}

fn random_write(world: &World, unique: u32) -> Write {
    let mut random = lock(&world.random);
    let key = random.below(KEYS) as u8;
    if random.chance(70) {
        return Write::Set { key, to: unique };
    }
    // Mostly a value that was there lately.
    let from = (unique.saturating_sub(random.below(2000) as u32) / 1000) * 1000;
    Write::Swap {
        key,
        from,
        to: unique,
    }
}

/// Works until `until`, recording everything.
pub(crate) async fn run(
    world: Arc<World>,
    history: Arc<Mutex<History>>,
    client: u32,
    until: SimInstant,
) {
    let mut unique = client;
    while SimInstant::now() < until {
        let pause = lock(&world.random).below(60);
        SimRuntime::sleep(Duration::from_millis(pause)).await;
        let up = world.up();
        if up.is_empty() {
            continue;
        }
        let (at, reads) = {
            let mut random = lock(&world.random);
            (*random.pick(&up), random.chance(45))
        };
        let Some((node, run)) = world.running(at) else {
            continue;
        };
        let call = lock(&history).tick();
        if reads {
            let key = lock(&world.random).below(KEYS) as u8;
            let ready = world.members.breakage == Some(Breakage::Barrier)
                || on(at, node.read_barrier()).await.is_ok();
            if ready && world.run(at) == Some(run) {
                let value = node.reader().get(key);
                let mut history = lock(&history);
                let returned = history.tick();
                history.reads += 1;
                history.push(client, call, returned, Seen::Read(key, value));
            }
            continue;
        }
        unique += 16;
        let write = random_write(&world, unique);
        let outcome = on(at, node.propose(write.encode())).await;
        let mut history = lock(&history);
        let returned = history.tick();
        match outcome {
            Ok(outcome) if world.run(at) == Some(run) => {
                history.acknowledged += 1;
                history.push(client, call, returned, Seen::Wrote(write, Some(outcome)));
            }
            // Nothing was written, for certain.
            Err(error) if error.kind() == ErrorKind::Unavailable => {}
            _ => history.push(client, call, i64::MAX, Seen::Wrote(write, None)),
        }
    }
}

/// One linearizable read that must succeed.
pub(crate) async fn read(node: &SimNode, history: &Arc<Mutex<History>>, client: u32, key: u8) {
    let call = lock(history).tick();
    on(node.id(), node.read_barrier())
        .await
        .expect("a healed cluster answers reads");
    let value = node.reader().get(key);
    let mut history = lock(history);
    let returned = history.tick();
    history.push(client, call, returned, Seen::Read(key, value));
}
