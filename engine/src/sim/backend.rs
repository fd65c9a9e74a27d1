//! One shard's view of the world, as its [`IoBackend`]. It holds no state of its own but the way
//! back to the world; nothing here sleeps or wakes.

use std::cell::RefCell;
use std::io;
use std::ops::Range;
use std::rc::Rc;

use futures_channel::oneshot;

use super::NodeId;
use super::disk::Errno;
use super::world::{Event, Handle, RING_BUFFER, ShardKey, World, within};
use crate::backend::{
    Addr, BindOptions, Completion, FsOp, FsReply, IoBackend, Op, RawHandle, SlotId, SocketKind,
    Wait,
};
use crate::guest::GuestMem;
use crate::pages::{PageStore, Pages};
use crate::time::Nanos;

/// What the wall clock shows when a simulation starts: 2026-01-01T00:00:00Z, in nanoseconds.
const EPOCH_NS: u64 = 1_767_225_600_000_000_000;

/// The simulated kernel of one shard.
pub(crate) struct SimBackend {
    world: Rc<RefCell<World>>,
    shard: ShardKey,
}

fn kernel(errno: Errno) -> io::Error {
    io::Error::from_raw_os_error(errno)
}

impl SimBackend {
    pub(super) fn new(world: &Rc<RefCell<World>>, shard: ShardKey) -> SimBackend {
        SimBackend {
            world: Rc::clone(world),
            shard,
        }
    }

    fn alive(&self) -> io::Result<NodeId> {
        let world = self.world.borrow();
        let shard = &world.shards[self.shard as usize];
        if shard.alive {
            Ok(shard.node)
        } else {
            Err(kernel(libc::EBADF))
        }
    }
}

impl IoBackend for SimBackend {
    fn now(&self) -> Nanos {
        self.world.borrow_mut().shard(self.shard).clock
    }

    fn after_poll(&mut self) -> Nanos {
        let mut world = self.world.borrow_mut();
        let world = &mut *world;
        let cost = within(&mut world.rng, &world.config.poll_ns);
        let clock = &mut world.shards[self.shard as usize].clock;
        clock.0 += cost;
        *clock
    }

    fn wall_clock(&self) -> u64 {
        EPOCH_NS + self.now().0
    }

    fn fill_secret(&mut self, into: &mut [u8]) -> io::Result<()> {
        self.alive()?;
        let mut world = self.world.borrow_mut();
        for bytes in into.chunks_mut(8) {
            let random = world.rng.next_u64().to_le_bytes();
            bytes.copy_from_slice(&random[..bytes.len()]);
        }
        Ok(())
    }

    fn submit(&mut self, slot: SlotId, op: Op) {
        self.world.borrow_mut().submit(self.shard, slot, op);
    }

    fn cancel(&mut self, slot: SlotId) {
        self.world.borrow_mut().cancel(self.shard, slot);
    }

    fn wants_enter(&self) -> bool {
        false
    }

    fn enter(&mut self, _wait: Wait) -> io::Result<()> {
        Ok(())
    }

    fn reap(&mut self, out: &mut Vec<Completion>) {
        out.append(&mut self.world.borrow_mut().shard(self.shard).completions);
    }

    fn fs(&mut self, op: FsOp) -> oneshot::Receiver<io::Result<FsReply>> {
        let (sender, receiver) = oneshot::channel();
        self.world.borrow_mut().submit_fs(self.shard, op, sender);
        receiver
    }

    fn adopt_file(&mut self, _file: RawHandle) -> bool {
        false
    }

    fn map_file(&mut self, file: RawHandle, len: usize) -> io::Result<GuestMem> {
        let node = self.alive()?;
        let mut world = self.world.borrow_mut();
        world.map_file(node, file, len).map_err(kernel)
    }

    fn socket(&mut self, kind: SocketKind, addr: &Addr) -> io::Result<RawHandle> {
        self.alive()?;
        self.world
            .borrow_mut()
            .make_socket(self.shard, kind, addr)
            .map_err(kernel)
    }

    fn bind(&mut self, socket: RawHandle, addr: &Addr, options: BindOptions) -> io::Result<()> {
        self.alive()?;
        self.world
            .borrow_mut()
            .bind(self.shard, socket, addr, options)
            .map_err(kernel)
    }

    fn local_addr(&self, socket: RawHandle) -> io::Result<Addr> {
        self.world
            .borrow()
            .local_addr(self.shard, socket)
            .map_err(kernel)
    }

    fn peer_addr(&self, socket: RawHandle) -> io::Result<Addr> {
        self.world
            .borrow()
            .peer_addr(self.shard, socket)
            .map_err(kernel)
    }

    fn set_nodelay(&mut self, _socket: RawHandle) -> io::Result<()> {
        Ok(())
    }

    fn seal_pages(&mut self, bytes: &[u8]) -> io::Result<PageStore> {
        self.alive()?;
        let mut world = self.world.borrow_mut();
        let world = &mut *world;
        if world.rng.once_in(world.config.page_seals_fail_one_in) {
            return Err(kernel(libc::ENOMEM));
        }
        Ok(PageStore::Heap(bytes.into()))
    }

    fn send_pages(
        &mut self,
        socket: RawHandle,
        pages: &Pages,
        range: Range<usize>,
    ) -> io::Result<usize> {
        self.alive()?;
        let PageStore::Heap(bytes) = pages.store() else {
            return Err(kernel(libc::EINVAL));
        };
        let sent = self
            .world
            .borrow_mut()
            .send_now(self.shard, socket, &bytes[range]);
        sent.map_err(kernel)
    }

    fn event(&mut self) -> io::Result<RawHandle> {
        let node = self.alive()?;
        let handle = Handle::Event {
            count: 0,
            readers: std::collections::VecDeque::new(),
        };
        Ok(self.world.borrow_mut().node(node).add_handle(handle))
    }

    fn signal_event(&mut self, event: RawHandle, count: u64) -> io::Result<()> {
        let node = self.alive()?;
        let mut world = self.world.borrow_mut();
        let world = &mut *world;
        if !world.add_to_event(node, event, count) {
            return Err(kernel(libc::EBADF));
        }
        let (from, call) = (world.shard(self.shard).clock, world.config.call_ns.clone());
        world.schedule_within(from, &call, Event::Signal(node, event));
        Ok(())
    }

    fn ring_buffer(&self, buffer: u16) -> *const u8 {
        let world = self.world.borrow();
        world.shards[self.shard as usize].ring[usize::from(buffer) * RING_BUFFER..].as_ptr()
    }

    fn recycle_ring_buffer(&mut self, buffer: u16) {
        let mut world = self.world.borrow_mut();
        let free = &mut world.shard(self.shard).ring_free;
        assert!(
            !free.contains(&buffer),
            "receive buffer {buffer} was given back twice"
        );
        free.push_back(buffer);
    }

    fn pick(&mut self, bound: u32) -> u32 {
        self.world.borrow_mut().rng.below(u64::from(bound)) as u32
    }
}
