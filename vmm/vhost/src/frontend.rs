//! One front end's device on the shard: what its messages have set, and the rings at work.
//!
//! A ring works from when it has its size, its place and its kick and is enabled, until it is
//! disabled or its base is taken; then, and before anything that it stands on changes, it is drained:
//! no request is in progress after. Only its call, the write cache and the log change under it.

use std::cell::RefCell;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use engine::{EventFd, GuestMem, SchedGroup, Task};
use shards::block::BlockDevice;

use crate::blk::{self, feature};
use crate::cache::{Cache, Durability};
use crate::command::{Answer, Command, InflightShape, Refusal, SharedMemory};
use crate::dirty::DirtyLog;
use crate::inflight::{Inflight, Marked, marks_bytes};
use crate::memory::{Memory, RegionSpec};
use crate::queue::{Polling, Queue, Session, Shared, Stopped};
use crate::ring::{Base, Ring, RingAddr, RingFeatures, RingSpec, SIZE_MAX};
use crate::stats::{Counters, add};

/// Most bytes of a log: one bit for each page of 32 TiB.
const LOG_BYTES_MAX: u64 = 1 << 30;

/// A ring as it was set up.
#[derive(Default)]
struct Vring {
    size: u16,
    addr: Option<RingAddr>,
    base: Base,
    /// A kick was set: the ring is started. It may be one without a descriptor.
    started: bool,
    enabled: bool,
    kick: Option<Rc<EventFd>>,
    call: Option<Rc<EventFd>>,
    error: Option<Rc<EventFd>>,
    /// The driver broke it; it stays so until its base is set again.
    faulty: bool,
    running: Option<Running>,
}

struct Running {
    shared: Rc<Shared>,
    task: Task<Stopped>,
}

/// See the module's head.
pub(crate) struct Frontend<D> {
    device: Rc<D>,
    session: Rc<Session>,
    group: SchedGroup,
    guest_bytes_max: u64,
    features: u64,
    status: u8,
    memory: Rc<Memory>,
    inflight: Option<(GuestMem, InflightShape)>,
    log: Option<Rc<DirtyLog>>,
    rings: Vec<Vring>,
}

/// How rings of an export work.
#[derive(Clone)]
pub(crate) struct Terms {
    pub(crate) name: Rc<str>,
    pub(crate) queues: u16,
    pub(crate) group: SchedGroup,
    pub(crate) polling: Polling,
    pub(crate) guest_bytes_max: u64,
    pub(crate) counters: Rc<Counters>,
    pub(crate) durability: Rc<Durability>,
}

impl<D: BlockDevice> Frontend<D> {
    pub(crate) fn new(device: Rc<D>, terms: &Terms) -> Frontend<D> {
        add(&terms.counters.connections, 1);
        Frontend {
            device,
            session: Rc::new(Session {
                counters: Rc::clone(&terms.counters),
                durability: Rc::clone(&terms.durability),
                log: RefCell::new(None),
                polling: terms.polling,
                name: Rc::clone(&terms.name),
            }),
            group: terms.group,
            guest_bytes_max: terms.guest_bytes_max,
            features: 0,
            status: 0,
            memory: Rc::default(),
            inflight: None,
            log: None,
            rings: (0..terms.queues).map(|_| Vring::default()).collect(),
        }
    }

    /// Does what one message asks for.
    ///
    /// # Errors
    /// Nothing has changed then, except that a ring may have been drained and started again.
    pub(crate) async fn handle(&mut self, command: Command) -> Result<Answer, Refusal> {
        let done = self.apply(command).await;
        if let Err(refusal) = &done {
            add(&self.session.counters.refusals, 1);
            let refusal: &dyn std::error::Error = refusal;
            let device = &*self.session.name;
            tracing::warn!(device, refusal, "a front end's message was refused");
        }
        done
    }

