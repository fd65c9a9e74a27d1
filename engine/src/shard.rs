//! One shard: its tasks, operations, timers and mailboxes, driven by [`ShardCore::tick`].
//!
//! The core never blocks and knows no thread: under io_uring a pinned thread calls `tick` and then
//! `enter`; under the simulator the world does. At most one shard is the thread's current one, and
//! all of a shard's state is reached through it.

mod seen;

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

pub use seen::Shard;

use crate::backend::{Completion, IoBackend, Op, RawHandle, SlotId, Wait};
use crate::buf::{Pool, Registration};
use crate::config::ValidConfig;
use crate::endpoint::Endpoint;
use crate::engine::Mesh;
use crate::error::CallError;
use crate::flows::Flow;
use crate::metrics::{Counters, ShardMetrics};
use crate::op::Leaves;
use crate::rng::Rng;
use crate::sched::{IoScheduler, SchedGroup, Scheduler};
use crate::slots::{Effects, Item, Outcome, Slots};
use crate::task::{TASKS_MAX, Task, TaskInfo, TaskRef, Tasks, joinable, waker};
use crate::time::Nanos;
use crate::timer::{TimerId, Timers};

/// A shard's number within its engine, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(pub u16);

impl ShardId {
    /// The number as an index.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

thread_local! {
    static CURRENT: RefCell<Option<Rc<ShardCore>>> = const { RefCell::new(None) };
}

/// Runs `f` on the thread's current shard; `None` outside of one.
pub(crate) fn with_current<R>(f: impl FnOnce(&Rc<ShardCore>) -> R) -> Option<R> {
    CURRENT
        .try_with(|current| current.try_borrow().ok()?.as_ref().map(f))
        .ok()
        .flatten()
}

/// The thread's current shard.
///
/// # Panics
/// Outside of a shard: engine calls are made by tasks of a shard only.
pub(crate) fn current() -> Rc<ShardCore> {
    with_current(Rc::clone).expect("engine functions are called from a shard's task")
}

/// Restores the former current shard when dropped.
struct Entered(Option<Rc<ShardCore>>);

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.with(|current| *current.borrow_mut() = self.0.take());
    }
}

/// What a poll may know of its task.
#[derive(Clone, Copy)]
struct Running {
    task: TaskRef,
    info: TaskInfo,
}

/// What the core is built from.
pub(crate) struct ShardParts {
    pub(crate) id: ShardId,
    pub(crate) config: ValidConfig,
    pub(crate) endpoint: &'static Endpoint,
    pub(crate) mesh: Arc<Mesh>,
    pub(crate) backend: Box<dyn IoBackend>,
    pub(crate) pool: Pool,
    pub(crate) seed: u64,
}

/// See the module's head.
pub(crate) struct ShardCore {
    id: ShardId,
    endpoint: &'static Endpoint,
    mesh: Arc<Mesh>,
    backend: RefCell<Box<dyn IoBackend>>,
    slots: RefCell<Slots>,
    tasks: RefCell<Tasks>,
    sched: RefCell<Scheduler>,
    disk: RefCell<IoScheduler>,
    timers: RefCell<Timers>,
    pool: Pool,
    rng: RefCell<Rng>,
    locals: RefCell<Vec<Option<Rc<dyn Any>>>>,
    /// Calls in flight from this shard, by service group.
    service_calls: Box<[Cell<u32>]>,
    /// Answers from other shards that are due.
    replies_due: Cell<u32>,
    last_message: Cell<Nanos>,
    running: Cell<Option<Running>>,
    /// The shard ends and only waits for operations in flight.
    draining: Cell<bool>,
    slice_end: Cell<Nanos>,
    now: Cell<Nanos>,
    reaped: RefCell<Vec<Completion>>,
    counters: Counters,
    quota: Duration,
    stall_ns: u64,
}

