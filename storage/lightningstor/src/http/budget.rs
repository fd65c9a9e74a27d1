//! The memory for bodies, shared out fairly among tenants.
//!
//! A body holds its memory for as long as its client takes, and a client may stall. So no tenant may
//! hold so much that others find nothing: what a tenant holds stays below what is left free when it
//! takes more (Choudhury and Hahne, "Dynamic queue length thresholds in a shared memory ATM switch",
//! 1998). One busy tenant gets half of the memory, two get a third each, and a part is always left
//! for who comes next. A tenant that holds nothing may take what is free.
//!
//! Invariants: no more is given out than there is; each tenant is served in order; among tenants who
//! holds least is first, then who has waited longest, and nobody passes one that waits for memory to
//! be free; the waiters are bounded. Requests that hold memory and wait for more are bounded by the caller's deadline.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use shards::TenantId;

/// Too many wait for memory already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many wait for memory already")]
pub(crate) struct TooManyWait;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    Waits,
    Has,
    Left,
}

struct Waiter {
    /// Later ones are larger.
    ticket: u64,
    bytes: u64,
    turn: Cell<Turn>,
    waker: RefCell<Option<Waker>>,
}

#[derive(Default)]
struct Share {
    held: u64,
    line: VecDeque<Rc<Waiter>>,
}

struct State {
    free: u64,
    waiting: usize,
    tickets: u64,
    /// Those that hold something or wait.
    shares: BTreeMap<TenantId, Share>,
}

/// The memory of one shard.
pub(crate) struct Budget {
    total: u64,
    waiting_max: usize,
    state: Rc<RefCell<State>>,
}

impl Budget {
    /// `total` bytes, and at most `waiting_max` waiters.
    pub(crate) fn new(total: u64, waiting_max: usize) -> Budget {
        let state = State {
            free: total,
            waiting: 0,
            tickets: 0,
            shares: BTreeMap::new(),
        };
        Budget {
            total,
            waiting_max,
            state: Rc::new(RefCell::new(state)),
        }
    }

    /// Bytes that are free now.
    pub(crate) fn free(&self) -> u64 {
        self.state.borrow().free
    }

