//! Mappings whose file may be cut short under them.
//!
//! An access past the end of a mapped file raises SIGBUS, and a guest can cause that at will. The
//! handler here looks whether the address is in a guarded mapping. If so, it puts private zero pages
//! in place of the whole mapping, marks it broken and goes back to the access, which then succeeds.
//! Any other SIGBUS is given to who handled it before.
//!
//! The table of mappings is read by the handler, so it is a static array of atomics. A thread that
//! faults in a mapping holds it, so its entry cannot change meanwhile. The other entries can, and must
//! not be taken for it: see [`Entry::range`].

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, compiler_fence};

/// Most mappings of a process. A guest has a few to some hundred, on each shard that serves it.
const MAPPINGS_MAX: usize = 8192;

struct Entry {
    taken: AtomicBool,
    /// How many mappings the entry has had.
    generation: AtomicU64,
    start: AtomicUsize,
    /// 0: not in use.
    end: AtomicUsize,
    broken: AtomicBool,
}

static TABLE: [Entry; MAPPINGS_MAX] = [const { Entry::new() }; MAPPINGS_MAX];

impl Entry {
    const fn new() -> Entry {
        Entry {
            taken: AtomicBool::new(false),
            generation: AtomicU64::new(0),
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            broken: AtomicBool::new(false),
        }
    }

    /// Shows a mapping. The end comes last: as long as it is 0, the start is not looked at.
    fn open(&self, range: &Range<usize>) {
        self.start.store(range.start, Ordering::SeqCst);
        self.end.store(range.end, Ordering::SeqCst);
    }

    /// Takes it back. The generation comes after the end, so that no generation has two ranges.
    fn close(&self) {
        self.end.store(0, Ordering::SeqCst);
        self.generation.fetch_add(1, Ordering::SeqCst);
    }

    /// The mapping, at one moment. `None` also when it changes while it is read: then nobody who
    /// asks can be in it.
    fn range(&self) -> Option<Range<usize>> {
        let generation = self.generation.load(Ordering::SeqCst);
        let end = self.end.load(Ordering::SeqCst);
        let start = self.start.load(Ordering::SeqCst);
        let same = self.generation.load(Ordering::SeqCst) == generation;
        (end != 0 && same).then_some(start..end)
    }
}

/// A shared mapping that is unmapped when dropped, and whose faults are survived.
pub(super) struct Guarded {
    base: NonNull<u8>,
    len: usize,
    entry: Claimed,
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // Before the addresses become somebody else's.
        self.entry.0.close();
        // SAFETY: mapped by us with this length; who uses it holds the value that is dropped here.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// A place in the table, given back when dropped.
struct Claimed(&'static Entry);

impl Drop for Claimed {
    fn drop(&mut self) {
        self.0.taken.store(false, Ordering::Release);
    }
}

fn claim() -> io::Result<Claimed> {
    let free = TABLE
        .iter()
        .find(|entry| !entry.taken.swap(true, Ordering::Acquire));
    let entry = free.ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::QuotaExceeded,
            format!("the process holds {MAPPINGS_MAX} mappings of guests' memory already"),
        )
    })?;
    entry.broken.store(false, Ordering::Relaxed);
    Ok(Claimed(entry))
}

impl Guarded {
    /// Maps pages of a file, shared.
    pub(super) fn file(fd: BorrowedFd<'_>, from: libc::off_t, len: usize) -> io::Result<Guarded> {
        Guarded::map(len, libc::MAP_SHARED, fd.as_raw_fd(), from)
    }