    async fn apply(&mut self, command: Command) -> Result<Answer, Refusal> {
        match command {
            Command::Features => return Ok(Answer::Number(self.offered())),
            Command::SetFeatures(features) => self.set_features(features).await?,
            Command::SetMemory(regions) => {
                let memory = Memory::map(regions, self.guest_bytes_max)?;
                self.remap(memory).await;
            }
            Command::AddRegion(region) => self.add_region(&region).await?,
            Command::RemoveRegion { guest, user, bytes } => {
                let memory = self.memory.without(guest, user, bytes)?;
                self.remap(memory).await;
            }
            Command::SetSize { queue, size } => self.set_size(queue, size).await?,
            Command::SetAddr { queue, addr } => self.set_addr(queue, addr).await?,
            Command::SetBase { queue, base } => {
                let ring = self.drained(queue).await?;
                (ring.base, ring.faulty) = (base, false);
                self.start(queue)?;
            }
            Command::TakeBase { queue } => {
                let ring = self.drained(queue).await?;
                (ring.started, ring.kick) = (false, None);
                return Ok(Answer::Number(u64::from(ring.base)));
            }
            Command::SetKick { queue, event } => {
                let ring = self.drained(queue).await?;
                (ring.started, ring.kick) = (true, event.map(adopt));
                self.start(queue)?;
            }
            Command::SetCall { queue, event } => self.set_call(queue, event)?,
            Command::SetError { queue, event } => {
                self.drained(queue).await?.error = event.map(adopt);
                self.start(queue)?;
            }
            Command::Enable { queue, enable } => {
                self.drained(queue).await?.enabled = enable;
                self.start(queue)?;
            }
            Command::Config { offset, len } => {
                return Ok(Answer::Bytes(self.config(offset, len)));
            }
            Command::SetConfig { offset, bytes } => self.set_config(offset, &bytes).await?,
            Command::SetInflight(memory, shape) => self.set_inflight(&memory, shape).await?,
            Command::SetLog(memory) => self.set_log(&memory)?,
            Command::Status => return Ok(Answer::Number(u64::from(self.status))),
            Command::SetStatus(status) => self.set_status(status).await?,
            Command::Reset => self.reset().await,
        }
        Ok(Answer::Done)
    }

    /// The front end is gone.
    pub(crate) async fn leave(mut self) {
        self.stop().await;
        self.session.durability.leave();
    }

    /// Drains all rings.
    async fn stop(&mut self) {
        for queue in 0..self.rings.len() as u32 {
            let _ = self.drained(queue).await;
        }
    }

    fn offered(&self) -> u64 {
        blk::features(&self.device.geometry())
    }

    async fn set_features(&mut self, features: u64) -> Result<(), Refusal> {
        let unknown = features & !self.offered();
        if unknown != 0 {
            return Err(Refusal::Features(unknown));
        }
        let changed = features ^ self.features;
        self.features = features;
        let agreed = |bit| features & bit != 0;
        let durability = &self.session.durability;
        durability.agree(agreed(feature::FLUSH), agreed(feature::CONFIG_WCE));
        // The log is switched on and off under rings at work.
        if changed & !feature::LOG_ALL != 0 {
            self.restart().await;
        }
        self.follow_log();
        Ok(())
    }

    fn set_log(&mut self, memory: &SharedMemory) -> Result<(), Refusal> {
        if memory.bytes > LOG_BYTES_MAX {
            return Err(Refusal::Not("a log of at most a gigabyte"));
        }
        let mapped = map(memory, memory.bytes)?;
        self.log = Some(Rc::new(DirtyLog::new(&mapped)?));
        self.follow_log();
        Ok(())
    }

    /// Rings log what they write while the front end wants it.
    fn follow_log(&self) {
        let wanted = self.features & feature::LOG_ALL != 0;
        let log = self.log.as_ref().filter(|_| wanted).map(Rc::clone);
        *self.session.log.borrow_mut() = log;
    }

    async fn add_region(&mut self, region: &RegionSpec) -> Result<(), Refusal> {
        let memory = self.memory.with(region, self.guest_bytes_max)?;
        self.remap(memory).await;
        Ok(())
    }

    /// Takes another table of memory. Rings that are no longer in it do not work.
    async fn remap(&mut self, memory: Memory) {
        self.stop().await;
        self.memory = Rc::new(memory);
        self.start_all();
    }

    async fn restart(&mut self) {
        self.stop().await;
        self.start_all();
    }

    fn start_all(&mut self) {
        for queue in 0..self.rings.len() as u32 {
            if let Err(refusal) = self.start(queue) {
                let (device, refusal) = (&*self.session.name, &refusal as &dyn std::error::Error);
                tracing::warn!(device, queue, refusal, "a ring does not work any more");
            }
        }
    }

    fn ring(&mut self, queue: u32) -> Result<&mut Vring, Refusal> {
        let queues = self.rings.len() as u16;
        let ring = self.rings.get_mut(queue as usize);
        ring.ok_or(Refusal::Queue { queue, queues })
    }

