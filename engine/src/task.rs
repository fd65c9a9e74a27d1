//! Tasks of a shard, their wakers, and the handles on them.
//!
//! A waker is one word: which shard (its endpoint's number), which task, which generation of that
//! task. It owns nothing, so cloning and dropping are free; waking a task that is gone does
//! nothing, or polls its successor once more than needed, which every future must bear.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::ptr;
use std::rc::Rc;
use std::task::{Context, Poll, RawWaker, RawWakerVTable, Waker};

use crate::endpoint;
use crate::flows::Flow;
use crate::sched::{Place, SchedGroup};
use crate::shard::with_current;

pub(crate) type BoxFuture = Pin<Box<dyn Future<Output = ()>>>;

const INDEX_BITS: u32 = 20;
const GENERATION_BITS: u32 = 28;
/// Most tasks that a shard can hold.
pub(crate) const TASKS_MAX: usize = 1 << 16;

const _: () = assert!(TASKS_MAX <= 1 << INDEX_BITS);
const _: () = assert!(usize::BITS == 64, "a waker packs 64 bits into a pointer");

/// Names one task of one shard for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TaskRef {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

fn pack(endpoint: u16, task: TaskRef) -> *const () {
    let word = u64::from(endpoint) << (INDEX_BITS + GENERATION_BITS)
        | u64::from(task.generation & ((1 << GENERATION_BITS) - 1)) << INDEX_BITS
        | u64::from(task.index);
    ptr::without_provenance(word as usize)
}

fn unpack(data: *const ()) -> (u16, TaskRef) {
    let word = data.addr() as u64;
    let task = TaskRef {
        index: (word & ((1 << INDEX_BITS) - 1)) as u32,
        generation: (word >> INDEX_BITS) as u32 & ((1 << GENERATION_BITS) - 1),
    };
    ((word >> (INDEX_BITS + GENERATION_BITS)) as u16, task)
}

static VTABLE: RawWakerVTable =
    RawWakerVTable::new(|data| RawWaker::new(data, &VTABLE), wake, wake, |_| {});

fn wake(data: *const ()) {
    let (endpoint, task) = unpack(data);
    let local = with_current(|shard| {
        shard.endpoint_number() == endpoint && {
            shard.wake_local(task);
            true
        }
    });
    if local != Some(true) {
        endpoint::wake(endpoint, task.index as usize);
    }
}

pub(crate) fn waker(endpoint: u16, task: TaskRef) -> Waker {
    // SAFETY: the data is a plain number, never dereferenced; the functions above are thread-safe
    // and own nothing, so clone, wake and drop keep RawWaker's contract.
    unsafe { Waker::from_raw(RawWaker::new(pack(endpoint, task), &VTABLE)) }
}

/// What a task is, apart from its future.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TaskInfo {
    pub(crate) group: SchedGroup,
    /// Level of the service group on whose behalf the task runs; calls go to higher levels only.
    pub(crate) level: u8,
    /// Whose work it does, within its group.
    pub(crate) flow: Flow,
}

struct Entry {
    generation: u32,
    info: TaskInfo,
    future: Option<BoxFuture>,
    live: bool,
    queued: bool,
    polling: bool,
    cancelled: bool,
}

/// All tasks of a shard.
#[derive(Default)]
pub(crate) struct Tasks {
    entries: Vec<Entry>,
    free: Vec<u32>,
}

