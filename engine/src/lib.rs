//! The thread-per-core runtime under UltraCloud's hot paths, on io_uring.
//!
//! One shard is pinned to each CPU. Its tasks never leave it, own their state without locks, and
//! reach the kernel through one ring. Scheduling groups share the shard's CPU and disk by weight;
//! other shards are called by message ([`Sharded::invoke_on`]), other threads come in through
//! [`EngineHandle::call`].
//!
//! Invariants:
//! - A buffer belongs to its operation until the last completion, also when the future is dropped.
//!   A cancelled write may have happened. A short write is an error.
//! - Every queue, table and pool is bounded and answers Busy or no memory; nothing grows.
//! - Shutdown cancels all tasks, waits for every operation in flight, then frees.
//! - Under [`sim`] the same code runs on a virtual clock, a faulty disk and a faulty network; the
//!   same seed gives the same order of events.
//!
//! It never blocks a shard on the file system's name space (a helper thread does that), never
//! retries a failed write, and knows nothing of tokio.

mod affinity;
mod backend;
mod buf;
mod config;
mod endpoint;
mod engine;
mod error;
mod event;
mod flows;
pub mod fs;
mod guest;
mod limits;
#[doc(hidden)]
pub mod mailbox;
pub mod metrics;
pub mod net;
mod op;
mod pages;
mod rng;
mod sched;
mod shard;
mod sharded;

pub mod sim;
mod slots;
mod surviving;
pub mod sync;
mod task;
mod time;
mod timer;

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

pub use affinity::allowed_cpus;
pub use buf::{BLOCK, BufSlice, DmaBuf, IoBuf, IoBufMut, MAX_BUF, NoMem, PoolUse};
pub use config::{EngineConfig, SpinPolicy, ValidConfig};
pub use engine::{Capabilities, Engine, EngineHandle, LocalFut};
pub use error::{CallError, Error, ErrorKind};
pub use event::{EventFd, EventWatch};
pub use flows::Flow;
pub use guest::{GuestIov, GuestList, GuestMem, GuestPart, GuestWindow, IOV_MAX};
pub use limits::raise_open_files;
pub use pages::{PAGES_MAX, Pages};
pub use rng::Rng;
pub use sched::{GroupSpec, Latency, SchedGroup};
pub use shard::{Shard, ShardId};
pub use sharded::{ServiceGroup, Sharded};
pub use surviving::SurvivingMem;
pub use task::Task;
pub use time::Nanos;

use shard::{ShardCore, current};
use task::TaskInfo;
use timer::TimerId;

/// Starts a task on this shard in a scheduling group. It works at its starter's service level and for
/// its starter's [`Flow`].
///
/// # Panics
/// When the shard holds its most tasks (65,536): bound what you spawn.
pub fn spawn_local<F>(group: SchedGroup, future: F) -> Task<F::Output>
where
    F: Future + 'static,
    F::Output: 'static,
{
    let shard = current();
    shard.spawn(task_info(group, shard.flow()), future)
}

/// As [`spawn_local`], with an error instead of a panic when the shard is full.
///
/// # Errors
/// [`CallError::Busy`] when the shard holds its most tasks.
pub fn try_spawn_local<F>(group: SchedGroup, future: F) -> Result<Task<F::Output>, CallError>
where
    F: Future + 'static,
    F::Output: 'static,
{
    let shard = current();
    shard.try_spawn(task_info(group, shard.flow()), future)
}

/// As [`try_spawn_local`], for the shard's own work ([`Flow::OWN`]), whoever starts it.
///
/// # Errors
/// [`CallError::Busy`] when the shard holds its most tasks.
pub fn try_spawn_own<F>(group: SchedGroup, future: F) -> Result<Task<F::Output>, CallError>
where
    F: Future + 'static,
    F::Output: 'static,
{
    current().try_spawn(task_info(group, Flow::OWN), future)
}

