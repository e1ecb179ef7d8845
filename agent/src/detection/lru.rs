//! A bounded map that forgets what was used longest ago. Pure.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

/// The map.
#[derive(Debug)]
pub struct Lru<K, V> {
    max: usize,
    clock: u64,
    values: HashMap<K, (u64, V)>,
    order: BTreeMap<u64, K>,
}

impl<K: Hash + Eq + Clone, V> Lru<K, V> {
    /// Holds at most `max` entries.
    #[must_use]
    pub fn new(max: usize) -> Self {
        Self { max, clock: 0, values: HashMap::new(), order: BTreeMap::new() }
    }

    /// Its value, which counts as used now.
    pub fn get(&mut self, key: &K) -> Option<&V> {
        let (used, value) = self.values.get_mut(key)?;
        self.clock += 1;
        self.order.remove(used);
        *used = self.clock;
        self.order.insert(self.clock, key.clone());
        Some(value)
    }

    /// Adds or replaces it.
    pub fn insert(&mut self, key: K, value: V) {
        self.clock += 1;
        if let Some((used, _)) = self.values.insert(key.clone(), (self.clock, value)) {
            self.order.remove(&used);
        }
        self.order.insert(self.clock, key);
        if self.values.len() > self.max
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.values.remove(&oldest);
        }
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.values.clear();
        self.order.clear();
    }

    /// Forgets one.
    pub fn remove(&mut self, key: &K) {
        if let Some((used, _)) = self.values.remove(key) {
            self.order.remove(&used);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn got(lru: &mut Lru<&'static str, u32>, key: &'static str) -> Option<u32> {
        lru.get(&key).copied()
    }

    #[test]
    fn the_longest_unused_goes_first() {
        let mut lru = Lru::new(2);
        lru.insert("a", 1);
        lru.insert("b", 2);
        assert_eq!(lru.get(&"a"), Some(&1));
        lru.insert("c", 3);
        assert_eq!((got(&mut lru, "a"), got(&mut lru, "b"), got(&mut lru, "c")), (Some(1), None, Some(3)));
        lru.insert("a", 4);
        lru.insert("d", 5);
        assert_eq!((got(&mut lru, "a"), got(&mut lru, "c")), (Some(4), None));
        assert_eq!((lru.values.len(), lru.order.len()), (2, 2));
        lru.remove(&"a");
        assert_eq!((got(&mut lru, "a"), lru.values.len(), lru.order.len()), (None, 1, 1));
    }
}
