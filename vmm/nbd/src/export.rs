//! What is exported: a device, with a name.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Range;
use std::pin::pin;
use std::rc::Rc;

use engine::sync::Notify;
use engine::{LocalFut, SchedGroup};
use futures_util::future::select;
use nbd_wire::session::{Shape, Token, VERIFIER};
use nbd_wire::{ALLOCATION_CONTEXT, BlockSizes, PAYLOAD_BYTES_MAX, TEXT_BYTES_MAX, transmission};
use shards::block::{BlockDevice, BlockError};

use crate::stats::Counters;

/// What differs between a device and an older state of it.
pub trait Changes {
    /// What has changed in a range of the device, as far as one answer goes.
    fn changed(&self, offset: u64, len: u64) -> LocalFut<Result<ChangedRanges, BlockError>>;
}

/// See [`Changes`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangedRanges {
    /// In order and apart from each other; they may begin before the range and end behind it.
    pub ranges: Vec<Range<u64>>,
    /// Up to where nothing else has changed. Past the begin of the range.
    pub end: u64,
}

/// An older state, by its name. Clients see `ultracloud:changed-since:NAME`, and QEMU's own tools
/// `qemu:dirty-bitmap:NAME`.
#[derive(Clone)]
pub struct ChangedSince {
    /// The snapshot's name.
    pub name: String,
    /// What has changed since.
    pub changes: Rc<dyn Changes>,
}

/// A device that is to be exported.
pub struct Export<D> {
    /// What clients choose it by, up to 256 bytes; an empty one is who chooses nothing gets.
    pub name: String,
    /// A text for people, up to 256 bytes.
    pub description: String,
    /// The device, on this shard.
    pub device: Rc<D>,
    /// Whether clients may not change it, also when the device could be.
    pub read_only: bool,
    /// Older states, up to 16, that clients may ask for what has changed since.
    pub changed_since: Vec<ChangedSince>,
    /// Names a time in which nothing is lost that was acknowledged: another token each time that something
    /// may have been, and never one of another export. Clients that ask for it are given
    /// [sessions](nbd_wire::session).
    pub verifier: Option<Token>,
    /// In which group of the shard its requests run.
    pub group: SchedGroup,
}

impl<D: BlockDevice> Export<D> {
    /// As the device is, in the foreground.
    pub fn new(name: impl Into<String>, device: Rc<D>) -> Export<D> {
        Export {
            name: name.into(),
            description: String::new(),
            device,
            read_only: false,
            changed_since: Vec::new(),
            verifier: None,
            group: SchedGroup::FOREGROUND,
        }
    }

    /// Whether the protocol can say what it is called.
    pub(crate) fn is_sayable(&self) -> bool {
        const NAME_BYTES_MAX: usize = 256;
        const STATES_MAX: usize = 16;
        let states = self.changed_since.iter().map(|state| &state.name);
        let mut texts = [&self.name, &self.description].into_iter().chain(states);
        const { assert!(NAME_BYTES_MAX + 64 < TEXT_BYTES_MAX) };
        self.changed_since.len() <= STATES_MAX
            && texts.all(|text| text.len() <= NAME_BYTES_MAX && !text.contains('\0'))
    }

    fn is_read_only(&self) -> bool {
        self.read_only || self.device.geometry().read_only
    }

    /// Its size, and what it can do.
    pub(crate) fn size_and_flags(&self, structured: bool) -> (u64, u16) {
        let geometry = self.device.geometry();
        let mut flags = transmission::HAS_FLAGS
            | transmission::FLUSH
            | transmission::FUA
            | transmission::MULTI_CONN;
        if structured {
            flags |= transmission::DF;
        }
        if self.is_read_only() {
            flags |= transmission::READ_ONLY;
        } else {
            flags |= transmission::WRITE_ZEROES | transmission::FAST_ZERO;
            if geometry.discard_granularity > 0 {
                flags |= transmission::TRIM;
            }
        }
        (geometry.bytes, flags)
    }

    pub(crate) fn block_sizes(&self) -> BlockSizes {
        let geometry = self.device.geometry();
        let preferred = geometry.physical_bytes.max(geometry.block_bytes);
        BlockSizes {
            minimum: geometry.block_bytes,
            preferred: preferred.max(4096),
            maximum: PAYLOAD_BYTES_MAX,
        }
    }

    /// What the device is like.
    pub(crate) fn shape(&self) -> Shape {
        let geometry = self.device.geometry();
        Shape {
            physical_bytes: geometry.physical_bytes,
            optimal_bytes: geometry.optimal_bytes,
            discard_granularity: geometry.discard_granularity,
            serial: geometry.serial,
        }
    }

    /// The names of its contexts; a context's number is its place here.
    pub(crate) fn contexts(&self) -> impl Iterator<Item = (String, Context)> + '_ {
        let verifier = self.verifier.into_iter();
        let told = verifier.flat_map(|verifier| {
            let verifier = (format!("{VERIFIER}{verifier}"), Context::Told);
            [verifier, (self.shape().context(), Context::Told)]
        });
        let allocation = (ALLOCATION_CONTEXT.to_owned(), Context::Allocation);
        let changed = self.changed_since.iter().enumerate();
        let changed = changed.flat_map(|(at, state)| {
            let of = |prefix: &str| (format!("{prefix}{}", state.name), Context::Changed(at));
            [of("ultracloud:changed-since:"), of("qemu:dirty-bitmap:")]
        });
        std::iter::once(allocation).chain(changed).chain(told)
    }
}