/// What is known of a task that the running one starts.
fn task_info(group: SchedGroup, flow: Flow) -> TaskInfo {
    let level = current().level();
    TaskInfo { group, level, flow }
}

/// Says whose work this task does, from this poll on, and the tasks that it starts: flows share their
/// group's CPU alike, however many tasks each keeps ready.
pub fn set_flow(flow: Flow) {
    current().set_flow(flow);
}

/// Whose work this task does.
pub fn flow() -> Flow {
    current().flow()
}

/// The shard that runs this task.
pub fn shard_id() -> ShardId {
    current().id()
}

/// Number of shards of this engine.
pub fn shard_count() -> usize {
    current().mesh().shards()
}

/// Monotonic time.
pub fn now() -> Nanos {
    current().now()
}

/// Nanoseconds since the Unix epoch.
pub fn wall_clock() -> u64 {
    current().wall_clock()
}

/// The next 64 random bits of this shard; seeded, not for secrets.
pub fn random() -> u64 {
    current().rng(Rng::next_u64)
}

/// Fills with random bytes that are fit for keys; seeded under the simulator.
///
/// # Errors
/// As the kernel says.
pub fn fill_secret(into: &mut [u8]) -> std::io::Result<()> {
    current().backend(|backend| backend.fill_secret(into))
}

/// A buffer of at least `len` bytes from this shard's pool, its length set to `len`.
///
/// # Errors
/// [`NoMem`] when the pool is empty or `len` is past 2 MiB.
pub fn take_buf(len: usize) -> Result<DmaBuf, NoMem> {
    current().pool().take(len)
}

/// Between two looks for a buffer, when the pool was empty.
const BUF_RETRY: Duration = Duration::from_millis(2);

/// As [`take_buf`], for work that can wait: while the pool is empty, asks again until `deadline`.
///
/// # Errors
/// [`NoMem`] when the pool was empty until the deadline, or `len` is past 2 MiB.
pub async fn take_buf_until(len: usize, deadline: Nanos) -> Result<DmaBuf, NoMem> {
    loop {
        match take_buf(len) {
            Err(_) if len <= MAX_BUF && now() < deadline => sleep(BUF_RETRY).await,
            taken => return taken,
        }
    }
}

/// Whether this task has used up its turn; then [`yield_now`] lets others run.
pub fn need_yield() -> bool {
    current().need_yield()
}

/// Lets other tasks and I/O run. It wakes whoever polls it, which inside of a set of futures is not
/// the task.
pub async fn yield_now() {
    let mut yielded = false;
    poll_fn(|cx| {
        if yielded {
            return Poll::Ready(());
        }
        yielded = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// [`yield_now`], when the turn is used up.
pub async fn yield_if_needed() {
    if need_yield() {
        yield_now().await;
    }
}

/// A timer; removed when dropped.
struct Sleep {
    shard: Rc<ShardCore>,
    deadline: Nanos,
    id: Option<TimerId>,
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.shard.remove_timer(id);
        }
    }
}

/// Waits until a point of time. Cancel-safe.
pub async fn sleep_until(deadline: Nanos) {
    let mut sleep = Sleep {
        shard: current(),
        deadline,
        id: None,
    };
    poll_fn(move |cx| {
        if sleep.shard.now() >= sleep.deadline {
            return Poll::Ready(());
        }
        match sleep.id {
            Some(id) => sleep.shard.update_timer(id, cx.waker()),
            None => sleep.id = Some(sleep.shard.add_timer(sleep.deadline, cx.waker().clone())),
        }
        Poll::Pending
    })
    .await;
}

/// Waits for a while. Cancel-safe.
pub async fn sleep(duration: Duration) {
    sleep_until(now() + duration).await;
}

/// The future's output, or `None` (and the future dropped) when it takes longer than `limit`.
pub async fn timeout<F: Future>(limit: Duration, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut expired = pin!(sleep(limit));
    poll_fn(move |cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Some(output));
        }
        expired.as_mut().poll(cx).map(|()| None)
    })
    .await
}
