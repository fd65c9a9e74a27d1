//! Which task runs next, and which disk operation starts next: weighted fair queues.
//!
//! Tasks belong to scheduling groups. A group's virtual time advances by the CPU time that its
//! tasks used, divided by its shares; the runnable group with the least virtual time runs. A group
//! that wakes after idling starts at the current minimum, less a credit when it is interactive:
//! idle time is not saved up. Within a group the flows are treated alike (module `flows`). Disk operations pass the same way by bytes once the device is at
//! its depth.

use std::collections::VecDeque;

use hdrhistogram::Histogram;

use crate::backend::{Op, SlotId};
use crate::flows::{Flow, Flows};
use crate::time::Nanos;

/// A class of tasks with a share of the shard's CPU and disk. The same on every shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SchedGroup(pub(crate) u8);

impl SchedGroup {
    /// Requests of tenants.
    pub const FOREGROUND: SchedGroup = SchedGroup(0);
    /// Work that requests wait for in the end: checkpoints, segment preparation.
    pub const BACKGROUND: SchedGroup = SchedGroup(1);
    /// Scrub, statistics: runs in the gaps.
    pub const MAINTENANCE: SchedGroup = SchedGroup(2);

    pub(crate) fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// How soon a group wants to run after it wakes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Latency {
    /// Ahead of others that used as much; short slices elsewhere.
    Interactive,
    /// In turn.
    Throughput,
}

/// Declaration of a [`SchedGroup`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupSpec {
    /// Name in metrics.
    pub name: &'static str,
    /// Weight of CPU time, 1 to 10,000.
    pub cpu_shares: u32,
    /// Weight of disk bytes, 1 to 10,000.
    pub io_shares: u32,
    /// Latency class.
    pub latency: Latency,
}

pub(crate) fn default_groups() -> Vec<GroupSpec> {
    let group = |name, cpu_shares, io_shares, latency| GroupSpec {
        name,
        cpu_shares,
        io_shares,
        latency,
    };
    vec![
        group("foreground", 1000, 1000, Latency::Interactive),
        group("background", 200, 200, Latency::Throughput),
        group("maintenance", 50, 50, Latency::Throughput),
    ]
}

/// Where a task waits for its turn.
pub(crate) type Place = (SchedGroup, Flow);

/// Longest credit of a waking interactive group over the others.
const WAKE_CREDIT_NS: u64 = 1_000_000;
/// Virtual time is CPU time times this, divided by shares.
const SHARE_SCALE: u64 = 1000;
/// One poll in this many goes into the queue-delay histogram.
const DELAY_SAMPLE: u64 = 16;

struct Group {
    spec: GroupSpec,
    vruntime: u64,
    ready: Flows,
    stats: GroupStats,
}

/// Counters of one group on one shard.
#[derive(Clone, Debug)]
pub struct GroupStats {
    /// Polls of its tasks.
    pub polls: u64,
    /// CPU time of those polls in nanoseconds.
    pub busy_ns: u64,
    /// Polls longer than the stall limit.
    pub stalls: u64,
    /// Longest poll in nanoseconds.
    pub longest_poll_ns: u64,
    /// Time from wake to poll in nanoseconds, sampled.
    pub delay: Histogram<u64>,
}

impl GroupStats {
    fn new() -> GroupStats {
        GroupStats {
            polls: 0,
            busy_ns: 0,
            stalls: 0,
            longest_poll_ns: 0,
            delay: Histogram::new_with_bounds(1, 60_000_000_000, 2)
                .expect("the bounds are constants that hdrhistogram accepts"),
        }
    }
}

pub(crate) struct Scheduler {
    groups: Vec<Group>,
    ready: usize,
}

impl Scheduler {
    pub(crate) fn new(specs: Vec<GroupSpec>) -> Scheduler {
        let groups = specs
            .into_iter()
            .map(|spec| Group {
                spec,
                vruntime: 0,
                ready: Flows::new(),
                stats: GroupStats::new(),
            })
            .collect();
        Scheduler { groups, ready: 0 }
    }

    pub(crate) fn ready(&self) -> usize {
        self.ready
    }

