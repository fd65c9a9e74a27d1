//! How the volumes of a partition share its disk while several of them keep it busy: start-time fair queueing
//! with a bounded depth. It knows no clock.
//!
//! - Each request has a cost; it may begin at a virtual time that its volume's earlier requests have pushed
//!   on, by their cost over the volume's shares. Those that wait begin in that order.
//! - While one volume alone has requests, none waits. Once there are two, requests wait while those in
//!   progress cost [`DEPTH`]: so a queue of one volume is never before the first request of another.
//! - Time at rest is not saved up.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::task::{Poll, Waker};

use crate::types::SHARES_DEFAULT;

/// What a request costs beside its bytes.
const OPERATION: u64 = 16 << 10;
/// Cost of requests in progress past which others wait: 51 of 4 KiB, 7 of 128 KiB.
const DEPTH: u64 = 1 << 20;

/// The requests of all volumes.
#[derive(Default)]
pub(crate) struct Shares {
    queue: RefCell<Queue>,
    /// Requests that have waited.
    waits: Cell<u64>,
}

/// A volume's part.
pub(crate) struct Share {
    shares: Cell<u64>,
    /// When its next request may begin, at the earliest.
    next: Cell<u64>,
    /// Its requests that wait or are in progress.
    requests: Cell<u64>,
}

#[derive(Default)]
struct Queue {
    /// By virtual time, then in the order of coming.
    waiting: BTreeMap<(u64, u64), Waiting>,
    in_progress: u64,
    /// Volumes that have requests.
    volumes: usize,
    /// The virtual time of what began last.
    now: u64,
    came: u64,
}

struct Waiting {
    cost: u64,
    waker: Option<Waker>,
}

/// A request's turn, until it is dropped.
pub(crate) struct Turn<'a> {
    shares: &'a Shares,
    share: &'a Share,
    cost: u64,
    place: (u64, u64),
}

impl Share {
    /// `shares` of 0 is the default.
    pub(crate) fn new(shares: u32) -> Share {
        let share = Share {
            shares: Cell::new(0),
            next: Cell::new(0),
            requests: Cell::new(0),
        };
        share.set(shares);
        share
    }

    pub(crate) fn set(&self, shares: u32) {
        let shares = if shares == 0 { SHARES_DEFAULT } else { shares };
        self.shares.set(u64::from(shares));
    }
}

impl Queue {
    fn has_room(&self, cost: u64) -> bool {
        self.volumes <= 1 || self.in_progress == 0 || self.in_progress + cost <= DEPTH
    }

    fn begin(&mut self, at: u64, cost: u64) {
        self.now = self.now.max(at);
        self.in_progress += cost;
    }

    /// Lets in those who have waited longest, as far as there is room.
    fn go_on(&mut self) {
        loop {
            let first = self.waiting.first_key_value();
            if !first.is_some_and(|(_, waiting)| self.has_room(waiting.cost)) {
                return;
            }
            let Some(((at, _), waiting)) = self.waiting.pop_first() else {
                return;
            };
            self.begin(at, waiting.cost);
            if let Some(waker) = waiting.waker {
                waker.wake();
            }
        }
    }
}

impl Shares {
    /// Requests that have waited so far.
    pub(crate) fn waits(&self) -> u64 {
        self.waits.get()
    }

    /// Takes a place in the queue for a request; [`Turn::begins`] waits for its turn.
    pub(crate) fn queue<'a>(&'a self, share: &'a Share, bytes: u64) -> Turn<'a> {
        let cost = bytes.saturating_add(OPERATION).min(DEPTH);
        let mut queue = self.queue.borrow_mut();
        let first = share.requests.replace(share.requests.get() + 1) == 0;
        queue.volumes += usize::from(first);
        let at = share.next.get().max(queue.now);
        let pushed = cost * u64::from(SHARES_DEFAULT) / share.shares.get();
        share.next.set(at.saturating_add(pushed.max(1)));
        queue.came += 1;
        let place = (at, queue.came);
        if queue.waiting.is_empty() && queue.has_room(cost) {
            queue.begin(at, cost);
        } else {
            let waker = None;
            queue.waiting.insert(place, Waiting { cost, waker });
            self.waits.set(self.waits.get() + 1);
        }
        Turn {
            shares: self,
            share,
            cost,
            place,
        }
    }
}