impl ShardCore {
    pub(crate) fn new(parts: ShardParts) -> Rc<ShardCore> {
        let raw = parts.config.raw();
        let now = parts.backend.now();
        Rc::new(ShardCore {
            id: parts.id,
            endpoint: parts.endpoint,
            mesh: parts.mesh,
            slots: RefCell::new(Slots::new(raw.ops_max)),
            tasks: RefCell::default(),
            sched: RefCell::new(Scheduler::new(parts.config.groups().to_vec())),
            disk: RefCell::new(IoScheduler::new(
                parts.config.groups(),
                parts.config.disk_depth(),
            )),
            timers: RefCell::default(),
            pool: parts.pool,
            rng: RefCell::new(Rng::new(parts.seed)),
            locals: RefCell::default(),
            service_calls: (0..parts.config.services()).map(|_| Cell::new(0)).collect(),
            replies_due: Cell::new(0),
            last_message: Cell::new(Nanos(0)),
            running: Cell::new(None),
            draining: Cell::new(false),
            slice_end: Cell::new(now),
            now: Cell::new(now),
            reaped: RefCell::default(),
            counters: Counters::default(),
            quota: raw.task_quota,
            stall_ns: raw.stall_limit.as_nanos() as u64,
            backend: RefCell::new(parts.backend),
        })
    }

    fn enter_current(self: &Rc<Self>) -> Entered {
        CURRENT.with(|current| Entered(current.borrow_mut().replace(Rc::clone(self))))
    }

    /// Takes in messages, completions and due timers, then polls ready tasks up to the quota.
    /// True when anything happened.
    pub(crate) fn tick(self: &Rc<Self>) -> bool {
        let _entered = self.enter_current();
        self.now.set(self.backend.borrow().now());
        let mut worked = self.drain_mailboxes();
        worked |= self.reap();
        worked |= self.fire_timers();
        worked |= self.run_ready();
        worked
    }

    fn drain_mailboxes(self: &Rc<Self>) -> bool {
        let mut woken = false;
        self.endpoint.wakes.take(|index| {
            woken = true;
            self.make_ready(index as u32, None);
        });
        self.pool.take_back();
        let messages = self.mesh.receive(self.id, |message| message(self));
        if messages > 0 {
            self.counters
                .messages
                .set(self.counters.messages.get() + messages as u64);
            self.last_message.set(self.now.get());
        }
        woken || messages > 0
    }

    fn reap(&self) -> bool {
        let mut reaped = self.reaped.take();
        self.backend.borrow_mut().reap(&mut reaped);
        let any = !reaped.is_empty();
        for done in reaped.drain(..) {
            let leaves = self.slots.borrow().leaves(done.slot);
            let effects = self.slots.borrow_mut().complete(done);
            self.apply(effects, leaves);
        }
        *self.reaped.borrow_mut() = reaped;
        any
    }

    fn apply(&self, effects: Effects, leaves: Leaves) {
        if let Some(bytes) = effects.disk_bytes {
            self.disk.borrow_mut().release(bytes);
            self.start_waiting();
        }
        if let Some(waker) = effects.wake {
            waker.wake();
        }
        self.discard_unread(&effects.unread, leaves);
        drop(effects.drop);
    }

    fn start_waiting(&self) {
        loop {
            let next = self.disk.borrow_mut().next();
            let Some((slot, op)) = next else { return };
            self.backend.borrow_mut().submit(slot, op);
        }
    }

    fn discard_unread(&self, items: &[Item], leaves: Leaves) {
        for item in items {
            match leaves {
                Leaves::RingBuffer => {
                    if let Some(buffer) = item.buffer {
                        self.backend.borrow_mut().recycle_ring_buffer(buffer);
                    }
                }
                Leaves::Handle if item.result >= 0 => self.close(RawHandle(item.result)),
                Leaves::Handle | Leaves::Nothing | Leaves::Closed | Leaves::Event => {}
            }
        }
    }

    fn fire_timers(&self) -> bool {
        let mut fired = false;
        loop {
            let due = self.timers.borrow_mut().pop_due(self.now.get());
            let Some(waker) = due else { return fired };
            fired = true;
            waker.wake();
        }
    }

