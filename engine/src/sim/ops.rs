//! Ops of files and eventfds in the world, and how any op is submitted and cancelled. Sockets are in
//! [`super::net`], names in [`super::requests`].

use super::disk::{Errno, Inode, Ordered, SECTOR};
use super::memory::{Flight, Target};
use super::trace::digest;
use super::world::{Answer, Event, Handle, OpKey, ShardKey, World};
use super::{NodeId, Tear};
use crate::backend::{Completion, Op, Part, RawHandle, SlotId};

/// A result from outside the kernel's range of errnos.
fn negated(errno: Errno) -> i32 {
    -errno
}

impl World {
    pub(super) fn submit(&mut self, shard: ShardKey, slot: SlotId, op: Op) {
        if !self.shard(shard).alive {
            self.answer_dead(shard, slot, &op);
            return;
        }
        let (handle, from) = (handle_of(&op), self.shard(shard).clock);
        let target = self.resolve(shard, handle);
        // SAFETY: the backend's caller submits ops whose memory is valid until their last
        // completion, and this one has had none.
        let flight = unsafe { Flight::new(shard, slot, op, target) };
        let key = self.add_flight(flight);
        let refused = self.refusal(key);
        let call = self.config.call_ns.clone();
        match refused {
            Some(errno) => self.schedule_within(from, &call, Event::End(key, negated(errno))),
            None => self.launch(key, from),
        }
    }

    /// A dead shard's ops end at once and without effect, so that its core can let go.
    fn answer_dead(&mut self, shard: ShardKey, slot: SlotId, op: &Op) {
        let result = if matches!(op, Op::Close { .. }) {
            0
        } else {
            -libc::ECANCELED
        };
        let done = Completion {
            slot,
            part: Part::Main,
            result,
            more: false,
            notification: false,
            buffer: None,
        };
        let parts = op.parts();
        let completions = &mut self.shard(shard).completions;
        completions.push(done);
        if parts == 2 {
            completions.push(Completion {
                part: Part::Sync,
                ..done
            });
        }
    }

    fn resolve(&mut self, shard: ShardKey, handle: RawHandle) -> Target {
        let node = self.node_of(shard);
        match self.node(node).handles.get(&handle) {
            Some(Handle::File {
                inode,
                direct,
                write,
            }) => Target::File {
                inode: *inode,
                direct: *direct,
                write: *write,
            },
            Some(Handle::Socket(socket)) => Target::Socket(*socket),
            Some(Handle::Event { .. }) => Target::Event(handle),
            None => Target::None,
        }
    }

    /// What the kernel refuses before it starts.
    fn refusal(&self, key: OpKey) -> Option<Errno> {
        let flight = &self.flights[&key];
        let Target::File { direct, write, .. } = flight.target else {
            return match (flight.op(), flight.target) {
                (_, Target::None) => Some(libc::EBADF),
                (Op::Close { .. }, _)
                | (
                    Op::ReadEvent { .. } | Op::WatchEvent { .. } | Op::AddEvent { .. },
                    Target::Event(_),
                ) => None,
                (op, Target::Socket(_)) if op.disk_bytes().is_none() => None,
                _ => Some(libc::EINVAL),
            };
        };
        let writes = !matches!(
            flight.op(),
            Op::Read { .. } | Op::ReadVectored { .. } | Op::Sync { .. } | Op::Close { .. }
        );
        let offset = match flight.op() {
            Op::Read { offset, .. }
            | Op::Write { offset, .. }
            | Op::WriteThenSync { offset, .. }
            | Op::ReadVectored { offset, .. }
            | Op::WriteVectored { offset, .. } => *offset,
            Op::Allocate { len, .. } | Op::Discard { len, .. } if *len == 0 => {
                return Some(libc::EINVAL);
            }
            Op::Sync { .. } | Op::Allocate { .. } | Op::Discard { .. } | Op::Close { .. } => 0,
            _ => return Some(libc::ENOTSOCK),
        };
        if writes && !write {
            return Some(libc::EBADF);
        }
        let align = self.config.direct_align;
        let aligned = offset % align == 0 && flight.aligned(align as usize);
        (direct && !aligned).then_some(libc::EINVAL)
    }

