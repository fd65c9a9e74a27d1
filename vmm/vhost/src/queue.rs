//! One ring at work: a task of the shard takes requests, runs them on the device, gives them back in
//! batches and calls the driver once a batch.
//!
//! Between requests the task first polls the ring, for a window that adapts: it is as long as may be
//! while requests come within it and are fast, and nothing while they do not. Then it asks for kicks and sleeps.
//! While the kernel works for it, it does not poll. A ring that has no kicks is looked at each [`TICK`] instead.

mod call;
mod pace;

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use engine::{EventFd, EventWatch, GuestList, Nanos};
use shards::block::{BlockDevice, BlockError};
use smallvec::SmallVec;

use crate::blk::{Done, Head, Kind, Request, Status, status_of};
use crate::cache::Durability;
use crate::dirty::DirtyLog;
use crate::inflight::Inflight;
use crate::ring::{Base, Chain, Dirty, Fault, Published, Ring, Token};
use crate::slab::{Seat, Slab};
use crate::stats::{Counters, add};

pub use pace::Polling;

use call::Call;
use pace::Pace;

/// Most requests of one ring in progress; what comes above waits in the ring.
const DEPTH_MAX: usize = 256;

/// With so many bytes in progress a ring starts no more: whoever stops it waits for them, on a device
/// that may be slow on purpose. One request may go above.
const BYTES_MAX: u64 = 8 << 20;

/// Most requests that one turn of the task starts, for the shard's other tasks.
const TURN_MAX: usize = 64;

/// Between two looks at what nobody tells us of: a ring without kicks, room in the shard.
const TICK: Duration = Duration::from_micros(100);

/// What may change while a ring is at work.
pub(crate) struct Shared {
    call: RefCell<Option<Rc<EventFd>>>,
    /// A call is due whatever the ring says: there was none to make it by, or nobody knows whether the
    /// one before was heard.
    owed: Cell<bool>,
    stopping: Cell<bool>,
    task: RefCell<Option<Waker>>,
}

impl Shared {
    pub(crate) fn new(call: Option<Rc<EventFd>>) -> Shared {
        Shared {
            call: RefCell::new(call),
            // Who was here before may have died between showing and calling.
            owed: Cell::new(true),
            stopping: Cell::new(false),
            task: RefCell::new(None),
        }
    }

    /// Calls by another event from now on. What was called by the one before may not have been heard.
    pub(crate) fn set_call(&self, call: Option<Rc<EventFd>>) {
        *self.call.borrow_mut() = call;
        self.owed.set(true);
        self.wake();
    }

    /// Takes no more requests; the task ends when those in progress have.
    pub(crate) fn stop(&self) {
        self.stopping.set(true);
        self.wake();
    }

    fn wake(&self) {
        if let Some(task) = self.task.borrow().as_ref() {
            task.wake_by_ref();
        }
    }
}

/// What all rings of a front end share.
pub(crate) struct Session {
    pub(crate) counters: Rc<Counters>,
    pub(crate) durability: Rc<Durability>,
    pub(crate) log: RefCell<Option<Rc<DirtyLog>>>,
    pub(crate) polling: Polling,
    /// Names the device in log lines.
    pub(crate) name: Rc<str>,
}

/// A ring that is ready to work.
pub(crate) struct Queue<D> {
    pub(crate) index: u16,
    pub(crate) ring: Ring,
    pub(crate) inflight: Option<Inflight>,
    /// None for a driver that does not kick.
    pub(crate) kick: Option<Rc<EventFd>>,
    /// Told when the ring has a fault.
    pub(crate) error: Option<Rc<EventFd>>,
    pub(crate) shared: Rc<Shared>,
    pub(crate) session: Rc<Session>,
    pub(crate) device: Rc<D>,
}

/// A ring that has stopped.
pub(crate) struct Stopped {
    pub(crate) base: Base,
    pub(crate) fault: Option<Fault>,
}

/// A request that has ended.
struct Ended<'a> {
    token: Token,
    status: &'a GuestList,
    kind: Kind,
    bytes: u64,
    room: u64,
    dirty: &'a [Dirty],
}

/// What is kept of a request in progress.
struct Tag {
    token: Token,
    status: GuestList,
    kind: Kind,
    bytes: u64,
    room: u64,
    dirty: SmallVec<[Dirty; 2]>,
    /// When it was taken.
    begun: Nanos,
}

impl Tag {
    fn ended(&self) -> Ended<'_> {
        Ended {
            token: self.token,
            status: &self.status,
            kind: self.kind,
            bytes: self.bytes,
            room: self.room,
            dirty: &self.dirty,
        }
    }
}