    fn run_ready(self: &Rc<Self>) -> bool {
        let mut ran = false;
        let started = self.now.get();
        let end = started + self.quota;
        self.slice_end.set(end);
        while self.now.get() < end || !ran {
            let picked = {
                let mut backend = self.backend.borrow_mut();
                self.sched
                    .borrow_mut()
                    .pop(self.now.get(), |n| backend.pick(n))
            };
            let Some((index, place)) = picked else { break };
            let before = self.now.get();
            let Some(flow) = self.poll_task(index) else {
                continue;
            };
            ran = true;
            let after = self.backend.borrow_mut().after_poll();
            self.now.set(after);
            let used = (after - before).as_nanos() as u64;
            // Who it worked for may have become known in this poll.
            let charged = (place.0, flow);
            if self.sched.borrow_mut().charge(charged, used, self.stall_ns) {
                self.counters.report_stall(self.id, place.0, used);
            }
        }
        ran
    }

    /// Polls a task; whose work that was, or `None` when there was nothing to poll.
    fn poll_task(self: &Rc<Self>, index: u32) -> Option<Flow> {
        let (mut future, task, info) = self.tasks.borrow_mut().begin(index)?;
        let waker = waker(self.endpoint.number, task);
        self.running.set(Some(Running { task, info }));
        let poll = future
            .as_mut()
            .poll(&mut std::task::Context::from_waker(&waker));
        let flow = self.flow();
        self.running.set(None);
        let ended = if poll.is_ready() {
            self.tasks.borrow_mut().finish(index);
            Some(future)
        } else {
            self.tasks.borrow_mut().pause(index, future)
        };
        drop(ended);
        Some(flow)
    }

    fn make_ready(&self, index: u32, generation: Option<u32>) {
        let queued = self.tasks.borrow_mut().queue(index, generation);
        if let Some(place) = queued {
            self.sched.borrow_mut().push(place, index, self.now.get());
        }
    }

    pub(crate) fn wake_local(&self, task: TaskRef) {
        self.make_ready(task.index, Some(task.generation));
    }

    pub(crate) fn endpoint_number(&self) -> u16 {
        self.endpoint.number
    }

    pub(crate) fn cancel_task(&self, task: TaskRef) {
        let future = self.tasks.borrow_mut().cancel(task);
        drop(future);
    }

    /// Whether `tick` would find work without waiting.
    pub(crate) fn is_runnable(&self) -> bool {
        self.sched.borrow().ready() > 0 || self.endpoint.wakes.any() || self.mesh.has_mail(self.id)
    }

    /// Whether the next `tick` may be put off: an idle shard with mail due soon keeps looking.
    pub(crate) fn expects_mail(&self, window: Duration) -> bool {
        self.replies_due.get() > 0 || self.backend.borrow().now() - self.last_message.get() < window
    }

    pub(crate) fn next_deadline(&self) -> Option<Nanos> {
        self.timers.borrow().next_deadline()
    }

    /// Hands operations to the kernel; sleeps when `idle` and no mail came in between.
    pub(crate) fn enter(&self, idle: bool) -> std::io::Result<()> {
        let mut backend = self.backend.borrow_mut();
        if !idle {
            return if backend.wants_enter() {
                backend.enter(Wait::No)
            } else {
                Ok(())
            };
        }
        self.endpoint.bell.announce_sleep();
        // A stop that came before the announcement rang nobody. While draining it is known.
        let stopped = self.mesh.is_stopping() && !self.draining.get();
        let wait = if stopped || self.endpoint.wakes.any() || self.mesh.has_mail(self.id) {
            Wait::No
        } else {
            self.counters.sleeps.set(self.counters.sleeps.get() + 1);
            Wait::Until(self.next_deadline())
        };
        let entered = backend.enter(wait);
        self.endpoint.bell.awake();
        entered
    }

