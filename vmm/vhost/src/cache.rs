//! Whether the driver lets the device have a write cache, and what is known of its choice.
//!
//! A driver that has switched the cache off sends no flush, and says so once: not to a backend that
//! takes another's place, for which front ends have no message. So a choice is kept where the next
//! backend finds it, in the marks of requests in progress. Where there were none, whether the driver was
//! there before us shows in its rings: a new driver's are empty. One that was, and of whose choice nothing
//! is known, is served as if it had switched the cache off, until it says otherwise.

use std::cell::Cell;

/// What the driver has chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cache {
    /// It sends flushes. What every driver begins with.
    WriteBack,
    /// It counts on each write being durable when it is answered.
    WriteThrough,
}

/// How far writes are to be durable, as all rings of a device see it.
#[derive(Default)]
pub(crate) struct Durability {
    /// Whether the driver knows of flushes at all.
    flushes: Cell<bool>,
    /// Whether it may choose.
    chooses: Cell<bool>,
    choice: Cell<Option<Cache>>,
}

impl Durability {
    /// `before` is what is known of the first driver's choice from before it connects.
    pub(crate) fn new(before: Option<Cache>) -> Durability {
        Durability {
            choice: Cell::new(before),
            ..Durability::default()
        }
    }

    /// The driver has agreed on features.
    pub(crate) fn agree(&self, flushes: bool, chooses: bool) {
        self.flushes.set(flushes);
        self.chooses.set(flushes && chooses);
    }

    pub(crate) fn choice(&self) -> Option<Cache> {
        self.choice.get()
    }

    pub(crate) fn choose(&self, choice: Cache) {
        self.choice.set(Some(choice));
    }

    /// Whether the driver could have made a choice, of which nothing is known.
    pub(crate) fn is_unknown(&self) -> bool {
        self.chooses.get() && self.choice.get().is_none()
    }

    /// What the configuration space says.
    pub(crate) fn says_writeback(&self) -> bool {
        self.choice.get() != Some(Cache::WriteThrough)
    }

    /// Whether a write must be durable before it is answered.
    #[inline]
    pub(crate) fn is_owed(&self) -> bool {
        let back = !self.chooses.get() || self.choice.get() == Some(Cache::WriteBack);
        !(self.flushes.get() && back)
    }

    /// The front end is gone. When its driver comes again it may have switched the cache off elsewhere.
    pub(crate) fn leave(&self) {
        self.agree(false, false);
        if self.choice.get() == Some(Cache::WriteBack) {
            self.choice.set(None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_are_durable_unless_the_driver_is_known_to_flush() {
        let known = [None, Some(Cache::WriteBack), Some(Cache::WriteThrough)];
        for (flushes, chooses, owed) in [
            (false, false, [true, true, true]),
            (false, true, [true, true, true]),
            // Without a choice it flushes whatever was chosen before.
            (true, false, [false, false, false]),
            (true, true, [true, false, true]),
        ] {
            let owes = known.map(|choice| {
                let durability = Durability::new(choice);
                durability.agree(flushes, chooses);
                durability.is_owed()
            });
            assert_eq!(owes, owed, "{flushes} {chooses}");
        }
    }
}
