//! What the log holds, in memory: where each entry lies, the newest entries themselves, the vote.
//!
//! Invariants: entries are consecutive; an entry is in the cache, on disk at a known place, or
//! both; a ticket is never reused, so a place that the writer reports late never lands on an entry
//! that has replaced the one it wrote.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use crate::codec::EntryMessage;
use crate::types::{CommittedLeaderId, Entry, LogId, Vote};
use prost::Message as _;

/// Where an entry's record lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) segment: u64,
    pub(crate) offset: u64,
    pub(crate) len: u32,
}

#[derive(Debug)]
struct Slot {
    term: u64,
    ticket: u64,
    bytes: usize,
    place: Option<Place>,
    cached: Option<Entry>,
}

/// An entry to read, by where it is.
#[derive(Debug)]
pub(crate) enum Located {
    Cached(Entry),
    OnDisk(Place),
}

/// An entry on its way to the disk.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) entry: Entry,
    pub(crate) ticket: u64,
}

/// The log's contents and, by number, its segments' files.
#[derive(Debug)]
pub(crate) struct State<F> {
    slots: VecDeque<Slot>,
    /// The index of the first slot.
    first: u64,
    next_ticket: u64,
    cached_bytes: usize,
    cache_bytes_max: usize,
    /// Entries below this index are not in the cache.
    cached_from: u64,
    pub(crate) purged: Option<LogId>,
    pub(crate) vote: Option<Vote>,
    pub(crate) committed: Option<LogId>,
    /// The same where the writer has not been told yet.
    pub(crate) committed_news: Option<LogId>,
    pub(crate) files: BTreeMap<u64, F>,
    /// Why nothing can be written any more.
    pub(crate) poison: Option<String>,
}

impl<F: Clone> State<F> {
    pub(crate) fn new(cache_bytes_max: usize) -> Self {
        Self {
            slots: VecDeque::new(),
            first: 0,
            next_ticket: 1,
            cached_bytes: 0,
            cache_bytes_max,
            cached_from: 0,
            purged: None,
            vote: None,
            committed: None,
            committed_news: None,
            files: BTreeMap::new(),
            poison: None,
        }
    }

    fn next_index(&self) -> u64 {
        self.first + self.slots.len() as u64
    }

    /// The last entry's position, or where the log was purged.
    pub(crate) fn last(&self) -> Option<LogId> {
        match self.slots.back() {
            Some(slot) => Some(position(slot.term, self.next_index() - 1)),
            None => self.purged,
        }
    }

    /// The indexes of the entries it has.
    pub(crate) fn range(&self) -> Range<u64> {
        self.first..self.next_index()
    }

    /// Adds an entry that must follow the last one; `place` where it is on disk already.
    ///
    /// # Errors
    /// What would be a hole or an overwrite, as text.
    pub(crate) fn push(&mut self, entry: Entry, place: Option<Place>) -> Result<Pending, String> {
        let index = entry.log_id.index();
        if self.slots.is_empty() {
            self.first = index;
            self.cached_from = index;
        }
        if index != self.next_index() {
            return Err(format!(
                "entry {index} where {} should follow",
                self.next_index()
            ));
        }
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let bytes = EntryMessage::from(&entry).encoded_len();
        self.cached_bytes += bytes;
        self.slots.push_back(Slot {
            term: **entry.log_id.committed_leader_id(),
            ticket,
            bytes,
            place,
            cached: Some(entry.clone()),
        });
        if place.is_some() {
            self.evict();
        }
        Ok(Pending { entry, ticket })
    }

    /// Notes where the entry with `ticket` was written, if it is still the one at `index`.
    pub(crate) fn placed(&mut self, index: u64, ticket: u64, place: Place) {
        if let Some(slot) = self.slot_mut(index).filter(|slot| slot.ticket == ticket) {
            slot.place = Some(place);
        }
    }

    /// Drops the oldest cached entries that are on disk, down to the bound.
    pub(crate) fn evict(&mut self) {
        while self.cached_bytes > self.cache_bytes_max && self.cached_from < self.next_index() {
            let index = self.cached_from.max(self.first);
            let Some(slot) = self.slot_mut(index) else {
                break;
            };
            if slot.place.is_none() {
                break;
            }
            let bytes = if slot.cached.take().is_some() {
                slot.bytes
            } else {
                0
            };
            self.cached_bytes -= bytes;
            self.cached_from = index + 1;
        }
    }

    fn slot_mut(&mut self, index: u64) -> Option<&mut Slot> {
        let at = index.checked_sub(self.first)?;
        self.slots.get_mut(usize::try_from(at).ok()?)
    }

    /// Where the entry at `index` is.
    pub(crate) fn locate(&self, index: u64) -> Option<Located> {
        let at = usize::try_from(index.checked_sub(self.first)?).ok()?;
        let slot = self.slots.get(at)?;
        match (&slot.cached, slot.place) {
            (Some(entry), _) => Some(Located::Cached(entry.clone())),
            (None, Some(place)) => Some(Located::OnDisk(place)),
            (None, None) => unreachable!("an entry is in the cache until it is on disk"),
        }
    }

    /// Drops all entries after `last`.
    pub(crate) fn truncate_after(&mut self, last: Option<LogId>) {
        let keep_to = last.map_or(0, |id| id.index() + 1);
        while self.next_index() > keep_to {
            let Some(slot) = self.slots.pop_back() else {
                break;
            };
            self.forget(&slot);
        }
    }

    /// Drops all entries up to `upto`.
    pub(crate) fn purge(&mut self, upto: LogId) {
        if self.purged < Some(upto) {
            self.purged = Some(upto);
        }
        while self.first <= upto.index() {
            let Some(slot) = self.slots.pop_front() else {
                break;
            };
            self.forget(&slot);
            self.first += 1;
        }
        if self.slots.is_empty() {
            self.first = upto.index() + 1;
        }
    }

    fn forget(&mut self, slot: &Slot) {
        if slot.cached.is_some() {
            self.cached_bytes -= slot.bytes;
        }
    }

    /// How many bytes a span of entries has, at most `limit` of them counted in entries.
    pub(crate) fn limited(&self, range: Range<u64>, bytes_max: usize) -> Range<u64> {
        let mut bytes = 0;
        let mut end = range.start;
        while end < range.end.min(self.next_index()) {
            let Some(slot) = end
                .checked_sub(self.first)
                .and_then(|at| self.slots.get(usize::try_from(at).ok()?))
            else {
                break;
            };
            bytes += slot.bytes;
            if bytes > bytes_max && end > range.start {
                break;
            }
            end += 1;
        }
        range.start..end.max(range.start + 1).min(range.end.max(range.start))
    }
}

/// A log position.
pub(crate) fn position(term: u64, index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(term), index)
}
