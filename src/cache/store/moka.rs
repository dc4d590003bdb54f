//! Entries in moka.

use std::borrow::Borrow;
use std::cell::Cell;
use std::hash::Hash;
use std::sync::Arc;

use moka::notification::RemovalCause;
use moka::sync::Cache;

use super::Kept;
use crate::cache::departures::{Departures, EvictionCause};
use crate::flight::{Key, Value};
use crate::sync::RandomState;

pub(in crate::cache) struct MokaStore<K, V>(Cache<K, Kept<V>, RandomState>);

thread_local! {
    /// An entry is being written back with other times: nothing leaves the cache.
    static REWRITING: Cell<bool> = const { Cell::new(false) };
}

impl<K, V> MokaStore<K, V>
where
    K: Key,
    V: Value,
{
    pub(super) fn new(capacity: u64, weighs: bool, departures: Option<Arc<Departures<K, V>>>) -> Self {
        let mut cache = Cache::builder().max_capacity(capacity);
        if weighs {
            cache = cache.weigher(|_, kept: &Kept<V>| kept.weight());
        }
        if let Some(departures) = departures {
            cache = cache.eviction_listener(move |key, kept: Kept<V>, cause| {
                let cause = match cause {
                    RemovalCause::Replaced if REWRITING.get() => return,
                    RemovalCause::Replaced => EvictionCause::Replaced,
                    RemovalCause::Size => EvictionCause::Capacity,
                    RemovalCause::Explicit | RemovalCause::Expired => EvictionCause::Invalidated,
                };
                departures.note(key, kept, cause);
            });
        }
        Self(cache.build_with_hasher(RandomState::new()))
    }

    #[inline]
    pub(super) fn get<Q>(&self, key: &Q) -> Option<Kept<V>>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.0.get(key)
    }

    /// Leaves no record, as a lookup would: to moka it says that the key was asked for.
    pub(super) fn contains<Q>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.0.contains_key(key)
    }

    pub(super) fn insert(&self, key: K, kept: Kept<V>) {
        self.0.insert(key, kept);
    }

    pub(super) fn rewrite(&self, key: K, kept: Kept<V>) {
        REWRITING.set(true);
        self.0.insert(key, kept);
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
