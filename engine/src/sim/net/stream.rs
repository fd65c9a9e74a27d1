//! Connected streams, of TCP and of the Unix domain: ordered byte pipes with a bounded window.
//!
//! Invariants: bytes sent and not yet read by the other side are at most [`WINDOW`]; segments of
//! one direction arrive in the order in which they were sent; after a reset no byte arrives.

use std::collections::VecDeque;

use super::super::NodeId;
use super::super::disk::Errno;
use super::super::trace::digest;
use super::super::world::{Answer, Event, OpKey, RING_BUFFER, ShardKey, World};
use super::{Kind, SocketId};
use crate::backend::{Addr, Op, RawHandle, SendHow};
use crate::time::Nanos;

/// Bytes that a direction holds, in flight and unread.
const WINDOW: usize = 256 << 10;

/// What a socket has of its connection.
pub(super) struct Stream {
    peer: SocketId,
    pub(super) peer_addr: Addr,
    inbox: VecDeque<u8>,
    /// The peer sends no more.
    ended: bool,
    reset: bool,
    /// Bytes sent that the peer has not read.
    unread_by_peer: usize,
    write_closed: bool,
    read_closed: bool,
    pub(super) recvs: VecDeque<OpKey>,
    pub(super) sends: VecDeque<OpKey>,
    /// Those that wait for room to send.
    pub(super) awaiting: VecDeque<OpKey>,
}

impl Stream {
    /// An op has ended.
    pub(super) fn forget(&mut self, op: OpKey) {
        for queue in [&mut self.recvs, &mut self.sends, &mut self.awaiting] {
            queue.retain(|key| *key != op);
        }
    }

    /// What a send is told that cannot go on.
    fn broken(&self) -> Option<Errno> {
        if self.write_closed {
            Some(libc::EPIPE)
        } else {
            self.reset.then_some(libc::ECONNRESET)
        }
    }

    /// Room that is enough to wake who waits for it: as in the kernel, a third of the window.
    fn is_writable(&self) -> bool {
        self.broken().is_some() || WINDOW - self.unread_by_peer >= WINDOW / 3
    }

    pub(super) fn new(peer: SocketId, peer_addr: Addr) -> Stream {
        Stream {
            peer,
            peer_addr,
            inbox: VecDeque::new(),
            ended: false,
            reset: false,
            unread_by_peer: 0,
            write_closed: false,
            read_closed: false,
            recvs: VecDeque::new(),
            sends: VecDeque::new(),
            awaiting: VecDeque::new(),
        }
    }
}

/// What travels between two sockets.
pub(super) enum Segment {
    Established {
        peer_addr: Addr,
    },
    Data(Vec<u8>),
    /// The receiver's program has read so many bytes.
    Read(usize),
    End,
    Reset,
}

/// One direction of a connection, kept under the receiving socket's id; it outlives the socket.
pub(super) struct Wire {
    from_socket: SocketId,
    from: NodeId,
    to: NodeId,
    queue: VecDeque<(Nanos, Segment)>,
    /// An arrival is scheduled.
    armed: bool,
    /// The receiving socket was closed by its program, which needs to hear of no end.
    to_closed: bool,
}

impl Wire {
    pub(super) fn new(from_socket: SocketId, from: NodeId, to: NodeId) -> Wire {
        Wire {
            from_socket,
            from,
            to,
            queue: VecDeque::new(),
            armed: false,
            to_closed: false,
        }
    }

    /// Segments wait for a link that was cut.
    pub(super) fn stalled(&self) -> bool {
        !self.armed && !self.queue.is_empty()
    }
}

impl World {
    /// Puts a segment on the wire to a socket.
    pub(super) fn send_segment(&mut self, to: SocketId, segment: Segment) {
        let Some(Wire {
            from, to: to_node, ..
        }) = self.net.wires.get(&to)
        else {
            return;
        };
        let (from, to_node) = (*from, *to_node);
        let at = Nanos(self.now.0 + self.delay(from, to_node));
        let Some(wire) = self.net.wires.get_mut(&to) else {
            return;
        };
        let at = wire.queue.back().map_or(at, |(last, _)| at.max(*last));
        let stalled = wire.stalled();
        wire.queue.push_back((at, segment));
        if !stalled {
            self.arm_wire(to, false);
        }
    }

