//! A bare io_uring with the memory lent to it: what the raw contender and the load generator
//! stand on.
//!
//! Memory given to a ring is freed only when nothing is in flight; a ring dropped with operations
//! in flight leaks it, because closing a ring does not wait for them. Waits for one completion,
//! never more; never drains (`IO_DRAIN`), never skips completions.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::RawFd;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{IoUring, squeue};

/// A completion: the operation's tag and its result, negative for an errno.
#[derive(Debug, Clone, Copy)]
pub struct Completion {
    /// `user_data` of the operation.
    pub tag: u64,
    result: i32,
}

impl Completion {
    /// The result as bytes, or the error it stands for.
    pub fn bytes(self) -> io::Result<usize> {
        usize::try_from(self.result).map_err(|_| io::Error::from_raw_os_error(-self.result))
    }
}

/// A ring and the memory its operations point into.
pub struct Ring<M> {
    uring: IoUring,
    in_flight: usize,
    ready: Vec<Completion>,
    memory: ManuallyDrop<M>,
}

impl<M> Ring<M> {
    /// A ring with the flags of a thread that owns its ring: single issuer, deferred task work.
    pub fn new(entries: usize, memory: M) -> Result<Self> {
        let uring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_coop_taskrun()
            .build(u32::try_from(entries.next_power_of_two())?)
            .context(
                "set up io_uring with DEFER_TASKRUN: needs Linux 6.1, kernel.io_uring_disabled=0 \
                 and a seccomp profile that allows it",
            )?;
        Ok(Self {
            uring,
            in_flight: 0,
            ready: Vec::with_capacity(2 * entries.next_power_of_two()),
            memory: ManuallyDrop::new(memory),
        })
    }

    /// The lent memory. The caller leaves alone what an operation in flight points into.
    pub fn memory(&mut self) -> &mut M {
        &mut self.memory
    }

    /// Operations without a completion yet.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Makes one file known as number 0.
    pub fn register_file(&self, fd: RawFd) -> Result<()> {
        self.uring
            .submitter()
            .register_files(&[fd])
            .context("register the file")
    }

    /// Makes buffers known by their order.
    ///
    /// # Safety
    ///
    /// Every buffer lies in this ring's memory, at an address that moving the memory keeps.
    pub unsafe fn register_buffers(&self, buffers: &[libc::iovec]) -> Result<()> {
        // SAFETY: the caller's promise: the buffers live in `memory`, which is freed after the
        // ring is closed, or never.
        unsafe { self.uring.submitter().register_buffers(buffers) }
            .context("register the buffers: is RLIMIT_MEMLOCK too small?")
    }

    /// Queues one operation for the next wait.
    ///
    /// # Safety
    ///
    /// What `entry` points to lies in this ring's memory, at an address that moving the memory
    /// keeps, and nobody touches it before the operation's completion.
    pub unsafe fn push(&mut self, entry: &squeue::Entry) -> Result<()> {
        // SAFETY: the caller's promise, and `Drop` frees the memory only when nothing is in flight.
        let pushed = unsafe { self.uring.submission().push(entry) };
        ensure!(
            pushed.is_ok(),
            "the submission queue is full at {} in flight",
            self.in_flight
        );
        self.in_flight += 1;
        Ok(())
    }

    /// Submits and sleeps until there is a completion.
    pub fn wait(&mut self) -> Result<()> {
        loop {
            match self.uring.submit_and_wait(1) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("enter the ring"),
            }
        }
    }

    /// Submits and sleeps until there is a completion, for at most about `grace`.
    pub fn wait_for(&mut self, grace: Duration) -> Result<()> {
        let span = Timespec::from(grace);
        let args = SubmitArgs::new().timespec(&span);
        loop {
            match self.uring.submitter().submit_with_args(1, &args) {
                // An enter that submitted tells of that and not of the time that ran out.
                Ok(_) if self.uring.completion().is_empty() => {}
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error() == Some(libc::ETIME) => {
                    bail!("{} in flight, none completed in {grace:?}", self.in_flight)
                }
                Err(error) => return Err(error).context("enter the ring"),
            }
        }
    }

    /// Takes what has completed. The list comes back by [`Ring::give_back`] to be used again.
    pub fn take_completions(&mut self) -> Vec<Completion> {
        let mut ready = std::mem::take(&mut self.ready);
        ready.clear();
        ready.extend(self.uring.completion().map(|cqe| Completion {
            tag: cqe.user_data(),
            result: cqe.result(),
        }));
        self.in_flight -= ready.len();
        ready
    }

    /// Returns the list of completions.
    pub fn give_back(&mut self, ready: Vec<Completion>) {
        self.ready = ready;
    }
}

impl<M> Drop for Ring<M> {
    fn drop(&mut self) {
        if self.in_flight == 0 {
            // SAFETY: the memory is dropped here only, once, and is not used after; no operation
            // points into it. Registered buffers are pinned by the kernel until the ring closes,
            // and with nothing in flight the kernel writes to none of them.
            unsafe { ManuallyDrop::drop(&mut self.memory) };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;
    use std::rc::Rc;

    use io_uring::{opcode, types};

    use super::*;

    #[test]
    fn memory_is_freed_when_nothing_is_in_flight() {
        let memory = Rc::new([0u8; 8]);
        let ring = Ring::new(4, memory.clone()).unwrap();
        drop(ring);
        assert_eq!(Rc::strong_count(&memory), 1);
    }

    #[test]
    fn memory_of_an_operation_in_flight_is_never_freed() {
        let (near, _far) = UnixStream::pair().unwrap();
        let memory = Rc::new([0u8; 8]);
        let mut ring = Ring::new(4, memory.clone()).unwrap();
        let at = memory.as_ptr().cast_mut();
        let recv = opcode::Recv::new(types::Fd(near.as_raw_fd()), at, 8).build();
        // SAFETY: `at` points into the ring's memory, and the test never reads it.
        unsafe { ring.push(&recv) }.unwrap();
        assert!(ring.wait_for(Duration::from_millis(1)).is_err());
        assert_eq!(ring.in_flight(), 1);
        drop(ring);
        assert_eq!(Rc::strong_count(&memory), 2);
    }

    #[test]
    fn a_full_queue_is_refused() {
        let mut ring = Ring::new(2, ()).unwrap();
        let nop = opcode::Nop::new().build();
        for _ in 0..2 {
            // SAFETY: a no-op points to nothing.
            unsafe { ring.push(&nop) }.unwrap();
        }
        // SAFETY: a no-op points to nothing.
        assert!(unsafe { ring.push(&nop) }.is_err());
        ring.wait().unwrap();
        let ready = ring.take_completions();
        assert_eq!((ready.len(), ring.in_flight()), (2, 0));
    }

    #[test]
    fn a_failed_operation_carries_its_errno() {
        let error = Completion {
            tag: 0,
            result: -libc::EIO,
        }
        .bytes()
        .unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
        assert_eq!(Completion { tag: 0, result: 5 }.bytes().unwrap(), 5);
    }
}
