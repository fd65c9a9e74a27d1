//! CPUs of this process, and pinning a thread to one.

use std::{io, mem};

/// CPUs that this process may run on, in order.
pub fn allowed_cpus() -> Vec<usize> {
    // SAFETY: cpu_set_t is plain data; zeros are the empty set.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    // SAFETY: the kernel writes at most the given size into the set.
    let got = unsafe { libc::sched_getaffinity(0, mem::size_of_val(&set), &raw mut set) };
    if got != 0 {
        return vec![0];
    }
    // SAFETY: CPU_ISSET reads bits inside the set, whose size bounds the range.
    (0..libc::CPU_SETSIZE as usize)
        .filter(|cpu| unsafe { libc::CPU_ISSET(*cpu, &set) })
        .collect()
}

/// Pins the calling thread.
///
/// # Errors
/// When the CPU does not exist or is not allowed to this process.
pub(crate) fn pin(cpu: usize) -> io::Result<libc::cpu_set_t> {
    // SAFETY: cpu_set_t is plain data; zeros are the empty set.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    if cpu >= libc::CPU_SETSIZE as usize {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: `cpu` is inside the set (checked above).
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: the kernel reads the set's bytes; 0 names the calling thread.
    let done = unsafe { libc::sched_setaffinity(0, mem::size_of_val(&set), &raw const set) };
    if done == 0 {
        Ok(set)
    } else {
        Err(io::Error::last_os_error())
    }
}