    /// Schedules the arrival of a wire's first segment, after a new delay when `afresh`.
    pub(super) fn arm_wire(&mut self, id: SocketId, afresh: bool) {
        let Some(Wire { from, to, .. }) = self.net.wires.get(&id) else {
            return;
        };
        let (from, to) = (*from, *to);
        let wait = if afresh { self.delay(from, to) } else { 0 };
        let now = self.now;
        let Some(wire) = self.net.wires.get_mut(&id) else {
            return;
        };
        if wire.armed {
            return;
        }
        if let Some((at, _)) = wire.queue.front() {
            wire.armed = true;
            let at = (*at).max(Nanos(now.0 + wait));
            self.schedule(at, Event::Wire(id));
        }
    }

    pub(in crate::sim) fn wire_arrives(&mut self, id: SocketId) {
        let Some(wire) = self.net.wires.get_mut(&id) else {
            return;
        };
        wire.armed = false;
        let (from, to, from_socket) = (wire.from, wire.to, wire.from_socket);
        if self.blocked(from, to) {
            return;
        }
        let Some(wire) = self.net.wires.get_mut(&id) else {
            return;
        };
        let (segment, to_closed) = (wire.queue.pop_front(), wire.to_closed);
        self.arm_wire(id, false);
        if let Some((_, segment)) = segment {
            self.note(to, segment_name(&segment), id as i64);
            if self.net.sockets.contains_key(&id) {
                self.segment_arrives(id, from_socket, segment);
            } else {
                self.segment_bounces(from_socket, to_closed, &segment);
            }
        }
        self.forget_wires(id, from_socket);
    }

    /// Nobody has the socket that a segment was for.
    fn segment_bounces(&mut self, sender: SocketId, to_closed: bool, segment: &Segment) {
        let tell = match segment {
            Segment::Data(_) | Segment::Established { .. } => true,
            Segment::End => !to_closed,
            Segment::Read(_) | Segment::Reset => false,
        };
        if tell {
            self.send_segment(sender, Segment::Reset);
        }
    }

    /// Drops the wires of a connection that has no socket and no segment left.
    fn forget_wires(&mut self, a: SocketId, b: SocketId) {
        let over = |id: SocketId| {
            !self.net.sockets.contains_key(&id)
                && self
                    .net
                    .wires
                    .get(&id)
                    .is_none_or(|wire| wire.queue.is_empty())
        };
        if over(a) && over(b) {
            self.net.wires.remove(&a);
            self.net.wires.remove(&b);
        }
    }

    fn segment_arrives(&mut self, id: SocketId, sender: SocketId, segment: Segment) {
        if let Segment::Established { peer_addr } = segment {
            self.established(id, sender, peer_addr);
            return;
        }
        let Some(stream) = self.net.stream(id) else {
            // The connect was given up; the other side must hear of it.
            self.segment_bounces(sender, false, &segment);
            return;
        };
        match segment {
            Segment::Data(bytes) if stream.read_closed => drop(bytes),
            Segment::Data(bytes) => stream.inbox.extend(bytes),
            Segment::Read(count) => stream.unread_by_peer -= count,
            Segment::End => stream.ended = true,
            Segment::Reset => stream.reset = true,
            Segment::Established { .. } => {}
        }
        self.poke(id);
    }

    fn established(&mut self, id: SocketId, sender: SocketId, peer_addr: Addr) {
        let connecting = self
            .net
            .sockets
            .get_mut(&id)
            .and_then(|socket| match socket.kind {
                Kind::Fresh { connecting } => connecting,
                _ => None,
            });
        let Some(key) = connecting else {
            self.send_segment(sender, Segment::Reset);
            return;
        };
        if let Some(socket) = self.net.sockets.get_mut(&id) {
            socket.kind = Kind::Stream(Stream::new(sender, peer_addr));
        }
        self.finish(key, 0);
    }

    pub(super) fn progress_recvs(&mut self, id: SocketId) {
        loop {
            let Some(stream) = self.net.stream(id) else {
                return;
            };
            let Some(key) = stream.recvs.front().copied() else {
                return;
            };
            if stream.inbox.is_empty() {
                let result = match stream {
                    Stream { reset: true, .. } => -libc::ECONNRESET,
                    Stream { ended: true, .. }
                    | Stream {
                        read_closed: true, ..
                    } => 0,
                    _ => return,
                };
                self.finish(key, result);
            } else {
                self.take_in(id, key);
            }
        }
    }

