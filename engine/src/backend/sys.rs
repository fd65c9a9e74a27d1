//! Socket and eventfd system calls that do not block and are not worth a trip through the ring.

use std::os::fd::BorrowedFd;
use std::{io, mem};

use crate::guest::GuestMem;

use super::{Addr, BindOptions, RawHandle, SockAddrBuf, SocketKind};

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

pub(crate) fn socket(kind: SocketKind, family: libc::c_int) -> io::Result<RawHandle> {
    let kind = match kind {
        SocketKind::Stream => libc::SOCK_STREAM,
        SocketKind::Datagram => libc::SOCK_DGRAM,
    };
    // SAFETY: socket takes integers only.
    check(unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, 0) }).map(RawHandle)
}

fn set_flag(socket: RawHandle, level: libc::c_int, name: libc::c_int) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the kernel reads one int.
    let done = unsafe {
        libc::setsockopt(
            socket.0,
            level,
            name,
            (&raw const on).cast(),
            mem::size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    check(done).map(drop)
}

/// Closes the socket when binding fails.
pub(crate) fn bind(socket: RawHandle, addr: &SockAddrBuf, options: BindOptions) -> io::Result<()> {
    let bound = try_bind(socket, addr, options);
    if bound.is_err() {
        // SAFETY: the caller gave us the descriptor and does not use it after an error.
        unsafe { libc::close(socket.0) };
    }
    bound
}

fn try_bind(socket: RawHandle, addr: &SockAddrBuf, options: BindOptions) -> io::Result<()> {
    if addr.family() != libc::AF_UNIX {
        set_flag(socket, libc::SOL_SOCKET, libc::SO_REUSEADDR)?;
        if options.reuse_port {
            set_flag(socket, libc::SOL_SOCKET, libc::SO_REUSEPORT)?;
        }
    }
    // SAFETY: the address is valid for its length.
    check(unsafe { libc::bind(socket.0, addr.as_ptr(), addr.len) })?;
    if options.backlog > 0 {
        // SAFETY: listen takes integers only.
        check(unsafe { libc::listen(socket.0, options.backlog as libc::c_int) })?;
    }
    Ok(())
}

type NameCall =
    unsafe extern "C" fn(libc::c_int, *mut libc::sockaddr, *mut libc::socklen_t) -> libc::c_int;

fn name(socket: RawHandle, call: NameCall) -> io::Result<Addr> {
    let mut addr = SockAddrBuf::empty();
    // SAFETY: the storage holds any address; `len` says how much.
    check(unsafe { call(socket.0, (&raw mut addr.storage).cast(), &raw mut addr.len) })?;
    addr.addr()
}

pub(crate) fn local_addr(socket: RawHandle) -> io::Result<Addr> {
    name(socket, libc::getsockname)
}

pub(crate) fn peer_addr(socket: RawHandle) -> io::Result<Addr> {
    name(socket, libc::getpeername)
}

pub(crate) fn set_nodelay(socket: RawHandle) -> io::Result<()> {
    match set_flag(socket, libc::IPPROTO_TCP, libc::TCP_NODELAY) {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
        done => done,
    }
}

pub(crate) fn fill_secret(into: &mut [u8]) -> io::Result<()> {
    let mut left = into;
    while !left.is_empty() {
        // SAFETY: `left` is writable for its length.
        let got = unsafe { libc::getrandom(left.as_mut_ptr().cast(), left.len(), 0) };
        match usize::try_from(got) {
            Ok(got) => left = &mut left[got..],
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
    Ok(())
}

pub(crate) fn map_file(file: RawHandle, len: usize) -> io::Result<GuestMem> {
    // SAFETY: the caller keeps the file open for the call; the mapping has a reference of its own.
    GuestMem::map(unsafe { BorrowedFd::borrow_raw(file.0) }, 0, len)
}

/// None when the file has fewer bytes.
pub(crate) fn map_whole_file(file: RawHandle, bytes: u64) -> io::Result<Option<GuestMem>> {
    // SAFETY: fstat writes one stat; zeros are valid before it.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: `stat` is writable; a descriptor that is none is an error.
    check(unsafe { libc::fstat(file.0, &raw mut stat) })?;
    let len = usize::try_from(stat.st_size).unwrap_or(0);
    if bytes == 0 || (len as u64) < bytes {
        return Ok(None);
    }
    map_file(file, len).map(Some)
}

pub(crate) fn event() -> io::Result<RawHandle> {
    // SAFETY: eventfd takes integers only.
    check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) }).map(RawHandle)
}

pub(crate) fn signal_event(event: RawHandle, count: u64) -> io::Result<()> {
    // SAFETY: 8 readable bytes. A blocking write needs a counter near 2^64, which no caller makes.
    let wrote = unsafe { libc::write(event.0, (&raw const count).cast(), 8) };
    if wrote == 8 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
