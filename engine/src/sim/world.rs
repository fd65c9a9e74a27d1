//! The state of a simulation: virtual clock, seed, event heap, nodes, shards and ops in flight.
//!
//! Invariants:
//! - Events happen in order of (time, seeded tie-break, sequence); time never runs back.
//! - Each op is answered as [`crate::backend`] demands: its [`Flight`] exists until the last
//!   completion is posted, and nothing touches the op's memory after that.
//! - All choices come from one generator, so the seed and the program decide everything.
//!
//! It never polls a task and never wakes one: what wakes is left in `outbox` for
//! [`super::Sim`], which delivers it while nothing here is borrowed.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::io;
use std::ops::Range;

use futures_channel::oneshot;

use super::config::SimConfig;
use super::disk::{Disk, Inode};
use super::memory::{Flight, Target};
use super::net::{Net, Packet, SocketId};
use super::trace::{Record, Trace};
use super::{NodeId, Sim, Tear};
use crate::backend::{Completion, FsOp, FsReply, Part, RawHandle, SlotId};
use crate::guest::GuestMem;
use crate::rng::Rng;
use crate::time::Nanos;

/// A shard of the simulation; never reused, so that late events of a dead one find it dead.
pub(super) type ShardKey = u32;

/// An op of the simulation; never reused.
pub(super) type OpKey = u64;

pub(super) type FsSender = oneshot::Sender<io::Result<FsReply>>;

/// A name-space request on its way.
pub(super) struct FsCall {
    pub(super) shard: ShardKey,
    pub(super) op: FsOp,
    pub(super) upto: u64,
    pub(super) sender: FsSender,
}

/// What happens at a point of time.
pub(super) enum Event {
    /// A disk op takes effect and completes.
    Disk(OpKey),
    Fs(Box<FsCall>),
    /// A socket looks at its waiting ops.
    Poke(SocketId),
    /// An eventfd looks at its waiting reads.
    Signal(NodeId, RawHandle),
    /// An op that does not wait takes effect.
    Start(OpKey),
    /// An op ends with this result.
    End(OpKey, i32),
    /// A request to cancel arrives.
    Cancel(OpKey),
    /// A zero-copy send releases its buffer.
    Notify(OpKey),
    /// The first segment on the way to a socket arrives.
    Wire(SocketId),
    /// A connection request arrives, or is sent again.
    Syn(OpKey),
    ConnectTimeout(OpKey),
    Datagram(Box<Packet>),
    Control(Box<dyn FnOnce(&Sim)>),
}

struct Scheduled {
    key: (Nanos, u64, u64),
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Scheduled) -> bool {
        self.key == other.key
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Scheduled) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Scheduled) -> std::cmp::Ordering {
        self.key.cmp(&other.key)
    }
}

/// What a file descriptor stands for.
#[derive(Debug)]
pub(super) enum Handle {
    File {
        inode: Inode,
        direct: bool,
        write: bool,
    },
    Socket(SocketId),
    Event {
        count: u64,
        readers: VecDeque<OpKey>,
    },
}

/// A machine.
pub(super) struct Node {
    pub(super) name: String,
    pub(super) disk: Disk,
    pub(super) powered: bool,
    pub(super) handles: BTreeMap<RawHandle, Handle>,
    /// How often the machine was started.
    pub(super) boots: u64,
    /// Mapped files: their memory outlives processes, and not the machine.
    pub(super) mapped: BTreeMap<Inode, GuestMem>,
    /// Which handle holds a file's lock.
    pub(super) locks: BTreeMap<Inode, RawHandle>,
    next_handle: i32,
    pub(super) next_port: u16,
}

impl Node {
    pub(super) fn add_handle(&mut self, handle: Handle) -> RawHandle {
        let raw = RawHandle(self.next_handle);
        self.next_handle += 1;
        self.handles.insert(raw, handle);
        raw
    }
}

/// Buffers of the receive ring are this long.
pub(super) const RING_BUFFER: usize = 4096;

/// What the world keeps of a shard.
pub(super) struct Shard {
    pub(super) node: NodeId,
    pub(super) index: u32,
    pub(super) alive: bool,
    /// The shard's own time; ahead of the world's while it works.
    pub(super) clock: Nanos,
    pub(super) completions: Vec<Completion>,
    pub(super) slots: BTreeMap<SlotId, OpKey>,
    pub(super) ring: Box<[u8]>,
    pub(super) ring_free: VecDeque<u16>,
}

