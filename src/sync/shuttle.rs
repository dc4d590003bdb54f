//! shuttle's world: larger models, many random schedules.

use std::borrow::Borrow;
use std::hash::Hash;

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use shuttle_dashmap as dashmap;

/// Counters, which nobody decides by: the scheduler need not stop at each.
pub(crate) use std::sync::atomic::AtomicU64;

pub(crate) use shuttle::future::AbortHandle;
pub(crate) use shuttle::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
pub(crate) use shuttle::sync::{Arc, Mutex as RawMutex, MutexGuard};
pub(crate) use shuttle::thread_local;

#[cfg(feature = "cache")]
pub(crate) use ahash::RandomState;

/// As the real one, on shuttle's dashmap.
pub(crate) struct Map<K, V>(DashMap<K, V>);

impl<K: Hash + Eq + Clone, V: Clone> Map<K, V> {
    pub(crate) fn new() -> Self {
        Self(DashMap::new())
    }

    pub(crate) fn get<Q>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.0.get(key).map(|found| found.value().clone())
    }

    pub(crate) fn get_or_try_insert(&self, key: K, make: impl FnOnce() -> Option<V>) -> Option<V> {
        match self.0.entry(key) {
            Entry::Occupied(found) => Some(found.get().clone()),
            Entry::Vacant(place) => {
                if let Some(made) = make() {
                    place.insert(made);
                }
                None
            }
        }
    }

    pub(crate) fn remove_if<Q>(&self, key: &Q, mine: impl FnOnce(&V) -> bool) -> Option<K>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.0.remove_if(key, |_, value| mine(value)).map(|(key, _)| key)
    }

    #[cfg(feature = "cache")]
    pub(crate) fn values(&self) -> Vec<V> {
        self.0.iter().map(|entry| entry.value().clone()).collect()
    }
}

/// Starts `task` under shuttle's executor.
pub(crate) fn spawn(task: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
    shuttle::future::spawn(task).abort_handle()
}

/// True where [`spawn`] works.
pub(crate) fn can_spawn() -> bool {
    true
}
