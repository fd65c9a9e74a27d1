//! A runtime in which every member has a clock of its own, and can be stopped for a while.
//!
//! Tasks are those of openraft's simulation runtime. A task belongs to the member whose task
//! spawned it, or to the one that [`on`] names. A member's clock may jump ahead at any time, as
//! after the suspension of a virtual machine; a paused member's tasks are not polled, as after
//! SIGSTOP.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::ops::{Add, AddAssign, Sub, SubAssign};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use openraft::async_runtime::AsyncRuntime;
pub use openraft_rt_sim::{SimInstant, SimRuntime};

use crate::types::NodeId;

#[derive(Default)]
struct Clock {
    ahead: u64,
    paused: bool,
    waiting: Vec<Waker>,
}

thread_local! {
    static HERE: Cell<NodeId> = const { Cell::new(0) };
    static CLOCKS: RefCell<BTreeMap<NodeId, Clock>> = const { RefCell::new(BTreeMap::new()) };
}

/// Forgets all clocks: a new world begins.
pub fn reset() {
    CLOCKS.with_borrow_mut(BTreeMap::clear);
}

/// Lets a member's clock jump ahead.
pub fn jump(node: NodeId, by: Duration) {
    CLOCKS.with_borrow_mut(|clocks| clocks.entry(node).or_default().ahead += by.as_nanos() as u64);
}

/// How far each member's clock is ahead of the world's, where it is.
pub fn ahead() -> BTreeMap<NodeId, Duration> {
    CLOCKS.with_borrow(|clocks| {
        let ahead = clocks.iter();
        ahead
            .map(|(&node, clock)| (node, Duration::from_nanos(clock.ahead)))
            .collect()
    })
}

/// Stops a member's tasks.
pub fn pause(node: NodeId) {
    CLOCKS.with_borrow_mut(|clocks| clocks.entry(node).or_default().paused = true);
}

/// Lets a member's tasks go on.
pub fn resume(node: NodeId) {
    let waiting = CLOCKS.with_borrow_mut(|clocks| {
        let clock = clocks.entry(node).or_default();
        clock.paused = false;
        std::mem::take(&mut clock.waiting)
    });
    waiting.into_iter().for_each(Waker::wake);
}

/// A future that runs on a member.
pub struct On<F> {
    node: NodeId,
    future: Pin<Box<F>>,
}

/// Runs `future` on a member.
pub fn on<F: Future>(node: NodeId, future: F) -> On<F> {
    On {
        node,
        future: Box::pin(future),
    }
}

impl<F: Future> Future for On<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let paused = CLOCKS.with_borrow_mut(|clocks| match clocks.get_mut(&self.node) {
            Some(clock) if clock.paused => {
                clock.waiting.push(context.waker().clone());
                true
            }
            _ => false,
        });
        if paused {
            return Poll::Pending;
        }
        let before = HERE.replace(self.node);
        let polled = self.future.as_mut().poll(context);
        HERE.set(before);
        polled
    }
}

/// An instant of the clock of the member that reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeInstant(u64);

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).expect("a duration within centuries")
}

impl Add<Duration> for NodeInstant {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0 + nanos(duration))
    }
}

impl AddAssign<Duration> for NodeInstant {
    fn add_assign(&mut self, duration: Duration) {
        *self = *self + duration;
    }
}

impl Sub<Duration> for NodeInstant {
    type Output = Self;

    fn sub(self, duration: Duration) -> Self {
        Self(self.0 - nanos(duration))
    }
}

impl SubAssign<Duration> for NodeInstant {
    fn sub_assign(&mut self, duration: Duration) {
        *self = *self - duration;
    }
}

impl Sub for NodeInstant {
    type Output = Duration;

    fn sub(self, other: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(other.0))
    }
}

/// Far enough from zero for any timeout to be subtracted.
const START: u64 = 86_400 * 1_000_000_000;

impl openraft::Instant for NodeInstant {
    fn now() -> Self {
        let ahead =
            CLOCKS.with_borrow(|clocks| clocks.get(&HERE.get()).map_or(0, |clock| clock.ahead));
        let now = <SimInstant as openraft::Instant>::now().elapsed_since_start();
        Self(START + nanos(now) + ahead)
    }
}

/// The runtime of the members.
#[derive(Debug)]
pub struct NodeRuntime(SimRuntime);

type Sim<T> = <SimRuntime as AsyncRuntime>::JoinHandle<T>;

impl AsyncRuntime for NodeRuntime {
    type JoinError = <SimRuntime as AsyncRuntime>::JoinError;
    type JoinHandle<T: Send + 'static> = Sim<T>;
    type Sleep = <SimRuntime as AsyncRuntime>::Sleep;
    type Instant = NodeInstant;
    type TimeoutError = <SimRuntime as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + Send> = <SimRuntime as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = <SimRuntime as AsyncRuntime>::ThreadLocalRng;
    type Mpsc = <SimRuntime as AsyncRuntime>::Mpsc;
    type Watch = <SimRuntime as AsyncRuntime>::Watch;
    type Oneshot = <SimRuntime as AsyncRuntime>::Oneshot;
    type Mutex<T: Send + 'static> = <SimRuntime as AsyncRuntime>::Mutex<T>;

    fn spawn<T>(future: T) -> Sim<T::Output>
    where
        T: Future + Send + 'static,
        T::Output: Send + 'static,
    {
        SimRuntime::spawn(on(HERE.get(), future))
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        SimRuntime::sleep(duration)
    }

    fn sleep_until(deadline: NodeInstant) -> Self::Sleep {
        SimRuntime::sleep(deadline - <NodeInstant as openraft::Instant>::now())
    }

    fn timeout<R, F: Future<Output = R> + Send>(
        duration: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        SimRuntime::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + Send>(
        deadline: NodeInstant,
        future: F,
    ) -> Self::Timeout<R, F> {
        SimRuntime::timeout(deadline - <NodeInstant as openraft::Instant>::now(), future)
    }

    fn is_panic(error: &Self::JoinError) -> bool {
        SimRuntime::is_panic(error)
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        SimRuntime::thread_rng()
    }

    fn new(threads: usize) -> Self {
        Self(SimRuntime::new(threads))
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.0.block_on(future)
    }

    fn spawn_blocking<F, T>(work: F) -> impl Future<Output = io::Result<T>> + Send
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        SimRuntime::spawn_blocking(work)
    }
}
