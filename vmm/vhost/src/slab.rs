//! The requests of one ring in progress: futures of one type in boxes that are used again and again,
//! each with a waker of its own, polled by the ring's task. No request allocates once the slab is
//! warm, and none is polled that nobody woke.

use std::future::Future;
use std::pin::Pin;
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

struct Place<F, T> {
    future: Pin<Box<Option<F>>>,
    tag: Option<T>,
    waker: Waker,
}

/// See the module's head. `T` is what the owner keeps with a request.
pub(crate) struct Slab<F, T> {
    places: Vec<Place<F, T>>,
    free: Vec<usize>,
    max: usize,
    woken: Arc<Woken>,
}

impl<F: Future, T> Slab<F, T> {
    /// Holds at most `max` requests.
    pub(crate) fn new(max: usize) -> Slab<F, T> {
        let words = (0..max.div_ceil(WORD)).map(|_| AtomicU64::new(0));
        Slab {
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

    /// Starts a request. Its output, when that is there at once.
    ///
    /// # Panics
    /// When the slab is full.
    pub(crate) fn start(&mut self, future: F, tag: T) -> Option<(T, F::Output)> {
        let place = self.free.pop().unwrap_or_else(|| self.grow());
        let slot = &mut self.places[place];
        slot.future.set(Some(future));
        slot.tag = Some(tag);
        self.poll(place)
    }

    fn grow(&mut self) -> usize {
        let place = self.places.len();
        assert!(place < self.max, "the slab of {} is full", self.max);
        let woken = Arc::clone(&self.woken);
        self.places.push(Place {
            future: Box::pin(None),
            tag: None,
            waker: Waker::from(Arc::new(PlaceWaker { woken, place })),
        });
        place
    }

    fn poll(&mut self, place: usize) -> Option<(T, F::Output)> {
        let slot = &mut self.places[place];
        let future = slot.future.as_mut().as_pin_mut()?;
        let Poll::Ready(output) = future.poll(&mut Context::from_waker(&slot.waker)) else {
            return None;
        };
        slot.future.set(None);
        let tag = slot.tag.take().expect("a request in progress has its tag");
        self.free.push(place);
        Some((tag, output))
    }

    /// Polls what was woken, and shows what has ended.
    pub(crate) fn poll_woken(&mut self, mut ended: impl FnMut(T, F::Output)) {
        for word in 0..self.woken.words.len() {
            if self.woken.words[word].load(Ordering::Relaxed) == 0 {
                continue;
            }
            let mut bits = self.woken.words[word].swap(0, Ordering::AcqRel);
            while bits != 0 {
                let place = word * WORD + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                if let Some((tag, output)) = self.poll(place) {
                    ended(tag, output);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use super::*;

    /// Ready when its gate is open; counts its polls.
    async fn gated(gate: Rc<Cell<bool>>, waker: Rc<Cell<Option<Waker>>>, polls: Rc<Cell<u32>>) {
        std::future::poll_fn(|cx| {
            polls.set(polls.get() + 1);
            if gate.get() {
                return Poll::Ready(());
            }
            waker.set(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await;
    }

    #[test]
    fn only_what_was_woken_is_polled_and_places_are_used_again() {
        let mut slab = Slab::new(2);
        slab.belongs_to(Waker::noop());
        let gates = [(); 2].map(|()| Rc::new(Cell::new(false)));
        let wakers = [(); 2].map(|()| Rc::new(Cell::new(None)));
        let polls = [(); 2].map(|()| Rc::new(Cell::new(0)));
        for place in 0..2 {
            let future = gated(
                Rc::clone(&gates[place]),
                Rc::clone(&wakers[place]),
                Rc::clone(&polls[place]),
            );
            assert!(slab.start(future, place).is_none());
        }
        assert!(slab.is_full());
        gates[0].set(true);
        gates[1].set(true);
        wakers[1].take().expect("it waits").wake();
        let mut ended = Vec::new();
        slab.poll_woken(|tag, ()| ended.push(tag));
        assert_eq!((ended, slab.len()), (vec![1], 1));
        assert_eq!((polls[0].get(), polls[1].get()), (1, 2));
        let (gate, waker, polls) = (&gates[0], &wakers[1], &polls[1]);
        let again = gated(Rc::clone(gate), Rc::clone(waker), Rc::clone(polls));
        assert_eq!(slab.start(again, 7), Some((7, ())));
        assert_eq!(slab.places.len(), 2);
    }
}