    /// The ring, with nothing in progress.
    async fn drained(&mut self, queue: u32) -> Result<&mut Vring, Refusal> {
        let ring = self.ring(queue)?;
        if let Some(Running { shared, task }) = ring.running.take() {
            shared.stop();
            let stopped = task.await;
            ring.base = stopped.base;
            ring.faulty = stopped.fault.is_some();
        }
        Ok(ring)
    }

    async fn set_size(&mut self, queue: u32, size: u32) -> Result<(), Refusal> {
        if size == 0 || size > u32::from(SIZE_MAX) {
            return Err(Refusal::Size { size });
        }
        self.drained(queue).await?.size = size as u16;
        self.start(queue)
    }

    async fn set_addr(&mut self, queue: u32, addr: RingAddr) -> Result<(), Refusal> {
        self.drained(queue).await?.addr = Some(addr);
        self.start(queue)
    }

    fn set_call(&mut self, queue: u32, event: Option<OwnedFd>) -> Result<(), Refusal> {
        let ring = self.ring(queue)?;
        ring.call = event.map(adopt);
        if let Some(running) = &ring.running {
            running.shared.set_call(ring.call.clone());
        }
        Ok(())
    }

    /// Starts a ring, when it has all that it needs.
    fn start(&mut self, queue: u32) -> Result<(), Refusal> {
        // Without the vhost-user features a ring is enabled from the start.
        let implied = self.features & feature::PROTOCOL == 0;
        let ring = self.ring(queue)?;
        let ready = ring.started && (ring.enabled || implied) && !ring.faulty;
        let (Some(addr), true, false) = (ring.addr, ready, ring.running.is_some()) else {
            return Ok(());
        };
        let (size, base, index) = (ring.size, ring.base, queue as u16);
        let packed = self.features & feature::RING_PACKED != 0;
        if size == 0 || !(packed || size.is_power_of_two()) {
            return Err(Refusal::Size {
                size: u32::from(size),
            });
        }
        self.settle_cache();
        let inflight = self.marks(index, size)?;
        let ring = Ring::new(self.spec(addr, size, base))?;
        self.spawn(index, ring, inflight)
    }

    fn spec(&self, addr: RingAddr, size: u16, base: Base) -> RingSpec {
        RingSpec {
            memory: Rc::clone(&self.memory),
            size,
            addr,
            features: RingFeatures {
                event_idx: self.features & feature::EVENT_IDX != 0,
                indirect: self.features & feature::INDIRECT_DESC != 0,
                packed: self.features & feature::RING_PACKED != 0,
            },
            base,
            marked: self.inflight.is_some(),
        }
    }

    /// Before any ring works: a driver that was at work before us may have chosen, and a new one has not.
    fn settle_cache(&self) {
        if !self.session.durability.is_unknown() {
            return;
        }
        let is_new = |ring: &Vring| match ring.addr {
            Some(addr) if ring.size > 0 => {
                let found = Ring::new(self.spec(addr, ring.size, ring.base));
                found.is_ok_and(|ring| ring.is_untouched())
            }
            _ => true,
        };
        if self.rings.iter().all(is_new) {
            self.choose(Cache::WriteBack);
        } else {
            let device = &*self.session.name;
            tracing::info!(
                device,
                "it is not known whether the driver flushes: writes are durable"
            );
            self.choose(Cache::WriteThrough);
        }
    }

    fn marks(&self, queue: u16, size: u16) -> Result<Option<Inflight>, Refusal> {
        let Some((memory, shape)) = &self.inflight else {
            return Ok(None);
        };
        if queue >= shape.queues {
            let queues = shape.queues;
            let queue = u32::from(queue);
            return Err(Refusal::Queue { queue, queues });
        }
        let of = Marked {
            queue,
            size,
            packed: self.features & feature::RING_PACKED != 0,
        };
        Ok(Some(Inflight::open(memory, shape.size, of)?))
    }

    fn spawn(&mut self, index: u16, ring: Ring, inflight: Option<Inflight>) -> Result<(), Refusal> {
        let (device, session, group) = (
            Rc::clone(&self.device),
            Rc::clone(&self.session),
            self.group,
        );
        let vring = self.ring(u32::from(index))?;
        let shared = Rc::new(Shared::new(vring.call.clone()));
        let queue = Queue {
            index,
            ring,
            inflight,
            kick: vring.kick.clone(),
            error: vring.error.clone(),
            shared: Rc::clone(&shared),
            session,
            device,
        };
        let task = engine::try_spawn_local(group, queue.run());
        let task = task.map_err(|_| Refusal::Not("the shard has too many tasks"))?;
        vring.running = Some(Running { shared, task });
        Ok(())
    }

