//! Process-wide table of wake-up endpoints, one a shard.
//!
//! A waker names its shard by a small number, so the table lives as long as the process: an
//! endpoint is never freed, only handed to a later shard. A waker that outlives its shard then
//! wakes a task of another one for nothing, which is harmless.

use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::mailbox::{Doorbell, RemoteWakes};
use crate::task::TASKS_MAX;

/// Most shards alive in one process, over all engines.
const ENDPOINTS_MAX: usize = 4096;

/// Where other threads leave wakes for a shard.
pub(crate) struct Endpoint {
    pub(crate) number: u16,
    pub(crate) wakes: RemoteWakes,
    pub(crate) bell: Doorbell,
    /// Written to end the shard's sleep; -1 until a ring asked for it. Never closed: a late ring
    /// must not hit somebody else's file.
    event: AtomicI32,
}

static TABLE: [OnceLock<Endpoint>; ENDPOINTS_MAX] = [const { OnceLock::new() }; ENDPOINTS_MAX];
static FREE: Mutex<(Vec<u16>, usize)> = Mutex::new((Vec::new(), 0));

impl Endpoint {
    /// The eventfd to sleep on.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    pub(crate) fn event_fd(&self) -> std::io::Result<i32> {
        let fd = self.event.load(Ordering::Acquire);
        if fd >= 0 {
            return Ok(fd);
        }
        // SAFETY: eventfd takes two integers and touches no memory.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(std::io::Error::last_os_error());
        }
        self.event.store(fd, Ordering::Release);
        Ok(fd)
    }

    /// Something was published for the shard: rings when it sleeps.
    pub(crate) fn notify(&self) {
        if self.bell.must_ring() {
            let fd = self.event.load(Ordering::Acquire);
            let one = 1_u64;
            if fd >= 0 {
                // SAFETY: `one` is 8 readable bytes; the descriptor is never closed. The counter
                // cannot overflow: the shard reads it whenever it wakes.
                unsafe { libc::write(fd, (&raw const one).cast(), 8) };
            }
        }
    }
}

/// Takes an unused endpoint; `None` when [`ENDPOINTS_MAX`] shards are alive.
pub(crate) fn acquire() -> Option<&'static Endpoint> {
    let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(number) = free.0.pop() {
        return TABLE[usize::from(number)].get();
    }
    let number = free.1;
    if number == ENDPOINTS_MAX {
        return None;
    }
    free.1 += 1;
    Some(TABLE[number].get_or_init(|| Endpoint {
        number: number as u16,
        wakes: RemoteWakes::new(TASKS_MAX),
        bell: Doorbell::default(),
        event: AtomicI32::new(-1),
    }))
}

/// Gives an endpoint back; its shard is gone.
pub(crate) fn release(endpoint: &'static Endpoint) {
    endpoint.bell.awake();
    endpoint.wakes.take(|_| {});
    FREE.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .0
        .push(endpoint.number);
}

/// Wakes a task of another thread's shard.
pub(crate) fn wake(number: u16, task: usize) {
    if let Some(endpoint) = TABLE[usize::from(number)].get() {
        endpoint.wakes.set(task);
        endpoint.notify();
    }
}
