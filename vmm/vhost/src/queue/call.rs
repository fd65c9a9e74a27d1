//! The calls of a driver, one on its way at a time.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use engine::EventFd;

type Posting = Pin<Box<dyn Future<Output = io::Result<()>>>>;

/// See the module's head.
#[derive(Default)]
pub(super) struct Call {
    posted: Option<(Rc<EventFd>, Posting)>,
    /// The driver wants another: the one on its way may have come before what it is to tell.
    again: Option<Rc<EventFd>>,
}

impl Call {
    pub(super) fn post(&mut self, event: &Rc<EventFd>) {
        self.again = Some(Rc::clone(event));
    }

    /// Whether the kernel has a call, or is about to get one.
    pub(super) fn is_on_its_way(&self) -> bool {
        self.posted.is_some()
    }

    /// Whether a call waits that the shard had no room for.
    pub(super) fn is_held_up(&self) -> bool {
        self.posted.is_none() && self.again.is_some()
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) {
        loop {
            if self.posted.is_none() {
                let Some(event) = self.again.take() else {
                    return;
                };
                let posting = Box::pin(event.post());
                self.posted = Some((event, posting));
            }
            let Some((_, posting)) = &mut self.posted else {
                return;
            };
            let Poll::Ready(done) = posting.as_mut().poll(cx) else {
                return;
            };
            let event = self.posted.take().map(|(event, _)| event);
            match done {
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                    self.again = self.again.take().or(event);
                    return;
                }
                Err(error) => tracing::debug!(%error, "a driver was not called"),
                Ok(()) => {}
            }
        }
    }

    /// Leaves what is on its way to the kernel. A call that cannot be made now, because the counter
    /// is full, needs not to be made.
    pub(super) fn finish(&mut self) {
        self.posted = None;
        if let Some(event) = self.again.take() {
            drop(event.post());
        }
    }
}
