//! Entries in moka.

use std::borrow::Borrow;
use std::cell::Cell;
use std::hash::Hash;
use std::sync::Arc;

use moka::notification::RemovalCause;
use moka::sync::Cache;

use super::Weigher;
use crate::cache::departures::{Departures, EvictionCause};
use crate::cache::entry::Entry;
use crate::flight::{Key, Value};
use crate::sync::RandomState;

pub(in crate::cache) struct MokaStore<K, V>(Cache<K, Entry<V>, RandomState>);

thread_local! {
    /// An entry is being written back with other times: nothing leaves the cache.
    static REWRITING: Cell<bool> = const { Cell::new(false) };
}

impl<K, V> MokaStore<K, V>
where
    K: Key,
    V: Value,
{
    pub(super) fn new(
        capacity: u64,
        weigher: Option<Weigher<K, V>>,
        departures: Option<Arc<Departures<K, V>>>,
    ) -> Self {
        let mut cache = Cache::builder().max_capacity(capacity);
        if let Some(weigher) = weigher {
            cache = cache.weigher(move |key, entry: &Entry<V>| weigher(key, &entry.value));
        }
        if let Some(departures) = departures {
            cache = cache.eviction_listener(move |key, entry: Entry<V>, cause| {
                let cause = match cause {
                    RemovalCause::Replaced if REWRITING.get() => return,
                    RemovalCause::Replaced => EvictionCause::Replaced,
                    RemovalCause::Size => EvictionCause::Capacity,
                    RemovalCause::Explicit | RemovalCause::Expired => EvictionCause::Invalidated,
                };
                departures.note(key, entry.value, cause);
            });
        }
        Self(cache.build_with_hasher(RandomState::new()))
    }

    #[inline]
    pub(super) fn get<Q>(&self, key: &Q) -> Option<Entry<V>>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.0.get(key)
    }

    pub(super) fn insert(&self, key: K, entry: Entry<V>) {
        self.0.insert(key, entry);
    }

    pub(super) fn rewrite(&self, key: K, entry: Entry<V>) {
        REWRITING.set(true);
        self.0.insert(key, entry);
        REWRITING.set(false);
    }

    pub(super) fn remove<Q>(&self, key: &Q)
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.0.invalidate(key);
    }

    /// The memory follows.
    pub(super) fn clear(&self) {
        self.0.invalidate_all();
    }

    pub(super) fn size(&self) -> (u64, u64) {
        self.0.run_pending_tasks();
        (self.0.entry_count(), self.0.weighted_size())
    }
}