    /// Maps pages of our own. Nobody can cut them short.
    pub(super) fn anonymous(len: usize) -> io::Result<Guarded> {
        Guarded::map(len, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
    }

    fn map(len: usize, flags: i32, fd: i32, from: libc::off_t) -> io::Result<Guarded> {
        install()?;
        let entry = claim()?;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                flags | libc::MAP_NORESERVE,
                fd,
                from,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or_else(io::Error::last_os_error)?;
        let start = base.addr().get();
        entry.0.open(&(start..start + len));
        Ok(Guarded { base, len, entry })
    }

    pub(super) fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Whether an access of this thread that came before has faulted, or any thread's long ago.
    #[inline]
    pub(super) fn is_broken(&self) -> bool {
        // The handler runs between two instructions of this thread: the compiler alone could move
        // the look before the access.
        compiler_fence(Ordering::SeqCst);
        self.entry.0.broken.load(Ordering::Relaxed)
    }
}

/// Who handled SIGBUS before, or why it cannot be handled.
static FORMER: OnceLock<Result<libc::sigaction, i32>> = OnceLock::new();

fn install() -> io::Result<()> {
    let installed = FORMER.get_or_init(|| {
        // SAFETY: zeros are a valid sigaction, and so is what is written over them.
        let (mut action, mut former): (libc::sigaction, libc::sigaction) =
            unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        action.sa_sigaction = on_bus_error as *const () as usize;
        // On the thread's alternate stack, as the handler of std that was there before.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
        // SAFETY: both structures are valid; the handler keeps to what a signal handler may do.
        let done = unsafe { libc::sigaction(libc::SIGBUS, &raw const action, &raw mut former) };
        if done == 0 {
            Ok(former)
        } else {
            Err(io::Error::last_os_error().raw_os_error().unwrap_or(0))
        }
    });
    match installed {
        Ok(_) => Ok(()),
        Err(errno) => Err(io::Error::from_raw_os_error(*errno)),
    }
}

/// Runs inside of any instruction of any thread: atomics, mmap and sigaction only.
extern "C" fn on_bus_error(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    // SAFETY: the kernel passes a valid siginfo, whose address is set for every SIGBUS.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr().addr()) };
    if code == libc::BUS_ADRERR && cover(address) {
        return;
    }
    pass_on(signal, info, context);
}

/// Puts zero pages where the address was guarded. True when it was.
fn cover(address: usize) -> bool {
    let hit = TABLE.iter().find_map(|entry| {
        let range = entry.range()?;
        range.contains(&address).then_some((entry, range))
    });
    let Some((entry, range)) = hit else {
        return false;
    };
    entry.broken.store(true, Ordering::SeqCst);
    // SAFETY: __errno_location gives this thread's errno, which the interrupted code may look at.
    let errno = unsafe { *libc::__errno_location() };
    // SAFETY: the range is one mapping of ours; the thread that faulted holds it, so it is still
    // there. Others that use it see zeros from now on, and that it is broken.
    let done = unsafe {
        libc::mmap(
            std::ptr::without_provenance_mut(range.start),
            range.len(),
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED,
            -1,
            0,
        )
    };
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
    done != libc::MAP_FAILED
}

/// Does with a signal that is not ours what was done with it before.
fn pass_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    if let Some(Ok(former)) = FORMER.get() {
        let handler = former.sa_sigaction;
        if handler != libc::SIG_DFL && handler != libc::SIG_IGN {
            if former.sa_flags & libc::SA_SIGINFO != 0 {
                type Handler = extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void);
                // SAFETY: with SA_SIGINFO the kernel calls it so, and so did who installed it.
                let handler: Handler = unsafe { std::mem::transmute(handler) };
                handler(signal, info, context);
            } else {
                // SAFETY: without the flag it takes the signal's number alone.
                let handler: extern "C" fn(i32) = unsafe { std::mem::transmute(handler) };
                handler(signal);
            }
            return;
        }
    }
    // SAFETY: zeros are the default action: the access faults again and ends the process.
    unsafe {
        let action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, &raw const action, std::ptr::null_mut());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_that_changes_shows_no_range_that_was_not() {
        const ROUNDS: usize = 100_000;
        let (entry, ranges) = (Entry::new(), [1000..2000, 5000..5500, 10..5500]);
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 0..ROUNDS {
                    entry.open(&ranges[round % ranges.len()]);
                    entry.close();
                }
                done.store(true, Ordering::SeqCst);
            });
            while !done.load(Ordering::SeqCst) {
                if let Some(range) = entry.range() {
                    assert!(ranges.contains(&range), "{range:?}");
                }
            }
        });
        assert_eq!(entry.range(), None);
        entry.open(&ranges[1]);
        assert_eq!(entry.range(), Some(5000..5500));
    }
}