pub(super) struct World {
    pub(super) seed: u64,
    pub(super) config: SimConfig,
    pub(super) now: Nanos,
    pub(super) rng: Rng,
    pub(super) nodes: Vec<Node>,
    pub(super) shards: Vec<Shard>,
    pub(super) flights: BTreeMap<OpKey, Flight>,
    pub(super) net: Net,
    pub(super) trace: Trace,
    pub(super) outbox: Vec<(NodeId, FsSender, io::Result<FsReply>)>,
    heap: BinaryHeap<Reverse<Scheduled>>,
    next_event: u64,
    next_op: OpKey,
}

/// A number of the range; its start when the range is empty.
pub(super) fn within(rng: &mut Rng, range: &Range<u64>) -> u64 {
    match range.end.checked_sub(range.start) {
        None | Some(0) => range.start,
        Some(width) => range.start + rng.below(width),
    }
}

impl World {
    pub(super) fn new(seed: u64, config: SimConfig) -> World {
        World {
            seed,
            config,
            now: Nanos(0),
            rng: Rng::new(seed),
            nodes: Vec::new(),
            shards: Vec::new(),
            flights: BTreeMap::new(),
            net: Net::default(),
            trace: Trace::new(seed),
            outbox: Vec::new(),
            heap: BinaryHeap::new(),
            next_event: 0,
            next_op: 0,
        }
    }

    pub(super) fn add_node(&mut self, name: &str) -> NodeId {
        let node = NodeId(u32::try_from(self.nodes.len()).expect("fewer than 65,000 nodes"));
        assert!(
            node.0 < 65_000,
            "a simulation holds fewer than 65,000 nodes"
        );
        self.nodes.push(Node {
            name: name.to_owned(),
            disk: Disk::new(),
            powered: true,
            boots: 1,
            mapped: BTreeMap::new(),
            handles: BTreeMap::new(),
            locks: BTreeMap::new(),
            next_handle: 3,
            next_port: 32_768 + self.rng.below(10_000) as u16,
        });
        node
    }

    pub(super) fn add_shard(&mut self, node: NodeId, index: u32, ring_buffers: u16) -> ShardKey {
        self.shards.push(Shard {
            node,
            index,
            alive: true,
            clock: self.now,
            completions: Vec::new(),
            slots: BTreeMap::new(),
            ring: vec![0; usize::from(ring_buffers) * RING_BUFFER].into_boxed_slice(),
            ring_free: (0..ring_buffers).collect(),
        });
        (self.shards.len() - 1) as ShardKey
    }

    pub(super) fn node(&mut self, node: NodeId) -> &mut Node {
        &mut self.nodes[node.0 as usize]
    }

    pub(super) fn shard(&mut self, shard: ShardKey) -> &mut Shard {
        &mut self.shards[shard as usize]
    }

    pub(super) fn node_of(&self, shard: ShardKey) -> NodeId {
        self.shards[shard as usize].node
    }

    pub(super) fn schedule(&mut self, at: Nanos, event: Event) {
        let key = (at.max(self.now), self.rng.next_u64(), self.next_event);
        self.next_event += 1;
        self.heap.push(Reverse(Scheduled { key, event }));
    }

    /// The event happens after a wait drawn from `range`, counted from `from`.
    pub(super) fn schedule_within(&mut self, from: Nanos, range: &Range<u64>, event: Event) {
        let wait = within(&mut self.rng, range);
        self.schedule(Nanos(from.0.saturating_add(wait)), event);
    }

    pub(super) fn next_event_at(&self) -> Option<Nanos> {
        self.heap.peek().map(|Reverse(scheduled)| scheduled.key.0)
    }

    pub(super) fn pop_event(&mut self) -> Option<Event> {
        let Reverse(scheduled) = self.heap.pop()?;
        self.now = scheduled.key.0;
        Some(scheduled.event)
    }

    /// Everything but [`Event::Control`], which is the caller's.
    pub(super) fn happen(&mut self, event: Event) {
        match event {
            Event::Disk(op) => self.disk_done(op),
            Event::Fs(call) => self.fs_done(*call),
            Event::Poke(socket) => self.poke(socket),
            Event::Signal(node, event) => self.poke_event(node, event),
            Event::Start(op) => self.start(op),
            Event::End(op, result) => self.finish(op, result),
            Event::Cancel(op) => self.cancel_arrives(op),
            Event::Notify(op) => self.notify(op),
            Event::Wire(socket) => self.wire_arrives(socket),
            Event::Syn(op) => self.syn_arrives(op),
            Event::ConnectTimeout(op) => self.connect_times_out(op),
            Event::Datagram(packet) => self.datagram_arrives(*packet),
            Event::Control(_) => {}
        }
    }

    pub(super) fn add_flight(&mut self, flight: Flight) -> OpKey {
        let op = self.next_op;
        self.next_op += 1;
        let slot = flight.slot;
        let former = self.shard(flight.shard).slots.insert(slot, op);
        assert!(
            former.is_none(),
            "slot {slot} was reused before its op's last completion"
        );
        self.flights.insert(op, flight);
        op
    }