impl Turn<'_> {
    /// Whether the request may not begin yet.
    pub(crate) fn waits(&self) -> bool {
        self.shares.queue.borrow().waiting.contains_key(&self.place)
    }

    /// Waits until the request may begin. Cancel-safe.
    pub(crate) async fn begins(&self) {
        poll_fn(|cx| {
            let mut queue = self.shares.queue.borrow_mut();
            match queue.waiting.get_mut(&self.place) {
                None => Poll::Ready(()),
                Some(waiting) => {
                    waiting.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await;
    }

    /// Lets it begin now, whoever else waits.
    pub(crate) fn begin_now(&self) {
        let mut queue = self.shares.queue.borrow_mut();
        if queue.waiting.remove(&self.place).is_some() {
            queue.in_progress += self.cost;
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut queue = self.shares.queue.borrow_mut();
        if queue.waiting.remove(&self.place).is_none() {
            queue.in_progress -= self.cost;
        }
        let left = self.share.requests.get() - 1;
        self.share.requests.set(left);
        queue.volumes -= usize::from(left == 0);
        queue.go_on();
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::Context;

    use super::*;

    fn is_let_in(turn: &Turn<'_>) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        let begins = pin!(turn.begins()).poll(&mut cx).is_ready();
        assert_ne!(begins, turn.waits());
        begins
    }

    #[test]
    fn a_volume_alone_never_waits() {
        let (shares, one) = (Shares::default(), Share::new(0));
        let turns: Vec<Turn<'_>> = (0..1000).map(|_| shares.queue(&one, 1 << 20)).collect();
        assert!(turns.iter().all(is_let_in));
        drop(turns);
        assert_eq!((shares.waits(), shares.queue.borrow().in_progress), (0, 0));
    }

    /// Requests of two volumes with 200 queued all the time, by volume, of so many that have ended. What
    /// one of them had begun while it was alone is not counted.
    fn served(of: [u32; 2], bytes: [u64; 2], ended: usize) -> [usize; 2] {
        let (shares, volumes) = (Shares::default(), of.map(Share::new));
        let mut turns: [Vec<Turn<'_>>; 2] = [Vec::new(), Vec::new()];
        let mut served = [0; 2];
        for round in 0..ended + 1000 {
            for (which, turns) in turns.iter_mut().enumerate() {
                while turns.len() < 200 {
                    turns.push(shares.queue(&volumes[which], bytes[which]));
                }
            }
            // Whose request ends first is no matter: alternate.
            for which in [round % 2, 1 - round % 2] {
                if let Some(at) = turns[which].iter().position(is_let_in) {
                    drop(turns[which].remove(at));
                    served[which] += usize::from(round >= 1000);
                    break;
                }
            }
        }
        served
    }

    #[test]
    fn two_that_are_busy_get_what_their_shares_say() {
        for (of, wanted) in [([100, 100], 1.0), ([300, 100], 3.0), ([0, 1000], 0.1)] {
            let [first, second] = served(of, [4096, 4096], 4000);
            let ratio = first as f64 / second as f64;
            let near = wanted * 0.85..wanted * 1.15;
            assert!(near.contains(&ratio), "{of:?}: {first} and {second}");
        }
    }

    #[test]
    fn large_requests_cost_more() {
        let [small, large] = served([100, 100], [4096, 240 << 10], 4000);
        let ratio = small as f64 / large as f64;
        assert!((10.0..16.0).contains(&ratio), "{small} and {large}");
    }

    #[test]
    fn the_first_request_of_another_waits_for_no_queue() {
        let shares = Shares::default();
        let (busy, rare) = (Share::new(0), Share::new(0));
        let mut flood: Vec<Turn<'_>> = (0..100).map(|_| shares.queue(&busy, 4096)).collect();
        let first = shares.queue(&rare, 4096);
        flood.extend((0..100).map(|_| shares.queue(&busy, 4096)));
        let mut before = 0;
        while !is_let_in(&first) {
            let next = flood
                .iter()
                .position(is_let_in)
                .expect("one is in progress");
            drop(flood.remove(next));
            before += 1;
        }
        assert!(before <= 50, "it waited for {before}");
        // What waits can be let in at once, and what is dropped while it waits leaves nothing.
        let waiting = flood.pop().expect("there are more");
        assert!(!is_let_in(&waiting));
        waiting.begin_now();
        assert!(is_let_in(&waiting));
        drop((waiting, first, flood));
        let queue = shares.queue.borrow();
        assert_eq!((queue.in_progress, queue.volumes), (0, 0));
        assert!(queue.waiting.is_empty());
    }
}