    pub(crate) fn push(&mut self, (group, flow): Place, task: u32, now: Nanos) {
        let index = group.index();
        if self.groups[index].ready.is_empty() {
            let floor = self.runnable().map(|g| g.vruntime).min();
            let woken = &mut self.groups[index];
            if let Some(floor) = floor {
                let credit = match woken.spec.latency {
                    Latency::Interactive => {
                        WAKE_CREDIT_NS * SHARE_SCALE / u64::from(woken.spec.cpu_shares)
                    }
                    Latency::Throughput => 0,
                };
                woken.vruntime = woken.vruntime.max(floor.saturating_sub(credit));
            }
        }
        self.groups[index].ready.push(flow, task, now);
        self.ready += 1;
    }

    fn runnable(&self) -> impl Iterator<Item = &Group> {
        self.groups.iter().filter(|g| !g.ready.is_empty())
    }

    /// The next task and its place. `pick(n)` chooses among the first `n` of its queue.
    pub(crate) fn pop(
        &mut self,
        now: Nanos,
        pick: impl FnOnce(u32) -> u32,
    ) -> Option<(u32, Place)> {
        let index = self
            .groups
            .iter()
            .enumerate()
            .filter(|(_, g)| !g.ready.is_empty())
            .min_by_key(|(_, g)| g.vruntime)
            .map(|(index, _)| index)?;
        let group = &mut self.groups[index];
        let (task, flow, queued) = group.ready.pop(pick)?;
        self.ready -= 1;
        group.stats.polls += 1;
        if group.stats.polls % DELAY_SAMPLE == 1 {
            group
                .stats
                .delay
                .saturating_record((now - queued).as_nanos() as u64);
        }
        Some((task, (SchedGroup(index as u8), flow)))
    }

    /// Charges a poll. Returns true when it was a stall.
    pub(crate) fn charge(&mut self, (group, flow): Place, used_ns: u64, stall_ns: u64) -> bool {
        let group = &mut self.groups[group.index()];
        group.ready.charge(flow, used_ns);
        group.vruntime += used_ns * SHARE_SCALE / u64::from(group.spec.cpu_shares);
        group.stats.busy_ns += used_ns;
        group.stats.longest_poll_ns = group.stats.longest_poll_ns.max(used_ns);
        let stalled = used_ns > stall_ns;
        group.stats.stalls += u64::from(stalled);
        stalled
    }

    pub(crate) fn stats(&self) -> Vec<(&'static str, GroupStats)> {
        self.groups
            .iter()
            .map(|g| (g.spec.name, g.stats.clone()))
            .collect()
    }

    pub(crate) fn clear(&mut self) {
        for group in &mut self.groups {
            group.ready.clear();
        }
        self.ready = 0;
    }
}

/// Depth of the disk queue of one shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DiskDepth {
    pub(crate) ops_max: usize,
    pub(crate) bytes_max: u64,
}

struct IoQueue {
    shares: u64,
    vtime: u64,
    waiting: VecDeque<(SlotId, Op, u32)>,
}

/// Holds disk operations back once the device is at its depth and starts them by shares.
pub(crate) struct IoScheduler {
    depth: DiskDepth,
    ops: usize,
    bytes: u64,
    queues: Vec<IoQueue>,
    waiting: usize,
}

/// Fixed cost of an operation, in bytes: small requests are not free.
const OP_COST: u64 = 4096;

impl IoScheduler {
    pub(crate) fn new(specs: &[GroupSpec], depth: DiskDepth) -> IoScheduler {
        let queue = |spec: &GroupSpec| IoQueue {
            shares: u64::from(spec.io_shares),
            vtime: 0,
            waiting: VecDeque::new(),
        };
        IoScheduler {
            depth,
            ops: 0,
            bytes: 0,
            queues: specs.iter().map(queue).collect(),
            waiting: 0,
        }
    }

    /// The operation itself when it may start now, else `None`: it waits.
    pub(crate) fn admit(
        &mut self,
        group: SchedGroup,
        slot: SlotId,
        op: Op,
        bytes: u32,
    ) -> Option<Op> {
        if self.waiting == 0 && self.has_room() {
            self.start(group.index(), bytes);
            return Some(op);
        }
        let floor = self
            .queues
            .iter()
            .filter(|q| !q.waiting.is_empty())
            .map(|q| q.vtime)
            .min();
        let queue = &mut self.queues[group.index()];
        if queue.waiting.is_empty() {
            queue.vtime = queue.vtime.max(floor.unwrap_or(0));
        }
        queue.waiting.push_back((slot, op, bytes));
        self.waiting += 1;
        None
    }