    /// Drops all tasks. Operations that they leave are cancelled; their memory waits in the slots.
    pub(crate) fn teardown(self: &Rc<Self>) {
        self.draining.set(true);
        let _entered = self.enter_current();
        loop {
            let futures = self.tasks.borrow_mut().drain();
            if futures.is_empty() {
                break;
            }
            drop(futures);
        }
        self.sched.borrow_mut().clear();
        drop(self.timers.borrow_mut().clear());
        drop(self.locals.take());
    }

    /// Operations not yet completed.
    pub(crate) fn in_flight(&self) -> usize {
        self.slots.borrow().in_flight()
    }

    /// Live tasks.
    pub(crate) fn live_tasks(&self) -> usize {
        self.tasks.borrow().live()
    }

    // --- operations -----------------------------------------------------------------------

    /// Does an operation at once that needs no more than a copy, while the running task has its turn.
    pub(crate) fn run_now(&self, op: &Op) -> Option<i32> {
        let result = self
            .backend
            .borrow_mut()
            .run_now(op, self.slice_end.get())?;
        self.counters.ops.set(self.counters.ops.get() + 1);
        Some(result)
    }

    /// Claims a slot and starts the operation, or queues it behind others of the disk.
    pub(crate) fn submit(&self, op: Op, multishot: bool, leaves: Leaves) -> Option<SlotId> {
        let bytes = op.disk_bytes();
        let slot = self
            .slots
            .borrow_mut()
            .claim(op.parts(), multishot, bytes, leaves)?;
        self.counters.ops.set(self.counters.ops.get() + 1);
        let started = match bytes {
            Some(bytes) => self.disk.borrow_mut().admit(self.group(), slot, op, bytes),
            None => Some(op),
        };
        if let Some(op) = started {
            self.backend.borrow_mut().submit(slot, op);
        }
        Some(slot)
    }

    pub(crate) fn poll_slot(&self, slot: SlotId, waker: &Waker) -> Option<Outcome> {
        self.slots.borrow_mut().poll(slot, waker)
    }

    pub(crate) fn poll_item(&self, slot: SlotId, waker: &Waker) -> Poll<Option<Item>> {
        self.slots.borrow_mut().poll_item(slot, waker)
    }

    /// A future is gone before its operation.
    pub(crate) fn abandon(&self, slot: SlotId, keep: Option<Box<dyn Any>>, leaves: Leaves) {
        let mut unread = Vec::new();
        let running = self.slots.borrow_mut().abandon(slot, keep, &mut unread);
        self.discard_unread(&unread, leaves);
        if !running {
            return;
        }
        if self.disk.borrow_mut().withdraw(slot) {
            let keep = self.slots.borrow_mut().withdraw(slot);
            drop(keep);
        } else {
            self.backend.borrow_mut().cancel(slot);
        }
    }

    /// The index under which this shard's ring knows a registered buffer.
    pub(crate) fn fixed(&self, registration: Option<Registration>) -> Option<u16> {
        registration
            .filter(|r| r.shard == self.pool.owner())
            .map(|r| r.index)
    }

    /// Closes a handle without waiting for it.
    pub(crate) fn close(&self, handle: RawHandle) {
        let claimed = self
            .slots
            .borrow_mut()
            .claim(1, false, None, Leaves::Closed);
        let slot = claimed.expect("closes always find a slot");
        self.backend.borrow_mut().submit(slot, Op::Close { handle });
        self.slots.borrow_mut().abandon(slot, None, &mut Vec::new());
    }

    pub(crate) fn backend<R>(&self, f: impl FnOnce(&mut dyn IoBackend) -> R) -> R {
        f(self.backend.borrow_mut().as_mut())
    }

    // --- tasks ----------------------------------------------------------------------------

    pub(crate) fn group(&self) -> SchedGroup {
        self.running
            .get()
            .map_or(SchedGroup::FOREGROUND, |r| r.info.group)
    }

    pub(crate) fn level(&self) -> u8 {
        self.running.get().map_or(0, |r| r.info.level)
    }

