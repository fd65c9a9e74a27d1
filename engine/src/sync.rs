//! Waiting between tasks of one shard. Nothing here crosses threads.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// Wakes tasks that wait for a state to change; they look at the state themselves.
#[derive(Default)]
pub struct Notify {
    epoch: Cell<u64>,
    waiting: RefCell<Waiting>,
}

/// The wakers of one epoch, each at a place that its future gives back.
#[derive(Default)]
struct Waiting {
    wakers: Vec<Option<Waker>>,
    free: Vec<usize>,
}

impl Notify {
    /// Wakes all that wait now.
    pub fn notify_all(&self) {
        self.epoch.set(self.epoch.get() + 1);
        for waker in self.waiting.take().wakers.into_iter().flatten() {
            waker.wake();
        }
    }

    /// Waits for the next [`Notify::notify_all`] after the call (not after the first poll).
    /// Cancel-safe.
    pub fn notified(&self) -> Notified<'_> {
        Notified {
            notify: self,
            since: self.epoch.get(),
            place: None,
        }
    }
}

/// See [`Notify::notified`]. It leaves nothing behind when it is dropped.
#[must_use = "a future does nothing unless it is awaited"]
pub struct Notified<'a> {
    notify: &'a Notify,
    since: u64,
    /// Where the waker is, as long as the epoch is `since`.
    place: Option<usize>,
}

impl Future for Notified<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.notify.epoch.get() != self.since {
            return Poll::Ready(());
        }
        let mut waiting = self.notify.waiting.borrow_mut();
        let place = self.place.or_else(|| waiting.free.pop());
        let place = place.unwrap_or_else(|| {
            waiting.wakers.push(None);
            waiting.wakers.len() - 1
        });
        match &mut waiting.wakers[place] {
            Some(waker) => waker.clone_from(cx.waker()),
            empty => *empty = Some(cx.waker().clone()),
        }
        drop(waiting);
        self.place = Some(place);
        Poll::Pending
    }
}

impl Drop for Notified<'_> {
    fn drop(&mut self) {
        if let Some(place) = self.place
            && self.notify.epoch.get() == self.since
        {
            let mut waiting = self.notify.waiting.borrow_mut();
            waiting.wakers[place] = None;
            waiting.free.push(place);
        }
    }
}

struct Waiter {
    wanted: u64,
    granted: Cell<bool>,
    gone: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

struct State {
    free: Cell<u64>,
    total: u64,
    queue: RefCell<VecDeque<Rc<Waiter>>>,
    queue_max: usize,
}

/// Counts units of something bounded; waiters are served in order.
#[derive(Clone)]
pub struct Semaphore {
    state: Rc<State>,
}

/// The semaphore's queue of waiters is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many wait already")]
pub struct QueueFull;

impl Semaphore {
    /// `total` units, and at most `queue_max` waiters.
    pub fn new(total: u64, queue_max: usize) -> Semaphore {
        let state = State {
            free: Cell::new(total),
            total,
            queue: RefCell::default(),
            queue_max,
        };
        Semaphore {
            state: Rc::new(state),
        }
    }

    /// Units that are free now.
    pub fn free(&self) -> u64 {
        self.state.free.get()
    }

    /// Takes units at once, or not at all.
    pub fn try_acquire(&self, units: u64) -> Option<SemaphorePermit> {
        let state = &self.state;
        if !state.queue.borrow().is_empty() || state.free.get() < units {
            return None;
        }
        state.free.set(state.free.get() - units);
        Some(SemaphorePermit {
            state: Rc::clone(state),
            units,
        })
    }

