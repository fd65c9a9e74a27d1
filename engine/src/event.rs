//! Eventfds: how other processes (a VMM) and their kernels signal a shard, and back.

use std::io;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::rc::Rc;

use crate::backend::{Op, RawHandle};
use crate::op::{Leaves, OpFuture, check};
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
        let op = OpFuture::start(
            &self.shard,
            Box::new(0_u64),
            Leaves::Nothing,
            |counter, _| Op::ReadEvent {
                event: self.handle,
                counter: &raw mut **counter,
            },
        );
        let (outcome, counter) = op.await;
        check(outcome.result).map(|_| *counter)
    }

    /// Adds 1 to the counter. Never blocks.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn signal(&self) -> io::Result<()> {
        self.shard
            .backend(|backend| backend.signal_event(self.handle, 1))
    }
}
