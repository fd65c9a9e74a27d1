//! The simulated twin of the kernel: nodes with disks and a network between them, under a virtual
//! clock, driven by one seed. Product code runs unchanged on the same shards as in production.
//!
//! What it promises: the same seed and program take the same steps ([`Sim::trace_hash`]); time is
//! virtual, so a day costs what happens in it; what may fail is listed at the head of `disk` and
//! `net`, and fails only when [`SimConfig`] or a test asks for it (crash, partition, injection).
//!
//! What it never does: start a thread, read a real clock, touch a real file or socket. One thread
//! runs all shards in turn; in virtual time they run side by side, each with its own clock. A
//! message may reach a shard whose clock is behind its sender's by up to one tick.

mod backend;
mod config;
mod disk;
mod mapped;
mod memory;
mod net;
mod ops;
mod requests;
mod start;
#[cfg(test)]
mod tests;
mod trace;
mod view;
mod world;

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::net::Ipv4Addr;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

pub(crate) use self::backend::SimBackend;
pub use self::config::SimConfig;
pub use self::view::SimDisk;
use self::world::{Event, ShardKey, World};
use crate::backend::FsReply;
use crate::time::Nanos;

/// What a tick costs at least, so that no shard spins without time passing.
const TICK_NS: u64 = 50;

/// A machine of a simulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(u32);

impl NodeId {
    /// The node's address: 10.0.0.1 for the first, and so on.
    pub fn ip(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(Ipv4Addr::new(10, 0, 0, 0).to_bits() + self.0 + 1)
    }
}

/// A task as the world hands it to a shard.
pub(crate) type WorldTask = Pin<Box<dyn Future<Output = ()>>>;

/// A shard's core as the world drives it.
pub(crate) trait Tickable {
    /// Takes in completions and mail, fires timers, polls tasks; true when anything happened.
    fn tick(&self) -> bool;

    /// Whether a tick would find work besides completions and timers.
    fn is_runnable(&self) -> bool;

    /// When the next timer fires.
    fn next_deadline(&self) -> Option<Nanos>;

    /// Drops all tasks and everything they hold. The shard's backend is dead by then: it answers
    /// ops at once.
    fn teardown(&self);

    /// Spawns a task from outside of the shard.
    fn spawn(&self, task: WorldTask);
}

struct Live {
    key: ShardKey,
    node: NodeId,
    index: u32,
    core: Rc<dyn Tickable>,
}

struct Inner {
    world: Rc<RefCell<World>>,
    /// In the order in which they started; the newest engine of a node is the one that `run` uses.
    live: RefCell<Vec<Live>>,
    ticking: Cell<bool>,
    steps: Cell<u64>,
}

/// What becomes of a write that was in flight and did not happen in full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tear {
    /// It did not happen.
    Never,
    /// Each of its sectors did, or not.
    Sectors,
}

/// What [`Sim::step`] chose.
#[derive(Clone, Copy)]
enum Choice {
    Event,
    Shard(ShardKey),
}

/// A simulation. Clones are the same simulation.
#[derive(Clone)]
pub struct Sim {
    inner: Rc<Inner>,
}

/// A task started by [`Sim::spawn`].
pub struct SimTask<T> {
    slot: Rc<RefCell<Option<T>>>,
}

impl<T> SimTask<T> {
    /// The task's result, once it has one.
    pub fn take(&self) -> Option<T> {
        self.slot.take()
    }

    /// Whether the task can have no result any more: it was taken, or its node went down.
    pub fn is_gone(&self) -> bool {
        self.slot.borrow().is_none() && Rc::strong_count(&self.slot) == 1
    }
}

impl Sim {
    /// A world without nodes in which nothing fails.
    pub fn new(seed: u64) -> Sim {
        Sim::with_config(seed, SimConfig::default())
    }

    /// A world with the given rates.
    pub fn with_config(seed: u64, config: SimConfig) -> Sim {
        let world = Rc::new(RefCell::new(World::new(seed, config)));
        let inner = Inner {
            world,
            live: RefCell::default(),
            ticking: Cell::new(false),
            steps: Cell::new(0),
        };
        Sim {
            inner: Rc::new(inner),
        }
    }

    /// The seed.
    pub fn seed(&self) -> u64 {
        self.inner.world.borrow().seed
    }