impl<D: BlockDevice> Queue<D> {
    /// Works until the ring is stopped or has a fault, and nothing is in progress.
    pub(crate) async fn run(self) -> Stopped {
        let failed = Rc::new(Cell::new(0_u64));
        let (device, session) = (Rc::clone(&self.device), Rc::clone(&self.session));
        let index = self.index;
        let of_slab = Rc::clone(&failed);
        let make = move |seat: Rc<Seat<Request, Done>>| {
            let (device, session) = (Rc::clone(&device), Rc::clone(&session));
            let failed = Rc::clone(&of_slab);
            async move {
                let report = |kind, sector, error: &BlockError| {
                    report_failure(&session, index, &failed, (kind, sector), error);
                };
                let run = async |request: Request| {
                    let durable = session.durability.is_owed();
                    request.run(&*device, durable, report).await
                };
                seat.serve(run).await
            }
        };
        let mut work = Work {
            slab: Slab::new(DEPTH_MAX, make),
            bytes: 0,
            kicks: self.kick.as_ref().map(EventFd::watch),
            deaf: false,
            tick: None,
            call: Call::default(),
            pace: Pace::new(self.session.polling, engine::now()),
            fault: None,
            now: engine::now(),
            chain: Chain::default(),
            read_now: 0,
            failed,
            queue: self,
        };
        work.resubmit();
        poll_fn(|cx| work.poll(cx)).await;
        if let Some(inflight) = &mut work.queue.inflight {
            inflight.rest();
        }
        Stopped {
            base: work.queue.ring.base(),
            fault: work.fault,
        }
    }
}

/// So many requests have ended, each of which took so long.
#[inline]
fn note_ended<D>(pace: &mut Pace, queue: &Queue<D>, kind: Kind, took: Duration, count: u64) {
    pace.ended(took);
    let latencies = &queue.session.counters.latencies;
    latencies.record(kind, took.as_nanos() as u64, count);
}

/// A guest that asks for what fails again and again gets a line for the 1st, 2nd, 4th, 8th.
fn report_failure(
    session: &Session,
    queue: u16,
    failed: &Cell<u64>,
    (kind, sector): (Kind, u64),
    error: &BlockError,
) {
    failed.set(failed.get() + 1);
    if failed.get().is_power_of_two() {
        let (name, failures) = (&*session.name, failed.get());
        let error: &dyn std::error::Error = error;
        tracing::warn!(
            device = name,
            queue,
            ?kind,
            sector,
            failures,
            error,
            "a guest's request failed"
        );
    }
}

/// The state of a queue's task.
struct Work<D, F, M> {
    queue: Queue<D>,
    slab: Slab<Request, Done, Tag, F, M>,
    /// Bytes of data of what is in the slab.
    bytes: u64,
    kicks: Option<EventWatch>,
    /// No kick would be heard now.
    deaf: bool,
    tick: Option<Pin<Box<dyn Future<Output = ()>>>>,
    call: Call,
    pace: Pace,
    fault: Option<Fault>,
    /// When this turn began.
    now: Nanos,
    /// The request that was taken last.
    chain: Chain,
    /// Reads that were done at once since the driver was shown something last.
    read_now: u64,
    /// How many requests have failed.
    failed: Rc<Cell<u64>>,
}

