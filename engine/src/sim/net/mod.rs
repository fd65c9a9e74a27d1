//! The simulated network: sockets, addresses, listeners and the links between nodes.
//!
//! Fault model. A link is cut per direction; while it is cut, or the receiving node is without
//! power, stream segments wait and datagrams are lost. Delays are drawn per segment; a stream's
//! segments stay in order, datagrams overtake each other. Datagrams between nodes are dropped or
//! doubled by rate. A connection ends by itself only when a side closes, is reset, or crashes;
//! after a crash the peer is told at once or, half of the time, when it next sends to a node that
//! has power again. A stream never loses, repeats or reorders bytes between those that arrived.
//! Traffic inside a node is never cut or dropped.
//!
//! A Unix socket's name lives as long as its listener and is not in the disk's tree.

mod connect;
mod datagram;
mod stream;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::{Range, RangeInclusive};

pub(super) use datagram::Packet;

use self::datagram::Datagrams;
use self::stream::{Stream, Wire};
use super::NodeId;
use super::disk::Errno;
use super::memory::Target;
use super::world::{Event, Handle, OpKey, ShardKey, World};
use crate::backend::{Addr, BindOptions, Op, RawHandle, SocketKind};
use crate::time::Nanos;

/// A socket of the simulation; never reused.
pub(super) type SocketId = u64;

/// How long a connect waits for an answer.
const CONNECT_TIMEOUT_NS: u64 = 10_000_000_000;

/// How long until an unanswered connection request is sent again.
const SYN_RETRY_NS: u64 = 1_000_000_000;

/// Ports given to sockets that ask for none, as Linux has them.
const PORTS: RangeInclusive<u16> = 32_768..=60_999;

pub(super) struct Socket {
    node: NodeId,
    /// The handle is closed; the socket waits for its ops to end.
    closed: bool,
    local: Option<Addr>,
    reuse_port: bool,
    family: Family,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
    Unix,
}

impl Family {
    fn of(addr: &Addr) -> Family {
        match addr {
            Addr::Inet(SocketAddr::V4(_)) => Family::V4,
            Addr::Inet(SocketAddr::V6(_)) => Family::V6,
            Addr::Unix(_) => Family::Unix,
        }
    }
}

enum Kind {
    /// A stream socket that neither listens nor is connected.
    Fresh {
        connecting: Option<OpKey>,
    },
    Listener {
        queue: VecDeque<SocketId>,
        backlog: usize,
        accepts: VecDeque<OpKey>,
    },
    Stream(Stream),
    Datagrams(Datagrams),
}

#[derive(Default)]
pub(super) struct Net {
    sockets: BTreeMap<SocketId, Socket>,
    wires: BTreeMap<SocketId, Wire>,
    next_socket: SocketId,
    cut: BTreeSet<(NodeId, NodeId)>,
    delays: BTreeMap<(NodeId, NodeId), Range<u64>>,
}

impl Net {
    fn add(&mut self, socket: Socket) -> SocketId {
        self.next_socket += 1;
        self.sockets.insert(self.next_socket, socket);
        self.next_socket
    }

    pub(super) fn cut(&mut self, from: NodeId, to: NodeId) {
        self.cut.insert((from, to));
    }

    pub(super) fn mend(&mut self) {
        self.cut.clear();
    }

    pub(super) fn set_delay(&mut self, from: NodeId, to: NodeId, delay: Range<u64>) {
        self.delays.insert((from, to), delay);
    }

    fn stream(&mut self, socket: SocketId) -> Option<&mut Stream> {
        match &mut self.sockets.get_mut(&socket)?.kind {
            Kind::Stream(stream) => Some(stream),
            _ => None,
        }
    }

    fn datagrams(&mut self, socket: SocketId) -> Option<&mut Datagrams> {
        match &mut self.sockets.get_mut(&socket)?.kind {
            Kind::Datagrams(datagrams) => Some(datagrams),
            _ => None,
        }
    }

    /// Open sockets of the kind that `wanted` accepts which are bound to `addr` on `node`.
    fn bound(&self, node: NodeId, addr: &Addr, wanted: fn(&Kind) -> bool) -> Vec<SocketId> {
        self.sockets
            .iter()
            .filter(|(_, s)| s.node == node && !s.closed && wanted(&s.kind))
            .filter(|(_, s)| s.local.as_ref().is_some_and(|local| covers(local, addr)))
            .map(|(id, _)| *id)
            .collect()
    }
}