impl Tasks {
    pub(crate) fn live(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    /// `None` when the shard holds its most already; the future is given back.
    pub(crate) fn insert(
        &mut self,
        info: TaskInfo,
        future: BoxFuture,
    ) -> Result<TaskRef, BoxFuture> {
        let index = match self.free.pop() {
            Some(index) => index,
            None if self.entries.len() == TASKS_MAX => return Err(future),
            None => {
                self.entries.push(Entry {
                    generation: 0,
                    info,
                    future: None,
                    live: false,
                    queued: false,
                    polling: false,
                    cancelled: false,
                });
                (self.entries.len() - 1) as u32
            }
        };
        let entry = &mut self.entries[index as usize];
        entry.generation = (entry.generation + 1) & ((1 << GENERATION_BITS) - 1);
        entry.info = info;
        entry.future = Some(future);
        entry.live = true;
        entry.cancelled = false;
        Ok(TaskRef {
            index,
            generation: entry.generation,
        })
    }

    /// Marks a task as queued; `None` when it is already, or gone. Without a generation any
    /// current holder of the index is meant.
    pub(crate) fn queue(&mut self, index: u32, generation: Option<u32>) -> Option<Place> {
        let entry = self.entries.get_mut(index as usize)?;
        let current = generation.is_none_or(|g| g == entry.generation);
        if !entry.live || entry.queued || !current {
            return None;
        }
        entry.queued = true;
        Some((entry.info.group, entry.info.flow))
    }

    /// Takes a queued task's future out to be polled.
    pub(crate) fn begin(&mut self, index: u32) -> Option<(BoxFuture, TaskRef, TaskInfo)> {
        let entry = &mut self.entries[index as usize];
        entry.queued = false;
        let future = entry.future.take()?;
        entry.polling = true;
        Some((
            future,
            TaskRef {
                index,
                generation: entry.generation,
            },
            entry.info,
        ))
    }

    /// Changes whose work a live task does.
    pub(crate) fn set_flow(&mut self, task: TaskRef, flow: Flow) {
        let entry = &mut self.entries[task.index as usize];
        if entry.live && entry.generation == task.generation {
            entry.info.flow = flow;
        }
    }

    /// Puts a pending task back. A task cancelled meanwhile is freed and its future returned to be
    /// dropped.
    pub(crate) fn pause(&mut self, index: u32, future: BoxFuture) -> Option<BoxFuture> {
        let entry = &mut self.entries[index as usize];
        entry.polling = false;
        if entry.cancelled {
            self.release(index);
            return Some(future);
        }
        entry.future = Some(future);
        None
    }

    /// Frees a finished task.
    pub(crate) fn finish(&mut self, index: u32) {
        self.entries[index as usize].polling = false;
        self.release(index);
    }

    fn release(&mut self, index: u32) {
        let entry = &mut self.entries[index as usize];
        entry.live = false;
        self.free.push(index);
    }

    /// Ends a task early. Its future is returned to be dropped, unless it is being polled: then it
    /// goes when the poll returns.
    pub(crate) fn cancel(&mut self, task: TaskRef) -> Option<BoxFuture> {
        let entry = self.entries.get_mut(task.index as usize)?;
        if !entry.live || entry.generation != task.generation {
            return None;
        }
        if entry.polling {
            entry.cancelled = true;
            return None;
        }
        let future = entry.future.take();
        self.release(task.index);
        future
    }

    /// Takes all futures out.
    pub(crate) fn drain(&mut self) -> Vec<BoxFuture> {
        let live: Vec<u32> = (0..self.entries.len() as u32)
            .filter(|i| self.entries[*i as usize].live)
            .collect();
        let mut futures = Vec::new();
        for index in live {
            futures.extend(self.entries[index as usize].future.take());
            self.release(index);
        }
        futures
    }
}

/// What a task leaves for its handle.
struct Join<T> {
    output: RefCell<Option<T>>,
    waker: RefCell<Option<Waker>>,
    ended: Cell<bool>,
}

/// Marks the join as ended also when the task is dropped before it finished.
struct JoinGuard<T>(Rc<Join<T>>);

impl<T> Drop for JoinGuard<T> {
    fn drop(&mut self) {
        self.0.ended.set(true);
        if let Some(waker) = self.0.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

/// A running task. Dropping the handle cancels the task; [`Task::detach`] lets it run on.
///
/// Awaiting gives the task's output.
#[must_use = "dropping a Task cancels it; detach() lets it run"]
pub struct Task<T> {
    cancels: Option<TaskRef>,
    endpoint: u16,
    join: Rc<Join<T>>,
}

impl<T> Task<T> {
    /// Lets the task run to its end without a handle.
    pub fn detach(mut self) {
        self.cancels = None;
    }

    /// Whether the task has ended.
    pub fn is_finished(&self) -> bool {
        self.join.ended.get()
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        let (Some(task), false) = (self.cancels, self.join.ended.get()) else {
            return;
        };
        with_current(|shard| {
            if shard.endpoint_number() == self.endpoint {
                shard.cancel_task(task);
            }
        });
    }
}

impl<T> Future for Task<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        if let Some(output) = self.join.output.borrow_mut().take() {
            return Poll::Ready(output);
        }
        // A task that ended without output was torn down with its shard, and so will this one be.
        *self.join.waker.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }
}

/// Wraps a future so that its output reaches a [`Task`] handle.
pub(crate) fn joinable<F>(future: F) -> (BoxFuture, impl FnOnce(TaskRef, u16) -> Task<F::Output>)
where
    F: Future + 'static,
    F::Output: 'static,
{
    let join = Rc::new(Join {
        output: RefCell::new(None),
        waker: RefCell::new(None),
        ended: Cell::new(false),
    });
    let guard = JoinGuard(Rc::clone(&join));
    let body = async move {
        let output = future.await;
        *guard.0.output.borrow_mut() = Some(output);
        drop(guard);
    };
    (Box::pin(body), move |task, endpoint| Task {
        cancels: Some(task),
        endpoint,
        join,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_waker_word_round_trips() {
        let task = TaskRef {
            index: 65_535,
            generation: (1 << GENERATION_BITS) - 1,
        };
        assert_eq!(unpack(pack(4095, task)), (4095, task));
    }

    #[test]
    fn a_late_wake_does_not_reach_the_next_holder_of_the_index() {
        let mut tasks = Tasks::default();
        let info = TaskInfo {
            group: SchedGroup::FOREGROUND,
            level: 0,
            flow: Flow::OWN,
        };
        let first = tasks.insert(info, Box::pin(async {})).ok().unwrap();
        drop(tasks.cancel(first));
        let second = tasks.insert(info, Box::pin(async {})).ok().unwrap();
        assert_eq!(first.index, second.index);
        assert!(tasks.queue(first.index, Some(first.generation)).is_none());
        assert!(tasks.queue(second.index, Some(second.generation)).is_some());
    }
}