/// What a context says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Context {
    /// What is allocated.
    Allocation,
    /// What has changed since one of the export's older states.
    Changed(usize),
    /// Nothing of its ranges: its name says all.
    Told,
}

/// A session's part in a connection.
pub(crate) struct Session {
    token: Token,
    /// Connections of a session are told apart by it, and grow.
    number: u64,
    superseded: Cell<bool>,
    ends: Notify,
}

/// An export that is there.
pub(crate) struct Entry<D> {
    pub(crate) export: Export<D>,
    pub(crate) counters: Counters,
    stopped: Cell<bool>,
    /// Whether it does not come again.
    for_good: Cell<bool>,
    stop: Notify,
    open: Cell<usize>,
    sessions: RefCell<Vec<Rc<Session>>>,
    connections: Cell<u64>,
    closed: Notify,
}

impl<D: BlockDevice> Entry<D> {
    pub(crate) fn new(export: Export<D>) -> Rc<Entry<D>> {
        Rc::new(Entry {
            export,
            counters: Counters::default(),
            stopped: Cell::new(false),
            for_good: Cell::new(false),
            stop: Notify::default(),
            open: Cell::new(0),
            sessions: RefCell::default(),
            connections: Cell::new(0),
            closed: Notify::default(),
        })
    }

    pub(crate) fn is_read_only(&self) -> bool {
        self.export.is_read_only()
    }

    /// Asks its connections to end.
    pub(crate) fn stop(&self) {
        self.stopped.set(true);
        self.stop.notify_all();
    }

    /// The same, and tells sessions that it does not come again.
    pub(crate) fn stop_for_good(&self) {
        self.for_good.set(true);
        self.stop();
    }

    /// Whether its connections are to end.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.get()
    }

    /// Whether it has ended and does not come again.
    pub(crate) fn is_gone(&self) -> bool {
        self.stopped.get() && self.for_good.get()
    }

    /// Ends when the export does.
    pub(crate) async fn stopped(&self) {
        while !self.stopped.get() {
            self.stop.notified().await;
        }
    }

    /// Ends when no connection is left.
    pub(crate) async fn closed(&self) {
        while self.open.get() > 0 {
            self.closed.notified().await;
        }
    }

    /// Counts a connection as long as it is open; `None` when the export has ended. Older connections of its
    /// session are asked to end.
    pub(crate) fn open(self: &Rc<Entry<D>>, session: Option<Token>) -> Option<Open<D>> {
        if self.stopped.get() {
            return None;
        }
        self.open.set(self.open.get() + 1);
        let session = session.map(|token| {
            let number = self.connections.get();
            self.connections.set(number + 1);
            let mut sessions = self.sessions.borrow_mut();
            for older in sessions.iter().filter(|older| older.token == token) {
                older.superseded.set(true);
                older.ends.notify_all();
            }
            let session = Rc::new(Session {
                token,
                number,
                superseded: Cell::new(false),
                ends: Notify::default(),
            });
            sessions.push(Rc::clone(&session));
            session
        });
        Some(Open {
            entry: Rc::clone(self),
            session,
        })
    }
}

/// A connection that is open; see [`Entry::open`].
pub(crate) struct Open<D: BlockDevice> {
    entry: Rc<Entry<D>>,
    session: Option<Rc<Session>>,
}

impl<D: BlockDevice> Open<D> {
    /// Ends when nothing of older connections of the session is in progress.
    pub(crate) async fn alone(&self) {
        let Some(session) = &self.session else { return };
        let is_older =
            |other: &Rc<Session>| other.token == session.token && other.number < session.number;
        while self.entry.sessions.borrow().iter().any(is_older) {
            self.entry.closed.notified().await;
        }
    }

    /// Whether it has a session.
    pub(crate) fn has_session(&self) -> bool {
        self.session.is_some()
    }

    /// Whether it is to end.
    pub(crate) fn is_ending(&self) -> bool {
        let superseded = |session: &Rc<Session>| session.superseded.get();
        self.entry.is_stopped() || self.session.as_ref().is_some_and(superseded)
    }

    /// Ends when the connection is to end.
    pub(crate) async fn ending(&self) {
        let superseded = async {
            match &self.session {
                Some(session) => {
                    while !session.superseded.get() {
                        session.ends.notified().await;
                    }
                }
                None => std::future::pending().await,
            }
        };
        select(pin!(self.entry.stopped()), pin!(superseded)).await;
    }
}

impl<D: BlockDevice> Drop for Open<D> {
    fn drop(&mut self) {
        if let Some(session) = &self.session {
            let mut sessions = self.entry.sessions.borrow_mut();
            sessions.retain(|other| !Rc::ptr_eq(other, session));
        }
        self.entry.open.set(self.entry.open.get() - 1);
        self.entry.closed.notify_all();
    }
}

/// The exports of a server, by name.
pub(crate) type Exports<D> = BTreeMap<String, Rc<Entry<D>>>;