impl<D, F, M> Work<D, F, M>
where
    D: BlockDevice,
    F: Future<Output = Infallible>,
    M: Fn(Rc<Seat<Request, Done>>) -> F,
{
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.now = engine::now();
        self.slab.belongs_to(cx.waker());
        let unknown = self.queue.shared.task.borrow().is_none();
        if unknown {
            *self.queue.shared.task.borrow_mut() = Some(cx.waker().clone());
        }
        self.take_kicks(cx);
        let ended = self.give_back();
        let started = self.start_requests();
        let depths = &self.queue.session.counters.depths;
        depths[usize::from(self.queue.index)].set(self.slab.len() as u64);
        self.show();
        self.call.poll(cx);
        if self.is_over() {
            if self.slab.len() > 0 {
                // Each time: a request that was tried again may have been held back again.
                self.queue.device.hurry();
                return Poll::Pending;
            }
            self.call.finish();
            return Poll::Ready(());
        }
        let worked = ended + started > 0;
        if started == TURN_MAX || self.keeps_looking(worked) {
            cx.waker().wake_by_ref();
        } else {
            self.rest(cx);
        }
        Poll::Pending
    }

    /// Sleeps no longer than a tick where nobody would wake the task.
    fn rest(&mut self, cx: &mut Context<'_>) {
        let deaf = self.deaf && !self.is_full();
        if !deaf && !self.call.is_held_up() {
            self.tick = None;
            return;
        }
        let fresh = || Box::pin(engine::sleep(TICK)) as _;
        let tick = self.tick.get_or_insert_with(fresh);
        // What it was to look at has just been looked at.
        while tick.as_mut().poll(cx).is_ready() {
            *tick = fresh();
        }
    }

    fn is_over(&self) -> bool {
        self.fault.is_some() || self.queue.shared.stopping.get()
    }

    /// Whether what is in progress must end before more is started.
    fn is_full(&self) -> bool {
        self.slab.is_full() || self.bytes >= BYTES_MAX
    }

    fn take_kicks(&mut self, cx: &mut Context<'_>) {
        self.deaf = self.kicks.is_none();
        while let Some(kicks) = &mut self.kicks {
            let kicked = pin!(kicks.changed()).poll(cx);
            match kicked {
                Poll::Pending => return,
                Poll::Ready(Ok(())) => add(&self.queue.session.counters.kicks, 1),
                Poll::Ready(Err(error)) => {
                    self.deaf = true;
                    if error.kind() == io::ErrorKind::ResourceBusy {
                        return;
                    }
                    self.kicks = None;
                    let (name, queue) = (&*self.queue.session.name, self.queue.index);
                    tracing::warn!(device = name, queue, %error, "a ring has lost its kicks");
                }
            }
        }
    }

    /// Gives back what has ended. How many that were.
    fn give_back(&mut self) -> usize {
        let (slab, queue, bytes) = (&mut self.slab, &mut self.queue, &mut self.bytes);
        let (now, pace) = (self.now, &mut self.pace);
        let mut ended = 0;
        slab.poll_woken(|tag, done| {
            ended += 1;
            *bytes -= tag.bytes;
            note_ended(pace, queue, tag.kind, now - tag.begun, 1);
            queue.finish(&tag.ended(), done);
        });
        ended
    }

    /// Starts what the driver offers. How many that were.
    fn start_requests(&mut self) -> usize {
        let mut started = 0;
        while started < TURN_MAX && !self.is_over() && !self.is_full() {
            match self.queue.ring.pop(&mut self.chain) {
                Ok(false) => break,
                Ok(true) => {
                    started += 1;
                    self.queue.mark_taken(&mut self.chain);
                    self.start();
                }
                Err(fault) => self.fail(fault),
            }
        }
        started
    }

    /// Starts the request of the chain that was walked.
    fn start(&mut self) {
        let chain = &mut self.chain;
        let counters = &self.queue.session.counters;
        add(&counters.requests, 1);
        add(&counters.merged, u64::from(chain.merged));
        let head = match Head::parse(chain) {
            Ok(head) => head,
            Err(error) => {
                if counters.errors.get().is_power_of_two() || counters.errors.get() == 0 {
                    let (name, queue) = (&*self.queue.session.name, self.queue.index);
                    tracing::warn!(device = name, queue, %error, "a guest sent no request");
                }
                add(&counters.errors, 1);
                return self.queue.give(chain.token, 0);
            }
        };
        if let Some(read) = head.read_now(&*self.queue.device, &chain.writable) {
            return self.end_now(head, read);
        }
        let request = Request::take(head, chain);
        let tag = Tag {
            token: chain.token,
            status: std::mem::take(&mut chain.status),
            kind: request.kind,
            bytes: request.bytes(),
            room: request.room,
            dirty: std::mem::take(&mut chain.dirty),
            begun: self.now,
        };
        self.bytes += tag.bytes;
        if let Some((tag, done)) = self.slab.start(request, tag) {
            self.bytes -= tag.bytes;
            let took = engine::now() - tag.begun;
            note_ended(&mut self.pace, &self.queue, tag.kind, took, 1);
            self.queue.finish(&tag.ended(), done);
        }
    }

    /// Gives back the read of the chain that was walked, which was done at once.
    fn end_now(&mut self, head: Head, read: Result<Done, BlockError>) {
        let done = read.unwrap_or_else(|error| {
            let (session, index) = (&self.queue.session, self.queue.index);
            report_failure(
                session,
                index,
                &self.failed,
                (head.kind, head.sector),
                &error,
            );
            status_of(&error).into()
        });
        self.read_now += 1;
        let ended = Ended {
            token: self.chain.token,
            status: &self.chain.status,
            kind: head.kind,
            bytes: self.chain.writable.len(),
            room: self.chain.writable.len(),
            dirty: &self.chain.dirty,
        };
        self.queue.finish(&ended, done);
    }

    /// Does again what was in progress when a backend died.
    fn resubmit(&mut self) {
        let Some(inflight) = &mut self.queue.inflight else {
            return;
        };
        for chain in inflight.recover(&mut self.queue.ring) {
            match chain {
                Ok(chain) if !self.slab.is_full() => {
                    add(&self.queue.session.counters.resubmitted, 1);
                    self.chain = chain;
                    self.start();
                }
                // More than this backend ever has in progress: not ours.
                Ok(_) => {
                    let size = DEPTH_MAX as u16;
                    let ahead = size + 1;
                    return self.fail(Fault::Ahead { ahead, size });
                }
                Err(fault) => return self.fail(fault),
            }
        }
    }

    #[cold]
    fn fail(&mut self, fault: Fault) {
        add(&self.queue.session.counters.faults, 1);
        let (name, queue) = (&*self.queue.session.name, self.queue.index);
        tracing::warn!(device = name, queue, %fault, "a guest broke its ring; it is left alone");
        self.fault = Some(fault);
        if let Some(error) = &self.queue.error {
            drop(error.post());
        }
    }

    /// Shows the driver what was given back, and calls it when it wants that or a call is owed.
    fn show(&mut self) {
        if self.read_now > 0 {
            let took = engine::now() - self.now;
            let count = self.read_now;
            note_ended(&mut self.pace, &self.queue, Kind::Read, took, count);
            self.read_now = 0;
        }
        if self.queue.is_broken() {
            if self.fault.is_none() {
                self.fail(Fault::CutShort);
            }
            return;
        }
        self.queue.mark_showing();
        let published = self.queue.ring.publish();
        if published != Published::Nothing {
            self.queue.mark_given();
        }
        let shared = &self.queue.shared;
        if published == Published::Call {
            shared.owed.set(true);
        }
        if !shared.owed.get() {
            return;
        }
        if let Some(call) = &*shared.call.borrow() {
            shared.owed.set(false);
            add(&self.queue.session.counters.calls, 1);
            self.call.post(call);
        }
    }

    /// Whether the task goes on looking at its ring instead of sleeping until somebody wakes it.
    fn keeps_looking(&mut self, worked: bool) -> bool {
        // A look that finds nothing takes no time that matters, and a clock is not free.
        let now = if worked { engine::now() } else { self.now };
        if self.is_full() {
            return false;
        }
        let polled = self.pace.looked(now, worked);
        add(&self.queue.session.counters.polled_ns, polled);
        // What this task hands to the kernel goes there when it rests, and its end wakes it.
        let waits = self.slab.len() > 0 || self.call.is_on_its_way();
        if !waits && self.pace.polls(now) {
            self.queue.ring.silence();
            return true;
        }
        self.queue.ring.listen();
        match self.queue.ring.is_pending() {
            Ok(true) => {
                self.queue.ring.silence();
                true
            }
            Ok(false) => false,
            Err(fault) => {
                self.fail(fault);
                true
            }
        }
    }
}

