//! Where a server listens.

use std::fs::{File, TryLockError};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use engine::net::{Addr, ListenOptions, Listener};

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 64;

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// A socket of the file system. Who may connect is what the rights of its directory say. A file
    /// beside it, with `.lock` at its end, keeps a second server away.
    Unix(PathBuf),
    /// An address; a port of 0 is any free one.
    Tcp(SocketAddr),
}

impl std::fmt::Display for Listen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Listen::Unix(path) => write!(f, "unix:{}", path.display()),
            Listen::Tcp(addr) => addr.fmt(f),
        }
    }
}

/// A socket file that is ours. Dropping it removes it.
pub(crate) struct SocketFile {
    path: PathBuf,
    _lock: File,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Failing leaves a socket that nobody listens at.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Listen {
    /// Binds.
    ///
    /// # Errors
    /// `AddrInUse` when another server has the socket; else as the kernel says.
    pub(crate) fn bind(&self) -> io::Result<(Listener, Option<SocketFile>)> {
        let options = ListenOptions {
            reuse_port: false,
            backlog: BACKLOG,
        };
        match self {
            Listen::Tcp(addr) => Ok((Listener::bind(&Addr::Inet(*addr), options)?, None)),
            Listen::Unix(path) => {
                let file = claim(path)
                    .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))?;
                let listener = Listener::bind(&Addr::Unix(path.clone()), options)?;
                Ok((listener, Some(file)))
            }
        }
    }
}

/// Makes the place of a socket free. One that a dead process left is in the way; the lock tells that it
/// is dead.
fn claim(path: &Path) -> io::Result<SocketFile> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".lock");
    let mut options = File::options();
    let lock = options
        .create(true)
        .truncate(false)
        .write(true)
        .open(beside)?;
    lock.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => {
            io::Error::new(io::ErrorKind::AddrInUse, "another server has the socket")
        }
        TryLockError::Error(error) => error,
    })?;
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    Ok(SocketFile {
        path: path.to_owned(),
        _lock: lock,
    })
}
