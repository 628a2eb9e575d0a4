//! A hash map of which a copy is cheap: it shares with the original what neither has changed since.

use std::{
    borrow::Borrow,
    collections::HashMap,
    fmt,
    hash::{BuildHasher as _, Hash, RandomState},
    sync::Arc,
};

/// A map in parts. A change copies the part of its key, where another map has that too, and nothing else.
#[derive(Clone)]
pub(super) struct Sharded<K, V> {
    hasher: RandomState,
    parts: Box<[Arc<Part<K, V>>]>,
    len: usize,
}

type Part<K, V> = HashMap<K, V, RandomState>;

impl<K: Clone + Eq + Hash, V: Clone> Sharded<K, V> {
    pub(super) fn get<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.parts[self.part(key)].get(key)
    }

    pub(super) fn insert(&mut self, key: K, value: V) {
        let part = self.part(&key);
        let before = Arc::make_mut(&mut self.parts[part]).insert(key, value);
        self.len += usize::from(before.is_none());
    }

    /// Returns the value, to change it: a default one where there was none.
    pub(super) fn or_default(&mut self, key: K) -> &mut V
    where
        V: Default,
    {
        let part = self.part(&key);
        let part = Arc::make_mut(&mut self.parts[part]);
        self.len += usize::from(!part.contains_key(&key));
        part.entry(key).or_default()
    }

    pub(super) fn remove<Q: Eq + Hash + ?Sized>(&mut self, key: &Q)
    where
        K: Borrow<Q>,
    {
        let part = &mut self.parts[self.part(key)];
        // Not to copy a part for nothing.
        if part.contains_key(key) {
            Arc::make_mut(part).remove(key);
            self.len -= 1;
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.parts.iter().flat_map(|part| part.iter())
    }

    fn part<Q: Hash + ?Sized>(&self, key: &Q) -> usize {
        // By other bits than those by which a part finds its entries: they would all be alike there.
        (self.hasher.hash_one(key) >> 32) as usize % PARTS
    }
}

impl<K, V> Default for Sharded<K, V> {
    fn default() -> Self {
        let hasher = RandomState::new();
        let empty = Arc::new(HashMap::with_hasher(hasher.clone()));
        Self { hasher, parts: vec![empty; PARTS].into(), len: 0 }
    }
}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for Sharded<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.parts.iter().flat_map(|part| part.iter())).finish()
    }
}

/// Of 100,000 entries some 400 are copied for a change, and for a copy of the map as many counts are raised.
const PARTS: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_keeps_what_it_had_and_shares_what_did_not_change() {
        let mut map = Sharded::default();
        (0..10_000).for_each(|number| map.insert(number, number));
        let copy = map.clone();
        map.insert(7, 8);
        map.remove(&9);
        map.remove(&10_001);
        *map.or_default(10_000) += 1;
        assert_eq!((copy.get(&7), copy.get(&9), copy.get(&10_000)), (Some(&7), Some(&9), None));
        assert_eq!((map.get(&7), map.get(&9), map.get(&10_000)), (Some(&8), None, Some(&1)));
        assert_eq!((copy.len(), map.len(), map.iter().count()), (10_000, 10_000, 10_000));
        let shared = map.parts.iter().zip(&copy.parts).filter(|(one, other)| Arc::ptr_eq(one, other)).count();
        assert!(shared >= PARTS - 3, "{shared}");
    }
}