    /// Takes memory (at most the total), waiting for it; nothing is had at once. Cancel-safe.
    ///
    /// # Errors
    /// [`TooManyWait`].
    pub(crate) async fn acquire(
        &self,
        tenant: TenantId,
        bytes: u64,
    ) -> Result<Memory, TooManyWait> {
        if bytes == 0 {
            let state = Rc::clone(&self.state);
            return Ok(Memory {
                state,
                tenant,
                bytes,
            });
        }
        let waiter = self.line_up(tenant, bytes.min(self.total))?;
        let place = InLine {
            state: Rc::clone(&self.state),
            tenant,
            waiter,
        };
        poll_fn(|cx| {
            if place.waiter.turn.get() == Turn::Has {
                return Poll::Ready(());
            }
            *place.waiter.waker.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
        Ok(place.memory())
    }

    /// Takes memory that nobody waits for and that the tenant may have now.
    pub(crate) fn try_acquire(&self, tenant: TenantId, bytes: u64) -> Option<Memory> {
        let mut state = self.state.borrow_mut();
        let held = state.shares.get(&tenant).map_or(0, |share| share.held);
        let is_within = held == 0 || held + bytes <= state.free.saturating_sub(bytes);
        if state.waiting > 0 || bytes > state.free || !is_within {
            return None;
        }
        state.free -= bytes;
        state.shares.entry(tenant).or_default().held += bytes;
        let state = Rc::clone(&self.state);
        Some(Memory {
            state,
            tenant,
            bytes,
        })
    }

    fn line_up(&self, tenant: TenantId, bytes: u64) -> Result<Rc<Waiter>, TooManyWait> {
        let mut state = self.state.borrow_mut();
        if state.waiting >= self.waiting_max {
            return Err(TooManyWait);
        }
        state.waiting += 1;
        state.tickets += 1;
        let waiter = Rc::new(Waiter {
            ticket: state.tickets,
            bytes,
            turn: Cell::new(Turn::Waits),
            waker: RefCell::default(),
        });
        let share = state.shares.entry(tenant).or_default();
        share.line.push_back(Rc::clone(&waiter));
        state.serve();
        Ok(waiter)
    }
}

impl State {
    /// Gives memory to who may have it.
    fn serve(&mut self) {
        while self.waiting > 0 {
            let Some(tenant) = self.next() else { return };
            let share = self.shares.get_mut(&tenant).expect("who is next waits");
            let waiter = share.line.pop_front().expect("who is next waits");
            share.held += waiter.bytes;
            self.free -= waiter.bytes;
            self.waiting -= 1;
            waiter.turn.set(Turn::Has);
            if let Some(waker) = waiter.waker.take() {
                waker.wake();
            }
        }
    }

    /// The tenant that holds least of those within their bounds, and among equals has waited
    /// longest, if its first request fits.
    fn next(&self) -> Option<TenantId> {
        let within = self.shares.iter().filter_map(|(tenant, share)| {
            let first = share.line.front()?;
            let after = share.held + first.bytes;
            let is_within = share.held == 0 || after <= self.free.saturating_sub(first.bytes);
            is_within.then_some((share.held, first.ticket, *tenant, first.bytes))
        });
        let (_, _, tenant, bytes) = within.min()?;
        (bytes <= self.free).then_some(tenant)
    }

    fn give_back(&mut self, tenant: TenantId, bytes: u64) {
        self.free += bytes;
        if let Some(share) = self.shares.get_mut(&tenant) {
            share.held -= bytes;
        }
        self.end(tenant);
    }

    /// Forgets a tenant that has nothing any more, and serves the others.
    fn end(&mut self, tenant: TenantId) {
        let is_idle = |share: &Share| share.held == 0 && share.line.is_empty();
        if self.shares.get(&tenant).is_some_and(is_idle) {
            self.shares.remove(&tenant);
        }
        self.serve();
    }
}

/// A place in a tenant's line; leaving it gives back what was granted.
struct InLine {
    state: Rc<RefCell<State>>,
    tenant: TenantId,
    waiter: Rc<Waiter>,
}

impl InLine {
    fn memory(self) -> Memory {
        self.waiter.turn.set(Turn::Left);
        Memory {
            state: Rc::clone(&self.state),
            tenant: self.tenant,
            bytes: self.waiter.bytes,
        }
    }
}

impl Drop for InLine {
    fn drop(&mut self) {
        let mut state = self.state.borrow_mut();
        match self.waiter.turn.replace(Turn::Left) {
            Turn::Left => {}
            Turn::Has => state.give_back(self.tenant, self.waiter.bytes),
            Turn::Waits => {
                state.waiting -= 1;
                if let Some(share) = state.shares.get_mut(&self.tenant) {
                    share
                        .line
                        .retain(|waiter| !Rc::ptr_eq(waiter, &self.waiter));
                }
                state.end(self.tenant);
            }
        }
    }
}

/// Memory of a tenant; given back when dropped.
pub(crate) struct Memory {
    state: Rc<RefCell<State>>,
    tenant: TenantId,
    bytes: u64,
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.state.borrow_mut().give_back(self.tenant, self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::{Pin, pin};
    use std::task::Context;

    use super::*;

    const ANN: TenantId = TenantId(1);
    const BOB: TenantId = TenantId(2);
    const CAT: TenantId = TenantId(3);

    fn now<F: Future>(future: F) -> Option<F::Output> {
        match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        }
    }

    fn take(budget: &Budget, tenant: TenantId, bytes: u64) -> Option<Memory> {
        now(budget.acquire(tenant, bytes)).map(|got| got.unwrap())
    }

    fn take_all(budget: &Budget, tenant: TenantId) -> Vec<Memory> {
        std::iter::from_fn(|| take(budget, tenant, 1)).collect()
    }

    #[test]
    fn one_tenant_gets_half_and_the_next_ones_find_something_left() {
        let budget = Budget::new(32, 100);
        let held = [ANN, BOB, CAT].map(|tenant| take_all(&budget, tenant));
        assert_eq!(held.each_ref().map(Vec::len), [16, 8, 4]);
        assert_eq!(budget.free(), 4);
        drop(held);
        assert_eq!(budget.free(), 32);
        assert!(budget.state.borrow().shares.is_empty());
    }

    #[test]
    fn a_request_larger_than_its_share_is_served_when_its_tenant_holds_nothing() {
        let budget = Budget::new(32, 100);
        let _some = take(&budget, ANN, 1).unwrap();
        assert!(take(&budget, ANN, 20).is_none());
        let large = take(&budget, BOB, 31).unwrap();
        assert_eq!(budget.free(), 0);
        drop(large);
        assert!(take(&budget, CAT, 1000).is_none(), "more than is free");
        assert_eq!(budget.free(), 31);
    }

    /// Polls a waiter of which the test keeps hold.
    fn poll(waiter: Pin<&mut impl Future<Output = Result<Memory, TooManyWait>>>) -> Option<Memory> {
        let mut cx = Context::from_waker(Waker::noop());
        match waiter.poll(&mut cx) {
            Poll::Ready(got) => Some(got.unwrap()),
            Poll::Pending => None,
        }
    }

    #[test]
    fn who_waits_for_free_memory_is_not_passed_and_who_is_over_its_share_does_not_block() {
        let budget = Budget::new(32, 100);
        let mut ann = take_all(&budget, ANN);
        let mut over = pin!(budget.acquire(ANN, 1));
        assert!(poll(over.as_mut()).is_none());
        let bob = take(&budget, BOB, 12).unwrap();
        let mut large = pin!(budget.acquire(CAT, 8));
        assert!(poll(large.as_mut()).is_none(), "four are free");
        let mut small = pin!(budget.acquire(TenantId(4), 1));
        // It holds as little as the one before it, which came first.
        assert!(poll(small.as_mut()).is_none());
        ann.truncate(12);
        let cat = poll(large.as_mut()).unwrap();
        assert!(poll(small.as_mut()).is_none() && poll(over.as_mut()).is_none());
        drop((bob, cat));
        assert!(poll(small.as_mut()).is_some());
        assert!(poll(over.as_mut()).is_some());
    }

    #[test]
    fn a_wait_that_is_given_up_leaves_nothing_behind_and_the_line_is_bounded() {
        let budget = Budget::new(4, 1);
        let held = take(&budget, ANN, 4).unwrap();
        let mut waits = Box::pin(budget.acquire(BOB, 4));
        assert!(poll(waits.as_mut()).is_none());
        assert!(matches!(
            now(budget.acquire(CAT, 1)),
            Some(Err(TooManyWait))
        ));
        drop(waits);
        let mut waits = Box::pin(budget.acquire(BOB, 4));
        assert!(poll(waits.as_mut()).is_none());
        drop(held);
        // Granted, and never looked at.
        drop(waits);
        assert_eq!(budget.free(), 4);
        assert!(budget.state.borrow().shares.is_empty());
    }
}
