//! What was used lately, under a bounded cost: the order of eviction that every cache here has.
//!
//! A value that was asked for since it came to the front of the order gets a second chance at the
//! back; one that is in use cannot go. Invariants: the order holds every key once; the cost held is
//! the sum of the values' costs.

use std::collections::{BTreeMap, VecDeque};
use std::ops::RangeBounds;

/// Most second chances that one call gives; then what is in front goes.
const CHANCES_MAX: usize = 32;

/// What a cache holds.
pub(super) trait Cached {
    /// What it counts against the capacity; the same as long as it is held.
    fn cost(&self) -> u64;

    /// Whether letting it go would free nothing.
    fn in_use(&self) -> bool {
        false
    }
}

struct Entry<V> {
    value: V,
    asked: bool,
}

/// Values by key.
pub(super) struct SecondChance<K, V> {
    entries: BTreeMap<K, Entry<V>>,
    /// The keys of all entries, the next to go in front.
    order: VecDeque<K>,
    cost: u64,
}

impl<K, V> Default for SecondChance<K, V> {
    fn default() -> Self {
        Self {
            entries: BTreeMap::new(),
            order: VecDeque::new(),
            cost: 0,
        }
    }
}

impl<K: Ord + Copy, V: Cached> SecondChance<K, V> {
    /// How many values are held.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The cost of what is held.
    pub(super) fn cost(&self) -> u64 {
        self.cost
    }

    pub(super) fn contains(&self, key: &K) -> bool {
        self.entries.contains_key(key)
    }

    /// The value of `key`, which has been asked for now.
    pub(super) fn get(&mut self, key: &K) -> Option<&V> {
        let entry = self.entries.get_mut(key)?;
        entry.asked = true;
        Some(&entry.value)
    }

    /// Lets values go until what is held costs at most `cost`; false when the rest is in use.
    pub(super) fn shrink(&mut self, cost: u64) -> bool {
        let mut chances = CHANCES_MAX;
        while self.cost > cost {
            let key = self.order.pop_front();
            let key = key.expect("what is held stands in the order");
            let entry = self.entries.get_mut(&key);
            let entry = entry.expect("what stands in the order is held");
            let in_use = entry.value.in_use();
            if in_use || (entry.asked && chances > 0) {
                entry.asked = false;
                self.order.push_back(key);
                if chances == 0 {
                    return false;
                }
                chances -= 1;
            } else {
                self.forget(&key);
            }
        }
        true
    }

    /// Makes room for `value` within `capacity` and holds it. False when it is not held: its key
    /// is there already (two readers both missed it), or what is held is in use.
    pub(super) fn insert(&mut self, key: K, value: V, capacity: u64) -> bool {
        let cost = value.cost();
        let Some(room) = capacity.checked_sub(cost) else {
            return false;
        };
        if self.contains(&key) || !self.shrink(room) {
            return false;
        }
        self.cost += cost;
        self.order.push_back(key);
        let asked = false;
        self.entries.insert(key, Entry { value, asked });
        true
    }

    /// Lets one value go, wherever it stands.
    pub(super) fn remove(&mut self, key: &K) {
        self.order.retain(|other| other != key);
        self.forget(key);
    }

    /// Lets the values of a range of keys go.
    pub(super) fn remove_range(&mut self, keys: impl RangeBounds<K> + Clone) {
        let gone = self.entries.extract_if(keys.clone(), |_, _| true);
        self.cost -= gone.map(|(_, entry)| entry.value.cost()).sum::<u64>();
        self.order.retain(|key| !keys.contains(key));
    }

    fn forget(&mut self, key: &K) {
        if let Some(entry) = self.entries.remove(key) {
            self.cost -= entry.value.cost();
        }
    }

    #[cfg(test)]
    pub(super) fn value_mut(&mut self, key: &K) -> Option<&mut V> {
        self.entries.get_mut(key).map(|entry| &mut entry.value)
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;

    #[derive(Clone)]
    struct Weight(u64, Rc<()>);

    impl Cached for Weight {
        fn cost(&self) -> u64 {
            self.0
        }

        fn in_use(&self) -> bool {
            Rc::strong_count(&self.1) > 1
        }
    }

    fn weight(cost: u64) -> Weight {
        Weight(cost, Rc::default())
    }

    #[test]
    fn what_was_asked_for_stays_longer_and_the_capacity_holds() {
        let mut cache = SecondChance::default();
        for key in 1..=3 {
            assert!(cache.insert(key, weight(10), 30));
        }
        assert!(cache.get(&1).is_some());
        assert!(cache.insert(4, weight(10), 30));
        assert!(cache.contains(&1), "it was asked for");
        assert!(!cache.contains(&2), "it was not");
        for key in 5..500 {
            assert!(cache.insert(key, weight(7), 30));
            assert!(cache.cost() <= 30);
            assert_eq!(cache.len(), cache.order.len());
        }
        assert!(!cache.insert(900, weight(31), 30), "too much");
        assert!(!cache.insert(499, weight(7), 30), "it is there");
        assert!(cache.shrink(0));
        assert_eq!((cache.len(), cache.cost(), cache.order.len()), (0, 0, 0));
    }

    #[test]
    fn what_is_in_use_cannot_go() {
        let mut cache = SecondChance::default();
        let used = weight(10);
        assert!(cache.insert(1, used.clone(), 20));
        assert!(cache.insert(2, weight(10), 20));
        assert!(cache.insert(3, weight(10), 20));
        assert!(cache.contains(&1) && !cache.contains(&2));
        assert!(!cache.insert(4, weight(20), 20));
        assert!(!cache.shrink(0));
        drop(used);
        assert!(cache.shrink(0));
        assert_eq!(cache.cost(), 0);
    }

    #[test]
    fn keys_leave_alone_or_by_range() {
        let mut cache = SecondChance::default();
        for key in 0..10 {
            assert!(cache.insert(key, weight(1), 100));
        }
        cache.remove(&3);
        cache.remove(&3);
        cache.remove_range(5..=7);
        assert_eq!(cache.len(), 6);
        assert_eq!(cache.cost(), 6);
        assert_eq!(cache.order, [0, 1, 2, 4, 8, 9]);
    }
}