    fn launch(&mut self, key: OpKey, from: crate::time::Nanos) {
        let flight = &self.flights[&key];
        let call = self.config.call_ns.clone();
        if flight.op().disk_bytes().is_some() {
            if matches!(flight.op(), Op::Sync { .. }) {
                self.begin_sync(key);
            }
            self.schedule_disk(key, from);
        } else if let (Op::AddEvent { count, .. }, Target::Event(event)) =
            (flight.op(), flight.target)
        {
            let (count, node) = (**count, self.node_of(flight.shard));
            self.add_to_event(node, event, count);
            self.schedule_within(from, &call, Event::Signal(node, event));
            self.schedule_within(from, &call, Event::End(key, 8));
        } else if let (Op::ReadEvent { .. } | Op::WatchEvent { .. }, Target::Event(event)) =
            (flight.op(), flight.target)
        {
            let node = self.node_of(flight.shard);
            if let Some(Handle::Event { readers, .. }) = self.node(node).handles.get_mut(&event) {
                readers.push_back(key);
            }
            self.schedule_within(from, &call, Event::Signal(node, event));
        } else if matches!(flight.op(), Op::Close { .. }) {
            self.schedule_within(from, &call, Event::Start(key));
        } else {
            self.launch_socket(key, from);
        }
    }

    fn schedule_disk(&mut self, key: OpKey, from: crate::time::Nanos) {
        let flight = &self.flights[&key];
        let range = match flight.op() {
            Op::Read { .. } | Op::ReadVectored { .. } => &self.config.disk_read_ns,
            Op::Sync { .. } => &self.config.disk_sync_ns,
            _ if flight.syncing => &self.config.disk_sync_ns,
            _ => &self.config.disk_write_ns,
        };
        let slow = self.nodes[self.node_of(flight.shard).0 as usize]
            .disk
            .slow_factor;
        let range = range.start.saturating_mul(slow)..range.end.saturating_mul(slow);
        self.schedule_within(from, &range, Event::Disk(key));
    }

    fn begin_sync(&mut self, key: OpKey) {
        let Some(flight) = self.flights.get_mut(&key) else {
            return;
        };
        let Target::File { inode, .. } = flight.target else {
            return;
        };
        let node = self.shards[flight.shard as usize].node;
        let disk = &mut self.nodes[node.0 as usize].disk;
        disk.begin_sync(inode);
        flight.upto = disk.seq();
        flight.syncing = true;
    }

    /// A disk op takes effect.
    pub(super) fn disk_done(&mut self, key: OpKey) {
        let Some(flight) = self.flights.get(&key) else {
            return;
        };
        let Target::File { inode, .. } = flight.target else {
            return;
        };
        let node = self.node_of(flight.shard);
        if flight.syncing {
            let result = self.finish_sync(key, node, inode);
            let part = if flight_is_pair(&self.flights[&key]) {
                Part::Sync
            } else {
                Part::Main
            };
            self.finish_with(
                key,
                Answer {
                    result,
                    part,
                    ..Answer::default()
                },
            );
            return;
        }
        match flight.op() {
            Op::Read { offset, .. } | Op::ReadVectored { offset, .. } => {
                let offset = *offset;
                self.finish_read(key, node, inode, offset);
            }
            Op::Write { offset, dsync, .. } | Op::WriteVectored { offset, dsync, .. } => {
                let (offset, dsync) = (*offset, *dsync);
                let mut done = self.write(key, node, inode, offset);
                if dsync && done.result >= 0 {
                    done.result = self.flush_written(node, inode, offset, done.result);
                }
                self.finish_with(key, done);
            }
            Op::WriteThenSync { offset, .. } => {
                let offset = *offset;
                self.finish_write_half(key, node, inode, offset);
            }
            Op::Allocate { offset, len, .. } => {
                let (offset, len) = (*offset, *len);
                let done = self.node(node).disk.allocate(inode, offset, len);
                self.finish(key, done.map_or_else(negated, |()| 0));
            }
            Op::Discard { offset, len, .. } => {
                let (offset, len) = (*offset, *len);
                let done = self.node(node).disk.punch(inode, offset, len);
                self.finish(key, done.map_or_else(negated, |()| 0));
            }
            _ => {}
        }
    }

    /// The flush of a write with dsync; the write's result, or EIO.
    fn flush_written(&mut self, node: NodeId, inode: Inode, offset: u64, written: i32) -> i32 {
        let by_rate = self.rng.once_in(self.config.sync_fails_one_in);
        let (disk, rng) = (&mut self.nodes[node.0 as usize].disk, &mut self.rng);
        let len = written as u64;
        if by_rate || Ordered::take(&mut disk.ordered.syncs) {
            disk.fail_sync_range(inode, offset, len, rng);
            return -libc::EIO;
        }
        disk.sync_range(inode, offset, len);
        written
    }