    /// Gives unread bytes to the first waiting receive.
    fn take_in(&mut self, id: SocketId, key: OpKey) {
        let Some(flight) = self.flights.get(&key) else {
            return;
        };
        let (limit, multishot, ring) = match flight.op() {
            Op::RecvRing { multishot, .. } => (RING_BUFFER, *multishot, true),
            _ => (flight.capacity(), false, false),
        };
        let state = &mut self.shards[flight.shard as usize];
        let buffer = if ring {
            state.ring_free.pop_front()
        } else {
            None
        };
        if ring && buffer.is_none() {
            self.finish(key, -libc::ENOBUFS);
            return;
        }
        let Some(stream) = self.net.stream(id) else {
            return;
        };
        let count = limit.min(stream.inbox.len());
        let bytes: Vec<u8> = stream.inbox.drain(..count).collect();
        let peer = stream.peer;
        match buffer {
            Some(buffer) => {
                let start = usize::from(buffer) * RING_BUFFER;
                state.ring[start..start + count].copy_from_slice(&bytes);
            }
            None => flight.scatter(&bytes),
        }
        if count > 0 {
            self.send_segment(peer, Segment::Read(count));
        }
        let digest = digest(&bytes);
        let done = Answer {
            result: count as i32,
            buffer,
            digest,
            ..Answer::default()
        };
        if multishot {
            self.post_more(key, done);
        } else {
            self.finish_with(key, done);
        }
    }

    /// Sends what has room. As under MSG_WAITALL a send ends when all its bytes are on their way;
    /// one that an error stops says how many were.
    pub(super) fn progress_sends(&mut self, id: SocketId) {
        loop {
            let Some(stream) = self.net.stream(id) else {
                return;
            };
            let Some(key) = stream.sends.front().copied() else {
                return;
            };
            let Some(flight) = self.flights.get(&key) else {
                return;
            };
            if let Some(errno) = stream.broken() {
                stream.write_closed |= flight.sent == 0;
                let result = if flight.sent > 0 {
                    flight.sent as i32
                } else {
                    -errno
                };
                self.finish(key, result);
                continue;
            }
            let (room, peer) = (WINDOW - stream.unread_by_peer, stream.peer);
            if room == 0 && flight.capacity() > 0 {
                return;
            }
            let zero_copy = matches!(
                flight.op(),
                Op::Send {
                    how: SendHow::ZeroCopy,
                    ..
                }
            );
            let mut bytes = flight.gather(room);
            let short = bytes.len() > 1 && self.rng.once_in(self.config.short_sends_one_in);
            if short {
                let count = 1 + self.rng.below(bytes.len() as u64 - 1);
                bytes.truncate(count as usize);
            }
            stream.unread_by_peer += bytes.len();
            let (digest, count) = (digest(&bytes), bytes.len());
            self.send_bytes(peer, bytes);
            let Some(flight) = self.flights.get_mut(&key) else {
                return;
            };
            flight.sent += count;
            if !short && flight.sent < flight.capacity() {
                continue;
            }
            let done = Answer {
                result: flight.sent as i32,
                digest,
                ..Answer::default()
            };
            if zero_copy {
                self.send_posted(id, key, done);
            } else {
                self.finish_with(key, done);
            }
        }
    }

    /// Those that wait for room hear of it, or of the connection's end.
    pub(super) fn progress_awaiting(&mut self, id: SocketId) {
        loop {
            let Some(stream) = self.net.stream(id) else {
                return;
            };
            let first = stream.awaiting.front().copied();
            let Some(key) = first.filter(|_| stream.is_writable()) else {
                return;
            };
            self.finish(key, i32::from(libc::POLLOUT));
        }
    }

    /// Sends at once what has room; `EAGAIN` when nothing has.
    pub(in crate::sim) fn send_now(
        &mut self,
        shard: ShardKey,
        handle: RawHandle,
        bytes: &[u8],
    ) -> Result<usize, Errno> {
        let id = self.socket_of(shard, handle)?;
        let node = self.node_of(shard);
        let stream = self.net.stream(id).ok_or(libc::ENOTCONN)?;
        if let Some(errno) = stream.broken() {
            stream.write_closed = true;
            return Err(errno);
        }
        let (room, peer) = (WINDOW - stream.unread_by_peer, stream.peer);
        let mut count = room.min(bytes.len());
        if count == 0 {
            return Err(libc::EAGAIN);
        }
        if count > 1 && self.rng.once_in(self.config.short_sends_one_in) {
            count = 1 + self.rng.below(count as u64 - 1) as usize;
        }
        let stream = self.net.stream(id).ok_or(libc::ENOTCONN)?;
        stream.unread_by_peer += count;
        let sent = &bytes[..count];
        self.note(node, "send-now", (digest(sent) >> 1) as i64);
        self.send_bytes(peer, sent.to_vec());
        Ok(count)
    }