    /// Changes rates from now on.
    pub fn configure(&self, change: impl FnOnce(&mut SimConfig)) {
        change(&mut self.inner.world.borrow_mut().config);
    }

    /// Adds a machine: powered, with an empty disk and an address of its own.
    pub fn node(&self, name: &str) -> NodeId {
        self.inner.world.borrow_mut().add_node(name)
    }

    /// The world's time: that of the last step.
    pub fn now(&self) -> Nanos {
        self.inner.world.borrow().now
    }

    /// A hash over everything that has happened: time, node, shard, op, result, bytes.
    pub fn trace_hash(&self) -> u64 {
        self.inner.world.borrow().trace.hash()
    }

    /// A node's disk, to look at and to break.
    pub fn disk(&self, node: NodeId) -> SimDisk {
        SimDisk::new(&self.inner.world, node)
    }

    /// Adds the shards of an engine: `build` turns their backends into cores.
    pub(crate) fn attach(
        &self,
        node: NodeId,
        shards: usize,
        ring_buffers: u16,
        build: impl FnOnce(Vec<SimBackend>) -> Vec<Rc<dyn Tickable>>,
    ) {
        let keys: Vec<ShardKey> = {
            let mut world = self.inner.world.borrow_mut();
            world.node(node).powered = true;
            world.note(node, "start", shards as i64);
            world.resume_wires();
            (0..shards)
                .map(|i| world.add_shard(node, i as u32, ring_buffers))
                .collect()
        };
        let backends = keys
            .iter()
            .map(|key| SimBackend::new(&self.inner.world, *key))
            .collect();
        let cores = build(backends);
        assert_eq!(cores.len(), shards, "one core a shard");
        let mut live = self.inner.live.borrow_mut();
        for (index, (key, core)) in keys.into_iter().zip(cores).enumerate() {
            live.push(Live {
                key,
                node,
                index: index as u32,
                core,
            });
        }
    }

    /// Spawns a task on a node's shard, of its newest engine. It makes progress when the world
    /// steps ([`Sim::run`], [`Sim::run_for`]).
    ///
    /// # Panics
    /// When the node runs no such shard.
    pub fn spawn<F>(&self, node: NodeId, shard: u16, future: F) -> SimTask<F::Output>
    where
        F: Future + 'static,
    {
        let core = {
            let live = self.inner.live.borrow();
            let index = u32::from(shard);
            let found = live
                .iter()
                .rev()
                .find(|l| l.node == node && l.index == index);
            Rc::clone(
                &found
                    .unwrap_or_else(|| panic!("node {} runs no shard {shard}", node.0))
                    .core,
            )
        };
        let slot = Rc::new(RefCell::new(None));
        let result = Rc::clone(&slot);
        core.spawn(Box::pin(async move {
            let output = future.await;
            *result.borrow_mut() = Some(output);
        }));
        SimTask { slot }
    }

    /// Spawns a task and steps the world until it completes.
    ///
    /// # Panics
    /// With the seed and the world's state: when nothing is left to happen, when
    /// [`SimConfig::steps_max`] is passed, or when the node goes down under the task.
    pub fn run<F>(&self, node: NodeId, shard: u16, future: F) -> F::Output
    where
        F: Future + 'static,
    {
        self.try_run(node, shard, future)
            .unwrap_or_else(|| panic!("the node went down under its task\n{}", self.dump()))
    }

    /// As [`Sim::run`]; `None` when the node goes down under the task.
    ///
    /// # Panics
    /// As [`Sim::run`], but for the node's end.
    pub fn try_run<F>(&self, node: NodeId, shard: u16, future: F) -> Option<F::Output>
    where
        F: Future + 'static,
    {
        let task = self.spawn(node, shard, future);
        self.join(&task)
    }

    /// Steps the world until a spawned task completes; `None` when its node goes down first.
    ///
    /// # Panics
    /// As [`Sim::try_run`].
    pub fn join<T>(&self, task: &SimTask<T>) -> Option<T> {
        loop {
            if let Some(output) = task.take() {
                return Some(output);
            }
            if task.is_gone() {
                return None;
            }
            assert!(
                self.step(None),
                "deadlock: the task waits and nothing is left to happen\n{}",
                self.dump()
            );
        }
    }