    /// Takes units (at most the total), waiting in line. Cancel-safe.
    ///
    /// # Errors
    /// [`QueueFull`] when the line is at its bound.
    pub async fn acquire(&self, units: u64) -> Result<SemaphorePermit, QueueFull> {
        let units = units.min(self.state.total);
        if let Some(permit) = self.try_acquire(units) {
            return Ok(permit);
        }
        if self.state.queue.borrow().len() >= self.state.queue_max {
            return Err(QueueFull);
        }
        let waiter = Rc::new(Waiter {
            wanted: units,
            granted: Cell::new(false),
            gone: Cell::new(false),
            waker: RefCell::default(),
        });
        self.state.queue.borrow_mut().push_back(Rc::clone(&waiter));
        let mut line = InLine {
            state: Rc::clone(&self.state),
            waiter,
        };
        poll_fn(|cx| {
            if line.waiter.granted.get() {
                return Poll::Ready(());
            }
            *line.waiter.waker.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
        Ok(line.permit())
    }
}

/// A place in the line; leaving it early gives back what was granted.
struct InLine {
    state: Rc<State>,
    waiter: Rc<Waiter>,
}

impl InLine {
    fn permit(&mut self) -> SemaphorePermit {
        self.waiter.granted.set(false);
        SemaphorePermit {
            state: Rc::clone(&self.state),
            units: self.waiter.wanted,
        }
    }
}

impl Drop for InLine {
    fn drop(&mut self) {
        self.waiter.gone.set(true);
        if self.waiter.granted.get() {
            self.state.give_back(self.waiter.wanted);
        } else {
            self.state.queue.borrow_mut().retain(|w| !w.gone.get());
            self.state.serve();
        }
    }
}

impl State {
    fn give_back(&self, units: u64) {
        self.free.set(self.free.get() + units);
        self.serve();
    }

    fn serve(&self) {
        loop {
            let next = {
                let mut queue = self.queue.borrow_mut();
                match queue.front() {
                    Some(first) if first.wanted <= self.free.get() => queue.pop_front(),
                    _ => None,
                }
            };
            let Some(waiter) = next else { return };
            self.free.set(self.free.get() - waiter.wanted);
            waiter.granted.set(true);
            if let Some(waker) = waiter.waker.take() {
                waker.wake();
            }
        }
    }
}

/// Units taken from a [`Semaphore`]; given back when dropped.
pub struct SemaphorePermit {
    state: Rc<State>,
    units: u64,
}

impl Drop for SemaphorePermit {
    fn drop(&mut self) {
        self.state.give_back(self.units);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;

    #[test]
    fn a_waiter_that_leaves_lets_the_next_one_in() {
        let semaphore = Semaphore::new(2, 4);
        let held = semaphore.try_acquire(1).unwrap();
        let mut cx = Context::from_waker(Waker::noop());
        let mut big = Box::pin(semaphore.acquire(2));
        let mut small = pin!(semaphore.acquire(1));
        assert!(big.as_mut().poll(&mut cx).is_pending());
        assert!(small.as_mut().poll(&mut cx).is_pending());
        drop(big);
        assert!(matches!(small.as_mut().poll(&mut cx), Poll::Ready(Ok(_))));
        drop(held);
    }

    #[test]
    fn the_line_is_bounded() {
        let semaphore = Semaphore::new(1, 0);
        let _held = semaphore.try_acquire(1).unwrap();
        let mut cx = Context::from_waker(Waker::noop());
        let mut refused = pin!(semaphore.acquire(1));
        assert!(matches!(
            refused.as_mut().poll(&mut cx),
            Poll::Ready(Err(QueueFull))
        ));
    }

    #[test]
    fn a_wait_that_is_given_up_leaves_nothing_behind() {
        let notify = Notify::default();
        let mut cx = Context::from_waker(Waker::noop());
        let mut stays = pin!(notify.notified());
        assert!(stays.as_mut().poll(&mut cx).is_pending());
        for _ in 0..100 {
            assert!(pin!(notify.notified()).poll(&mut cx).is_pending());
        }
        assert_eq!(notify.waiting.borrow().wakers.len(), 2);
        let mut late = Box::pin(notify.notified());
        assert!(late.as_mut().poll(&mut cx).is_pending());
        notify.notify_all();
        // Its place belongs to a later waiter by now.
        let mut next = pin!(notify.notified());
        assert!(next.as_mut().poll(&mut cx).is_pending());
        drop(late);
        assert_eq!(notify.waiting.borrow().wakers.iter().flatten().count(), 1);
        assert!(stays.as_mut().poll(&mut cx).is_ready());
    }

    #[test]
    fn notified_counts_from_its_call() {
        let notify = Notify::default();
        let mut cx = Context::from_waker(Waker::noop());
        let mut early = pin!(notify.notified());
        notify.notify_all();
        assert!(early.as_mut().poll(&mut cx).is_ready());
        assert!(pin!(notify.notified()).poll(&mut cx).is_pending());
    }
}
