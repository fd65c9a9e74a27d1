//! Sealed memfds, and sending from them without waiting.

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::RawHandle;

/// Nobody may change, shorten or lengthen the file, or lift these.
const SEALS: libc::c_int =
    libc::F_SEAL_WRITE | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;

/// Puts bytes into a file in memory and seals it.
pub(crate) fn seal(bytes: &[u8]) -> io::Result<OwnedFd> {
    let file = memfd()?;
    let mut left = bytes;
    while !left.is_empty() {
        // SAFETY: `left` is readable for its length.
        let wrote = unsafe { libc::write(file.as_raw_fd(), left.as_ptr().cast(), left.len()) };
        match usize::try_from(wrote) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(wrote) => left = &left[wrote..],
            Err(_) => interrupted(io::Error::last_os_error())?,
        }
    }
    // SAFETY: fcntl takes integers only here.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, SEALS) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file)
}

fn memfd() -> io::Result<OwnedFd> {
    const PLAIN: libc::c_uint = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // Kernels before 6.3 do not know the first.
    for flags in [PLAIN | libc::MFD_NOEXEC_SEAL, PLAIN] {
        // SAFETY: the name is a C string that lives for ever.
        let fd = unsafe { libc::memfd_create(c"engine-pages".as_ptr(), flags) };
        if fd >= 0 {
            // SAFETY: the descriptor is new and nobody else's.
            return Ok(unsafe { OwnedFd::from_raw_fd(fd) });
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EINVAL) {
            return Err(error);
        }
    }
    Err(io::ErrorKind::Unsupported.into())
}

/// Fills `into` from `offset` on.
pub(crate) fn read(file: &OwnedFd, mut offset: u64, mut into: &mut [u8]) -> io::Result<()> {
    while !into.is_empty() {
        let at = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: `into` is writable for its length, and nobody else's meanwhile.
        let read =
            unsafe { libc::pread(file.as_raw_fd(), into.as_mut_ptr().cast(), into.len(), at) };
        match usize::try_from(read) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => {
                offset += read as u64;
                into = &mut into[read..];
            }
            Err(_) => interrupted(io::Error::last_os_error())?,
        }
    }
    Ok(())
}

/// Sends what the socket has room for, at least a byte; `WouldBlock` when it has none.
pub(crate) fn send(socket: RawHandle, file: &OwnedFd, range: Range<usize>) -> io::Result<usize> {
    let nonblocking = NonBlocking::begin(socket)?;
    let mut offset = libc::off_t::try_from(range.start).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the kernel reads and writes the one offset.
    let sent = unsafe { libc::sendfile(socket.0, file.as_raw_fd(), &raw mut offset, range.len()) };
    let sent = usize::try_from(sent).map_err(|_| io::Error::last_os_error());
    drop(nonblocking);
    match sent {
        // Sealed pages hold the range: only a broken kernel gets here.
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => {
            Err(io::ErrorKind::WouldBlock.into())
        }
        sent => sent,
    }
}

/// Makes a socket non-blocking for one system call. The ring must never see it so: its operations
/// would answer EAGAIN in place of waiting. It does not, as it takes them over on this thread, later.
struct NonBlocking(RawHandle);

impl NonBlocking {
    fn begin(socket: RawHandle) -> io::Result<NonBlocking> {
        set_nonblocking(socket, true)?;
        Ok(NonBlocking(socket))
    }
}

impl Drop for NonBlocking {
    fn drop(&mut self) {
        let lifted = set_nonblocking(self.0, false);
        lifted.expect("a flag that was set on a socket can be lifted");
    }
}

fn set_nonblocking(socket: RawHandle, on: bool) -> io::Result<()> {
    let mut on = libc::c_int::from(on);
    // SAFETY: FIONBIO reads one int.
    if unsafe { libc::ioctl(socket.0, libc::FIONBIO, &raw mut on) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn interrupted(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::Interrupted {
        Ok(())
    } else {
        Err(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_refuses_every_change_of_sealed_pages() {
        let file = seal(b"as they were").expect("a memfd");
        let fd = file.as_raw_fd();
        let hole = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: the calls take integers and a static string.
        let changes = unsafe {
            [
                libc::pwrite(fd, c"x".as_ptr().cast(), 1, 0) as libc::c_int,
                libc::ftruncate(fd, 0),
                libc::ftruncate(fd, 4096),
                libc::fallocate(fd, hole, 0, 4096),
                libc::fcntl(fd, libc::F_ADD_SEALS, libc::F_SEAL_EXEC),
            ]
        };
        assert_eq!(changes, [-1; 5]);
        let mut bytes = [0; 12];
        read(&file, 0, &mut bytes).expect("the bytes are there");
        assert_eq!(&bytes, b"as they were");
        let past = read(&file, 1, &mut bytes).expect_err("there are no more");
        assert_eq!(past.kind(), io::ErrorKind::UnexpectedEof);
    }
}
