//! The requests of one ring in progress. Each place has a future that takes one request after the other, so
//! none is built or moved for a request, and a waker of its own; the ring's task polls them. No request
//! allocates once the slab is warm, and none is polled that nobody woke.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Wake, Waker};

const WORD: usize = 64;

/// Which places were woken, and who polls them.
struct Woken {
    words: Box<[AtomicU64]>,
    task: OnceLock<Waker>,
}

struct PlaceWaker {
    woken: Arc<Woken>,
    place: usize,
}

impl Wake for PlaceWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let word = &self.woken.words[self.place / WORD];
        word.fetch_or(1 << (self.place % WORD), Ordering::AcqRel);
        if let Some(task) = self.woken.task.get() {
            task.wake_by_ref();
        }
    }
}

/// Where a place's future finds its requests and leaves what came of them.
pub(crate) struct Seat<Q, A> {
    request: Cell<Option<Q>>,
    answer: Cell<Option<A>>,
}

impl<Q, A> Seat<Q, A> {
    /// The next request. The slab polls when there is one.
    async fn next(&self) -> Q {
        poll_fn(|_| self.request.take().map_or(Poll::Pending, Poll::Ready)).await
    }

    /// Does one request after the other, for ever.
    pub(crate) async fn serve(&self, each: impl AsyncFn(Q) -> A) -> Infallible {
        loop {
            let request = self.next().await;
            self.answer.set(Some(each(request).await));
        }
    }
}

struct Place<Q, A, T, F> {
    future: Pin<Box<F>>,
    seat: Rc<Seat<Q, A>>,
    tag: Option<T>,
    waker: Waker,
}

/// See the module's head. `T` is what the owner keeps with a request.
pub(crate) struct Slab<Q, A, T, F, M> {
    make: M,
    places: Vec<Place<Q, A, T, F>>,
    free: Vec<usize>,
    max: usize,
    woken: Arc<Woken>,
}

impl<Q, A, T, F, M> Slab<Q, A, T, F, M>
where
    F: Future<Output = Infallible>,
    M: Fn(Rc<Seat<Q, A>>) -> F,
{
    /// Holds at most `max` requests; `make` makes the future of a place, which serves its seat.
    pub(crate) fn new(max: usize, make: M) -> Slab<Q, A, T, F, M> {
        let words = (0..max.div_ceil(WORD)).map(|_| AtomicU64::new(0));
        Slab {
            make,
            places: Vec::new(),
            free: Vec::new(),
            max,
            woken: Arc::new(Woken {
                words: words.collect(),
                task: OnceLock::new(),
            }),
        }
    }

    /// Requests in progress.
    pub(crate) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.len() == self.max
    }

    /// Says whose waker is woken when a request can go on; always the same task's.
    pub(crate) fn belongs_to(&mut self, task: &Waker) {
        self.woken.task.get_or_init(|| task.clone());
    }

    /// Starts a request. Its answer, when that is there at once.
    ///
    /// # Panics
    /// When the slab is full.
    pub(crate) fn start(&mut self, request: Q, tag: T) -> Option<(T, A)> {
        let place = self.free.pop().unwrap_or_else(|| self.grow());
        let slot = &mut self.places[place];
        slot.seat.request.set(Some(request));
        slot.tag = Some(tag);
        self.poll(place)
    }

    fn grow(&mut self) -> usize {
        let place = self.places.len();
        assert!(place < self.max, "the slab of {} is full", self.max);
        let woken = Arc::clone(&self.woken);
        let seat = Rc::new(Seat {
            request: Cell::new(None),
            answer: Cell::new(None),
        });
        self.places.push(Place {
            future: Box::pin((self.make)(Rc::clone(&seat))),
            seat,
            tag: None,
            waker: Waker::from(Arc::new(PlaceWaker { woken, place })),
        });
        place
    }

    fn poll(&mut self, place: usize) -> Option<(T, A)> {
        let slot = &mut self.places[place];
        // Nothing is in progress: it was woken more than once.
        slot.tag.as_ref()?;
        let mut cx = Context::from_waker(&slot.waker);
        match slot.future.as_mut().poll(&mut cx) {
            Poll::Pending => {}
            Poll::Ready(never) => match never {},
        }
        let answer = slot.seat.answer.take()?;
        let tag = slot.tag.take().expect("a request in progress has its tag");
        self.free.push(place);
        Some((tag, answer))
    }

    /// Polls what was woken, and shows what has ended.
    pub(crate) fn poll_woken(&mut self, mut ended: impl FnMut(T, A)) {
        for word in 0..self.woken.words.len() {
            if self.woken.words[word].load(Ordering::Relaxed) == 0 {
                continue;
            }
            let mut bits = self.woken.words[word].swap(0, Ordering::AcqRel);
            while bits != 0 {
                let place = word * WORD + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                if let Some((tag, answer)) = self.poll(place) {
                    ended(tag, answer);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What opens for a request, who waits for it, and how often it was polled.
    #[derive(Default)]
    struct Gate {
        open: Cell<bool>,
        waker: Cell<Option<Waker>>,
        polls: Cell<u32>,
    }

    async fn pass(gate: Rc<Gate>) -> u32 {
        poll_fn(|cx| {
            gate.polls.set(gate.polls.get() + 1);
            if gate.open.get() {
                return Poll::Ready(gate.polls.get());
            }
            gate.waker.set(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await
    }

    #[test]
    fn only_what_was_woken_is_polled_and_places_are_used_again() {
        let mut slab = Slab::new(
            2,
            |seat: Rc<Seat<_, _>>| async move { seat.serve(pass).await },
        );
        slab.belongs_to(Waker::noop());
        let gates = [(); 2].map(|()| Rc::new(Gate::default()));
        for (tag, gate) in gates.iter().enumerate() {
            assert!(slab.start(Rc::clone(gate), tag).is_none());
        }
        assert!(slab.is_full());
        for gate in &gates {
            gate.open.set(true);
        }
        let waker = gates[1].waker.take().expect("it waits");
        waker.wake_by_ref();
        let mut ended = Vec::new();
        slab.poll_woken(|tag, polls| ended.push((tag, polls)));
        assert_eq!((ended, slab.len()), (vec![(1, 2)], 1));
        assert_eq!(gates[0].polls.get(), 1);
        // Who wakes it late wakes nothing.
        waker.wake();
        slab.poll_woken(|tag, _| panic!("{tag} has ended twice"));
        assert_eq!(slab.start(Rc::clone(&gates[1]), 7), Some((7, 3)));
        assert_eq!(slab.places.len(), 2);
    }
}
