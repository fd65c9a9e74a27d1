//! The op slots of a shard: who waits for which operation, and who owns its memory.
//!
//! Invariants:
//! - A slot is reused only after the operation's last completion.
//! - A future that is dropped early leaves its buffers in the slot (`keep`); they are dropped at
//!   the last completion, never before. A leaked future leaks its buffers, which is safe.
//! - The number of slots is fixed; a full table answers [`Slots::claim`] with `None`. Operations on
//!   eventfds find some more: a table that is full of others must not keep those from ending.

use std::any::Any;
use std::collections::VecDeque;
use std::task::{Poll, Waker};

use crate::backend::{Completion, Part, SlotId};
use crate::op::Leaves;

/// Slots past the table's bound for operations on eventfds, of which each has few at a time.
const EVENTS_MAX: usize = 1024;

/// One answer of a multishot operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) result: i32,
    pub(crate) buffer: Option<u16>,
}

/// What a completed operation says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Count, handle, or negated errno of the main part.
    pub(crate) result: i32,
    /// Result of the linked sync; 0 when there was none.
    pub(crate) sync: i32,
    pub(crate) buffer: Option<u16>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    InFlight,
    Done,
    /// The future is gone; only the memory waits.
    Orphan,
}

struct Slot {
    state: State,
    multishot: bool,
    parts_left: u8,
    outcome: Outcome,
    items: VecDeque<Item>,
    waker: Option<Waker>,
    keep: Option<Box<dyn Any>>,
    /// Disk bytes the I/O scheduler charged for the op.
    disk_bytes: Option<u32>,
    leaves: Leaves,
}

/// What the caller must do after a completion, outside of any borrow of the table.
#[derive(Default)]
pub(crate) struct Effects {
    pub(crate) wake: Option<Waker>,
    pub(crate) drop: Option<Box<dyn Any>>,
    /// Results that nobody will read: `result` and ring buffer.
    pub(crate) unread: Vec<Item>,
    /// Disk bytes to give back to the I/O scheduler.
    pub(crate) disk_bytes: Option<u32>,
}

pub(crate) struct Slots {
    table: Vec<Slot>,
    free: Vec<SlotId>,
    max: usize,
}

impl Slots {
    pub(crate) fn new(max: usize) -> Slots {
        Slots {
            table: Vec::new(),
            free: Vec::new(),
            max,
        }
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.table.len() - self.free.len()
    }

    /// Takes a slot for an operation that completes in `parts` parts.
    pub(crate) fn claim(
        &mut self,
        parts: u8,
        multishot: bool,
        disk_bytes: Option<u32>,
        leaves: Leaves,
    ) -> Option<SlotId> {
        let fresh = Slot {
            state: State::InFlight,
            multishot,
            parts_left: parts,
            outcome: Outcome {
                result: 0,
                sync: 0,
                buffer: None,
            },
            items: VecDeque::new(),
            waker: None,
            keep: None,
            disk_bytes,
            leaves,
        };
        let most = match leaves {
            // Closing a handle always finds a slot: a full table must not leak descriptors.
            Leaves::Closed => usize::MAX,
            Leaves::Event => self.max + EVENTS_MAX,
            Leaves::Nothing | Leaves::Handle | Leaves::RingBuffer => self.max,
        };
        if self.in_flight() >= most {
            return None;
        }
        if let Some(id) = self.free.pop() {
            self.table[id as usize] = fresh;
            return Some(id);
        }
        self.table.push(fresh);
        Some((self.table.len() - 1) as SlotId)
    }

    /// Records a completion.
    pub(crate) fn complete(&mut self, done: Completion) -> Effects {
        let mut effects = Effects::default();
        let slot = &mut self.table[done.slot as usize];
        assert!(
            slot.state == State::InFlight || slot.state == State::Orphan,
            "slot completed twice"
        );
        if slot.multishot {
            let item = Item {
                result: done.result,
                buffer: done.buffer,
            };
            if slot.state == State::Orphan {
                effects.unread.push(item);
            } else {
                slot.items.push_back(item);
                effects.wake = slot.waker.take();
            }
            if !done.more {
                self.end(done.slot, &mut effects);
            }
            return effects;
        }
        if !done.notification {
            match done.part {
                Part::Main => {
                    slot.outcome.result = done.result;
                    slot.outcome.buffer = done.buffer;
                }
                Part::Sync => slot.outcome.sync = done.result,
            }
        }
        if done.more {
            return effects;
        }
        slot.parts_left -= 1;
        if slot.parts_left == 0 {
            if slot.state == State::Orphan {
                let Outcome { result, buffer, .. } = slot.outcome;
                effects.unread.push(Item { result, buffer });
            }
            effects.wake = slot.waker.take();
            self.end(done.slot, &mut effects);
        }
        effects
    }

    fn end(&mut self, id: SlotId, effects: &mut Effects) {
        let slot = &mut self.table[id as usize];
        effects.disk_bytes = slot.disk_bytes.take();
        if slot.state == State::Orphan {
            effects.drop = slot.keep.take();
            slot.state = State::Free;
            self.free.push(id);
        } else {
            slot.state = State::Done;
        }
    }

    /// The outcome of a finished operation, freeing the slot; else remembers the waker.
    pub(crate) fn poll(&mut self, id: SlotId, waker: &Waker) -> Option<Outcome> {
        let slot = &mut self.table[id as usize];
        if slot.state == State::Done {
            slot.state = State::Free;
            self.free.push(id);
            return Some(slot.outcome);
        }
        set_waker(&mut slot.waker, waker);
        None
    }

