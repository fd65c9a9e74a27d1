//! What is exported: a device, with a name.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use engine::sync::Notify;
use engine::{LocalFut, SchedGroup};
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

    /// The names of its contexts; a context's number is its place here.
    pub(crate) fn contexts(&self) -> impl Iterator<Item = (String, Context)> + '_ {
        let allocation = (ALLOCATION_CONTEXT.to_owned(), Context::Allocation);
        let changed = self.changed_since.iter().enumerate();
        std::iter::once(allocation).chain(changed.flat_map(|(at, state)| {
            let of = |prefix: &str| (format!("{prefix}{}", state.name), Context::Changed(at));
            [of("ultracloud:changed-since:"), of("qemu:dirty-bitmap:")]
        }))
    }
}

/// What a context says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Context {
    /// What is allocated.
    Allocation,
    /// What has changed since one of the export's older states.
    Changed(usize),
}

/// An export that is there.
pub(crate) struct Entry<D> {
    pub(crate) export: Export<D>,
    pub(crate) counters: Counters,
    stopped: Cell<bool>,
    stop: Notify,
    open: Cell<usize>,
    closed: Notify,
}

impl<D: BlockDevice> Entry<D> {
    pub(crate) fn new(export: Export<D>) -> Rc<Entry<D>> {
        Rc::new(Entry {
            export,
            counters: Counters::default(),
            stopped: Cell::new(false),
            stop: Notify::default(),
            open: Cell::new(0),
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

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.get()
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

    /// Counts a connection as long as it is open; `None` when the export has ended.
    pub(crate) fn open(self: &Rc<Entry<D>>) -> Option<Open<D>> {
        if self.stopped.get() {
            return None;
        }
        self.open.set(self.open.get() + 1);
        Some(Open(Rc::clone(self)))
    }
}

/// See [`Entry::open`].
pub(crate) struct Open<D: BlockDevice>(Rc<Entry<D>>);

impl<D: BlockDevice> Drop for Open<D> {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
        self.0.closed.notify_all();
    }
}

/// The exports of a server, by name.
pub(crate) type Exports<D> = BTreeMap<String, Rc<Entry<D>>>;
