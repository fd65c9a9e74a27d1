//! Socket addresses in the kernel's form, boxed so that they keep their place while an op runs.

use std::ffi::OsStr;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::{io, mem, ptr};

/// Where a socket lives.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Addr {
    /// An IP address and port.
    Inet(SocketAddr),
    /// A path of the Unix domain; empty for an unbound socket.
    Unix(PathBuf),
}

impl From<SocketAddr> for Addr {
    fn from(addr: SocketAddr) -> Addr {
        Addr::Inet(addr)
    }
}

impl From<&Path> for Addr {
    fn from(path: &Path) -> Addr {
        Addr::Unix(path.to_owned())
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Addr::Inet(addr) => addr.fmt(f),
            Addr::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A `sockaddr` with its length.
#[derive(Clone, Copy)]
pub(crate) struct SockAddrBuf {
    pub(crate) storage: libc::sockaddr_storage,
    pub(crate) len: libc::socklen_t,
}

impl SockAddrBuf {
    pub(crate) fn empty() -> SockAddrBuf {
        SockAddrBuf {
            // SAFETY: sockaddr_storage is plain data; all zeros is AF_UNSPEC.
            storage: unsafe { mem::zeroed() },
            len: mem::size_of::<libc::sockaddr_storage>() as libc::socklen_t,
        }
    }

    /// # Errors
    /// When a Unix path is longer than the kernel's 107 bytes.
    pub(crate) fn new(addr: &Addr) -> io::Result<SockAddrBuf> {
        let mut buf = SockAddrBuf::empty();
        match addr {
            Addr::Inet(SocketAddr::V4(v4)) => buf.put(libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr {
                    s_addr: u32::from_ne_bytes(v4.ip().octets()),
                },
                sin_zero: [0; 8],
            }),
            Addr::Inet(SocketAddr::V6(v6)) => buf.put(libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: v6.flowinfo(),
                sin6_addr: libc::in6_addr {
                    s6_addr: v6.ip().octets(),
                },
                sin6_scope_id: v6.scope_id(),
            }),
            Addr::Unix(path) => {
                let bytes = path.as_os_str().as_bytes();
                let mut un = libc::sockaddr_un {
                    sun_family: libc::AF_UNIX as libc::sa_family_t,
                    sun_path: [0; 108],
                };
                if bytes.len() >= un.sun_path.len() {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidInput,
                        format!("socket path of {} bytes; at most 107 fit", bytes.len()),
                    ));
                }
                for (to, from) in un.sun_path.iter_mut().zip(bytes) {
                    *to = *from as libc::c_char;
                }
                buf.put(un);
            }
        }
        Ok(buf)
    }

    fn put<T: Copy>(&mut self, addr: T) {
        const { assert!(mem::size_of::<T>() <= mem::size_of::<libc::sockaddr_storage>()) };
        // SAFETY: storage is large enough (asserted above) and aligned for every sockaddr type.
        unsafe { ptr::from_mut(&mut self.storage).cast::<T>().write(addr) };
        self.len = mem::size_of::<T>() as libc::socklen_t;
    }

    fn get<T: Copy>(&self) -> T {
        const { assert!(mem::size_of::<T>() <= mem::size_of::<libc::sockaddr_storage>()) };
        // SAFETY: storage is initialised plain data of at least T's size and alignment.
        unsafe { ptr::from_ref(&self.storage).cast::<T>().read() }
    }

    pub(crate) fn family(&self) -> libc::c_int {
        libc::c_int::from(self.storage.ss_family)
    }

    pub(crate) fn as_ptr(&self) -> *const libc::sockaddr {
        ptr::from_ref(&self.storage).cast()
    }

    /// # Errors
    /// When the family is neither IPv4, IPv6 nor Unix.
    pub(crate) fn addr(&self) -> io::Result<Addr> {
        match self.family() {
            libc::AF_INET => {
                let v4: libc::sockaddr_in = self.get();
                let ip = Ipv4Addr::from(v4.sin_addr.s_addr.to_ne_bytes());
                Ok(Addr::Inet(SocketAddr::new(
                    IpAddr::V4(ip),
                    u16::from_be(v4.sin_port),
                )))
            }
            libc::AF_INET6 => {
                let v6: libc::sockaddr_in6 = self.get();
                let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
                Ok(Addr::Inet(SocketAddr::new(
                    IpAddr::V6(ip),
                    u16::from_be(v6.sin6_port),
                )))
            }
            libc::AF_UNIX => {
                let un: libc::sockaddr_un = self.get();
                let path: Vec<u8> = un
                    .sun_path
                    .iter()
                    .take_while(|c| **c != 0)
                    .map(|c| *c as u8)
                    .collect();
                Ok(Addr::Unix(PathBuf::from(OsStr::from_bytes(&path))))
            }
            family => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("address family {family} is not IPv4, IPv6 or Unix"),
            )),
        }
    }
}

impl fmt::Debug for SockAddrBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SockAddrBuf")
            .field(&self.addr().ok())
            .finish()
    }
}

/// One datagram's `msghdr`, its single buffer and its address. Pinned in a box by its owner: the
/// header points into the struct.
pub(crate) struct DatagramBuf {
    pub(crate) header: libc::msghdr,
    pub(crate) iov: libc::iovec,
    pub(crate) addr: SockAddrBuf,
}

impl DatagramBuf {
    /// Boxes a header over `len` bytes at `ptr`, from or to `addr`.
    pub(crate) fn boxed(ptr: *mut u8, len: usize, addr: SockAddrBuf) -> Box<DatagramBuf> {
        let mut buf = Box::new(DatagramBuf {
            // SAFETY: msghdr is plain data; all zeros is an empty header.
            header: unsafe { mem::zeroed() },
            iov: libc::iovec {
                iov_base: ptr.cast(),
                iov_len: len,
            },
            addr,
        });
        buf.header.msg_iov = &raw mut buf.iov;
        buf.header.msg_iovlen = 1;
        buf.header.msg_name = (&raw mut buf.addr.storage).cast();
        buf.header.msg_namelen = buf.addr.len;
        buf
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_kernel_form() {
        for addr in [
            Addr::Inet("127.0.0.1:80".parse().unwrap()),
            Addr::Inet("[::1]:65535".parse().unwrap()),
            Addr::Unix(PathBuf::from("/tmp/some.sock")),
        ] {
            assert_eq!(SockAddrBuf::new(&addr).unwrap().addr().unwrap(), addr);
        }
    }

    #[test]
    fn a_unix_path_past_the_kernels_limit_is_refused() {
        let path = PathBuf::from("x".repeat(108));
        assert!(SockAddrBuf::new(&Addr::Unix(path)).is_err());
    }
}