/// Whether a socket bound to `local` is reached under `addr`.
fn covers(local: &Addr, addr: &Addr) -> bool {
    match (local, addr) {
        (Addr::Inet(local), Addr::Inet(addr)) => {
            local.port() == addr.port()
                && (local.ip() == addr.ip()
                    || match local.ip() {
                        IpAddr::V4(ip) => ip.is_unspecified() && addr.is_ipv4(),
                        IpAddr::V6(ip) => ip.is_unspecified(),
                    })
        }
        _ => local == addr,
    }
}

fn listens(kind: &Kind) -> bool {
    matches!(kind, Kind::Listener { .. })
}

impl World {
    /// The node that `addr` names, seen from `from`.
    fn node_at(&self, from: NodeId, addr: &Addr) -> Option<NodeId> {
        let ip = match addr {
            Addr::Unix(_) => return Some(from),
            Addr::Inet(addr) if addr.ip().is_loopback() || addr.ip().is_unspecified() => {
                return Some(from);
            }
            Addr::Inet(addr) => addr.ip(),
        };
        (0..self.nodes.len() as u32)
            .map(NodeId)
            .find(|node| IpAddr::V4(node.ip()) == ip)
    }

    /// Whether nothing gets from one node to the other.
    fn blocked(&self, from: NodeId, to: NodeId) -> bool {
        from != to && (self.net.cut.contains(&(from, to)) || !self.nodes[to.0 as usize].powered)
    }

    fn delay(&mut self, from: NodeId, to: NodeId) -> u64 {
        let range = match self.net.delays.get(&(from, to)) {
            _ if from == to => &self.config.loopback_ns,
            Some(range) => range,
            None => &self.config.link_ns,
        };
        super::world::within(&mut self.rng, range)
    }

    /// A port of the node that nothing is bound to.
    ///
    /// # Panics
    /// When all ports of the range are taken: no simulation opens so many sockets.
    fn free_port(&mut self, node: NodeId) -> u16 {
        for _ in PORTS {
            let state = self.node(node);
            let port = state.next_port;
            state.next_port = if port == *PORTS.end() {
                *PORTS.start()
            } else {
                port + 1
            };
            let taken = self.net.sockets.values().any(|s| {
                s.node == node && matches!(&s.local, Some(Addr::Inet(a)) if a.port() == port)
            });
            if !taken {
                return port;
            }
        }
        panic!("node {} has no free port left", node.0);
    }

    /// The address that a socket gets that sends to `to` without being bound.
    fn source_addr(&mut self, node: NodeId, to: &Addr) -> Addr {
        let ip = match to {
            Addr::Unix(_) => return Addr::Unix(std::path::PathBuf::new()),
            Addr::Inet(to) if to.ip().is_loopback() => to.ip(),
            Addr::Inet(SocketAddr::V6(_)) => IpAddr::V6(Ipv6Addr::LOCALHOST),
            Addr::Inet(SocketAddr::V4(_)) => IpAddr::V4(node.ip()),
        };
        Addr::Inet(SocketAddr::new(ip, self.free_port(node)))
    }

    pub(super) fn make_socket(
        &mut self,
        shard: ShardKey,
        kind: SocketKind,
        addr: &Addr,
    ) -> Result<RawHandle, Errno> {
        let kind = match (kind, addr) {
            (SocketKind::Stream, _) => Kind::Fresh { connecting: None },
            (SocketKind::Datagram, Addr::Inet(_)) => Kind::Datagrams(Datagrams::default()),
            (SocketKind::Datagram, Addr::Unix(_)) => return Err(libc::EPROTONOSUPPORT),
        };
        let node = self.node_of(shard);
        let family = Family::of(addr);
        let socket = Socket {
            node,
            closed: false,
            local: None,
            reuse_port: false,
            family,
            kind,
        };
        let id = self.net.add(socket);
        Ok(self.node(node).add_handle(Handle::Socket(id)))
    }

    fn socket_of(&self, shard: ShardKey, handle: RawHandle) -> Result<SocketId, Errno> {
        let node = self.node_of(shard);
        match self.nodes[node.0 as usize].handles.get(&handle) {
            Some(Handle::Socket(socket)) => Ok(*socket),
            Some(_) => Err(libc::ENOTSOCK),
            None => Err(libc::EBADF),
        }
    }