impl<D: BlockDevice> Queue<D> {
    /// Whether memory that the ring stands on was cut short.
    fn is_broken(&self) -> bool {
        let marks = self.inflight.as_ref();
        self.ring.is_broken() || marks.is_some_and(Inflight::is_broken)
    }

    #[inline]
    fn mark_taken(&mut self, chain: &mut Chain) {
        if let Some(inflight) = &mut self.inflight {
            inflight.taken(chain);
        }
    }

    #[inline]
    fn mark_showing(&mut self) {
        if let Some(inflight) = &mut self.inflight
            && !self.ring.is_shown()
        {
            inflight.showing(self.ring.used());
        }
    }

    #[inline]
    fn mark_given(&mut self) {
        if let Some(inflight) = &mut self.inflight {
            inflight.given(self.ring.used());
        }
        if let Some(log) = &*self.session.log.borrow() {
            self.ring.dirty().iter().for_each(|dirty| log.mark(*dirty));
        }
    }

    /// Writes a request's status and gives it back.
    fn finish(&mut self, ended: &Ended<'_>, done: Done) {
        let mut done = done;
        let told = ended.status.copy_in(0, &[done.status as u8]).is_ok();
        if !told {
            done = Status::IoError.into();
        }
        let counters = &self.session.counters;
        match (done.status, ended.kind) {
            (Status::Ok, Kind::Read) => add(&counters.read_bytes, ended.bytes),
            (Status::Ok, Kind::Write) => add(&counters.written_bytes, ended.bytes),
            (Status::Ok, _) => {}
            (Status::IoError | Status::Unsupported, _) => add(&counters.errors, 1),
        }
        if let Some(log) = &*self.session.log.borrow() {
            ended.dirty.iter().for_each(|dirty| log.mark(*dirty));
        }
        // What is told is written from the start on without a gap, and the status is at the end.
        let whole = told && u64::from(done.written) == ended.room;
        self.give(ended.token, done.written + u32::from(whole));
    }

    #[inline]
    fn give(&mut self, token: Token, written: u32) {
        if let Some(inflight) = &mut self.inflight {
            inflight.giving(token.mark);
        }
        self.ring.push(token, written);
    }
}
