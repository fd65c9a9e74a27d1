//! Messages that the `vhost` crate has no calls for: the device's status, and the socket by which a
//! change of the configuration is told.
//!
//! ```text
//! head, 12 bytes, in the order of this machine
//!  0  4  what is asked
//!  4  4  version (2 bits: 1), 4 an answer, 8 wants an answer
//!  8  4  bytes that follow
//! ```

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::net::{AddressFamily, SendFlags, SocketType, sockopt};
use vhost::vhost_user::message::{BackendReq, FrontendReq, VhostUserProtocolFeatures};
use vhost::vhost_user::{Error, Result};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::Shard;
use crate::command::{Answer, Command};

const HEAD: usize = 12;
const VERSION: u32 = 1;
const ANSWER: u32 = 4;
const WANTS_ANSWER: u32 = 8;

/// The head of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    request: u32,
    flags: u32,
    bytes: u32,
}

impl Header {
    /// The head of the next message, which stays in the socket. `None` when the front end is gone.
    pub(super) fn peek(socket: &UnixStream) -> Result<Option<Header>> {
        let mut bytes = [0_u8; HEAD];
        let flags = libc::MSG_PEEK | libc::MSG_WAITALL;
        loop {
            // SAFETY: the buffer is writable for its length.
            let got =
                unsafe { libc::recv(socket.as_raw_fd(), bytes.as_mut_ptr().cast(), HEAD, flags) };
            match usize::try_from(got) {
                Ok(HEAD) => return Ok(Some(Header::from_bytes(bytes))),
                // It ended, within a head or before it.
                Ok(_) => return Ok(None),
                Err(_) => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(Error::SocketError(error));
                    }
                }
            }
        }
    }

    fn from_bytes(bytes: [u8; HEAD]) -> Header {
        let number = |at: usize| {
            let mut number = [0; 4];
            number.copy_from_slice(&bytes[at..at + 4]);
            u32::from_ne_bytes(number)
        };
        Header {
            request: number(0),
            flags: number(4),
            bytes: number(8),
        }
    }

    fn to_bytes(self) -> [u8; HEAD] {
        let mut bytes = [0; HEAD];
        for (place, number) in [self.request, self.flags, self.bytes].iter().enumerate() {
            bytes[4 * place..4 * place + 4].copy_from_slice(&number.to_ne_bytes());
        }
        bytes
    }

    fn is(self, request: FrontendReq) -> bool {
        self.request == request as u32
    }
}

/// Handles one of the messages above. False for any other, which is left in the socket.
pub(super) fn handle(
    header: Header,
    socket: &UnixStream,
    shard: &Shard,
    protocol: u64,
    notice: &Notice,
) -> Result<bool> {
    let agreed = |feature: VhostUserProtocolFeatures| {
        if protocol & feature.bits() == 0 {
            return Err(Error::InactiveOperation(feature));
        }
        Ok(())
    };
    let wants_answer = header.flags & WANTS_ANSWER != 0
        && protocol & VhostUserProtocolFeatures::REPLY_ACK.bits() != 0;
    if header.is(FrontendReq::GET_STATUS) {
        agreed(VhostUserProtocolFeatures::STATUS)?;
        take::<0>(header, socket)?;
        let Answer::Number(status) = shard.ask(Command::Status)? else {
            return Err(Error::BackendInternalError);
        };
        answer(header, socket, status)?;
    } else if header.is(FrontendReq::SET_STATUS) {
        agreed(VhostUserProtocolFeatures::STATUS)?;
        let (status, _) = take::<8>(header, socket)?;
        let done = shard.tell(Command::SetStatus(u64::from_ne_bytes(status)));
        acknowledge(wants_answer, header, socket, done)?;
    } else if header.is(FrontendReq::SET_BACKEND_REQ_FD) {
        agreed(VhostUserProtocolFeatures::BACKEND_REQ)?;
        let (_, file) = take::<0>(header, socket)?;
        let file = file.ok_or(Error::IncorrectFds)?;
        let kept = notice.keep(UnixStream::from(std::os::fd::OwnedFd::from(file)));
        acknowledge(wants_answer, header, socket, kept)?;
    } else {
        return Ok(false);
    }
    Ok(true)
}

/// Takes the whole message out of the socket: its body, and a descriptor when one came with it.
fn take<const N: usize>(
    header: Header,
    mut socket: &UnixStream,
) -> Result<([u8; N], Option<std::fs::File>)> {
    if header.bytes as usize != N || header.flags & 3 != VERSION || header.flags & ANSWER != 0 {
        return Err(Error::InvalidMessage);
    }
    let mut head = [0; HEAD];
    let (got, file) = socket
        .recv_with_fd(&mut head)
        .map_err(|error| Error::SocketError(error.into()))?;
    let mut body = [0; N];
    socket
        .read_exact(&mut head[got.min(HEAD)..])
        .and_then(|()| socket.read_exact(&mut body))
        .map_err(Error::SocketError)?;
    Ok((body, file))
}

fn answer(header: Header, mut socket: &UnixStream, value: u64) -> Result<()> {
    let head = Header {
        request: header.request,
        flags: VERSION | ANSWER,
        bytes: 8,
    };
    let message = [&head.to_bytes()[..], &value.to_ne_bytes()].concat();
    socket.write_all(&message).map_err(Error::SocketError)
}

fn acknowledge(wanted: bool, header: Header, socket: &UnixStream, done: Result<()>) -> Result<()> {
    if wanted {
        answer(header, socket, u64::from(done.is_err()))?;
    }
    done
}

/// The front end's ear for changes of the configuration. Shared by the message thread, which finds it,
/// and who tells of a change.
#[derive(Clone, Default)]
pub(crate) struct Notice {
    socket: Arc<Mutex<Option<UnixStream>>>,
}

impl Notice {
    /// # Errors
    /// When it is no socket in which a message is whole or not there.
    fn keep(&self, socket: UnixStream) -> Result<()> {
        let kind = sockopt::socket_domain(&socket)
            .and_then(|domain| Ok((domain, sockopt::socket_type(&socket)?)));
        if kind != Ok((AddressFamily::UNIX, SocketType::STREAM)) {
            return Err(Error::InvalidOperation("changes are told by a stream"));
        }
        *self.lock() = Some(socket);
        Ok(())
    }

    pub(super) fn forget(&self) {
        *self.lock() = None;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<UnixStream>> {
        self.socket.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the front end, if it listens, that its configuration has changed. Waits for nothing: when
    /// the socket is full, what it has not read yet says the same.
    pub(crate) fn changed(&self) -> io::Result<()> {
        let message = Header {
            request: BackendReq::CONFIG_CHANGE_MSG as u32,
            flags: VERSION,
            bytes: 0,
        };
        let mut socket = self.lock();
        let Some(ear) = &*socket else { return Ok(()) };
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match rustix::net::send(ear, &message.to_bytes(), flags) {
            Ok(HEAD) | Err(rustix::io::Errno::AGAIN) => Ok(()),
            Ok(_) => {
                *socket = None;
                Err(io::ErrorKind::WriteZero.into())
            }
            Err(error) => Err(error.into()),
        }
    }
}