    pub(super) fn bind(
        &mut self,
        shard: ShardKey,
        handle: RawHandle,
        addr: &Addr,
        options: BindOptions,
    ) -> Result<(), Errno> {
        let (id, node) = (self.socket_of(shard, handle)?, self.node_of(shard));
        let socket = self.net.sockets.get(&id).ok_or(libc::EBADF)?;
        if socket.local.is_some() || socket.family != Family::of(addr) {
            return Err(libc::EINVAL);
        }
        let stream = match socket.kind {
            Kind::Fresh { connecting: None } => true,
            Kind::Datagrams(_) => false,
            _ => return Err(libc::EINVAL),
        };
        let mut addr = addr.clone();
        if let Addr::Inet(inet) = &mut addr {
            if self.node_at(node, &Addr::Inet(*inet)) != Some(node) {
                return Err(libc::EADDRNOTAVAIL);
            }
            if inet.port() == 0 {
                inet.set_port(self.free_port(node));
            }
        }
        let clash = self.net.sockets.values().any(|other| {
            other.node == node
                && !other.closed
                && matches!(other.kind, Kind::Datagrams(_)) != stream
                && !matches!(other.kind, Kind::Stream(_))
                && !(other.reuse_port && options.reuse_port)
                && (other.local.as_ref())
                    .is_some_and(|local| covers(local, &addr) || covers(&addr, local))
        });
        if clash {
            return Err(libc::EADDRINUSE);
        }
        let socket = self.net.sockets.get_mut(&id).ok_or(libc::EBADF)?;
        socket.local = Some(addr);
        socket.reuse_port = options.reuse_port;
        if stream {
            let backlog = options.backlog.max(1) as usize;
            let (queue, accepts) = (VecDeque::new(), VecDeque::new());
            socket.kind = Kind::Listener {
                queue,
                backlog,
                accepts,
            };
        }
        Ok(())
    }