    fn has_room(&self) -> bool {
        self.ops == 0 || (self.ops < self.depth.ops_max && self.bytes < self.depth.bytes_max)
    }

    fn start(&mut self, queue: usize, bytes: u32) {
        self.ops += 1;
        self.bytes += u64::from(bytes);
        let queue = &mut self.queues[queue];
        queue.vtime += (u64::from(bytes) + OP_COST) * SHARE_SCALE / queue.shares;
    }

    /// An operation ended; `next` then gives those that may start.
    pub(crate) fn release(&mut self, bytes: u32) {
        self.ops -= 1;
        self.bytes -= u64::from(bytes);
    }

    pub(crate) fn next(&mut self) -> Option<(SlotId, Op)> {
        if self.waiting == 0 || !self.has_room() {
            return None;
        }
        let index = self
            .queues
            .iter()
            .enumerate()
            .filter(|(_, q)| !q.waiting.is_empty())
            .min_by_key(|(_, q)| q.vtime)
            .map(|(index, _)| index)?;
        let (slot, op, bytes) = self.queues[index].waiting.pop_front()?;
        self.waiting -= 1;
        self.start(index, bytes);
        Some((slot, op))
    }

    /// Takes a waiting operation out; false when it has started.
    pub(crate) fn withdraw(&mut self, slot: SlotId) -> bool {
        for queue in &mut self.queues {
            if let Some(place) = queue.waiting.iter().position(|(id, ..)| *id == slot) {
                queue.waiting.remove(place);
                self.waiting -= 1;
                return true;
            }
        }
        false
    }

    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::RawHandle;

    #[test]
    fn cpu_time_follows_shares() {
        let mut sched = Scheduler::new(default_groups());
        let mut used = [0_u64; 2];
        for group in [SchedGroup::FOREGROUND, SchedGroup::BACKGROUND] {
            sched.push((group, Flow::OWN), u32::from(group.0), Nanos(0));
        }
        for _ in 0..12_000 {
            let (task, place) = sched.pop(Nanos(0), |_| 0).unwrap();
            used[place.0.index()] += 1000;
            sched.charge(place, 1000, u64::MAX);
            sched.push(place, task, Nanos(0));
        }
        let ratio = used[0] as f64 / used[1] as f64;
        assert!(
            (4.5..5.5).contains(&ratio),
            "foreground got {ratio} times background, shares say 5"
        );
    }

    #[test]
    fn a_group_that_slept_does_not_starve_the_others() {
        let mut sched = Scheduler::new(default_groups());
        sched.push((SchedGroup::BACKGROUND, Flow::OWN), 1, Nanos(0));
        for _ in 0..1000 {
            let (task, place) = sched.pop(Nanos(0), |_| 0).unwrap();
            sched.charge(place, 1_000_000, u64::MAX);
            sched.push(place, task, Nanos(0));
        }
        sched.push((SchedGroup::FOREGROUND, Flow::OWN), 0, Nanos(0));
        let mut foreground_ns = 0;
        while let Some((task, place)) = sched.pop(Nanos(0), |_| 0) {
            if place.0 == SchedGroup::BACKGROUND {
                break;
            }
            foreground_ns += 100_000;
            sched.charge(place, 100_000, u64::MAX);
            sched.push(place, task, Nanos(0));
        }
        assert!(
            foreground_ns <= 2 * WAKE_CREDIT_NS,
            "credit of {foreground_ns} ns is saved-up time"
        );
    }

    #[test]
    fn disk_operations_past_the_depth_start_by_shares() {
        let depth = DiskDepth {
            ops_max: 1,
            bytes_max: 1 << 20,
        };
        let mut io = IoScheduler::new(&default_groups(), depth);
        let op = || Op::Sync { file: RawHandle(3) };
        assert!(io.admit(SchedGroup::FOREGROUND, 0, op(), 4096).is_some());
        for slot in 1..=60 {
            let group = if slot % 2 == 0 {
                SchedGroup::FOREGROUND
            } else {
                SchedGroup::BACKGROUND
            };
            assert!(io.admit(group, slot, op(), 4096).is_none());
        }
        let mut foreground = 0;
        for _ in 0..24 {
            io.release(4096);
            let (slot, _) = io.next().unwrap();
            foreground += u32::from(slot % 2 == 0);
        }
        assert!(
            (18..=22).contains(&foreground),
            "{foreground} of 24, shares say 20"
        );
    }
}
