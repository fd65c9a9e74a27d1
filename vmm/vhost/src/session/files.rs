//! Which files a front end may hand over. What is not one of these could make us wait for whoever
//! stands behind it, in the middle of an access to memory.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};

use vhost::vhost_user::{Error, Result};

/// Memory is a file of tmpfs, a memfd included, or of hugetlbfs.
pub(super) fn check_memory(file: &File) -> Result<()> {
    // SAFETY: fstatfs writes one statfs; zeros are valid before it.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open and `stat` is writable.
    if unsafe { libc::fstatfs(file.as_raw_fd(), &raw mut stat) } != 0 {
        return Err(Error::ReqHandlerError(io::Error::last_os_error()));
    }
    let (found, memory) = (stat.f_type, [libc::TMPFS_MAGIC, libc::HUGETLBFS_MAGIC]);
    if memory.contains(&found) {
        return Ok(());
    }
    Err(Error::ReqHandlerError(io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("memory on a file system of type {found:#x}, which is neither tmpfs nor hugetlbfs"),
    )))
}

/// Kicks and calls are eventfds.
pub(super) fn check_event(file: &File) -> Result<()> {
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    let target = std::fs::read_link(link).map_err(Error::ReqHandlerError)?;
    if target.as_os_str() == "anon_inode:[eventfd]" {
        return Ok(());
    }
    Err(Error::InvalidOperation("a kick or a call is an eventfd"))
}

/// Zeros that nobody can cut short.
pub(super) fn memory(bytes: u64) -> io::Result<File> {
    let name = CString::new("vhost-inflight")?;
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: the name is a C string.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(bytes)?;
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: fcntl takes integers only here.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file)
}