    /// A zero-copy send's bytes are on their way; its buffer is released later.
    fn send_posted(&mut self, id: SocketId, key: OpKey, done: Answer) {
        if let Some(stream) = self.net.stream(id) {
            stream.sends.retain(|waiting| *waiting != key);
        }
        if let Some(flight) = self.flights.get_mut(&key) {
            flight.syncing = true;
        }
        self.post_more(key, done);
        let (now, range) = (self.now, self.config.link_ns.clone());
        self.schedule_within(now, &range, Event::Notify(key));
    }

    pub(in crate::sim) fn notify(&mut self, key: OpKey) {
        self.finish_with(
            key,
            Answer {
                notification: true,
                ..Answer::default()
            },
        );
    }

    /// Sends bytes in one to three segments: a receiver must not count on a sender's limits.
    fn send_bytes(&mut self, to: SocketId, mut bytes: Vec<u8>) {
        for _ in 0..2 {
            if bytes.len() > 1 && self.rng.once_in(2) {
                let at = 1 + self.rng.below(bytes.len() as u64 - 1) as usize;
                let rest = bytes.split_off(at);
                self.send_segment(to, Segment::Data(std::mem::replace(&mut bytes, rest)));
            }
        }
        if !bytes.is_empty() {
            self.send_segment(to, Segment::Data(bytes));
        }
    }

    pub(in crate::sim) fn shutdown(&mut self, id: SocketId, write_only: bool) -> i32 {
        let Some(stream) = self.net.stream(id) else {
            return -libc::ENOTCONN;
        };
        if stream.reset {
            return -libc::ENOTCONN;
        }
        let peer = stream.peer;
        let first = !std::mem::replace(&mut stream.write_closed, true);
        if !write_only {
            stream.read_closed = true;
        }
        if first {
            self.send_segment(peer, Segment::End);
        }
        self.poke(id);
        0
    }

    /// The program has closed its end: an end for the peer, or a reset when bytes are lost.
    pub(super) fn release_stream(&mut self, id: SocketId, stream: &Stream) {
        if let Some(wire) = self.net.wires.get_mut(&id) {
            wire.to_closed = true;
        }
        if !stream.reset {
            if !stream.inbox.is_empty() {
                self.send_segment(stream.peer, Segment::Reset);
            } else if !stream.write_closed {
                self.send_segment(stream.peer, Segment::End);
            }
        }
        self.forget_wires(id, stream.peer);
    }

    /// A socket is gone without a word from its program; the peer is told now or finds out when
    /// it sends.
    pub(super) fn vanish(&mut self, id: SocketId, told: bool) {
        let Some(socket) = self.net.sockets.remove(&id) else {
            return;
        };
        if let Kind::Stream(stream) = socket.kind {
            // Power loss takes the bytes that had not left.
            if let Some(wire) = self.net.wires.get_mut(&stream.peer) {
                wire.queue.clear();
            }
            if told {
                self.send_segment(stream.peer, Segment::Reset);
            }
        }
    }

    /// Kills every connection between two nodes, both ends told at once.
    pub(in crate::sim) fn reset_between(&mut self, a: NodeId, b: NodeId) {
        let between: Vec<SocketId> = self
            .net
            .wires
            .iter()
            .filter(|(_, w)| (w.from, w.to) == (a, b) || (w.from, w.to) == (b, a))
            .map(|(id, _)| *id)
            .collect();
        for id in between {
            if let Some(stream) = self.net.stream(id) {
                stream.reset = true;
                self.poke(id);
            }
        }
    }
}

fn segment_name(segment: &Segment) -> &'static str {
    match segment {
        Segment::Established { .. } => "established",
        Segment::Data(_) => "data",
        Segment::Read(_) => "window",
        Segment::End => "end",
        Segment::Reset => "reset",
    }
}
