//! One batch's answer to all of its appenders.

use std::cell::RefCell;
use std::future::poll_fn;
use std::task::{Poll, Waker};

use crate::error::LogError;
use crate::types::Position;

/// Where the batch starts, once it and all before it are durable.
type Answer = Result<Position, LogError>;

/// Resolved once, awaited by many. A list of wakers per batch, so that a resolve costs as much as
/// the batch has appenders, however many others wait.
#[derive(Default)]
pub(crate) struct Ack {
    answer: RefCell<Option<Answer>>,
    waiting: RefCell<Vec<Waker>>,
}

impl Ack {
    /// Gives the answer; the first one stands.
    pub(crate) fn resolve(&self, answer: Answer) {
        self.answer.borrow_mut().get_or_insert(answer);
        for waker in self.waiting.take() {
            waker.wake();
        }
    }

    pub(crate) async fn wait(&self) -> Answer {
        let mut place = None;
        poll_fn(|cx| {
            if let Some(answer) = self.answer.borrow().as_ref() {
                return Poll::Ready(answer.clone());
            }
            let mut waiting = self.waiting.borrow_mut();
            if let Some(place) = place {
                cx.waker().clone_into(&mut waiting[place]);
            } else {
                place = Some(waiting.len());
                waiting.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await
    }
}