    /// Steps the world for a stretch of virtual time.
    ///
    /// # Panics
    /// When [`SimConfig::steps_max`] is passed.
    pub fn run_for(&self, time: Duration) {
        let end = self.now() + time;
        while self.step(Some(end)) {}
        let mut world = self.inner.world.borrow_mut();
        world.now = world.now.max(end);
    }

    /// Calls `action` when the time has passed, between two steps of the world.
    pub fn after(&self, wait: Duration, action: impl FnOnce(&Sim) + 'static) {
        let mut world = self.inner.world.borrow_mut();
        let at = world.now + wait;
        world.schedule(at, Event::Control(Box::new(action)));
    }

    /// Power loss: tasks end without a trace, ops in flight and unflushed data end as the disk's
    /// fault model says, connections vanish. From inside of a task it takes effect after the tick.
    pub fn crash(&self, node: NodeId) {
        if self.inner.ticking.get() {
            self.after(Duration::ZERO, move |sim| sim.crash(node));
            return;
        }
        {
            let mut world = self.inner.world.borrow_mut();
            world.note(node, "crash", 0);
            world.settle_ops(node, Tear::Sectors);
            world.kill_shards(node);
            world.end_sockets(node, true);
            let world = &mut *world;
            let state = &mut world.nodes[node.0 as usize];
            state.powered = false;
            state.handles.clear();
            state.locks.clear();
            state.disk.crash(&mut world.rng);
            world.forget_mapped(node);
        }
        self.drop_cores(node);
    }

    /// The node's processes end: tasks are dropped, ops in flight happen or not, connections are
    /// closed, locks released. The machine stays up and what was written stays visible.
    pub fn stop(&self, node: NodeId) {
        self.end_processes(node, Tear::Never);
    }

    /// As [`Sim::stop`], but writes in flight happen sector by sector, as when the kernel is at them
    /// while a process is killed.
    pub fn kill(&self, node: NodeId) {
        self.end_processes(node, Tear::Sectors);
    }

    fn end_processes(&self, node: NodeId, tear: Tear) {
        if self.inner.ticking.get() {
            self.after(Duration::ZERO, move |sim| sim.end_processes(node, tear));
            return;
        }
        {
            let mut world = self.inner.world.borrow_mut();
            world.note(node, "stop", 0);
            world.settle_ops(node, tear);
            world.kill_shards(node);
            world.end_sockets(node, false);
            let state = world.node(node);
            state.handles.clear();
            state.locks.clear();
            state.disk.collect(&[]);
        }
        self.drop_cores(node);
    }

    fn drop_cores(&self, node: NodeId) {
        let (gone, left) = self
            .inner
            .live
            .take()
            .into_iter()
            .partition(|l: &Live| l.node == node);
        *self.inner.live.borrow_mut() = left;
        let gone: Vec<Live> = gone;
        for live in &gone {
            live.core.teardown();
        }
    }

    /// Cuts both directions between two nodes: stream bytes wait, datagrams are lost.
    pub fn partition(&self, a: NodeId, b: NodeId) {
        self.one_way(a, b);
        self.one_way(b, a);
    }

    /// Cuts the direction from one node to another.
    pub fn one_way(&self, from: NodeId, to: NodeId) {
        let mut world = self.inner.world.borrow_mut();
        world.net.cut(from, to);
        world.note(from, "cut", i64::from(to.0));
    }

    /// Mends every cut; bytes that waited go on.
    pub fn heal(&self) {
        let mut world = self.inner.world.borrow_mut();
        world.net.mend();
        world.resume_wires();
    }

    /// Kills all connections between two nodes; both ends see a reset.
    pub fn reset(&self, a: NodeId, b: NodeId) {
        self.inner.world.borrow_mut().reset_between(a, b);
    }

    /// Sets the one-way delay from one node to another, in place of [`SimConfig::link_ns`].
    pub fn set_link_delay(&self, from: NodeId, to: NodeId, delay_ns: std::ops::Range<u64>) {
        self.inner
            .world
            .borrow_mut()
            .net
            .set_delay(from, to, delay_ns);
    }

    /// The world's state in words: for the report of a failed run.
    pub fn dump(&self) -> String {
        self.inner.world.borrow().dump()
    }