    pub(crate) fn flow(&self) -> Flow {
        self.running.get().map_or(Flow::OWN, |r| r.info.flow)
    }

    /// Changes whose work the running task does, from now on.
    pub(crate) fn set_flow(&self, flow: Flow) {
        if let Some(mut running) = self.running.get() {
            running.info.flow = flow;
            self.running.set(Some(running));
            self.tasks.borrow_mut().set_flow(running.task, flow);
        }
    }

    /// # Panics
    /// When the shard holds its most tasks: callers bound what they spawn.
    pub(crate) fn spawn<F>(&self, info: TaskInfo, future: F) -> Task<F::Output>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        self.try_spawn(info, future)
            .unwrap_or_else(|full| panic!("a shard holds its most tasks: {full}"))
    }

    pub(crate) fn try_spawn<F>(
        &self,
        info: TaskInfo,
        future: F,
    ) -> Result<Task<F::Output>, CallError>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        let (body, handle) = joinable(future);
        let inserted = self.tasks.borrow_mut().insert(info, body);
        match inserted {
            Ok(task) => {
                self.make_ready(task.index, Some(task.generation));
                Ok(handle(task, self.endpoint.number))
            }
            Err(_body) => Err(CallError::Busy),
        }
    }

    /// Whether one more task fits.
    pub(crate) fn has_room(&self) -> bool {
        self.tasks.borrow().live() < TASKS_MAX
    }

    pub(crate) fn need_yield(&self) -> bool {
        let now = self.backend.borrow().now();
        now >= self.slice_end.get()
    }

    // --- time, randomness, memory -----------------------------------------------------------

    pub(crate) fn now(&self) -> Nanos {
        self.backend.borrow().now()
    }

    pub(crate) fn wall_clock(&self) -> u64 {
        self.backend.borrow().wall_clock()
    }

    pub(crate) fn add_timer(&self, deadline: Nanos, waker: Waker) -> TimerId {
        self.timers.borrow_mut().add(deadline, waker)
    }

    pub(crate) fn update_timer(&self, id: TimerId, waker: &Waker) {
        self.timers.borrow_mut().update(id, waker);
    }

    pub(crate) fn remove_timer(&self, id: TimerId) {
        self.timers.borrow_mut().remove(id);
    }

    pub(crate) fn rng<R>(&self, f: impl FnOnce(&mut Rng) -> R) -> R {
        f(&mut self.rng.borrow_mut())
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    // --- identity, other shards -------------------------------------------------------------

    pub(crate) fn id(&self) -> ShardId {
        self.id
    }

    pub(crate) fn mesh(&self) -> &Arc<Mesh> {
        &self.mesh
    }

    pub(crate) fn service_calls(&self, index: u16) -> &Cell<u32> {
        &self.service_calls[usize::from(index)]
    }

    pub(crate) fn replies_due(&self) -> &Cell<u32> {
        &self.replies_due
    }

    pub(crate) fn set_local(&self, index: usize, value: Rc<dyn Any>) {
        let mut locals = self.locals.borrow_mut();
        if locals.len() <= index {
            locals.resize_with(index + 1, || None);
        }
        locals[index] = Some(value);
    }

    pub(crate) fn local(&self, index: usize) -> Option<Rc<dyn Any>> {
        self.locals.borrow().get(index).cloned().flatten()
    }

    pub(crate) fn metrics(&self) -> ShardMetrics {
        ShardMetrics {
            shard: self.id.0,
            groups: self.sched.borrow().stats(),
            tasks: self.live_tasks(),
            ops_in_flight: self.in_flight(),
            disk_ops_waiting: self.disk.borrow().waiting(),
            ops: self.counters.ops.get(),
            messages: self.counters.messages.get(),
            sleeps: self.counters.sleeps.get(),
            enters: self.backend.borrow().enters(),
            cq_overflows: self.backend.borrow().cq_overflows(),
            sq_full: self.backend.borrow().sq_full(),
            pool: self.pool.usage(),
        }
    }
}