    pub(super) fn local_addr(&self, shard: ShardKey, handle: RawHandle) -> Result<Addr, Errno> {
        let socket = &self.net.sockets[&self.socket_of(shard, handle)?];
        Ok(socket.local.clone().unwrap_or_else(|| match socket.family {
            Family::V4 => Addr::Inet(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0)),
            Family::V6 => Addr::Inet(SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0)),
            Family::Unix => Addr::Unix(std::path::PathBuf::new()),
        }))
    }

    pub(super) fn peer_addr(&self, shard: ShardKey, handle: RawHandle) -> Result<Addr, Errno> {
        match &self.net.sockets[&self.socket_of(shard, handle)?].kind {
            Kind::Stream(stream) => Ok(stream.peer_addr.clone()),
            _ => Err(libc::ENOTCONN),
        }
    }

    /// Queues an op at its socket, to be looked at a little later.
    pub(super) fn launch_socket(&mut self, key: OpKey, from: Nanos) {
        let call = self.config.call_ns.clone();
        let event = match self.enqueue(key) {
            Ok(event) => event,
            Err(errno) => Event::End(key, -errno),
        };
        self.schedule_within(from, &call, event);
    }

    fn enqueue(&mut self, key: OpKey) -> Result<Event, Errno> {
        let flight = &self.flights[&key];
        let Target::Socket(id) = flight.target else {
            return Err(libc::ENOTSOCK);
        };
        let socket = self.net.sockets.get_mut(&id).ok_or(libc::EBADF)?;
        match (flight.op(), &mut socket.kind) {
            (Op::Accept { .. }, Kind::Listener { accepts, .. }) => accepts.push_back(key),
            (Op::Accept { .. }, _) => return Err(libc::EINVAL),
            (Op::Connect { .. }, Kind::Fresh { connecting }) if connecting.is_none() => {
                *connecting = Some(key);
                return Ok(Event::Syn(key));
            }
            (Op::Connect { .. }, Kind::Fresh { .. }) => return Err(libc::EALREADY),
            (Op::Connect { .. }, _) => return Err(libc::EISCONN),
            (Op::Recv { .. } | Op::RecvRing { .. }, Kind::Stream(stream)) => {
                stream.recvs.push_back(key);
            }
            (Op::Send { .. } | Op::SendVectored { .. }, Kind::Stream(stream)) => {
                stream.sends.push_back(key);
            }
            (Op::AwaitRoom { .. }, Kind::Stream(stream)) => stream.awaiting.push_back(key),
            (Op::Shutdown { .. }, Kind::Stream(_)) => return Ok(Event::Start(key)),
            (Op::RecvFrom { .. }, Kind::Datagrams(datagrams)) => datagrams.recvs.push_back(key),
            (Op::SendTo { .. }, Kind::Datagrams(datagrams)) => datagrams.sends.push_back(key),
            (Op::RecvFrom { .. } | Op::SendTo { .. }, _) => return Err(libc::EOPNOTSUPP),
            _ => return Err(libc::ENOTCONN),
        }
        Ok(Event::Poke(id))
    }

    /// Lets a socket's waiting ops go on as far as they can.
    pub(super) fn poke(&mut self, id: SocketId) {
        match self.net.sockets.get(&id).map(|socket| &socket.kind) {
            Some(Kind::Listener { .. }) => self.progress_accepts(id),
            Some(Kind::Stream(_)) => {
                self.progress_sends(id);
                self.progress_awaiting(id);
                self.progress_recvs(id);
            }
            Some(Kind::Datagrams(_)) => {
                self.progress_send_tos(id);
                self.progress_recv_froms(id);
            }
            Some(Kind::Fresh { .. }) | None => {}
        }
    }

    pub(super) fn close_socket(&mut self, id: SocketId) {
        if let Some(socket) = self.net.sockets.get_mut(&id) {
            socket.closed = true;
        }
        self.release_if_idle(id);
    }

    /// An op on the socket has ended.
    pub(super) fn op_left(&mut self, id: SocketId, op: OpKey) {
        if let Some(socket) = self.net.sockets.get_mut(&id) {
            match &mut socket.kind {
                Kind::Fresh { connecting } => *connecting = connecting.filter(|key| *key != op),
                Kind::Listener { accepts, .. } => accepts.retain(|key| *key != op),
                Kind::Stream(stream) => stream.forget(op),
                Kind::Datagrams(Datagrams { recvs, sends, .. }) => {
                    recvs.retain(|key| *key != op);
                    sends.retain(|key| *key != op);
                }
            }
        }
        self.release_if_idle(id);
    }

    /// As in the kernel, a closed socket lives on while ops hold it.
    fn release_if_idle(&mut self, id: SocketId) {
        let closed = self
            .net
            .sockets
            .get(&id)
            .is_some_and(|socket| socket.closed);
        let held = || {
            self.flights
                .values()
                .any(|flight| flight.target == Target::Socket(id))
        };
        if closed && !held() {
            self.release(id);
        }
    }

    fn release(&mut self, id: SocketId) {
        let Some(socket) = self.net.sockets.remove(&id) else {
            return;
        };
        match socket.kind {
            Kind::Listener { queue, .. } => {
                for connection in queue {
                    self.vanish(connection, true);
                }
            }
            Kind::Stream(stream) => self.release_stream(id, &stream),
            Kind::Fresh { .. } | Kind::Datagrams(_) => {}
        }
    }

    pub(super) fn cancel_socket(&mut self, key: OpKey, id: SocketId) {
        let Some(flight) = self.flights.get(&key) else {
            return;
        };
        match flight.op() {
            Op::Close { .. } | Op::Shutdown { .. } => {}
            Op::Connect { .. } => self.fail_connect(key, libc::ECANCELED),
            // Its bytes are gone already; the notification follows.
            Op::Send { .. } if flight.syncing => {}
            _ => {
                debug_assert!(self.net.sockets.contains_key(&id), "ops hold their socket");
                // As in the kernel, a send that has begun says how far it got.
                let result = if flight.sent > 0 {
                    flight.sent as i32
                } else {
                    -libc::ECANCELED
                };
                self.finish(key, result);
            }
        }
    }

    /// All sockets of a node end: with a reset or in silence after a crash, orderly otherwise.
    pub(super) fn end_sockets(&mut self, node: NodeId, crashed: bool) {
        let ids: Vec<SocketId> = self
            .net
            .sockets
            .iter()
            .filter(|(_, s)| s.node == node)
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            if crashed {
                let told = self.rng.once_in(2);
                self.vanish(id, told);
            } else {
                self.release(id);
            }
        }
    }

    /// The network works again somewhere: what waited goes on.
    pub(super) fn resume_wires(&mut self) {
        let waiting: Vec<SocketId> = self
            .net
            .wires
            .iter()
            .filter(|(_, wire)| wire.stalled())
            .map(|(id, _)| *id)
            .collect();
        for id in waiting {
            self.arm_wire(id, true);
        }
    }
}
