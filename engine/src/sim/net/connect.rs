//! How connections begin: requests, listeners and their backlog, accepts.

use super::super::NodeId;
use super::super::disk::Errno;
use super::super::memory::Target;
use super::super::world::{Answer, Event, Handle, OpKey, World};
use super::stream::{Segment, Stream, Wire};
use super::{CONNECT_TIMEOUT_NS, Family, Kind, SYN_RETRY_NS, Socket, SocketId, listens};
use crate::backend::Addr;
use crate::time::Nanos;

impl World {
    pub(super) fn progress_accepts(&mut self, id: SocketId) {
        loop {
            let Some(socket) = self.net.sockets.get_mut(&id) else {
                return;
            };
            let (node, Kind::Listener { queue, accepts, .. }) = (socket.node, &mut socket.kind)
            else {
                return;
            };
            let Some(key) = accepts.front().copied() else {
                return;
            };
            let Some(connection) = queue.pop_front() else {
                return;
            };
            if !self.net.sockets.contains_key(&connection) {
                continue;
            }
            let handle = self.node(node).add_handle(Handle::Socket(connection));
            self.post_more(
                key,
                Answer {
                    result: handle.0,
                    ..Answer::default()
                },
            );
        }
    }

    /// A request to connect reaches the other node, or is lost and sent again.
    pub(in crate::sim) fn syn_arrives(&mut self, key: OpKey) {
        let Some(flight) = self.flights.get(&key) else {
            return;
        };
        let Target::Socket(client) = flight.target else {
            return;
        };
        let (node, Some(to)) = (self.node_of(flight.shard), flight.destination()) else {
            self.fail_connect(key, libc::EAFNOSUPPORT);
            return;
        };
        // The first arrival arms the deadline; the retries are counted from it.
        if flight.upto == 0 {
            let deadline = Nanos(self.now.0 + CONNECT_TIMEOUT_NS);
            if let Some(flight) = self.flights.get_mut(&key) {
                flight.upto = 1;
            }
            self.schedule(deadline, Event::ConnectTimeout(key));
        }
        let target = self.node_at(node, &to);
        let retry = Nanos(self.now.0 + SYN_RETRY_NS);
        let Some(target) = target.filter(|target| !self.blocked(node, *target)) else {
            self.schedule(retry, Event::Syn(key));
            return;
        };
        let mut listeners = self.net.bound(target, &to, listens);
        if listeners.is_empty() {
            let missing = matches!(to, Addr::Unix(_));
            self.fail_connect(
                key,
                if missing {
                    libc::ENOENT
                } else {
                    libc::ECONNREFUSED
                },
            );
            return;
        }
        let chosen = self.rng.below(listeners.len() as u64) as usize;
        let listener = listeners.swap_remove(chosen);
        if self.open_connection(client, listener, target, &to) {
            self.poke(listener);
        } else {
            self.schedule(retry, Event::Syn(key));
        }
    }

    pub(super) fn fail_connect(&mut self, key: OpKey, errno: Errno) {
        if let Some(Target::Socket(client)) = self.flights.get(&key).map(|f| f.target)
            && let Some(socket) = self.net.sockets.get_mut(&client)
        {
            socket.kind = Kind::Fresh { connecting: None };
        }
        self.finish(key, -errno);
    }

    pub(in crate::sim) fn connect_times_out(&mut self, key: OpKey) {
        if self.flights.contains_key(&key) {
            self.fail_connect(key, libc::ETIMEDOUT);
        }
    }

    /// Makes the server's end of a connection; false when the backlog is full.
    fn open_connection(
        &mut self,
        client: SocketId,
        listener: SocketId,
        target: NodeId,
        to: &Addr,
    ) -> bool {
        let Some(Socket { node, local, .. }) = self.net.sockets.get(&client) else {
            return true;
        };
        let (node, local) = (*node, local.clone());
        let from = local.unwrap_or_else(|| self.source_addr(node, to));
        let server = Socket {
            node: target,
            closed: false,
            local: Some(to.clone()),
            reuse_port: false,
            family: Family::of(to),
            kind: Kind::Stream(Stream::new(client, from.clone())),
        };
        let Some(Socket {
            kind: Kind::Listener { queue, backlog, .. },
            ..
        }) = self.net.sockets.get(&listener)
        else {
            return false;
        };
        if queue.len() >= *backlog {
            return false;
        }
        let id = self.net.add(server);
        if let Some(Socket {
            kind: Kind::Listener { queue, .. },
            ..
        }) = self.net.sockets.get_mut(&listener)
        {
            queue.push_back(id);
        }
        if let Some(socket) = self.net.sockets.get_mut(&client) {
            socket.local = Some(from);
        }
        self.net.wires.insert(client, Wire::new(id, target, node));
        self.net.wires.insert(id, Wire::new(client, node, target));
        self.send_segment(
            client,
            Segment::Established {
                peer_addr: to.clone(),
            },
        );
        true
    }
}
