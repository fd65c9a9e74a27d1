//! Eventfds: how other processes (a VMM) and their kernels signal a shard, and back.

use std::future::Future;
use std::io;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::rc::Rc;

use crate::backend::{Op, RawHandle};
use crate::op::{Leaves, MultiOp, OpFuture, check};
use crate::shard::{ShardCore, current};

/// A counter that can be waited for.
pub struct EventFd {
    shard: Rc<ShardCore>,
    handle: RawHandle,
}

impl Drop for EventFd {
    fn drop(&mut self) {
        self.shard.close(self.handle);
    }
}

impl EventFd {
    /// A new counter at 0.
    ///
    /// # Errors
    /// When the process is out of descriptors.
    pub fn new() -> io::Result<EventFd> {
        let shard = current();
        let handle = shard.backend(|backend| backend.event())?;
        Ok(EventFd { shard, handle })
    }

    /// Takes over an eventfd that another process made.
    pub fn from_fd(fd: OwnedFd) -> EventFd {
        EventFd {
            shard: current(),
            handle: RawHandle(fd.into_raw_fd()),
        }
    }

    /// Waits until the counter is not 0 and takes it. Dropping the future may lose a count that
    /// was taken at that moment.
    ///
    /// # Errors
    /// As the kernel says.
    pub async fn wait(&mut self) -> io::Result<u64> {
        let op = OpFuture::start(&self.shard, Box::new(0_u64), Leaves::Event, |counter, _| {
            Op::ReadEvent {
                event: self.handle,
                counter: &raw mut **counter,
            }
        });
        let (outcome, counter) = op.await;
        check(outcome.result).map(|_| *counter)
    }

    /// Tells each time that the counter was added to, from now on and when it is not 0 now. Additions
    /// that come together may be told once. The counter is not necessarily taken, and the descriptor
    /// may be one that does not block.
    pub fn watch(self: &Rc<Self>) -> EventWatch {
        EventWatch {
            event: Rc::clone(self),
            op: None,
        }
    }

    /// Adds 1 to the counter by way of the ring, with what else is submitted in this turn. Waits while
    /// the counter is full, which whoever shares it can bring about. Dropping the future cancels it.
    ///
    /// # Errors
    /// As the kernel says; `ResourceBusy` when the shard had no slot for the operation.
    pub fn post(&self) -> impl Future<Output = io::Result<()>> + use<> {
        let op = OpFuture::start(&self.shard, (), Leaves::Event, |(), _| Op::AddEvent {
            event: self.handle,
            count: &1,
        });
        async move {
            let (outcome, ()) = op.await;
            check(outcome.result).map(drop)
        }
    }

    /// Adds 1 to the counter. Blocks when the counter is full: for an eventfd of our own.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn signal(&self) -> io::Result<()> {
        self.shard
            .backend(|backend| backend.signal_event(self.handle, 1))
    }
}

/// See [`EventFd::watch`].
pub struct EventWatch {
    event: Rc<EventFd>,
    op: Option<MultiOp>,
}

impl EventWatch {
    /// Waits until the counter was added to since the last call. Cancel-safe.
    ///
    /// # Errors
    /// As the kernel says; `ResourceBusy` when the shard had no slot for the operation.
    pub async fn changed(&mut self) -> io::Result<()> {
        loop {
            let op = match &mut self.op {
                Some(op) => op,
                none => none.insert(start(&self.event)?),
            };
            match op.next().await {
                Some(item) => return check(item.result).map(drop),
                // It ends when the completion queue was full, for example.
                None => self.op = None,
            }
        }
    }
}

fn start(event: &EventFd) -> io::Result<MultiOp> {
    let op = Op::WatchEvent {
        event: event.handle,
    };
    let started = MultiOp::start(&event.shard, Leaves::Event, op);
    started.ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::ResourceBusy,
            "the shard's table of operations is full",
        )
    })
}
