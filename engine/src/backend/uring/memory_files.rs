//! Files that lie in memory (tmpfs). The ring knows no way there that does not block, and gives every
//! operation to a worker thread, which costs several times what the copy does. So the shard copies short
//! ones itself, at once. Long ones, which would hold up its other tasks, go to the workers. Memory that was
//! swapped out holds the shard up, too: a machine whose storage lies in memory should have no swap.

use std::collections::BTreeSet;

use crate::backend::{Op, RawHandle, Span};
use crate::fs::AT_ONCE_MAX;

/// Bytes that are copied at once.
const BYTES_MAX: u32 = AT_ONCE_MAX as u32;
/// Entries of a list that is copied at once.
const COUNT_MAX: u32 = 64;

/// The descriptors of such files.
#[derive(Default)]
pub(super) struct MemoryFiles(BTreeSet<i32>);

impl MemoryFiles {
    /// Looks where a file lies; whether in memory.
    pub(super) fn adopt(&mut self, file: RawHandle) -> bool {
        // SAFETY: fstatfs writes one statfs; zeros are valid before it.
        let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
        // SAFETY: `stat` is writable; a descriptor that is none is an error.
        let told = unsafe { libc::fstatfs(file.0, &raw mut stat) } == 0;
        let in_memory = told && stat.f_type == libc::TMPFS_MAGIC;
        if in_memory {
            self.0.insert(file.0);
        }
        in_memory
    }

    pub(super) fn forget(&mut self, file: RawHandle) {
        self.0.remove(&file.0);
    }

    /// Whether an operation is a short copy.
    pub(super) fn has(&self, op: &Op) -> bool {
        if self.0.is_empty() {
            return false;
        }
        let (file, bytes, count) = match *op {
            Op::Read { file, span, .. } | Op::Write { file, span, .. } => (file, span.len, 1),
            Op::ReadVectored {
                file, bytes, count, ..
            }
            | Op::WriteVectored {
                file, bytes, count, ..
            } => (file, bytes, count),
            _ => return false,
        };
        bytes <= BYTES_MAX && count <= COUNT_MAX && self.0.contains(&file.0)
    }

    /// Does an operation that [`MemoryFiles::has`], as the kernel would answer it.
    pub(super) fn run(op: &Op) -> i32 {
        let list = |span: Span| libc::iovec {
            iov_base: span.ptr.cast(),
            iov_len: span.len as usize,
        };
        match *op {
            Op::Read { file, span, offset } => {
                let one = list(span);
                read(file, &raw const one, 1, offset)
            }
            Op::Write {
                file, span, offset, ..
            } => {
                let one = list(span);
                write(file, &raw const one, 1, offset)
            }
            Op::ReadVectored {
                file,
                iov,
                count,
                offset,
                ..
            } => read(file, iov, count, offset),
            Op::WriteVectored {
                file,
                iov,
                count,
                offset,
                ..
            } => write(file, iov, count, offset),
            _ => -libc::EINVAL,
        }
    }
}

fn answer(result: isize) -> i32 {
    if result < 0 {
        return -(std::io::Error::last_os_error()
            .raw_os_error()
            .unwrap_or(libc::EIO));
    }
    // At most `BYTES_MAX`.
    result as i32
}

fn read(file: RawHandle, iov: *const libc::iovec, count: u32, offset: u64) -> i32 {
    // SAFETY: the list and what it names belong to the operation's future until it has its answer; memory
    // that is not there any more is an error of the call.
    answer(unsafe { libc::preadv(file.0, iov, count as i32, offset as libc::off_t) })
}

/// Durable or not is the same in memory.
fn write(file: RawHandle, iov: *const libc::iovec, count: u32, offset: u64) -> i32 {
    // SAFETY: as in `read`.
    answer(unsafe { libc::pwritev(file.0, iov, count as i32, offset as libc::off_t) })
}