    /// The write of a linked pair is done; its sync starts when all bytes were written.
    fn finish_write_half(&mut self, key: OpKey, node: NodeId, inode: Inode, offset: u64) {
        let len = self.flights[&key].capacity();
        let done = self.write(key, node, inode, offset);
        let main = Answer {
            ends_part: true,
            ..done
        };
        self.post_more(key, main);
        if done.result == len as i32 {
            self.begin_sync(key);
            self.schedule_disk(key, self.now);
        } else {
            let sync = Answer {
                result: -libc::ECANCELED,
                part: Part::Sync,
                ..Answer::default()
            };
            self.finish_with(key, sync);
        }
    }

    fn finish_sync(&mut self, key: OpKey, node: NodeId, inode: Inode) -> i32 {
        let upto = self.flights[&key].upto;
        let by_rate = self.rng.once_in(self.config.sync_fails_one_in);
        let disk = &mut self.nodes[node.0 as usize].disk;
        disk.end_sync(inode);
        if by_rate || Ordered::take(&mut disk.ordered.syncs) {
            disk.fail_sync(inode, upto, &mut self.rng);
            return -libc::EIO;
        }
        disk.sync(inode, upto);
        0
    }

    fn finish_read(&mut self, key: OpKey, node: NodeId, inode: Inode, offset: u64) {
        let by_rate = self.rng.once_in(self.config.read_fails_one_in);
        let disk = &mut self.nodes[node.0 as usize].disk;
        if by_rate || Ordered::take(&mut disk.ordered.reads) {
            self.finish(key, -libc::EIO);
            return;
        }
        let flight = &self.flights[&key];
        let bytes = disk.read(inode, offset, flight.capacity() as u64);
        flight.scatter(&bytes);
        let done = Answer {
            result: bytes.len() as i32,
            digest: digest(&bytes),
            ..Answer::default()
        };
        self.finish_with(key, done);
    }

    /// Makes an op's bytes visible, unless a fault says otherwise.
    fn write(&mut self, key: OpKey, node: NodeId, inode: Inode, offset: u64) -> Answer {
        let mut bytes = self.flights[&key].gather(usize::MAX);
        if !bytes.is_empty() && self.rng.once_in(self.config.short_writes_one_in) {
            let short = self.rng.below(bytes.len() as u64 / SECTOR + 1) * SECTOR;
            bytes.truncate(short as usize);
        }
        let by_rate = self.rng.once_in(self.config.write_fails_one_in);
        let (disk, rng) = (&mut self.nodes[node.0 as usize].disk, &mut self.rng);
        let fails = by_rate || Ordered::take(&mut disk.ordered.writes);
        let room = disk.fits(inode, offset, bytes.len() as u64);
        if room > 0 {
            bytes.truncate(room as usize);
        }
        let done = disk.write(inode, offset, &bytes, || !fails || rng.once_in(2));
        let result = match done {
            Err(errno) => negated(errno),
            Ok(()) if fails => -libc::EIO,
            Ok(()) => bytes.len() as i32,
        };
        Answer {
            result,
            digest: digest(&bytes),
            ..Answer::default()
        }
    }

    /// The power or the process ends under a disk write: it happened in full, in part or not.
    pub(super) fn settle_disk(&mut self, key: OpKey, tear: Tear) {
        let Some(flight) = self.flights.get(&key) else {
            return;
        };
        let Target::File { inode, .. } = flight.target else {
            return;
        };
        let node = self.shards[flight.shard as usize].node;
        let (disk, rng) = (&mut self.nodes[node.0 as usize].disk, &mut self.rng);
        if flight.syncing {
            disk.end_sync(inode);
            return;
        }
        let offset = match flight.op() {
            Op::Write { offset, .. }
            | Op::WriteThenSync { offset, .. }
            | Op::WriteVectored { offset, .. } => *offset,
            _ => return,
        };
        let whole = rng.once_in(2);
        if whole || tear == Tear::Sectors {
            let bytes = flight.gather(usize::MAX);
            // A disk that is full keeps nothing of it, which is one of the allowed ends.
            let _ = disk.write(inode, offset, &bytes, || whole || rng.once_in(2));
        }
    }

    /// Posts the last completion of each part that is still owed.
    pub(super) fn answer_cancelled(&mut self, key: OpKey) {
        let Some(flight) = self.flights.get(&key) else {
            return;
        };
        let result = -libc::ECANCELED;
        if !flight_is_pair(flight) {
            self.finish(key, result);
            return;
        }
        if !flight.syncing {
            self.post_more(
                key,
                Answer {
                    result,
                    ends_part: true,
                    ..Answer::default()
                },
            );
        }
        self.finish_with(
            key,
            Answer {
                result,
                part: Part::Sync,
                ..Answer::default()
            },
        );
    }

