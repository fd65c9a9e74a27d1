//! UDP: datagrams that arrive whole or not at all, late, twice or out of order.

use std::collections::VecDeque;

use super::super::NodeId;
use super::super::trace::digest;
use super::super::world::{Answer, Event, OpKey, World};
use super::{Kind, SocketId};
use crate::backend::Addr;
use crate::time::Nanos;

/// What IPv4 carries at most.
const PAYLOAD_MAX: usize = 65_507;

/// Datagrams that wait at a socket; more are dropped.
const INBOX_MAX: usize = 256;

/// How many delays late a reordered datagram is at most.
const LATE_MAX: u64 = 10;

#[derive(Default)]
pub(super) struct Datagrams {
    inbox: VecDeque<(Addr, Vec<u8>)>,
    pub(super) recvs: VecDeque<OpKey>,
    pub(super) sends: VecDeque<OpKey>,
}

/// A datagram on its way.
#[derive(Clone)]
pub(in crate::sim) struct Packet {
    from_node: NodeId,
    from: Addr,
    to_node: NodeId,
    to: Addr,
    bytes: Vec<u8>,
}

impl World {
    pub(super) fn progress_send_tos(&mut self, id: SocketId) {
        while let Some(key) = self.net.datagrams(id).and_then(|d| d.sends.pop_front()) {
            let done = self.send_packet(id, key);
            self.finish_with(key, done);
        }
    }

    fn send_packet(&mut self, id: SocketId, key: OpKey) -> Answer {
        let fails = |errno: i32| Answer {
            result: -errno,
            ..Answer::default()
        };
        let Some(flight) = self.flights.get(&key) else {
            return fails(libc::ECANCELED);
        };
        let (node, bytes) = (self.node_of(flight.shard), flight.datagram());
        let Some(to) = flight.destination() else {
            return fails(libc::EDESTADDRREQ);
        };
        if bytes.len() > PAYLOAD_MAX {
            return fails(libc::EMSGSIZE);
        }
        let done = Answer {
            result: bytes.len() as i32,
            digest: digest(&bytes),
            ..Answer::default()
        };
        let from = self.datagram_source(id, node, &to);
        if let Some(to_node) = self.node_at(node, &to) {
            self.deliver(&Packet {
                from_node: node,
                from,
                to_node,
                to,
                bytes,
            });
        }
        done
    }

    /// The address that the receiver sees; binds the socket when it is not.
    fn datagram_source(&mut self, id: SocketId, node: NodeId, to: &Addr) -> Addr {
        let local = self
            .net
            .sockets
            .get(&id)
            .and_then(|socket| socket.local.clone());
        let source = match local {
            Some(Addr::Inet(local)) if local.ip().is_unspecified() => {
                let mut source = self.source_addr(node, to);
                if let Addr::Inet(source) = &mut source {
                    source.set_port(local.port());
                }
                return source;
            }
            Some(local) => return local,
            None => self.source_addr(node, to),
        };
        if let Some(socket) = self.net.sockets.get_mut(&id) {
            socket.local = Some(source.clone());
        }
        source
    }

    fn deliver(&mut self, packet: &Packet) {
        let between = packet.from_node != packet.to_node;
        let copies = match between {
            true if self.rng.once_in(self.config.datagram_drops_one_in) => 0,
            true if self.rng.once_in(self.config.datagram_duplicates_one_in) => 2,
            _ => 1,
        };
        for _ in 0..copies {
            let mut wait = self.delay(packet.from_node, packet.to_node);
            if between && self.rng.once_in(self.config.datagram_reorders_one_in) {
                wait *= 1 + self.rng.below(LATE_MAX);
            }
            let at = Nanos(self.now.0 + wait);
            self.schedule(at, Event::Datagram(Box::new(packet.clone())));
        }
    }

    pub(in crate::sim) fn datagram_arrives(&mut self, packet: Packet) {
        if self.blocked(packet.from_node, packet.to_node) {
            return;
        }
        let takes = |kind: &Kind| matches!(kind, Kind::Datagrams(_));
        let bound = self.net.bound(packet.to_node, &packet.to, takes);
        if bound.is_empty() {
            return;
        }
        let id = bound[self.rng.below(bound.len() as u64) as usize];
        if let Some(datagrams) = self.net.datagrams(id)
            && datagrams.inbox.len() < INBOX_MAX
        {
            datagrams.inbox.push_back((packet.from, packet.bytes));
        }
        self.progress_recv_froms(id);
    }

    pub(super) fn progress_recv_froms(&mut self, id: SocketId) {
        loop {
            let Some(datagrams) = self.net.datagrams(id) else {
                return;
            };
            if datagrams.inbox.is_empty() {
                return;
            }
            let Some(key) = datagrams.recvs.pop_front() else {
                return;
            };
            let Some((from, bytes)) = datagrams.inbox.pop_front() else {
                return;
            };
            let Some(flight) = self.flights.get(&key) else {
                continue;
            };
            let taken = flight.deliver_datagram(&from, &bytes);
            let digest = digest(&bytes[..taken]);
            self.finish_with(
                key,
                Answer {
                    result: taken as i32,
                    digest,
                    ..Answer::default()
                },
            );
        }
    }
}