    /// The next item of a multishot operation; `None` when it has ended, and its slot is free.
    pub(crate) fn poll_item(&mut self, id: SlotId, waker: &Waker) -> Poll<Option<Item>> {
        let slot = &mut self.table[id as usize];
        if let Some(item) = slot.items.pop_front() {
            return Poll::Ready(Some(item));
        }
        if slot.state == State::Done {
            slot.state = State::Free;
            self.free.push(id);
            return Poll::Ready(None);
        }
        set_waker(&mut slot.waker, waker);
        Poll::Pending
    }

    /// The future is gone. Returns true when the operation is still running and wants a cancel;
    /// its memory is kept until it ends. Else the slot is freed and its unread results are in
    /// `unread`.
    pub(crate) fn abandon(
        &mut self,
        id: SlotId,
        keep: Option<Box<dyn Any>>,
        unread: &mut Vec<Item>,
    ) -> bool {
        let slot = &mut self.table[id as usize];
        unread.extend(slot.items.drain(..));
        if slot.state == State::Done {
            if !slot.multishot {
                let Outcome { result, buffer, .. } = slot.outcome;
                unread.push(Item { result, buffer });
            }
            slot.state = State::Free;
            self.free.push(id);
            return false;
        }
        slot.state = State::Orphan;
        slot.waker = None;
        slot.keep = keep;
        true
    }

    /// What an unread result of the operation means.
    pub(crate) fn leaves(&self, id: SlotId) -> Leaves {
        self.table[id as usize].leaves
    }

    /// An abandoned operation that never started: frees the slot and gives its memory back.
    pub(crate) fn withdraw(&mut self, id: SlotId) -> Option<Box<dyn Any>> {
        let slot = &mut self.table[id as usize];
        assert!(
            slot.state == State::Orphan,
            "only an abandoned operation is withdrawn"
        );
        slot.state = State::Free;
        self.free.push(id);
        slot.keep.take()
    }
}

fn set_waker(place: &mut Option<Waker>, waker: &Waker) {
    match place {
        Some(old) if old.will_wake(waker) => {}
        _ => *place = Some(waker.clone()),
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;

    fn done(slot: SlotId, result: i32, more: bool) -> Completion {
        Completion {
            slot,
            part: Part::Main,
            result,
            more,
            notification: false,
            buffer: None,
        }
    }

    #[test]
    fn a_dropped_future_keeps_its_memory_until_the_last_completion() {
        let mut slots = Slots::new(4);
        let memory = Rc::new(());
        let id = slots.claim(1, false, None, Leaves::Nothing).unwrap();
        assert!(slots.abandon(id, Some(Box::new(Rc::clone(&memory))), &mut Vec::new()));
        assert_eq!(Rc::strong_count(&memory), 2);
        drop(slots.complete(done(id, -125, false)));
        assert_eq!(Rc::strong_count(&memory), 1);
        assert_eq!(slots.in_flight(), 0);
    }

    #[test]
    fn a_linked_sync_ends_the_op_only_with_both_parts_in_any_order() {
        for sync_first in [true, false] {
            let mut slots = Slots::new(1);
            let id = slots.claim(2, false, None, Leaves::Nothing).unwrap();
            let main = done(id, 4096, false);
            let sync = Completion {
                part: Part::Sync,
                result: -5,
                ..main
            };
            let (first, second) = if sync_first {
                (sync, main)
            } else {
                (main, sync)
            };
            slots.complete(first);
            assert!(slots.poll(id, Waker::noop()).is_none());
            slots.complete(second);
            let outcome = slots.poll(id, Waker::noop()).unwrap();
            assert_eq!((outcome.result, outcome.sync), (4096, -5));
        }
    }

    #[test]
    fn a_full_table_refuses() {
        let mut slots = Slots::new(1);
        assert!(slots.claim(1, false, None, Leaves::Nothing).is_some());
        assert!(slots.claim(1, false, None, Leaves::Nothing).is_none());
    }

    #[test]
    fn a_full_table_has_room_for_events_and_closes_and_none_for_others_after_them() {
        let mut slots = Slots::new(1);
        assert!(slots.claim(1, false, None, Leaves::Nothing).is_some());
        let events: Vec<SlotId> =
            std::iter::from_fn(|| slots.claim(1, true, None, Leaves::Event)).collect();
        assert_eq!(events.len(), EVENTS_MAX);
        assert!(slots.claim(1, false, None, Leaves::Closed).is_some());
        for id in events {
            drop(slots.complete(done(id, 1, false)));
            assert_eq!(
                slots.poll_item(id, Waker::noop()),
                Poll::Ready(Some(Item {
                    result: 1,
                    buffer: None
                }))
            );
            assert_eq!(slots.poll_item(id, Waker::noop()), Poll::Ready(None));
        }
        // What they have left is theirs.
        assert!(slots.claim(1, false, None, Leaves::Nothing).is_none());
        assert!(slots.claim(1, false, None, Leaves::Event).is_some());
    }

    #[test]
    fn items_of_an_abandoned_multishot_are_handed_back() {
        let mut slots = Slots::new(1);
        let id = slots.claim(1, true, None, Leaves::Handle).unwrap();
        slots.complete(done(id, 7, true));
        let mut unread = Vec::new();
        assert!(slots.abandon(id, None, &mut unread));
        assert_eq!(unread.len(), 1);
        assert_eq!(slots.complete(done(id, 8, true)).unread.len(), 1);
        slots.complete(done(id, -125, false));
        assert_eq!(slots.in_flight(), 0);
    }
}