    /// Posts a completion after which another follows.
    pub(super) fn post_more(&mut self, op: OpKey, done: Answer) {
        self.post(op, done, true);
    }

    /// Posts an op's last completion (of all parts) and forgets the op.
    pub(super) fn finish(&mut self, op: OpKey, result: i32) {
        self.finish_with(
            op,
            Answer {
                result,
                ..Answer::default()
            },
        );
    }

    pub(super) fn finish_with(&mut self, op: OpKey, done: Answer) {
        self.post(op, done, false);
        let Some(flight) = self.flights.remove(&op) else {
            return;
        };
        self.shard(flight.shard).slots.remove(&flight.slot);
        if let Target::Socket(socket) = flight.target {
            self.op_left(socket, op);
        }
    }

    fn post(&mut self, op: OpKey, done: Answer, more: bool) {
        let Some(flight) = self.flights.get(&op) else {
            return;
        };
        let shard = &mut self.shards[flight.shard as usize];
        shard.completions.push(Completion {
            slot: flight.slot,
            part: done.part,
            result: done.result,
            more: more && !done.ends_part,
            notification: done.notification,
            buffer: done.buffer,
        });
        self.trace.record(Record {
            at: self.now,
            node: shard.node.0,
            shard: shard.index,
            kind: flight.kind(),
            result: i64::from(done.result),
            bytes: done.digest,
        });
    }

    /// Something that happened to a node and not to an op.
    pub(super) fn note(&mut self, node: NodeId, kind: &'static str, result: i64) {
        let at = self.now;
        self.trace.record(Record {
            at,
            node: node.0,
            shard: u32::MAX,
            kind,
            result,
            bytes: 0,
        });
    }

    /// Ends all ops of the node's shards: half of the disk writes take effect in full, of the
    /// others none or a part. Their slots get their last completions.
    pub(super) fn settle_ops(&mut self, node: NodeId, tear: Tear) {
        let ops: Vec<OpKey> = self
            .flights
            .iter()
            .filter(|(_, flight)| self.shards[flight.shard as usize].node == node)
            .map(|(op, _)| *op)
            .collect();
        for op in ops {
            self.settle_disk(op, tear);
            self.answer_cancelled(op);
        }
    }

    /// Marks the node's shards dead: they are not run again, and their ops end at once.
    pub(super) fn kill_shards(&mut self, node: NodeId) {
        for shard in self.shards.iter_mut().filter(|shard| shard.node == node) {
            shard.alive = false;
        }
    }

    pub(super) fn open_inodes(&self, node: NodeId) -> Vec<Inode> {
        let handles = self.nodes[node.0 as usize].handles.values();
        let mut open: Vec<Inode> = handles
            .filter_map(|handle| match handle {
                Handle::File { inode, .. } => Some(*inode),
                _ => None,
            })
            .collect();
        open.extend(
            self.flights
                .values()
                .filter_map(|flight| match flight.target {
                    Target::File { inode, .. } if self.node_of(flight.shard) == node => Some(inode),
                    _ => None,
                }),
        );
        open
    }

    /// What a failed run shows.
    pub(super) fn dump(&self) -> String {
        use std::fmt::Write;
        let mut out = format!("seed {}, at {}\n", self.seed, self.now);
        for node in &self.nodes {
            let _ = writeln!(
                out,
                "node {} ({}): {} handles, {} files",
                node.name,
                if node.powered { "on" } else { "off" },
                node.handles.len(),
                node.disk.files().len()
            );
        }
        for (key, shard) in self
            .shards
            .iter()
            .enumerate()
            .filter(|(_, shard)| shard.alive)
        {
            let _ = writeln!(
                out,
                "shard {} of node {}: clock {}, {} completions unread",
                shard.index,
                shard.node.0,
                shard.clock,
                shard.completions.len()
            );
            for flight in self
                .flights
                .values()
                .filter(|f| f.shard as usize == key)
                .take(32)
            {
                let _ = writeln!(
                    out,
                    "  slot {}: {} {:?}",
                    flight.slot,
                    flight.kind(),
                    flight.target
                );
            }
        }
        out + &self.trace.to_string()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the simulation's seed was {}", self.seed);
        }
    }
}

/// A completion's content.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answer {
    pub(super) result: i32,
    pub(super) part: Part,
    pub(super) notification: bool,
    pub(super) buffer: Option<u16>,
    /// The part has no further completion, but the op has another part.
    pub(super) ends_part: bool,
    pub(super) digest: u64,
}

impl Default for Answer {
    fn default() -> Answer {
        Answer {
            result: 0,
            part: Part::Main,
            notification: false,
            buffer: None,
            ends_part: false,
            digest: 0,
        }
    }
}
