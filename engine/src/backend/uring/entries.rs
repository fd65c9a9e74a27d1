//! Operations as submission queue entries. Pure translation: nothing is submitted here.

use io_uring::{opcode, squeue, types};

use super::{RecvRing, UringBackend, fd};
use crate::backend::{Op, RawHandle, SendHow, Span};

const NO_SIGNAL: i32 = libc::MSG_NOSIGNAL;

/// IORING_RECVSEND_POLL_FIRST of the kernel's interface: wait for readiness before the first try.
const POLL_FIRST: u16 = 1;

impl UringBackend {
    /// `None` for an op that is not one entry, or when a receive ring is asked for and missing.
    pub(super) fn entry(&mut self, op: &Op) -> Option<squeue::Entry> {
        Some(match *op {
            Op::Read { file, span, offset } => match (span.fixed, self.fixed_files.get(&file.0)) {
                (Some(buf), Some(file)) => {
                    opcode::ReadFixed::new(types::Fixed(*file), span.ptr, span.len, buf)
                        .offset(offset)
                        .build()
                }
                (Some(buf), None) => opcode::ReadFixed::new(fd(file), span.ptr, span.len, buf)
                    .offset(offset)
                    .build(),
                (None, _) => {
                    let (file, fixed) = self.file(file);
                    let read = opcode::Read::new(file, span.ptr, span.len).offset(offset);
                    read.build().flags(fixed)
                }
            },
            Op::Write {
                file,
                span,
                offset,
                dsync,
            } => {
                let flags = if dsync { libc::RWF_DSYNC } else { 0 };
                self.write_entry(file, span, offset, flags)
            }
            Op::ReadVectored {
                file,
                iov,
                count,
                offset,
                ..
            } => {
                let (file, fixed) = self.file(file);
                let read = opcode::Readv::new(file, iov, count).offset(offset);
                read.build().flags(fixed)
            }
            Op::WriteVectored {
                file,
                iov,
                count,
                offset,
                dsync,
                ..
            } => {
                let (file, fixed) = self.file(file);
                let flags = if dsync { libc::RWF_DSYNC } else { 0 };
                let write = opcode::Writev::new(file, iov, count).offset(offset);
                write.rw_flags(flags).build().flags(fixed)
            }
            Op::Sync { file } => opcode::Fsync::new(fd(file))
                .flags(types::FsyncFlags::DATASYNC)
                .build(),
            Op::Allocate { file, offset, len } => opcode::Fallocate::new(fd(file), len)
                .offset(offset)
                .mode(0)
                .build(),
            Op::Discard { file, offset, len } => opcode::Fallocate::new(fd(file), len)
                .offset(offset)
                .mode(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE)
                .build(),
            Op::Close { handle } => {
                self.forget_file(handle);
                opcode::Close::new(fd(handle)).build()
            }
            Op::WriteThenSync { .. } => return None,
            _ => return event_entry(op).or_else(|| self.socket_entry(op)),
        })
    }

    pub(super) fn write_entry(
        &self,
        file: RawHandle,
        span: Span,
        offset: u64,
        flags: i32,
    ) -> squeue::Entry {
        match (span.fixed, self.fixed_files.get(&file.0)) {
            (Some(buf), Some(file)) => {
                opcode::WriteFixed::new(types::Fixed(*file), span.ptr, span.len, buf)
                    .offset(offset)
                    .rw_flags(flags)
                    .build()
            }
            (Some(buf), None) => opcode::WriteFixed::new(fd(file), span.ptr, span.len, buf)
                .offset(offset)
                .rw_flags(flags)
                .build(),
            (None, _) => {
                let (file, fixed) = self.file(file);
                let write = opcode::Write::new(file, span.ptr, span.len).offset(offset);
                write.rw_flags(flags).build().flags(fixed)
            }
        }
    }

