//! The flow table, as user space reads it and takes old flows out of it.
//!
//! IPv4's lines are read in the memory that this process shares with the program, IPv6's hash by system
//! calls. A flow of IPv4 is removed by one atomic step, so the program never waits for this process.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};

use aya::Ebpf;
use aya::maps::{HashMap, MapData, MapError};
use fiberlb_abi::{
    Flow, FlowKey, FlowKeyV4, FlowV6, LINES_MIN, Line, Shape, WAYS, flow_kind, flow_state, map,
};

use crate::error::Result;
use crate::kernel::{absent_is_fine, data, failed, failed_io, take};
use crate::mapping::{Cursor, Mapping, lookup_batch};

/// Entries of the hash that one system call reads.
const BATCH: usize = 256;
/// Lines that a part of a walk looks at.
const LINES: u32 = 4096;
/// Nanoseconds of [`Flow::tick`].
const TICK_SHIFT: u32 = 30;
/// Words of a line.
const WORDS: usize = size_of::<Line>() / size_of::<u64>();

/// Words of [`Shape`], and which of them holds the seed, which the lines in use below the floor, and which all
/// lines below the version of what leads to VIPs.
const SHAPE_WORDS: usize = size_of::<Shape>() / size_of::<u64>();
const SEED: usize = 0;
const IN_USE: usize = 1;
const ALL: usize = 2;

/// Both tables.
pub struct Flows {
    lines: Mapping,
    shape: Mapping,
    v6: HashMap<MapData, FlowKey, FlowV6>,
    v6_data: MapData,
}

/// A walk over the flow table that counts what is alive and removes what is not.
#[derive(Debug, Default)]
pub struct Sweep {
    line: u32,
    /// Lines that were in use when it began; 0 before.
    lines: u32,
    /// A flow was seen that was put when fewer were.
    unsettled: bool,
    cursor: Cursor,
    /// Open flows towards each backend that were seen, by identifier.
    pub open: BTreeMap<u16, u64>,
    /// Entries that were removed.
    pub expired: u64,
}

/// What a walk does with a flow.
enum Fate {
    Expired { open: bool },
    Kept,
}

impl Sweep {
    fn judge(&mut self, flow: &Flow, now_ns: u64, idle_ns: u64) -> Fate {
        let open = flow.kind == flow_kind::FORWARD && flow.state == flow_state::OPEN;
        let now = (now_ns >> TICK_SHIFT) as u32;
        let idle = (idle_ns >> TICK_SHIFT) as u32;
        // The program's clock is coarse and may be ahead of ours by a moment.
        if now.saturating_sub(flow.tick) > idle {
            return Fate::Expired { open };
        }
        if open {
            *self.open.entry(flow.real).or_default() += 1;
        }
        Fate::Kept
    }
}

/// Draws the shape of a new table of so many lines. All of them come last: until then the table is nobody's.
fn draw(shape: &Mapping, lines: u32) {
    let first = lines.min(LINES_MIN);
    let words = shape.entries();
    // A hasher of the standard library begins with what the system's randomness gave.
    let seed = RandomState::new().build_hasher().finish();
    words[SEED].store(seed, Ordering::Relaxed);
    words[IN_USE].store(shape_word(first, first), Ordering::Relaxed);
    words[ALL].store(shape_word(lines, 0), Ordering::Release);
}

/// Two fields of [`Shape`] as the word that they are.
fn shape_word(low: u32, high: u32) -> u64 {
    (u64::from(low) | (u64::from(high) << 32)).to_le()
}

fn key_of(words: &[AtomicU64]) -> FlowKeyV4 {
    FlowKeyV4 {
        ports: words[1].load(Ordering::Acquire),
        addrs: words[0].load(Ordering::Relaxed),
    }
}

/// A flow from the two words that a line keeps it in.
fn flow_of(words: &[AtomicU64]) -> Flow {
    let [first, second] = [2, 3].map(|at: usize| words[at].load(Ordering::Relaxed).to_ne_bytes());
    let half = |at: usize| u16::from_ne_bytes([first[at], first[at + 1]]);
    let word = |at: usize| {
        u32::from_ne_bytes([second[at], second[at + 1], second[at + 2], second[at + 3]])
    };
    Flow {
        kind: first[0],
        state: first[1],
        epoch: half(2),
        vip: half(4),
        real: half(6),
        generation: word(0),
        tick: word(4),
    }
}

impl Flows {
    pub(crate) fn take(ebpf: &mut Ebpf) -> Result<Self> {
        let data_v4 = data(ebpf, map::FLOWS_V4)?;
        let info = data_v4.info();
        let count = info
            .map_err(failed("cannot read the size of the flow table"))?
            .max_entries();
        let lines = Mapping::new(data_v4.fd().as_fd(), count as usize * WORDS)
            .map_err(failed_io("cannot map the flow table"))?;
        let shape = Mapping::new(data(ebpf, map::SHAPE)?.fd().as_fd(), SHAPE_WORDS)
            .map_err(failed_io("cannot map the shape of the flow table"))?;
        if shape.entries()[ALL].load(Ordering::Acquire) == 0 {
            draw(&shape, count);
        }
        let again = data(ebpf, map::FLOWS_V6)?.fd().as_fd().try_clone_to_owned();
        let v6_data = again
            .map_err(failed_io("cannot open the flow table again"))
            .and_then(|fd| {
                MapData::from_fd(fd).map_err(failed("cannot open the flow table again"))
            })?;
        let flows = Self {
            lines,
            shape,
            v6: take(ebpf, map::FLOWS_V6)?,
            v6_data,
        };
        // The process before may have died between a change and its word of it.
        flows.vips_changed();
        Ok(flows)
    }