    /// The configuration space. Some front ends ask for it at 0, some where PCI has it.
    fn config(&self, offset: u32, len: u32) -> Vec<u8> {
        const PCI: u32 = 0x100;
        let from = offset.checked_sub(PCI).unwrap_or(offset) as usize;
        let writeback = self.session.durability.says_writeback();
        let space = blk::config(&self.device.geometry(), self.rings.len() as u16, writeback);
        let rest = space.get(from..).unwrap_or_default();
        let bytes = rest.iter().copied().chain(std::iter::repeat(0));
        bytes.take(len as usize).collect()
    }

    /// The driver changes nothing but the write cache. When it switches that off, what was answered before
    /// is durable, too: it may not flush any more.
    async fn set_config(&mut self, offset: u32, bytes: &[u8]) -> Result<(), Refusal> {
        let allowed = self.features & (feature::CONFIG_WCE | feature::FLUSH);
        match (offset, bytes) {
            (blk::WRITEBACK_AT, [writeback @ (0 | 1)])
                if allowed == feature::CONFIG_WCE | feature::FLUSH =>
            {
                if *writeback == 1 {
                    self.choose(Cache::WriteBack);
                    return Ok(());
                }
                self.choose(Cache::WriteThrough);
                if let Err(error) = self.device.flush().await {
                    let (device, error) = (&*self.session.name, &error as &dyn std::error::Error);
                    tracing::warn!(device, error, "what was written before is not durable");
                }
                Ok(())
            }
            _ => Err(Refusal::Config {
                offset,
                len: bytes.len(),
            }),
        }
    }

    async fn set_inflight(
        &mut self,
        memory: &SharedMemory,
        shape: InflightShape,
    ) -> Result<(), Refusal> {
        let known = shape.size > 0 && shape.size <= SIZE_MAX;
        let bytes = marks_bytes(shape.queues, shape.size);
        if !known || memory.bytes < bytes {
            return Err(Refusal::Size {
                size: u32::from(shape.size),
            });
        }
        let mapped = map(memory, bytes)?;
        self.stop().await;
        // What the driver has chosen outlives a backend and a reset: it does not choose again. Of
        // what stands here and there the weaker holds, as either may be the newer.
        let known = [
            Cache::kept(&mapped, shape)?,
            self.session.durability.choice(),
        ];
        self.inflight = Some((mapped, shape));
        if known.contains(&Some(Cache::WriteThrough)) {
            self.choose(Cache::WriteThrough);
        } else if known.contains(&Some(Cache::WriteBack)) {
            self.choose(Cache::WriteBack);
        }
        self.start_all();
        Ok(())
    }

    fn choose(&self, choice: Cache) {
        self.session.durability.choose(choice);
        if let Some((marks, shape)) = &self.inflight
            && let Err(error) = choice.keep(marks, *shape)
        {
            let device = &*self.session.name;
            tracing::warn!(device, %error, "a driver's choice of cache will not be kept");
        }
    }

    async fn set_status(&mut self, status: u64) -> Result<(), Refusal> {
        let status = u8::try_from(status).map_err(|_| Refusal::Not("a status of one byte"))?;
        self.status = status;
        if status == 0 {
            self.reset().await;
        }
        Ok(())
    }

    /// As after connecting, except for what is the front end's and not the driver's (the memory, the
    /// marks and the log), for write-through, and for how far rings were worked on. QEMU resets at every
    /// pause of its guest, of which the driver knows nothing: it would go on to send no flush. And it asks
    /// for the bases after that.
    async fn reset(&mut self) {
        self.stop().await;
        for ring in &mut self.rings {
            *ring = Vring {
                base: ring.base,
                ..Vring::default()
            };
        }
        (self.features, self.status) = (0, 0);
        self.session.durability.agree(false, false);
        self.follow_log();
    }
}

fn adopt(event: OwnedFd) -> Rc<EventFd> {
    Rc::new(EventFd::from_fd(event))
}

/// Maps the first `bytes`.
fn map(memory: &SharedMemory, bytes: u64) -> std::io::Result<GuestMem> {
    let len = usize::try_from(bytes).unwrap_or(usize::MAX);
    GuestMem::map(memory.file.as_fd(), memory.offset, len)
}