    /// A file as the ring knows it best: its place in the ring's table of files, or its descriptor.
    fn file(&self, file: RawHandle) -> (types::Fd, squeue::Flags) {
        match self.fixed_files.get(&file.0) {
            Some(place) => (types::Fd(*place as i32), squeue::Flags::FIXED_FILE),
            None => (fd(file), squeue::Flags::empty()),
        }
    }

    /// `None` when a receive ring is asked for and there is none.
    fn socket_entry(&self, op: &Op) -> Option<squeue::Entry> {
        Some(match *op {
            Op::Accept { listener } => opcode::AcceptMulti::new(fd(listener))
                .flags(libc::SOCK_CLOEXEC)
                .build(),
            Op::Connect { socket, addr } => {
                // SAFETY: the address is kept by the op's slot.
                let addr = unsafe { &*addr };
                opcode::Connect::new(fd(socket), addr.as_ptr(), addr.len).build()
            }
            Op::Recv { socket, span } => opcode::Recv::new(fd(socket), span.ptr, span.len).build(),
            Op::RecvRing { socket, multishot } => {
                self.recv_ring.as_ref()?;
                if multishot {
                    opcode::RecvMulti::new(fd(socket), RecvRing::GROUP).build()
                } else {
                    // One waits here for a request that is still to come: a first try would fail.
                    opcode::Recv::new(fd(socket), std::ptr::null_mut(), RecvRing::BUF_LEN as u32)
                        .buf_group(RecvRing::GROUP)
                        .ioprio(POLL_FIRST)
                        .build()
                        .flags(squeue::Flags::BUFFER_SELECT)
                }
            }
            Op::Send { socket, span, how } => send_entry(socket, span, how),
            Op::AwaitRoom { socket } => {
                opcode::PollAdd::new(fd(socket), libc::POLLOUT as u32).build()
            }
            Op::SendVectored { socket, msg, .. } => opcode::SendMsg::new(fd(socket), msg)
                .flags((NO_SIGNAL | libc::MSG_WAITALL) as u32)
                .build(),
            Op::RecvFrom { socket, datagram } => {
                // SAFETY: the datagram is kept by the op's slot.
                let header = unsafe { &raw mut (*datagram).header };
                opcode::RecvMsg::new(fd(socket), header).build()
            }
            Op::SendTo { socket, datagram } => {
                // SAFETY: as above.
                let header = unsafe { &raw const (*datagram).header };
                opcode::SendMsg::new(fd(socket), header)
                    .flags(NO_SIGNAL as u32)
                    .build()
            }
            Op::Shutdown { socket, write_only } => {
                let how = if write_only {
                    libc::SHUT_WR
                } else {
                    libc::SHUT_RDWR
                };
                opcode::Shutdown::new(fd(socket), how).build()
            }
            _ => return None,
        })
    }
}

/// `None` for an op on no eventfd.
fn event_entry(op: &Op) -> Option<squeue::Entry> {
    Some(match *op {
        Op::ReadEvent { event, counter } => opcode::Read::new(fd(event), counter.cast(), 8).build(),
        // Edge-triggered: the counter need not be read, which a descriptor that does not block
        // would refuse the ring to wait for.
        Op::WatchEvent { event } => opcode::PollAdd::new(fd(event), libc::POLLIN as u32)
            .multi(true)
            .build(),
        Op::AddEvent { event, count } => {
            let count = std::ptr::from_ref(count).cast::<u8>();
            opcode::Write::new(fd(event), count, 8).build()
        }
        _ => return None,
    })
}

fn send_entry(socket: RawHandle, span: Span, how: SendHow) -> squeue::Entry {
    let flags = NO_SIGNAL | libc::MSG_WAITALL;
    let plain = opcode::Send::new(fd(socket), span.ptr, span.len);
    match how {
        SendHow::Plain => plain.flags(flags).build(),
        SendHow::MoreFollows => plain.flags(flags | libc::MSG_MORE).build(),
        SendHow::ZeroCopy => opcode::SendZc::new(fd(socket), span.ptr, span.len)
            .buf_index(span.fixed)
            .flags(flags)
            .build(),
    }
}