    /// Lines in use, and the fewest at which a flow may have been put.
    pub(crate) fn in_use(&self) -> (u32, u32) {
        let word = self.shape.entries()[IN_USE].load(Ordering::Acquire).to_le();
        (word as u32, (word >> 32) as u32)
    }

    /// Tells the program that what it knows of VIPs' addresses may be old. To be called after each change.
    pub(crate) fn vips_changed(&self) {
        let word = &self.shape.entries()[ALL];
        let next = |old: u64| {
            let old = old.to_le();
            Some(shape_word(old as u32, ((old >> 32) as u32).wrapping_add(1)))
        };
        // It gives an error only where `next` gives nothing.
        let _ = word.fetch_update(Ordering::AcqRel, Ordering::Relaxed, next);
    }

    fn seed(&self) -> u64 {
        self.shape.entries()[SEED].load(Ordering::Relaxed)
    }

    fn line(&self, at: u32) -> &[AtomicU64] {
        &self.lines.entries()[at as usize * WORDS..][..WORDS]
    }

    /// One flow.
    pub(crate) fn get(&self, key: &FlowKey) -> Result<Option<Flow>> {
        if !key.src.is_v4() {
            return match self.v6.get(key, 0) {
                Ok(entry) => Ok(Some(entry.flow)),
                Err(MapError::KeyNotFound) => Ok(None),
                Err(error) => Err(failed("cannot read a flow")(error)),
            };
        }
        let key = FlowKeyV4::of(key);
        let hashes = key.hashes(self.seed());
        let bucket =
            |line: u32| (line & !(WAYS - 1)..(line & !(WAYS - 1)) + WAYS).map(|at| self.line(at));
        let (mut lines, floor) = self.in_use();
        while lines >= floor.max(WAYS) {
            let mut places = bucket(hashes.home(lines)).chain(bucket(hashes.second(lines)));
            let found = places.find(|line| key_of(line) == key);
            if found.is_some() {
                return Ok(found.map(flow_of));
            }
            lines /= 2;
        }
        Ok(None)
    }

    /// Some of a walk over the lines that were in use when it began. A table that grows meanwhile has the rest
    /// to the next walk.
    fn sweep_v4(
        &self,
        sweep: &mut Sweep,
        (now_ns, idle_ns): (u64, u64),
        mut closed: impl FnMut(u16),
    ) {
        let seed = self.seed();
        let end = sweep.lines.min(sweep.line + LINES);
        for at in sweep.line..end {
            let line = self.line(at);
            let key = key_of(line);
            if key.ports == 0 {
                continue;
            }
            let flow = flow_of(line);
            let Fate::Expired { open } = sweep.judge(&flow, now_ns, idle_ns) else {
                let hashes = key.hashes(seed);
                let bucket = at & !(WAYS - 1);
                sweep.unsettled |= hashes.home(sweep.lines) & !(WAYS - 1) != bucket
                    && hashes.second(sweep.lines) != bucket;
                continue;
            };
            // It fails when the line became another flow's meanwhile, which is not old.
            let removed =
                line[1].compare_exchange(key.ports, 0, Ordering::AcqRel, Ordering::Relaxed);
            if removed.is_ok() {
                sweep.expired += 1;
                if open {
                    closed(flow.real);
                }
            }
        }
        sweep.line = end;
        if end == sweep.lines && !sweep.unsettled {
            self.raise_floor(sweep.lines);
        }
    }

    /// No flow is left that was put when fewer lines were in use. When the program makes the table larger in
    /// the same moment, the next walk does it.
    fn raise_floor(&self, lines: u32) {
        let word = &self.shape.entries()[IN_USE];
        let (now, floor) = self.in_use();
        if now == lines && floor != lines {
            let (old, new) = (shape_word(now, floor), shape_word(now, lines));
            // The program writes the lower half alone: this is one step for both.
            let _ = word.compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed);
        }
    }

    /// Some of a walk; gives true at its end. `closed` is told of each open flow that is removed, with
    /// its backend.
    pub(crate) fn sweep(
        &mut self,
        sweep: &mut Sweep,
        (now_ns, idle_ns): (u64, u64),
        mut closed: impl FnMut(u16),
    ) -> Result<bool> {
        if sweep.lines == 0 {
            sweep.lines = self.in_use().0;
        }
        if sweep.line < sweep.lines {
            self.sweep_v4(sweep, (now_ns, idle_ns), closed);
            return Ok(false);
        }
        let mut keys = [FlowKey::default(); BATCH];
        let mut entries = [FlowV6::default(); BATCH];
        let map = self.v6_data.fd().as_fd();
        let (count, end) = lookup_batch(map, &mut sweep.cursor, &mut keys, &mut entries)
            .map_err(failed_io("cannot read the flow table"))?;
        for (key, FlowV6 { flow, .. }) in keys.iter().zip(&entries).take(count) {
            if let Fate::Expired { open } = sweep.judge(flow, now_ns, idle_ns) {
                absent_is_fine(self.v6.remove(key)).map_err(failed("cannot remove a flow"))?;
                sweep.expired += 1;
                if open {
                    closed(flow.real);
                }
            }
        }
        Ok(end)
    }
}
