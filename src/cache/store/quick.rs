//! Entries in `quick_cache`.
//!
//! Its shards are behind locks. What leaves a shard is carried out of the lock before it is noted; of the user's code
//! only `Hash`, `Eq` and the `Clone` of a hit run inside.

use std::borrow::Borrow;
use std::hash::Hash;
use std::sync::Arc;

use quick_cache::sync::Cache;
use quick_cache::{Lifecycle, OptionsBuilder, Weighter};

use super::Kept;
use crate::cache::departures::{Departures, EvictionCause};
use crate::flight::{Key, Value};
use crate::sync::RandomState;

pub(in crate::cache) struct QuickStore<K, V> {
    cache: Cache<K, Kept<V>, AsNoted, RandomState, CarryOut>,
    departures: Option<Arc<Departures<K, V>>>,
}

#[derive(Clone)]
struct AsNoted;

impl<K, V> Weighter<K, Kept<V>> for AsNoted {
    #[inline]
    fn weight(&self, _: &K, kept: &Kept<V>) -> u64 {
        kept.weight().into()
    }
}

/// Takes what leaves a shard along, to be dropped after the shard's lock.
#[derive(Clone)]
struct CarryOut;

/// What an insert made leave: one entry, or none, as a rule.
struct Carried<K, V> {
    first: Option<(K, Kept<V>)>,
    others: Vec<(K, Kept<V>)>,
    /// Of these, how many for want of room. The others were replaced.
    evicted: usize,
}

impl<K, V> Default for Carried<K, V> {
    fn default() -> Self {
        Self { first: None, others: Vec::new(), evicted: 0 }
    }
}

impl<K, V> Lifecycle<K, Kept<V>> for CarryOut {
    type RequestState = Carried<K, V>;

    /// Not called of what is replaced.
    fn before_evict(&self, carried: &mut Carried<K, V>, _: &K, _: &mut Kept<V>) {
        carried.evicted += 1;
    }

    fn on_evict(&self, carried: &mut Carried<K, V>, key: K, kept: Kept<V>) {
        if carried.first.is_none() {
            carried.first = Some((key, kept));
        } else {
            carried.others.push((key, kept));
        }
    }
}

/// With a weigher nobody knows how many entries there will be; this sizes the memory of keys that left.
const WEIGHED_ENTRIES: u64 = 10_000;

impl<K, V> QuickStore<K, V>
where
    K: Key,
    V: Value,
{
    pub(super) fn new(capacity: u64, weighs: bool, departures: Option<Arc<Departures<K, V>>>) -> Self {
        let entries = if weighs { capacity.min(WEIGHED_ENTRIES) } else { capacity };
        let options = OptionsBuilder::new()
            .weight_capacity(capacity)
            .estimated_items_capacity(usize::try_from(entries).unwrap_or(usize::MAX))
            .build()
            .expect("both that it asks for are set");
        let cache = Cache::with_options(options, AsNoted, RandomState::new(), CarryOut);
        Self { cache, departures }
    }

    #[inline]
    pub(super) fn get<Q>(&self, key: &Q) -> Option<Kept<V>>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.cache.get(key)
    }

    pub(super) fn insert(&self, key: K, kept: Kept<V>) {
        self.write(key, kept, Some(EvictionCause::Replaced));
    }

    pub(super) fn rewrite(&self, key: K, kept: Kept<V>) {
        self.write(key, kept, None);
    }

    /// `replaced`: what to note of the entry whose place this one takes, if anything.
    fn write(&self, key: K, kept: Kept<V>, replaced: Option<EvictionCause>) {
        let own = self.departures.is_some().then(|| key.clone());
        let mut carried = Carried::default();
        self.cache.insert_with_lifecycle(key, kept, &mut carried);
        let (Some(departures), Some(own)) = (&self.departures, own) else { return };
        // The key's old entry goes before the new one, should that find no room itself.
        let left = usize::from(carried.first.is_some()) + carried.others.len();
        let mut is_replaced = left > carried.evicted;
        for (key, kept) in carried.first.into_iter().chain(carried.others) {
            let cause = if is_replaced && key == own {
                is_replaced = false;
                replaced
            } else {
                Some(EvictionCause::Capacity)
            };
            if let Some(cause) = cause {
                departures.note(Arc::new(key), kept, cause);
            }
        }
    }

    pub(super) fn remove<Q>(&self, key: &Q)
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.invalidated(self.cache.remove(key));
    }

    pub(super) fn clear(&self) {
        self.invalidated(self.cache.drain());
    }

    fn invalidated(&self, left: impl IntoIterator<Item = (K, Kept<V>)>) {
        for (key, kept) in left {
            if let Some(departures) = &self.departures {
                departures.note(Arc::new(key), kept, EvictionCause::Invalidated);
            }
        }
    }

    pub(super) fn size(&self) -> (u64, u64) {
        (self.cache.len() as u64, self.cache.weight())
    }
}