    pub(super) fn cancel(&mut self, shard: ShardKey, slot: SlotId) {
        let state = self.shard(shard);
        let (from, op) = (state.clock, state.slots.get(&slot).copied());
        if let Some(op) = op {
            let call = self.config.call_ns.clone();
            self.schedule_within(from, &call, Event::Cancel(op));
        }
    }

    pub(super) fn cancel_arrives(&mut self, key: OpKey) {
        let Some(flight) = self.flights.get(&key) else {
            return;
        };
        match flight.target {
            // Half of the time the device already works on it.
            Target::File { .. } => {
                if !matches!(flight.op(), Op::Close { .. }) && self.rng.once_in(2) {
                    self.settle_disk(key, Tear::Sectors);
                    self.answer_cancelled(key);
                }
            }
            Target::Event(event) => {
                let node = self.node_of(flight.shard);
                if !matches!(flight.op(), Op::Close { .. }) {
                    let handles = &mut self.node(node).handles;
                    if let Some(Handle::Event { readers, .. }) = handles.get_mut(&event) {
                        readers.retain(|reader| *reader != key);
                    }
                    self.finish(key, -libc::ECANCELED);
                }
            }
            Target::Socket(socket) => self.cancel_socket(key, socket),
            Target::None => {}
        }
    }

    /// An op that does not wait takes effect.
    pub(super) fn start(&mut self, key: OpKey) {
        let Some(flight) = self.flights.get(&key) else {
            return;
        };
        let node = self.node_of(flight.shard);
        match (flight.op(), flight.target) {
            (Op::Close { handle }, _) => {
                let handle = *handle;
                let known = self.close(node, handle);
                self.finish(key, if known { 0 } else { -libc::EBADF });
            }
            (Op::Shutdown { write_only, .. }, Target::Socket(socket)) => {
                let write_only = *write_only;
                let result = self.shutdown(socket, write_only);
                self.finish(key, result);
            }
            _ => {}
        }
    }

    /// Takes a handle from its node; false when there is none.
    pub(super) fn close(&mut self, node: NodeId, handle: RawHandle) -> bool {
        match self.node(node).handles.remove(&handle) {
            None => return false,
            Some(Handle::Socket(socket)) => self.close_socket(socket),
            Some(Handle::File { inode, .. }) => {
                self.node(node).locks.retain(|_, holder| *holder != handle);
                let open = self.open_inodes(node);
                if !open.contains(&inode) {
                    self.node(node).disk.collect(&open);
                }
            }
            Some(Handle::Event { .. }) => {}
        }
        true
    }

    /// False when there is no such eventfd. The kernel's counter stops one short of the largest
    /// number.
    pub(super) fn add_to_event(&mut self, node: NodeId, event: RawHandle, added: u64) -> bool {
        let Some(Handle::Event { count, .. }) = self.node(node).handles.get_mut(&event) else {
            return false;
        };
        *count = count.saturating_add(added).min(u64::MAX - 1);
        true
    }

    pub(super) fn poke_event(&mut self, node: NodeId, event: RawHandle) {
        let handles = &mut self.node(node).handles;
        let Some(Handle::Event { count, readers }) = handles.get_mut(&event) else {
            return;
        };
        if *count == 0 {
            return;
        }
        if let Some(key) = readers.pop_front() {
            let told = std::mem::take(count);
            if let Some(flight) = self.flights.get(&key) {
                flight.deliver_count(told);
            }
            self.finish_with(
                key,
                Answer {
                    result: 8,
                    digest: told,
                    ..Answer::default()
                },
            );
        }
    }
}

fn flight_is_pair(flight: &Flight) -> bool {
    matches!(flight.op(), Op::WriteThenSync { .. })
}

fn handle_of(op: &Op) -> RawHandle {
    match op {
        Op::Read { file, .. }
        | Op::Write { file, .. }
        | Op::WriteThenSync { file, .. }
        | Op::ReadVectored { file, .. }
        | Op::WriteVectored { file, .. }
        | Op::Sync { file }
        | Op::Allocate { file, .. }
        | Op::Discard { file, .. } => *file,
        Op::Accept { listener } => *listener,
        Op::Connect { socket, .. }
        | Op::Recv { socket, .. }
        | Op::RecvRing { socket, .. }
        | Op::Send { socket, .. }
        | Op::SendVectored { socket, .. }
        | Op::RecvFrom { socket, .. }
        | Op::SendTo { socket, .. }
        | Op::AwaitRoom { socket }
        | Op::Shutdown { socket, .. } => *socket,
        Op::ReadEvent { event, .. } | Op::WatchEvent { event } | Op::AddEvent { event, .. } => {
            *event
        }
        Op::Close { handle } => *handle,
    }
}
