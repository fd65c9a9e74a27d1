//! The kernel's clocks, read through the vDSO.

use crate::time::Nanos;

pub(crate) fn monotonic() -> Nanos {
    Nanos(read(libc::CLOCK_MONOTONIC))
}

/// Nanoseconds since the Unix epoch.
pub(crate) fn realtime() -> u64 {
    read(libc::CLOCK_REALTIME)
}

fn read(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the kernel writes one timespec. Both clocks exist on every Linux, so it cannot fail.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
