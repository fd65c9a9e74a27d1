//! The ready tasks of one scheduling group: fair between the flows that they work for.
//!
//! A flow is whoever work is done for, a tenant as a rule; flow 0 is the shard's own work, which all
//! wait for, and weighs more than any other. Flows are spread over [`LANES`] lanes, each a queue in the
//! order of waking (stochastic fair queueing): who keeps hundreds of tasks ready lengthens its own
//! lane, and another's task waits for little more than the poll that runs. A lane's virtual time
//! advances by the CPU time that its tasks used; the lane with the least is next. Idle time is not
//! saved up. Flows that share a lane share its turn: with 1,000 flows busy at once that is 16 each, and
//! still no flow is worse off than in one queue.

use std::collections::VecDeque;

use crate::time::Nanos;

/// Whose work a task does. Tasks inherit it from their starter, calls to other shards too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Flow(u8);

/// Lanes of a group: bits of a word.
const LANES: usize = 64;
/// How much more than another lane the shard's own work may use.
const OWN_WEIGHT: u64 = 16;

impl Flow {
    /// The shard's own work.
    pub const OWN: Flow = Flow(0);
    /// Work for somebody who has not said yet who it is.
    pub const UNKNOWN: Flow = Flow(LANES as u8 - 1);

    /// The flow of the tenant with this number.
    pub fn of_tenant(number: u64) -> Flow {
        // Fibonacci hashing: numbers that follow each other are far apart.
        let hash = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        Flow(1 + (hash % (LANES as u64 - 2)) as u8)
    }

    fn lane(self) -> usize {
        usize::from(self.0)
    }
}

#[derive(Default)]
struct Lane {
    vruntime: u64,
    queue: VecDeque<(u32, Nanos)>,
}

/// See the module's head.
pub(crate) struct Flows {
    lanes: Box<[Lane; LANES]>,
    /// Lanes with tasks, a bit each.
    busy: u64,
    /// Virtual time of the lane that ran last.
    floor: u64,
}

const _: () = assert!(LANES == u64::BITS as usize);

impl Flows {
    pub(crate) fn new() -> Flows {
        Flows {
            lanes: Box::new(std::array::from_fn(|_| Lane::default())),
            busy: 0,
            floor: 0,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.busy == 0
    }

    pub(crate) fn push(&mut self, flow: Flow, task: u32, now: Nanos) {
        let lane = &mut self.lanes[flow.lane()];
        if lane.queue.is_empty() {
            lane.vruntime = lane.vruntime.max(self.floor);
            self.busy |= 1 << flow.lane();
        }
        lane.queue.push_back((task, now));
    }

    /// The next task, its flow and when it woke. `pick(n)` chooses among the first `n` of a lane.
    pub(crate) fn pop(&mut self, pick: impl FnOnce(u32) -> u32) -> Option<(u32, Flow, Nanos)> {
        let index = self.first()?;
        let lane = &mut self.lanes[index];
        let choice = pick(lane.queue.len().min(8) as u32) as usize;
        lane.queue.swap(0, choice);
        let (task, queued) = lane.queue.pop_front()?;
        self.floor = self.floor.max(lane.vruntime);
        if lane.queue.is_empty() {
            self.busy &= !(1 << index);
        }
        Some((task, Flow(index as u8), queued))
    }

    /// The busy lane with the least virtual time.
    fn first(&self) -> Option<usize> {
        let mut left = self.busy;
        let mut first = None;
        while left != 0 {
            let index = left.trailing_zeros() as usize;
            left &= left - 1;
            let vruntime = self.lanes[index].vruntime;
            if first.is_none_or(|(least, _)| vruntime < least) {
                first = Some((vruntime, index));
            }
        }
        first.map(|(_, index)| index)
    }

    pub(crate) fn charge(&mut self, flow: Flow, used_ns: u64) {
        let weight = if flow == Flow::OWN { 1 } else { OWN_WEIGHT };
        self.lanes[flow.lane()].vruntime += used_ns * weight;
    }

    pub(crate) fn clear(&mut self) {
        for lane in self.lanes.iter_mut() {
            lane.queue.clear();
        }
        self.busy = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Polls of each of two flows out of `polls`, each as long as its flow says.
    fn share(flows: &mut Flows, used_ns: [(Flow, u64); 2], polls: u32) -> [u64; 2] {
        let mut used = [0; 2];
        for _ in 0..polls {
            let (task, flow, _) = flows.pop(|_| 0).unwrap();
            let index = usize::from(flow != used_ns[0].0);
            used[index] += used_ns[index].1;
            flows.charge(flow, used_ns[index].1);
            flows.push(flow, task, Nanos(0));
        }
        used
    }

    #[test]
    fn one_task_gets_as_much_as_a_flood_of_longer_ones() {
        let (small, flood) = (Flow::of_tenant(1), Flow::of_tenant(2));
        assert_ne!(small, flood);
        let mut flows = Flows::new();
        for task in 0..320 {
            flows.push(flood, task, Nanos(0));
        }
        flows.push(small, 1000, Nanos(0));
        let [of_small, of_flood] = share(&mut flows, [(small, 10_000), (flood, 100_000)], 11_000);
        let part = of_small as f64 / of_flood as f64;
        assert!((0.9..1.1).contains(&part), "{of_small} against {of_flood}");
    }

    #[test]
    fn who_wakes_waits_for_no_queue_and_has_saved_nothing_up() {
        let (small, flood) = (Flow::of_tenant(1), Flow::of_tenant(2));
        let mut flows = Flows::new();
        for task in 0..320 {
            flows.push(flood, task, Nanos(0));
        }
        for _ in 0..1000 {
            let (task, flow, _) = flows.pop(|_| 0).unwrap();
            flows.charge(flow, 100_000);
            flows.push(flow, task, Nanos(0));
        }
        flows.push(small, 1000, Nanos(0));
        let mut before = 0;
        while flows.pop(|_| 0).unwrap().0 != 1000 {
            flows.charge(flood, 100_000);
            before += 1;
        }
        assert!(before <= 1, "it waited for {before} polls");
        flows.charge(small, 100_000);
        flows.push(small, 1000, Nanos(0));
        let [of_small, of_flood] = share(&mut flows, [(small, 100_000), (flood, 100_000)], 100);
        assert!(of_small.abs_diff(of_flood) <= 200_000);
    }

    #[test]
    fn the_shards_own_work_weighs_more() {
        let tenant = Flow::of_tenant(7);
        let mut flows = Flows::new();
        flows.push(tenant, 1, Nanos(0));
        flows.push(Flow::OWN, 2, Nanos(0));
        let used = share(&mut flows, [(Flow::OWN, 1000), (tenant, 1000)], 1700);
        assert!((15..=17).contains(&(used[0] / used[1])), "{used:?}");
    }
}