    /// Lets the next thing happen, if it is not after `end`; false when there is none.
    fn step(&self, end: Option<Nanos>) -> bool {
        assert!(
            !self.inner.ticking.get(),
            "the world is stepped from outside of its tasks"
        );
        let Some((at, choice)) = self.choose() else {
            return false;
        };
        if end.is_some_and(|end| at > end) {
            return false;
        }
        self.inner.steps.set(self.inner.steps.get() + 1);
        let steps_max = self.inner.world.borrow().config.steps_max;
        assert!(
            self.inner.steps.get() <= steps_max,
            "{steps_max} steps passed\n{}",
            self.dump()
        );
        match choice {
            Choice::Event => self.next_event(),
            Choice::Shard(key) => self.tick(key, at),
        }
        true
    }

    /// The earliest thing that can happen; the seed decides among those of one time.
    fn choose(&self) -> Option<(Nanos, Choice)> {
        let live = self.inner.live.borrow();
        let ready: Vec<(ShardKey, Option<Nanos>)> = live
            .iter()
            .map(|l| {
                let now = l.core.is_runnable().then_some(Nanos(0));
                (l.key, now.or_else(|| l.core.next_deadline()))
            })
            .collect();
        drop(live);
        let mut world = self.inner.world.borrow_mut();
        let mut earliest: Option<Nanos> = None;
        let mut choices: Vec<Choice> = Vec::new();
        let mut offer = |at: Nanos, choice: Choice| {
            if earliest.is_none_or(|earliest| at < earliest) {
                earliest = Some(at);
                choices.clear();
            }
            if earliest == Some(at) {
                choices.push(choice);
            }
        };
        if let Some(at) = world.next_event_at() {
            offer(at, Choice::Event);
        }
        for (key, due) in ready {
            let shard = &world.shards[key as usize];
            let due = if shard.completions.is_empty() {
                due
            } else {
                Some(Nanos(0))
            };
            if let Some(due) = due {
                offer(due.max(shard.clock).max(world.now), Choice::Shard(key));
            }
        }
        let chosen = match choices.len() {
            0 | 1 => 0,
            more => world.rng.below(more as u64) as usize,
        };
        Some((earliest?, *choices.get(chosen)?))
    }

    fn next_event(&self) {
        let event = self.inner.world.borrow_mut().pop_event();
        match event {
            None => {}
            Some(Event::Control(action)) => action(self),
            Some(event) => {
                let answers = {
                    let mut world = self.inner.world.borrow_mut();
                    world.happen(event);
                    std::mem::take(&mut world.outbox)
                };
                for (node, sender, answer) in answers {
                    // The receiver may have gone between the event and here only with its node.
                    if let Err(Ok(FsReply::Opened { handle, .. })) = sender.send(answer) {
                        self.inner.world.borrow_mut().close(node, handle);
                    }
                }
            }
        }
    }

    fn tick(&self, key: ShardKey, at: Nanos) {
        let core = {
            let live = self.inner.live.borrow();
            live.iter()
                .find(|l| l.key == key)
                .map(|l| Rc::clone(&l.core))
        };
        let Some(core) = core else { return };
        {
            let mut world = self.inner.world.borrow_mut();
            world.now = at;
            world.shard(key).clock = Nanos(at.0 + TICK_NS);
        }
        let ticking = Ticking::start(&self.inner.ticking);
        let worked = core.tick();
        drop(ticking);
        let mut world = self.inner.world.borrow_mut();
        let (node, index) = {
            let shard = world.shard(key);
            (shard.node, shard.index)
        };
        world.note(node, "tick", i64::from(index) << 1 | i64::from(worked));
    }
}

/// Marks a tick, also when it ends by a panic.
struct Ticking<'a>(&'a Cell<bool>);

impl Ticking<'_> {
    fn start(flag: &Cell<bool>) -> Ticking<'_> {
        flag.set(true);
        Ticking(flag)
    }
}

impl Drop for Ticking<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // A world that ends in a panic may be in the middle of a change.
        if std::thread::panicking() {
            return;
        }
        let live = self.live.take();
        {
            let mut world = self.world.borrow_mut();
            let nodes: Vec<NodeId> = live.iter().map(|l| l.node).collect();
            for node in nodes {
                world.settle_ops(node, Tear::Never);
                world.kill_shards(node);
            }
        }
        for live in &live {
            live.core.teardown();
        }
    }
}
